"""How alike the position embeddings of a table are."""

import torch
import torch.nn.functional as F


def position_cosines(pos_embed):
    """The cosine of every two position embeddings of the patches, their mean subtracted: (g, g, g, g).

    pos_embed: (1, 1 + g², D), as a ViT of timm's holds it: the class token's first, then the patches row by row. Entry
    [r, c, s, d] is that of row r, column c with row s, column d. ValueError unless the patches form a square.
    """
    grid = round(max(pos_embed.shape[1] - 1, 0) ** 0.5) if pos_embed.ndim == 3 else 0
    if not grid or pos_embed.shape[:2] != (1, 1 + grid * grid):
        raise ValueError(f"pos_embed has shape {tuple(pos_embed.shape)}; expected (1, 1 + g², D).")
    table = pos_embed.detach().float()[0, 1:]
    unit = F.normalize(table - table.mean(dim=0), dim=-1).view(grid, grid, -1)
    return torch.einsum("rci, sdi -> rcsd", unit, unit)


def axis_cosines(pos_embed):
    """The mean cosine of two different positions in one column, and in one row: a dict of two numbers in -1..1."""
    cosines = position_cosines(pos_embed)
    pairs = len(cosines) ** 2 * (len(cosines) - 1)
    own = torch.einsum("rcrc ->", cosines)  # of each position with itself
    columns, rows = (torch.einsum(f"{pattern} ->", cosines) for pattern in ("rcsc", "rcrd"))
    return {
        "same column": ((columns - own) / pairs).item(),
        "same row": ((rows - own) / pairs).item(),
    }
