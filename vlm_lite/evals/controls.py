"""What a score must beat: answers without a look, pictures with their patches in disorder, pairs that no prior answers.

`probes` asks the model itself blind, with another picture and with an empty one; here are the controls without a model.
"""

from collections import Counter, defaultdict

import numpy as np
import torch
from einops import rearrange


def majority_answer(answers):
    """The most frequent of `answers`; of equally frequent ones the first in the alphabet."""
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
    default = majority_answer(train_answers)
    return [majority_answer(of_type[kind]) if kind in of_type else default for kind in types]


def shuffle_patches(images, patch_size, seed=0):
    """uint8 pictures (N, 3, H, W) with the patches of each in an order of its own: what is there stays, where goes."""
    rows, columns = (side // patch_size for side in images.shape[2:])
    parts = rearrange(images, "n c (r p) (k q) -> n (r k) c p q", p=patch_size, q=patch_size)
    draw = torch.rand(parts.shape[:2], generator=torch.Generator().manual_seed(seed))
    parts = parts[torch.arange(len(parts))[:, None], draw.argsort(dim=1)]
    return rearrange(parts, "n (r k) c p q -> n c (r p) (k q)", r=rows, k=columns)


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
    right = np.asarray(scores, dtype=float) > 0.5
    return right[np.array(pairs, dtype=int).reshape(-1, 2)].all(axis=1).astype(float)
