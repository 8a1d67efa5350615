"""POPE: the official parser's habits one by one, and the figures against scikit-learn's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from tests.small import refused
from vlm_lite.lessons.pope import parse_answer, pope_scores, read_pope

HABITS = {  # what the official and the strict parser read
    ("yes", "yes"): ["Yes", "yes, there is.", "Yes. There is no dog."],  # the first sentence only
    ("no", "no"): ["No", "No, there is none.", "no."],
    # "not" and "no" anywhere in the first sentence; commas vanish
    ("no", None): ["There is not a chair", "I, no", "n,o"],
    ("no", "yes"): ["Yes, there is no doubt."],
    # only three spellings, and cut at spaces, not at other white space
    ("yes", "no"): ["NO", "no!", "No;", "'no'", "No\nThere is none", "no\tchair", ".No"],
    ("yes", None): "There is. No doubt.|Not at all|nothing|There isn't||I,no|yesterday|?!".split(
        "|"
    ),
}


@pytest.mark.parametrize("read", HABITS)
def test_each_habit_of_the_parsers(read):
    for answer in HABITS[read]:
        assert (parse_answer(answer), parse_answer(answer, "strict")) == read, answer


@pytest.mark.parametrize(
    "answers, labels, parser, expected",
    [
        (  # of three yes-labels two are hit, of three no-labels one is taken for yes
            ["Yes", "yes", "No", "No", "there is no one", "Yes"],
            ["yes"] * 3 + ["no"] * 3,
            "official",
            {
                **dict.fromkeys(("accuracy", "precision", "recall", "f1"), pytest.approx(2 / 3)),
                **{"yes_ratio": 0.5, "TP": 2, "FP": 1, "TN": 2, "FN": 1, "neither": 0, "count": 6},
            },
        ),
        (
            ["maybe", "maybe", "yes", "no"],  # neither is wrong for both labels
            ["yes", "no"] * 2,
            "strict",
            {
                "accuracy": 0.5,
                "neither": 2,
                "yes_ratio": 0.25,
                "precision": 1,
                "recall": 0.5,
                "TN": 1,
            },
        ),
    ],
)
def test_the_figures_by_hand(answers, labels, parser, expected):
    scores = pope_scores(answers, labels, parser)
    assert {key: scores[key] for key in expected} == expected and scores["parser"] == parser


said, label = st.sampled_from(["Yes", "No", "maybe", "It is not."]), st.sampled_from(["yes", "no"])


@given(
    st.lists(st.tuples(said, label), min_size=1, max_size=30),
    st.sampled_from(["official", "strict"]),
    st.randoms(use_true_random=False),
)
def test_the_figures_are_scikit_learn_s_in_any_order(pairs, parser, random):
    scores = pope_scores(*map(list, zip(*pairs, strict=True)), parser)
    parsed = [str(parse_answer(text, parser)) for text, _ in pairs]
    labels = [label for _, label in pairs]
    *theirs, _ = precision_recall_fscore_support(
        labels, parsed, labels=["yes"], average="macro", zero_division=0
    )
    theirs = [accuracy_score(labels, parsed), *theirs, parsed.count("yes") / len(parsed)]
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    assert [scores[name] for name in names] == pytest.approx(theirs)
    random.shuffle(pairs)
    assert pope_scores(*map(list, zip(*pairs, strict=True)), parser) == scores


@pytest.fixture
def read(tmp_path):
    def read(labels, answers, **options):
        for name, records in (("labels.json", labels), ("answers.jsonl", answers)):
            (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
        return read_pope(tmp_path / "labels.json", tmp_path / "answers.jsonl", **options)

    return read


LABELS = [
    {"question_id": i, "image": "a.jpg", "text": f"Is there a {thing}?", "label": label}
    for i, thing, label in ((1, "cat", "yes"), (2, "dog", "no"), (3, "cup", "no"))
]
GIVEN = {"question_id": 1, "text": "a"}


def test_files_are_paired_by_question_id(read):
    answers = [{"question_id": 2, "text": "B"}, {"question_id": 1, "answer": "A"}]
    said, labels, counts = read(LABELS[:2], answers)
    assert (said, labels, counts["scored"]) == (["A", "B"], ["yes", "no"], 2)


def test_the_question_of_a_label_line_is_not_taken_for_an_answer(read):
    assert read(LABELS, [{**row, "answer": "Yes"} for row in LABELS])[0] == ["Yes"] * 3
    with refused(r"answers.jsonl: .*line 1"):
        read(LABELS, LABELS)


@pytest.mark.parametrize(
    "labels, answers, message",
    [
        ([{**LABELS[0], "label": "maybe"}], [], "labels.json: line 1.label is 'maybe'"),
        ([*LABELS, LABELS[0]], [], "labels.json: line 4.question_id is 1"),
        (LABELS, [{**GIVEN, "answer": "b"}], "answers.jsonl: line 1 .*`text` .*`answer`"),
        (LABELS, [{**GIVEN, "text": 3}], "answers.jsonl: `line 1.text` is 3"),
        (LABELS, [{**GIVEN, "question_id": "1"}], "unknown, for example '1'"),
        (LABELS, [3], "answers.jsonl: line 1 is 3"),
        (LABELS, [GIVEN], r"2 question_id\(s\) missing, for example 2"),
    ],
)
def test_bad_input_is_named(read, labels, answers, message):
    with refused(message):
        read(labels, answers)


@pytest.mark.parametrize("arguments", [(["yes"], []), (["yes"], ["Yes"]), ([], [])])
def test_answers_without_labels_and_labels_of_another_kind_are_refused(arguments):
    with refused(f"{len(arguments[1])} labels"):
        pope_scores(*arguments)


@pytest.mark.parametrize("key", ["prompt", "question", "text"])
@pytest.mark.parametrize("partial", [False, True])
def test_answers_to_other_questions_are_refused_and_partial_is_not_offered(read, key, partial):
    """The splits of POPE share their ids: answers of another split would be scored against these labels."""
    said = [
        {"question_id": i, key: f"Is there a {thing}?\nOne word.", "answer": "no", "label": "no"}
        for i, thing in ((1, "cat"), (3, "fork"))
    ]
    with refused("answers.jsonl: line 2 .*fork.*Is there a cup") as caught:
        read(LABELS, said, partial=partial)
    assert "partial" not in str(caught.value)


def test_partial_is_offered_only_where_it_shows_which_questions_were_answered(read):
    """They may stand in a prompt."""
    said = {"question_id": 3, "text": "No"}
    with refused("2 question_id.s. missing") as caught:
        read(LABELS, [said])
    assert "--partial" not in str(caught.value)
    said["prompt"] = "<image>\nIs there a  CUP? One word."
    with refused("--partial"):
        read(LABELS, [said])
    assert read(LABELS, [said], partial=True)[:2] == (["No"], ["no"])
