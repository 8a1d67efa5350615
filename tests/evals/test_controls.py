"""Controls without a model: priors from training, patches in disorder, pairs that no prior answers."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_lite.evals.controls import (
    find_pairs,
    majority_answer,
    pair_scores,
    shuffle_patches,
    type_prior,
)
from vlm_lite.files import UserError

answered = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=20
)


@given(answered, st.lists(st.sampled_from("abc"), max_size=5), st.randoms(use_true_random=False))
def test_the_prior_is_the_most_frequent_training_answer_of_the_type_in_any_order(
    rows, asked, random
):
    types, answers = zip(*rows, strict=True)
    found = type_prior(types, answers, asked)
    for kind, answer in zip(asked, found, strict=True):
        counts = Counter(a for t, a in rows if t == kind) or Counter(
            answers
        )  # a new type: most frequent of all
        assert counts[answer] == max(counts.values())
    random.shuffle(rows)
    assert type_prior(*zip(*rows, strict=True), asked) == found


def test_of_equally_frequent_answers_the_first_in_the_alphabet_is_taken():
    assert majority_answer(["no", "yes", "yes", "no", "maybe"]) == "no"
    with pytest.raises(UserError, match="no answers"):
        majority_answer([])


@given(st.integers(0, 1000), st.sampled_from([(8, 8), (8, 16), (16, 16)]))
def test_shuffled_patches_are_the_same_patches_in_another_order(seed, size):
    images = torch.randint(
        256, (3, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    shuffled = shuffle_patches(images, 4, seed)

    def patches(image):
        return sorted(
            image[:, r : r + 4, c : c + 4].flatten().tolist()
            for r in range(0, size[0], 4)
            for c in range(0, size[1], 4)
        )

    assert shuffled.shape == images.shape and shuffled.dtype == torch.uint8
    assert [patches(a) for a in images] == [patches(b) for b in shuffled]
    assert torch.equal(shuffled, shuffle_patches(images, 4, seed))


def test_each_picture_gets_an_order_of_its_own():
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(8, 3, 4, 4).contiguous()
    assert len({tuple(image.flatten().tolist()) for image in shuffle_patches(images, 1)}) == 8
    with pytest.raises(UserError, match="do not divide"):
        shuffle_patches(images, 3)


questions = st.lists(
    st.tuples(st.sampled_from("pq"), st.integers(0, 3), st.sampled_from(["yes", "no", "2"])),
    max_size=24,
)


@given(questions)
def test_pairs_are_one_question_two_pictures_two_answers_and_a_prior_has_none_right(rows):
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    pairs = find_pairs(*columns)
    used = [k for pair in pairs for k in pair]
    assert len(used) == len(set(used))
    for i, j in pairs:
        assert (
            i < j
            and rows[i][0] == rows[j][0]
            and rows[i][1] != rows[j][1]
            and rows[i][2] != rows[j][2]
        )
    if pairs:
        for word in ("yes", "no", "2"):  # whoever says the same to the same words
            assert pair_scores([float(row[2] == word) for row in rows], pairs).sum() == 0
        assert pair_scores(np.ones(len(rows)), pairs).mean() == 1


def test_a_pair_is_right_or_wrong_as_a_whole():
    assert pair_scores([0.6, 0.9, 0.3, 1.0], [(0, 1), (2, 3)]).tolist() == [1, 0]
    with pytest.raises(UserError, match="no complementary pairs"):
        pair_scores([1.0], [])
