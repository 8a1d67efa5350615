# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vlm_lite:
#     title: The Shapes world
#     builds: the drawn world of the course, scenes with exact truth and real handwritten digits
#     lesson: scenes
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/00b_shapes_world.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vlm_lite") is None:
    # Naming what is installed keeps pip from changing it.
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "numpy", "transformers")
        if importlib.util.find_spec(name)
    ]
    source = "git+https://github.com/vlm-lite/vlm-lite@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers=("tiny", "smoke")), get_compute()
print(describe(profile, compute, notebook="00b_shapes_world"))

# %% [markdown]
# # 0b. The Shapes world
#
# An optional companion of [00](00_start_here.ipynb): the data set under the whole course, drawn in front of you. No model, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.8 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [00, Start here](00_start_here.ipynb).
#
# ## 1. Why a drawn world
#
# To show that an answer comes from the image, one has to know what the image shows, *exactly*: every thing, its attributes, its place. Photographs come without that. So the course draws its own: one to four things on a grid of 4 x 4 cells,
# each a coloured shape or a handwritten digit. A cell is 16 pixels wide, as wide as one patch of the ViT. Questions, captions, their oracle and every benchmark follow from the scene (CLEVR is the same idea in three dimensions: Johnson et al. 2017).
#
# **Four pairs of colour and shape are held out**: no image of `train` or `val` shows a red star, every image of `novel` shows one of the four. A model that has learnt *red* and *star* apart can name it all the same; one that has learnt pairs cannot.

# %% tags=["save"]
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from vlm_lite.files import UserError

SHAPES = tuple("circle square triangle star cross heart".split())
COLOURS = """
red     226  52  52
orange  244 142  36
yellow  246 222  62
green    58 176  76
cyan     70 214 226
blue     62  98 236
purple  152  74 206
pink    248 150 196
"""
COLOURS = {name: tuple(map(int, rgb)) for name, *rgb in map(str.split, COLOURS.split("\n")[1:-1])}
SIZES = {"small": 9, "large": 14}  # pixels
HELD_OUT = frozenset(
    {("red", "star"), ("blue", "heart"), ("green", "square"), ("orange", "circle")}
)
SPLITS = ("train", "val", "novel")  # novel: every scene has a held-out pair; the others have none
GRID, CELL = 4, 16
IMAGE_SIZE = GRID * CELL
BACKGROUND = (20, 22, 30)


@dataclass(frozen=True)
class Item:
    """One thing in a scene. A digit has shape "digit", colour "white", size "large" and a value 0 to 9.

    UserError for anything that is not in the Shapes world.
    """

    shape: str
    colour: str
    size: str
    row: int  # 0 is the top
    col: int  # 0 is the left
    value: int = -1  # of a digit
    glyph: int = (
        -1
    )  # index into `load_digits`; -1: the first of its value that no training image shows

    def __post_init__(self):
        for name, known in (
            ("shape", (*SHAPES, "digit")),
            ("colour", ("white",) if self.is_digit else COLOURS),
            ("size", ("large",) if self.is_digit else SIZES),
            ("row", range(GRID)),
            ("col", range(GRID)),
            ("value", range(10) if self.is_digit else (-1,)),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"Item: {name} is {getattr(self, name)!r}; for a {self.shape} choose "
                    f"{', '.join(map(str, known))}."
                )

    @property
    def is_digit(self):
        return self.shape == "digit"


@dataclass(frozen=True)
class Scene:
    """One to four things in different cells. UserError for other scenes."""

    items: tuple[Item, ...]

    def __post_init__(self):
        if not isinstance(self.items, tuple) or not 1 <= len(self.items) <= 4:
            raise UserError(
                f"Scene: items is {self.items!r}; expected a tuple of 1 to 4, such as Scene((Item(...), Item(...))). "
                "A single one needs a comma: Scene((Item(...),))."
            )
        cells = [(item.row, item.col) for item in self.items]
        if len(set(cells)) < len(cells):
            raise UserError(f"Scene: items in (row, col) {cells}; give each a cell of its own.")

    @cached_property
    def shapes(self):
        return tuple(i for i in self.items if not i.is_digit)

    @property
    def digit(self):
        return next((i for i in self.items if i.is_digit), None)


# %%
import pandas as pd
import torch

from vlm_lite import plots

scene = Scene((Item("star", "red", "large", 0, 1), Item("digit", "white", "large", 3, 3, value=5)))
try:
    Item("hexagon", "red", "large", 0, 0)
except UserError as error:
    print(error)
pd.DataFrame(scene.items)

# %% [markdown]
# ## 2. Drawing a shape
#
# A shape is a condition on $(x, y)$ in $[-1, 1]^2$: a circle is $x^2 + y^2 \le 1$, the heart is the curve $(u^2 + v^2 - 1)^3 = u^2 v^3$. How much of a pixel it covers is counted on 4 x 4 points (*supersampling*), and kept as a whole number: **integer arithmetic
# gives the same pixels on every machine**, which floats would not.


# %% tags=["save"]
def is_inside(shape, x, y):
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return (abs(x) <= 0.88) & (abs(y) <= 0.88)
    if shape == "triangle":
        return (y <= 0.85) & (2 * abs(x) <= (y + 1) * 1.08)
    if shape == "cross":
        return (abs(x) <= 0.34) | (abs(y) <= 0.34)
    if shape == "heart":
        u, v = x * 1.16, 0.12 - y * 1.12
        return (u * u + v * v - 1) ** 3 <= u * u * v * v * v
    # star: inside at least four of the five half-planes whose edges are the lines of a pentagram
    angle = np.pi / 2 + np.arange(5) * 2 * np.pi / 5
    sides = [x * np.cos(a) + y * np.sin(a) <= 0.34 for a in angle]
    return np.sum(sides, axis=0) >= 4


@cache
def coverage(shape, pixels, samples=4):
    """How much of each pixel a shape covers, in 0..255, as (pixels, pixels) integers."""
    t = (np.arange(pixels * samples) + 0.5) / (pixels * samples) * 2 - 1
    inside = is_inside(shape, t[None, :], t[:, None])
    parts = inside.reshape(pixels, samples, pixels, samples)
    return parts.sum((1, 3), dtype=np.int64) * 255 // samples**2


# %%
drawn = np.stack([coverage(shape, 64) for shape in SHAPES])
assert coverage("square", 14).dtype == np.int64 and drawn.max() == 255
gray = torch.from_numpy(drawn).byte()[:, None].expand(-1, 3, -1, -1)
plots.show_images(
    gray, [f"{s}: {m:.0%}" for s, m in zip(SHAPES, drawn.mean((1, 2)) / 255, strict=True)]
)

# %% [markdown]
# ## 3. Real handwriting
#
# The digits are not drawn: they are the 8 x 8 scans of scikit-learn's `load_digits`, doubled. 1,297 of the 1,797 may stand in `train`; **`val` and `novel` show none of those**, so reading a digit there is reading a hand never seen.


# %% tags=["save"]
@cache
def handwritten_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images.astype(np.int64), data.target, {"train": order[:1297], "test": order[1297:]}


def glyph_of(item):
    """The index of a digit's handwriting: its own, or the first of its value that no training image shows."""
    _, targets, pools = handwritten_digits()
    unseen = (k for k in pools["test"] if targets[k] == item.value)
    return item.glyph if item.glyph >= 0 else next(unseen)


def handwriting(glyph):
    """An 8x8 digit of `load_digits`, doubled with linear interpolation: (16, 16) integers in 0..255."""
    small = np.pad(handwritten_digits()[0][glyph] * 255 // 16, 1)
    for axis in (0, 1):
        before, middle, after = (np.take(small, range(k, k + 8), axis) for k in range(3))
        pair = np.stack([(3 * middle + before) // 4, (3 * middle + after) // 4], axis + 1)
        small = pair.reshape([16 if k == axis else side for k, side in enumerate(middle.shape)])
    return small


# %%
_, targets, pools = handwritten_digits()
assert not set(pools["train"]) & set(pools["test"])
fives = [k for k in pools["test"] if targets[k] == 5][:5]
shown = torch.from_numpy(np.stack([handwriting(k) for k in fives])).byte()
plots.show_images(shown[:, None].expand(-1, 3, -1, -1), [f"scan {k}" for k in fives])

# %% [markdown]
# ## 4. Sampling a scene
#
# What is drawn at random decides what can be guessed. Shapes, colours and sizes are drawn alike, but for the held-out pairs, so no colour is a good guess. Now and then a shape or a colour is **repeated**, so that "how many" and "which of the two" have something to ask about.


# %% tags=["save"]
def sample_scene(rng, split="train"):
    """A random scene of `split`. `rng` is a `numpy.random.Generator`."""
    count = int(rng.choice(4, p=(0.15, 0.25, 0.30, 0.30))) + 1
    with_digit = rng.random() < (0.15 if count == 1 else 0.45)
    cells = rng.permutation(GRID * GRID)[:count]
    names, colours = SHAPES, tuple(COLOURS)
    chosen = []
    if split == "novel":
        pairs = sorted(HELD_OUT)
        colour, shape = pairs[rng.integers(len(pairs))]
        chosen.append((shape, colour, ("small", "large")[rng.integers(2)]))
        with_digit = with_digit and count > 1
    while len(chosen) < count - with_digit:
        shape, colour = names[rng.integers(6)], colours[rng.integers(8)]
        if chosen and rng.random() < 0.35:  # repeat a shape or a colour: something to count
            twin = chosen[rng.integers(len(chosen))]
            shape, colour = (twin[0], colour) if rng.random() < 0.5 else (shape, twin[1])
        item = (shape, colour, ("small", "large")[rng.integers(2)])
        if item not in chosen and (colour, shape) not in HELD_OUT:
            chosen.append(item)
    items = [
        Item(*spec, row=int(c) // GRID, col=int(c) % GRID)
        for spec, c in zip(chosen, cells, strict=False)
    ]
    if with_digit:
        _, targets, pools = handwritten_digits()
        pool = pools["train" if split == "train" else "test"]
        glyph = int(pool[rng.integers(len(pool))])
        row, col = divmod(int(cells[-1]), GRID)
        items.append(Item("digit", "white", "large", row, col, int(targets[glyph]), glyph))
    return Scene(tuple(items[i] for i in rng.permutation(len(items))))


def any_scene(rng):
    """A scene for text: of `train` or, now and then, with one of the colour-shape pairs that images hold out."""
    return sample_scene(rng, "novel" if rng.random() < 0.15 else "train")


# %%
made = {
    split: [sample_scene(np.random.default_rng(k), split) for k in range(500)] for split in SPLITS
}
facts = {
    split: {
        "things": np.mean([len(s.items) for s in those]),
        "with a digit": np.mean([s.digit is not None for s in those]),
        "with a held-out pair": np.mean(
            [any((i.colour, i.shape) in HELD_OUT for i in s.shapes) for s in those]
        ),
        "commonest colour": pd.Series([i.colour for s in those for i in s.shapes])
        .value_counts(normalize=True)
        .iloc[0],
    }
    for split, those in made.items()
}
table = pd.DataFrame(facts)
assert table.loc["with a held-out pair"].tolist() == [0, 0, 1]
table.round(2)

# %% [markdown]
# ## 5. The image
#
# Things lie anywhere inside their cells, colours vary a little, the ground is noisy. Without that a model could learn 16 cells by heart, pixel by pixel.


# %% tags=["save"]
def render(scene, rng):
    """Draw a scene as (64, 64, 3) uint8: coloured things, jittered inside their cells, on a dark noisy ground."""
    noise = rng.integers(-9, 10, (IMAGE_SIZE, IMAGE_SIZE, 3))
    image = np.asarray(BACKGROUND) + noise
    for item in scene.items:
        if item.is_digit:
            alpha, colour = handwriting(glyph_of(item)), (235, 235, 228)
        else:
            alpha, colour = coverage(item.shape, SIZES[item.size]), COLOURS[item.colour]
        side, alpha = len(alpha), alpha[..., None]
        colour = colour + rng.integers(-14, 15, 3)
        top, left = (
            place * CELL + int(rng.integers(CELL - side + 1)) for place in (item.row, item.col)
        )
        at = slice(top, top + side), slice(left, left + side)
        image[at] = (image[at] * (255 - alpha) + (colour + noise[at] // 2) * alpha) // 255
    return image.clip(0, 255).astype(np.uint8)


# %%
rngs = [np.random.default_rng(seed) for seed in range(5)]
images = np.stack(
    [render(made["novel"][0], rng) for rng in rngs[:2]]
    + [render(made["val"][k], rngs[k]) for k in (2, 3, 4)]
)
pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
assert not torch.equal(pixels[0], pixels[1])
print(
    f"HEADLINE: {len(SHAPES) * len(COLOURS) * len(SIZES)} kinds of shapes, {len(HELD_OUT)} pairs of colour and shape held out"
)
plots.show_images(pixels, ["one scene", "the same, redrawn", "val", "val", "val"])

# %% [markdown]
# ## What this does not show
#
# - Photographs: no texture, light, occlusion or perspective. What a model learns here is about *reading a scene*, and [10](10_photographs.ipynb) starts on real images.
# - A natural prior. Things here go together by chance; in the world a fork lies beside a plate, and a model may answer by that.
