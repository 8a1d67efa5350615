"""The probes, on a model whose every answer is known."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import refused
from vlm_lite.evals.probes import bootstrap_interval, bridge_score, multimodal_gain, run_probes
from vlm_lite.lessons.language import short_prompt

COLOURS = ["red", "blue", "green", "gold", "pink"]
IDS = [100, 101, 102, 103, 104]
FEATURES = torch.eye(5, dtype=torch.float16)[:, None]  # (N, T, D) = (5, 1, 5)


class FakeVLM:
    """Reads the colour off its features (one-hot), or off the prompt's first word; blind, it always says red."""

    def __init__(self):
        self.calls = []

    def generate(self, features, prompts, max_new_tokens):
        if features is not None:
            assert features.dtype == torch.float32 and len(features) == len(prompts)
            features = features.clone()
        self.calls.append((features, list(prompts), max_new_tokens))
        if features is None:
            words = [prompt.split()[0] for prompt in prompts]
            return [word if word in COLOURS else "red" for word in words]
        return [COLOURS[int(one[0].argmax())] if one.any() else "grey" for one in features]


def world(copies=20):
    """Five images, one of each colour, each asked `copies` times; two types of question."""
    return [
        {
            "question": f"which colour {copy % 3} ?",
            "answers": [colour] * 10,
            "image_id": image_id,
            "question_type": "colour" if copy % 2 else "paint",
            "description": f"{colour} thing .",
        }
        for copy in range(copies)
        for image_id, colour in zip(IDS, COLOURS, strict=True)
    ]


def probe(rows, vlm=None, image_ids=IDS, **options):
    blank = torch.zeros(1, 5)
    return run_probes(
        vlm or FakeVLM(), FEATURES, rows, blank_features=blank, image_ids=image_ids, **options
    )


def test_each_condition_gives_the_model_what_it_says():
    rows, vlm = world(), FakeVLM()
    result = probe(rows, vlm, batch_size=7)
    truth = [row["answers"][0] for row in rows]
    assert result.answers["vlm"] == result.answers["oracle"] == truth
    assert set(result.answers["blind"]) == {"red"} and set(result.answers["blank"]) == {"grey"}
    assert not any(a == b for a, b in zip(result.answers["shuffled"], truth, strict=True))
    means = {name: interval.value for name, interval in result.accuracy.items()}
    assert means == pytest.approx({"vlm": 1, "blind": 0.2, "shuffled": 0, "blank": 0, "oracle": 1})
    assert result.gain.value == pytest.approx(0.8)
    assert 0.6 < result.gain.low < 0.8 < result.gain.high < 0.95
    assert result.bridge.interval == (1, 1, 1)
    assert all(len(prompts) <= 7 and tokens == 4 for _, prompts, tokens in vlm.calls)


def test_the_prompt_is_the_short_one_unless_another_is_given_and_the_same_is_asked_once():
    rows, vlm = world(), FakeVLM()
    probe(rows, vlm, max_new_tokens=9)
    vlm, _, _, _, told = vlm.calls
    once = dict.fromkeys((short_prompt(row["question"]), row["image_id"]) for row in rows)
    assert vlm[1:] == ([prompt for prompt, _ in once], 9)
    assert told[1][0] == "red thing . " + short_prompt(rows[0]["question"])
    vlm = FakeVLM()
    probe(rows, vlm, prompt="ask: {}".format)
    assert vlm.calls[0][1][0] == "ask: which colour 0 ?"
    # vlm, blind, shuffled, blank, oracle
    assert [len(prompts) for _, prompts, _ in vlm.calls] == [15, 3, 15, 3, 15]


@settings(max_examples=10)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_shuffling_never_leaves_an_image_its_own(n, seed):
    rows, vlm = [row for row in world(2) if row["image_id"] < 100 + n], FakeVLM()
    probe(rows, vlm, seed=seed)
    own, shown = (vlm.calls[call][0].argmax(-1)[:, 0].tolist() for call in (0, 2))
    assert not any(a == b for a, b in zip(own, shown, strict=True))
    assert sorted(shown) == sorted(own)  # every image is still shown as often


def test_two_rows_of_features_of_one_image_are_not_exchanged():
    rows, vlm = [{**row, "image_id": max(103, row["image_id"])} for row in world(1)], FakeVLM()
    probe(rows, vlm)
    assert vlm.calls[2][0].argmax(-1)[:, 0].tolist() == [4, 3]


def test_types_are_summed_up_apart():
    rows = world()
    for row in rows:
        if row["question_type"] == "paint":
            row.update(answers=["red"] * 10, description="red thing .")
    result = probe(rows)
    assert {name: part.count for name, part in result.by_type.items()} == {
        "colour": 50,
        "paint": 50,
    }
    assert result.by_type["colour"].gain.value == pytest.approx(0.8)
    paint = result.frame().loc["paint"]
    assert paint[:6].tolist() == [50, 20, 100, 20, 0, 100] and np.isnan(paint["bridge score"])
    low, high = result.accuracy["vlm"].low, result.accuracy["vlm"].high
    assert result.percent()["vlm"] == pytest.approx((60, 100 * low, 100 * high))


def test_without_descriptions_there_is_no_oracle_and_no_bridge_score():
    result = probe([{**row, "description": None} for row in world(2)])
    assert "oracle" not in result.answers and result.bridge.interval == "undefined"


@pytest.mark.parametrize(
    "rows, image_ids, message",
    [
        ([], IDS, "no questions"),
        (world(1)[:1], IDS, "1 images"),
        (world(1), IDS[:3], r"5 images, .*lacks \[103, 104\]"),
        ([{**world(1)[0], "description": ""}, *world(1)[1:]], IDS, r"rows\[0\].description"),
        ([{"question": "?"}], IDS, "'image_id'"),
    ],
)
def test_bad_rows_are_named(rows, image_ids, message):
    with refused(message):
        probe(rows, image_ids=image_ids)


def test_bootstrap_interval_covers_as_a_normal_interval_would():
    values = np.random.default_rng(0).normal(0.4, 0.2, 400)
    found = bootstrap_interval(values)
    normal = values.mean() + 1.96 * values.std() / 20 * np.array([0, -1, 1])
    assert (found.value, found.low, found.high) == pytest.approx(normal, abs=0.003)
    assert found == bootstrap_interval(values)


def test_constant_scores_and_a_single_question_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # what numpy and scipy say of numbers
        constant, single = bootstrap_interval([0.5] * 9), bootstrap_interval([1.0])
    assert (constant.value, constant.low, constant.high) == (0.5, 0.5, 0.5)
    assert single.value == 1 and np.isnan([single.low, single.high]).all()


def test_the_gain_is_paired():
    """Scores that vary widely but differ by 0.1 at every question: the gain is certain."""
    blind = np.random.default_rng(0).random(50)
    gain = multimodal_gain(blind + 0.1, blind)
    assert gain.value == pytest.approx(0.1) and gain.high - gain.low < 1e-9


def test_bridge_score_by_hand_and_undefined_where_words_do_not_help():
    blind, vlm = np.array([0, 0, 0, 1] * 50), np.array([1, 0, 0, 1] * 50)
    oracle = np.ones(200)
    bridge = bridge_score(vlm, blind, oracle)
    assert bridge.value == pytest.approx(1 / 3) and 0.2 < bridge.low < 1 / 3 < bridge.high < 0.45
    for same in (blind, 1 - oracle, np.roll(blind, 1)):  # equal, worse, no clear difference
        undefined = bridge_score(vlm, blind, same)
        assert undefined.interval == "undefined" and undefined.low is undefined.high is None
        assert "oracle - blind" in str(undefined)
    assert bridge_score([1], [0], [1]).value is None  # one question proves nothing


@pytest.mark.parametrize("arrays", [([], []), ([1, 2], [1]), ([float("nan")], [0]), ([[1]], [[0]])])
def test_bad_scores_are_refused(arrays):
    with refused("shape"):
        multimodal_gain(*arrays)
