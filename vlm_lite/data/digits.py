"""Real handwriting in a wide field: scikit-learn's `load_digits` at random places on a noisy canvas strewn with scraps.

The 8x8 digits are the optical recognition set of Alpaydin and Kaynak (UCI, 1998). As they come, a method that compares
pixel with pixel reads them well. On the canvas the same digit lights other pixels each time, and scraps of other digits
light some as well: then it no longer does.
The split is that of the Shapes world: no handwritten image of `val` is in `train`. (Who wrote which is not recorded, so
one person may have written images of both.)
"""

import numpy as np
import torch

from vlm_lite.data import scenes
from vlm_lite.files import UserError

SPLITS = {"train": "train", "val": "test"}  # our name -> that of the pool of handwriting
SCRAP = 4  # pixels a side


def load_glyphs(split="train"):
    """The bare digits: images uint8 (N, 8, 8) in 0..255 and their classes int64 (N,). UserError for another split."""
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; the digits have {', '.join(SPLITS)}.")
    images, targets, pools = scenes._digits()
    pool = pools[SPLITS[split]]
    return torch.from_numpy((images[pool] * 255 // 16).astype(np.uint8)), torch.from_numpy(targets[pool].astype(int))


def make_canvases(split="train", count=1000, *, size=32, noise=60, scraps=4, seed=0):
    """`count` digits, each at a random place of a canvas of `size` pixels: noise in 0..`noise`, with `scraps` on it.

    A scrap is a square of 4x4 pixels cut from a digit of the same split. Scraps lie anywhere but on the digit itself.
    Returns pictures uint8 (N, 3, size, size), grey (the three channels are one in memory), classes int64 (N,), and
    places int64 (N, 2), each digit's top and left pixel. The same arguments give the same pixels on every machine.
    UserError for a size, noise or number that cannot be.
    """
    if size < 8 or not 0 <= noise <= 255 or count < 1 or scraps < 0:
        raise UserError(f"size is {size}, noise {noise}, count {count} and scraps {scraps}; expected a size of 8 "
                        "pixels or more, noise in 0..255, at least one canvas, and no less than 0 scraps.")
    glyphs, targets = (values.numpy() for values in load_glyphs(split))
    glyphs = glyphs.astype(np.int64)
    rng = np.random.default_rng([seed, list(SPLITS).index(split), size])
    which, places = rng.integers(len(glyphs), size=count), rng.integers(size - 7, size=(count, 2))
    canvases = rng.integers(noise + 1, size=(count, size, size))
    ground = canvases[_square(places, 8)]  # (N, 8, 8)
    for _ in range(scraps):
        torn, corner = rng.integers(len(glyphs), size=count), rng.integers(8 - SCRAP + 1, size=(count, 2))
        at = _square(rng.integers(size - SCRAP + 1, size=(count, 2)), SCRAP)
        canvases[at] = _over(canvases[at], glyphs[torn][_square(corner, SCRAP)])
    canvases[_square(places, 8)] = _over(ground, glyphs[which])
    pictures = torch.from_numpy(canvases.astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    return pictures, torch.from_numpy(targets[which]), torch.from_numpy(places)


def _square(places, side):
    """What indexes the squares of `side` pixels whose top left corners are `places` (N, 2), one of each picture."""
    rows, columns = (places[:, axis, None] + np.arange(side) for axis in (0, 1))  # (N, side) each
    return np.arange(len(places))[:, None, None], rows[:, :, None], columns[:, None, :]


def _over(ground, ink):
    """White ink of strength 0..255 over a grey ground; integers of one shape."""
    return (ground * (255 - ink) + 255 * ink) // 255
