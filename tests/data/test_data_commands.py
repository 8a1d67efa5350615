"""`vlm-lite data`: samples of every kind of official file, the table of addresses, and the errors of a first try."""

import re
import shlex

import pytest

from vlm_lite.cli import build_parser, main
from vlm_lite.data import commands
from vlm_lite.data.readers import read_folder
from vlm_lite.data.shapes import VERSION, load_shapes
from vlm_lite.data.sources import DATASETS, MODELS, SOURCES
from vlm_lite.files import home
from vlm_lite.rehearsal.commands import REHEARSE
from vlm_lite.rehearsal.shapes_files import load_shapes_benchmarks


@pytest.fixture(scope="module")
def official():
    """Every official file of a small Shapes world: {kind: options of `data sample`}."""
    load_shapes("val", 32, progress=False)
    load_shapes_benchmarks("val", 32)
    world = home() / f"shapes-v{VERSION}" / "val-32-0"
    notes, images = world / "annotations", ["--images", str(world / "images" / "shapes_val")]
    return {
        "captions": ["--annotations", str(notes / "captions_shapes_val.json"), *images],
        "vqa": [
            "--questions",
            str(notes / "v2_OpenEnded_mscoco_shapes_val_questions.json"),
            "--annotations",
            str(notes / "v2_mscoco_shapes_val_annotations.json"),
            *images,
        ],
        "llava": ["--annotations", str(notes / "llava_instruct_shapes_val.json"), *images],
        "pope": ["--annotations", str(notes / "shapes_pope_val.json"), *images],
        "mmbench": ["--annotations", str(notes / "mmbench_shapes_val.tsv")],
    }


@pytest.mark.parametrize("kind", ["captions", "vqa", "llava", "pope", "mmbench"])
def test_a_sample_of_any_official_file_is_a_folder_that_reads_and_samples_itself(
    official, kind, tmp_path, capsys
):
    out = tmp_path / "sample"
    assert main(["data", "sample", kind, *official[kind], "--count", "5", "-o", str(out)]) == 0
    table = read_folder(out)
    assert f"{len(table)} rows of 5 pictures" in capsys.readouterr().out
    assert len(set(table["image_id"][:])) == 5 and table[0]["image"].size == (64, 64)
    column = {"captions": "captions", "llava": "conversation"}.get(kind, "answers")
    assert all(table[column][:])
    again = tmp_path / "again"
    assert (
        main(["data", "sample", "folder", "--images", str(out), "--count", "5", "-o", str(again)])
        == 0
    )
    assert (again / "metadata.jsonl").read_text() == (out / "metadata.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vqa", "--annotations", "a.json"], "vqa needs --questions and --images too"),
        (["captions", "--annotations", "none.json", "--images", "."], "none.json does not exist"),
        (["folder", "--images", "nowhere"], "nowhere holds no metadata.jsonl"),
    ],
)
def test_a_first_try_that_lacks_something_is_told_what(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "sample", *arguments, "--count", "1", "-o", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_sample_never_overwrites_a_folder(official, tmp_path, capsys):
    assert (
        main(["data", "sample", "pope", *official["pope"], "--count", "1", "-o", str(tmp_path)])
        == 2
    )
    assert "is there already" in capsys.readouterr().err


def test_the_list_has_every_id_and_address_and_what_a_mirror_makes_of_them(monkeypatch, capsys):
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in (*MODELS.values(), *DATASETS.values()))
    assert all(source.address in told for source in SOURCES.values())
    monkeypatch.setenv("VLM_LITE_MIRROR", "http://mirror.example/")
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert (
        "http://mirror.example/images.cocodataset.org/annotations/annotations_trainval2014.zip"
        in told
    )
    assert "http://images.cocodataset.org" not in told


def test_getting_offline_lists_what_lacks(capsys):
    assert main(["data", "get", "--minimal"]) == 2
    assert "4 of 4 annotation files cannot be had" in capsys.readouterr().err


@pytest.mark.parametrize("text", [commands.SAMPLE, commands.GET, REHEARSE])
def test_every_example_of_the_help_is_understood(text):
    lines = re.findall(r"^  vlm-lite (.*)$", text, flags=re.M)
    assert lines
    for line in lines:
        build_parser().parse_args(shlex.split(line))
