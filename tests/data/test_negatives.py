"""Almost right captions are wrong, made of the same words, and depend on their generator only."""

import collections
import re

import numpy as np
import pytest

from vlm_lite.data import language, scenes
from vlm_lite.data.negatives import KIND_OF, _meaning, hard_negative, replaced_word


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(3)
    return [text for _ in range(300) for text in language.captions(scenes.sample_scene(rng), rng)]


def test_a_pair_of_words_changes_places_or_one_changes(captions):
    rng = np.random.default_rng(0)
    for text in captions:
        wrong = hard_negative(text, rng)
        before, after = (re.findall(r"\w+", t) for t in (text, wrong))
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert 1 <= len(changed) <= 2 and all(KIND_OF[a] == KIND_OF[b] for a, b in changed), (
            text,
            wrong,
        )
        assert _meaning(wrong) != _meaning(text)


def test_most_have_the_very_same_words_and_all_kinds_of_errors_occur(captions):
    rng, same, kinds = np.random.default_rng(0), 0, collections.Counter()
    for text in captions:
        wrong = hard_negative(text, rng)
        words, wrong_words = (re.findall(r"\w+", t) for t in (text, wrong))
        same += sorted(words) == sorted(wrong_words)
        kinds.update({KIND_OF[a] for a, b in zip(words, wrong_words, strict=True) if a != b})
    assert same > 0.35 * len(captions)
    assert len(kinds) == len(set(KIND_OF.values())) and min(kinds.values()) > 5


def test_the_order_of_the_things_makes_no_difference_in_meaning():
    assert _meaning("a red circle and a blue star.") == _meaning(
        "this is a blue star and a red circle."
    )
    rng = np.random.default_rng(0)
    # exchanging the colours of two equal shapes says the same again, so one of them must change
    found = {hard_negative("a red circle and a blue circle.", rng) for _ in range(30)}
    assert "a blue circle and a red circle." not in found and all(
        "circle" in text for text in found
    )


def test_it_repeats_and_leaves_other_captions_alone():
    texts = ["a small red circle above a large blue star."] * 5
    assert [hard_negative(t, np.random.default_rng(1)) for t in texts] == [
        hard_negative(texts[0], np.random.default_rng(1))
    ] * 5
    assert hard_negative("a man with a dog.", np.random.default_rng(0)) == "a man with a dog."


def test_a_replaced_word_is_one_word_of_the_same_kind_and_most_often_a_shape(captions):
    rng, kinds = np.random.default_rng(0), collections.Counter()
    for text in captions:
        before, after = (re.findall(r"\w+", t) for t in (text, replaced_word(text, rng)))
        ((old, new),) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert KIND_OF[old] == KIND_OF[new]
        kinds[KIND_OF[old]] += 1
    assert len(kinds) == 4 and kinds.most_common(1)[0][0] == scenes.SHAPES
    assert replaced_word("a man with a dog.", rng) == "a man with a dog."
