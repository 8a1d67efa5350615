"""Notebook 02's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function or class.
"""

import torch.nn.functional as F

from vlm_lite.labs import check

SCALE, ATTEND = " / q.shape[-1] ** 0.5", "x + self.attn(self.norm1(x))"
MERGE, MLP = 'rearrange(mixed, "b heads n h -> b n (heads h)")', "x + self.mlp(self.norm2(x))"
WITH_CLASS = "[self.cls_token.expand(len(x), -1, -1), x]"
PLACED, LINEAR = "x + self.pos_embed", "x = F.linear(x, conv.weight.flatten(1), conv.bias)"
CLIPPED = "accelerator.clip_grad_norm_(model.parameters(), 1.0)"
ROLLED = "(weights.mean(dim=1) + identity) / 2 @ rollout"
RIGHT = {
    check.patchify: [lambda images, p: F.unfold(images, p, stride=p).mT],
    check.MultiHeadAttention: [("weights @ v", "F.scaled_dot_product_attention(q, k, v)")],
    check.Block: [(ATTEND, "torch.add(self.attn(self.norm1(x)), x)")],
    check.ViT: [("patchify(pixels, self.patch_size)", "conv(pixels).flatten(2).mT", LINEAR, "")],
    check.vit_training_step: [
        ("optimizer.zero_grad()", "", "    with acc", "    optimizer.zero_grad()\n    with acc")
    ],
    check.attention_rollout: [(ROLLED, "(weights.mean(dim=1) @ rollout + rollout) / 2")],
}
WRONG = {
    check.patchify: {
        "bare reshape": (
            "rearrange(images, squares, p=patch_size, q=patch_size)",
            "images.reshape(len(images), -1, images.shape[1] * patch_size**2)",
        ),
        "column by column": ("(rows columns) (c", "(columns rows) (c"),
        "channels come last": ("(c p q)", "(p q c)"),
        "transposed": ("(c p q)", "(c q p)"),
        "every third pixel": ("(rows p) (columns q)", "(p rows) (q columns)"),
        "one of N": ("(rows columns) (c", "rows columns (c"),
        "shape (2, 48, 9)": ("(rows columns) (c p q)", "(c p q) (rows columns)"),
        "no mistake we know": ("return", "return 1 +"),
        "grey": (
            "return",
            "if images.shape[1] == 1:\n        return images.flatten(2)\n    return",
        ),
    },
    check.MultiHeadAttention: {
        "left out the division": (SCALE, ""),
        "divide the scores by h": ("** 0.5", ""),
        "*whole* width": ("q.shape[-1]", "x.shape[-1]"),
        "over the queries": ("dim=-1", "dim=-2"),
        "(three, heads, h)": ("(three heads h)", "(heads three h)"),
        "a head is a run": ("(three heads h)", "(three h heads)"),
        "side by side is (heads, h)": ("n (heads h)", "n (h heads)"),
        "not side by side": (MERGE, "mixed.reshape(x.shape)"),
        "exchanged": ("(q @ k.", "(k @ q."),
        "causal": ("(q @", "(torch.full((x.shape[1],) * 2, -torch.inf).triu(1) + q @"),
        "transposed": ("weights @ v", "weights.mT @ v"),
        "*values* v": ("weights @ v", "weights @ k"),
        "`proj` is missing": ("return self.proj(", "return ("),
        "self.weights is still None": ("self.weights = weights.detach()", ""),
        "does not hold": ("weights.detach()", "(q @ k.mT).detach()"),
        "detach": ("weights.detach()", "weights"),
        "parameter proj.bias is missing": ("self.proj", "self.out"),
        "returned None": ("return self.proj", "self.proj"),
    },
    check.Block: {
        "*post*-norm": (ATTEND, "self.norm1(x + self.attn(x))", MLP, "self.norm2(x + self.mlp(x))"),
        "residuals are missing": ("x + self.", "self."),
        "norms are missing": ("(self.norm1(x))", "(x)", "(self.norm2(x))", "(x)"),
        "normalise x itself": (
            *("x = " + ATTEND, "x = self.norm1(x)\n        x = self.norm2(x + self.attn(x))"),
            *("(self.norm2(x))", "(x)"),
        ),
        "both steps read the same x": ("x = " + ATTEND + "\n        return x", "return " + ATTEND),
        "order is turned": (
            ATTEND,
            "x + self.mlp(self.norm1(x))",
            MLP,
            "x + self.attn(self.norm2(x))",
        ),
        "norm of its own": ("self.norm2(x)", "self.norm1(x)"),
        "norms are exchanged": (
            "norm1(x)",
            "norm0(x)",
            "norm2(x)",
            "norm1(x)",
            "norm0(x)",
            "norm2(x)",
        ),
        "ReLU": ("nn.GELU", "nn.ReLU"),
        "no activation": ("nn.GELU", "nn.Identity"),
        "another eps": (", eps=1e-6", ""),
        "norm2.bias is missing": ("self.norm2 =", "self.norm3 ="),
        "mlp.fc1.weight has shape (48, 24)": ("4 * width", "2 * width"),
        "MLP is missing": (MLP, "x"),
    },
    check.ViT: {
        "position embedding is missing": (PLACED, "x"),
        "class token has no position": (
            *("x = torch.cat", "x = x + self.pos_embed[:, 1:]\n        x = torch.cat"),
            *(f"({PLACED})", "(x)"),
        ),
        "they come before it": (f"({PLACED})", "(x) + self.pos_embed"),
        "attention must see them": (
            f"({PLACED})",
            "(x)",
            "blocks(x)",
            "blocks(x) + self.pos_embed",
        ),
        "class token stands last": (WITH_CLASS, "[x, self.cls_token.expand(len(x), -1, -1)]"),
        "`norm_pre` is missing": ("self.norm_pre(", "("),
        "last `norm` is missing": ("self.norm(", "("),
        "blocks are missing": ("self.blocks(x)", "x"),
        "only one of the blocks": ("self.blocks(x)", "self.blocks[0](x)"),
        "leaves out its bias": (", conv.bias", ""),
        "column by column": (
            LINEAR,
            LINEAR + "\n        x = rearrange(x, 'b (r c) d -> b (c r) d', r=3)",
        ),
        "return all tokens": (
            "return self.norm(self.blocks(x))",
            "return self.norm(self.blocks(x))[:, 0]",
        ),
        "class token is missing": (WITH_CLASS, "[x]", PLACED, "x + self.pos_embed[:, 1:]"),
        "`forward` is not the head": ("(pixels)[:, 0]", "(pixels)[:, 1:].mean(dim=1)"),
    },
    check.vit_training_step: {
        "gradients add up": ("optimizer.zero_grad()", ""),
        "not clipped": (CLIPPED, ""),
        "scheduler.step() is missing": ("scheduler.step()", ""),
        "did not change": ("optimizer.step()", "optimizer.zero_grad()\n    optimizer.step()"),
        "the weights did not change": ("optimizer.step()", ""),
        "*logits*": ("model(pixels).float()", "model(pixels).softmax(-1)"),
        "take the mean": (", labels)\n    acc", ", labels, reduction='sum')\n    acc"),
        "loss.detach()": ("loss.detach()", "loss"),
        "accelerator.backward": ("accelerator.backward(loss)", "loss.backward()"),
        "outside": ("with accelerator.autocast():", "if True:"),
        "is a float": ("loss.detach()", "loss.item()"),
        "no mistake we know": ("1.0)", "0.1)"),
    },
    check.attention_rollout: {
        "residual is missing": (" + identity) / 2", ")"),
        "wrong order": (ROLLED, "rollout @ (weights.mean(dim=1) + identity) / 2"),
        "sum to 2": (" / 2", ""),
        "element by element": ("@ rollout", "* (1 if rollout is identity else rollout)"),
        "averaged the blocks": (
            "return rollout",
            "return torch.stack(attentions).mean(dim=(0, 2))",
        ),
        "one block alone": ("return rollout", "return weights.mean(dim=1)"),
        "strongest head": ("weights.mean(dim=1)", "weights.amax(dim=1)"),
        "each block counts once": ("in attentions:", "in attentions[:-1]:"),
        "transposed": ("return rollout", "return rollout.mT"),
        "heads are still apart": ("weights.mean(dim=1)", "weights"),
    },
}
