"""What `make export-test` runs: the callers in other languages answer as PyTorch does, and the page in a real browser."""

import json
import os
import shutil
import subprocess
import sys
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


IN_C = """import ctypes, json, sys
function, buffer = ctypes.CDLL(sys.argv[1]).vlm_answer, ctypes.create_string_buffer(4096)
for image, question, size in json.loads(sys.argv[2]):
    buffer.value = b"untouched"
    size = function(image and image.encode(), question.encode(), buffer, size)
    print(json.dumps([size, buffer.value.decode()]))"""


def in_c(asked, model=MODEL):
    """For each (image or None, question, size of the buffer): [what vlm_answer returned, the buffer]; and its stderr."""
    asked = json.dumps([(image and str(image), question, size) for image, question, size in asked])
    run = subprocess.run(
        [sys.executable, "-c", IN_C, ROOT / "build/callers/libvlm.so", asked],
        env=os.environ | {"VLM_LITE_MODEL": str(model)},  # read once: a process for each model
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def test_c_answers_as_pytorch(images):
    found, said = in_c([(path, question, 256) for path, question, _ in images])
    assert found == [[len(answer) + 1, answer] for *_, answer in images] and not said
    questions = [question for _, question, _ in images]
    blind = load_vlm("shapes-vlm").generate(None, [*map(short_prompt, questions)])
    assert [each for _, each in in_c([(None, each, 256) for each in questions])[0]] == blind


def test_c_says_how_large_a_buffer_it_needs(images):
    path, question, answer = images[0]
    needed = len(answer) + 1
    sizes = (0, 1, needed - 1, needed)
    found, _ = in_c([(path, question, size) for size in sizes])
    assert found == [[needed, "untouched"]] * 3 + [[needed, answer]]


def test_c_says_what_is_wrong(images, tmp_path):
    path = images[0][0]
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:100])
    asks = [(each, "is there a star?") for each in (tmp_path / "wide.png", tmp_path / "cut.png")]
    asks += [(tmp_path / "none.png", "is there a star?"), (path, "star " * 300)]
    found, _ = in_c([(*ask, 256) for ask in asks])
    for (size, text), said in zip(
        found, ("64 x 32", "cut.png", "none.png", "Shorten"), strict=True
    ):
        assert size == -1 and said in text
    assert in_c([(path, "is there a star?", 256)])[0][0][0] > 0  # and goes on after a mistake
    assert "banana" in in_c([(path, "what colour is the banana?", 256)])[1]


@pytest.mark.parametrize(
    "name", ["vision.onnx", "language.onnx", "vocabulary.txt", "manifest.json"]
)
def test_no_caller_takes_a_file_that_does_not_fit_the_manifest(images, tmp_path, name):
    path, question, _ = images[0]
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    data = bytearray((model / name).read_bytes())
    if name == "manifest.json":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1  # as long as before
    (model / name).write_bytes(data)
    found, _ = in_c([(path, question, 256)] * 2, model)
    assert all(size == -1 and name in text for size, text in found)
    run = node("answer.mjs", path, question, model=model)
    assert run.returncode == 2 and not run.stdout and (name in run.stderr or "JSON" in run.stderr)
    (model / name).unlink()
    assert in_c([(path, question, 256)], model)[0][0][0] == -1
    assert node("answer.mjs", path, question, model=model).returncode == 2


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


def test_the_page_is_small_enough_to_load():
    sizes = [path.stat().st_size for path in MODEL.parent.rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6  # 15.7 MB, most of it the model


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
