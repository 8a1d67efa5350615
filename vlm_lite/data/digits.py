"""Real handwriting in a wide field: scikit-learn's `load_digits` at random places on a canvas in uneven light.

The 8x8 digits are the optical recognition set of Alpaydin and Kaynak (UCI, 1998). As they come, a method that compares
pixel with pixel reads them well. On the canvas the same digit covers other pixels each time, and the light changes them
all. Then it no longer does; but nearest neighbour reads them once the light is taken off (`vit_recipe.without_light`),
as long as it keeps canvases enough to cover the places.
The split is that of the Shapes world: no handwritten image of `val` is in `train`. (Who wrote which is not recorded, so
one person may have written images of both.)
"""

import numpy as np
import torch

from vlm_lite.data import scenes
from vlm_lite.files import UserError

SPLITS = {"train": "train", "val": "test"}  # our name -> that of the pool of handwriting


def load_glyphs(split="train"):
    """The bare digits: images uint8 (N, 8, 8) in 0..255 and their classes int64 (N,). UserError for another split."""
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; the digits have {', '.join(SPLITS)}.")
    images, targets, pools = scenes._digits()
    pool = pools[SPLITS[split]]
    return torch.from_numpy((images[pool] * 255 // 16).astype(np.uint8)), torch.from_numpy(
        targets[pool].astype(int)
    )


def make_canvases(split="train", count=1000, *, size=20, shade=200, noise=10, seed=0):
    """`count` digits, each at a random place of a canvas of `size` pixels: white ink on grey paper in uneven light.

    The paper has a random shade in 0..`shade` at each corner and goes over evenly between them; to every pixel comes
    noise in 0..`noise`. Returns pictures uint8 (N, 3, size, size), grey (the three channels are one in memory), classes
    int64 (N,), and places int64 (N, 2), each digit's top and left pixel. The same arguments give the same pixels on
    every machine. UserError for a size, shade, noise or count that cannot be.
    """
    if size < 8 or shade < 0 or noise < 0 or shade + noise > 255 or count < 1:
        raise UserError(
            f"size is {size}, shade {shade}, noise {noise} and count {count}; expected a size of 8 pixels "
            "or more, shade and noise of at least 0 and at most 255 together, and at least one canvas."
        )
    glyphs, targets = (values.numpy() for values in load_glyphs(split))
    rng = np.random.default_rng([seed, list(SPLITS).index(split), size])
    which, places = rng.integers(len(glyphs), size=count), rng.integers(size - 7, size=(count, 2))
    corners, last = rng.integers(shade + 1, size=(4, count, 1, 1)), size - 1
    y, x = np.arange(size)[:, None], np.arange(size)
    weights = (
        (last - y) * (last - x),
        (last - y) * x,
        y * (last - x),
        y * x,
    )  # of the four corners, last² together
    canvases = (
        sum(corner * weight for corner, weight in zip(corners, weights, strict=True)) // last**2
    )
    canvases += rng.integers(noise + 1, size=canvases.shape)  # (N, size, size)
    rows, columns = (places[:, axis, None] + np.arange(8) for axis in (0, 1))  # (N, 8) each
    at = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ink = glyphs[which].astype(np.int64)  # (N, 8, 8)
    canvases[at] = (canvases[at] * (255 - ink) + 255 * ink) // 255
    pictures = torch.from_numpy(canvases.astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    return pictures, torch.from_numpy(targets[which]), torch.from_numpy(places)
