"""MMBench's CircularEval with its reading of letters, and the controls that need no model.

Generated from notebooks/05d_mmbench_and_controls.py by `make notebooks`: edit the notebook.
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

    It reads no image and not even the question. The answers must be those of *training*: a prior taken from the
    test knows what it is asked.
    """
    of_type = defaultdict(list)
    for kind, answer in zip(train_types, train_answers, strict=True):
        of_type[kind].append(answer)
    default = majority_answer(train_answers)
    return [majority_answer(of_type[kind]) if kind in of_type else default for kind in types]


def shuffle_patches(images, patch_size, seed=0):
    """uint8 images (N, 3, H, W) with the patches of each in an order of its own: what is there stays, where goes."""
    rows, columns = (side // patch_size for side in images.shape[2:])
    parts = rearrange(images, "n c (r p) (k q) -> n (r k) c p q", p=patch_size, q=patch_size)
    draw = torch.rand(parts.shape[:2], generator=torch.Generator().manual_seed(seed))
    parts = parts[torch.arange(len(parts))[:, None], draw.argsort(dim=1)]
    return rearrange(parts, "n (r k) c p q -> n c (r p) (k q)", r=rows, k=columns)


def pair_scores(scores, pairs):
    """1.0 for each pair (i, j) of which both `scores` are above a half, else 0.0: float array (P,)."""
    right = np.asarray(scores, dtype=float) > 0.5
    return right[np.array(pairs, dtype=int).reshape(-1, 2)].all(axis=1).astype(float)
