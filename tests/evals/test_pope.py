"""POPE: the official parser's habits one by one, and the figures against scikit-learn's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from vlm_lite.evals.pope import parse_answer, pope_scores, read_pope
from vlm_lite.files import UserError


@pytest.mark.parametrize(
    "answer, official, strict",
    [
        ("Yes", "yes", "yes"),
        ("yes, there is.", "yes", "yes"),
        ("No", "no", "no"),
        ("No, there is none.", "no", "no"),
        ("no.", "no", "no"),
        ("There is not a chair", "no", None),  # "not" and "no" anywhere in the first sentence
        ("Yes, there is no doubt.", "no", "yes"),
        ("Yes. There is no dog.", "yes", "yes"),  # the first sentence only
        ("There is. No doubt.", "yes", None),
        ("NO", "yes", "no"),
        ("Not at all", "yes", None),  # only these three spellings
        ("no!", "yes", "no"),
        ("No;", "yes", "no"),
        ("'no'", "yes", "no"),
        ("nothing", "yes", None),
        ("No\nThere is none", "yes", "no"),
        ("no\tchair", "yes", "no"),  # cut at spaces, not at other white space
        ("There isn't", "yes", None),
        ("There is none", "yes", None),
        ("", "yes", None),
        (".No", "yes", "no"),
        ("I,no", "yes", None),
        ("I, no", "no", None),
        ("n,o", "no", None),  # commas vanish
        ("yesterday", "yes", None),
        ("Nope", "yes", None),
        ("?!", "yes", None),
    ],
)
def test_each_habit_of_the_parsers(answer, official, strict):
    assert parse_answer(answer) == official
    assert parse_answer(answer, "strict") == strict


def test_the_figures_by_hand():
    """Of three yes-labels two are hit, of three no-labels one is taken for yes."""
    answers = ["Yes", "yes", "No", "No", "there is no one", "Yes"]
    scores = pope_scores(answers, ["yes", "yes", "yes", "no", "no", "no"])
    assert scores == {
        "accuracy": pytest.approx(4 / 6),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "yes_ratio": 0.5,
        "TP": 2,
        "FP": 1,
        "TN": 2,
        "FN": 1,
        "neither": 0,
        "count": 6,
        "parser": "official",
    }


def test_an_answer_that_is_neither_is_wrong_for_both_labels():
    scores = pope_scores(["maybe", "maybe", "yes", "no"], ["yes", "no", "yes", "no"], "strict")
    assert (scores["accuracy"], scores["neither"], scores["yes_ratio"]) == (0.5, 2, 0.25)
    assert (scores["precision"], scores["recall"], scores["FN"], scores["TN"]) == (1, 0.5, 1, 1)


def test_yes_to_everything_has_a_recall_and_a_yes_ratio_of_one():
    scores = pope_scores(["Yes, it is."] * 4, ["yes", "no"] * 2)
    assert (scores["accuracy"], scores["recall"], scores["yes_ratio"]) == (0.5, 1, 1)
    assert scores["f1"] == pytest.approx(2 / 3)


def test_no_to_everything_divides_by_nothing():
    scores = pope_scores(["No"] * 4, ["yes", "no"] * 2)
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (
        0.5,
        0,
        0,
        0,
    )


pairs = st.lists(
    st.tuples(
        st.sampled_from(["Yes", "No", "maybe", "It is not."]), st.sampled_from(["yes", "no"])
    ),
    min_size=1,
    max_size=30,
)


@given(pairs, st.sampled_from(["official", "strict"]), st.randoms(use_true_random=False))
def test_the_figures_are_scikit_learn_s_in_any_order(pairs, parser, random):
    said, labels = map(list, zip(*pairs, strict=True))
    scores = pope_scores(said, labels, parser)
    is_yes, parsed = np.array(labels) == "yes", [parse_answer(text, parser) for text in said]
    precision, recall, f1, _ = precision_recall_fscore_support(
        is_yes, np.array([p == "yes" for p in parsed]), average="binary", zero_division=0
    )
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(
        (precision, recall, f1)
    )
    assert scores["accuracy"] == pytest.approx(
        np.mean([p == label for p, label in zip(parsed, labels, strict=True)])
    )
    assert all(
        0 <= scores[key] <= 1 for key in ("accuracy", "precision", "recall", "f1", "yes_ratio")
    )
    random.shuffle(pairs)
    said, labels = map(list, zip(*pairs, strict=True))
    assert pope_scores(said, labels, parser) == scores


@given(st.lists(st.sampled_from(["yes", "no"]), min_size=1))
def test_a_perfect_copy_scores_everything(labels):
    scores = pope_scores(labels, labels)
    assert scores["accuracy"] == 1
    assert scores["f1"] == float("yes" in labels)


@pytest.fixture
def files(tmp_path):
    def write(labels, answers):
        for name, records in (("labels.json", labels), ("answers.jsonl", answers)):
            (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
        return tmp_path / "labels.json", tmp_path / "answers.jsonl"

    return write


LABELS = [
    {"question_id": i, "image": "a.jpg", "text": "Is there a cat?", "label": label}
    for i, label in ((1, "yes"), (2, "no"))
]


def test_files_are_paired_by_question_id(files):
    answers = [{"question_id": 2, "text": "B"}, {"question_id": 1, "answer": "A"}]
    said, labels, counts = read_pope(*files(LABELS, answers))
    assert (said, labels, counts["scored"]) == (["A", "B"], ["yes", "no"], 2)


def test_the_question_of_a_label_line_is_not_taken_for_an_answer(files):
    said, _, _ = read_pope(*files(LABELS, [{**row, "answer": "Yes"} for row in LABELS]))
    assert said == ["Yes", "Yes"]
    with pytest.raises(
        UserError, match=r"answers.jsonl: `line 1.text` is missing|`line 1.answer` is missing"
    ):
        read_pope(*files(LABELS, LABELS))


@pytest.mark.parametrize(
    "labels, answers, message",
    [
        (
            [{**LABELS[0], "label": "maybe"}],
            LABELS,
            "labels.json: line 1.label is 'maybe'; expected yes or no",
        ),
        ([*LABELS, LABELS[0]], LABELS, "line 3.question_id is 1, which a line before it has"),
        ([{"question_id": 1, "answers": []}], LABELS, "`line 1.label` is missing"),
        (LABELS, [{"question_id": 1, "text": "a", "answer": "b"}], "line 1 has both"),
        (LABELS, [{"question_id": 1, "text": 3}], "`line 1.text` is 3; expected text"),
        (
            LABELS,
            [{"question": "Is there a cat?", "answer": "yes"}],
            "line 1 has no `question_id`. The authors' script",
        ),
        (LABELS, [{"question_id": "1", "text": "a"}], "unknown, for example '1'"),
        (LABELS, [3], "line 1 is 3; expected an object"),
        (LABELS, [{"question_id": 1, "text": "a"}], r"1 question_id\(s\) missing, for example 2"),
    ],
)
def test_bad_input_is_named(files, labels, answers, message):
    with pytest.raises(UserError, match=message):
        read_pope(*files(labels, answers))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: parse_answer("yes", "loose"), "'loose'; expected one of official, strict"),
        (lambda: parse_answer(3), "the answer is 3; expected text"),
        (lambda: pope_scores(["yes"], []), "1 answers for 0 labels"),
        (lambda: pope_scores(["yes"], ["Yes"]), "a label is 'Yes'; expected yes or no"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


ASKED = [
    {"question_id": i, "image": "a.jpg", "text": f"Is there a {thing}?", "label": label}
    for i, thing, label in ((1, "cat", "yes"), (2, "dog", "no"), (3, "cup", "no"))
]


@pytest.mark.parametrize("key", ["prompt", "question", "text"])
@pytest.mark.parametrize("partial", [False, True])
def test_answers_to_other_questions_are_refused_and_partial_is_not_offered(files, key, partial):
    """The splits of POPE share their ids: answers of another split would be scored against these labels."""
    said = [
        {
            "question_id": i,
            key: f"Is there a {thing}?\nUse one word.",
            "answer": "no",
            "label": "no",
        }
        for i, thing in ((1, "cat"), (3, "fork"))
    ]
    with pytest.raises(UserError) as refused:
        read_pope(*files(ASKED, said), partial=partial)
    for words in ("answers.jsonl", "line 2", "'Is there a fork?", "'Is there a cup?'", "split"):
        assert words in str(refused.value)
    assert "partial" not in str(refused.value)


def test_answers_to_the_same_questions_may_be_a_part_of_them_with_a_prompt_around(files):
    said = [{"question_id": 3, "prompt": "<image>\nIs there a  CUP? One word.", "text": "No"}]
    pair = files(ASKED, said)
    with pytest.raises(UserError, match="--partial"):
        read_pope(*pair)
    assert read_pope(*pair, partial=True)[:2] == (["No"], ["no"])


def test_partial_is_not_offered_where_nothing_shows_which_questions_were_answered(files):
    with pytest.raises(
        UserError, match="2 question_id.s. missing.*The splits of POPE share"
    ) as error:
        read_pope(*files(ASKED, [{"question_id": 3, "text": "No"}]))
    assert "--partial" not in str(error.value)
