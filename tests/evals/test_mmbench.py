"""MMBench: the reading of letters against a second implementation, circular and plain by hand, and bad files."""

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.evals.official import HEADER, M, cells, picture, tabs
from vlm_lite.data.readers import read_mmbench as read_table
from vlm_lite.evals import mmbench
from vlm_lite.evals.mmbench import (
    extract_letter,
    match_predictions,
    mmbench_scores,
    read_mmbench,
    read_predictions,
    sample_groups,
)
from vlm_lite.files import UserError

OPTIONS = {"A": "cat", "B": "dog", "C": "a red bird", "D": "catfish"}


UPSTREAM = json.loads(Path(__file__).with_name("mmbench_letters.json").read_text("utf-8"))


@pytest.mark.parametrize("letters", UPSTREAM["options"])
def test_letters_are_read_as_vlmevalkit_reads_them_at_the_commit_named(letters):
    """The verdicts are what `can_infer` returned there; its False and its Z, no answer, are null."""
    assert UPSTREAM["commit"] in Path(mmbench.__file__).read_text()
    options, verdicts = UPSTREAM["options"][letters], UPSTREAM["verdicts"][letters]
    assert {text: extract_letter(text, options) for text in verdicts} == verdicts


def second_opinion(prediction, options):
    words = [word for word in re.split(r"[\s.()\[\],:;!*#{}]+", prediction) if word]
    letters = {word for word in words if word in options}
    if len(letters) == 1:
        (letter,) = letters
        if letter not in words[:-4]:
            return letter
    if not letters and "Z" in words:
        return None
    rest = [prediction[m.end() :] for m in re.finditer(r"answer\s+is\s+", prediction, flags=re.I)]
    firsts = [text.lstrip("*")[:1].upper() for text in rest]
    stated = next((letter for letter in firsts if letter and letter in "ABCD"), None)
    if stated in options:
        return stated
    named = {k for k, text in options.items() if re.search(re.escape(text), prediction, flags=re.I)}
    short = len(prediction) <= 2 * len("".join(options.values()))
    return named.pop() if short and len(named) == 1 else None


PIECES = "A|B|(C)|D.|Z|dog|Cat|answer is|a|red bird|,|E|**C".split("|")


@given(st.lists(st.sampled_from(PIECES), max_size=9), st.sampled_from(["ABCD", "AB", "BD"]))
def test_letters_are_read_as_a_second_implementation_reads_them(words, letters):
    options = {letter: OPTIONS[letter] for letter in letters}
    assert extract_letter(" ".join(words), options) == second_opinion(" ".join(words), options)


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


three, letter = st.integers(0, 3), st.sampled_from("ABCD")
answered = st.tuples(three, three, letter, st.sampled_from("ABCDE"))
said_rows = st.lists(answered, min_size=1, max_size=16, unique_by=lambda r: r[:2])


@given(said_rows, st.randoms(use_true_random=False))
def test_bounds_order_and_a_perfect_copy(cells, random):
    rows = [row(k * M + i, answer) for i, k, answer, _ in cells]
    said = {k * M + i: letter for i, k, _, letter in cells}
    scores = mmbench_scores(rows, said)
    right = {r["index"]: said[r["index"]] == r["answer"] for r in rows}
    groups = {i: [right[k * M + i] for k in range(4) if k * M + i in right] for i in range(4)}
    groups = {i: hits for i, hits in groups.items() if hits}
    assert scores["circular"] == pytest.approx(sum(map(all, groups.values())) / len(groups))
    assert scores["plain"] == pytest.approx(sum(hits[0] for hits in groups.values()) / len(groups))
    assert 0 <= scores["circular"] <= scores["plain"] <= 1
    random.shuffle(rows)
    assert mmbench_scores(rows, said) == scores
    perfect = mmbench_scores(rows, {r["index"]: r["answer"] for r in rows})
    assert (perfect["circular"], perfect["plain"], perfect["unanswered"]) == (1, 1, 0)


def test_a_sample_takes_whole_questions_and_the_same_ones_in_any_order():
    rows = [row(k * M + i) for i in range(20) for k in range(1 + i % 4)]
    sample = sample_groups(rows, 7, seed=3)
    chosen = {r["index"] % M for r in sample}
    assert len(chosen) == 7 and sample == [r for r in rows if r["index"] % M in chosen]
    assert sample_groups(rows[::-1], 7, seed=3) == sample[::-1]
    assert sample_groups(rows, 7, seed=4) != sample
    for count in (0, 21):
        with pytest.raises(UserError, match=f"{count} .* 1 to 20"):
            sample_groups(rows, count)


def test_a_part_keeps_the_questions_that_are_answered_in_every_rotation():
    said = [(i, text) for i, text in SAID.items() if i not in (M + 1, 4)]
    named = {"file": "p.tsv", "against": "t.tsv"}
    with pytest.raises(UserError, match=r"2 index\(s\) missing, for example 1000001"):
        match_predictions(ROWS, said, **named)
    kept, _, counts = match_predictions(ROWS, said, **named, partial=True)
    assert {r["index"] % M for r in kept} == {2, 3}
    assert (counts["missing"], counts["scored"]) == (2, 4)
    with pytest.raises(UserError, match="1000001"):
        match_predictions(ROWS[:4], said, **named, partial=True)


def test_predictions_for_questions_outside_the_sample_are_not_unknown():
    named = {"file": "p.tsv", "against": "t.tsv", "known": list(SAID)}
    counts = match_predictions(ROWS[:4], list(SAID.items()), **named)[2]
    assert counts == {"scored": 4, "missing": 0, "unknown": 0}
    with pytest.raises(UserError, match=r"1 index\(s\) unknown, for example 77"):
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
    with pytest.raises(UserError, match="p.tsv, line 4.*'Why\\?'.*index 2"):
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
        ([cells(answer="C")], "line 2 .*answer is 'C'.*{'A': 'cat', 'B': 'dog'}"),
        ([cells(answer="")], "line 2 .*answer is ''"),
        ([cells(A="", B="")], "line 2 .*options are {}"),
        ([cells(), cells()[:5]], "line 4: .*5 cells for 12 columns"),
        ([], "no rows"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tsv, rows, message):
    with pytest.raises(UserError, match=f"t.tsv.*{message}"):
        read_table(tsv(rows))


@pytest.mark.parametrize("content", [b"", b'{"annotations": []}', b"\xff", b"PK\x03\x04\xff"])
def test_a_file_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match="t.tsv, line 1: "):
        read_mmbench(tmp_path / "t.tsv")


def lone(rows, name, quoted):
    """The text of a table in which the row `quoted` has one quote, at the start of the column `name`."""
    lines = ["\t".join(HEADER)]
    for index in rows:
        row = dict(zip(HEADER, map(str, cells(index)), strict=True)) | {"question": "what is it?"}
        row[name] = '"' * (index == quoted) + row[name]
        lines.append("\t".join(row[column] for column in HEADER))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["question", "A", "B", HEADER[-1]])
@pytest.mark.parametrize("quoted", [1, 2, 4])
def test_the_line_where_a_lone_quote_opens_is_named(tmp_path, name, quoted):
    (tmp_path / "t.tsv").write_text(lone((1, 2, 3, 4), name, quoted))
    with pytest.raises(UserError, match=f"t.tsv, line {quoted + 1}: .*quote"):
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
    with pytest.raises(UserError, match=f"p.tsv, line {line}: .*quote"):
        read_predictions(tmp_path / "p.tsv")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20).filter(
    lambda text: (
        not re.search(r"\n\d+\t", text)
    )  # a table in an answer, which looks like swallowed rows
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_that_is_quoted_as_it_should_be_is_read(tmp_path, texts, encoding):
    with (tmp_path / "p.tsv").open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([["index", "prediction"], *enumerate(texts)])
    assert read_predictions(tmp_path / "p.tsv") == list(enumerate(texts))
