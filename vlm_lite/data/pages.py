"""Larger images, pointing and short clips of the Shapes world, made of its own 16-pixel cells; and crops of them."""

import re
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.data.scenes import (
    BACKGROUND,
    CELL,
    GRID,
    IMAGE_SIZE,
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


def _scenes(split, count, seed):
    """Scenes of a split with their images, (64, 64, 3) and integers."""
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        scene = sample_scene(rng, split)
        yield scene, render(scene, rng).astype(int)


def _cell(image, item):
    top, left = CELL * item.row, CELL * item.col
    return image[top : top + CELL, left : left + CELL]


@cache
def cells(split, count=3000):
    """Cells of `count` scenes: digits (N, 16, 16, 3) and their values (N,), shapes (M, 16, 16, 3) and kinds (M,)."""
    found = ([], [], [], [])
    for scene, image in _scenes(split, count, 8):
        for item in scene.items:
            images, labels = found[:2] if item.is_digit else found[2:]
            images.append(_cell(image, item))
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


def moving_clips(split, count, rng, frames=3):
    """Clips (N, F, 3, 64, 64) in which one shape goes left and another right, a cell a frame; kinds (N,) of the first.

    The rows are rings: what leaves on one side comes in on the other. So neither one frame nor a set of frames without
    their order says which shape went left.
    """
    _, _, shapes, kinds = cells(split)
    clips, moved = _ground(rng, count, frames, GRID, GRID), []
    for clip in clips:
        one, other = rng.integers(len(shapes), size=2)
        while kinds[one] == kinds[other]:
            other = rng.integers(len(shapes))
        rows, columns = rng.permutation(GRID)[:2], rng.integers(GRID, size=2)
        for time, frame in enumerate(clip):
            frame[rows, (columns + (-time, time)) % GRID] = shapes[[one, other]]
        moved.append(kinds[one])
    clips = _joined(rearrange(clips, "n f ... -> (n f) ..."))
    return clips.unflatten(0, (count, frames)), torch.tensor(np.array(moved))


def point_task(split, count):
    """Images (N, 3, 64, 64), and for each a list of requests: (text, points (x, y) in pixels, the answer as text).

    The first asks for every shape, the others for the shapes of a kind. In the answer, coordinates are percent of the
    side, and their digits stand apart: each is a token.
    """
    images, requests = [], []
    for scene, image in _scenes(split, count, 18):
        centres = {}
        for item in scene.shapes:
            drawn = np.abs(_cell(image, item) - BACKGROUND).max(axis=-1) > 40
            row, column = np.argwhere(drawn).mean(axis=0) + 0.5
            centres[item] = (CELL * item.col + column, CELL * item.row + row)
        asked = {"every shape": list(centres.values())}
        for kind in sorted({item.shape for item in centres}):
            points = [point for item, point in centres.items() if item.shape == kind]
            asked[f"{'the' if len(points) == 1 else 'every'} {kind}"] = points
        images.append(image)
        requests.append([(f"point to {w}.", p, _as_text(p)) for w, p in asked.items()])
    images = torch.from_numpy(np.stack(images).astype(np.uint8))
    return rearrange(images, "n p q d -> n d p q").contiguous(), requests


def _as_text(points):
    parts = [[f"{100 * side / IMAGE_SIZE:02.0f}" for side in point] for point in points]
    text = " ".join(f'<point x="{x}" y="{y}">' for x, y in parts)
    return re.sub(r"(?<=\d)(?=\d)", " ", text)
