"""Attention over a few dozen tokens, fast on a CPU."""

import torch
import torch.nn.functional as F


def attend(q, k, v, *, mask=None, is_causal=False, dropout=0.0):
    """softmax(q kᵀ / √h) v for q (B, H, N, h) and k, v (B, H, M, h) -> (B, H, N, h), in the dtype of v.

    mask: bools that fit (B, H, N, M), True where a row may look. On a CPU always in fp32: for such short sequences
    PyTorch's bf16 kernel has a gradient some 20 times slower.
    """
    how = dict(attn_mask=mask, is_causal=is_causal, dropout_p=dropout)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, **how)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how)
    return mixed.to(v.dtype)
