"""How alike the positions of one column, and of one row, are."""

import pytest
import torch
from einops import rearrange

from vlm_lite.models.positions import axis_cosines, position_cosines


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
    with pytest.raises(AssertionError, match=r"\(1, 9, 5\)"):
        position_cosines(torch.randn(1, 9, 5))
