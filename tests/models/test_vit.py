"""Attention as the lessons call it, in fp32 on a CPU."""

import pytest
import torch

from vlm_lite.models.vit import attend


@pytest.mark.parametrize("is_causal", [False, True])
def test_it_mixes_values_by_the_softmax_of_scaled_products(is_causal):
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()  # (B, H, N, h)
    scores = q @ k.transpose(-2, -1) / 8**0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(attend(q, k, v, is_causal=is_causal), scores.softmax(dim=-1) @ v)


def test_in_bf16_a_cpu_computes_it_in_fp32():
    q, k, v = torch.randn(3, 2, 4, 5, 8).bfloat16().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(q, k, v)
    assert torch.equal(mixed, attend(q.float(), k.float(), v.float()).bfloat16())
