"""`vlm-lite eval ...`: the scores of the functions, in a table and as JSON, and status 2 without a traceback."""

import contextlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.evals.test_mmbench import HEADER, M, cells, picture
from vlm_lite import cli
from vlm_lite.evals import captions as caption_module
from vlm_lite.evals.commands import EXAMPLES

WHITESPACE = ("--tokenizer", "whitespace")


@pytest.fixture
def files(tmp_path):
    """Small files in every official format; files[name] is a path, files.write(name, value) changes one."""

    class Files(dict):
        def write(self, name, value):
            text = value if isinstance(value, str) else json.dumps(value)
            self[name].write_text(text, encoding="utf-8")

        def change(self, name, change):
            value = json.loads(self[name].read_text(encoding="utf-8"))
            change(value)
            self.write(name, value)

    found = Files(
        {
            name: tmp_path / name
            for name in (
                "refs.json",
                "captions.json",
                "q.json",
                "a.json",
                "vqa.json",
                "labels.json",
                "pope.jsonl",
                "t.tsv",
                "p.tsv",
            )
        }
    )
    found.write(
        "refs.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
            "annotations": [
                {"image_id": 1, "caption": "A red circle here."},
                {"image_id": 2, "caption": "My dog runs fast."},
                {"image_id": 1, "caption": "It is a circle."},
            ],
        },
    )
    found.write(
        "captions.json",
        [
            {"image_id": 2, "caption": "my dog runs fast"},
            {"image_id": 1, "caption": "a red circle here"},
        ],
    )
    found.write(
        "q.json",
        {
            "data_subtype": "val2014",
            "questions": [
                {"question_id": k, "image_id": k, "question": "what?"} for k in (1, 2, 3, 4)
            ],
        },
    )
    ten = [["yes"] * 10, ["2"] * 2 + ["3"] * 8, ["red"] * 5 + ["blue"] * 5, ["red"] * 10]
    found.write(
        "a.json",
        {
            "data_subtype": "val2014",
            "annotations": [
                {
                    "question_id": k,
                    "image_id": k,
                    "question_type": "is" if k == 1 else "what",
                    "answer_type": kind,
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": answer, "answer_id": n} for n, answer in enumerate(answers, 1)
                    ],
                }
                for k, (answers, kind) in enumerate(
                    zip(ten, ("yes/no", "number", "other", "other"), strict=True), 1
                )
            ],
        },
    )
    found.write(
        "vqa.json",
        [
            {"question_id": k, "answer": answer}
            for k, answer in ((4, "green"), (3, "Blue."), (2, "two"), (1, "Yes"))
        ],
    )
    found.write(
        "labels.json",
        "".join(
            json.dumps({"question_id": k, "image": "a.jpg", "text": "Is there?", "label": label})
            + "\n"
            for k, label in enumerate(("yes", "no", "yes", "no"))
        ),
    )
    found.write(
        "pope.jsonl",
        "".join(
            json.dumps({"question_id": k, "text": text}) + "\n"
            for k, text in ((3, "No."), (2, "Yes"), (1, "NO"), (0, "yes"))
        ),
    )
    table = [
        cells(1, "A", picture("red")),
        cells(M + 1, "B", "1"),
        cells(2, "B", picture("blue"), category="plants"),
    ]
    found.write("t.tsv", tabs([HEADER, *table]))
    found.write("p.tsv", tabs([["prediction", "index"], ["dog", 2], ["B", M + 1], ["A.", 1]]))
    found["e.npz"] = tmp_path / "e.npz"
    np.savez(
        found["e.npz"],
        image_embeds=np.eye(12),
        text_embeds=np.eye(12, dtype=np.float16),
        image_of_text=np.arange(12),
    )
    found["names.txt"] = tmp_path / "names.txt"
    found.write("names.txt", "red\ngreen\nblue")
    for colour in ("red", "blue"):
        (tmp_path / "pictures" / colour).mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / colour / "a.png")
    found["pictures"] = tmp_path / "pictures"
    return found


def tabs(rows):
    return "\n".join(
        "\t".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows
    )


def arguments(files, benchmark):
    return [
        "eval",
        benchmark,
        *map(
            str,
            {
                "captions": [
                    "--refs",
                    files["refs.json"],
                    "--results",
                    files["captions.json"],
                    *WHITESPACE,
                ],
                "vqa": [
                    "--questions",
                    files["q.json"],
                    "--annotations",
                    files["a.json"],
                    "--results",
                    files["vqa.json"],
                ],
                "pope": ["--labels", files["labels.json"], "--answers", files["pope.jsonl"]],
                "mmbench": ["--tsv", files["t.tsv"], "--predictions", files["p.tsv"]],
                "retrieval": ["--embeddings", files["e.npz"]],
                "zeroshot": [
                    "--images",
                    files["pictures"],
                    "--model",
                    "shapes-clip",
                    "--template",
                    "a {} square.",
                    "--classes",
                    files["names.txt"],
                ],
            }[benchmark],
        ),
    ]


def run(files, benchmark, *more):
    out = files["t.tsv"].parent / "out.json"
    assert cli.main([*arguments(files, benchmark), "--json", str(out), *map(str, more)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("benchmark", EXAMPLES)
def test_help_has_an_example_that_the_command_understands(benchmark, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", benchmark, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out.split("example:\n")[1]
    words = re.sub(r"\\\n", " ", shown).split("\n\n")[0].split()
    assert words[:3] == ["vlm-lite", "eval", benchmark]
    cli.build_parser().parse_args(words[1:])


def test_captions_without_java(files, capsys):
    scores = run(files, "captions")
    assert scores["Bleu_4"] == pytest.approx(1) and scores["ROUGE_L"] == pytest.approx(1)
    assert (scores["tokenizer"], scores["count"]) == ("whitespace (not official)", 2)
    assert "SPICE" not in scores and "METEOR" not in scores
    shown = capsys.readouterr().out
    assert re.search(r"^Bleu_1 +1\.0000 +100\.00$", shown, flags=re.M)
    assert "SPICE is left out: it needs the official tokeniser" in shown


def test_captions_say_in_one_line_why_spice_is_not_there_and_score_it_where_it_is(
    files, capsys, monkeypatch
):
    monkeypatch.setattr(caption_module, "_meteor", lambda *a: contextlib.nullcontext(lambda: 0.5))
    monkeypatch.setattr(
        caption_module, "_ptb_tokenize", lambda texts, java: [text.lower() for text in texts]
    )
    monkeypatch.setattr(caption_module, "spice_obstacle", lambda java: "Java is too new.")
    official = ("--tokenizer", "ptb")
    scores = run(files, "captions", *official)
    assert scores["SPICE_left_out"] == "Java is too new." and scores["METEOR"] == 0.5
    assert "SPICE is left out: Java is too new.\n" in capsys.readouterr().out
    monkeypatch.setattr(caption_module, "spice_obstacle", lambda java: "")
    monkeypatch.setattr(caption_module, "_spice", lambda *a: 0.25)
    assert run(files, "captions", *official)["SPICE"] == 0.25

    def stop(*arguments):
        raise caption_module.SpiceError("SPICE stopped (no memory)")

    monkeypatch.setattr(caption_module, "_spice", stop)
    scores = run(files, "captions", *official)
    assert scores["SPICE_left_out"] == "SPICE stopped (no memory)" and scores["METEOR"] == 0.5


def test_vqa(files, capsys):
    scores = run(files, "vqa")
    assert scores["overall"] == pytest.approx(40)
    assert scores["per_answer_type"] == pytest.approx({"yes/no": 0, "number": 60, "other": 50})
    assert scores["per_question_type"] == pytest.approx({"is": 0, "what": 160 / 3})
    assert (scores["count"], scores["normalize"]) == (4, "official")
    assert re.search(r"^overall +40\.00$", capsys.readouterr().out, flags=re.M)
    assert run(files, "vqa", "--normalize", "always")["overall"] == pytest.approx(65)


def test_vqa_without_types_has_its_overall_score(files):
    files.change(
        "a.json",
        lambda value: [
            note.pop(key)
            for note in value["annotations"]
            for key in ("question_type", "answer_type")
        ],
    )
    scores = run(files, "vqa")
    assert scores["overall"] == pytest.approx(40) and "per_answer_type" not in scores


def test_pope(files, capsys):
    assert run(files, "pope")["accuracy"] == 0.75  # "NO" is a yes to the official parser
    strict = run(files, "pope", "--parser", "strict")
    assert (strict["accuracy"], strict["f1"], strict["parser"]) == (1, 1, "strict")
    assert "0 answers neither yes nor no" in capsys.readouterr().out


def test_pope_gives_the_mean_of_several_splits(files, tmp_path, capsys):
    (tmp_path / "all_yes.jsonl").write_text(files["pope.jsonl"].read_text().replace("No.", "Yes"))
    out = tmp_path / "out.json"
    assert (
        cli.main(
            [
                "eval",
                "pope",
                "--labels",
                str(files["labels.json"]),
                str(files["labels.json"]),
                "--answers",
                str(files["pope.jsonl"]),
                str(tmp_path / "all_yes.jsonl"),
                "--json",
                str(out),
            ]
        )
        == 0
    )
    scores = json.loads(out.read_text())
    assert [split["f1"] for split in scores["splits"]] == pytest.approx([4 / 5, 2 / 3])
    assert scores["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2) and scores["count"] == 8
    assert re.search(r"^mean +62\.50", capsys.readouterr().out, flags=re.M)


def test_mmbench(files, capsys):
    scores = run(files, "mmbench")
    assert (scores["circular"], scores["plain"], scores["questions"]) == (1, 1, 2)
    assert set(scores["per_category"]) == {"animals", "plants"}
    files.write("p.tsv", tabs([["index", "prediction"], [1, "A"], [M + 1, "A"], [2, "B"]]))
    scores = run(files, "mmbench")
    assert (scores["circular"], scores["plain"]) == (0.5, 1)
    assert re.search(
        r"^overall +50\.00 +100\.00 +37\.50 +50\.00 +2$", capsys.readouterr().out, flags=re.M
    )


def test_mmbench_takes_a_sample_of_whole_questions(files):
    seen = {run(files, "mmbench", "--groups", 1, "--seed", seed)["row_count"] for seed in range(6)}
    assert seen == {1, 2}


def test_mmbench_s_own_table_with_a_column_of_predictions_will_do(files):
    lines = files["t.tsv"].read_text(encoding="utf-8")
    rows = [
        [*HEADER, "prediction"],
        [*cells(1, "A", "%%%"), "A"],
        [*cells(M + 1, "B"), "A"],
        [*cells(2, "B"), "B"],
    ]
    files.write("p.tsv", tabs(rows))
    assert run(files, "mmbench")["circular"] == 0.5
    assert files["t.tsv"].read_text(encoding="utf-8") == lines


def test_retrieval(files, capsys):
    scores = run(files, "retrieval")
    assert scores == {
        way: {"R@1": 1, "R@5": 1, "R@10": 1} for way in ("image_to_text", "text_to_image")
    } | {"images": 12, "texts": 12}
    shown = capsys.readouterr().out
    assert re.search(r"^image to text by chance +8\.33 +41\.67 +83\.33$", shown, flags=re.M)


def test_retrieval_counts_identical_texts_as_one_where_it_has_them(files):
    wrong = np.eye(12)[[1, 0, *range(2, 12)]]
    arrays = {"image_embeds": np.eye(12), "text_embeds": wrong, "image_of_text": np.arange(12)}
    np.savez(files["e.npz"], **arrays)
    assert run(files, "retrieval")["image_to_text"]["R@1"] == pytest.approx(10 / 12)
    np.savez(files["e.npz"], **arrays, texts=np.array(["same", "same", *map(str, range(10))]))
    assert run(files, "retrieval")["image_to_text"]["R@1"] == 1


def test_zeroshot(files, capsys):
    scores = run(files, "zeroshot")
    assert scores["classes"] == ["red", "green", "blue"] and scores["images"] == 2
    assert scores["ensemble"] == scores["single"] and scores["chance"] == {"top1": 1 / 3, "top5": 1}
    assert "single: a {} square." in capsys.readouterr().out


@pytest.mark.parametrize(
    "benchmark, file, ids",
    [
        ("captions", "captions.json", "image_id"),
        ("vqa", "vqa.json", "question_id"),
        ("pope", "pope.jsonl", "question_id"),
        ("mmbench", "p.tsv", "index"),
    ],
)
def test_a_part_is_refused_unless_told_and_then_named(files, benchmark, file, ids, capsys):
    text = files[file].read_text(encoding="utf-8")
    if file.endswith(".json"):
        files.write(file, json.loads(text)[:-1])
    else:
        files.write(file, "\n".join(text.strip().split("\n")[:-1]))
    assert cli.main(arguments(files, benchmark)) == 2
    assert re.search(
        rf"{file} does not answer .*: 1 {ids}\(s\) missing, for example ", capsys.readouterr().err
    )
    scores = run(files, benchmark, "--partial")
    assert (scores["missing"], scores["unknown"]) == (1, 0)
    assert "PARTIAL: " in capsys.readouterr().out


OTHERS = {
    "refs.json": "a.json",
    "captions.json": "vqa.json",
    "q.json": "refs.json",
    "a.json": "captions.json",
    "vqa.json": "captions.json",
    "labels.json": "vqa.json",
    "pope.jsonl": "captions.json",
    "t.tsv": "p.tsv",
    "p.tsv": "t.tsv",
    "e.npz": "refs.json",
    "names.txt": "e.npz",
}
OWNERS = {
    "refs.json": "captions",
    "captions.json": "captions",
    "q.json": "vqa",
    "a.json": "vqa",
    "vqa.json": "vqa",
    "labels.json": "pope",
    "pope.jsonl": "pope",
    "t.tsv": "mmbench",
    "p.tsv": "mmbench",
    "e.npz": "retrieval",
    "names.txt": "zeroshot",
}


@pytest.mark.parametrize(
    "damage", ["cut short", "empty", "of another kind", "not there", "a folder"]
)
@pytest.mark.parametrize("file", OWNERS)
def test_a_damaged_file_is_named_with_status_2(files, file, damage, capsys):
    content = files[file].read_bytes()
    if damage == "of another kind":
        files[file].write_bytes(files[OTHERS[file]].read_bytes())
    elif damage in ("cut short", "empty"):
        files[file].write_bytes(content[: len(content) * 3 // 5] if damage == "cut short" else b"")
    else:
        files[file].unlink()
        if damage == "a folder":
            files[file].mkdir()
    assert cli.main(arguments(files, OWNERS[file])) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("vlm-lite: ") and file in shown and shown.count("\n") == 1
    assert damage != "empty" or not file.endswith(".json") or "empty" in shown


def change_entry(key, value, *path):
    def change(data):
        for step in path:
            data = data[step]
        data[key] = value

    return change


@pytest.mark.parametrize(
    "file, change, message",
    [
        (
            "a.json",
            change_entry("answers", [{"answer": "a"}] * 9, "annotations", 1),
            r"`annotations\[1\].answers` has 9 entries; the official accuracy needs 10",
        ),
        (
            "a.json",
            change_entry("answer", 3, "annotations", 1, "answers", 4),
            r"`annotations\[1\].answers\[4\].answer` is 3; expected text",
        ),
        (
            "a.json",
            change_entry("data_subtype", "train2014"),
            "data_subtype is 'val2014' in .* and 'train2014' in",
        ),
        ("vqa.json", change_entry("answer", 7, 2), r"`\[2\].answer` is 7; expected text"),
        (
            "vqa.json",
            change_entry("question_id", 4, 3),
            r"1 question_id\(s\) missing, for example 1; 1 .* more than once",
        ),
        (
            "captions.json",
            change_entry("caption", ["a"], 0),
            r"`\[0\].caption` is \['a'\]; expected text",
        ),
        (
            "captions.json",
            lambda data: [entry.update(image_id=entry["image_id"] + 100) for entry in data],
            "None is shared: is it of another split",
        ),
        ("refs.json", change_entry("annotations", []), "holds no captions"),
    ],
)
def test_a_bad_entry_is_named_with_status_2(files, file, change, message, capsys):
    files.change(file, change)
    assert cli.main(arguments(files, OWNERS[file])) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown) and file in shown and shown.count("\n") == 1


def test_a_broken_picture_in_a_table_is_named_with_status_2(files, capsys):
    files.write("t.tsv", tabs([HEADER, cells(1, "A", picture("red")[:-7])]))
    assert cli.main(arguments(files, "mmbench")) == 2
    assert re.search(
        r"t.tsv, line 3 \(index 1\): image is not a picture in base64", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"image_embeds": np.where(np.eye(12)[3:4].T, np.nan, np.eye(12))},
            "e.npz: image_embeds holds NaN or infinite values in 1 of 12 rows, the first of them row 3",
        ),
        ({"text_embeds": np.eye(12, 5)}, "expected embeddings of one joint space"),
        ({"image_of_text": np.zeros(12, int)}, "must name each of the 12 pictures"),
        ({"image_of_text": np.arange(12) + 0.5}, "image_of_text holds 0.5; expected whole numbers"),
        ({"image_of_text": np.zeros((12, 1), int)}, r"image_of_text has shape \(12, 1\)"),
        ({"text_embeds": np.array([{}])}, "cannot be read as NPZ"),
        ({"image_embeds": np.array(["a"])}, "image_embeds is of <U1; expected numbers"),
        ({"text_embeds": None}, "has no array text_embeds"),
        ({"texts": np.array(["a"])}, "texts has 1 entries for 12 texts"),
    ],
)
def test_bad_embeddings_are_named_with_status_2(files, arrays, message, capsys):
    good = {"image_embeds": np.eye(12), "text_embeds": np.eye(12), "image_of_text": np.arange(12)}
    np.savez(
        files["e.npz"],
        **{name: value for name, value in {**good, **arrays}.items() if value is not None},
    )
    assert cli.main(arguments(files, "retrieval")) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown) and shown.count("\n") == 1


@pytest.mark.parametrize(
    "benchmark, more, message",
    [
        ("captions", ("--metrics", "BLUE"), "expected some of BLEU, METEOR, ROUGE_L, CIDEr, SPICE"),
        ("mmbench", ("--groups", "3"), "3 groups were asked for; the file has 2"),
        ("zeroshot", ("--template", "a dog"), "'a dog' has no {}"),
        ("zeroshot", ("--model", "shapes-clap"), "shapes-clap"),
        ("vqa", ("--json", "/dev/null/out.json"), "cannot write /dev/null/out.json"),
    ],
)
def test_bad_options_end_with_status_2(files, benchmark, more, message, capsys):
    assert cli.main([*arguments(files, benchmark), *more]) == 2
    assert message in capsys.readouterr().err


def test_as_many_answer_files_as_label_files_are_wanted(files, capsys):
    assert cli.main([*arguments(files, "pope"), str(files["pope.jsonl"])]) == 2
    assert "1 label file(s) and 2 answer file(s)" in capsys.readouterr().err


def test_the_json_is_written_although_nobody_reads_what_is_printed(files, tmp_path):
    out = tmp_path / "x.json"
    command = [sys.executable, "-m", "vlm_lite", *arguments(files, "pope"), "--json", str(out)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # 128 + SIGPIPE, as `head`'s left neighbours
    assert json.loads(out.read_text(encoding="utf-8"))["accuracy"] == 0.75


def test_a_file_that_cannot_be_written_is_said_without_a_table_before_it(files, capsys):
    assert cli.main([*arguments(files, "pope"), "--json", "/dev/null/x.json"]) == 2
    assert capsys.readouterr().out == ""
