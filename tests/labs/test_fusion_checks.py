"""Notebook 07's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function or class.
"""

import copy

import torch
from torch import nn

from vlm_lite.labs import check

SOURCE = "torch.cat([context, latents], dim=1)"
PUT = "return out.masked_scatter(at_image[..., None], self.expert(x[at_image]).type_as(out))"
DENSE = "self.alpha_dense.tanh() * self.mlp(self.post_attention_layernorm(x))"


def by_loop(ids, image_id, num_images, per_image, offset=0, least=0):
    reads = torch.zeros(*ids.shape, num_images * per_image, dtype=torch.bool)
    for row, line in enumerate(ids.tolist()):
        last = least
        for position, token in enumerate(line):
            before, last = last, last + (token == image_id)
            seen = before if offset else last
            if seen:
                reads[row, position, (seen - 1) * per_image : seen * per_image] = True
    return reads


class Shared(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.frozen, self.expert, self.at_image = frozen, frozen, None

    def forward(self, x):
        return self.frozen(x)


class Frozen(Shared):
    def __init__(self, frozen):
        super().__init__(frozen)
        self.expert = copy.deepcopy(frozen)


RIGHT = {
    check.PerceiverAttention: [
        (
            "attend(q, k, v)",
            "(q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v",
        )
    ],
    check.PerceiverResampler: [
        ("self.latents.expand(len(context), -1, -1)", "self.latents[None].repeat(len(context), 1, 1)")
    ],
    check.MediaAttention: [
        (
            "mixed = merge_heads(attend(q, k, v, mask=(reads | ~some)[:, None]))",
            "scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~reads[:, None], -1e9)\n"
            "        mixed = merge_heads(scores.softmax(dim=-1) @ v)",
        )
    ],
    check.last_image_mask: [by_loop],
    check.GatedCrossAttention: [
        ("return x + " + DENSE, f"return torch.add({DENSE}, x)"),
    ],
    check.VisualExpert: [
        (PUT, "out = out.clone()\n        out[at_image] = self.expert(x[at_image])\n        return out")
    ],
}  # fmt: skip
WRONG = {
    check.PerceiverAttention: {
        "image and latents together": (
            *("self.k_proj(source), self.v_proj(source)", "self.k_proj(context), self.v_proj(context)"),
        ),
        "the image is not read": (SOURCE, "latents"),
        "image vectors are not normalised": ("self.context_layer_norm(context)", "context"),
        "latents are not normalised": ("self.latents_layer_norm(latents)", "latents"),
        "are exchanged: each": (
            "self.context_layer_norm(context), self.latents_layer_norm(latents)",
            "self.latents_layer_norm(context), self.context_layer_norm(latents)",
        ),
        "belongs to the resampler": (
            "context, latents =", "old = latents\n        context, latents =",
            "return self", "return old + self",
        ),
        "output_proj is missing": ("self.output_proj(merge_heads(attend(q, k, v)))", "merge_heads(attend(q, k, v))"),
        "keys and values are exchanged": ("attend(q, k, v)", "attend(q, v, k)"),
        "expected (2, 4, 12)": ("self.q_proj(latents)", "self.q_proj(source)"),
        "no mistake we know": ("return ", "return 1.1 * "),
    },
    check.PerceiverResampler: {
        "attention's result replaces": ("latents = latents + attention(", "latents = attention("),
        "MLP's result replaces": ("latents = latents + mlp(", "latents = mlp("),
        "last layer_norm is missing": ("return self.layer_norm(latents)", "return latents"),
        "only the first block": (
            "            latents = latents + mlp(latents)\n",
            "            latents = latents + mlp(latents)\n            break\n",
        ),
        "no mistake we know": ("return ", "return 1.1 * "),
    },
    check.MediaAttention: {
        "not used": (", mask=(reads | ~some)[:, None]", "", " * some", ""),
        "they get 0": ("mixed * some", "mixed"),
        "upside down": ("reads | ~some", "~(reads & some)"),
        "without a mask: o_proj is missing": ("self.o_proj(merge_heads(attend(q, k, v)))", "merge_heads(attend(q, k, v))"),
        "without a mask: keys and values": ("attend(q, k, v)", "attend(q, v, k)"),
        "no mistake we know": ("attend(q, k, v, mask=(reads | ~some)[:, None])", "attend(q, k, v, mask=reads[:, None]) + 1"),
    },
    check.last_image_mask: {
        "the first is read too": ("last[:, :, None] == number", "number <= last[:, :, None]"),
        "every position reads every image": lambda ids, image_id, count, per: torch.ones(
            *ids.shape, count * per, dtype=torch.bool
        ),
        "reads its own image": lambda *given: by_loop(*given, offset=1),
        "it reads none": ("last[:, :, None] ==", "(last[:, :, None] + (last[:, :, None] == 0)) =="),
        "repeat_interleave, not repeat": ("repeat_interleave(per_image)", "repeat(per_image)"),
        "along the text": ("dim=1)", "dim=0)"),
        "expected (2, 9, 6)": (".repeat_interleave(per_image)", ""),
        "no mistake we know": ("== number", "!= number"),
    },
    check.GatedCrossAttention: {
        "go through tanh": ("alpha_cross_attn.tanh()", "alpha_cross_attn", "alpha_dense.tanh()", "alpha_dense"),
        "that is a sigmoid": (".tanh()", ".sigmoid()"),
        "attention has no gate": ("self.alpha_cross_attn.tanh() * mixed", "mixed"),
        "MLP has no gate": ("self.alpha_dense.tanh() * ", "1 * "),
        "gates are exchanged": (
            *("alpha_cross_attn.tanh()", "GATE", "alpha_dense.tanh()", "alpha_cross_attn.tanh()"),
            *("GATE", "alpha_dense.tanh()"),
        ),
        "attention's result replaces": ("x = x + self.alpha_cross", "x = self.alpha_cross"),
        "MLP's result replaces": ("return x + ", "return "),
        "not handed on": ("media, reads)\n", "media, None)\n"),
        "input_layernorm comes first": ("self.input_layernorm(x)", "x"),
        "post_attention_layernorm comes first": ("self.post_attention_layernorm(x)", "x"),
        "it reads the sum": (
            "mixed = self", "old = x\n        mixed = self",
            "self.post_attention_layernorm(x)", "self.post_attention_layernorm(old)",
        ),
        "no mistake we know": ("return x + ", "return x - "),
    },
    check.VisualExpert: {
        "exchanged: the expert is for": (PUT, "return torch.where(at_image[..., None], out, self.expert(x))"),
        "used for text, too": (PUT, "return self.expert(x)"),
        "expert is not used": (PUT, "return out"),
        "the expert stands alone": (PUT, "return out + self.expert(x) * at_image[..., None]"),
        "its bias reaches the text": (
            PUT, "at = at_image[..., None]\n        return self.expert(x * at) + out.masked_fill(at, 0)",
        ),
        "the expert computes 12 positions": (PUT, "return torch.where(at_image[..., None], self.expert(x), out)"),
        "make a copy": Shared,
        "expected the expert's parameters": Frozen,
        "without an image use": ("return self.frozen(x)\n", "return self.expert(x)\n"),
        "no mistake we know": (PUT, PUT.replace("self.expert(", "2 * self.expert(")),
    },
}  # fmt: skip
