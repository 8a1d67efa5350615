"""`vlm-lite data`: samples of every kind of official file, the table of addresses, and the errors of a first try."""

import re
import shlex

import pytest

from tests.evals.official import HEADER, cells, lines, picture, png, tabs
from vlm_lite.cli import build_parser, main
from vlm_lite.data import commands
from vlm_lite.data.readers import read_folder
from vlm_lite.data.shapes import write_shapes
from vlm_lite.data.sources import DATASETS, MODELS, SOURCES
from vlm_lite.files import write_json
from vlm_lite.rehearsal.commands import REHEARSE

OPTIONS = {
    "captions": "--annotations captions_shapes_val.json",
    "vqa": "--questions v2_OpenEnded_mscoco_shapes_val_questions.json "
    "--annotations v2_mscoco_shapes_val_annotations.json",
    "llava": "--annotations llava.json",
    "pope": "--annotations pope.json",
    "mmbench": "--annotations mmbench.tsv",
}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Every official file about a few small pictures: {kind: options of `data sample`}."""
    folder = tmp_path_factory.mktemp("world") / "val"
    write_shapes(folder, "val", 32, progress=False)
    notes, images = folder / "annotations", folder / "images" / "shapes_val"
    names = [f"{k}.png" for k in range(8)]
    for name in names:
        (images / name).write_bytes(png("red"))
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]
    write_json(notes / "llava.json", [{"image": name, "conversations": turns} for name in names])
    asked = {"text": "Is there?", "label": "yes"}
    rows = ({"question_id": k, "image": name, **asked} for k, name in enumerate(names))
    (notes / "pope.json").write_text(lines(rows))
    table = tabs([HEADER, *(cells(k, image=picture("red")) for k in range(8))])
    (notes / "mmbench.tsv").write_text(table)
    return {
        kind: [
            *(word if word[0] == "-" else str(notes / word) for word in words.split()),
            *(["--images", str(images)] if kind != "mmbench" else []),
        ]
        for kind, words in OPTIONS.items()
    }


def data_sample(*arguments, out, count="5"):
    return main(["data", "sample", *arguments, "--count", count, "-o", str(out)])


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_sample_of_any_official_file_is_a_folder_that_reads_and_samples_itself(
    official, kind, tmp_path, capsys
):
    out, again = tmp_path / "sample", tmp_path / "again"
    assert data_sample(kind, *official[kind], out=out) == 0
    table = read_folder(out)
    assert f"{len(table)} rows of 5 pictures" in capsys.readouterr().out
    assert len(set(table["image_id"][:])) == 5 and table[0]["image"].size == (64, 64)
    column = {"captions": "captions", "llava": "conversation"}.get(kind, "answers")
    assert all(table[column][:])
    assert data_sample("folder", "--images", str(out), out=again) == 0
    assert (again / "metadata.jsonl").read_text() == (out / "metadata.jsonl").read_text()
    assert data_sample(kind, *official[kind], out=tmp_path) == 2  # never overwrites a folder
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vqa --annotations a.json", "--questions and --images"),
        ("captions --annotations none.json --images .", "none.json"),
        ("folder --images nowhere", "nowhere holds no metadata.jsonl"),
    ],
)
def test_a_first_try_that_lacks_something_is_told_what(arguments, message, tmp_path, capsys):
    assert data_sample(*arguments.split(), out=tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_list_has_every_id_and_address_and_what_a_mirror_makes_of_them(monkeypatch, capsys):
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    addresses = [source.address for source in SOURCES.values()]
    assert all(name in told for name in (*MODELS.values(), *DATASETS.values(), *addresses))
    monkeypatch.setenv("VLM_LITE_MIRROR", "http://mirror.example/")
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert "http://mirror.example/images.cocodataset.org/annotations/" in told
    assert "http://images.cocodataset.org" not in told


def test_getting_offline_lists_what_lacks(capsys):
    assert main(["data", "get", "--minimal"]) == 2
    assert "4 of 4 annotation files" in capsys.readouterr().err


@pytest.mark.parametrize("text", [commands.SAMPLE, commands.GET, REHEARSE])
def test_every_example_of_the_help_is_understood(text):
    examples = re.findall(r"^  vlm-lite (.*)$", text, flags=re.M)
    assert examples
    for example in examples:
        build_parser().parse_args(shlex.split(example))
