"""What notebook 08b compares and draws: Qwen2-VL's positions of tokens, and points on images."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from transformers import Qwen2VLConfig, Qwen2VLModel

from vlm_lite import plots
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
