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
#     title: What changes a CLIP
#     builds: other losses, noise, hard negatives, scaling, and a search for near-duplicates
#     lesson: clip_variants
#     reads: [results/contrastive_variants.json]
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/01b_clip_variants.ipynb)

# %% tags=["setup"]
pass

# %% [markdown]
# # 1b. What changes a CLIP
#
# A companion to [notebook 01](01_clip_infonce.ipynb), optional and short. One thing at a time changes in 01's training: the
# loss, the temperature, the batch, the captions, the number of steps and of images. Then you search the training set for
# near-copies of test images, by a perceptual hash.
#
# **You will be able to show** which of nine changes matter, whether a power law predicts a longer training, and what copies
# of test images in the training set do to a score.
#
# **Reading time:** 15 minutes. No exercises.
# <!-- figures -->
# <!-- /figures -->
# **Before this:** [01, CLIP from scratch](01_clip_infonce.ipynb), whose functions are imported here.
#
# Most figures are **recorded**, three seeds each: `vlm-lite study contrastive_variants --seeds 3` repeats them with this
# page's functions. One row is trained live. To be affordable, the model is smaller than 01's (width 64, two image blocks,
# one text block) and trained for 240 steps of 64 pairs, where nothing has converged: **the figures compare; they are not
# the best that each variant can do.**

# %% tags=["save"]
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.data import shapes
from vlm_lite.data.negatives import replaced_word
from vlm_lite.embed import embed_images, embed_texts, tokenize
from vlm_lite.lessons.clip import CLIP, info_nce, make_clip, recall_at_k, train_clip, zero_shot

# %% [markdown]
# ## 1. Three other losses
#
# `train_clip` takes the loss as an argument. **One direction** is half of InfoNCE: each image chooses among the captions,
# and no caption chooses. **SigLIP** (Zhai et al. 2023) asks of each of the $N^2$ pairs whether it belongs together: a
# sigmoid instead of a softmax, so nothing is normalised across the batch. It has a learnt *bias*, since all but $N$ of the
# answers are "no"; the paper starts it at $-10$, for batches of thousands. **Hard negatives** (NegCLIP, Yuksekgonul et
# al. 2023) give each image a wrong caption of its own, one word away from the right one.


# %% tags=["save"]
def one_direction(image_embeds, text_embeds, logit_scale):
    """Half of InfoNCE: each image chooses its text, no text chooses. image_embeds, text_embeds (N, P) -> ()."""
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * u @ v.T  # (N, N)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def siglip(image_embeds, text_embeds, logit_scale, logit_bias):
    """SigLIP (Zhai et al. 2023): is this a pair, yes or no, for each of the N² pairs. logit_bias () -> ()."""
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * u @ v.T + logit_bias  # (N, N)
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 on the diagonal, -1 elsewhere
    return -F.logsigmoid(sign * logits).sum() / len(logits)


class CLIPWithNegatives(CLIP):
    """A CLIP that is given two texts an image, the caption and a wrong one: ids (B, 2, T) -> text_embeds (2 B, P)."""

    def forward(self, pixels, input_ids):
        return super().forward(pixels, rearrange(input_ids, "b two t -> (two b) t"))


def hard_negatives(image_embeds, text_embeds, logit_scale):
    """InfoNCE where each image (N, P) also has N wrong texts to refuse: text_embeds (2 N, P) -> ()."""
    count = len(image_embeds)
    both_ways = info_nce(image_embeds, text_embeds[:count], logit_scale)
    among_all = one_direction(image_embeds, text_embeds, logit_scale)  # 2 N candidates
    return (both_ways + among_all) / 2


# %% [markdown]
# ## 2. One thing at a time
#
# **Noise** is ALIGN's question (Jia et al. 2021): are many noisy captions better than few clean ones? Here half of the
# images get the captions of others. Each row starts from the same weights for its seed and sees as many pairs as
# *nothing changed*.


# %% tags=["save"]
def swap_captions(input_ids, share, seed=0):
    """Token ids (N, C, T) -> the same, where a share of the images has got the captions of another."""
    order = torch.randperm(len(input_ids), generator=torch.Generator().manual_seed(seed))
    moved, swapped = order[: round(share * len(order))], input_ids.clone()
    swapped[moved] = input_ids[moved.roll(1)]
    return swapped


def add_negatives(captions, tokenizer):
    """N lists of C captions -> token ids (N, C, 2, T): each caption, and itself with one word replaced."""
    rng = np.random.default_rng(0)
    texts = [t for five in captions for text in five for t in (text, replaced_word(text, rng))]
    return tokenize(texts, tokenizer).view(len(captions), len(captions[0]), 2, -1)


SMALL = {"width": 64, "image_layers": 2, "text_layers": 1, "num_heads": 2, "projection_dim": 64}


def train_variant(
    images,
    captions,
    tokenizer,
    *,
    loss_fn=info_nce,
    bias=None,
    temperature=None,
    swapped=0.0,
    **recipe,
):
    """(model, History): a small CLIP trained by notebook 01's loop with something changed. recipe: `train_clip`'s."""
    model = make_clip(tokenizer, recipe["seed"], **SMALL)
    if loss_fn is hard_negatives:
        torch.manual_seed(recipe["seed"])
        model, ids = CLIPWithNegatives(model.config), add_negatives(captions, tokenizer)
    else:
        texts = [text for five in captions for text in five]
        ids = tokenize(texts, tokenizer).view(len(images), len(captions[0]), -1)  # (N, C, T)
    if loss_fn is siglip:
        model.logit_scale.data.fill_(math.log(10))
        model.logit_bias = torch.nn.Parameter(torch.tensor(bias))
        loss_fn = partial(siglip, logit_bias=model.logit_bias)
    if temperature:
        model.logit_scale.requires_grad_(False).fill_(-math.log(temperature))
    ids = swap_captions(ids, swapped, recipe["seed"])
    history = train_clip(model, images, ids, loss_fn=loss_fn, **recipe)
    return model.cpu(), history


def variants(steps, batch_size):
    """{name: what it changes}, as keywords of `train_variant`. Each sees as many pairs as "nothing changed"."""
    return {
        "nothing changed": {},
        "temperature fixed at 0.01": {"temperature": 0.01},
        "temperature fixed at 0.5": {"temperature": 0.5},
        "half the batch, twice the steps": {"batch_size": batch_size // 2, "steps": 2 * steps},
        "twice the batch, half the steps": {"batch_size": 2 * batch_size, "steps": steps // 2},
        "images choose, captions do not": {"loss_fn": one_direction},
        "SigLIP, bias -10": {"loss_fn": siglip, "bias": -10.0},
        "SigLIP, bias -log(N - 1)": {"loss_fn": siglip, "bias": -math.log(batch_size - 1)},
        "hard negatives": {"loss_fn": hard_negatives},
        "half of the captions swapped": {"swapped": 0.5},
    }


def recall(model, images, captions, tokenizer):
    """{"R@1": ..., "R@5": ...} image to text, of held-out images and the first caption of each."""
    ids = tokenize([five[0] for five in captions], tokenizer)
    similarity = embed_images(model, images) @ embed_texts(model, ids).T  # (N, N)
    return {f"R@{k}": recall_at_k(similarity, k) for k in (1, 5)}


def shape_accuracy(model, images, table, tokenizer):
    """The share of the images with one shape whose shape is named right by notebook 01's ensemble of prompts."""
    rows, tasks = shapes.zero_shot_task(table)
    chosen = zero_shot(model, images[rows], shapes.zero_shot_prompts("shape"), tokenizer)
    return (chosen == torch.tensor(tasks["shape"][1])).float().mean().item()


# %% [markdown]
# **Predict first.** Which of these rows end far below *nothing changed*? Does any end above? Choose a row to train live, or
# leave the one that is there.

# %%
from vlm_lite import plots
from vlm_lite.data import language
from vlm_lite.studies import load_study

my_row = "SigLIP, bias -log(N - 1)"
images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
val_images, val_captions, _ = shapes.load_pairs("val", profile.val_images)
recipe = {"steps": 2 * profile.contrastive_steps // 3, "batch_size": 64, "lr": 3e-3, "seed": 0}
tokenizer, rows = language.make_tokenizer(), variants(recipe["steps"], recipe["batch_size"])
model, history = train_variant(images, captions, tokenizer, **{**recipe, **rows[my_row]})
live = recall(model, val_images, val_captions, tokenizer)

# %% tags=["thumbnail"]
runs = [run["figures"] for run in load_study("contrastive_variants")["runs"]]


def recorded(row, metric="R@5"):
    return np.array([run[f"{row}: {metric}"] for run in runs])  # (3,), a seed each


found = {row: recorded(row) for row in rows}
plots.seed_ranges(found, live=(my_row, live["R@5"]), xlabel="R@5, image to text (%)")

# %%
means = {r: {m: recorded(r, m).mean() for m in ("R@1", "R@5", "shape")} for r in rows}
plots.percent_table(means)

# %% [markdown]
# TODO
#
# ## 3. Scaling: is a longer training predictable?
#
# OpenCLIP's question (Cherti et al. 2023): does the error fall as a power law, $E = b\,x^a$, a straight line on logarithmic
# axes, so that small runs predict a large one? Left: more steps on the same 8,000 images. Right: fewer images at the same
# 240 steps. One line a seed. In steps it is fitted *without* the longest run, which it must predict.

# %%
steps = {60: "steps x 0.25", 120: "steps x 0.5", 240: "nothing changed", 480: "steps x 2"}
steps, sizes = steps | {960: "steps x 4"}, {8000 // k: f"images / {k}" for k in (64, 16, 4)}
series = {"training steps": steps, "training images": sizes | {8000: "nothing changed"}}
errors = {name: {x: 1 - recorded(r) for x, r in each.items()} for name, each in series.items()}
lines = {}
for name, points in errors.items():
    x, y = np.log(list(points)[:4]), np.log(list(points.values())[:4])  # (4,), (4, 3)
    lines[name] = np.polyfit(x, y, 1).T  # (3, 2): slope and intercept of each seed
    a = lines[name][:, 0]
    print(f"{name}: exponent {a.mean():.2f}, over the seeds {a.min():.2f} to {a.max():.2f}")
foretold, longest = np.exp(lines["training steps"] @ [math.log(960), 1]), 1 - recorded("steps x 4")
print(f"error at 960 steps: foretold {foretold.round(3)}, found {longest.round(3)}")
plots.power_law(errors, lines, ylabel="error, 1 - R@5")

# %% [markdown]
# TODO
#
# ## 4. Near-duplicates
#
# A test image that stands in the training set as well is not a test. On the web it is rarely the same file: it was resized,
# darkened, compressed. A **perceptual hash** keeps what such changes leave: here 64 bits, which cells of an 8 x 8 grey
# thumbnail are brighter than its mean. Two images are near-duplicates when their hashes differ in few bits (*Hamming
# distance*), which is cheap for millions of images.
#
# We hide near-copies of 250 test images among 1,000 training images and look for them. **Predict first:** of the pairs that
# the hash reports, how many are true ones?


# %% tags=["save"]
def average_hash(images):
    """uint8 images (N, 3, S, S) -> 64 bits each, bool (N, 64): which cells of an 8 x 8 grey thumbnail are bright."""
    grey = images.float().mean(dim=1, keepdim=True)  # (N, 1, S, S)
    cells = F.interpolate(grey, size=(8, 8), mode="area").flatten(1)  # (N, 64)
    return cells > cells.mean(dim=1, keepdim=True)


def hamming(a, b):
    """Bits (N, 64) and (M, 64) -> (N, M), in how many bits each pair differs."""
    a, b = a.float(), b.float()
    return a @ (1 - b).T + (1 - a) @ b.T


def thumbnail_cosine(a, b):
    """uint8 images (N, 3, S, S) and (M, 3, S, S) -> (N, M), the cosines of their centred colour thumbnails."""
    small = (F.interpolate(x.float(), size=(16, 16), mode="area").flatten(1) for x in (a, b))
    u, v = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in small)
    return u @ v.T


def near_duplicates(a, b, bits=2, cosine=0.9):
    """bool (N, M): the pairs whose hashes nearly agree, and whose thumbnails then do so as well."""
    return (hamming(average_hash(a), average_hash(b)) <= bits) & (thumbnail_cosine(a, b) > cosine)


def near_copies(images, seed=0):
    """What happens to an image on the web: darker by a tenth, moved by a pixel, and noise of 4 levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (0.9 * images.roll(1, dims=-1) + 4 * noise).round().clamp(0, 255).byte()


# %%
count = len(val_images) // 4
hidden = torch.cat([images[: 4 * count], near_copies(val_images[:count])])
true = torch.eye(count, dtype=torch.bool)
true = F.pad(true, (0, len(val_images) - count, len(hidden) - count, 0))  # (1250, 1000)
distance = hamming(average_hash(hidden), average_hash(val_images))  # (1250, 1000)
searches = {f"hash, {bits} bits or fewer differ": distance <= bits for bits in (0, 2, 4)}
searches["hash, then thumbnails"] = near_duplicates(hidden, val_images)
scores = {}
for name, pairs in searches.items():
    hits, innocent = (pairs & true).sum(), pairs[:-count].any(dim=1).float().mean()
    scores[name] = {"recall": hits / count, "precision": hits / pairs.sum(), "innocent": innocent}
plots.percent_table(scores)

# %% [markdown]
# TODO

# %%
leak = {
    f"{name}, {which} test images": recorded(name, f"R@1 of {which}")
    for name in ("with copies", "copies removed")
    for which in ("copied", "others")
}
plots.seed_ranges(leak, xlabel="R@1 among 250, image to text (%)")

# %% [markdown]
# TODO end
