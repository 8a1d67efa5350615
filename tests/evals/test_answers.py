"""Answers on disk: every id once, no other, in any order; and files that are not what they should be."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import refused
from vlm_lite.data.records import read_lines, read_vqa_rows
from vlm_lite.evals.answers import match, read_results
from vlm_lite.files import UserError

NAMED = {"file": "r.json", "against": "q.json", "name": "question_id"}
TEN = [{"answer": str(k)} for k in range(10)]


@given(st.lists(st.integers(0, 50), min_size=1, unique=True), st.randoms(use_true_random=False))
def test_any_order_will_do(ids, random):
    given_order = [(i, f"answer {i}") for i in ids]
    random.shuffle(given_order)
    found, counts = match(ids, given_order, **NAMED)
    assert list(found.items()) == [(i, f"answer {i}") for i in ids]
    assert counts == {"scored": len(ids), "missing": 0, "unknown": 0}


def test_missing_duplicate_and_unknown_ids_are_counted_with_an_example_each():
    pairs = [(1, "a"), (2, "b"), (2, "c"), (8, "d"), (9, "e")]
    with refused("3 .*example 3; 1 .*example 2; 2 .*example 8.*each of 5"):
        match([1, 2, 3, 4, 5], pairs, **NAMED)


@pytest.mark.parametrize("partial", [False, True])
def test_ids_that_are_text_in_one_file_and_numbers_in_the_other_are_told_so(partial):
    """Also where some are alike: the rest would be left out."""
    for pairs in ([("1", "a"), ("2", "b")], [(1, "a"), ("2", "b")]):
        with refused("example 2; .* example .*text in one file and numbers in the other"):
            match([1, 2] if pairs[0][0] == 1 else [2, 1], pairs, **NAMED, partial=partial)


def test_a_part_is_scored_only_when_told_and_is_counted():
    pairs = [(9, "e"), (2, "b")]
    with refused("--partial"):
        match([1, 2], pairs, **NAMED)
    counts = {"scored": 1, "missing": 1, "unknown": 1}
    assert match([1, 2], pairs, **NAMED, partial=True) == ({2: "b"}, counts)
    for never in ([(2, "b"), (2, "b")], [(7, "b")], []):
        with pytest.raises(UserError) as caught:
            match([1, 2], never, **NAMED, partial=True)
        assert "--partial" not in str(caught.value)


@pytest.mark.parametrize(
    "content, places",
    [
        ('\ufeff{"a": 1}\n\n{"a": 2}\n', ["line 1", "line 3"]),
        ('[{"a": 1}, {"a": 2}]', ["[0]", "[1]"]),
    ],
)
def test_json_lines_may_be_a_list_have_empty_lines_and_a_byte_order_mark(tmp_path, content, places):
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    assert read_lines(tmp_path / "a.jsonl") == list(zip(places, [{"a": 1}, {"a": 2}], strict=True))


@pytest.mark.parametrize(
    "content, field",
    [
        (b"", "is empty"),
        (b'{"question_id": 3, "answer": "a"}\n{"a": ', "line 2"),
        (b"[" * 100_000, "JSON"),
        (None, "does not exist"),
        ({"annotations": []}, r"`line 1.question_id` .*'annotations'"),
        ([{"question_id": [3], "answer": "a"}], r"`\[0\].question_id` is \[3\]"),
        ([{"question_id": 3, "answer": None}], r"`\[0\].answer` is None"),
        ([3], r"\[0\] is 3"),
    ],
)
def test_a_bad_result_file_is_named_with_its_entry(tmp_path, content, field):
    file = tmp_path / "r.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with refused(f"r.json.*{field}"):
        read_results(file, "question_id", "answer")


def write(folder, name, *rows):
    """JSON, or JSON lines of several rows."""
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    return folder / name


def read(folder, asked, notes, **options):
    files = write(folder, "q.json", asked), write(folder, "a.json", notes)
    return read_vqa_rows(*files, **{"complete": False, **options})[0]


IDS = st.integers(0, 2**63 - 1) | st.text(st.characters(codec="utf-8"), min_size=1).filter(
    str.strip
)


@settings(max_examples=40)
@given(ids=st.lists(IDS, min_size=1, max_size=5, unique=True), image=st.none() | IDS)
def test_ids_are_what_the_file_says_and_only_those_that_are_used_are_required(tmp_path, ids, image):
    """Texts as well, as TextVQA has them."""
    about = {} if image is None else {"image_id": image}
    asked = [{"question_id": i, "question": "?", **about} for i in ids]
    notes = [{"question_id": i, "answers": TEN, **about} for i in ids[::-1]]
    rows = read(tmp_path, {"questions": asked}, {"annotations": notes})
    assert rows["question_id"] == ids and rows["image_id"] == [image] * len(ids)
    assert rows["question_type"] == rows["answer_type"] == rows["answer"] == [None] * len(ids)
    results = write(tmp_path, "r.json", [{"question_id": i, "answer": "a"} for i in ids])
    assert read_results(results, "question_id", "answer") == [(i, "a") for i in ids]


@pytest.mark.parametrize("image", [-1, 1.5, "", [1, 2], {"a": 1}, True, 2**70, float("nan")])
def test_an_image_id_of_any_type_is_no_obstacle_where_images_are_not_read(tmp_path, image):
    asked = [{"question_id": 1.0, "question": "?", "image_id": image}]
    notes = [{"question_id": 1, "answers": TEN, "image_id": image}]
    rows = read(tmp_path, {"questions": asked}, {"annotations": notes})
    assert [*map(repr, rows["question_id"])] == ["1"]  # pandas writes 1.0
    with refused("image_id is .x., but .*about image"):
        read(tmp_path, asked, [{**notes[0], "image_id": "x"}])


@pytest.mark.parametrize("number", [0.5, -1.0, 1e30, float("inf"), float("nan")])
def test_a_fraction_is_no_id(tmp_path, number):
    with refused(r"\[0\].question_id. is "):
        read(tmp_path, [{"question_id": number, "question": "?"}], [])


def test_another_image_than_the_question_s_is_refused_and_none_is_not(tmp_path):
    asked = {"questions": [{"question_id": 1, "image_id": "003a8ae2", "question": "?"}]}
    note = {"question_id": 1, "answers": TEN}
    assert read(tmp_path, asked, {"annotations": [note]})["image_id"] == ["003a8ae2"]
    with refused("image_id is 'other'.*'003a8ae2'"):
        read(tmp_path, asked, {"annotations": [{**note, "image_id": "other"}]})
