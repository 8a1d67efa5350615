"""The Vision Transformer: cut a picture into patches, and let the patches look at one another.

Follows Dosovitskiy et al. 2021 ("An image is worth 16x16 words"): pre-norm blocks and one class token. The defaults are
the form CLIP uses (Radford et al. 2021), with one extra LayerNorm before the first block; four settings give timm's.
Every parameter has the name and shape it has in `transformers.CLIPVisionModel`, so weights pass between the two without
a table of names; `vit_weights.load_vit` holds the table for timm's.

Shapes: B pictures, N patches, D width, H heads, h = D / H width of one head.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def quick_gelu(x):
    """x * sigmoid(1.702 x), OpenAI's cheap stand-in for GELU. Their released CLIP weights need exactly this one."""
    return x * torch.sigmoid(1.702 * x)


MAX_PIXEL = 20  # no picture in 0..255 that was normalised with a std of 0.05 or more reaches it
SCALE_FIRST = (
    "Scale it first: (x / 255 - mean) / std with the mean and std the model was trained on."
)
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class VisionOutput(NamedTuple):
    """What a `VisionTransformer` returns.

    last_hidden_state (B, 1+N, D): class token first, then the patches row by row; **before** the post-LayerNorm.
    pooled (B, D): the class token, or the mean of the patches, after the post-LayerNorm.
    hidden_states: list of num_layers+1 tensors (B, 1+N, D), or None unless asked for.
    attentions: list of num_layers tensors (B, H, 1+N, 1+N), or None unless asked for.
    logits (B, num_classes): of the head, or None for a model without one.
    """

    last_hidden_state: torch.Tensor
    pooled: torch.Tensor
    hidden_states: list[torch.Tensor] | None
    attentions: list[torch.Tensor] | None
    logits: torch.Tensor | None = None


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √h) v (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, *, width, num_heads):
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"width {width} does not divide into {num_heads} heads. Choose num_heads so that it does, "
                f"for example {max(n for n in range(1, num_heads + 1) if width % n == 0)}."
            )
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x, *, is_causal=False, return_attention=False):
        """x (B, N, D) -> (B, N, D); with `return_attention` also the weights (B, H, N, N), whose rows sum to 1.

        `is_causal=True` lets position i see positions 0..i only: right for text, wrong for patches.
        """
        q, k, v = (
            rearrange(projection(x), "b n (heads h) -> b heads n h", heads=self.num_heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (B, H, N, h)
        mixed = attend(q, k, v, is_causal=is_causal)  # (B, H, N, N) x (B, H, N, h) -> (B, H, N, h)
        out = self.out_proj(rearrange(mixed, "b heads n h -> b n (heads h)"))  # (B, N, D)
        return (out, attention_weights(q, k, is_causal=is_causal)) if return_attention else out


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


def attention_weights(q, k, *, is_causal=False):
    """The weights that `attend` uses but does not return: q (B, H, N, h), k (B, H, M, h) -> (B, H, N, M)."""
    scores = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1)


def attention_rollout(attentions):
    """How much of each output token comes from each input token, if blocks did nothing but mix: (B, N, N).

    attentions: the weights (B, H, N, N) of every block, first block first. Rollout (Abnar and Zuidema 2020, section 3)
    averages the heads, lets half of each token be its own residual stream, and multiplies the blocks' matrices, the
    last on the left.
    """
    rollout = None
    for weights in attentions:
        mixing = (
            weights.float().mean(dim=1) + torch.eye(weights.shape[-1], device=weights.device)
        ) / 2  # (B, N, N)
        rollout = mixing if rollout is None else mixing @ rollout
    return rollout


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to every token alone."""

    def __init__(self, *, width, mlp_width, hidden_act="quick_gelu"):
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act is {hidden_act!r}; expected one of {', '.join(ACTIVATIONS)}."
            )
        self.activation = ACTIVATIONS[hidden_act]
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x):
        """x (B, N, D) -> (B, N, D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm transformer block: tokens talk (attention), then each thinks alone (MLP)."""

    def __init__(
        self, *, width, num_heads, mlp_width, hidden_act="quick_gelu", layer_norm_eps=1e-5
    ):
        super().__init__()
        self.self_attn = Attention(width=width, num_heads=num_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = MLP(width=width, mlp_width=mlp_width, hidden_act=hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps=layer_norm_eps)

    def forward(self, x, *, is_causal=False, return_attention=False):
        """x (B, N, D) -> (B, N, D), and the attention weights (B, H, N, N) when asked for."""
        attended = self.self_attn(
            self.layer_norm1(x), is_causal=is_causal, return_attention=return_attention
        )
        attended, weights = attended if return_attention else (attended, None)
        x = x + attended
        x = x + self.mlp(self.layer_norm2(x))
        return (x, weights) if return_attention else x


class Encoder(nn.Module):
    """A stack of blocks. Both towers of CLIP have one; only the text tower's is causal."""

    def __init__(
        self,
        *,
        width,
        num_layers,
        num_heads,
        mlp_width,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                hidden_act=hidden_act,
                layer_norm_eps=layer_norm_eps,
            )
            for _ in range(num_layers)
        )
        init_encoder(self, width=width, num_layers=num_layers)

    def forward(self, x, *, is_causal=False, num_layers=None):
        """x (B, N, D) -> (B, N, D), through the first `num_layers` blocks (all of them by default)."""
        for block in self.layers[:num_layers]:
            x = block(x, is_causal=is_causal)
        return x


def init_encoder(encoder, *, width, num_layers):
    """Initialise as OpenAI's CLIP does (Radford et al. 2021, `initialize_parameters` of their code).

    What is added to the residual stream (out_proj, fc2) is scaled by 1/√(2·num_layers), for 2·num_layers terms add up.
    """
    residual_std = width**-0.5 * (2 * num_layers) ** -0.5
    stds = {
        "q_proj": width**-0.5,
        "k_proj": width**-0.5,
        "v_proj": width**-0.5,
        "out_proj": residual_std,
        "fc1": (2 * width) ** -0.5,
        "fc2": residual_std,
    }
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=stds[name.rsplit(".", 1)[-1]])
            nn.init.zeros_(module.bias)


class PatchEmbeddings(nn.Module):
    """Picture -> sequence: one linear map of every patch, a class token in front, a learnt place for each."""

    def __init__(self, *, image_size, patch_size, width, patch_bias=False):
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            fits = max(patch_size, image_size // max(1, patch_size) * patch_size)
            raise ValueError(
                f"image_size {image_size} is not a whole number of patches of {patch_size} pixels. "
                f"Use image_size {fits} or another patch_size."
            )
        self.image_size, self.patch_size = image_size, patch_size
        num_patches = (image_size // patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        # Kept as a convolution for its name and shape (D, 3, p, p). With stride = kernel size it is one linear map,
        # the same for every patch, and `forward` runs it as such: on a CPU the gradient is far cheaper.
        self.patch_embedding = nn.Conv2d(
            3, width, kernel_size=patch_size, stride=patch_size, bias=patch_bias
        )
        self.position_embedding = nn.Embedding(num_patches + 1, width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        if patch_bias:
            nn.init.zeros_(self.patch_embedding.bias)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

    def forward(self, pixel_values):
        """pixel_values (B, 3, S, S), floating point -> (B, 1+N, D)."""
        check_pixels(pixel_values, self.image_size, self.patch_embedding.weight.dtype)
        patches = rearrange(
            pixel_values,
            "b channels (rows p) (columns q) -> b (rows columns) (channels p q)",
            p=self.patch_size,
            q=self.patch_size,
        )  # (B, N, 3·p·p)
        patches = F.linear(
            patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias
        )  # (B, N, D)
        cls = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)  # (B, 1, D)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight  # (B, 1+N, D)


def check_pixels(pixel_values, image_size, dtype):
    """Raise ValueError, saying what to do, unless `pixel_values` is a float tensor (B, 3, image_size, image_size).

    Its dtype is that of the weights, `dtype`; under autocast, which brings them together, any but float64.
    On a CPU its values are looked at as well: NaN, infinity and what looks like bytes 0..255 that became floats. (On a
    GPU that would make every step wait; there the training loop stops at the first loss that is NaN.)
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"pixel_values: expected a torch.Tensor, got {torch.typename(pixel_values)}: "
            "torch.from_numpy(...) makes one of an array, torch.stack(...) of a list of tensors."
        )
    given = f"pixel_values is {pixel_values.dtype} of shape {tuple(pixel_values.shape)}"
    expected = f"expected floating point (B, 3, {image_size}, {image_size})"
    if pixel_values.ndim != 4:
        raise ValueError(
            f"{given}; {expected}."
            + (pixel_values.ndim == 3)
            * " For a single picture add the batch axis: pixel_values[None]."
        )
    if pixel_values.shape[1] != 3:
        hint = (
            "Channels come second: use permute(0, 3, 1, 2)."
            if pixel_values.shape[-1] == 3
            else "Convert the picture to RGB first."
        )
        raise ValueError(f"{given}; {expected}. {hint}")
    if pixel_values.shape[2:] != (image_size, image_size):
        raise ValueError(
            f"{given}; {expected}. Resize the picture to {image_size} pixels a side, "
            "or build the model with another image_size."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(f"{given}; {expected}. {SCALE_FIRST}")
    autocast = pixel_values.dtype != torch.float64 and torch.is_autocast_enabled(
        pixel_values.device.type
    )
    if pixel_values.dtype != dtype and not autocast:
        raise ValueError(
            f"{given}, but the weights are {dtype}. Convert it: pixel_values.to({dtype})."
        )
    if pixel_values.device.type == "cpu" and pixel_values.numel():
        low, high = (
            value.item() for value in pixel_values.detach().aminmax()
        )  # NaN where there is any
        if not (math.isfinite(low) and math.isfinite(high)):
            picture = int((~pixel_values.isfinite().flatten(1).all(dim=1)).nonzero()[0])
            raise ValueError(
                f"pixel_values holds NaN or infinity, first in picture {picture} of the batch. Look at "
                "that file, and for a division by a std of 0."
            )
        if max(-low, high) > MAX_PIXEL:
            raise ValueError(
                f"pixel_values lies in {low:.3g}..{high:.3g}; normalised pictures lie within about -3..3. "
                f"{SCALE_FIRST}"
            )


class VisionTransformer(nn.Module):
    """CLIP's image tower without the projection. Equal to `transformers.CLIPVisionModel` with the same weights.

    mlp_width defaults to 4 * width. timm's `VisionTransformer` is `embedding_norm=False, patch_bias=True,
    hidden_act="gelu", layer_norm_eps=1e-6`, with `num_classes` for its head and `pool="mean"` for its
    `global_pool="avg"`: the patches' mean, without the class token.
    """

    def __init__(
        self,
        *,
        image_size,
        patch_size,
        width,
        num_layers,
        num_heads,
        mlp_width=None,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        embedding_norm=True,
        patch_bias=False,
        pool="cls",
        num_classes=0,
    ):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(
                f"pool is {pool!r}; expected 'cls' (the class token) or 'mean' (of the patches)."
            )
        self.embeddings = PatchEmbeddings(
            image_size=image_size, patch_size=patch_size, width=width, patch_bias=patch_bias
        )
        self.image_size, self.patch_size, self.width, self.num_layers = (
            image_size,
            patch_size,
            width,
            num_layers,
        )
        self.num_patches, self.feature_width, self.pool = (
            (image_size // patch_size) ** 2,
            width,
            pool,
        )
        # The spelling is that of the released weights.
        self.pre_layrnorm = (
            nn.LayerNorm(width, eps=layer_norm_eps) if embedding_norm else nn.Identity()
        )
        self.encoder = Encoder(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_width=mlp_width or 4 * width,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
        )
        self.post_layernorm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.head = nn.Linear(width, num_classes) if num_classes else None

    def forward(self, pixel_values, *, output_hidden_states=False, output_attentions=False):
        """pixel_values (B, 3, S, S), normalised floats -> VisionOutput. ValueError for what `check_pixels` refuses."""
        x = self.pre_layrnorm(self.embeddings(pixel_values))  # (B, 1+N, D)
        hidden_states, attentions = [x], []
        for block in self.encoder.layers:
            x, weights = block(x, return_attention=True) if output_attentions else (block(x), None)
            attentions.append(weights)
            hidden_states.append(x)
        pooled = self.post_layernorm(
            x[:, 0] if self.pool == "cls" else x[:, 1:].mean(dim=1)
        )  # (B, D)
        return VisionOutput(
            x,
            pooled,
            hidden_states if output_hidden_states else None,
            attentions if output_attentions else None,
            self.head(pooled) if self.head else None,
        )

    def patch_features(self, pixel_values, *, layer=-2):
        """The patches' hidden states: (B, 3, S, S) -> (B, N, D), `hidden_states[layer]` without the class token.

        Layer -2 is what LLaVA takes (Liu et al. 2023, section 4.1): the last block works for the class token alone,
        since CLIP's loss sees nothing else. Blocks after `layer` are not run.
        """
        if not -self.num_layers - 1 <= layer <= self.num_layers:
            raise ValueError(
                f"layer is {layer}, but {self.num_layers} blocks have hidden states "
                f"{-self.num_layers - 1}..{self.num_layers}. Choose one of them."
            )
        depth = layer % (
            self.num_layers + 1
        )  # hidden_states[depth] is the output of the first `depth` blocks
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), num_layers=depth)
        return x[:, 1:]
