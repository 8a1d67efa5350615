"""What a score must beat: answers without a look, pictures with their patches in disorder, pairs that no prior answers.

`probes` asks the model itself blind, with another picture and with an empty one; here are the controls without a model.
"""

from collections import Counter, defaultdict

import numpy as np
import torch

from vlm_lite.files import UserError


def majority_answer(answers):
    """The most frequent of `answers`; of equally frequent ones the first in the alphabet."""
    if not answers:
        raise UserError(
            "there are no answers to take the most frequent of; expected those of the training questions."
        )
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def type_prior(train_types, train_answers, types):
    """For each of `types` the most frequent training answer to questions of that type, or of all for a new type.

    It reads no picture and not even the question. The answers must be those of *training*: a prior taken from the
    test knows what it is asked.
    """
    of_type = defaultdict(list)
    for kind, answer in zip(train_types, train_answers, strict=True):
        of_type[kind].append(answer)
    best, default = (
        {kind: majority_answer(given) for kind, given in of_type.items()},
        majority_answer(train_answers),
    )
    return [best.get(kind, default) for kind in types]


def shuffle_patches(images, patch_size, seed=0):
    """uint8 pictures (N, 3, H, W) with the patches of each in an order of its own: what is there stays, where goes."""
    N, C, H, W = images.shape
    if H % patch_size or W % patch_size:
        raise UserError(f"pictures of {W}x{H} pixels do not divide into patches of {patch_size}.")
    rows, columns = H // patch_size, W // patch_size
    patches = (
        images.view(N, C, rows, patch_size, columns, patch_size)
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(1, 2)
    )
    order = torch.rand(N, rows * columns, generator=torch.Generator().manual_seed(seed)).argsort(
        dim=1
    )
    patches = patches[torch.arange(N)[:, None], order].view(
        N, rows, columns, C, patch_size, patch_size
    )
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(N, C, H, W)


def find_pairs(questions, image_ids, answers):
    """Complementary pairs as (i, j), i < j, no row in two: the same words, two pictures, two answers.

    A model that does not look answers both alike, so it never has both right. Goyal et al. 2017, section 3.
    """
    waiting, found = defaultdict(list), []
    for k, row in enumerate(zip(questions, image_ids, answers, strict=True)):
        others = waiting[row[0]]
        partner = next((p for p in others if p[1][1] != row[1] and p[1][2] != row[2]), None)
        if partner is None:
            others.append((k, row))
        else:
            others.remove(partner)
            found.append((partner[0], k))
    return found


def pair_scores(scores, pairs):
    """1.0 for each pair (i, j) of which both `scores` are above a half, else 0.0: float array (P,)."""
    if not pairs:
        raise UserError(
            "there are no complementary pairs; expected some questions that are asked about two pictures."
        )
    right = np.asarray(scores, dtype=float) > 0.5
    first, second = np.array(pairs).T
    return (right[first] & right[second]).astype(float)
