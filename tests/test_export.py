"""A VLM as ONNX files: what they compute, what the manifest says of them, and that nothing broken is kept."""

import hashlib
import json
import resource
import sys

import numpy as np
import pytest
import torch

from tests.small import refused
from vlm_lite import cli
from vlm_lite.cli import export
from vlm_lite.embed import pixel_values
from vlm_lite.lessons.language import short_prompt
from vlm_lite.lessons.world import Item, Scene, render
from vlm_lite.models.vlm import load_vlm

pytestmark = pytest.mark.slow
QUESTIONS = ["what colour is the star?", "how many shapes are there?", "is there a heart?"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(VLM, three images, folder, what export returned)."""
    vlm = load_vlm("shapes-vlm")
    rng = np.random.default_rng(0)
    things = [Item("star", colour, "large", 1, 2) for colour in ("yellow", "pink", "blue")]
    drawn = np.stack([render(Scene((thing,)), rng) for thing in things])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    out = tmp_path_factory.mktemp("export") / "model"
    return vlm, images, out, export.export(vlm, out, images, QUESTIONS)


def test_onnx_answers_as_pytorch_and_knows_when_it_is_blind(exported):
    import onnxruntime

    vlm, images, out, found = exported
    assert found["equal"] == 3 and found["error"] < export.TOLERANCE
    session = onnxruntime.InferenceSession(out / "language.onnx")
    ids = vlm.tokenizer(short_prompt(QUESTIONS[0]), return_tensors="np")["input_ids"]
    manifest = json.loads((out / "manifest.json").read_text())
    (seen,) = onnxruntime.InferenceSession(out / "vision.onnx").run(
        None, {"pixels": pixel_values(images[:1]).numpy()}
    )
    for prefix, features in ((seen, vlm.encode(pixel_values(images[:1]))), (seen[:, :0], None)):
        past = np.zeros(manifest["past"], np.float32)
        given = {"prefix": prefix, "input_ids": ids.astype(np.int64), "past": past}
        with torch.no_grad():
            words = torch.from_numpy(ids).long()
            expected = vlm(features, words, torch.ones_like(words))[:, -1]
        np.testing.assert_allclose(session.run(None, given)[0], expected, atol=1e-4)


def test_the_manifest_describes_every_file_and_what_a_caller_must_know(exported):
    vlm, _, out, found = exported
    manifest = json.loads((out / "manifest.json").read_text())
    names = {path.name for path in out.iterdir()} - {"manifest.json"}
    assert names == set(manifest["files"])
    for name, said in manifest["files"].items():
        data = (out / name).read_bytes()
        assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest["eos"] == vlm.tokenizer.eos_token_id and manifest["image_size"] == 64
    words = (out / "vocabulary.txt").read_text().splitlines()
    assert [vlm.tokenizer.get_vocab()[word] for word in words] == list(range(len(words)))
    assert found["bytes"] < 13e6  # in half precision: the page has to load it


def test_what_differs_from_pytorch_is_not_kept(exported, tmp_path, monkeypatch):
    vlm, images, _, _ = exported
    monkeypatch.setattr(vlm, "generate", lambda features, prompts: ["red"] * len(prompts))
    with refused("differently"):
        export.export(vlm, tmp_path / "model", images, QUESTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [1_000_000, 6_000_000])  # ends in the first file, in the second
def test_a_disk_that_fills_up_leaves_nothing(exported, tmp_path, room):
    vlm, images, _, _ = exported
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, kept[1]))
    try:
        with refused("cannot write .*model: File too large.*nothing half-written"):
            export.export(vlm, tmp_path / "model", images, QUESTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert not list(tmp_path.iterdir())


def test_the_command_names_a_package_that_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["export", "shapes-vlm", str(tmp_path / "out")]) == 2
    assert "vlm-lite[export]" in capsys.readouterr().err and not list(tmp_path.iterdir())
