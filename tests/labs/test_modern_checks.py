"""Notebook 09's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function or class.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.labs import check

NORM = "torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)"
GATED = "F.silu(self.gate_proj(x)) * self.up_proj(x)"
ROTATED = "x * cos + torch.cat([-second, first], dim=-1) * sin"
SQUARES = "rearrange(features, squares, rows=rows, r=scale, c=scale)"


def roll_half(x, cos, sin):
    half = x.shape[-1] // 2
    sign = torch.ones(2 * half)
    sign[:half] = -1
    return x * cos + x.roll(half, -1) * sign * sin


def neighbours(x, cos, sin):
    odd = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + odd * sin


def by_views(features, scale):
    count, patches, width = features.shape
    side = int(patches**0.5) // scale
    squares = features.view(count, side, scale, side, scale, width).transpose(2, 3)
    return squares.reshape(count, side * side, -1)


def by_unshuffle(features, scale):
    side = round(features.shape[1] ** 0.5)
    grid = features.mT.unflatten(2, (side, side))
    return F.pixel_unshuffle(grid, scale).flatten(2).mT


def inserting(
    change=lambda images: images, guard=True, in_place=False, error=ValueError, said="{} {}"
):
    def insert(token_embeds, input_ids, image_embeds, image_id):
        at, flat = input_ids == image_id, change(image_embeds).flatten(0, 1)
        if guard and int(at.sum()) != len(flat):
            raise error(said.format(int(at.sum()), len(flat)))
        out = token_embeds if in_place else token_embeds.clone()
        out[at] = flat[: int(at.sum())] if len(flat) >= int(at.sum()) else flat[0]
        return out

    return insert


def without_a_cache(
    model, input_ids, attention_mask, image_embeds=None, max_new_tokens=16, eos=None
):
    embeds = model.embed(input_ids, image_embeds)
    for _ in range(max_new_tokens):
        token = model.text_model(embeds, attention_mask)[0][:, -1].argmax(dim=-1)
        embeds = torch.cat([embeds, model.text_model.embed_tokens(token[:, None])], dim=1)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
    return token[:, None]


class Scaled(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps


RIGHT = {
    check.RMSNorm: [
        ("wide = wide * " + NORM, "wide = F.rms_norm(wide, x.shape[-1:], None, self.eps)")
    ],
    check.SwiGLU: [("F.silu(self.gate_proj(x))", "torch.sigmoid(g := self.gate_proj(x)) * g")],
    check.apply_rope: [roll_half],
    check.GroupedQueryAttention: [
        (
            *("vit.attend(q, keys, values, mask=reads)", "(weights @ values)"),
            "        mixed",
            "        weights = q @ keys.mT / self.head_dim**0.5\n"
            "        weights = weights.masked_fill(~reads, -torch.inf).softmax(dim=-1)\n        mixed",
        )
    ],
    check.insert_images: [inserting()],
    check.cached_generate: [
        ("finished |= token == eos", "finished = finished.logical_or(token.eq(eos))")
    ],
}
WRONG = {
    check.RMSNorm: {
        "that is LayerNorm": (
            NORM,
            "1",
            "wide = wide * 1",
            "wide = F.layer_norm(wide, x.shape[-1:], eps=self.eps)",
        ),
        "eps is missing": (NORM, "wide.pow(2).mean(dim=-1, keepdim=True) ** -0.5"),
        "under the root": (
            NORM,
            "1 / (wide.pow(2).mean(dim=-1, keepdim=True).sqrt() * (1 + self.eps))",
        ),
        "weight is missing": ("return self.weight * wide", "return wide"),
        "take their mean": (
            NORM,
            "torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + self.eps)",
        ),
        "take its root": (NORM, "1 / (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)"),
        "over the positions": (
            NORM,
            "torch.rsqrt(wide.pow(2).mean(dim=1, keepdim=True) + self.eps)",
        ),
        "parameter weight is missing": Scaled,
        "no mistake we know": ("return ", "return 1.1 * "),
        "NoneType": ("return ", ""),
    },
    check.SwiGLU: {
        "exchanged": (GATED, "F.silu(self.up_proj(x)) * self.gate_proj(x)"),
        "that is GELU": ("F.silu", "F.gelu"),
        "a sigmoid": ("F.silu", "F.sigmoid"),
        "no activation": (GATED, "self.gate_proj(x) * self.up_proj(x)"),
        "are added": (GATED, "F.silu(self.gate_proj(x)) + self.up_proj(x)"),
        "up_proj is not used": (GATED, "F.silu(self.gate_proj(x))"),
        "down_proj is missing": (f"self.down_proj({GATED})", GATED),
    },
    check.apply_rope: {
        "on its own": lambda x, cos, sin: x * (cos + sin),
        "neighbours": neighbours,
        "wrong way": lambda x, cos, sin: roll_half(x, cos, -sin),
        "minus is missing": lambda x, cos, sin: x * cos + x.roll(4, -1) * sin,
        "not exchanged": lambda x, cos, sin: (
            roll_half(x, cos, 0) + torch.cat([-x[..., :4], x[..., 4:]], -1) * sin
        ),
        "cos and sin are exchanged": lambda x, cos, sin: roll_half(x, sin, cos),
        "no mistake we know": lambda x, cos, sin: 2 * roll_half(x, cos, sin),
    },
    check.GroupedQueryAttention: {
        "keys are not turned": (", apply_rope(k, *rope)", ", k"),
        "nothing is turned": ("q, k = apply_rope(q, *rope), apply_rope(k, *rope)", "pass"),
        "values are turned too": ("if past", "v = apply_rope(v, *rope)\n        if past"),
        "repeat_interleave, not repeat": (
            "each.repeat_interleave(share, dim=1)",
            "torch.cat([each] * share, dim=1)",
        ),
        "reads what comes after": (", mask=reads", ""),
        "a run of neighbouring channels": ('split = "b t (heads h)', 'split = "b t (h heads)'),
        "side by side is (heads h)": ('heads t h -> b t (heads h)"', 'heads t h -> b t (h heads)"'),
        "before the heads are repeated": ("(k, v)\n", "(keys, values)\n"),
        "past keys and values come first": (
            "zip(past, (k, v), strict=True)",
            "zip((k, v), past, strict=True)",
        ),
        "parameter o_proj.weight is missing": ("self.o_proj", "self.out_proj"),
    },
    check.insert_images: {
        "*replaced*": (*(".dtype))", ".dtype)) + token_embeds * at_image[..., None]"),),
        "the same vector": inserting(lambda images: images[:1, :1].expand(3, 2, -1)),
        "wrong order": inserting(lambda images: images.flip(0)),
        "averaged": inserting(lambda images: images.mean(1, keepdim=True).expand(-1, 2, -1)),
        "wrote into token_embeds": inserting(in_place=True),
        "raise a ValueError": inserting(guard=False),
        "6 vectors: raise": inserting(error=RuntimeError),
        "both counts": inserting(said="the counts differ"),
    },
    check.cached_generate: {
        "the rest is in the cache": without_a_cache,
        "hand back the cache": ("logits, cache =", "logits, _ ="),
        "columns for": ("attention_mask = F.pad(attention_mask, (0, 1), value=1)", ""),
        "read next the embedding": (
            "embed_tokens(token[:, None])",
            "embed_tokens(token[:, None] - 1)",
        ),
        "note which are finished": ("finished |= token == eos", ""),
        "says 6 tokens": ("finished |=", "finished ="),
        "*last* position": ("logits[:, -1]", "logits[:, 0]"),
    },
}
