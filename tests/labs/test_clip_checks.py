"""Notebook 01's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function.
"""

import torch

from vlm_lite.labs import check

PATCHES = 'rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)'
END, CUT = (
    "(input_ids == self.eos_token_id).int().argmax(dim=1)",
    "input_ids = input_ids[:, : int(end.max()) + 1]",
)
CLIPPED = "accelerator.clip_grad_norm_(model.parameters(), 1.0)"
LOSS = "(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2"
SOFTMAX = "-(logits.{0}(0).diagonal(){1} + logits.{0}(1).diagonal(){1}).mean() / 2"
UNIT = "F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)"
SCALED, AHEAD = "logit_scale.exp() * u @ v.T", "(~(similarity < right)).sum(dim=1) - 1"
MEANS = "[F.normalize(encode_text(each), dim=-1).mean(dim=0) for each in prompts]"
RIGHT = {
    check.ImageEncoder: [(PATCHES, "F.unfold(pixels, p, stride=p).mT")],
    check.TextEncoder: [(CUT, "", "len(x)", "x.shape[0]")],
    check.training_step: [("    image", "    optimizer.zero_grad()\n    image")],
    check.info_nce: [(LOSS, SOFTMAX.format("log_softmax", ""))],
    check.recall_at_k: [(AHEAD, "(similarity >= right).sum(dim=1) - 1")],
    check.class_embeddings: [(".mean(dim=0)", ".sum(dim=0)")],
}
WRONG = {
    check.ImageEncoder: {
        "positions are missing": (" + self.position_embedding)", ")"),
        "input_norm": ("self.input_norm(", "("),
        "output_norm": ("self.output_norm(", "("),
        "behind the patches": ("[token, patches]", "[patches, token]"),
        "mean of the patches": ("x[:, 0]", "x[:, 1:].mean(dim=1)"),
        "last patch": ("x[:, 0]", "x[:, -1]"),
        "all 10 tokens": ("x[:, 0]", "x"),
        "column by column": ("b (h w) (c", "b (w h) (c"),
        "channels come": ("(c p q)", "(p q c)"),
        "every third": ("(h p) (w q)", "(p h) (q w)"),
    },
    check.TextEncoder: {
        "not causal": ("is_causal=True", "is_causal=False"),
        "positions are missing": (" + self.position_embedding[: input_ids.shape[1]]", ""),
        "output_norm": ("self.output_norm(", "("),
        "last position": (CUT, "", "len(x)), end]", "len(x)), -1]"),
        "take the first": (END, f"input_ids.shape[1] - 1 - {END.replace('.arg', '.flip(1).arg')}"),
        "token before": ("len(x)), end]", "len(x)), end - 1]"),
        "highest id": (END, "input_ids.argmax(dim=1)"),
        "first token": ("len(x)), end]", "len(x)), 0]"),
        "average": (CUT, "", "x[torch.arange(len(x)), end]", "x.mean(dim=1)"),
    },
    check.training_step: {
        "not clipped": (CLIPPED, ""),
        "add up": ("optimizer.zero_grad()", ""),
        "scheduler.step() is missing": ("scheduler.step()", ""),
        "no weight has moved": ("accelerator.backward(loss)", ""),
        "loss.detach()": ("loss.detach()", "loss"),
        "clipped to 2": ("1.0)", "2.0)"),
    },
    check.info_nce: {
        "one-directional, pictures": (LOSS, "F.cross_entropy(logits, target)"),
        "one-directional, captions": (LOSS, "F.cross_entropy(logits.T, target)"),
        "divide by 2": (" / 2", ""),
        "unit length": (UNIT, "image_embeds, text_embeds"),
        "*logarithm*": ("logit_scale.exp()", "logit_scale"),
        "upside down": (SCALED, "u @ v.T / logit_scale.exp()"),
        "instead of dividing": (SCALED, "u @ v.T / logit_scale"),
        "temperature is missing": (SCALED, "u @ v.T"),
        "sign": ("return (", "return -("),
        "summed over the batch": (LOSS, LOSS + " * len(u)"),
        "one number": (LOSS, "logits"),
        "Check in this order": (LOSS, LOSS + " + 0.5"),
        "no gradient": (LOSS, f"({LOSS}).item()"),
        "logit_scale.exp(), not math.exp": ("logit_scale.exp()", "logit_scale.detach().exp()"),
        "no gradient reaches text_embeds": ("v.T", "v.T.detach()"),
        "overflows": (LOSS, SOFTMAX.format("softmax", ".log()")),
    },
    check.recall_at_k: {
        "down the columns": ("right =", "similarity = similarity.T\n    right ="),
        "count of hits": (".mean().item()", ".sum()"),
        "precision": (".item()", ".item() / k"),
        "one candidate too many": ("ahead < k", "ahead <= k"),
        "k is ignored": ("ahead < k", "ahead < 1"),
        "*least*": ("right =", "similarity = -similarity\n    right ="),
        "percentage": ("return (", "return 100 * ("),
        "one number": (".float().mean().item()", ""),
        "counted for you": (AHEAD, "(similarity > right).sum(dim=1)"),
        "the order of the columns decides": (
            "(ahead < k)",
            "(similarity.topk(k).indices == torch.arange(len(similarity))[:, None]).any(1)",
        ),
    },
    check.class_embeddings: {
        "only one prompt": ("encode_text(each)", "encode_text(each[:1])"),
        "once more": (
            "return F.normalize(torch.stack(means), dim=-1)",
            "return torch.stack(means)",
        ),
        "*before* averaging": (
            "F.normalize(encode_text(each), dim=-1).mean",
            "encode_text(each).mean",
        ),
        "nothing is normalised": ("F.normalize(", "(", ", dim=-1)", ")"),
        "row a *prompt*": (MEANS, "[row for each in prompts for row in encode_text(each)]"),
        "torch.stack": ("F.normalize(torch.stack(means), dim=-1)", "means"),
        "list of strings": (MEANS, "encode_text(prompts)"),
    },
}


def test_an_encoder_that_says_nothing_finds_nothing():
    recall = check.recall_at_k.reference
    for nothing in (torch.ones(9, 9), torch.full((9, 9), torch.nan)):
        assert [float(recall(nothing, k)) for k in (1, 5, 8)] == [0, 0, 0]
    assert recall(torch.eye(9), 1) == 1 and recall(torch.eye(9).fill_diagonal_(torch.nan), 5) == 0
