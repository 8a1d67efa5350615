"""A drawn world whose truth is known before a pixel is drawn, with splits and images in which one thing is changed.

Generated from notebooks/00b_world.py by `make notebooks`: edit the notebook.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from vlm_lite.files import UserError

SHAPES = tuple("circle square triangle star cross heart".split())
COLOURS = """red 226 52 52, orange 244 142 36, yellow 246 222 62, green 58 176 76,
cyan 70 214 226, blue 62 98 236, purple 152 74 206, pink 248 150 196"""
COLOURS = {name: tuple(map(int, rgb)) for name, *rgb in map(str.split, COLOURS.split(","))}
SIZES = {"small": 9, "large": 14}  # pixels
HELD_OUT = {("red", "star"), ("blue", "heart"), ("green", "square"), ("orange", "circle")}
SPLITS = ("train", "val", "novel")  # novel: every scene has a held-out pair; the others have none
GRID, CELL = 4, 16  # one cell is one patch of the course's ViT
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
    )  # its image in `load_digits`; -1 is the first of this value that no training shows

    def __post_init__(self):
        looks = (["white"], ["large"], range(10)) if self.is_digit else (COLOURS, SIZES, [-1])
        allowed = {"shape": (*SHAPES, "digit"), "row": range(GRID), "col": range(GRID)}
        allowed |= zip(("colour", "size", "value"), looks, strict=True)
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                listed, given = ", ".join(map(str, known)), getattr(self, name)
                raise UserError(f"Item: {name} is {given!r}; for a {self.shape} choose {listed}.")

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
                f"Scene: items is {self.items!r}; expected a tuple of 1 to 4. A single one needs a comma: Scene((Item(...),))."
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


@cache
def read_digits():
    """scikit-learn's handwriting: images (1797, 8, 8) in 0..16, their values, {"train", "test": indices}."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images.astype(np.int64), data.target, {"train": order[:1297], "test": order[1297:]}


def is_inside(shape, x, y):
    """Whether points are inside a shape that fills -1..1 both ways; y points down."""
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


def find_glyph(item):
    """The index of a digit's handwriting: its own, or the first of its value that no training image shows."""
    _, targets, pools = read_digits()
    unseen = (k for k in pools["test"] if targets[k] == item.value)
    return item.glyph if item.glyph >= 0 else next(unseen)


def handwriting(glyph):
    """An 8x8 digit of `load_digits`, doubled with linear interpolation: (16, 16) integers in 0..255."""
    small = np.pad(read_digits()[0][glyph] * 255 // 16, 1)
    for axis in (0, 1):
        before, middle, after = (np.take(small, range(k, k + 8), axis) for k in range(3))
        pair = np.stack([(3 * middle + before) // 4, (3 * middle + after) // 4], axis + 1)
        small = pair.reshape([16 if k == axis else side for k, side in enumerate(middle.shape)])
    return small


def render(scene, rng):
    """Draw a scene as (64, 64, 3) uint8: coloured things, jittered inside their cells, on a dark noisy ground."""
    noise = rng.integers(-9, 10, (IMAGE_SIZE, IMAGE_SIZE, 3))
    image = np.asarray(BACKGROUND) + noise
    for item in scene.items:
        if item.is_digit:
            alpha, colour = handwriting(find_glyph(item)), (235, 235, 228)
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


def sample_scene(rng, split="train"):
    """A random scene of `split`. `rng` is a `numpy.random.Generator`."""
    count = int(rng.choice(4, p=(0.15, 0.25, 0.30, 0.30))) + 1
    with_digit = rng.random() < (0.15 if count == 1 else 0.45)
    cells = rng.permutation(GRID * GRID)[:count].tolist()
    names, colours = SHAPES, tuple(COLOURS)
    chosen = []
    if split == "novel":
        pairs = sorted(HELD_OUT)
        colour, shape = pairs[rng.integers(len(pairs))]
        chosen.append((shape, colour, ("small", "large")[rng.integers(2)]))
        with_digit = with_digit and count > 1
    while len(chosen) < count - with_digit:
        shape, colour = names[rng.integers(6)], colours[rng.integers(8)]
        if chosen and rng.random() < 0.35:  # repeat one, so that counting has something to count
            twin = chosen[rng.integers(len(chosen))]
            shape, colour = (twin[0], colour) if rng.random() < 0.5 else (shape, twin[1])
        item = (shape, colour, ("small", "large")[rng.integers(2)])
        if item not in chosen and (colour, shape) not in HELD_OUT:
            chosen.append(item)
    items = [Item(*spec, *divmod(c, GRID)) for spec, c in zip(chosen, cells, strict=False)]
    if with_digit:
        _, targets, pools = read_digits()
        pool = pools["train" if split == "train" else "test"]
        glyph = int(pool[rng.integers(len(pool))])
        looks = ("digit", "white", "large", *divmod(cells[-1], GRID), int(targets[glyph]), glyph)
        items.append(Item(*looks))
    return Scene(tuple(items[i] for i in rng.permutation(len(items))))


def any_scene(rng):
    """A scene for text: of `train` or, now and then, with one of the colour-shape pairs that images hold out."""
    return sample_scene(rng, "novel" if rng.random() < 0.15 else "train")
