"""MMBench: the reading of letters against a second implementation, circular and plain by hand, and bad files."""

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evals.official import HEADER, M, cells, picture, tabs
from tests.small import refused
from vlm_lite.data.readers import read_mmbench as read_table
from vlm_lite.lessons import mmbench
from vlm_lite.lessons.mmbench import (
    extract_letter,
    match_predictions,
    mmbench_scores,
    read_mmbench,
    read_predictions,
    sample_groups,
)

OPTIONS = {"A": "cat", "B": "dog", "C": "a red bird", "D": "catfish"}


UPSTREAM = json.loads(Path(__file__).with_name("mmbench_letters.json").read_text("utf-8"))


@pytest.mark.parametrize("letters", UPSTREAM["options"])
def test_letters_are_read_as_vlmevalkit_reads_them_at_the_commit_named(letters):
    """The verdicts are what `can_infer` returned there; its False and its Z, no answer, are null."""
    assert UPSTREAM["commit"] in Path(mmbench.__file__).read_text()
    options, verdicts = UPSTREAM["options"][letters], UPSTREAM["verdicts"][letters]
    assert {text: extract_letter(text, options) for text in verdicts} == verdicts


def row(index, answer="A", options=OPTIONS, **fields):
    groupings = {"split": "", "category": "", "l2-category": ""}
    return {"index": index, "answer": answer, "options": options, **groupings, **fields}


ROWS = [
    *(row(k * M + 1, letter) for k, letter in enumerate("ABCD")),  # all four right
    row(2),
    row(M + 2, "B"),  # fewer rotations; the second wrong
    row(3, options={"A": "x", "B": "y"}),
    row(M + 3, "B", {"A": "y", "B": "x"}),  # the first wrong
    row(4),  # one row, right
]
GIVEN = ("A", "B.", "(C)", "D", "A", "A", "what?", "B", "cat")
SAID = dict(zip((row["index"] for row in ROWS), GIVEN, strict=True))


def test_circular_and_plain_by_hand():
    expected = {
        "circular": 2 / 4,
        "plain": 3 / 4,
        "rows": 7 / 9,
        "chance_plain": (3 * 1 / 4 + 1 / 2) / 4,
        "chance_circular": (1 / 256 + 1 / 16 + 1 / 4 + 1 / 4) / 4,
        "questions": 4,
        "row_count": 9,
        "unanswered": 1,
    }
    assert mmbench_scores(ROWS, SAID) == pytest.approx(expected)  # no grouping either
    rows = [row(k * M + i, "ABCD"[k]) for k in range(4) for i in range(5)]
    scores = mmbench_scores(rows, {r["index"]: "A" for r in rows})  # always A
    assert (scores["plain"], scores["rows"], scores["circular"]) == (1, 0.25, 0)


def test_a_question_is_of_the_category_of_its_first_row():
    rows = [
        row(M + 1, "B", category="late"),
        row(1, category="early", split="dev", **{"l2-category": "x"}),
        row(2, category="early", split="dev", **{"l2-category": "y"}),
    ]
    scores = mmbench_scores(rows, {1: "A", M + 1: "A", 2: "A"})
    assert scores["per_category"] == {"early": pytest.approx(scores["per_split"]["dev"])}
    assert scores["per_split"]["dev"]["circular"] == 0.5
    assert [part["circular"] for part in scores["per_l2-category"].values()] == [0, 1]


def test_a_sample_takes_whole_questions_and_the_same_ones_in_any_order():
    rows = [row(k * M + i) for i in range(20) for k in range(1 + i % 4)]
    sample = sample_groups(rows, 7, seed=3)
    chosen = {r["index"] % M for r in sample}
    assert len(chosen) == 7 and sample == [r for r in rows if r["index"] % M in chosen]
    assert sample_groups(rows[::-1], 7, seed=3) == sample[::-1]
    assert sample_groups(rows, 7, seed=4) != sample
    for count in (0, 21):
        with refused(f"{count} .* 1 to 20"):
            sample_groups(rows, count)


def test_a_part_keeps_the_questions_that_are_answered_in_every_rotation():
    said = [(i, text) for i, text in SAID.items() if i not in (M + 1, 4)]
    named = {"file": "p.tsv", "against": "t.tsv"}
    with refused(r"2 index\(s\) missing, for example 1000001"):
        match_predictions(ROWS, said, **named)
    kept, _, counts = match_predictions(ROWS, said, **named, partial=True)
    assert {r["index"] % M for r in kept} == {2, 3}
    assert (counts["missing"], counts["scored"]) == (2, 4)
    with refused("1000001"):
        match_predictions(ROWS[:4], said, **named, partial=True)


def test_predictions_for_questions_outside_the_sample_are_not_unknown():
    named = {"file": "p.tsv", "against": "t.tsv", "known": list(SAID)}
    counts = match_predictions(ROWS[:4], list(SAID.items()), **named)[2]
    assert counts == {"scored": 4, "missing": 0, "unknown": 0}
    with refused(r"1 index\(s\) unknown, for example 77"):
        match_predictions(ROWS[:4], [*SAID.items(), (77, "A")], **named)


@pytest.fixture
def tsv(tmp_path):
    def write(rows, header=HEADER):
        (tmp_path / "t.tsv").write_text(tabs([header, *rows]), encoding="utf-8")
        return tmp_path / "t.tsv"

    return write


def test_predictions_that_bring_another_question_are_of_another_file(tsv, tmp_path):
    """DEV_EN and DEV_CN, say, share their indices: what is told by the index alone would be scored."""
    rows = read_mmbench(tsv([cells(1), cells(2)]))
    file = tmp_path / "p.tsv"
    said = [(1, 'Hint.\nWHAT is it,  a "cat"? A B', "A"), (2, "Why?", "B")]
    file.write_text(tabs([("index", "question", "prediction"), *said]))
    with refused("p.tsv, line 4.*'Why\\?'.*index 2"):
        read_predictions(file, rows)
    assert read_predictions(file, rows[:1]) == read_predictions(file) == [(1, "A"), (2, "B")]


def test_the_official_table_is_read(tsv):
    red = picture("red") + " " * 140_000  # larger than the csv module's limit
    first, second = read_mmbench(tsv([cells(M + 7, "B", "7"), cells(7, "A", red)]))
    row = dict(zip(HEADER, cells(7, "A", red), strict=True))
    options = {letter: row.pop(letter) for letter in "ABCD"}
    assert second == {
        **row,
        "options": {"A": options["A"], "B": options["B"]},
    }  # not None, nor empty
    assert (first["index"], first["image"]) == (
        M + 7,
        red,
    )  # a rotation names the row of its picture


def test_predictions_need_two_columns_and_may_stand_in_the_benchmark_s_own_table(tsv):
    said = [(3, "A"), (1, "the\ndog")]
    assert read_predictions(tsv(said, ["index", "prediction"])) == said
    file = tsv([[*cells(image="broken, and not looked at"), "B"]], [*HEADER, "prediction"])
    assert read_predictions(file) == [(7, "B")]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([cells(image="%%%" * 30)], "index 7: image"),
        ([cells(image="8")], "index 7: image is 8"),
        ([cells(), cells()], "line 4: index is 7"),  # a question has two lines
        ([cells(index="seven")], "line 2: index is 'seven'"),
        ([cells(index="7.0")], "line 2: index is '7.0'"),
        ([cells(index="7" * 5000)], "line 2: index is '777"),
        ([cells(index="\u0667")], "line 2: index is"),
        ([cells(image="\u00b2")], "index 7: image is not base64"),
        ([cells(answer="C")], "line 2 .*answer is 'C'.*{'A': 'cat', 'B': 'dog'}"),
        ([cells(answer="")], "line 2 .*answer is ''"),
        ([cells(A="", B="")], "line 2 .*options are {}"),
        ([cells(), cells()[:5]], "line 4: .*5 cells for 12 columns"),
        ([], "no rows"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tsv, rows, message):
    with refused(f"t.tsv.*{message}"):
        read_table(tsv(rows))


@pytest.mark.parametrize("content", [b"", b'{"annotations": []}', b"\xff", b"PK\x03\x04\xff"])
def test_a_file_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.tsv").write_bytes(content)
    with refused("t.tsv(, line 1: | cannot be read as text)"):
        read_mmbench(tmp_path / "t.tsv")


@pytest.mark.parametrize(
    "lines, line",
    [
        (["1\tA", '2\t"B is right', "3\tC"], 3),
        (["1\tA", '2\t"B', "3\tC", '4\tsaid "', "5\tA"], 3),
        (['1\t"A', '2\t"B" it is', "3\tC"], 2),
        (['1\t"two\nlines"', '2\t"B', "3\tC"], 4),
    ],
)
def test_no_row_of_predictions_is_swallowed(tmp_path, lines, line):
    (tmp_path / "p.tsv").write_text("\n".join(["index\tprediction", *lines]))
    with refused(f"p.tsv, line {line}: .*quote"):
        read_predictions(tmp_path / "p.tsv")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "p.tsv").write_text("index\tprediction\tprediction\n1\tA\tB\n")
    with refused("no column prediction, or two"):
        read_predictions(tmp_path / "p.tsv")


def test_a_failed_call_is_no_refusal():
    """VLMEvalKit looks for the failure first, and then at the options' texts alone."""
    said = "Failed to obtain answer via API: B. Cannot determine the answer: dog"
    options = {"A": "c" * 99, "B": "x" * 99, "C": "dog"}
    assert extract_letter(said, options) == "C"
    assert extract_letter(said.removeprefix("Failed to obtain answer via API: "), options) is None


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20).filter(
    lambda text: (
        not re.search(r"\n\d+\t", text)
    )  # a table in an answer, which looks like swallowed rows
)


@settings(max_examples=60)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_that_is_quoted_as_it_should_be_is_read(tmp_path, texts, encoding):
    with (tmp_path / "p.tsv").open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([["index", "prediction"], *enumerate(texts)])
    assert read_predictions(tmp_path / "p.tsv") == list(enumerate(texts))
