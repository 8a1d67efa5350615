"""The checks of notebook 08b, its proof that the three numbers are Qwen2-VL's, and its images with points."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from transformers import Qwen2VLConfig, Qwen2VLModel

from vlm_lite import plots
from vlm_lite.labs.core import close, exercise
from vlm_lite.labs.resolution import _judged
from vlm_lite.lessons import pointing as lesson
from vlm_lite.lessons.world import IMAGE_SIZE

SIDE = 144  # pixels of an image in a figure


def same_positions(mrope_positions):
    """Prove three numbers for text, an image, text, a clip and text equal to Qwen2-VL's -> the table of them."""
    kinds = torch.tensor([[0] * 2 + [1] * 6 + [0] * 2 + [2] * 8 + [0]])
    grids = {
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    model = SimpleNamespace(config=Qwen2VLConfig())
    positions = Qwen2VLModel.get_vision_position_ids
    model.get_vision_position_ids = lambda *each, **options: positions(None, *each, **options)
    theirs, _ = Qwen2VLModel.get_rope_index(model, torch.ones_like(kinds), kinds, **grids)
    mine = mrope_positions([2, (1, 2, 3), 2, (2, 2, 2), 1])  # in merged fours
    assert torch.equal(mine, theirs[:, 0]), "other numbers than Qwen2-VL's"
    names = [("text", "image", "clip")[kind] for kind in kinds[0].tolist()]
    return pd.DataFrame(mine, index=["time", "row", "column"], columns=names)


def marked(images, titles, said, truth):
    """Images with points in pixels, [(frame, x, y), ...] each: a cross where the model points, a circle what is right."""
    figure = plots.show_images(images, titles, size=SIDE)
    for axes, *both in zip(figure.axes, said, truth, strict=False):
        for points, sign in zip(both, "+o", strict=True):
            x, y = SIDE / IMAGE_SIZE * np.reshape(points, (-1, 3))[:, 1:].T
            axes.plot(x, y, sign, color="w", mfc="none", ms=13, mew=2)
    return figure


def tracks(clip, x, names):
    """The frames of a clip (F, 3, S, S), and in each a line at x (F, 2), in pixels, for either of two names."""
    figure = plots.show_images(clip, [f"frame {t}" for t in range(len(clip))], size=SIDE)
    for axes, found in zip(figure.axes, x.tolist(), strict=True):
        for k, (place, name) in enumerate(zip(found, names, strict=True)):
            line = ("-", ":")[k]
            axes.axvline(SIDE / IMAGE_SIZE * place, color="w", lw=1, ls=line)
            axes.plot([4, 16], [10 + 14 * k] * 2, line, color="w", lw=1)
            axes.text(20, 10 + 14 * k, name, color="w", fontsize=8, va="center")
    return figure


@exercise(lesson.mrope_positions)
def mrope_positions(learner):
    """Text, an image, text, a clip that is longer than it is wide, and text: three numbers for each token."""
    parts = [3, (1, 2, 4), 2, (5, 2, 2), 2]
    right = lesson.mrope_positions(parts)

    def moved(*changes):
        found = right.clone()
        for rows, begin, end, by in changes:
            found[rows, begin:end] += by
        return found

    every, place = slice(3), slice(1, 3)
    return _judged(
        learner(parts),
        right,
        {
            "after an image the text goes on as if each patch took a number; it goes on after the largest": moved(
                (every, 11, 35, 4), (every, 33, 35, 15)
            ),
            "time is left out of the largest number: the text would share numbers with the clip's end": moved(
                (every, 33, 35, -3)
            ),
            "an image's rows and columns begin at 0; they begin where the text before it ends": moved(
                (place, 3, 11, -3), (every, 11, 35, -3), (place, 13, 33, -6)
            ),
        },
        "your numbers are not time, row and column, each from where the part before ended",
    )


@exercise(lesson.parse_points)
def parse_points(learner):
    """Two points among words, with and without spaces, and none; then bad ones, which must raise errors."""
    text = "two: <point> <frame0> <x3> <y5> and <point><frame2><x15><y0>."
    found, right = [tuple(map(float, each)) for each in learner(text)], [(0, 14, 22), (2, 62, 2)]
    for said, wrong in {
        "these are levels; a level is 4 pixels wide": [(0, 3, 5), (2, 15, 0)],
        "a level begins at these pixels; give its middle": [(0, 12, 20), (2, 60, 0)],
        "x and y are exchanged": [(0, 22, 14), (2, 2, 62)],
        "only the first point is found": right[:1],
    }.items():
        if close(found, wrong):
            return said
    if not close(found, right):
        return f"{text!r} has the points {right}, not {found}"
    if len(learner("nothing")):
        return "a text without a point gives an empty list"
    for bad, said in {
        "<point> <frame0> <x16> <y0>": "lies outside the image",
        "<point> <frame3> <x0> <y0>": "is in no frame of a clip",
        "<point> <frame0> <x4>": "is malformed",
        "<point> <x4> <frame0> <y3>": "is malformed",
        "<point> <frame0> <x4> <y3> <x5>": "has a coordinate too many",
        "<point> <frame0> <x4> <y3> <point>": "is malformed (the second)",
    }.items():
        try:
            learner(bad)
        except ValueError:
            continue
        return f"{bad} {said}, and passes without a ValueError"
    return None
