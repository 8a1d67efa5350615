"""The checks of notebook 08: packing, rotary positions, interpolation, tiles and pixel shuffle.

Each check first sees whether the learner's result is right; if not, whether it is what a known mistake would give on
the same inputs. The references are transformers' functions, or the exported lesson that the notebook proves equal to
them. Shapes: T tokens, H heads, h width of a head, D width, B rows.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import image_processing_utils
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

from vlm_lite.labs.core import close, exercise, explain, shape_problem
from vlm_lite.lessons import resolution as lesson


def qwen2_vl_rotary(x, positions):
    """x (T, H, h) turned by (row, column) (T, 2) as in transformers' vision encoder of Qwen2-VL."""
    if hasattr(modeling_qwen2_vl, "VisionRotaryEmbedding"):  # before transformers 5.24
        half = modeling_qwen2_vl.VisionRotaryEmbedding(x.shape[-1] // 2)(positions)
        angles = torch.cat([half, half], dim=-1)
        cos, sin = angles.cos(), angles.sin()
    else:
        config = configuration_qwen2_vl.Qwen2VLVisionConfig(embed_dim=x.shape[-1], num_heads=1)
        cos, sin = modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)(x, positions)
    return modeling_qwen2_vl.apply_rotary_pos_emb_vision(x, x, cos, sin)[0]


def _judged(found, right, mistakes, what):
    """None where found is right, else what is wrong: mistakes {diagnosis: what it gives}, or `what`."""
    if close(found, right):
        return None
    said = explain(found, {said: [value] for said, value in mistakes.items()})
    return said or shape_problem(found, right.shape) or what


@exercise(lesson.pack)
def pack(learner):
    """Three images of unlike shapes: the pixels in a patch, the order of patches, their places, and the ends."""
    images = [torch.randint(0, 256, (3, *size)) for size in ((64, 96), (32, 64), (64, 64))]
    found = learner([image.clone() for image in images])
    if not isinstance(found, tuple | list) or len(found) != 3:
        return "return three tensors: patches, places and cu_seqlens"
    patches, places, ends = lesson.pack(images)
    last = rearrange(patches, "t (d n) -> t (n d)", d=3)
    by_row = [
        torch.cat(
            [rearrange(each.view(-1, 2, 2, *each.shape[1:]), "(r c) a b ... -> (r a c b) ...", c=c)
             for each, c in zip(part.split(ends.diff().tolist()), (3, 2, 2), strict=True)]
        )
        for part in (patches, places)
    ]  # fmt: skip
    order = "stand row by row; they go 2 x 2 block after block: use by_block"
    return (
        _judged(
            found[0],
            patches,
            {
                f"the patches {order}": by_row[0],
                "inside a patch the channel comes last; it goes channel, row, column": last,
            },
            "the patches are not those of the images",
        )
        or _judged(
            found[1],
            places,
            {
                f"the places {order}, like the patches": by_row[1],
                "the places are (column, row); give (row, column)": places.flip(1),
            },
            "the places are not (row, column) of each patch in its own image",
        )
        or _judged(
            found[2],
            ends,
            {
                "these are the lengths after a 0; cu_seqlens adds them up": F.pad(
                    ends.diff(), (1, 0)
                ),
                "the 0 at the front is missing: the first image begins there": ends[1:],
            },
            f"cu_seqlens is {ends.tolist()} for these images",
        )
    )


@exercise(lesson.packed_attention)
def packed_attention(learner):
    """Three images of 5, 2 and 4 tokens: each attends to its own tokens, both ways, scaled by the head's width."""
    q, k, v = 2 * torch.randn(3, 11, 2, 8)
    ends = torch.tensor([0, 5, 7, 11])
    image = torch.repeat_interleave(torch.arange(3), ends.diff())
    own = image[:, None] == image

    def attend(mask, scale=8**-0.5):
        parts = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(*parts, mask, scale=scale).transpose(0, 1)

    return _judged(
        learner(q.clone(), k.clone(), v.clone(), ends.clone()),
        attend(own),
        {
            "tokens attend to other images": attend(None),
            "the attention is causal; in an image every token sees every other": attend(own.tril()),
            "the scores are not scaled: divide by the square root of h": attend(own, 1.0),
        },
        "the result is not attention within each image",
    )


@exercise(lesson.rope_2d)
def rope_2d(learner):
    """Random vectors at random places, against transformers: the partners, the direction, the axes, the frequencies."""
    x, places = torch.randn(7, 3, 24), torch.randint(0, 9, (7, 2))
    found = learner(x.clone(), places.clone())
    right = qwen2_vl_rotary(x, places)
    turns = qwen2_vl_rotary(torch.ones(7, 3, 24), places)  # cos - sin, then cos + sin
    total = turns[..., 12:]
    swapped = qwen2_vl_rotary(rearrange(x, "t n (h two) -> t n (two h)", two=2), places)
    return _judged(
        found,
        right,
        {
            "each number is only multiplied by cos + sin of itself; it needs its partner": x
            * total.repeat(1, 1, 2),
            "turned backwards: the first is x1 cos - x2 sin": qwen2_vl_rotary(x, -places),
            "rows and columns are exchanged: the first quarter turns with the row": qwen2_vl_rotary(
                x, places.flip(1)
            ),
            "the partners are neighbours; here they are h / 2 apart": rearrange(
                swapped, "t n (two h) -> t n (h two)", two=2
            ),
            "nothing is turned": x,
        },
        "your result is not the rotation; are the frequencies 10000^(-i / n), with n the pairs of one axis?",
    )


@exercise(lesson.interpolate_positions)
def interpolate_positions(learner):
    """A table of 4 x 4 stretched to 5 x 7: bicubic, with the corners' centres where they belong, row by row."""
    table = torch.randn(16, 6)

    def stretch(size=(5, 7), **how):
        grid = F.interpolate(rearrange(table, "(r c) d -> 1 d r c", r=4), size, **how)
        return rearrange(grid, "1 d r c -> (r c) d")

    flat = stretch((7, 5), mode="bicubic")
    return _judged(
        learner(table.clone(), 5, 7),
        lesson.interpolate_positions(table, 5, 7),
        {
            "that is bilinear; transformers' is bicubic": stretch(mode="bilinear"),
            "align_corners must be False: the table's cells are areas": stretch(
                mode="bicubic", align_corners=True
            ),
            "the grid came out as columns x rows": flat,
        },
        "your result is not the table stretched by bicubic interpolation",
    )


@exercise(lesson.select_best_resolution)
def select_best_resolution(learner):
    """Two hundred sizes of images and nine grids, against transformers' function of the same name."""
    grids = lesson.GRIDS[::-1]  # so that the first of equals is not the one that wastes least
    sizes = [(int(h), int(w)) for h, w in torch.randint(8, 300, (200, 2))]

    def area(grid):
        return grid[0] * grid[1]

    def scaled(size, grid):
        scale = min(grid[0] / size[0], grid[1] / size[1])
        return int(size[0] * scale) * int(size[1] * scale)

    wrong = {
        "you take the smallest waste; first comes how much of the image is kept": lambda s, g: max(
            g, key=lambda each: min(scaled(s, each), area(s)) - area(each)
        ),
        "pixels that come from enlarging count: cap by the image's own height * width": lambda s, g: (
            max(g, key=lambda each: (scaled(s, each), -area(each)))
        ),
        "height and width are exchanged": lambda s, g: (
            image_processing_utils.select_best_resolution(s[::-1], g)
        ),
        "of grids that keep the same, take the one that wastes least": lambda s, g: max(
            g, key=lambda each: min(scaled(s, each), area(s))
        ),
    }
    found = [tuple(learner(size, list(grids))) for size in sizes]
    right = [image_processing_utils.select_best_resolution(s, grids) for s in sizes]
    if found == right:
        return None
    for said, choose in wrong.items():
        if found == [choose(size, grids) for size in sizes]:
            return said
    size, mine, theirs = next(
        each for each in zip(sizes, found, right, strict=True) if each[1] != each[2]
    )
    return f"for an image of {size} the best grid is {theirs}, not {mine}"


@exercise(lesson.pixel_shuffle)
def pixel_shuffle(learner):
    """A square of 6 x 6 tokens, two images, factors 2 and 3, against transformers' Idefics3: which go together, in what order."""
    for factor in (2, 3):
        x = torch.randn(2, 36, 5)
        split = "b (r a c e) d -> b (r c) "

        def grouped(into, x=x, f=factor, split=split):
            return rearrange(x, split + into, r=6 // f, a=f, e=f)

        problem = _judged(
            learner(x.clone(), factor),
            Idefics3Connector.pixel_shuffle(None, x, factor),
            {
                "you took tokens that follow each other; a block spans several rows": x.reshape(
                    2, -1, 5 * factor**2
                ),
                "in a block you went column by column": grouped("(e a d)"),
                "the channel is outermost, as in nn.PixelUnshuffle; here each token stays whole": grouped(
                    "(d a e)"
                ),
                "the blocks are averaged: nothing may be lost": grouped("d a e").mean((-1, -2)),
            },
            "the right numbers are not at their places",
        )
        if problem:
            return problem
    return None
