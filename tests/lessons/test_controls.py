"""Controls without a model: priors from training, patches in disorder, pairs that no prior answers."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_lite.data.shapes import find_pairs
from vlm_lite.lessons.controls import (
    majority_answer,
    pair_scores,
    shuffle_patches,
    type_prior,
)

pair = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


@given(
    st.lists(pair, min_size=1, max_size=20),
    st.lists(st.sampled_from("abc"), max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_prior_is_the_most_frequent_training_answer_of_the_type_in_any_order(
    rows, asked, random
):
    types, answers = zip(*rows, strict=True)
    found = type_prior(types, answers, asked)
    for kind, answer in zip(asked, found, strict=True):
        # of a new type: the most frequent of all
        counts = Counter(a for t, a in rows if t == kind) or Counter(answers)
        assert counts[answer] == max(counts.values())
    random.shuffle(rows)
    assert type_prior(*zip(*rows, strict=True), asked) == found


def test_of_equally_frequent_answers_the_first_in_the_alphabet_is_taken():
    assert majority_answer(["no", "yes", "yes", "no", "maybe"]) == "no"


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 16)])
def test_shuffled_patches_are_the_same_patches_each_image_in_an_order_of_its_own(size):
    whole = torch.arange(3 * size[0] * size[1]).view(1, 3, *size).expand(9, -1, -1, -1)
    shuffled = shuffle_patches(whole, 4, 1)

    def patches(images):
        tiles = images.unfold(2, 4, 4).unfold(3, 4, 4)  # (N, C, rows, columns, 4, 4)
        return [sorted(one.movedim(0, 2).flatten(2).flatten(0, 1).tolist()) for one in tiles]

    assert shuffled.shape == whole.shape and patches(shuffled) == patches(whole)
    assert len({tuple(image.flatten().tolist()) for image in shuffled}) > 2
    assert torch.equal(shuffled, shuffle_patches(whole, 4, 1))


row = st.tuples(st.sampled_from("pq"), st.integers(0, 3), st.sampled_from(["yes", "no", "2"]))


@given(st.lists(row, max_size=24))
def test_pairs_are_one_question_two_images_two_answers_and_a_prior_has_none_right(rows):
    pairs = find_pairs(*(list(zip(*rows, strict=True)) or [[], [], []]))
    used = [k for pair in pairs for k in pair]
    assert len(used) == len(set(used))
    for i, j in pairs:
        same = [a == b for a, b in zip(rows[i], rows[j], strict=True)]
        assert i < j and same == [True, False, False]
    for word in ("yes", "no", "2"):  # whoever says the same to the same words
        assert pair_scores([float(row[2] == word) for row in rows], pairs).sum() == 0
    assert pair_scores(np.ones(len(rows)), pairs).sum() == len(pairs)


def test_a_pair_is_right_or_wrong_as_a_whole():
    assert pair_scores([0.6, 0.9, 0.3, 1.0], [(0, 1), (2, 3)]).tolist() == [1, 0]
