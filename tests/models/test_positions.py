"""Positions equal MAE's sines and cosines, and timm's interpolation to another resolution."""

import pytest
import torch
from einops import rearrange
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from vlm_lite.models.positions import (
    axis_cosines,
    position_cosines,
    resize_positions,
    sincos_positions,
)


@pytest.mark.parametrize("width, grid", [(16, 4), (48, 3), (64, 1)])
def test_sines_and_cosines_equal_those_of_transformers_mae_and_of_timm(width, grid):
    mae = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=width, image_size=8 * grid, patch_size=8))
    mae.initialize_weights()
    torch.testing.assert_close(
        sincos_positions(width, grid), mae.position_embeddings[0], atol=1e-6, rtol=0
    )
    rows_first = build_sincos2d_pos_embed(
        [grid, grid], width, interleave_sin_cos=True
    )  # (N, D), row, then column
    rows, columns = rows_first.chunk(2, dim=1)
    torch.testing.assert_close(
        sincos_positions(width, grid)[1:], torch.cat([columns, rows], dim=1), atol=1e-6, rtol=0
    )


def test_columns_are_said_first_and_the_class_token_stands_nowhere():
    positions = sincos_positions(16, 4)
    assert (positions[0] == 0).all()
    grid = positions[1:].view(4, 4, 16)  # (row, column, D)
    torch.testing.assert_close(
        grid[0, :, :8], grid[3, :, :8]
    )  # the column does not depend on the row
    torch.testing.assert_close(grid[:, 0, 8:], grid[:, 3, 8:])


@pytest.mark.parametrize("new", [2, 4, 7, 12])
def test_another_resolution_equals_timm_s(new):
    positions = torch.randn(17, 6)
    theirs = resample_abs_pos_embed(positions[None], [new, new], num_prefix_tokens=1)[0]
    torch.testing.assert_close(resize_positions(positions, new), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sincos_positions(18, 4), "multiple of 4"),
        (lambda: sincos_positions(16, 0), "grid of 1 or more"),
        (lambda: resize_positions(torch.zeros(16, 4), 8), r"\(16, 4\)"),
        (lambda: resize_positions(torch.zeros(1, 17, 4), 8), r"\(1, 17, 4\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def with_class_token(patches):
    return torch.cat([torch.full((1, patches.shape[1]), 9.0), patches])[None]


def test_positions_of_one_column_are_alike_in_a_table_that_says_the_column_alone():
    columns = torch.eye(4).repeat(4, 1)  # (16, 4), row by row: the column, and nothing of the row
    found = axis_cosines(with_class_token(columns))
    assert found["same column"] == pytest.approx(1, abs=1e-6)
    assert found["same row"] == pytest.approx(-1 / 3, abs=1e-6)  # four centred one-hot vectors
    turned = axis_cosines(with_class_token(rearrange(columns, "(r c) d -> (c r) d", r=4)))
    assert turned["same row"] == pytest.approx(1, abs=1e-6)


def test_position_cosines_are_those_of_the_centred_table_at_their_row_and_column():
    table = torch.randn(9, 5)
    found, centred = position_cosines(with_class_token(table)), table - table.mean(dim=0)
    expected = torch.cosine_similarity(centred[3 * 1 + 2], centred[3 * 2 + 0], dim=0)
    assert found[1, 2, 2, 0].item() == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(ValueError, match=r"\(1, 9, 5\)"):
        position_cosines(torch.randn(1, 9, 5))
