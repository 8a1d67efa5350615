"""Attention as the lessons call it: its weights are those it mixes with, in fp32 on a CPU."""

import pytest
import torch

from vlm_lite.models.vit import attend, attention_weights


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_mixes_with_the_weights_that_are_shown(is_causal):
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()  # (B, H, N, h)
    weights = attention_weights(q, k, is_causal=is_causal)
    torch.testing.assert_close(attend(q, k, v, is_causal=is_causal), weights @ v)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))
    assert (weights.triu(1) == 0).all() == is_causal


def test_in_bf16_a_cpu_computes_it_in_fp32():
    q, k, v = torch.randn(3, 2, 4, 5, 8).bfloat16().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(q, k, v)
    assert torch.equal(mixed, attend(q.float(), k.float(), v.float()).bfloat16())
