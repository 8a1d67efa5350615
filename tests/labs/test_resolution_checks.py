"""Notebook 08's checks: right answers in another style pass, and known mistakes are named.

An attempt is the right answer with an edit (what stands there, what instead), or a function.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import image_processing_utils

from vlm_lite.labs import check

# ---- right answers, written in another way


def pack_by_loops(images):
    patches, places, ends = [], [], [0]
    for image in images:
        rows, columns = image.shape[1] // 16, image.shape[2] // 16
        for top in range(0, rows, 2):
            for left in range(0, columns, 2):
                for row, column in (
                    (top, left),
                    (top, left + 1),
                    (top + 1, left),
                    (top + 1, left + 1),
                ):
                    patch = image[:, 16 * row :, 16 * column :][:, :16, :16]
                    patches.append(patch.flatten())
                    places.append((row, column))
        ends.append(len(patches))
    return torch.stack(patches), torch.tensor(places), torch.tensor(ends)


def with_a_mask(q, k, v, cu_seqlens):
    image = torch.bucketize(torch.arange(len(q)), cu_seqlens, right=True)
    parts = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, image[:, None] == image).transpose(0, 1)


def with_complex_numbers(x, positions):
    first, second = x.chunk(2, dim=-1)
    pairs = first.shape[-1] // positions.shape[1]
    angles = positions[:, :, None] / 10_000.0 ** (torch.arange(pairs) / pairs)
    turned = torch.complex(first, second) * torch.polar(
        torch.ones(len(x), 1, first.shape[-1]), angles.flatten(1)[:, None]
    )
    return torch.cat([turned.real, turned.imag], dim=-1)


def by_views(table, rows, columns):
    side = int(len(table) ** 0.5)
    grid = table.view(side, side, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic")
    return grid[0].flatten(1).T


def shuffled(into):
    def shuffle(x, factor=2):
        rows = round(x.shape[1] ** 0.5) // factor
        split = "b (r a c e) d -> b (r c) "
        return rearrange(x, split + into, r=rows, a=factor, e=factor)

    return shuffle


def by_slices(x, factor=2):
    side = round(x.shape[1] ** 0.5)
    grid = x.unflatten(1, (side, side))
    parts = [grid[:, a::factor, c::factor] for a in range(factor) for c in range(factor)]
    return torch.cat(parts, dim=-1).flatten(1, 2)


RIGHT = {
    check.pack: [pack_by_loops],
    check.packed_attention: [with_a_mask],
    check.rope_2d: [with_complex_numbers, check.qwen2_vl_rotary],
    check.interpolate_positions: [by_views],
    check.select_best_resolution: [image_processing_utils.select_best_resolution],
    check.pixel_shuffle: [by_slices, shuffled("(a e d)")],
}
BICUBIC, KEPT = 'mode="bicubic", align_corners=False', "return kept, kept - grid[0] * grid[1]"
TURNED = "[first * cos - second * sin, second * cos + first * sin]"
WRONG = {
    check.pack: {
        "patches stand row by row": ("by_block(grid)", "grid.flatten(0, 1)"),
        "channel comes last": ("(d p q)", "(p q d)"),
        "places stand row by row": (
            "by_block(torch.stack(where, dim=-1))",
            "torch.stack(where, dim=-1).flatten(0, 1)",
        ),
        "give (row, column)": ("torch.stack(where,", "torch.stack(where[::-1],"),
        "after a 0; cu_seqlens adds": (".cumsum(0)", ""),
        "0 at the front": (".cumsum(0)", ".cumsum(0)[1:]"),
        "three tensors": lambda images: torch.zeros(3),
    },
    check.packed_attention: {
        "other images": (
            "pairwise(cu_seqlens.tolist())",
            "[(0, len(q))]",
        ),
        "causal": ("attention(*parts)", "attention(*parts, is_causal=True)"),
        "not scaled": ("attention(*parts)", "attention(*parts, scale=1.0)"),
        "shape": ("torch.cat(found)", "torch.cat(found).flatten(1)"),
        "not attention within": ("(q, k, v))", "(q, k, k))"),
    },
    check.rope_2d: {
        "needs its partner": (TURNED, "[first * (cos + sin), second * (cos + sin)]"),
        "backwards": (TURNED, "[first * cos + second * sin, second * cos - first * sin]"),
        "first quarter turns with the row": (
            "(positions[..., None]",
            "(positions.flip(1)[..., None]",
        ),
        "partners are neighbours": (
            *("x.chunk(2, dim=-1)", "(x[..., ::2], x[..., 1::2])"),
            *("torch.cat([", "torch.stack(["),
            *("dim=-1)\n", "dim=-1).flatten(-2)\n"),
        ),
        "nothing is turned": ("return torch", "return x\n    return torch"),
        "frequencies": ("10_000.0", "100.0"),
    },
    check.interpolate_positions: {
        "bilinear": (BICUBIC, 'mode="bilinear", align_corners=False'),
        "align_corners must": ("align_corners=False", "align_corners=True"),
        "columns x rows": ("(rows, columns)", "(columns, rows)"),
        "shape": ('return rearrange(grid, "1 d r c -> (r c) d")', "return grid"),
    },
    check.select_best_resolution: {
        "smallest waste": (KEPT, "return kept - grid[0] * grid[1]"),
        "cap by": (KEPT, "return int(size[0] * scale) * int(size[1] * scale), -grid[0] * grid[1]"),
        "exchanged": lambda size, grids: image_processing_utils.select_best_resolution(
            size[::-1], grids
        ),
        "wastes least": (KEPT, "return kept"),
        "the best grid is": lambda size, grids: grids[-1],
    },
    check.pixel_shuffle: {
        "follow each other": lambda x, factor=2: x.reshape(len(x), -1, x.shape[2] * factor**2),
        "column by column": shuffled("(e a d)"),
        "channel is outermost": shuffled("(d a e)"),
        "nothing may be lost": lambda x, factor=2: shuffled("a e d")(x, factor).mean((2, 3)),
        "not at their places": lambda x, factor=2: by_slices(x, factor).flip(1),
    },
}
