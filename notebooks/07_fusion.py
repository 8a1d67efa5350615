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
#     outputs_of: a2db75d2ad026f9672807a79b615a76c3920b43a13ce82fc802b63482e9e100d
#     title: "Fusion: late, deep, early"
#     builds: Flamingo's resampler and gated cross-attention, CogVLM's visual expert, and a comparison at one budget
#     lesson: fusion
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/07_fusion.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/07_fusion.ipynb)

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
print(describe(profile, compute, notebook="07_fusion"))

# %% [markdown]
# # 7. Fusion: late, deep, early
#
# How does an image enter a language model? So far (03, 04) it was a *prefix*: a few vectors in front of the text. **Flamingo** (Alayrac et al. 2022) leaves the text alone and lets layers of the language model look at the image. **CogVLM** (Wang et al. 2023)
# gives image positions weights of their own. Here you build both, around the same frozen language model as in 03, and compare them.
#
# **You will build** a Perceiver resampler, gated cross-attention, the mask by which a text reads the last image before it, and the visual expert.
#
# **You will be able to show** that resampler and cross-attention equal those of `transformers`' Idefics (the open copy of Flamingo); that both kinds of deep fusion leave
# the language model as it was, bit for bit; and how far four ways in come after the same few steps, beside their controls.
#
# **Reading time:** 20 minutes. Six exercises, 46 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 2.5 min (2 with bf16) and 1.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [03, the Q-Former](03_qformer_gpt2.ipynb), whose `VLM` and loop are used again.

# %% tags=["hide"] cellView="form"
# @title Late, deep and early fusion in one diagram
import pandas as pd
from IPython.display import display

from vlm_lite import family, plots
from vlm_lite.encoded import encode_shapes
from vlm_lite.labs import check
from vlm_lite.lessons.language import short_prompt
from vlm_lite.lessons.vqa import vqa_scores
from vlm_lite.models import text
from vlm_lite.models.vlm import load_vlm

family.tree()

# %% [markdown]
# ## 1. The family tree
#
# The question is *where the two meet*.
#
# - **Late**: each has an encoder of its own. Two encoders meet in one number (CLIP), or the image's vectors enter a finished language model at its input (LLaVA).
# - **Deep**: the image is read, or has weights of its own, in the *layers* of the language model.
# - **Early**: one transformer learns from both from the start. An image is a row of tokens like any other.
#
# The words are not used alike: some surveys (Wadekar et al. 2024) call image vectors at the input *early*, because no layer of the language model comes before. Here the image encoder decides: where one was trained apart, fusion is not early.

# %%
family.models().style  # uncut

# %% [markdown]
# **Often said, and wrong.** *Molmo is early fusion*: it has CLIP and a connector, so it is late. *Qwen2-VL's naive deduplication*: it is naive dynamic **resolution** ([08](08_resolution.ipynb)). *SmolVLM2 hears audio*: it takes text, images and video. *LLaVA compresses 256
# patches to 32 tokens*: its projector keeps them all; it is BLIP-2's Q-Former that has 32 queries.
#
# ## 2. The Perceiver resampler
#
# Flamingo turns any number of image vectors, from one photograph or a whole video, into 64. Learnt **latents** attend to the image in a few layers. It is a relative of the Q-Former, with one difference: there is no self-attention step.
# Instead keys and values come from **image and latents together**:
#
# $$q = W_q\,z \qquad k, v = W_{k,v}\,[\,x\,;\,z\,] \qquad z \leftarrow z + W_o\,\mathrm{softmax}\!\left(\tfrac{q\,k^\top}{\sqrt h}\right) v$$
#
# So in one step a latent reads the image and the other latents. Both are normalised before (*pre-norm*).
#
# **Exercise 1: attention of the latents.** ★★☆ 8 minutes. `split_heads` and `attend` (softmax average, scaled) are given.
# <details><summary>Hint</summary>
#
# Normalise both first. `torch.cat([context, latents], dim=1)` is the source of keys and values; the queries come from the latents alone.
# </details>


# %% nbgrader={"grade": false, "grade_id": "PerceiverAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

from vlm_lite.encoded import probe
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.modern import SwiGLU
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.vit import attend


def split_heads(x, heads):
    """(B, N, D) -> (B, H, N, h)."""
    return rearrange(x, "b n (heads h) -> b heads n h", heads=heads)


def merge_heads(x):
    """(B, H, N, h) -> (B, N, D)."""
    return rearrange(x, "b heads n h -> b n (heads h)")


class PerceiverAttention(nn.Module):
    """Latents (B, L, D) attend to context (B, N, D) and to each other -> (B, L, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.context_layer_norm, self.latents_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.v_proj, self.output_proj = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, context, latents):
        ### BEGIN SOLUTION
        context, latents = self.context_layer_norm(context), self.latents_layer_norm(latents)
        source = torch.cat([context, latents], dim=1)  # (B, N + L, D)
        projected = self.q_proj(latents), self.k_proj(source), self.v_proj(source)
        q, k, v = (split_heads(each, self.num_heads) for each in projected)
        return self.output_proj(merge_heads(attend(q, k, v)))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "PerceiverAttention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
PerceiverAttention = check.PerceiverAttention(PerceiverAttention)


# %% [markdown]
# **The resampler** is a few such layers, each with an MLP; each result is added to the latents. They start at N(0, 1), the same for every image. Below the check stands **the proof**: `transformers`' resampler at a small size, random weights, copied into yours.
#
# **Exercise 2: the resampler.** ★☆☆ 5 minutes.
# <details><summary>Hint</summary>
#
# `self.latents.expand(len(context), -1, -1)` has shape (B, L, D). Two lines in a loop over `self.blocks`, then `layer_norm`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "PerceiverResampler", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class ReluMLP(nn.Module):
    """x (..., D) -> (..., D), four times as wide inside, as Idefics has it (Flamingo squares the ReLU)."""

    def __init__(self, width):
        super().__init__()
        self.ln, self.fc = nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        return self.c_proj(F.relu(self.fc(self.ln(x))))


class PerceiverResampler(nn.Module):
    """Image vectors (B, N, D), whatever N is -> latents (B, L, D) (Alayrac et al. 2022, appendix A.1.1)."""

    def __init__(self, width, num_latents=16, depth=2, num_heads=4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        pairs = ([PerceiverAttention(width, num_heads), ReluMLP(width)] for _ in range(depth))
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, context):
        ### BEGIN SOLUTION
        latents = self.latents.expand(len(context), -1, -1)  # (B, L, D)
        for attention, mlp in self.blocks:
            latents = latents + attention(context, latents)
            latents = latents + mlp(latents)
        return self.layer_norm(latents)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "PerceiverResampler-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
PerceiverResampler = check.PerceiverResampler(PerceiverResampler)

check.same_as_idefics(PerceiverResampler)

# %% [markdown]
# ## 3. Gated cross-attention
#
# In front of a layer of the frozen language model stands a new one. Each text position asks the image, then comes an MLP, both behind a **gate**:
#
# $$x \leftarrow x + \tanh(\alpha)\,\mathrm{cross\_attention}(x, m) \qquad x \leftarrow x + \tanh(\beta)\,\mathrm{mlp}(x)$$
#
# $\alpha$ and $\beta$ are two learnt numbers a layer, and they **start at 0**: $\tanh 0 = 0$, nothing is added, and training starts from the language model as it was. $\tanh$ keeps each gate between -1 and 1.
#
# **Predict first.** At $\alpha = 0$, which parameters of the cross-attention get a gradient in the first step?
#
# A text with several images: each position reads **the last image before it**, and none if there is none. Earlier images reach it through the text.
#
# **Exercise 3: who reads which image.** ★★☆ 7 minutes. An image token marks where each image stands; it reads its own image.
# <details><summary>Hint</summary>
#
# `(ids == image_id).cumsum(dim=1)` is the number of the last image, 1, 2, ..., or 0. The media's vectors have the numbers 1, 1, ..., 2, 2, ...: `torch.arange(num_images).repeat_interleave(per_image) + 1`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "last_image_mask", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def last_image_mask(ids, image_id, num_images, per_image):
    """Ids (B, T) with image tokens -> bools (B, T, I * L): a position reads the L vectors of the last image up to it."""
    ### BEGIN SOLUTION
    last = (ids == image_id).cumsum(dim=1)  # (B, T)
    number = torch.arange(num_images, device=ids.device).repeat_interleave(per_image) + 1
    return last[:, :, None] == number
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "last_image_mask-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
last_image_mask = check.last_image_mask(last_image_mask)

# %% [markdown]
# **Exercise 4: text attends to media.** ★★★ 10 minutes. `reads` is True where a position may look; None: everywhere. A softmax over nothing is undefined (NaN), so a position that may read nothing needs care: its result is 0.
# <details><summary>Hint</summary>
#
# `attend(q, k, v, mask=...)` takes bools that fit (B, H, T, M). Let the rows without any True read everything, and multiply their result by 0 before `o_proj`, which has no bias.
# </details>


# %% nbgrader={"grade": false, "grade_id": "MediaAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class MediaAttention(nn.Module):
    """Text x (B, T, D) attends to media (B, M, Dm), where reads (B, T, M) allows; 0 where it allows nothing."""

    def __init__(self, width, media_width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(media_width, width, bias=False) for _ in range(2))

    def forward(self, x, media, reads=None):
        ### BEGIN SOLUTION
        projected = self.q_proj(x), self.k_proj(media), self.v_proj(media)
        q, k, v = (split_heads(each, self.num_heads) for each in projected)
        if reads is None:
            return self.o_proj(merge_heads(attend(q, k, v)))
        some = reads.any(dim=2, keepdim=True)  # (B, T, 1); a softmax over nothing is undefined
        mixed = merge_heads(attend(q, k, v, mask=(reads | ~some)[:, None]))
        return self.o_proj(mixed * some)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "MediaAttention-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
MediaAttention = check.MediaAttention(MediaAttention)


# %% [markdown]
# **Exercise 5: the gated layer.** ★★☆ 8 minutes. Write `forward`: pre-norm, attention or MLP, gate, sum. The norms are RMSNorm (LayerNorm without the mean) and the MLP is SwiGLU (with a gate), as in Idefics; 09 builds both.
# <details><summary>Hint</summary>
#
# Two lines of the form `x = x + gate.tanh() * step(norm(x))`. The MLP reads what the first line made.
# </details>


# %% nbgrader={"grade": false, "grade_id": "GatedCrossAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class GatedCrossAttention(nn.Module):
    """Stands before a frozen layer: x (B, T, D), media (B, M, Dm) -> (B, T, D) (Alayrac et al. 2022, section 2.2)."""

    def __init__(self, width, media_width, num_heads, inner, eps=1e-6):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.cross_attn = MediaAttention(width, media_width, num_heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = SwiGLU(width, inner)
        self.alpha_cross_attn, self.alpha_dense = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(self, x, media, reads=None):
        ### BEGIN SOLUTION
        mixed = self.cross_attn(self.input_layernorm(x), media, reads)
        x = x + self.alpha_cross_attn.tanh() * mixed
        return x + self.alpha_dense.tanh() * self.mlp(self.post_attention_layernorm(x))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "GatedCrossAttention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
GatedCrossAttention = check.GatedCrossAttention(GatedCrossAttention)

check.same_as_idefics(GatedCrossAttention, last_image_mask)  # a text with two images

# %% [markdown]
# **Around the language model.** A layer is replaced by `[gated cross-attention, layer]`. The media are handed to the layers before each call, as OpenFlamingo does, so the language model's own code stays as it is. The text is not longer: an image takes **no position** in it (several take a marker each).


# %% tags=["save"]
class Conditioned(nn.Module):
    """A frozen layer behind a gated cross-attention to `media` (B, M, Dm); None: the layer alone."""

    def __init__(self, layer, gated):
        super().__init__()
        self.layer, self.gated, self.media, self.reads = layer, gated, None, None

    def forward(self, x, *args, **options):
        if self.media is not None:
            x = self.gated(x, self.media, self.reads)
        return self.layer(x, *args, **options)


class FlamingoVLM(VLM):
    """03's VLM without a prefix: every layer of a GPT-2 reads the connector's vectors by gated cross-attention."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__(vision, connector, copy.deepcopy(language_model), tokenizer)
        config, self.layers = language_model.config, self.language_model.transformer.h
        sizes = config.n_embd, vision.feature_width, config.n_head, config.n_embd
        for k, layer in enumerate(self.layers):
            self.layers[k] = Conditioned(layer, GatedCrossAttention(*sizes))
        self.image_id = tokenizer.convert_tokens_to_ids("<image>")
        self.language_model.register_forward_pre_hook(self.hand_over, with_kwargs=True)

    def inputs(self, features, input_ids, attention_mask):
        """features (B, N, Dv) of one image a row; or (B, I, N, Dv), and an image token where each stands; or None."""
        given = super().inputs(None, input_ids, attention_mask)
        self.media = self.reads = None
        if features is not None:
            assert len(features) == len(input_ids), "one row of text for each row of images"
            features = features.to(input_ids.device).float()
            media = self.connector(features.flatten(0, -3))  # (B * I, L, Dm)
            self.media = media.reshape(len(input_ids), -1, media.shape[-1])
            if features.ndim == 4:
                sizes = features.shape[1], media.shape[1]
                given["reads"] = last_image_mask(input_ids, self.image_id, *sizes)
        return given

    def hand_over(self, module, args, kwargs):
        """Before each call of the language model. A new word of an answer reads what the last of the prompt reads."""
        last = None if self.reads is None else self.reads[:, -1:]
        self.reads = kwargs.pop("reads", last)
        for layer in self.layers:
            layer.media, layer.reads = self.media, self.reads
        return args, kwargs

    def gates(self):
        """The gates of every layer, after tanh: (layers, 2), cross-attention and MLP."""
        pairs = ((x.gated.alpha_cross_attn, x.gated.alpha_dense) for x in self.layers)
        return torch.stack([torch.cat(pair) for pair in pairs]).detach().tanh()


# %% [markdown]
# **The language model is unchanged, bit for bit**, with any image, as long as the gates are 0:

# %%
shipped = load_vlm(profile.vlm_model)
vision, language_model, tokenizer = shipped.vision, shipped.language_model, shipped.tokenizer
train = encode_shapes(vision, "train", profile.train_images)
val = encode_shapes(vision, "val", profile.val_images)  # none of them is trained on
torch.manual_seed(0)
flamingo = FlamingoVLM(vision, PerceiverResampler(vision.feature_width), language_model, tokenizer)
ids, mask = text.prompt_batch(tokenizer, [turns[-1][0] for turns in val.turns[:8]])
seen = val.features[:8]  # (8, 16, 128)
with torch.no_grad():
    alone = language_model(**flamingo.inputs(None, ids, mask)).logits
    closed = flamingo.language_model(**flamingo.inputs(seen, ids, mask)).logits
check.same_values("with images, gates at 0: logits ", closed, alone, 0)
flamingo(seen, ids, mask, ids).backward()
grads = {name: p.grad for name, p in flamingo.named_parameters() if p.requires_grad}
moved = [name for name, grad in grads.items() if grad is not None and grad.any()]
assert moved and all("alpha" in name for name in moved)
print(f"{len(moved)} of {len(grads)} trained tensors get a gradient in the first step")

# %% [markdown]
# (The answer: only the gates themselves. What stands behind a closed gate has no effect yet, so it gets no gradient; a gate has one because what it *would* let in changes the loss. From the second step on everything learns.)
#
# ## 4. The visual expert
#
# CogVLM keeps the prefix and asks something else: the frozen weights were made for words, so why should image vectors pass through them? In **every layer** it adds a second set of QKV and MLP weights, *for image positions alone*. Attention is shared:
#
# $$[Q, K, V]_t = \begin{cases} W^{\text{image}}_{QKV}\,x_t & t \text{ is an image position} \\ W_{QKV}\,x_t & \text{else} \end{cases}$$
#
# and likewise the MLP. The second set starts as a **copy** of the first. A text without an image never meets it, so the language model *cannot* forget anything. The price is parameters: CogVLM has 17B, 7B of them language model.
#
# **Exercise 6: the expert.** ★★☆ 8 minutes. `frozen` may be any part that works on each position by itself. Don't compute the expert for text.
# <details><summary>Hint</summary>
#
# `x[at_image]` has shape (image positions, D). `out.masked_scatter(at_image[..., None], values)` puts values where the mask is True, in order.
# </details>


# %% nbgrader={"grade": false, "grade_id": "VisualExpert", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class VisualExpert(nn.Module):
    """A frozen part of a layer, x (B, T, D) -> (B, T, E), and a trained copy of it for image positions."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen, self.expert = frozen, copy.deepcopy(frozen).requires_grad_()
        self.at_image = None  # bools (B, T), set before each call; None: there is no image

    def forward(self, x):
        if self.at_image is None:
            return self.frozen(x)
        ### BEGIN SOLUTION
        out, at_image = self.frozen(x), self.at_image
        return out.masked_scatter(at_image[..., None], self.expert(x[at_image]).type_as(out))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "VisualExpert-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
VisualExpert = check.VisualExpert(VisualExpert)


# %% tags=["save"]
class CogVLM(VLM):
    """03's VLM with a visual expert for QKV and MLP in every layer of a GPT-2 (Wang et al. 2023, section 2.1)."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__(vision, connector, copy.deepcopy(language_model), tokenizer)
        self.experts = []
        for layer in self.language_model.transformer.h:
            layer.attn.c_attn, layer.mlp = VisualExpert(layer.attn.c_attn), VisualExpert(layer.mlp)
            self.experts += [layer.attn.c_attn, layer.mlp]
        self.language_model.register_forward_pre_hook(self.hand_over, with_kwargs=True)

    def inputs(self, features, input_ids, attention_mask):
        given = super().inputs(features, input_ids, attention_mask)
        if features is not None:
            positions = torch.arange(given["inputs_embeds"].shape[1], device=input_ids.device)
            at_image = positions < len(positions) - input_ids.shape[1]
            given["at_image"] = at_image.repeat(len(input_ids), 1)  # (B, Q + T)
        return given

    def hand_over(self, module, args, kwargs):
        """Before each call of the language model: new words of an answer are no image positions."""
        at_image = kwargs.pop("at_image", None)
        for expert in self.experts:
            expert.at_image = at_image
        return args, kwargs


# %% [markdown]
# **On text alone the model is the frozen one**, bit for bit, whatever the experts have learnt. And while they are copies, the whole model is 03's VLM with the same connector:

# %%
cogvlm = CogVLM(vision, Projector(128, language_model.config.n_embd), language_model, tokenizer)
prefix = VLM(vision, cogvlm.connector, language_model, tokenizer)
with torch.no_grad():
    found, right = (each(seen, ids, mask) for each in (cogvlm, prefix))
    check.same_values("copies, with an image: logits ", found, right)
    for expert in cogvlm.experts:
        check.random_weights(expert.expert)
    assert not torch.allclose(cogvlm(seen, ids, mask), right)
    check.same_values("text alone: logits ", cogvlm(None, ids, mask), prefix(None, ids, mask), 0)

# %% [markdown]
# ## 5. Side by side
#
# Four ways in, one frozen language model, one loop (03's `train_vlm`), the same batches and the same few steps:
#
# - **MLP**: LLaVA-1.5's projector, a prefix of 16 vectors.
# - **resampler**: 16 latents, a linear layer, a prefix.
# - **cross-attention**: 16 latents, read in every layer.
# - **visual expert**: the MLP's prefix, and experts in every layer.
#
# The function below makes one row of the table, whatever the kind (`linear`, `pixel shuffle + MLP` and `Q-Former` as well), the seed and the turns that it is trained on.


# %% tags=["save"]
def make_vlm(kind, vision, language_model, tokenizer, num_latents=16):
    """A VLM before training; kind: linear, MLP, pixel shuffle + MLP, Q-Former, resampler, cross-attention, visual expert."""
    widths = vision.feature_width, language_model.config.hidden_size
    resampler, sizes = PerceiverResampler(widths[0], num_latents), vision.config.vision_config
    grid = sizes.image_size // sizes.patch_size
    shuffle = Rearrange("b (r a c d) e -> b (r c) (a d e)", r=grid // 2, a=2, d=2)
    connector = {
        "linear": lambda: nn.Linear(*widths),
        "MLP": lambda: Projector(*widths),
        "pixel shuffle + MLP": lambda: nn.Sequential(shuffle, Projector(4 * widths[0], widths[1])),
        "Q-Former": lambda: QFormerConnector(*widths, num_query_tokens=num_latents),
        "resampler": lambda: nn.Sequential(resampler, nn.Linear(*widths)),
        "cross-attention": lambda: resampler,
        "visual expert": lambda: Projector(*widths),
    }[kind]()
    made = {"cross-attention": FlamingoVLM, "visual expert": CogVLM}.get(kind, VLM)
    return made(vision, connector, language_model, tokenizer)


def no_watch(model, inputs):
    """A hook before each step that does nothing."""


def fusion_row(kind, parts, train, val, *, turns=None, seed=0, limit=400, watch=no_watch, **recipe):
    """Train one kind of VLM with a recipe of `train_vlm`, measure it -> (model, history, ProbeResult, {metric: value}).

    parts: vision, language model, tokenizer. turns: in place of those of `train`. watch: a hook before each step.
    """
    torch.manual_seed(seed)
    model = make_vlm(kind, *parts)
    watching = model.register_forward_pre_hook(watch)
    history = train_vlm(model, train.features, turns or train.turns, seed=seed, **recipe)
    watching.remove()
    result, device = probe(model.eval(), val, limit=limit), model.language_model.device
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    row = {name: 100 * score.value for name, score in result.accuracy.items()}
    row |= {kind: 100 * part.accuracy["vlm"].value for kind, part in result.by_type.items()}
    row["million parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    with torch.no_grad():
        length = model.inputs(val.features[:1], one, one)["inputs_embeds"].shape[1]
    row |= {"tokens an image": length - 1, "seconds a step": history.seconds[-1] / recipe["steps"]}
    return model, history, result, row


# %% [markdown]
# **Predict first.** Which of the four is furthest above *blind* after so short a training? The one with most parameters?

# %%
my_guess = "visual expert"
kinds = ("MLP", "resampler", "cross-attention", "visual expert")
recipe = {k: getattr(profile, f"connector_{k}") for k in ("batch_size", "lr")}
recipe |= {"per_row": 2, "steps": min(80, profile.connector_steps)}  # half of 03's turns
parts, gates = (vision, language_model, tokenizer), []
trained, losses, results, rows = {}, {}, {}, {}
for kind in kinds:
    keep = kind == "cross-attention"  # its gates
    look = (lambda model, _: gates.append(model.gates())) if keep else no_watch
    made = fusion_row(kind, parts, train, val, watch=look, limit=300, **recipe)
    trained[kind], losses[kind], results[kind], rows[kind] = made[0], made[1].losses, *made[2:]
table = pd.DataFrame(rows).T
assert table["blind"].nunique() == table["oracle"].nunique() == 1
display(table.round(2))
plots.losses(losses, "four ways in, the same steps", every=recipe["steps"] // len(losses["MLP"]))

# %% tags=["thumbnail"]
family.rows(results, f"four ways in, after {recipe['steps']} steps (my guess: {my_guess})")

# %% [markdown]
# **Without an image all four are the same model**: *blind* and *oracle* are equal in every row, because nothing in the frozen language model was changed. So each row's *vlm* may be compared with the others', and with its own *shuffled*:
# what an answer gains from *its* image and not from any image.
#
# **Do not read an order out of one seed.** 03b's MLP, trained for a hundred steps, ended at bridge scores between 0.20 and 0.47 over three seeds (recorded, `vlm-lite study connectors`). Here the expert is ahead of the MLP that it contains, by more than the intervals, which know nothing of other seeds; so it is in 07c's three seeds. What is sure is the price: the expert trains thirty times as many
# parameters as the projector that it contains, and cross-attention is the only one whose text stays as short as it was.
#
# **Is my loss normal?** Projector and expert fall from the start. Resampler and cross-attention come to a plateau near 0.7, where an answer follows its question alone, and have hardly begun to leave it when the run ends; [07c](07c_which_data.ipynb) gives them a hundred steps and longer rows, and there they read images (recorded: VQA 52% and 54%, shuffled below 33%). One that never leaves it: is something of it trained, and is the language model's copy the one that is called? For cross-attention: do the gates move?
#
# **The gates.** They start at 0 and open as they are trained, the first layer's the least. Their signs mean nothing: the weights behind a gate may have the opposite one. AdamW, which has a quarter of the learning rate 0.01, moves a number by about 0.0025 a step at most, so after eighty steps no gate is far open: this kind pays for its safe start with time.

# %%
opened = torch.stack(gates[1:])[..., 0].abs()  # (steps, layers), without the first, which is 0
curves = {f"layer {k + 1}": line.tolist() for k, line in enumerate(opened.T)}
plots.losses(curves, "gates of the cross-attention", ylabel="|tanh α|")

# %% [markdown]
# ## 6. Two images in one prompt
#
# Cross-attention takes several images as they come: a marker in the text for each, and `last_image_mask` says who reads what. Flamingo uses it for **examples in context**: an image with a question *and its answer*, then the image that is asked about.
#
# The model above was trained on one image at a time. Below it gets an example first, of another image. The control has the same text, and the two images **exchanged**.

# %%
asked = val.questions.select(range(min(300, len(val.questions)))).remove_columns("image")
prompts, known = [short_prompt(question) for question in asked["question"][:]], asked["answer"][:]
one, away, model = val.of(asked).float(), 50, trained["cross-attention"]
shown = [
    f"<image> {prompts[k - away]} {known[k - away]} {tokenizer.eos_token} <image> {prompt}"
    for k, prompt in enumerate(prompts)
]
pairs = torch.stack([one.roll(away, 0), one], dim=1)  # (300, 2, N, Dv)
with torch.no_grad():
    said = {
        "one image": model.generate(one, prompts, 4),
        "an example, then the image": model.generate(pairs, shown, 4),
        "the same text, images exchanged": model.generate(pairs.flip(1), shown, 4),
        "the same text, no image": model.generate(None, shown, 4),
    }
scores = {name: 100 * vqa_scores(answers, asked).mean() for name, answers in said.items()}
pd.Series(scores, name="VQA accuracy (%)").round(1).to_frame()

# %% [markdown]
# The last two rows are the controls. With the images exchanged, the text is the same, but the question's words read the wrong image, and the right one stands at the example. By the mask alone this row would fall to about the level of a wrong image (*shuffled* above, though without an example). Where it stays above, the image came by another way: every word of the example has read its own image, and the
# question attends to these words. The mask says who reads an image, not who hears of it.
#
# The rows with two images differ by less than chance allows in 300 questions, so the score does not show that the order of the images matters to this model at all.
#
# Does an example *help*? Nothing of it shows: the first rows are too close to tell apart. Flamingo was trained on pages with many images; this model has never seen two, nor the marker, and its language model is small.
#
# ## 7. Which model when
#
# | you want | take | because |
# |---|---|---|
# | search, filter, zero-shot classes | late, two encoders (01) | images are encoded once, and a comparison is one product |
# | answers, little compute, a finished language model | a projector (04) | the fewest parameters, row *MLP* |
# | many images or video | a resampler, or pixel shuffle ([08](08_resolution.ipynb)) | the number of tokens is fixed, or a quarter |
# | a context that is full already | cross-attention | no position in the text, row *cross-attention* |
# | a language model that must not change, and memory to spare | cross-attention, visual expert | text alone is answered bit for bit as before |
# | to write images as well | early | image tokens are part of the vocabulary |
#
# A prefix in front of a *frozen* language model leaves it unchanged, too. The difference shows when quality matters: LLaVA, Qwen2-VL and SmolVLM2 then train the language model itself, and its text changes; a deep model trains what stands beside it.

# %%
found = {kind: round(result.bridge.value or 0, 2) for kind, result in results.items()}
print(f"HEADLINE: bridge scores after {recipe['steps']} steps:", found)
check.progress()

# %% [markdown]
# ## What you showed
#
# - Resampler and gated cross-attention are those of `transformers`' Idefics, with two images and the mask between them as well.
# - With closed gates, and with any expert on text alone, the language model's logits are the same bit for bit.
# - Behind a closed gate only the gate gets a gradient.
# - All four ways in are one frozen model when there is no image; they differ in parameters, in positions, and in how fast they learn.
#
# ## What this does not show
#
# - **Which kind is best.** Eighty steps and one seed say how a training begins. A difference of a few points between two rows is inside their intervals.
# - **Anything about photographs**: [07t](07t_photographs.ipynb) puts three connectors between OpenAI's CLIP and GPT-2.
# - **Early fusion.** Chameleon needs an image tokenizer and a transformer trained from nothing: [07b](07b_early_fusion.ipynb) builds it (read it after 09), with a budget of its own, since it can't be compared with these four.
# - **Which data suits which kind.** All four were trained on captions and questions: [07c](07c_which_data.ipynb) compares four sets.
# - **What deep fusion costs a large model.** Here the new layers are of the language model's own order of size.
#
# ## Check yourself
#
# - [ ] I can say where image and text meet in CLIP, LLaVA, Flamingo, CogVLM and Chameleon.
# - [ ] I can say what the keys of a Perceiver resampler come from, and what a Q-Former does instead.
# - [ ] I know why a gate starts at 0, and what gets a gradient then.
# - [ ] I know how many positions an image takes in each of the four.
#
# ## To answer in words
#
# 1. With cross-attention, a later text position can know something of an earlier image, although the mask forbids it. How?
# 2. The visual expert nearly doubles the layers' parameters. By how much does the arithmetic of one answer grow?
#
# ## Where next
#
# [07c](07c_which_data.ipynb) asks which connector goes with which data. Then go on to [08](08_resolution.ipynb): more pixels, more tokens.
