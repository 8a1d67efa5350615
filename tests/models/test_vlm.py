"""A VLM in a folder: written and read back, and what is wrong with one is named."""

import shutil

import pytest
import torch

from vlm_lite.files import UserError, data_path, read_json, write_json
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vlm import load_vlm, save_vlm

ZOO = {"vision_model": "shapes-clip", "language_model": "shapes-gpt2"}


@pytest.fixture
def saved(tmp_path):
    """(the shipped VLM, a folder with it written again)"""
    shipped = load_vlm("shapes-vlm")
    return shipped, save_vlm(shipped, tmp_path / "vlm", **ZOO)


def test_written_and_read_it_is_the_same(saved):
    shipped, folder = saved
    again = load_vlm(folder)
    assert not again.training
    pairs = zip(shipped.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    total = sum(p.numel() for p in shipped.connector.parameters())
    assert (folder / "model.safetensors").stat().st_size < 4 * total + 10_000  # the connector only


def test_a_wrong_folder_is_refused_by_file_and_field(saved, tmp_path):
    folder = saved[1]
    config = read_json(folder / "config.json")
    for change, word in (
        (
            {"hashes": {**config["hashes"], "vision_model": "0" * 64}},
            "other weights of shapes-clip",
        ),
        ({"connector": {"name": "mlp"}}, "config.json"),
        ({"connector": None}, "connector"),
        ({"connector": {**config["connector"], "num_layers": 4}}, "layers.3"),
        ({"language_model": "nothing-here"}, "nothing-here"),
    ):
        write_json(folder / "config.json", {**config, **change})
        with pytest.raises(UserError, match=word):
            load_vlm(folder)
    write_json(folder / "config.json", config)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="model.safetensors"):
        load_vlm(folder)
    with pytest.raises(UserError, match="config.json"):
        load_vlm(tmp_path / "nowhere", resolve=str)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_language_models_cut_file_is_named(tmp_path, name):
    folder = shutil.copytree(data_path("zoo", "shapes-gpt2"), tmp_path / "gpt2")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"gpt2/{name}.*may be cut short"):
        load_language_model(folder)
    (folder / name).unlink()
    with pytest.raises(
        UserError, match=r"no model could be loaded .*the folder holds \w.*Check the name"
    ):
        load_language_model(folder)
