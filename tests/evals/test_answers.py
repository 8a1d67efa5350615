"""Answers on disk: every id once, no other, in any order; and files that are not what they should be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lite.data.records import read_caption_lists, read_vqa_rows
from vlm_lite.evals.answers import match, read_lines, read_results
from vlm_lite.files import UserError

NAMED = {"file": "r.json", "against": "q.json", "name": "question_id"}


@given(st.lists(st.integers(0, 50), min_size=1, unique=True), st.randoms(use_true_random=False))
def test_any_order_will_do(ids, random):
    given_order = [(i, f"answer {i}") for i in ids]
    random.shuffle(given_order)
    found, counts = match(ids, given_order, **NAMED)
    assert list(found.items()) == [(i, f"answer {i}") for i in ids]
    assert counts == {"scored": len(ids), "missing": 0, "unknown": 0}


def test_missing_duplicate_and_unknown_ids_are_counted_with_an_example_each():
    pairs = [(1, "a"), (2, "b"), (2, "c"), (8, "d"), (9, "e")]
    with pytest.raises(UserError) as caught:
        match([1, 2, 3, 4, 5], pairs, **NAMED)
    message = str(caught.value)
    assert message.startswith(
        "r.json does not answer q.json: 3 question_id(s) missing, for example 3; "
        "1 question_id(s) there more than once, for example 2; "
        "2 question_id(s) unknown, for example 8. Expected each of 5 question_ids once."
    )


def test_a_part_is_scored_only_when_told_and_is_counted():
    pairs = [(9, "e"), (2, "b")]
    with pytest.raises(UserError, match="--partial"):
        match([1, 2], pairs, **NAMED)
    assert match([1, 2], pairs, **NAMED, partial=True) == (
        {2: "b"},
        {"scored": 1, "missing": 1, "unknown": 1},
    )


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([(2, "b"), (2, "b")], "Keep one answer each"),
        ([(7, "b")], "None is shared: is it of another split"),
        ([], "None is shared"),
    ],
)
def test_what_no_option_mends(pairs, message):
    with pytest.raises(UserError, match=message):
        match([1, 2], pairs, **NAMED, partial=True)


def test_json_lines_may_be_a_list_have_empty_lines_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert read_lines(file) == [("line 1", {"a": 1}), ("line 3", {"a": 2})]
    file.write_text('[{"a": 1}, {"a": 2}]')
    assert read_lines(file) == [("[0]", {"a": 1}), ("[1]", {"a": 2})]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 10_000, "line 1: not valid JSON"),
        (b"\xff\xfe", "cannot be read as text"),
        (None, "does not exist"),
    ],
)
def test_a_bad_file_of_lines_is_named(tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"a.jsonl.*{message}"):
        read_lines(file)


@pytest.mark.parametrize(
    "value, message",
    [
        (
            {"annotations": []},
            "the top level is .* expected a list of objects with `question_id` and `answer`",
        ),
        (
            [{"image_id": 3, "caption": "a"}],
            r"`\[0\].question_id` is missing \(found: 'image_id', 'caption'\)",
        ),
        (
            [{"question_id": "3", "answer": "a"}],
            r"`\[0\].question_id` is '3'; expected a whole number",
        ),
        (
            [{"question_id": 3, "answer": "a"}, {"question_id": 4, "answer": ["a"]}],
            r"`\[1\].answer` is \['a'\]; .* text",
        ),
        ([{"question_id": 3, "answer": None}], r"`\[0\].answer` is None; expected text"),
        ([3], r"\[0\] is 3; expected an object"),
    ],
)
def test_a_bad_result_file_is_named_with_its_entry(tmp_path, value, message):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"r.json: {message}"):
        read_results(file, "question_id", "answer")


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return folder / name


def test_captions_are_read_without_pictures(tmp_path):
    file = write(
        tmp_path,
        "c.json",
        {
            "images": [{"id": 2, "file_name": "2.jpg"}, {"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "caption": text} for text in "ab"],
        },
    )
    assert read_caption_lists(file) == ({2: "2.jpg", 1: "1.jpg"}, {1: ["a", "b"]})


def test_vqa_is_read_without_pictures_and_where_told_without_types(tmp_path):
    answers = [{"answer": str(k)} for k in range(10)]
    questions = write(
        tmp_path, "q.json", {"questions": [{"question_id": 5, "image_id": 1, "question": "?"}]}
    )
    notes = {"annotations": [{"question_id": 5, "image_id": 1, "answers": answers}]}
    annotations = write(tmp_path, "a.json", notes)
    rows, subtype = read_vqa_rows(questions, annotations, complete=False)
    assert subtype is None
    assert rows == {
        "question_id": [5],
        "image_id": [1],
        "question": ["?"],
        "question_type": [None],
        "answer_type": [None],
        "answer": [None],
        "answers": [[str(k) for k in range(10)]],
    }
    with pytest.raises(UserError, match="`data_subtype` is missing"):
        read_vqa_rows(questions, annotations)
    write(tmp_path, "a.json", {"annotations": notes["annotations"] * 2})
    with pytest.raises(
        UserError, match=r"annotations\[1\].question_id is 5, which an annotation before it has"
    ):
        read_vqa_rows(questions, annotations, complete=False)
