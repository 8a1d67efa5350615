"""Answers on disk: every id once, no other, in any order; and files that are not what they should be."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
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
        (b"\xff", "cannot be read as text"),
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
            [{"question_id": [3], "answer": "a"}],
            r"`\[0\].question_id` is \[3\]; expected a whole number of 0 or more, or text",
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
    with pytest.raises(UserError, match=r"annotations\[1\].question_id is 5"):
        read_vqa_rows(questions, annotations, complete=False)


IDS = st.one_of(
    st.integers(0, 2**63 - 1), st.text(st.characters(codec="utf-8"), min_size=1)
).filter(lambda i: not isinstance(i, str) or bool(i.strip()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(ids=st.lists(IDS, min_size=1, max_size=5, unique=True), image=st.none() | IDS)
def test_ids_are_what_the_file_says_and_only_those_that_are_used_are_required(tmp_path, ids, image):
    about = {} if image is None else {"image_id": image}
    answers = [{"answer": str(k)} for k in range(10)]
    asked = [{"question_id": i, "question": "?", **about} for i in ids]
    notes = [{"question_id": i, "answers": answers, **about} for i in ids]
    rows, _ = read_vqa_rows(
        write(tmp_path, "q.json", {"questions": asked}),
        write(tmp_path, "a.json", {"annotations": notes[::-1]}),
        complete=False,
    )
    assert rows["question_id"] == ids and rows["image_id"] == [image] * len(ids)
    results = [{"question_id": i, "answer": "a"} for i in ids]
    assert read_results(write(tmp_path, "r.json", results), "question_id", "answer") == [
        (i, "a") for i in ids
    ]


def test_the_string_ids_of_textvqa_are_scored(tmp_path):
    answers = [{"answer": "nokia"}] * 10
    about = {"question_id": 34602, "image_id": "003a8ae2ef43b901"}
    questions = write(tmp_path, "q.json", {"questions": [{**about, "question": "which brand?"}]})
    for note in ({**about}, {"question_id": 34602}):
        annotations = write(tmp_path, "a.json", {"annotations": [{**note, "answers": answers}]})
        rows, _ = read_vqa_rows(questions, annotations, complete=False)
        assert rows["image_id"] == ["003a8ae2ef43b901"]
    other = {**about, "image_id": "other", "answers": answers}
    with pytest.raises(UserError, match="image_id is 'other'.*'003a8ae2ef43b901'"):
        read_vqa_rows(
            questions, write(tmp_path, "a.json", {"annotations": [other]}), complete=False
        )


def test_json_lines_of_results_questions_and_annotations_are_read(tmp_path, capsys):
    def lines(name, *rows):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
        return tmp_path / name

    ten = [{"answer": "a"}] * 10
    questions = lines("q.jsonl", *({"question_id": k, "question": "?"} for k in (1, 2)))
    annotations = lines("a.jsonl", *({"question_id": k, "answers": ten} for k in (1, 2)))
    assert read_vqa_rows(questions, annotations, complete=False)[0]["question_id"] == [1, 2]
    assert capsys.readouterr().err.count("holds JSON lines") == 2
    for count in (1, 2):
        rows = [{"question_id": k, "answer": "a"} for k in range(count)]
        results = read_results(lines("r.jsonl", *rows), "question_id", "answer")
        assert results == [(k, "a") for k in range(count)]


def test_a_file_s_own_long_keys_do_not_fill_the_screen(tmp_path):
    long = "k" * 100_000
    file = write(tmp_path, "r.json", [{long: 1}])
    with pytest.raises(UserError, match="r.json: `.0..question_id` is missing") as caught:
        read_results(file, "question_id", "answer")
    assert len(str(caught.value)) < 600 and str(caught.value).endswith("of another kind?")
    with pytest.raises(UserError) as caught:
        match([long], [(long + "x", "a")], file="r.json", against="q.json", name="question_id")
    assert len(str(caught.value)) < 600 and "r.json does not answer q.json" in str(caught.value)
