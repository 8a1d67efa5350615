"""Position embeddings: sines and cosines, learnt ones at another resolution, and how alike two of a table are."""

import torch
import torch.nn.functional as F
from einops import rearrange


def sincos_positions(width, grid_size):
    """Fixed 2D positions: (1 + grid_size², width), zeros for the class token, then the patches row by row.

    The first half of the width says the column x, the second the row y. Each half holds sin(x ωₖ), then cos(x ωₖ), with
    ωₖ = 10000^(-k / (width/4)) for k = 0 .. width/4 - 1 (Vaswani et al. 2017, section 3.5, once for each axis, as in
    MAE, He et al. 2022). Agrees with the positions of transformers' `ViTMAEEmbeddings`.
    ValueError unless the width is a multiple of 4.
    """
    if width % 4 or width <= 0 or grid_size < 1:
        raise ValueError(
            f"width is {width} and grid_size {grid_size}; a sine and a cosine for each of two axes need a "
            "width that is a multiple of 4, and a grid of 1 or more."
        )
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (width/4,)
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * omega  # (grid, width/4)
    one = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width/2), of one axis
    columns = one[None].expand(grid_size, -1, -1)  # the same for every row
    rows = one[:, None].expand(-1, grid_size, -1)  # the same for every column
    patches = rearrange(torch.cat([columns, rows], dim=2), "rows columns d -> (rows columns) d")
    return torch.cat([torch.zeros(1, width), patches.float()])


def resize_positions(positions, grid_size):
    """Positions (1 + n², D), the class token's first, for a grid of `grid_size`: (1 + grid_size², D).

    The class token keeps its own; the patches' are a picture of D channels, enlarged or shrunk by bicubic interpolation
    with antialiasing. Agrees with timm's `resample_abs_pos_embed`. ValueError unless the patches form a square.
    """
    count = len(positions) - 1
    side = round(max(count, 0) ** 0.5)
    if positions.ndim != 2 or count < 1 or side * side != count or grid_size < 1:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} for a grid of {grid_size}; expected "
            "(1 + n², D), one for the class token and one for each patch of a square, and a grid of 1 or "
            "more."
        )
    if side == grid_size:
        return positions
    grid = rearrange(positions[1:].float(), "(rows columns) d -> 1 d rows columns", rows=side)
    grid = F.interpolate(
        grid, size=(grid_size, grid_size), mode="bicubic", antialias=True, align_corners=False
    )
    patches = rearrange(grid, "1 d rows columns -> (rows columns) d").to(positions.dtype)
    return torch.cat([positions[:1], patches])


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
