"""Notebook 07b's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead).
"""

from vlm_lite.labs import check

NEAREST = "torch.cdist(flat, self.embedding.weight).argmin(dim=1)"
NORM = "F.layer_norm(x, x.shape[-1:])"
RIGHT = {
    check.VectorQuantizer: [
        (NEAREST, "(flat[:, None] - self.embedding.weight).square().sum(dim=2).argmin(dim=1)")
    ],
    check.HeadNorm: [
        (
            NORM,
            "((x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())",
        )
    ],
}
WRONG = {
    check.VectorQuantizer: {
        "passes straight through": ("z + (nearest - z).detach()", "nearest"),
        "moves the encoder": ("z.detach())", "z)"),
        "moves the codes": ("nearest.detach())", "nearest)"),
        "are exchanged": (
            "self.weights[0] * codebook + self.weights[1] * commitment",
            "self.weights[1] * codebook + self.weights[0] * commitment",
        ),
        "no mistake we know": ("out = z + ", "out = 1.1 * z + "),
    },
    check.HeadNorm: {
        "together": (NORM, "F.layer_norm(x, x.shape[-2:])"),
        "scale is missing": (NORM + " * self.weight", NORM),
        "shift is missing": (" + self.bias", ""),
        "no mistake we know": (NORM, "x"),
        "expected (2, 5, 8)": (".flatten(-2)", ""),
    },
}
