"""MMBench: the reading of letters against a second implementation, circular and plain by hand, and bad files."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

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


@pytest.mark.parametrize(
    "prediction, letter",
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C)", "C"),
        ("D: catfish", "D"),
        ("[B]", "B"),
        ("**C**", "C"),
        ("The answer is A.", "A"),
        ("{D}", "D"),
        ("#A#", "A"),
        ("B\n", "B"),
        ("A!", "A"),
        ("a", None),
        ("E", None),
        ("", None),
        ("A or B", None),
        ("A/B", None),
        ("A?", None),
        ("'A'", None),
        ("AB", None),
        ("A x y z", "A"),
        ("A w x y z", None),  # first met among the last four words
        ("A w x y z A", None),  # the first place counts
        (
            "A dog sits on the mat there",
            "B",
        ),  # A is too early for a letter; then "dog" is the only option named
        ("A dog", "A"),  # here it is not too early
        ("dog", "B"),
        ("It is a DOG", "B"),
        ("a red bird", "C"),
        ("doghouse", "B"),  # anywhere in the text, case apart
        ("cat", "A"),
        ("catfish", None),  # "catfish" holds "cat": two options are named
        ("cat and dog", None),
        ("dog" + " and so on" * 8, None),  # more than twice as long as all the options together
        ("Z", None),
        ("Z dog", None),  # a lone Z is no answer, whatever else is said
        ("Cannot determine the answer: B", None),
        ("I can't process this file. B", None),
        ("Failed to obtain answer via API B", None),
        ("Failed to obtain answer via API: dog", "B"),
    ],
)
def test_each_habit_of_the_reading_of_letters(prediction, letter):
    assert extract_letter(prediction, OPTIONS) == letter


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


@given(
    st.lists(
        st.sampled_from(
            [
                "A",
                "B",
                "(C)",
                "D.",
                "Z",
                "dog",
                "Cat",
                "answer is",
                "a",
                "red bird",
                ",",
                "E",
                "**C",
            ]
        ),
        max_size=9,
    ),
    st.sampled_from(["ABCD", "AB", "BD"]),
)
def test_letters_are_read_as_a_second_implementation_reads_them(words, letters):
    options = {letter: OPTIONS[letter] for letter in letters}
    assert extract_letter(" ".join(words), options) == second_opinion(" ".join(words), options)


def row(index, answer="A", options=None, **fields):
    return {
        "index": index,
        "answer": answer,
        "options": options or OPTIONS,
        "split": "",
        "category": "",
        "l2-category": "",
        **fields,
    }


M = 1_000_000
ROWS = [
    row(1),
    row(M + 1, "B"),
    row(2 * M + 1, "C"),
    row(3 * M + 1, "D"),  # all four right
    row(2),
    row(M + 2, "B"),  # fewer rotations; the second wrong
    row(3, options={"A": "x", "B": "y"}),
    row(M + 3, "B", {"A": "y", "B": "x"}),  # the first wrong
    row(4),
]  # one row, right
SAID = {
    1: "A",
    M + 1: "B.",
    2 * M + 1: "(C)",
    3 * M + 1: "D",
    2: "A",
    M + 2: "A",
    3: "what?",
    M + 3: "B",
    4: "cat",
}


def test_circular_and_plain_by_hand():
    scores = mmbench_scores(ROWS, SAID)
    assert (
        scores["circular"] == 2 / 4
        and scores["plain"] == 3 / 4
        and scores["rows"] == pytest.approx(7 / 9)
    )
    assert scores["chance_plain"] == pytest.approx((3 * 1 / 4 + 1 / 2) / 4)
    assert scores["chance_circular"] == pytest.approx((1 / 256 + 1 / 16 + 1 / 4 + 1 / 4) / 4)
    assert (scores["questions"], scores["row_count"], scores["unanswered"]) == (4, 9, 1)
    assert not [key for key in scores if key.startswith("per_")]


def test_guessing_at_four_options_earns_a_quarter_plain_and_four_in_a_thousand_circular():
    scores = mmbench_scores(ROWS[:4], SAID)
    assert (scores["chance_plain"], scores["chance_circular"]) == (0.25, 0.25**4)


def test_always_a_earns_nothing_circular():
    rows = [row(k * M + i, "ABCD"[k]) for k in range(4) for i in range(5)]
    scores = mmbench_scores(rows, {r["index"]: "A" for r in rows})
    assert (scores["plain"], scores["rows"], scores["circular"]) == (1, 0.25, 0)


def test_a_question_is_of_the_category_of_its_first_row():
    rows = [
        row(M + 1, "B", category="late"),
        row(1, category="early", split="dev", **{"l2-category": "x"}),
        row(2, category="early", split="dev", **{"l2-category": "y"}),
    ]
    scores = mmbench_scores(rows, {1: "A", M + 1: "A", 2: "A"})
    assert {name: (p["circular"], p["plain"]) for name, p in scores["per_category"].items()} == {
        "early": (0.5, 1)
    }
    assert {name: p["circular"] for name, p in scores["per_l2-category"].items()} == {
        "x": 0,
        "y": 1,
    }
    assert scores["per_split"]["dev"]["questions"] == 2


def test_a_question_without_its_first_row_still_counts():
    assert (
        mmbench_scores([row(M + 1), row(2 * M + 1)], {M + 1: "A", 2 * M + 1: "A"})["circular"] == 1
    )


said_rows = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 3), st.sampled_from("ABCD"), st.sampled_from("ABCDE")
    ),
    min_size=1,
    max_size=16,
    unique_by=lambda r: r[:2],
)


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
    assert len(chosen) == 7
    assert sorted(r["index"] for r in sample) == sorted(
        r["index"] for r in rows if r["index"] % M in chosen
    )
    again = sample_groups(rows[::-1], 7, seed=3)
    assert {r["index"] for r in again} == {r["index"] for r in sample}
    assert {r["index"] for r in sample_groups(rows, 7, seed=4)} != {r["index"] for r in sample}
    for count in (0, 21):
        with pytest.raises(UserError, match=f"{count} groups were asked for; the file has 20"):
            sample_groups(rows, count)


def test_a_part_keeps_the_questions_that_are_answered_in_every_rotation():
    said = [(i, text) for i, text in SAID.items() if i not in (M + 1, 4)]
    named = {"file": "p.tsv", "against": "t.tsv"}
    with pytest.raises(UserError, match=r"2 index\(s\) missing, for example 1000001"):
        match_predictions(ROWS, said, **named)
    kept, _, counts = match_predictions(ROWS, said, **named, partial=True)
    assert (
        {r["index"] % M for r in kept} == {2, 3}
        and counts["missing"] == 2
        and counts["scored"] == 4
    )
    with pytest.raises(UserError, match="answers no question of t.tsv in all its rotations"):
        match_predictions(ROWS[:4], said, **named, partial=True)


def test_predictions_for_questions_outside_the_sample_are_not_unknown():
    rows = ROWS[:4]
    named = {"file": "p.tsv", "against": "t.tsv", "known": list(SAID)}
    assert match_predictions(rows, list(SAID.items()), **named)[2] == {
        "scored": 4,
        "missing": 0,
        "unknown": 0,
    }
    with pytest.raises(UserError, match=r"1 index\(s\) unknown, for example 77"):
        match_predictions(rows, [*SAID.items(), (77, "A")], **named)


def test_predictions_that_bring_another_question_are_of_another_file(tsv, tmp_path):
    """DEV_EN and DEV_CN, say, share their indices: what is told by the index alone would be scored."""
    rows = read_mmbench(tsv([cells(1), cells(2)]))
    file = tmp_path / "p.tsv"
    file.write_text(
        'index\tquestion\tprediction\n1\t"Hint.\nWHAT is it,  a ""cat""? A B"\tA\n2\tWhy?\tB\n'
    )
    with pytest.raises(UserError, match="p.tsv, line 4.*'Why\\?'.*index 2"):
        read_predictions(file, rows)
    assert read_predictions(file, rows[:1]) == read_predictions(file) == [(1, "A"), (2, "B")]


# ---------------------------------------------------------------- files


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


HEADER = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "l2-category",
    "split",
]


@pytest.fixture
def tsv(tmp_path):
    def write(rows, header=HEADER):
        with (tmp_path / "t.tsv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([header, *rows])
        return tmp_path / "t.tsv"

    return write


def cells(index=7, answer="A", image="", **more):
    values = {
        "index": index,
        "question": 'What is\nit, a "cat"?',
        "hint": "nan",
        "A": "cat",
        "B": "dog",
        "C": "None",
        "D": "",
        "answer": answer,
        "category": "animals",
        "image": image,
        "l2-category": "seeing",
        "split": "dev",
    }
    return list({**values, **more}.values())


def test_the_official_table_is_read(tsv):
    red = picture("red")
    assert len(red) > 64
    rows = read_mmbench(tsv([cells(M + 7, "B", "7"), cells(7, "A", red)]))
    assert rows[1] == {
        "index": 7,
        "question": 'What is\nit, a "cat"?',
        "hint": "nan",
        "answer": "A",
        "image": red,
        "options": {"A": "cat", "B": "dog"},
        "category": "animals",
        "l2-category": "seeing",
        "split": "dev",
    }
    assert (rows[0]["index"], rows[0]["image"]) == (
        M + 7,
        red,
    )  # a rotation names the row that has its picture


def test_a_picture_may_be_larger_than_the_csv_module_s_limit(tsv):
    large = picture("red") + " "
    buffer = io.BytesIO()
    Image.frombytes("RGB", (256, 256), bytes(range(256)) * 768).save(buffer, "BMP")
    large = base64.b64encode(buffer.getvalue()).decode()
    assert len(large) > 131_072
    assert read_mmbench(tsv([cells(image=large)]))[0]["image"] == large


def test_predictions_need_two_columns_and_may_stand_in_the_benchmark_s_own_table(tsv):
    assert read_predictions(tsv([[3, "A"], [1, "the\ndog"]], ["index", "prediction"])) == [
        (3, "A"),
        (1, "the\ndog"),
    ]
    file = tsv([[*cells(image="broken, and not looked at"), "B"]], [*HEADER, "prediction"])
    assert read_predictions(file) == [(7, "B")]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [cells(image="%%%" * 30)],
            r"line 3 \(index 7\): image is not a picture in base64",
        ),  # the question has two lines
        ([cells(image=picture("red")[:-9])], "image is not a picture in base64"),
        (
            [cells(image=base64.b64encode(b"not a picture" * 9).decode())],
            "image is not a picture in base64",
        ),
        ([cells(image="8")], "image is 8, the index of a row that has no picture"),
        ([cells(), cells()], "line 5: index is 7, which line 3 has"),
        ([cells(index="seven")], "line 3: index is 'seven'; expected a whole number"),
        ([cells(index="7.0")], "index is '7.0'"),
        ([cells(answer="C")], "answer is 'C'; expected one of A, B"),
        ([cells(answer="")], "answers of the test split are not published"),
        ([cells(A="", B="")], "it has the options {}; expected two or more"),
        ([cells()[:5]], "line 3: 5 cells for 12 columns. The file may be cut short"),
        ([], "has no rows below its header"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tsv, rows, message):
    with pytest.raises(UserError, match=f"t.tsv.*{message}"):
        read_mmbench(tsv(rows))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "line 1: no column index, question, answer"),
        (b'{"annotations": []}', "line 1: no column"),
        (b"\xff", "cannot be read as a table of UTF-8 text"),
        (b"PK\x03\x04\xff", "a spreadsheet is to be saved as TSV"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match=f"t.tsv.*{message}"):
        read_mmbench(tmp_path / "t.tsv")


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="no questions to score"):
        mmbench_scores([], {})


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
    with pytest.raises(UserError, match=f"t.tsv, line {quoted + 1}: .*quote.*opens") as caught:
        read_mmbench(tmp_path / "t.tsv")
    assert "cut short" not in str(caught.value)


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
    with pytest.raises(UserError, match=f"p.tsv, line {line}: .*quote.*opens"):
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
