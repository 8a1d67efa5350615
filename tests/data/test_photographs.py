"""The joint choice of photographs, and t4's whole data path on a made mirror of its sites."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from transformers import AutoConfig, CLIPConfig

from tests.small import refused
from vlm_lite.data import photographs
from vlm_lite.data.photographs import Choice, choose_images, load_photographs
from vlm_lite.data.sources import SOURCES
from vlm_lite.hub import locate
from vlm_lite.profiles import get_profile
from vlm_lite.rehearsal import mirror as rehearsal
from vlm_lite.rehearsal.commands import rehearse


def test_a_choice_is_shared_disjoint_full_and_a_seeds_own():
    choice = Choice(images=50, val_images=20, instructions=100, questions=100, val_questions=60)
    captions, excluded = range(300), range(100, 120)
    questions = {i: i % 7 for i in range(10, 400)}
    talks = {i: 1 + i % 3 for i in range(5, 290)}
    options = {"excluded": excluded, "choice": choice}
    train, val = again = choose_images(captions, questions, talks, **options)
    both = {*train, *val}
    assert (len(train), len(val), len(both)) == (50, 20, 70)
    assert both <= set(captions) & set(questions) & set(talks) and not both & set(excluded)
    assert sum(talks[i] for i in train) >= 100 and sum(questions[i] for i in train) >= 100
    assert sum(questions[i] for i in val) >= 60
    # the order of the files does not matter
    backwards = dict(reversed(questions.items()))
    assert choose_images(reversed(captions), backwards, talks, **options) == again
    options["choice"] = dataclasses.replace(choice, seed=1)
    assert choose_images(captions, questions, talks, **options)[0] != train


def test_too_few_images_are_counted():
    with refused("6000 .* only 0 have captions, 5 questions and 2 conv"):
        choose_images(range(9), {1: 9}, {2: 9})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sites that a rehearsal makes, without its models."""
    folder = tmp_path_factory.mktemp("sites") / "mirror"
    folder.mkdir()
    rehearsal._write_sites(folder, 16)
    return folder


@pytest.fixture
def mirror(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy" / "mirror"))


CHOICE = Choice(images=8, val_images=2, instructions=8, questions=8, val_questions=2)


def load(mirror, split="train", choice=CHOICE):
    return load_photographs(split, choice, mirror=str(mirror), progress=False)


def test_one_set_of_images_serves_captions_questions_and_instructions_and_is_downloaded_once(
    mirror,
):
    train, val = load(mirror), load(mirror, "val")
    ids = set(train.captions["image_id"][:])
    assert len(ids) == 8 and len(val.captions) == 2 and not ids & set(val.captions["image_id"][:])
    assert [len(t) for t in (train.questions, train.instructions, val.questions)] == [8, 8, 2]
    assert {*train.questions["image_id"][:], *train.instructions["image_id"][:]} <= ids
    assert train.captions[0]["image"].size == rehearsal.PICTURE_SIZE
    assert all(len(answers) == 10 for answers in train.questions["answers"][:])
    assert train.instructions[0]["conversation"][0]["role"] == "user"
    shutil.rmtree(mirror)
    mirror.mkdir()
    assert [t["image_id"][:] for t in load(mirror)] == [t["image_id"][:] for t in train]


def test_a_picture_that_cannot_be_had_is_named_and_left_out_of_all_three(
    mirror, monkeypatch, capsys
):
    monkeypatch.setattr(photographs, "TOLERATED", 0.1)
    monkeypatch.setattr("vlm_lite.data.download.RETRIES", 0)
    gone = load(mirror).captions["image_id"][0]
    name = photographs.NAME.format(gone)
    (mirror.parent / "photographs" / "train2014" / name).unlink()
    site = Path(locate(SOURCES["picture"].address.format(gone), str(mirror)))
    site.write_bytes(b"<html>gone</html>")
    tables = load(mirror)
    assert f"1 of 10 pictures cannot be had: {name}" in capsys.readouterr().out
    assert all(gone not in table["image_id"][:] for table in tables) and len(tables.captions) == 7
    monkeypatch.setattr(photographs, "TOLERATED", 0.01)
    with refused(f"1 of 10 pictures cannot be had: {name}"):
        load(mirror)


def test_an_incomplete_cache_or_mirror_lists_what_it_lacks(mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("4 of 4 .*annotations_trainval2014.zip, .*llava_instr"):
        load_photographs("train")
    # by the variable it must hold the sites' own files
    monkeypatch.setenv("VLM_LITE_MIRROR", str(mirror))
    monkeypatch.setattr("vlm_lite.data.download.RETRIES", 0)
    with refused("cannot be had: .*bytes, expected"):
        load_photographs("train", CHOICE, progress=False)


def rewrite_captions(mirror, change, val_ids=()):
    path, member = (
        Path(locate(SOURCES["captions"].address, str(mirror))),
        SOURCES["captions"].member,
    )
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read(member))
    change(data)
    pool = {"images": [{"id": i} for i in val_ids]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, json.dumps(data))
        archive.writestr(photographs.VAL_MEMBER, json.dumps(pool))


def test_an_image_of_val2014_is_never_chosen(mirror):
    held = set(range(1, 7))
    rewrite_captions(mirror, lambda data: None, held)
    choice = dataclasses.replace(CHOICE, images=4, instructions=4, questions=4)
    tables = [load(mirror, split, choice).captions for split in ("train", "val")]
    chosen = [i for table in tables for i in table["image_id"][:]]
    assert len(chosen) == 6 and not held & set(chosen)


def test_a_file_name_that_leaves_the_folder_is_refused_and_never_written_to(mirror, tmp_path):
    def evil(data):
        for image in data["images"]:
            image["file_name"] = "../../../evil.jpg"

    rewrite_captions(mirror, evil)
    with refused("evil.jpg' .* leaves the folder"):
        load(mirror)
    names = [path.name for path in (mirror.parent / "photographs").rglob("*.jpg")]
    assert sorted(names) == sorted(photographs.NAME.format(int(n[-16:-4])) for n in names)
    assert len(names) == 10 and not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["annotations"][3].pop("image_id"),
        lambda data: data.pop("images"),
        lambda data: data["annotations"].append(3),
    ],
)
def test_a_faulty_official_file_is_named(mirror, change):
    rewrite_captions(mirror, change)
    with refused("captions.*.json"):
        load(mirror)


def test_a_rehearsal_of_nothing_is_refused():
    with refused("3 images"):
        rehearsal.make_profile(3)


@pytest.mark.slow
def test_t4s_path_runs_at_its_real_sizes_without_a_network(tmp_path, monkeypatch, capsys):
    """A few steps of everything: choose, fetch, decode, load, encode, train, answer. Also by the profile's name."""
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    with refused("vlm-lite rehearse"):
        get_profile("rehearsal")
    made = rehearsal.make_profile(16)
    profile = get_profile("rehearsal")
    assert profile == made
    assert (profile.name, profile.image_size, profile.train_images) == ("rehearsal", 224, 8)
    result = rehearse(profile, steps=1, batch_size=2, questions=2)
    assert len(result["stages"]) == 10
    assert 0.5 < result["memory_gb"] < 12
    assert all(stage["seconds"] > 0 for stage in result["stages"].values())
    assert "peak memory" in capsys.readouterr().out
    # What was loaded are t4's architectures, by the classes that load t4.
    names = profile.vision_model, profile.language_model
    eye, brain = map(AutoConfig.from_pretrained, names)
    assert isinstance(eye, CLIPConfig) and eye.vision_config.patch_size == 16
    assert eye.text_config.eos_token_id == 2
    assert (brain.model_type, brain.n_embd, brain.n_layer) == ("gpt2", 768, 12)
    # The explicit profile t4 takes the same folder for a whole cache, and lists what else it lacks.
    monkeypatch.setenv("VLM_LITE_MIRROR", profile.mirror)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused('"t4" .*HuggingFaceTB/SmolVLM2-256M-Video-Instruct'):
        get_profile("t4")
