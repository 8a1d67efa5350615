"""The joint choice of photographs, and t4's whole data path on a made mirror of its sites."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from vlm_lite.data import photographs
from vlm_lite.data.photographs import FULL, MINIMAL, Choice, choose_images, load_photographs
from vlm_lite.data.sources import SOURCES
from vlm_lite.files import UserError
from vlm_lite.hub import locate, mirrored_model
from vlm_lite.rehearsal import mirror as rehearsal


def test_the_presets_are_what_the_course_says():
    assert dataclasses.astuple(FULL) == (5_000, 1_000, 10_000, 10_000, 5_000, 0)
    assert MINIMAL == dataclasses.replace(FULL, questions=5_000)


def test_a_choice_is_shared_disjoint_full_and_a_seeds_own():
    choice = Choice(images=50, val_images=20, instructions=100, questions=100, val_questions=60)
    captions = range(300)
    questions = {i: i % 7 for i in range(10, 400)}
    instructions = {i: 1 + i % 3 for i in range(5, 290)}
    excluded = range(100, 120)
    train, val = choose_images(captions, questions, instructions, excluded=excluded, choice=choice)
    assert (len(set(train)), len(set(val)), set(train) & set(val)) == (50, 20, set())
    both = set(train) | set(val)
    assert both <= set(captions) & set(questions) & set(instructions) and not both & set(excluded)
    assert sum(instructions[i] for i in train) >= 100 and sum(questions[i] for i in train) >= 100
    assert sum(questions[i] for i in val) >= 60
    again = choose_images(captions, questions, instructions, excluded=excluded, choice=choice)
    assert again == (train, val)
    assert (
        choose_images(
            captions, questions, instructions, choice=dataclasses.replace(choice, seed=1)
        )[0]
        != train
    )
    assert (
        choose_images(
            reversed(captions),
            dict(reversed(questions.items())),
            instructions,
            excluded=excluded,
            choice=choice,
        )
        == again
    )  # the order of the files does not matter


def test_too_few_images_are_counted():
    with pytest.raises(
        UserError, match="6000 images are wanted, and only 0 have captions, 5 questions and 2 conv"
    ):
        choose_images(range(9), {1: 9}, {2: 9})


# ---------------------------------------------------------------- the whole path


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The sites that a rehearsal makes, without its models."""
    folder = tmp_path_factory.mktemp("sites") / "mirror"
    folder.mkdir()
    rehearsal._write_sites(folder, 16)
    return folder


CHOICE = Choice(images=8, val_images=2, instructions=8, questions=8, val_questions=2)


def load(mirror, split="train", choice=CHOICE):
    return load_photographs(split, choice, mirror=str(mirror), progress=False)


def fresh(mirror, tmp_path):
    return Path(shutil.copytree(mirror, tmp_path / "copy" / "mirror"))


def test_one_set_of_pictures_serves_captions_questions_and_instructions(mirror):
    train, val = load(mirror), load(mirror, "val")
    ids = set(train.captions["image_id"][:])
    assert len(ids) == 8 and len(val.captions) == 2 and not ids & set(val.captions["image_id"][:])
    for table, count in ((train.questions, 8), (train.instructions, 8), (val.questions, 2)):
        assert len(table) == count
    assert (
        set(train.questions["image_id"][:]) <= ids and set(train.instructions["image_id"][:]) <= ids
    )
    assert train.captions[0]["image"].size == rehearsal.PICTURE_SIZE
    assert all(len(answers) == 10 for answers in train.questions["answers"][:])
    assert train.instructions[0]["conversation"][0]["role"] == "user"


def test_the_second_call_downloads_nothing_and_needs_no_mirror(mirror, tmp_path):
    mirror = fresh(mirror, tmp_path)
    before = load(mirror)
    for site in mirror.iterdir():
        shutil.rmtree(site)
    after = load(mirror)
    assert [table["image_id"][:] for table in before] == [table["image_id"][:] for table in after]


def test_a_picture_that_cannot_be_had_is_named_and_left_out_of_all_three(
    mirror, tmp_path, monkeypatch, capsys
):
    mirror = fresh(mirror, tmp_path)
    monkeypatch.setattr(photographs, "TOLERATED", 0.1)
    monkeypatch.setattr("vlm_lite.data.download.RETRIES", 0)
    gone = load(mirror).captions["image_id"][0]
    name = photographs.NAME.format(gone)
    (mirror.parent / "photographs" / "train2014" / name).unlink()
    Path(locate(SOURCES["picture"].address.format(gone), str(mirror))).write_bytes(
        b"<html>gone</html>"
    )
    tables = load(mirror)
    assert (
        f"1 of 10 pictures cannot be had: {name} (ValueError: not a whole picture"
        in capsys.readouterr().out
    )
    assert all(gone not in table["image_id"][:] for table in tables) and len(tables.captions) == 7
    monkeypatch.setattr(photographs, "TOLERATED", 0.01)
    with pytest.raises(UserError, match=f"1 of 10 pictures cannot be had: {name}"):
        load(mirror)


def test_offline_an_incomplete_cache_lists_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError,
        match="4 of 4 annotation files cannot be had: annotations_trainval2014.zip, "
        "v2_Questions_Train_mscoco.zip, v2_Annotations_Train_mscoco.zip, llava_instr",
    ):
        load_photographs("train")


def test_a_mirror_by_the_variable_must_hold_the_sites_own_files(mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("VLM_LITE_MIRROR", str(mirror))
    monkeypatch.setattr("vlm_lite.data.download.RETRIES", 0)
    with pytest.raises(UserError, match="cannot be had: .*bytes, expected"):
        load_photographs("train", CHOICE, progress=False)


def rewrite_captions(mirror, change, val_ids=()):
    path = Path(locate(SOURCES["captions"].address, str(mirror)))
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read(SOURCES["captions"].member))
    change(data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SOURCES["captions"].member, json.dumps(data))
        archive.writestr(
            photographs.VAL_MEMBER, json.dumps({"images": [{"id": i} for i in val_ids]})
        )


def test_an_image_of_val2014_is_never_chosen(mirror, tmp_path):
    mirror = fresh(mirror, tmp_path)
    held = list(range(1, 7))
    rewrite_captions(mirror, lambda data: None, held)
    choice = dataclasses.replace(CHOICE, images=4, val_images=2, instructions=4, questions=4)
    chosen = (
        load(mirror, "train", choice).captions["image_id"][:]
        + load(mirror, "val", choice).captions["image_id"][:]
    )
    assert len(chosen) == 6 and not set(held) & set(chosen)


def test_a_file_name_that_leaves_the_folder_is_refused_and_never_written_to(mirror, tmp_path):
    mirror = fresh(mirror, tmp_path)
    rewrite_captions(
        mirror,
        lambda data: [image.update(file_name="../../../evil.jpg") for image in data["images"]],
    )
    with pytest.raises(UserError, match="evil.jpg' .* leaves the folder"):
        load(mirror)
    names = [path.name for path in (mirror.parent / "photographs").rglob("*.jpg")]
    assert len(names) == 10 and all(
        name == photographs.NAME.format(int(name[-16:-4])) for name in names
    )
    assert not list(tmp_path.rglob("evil.jpg"))


def test_a_model_is_found_in_a_mirror_that_is_a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "huggingface.co" / "someone" / "model" / "resolve" / "main"
    folder.mkdir(parents=True)
    assert mirrored_model("someone/model") is None
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path))
    assert mirrored_model("someone/model") == str(folder)
    assert mirrored_model("someone/other") is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": 3}, "a rehearsal with 3 images; expected 16 or more"),
        ({"brain": "llama"}, "brain is 'llama'; expected 'brain' or 'instruct brain'"),
    ],
)
def test_a_rehearsal_of_nothing_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        rehearsal.make_profile(**options)


@pytest.mark.slow
def test_t4s_path_runs_at_its_real_sizes_without_a_network(tmp_path, monkeypatch, capsys):
    """A few steps of everything: choose, fetch, decode, load, encode, train, answer. Also by the profile's name."""
    from vlm_lite.profiles import get_compute, get_profile
    from vlm_lite.rehearsal.commands import rehearse

    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="vlm-lite rehearse"):
        get_profile("rehearsal")
    made = rehearsal.make_profile(16)
    profile = get_profile("rehearsal")
    assert profile == made
    assert (profile.name, profile.image_size, profile.train_images) == ("rehearsal", 224, 8)
    result = rehearse(profile, get_compute(), steps=2, batch_size=2)
    assert set(result["stages"]) == {
        "decode the photographs",
        "load eye and brain",
        "encode, once, into the cache",
        "a step of the brain alone",
        "a step with the Q-Former",
        "answer, 8 words each",
        "evaluate",
        *(f"stage {name}, a step" for name in ("captions", "instructions", "VQA")),
    }
    assert 0 < result["of_ceiling"] and 1 < result["times_plain"] and 0.5 < result["memory_gb"] < 12
    for stage in result["stages"].values():
        assert stage["seconds"] > 0 and (
            stage["share_of_peak"] is None or 0 < stage["share_of_peak"] < 1.5
        )
    assert "peak memory" in capsys.readouterr().out
    # What was loaded are t4's architectures, by the classes that load t4.
    from transformers import AutoConfig, AutoTokenizer, CLIPConfig

    eye, brain = (
        AutoConfig.from_pretrained(name) for name in (profile.vision_model, profile.language_model)
    )
    assert (
        isinstance(eye, CLIPConfig)
        and eye.vision_config.patch_size == 16
        and eye.text_config.eos_token_id == 2
    )
    assert (brain.model_type, brain.n_embd, brain.n_layer, brain.vocab_size) == (
        "gpt2",
        768,
        12,
        50257,
    )
    for name, size in ((profile.vision_model, 49408), (profile.language_model, 50257)):
        tokenizer = AutoTokenizer.from_pretrained(name)
        assert (
            len(tokenizer) == size
            and tokenizer.decode(tokenizer("a red circle")["input_ids"]) == "a red circle"
        )
    # The explicit profile t4 takes the same folder for a whole cache, and lists what else it lacks.
    monkeypatch.setenv("VLM_LITE_MIRROR", profile.mirror)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match='profile "t4" needs HuggingFaceTB/SmolVLM2-256M-Video-Instruct: missing'
    ):
        get_profile("t4")
