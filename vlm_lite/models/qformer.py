"""The Q-Former: a few learnt queries that read a whole picture and hand on a short summary of it.

Li et al. 2023, "BLIP-2" (section 3.1): the queries are parameters, the same for every picture. In each layer they

1. talk to one another (self-attention; every query sees every query, **both ways**: they are a set, not a sentence),
2. look at the picture (cross-attention; in every `cross_attention_frequency`-th layer, the first included),
3. and think alone (MLP),

each step followed by "add and LayerNorm" (post-norm, as in BERT). Whatever the number N of patches, Q vectors come out.
With the same weights the result equals that of `transformers.Blip2QFormerModel`.

Shapes: B pictures, N patches of width Dv, Q queries of width D, H heads of width h = D / H.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from vlm_lite.models.vit import attend, attention_weights

LAYER_NORM_EPS = 1e-12  # BERT's


class QFormerAttention(nn.Module):
    """x looks at `source`: self-attention if that is x itself, cross-attention if it is the picture."""

    def __init__(self, *, width, num_heads, source_width, dropout=0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"width {width} does not divide into {num_heads} heads. Choose num_heads so that it does, "
                f"for example {max(n for n in range(1, num_heads + 1) if width % n == 0)}."
            )
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)  # what x asks for
        self.key = nn.Linear(source_width, width)  # what the source offers
        self.value = nn.Linear(source_width, width)  # what the source gives
        self.output = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x, source, *, mask=None, return_attention=False):
        """x (B, Q, D), source (B, N, Ds) -> (B, Q, D); with `return_attention` also the weights (B, H, Q, N).

        mask (B, Q, N): bools, True where x may look; by default nobody is hidden, as among the queries of a picture.
        """
        split = "b n (heads h) -> b heads n h"
        q = rearrange(self.query(x), split, heads=self.num_heads)  # (B, H, Q, h)
        k = rearrange(self.key(source), split, heads=self.num_heads)  # (B, H, N, h)
        v = rearrange(self.value(source), split, heads=self.num_heads)  # (B, H, N, h)
        mask = None if mask is None else mask[:, None]  # one for all heads
        mixed = attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        out = self.output(rearrange(mixed, "b heads n h -> b n (heads h)"))  # (B, Q, D)
        return out, attention_weights(q, k) if return_attention else None


class QFormerLayer(nn.Module):
    """Talk to one another, look at the picture (if `looks`), think alone."""

    def __init__(self, *, width, num_heads, mlp_width, vision_width, looks, dropout=0.0):
        super().__init__()
        self.looks = looks
        self.self_attention = QFormerAttention(
            width=width, num_heads=num_heads, source_width=width, dropout=dropout
        )
        self.self_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        if looks:
            self.cross_attention = QFormerAttention(
                width=width, num_heads=num_heads, source_width=vision_width, dropout=dropout
            )
            self.cross_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries, image_embeds, *, return_attention=False):
        """queries (B, Q, D), image_embeds (B, N, Dv) -> queries (B, Q, D), cross-attention (B, H, Q, N) or None."""
        talked, _ = self.self_attention(queries, queries)
        queries = self.self_norm(queries + self.dropout(talked))
        return self.look_and_think(queries, image_embeds, return_attention=return_attention)

    def look_and_think(self, queries, image_embeds, *, return_attention=False):
        """What follows after the queries have talked: the same arguments and results as `forward`."""
        attention = None
        if self.looks:
            seen, attention = self.cross_attention(
                queries, image_embeds, return_attention=return_attention
            )
            queries = self.cross_norm(queries + self.dropout(seen))

        thought = self.mlp_out(F.gelu(self.mlp_in(queries)))
        queries = self.mlp_norm(queries + self.dropout(thought))
        return queries, attention


class QFormer(nn.Module):
    """Q learnt queries, `num_layers` layers. The defaults of BLIP-2 are 32 queries, width 768, 12 layers, 12 heads."""

    def __init__(
        self,
        *,
        num_query_tokens,
        width,
        num_layers,
        num_heads,
        vision_width,
        mlp_width=None,
        cross_attention_frequency=2,
        dropout=0.0,
    ):
        super().__init__()
        for name, value in (
            ("num_query_tokens", num_query_tokens),
            ("num_layers", num_layers),
            ("cross_attention_frequency", cross_attention_frequency),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        self.vision_width = vision_width
        self.query_tokens = nn.Parameter(torch.empty(num_query_tokens, width))
        self.input_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width or 4 * width,
                vision_width=vision_width,
                looks=index % cross_attention_frequency == 0,
                dropout=dropout,
            )
            for index in range(num_layers)
        )
        self.apply(init_linear)
        # Queries of zeros give Q equal outputs, and LayerNorm's gradient divides by almost nothing. So noise.
        nn.init.normal_(self.query_tokens, std=0.02)
        # BERT's 0.02 is made for width 768. In a narrow Q-Former every query would at first see the mean of all
        # patches; with 1 / √fan-in the scores are near 1, so that queries look at different patches at once.
        for layer in self.layers:
            for linear in (
                (layer.cross_attention.query, layer.cross_attention.key) if layer.looks else ()
            ):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, image_embeds, *, return_attention=False):
        """image_embeds (B, N, Dv) -> (B, Q, D).

        With `return_attention` also the last cross-attention maps (B, H, Q, N): how much each query looked at each
        patch; over the patches they sum to 1. ValueError when the width is not Dv.
        """
        check_features(image_embeds, self.vision_width)
        queries = repeat(self.query_tokens, "q d -> b q d", b=len(image_embeds))  # (B, Q, D)
        queries = self.dropout(self.input_norm(queries))
        last_attention = None
        for layer in self.layers:
            queries, attention = layer(queries, image_embeds, return_attention=return_attention)
            last_attention = last_attention if attention is None else attention
        return (queries, last_attention) if return_attention else queries


class QFormerConnector(nn.Module):
    """Q-Former, then one linear layer to the language model's width: BLIP-2's bridge from a picture to a prefix.

    The picture's features pass a LayerNorm first (`ln_vision` in the authors' code), since hidden states of a CLIP have
    a few channels far larger than the rest. width defaults to vision_width, num_heads to width / 32.
    """

    def __init__(
        self,
        *,
        vision_width,
        language_width,
        num_query_tokens=8,
        width=None,
        num_layers=2,
        num_heads=None,
        mlp_width=None,
        cross_attention_frequency=2,
        dropout=0.0,
    ):
        super().__init__()
        width = width or vision_width
        num_heads = num_heads or max(1, width // 32)
        self.settings = dict(
            vision_width=vision_width,
            language_width=language_width,
            width=width,
            num_query_tokens=num_query_tokens,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_width=mlp_width,
            cross_attention_frequency=cross_attention_frequency,
            dropout=dropout,
        )
        self.vision_width, self.language_width = vision_width, language_width
        self.vision_norm = nn.LayerNorm(vision_width)
        self.qformer = QFormer(
            num_query_tokens=num_query_tokens,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_width=mlp_width,
            vision_width=vision_width,
            cross_attention_frequency=cross_attention_frequency,
            dropout=dropout,
        )
        self.language_projection = nn.Linear(width, language_width)
        init_linear(self.language_projection)

    def forward(self, image_embeds, *, return_attention=False):
        """image_embeds (B, N, Dv) -> prefix (B, Q, D_lm); with `return_attention` also maps (B, H, Q, N)."""
        check_features(image_embeds, self.vision_width)
        queries = self.qformer(self.vision_norm(image_embeds), return_attention=return_attention)
        queries, attention = queries if return_attention else (queries, None)
        prefix = self.language_projection(queries)  # (B, Q, D) -> (B, Q, D_lm)
        return (prefix, attention) if return_attention else prefix


def init_linear(module):
    """BERT's initialisation of a linear layer: weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def check_features(features, vision_width):
    """Raise ValueError, saying what to do, unless `features` is a float tensor (B, N, vision_width)."""
    given = f"image features are {features.dtype} of shape {tuple(features.shape)}"
    expected = f"expected floating point (B, N, {vision_width})"
    if features.ndim == 4:
        raise ValueError(
            f"{given}; {expected}. These look like pixels: encode them first, vlm.encode(pixel_values)."
        )
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(
            f"{given}; {expected}. They come from vision.patch_features(pixel_values)."
        )
    if features.shape[-1] != vision_width:
        raise ValueError(
            f"{given}; {expected}. The connector was built for another vision tower: "
            f"build it with vision_width={features.shape[-1]}, or load the tower it was trained on."
        )
