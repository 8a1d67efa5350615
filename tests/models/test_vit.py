"""Attention as the lessons call it, in fp32 on a CPU."""

import torch

from vlm_lite.models.vit import attend


def test_in_bf16_a_cpu_computes_it_in_fp32():
    q, k, v = torch.randn(3, 2, 4, 5, 8).bfloat16().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(q, k, v)
    assert torch.equal(mixed, attend(q.float(), k.float(), v.float()).bfloat16())
