"""`vlm-lite eval ...`: the scores of the functions, in a table and as JSON, and status 2 without a traceback."""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from tests.evals.official import HEADER, OWNERS, M, cells, tabs
from vlm_lite import cli
from vlm_lite.evals import captions as caption_module


def run(files, benchmark, *more):
    out = files["t.tsv"].parent / "out.json"
    assert cli.main([*files.arguments(benchmark), "--json", str(out), *map(str, more)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def refused(capsys, arguments, *words):
    """The command ends with status 2 and one line, in which `words` stand."""
    assert cli.main([*map(str, arguments)]) == 2
    said = re.sub("^note: .*\n", "", capsys.readouterr().err)
    assert said.startswith("vlm-lite: ") and said.count("\n") == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "benchmark, more, scores, shown",
    [
        ("captions", "", {"Bleu_4": 1, "ROUGE_L": 1, "count": 2}, r"Bleu_1 +1\.0000 +100\.00"),
        ("vqa", "", {"overall": 40, "count": 4}, r"overall +40\.00"),
        ("vqa", "", {"per_answer_type": {"yes/no": 0, "number": 60, "other": 50}}, "  is +0.00"),
        ("vqa", "--normalize always", {"overall": 65}, "4 questions; normalize: always"),
        ("pope", "", {"accuracy": 0.75}, "4 questions; parser: official"),  # "NO" is a yes to it
        ("pope", "--parser strict", {"accuracy": 1, "f1": 1}, ".* 0 answers neither yes nor no"),
        ("mmbench", "", {"circular": 1, "plain": 1, "questions": 2}, r"  plants +100.*1"),
        (
            "retrieval",
            "",
            {"text_to_image": {"R@1": 1, "R@5": 1, "R@10": 1}},
            "12 images, 12 texts",
        ),
        ("retrieval", "", {"images": 12}, r"image to text by chance +8\.33 +41\.67 +83\.33"),
        (
            "zeroshot",
            "",
            {"chance": {"top1": 1 / 3, "top5": 1}, "images": 2},
            "single: a {} square.",
        ),
    ],
)
def test_scores_are_shown_and_written(files, benchmark, more, scores, shown, capsys):
    found = run(files, benchmark, *more.split())
    assert {key: found[key] for key in scores} == {k: pytest.approx(v) for k, v in scores.items()}
    assert re.search(rf"^{shown}", capsys.readouterr().out, flags=re.M)


def test_captions_say_in_one_line_why_spice_is_not_there_and_score_it_where_it_is(
    files, capsys, monkeypatch
):
    assert (
        "SPICE" not in run(files, "captions") and "SPICE is left out: " in capsys.readouterr().out
    )
    monkeypatch.setattr(caption_module, "_meteor", lambda *a: contextlib.nullcontext(lambda: 0.5))
    monkeypatch.setattr(caption_module, "_ptb_tokenize", lambda texts, java: list(texts))
    monkeypatch.setattr(caption_module, "spice_obstacle", lambda java: "Java is too new.")
    official = ("--tokenizer", "ptb")
    scores = run(files, "captions", *official)
    assert scores["SPICE_left_out"] == "Java is too new." and scores["METEOR"] == 0.5
    assert "SPICE is left out: Java is too new.\n" in capsys.readouterr().out
    monkeypatch.setattr(caption_module, "spice_obstacle", lambda java: "")
    monkeypatch.setattr(caption_module, "_spice", lambda *a: 0.25)
    assert run(files, "captions", *official)["SPICE"] == 0.25

    def stop(*arguments):
        raise caption_module.SpiceError("SPICE stopped")

    monkeypatch.setattr(caption_module, "_spice", stop)
    scores = run(files, "captions", *official)
    assert scores["SPICE_left_out"] == "SPICE stopped" and scores["METEOR"] == 0.5


def test_vqa_without_types_has_its_overall_score(files):
    def strip(value):
        for note in value["annotations"]:
            del note["question_type"], note["answer_type"]

    files.change("a.json", strip)
    scores = run(files, "vqa")
    assert scores["overall"] == pytest.approx(40) and "per_answer_type" not in scores


def test_pope_gives_the_mean_of_several_splits(files, capsys):
    yes = files["pope.jsonl"].with_name("yes.jsonl")
    yes.write_text(files["pope.jsonl"].read_text().replace("No.", "Yes"))
    labels, out = str(files["labels.json"]), yes.with_name("out.json")
    answers = ["--answers", str(files["pope.jsonl"]), str(yes), "--json", str(out)]
    assert cli.main(["eval", "pope", "--labels", labels, labels, *answers]) == 0
    scores = json.loads(out.read_text())
    assert [split["f1"] for split in scores["splits"]] == pytest.approx([4 / 5, 2 / 3])
    assert scores["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2) and scores["count"] == 8
    assert re.search(r"^mean +62\.50", capsys.readouterr().out, flags=re.M)
    refused(capsys, [*files.arguments("pope"), yes], "1 label file(s) and 2 answer file(s)")


def test_mmbench_takes_its_own_table_with_a_column_of_predictions_and_a_sample_of_questions(files):
    seen = {run(files, "mmbench", "--groups", 1, "--seed", seed)["row_count"] for seed in range(6)}
    assert seen == {1, 2}
    rows = [[*cells(1), "A"], [*cells(M + 1, "B"), "A"], [*cells(2, "B"), "B"]]
    files.write("p.tsv", tabs([[*HEADER, "prediction"], *rows]))
    scores = run(files, "mmbench")
    assert (scores["circular"], scores["plain"]) == (0.5, 1)


@pytest.mark.parametrize(
    "file, ids",
    [
        ("captions.json", "image_id"),
        ("vqa.json", "question_id"),
        ("pope.jsonl", "question_id"),
        ("p.tsv", "index"),
    ],
)
def test_a_part_is_refused_unless_told_and_then_named(files, file, ids, capsys):
    text = files[file].read_text(encoding="utf-8")
    is_list = file.endswith(".json")
    files.write(
        file,
        json.loads(text)[:-1]
        if is_list
        else "\n".join(text.split("\n")[: -2 if file == "pope.jsonl" else -1]),
    )
    refused(capsys, files.arguments(OWNERS[file]), file, f"1 {ids}(s) missing")
    scores = run(files, OWNERS[file], "--partial")
    assert (scores["missing"], scores["unknown"]) == (1, 0)
    assert "PARTIAL: " in capsys.readouterr().out


KINDS = ["cut short", "empty", "of another kind", "not there", "a folder"]
OTHERS = dict(zip(OWNERS, [*list(OWNERS)[3:], *list(OWNERS)[:3]], strict=True))


@pytest.mark.parametrize("damage", KINDS)
@pytest.mark.parametrize("file", OWNERS)
def test_a_damaged_file_is_named_with_status_2(files, file, damage, capsys):
    content = files[file].read_bytes()
    if damage == "of another kind":
        files[file].write_bytes(files[OTHERS[file]].read_bytes())
    elif damage in ("cut short", "empty"):
        files[file].write_bytes(content[: len(content) * 3 // 5 * (damage == "cut short")])
    else:
        files[file].unlink()
        if damage == "a folder":
            files[file].mkdir()
    refused(capsys, files.arguments(OWNERS[file]), file)


@pytest.mark.parametrize(
    "benchmark, more, words",
    [
        ("captions", "--metrics BLUE", "BLUE"),
        ("mmbench", "--groups 3", "3 groups were asked for; expected 1 to 2"),
        ("zeroshot", "--template dog", "dog"),
        ("zeroshot", "--model shapes-clap", "shapes-clap"),
        ("vqa", "--json /dev/null/out.json", "cannot write /dev/null/out.json"),
        ("vqa", "--json /dev", "cannot write /dev: Is a directory. Name another path"),
    ],
)
def test_bad_options_end_with_status_2_without_a_table(files, benchmark, more, words, capsys):
    assert cli.main([*files.arguments(benchmark), *more.split()]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.out == ""


@pytest.mark.parametrize("name", ["pope.jsonl", "../{}/labels.json"])
def test_the_json_does_not_take_the_place_of_what_is_read(files, name, capsys):
    folder = files["pope.jsonl"].parent
    file = folder / name.format(folder.name)
    before = file.read_bytes()
    refused(capsys, [*files.arguments("pope"), "--json", file], "one of the files that are read")
    assert file.read_bytes() == before


@pytest.mark.slow
def test_the_json_is_written_although_nobody_reads_what_is_printed(files, tmp_path):
    out = tmp_path / "x.json"
    command = [sys.executable, "-m", "vlm_lite", *files.arguments("pope"), "--json", str(out)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # 128 + SIGPIPE, as `head`'s left neighbours
    assert json.loads(out.read_text(encoding="utf-8"))["accuracy"] == 0.75
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and re.fullmatch("vlm-lite: .*No space.*\n", done.stderr)
