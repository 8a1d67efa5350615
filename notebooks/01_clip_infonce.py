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
#     title: CLIP from scratch
#     builds: an image encoder, a text encoder and the InfoNCE loss, trained from images and captions alone
#     lesson: clip
#     reads: [zoo/shapes-clip, results/clip_infonce.json]
#     outputs_of: 4a4590ed0bfbc2853ea3fedacc8742710a5a01939aefa2df28e412cb8b7ee798
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/01_clip_infonce.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/01_clip_infonce.ipynb)

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
print(describe(profile, compute, notebook="01_clip_infonce"))

# %% [markdown]
# # 1. CLIP from scratch
#
# **You will build** CLIP (Radford et al. 2021): an image encoder, a text encoder, and the contrastive loss that makes a
# matching image and caption similar. You train both from random weights on pairs of images and captions.
#
# **You will be able to show** that your model and loss equal `transformers.CLIPModel`; that your model has an
# image's caption among its first five of a thousand, and not when images are shuffled or blank; that sentences make a
# classifier, without labels or further training; and what a model with a high retrieval score has *not* learnt.
#
# **Reading time:** 25 minutes. Six exercises, 58 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (1 with bf16) and 1.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** PyTorch modules, softmax, cross-entropy. Notebook [00](00_start_here.ipynb) shows where this leads.
#
# It runs in **Shapes**, a small drawn world, without any download.

# %% tags=["hide"] cellView="form"
# @title The whole model in one diagram
from IPython.display import display

from vlm_lite import diagrams, plots
from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.labs import check
from vlm_lite.lessons import clip as lesson  # what this notebook's cells are saved as

tokenizer = make_tokenizer()
val_images, val_captions, val_table = shapes.load_pairs("val", profile.val_images)
diagrams.clip(val_images[:4], val_captions[:4], lesson.make_clip(tokenizer).config)

# %% [markdown]
# ## 1. What there is to learn from
#
# A **pair** is an image and a sentence that somebody wrote about it. That is all the supervision: no class names, no
# boxes. Each Shapes image holds one to four objects, coloured shapes and at most one handwritten digit, and has five
# captions that order and omit things differently. Validation images are other scenes, and their digits come from handwriting
# that training never shows.
#
# The tokenizer gives every word an id. Each caption ends with an EOS token; what follows is padding. Below: the sizes, and
# the five captions of the first training image.

# %% tags=["save"]
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.distributed import gather
from vlm_lite.embed import embed_images, embed_texts, pixel_values, tokenize
from vlm_lite.models.vit import attend
from vlm_lite.profiles import get_compute

# %%
seed = 0
images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
texts = [text for five in captions for text in five]
input_ids = tokenize(texts, tokenizer).view(len(images), 5, -1)  # (8000, 5, T)
val_texts = [five[0] for five in val_captions]  # the first caption of each: it says the most
val_ids = tokenize(val_texts, tokenizer)  # (1000, T)
print(f"images {tuple(images.shape)}, captions {tuple(input_ids.shape)}", *captions[0], sep="\n  ")

# %% [markdown]
# ## 2. Two encoders
#
# Both encoders are transformers made of the same **block**: self-attention, then an MLP, each on normalised input
# (*pre-norm*) and added to what came in. [Notebook 02](02_vit.ipynb) opens the block; here it is given.
#
# The sizes stand in one frozen dataclass. (CLIP ViT-B/32 has width 768 and 12 layers.) Initialisation matters in a short run:
# it is OpenAI's, in which what a block adds to its input starts small.


# %% tags=["save"]
@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The sizes of a CLIP. `eos_token_id`: the token at which a text is read out."""

    vocab_size: int
    eos_token_id: int
    image_size: int = 64
    patch_size: int = 16
    context_length: int = 64
    width: int = 128
    image_layers: int = 4
    text_layers: int = 2
    num_heads: int = 4
    projection_dim: int = 128


class Block(nn.Module):
    """A pre-norm transformer block: x (B, N, D) -> (B, N, D). `depth`: how many blocks there are."""

    def __init__(self, config, depth):
        super().__init__()
        self.num_heads, width = config.num_heads, config.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(fc1, nn.GELU(), fc2)
        for layer, share in ((self.qkv, 1), (self.out, 2 * depth), (fc1, 2), (fc2, 2 * depth)):
            nn.init.normal_(layer.weight, std=(share * width) ** -0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x, is_causal=False):
        qkv = self.qkv(self.norm1(x))  # (B, N, 3 D)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        mixed = attend(q, k, v, is_causal=is_causal)  # softmax(q k^T / sqrt(d)) v: (B, h, N, d)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


# %% [markdown]
# **The image encoder** cuts the image into patches (16 x 16 pixels, so 16 of them), maps each linearly to a vector, puts
# a learnt **class token** in front, adds a learnt position to each, and normalises (a step that CLIP adds to the ViT).
# After the blocks, the class token is the summary of the image.
#
# One choice of ours: positions start with standard deviation 1. With 0.02, so short a training hardly learns *where*
# things are (02's task does). So never read them as *learnt* positions.
#
# **Exercise 1: the image encoder.** ★★☆ 12 minutes. Write `forward`.
#
# <details><summary>Hint</summary>
#
# `rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=..., q=...)` makes the patches row by row. Expand
# `class_embedding` to (B, 1, D), concatenate along `dim=1`, add `position_embedding`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "ImageEncoder", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class ImageEncoder(nn.Module):
    """Pixels (B, 3, S, S) -> one vector an image (B, D), read out at the class token."""

    def __init__(self, config):
        super().__init__()
        self.patch_size, width = config.patch_size, config.width
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position_embedding = nn.Parameter(torch.randn(num_patches + 1, width))
        self.input_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        depth = config.image_layers
        self.blocks = nn.ModuleList(Block(config, depth) for _ in range(depth))
        nn.init.normal_(self.patch_embedding.weight, std=0.02)

    def forward(self, pixels):
        ### BEGIN SOLUTION
        p = self.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)  # (B, N, 3 p p)
        patches = self.patch_embedding(patches)  # (B, N, D)
        token = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)  # (B, 1, D)
        x = self.input_norm(torch.cat([token, patches], dim=1) + self.position_embedding)
        for block in self.blocks:
            x = block(x)  # (B, 1 + N, D)
        return self.output_norm(x[:, 0])  # (B, D)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ImageEncoder-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
ImageEncoder = check.ImageEncoder(ImageEncoder)

# %% [markdown]
# **The text encoder** is *causal*: token $t$ attends to tokens $1 \dots t$ only. So the only token that has seen the whole
# sentence is the last one, and the text is read out at its **EOS**. Padding stands behind it and is never seen, so no
# padding mask is needed.
#
# **Exercise 2: the text encoder.** ★★☆ 10 minutes. Write `forward`.
#
# <details><summary>Hint</summary>
#
# `block(x, is_causal=True)`. The position of the first EOS in each row is
# `(input_ids == self.eos_token_id).int().argmax(dim=1)`. Columns after the largest of these are padding: cut them off.
# </details>


# %% nbgrader={"grade": false, "grade_id": "TextEncoder", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class TextEncoder(nn.Module):
    """Token ids (B, T) -> one vector a text (B, D), read out at its first EOS."""

    def __init__(self, config):
        super().__init__()
        self.eos_token_id, width = config.eos_token_id, config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.output_norm = nn.LayerNorm(width)
        depth = config.text_layers
        self.blocks = nn.ModuleList(Block(config, depth) for _ in range(depth))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, input_ids):
        assert input_ids.shape[1] <= len(self.position_embedding), "a text exceeds the context"
        ### BEGIN SOLUTION
        end = (input_ids == self.eos_token_id).int().argmax(dim=1)  # (B,) the first EOS of each
        input_ids = input_ids[:, : int(end.max()) + 1]  # what follows the last EOS is padding
        x = self.token_embedding(input_ids) + self.position_embedding[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)  # (B, T, D)
        return self.output_norm(x[torch.arange(len(x)), end])  # (B, D)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "TextEncoder-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
TextEncoder = check.TextEncoder(TextEncoder)

# %% [markdown]
# **CLIP** is the two encoders, a linear projection of each into one *joint space* of width $P$, and a **temperature**. The
# temperature is learnt as `logit_scale` $= \log(1/\tau)$, starts at $\tau = 0.07$, and is kept at $1/\tau \le 100$.


# %% tags=["save"]
class CLIP(nn.Module):
    """An image encoder and a text encoder with one joint space, and a learnt temperature."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.image_encoder, self.text_encoder = ImageEncoder(config), TextEncoder(config)
        self.image_projection = nn.Linear(config.width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=config.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels):
        return self.image_projection(self.image_encoder(pixels))

    def encode_text(self, input_ids):
        return self.text_projection(self.text_encoder(input_ids))

    def forward(self, pixels, input_ids):  # (B, 3, S, S), (B, T) -> (B, P), (B, P), ()
        scale = self.logit_scale.clamp(max=math.log(100))
        return self.encode_image(pixels), self.encode_text(input_ids), scale


def make_clip(tokenizer, seed=0, **sizes):
    """An untrained CLIP for the words of `tokenizer`; sizes: what differs from CLIPConfig's."""
    torch.manual_seed(seed)
    return CLIP(CLIPConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes))


# %%
model = make_clip(tokenizer, seed)
eight = pixel_values(val_images[:8]), val_ids[:8]
image_embeds, text_embeds, logit_scale = model(*eight)
print("image_embeds", tuple(image_embeds.shape), "text_embeds", tuple(text_embeds.shape))
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## 3. The loss: which of N captions belongs to this image?
#
# Only the *direction* of a vector carries meaning, so similarity is the cosine
# $s_{ij} = \frac{u_i \cdot v_j}{\lVert u_i\rVert\,\lVert v_j\rVert} \in [-1, 1]$ of image $i$ and caption $j$.
#
# Asking for $s_{ii} = 1$ alone fails: a constant vector would do. In a batch of $N$ pairs, a
# softmax over the row turns similarities into probabilities, and the loss is the negative log-likelihood of the right one:
#
# $$p(j \mid i) = \frac{e^{s_{ij}/\tau}}{\sum_{k=1}^{N} e^{s_{ik}/\tau}} \qquad
# L_{\text{image}} = -\frac1N \sum_{i=1}^{N} \log p(i \mid i)$$
#
# The other $N - 1$ captions are **negatives**, and they come free. This is cross-entropy with target $i$ in row $i$. CLIP
# also reads the matrix by columns (caption $j$ chooses among $N$ images) and takes the mean,
# $L = \tfrac12 (L_{\text{image}} + L_{\text{text}})$: the **symmetric InfoNCE** loss.
#
# <details><summary>Derivation: what the gradient does, and what the temperature changes</summary>
#
# Write $z_j = s_{ij}/\tau$ and $L_i = -z_i + \log\sum_k e^{z_k}$. Then
#
# $$\frac{\partial L_i}{\partial z_j} = p(j \mid i) - [j = i], \qquad
# \frac{\partial L_i}{\partial s_{ij}} = \frac{p(j \mid i) - [j = i]}{\tau}$$
#
# Each wrong caption is pushed away in proportion to its probability $p$; the right one is pulled in proportion to $1 - p$.
# A small $\tau$ puts nearly all of the push on the nearest wrong caption; a large one spreads it evenly.
# </details>
#
# <details><summary>Derivation: the log N bound</summary>
#
# A model that knows nothing gives each of $N$ candidates $1/N$, so $L = \log N$. The best possible score is the density
# ratio $f(i, j) = \frac{p(j \mid i)}{p(j)}$ (van den Oord et al. 2018, section 2.3). With it
# $L = E\log\bigl(1 + \tfrac{1}{f(i,i)}\sum_{j \ne i} f(i, j)\bigr) \approx E\log\bigl(1 + \tfrac{N-1}{f(i,i)}\bigr)
# \ge E\log\tfrac{N}{f(i,i)} = \log N - I$, where $I$ is the mutual information of image and caption. So on fresh pairs
# $I \ge \log N - L$: the loss bounds information, and as $L \ge 0$ a batch of $N$ can prove at most $\log N$.
# </details>
#
# **Exercise 3: the loss.** ★★☆ 12 minutes. Write it for embeddings of any norm; `logit_scale` is $\log(1/\tau)$. Return
# one number that carries gradients to all three inputs and survives $1/\tau = 100$. (Untrained, it lies above $\log N$:
# random weights guess unevenly.)
#
# <details><summary>Hint</summary>
#
# The second direction reads `logits.T`. In fp32 $e^{100}$ is infinite: let `F.cross_entropy` take the logarithm of the
# softmax, since it subtracts the largest logit first.
# </details>


# %% nbgrader={"grade": false, "grade_id": "info_nce", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def info_nce(image_embeds, text_embeds, logit_scale):
    """image_embeds, text_embeds (N, P), row i of one belonging to row i of the other; logit_scale () -> loss ()."""
    ### BEGIN SOLUTION
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)  # (N, P)
    logits = logit_scale.exp() * u @ v.T  # (N, N)
    target = torch.arange(len(logits), device=logits.device)  # matching pairs on the diagonal
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "info_nce-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
info_nce = check.info_nce(info_nce)
loss = info_nce(image_embeds, text_embeds, logit_scale)
print(f"untrained, 8 pairs: loss {loss:.3f}, log 8 = {math.log(8):.3f}")

# %% [markdown]
# ## 4. Training, and its score
#
# **A batch** is $N$ random images, each with one of its captions (drawn in the loop below). `Accelerator` (Hugging Face) chooses device and precision:
# the model runs in bf16 or fp16 where that is fast, and returns fp32 embeddings, since bf16 is too coarse for cosines times
# 100. On several processes `gather` collects all embeddings, so that the negatives come from all.
#
# **Exercise 4: the training step.** ★★☆ 10 minutes. Forward, `gather` both embeddings, loss, backward, clip the gradient's
# norm to 1, step optimizer and scheduler, zero the gradients. Return the detached loss.
#
# <details><summary>Hint</summary>
#
# `accelerator.backward(loss)` stands for `loss.backward()`, `accelerator.clip_grad_norm_(parameters, 1.0)` for torch's.
# </details>


# %% nbgrader={"grade": false, "grade_id": "training_step", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def training_step(model, pixels, input_ids, loss_fn, accelerator, optimizer, scheduler):
    """One step on a batch of pixels (B, 3, S, S) and token ids (B, T) -> its loss (), detached."""
    ### BEGIN SOLUTION
    image_embeds, text_embeds, logit_scale = model(pixels, input_ids)
    loss = loss_fn(gather(image_embeds), gather(text_embeds), logit_scale)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "training_step-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
training_step = check.training_step(training_step)

# %% [markdown]
# **The loop:** AdamW, a short warm-up, a cosine to zero. Two lines make it **resumable**. `Checkpoint` keeps model, optimizer
# and schedule on disk, and `run.steps` sets train mode and seeds each step by its number. Interrupt the cell and run it again: it goes on
# where it was; if you edited the code, it starts afresh and says so. `evaluate` gives numbers to log.


# %% tags=["save"]
def train_clip(
    model, images, input_ids, *, steps, batch_size, lr, loss_fn=info_nce, seed=0, evaluate=None
):
    """Train a CLIP on uint8 images (N, 3, S, S) and token ids (N, C, T), C captions each -> History."""
    assert len(images) == len(input_ids), "one row of captions an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, (0.9, 0.98), weight_decay=0.05, fused=True
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (type(model), loss_fn, training_step, train_clip)
    run = Checkpoint("clip", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for step in run.steps(steps):
        rows = torch.randperm(len(images))[:batch_size]
        ids = input_ids[rows, torch.randint(input_ids.shape[1], (len(rows),))]  # a caption of each
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = [part[share].to(accelerator.device) for part in (pixel_values(images[rows]), ids)]
        loss = training_step(prepared, *batch, loss_fn, accelerator, optimizer, scheduler)
        run.log(loss=loss)
        if evaluate and (step + 1) % 50 == 0:
            run.log(**evaluate(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


# %% [markdown]
# **How to score it: Recall@K.** An image is a *hit* at $K$ when its own caption is among the $K$ captions most similar to
# it; Recall@K is the share of hits. A tie counts against you, or a constant encoder would be perfect.
#
# **Exercise 5: recall.** ★★☆ 8 minutes. From a similarity matrix (N, N) whose right answers stand on the diagonal, compute
# Recall@K by rows, a fraction from 0 to 1.
#
# <details><summary>Hint</summary>
#
# Count, for each row, how many *other* candidates are at least as similar as the right one,
# `similarity.diagonal()[:, None]`. A hit has fewer than K ahead of it.
# </details>


# %% nbgrader={"grade": false, "grade_id": "recall_at_k", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def recall_at_k(similarity, k):
    """similarity (N, N), query i belonging to candidate i -> the share of queries with it among their first k."""
    ### BEGIN SOLUTION
    right = similarity.diagonal()[:, None]  # (N, 1)
    ahead = (~(similarity < right)).sum(dim=1) - 1  # (N,) ties and NaN count as ahead
    return (ahead < k).float().mean().item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "recall_at_k-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
recall_at_k = check.recall_at_k(recall_at_k)

# %% [markdown]
# **Predict first.** After its short training, each of 1,000 validation images looks for its caption. For what share is it among
# the first five?

# %%
my_guess = 0.50  # image-to-text R@5, from 0 to 1


def similarity_of(model, images=val_images):
    return embed_images(model, images) @ embed_texts(model, val_ids[: len(images)]).T


def watch(model):
    return {"R@5 of 200": recall_at_k(similarity_of(model, val_images[:200]), 5)}


model = make_clip(tokenizer, seed)  # from the start again, if you run this cell a second time
before = similarity_of(model)  # (1000, 1000)
print(recipe := profile.contrastive)
history = train_clip(model, images, input_ids, **recipe, seed=seed, evaluate=watch)
after = similarity_of(model.cpu())

# %% [markdown]
# **Is my loss normal?** The band below: three recorded seeds (`vlm-lite study clip_infonce --seeds 3`). If your curve *stays* outside,
# check in this order. *Flat at the dotted line*: is the loss detached, are images and captions in the
# same order? *Above the band*: another learning rate, embeddings not of unit length, or a temperature that does not learn.
# *Below*: a smaller batch, whose $\log N$ is lower, or half of the loss missing.
#
# ## 5. Before and after
#
# Below the curve, eight validation images: rows are images, columns captions, true pairs on the diagonal. Before training all
# rows look alike; afterwards the diagonal stands out. Captions in bright *wrong* cells share colours or positions with the
# right one.

# %% tags=["thumbnail"]
from vlm_lite.studies import load_study

band, log_n = load_study("clip_infonce")["band"], math.log(recipe["batch_size"])
display(plots.loss_curve(history, band=band, chance=log_n, ylabel="InfoNCE loss (nats)"))
plots.similarity_matrix(before[:8, :8], after[:8, :8], val_texts[:8], val_images[:8])

# %% [markdown]
# ## 6. Retrieval, both ways
#
# **Chance** is $K/N$. The **ceiling** is what a perfect model could reach: where two
# captions say the same, they tie. Two **controls**: *shuffled*, each image in its neighbour's place, and
# *blank*, every image the same dark square.

# %%
blank = similarity_of(model, torch.full_like(val_images, 22))
matrices = {"image to text": after, "text to image": after.T, "untrained": before}
matrices |= {"shuffled images": after.roll(1, dims=0), "blank images": blank}
recall = {n: {f"R@{k}": recall_at_k(m, k) for k in (1, 5, 10)} for n, m in matrices.items()}
recall |= shapes.recall_limits(val_texts)  # chance and ceiling
found, shuffled = recall["image to text"]["R@5"], recall["shuffled images"]["R@5"]
assert profile.name == "smoke" or found > 0.9 and shuffled < 0.02
print(f"HEADLINE: image-to-text R@5 {found:.1%} of {len(after):,} (shuffled images {shuffled:.1%})")
display(plots.percent_table(recall))
plots.recall_bars(recall, guess={"R@5": my_guess})

# %% [markdown]
# R@5 is near the ceiling, R@1 is not. Both controls are at chance: the score comes from the images.
#
# ## 7. Zero-shot: a classifier made of sentences
#
# No classifier was trained. A sentence for each class is a point in the joint space; an image belongs to the nearest. One sentence per class works; the mean of several is a **prompt ensemble**.
#
# **Exercise 6: classes from sentences.** ★★☆ 6 minutes. From the prompts of each class make one unit vector: embed,
# normalise each prompt, average, normalise again. `encode_text` takes a list of strings and returns (n, P).
#
# <details><summary>Hint</summary>
#
# Classes may have different numbers of prompts: treat one class at a time and `torch.stack` the means.
# </details>


# %% nbgrader={"grade": false, "grade_id": "class_embeddings", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def class_embeddings(encode_text, prompts):
    """prompts: C lists of strings -> (C, P), one vector of unit length for each class."""
    ### BEGIN SOLUTION
    means = [F.normalize(encode_text(each), dim=-1).mean(dim=0) for each in prompts]  # C times (P,)
    return F.normalize(torch.stack(means), dim=-1)  # (C, P)
    ### END SOLUTION


def zero_shot(model, images, prompts, tokenizer):
    """uint8 images (N, 3, S, S), prompts: C lists of strings -> number (N,) of the nearest class."""
    classes = class_embeddings(
        lambda texts: embed_texts(model, tokenize(texts, tokenizer)), prompts
    )
    return (embed_images(model, images) @ classes.T).argmax(dim=1)  # (N, P) @ (P, C)


# %% nbgrader={"grade": true, "grade_id": "class_embeddings-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
class_embeddings = check.class_embeddings(class_embeddings)

# %% [markdown]
# We take the validation images with exactly one shape and ask for its colour (8 classes) and its shape (6 classes). One prompt
# is "red."; the ensemble has one for every size and shape, as "a large red circle." Beside your CLIP stands `shapes-clip`,
# which ships with the course: the same sizes and world, trained far longer, with hard negatives in the loss ("a red circle"
# against "a red star"). **Predict first:** is shape as easy as colour?

# %%
from vlm_lite.models.clip import CLIP as ShippedCLIP
from vlm_lite.profiles import resolve_model

shipped = ShippedCLIP.from_pretrained(resolve_model(profile.vision_model))
(rows, tasks), accuracy = shapes.zero_shot_task(val_table), {}
for kind, (names, truth) in tasks.items():
    ensemble = shapes.zero_shot_prompts(kind)
    for way, prompts in {"one prompt": [[f"{n}."] for n in names], "ensemble": ensemble}.items():
        row = accuracy[f"{kind}, {way}"] = {"chance": 1 / len(names)}
        for name, each in {"yours": model, "shapes-clip": shipped}.items():
            chosen = zero_shot(each, val_images[rows], prompts, tokenizer)
            row[name] = (chosen == torch.tensor(truth)).float().mean().item()
assert profile.name == "smoke" or accuracy["shape, ensemble"]["shapes-clip"] > 0.85
plots.percent_table(accuracy)

# %% [markdown]
# Colour is learnt; the ensemble adds little. At shape your model is little better than chance, although its R@5 is above 90%. Perhaps colours, sizes
# and positions nearly suffice to find one caption among 64, and the loss hardly presses for shapes. **A high recall is no
# proof that everything in the caption was learnt.** `shapes-clip`, trained longer ([05b](05b_retrieval_and_steps.ipynb)) with hard negatives in which shapes decide, names
# nearly all; later notebooks build on it.
#
# ## 8. Temperature and the modality gap
#
# > **Myth: "CLIP's temperature is fixed at 0.07."** That is where it starts. `logit_scale` is a parameter like any other.
#
# At random weights images and captions form two separate clouds, and in
# CLIPs trained on the web the **modality gap** stays open (Liang et al. 2022): InfoNCE compares images only with captions,
# so a shift common to all images costs little. The gap is $\lVert \bar u - \bar v \rVert$, the distance of the two mean
# unit vectors: 0 for equal means, at most 2.

# %%
clouds = {}
for name, each in {"before training": make_clip(tokenizer, seed), "after training": model}.items():
    clouds[name] = embed_images(each, val_images), embed_texts(each, val_ids)
    print(f"temperature {name}: {(-each.logit_scale).exp():.3f}")
plots.joint_space(clouds)

# %% [markdown]
# The temperature has fallen a little. The gap has almost closed, unlike in CLIPs trained on the web. A likely reason: these
# captions describe nearly everything in the image, so a pair *can* coincide.
#
# ## 9. The same model in `transformers`
#
# Save it in Hugging Face layout: the same weights under the names of `transformers.CLIPModel`, which splits query, key and
# value and calls the patch embedding a convolution. Its embeddings and its loss must equal yours.

# %%
from transformers import CLIPModel

from vlm_lite.files import home
from vlm_lite.models.layout import save_clip

theirs = CLIPModel.from_pretrained(save_clip(model, home() / "notebook-01"), dtype=torch.float32)
u, v, logit_scale = model(*eight)
output = theirs(pixel_values=eight[0], input_ids=eight[1], return_loss=True)
mine = F.normalize(u, dim=-1), F.normalize(v, dim=-1), info_nce(u, v, logit_scale)
equal = output.image_embeds, output.text_embeds, output.loss
torch.testing.assert_close(mine, equal, atol=1e-5, rtol=1e-5)
print(f"the loss of eight pairs: yours {mine[2]:.6f}, theirs {output.loss:.6f}")

# %% [markdown]
# ## What you showed
#
# - An image encoder, a text encoder and a loss written by you equal `transformers.CLIPModel` at the same weights.
# - Trained on pairs alone, the model nearly always has an image's caption among its first five of a thousand; from shuffled or blank images it has not.
# - Sentences make a classifier without training one: colours are read well, shapes hardly.
#
# ## What this does not show
#
# - That CLIP understands sentences, such as *who is left of whom*.
# - Anything about photographs: the images are drawn and the vocabulary is small.
# - What another loss or batch size would bring: see [01b](01b_clip_variants.ipynb).
#
# ## Check yourself
#
# - [ ] I can say which axis of the similarity matrix the softmax runs along, in each direction.
# - [ ] I can name chance and ceiling for R@5 among 200, and two controls that a recall must survive.
#
# ## To answer in words
#
# 1. Two images in one batch have the same caption. What does the loss ask of the model, and how low can it get?
# 2. Double the batch, and the loss goes up. Why is the model no worse for it?
#
# ## Where next
#
# [Notebook 02](02_vit.ipynb) opens the block of the image encoder. [Notebook 03](03_qformer_gpt2.ipynb) takes
# `shapes-clip`, freezes it, and connects it to a language model, so that it can answer in words.
