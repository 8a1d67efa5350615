"""What `make export-test` runs: the callers in other languages answer as PyTorch does, and the page in a real browser."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import load_shapes
from vlm_lite.embed import pixel_values
from vlm_lite.lessons.language import short_prompt
from vlm_lite.models.vlm import load_vlm

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "docs/demo/model"


def node(script, *arguments, model=MODEL):
    return subprocess.run(
        ["node", ROOT / "callers" / script, *arguments],
        env=os.environ | {"VLM_LITE_MODEL": str(model)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """20 images as (path of a PNG, question, PyTorch's answer)."""
    captions, questions = load_shapes("val", 220)
    images, ids = image_tensor(captions)
    rows = questions.remove_columns("image")
    asked = dict(zip(rows["image_id"], rows["question"], strict=True))
    chosen = [k for k, name in enumerate(ids) if name in asked][:20]
    vlm = load_vlm("shapes-vlm")
    texts = [asked[ids[k]] for k in chosen]
    answers = vlm.generate(vlm.encode(pixel_values(images[chosen])), [*map(short_prompt, texts)])
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{k}.png" for k in chosen]
    for path, k in zip(paths, chosen, strict=True):
        Image.fromarray(images[k].permute(1, 2, 0).numpy()).save(path)
    return list(zip(paths, texts, answers, strict=True))


def test_javascript_answers_as_pytorch(images):
    for path, question, expected in images:
        found = node("answer.mjs", path, question)
        assert found.stdout.strip() == expected, (question, found.stderr)


def test_javascript_says_what_is_wrong(images, tmp_path):
    path = images[0][0]
    assert "banana" in node("answer.mjs", path, "what colour is the banana?").stderr
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "wide.png")
    small = node("answer.mjs", tmp_path / "wide.png", "is there a star?")
    assert small.returncode == 2 and "64 x 32" in small.stderr
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    with open(model / "vision.onnx", "r+b") as file:
        file.truncate(1000)
    cut = node("answer.mjs", path, "is there a star?", model=model)
    assert cut.returncode == 2 and "vision.onnx" in cut.stderr and not cut.stdout


def test_the_page_answers_in_a_browser():
    run = node("page.mjs", ROOT / "build/demo")
    assert run.returncode == 0, run.stderr
    page = json.loads(run.stdout)
    assert page["problems"] == [] and page["unnamed"] == 0
    assert page["first"][0] == "yellow"  # the star that the page begins with
    assert "small pink heart" in page["cell"] and page["removed"] == "no"
    assert page["hidden"][0].startswith("A guess") and "alone" in page["hidden"][1]
    assert "banana" in page["unknown"] and "language.onnx" in page["damaged"]
    assert page["wide"] and page["narrow"]  # nothing runs out at the side


def test_the_page_draws_the_world_that_the_model_knows():
    """scene.mjs and vlm_lite.lessons.world cover the same pixels, shape by shape and digit by digit."""
    from vlm_lite.lessons import world

    code = """import(process.argv[1]).then((s) => console.log(JSON.stringify([
        s.SHAPES.flatMap((shape) => Object.values(s.SIZES).map((side) => s.coverage(shape, side))),
        Array.from({length: 10}, (_, value) => s.handwriting(value))])))"""
    path = ROOT / "docs/demo/scene.mjs"
    run = subprocess.run(["node", "-e", code, path], capture_output=True, text=True, timeout=60)
    shapes, digits = json.loads(run.stdout)
    pairs = [(shape, side) for shape in world.SHAPES for side in world.SIZES.values()]
    for (shape, side), found in zip(pairs, shapes, strict=True):
        assert np.array_equal(world.coverage(shape, side).ravel(), found), (shape, side)
    for value, found in enumerate(digits):
        item = world.Item("digit", "white", "large", 0, 0, value)
        expected = world.handwriting(world.find_glyph(item)).ravel()
        assert (
            torch.tensor(found).sub(torch.tensor(expected)).abs().max() <= 1
        )  # rounded in two steps there
