"""The probes, on a model whose every answer is known."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lite.evals.probes import bootstrap_interval, bridge_score, multimodal_gain, run_probes
from vlm_lite.files import UserError

COLOURS = ["red", "blue", "green", "gold", "pink"]


class FakeVLM:
    """Reads the colour off its features (one-hot), or off the prompt's first word; blind, it always says red."""

    def __init__(self):
        self.calls = []

    def generate(self, features, prompts, max_new_tokens):
        assert features is None or (
            features.dtype == torch.float32 and len(features) == len(prompts)
        )
        self.calls.append(
            (None if features is None else features.clone(), list(prompts), max_new_tokens)
        )
        if features is None:
            return [
                prompt.split()[0] if prompt.split()[0] in COLOURS else "red" for prompt in prompts
            ]
        return [
            COLOURS[int(picture[0].argmax())] if picture.any() else "grey" for picture in features
        ]


def world(copies=20):
    """Five pictures, one of each colour, each asked `copies` times; two types of question."""
    features = torch.eye(5, dtype=torch.float16)[:, None]  # (N, T, D) = (5, 1, 5)
    rows = [
        {
            "question": f"which colour {copy % 3} ?",
            "answers": [colour] * 10,
            "image_id": 100 + i,
            "image_index": i,
            "question_type": "colour" if copy % 2 else "paint",
            "description": f"{colour} thing .",
        }
        for copy in range(copies)
        for i, colour in enumerate(COLOURS)
    ]
    return features, rows


def probe(rows, features, vlm=None, **options):
    return run_probes(
        vlm or FakeVLM(),
        features,
        rows,
        blank_features=torch.zeros(1, 5),
        **{"prompt": "ask: {}".format, **options},
    )


def test_each_condition_gives_the_model_what_it_says():
    features, rows = world()
    vlm = FakeVLM()
    result = probe(rows, features, vlm, batch_size=7)
    truth = [row["answers"][0] for row in rows]
    assert result.answers["vlm"] == result.answers["oracle"] == truth
    assert set(result.answers["blind"]) == {"red"} and set(result.answers["blank"]) == {"grey"}
    assert not any(a == b for a, b in zip(result.answers["shuffled"], truth, strict=True))
    means = {name: interval.value for name, interval in result.accuracy.items()}
    assert means == pytest.approx({"vlm": 1, "blind": 0.2, "shuffled": 0, "blank": 0, "oracle": 1})
    assert (
        result.gain.value == pytest.approx(0.8)
        and 0.6 < result.gain.low < 0.8 < result.gain.high < 0.95
    )
    assert result.bridge.value == result.bridge.low == result.bridge.high == 1
    assert all(len(prompts) <= 7 and tokens == 4 for _, prompts, tokens in vlm.calls)


def test_the_prompt_is_the_short_one_unless_another_is_given():
    features, rows = world(1)
    vlm = FakeVLM()
    run_probes(vlm, features, rows, blank_features=torch.zeros(1, 1, 5), max_new_tokens=9)
    from vlm_lite.data.language import short_prompt

    assert vlm.calls[0][1] == [short_prompt(row["question"]) for row in rows]
    assert vlm.calls[-1][1][0] == "red thing . " + short_prompt(rows[0]["question"])
    assert {call[2] for call in vlm.calls} == {9}


def test_without_a_picture_each_different_prompt_is_asked_once():
    features, rows = world()
    vlm = FakeVLM()
    probe(rows, features, vlm)
    assert [len(prompts) for _, prompts, _ in vlm.calls] == [
        100,
        3,
        100,
        3,
        15,
    ]  # vlm, blind, shuffled, blank, oracle


@settings(deadline=None, max_examples=10)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_shuffling_never_leaves_a_picture_its_own(n, seed):
    features, rows = world(2)
    rows = [row for row in rows if row["image_index"] < n]
    vlm = FakeVLM()
    probe(rows, features, vlm, seed=seed)
    shown = vlm.calls[2][0].argmax(-1)[:, 0].tolist()
    assert all(other != row["image_index"] for other, row in zip(shown, rows, strict=True))
    assert sorted(shown) == sorted(
        row["image_index"] for row in rows
    )  # every picture is still shown as often


def test_two_rows_of_features_of_one_picture_are_not_exchanged():
    features, rows = world(1)
    rows = [{**row, "image_id": 7 if row["image_index"] < 4 else 8} for row in rows]
    vlm = FakeVLM()
    probe(rows, features, vlm)
    shown = vlm.calls[2][0].argmax(-1)[:, 0].tolist()
    assert shown[:4] == [4] * 4 and shown[4] != 4


def test_image_ids_may_stand_for_image_index():
    features, rows = world()
    bare = [{key: value for key, value in row.items() if key != "image_index"} for row in rows]
    assert (
        probe(bare, features, image_ids=[100, 101, 102, 103, 104]).answers
        == probe(rows, features).answers
    )
    with pytest.raises(UserError, match="image_id that image_ids lacks"):
        probe(bare, features, image_ids=[100, 101])


def test_types_are_summed_up_apart_and_the_table_prints_them():
    features, rows = world()
    for row in rows:
        row["answers"] = ["red"] * 10 if row["question_type"] == "paint" else row["answers"]
        row["description"] = (
            "red thing ." if row["question_type"] == "paint" else row["description"]
        )
    result = probe(rows, features)
    assert {name: part.count for name, part in result.by_type.items()} == {
        "colour": 50,
        "paint": 50,
    }
    assert result.by_type["colour"].gain.value == pytest.approx(0.8)
    assert result.by_type["paint"].accuracy["blind"].value == 1
    assert result.by_type["paint"].bridge.value is None
    table = result.table()
    paint = next(line for line in table.splitlines() if line.startswith("paint"))
    assert paint.split() == ["paint", "50", "20.0", "100.0", "20.0", "0.0", "100.0", "-80.0", "-"]
    assert (
        f"multimodal gain (vlm - blind): {result.gain}" in table and "normalize='official'" in table
    )


def test_without_descriptions_there_is_no_oracle_and_no_bridge_score():
    features, rows = world(2)
    result = probe([{**row, "description": None} for row in rows], features)
    assert "oracle" not in result.answers
    assert str(result.bridge) == "undefined (no descriptions, so no oracle)"
    assert "undefined" in result.table()


def test_normalize_reaches_the_score():
    features, rows = world(1)
    rows = [{**row, "answers": [row["answers"][0].title()] * 10} for row in rows]
    assert probe(rows, features).accuracy["vlm"].value == 0
    assert probe(rows, features, normalize="always").accuracy["vlm"].value == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [], "no questions to ask"),
        (lambda rows: rows[:1], "needs two"),
        (
            lambda rows: [{**row, "image_index": row["image_index"] + 1} for row in rows],
            "from 1 to 5; expected 0 to 4",
        ),
        (
            lambda rows: [{**rows[0], "description": ""}, *rows[1:]],
            r"rows\[0\].description is empty",
        ),
        (lambda rows: [{"question": "?"}], "no field 'image_id'"),
    ],
)
def test_bad_rows_are_named(change, message):
    features, rows = world(1)
    with pytest.raises(UserError, match=message):
        probe(change(rows), features)


def test_bootstrap_interval_covers_as_a_normal_interval_would():
    values = np.random.default_rng(0).normal(0.4, 0.2, 400)
    interval = bootstrap_interval(values)
    spread = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - spread, values.mean() + spread), abs=0.003
    )
    wider = bootstrap_interval(values, confidence=0.99)
    assert wider.low < interval.low and wider.high > interval.high
    assert interval == bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_constant_scores_and_a_single_question_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # what numpy and scipy say of numbers
        constant = bootstrap_interval([0.5] * 9)
        single = bootstrap_interval([1.0])
    assert (constant.value, constant.low, constant.high) == (0.5, 0.5, 0.5)
    assert single.value == 1 and np.isnan([single.low, single.high]).all()


def test_the_gain_is_paired():
    """Scores that vary widely but differ by 0.1 at every question: the gain is certain."""
    blind = np.random.default_rng(0).random(50)
    gain = multimodal_gain(blind + 0.1, blind)
    assert gain.value == pytest.approx(0.1) and gain.high - gain.low < 1e-9


def test_bridge_score_by_hand_and_undefined_where_words_do_not_help():
    blind, oracle = np.array([0, 0, 0, 1] * 50), np.array([1, 1, 1, 1] * 50)
    vlm = np.array([1, 0, 0, 1] * 50)
    bridge = bridge_score(vlm, blind, oracle)
    assert bridge.value == pytest.approx(1 / 3) and 0.2 < bridge.low < 1 / 3 < bridge.high < 0.45
    assert str(bridge).startswith("0.333 [0.2")
    for same in (blind, 1 - oracle, np.roll(blind, 1)):  # equal, worse, no clear difference
        undefined = bridge_score(vlm, blind, same)
        assert undefined.value is undefined.low is undefined.high is None
        assert "not clearly above 0" in str(undefined)
    assert bridge_score([1], [0], [1]).value is None  # one question proves nothing


@pytest.mark.parametrize("arrays", [([], []), ([1, 2], [1]), ([float("nan")], [0]), ([[1]], [[0]])])
def test_bad_scores_are_refused(arrays):
    with pytest.raises(UserError, match="one finite score a question"):
        multimodal_gain(*arrays)
