"""Almost right captions are wrong, made of the same words, and depend on their generator only."""

import collections
import re

import numpy as np
import pytest

from vlm_lite.lessons import language, world
from vlm_lite.lessons.negatives import KIND_OF, hard_negative, meaning, replaced_word


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(3)
    return [text for _ in range(300) for text in language.captions(world.sample_scene(rng), rng)]


def changes(text, wrong):
    """The words that differ, as pairs, all of one kind each."""
    before, after = (re.findall(r"\w+", t) for t in (text, wrong))
    found = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all(KIND_OF[a] == KIND_OF[b] for a, b in found), (text, wrong)
    return found


def test_a_pair_of_words_changes_places_or_one_changes_and_all_kinds_of_errors_occur(captions):
    rng, same, kinds = np.random.default_rng(0), 0, collections.Counter()
    for text in captions:
        wrong = hard_negative(text, rng)
        found = changes(text, wrong)
        assert 1 <= len(found) <= 2 and meaning(wrong) != meaning(text)
        same += sorted(text) == sorted(wrong)
        kinds.update({KIND_OF[a] for a, _ in found})
    assert same > 0.35 * len(captions)  # have the very same words
    assert len(kinds) == len(set(KIND_OF.values())) and min(kinds.values()) > 5


def test_the_order_of_the_things_makes_no_difference_inmeaning():
    other = "this is a blue star and a red circle."
    assert meaning("a red circle and a blue star.") == meaning(other)
    # exchanging the colours of two equal shapes says the same again, so one of them must change
    rng = np.random.default_rng(0)
    found = {hard_negative("a red circle and a blue circle.", rng) for _ in range(30)}
    assert "a blue circle and a red circle." not in found and all("circle" in t for t in found)


def test_it_repeats_and_leaves_other_captions_alone():
    text = "a small red circle above a large blue star."
    assert len({hard_negative(text, np.random.default_rng(1)) for _ in range(5)}) == 1
    for change in (hard_negative, replaced_word):
        other = "a man with a dog."
        assert change(other, np.random.default_rng(0)) == other


def test_a_replaced_word_is_one_word_of_the_same_kind_and_most_often_a_shape(captions):
    rng, kinds = np.random.default_rng(0), collections.Counter()
    for text in captions:
        ((old, _),) = changes(text, replaced_word(text, rng))
        kinds[KIND_OF[old]] += 1
    assert len(kinds) == 4 and kinds.most_common(1)[0][0] == world.SHAPES
