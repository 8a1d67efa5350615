"""How alike the position embeddings of a table are."""

import math

import torch
import torch.nn.functional as F


def position_cosines(pos_embed):
    """The cosine of every two position embeddings of the patches, their mean subtracted: (g, g, g, g).

    pos_embed: (1, 1 + g², D), as a ViT of timm's holds it: the class token's first, then the patches row by row. Entry
    [r, c, s, d] is that of row r, column c with row s, column d. AssertionError unless the patches form a square.
    """
    [table], grid = pos_embed.detach().float()[:, 1:], math.isqrt(pos_embed.shape[1] - 1)
    assert grid * grid == len(table), f"{tuple(pos_embed.shape)} is not (1, 1 + g², D)"
    unit = F.normalize(table - table.mean(dim=0), dim=-1).view(grid, grid, -1)
    return torch.einsum("rci, sdi -> rcsd", unit, unit)


def axis_cosines(pos_embed):
    """The mean cosine of two different positions in one column, and in one row: a dict of two numbers in -1..1."""
    cosines = position_cosines(pos_embed)
    pairs = len(cosines) ** 2 * (len(cosines) - 1)
    own = torch.einsum("rcrc ->", cosines)  # of each position with itself
    patterns = {"same column": "rcsc", "same row": "rcrd"}
    return {
        name: ((torch.einsum(f"{pattern} ->", cosines) - own) / pairs).item()
        for name, pattern in patterns.items()
    }
