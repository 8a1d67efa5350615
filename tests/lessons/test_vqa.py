"""VQA accuracy: every habit of the official evaluator, with values worked out by hand."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.small import refused
from vlm_lite.lessons.vqa import normalize_answer, score_vqa, vqa_accuracy, vqa_scores

RULES = st.sampled_from(["official", "always"])


@given(
    st.lists(st.sampled_from(["red", "blue", "The cat", "2", "two"]), min_size=10, max_size=10),
    st.sampled_from(["red", "cat", "2", "two", "Red."]),
    RULES,
)
def test_accuracy_equals_leaving_each_person_out_in_turn(answers, prediction, normalize):
    said, others = prediction, answers
    if normalize == "always" or len(set(answers)) > 1:
        said, *others = map(normalize_answer, (prediction, *answers))
    left = [others[:i] + others[i + 1 :] for i in range(10)]
    mean = sum(min(1, nine.count(said) / 3) for nine in left) / 10
    assert vqa_accuracy(prediction, answers, normalize) == pytest.approx(mean)


@pytest.mark.parametrize(
    "prediction, answers, expected",
    [
        ("Yes", ["yes"] * 10, 0),
        ("Yes", ["yes"] * 9 + ["no"], 1),
        ("yes\n", ["yes"] * 10, 1),  # white space goes before the comparison, either way
        ("yes", [" yes"] + ["yes\t"] * 9, 1),
        ("two", ["2"] * 10, 0),
        ("two", ["2"] * 9 + ["3"], 1),
    ],
)
def test_official_rule_normalises_only_where_people_differ(prediction, answers, expected):
    assert vqa_accuracy(prediction, answers) == expected
    assert vqa_accuracy(prediction, answers, normalize="always") == 1


NORMALISED = {
    "The Cat": "cat",
    "an apple and a pear": "apple and pear",
    "a": "",
    "None": "0",
    "zero": "0",
    "ten": "10",
    "eleven": "eleven",
    "two dogs": "2 dogs",
    "red/blue": "red blue",  # a mark alone becomes a space,
    "red /blue": "red blue",  # beside a space it vanishes,
    "red/ blue/green": "red bluegreen",  # and so do all others of its kind,
    "red/ blue-green": "red blue green",  # but not those of another kind
    "1,000": "1000",
    "1,000/2": "10002",  # a comma in a number makes every mark vanish
    "a,b": "b",
    "1, 2": "1 2",
    "cat,dog": "cat dog",
    "3.": "3",
    ".5": ".5",
    "3.5": "3.5",
    "u.s.a.": "usa",
    "1..5": "1.5",
    "no. 5": "no 5",
    "." * 40: "." * 8,  # only the first 32 vanish
    "12:30": "12:30",  # colons and apostrophes stay
    "it's": "it's",
    "dogs'": "dogs'",
    "well-known!": "well known",
    "what?!": "what",
    "{x}": "x",
    "[x]": "x",
    "€5%": "€5%",
    "Dont": "don't",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "ow's'at": "'ow's'at",
    "somebody'd": "somebodyd",
    "Ive": "ive",
    "  two\nred\tcats ": "2 red cats",
    "": "",
    "?": "",
    **{same: same for same in "couldntve ows'at yalld've lets shes im wed".split()},
}


def test_normalisation_has_the_official_habits():
    assert {answer: normalize_answer(answer) for answer in NORMALISED} == NORMALISED


KINDS = ("question_type", "answer_type")
ROWS = [
    {"answers": ["yes"] * 10, "question_type": "is", "answer_type": "yes/no"},
    {"answers": ["2"] * 2 + ["3"] * 8, "question_type": "how many", "answer_type": "number"},
    {"answers": ["red"] * 5 + ["blue"] * 5, "question_type": "what", "answer_type": "other"},
    {"answers": ["red"] * 10, "question_type": "what", "answer_type": "other"},
]


@pytest.mark.parametrize("rows", [ROWS, Dataset.from_list(ROWS)], ids=["list", "Dataset"])
def test_score_vqa_averages_over_all_and_over_each_type(rows):
    said = ["Yes", "two", "Blue.", "green"]
    result = score_vqa(said, rows)
    assert result["overall"] == pytest.approx(40)
    assert result["per_question_type"] == pytest.approx({"how many": 60, "is": 0, "what": 50})
    assert result["per_answer_type"] == pytest.approx({"yes/no": 0, "number": 60, "other": 50})
    assert (result["count"], result["normalize"]) == (4, "official")
    assert score_vqa(said, rows, normalize="always")["overall"] == pytest.approx(65)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["yes"], ROWS), "1 predictions for 4 questions"),
        (([], []), "0 questions"),
        ((["yes"], [{"question": "?"}]), "'answers'"),
        ((["yes"], [{"answers": ["yes"] * 9}]), "10"),
        ((["yes"], [{"answers": ["yes"] * 9 + [1]}]), "10"),
        ((["a", "b", 3, "d"], ROWS), "prediction is 3"),
        ((["yes"], ROWS[:1], "sometimes"), "normalize is 'sometimes'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with refused(message):
        vqa_scores(*arguments)
