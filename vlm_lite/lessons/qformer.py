"""A Q-Former, equal to BLIP-2's, and the vision-language model around it.

Generated from notebooks/03_qformer_gpt2.py by `make notebooks`: edit the notebook.
"""

import torch
from einops import rearrange
from torch import nn

from vlm_lite.models.parts import init_linear


class MultiHeadAttention(nn.Module):
    """x (B, Q, D) attends to source (B, N, Ds) -> (B, Q, D); the weights (B, H, Q, N) stay in `self.weights`."""

    def __init__(self, width, num_heads, source_width):
        super().__init__()
        assert width % num_heads == 0, f"width {width} does not divide into {num_heads} heads"
        self.num_heads, self.weights = num_heads, None
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)

    def forward(self, x, source):
        projected = self.query(x), self.key(source), self.value(source)
        split = "b n (heads h) -> b heads n h"
        q, k, v = (rearrange(each, split, heads=self.num_heads) for each in projected)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, Q, N)
        self.weights = weights.detach()
        mixed = weights @ v  # (B, H, Q, N) x (B, H, N, h) -> (B, H, Q, h)
        return self.output(rearrange(mixed, "b heads n h -> b n (heads h)"))


class QFormerLayer(nn.Module):
    """queries (B, Q, D), patches (B, N, Dv) -> queries (B, Q, D)."""

    def __init__(self, width, num_heads, mlp_width, vision_width, cross=True):
        super().__init__()
        self.cross = cross
        self.self_attention = MultiHeadAttention(width, num_heads, width)
        self.self_norm = nn.LayerNorm(width, eps=1e-12)
        if cross:
            self.cross_attention = MultiHeadAttention(width, num_heads, vision_width)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, queries, patches):
        queries = self.self_norm(queries + self.self_attention(queries, queries))
        if self.cross:
            queries = self.cross_norm(queries + self.cross_attention(queries, patches))
        return self.mlp_norm(queries + self.mlp_out(nn.functional.gelu(self.mlp_in(queries))))


class QFormer(nn.Module):
    """patches (B, N, Dv) -> (B, Q, D) (Li et al. 2023, section 3.1)."""

    def __init__(self, vision_width, *, num_query_tokens=16, width=192, num_layers=3, num_heads=6,
                 mlp_width=768, cross_attention_frequency=1):  # fmt: skip
        super().__init__()
        self.query_tokens = nn.Parameter(0.02 * torch.randn(num_query_tokens, width))
        self.input_norm = nn.LayerNorm(width, eps=1e-12)
        crosses = [k % cross_attention_frequency == 0 for k in range(num_layers)]
        sizes = width, num_heads, mlp_width, vision_width
        self.layers = nn.ModuleList(QFormerLayer(*sizes, cross) for cross in crosses)
        # BERT's start, N(0, 0.02); queries and keys of the cross-attention larger: scores near 1
        init_linear(self, sharp=("cross_attention.query", "cross_attention.key"))

    def forward(self, patches):
        queries = self.input_norm(self.query_tokens).expand(len(patches), -1, -1)  # (B, Q, D)
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries


class QFormerConnector(nn.Module):
    """features (B, N, Dv) -> prefix (B, Q, D_lm); `sizes` as in QFormer."""

    def __init__(self, vision_width, language_width, **sizes):
        super().__init__()
        self.settings = {"vision_width": vision_width, "language_width": language_width, **sizes}
        self.vision_norm = nn.LayerNorm(vision_width)
        self.qformer = QFormer(vision_width, **sizes)
        self.language_projection = nn.Linear(self.qformer.query_tokens.shape[1], language_width)
        init_linear(self.language_projection)

    def forward(self, features):
        return self.language_projection(self.qformer(self.vision_norm(features)))
