"""Where a patch stands: positions made of sines and cosines, and learnt positions carried to another resolution."""

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
