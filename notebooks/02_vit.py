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
#     title: The Vision Transformer
#     builds: a Vision Transformer, each part equal to timm's, and the loop that trains it
#     lesson: vit
#     reads: [zoo/shapes-clip, results/vit_positions.json]
#     outputs_of: 93a4b5fef82d40ccbf33187c6c1b6deb132c5d53affdd504a31524f678a6b99f
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/02_vit.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/02_vit.ipynb)

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
print(describe(profile, compute, notebook="02_vit"))

# %% [markdown]
# # 2. The Vision Transformer
#
# **You will build** the image encoder that [01](01_clip_infonce.ipynb) used: patches, multi-head attention, blocks, position
# embeddings and the class token, then the loop that trains it.
#
# **You will be able to show** that each part equals `timm`'s, weight for weight; what position embeddings are worth, against
# a ceiling that you compute beforehand; on which patch an answer depends, by hiding it; and that your ViT can replace
# the image encoder of a trained CLIP with exactly the same recall.
#
# **Reading time:** 25 minutes. Six exercises, 51 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (1 with bf16) and 1.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** PyTorch modules, softmax, cross-entropy, LayerNorm. Cells tagged `save` are copied
# into the package, as `vlm_lite/lessons/vit.py`; the recorded studies import them from there.

# %% tags=["hide"]
from vlm_lite import diagrams
from vlm_lite.lessons import vit as lesson

diagrams.vision_transformer(lesson.ViT(), lesson.leftmost_task("val", 1)[0][0], lesson.CLASSES)

# %% [markdown]
# ## 1. A task in which *where* decides
#
# The Shapes world draws 64-pixel images: one to four objects on a 4 x 4 grid, each a shape or a handwritten digit. The
# question is always the same: **which object stands furthest to the left?** There are seven classes, six shapes and "digit".
# Images of one object, or with two leftmost ones, are left out, so that each question has one answer.
#
# A model that sees *what* is in an image and not *where* can only pick one of the objects present. Its best choice is the shape
# that occurs most often. So its accuracy has a ceiling that can be computed from the scenes, before any training.

# %% tags=["save"]
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.lessons import world
from vlm_lite.profiles import get_compute

CLASSES = (*world.SHAPES, "digit")


def leftmost_task(split, count, axis="col", seed=0):
    """Images (count, 3, 64, 64) uint8, the class that comes first along `axis` (count,), and the scenes."""
    images, labels, kept, index = [], [], [], 0
    while len(kept) < count:
        rng = np.random.default_rng([seed, world.SPLITS.index(split), index])
        scene, index = world.sample_scene(rng, split), index + 1
        first, *others = sorted(scene.items, key=lambda item: getattr(item, axis))
        if others and getattr(first, axis) < getattr(others[0], axis):
            images.append(world.render(scene, rng))
            labels.append(CLASSES.index(first.shape))
            kept.append(scene)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels), kept


def pixel_values(images):
    """uint8 (B, 3, S, S) -> floats, normalised: (x - mean) / std."""
    return (images / 255 - 0.12) / 0.14


# %%
import pandas as pd
import timm.models.vision_transformer as timm_vit

from vlm_lite import plots
from vlm_lite.data.shapes import load_pairs
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.labs import check
from vlm_lite.lessons.clip_variants import recall
from vlm_lite.models.clip import CLIP
from vlm_lite.models.layout import clip_to_timm
from vlm_lite.models.positions import axis_cosines
from vlm_lite.profiles import resolve_model
from vlm_lite.studies import load_study

pd.options.display.float_format = "{:.3f}".format
full_size = profile.name != "smoke"  # what the text says of results holds at full size
train_images, train_labels, _ = leftmost_task("train", 2 * profile.train_images)
val_images, val_labels, val_scenes = leftmost_task("val", profile.val_images)
present = [[item.shape for item in scene.items] for scene in val_scenes]
ceiling = np.mean([max(map(shapes.count, shapes)) / len(shapes) for shapes in present])
print(f"chance {1 / len(CLASSES):.3f}, ceiling without positions {ceiling:.3f}")
plots.show_images(val_images[:5], [CLASSES[label] for label in val_labels[:5]])


# %% [markdown]
# The ceiling needs no model: among $n$ objects in random columns each is equally likely to be the leftmost. Everything
# above the ceiling is knowledge of *where*.
#
# ## 2. From image to patches
#
# A transformer reads a sequence of vectors. Dosovitskiy et al. (2021) make one out of an image in the simplest way: cut it
# into squares of $p$ pixels, flatten each, and map each to width $D$ by one linear layer.
#
# $$(3, S, S) \ \to\ N = (S / p)^2 \ \text{ patches of } \ 3 p^2 \ \text{ numbers} \ \to\ (N, D)$$
#
# **The same as a convolution.** A convolution whose stride is its kernel's size never lets two windows overlap, so it is this
# linear layer, its weights flattened. `timm` and `transformers` write it that way. The cell after the exercise compares the two.
#
# **Exercise 1: patchify.** ★★☆ 6 minutes. Return the patches row by row. Inside a patch the order is channel, row, column.
#
# <details><summary>Hint</summary>
#
# One `rearrange`. On the left split each side, `(rows p)` and `(columns q)`. On the right say what goes together.
# </details>


# %% nbgrader={"grade": false, "grade_id": "patchify", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def patchify(images, patch_size):
    """images (B, C, S, S) -> patches (B, N, C·p·p)."""
    ### BEGIN SOLUTION
    squares = "b c (rows p) (columns q) -> b (rows columns) (c p q)"
    return rearrange(images, squares, p=patch_size, q=patch_size)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "patchify-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
patchify = check.patchify(patchify)

conv = nn.Conv2d(3, 64, kernel_size=16, stride=16)
pixels = pixel_values(val_images[:2])  # (2, 3, 64, 64)
by_linear = F.linear(patchify(pixels, 16), conv.weight.flatten(1), conv.bias)  # (2, 16, 64)
torch.testing.assert_close(by_linear, conv(pixels).flatten(2).mT, atol=1e-5, rtol=1e-5)


# %% [markdown]
# ## 3. Multi-head attention
#
# To find the leftmost object, a patch must be compared with the others. **Attention** does that. Each token $x_i$ makes a
# **query** $q_i$ (what it looks for), a **key** $k_i$ (what it offers for comparison) and a **value** $v_i$ (what it hands over):
#
# $$A = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{h}}\right) \qquad \text{out} = A\,v$$
#
# Row $i$ of $A$ holds the weights with which token $i$ averages the values; they sum to 1. Dividing by $\sqrt h$ keeps the
# variance of the scores near 1 whatever the width $h$, so the softmax doesn't saturate. This happens in $H$ **heads** at once, each on
# its own $h = D / H$ of the $D$ numbers, so that a token can attend to several things for several reasons.
#
# `timm` calls `F.scaled_dot_product_attention`, which computes the same without ever storing the $(B, H, N, N)$ weights.
# That saves memory, and leaves no weights to look at. Below the check, yours is compared with it.
#
# **Exercise 2: multi-head attention.** ★★★ 12 minutes. Write `forward`. `qkv` computes all three at once,
# stacked: its $3D$ outputs are ordered (q, k, v), then head, then $h$. Keep the attention weights (detached) in
# `self.weights`; we look at them in section 8.
#
# <details><summary>Hint</summary>
#
# `rearrange(..., "b n (three heads h) -> three b heads n h", three=3, heads=self.num_heads)` gives something that unpacks to
# `q, k, v`. `q @ k.transpose(-2, -1)` has shape $(B, H, N, N)$; the softmax runs over its last axis. At the end the heads
# go side by side, and through `proj`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "MultiHeadAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): x (B, N, D) -> (B, N, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        assert width % num_heads == 0, f"width {width} does not divide into {num_heads} heads"
        self.num_heads, self.weights = num_heads, None
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        ### BEGIN SOLUTION
        split = "b n (three heads h) -> three b heads n h"
        q, k, v = rearrange(self.qkv(x), split, three=3, heads=self.num_heads)  # each (B, H, N, h)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, N, N)
        self.weights = weights.detach()
        mixed = weights @ v  # (B, H, N, N) x (B, H, N, h) -> (B, H, N, h)
        return self.proj(rearrange(mixed, "b heads n h -> b n (heads h)"))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "MultiHeadAttention-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
MultiHeadAttention = check.MultiHeadAttention(MultiHeadAttention)


tokens = torch.randn(2, 17, 64)
theirs = timm_vit.Attention(64, num_heads=4, qkv_bias=True)
check.same_outputs(MultiHeadAttention(64, 4), theirs, tokens)


# %% [markdown]
# ## 4. The block
#
# A **block** has two steps. Attention moves information between tokens; an **MLP** of two layers, with a GELU between them,
# then works on each token alone. Each step *adds* its result to $x$, the **residual stream**. LayerNorm comes *before*
# each step (**pre-norm**): the step reads a normalised copy, and the stream itself is never normalised.
#
# $$x \leftarrow x + \mathrm{attn}(\mathrm{norm}_1(x)) \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}_2(x))$$
#
# **Exercise 3: the block.** ★★☆ 8 minutes. Write `__init__` and `forward`. Call the parts `norm1`, `attn`, `norm2` and `mlp`, and
# the layers of the MLP `fc1` ($D \to 4D$) and `fc2` ($4D \to D$), so that `timm`'s weights fit. The LayerNorms have `eps=1e-6`.
#
# <details><summary>Hint</summary>
#
# `nn.Sequential(OrderedDict(fc1=..., act=nn.GELU(), fc2=...))` names the layers of the MLP. `forward(self, x)` has two lines.
# What is normalised is read, never stored back into `x`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "Block", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class Block(nn.Module):
    """A pre-norm transformer block: x (B, N, D) -> (B, N, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = MultiHeadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "Block-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
Block = check.Block(Block)

check.same_outputs(Block(64, 4), timm_vit.Block(64, num_heads=4, qkv_bias=True), tokens)


# %% [markdown]
# ## 5. The whole model
#
# Two parts are left. Attention treats its input as a *set*: shuffle the patches, and each token's output is the same as
# before. So a **position embedding**, one learnt vector per token, is added. And one more token is put in
# front of them, the **class token**: it belongs to no patch, collects what the answer needs, and the **head** reads the
# answer from it.
#
# Below the check, the whole model is compared with `timm`'s, its weights copied.
#
# **Exercise 4: the forward pass.** ★★☆ 10 minutes. Write `forward_features`: patches, class token, position embedding,
# `norm_pre`, blocks, `norm`. (`norm_pre` does nothing here; CLIP has a LayerNorm in its place.)
#
# <details><summary>Hint</summary>
#
# Embed the patches as in section 2, with `self.patch_embed["proj"]`. `self.cls_token.expand(len(x), -1, -1)` has one class
# token per image; `torch.cat([..., x], dim=1)` puts it first. Then add `self.pos_embed`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "ViT", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021); the parameters have timm's names and shapes."""

    def __init__(self, image_size=64, patch_size=16, width=64, depth=3, num_heads=4, num_classes=7):
        super().__init__()
        assert image_size % patch_size == 0, f"{image_size} pixels, patches of {patch_size}"
        self.patch_size, tokens = patch_size, 1 + (image_size // patch_size) ** 2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, pixels):
        """pixels (B, 3, S, S) -> tokens (B, 1+N, D), the class token first."""
        ### BEGIN SOLUTION
        conv = self.patch_embed["proj"]
        x = patchify(pixels, self.patch_size)  # (B, N, 3·p·p)
        x = F.linear(x, conv.weight.flatten(1), conv.bias)  # (B, N, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1+N, D)
        x = self.norm_pre(x + self.pos_embed)
        return self.norm(self.blocks(x))
        ### END SOLUTION

    def forward(self, pixels):
        """pixels (B, 3, S, S) -> logits (B, num_classes)."""
        return self.head(self.forward_features(pixels)[:, 0])


# %% nbgrader={"grade": true, "grade_id": "ViT-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
ViT = check.ViT(ViT)

timm_sizes = dict(img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=7)
model = ViT()
check.same_outputs(model, timm_vit.VisionTransformer(**timm_sizes), pixels)

# %% [markdown]
# **Predict first.** Move every patch one column to the right, and the last column to the left. What changes in the logits of a
# ViT with position embeddings, and of one without (all of them zero)?

# %%
moved = pixels.roll(16, dims=3)  # (2, 3, 64, 64), by one patch
change = [(model(moved) - model(pixels)).abs().max().item()]
nn.init.zeros_(model.pos_embed)
change.append((model(moved) - model(pixels)).abs().max().item())
assert change[1] < 1e-4 < change[0]
print("largest change: with positions {:.1e}, without {:.1e}".format(*change))


# %% [markdown]
# Without positions nothing changes, whatever the weights: such a model *cannot* get beyond the ceiling of section 1.
#
# ## 6. Train it
#
# **Exercise 5: one training step.** ★★☆ 8 minutes. In this order: forward and cross-entropy under `accelerator.autocast()`
# (the logits as floats), `accelerator.backward`, clip the gradient's norm to 1 with `accelerator.clip_grad_norm_`, step the optimizer,
# step the schedule, set the gradients to zero. Return the detached loss.
#
# <details><summary>Hint</summary>
#
# `F.cross_entropy(logits, labels)`, in this order. Without `optimizer.zero_grad()` each step would add its gradient to all
# those before.
# </details>


# %% nbgrader={"grade": false, "grade_id": "training_step", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def training_step(model, pixels, labels, optimizer, scheduler, accelerator):
    """One step on pixels (B, 3, S, S) and labels (B,); returns the loss, detached."""
    ### BEGIN SOLUTION
    with accelerator.autocast():
        loss = F.cross_entropy(model(pixels).float(), labels)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "training_step-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
training_step = check.vit_training_step(training_step)


# %% [markdown]
# **The loop around it:** `Accelerator` knows the device and the precision; the learning rate warms up, then falls along a cosine.
# `Checkpoint` sets train mode, seeds each step, draws the bar, and saves, so that an interrupted run continues where it stopped. Beside
# the ViT stands the baseline that you know: a small CNN, four convolutions that halve the resolution, then a linear layer.


# %% tags=["save"]
def small_cnn(num_classes=7):
    """A convolutional baseline: pixels (B, 3, 64, 64) -> logits (B, num_classes)."""
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):  # 32, 16, 8, 4 pixels a side
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, num_classes))


def train_vit(model, images, labels, *, steps, batch_size, lr, seed=0, held_out=None, name="vit"):
    """Train a classifier on images (N, 3, S, S) uint8 and labels (N,); its history."""
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (ViT, training_step, train_vit)
    run = Checkpoint(name, model, optimizer, scheduler, seed=seed, settings=settings, code=code)
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # of each batch
    for step in run.steps(steps):
        rows = torch.randint(len(images), (batch_size,))[share]
        pixels = pixel_values(images[rows]).to(accelerator.device)
        targets = labels[rows].to(accelerator.device)
        run.log(loss=training_step(model, pixels, targets, optimizer, scheduler, accelerator))
        if held_out and (step + 1) % 100 == 0:
            run.log(accuracy=accuracy(model, *held_out))
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return run.history


@torch.no_grad()
def accuracy(model, images, labels):
    """The share of images (N, 3, S, S) uint8 whose class (N,) a model finds."""
    model.eval()
    device = next(model.parameters()).device
    found = [model(pixel_values(part).to(device)).argmax(dim=1).cpu() for part in images.split(250)]
    return (torch.cat(found) == labels).float().mean().item()


# %% [markdown]
# **Predict first.** Chance, the ceiling without positions, 1.0: where will the ViT end? Set `my_guess`, then run.

# %%
my_guess = 0.75

sizes = {"steps": profile.vit_steps, "batch_size": profile.vit_batch_size, "lr": profile.vit_lr}
torch.manual_seed(0)
vit = ViT()
start = vit.pos_embed.detach().clone()  # (1, 1+N, D), for section 7
history = train_vit(vit, train_images, train_labels, **sizes, held_out=(val_images, val_labels))
reached = accuracy(vit, val_images, val_labels)
assert not full_size or reached > ceiling + 0.2, f"{reached:.3f} is near the ceiling {ceiling:.3f}"
print(f"HEADLINE: leftmost object: ViT {reached:.3f}, ceiling without positions {ceiling:.3f}")

# %% [markdown]
# **Is my loss normal?** Your run over the recorded band of three seeds. *Stuck near the dotted line* (a guess among seven):
# do the images keep their labels? *Stuck near 1:* the model sees what and not where; are the positions added, and do they get a
# gradient? *Far above the band:* a residual or a norm is missing, or the learning rate isn't warmed up.

# %%
study = load_study("vit_positions")
plots.loss_curve(history, band=study["band"], chance=np.log(7), ylabel="cross-entropy (nats)")

# %% [markdown]
# ## 7. What positions are worth
#
# The same ViT with its positions frozen at zero, and the CNN: recorded with the functions above by `vlm-lite study vit_positions --seeds 3`,
# with the same images, steps, batch size and learning rate.
#
# **Predict first.** Where does the ViT without positions end: at chance, at the ceiling, between?

# %%
names = ("ViT", "ViT without positions", "CNN")
table = pd.DataFrame({name: study["summary"][f"accuracy, {name}"] for name in names}).T
table = table[["mean", "low", "high"]]
table.loc["ceiling without positions", "mean"] = ceiling
table.loc["ViT", "this run"] = reached
assert not full_size or table.high[names[1]] < ceiling + 0.03 < table.low["ViT"] < table.low["CNN"]
table

# %% [markdown]
# Without positions the ViT ends near the ceiling (an expected value: a seed may lie above): it sees *what*, and guesses
# *where*. All above it comes from the position embeddings.
#
# The CNN is more accurate still. A convolution takes for granted what the ViT has to learn: neighbouring pixels
# belong together, and an object looks the same elsewhere. This **inductive bias** helps with few images (here 16,000).
# With far more the order turns round (Dosovitskiy et al. 2021, figure 3).
#
# **What the positions have learnt.** They started as small noise (standard deviation 0.02), and training moved them. The figure
# has one small map for each of the 16 positions: the cosine of its vector with all the others, their mean subtracted. As a control, the
# same model is trained on another question: *which object stands highest?*
#
# **Predict first.** To find the leftmost object, which positions may look alike to the model?

# %%
torch.manual_seed(0)
vit_rows = ViT()
task = leftmost_task("train", 2 * profile.train_images, axis="row")[:2]
train_vit(vit_rows, *task, **sizes, name="vit-rows")
vit, vit_rows = vit.cpu(), vit_rows.cpu()
tables = {"at the start": start, "leftmost?": vit.pos_embed, "highest?": vit_rows.pos_embed}
measured = pd.DataFrame({title: axis_cosines(table) for title, table in tables.items()})
same = [torch.cosine_similarity(each, start, dim=-1).mean().item() for each in tables.values()]
measured.loc["with its start"] = same
alike = measured.loc["same column"] - measured.loc["same row"]
assert not full_size or alike["leftmost?"] > 0.3 and alike["highest?"] < -0.3
measured.T.rename_axis("mean cosine of two positions")

# %% tags=["thumbnail"]
plots.position_similarity(tables)


# %% [markdown]
# At the start no two positions are much alike. Trained for *leftmost*, positions of one column point
# nearly the same way: the question never needs the row. Columns 1 and 2 point one way, 3 and 4 the other (a cosine
# leaves lengths out). For *highest*, read rows for columns. Nothing in the model prefers columns or rows. The
# task does, and little of the start is left.
#
# ## 8. Where it looks
#
# In a block, row 0 of $A$ holds the weights of the class token. But tokens have exchanged information in the blocks before, so
# one block alone doesn't say where that came from. **Attention rollout** (Abnar and Zuidema 2020) traces it back: average the heads of each
# block, give half to the residual (a token keeps what it was), and multiply over the blocks.
#
# $$\hat A_l = \tfrac12\,\bar A_l + \tfrac12\, I \qquad R = \hat A_L \cdots \hat A_2\, \hat A_1$$
#
# **Exercise 6: attention rollout.** ★★☆ 7 minutes.
#
# <details><summary>Hint</summary>
#
# Start from the first block. With each further one, multiply *from the left*. The rows of the result sum to 1.
# </details>


# %% nbgrader={"grade": false, "grade_id": "attention_rollout", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def attention_rollout(attentions):
    """A list of weights (B, H, N, N), the first block's first -> (B, N, N)."""
    ### BEGIN SOLUTION
    identity = rollout = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights in attentions:
        rollout = (weights.mean(dim=1) + identity) / 2 @ rollout
    return rollout
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "attention_rollout-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
attention_rollout = check.attention_rollout(attention_rollout)

accuracy(vit, val_images[:250], val_labels[:250])  # one forward pass, which keeps the weights
attentions = [block.attn.weights for block in vit.blocks]  # each (B, H, 17, 17)
maps = {f"block {k}": weights.mean(dim=1) for k, weights in enumerate(attentions, start=1)}
maps |= {"rollout": attention_rollout(attentions)}
maps = {name: each[:, 0, 1:] for name, each in maps.items()}  # (B, 16), from the class token
in_order = [sorted(scene.items, key=lambda item: item.col) for scene in val_scenes]
first = torch.tensor([4 * items[0].row + items[0].col for items in in_order[:250]])  # its patch
hits = {name: (each.argmax(dim=1) == first).float().mean().item() for name, each in maps.items()}
assert not full_size or max(hits, key=hits.get) == "rollout" and hits["rollout"] > 0.7
pd.DataFrame({"strongest on the leftmost object": hits})

# %%
k = next(k for k, items in enumerate(in_order) if len(items) == 4)
shown = torch.stack([each[k].view(4, 4) for each in maps.values()])
plots.attention_over_image(val_images[k], shown, titles=list(maps))

# %% [markdown]
# The table says in how many images the class token's strongest patch is the leftmost object. Rollout finds it most often,
# in this one model and 250 images; the last block comes close.
#
# **A map is a claim; test it.** So intervene: paint the leftmost object over with the background's colour. Now the right
# answer is the *next* object from the left. A model that depends on that patch must change its answer to that one.
# The control: paint over the rightmost object, which must change nothing.

# %%
clear = [k for k, each in enumerate(in_order) if len(each) > 2 and each[1].col < each[2].col]
second = torch.tensor([CLASSES.index(in_order[k][1].shape) for k in clear])
rows = {}
for name, which in (("nothing", None), ("the leftmost", 0), ("the rightmost", -1)):
    images = val_images[clear].clone()
    for image, k in zip(images, clear if which is not None else (), strict=False):
        top, left = 16 * in_order[k][which].row, 16 * in_order[k][which].col
        image[:, top : top + 16, left : left + 16] = torch.tensor(world.BACKGROUND).view(3, 1, 1)
    rows[name] = [accuracy(vit, images, labels) for labels in (val_labels[clear], second)]
assert not full_size or rows["the leftmost"][1] > 0.6 < rows["the rightmost"][0]
pd.DataFrame(rows, index=["answers the leftmost", "answers the next one"]).T.rename_axis("hidden")

# %% [markdown]
# (A row can exceed 1 in sum: both objects may share a shape.) With the leftmost object hidden, the model mostly names the
# next one, as the task asks. With the rightmost hidden its accuracy stays. So the answer depends on the leftmost patch: not because a map shows it, but because changing it changes the answer.
#
# ## 9. Your ViT in a trained CLIP
#
# Put your class in the place of the image encoder of the CLIP that ships with the course, its weights copied, and ask a
# thousand images for their captions again. If anything were wrong (heads split in another order, a norm in another place)
# recall would fall. The control is your ViT with random weights.

# %%
clip, tokenizer = CLIP.from_pretrained(resolve_model(profile.vision_model)), make_tokenizer()
images, captions, _ = load_pairs("val", profile.val_images)
found = {"CLIP's own encoder": recall(clip, images, captions, tokenizer)}
encoder = ViT(width=128, depth=4)
encoder.norm_pre = nn.LayerNorm(128)
encoder.apply(lambda module: setattr(module, "eps", 1e-5))  # that of CLIP's LayerNorms
clip.encode_image = lambda x: clip.visual_projection(encoder.forward_features(x)[:, 0])
found["your ViT, untrained"] = recall(clip, images, captions, tokenizer)
encoder.load_state_dict(encoder.state_dict() | clip_to_timm(clip.vision_model.state_dict()))
found["your ViT, CLIP's weights"] = recall(clip, images, captions, tokenizer)
assert found["your ViT, CLIP's weights"] == found["CLIP's own encoder"]
pd.DataFrame(found).T

# %% [markdown]
# ## What you showed
#
# - Patches are a strided convolution; your attention, your block and your whole ViT are `timm`'s, weight for weight.
# - Without position embeddings a ViT can't exceed what a bag of patches allows, and with training it comes close to
#   that ceiling. With them it goes far beyond.
# - The table of positions learns what the question needs: columns for *leftmost*, rows for *highest*.
# - The answer depends on the leftmost object: hide it, and the model names the next one.
# - In a trained CLIP your ViT reaches the same recall.
#
# ## What this does not show
#
# - That a ViT is the better choice here: the CNN is more accurate.
# - That positions matter for every task. Where what is in the image is enough, they matter little.
# - That position embeddings always show rows or columns. Trained on photographs they become smooth in both
#   (Dosovitskiy et al. 2021, figure 7).
# - That attention explains a decision. Hiding a patch is evidence; a map alone isn't.
#
# ## Check yourself
#
# - [ ] I can write attention with the shape of every tensor, and say over which axis the softmax runs.
# - [ ] I can say what a ViT without positions can and can't know, and compute its ceiling for a task.
# - [ ] I can say what changes when the patch is halved: tokens, parameters, and the size of $A$.
#
# ## To answer in words
#
# 1. The CNN has no position embedding, and still answers *where*. Where does it get it from? What would
#    global average pooling in place of `Flatten` change?
# 2. Twice the resolution with the same patch, or half the patch at the same resolution: the same number of tokens. What is
#    different?
#
# ## Next
#
# [Notebook 03](03_qformer_gpt2.ipynb) takes the patches of CLIP's image encoder, one layer before the last, and connects them to a
# language model.
