"""The figures: rendered, labelled, not cut off, readable in grey, small."""

import io
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vlm_lite import diagrams, figures, plots
from vlm_lite.checkpoint import History
from vlm_lite.evals.probes import BridgeScore, Interval
from vlm_lite.lessons import vit
from vlm_lite.lessons.world import render, sample_scene
from vlm_lite.models.vlm import load_vlm

RNG = np.random.default_rng(3)
IMAGES = torch.stack([torch.from_numpy(render(sample_scene(RNG), RNG)) for _ in range(10)]).permute(
    0, 3, 1, 2
)
CAPTION = "a large orange square in the bottom right, a small star in the top left and a handwritten 7 for $5 and $6."
STEPS = list(range(10, 1000, 10))
LOSSES = [4.5 * np.exp(-step / 300) + 0.3 for step in STEPS]
BAND = {
    "steps": STEPS,
    "mean": LOSSES,
    "low": [x - 0.1 for x in LOSSES],
    "high": [x + 0.1 for x in LOSSES],
    "seeds": 3,
}
ROUNDED = {**BAND, "low": np.round(LOSSES, 4).tolist(), "high": np.round(LOSSES, 4).tolist()}
CUES = [
    "what color is the heart?",
    "is there a small yellow triangle to the right of the large pink square?",
]
AT = ("R@1", "R@5", "R@10")
RECALLS = {
    "image to text": dict(zip(AT, (0.712, 0.951, 1.0), strict=True)),
    "text to image": dict(zip(AT, (0.02, 0.94, 0.975), strict=True)),
    "ceiling": dict(zip(AT, (0.93, 1.0, 1.0), strict=True)),
}
SCORES = {
    "blind": Interval(0.33, 0.31, 0.35),
    "blank": Interval(0.303, 0.282, 0.324),
    "shuffled": Interval(0.321, 0.301, 0.341),
    "vlm": Interval(0.712, 0.695, 0.73),
    "oracle": Interval(0.994, 0.985, 1.0),
}
TYPES = {
    kind: {"vlm": 80.0 - 9 * i, "blind": 25.0 + 5 * i, "oracle": 100.0}
    for i, kind in enumerate(("colour", "shape", "size", "count", "existence", "relation", "digit"))
}
TRUE = ["yes", "3", "7", "a circle"]
SEEN = {"red": 0.2, "blue": 0.3, "a very long answer": 0.1}
FIGURES = {
    "show_images": lambda: plots.show_images(IMAGES, [CAPTION] * 10),
    "loss_curve": lambda: plots.loss_curve(
        History(STEPS, LOSSES), band=BAND, chance=4.85, ylabel="InfoNCE loss (nats)"
    ),
    "similarity_matrix": lambda: plots.similarity_matrix(
        torch.rand(6, 6), torch.eye(6), [CAPTION] * 6, IMAGES[:6]
    ),
    "recall_bars": lambda: plots.recall_bars(RECALLS, guess={"R@5": 0.5}),
    "seed_ranges": lambda: plots.seed_ranges(
        {"nothing changed": [0.7, 0.8], "noise": [0.2, 0.3]}, live=("noise", 0.25), xlabel="R@5 (%)"
    ),
    "power_law": lambda: plots.power_law(
        {"steps": {10: [0.5, 0.4], 20: [0.2, 0.1]}, "images": {5: [0.9, 0.8], 50: [0.3, 0.2]}},
        {"steps": [(-1.3, 2.3), (-2, 3.7)], "images": [(-0.5, 0.7), (-0.6, 0.7)]},
        ylabel="error",
    ),
    "controls_bars": lambda: plots.controls_bars(
        SCORES, bridge=BridgeScore(0.58, 0.55, 0.61), guess=("the VLM", 55), title="Notebook 03"
    ),
    "by_type_bars": lambda: plots.by_type_bars(TYPES, title="By type"),
    "vision_transformer": lambda: diagrams.vision_transformer(vit.ViT(), IMAGES[0], vit.CLASSES),
    "vision_language_model": lambda: diagrams.vision_language_model(
        load_vlm("shapes-vlm"), IMAGES[0], "question: is it?", "yes"
    ),
    "losses": lambda: plots.losses({"A": LOSSES, "B": LOSSES[::2]}, "Which?"),
    "museum_wall": lambda: plots.museum_wall(
        pd.DataFrame(
            {"measure": "R@1", "broken": [0, 0.5], "fixed": [0, 0.1], "lower is better": [0, 1]}
        )
    ),
    "position_similarity": lambda: plots.position_similarity(
        {"at the start": torch.randn(1, 17, 8), "trained": torch.randn(1, 17, 8)}
    ),
    "attention_over_image": lambda: plots.attention_over_image(IMAGES[5], torch.rand(8, 4, 4)),
    "answer_table": lambda: plots.answer_table(
        IMAGES[:3],
        {"asked": CUES[:1] * 3, "after": ["an answer that takes more than a line"] * 3},
    ),
    "scoreboard": lambda: plots.scoreboard(
        IMAGES[:5],
        CUES[:1] + CUES[1:] * 4,
        ["red", *TRUE],
        {"blind": ["blue", "Yes ", "2", "1", "a star"], "this VLM": ["red", *TRUE]},
    ),
    "ask_panel": lambda: plots.ask_panel(
        IMAGES[2], CUES[1], {"yes": 1.0, "no": 0.0}, blind=0.99, title="shapes-vlm"
    ),
    "ask_panel, hidden": lambda: plots.ask_panel(None, CUES[0], SEEN, blind=0.2, answers=[*SEEN]),
}
LABELS = {
    "loss_curve": {"training step", "InfoNCE loss (nats)"},
    "similarity_matrix": {"caption", "image"},
    "recall_bars": {"queries with a right hit\namong the first K (%)"},
    "seed_ranges": {"R@5 (%)"},
    "power_law": {"steps", "images", "error"},
    "controls_bars": {"VQA accuracy (%)"},
    "by_type_bars": {"VQA accuracy (%)"},
    "losses": {"training step", "loss (nats)"},
    "ask_panel": {"probability of the answer (%)"},
}  # the others are pictures and tables


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_small_labelled_and_not_cut_off(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    mime, data = figure.to_bytes()
    assert mime == "image/png" and data.startswith(b"\x89PNG") and len(data) < 100_000
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == edge[0]).all(), "ink touches the edge of the figure"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 8 and figure.get_label()
    labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())}
    assert LABELS.get(name.split(",")[0], set()) <= labels
    assert dict(matplotlib.rcParams) == before  # the caller's settings stay as they were


def test_the_title_says_gain_and_bridge_score():
    found = "\n".join(texts(FIGURES["controls_bars"]()))
    assert "+38.2 points" in found and "0.58 (0.55 to 0.61)" in found
    assert "score undefined" in "\n".join(
        texts(plots.controls_bars(SCORES, bridge=BridgeScore(None, reason="no room")))
    )


def test_the_loss_curve_says_how_much_lies_inside_the_band_and_how_much_of_one_more_run_would():
    half = History(STEPS, [loss + (0.5 if i % 2 else 0) for i, loss in enumerate(LOSSES)])
    for history, band, shares in (
        (half, BAND, ["51%", "50%"]),
        (History(STEPS, LOSSES), BAND, ["100%", "50%"]),
        (half, {**BAND, "seeds": 5}, ["51%", "67%"]),
        (History(STEPS, LOSSES), ROUNDED, ["100%", "50%"]),  # a study keeps four decimals
        (History(STEPS, [loss + 2e-4 for loss in LOSSES]), ROUNDED, ["0%", "50%"]),
    ):
        (title,) = (t for t in texts(plots.loss_curve(history, band=band)) if "range of" in t)
        assert re.findall(r"\d+%", title) == shares


def test_a_guess_is_a_dashed_line_with_its_name():
    for name, place in (("recall_bars", 50), ("controls_bars", 55)):
        axes = FIGURES[name]().axes[0]
        (line,) = (line for line in axes.lines if str(line.get_label()).startswith("my guess"))
        assert line.is_dashed() and place in (line.get_xdata()[0], line.get_ydata()[0])


def test_bars_differ_in_grey():
    axes = FIGURES["controls_bars"]().axes[0]
    assert len({bar.get_hatch() for bar in axes.patches}) == len(axes.patches) == 5
    lines = FIGURES["loss_curve"]().axes[0].lines
    named = [line for line in lines if not str(line.get_label()).startswith("_")]
    assert len({line.get_linestyle() for line in named}) == 3


def test_right_and_wrong_differ_in_shape():
    shown = texts(FIGURES["scoreboard"]())
    assert "✗ blue" in shown and "✓ red" in shown and "✓ Yes" in [text.strip() for text in shown]
    assert "blind\n1 of 5" in shown and "this VLM\n5 of 5" in shown


def test_panels_of_one_animation_have_one_size():
    assert {FIGURES[name]().to_image().size for name in ("ask_panel", "ask_panel, hidden")} == {
        (720, 286)
    }


def test_the_panel_shows_the_likeliest_answers_first():
    figure = plots.ask_panel(
        None, "?", dict(zip("abcdefg", (0.1, 0.3, 0.02, 0.2, 0.05, 0.15, 0.18), strict=True))
    )
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == list("bdgfa")


def test_a_notebook_gets_one_picture_under_the_limit_even_of_photographs(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    noise = RNG.integers(0, 256, (6, 3, 224, 224), dtype=np.uint8)  # the hardest photographs
    figure = plots.show_images(torch.from_numpy(noise), columns=3)
    figure._ipython_display_()
    (found,) = shown
    assert found["text/plain"] == "<Figure: 6 images>" and len(found["image/jpeg"]) < 100_000
    assert Image.open(io.BytesIO(found["image/jpeg"])).size == figure.to_image().size


def test_drawings_keep_their_colours_when_enlarged():
    drawing = Image.new("RGB", (64, 64), (20, 20, 20))
    drawing.paste((226, 52, 52), (16, 16, 48, 48))
    large = figures.enlarge(drawing, 256).astype(int)
    assert abs(large[128, 128] - (226, 52, 52)).max() <= 4 and abs(large[8, 8] - 20).max() <= 4
    assert figures.enlarge(Image.new("RGB", (300, 100), "white"), 90).shape == (90, 90, 3)


def test_normalised_pictures_are_refused_with_advice():
    with pytest.raises(ValueError, match="uint8.*found float32.*Undo the normalisation"):
        plots.show_images(torch.zeros(2, 3, 64, 64))


def test_text_is_wrapped_to_its_width():
    assert figures.wrap("a b", 500) == "a b" and figures.wrap("", 10) == ""
    lines = figures.wrap("one two three four five " * 3, 90).split("\n")
    assert len(lines) > 3 and " ".join(lines) == ("one two three four five " * 3).strip()
    assert figures.wrap("one two three four five", 60, max_lines=2).endswith("…")
    assert "".join(figures.wrap("x" * 80, 90).split("\n")) == "x" * 80


def test_the_diagram_of_a_vit_has_the_shapes_of_the_model_it_is_given():
    model = vit.ViT(patch_size=32, width=48, depth=2, num_heads=3, num_classes=5)
    figure = diagrams.vision_transformer(model, IMAGES[0])
    said = " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
    for shape in ("3 x 64 x 64", "4 x 3072", "(1 + 4) x 48", "block, 2 of them", "3 heads of 16"):
        assert shape in said
    assert sum(f"class {k}" in said for k in range(9)) == 5


def test_the_patch_with_the_largest_weight_has_the_widest_frame_and_no_pixel_is_recoloured():
    weights = torch.tensor([[[0.05, 0.6], [0.3, 0.02]]])
    figure = plots.attention_over_image(IMAGES[0], weights)
    image, attended = figure.axes
    np.testing.assert_array_equal(
        image.images[0].get_array().data, attended.images[0].get_array().data
    )
    frames = {patch.get_xy(): patch.get_linewidth() for patch in attended.patches}
    assert len(frames) == 2 and max(frames, key=frames.get) == (64.5, 0.5)
