"""VQA accuracy: every habit of the official evaluator, with values worked out by hand."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from vlm_lite.evals.vqa import CONTRACTIONS, normalize_answer, score_vqa, vqa_accuracy, vqa_scores
from vlm_lite.files import UserError


@pytest.mark.parametrize(
    "matches, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
def test_n_matches_score_0_30_60_90_100(matches, expected):
    answers = ["red"] * matches + [f"other{i}" for i in range(10 - matches)]
    assert vqa_accuracy("red", answers) == expected


@given(
    st.lists(st.sampled_from(["red", "blue", "The cat", "2", "two"]), min_size=10, max_size=10),
    st.sampled_from(["red", "cat", "2", "two", "Red."]),
    st.sampled_from(["official", "always"]),
)
def test_accuracy_equals_leaving_each_person_out_in_turn(answers, prediction, normalize):
    if normalize == "always" or len(set(answers)) > 1:
        said, others = (
            normalize_answer(prediction),
            [normalize_answer(answer) for answer in answers],
        )
    else:
        said, others = prediction, answers
    turns = [
        min(1, sum(other == said for other in others[:i] + others[i + 1 :]) / 3) for i in range(10)
    ]
    assert vqa_accuracy(prediction, answers, normalize) == pytest.approx(sum(turns) / 10)


def test_official_rule_normalises_only_where_people_differ():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["yes"] * 10, normalize="always") == 1
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert (
        vqa_accuracy("yes\n", ["yes"] * 10) == 1
    )  # white space goes before the comparison, either way
    assert vqa_accuracy("yes", [" yes"] + ["yes\t"] * 9) == 1
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("The Cat", "cat"),
        ("an apple and a pear", "apple and pear"),
        ("a", ""),
        ("None", "0"),
        ("zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("two dogs", "2 dogs"),
        ("red/blue", "red blue"),  # a mark alone becomes a space,
        ("red /blue", "red blue"),  # beside a space it vanishes,
        ("red/ blue/green", "red bluegreen"),  # and so do all others of its kind,
        ("red/ blue-green", "red blue green"),  # but not those of another kind
        ("1,000", "1000"),
        ("1,000/2", "10002"),
        ("a,b", "b"),  # a comma in a number makes every mark vanish
        ("1, 2", "1 2"),
        ("cat,dog", "cat dog"),
        ("3.", "3"),
        (".5", ".5"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("1..5", "1.5"),
        ("no. 5", "no 5"),
        ("12:30", "12:30"),
        ("it's", "it's"),
        ("dogs'", "dogs'"),  # colons and apostrophes stay
        ("well-known!", "well known"),
        ("what?!", "what"),
        ("{x}", "x"),
        ("[x]", "x"),
        ("€5%", "€5%"),
        ("dont", "don't"),
        ("Dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("ows'at", "ows'at"),
        ("ow's'at", "'ow's'at"),
        ("yalld've", "yalld've"),
        ("somebody'd", "somebodyd"),
        ("lets", "lets"),
        ("shes", "shes"),
        ("im", "im"),
        ("Ive", "ive"),
        ("wed", "wed"),
        ("  two\nred\tcats ", "2 red cats"),
        ("", ""),
        ("?", ""),
    ],
)
def test_normalisation_has_the_official_habits(answer, expected):
    assert normalize_answer(answer) == expected


def test_only_the_first_32_full_stops_vanish():
    assert normalize_answer("." * 40) == "." * 8


def test_contractions_are_the_official_table():
    assert (
        len(CONTRACTIONS) == 114
    )  # 120, less 4 with a capital (text is lower case by then) and 2 that change nothing
    assert {
        "aint": "ain't",
        "hed": "he'd",
        "oclock": "o'clock",
        "twas": "'twas",
        "whatre": "what're",
        "y'all'dve": "y'all'd've",
    }.items() <= CONTRACTIONS.items()


ROWS = [
    {"answers": ["yes"] * 10, "question_type": "is", "answer_type": "yes/no"},
    {"answers": ["2"] * 2 + ["3"] * 8, "question_type": "how many", "answer_type": "number"},
    {"answers": ["red"] * 5 + ["blue"] * 5, "question_type": "what", "answer_type": "other"},
    {"answers": ["red"] * 10, "question_type": "what", "answer_type": "other"},
]


@pytest.mark.parametrize("rows", [ROWS, Dataset.from_list(ROWS)], ids=["list", "Dataset"])
def test_score_vqa_averages_over_all_and_over_each_type(rows):
    result = score_vqa(["Yes", "two", "Blue.", "green"], rows)
    assert result["overall"] == pytest.approx(40)
    assert result["per_question_type"] == pytest.approx({"how many": 60, "is": 0, "what": 50})
    assert result["per_answer_type"] == pytest.approx({"yes/no": 0, "number": 60, "other": 50})
    assert (result["count"], result["normalize"]) == (4, "official")
    assert score_vqa(["Yes", "two", "Blue.", "green"], rows, normalize="always")[
        "overall"
    ] == pytest.approx(65)


people = st.lists(st.sampled_from(["red", "Red.", "the cat", "2", "two"]), min_size=10, max_size=10)
one_question = st.tuples(
    people, st.sampled_from(["red", "a red", "cat", "two", ""]), st.sampled_from("xy")
)


@given(
    st.lists(one_question, min_size=1, max_size=6),
    st.sampled_from(["official", "always"]),
    st.randoms(use_true_random=False),
)
def test_bounds_order_and_a_perfect_copy(cells, normalize, random):
    def score(cells):
        rows = [
            {"answers": answers, "question_type": kind, "answer_type": None}
            for answers, _, kind in cells
        ]
        return score_vqa([said for _, said, _ in cells], rows, normalize)

    scores = score(cells)
    assert 0 <= scores["overall"] <= 100
    mixed = [
        (random.sample(answers, 10), said, kind)
        for answers, said, kind in random.sample(cells, len(cells))
    ]
    assert score(mixed)["overall"] == pytest.approx(scores["overall"])
    assert score(mixed)["per_question_type"] == pytest.approx(scores["per_question_type"])
    copied = [(answers[:1] * 6 + answers[6:], answers[0], kind) for answers, _, kind in cells]
    assert score(copied)["overall"] == 100  # four who agree are enough


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: vqa_accuracy("yes", ["yes"] * 9), "expected 10 texts"),
        (lambda: vqa_accuracy("yes", ["yes"] * 9 + [1]), "expected 10 texts"),
        (lambda: vqa_accuracy(None, ["yes"] * 10), "the prediction is None"),
        (
            lambda: vqa_accuracy("yes", ["yes"] * 10, normalize="sometimes"),
            "'sometimes'; expected one of official, always",
        ),
        (lambda: vqa_scores(["yes"], ROWS), "1 predictions for 4 questions"),
        (lambda: vqa_scores([], []), "no questions"),
        (lambda: vqa_scores(["yes"], [{"question": "?"}]), "no field 'answers'"),
        (lambda: vqa_scores(["a", "b", 3, "d"], ROWS), "question 2: the prediction is 3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
