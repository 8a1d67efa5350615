# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vlm_lite:
#     title: A small modern VLM
#     builds: SmolVLM's architecture, from RMSNorm to generation with a KV cache, equal to transformers' and trained on Shapes
#     lesson: modern
#     reads: [zoo/shapes-clip]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/09_modern_vlm.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

# %% [markdown]
# # 9. A small modern VLM
#
# Notebooks 03 and 04 took a GPT-2 as it is. Here you write every part yourself, and in the architecture that open models now use: that of **SmolVLM** (Marafioti et al.
# 2025), whose smallest release has 256M parameters. A ViT encodes the image, *pixel shuffle* and one linear layer turn it into a few vectors, and a *Llama* reads them among the words.
#
# **You will build** RMSNorm, SwiGLU, rotary positions, grouped-query attention, pixel shuffle, the insertion of images, and generation with a KV cache.
#
# **You will be able to show** that the whole model has the logits and the answers of `transformers`' SmolVLM, given the same weights; that, trained on Shapes, it answers from
# the image; and where the parameters, the arithmetic and the memory of SmolVLM2-256M are.
#
# **Reading time:** 25 minutes. Seven exercises, 50 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** not measured yet on `tiny`.
# <!-- /figures -->
# **Before this:** attention, as in [02](02_vit.ipynb); labels and controls, as in [03](03_qformer_gpt2.ipynb).

# %% tags=["hide"] cellView="form"
# @title The whole model in one diagram
import dataclasses
import time

import pandas as pd
from IPython.display import display
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMConfig
from transformers import SmolVLMForConditionalGeneration
from transformers.models.llama import modeling_llama as llama

from vlm_lite import diagrams, plots
from vlm_lite.data.language import make_tokenizer
from vlm_lite.encoded import encode_shapes, probe
from vlm_lite.figures import BLUE, GREY, INK, ORANGE, PALE, VERMILLION, Figure
from vlm_lite.labs import check
from vlm_lite.labs.core import random_weights
from vlm_lite.models.clip import CLIP
from vlm_lite.profiles import resolve_model

tokenizer, clip = make_tokenizer(), CLIP.from_pretrained(resolve_model("shapes-clip"))
val = encode_shapes(clip, "val", profile.val_images)  # none of them is trained on
vision_sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3}
vision_sizes |= {"num_attention_heads": 4, "image_size": 64, "patch_size": 16}
text_sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
text_sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
text_sizes |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
text_sizes |= {"model_type": "llama", "tie_word_embeddings": True}
config = SmolVLMConfig(
    vision_config=vision_sizes,
    text_config=text_sizes,
    scale_factor=2,
    image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    tie_word_embeddings=True,
)
diagrams.modern_vlm(config, tokenizer, val.images[2], val.turns[2][1])

# %% tags=["save"]
import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.embed import pixel_values
from vlm_lite.models import text
from vlm_lite.models.vit import attend
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute

# %% [markdown]
# ## 1. RMSNorm and SwiGLU
#
# GPT-2's LayerNorm subtracts the mean, divides by the standard deviation, scales and shifts. **RMSNorm** (Zhang and Sennrich 2019) only divides and scales:
#
# $$\mathrm{RMSNorm}(x) = \frac{x}{\sqrt{\tfrac1D \sum_i x_i^2 + \epsilon}} \odot w$$
#
# It trains as well, with less to compute and no bias. Llama has it before each step and before the output head, and none of its linear layers has a bias.
#
# **Exercise 1: RMSNorm.** ★☆☆ 4 minutes. Write `forward`. Compute in fp32 and return the type that came in.
# <details><summary>Hint</summary>
#
# `torch.rsqrt` is one over the root. The mean runs over the last axis, with `keepdim=True`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "RMSNorm", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class RMSNorm(nn.Module):
    """x (..., D) over its root mean square, times a learnt weight (Zhang and Sennrich 2019)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        ### BEGIN SOLUTION
        wide = x.float()  # squares of fp16 or bf16 would lose digits
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "RMSNorm-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
RMSNorm = check.RMSNorm(RMSNorm)


# %% [markdown]
# GPT-2's MLP is linear, GELU, linear. **SwiGLU** (Shazeer 2020) has two projections to the inner width. One of them, through SiLU ($x \cdot \sigma(x)$), is a gate for the other:
#
# $$\mathrm{SwiGLU}(x) = W_{down}\,\big(\mathrm{SiLU}(W_{gate}\,x) \odot W_{up}\,x\big)$$
#
# Three matrices instead of two: with an inner width of $\tfrac83 D$ instead of $4D$ the count of parameters is the same.
#
# **Exercise 2: SwiGLU.** ★☆☆ 3 minutes. Write `forward`.
# <details><summary>Hint</summary>
#
# `F.silu`; one line.
# </details>


# %% nbgrader={"grade": false, "grade_id": "SwiGLU", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class SwiGLU(nn.Module):
    """x (..., D) -> (..., D): one projection opens and closes the channels of another (Shazeer 2020)."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        ### BEGIN SOLUTION
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "SwiGLU-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
SwiGLU = check.SwiGLU(SwiGLU)


# %%
language = config.text_config
x = torch.randn(2, 5, language.hidden_size)
check.same_outputs(RMSNorm(128, 1e-6), llama.LlamaRMSNorm(128), x)
check.same_outputs(SwiGLU(128, 384), llama.LlamaMLP(language), x)

# %% [markdown]
# ## 2. RoPE: a position is a rotation
#
# GPT-2 adds a learnt vector for each position, up to a largest one. **RoPE** (Su et al. 2021) learns nothing: it *turns* queries and keys. The $h$ numbers of a head form $h/2$ pairs,
# $x_i$ with $x_{i+h/2}$; at position $p$, pair $i$ turns by the angle $p\,\theta^{-2i/h}$:
#
# $$\begin{pmatrix} x_i \\ x_{i+h/2} \end{pmatrix} \to \begin{pmatrix} x_i \cos\alpha - x_{i+h/2} \sin\alpha \\ x_{i+h/2} \cos\alpha + x_i \sin\alpha \end{pmatrix},
# \qquad \alpha = p\,\theta^{-2i/h}$$
#
# A dot product of two turned vectors depends on the *difference* of their angles alone. So attention sees how far apart two positions are, in every layer.
#
# **Exercise 3: turn the pairs.** ★★☆ 6 minutes. `rope_tables` is given.
# <details><summary>Hint</summary>
#
# `x.chunk(2, dim=-1)` gives the halves. Written for all pairs at once: $x \cos\alpha$ plus (minus the second half, the first half) $\sin\alpha$.
# </details>


# %% nbgrader={"grade": false, "grade_id": "apply_rope", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def rope_tables(positions, head_dim, theta):
    """positions (B, T) -> cos and sin of the angles, each (B, 1, T, h): the two halves of h repeat them."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, h / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """x (B, H, T, h) with each pair (i, i + h / 2) turned by its position's angle -> (B, H, T, h)."""
    ### BEGIN SOLUTION
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "apply_rope-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
apply_rope = check.apply_rope(apply_rope)


# %%
q, k = torch.randn(2, 1, 4, 5, 32)  # each (1, heads, T, h)
positions = torch.arange(5)[None]
scores = []
for start in (0, 1000):
    tables = rope_tables(positions + start, 32, 10_000.0)
    scores.append(apply_rope(q, *tables) @ apply_rope(k, *tables).mT)  # (1, heads, T, T)
torch.testing.assert_close(*scores, atol=1e-3, rtol=1e-3)  # only distances count
tables = rope_tables(positions, 32, 10_000.0)
theirs = llama.apply_rotary_pos_emb(q, k, *(each[:, 0] for each in tables))
torch.testing.assert_close((apply_rope(q, *tables), apply_rope(k, *tables)), theirs)
shifted = (q * each[0] @ (k * each[0]).mT for each in (tables, rope_tables(positions + 9, 32, 1e4)))
assert not torch.allclose(*shifted, atol=0.1)  # multiplying by cos alone is no rotation

# %% [markdown]
# ## 3. Grouped-query attention
#
# Generation keeps the keys and values of everything read: the **KV cache**. With $H$ heads it holds $2 H h$ numbers a layer and position, and soon outweighs all else. **Grouped-query
# attention** (Ainslie et al. 2023) has $H$ heads of queries and only $G$ of keys and values; each serves $H / G$ neighbouring query heads:
#
# $$\text{head}_j = \mathrm{softmax}\!\Big(\frac{q_j\,k_g^\top}{\sqrt h} + \text{mask}\Big)\, v_g, \qquad g = \lfloor j\,G / H \rfloor$$
#
# The cache is $H / G$ times smaller: three times in SmolVLM2-256M ($H = 9$, $G = 3$).
#
# **Exercise 4: attention with groups and a cache.** ★★★ 15 minutes. Write `forward`: project, split, turn, put `past` in front, repeat, attend, merge. Return the new keys and values *before* they are repeated.
# `attend(q, k, v, mask=reads)` is the softmax average; `reads` is True where a position may look.
# <details><summary>Hint</summary>
#
# `"b t (heads h) -> b heads t h"` with `h=self.head_dim` splits queries and keys alike. `keys.repeat_interleave(share, dim=1)` gives neighbours the same keys.
# </details>


# %% nbgrader={"grade": false, "grade_id": "GroupedQueryAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class GroupedQueryAttention(nn.Module):
    """x (B, T, D) -> (B, T, D), and the keys and values (B, G, S, h) of all S positions so far."""

    def __init__(self, config):
        super().__init__()
        self.head_dim, width = config.head_dim, config.hidden_size
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        assert queries % groups == 0, f"{queries} heads of queries can't share {groups} of keys"
        self.q_proj = nn.Linear(width, queries * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(queries * self.head_dim, width, bias=False)

    def forward(self, x, rope, reads, past=None):
        """rope: cos, sin (B, 1, T, h); reads: bools (B, 1, T, S); past: keys and values before x, or None."""
        ### BEGIN SOLUTION
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b t (heads h) -> b heads t h"
        q, k, v = (rearrange(each, split, h=self.head_dim) for each in projected)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        share = q.shape[1] // k.shape[1]  # query heads that share one head of keys and values
        keys, values = (each.repeat_interleave(share, dim=1) for each in (k, v))  # (B, H, S, h)
        mixed = attend(q, keys, values, mask=reads)
        return self.o_proj(rearrange(mixed, "b heads t h -> b t (heads h)")), (k, v)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "GroupedQueryAttention-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
GroupedQueryAttention = check.GroupedQueryAttention(GroupedQueryAttention)


# %% [markdown]
# ## 4. The Llama
#
# A layer is $x + \mathrm{attention}(\mathrm{norm}(x))$, then $x + \mathrm{SwiGLU}(\mathrm{norm}(x))$. The output head may be the table of embeddings itself (*tied*, as in SmolLM2-135M). A position
# reads what is no padding and not after it; padding reads itself, since a softmax over nothing is undefined.


# %% tags=["save"]
class LlamaLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(width, eps),
            RMSNorm(width, eps),
        )
        self.self_attn = GroupedQueryAttention(config)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, x, rope, reads, past=None):
        mixed, kept = self.self_attn(self.input_layernorm(x), rope, reads, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Llama(nn.Module):
    """Vectors (B, T, D) -> logits (B, T, V), and a cache: keys and values (B, G, S, h) of every layer."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeds, attention_mask=None, cache=None):
        """attention_mask (B, S): 1 for text, 0 for padding, of what the cache holds and of embeds."""
        length, past = embeds.shape[1], cache[0][0].shape[2] if cache else 0
        if attention_mask is None:
            attention_mask = torch.ones(len(embeds), past + length, device=embeds.device)
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # (B, T)
        keys = torch.arange(past + length, device=embeds.device)
        queries = keys[past:, None]  # (T, 1)
        reads = (keys <= queries) & attention_mask[:, None].bool() | (keys == queries)  # (B, T, S)
        theta = self.config.rope_parameters["rope_theta"]
        rope = rope_tables(positions, self.config.head_dim, theta)
        x, kept = embeds, []
        for layer, before in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, both = layer(x, rope, reads[:, None], before)
            kept.append(both)
        return self.lm_head(self.norm(x)), kept


# %% [markdown]
# The names are those of `transformers`, so a state dict of any Llama fits. Below: a `LlamaForCausalLM` of three layers, six heads and three groups, random weights, untied. The language model of
# SmolVLM2-256M, SmolLM2-135M, is such a state dict too, with 30 layers.


# %% tags=["save"]
def load_from(model, state):
    """Copy a state dict of transformers' Llama or SmolVLM, whose names are the same but for their nesting."""
    shorter = {}
    for name, value in state.items():
        name = name.removeprefix("model.").replace("embeddings.", "").replace("encoder.", "")
        name = name.replace("modality_projection.", "")
        if name == "lm_head.weight" and hasattr(model, "text_model"):
            name = "text_model.lm_head.weight"
        shorter[name] = value
    model.load_state_dict(shorter)
    return model.eval()


# %%
sizes = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6}
sizes |= {"num_key_value_heads": 3, "num_hidden_layers": 3, "tie_word_embeddings": False}
other = LlamaConfig(vocab_size=500, attn_implementation="eager", **sizes)
theirs = random_weights(LlamaForCausalLM(other))
mine = load_from(Llama(other), theirs.state_dict())
ids = torch.randint(500, (2, 9))
with torch.no_grad():
    right, found = theirs(input_ids=ids).logits, mine(mine.embed_tokens(ids))[0]
    x, rope = mine.embed_tokens(ids), rope_tables(torch.arange(9)[None], 16, 10_000.0)
    reads = torch.ones(1, 1, 9, 9).tril().bool()
    hidden = torch.zeros(1, 1, 9, 9).masked_fill(~reads, -torch.inf)
    part = theirs.model.layers[0].self_attn(x, [each[:, 0] for each in rope], hidden)[0]
    torch.testing.assert_close(mine.layers[0].self_attn(x, rope, reads)[0], part)
torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
print(f"attention, and logits (2, 9, 500): largest difference {(found - right).abs().max():.0e}")

# %% [markdown]
# ## 5. From pixels to a few vectors
#
# **The vision encoder** is SigLIP's ViT: 02's, without a class token, with GELU's tanh approximation, and learnt positions.


# %% tags=["save"]
class VisionAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x):
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b n (heads h) -> b heads n h"
        mixed = attend(*(rearrange(each, split, heads=self.num_heads) for each in projected))
        return self.out_proj(rearrange(mixed, "b heads n h -> b n (heads h)"))


class VisionLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.self_attn = VisionAttention(width, config.num_attention_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        inner = F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh")
        return x + self.mlp["fc2"](inner)


class VisionEncoder(nn.Module):
    """Pixels (I, 3, S, S) -> (I, N, Dv): SigLIP's ViT, with learnt positions and no class token."""

    def __init__(self, config):
        super().__init__()
        self.side, patch, width = config.image_size, config.patch_size, config.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2, width)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels):
        if pixels.shape[1:] != (3, self.side, self.side):
            expected = f"(I, 3, {self.side}, {self.side})"
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected {expected}")
        x = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)


# %% [markdown]
# SmolVLM cuts a tile of 512 pixels into 32 x 32 patches. A projector like LLaVA's would give the language model 1,024 vectors for it. **Pixel shuffle** puts each square of $s \times s$ patches
# side by side in one vector: the grid gets $s$ times smaller each way and the vectors $s^2$ times wider. Nothing is lost:
#
# $$N \times D_v \;\to\; \frac{N}{s^2} \times s^2 D_v \qquad (\text{SmolVLM: } s = 4,\ 1024 \times 768 \to 64 \times 12288)$$
#
# **Exercise 5: pixel shuffle.** ★★☆ 6 minutes. In a square, the patches go row by row, and the channels of a patch stay together.
# <details><summary>Hint</summary>
#
# One `rearrange`: name the rows of squares, the rows in a square, and the same for columns. The side of the grid is the root of N.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pixel_shuffle", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def pixel_shuffle(features, scale):
    """features (I, N, Dv) of a square grid -> (I, N / scale², Dv · scale²): squares of patches side by side."""
    ### BEGIN SOLUTION
    rows = round(features.shape[1] ** 0.5) // scale
    squares = "i (rows r columns c) d -> i (rows columns) (r c d)"
    return rearrange(features, squares, rows=rows, r=scale, c=scale)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pixel_shuffle-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pixel_shuffle = check.pixel_shuffle(pixel_shuffle)


# %% [markdown]
# **The connector** is often called an MLP. In `transformers` it is pixel shuffle and **one linear layer without a bias**; so it is here.


# %% tags=["save"]
class Connector(nn.Module):
    """features (I, N, Dv) -> image embeddings (I, N / scale², D): pixel shuffle, then one linear layer."""

    def __init__(self, config):
        super().__init__()
        self.scale, width = config.scale_factor, config.vision_config.hidden_size
        self.proj = nn.Linear(width * self.scale**2, config.text_config.hidden_size, bias=False)

    def forward(self, features):
        return self.proj(pixel_shuffle(features, self.scale))


# %% [markdown]
# ## 6. Images among the words
#
# 04 put the vectors where *one* `<image>` stood, and the row grew. SmolVLM's text has the image token **as often as the image has vectors**; each is replaced, and no length changes. Any number of images may
# stand anywhere. Should the counts disagree, every later vector would be wrong without a word: so it must be an error.
#
# **Exercise 6: insert the images.** ★★☆ 7 minutes. The vectors of all images, in order, at the image tokens of all rows. Where the counts differ, a `ValueError` that says both.
# <details><summary>Hint</summary>
#
# `tensor.masked_scatter(mask, source)` fills the places of a mask, in order, from another tensor. The mask needs a last axis: `mask[..., None]`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "insert_images", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def insert_images(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (B, T, D) of input_ids (B, T), with image_embeds (I, N, D) at the I · N image tokens, in order."""
    ### BEGIN SOLUTION
    at_image = input_ids == image_id  # (B, T)
    found, needed = int(at_image.sum()), image_embeds.shape[0] * image_embeds.shape[1]
    if found != needed:
        images = f"{len(image_embeds)} images of {image_embeds.shape[1]} vectors need {needed}"
        raise ValueError(f"the text has {found} image tokens; {images}")
    return token_embeds.masked_scatter(at_image[..., None], image_embeds.to(token_embeds.dtype))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "insert_images-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
insert_images = check.insert_images(insert_images)


# %% [markdown]
# **The whole model** in 20 lines. `config` is the `SmolVLMConfig` of `transformers`: the same object builds theirs.


# %% tags=["save"]
class ModernVLM(nn.Module):
    """SmolVLM: a ViT, pixel shuffle and a linear layer, a Llama. config: transformers' SmolVLMConfig."""

    def __init__(self, config):
        super().__init__()
        self.vision_model, self.connector = VisionEncoder(config.vision_config), Connector(config)
        self.text_model, self.image_id = Llama(config.text_config), config.image_token_id

    def encode(self, pixels):
        """Pixels (I, 3, S, S) -> image embeddings (I, N, D)."""
        return self.connector(self.vision_model(pixels))

    def embed(self, input_ids, image_embeds=None):
        """Token ids (B, T), with image embeddings (I, N, D) where the image tokens are -> (B, T, D)."""
        embeds = self.text_model.embed_tokens(input_ids)
        if image_embeds is None:
            return embeds
        return insert_images(embeds, input_ids, image_embeds, self.image_id)

    def forward(self, input_ids, attention_mask=None, pixels=None):
        """ids (B, T), mask (B, T), pixels (I, 3, S, S) or None -> logits (B, T, V)."""
        image_embeds = None if pixels is None else self.encode(pixels)
        return self.text_model(self.embed(input_ids, image_embeds), attention_mask)[0]


# %% [markdown]
# **The proof.** A SmolVLM of the sizes in the diagram, random weights, copied into yours: encoder, connector and logits, each compared.

# %%
torch.manual_seed(0)
theirs = random_weights(SmolVLMForConditionalGeneration(config))
mine = load_from(ModernVLM(config), theirs.state_dict())
pixels, image = pixel_values(val.images[:2]), [config.image_token_id] * 4
prompts = [tokenizer(val.turns[k][1][0])["input_ids"] for k in (0, 1)]
length = max(map(len, prompts))
ids = torch.tensor([[0] * (length - len(row)) + image + row for row in prompts])
mask = (ids != 0).long()
with torch.no_grad():
    features = mine.vision_model(pixels)
    pairs = {
        "vision encoder": (features, theirs.model.vision_model(pixels).last_hidden_state),
        "connector": (mine.connector(features), theirs.model.connector(features)),
        "logits": (
            mine(ids, mask, pixels)[mask.bool()],
            theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels[:, None]).logits[
                mask.bool()
            ],
        ),
    }
for name, (found, right) in pairs.items():
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    print(f"{name} {tuple(found.shape)}: largest difference {(found - right).abs().max():.0e}")
try:
    mine(ids[:, :-1].where(ids[:, :-1] != config.image_token_id, 9), None, pixels)
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## 7. Generation with a KV cache
#
# First the model reads the whole prompt and keeps the keys and values of each layer. From then on it reads **one** vector a round: the embedding of the token that it has just said. Nothing before it can change,
# because no position reads what comes after it.
#
# Rows differ in length, and the next token must follow the last word of each: the padding is on the left. Positions are counted from the mask.
#
# **Exercise 7: one round.** ★★★ 10 minutes. Call the Llama; take the most probable token at the last position; keep it; note which rows are finished; make the next `embeds` and `attention_mask`.
# <details><summary>Hint</summary>
#
# `model.text_model(embeds, attention_mask, cache)` returns logits and the new cache. `model.text_model.embed_tokens(token[:, None])` has shape (B, 1, D). The mask grows by a column of ones.
# </details>


# %% nbgrader={"grade": false, "grade_id": "cached_generate", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
@torch.no_grad()
def generate(model, input_ids, attention_mask, image_embeds=None, max_new_tokens=16, eos=None):
    """Prompts (B, T), padded on the left -> greedy new tokens (B, up to max_new_tokens), until each row said eos."""
    embeds, cache, said = model.embed(input_ids, image_embeds), None, []
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        ### BEGIN SOLUTION
        logits, cache = model.text_model(embeds, attention_mask, cache)
        token = logits[:, -1].argmax(dim=-1)  # (B,)
        said.append(token)
        finished |= token == eos
        embeds = model.text_model.embed_tokens(token[:, None])  # (B, 1, D): all that is new
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        ### END SOLUTION
        if finished.all():
            break
    return torch.stack(said, dim=1)


# %% nbgrader={"grade": true, "grade_id": "cached_generate-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
generate = check.cached_generate(generate)


# %% [markdown]
# **Predict first.** 32 new tokens after a prompt of some 300 vectors. How many times faster is it with the cache than reading the whole text again in every round?

# %%
my_guess = 5  # times
with torch.no_grad():
    image_embeds = mine.encode(pixels)
    right = theirs.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels[:, None], max_new_tokens=12,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(generate(mine, ids, mask, image_embeds, 12), right[:, ids.shape[1] :])
    prompt = torch.randint(6, len(tokenizer), (1, 300))
    started = time.perf_counter()
    found = generate(mine, prompt, torch.ones_like(prompt), None, 32)
    cached, started, whole = time.perf_counter() - started, time.perf_counter(), prompt
    for _ in range(32):
        token = mine(whole)[:, -1:].argmax(dim=-1)
        whole = torch.cat([whole, token], dim=1)
    again = time.perf_counter() - started
assert torch.equal(whole[:, 300:], found) and cached < again
print(
    f"the answers are equal; {cached:.2f} s with the cache, {again:.2f} s without: {again / cached:.0f} times (my guess: {my_guess})"
)

# %% [markdown]
# ## 8. Trained on Shapes
#
# **Where the weights start.** The Llama starts from nothing: it has to learn the language of the questions too. The vision encoder takes the weights of `shapes-clip`, the CLIP of
# [01](01_clip_infonce.ipynb), without its last block (which works for the class token alone). Two of its parts have no counterpart here. The class token is left out; the
# LayerNorm in front of its first block becomes a constant scale. What comes out should hardly change, and the cell below measures it. Then everything is trained.


# %% tags=["save"]
@torch.no_grad()
def start_from_clip(encoder, clip, images):
    """Give a VisionEncoder the weights of a CLIP; uint8 images (I, 3, S, S) say by how much to scale the input."""
    theirs, embeddings = clip.vision_model, clip.vision_model.embeddings
    state = {name.removeprefix("encoder."): value for name, value in theirs.state_dict().items()}
    state = {name: state.get(name, own) for name, own in encoder.state_dict().items()}
    patches, places = embeddings.patch_embedding, embeddings.position_embedding.weight[1:]
    tokens = patches(pixel_values(images)).flatten(2).mT + places  # what CLIP normalises
    scale = theirs.pre_layrnorm.weight / tokens.std(dim=-1).mean()
    state["patch_embedding.weight"] = patches.weight * scale[:, None, None, None]
    state["patch_embedding.bias"] = theirs.pre_layrnorm.bias
    state["position_embedding.weight"] = places * scale
    encoder.load_state_dict(state)


class ShapesVLM(ModernVLM):
    """The model with a tokenizer: batches, the loss of answers, and answers in words."""

    def __init__(self, config, tokenizer):
        super().__init__(config)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.slots = [self.image_id] * (side // config.scale_factor) ** 2  # an image in the text
        self.tokenizer, (self.eos, self.pad) = tokenizer, text.special_ids(tokenizer)

    def batch(self, images, asked, blind_share=0.1):
        """B images, uint8, and (prompt, answer) pairs -> ids, mask, pixels, labels. Some rows go without their image."""
        prompts, answers = zip(*asked, strict=True)
        prompts = text.tokenize(self.tokenizer, prompts)
        answers = text.tokenize(self.tokenizer, [f" {answer}" for answer in answers])
        seen = torch.rand(len(asked)) >= blind_share
        heads = [self.slots * int(s) + prompt for s, prompt in zip(seen, prompts, strict=True)]
        pairs = list(zip(heads, answers, strict=True))
        ids = [torch.tensor([*head, *answer, self.eos]) for head, answer in pairs]
        labels = [torch.tensor([-100] * len(head) + answer + [self.eos]) for head, answer in pairs]
        mask = pad_sequence([torch.ones_like(row) for row in ids], True)
        labels = pad_sequence(labels, True, -100)
        return pad_sequence(ids, True, self.pad), mask, pixel_values(images[seen]), labels

    def forward(self, input_ids, attention_mask, pixels, labels):
        """Labels (B, T), unshifted, -100 where nothing counts -> the loss ()."""
        logits = super().forward(input_ids, attention_mask, pixels)[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    def generate(self, image_embeds, prompts, max_new_tokens=8):
        """B prompts, with image embeddings (B, N, D) or None -> B answers in words."""
        slots = [] if image_embeds is None else self.slots
        ids = [torch.tensor(slots + row) for row in text.tokenize(self.tokenizer, prompts)]
        mask = pad_sequence([torch.ones_like(row) for row in ids], True, padding_side="left")
        ids = pad_sequence(ids, True, self.pad, padding_side="left")
        found = generate(self, ids, mask, image_embeds, max_new_tokens, self.eos)
        return text.decode(self.tokenizer, list(found.T), len(prompts))


# %%
torch.manual_seed(0)
train = encode_shapes(clip, "train", profile.train_images)
model = ShapesVLM(config, tokenizer)
start_from_clip(model.vision_model, clip, train.images[:64])
with torch.no_grad():
    found = model.vision_model(pixel_values(val.images[:64]))
    right = clip.vision_model.post_layernorm(clip.patch_features(pixel_values(val.images[:64])))
cosine = F.cosine_similarity(found, right, dim=-1).mean()
assert cosine > 0.98
print(f"cosine with CLIP's features: {cosine:.3f}")
for name, part in model.named_children():
    print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f}M parameters")

# %% [markdown]
# **The loop** is 03's. A row is an image, one prompt and its answer. One row in ten goes **without its image**: so the *blind* control below is asked of a model that knows such rows, and shows what
# questions alone tell.


# %% tags=["save"]
def train_modern(model, images, turns, *, steps, batch_size, lr, seed=0):
    """Train on uint8 images (N, 3, S, S) and N lists of (prompt, answer) turns -> History."""
    assert len(images) == len(turns), "one list of turns an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (type(model), Llama, VisionEncoder, Connector, train_modern)
    run = Checkpoint(
        "modern", prepared, optimizer, scheduler, seed=seed, settings=settings, code=code
    )
    told = [k for k, each in enumerate(turns) if each]  # images of which something is asked
    for _ in run.steps(steps):
        rows = random.sample(told, min(batch_size, len(told)))
        rows = rows[accelerator.process_index :: accelerator.num_processes]
        batch = model.batch(images[rows], [random.choice(turns[k]) for k in rows])
        batch = [part.to(accelerator.device) for part in batch]
        answers = (batch[3] != -100).sum().float()
        with accelerator.autocast():  # several processes: each counts for the answers it has
            loss = prepared(*batch) * answers / accelerator.reduce(answers, "mean")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=accelerator.reduce(loss.detach(), "mean"))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


# %%
my_guess = 50  # percent
recipe = {"steps": STEPS, "batch_size": 64, "lr": LR}
if profile.name == "smoke":
    recipe |= {"steps": 4, "batch_size": 16}
history = train_modern(model, train.images, train.turns, **recipe)
print(f"{recipe['steps']} steps of {recipe['batch_size']} rows in {history.seconds[-1]:.0f} s")
plots.loss_curve(history, ylabel="loss on answer tokens (nats)")

# %% [markdown]
# **Do the answers come from the image?** The same held-out questions with the image, with another image (**shuffled**), with an empty one (**blank**), and without (**blind**). There is no oracle here: this
# Llama has never read a scene in words.

# %% tags=["thumbnail"]
with torch.no_grad():
    parts = [model.encode(pixel_values(part)) for part in val.images.split(250)]
seen = dataclasses.replace(val, features=torch.cat(parts))  # (images, 4, 128)
result = probe(model, seen, limit=700)
names = ["vlm", "shuffled", "blank", "blind"]
board = {name: result.accuracy[name] for name in names}
print(
    f"HEADLINE: VQA {board['vlm'].value:.0%}, blind {board['blind'].value:.0%}; gain {result.gain}"
)
display(result.frame()[["questions", *names]].round(1))
plots.controls_bars(board, guess=("the VLM", my_guess), title="VQA on held-out images")

# %% [markdown]
# ## 9. Where SmolVLM2-256M spends
#
# Now the real model, counted. On PyTorch's *meta device* a tensor has a shape and no numbers, so a model of any size is built in a second, and `FlopCounterMode` counts what it would compute. The
# sizes are those of the release: SigLIP of base size, for tiles of 512 pixels in patches of 16, and SmolLM2-135M. The release stores the output head apart from the embeddings, which SmolLM2
# itself ties: only so does the count reach the 256M of the name. (The *93M* often given for its vision encoder are SigLIP's with the pooling head, which is not used here.)
#
# **Predict first.** Of the arithmetic that one tile needs, what share is the vision encoder's?

# %%
my_guess = 50  # percent
sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
sizes |= {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_280}
sizes |= {"model_type": "llama", "tie_word_embeddings": False}
tile = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
tile |= {"num_attention_heads": 12, "image_size": 512, "patch_size": 16}
options = {"scale_factor": 4, "tie_word_embeddings": False}
smol = SmolVLMConfig(vision_config=tile, text_config=sizes, **options)
with torch.device("meta"):
    big, theirs = ModernVLM(smol), SmolVLMForConditionalGeneration(smol)


def count(part):
    return sum(parameter.numel() for parameter in part.parameters())


def gflop(part, *shape):
    """Billions of multiplications and additions of a part of `big`, for an input of this shape."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


assert count(big) == count(theirs) == 256_484_928
head = gflop(big.text_model.lm_head, 1, 1, 576)  # for one position, the last


def reading(positions):  # the language model's layers
    return gflop(big.text_model, 1, positions, 576) - positions * head


spent = pd.DataFrame(
    {
        "million parameters": [
            count(part) / 1e6
            for part in (
                *(big.vision_model, big.connector, big.text_model.layers),
                *(big.text_model.embed_tokens, big.text_model.lm_head),
            )
        ],
        "GFLOP, a tile": [
            *(gflop(big.vision_model, 1, 3, 512, 512), gflop(big.connector, 1, 1024, 768)),
            *(reading(64), 0, 0),
        ],
        "GFLOP, a new word": [0, 0, reading(1), 0, head],
    },
    index=["vision encoder", "connector", "language layers", "embeddings", "output head"],
)
shares = 100 * spent / spent.sum()
assert 92 < shares.loc["vision encoder", "GFLOP, a tile"] < 95
display(spent.round(2))
figure = Figure(width=680, height=220, label="where SmolVLM2-256M spends", layout="constrained")
axes = figure.subplots()
look = {"color": [BLUE, VERMILLION, ORANGE, PALE, GREY], "edgecolor": INK, "width": 0.6}
shares.T[::-1].plot.barh(stacked=True, ax=axes, legend=False, **look)
axes.set(xlabel=f"share (%); my guess for the encoder's of a tile: {my_guess}", xlim=(0, 100))
figure.legend(loc="outside lower center", ncols=5)
figure

# %% [markdown]
# **Most parameters are the language model's; nearly all the arithmetic of an image is the vision encoder's**: it has 1,024 positions where the language model reads 64. One tile costs as much as some 800 new words.
#
# What pixel shuffle saves is on the language model's side. Say an image comes as 17 tiles (a grid of 4 x 4, and the whole made small). The cache holds, for each position, keys and values of 30 layers, 3 groups of 64
# numbers, 2 bytes each:

# %%
cached = 2 * 30 * 3 * 64 * 2  # bytes a position
saved = {}
for scale in (1, 2, 4):
    vectors = 17 * 1024 // scale**2
    saved[f"s = {scale}"] = {
        "vectors a tile": 1024 // scale**2,
        "vectors": vectors,
        "language GFLOP": reading(vectors),
        "KV cache, MB": vectors * cached / 1e6,
        "fits 8,192 positions": vectors < 8192,
    }
encoder = 17 * spent.loc["vision encoder", "GFLOP, a tile"]
print(f"vision encoder, whatever s is: {encoder:,.0f} GFLOP; cache: {cached:,} bytes a position")
print(f"with as many heads of keys and values as of queries: {3 * cached:,}")
assert saved["s = 1"]["language GFLOP"] > encoder > 10 * saved["s = 4"]["language GFLOP"]
pd.DataFrame(saved).T

# %% [markdown]
# Without it, the language model would spend more than the encoder, and the image alone would exceed the 8,192 positions that the release reads. With $s = 4$ it takes an eighth of them. The price is paid in the
# encoder's features: a vector has to hold what 16 patches say, which SmolVLM's authors found bearable for small models and large tiles.
#
# ## What you showed
#
# - Each part, the logits and the greedy text equal those of `transformers`, with the same weights.
# - Queries and keys turned by RoPE see distances alone, and a cache changes nothing but the time.
# - Trained for a minute and a half from a CLIP's ViT and an empty Llama, the model answers from the image: with another image it falls back.
# - 256,484,928 parameters: two in five are the language layers', and 93% of a tile's arithmetic is the encoder's.
#
# ## What this does not show
#
# - **What SmolVLM can do.** Its quality is in its weights and data; here are its form and its sizes.
# - **That this form is better than GPT-2's.** Nothing was compared; that takes the same data and budget for both.
# - **Speed.** GFLOP are not seconds: reading a prompt is bound by arithmetic, generation by memory.
#
# ## Check yourself
#
# - [ ] I can say what RMSNorm leaves out of LayerNorm, and what the gate in SwiGLU does.
# - [ ] I can say why the answer of RoPE's dot product does not depend on where a text starts.
# - [ ] I know what is in a KV cache, and which of $H$, $G$ and $h$ make it large.
# - [ ] I know what pixel shuffle saves, and what it does not.
#
# ## To answer in words
#
# 1. Why may an implementation keep the keys *after* they are turned by RoPE?
# 2. A text with one image token too few runs in a program that does not count. What would the model read?
#
# ## Where next
#
# Change one thing, and predict first: `scale_factor` 4, one vector an image; one group of keys and values; a vision encoder that starts from nothing.
