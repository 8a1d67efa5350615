"""Larger images and short clips of the Shapes world, made of its own 16-pixel cells; and crops of them."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.lessons.world import (
    BACKGROUND,
    CELL,
    GRID,
    SHAPES,
    SPLITS,
    render,
    sample_scene,
)


def resize(image, size):
    """uint8 (3, H, W) -> (3, *size), antialiased. ValueError where nothing is left."""
    if min(size) < 1:
        raise ValueError(f"{tuple(image.shape[1:])} pixels leave none at {tuple(map(int, size))}")
    size = [int(side) for side in size]
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].byte()


def check_crops(crops, patch, context):
    """All images of B lists of images (3, H, W); ValueError for what an encoder of 2 x 2 blocks of patches can't read."""
    for row, images in enumerate(crops):
        if not images:
            raise ValueError(f"row {row} has no image (no frame, no tile): give at least one")
        for height, width in (image.shape[1:] for image in images):
            if not height or not width or height % (2 * patch) or width % (2 * patch):
                sides = f"row {row}: an image of {height} x {width} pixels; both sides must be"
                raise ValueError(f"{sides} multiples of {2 * patch}, two patches: resize it first")
        tokens = sum(image[0].numel() for image in images) // patch**2
        if tokens > context:
            limit = f"row {row} has {tokens} tokens, and the encoder reads {context}"
            raise ValueError(f"{limit}: give fewer frames or tiles, or a smaller image")
    return [image for images in crops for image in images]


@cache
def cells(split, count=3000):
    """Cells of `count` scenes: digits (N, 16, 16, 3) and their values (N,), shapes (M, 16, 16, 3) and kinds (M,)."""
    found = ([], [], [], [])
    for index in range(count):
        rng = np.random.default_rng([8, SPLITS.index(split), index])
        scene = sample_scene(rng, split)
        image = render(scene, rng).astype(int)
        for item in scene.items:
            images, labels = found[:2] if item.is_digit else found[2:]
            top, left = CELL * item.row, CELL * item.col
            images.append(image[top : top + CELL, left : left + CELL])
            labels.append(item.value if item.is_digit else SHAPES.index(item.shape))
    return [np.stack(each) for each in found]


def _ground(rng, *shape):
    """Empty cells (*shape, 16, 16, 3)."""
    return rng.integers(-9, 10, (*shape, CELL, CELL, 3), dtype=np.int16) + np.int16(BACKGROUND)


def _joined(cells):
    """(N, rows, columns, 16, 16, 3) -> uint8 (N, 3, 16 rows, 16 columns)."""
    image = rearrange(cells, "n rows columns p q d -> n d (rows p) (columns q)")
    return torch.from_numpy(np.ascontiguousarray(image.astype(np.uint8)))


def digit_pages(split, side, count, rng):
    """Pages of `side` pixels with one digit, and shapes in a sixth of the cells: (N, 3, side, side), values (N,)."""
    digits, values, shapes, _ = cells(split)
    grid = side // CELL
    pages, chosen = _ground(rng, count, grid * grid), rng.integers(len(digits), size=count)
    for page, digit in zip(pages, chosen, strict=True):
        first, *others = rng.permutation(grid * grid)[: 1 + grid * grid // 6]
        page[first] = digits[digit]
        page[others] = shapes[rng.integers(len(shapes), size=len(others))]
    return _joined(rearrange(pages, "n (r c) ... -> n r c ...", r=grid)), torch.tensor(
        values[chosen]
    )


def moving_clips(split, count, rng, frames=3, others=False):
    """Clips (N, F, 3, 64, 64) in which one shape goes left and another right, a cell a frame; kinds (N,) of the first.

    The rows are rings: what leaves on one side comes in on the other. So neither one frame nor a set of frames without
    their order says which shape went left. others: return the kinds (N,) of what went right as well.
    """
    _, _, shapes, kinds = cells(split)
    clips, moved = _ground(rng, count, frames, GRID, GRID), ([], [])
    for clip in clips:
        one, other = rng.integers(len(shapes), size=2)
        while kinds[one] == kinds[other]:
            other = rng.integers(len(shapes))
        rows, columns = rng.permutation(GRID)[:2], rng.integers(GRID, size=2)
        for time, frame in enumerate(clip):
            frame[rows, (columns + (-time, time)) % GRID] = shapes[[one, other]]
        for found, k in zip(moved, (one, other), strict=True):
            found.append(kinds[k])
    clips = _joined(rearrange(clips, "n f ... -> (n f) ..."))
    moved = [torch.tensor(np.array(found)) for found in moved]
    return clips.unflatten(0, (count, frames)), *moved[: 1 + others]
