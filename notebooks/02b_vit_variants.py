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
#     outputs_of: f2b1a2373edb7bca6db30c19bca5f68bf5b37938c9a605d37d07ae7393590758
#     title: Masked image modelling, and two changes of a ViT
#     builds: an image encoder that learns by filling in hidden patches, and a ViT with another norm or readout
#     lesson: vit_variants
#     reads: [zoo/shapes-clip, results/vit_variants.json, results/vit_positions.json]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/02b_vit_variants.ipynb)

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
print(describe(profile, compute, notebook="02b_vit_variants"))

# %% [markdown]
# # 2b. Masked image modelling, and two changes of a ViT
#
# A companion to notebooks [01](01_clip_infonce.ipynb) and [02](02_vit.ipynb), optional and short. EVA (Fang et al. 2022)
# trains an image encoder before it has seen a caption: hide some of the patches, and predict at the hidden ones what a
# frozen, trained CLIP computes there. MAE and SimMIM predict the pixels. Does a CLIP that starts from such an encoder beat
# one that spends the same steps on captions? And what do the place of the LayerNorms and the readout change in 02's ViT?
#
# **You will be able to show** what each start is worth, what a control without a trained teacher is worth, and which of two
# common changes of a ViT matters on 02's task.
#
# **Reading time:** 10 minutes. No exercises.
# <!-- figures -->
# **Run time:** about 1 min (1 with bf16) and 1.7 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [01](01_clip_infonce.ipynb) and [02](02_vit.ipynb), whose functions are imported here.
#
# Most figures are **recorded**, three seeds each: `vlm-lite study vit_variants --seeds 3` repeats them with this page's
# functions, on the small CLIP of [01b](01b_clip_variants.ipynb). One row is trained live.

# %% tags=["save"]
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import pixel_values, tokenize
from vlm_lite.lessons.clip import make_clip, train_clip
from vlm_lite.lessons.clip_variants import SMALL, recall
from vlm_lite.lessons.vit import Block, ViT, accuracy, leftmost_task, small_cnn, train_vit
from vlm_lite.models.clip import CLIP
from vlm_lite.models.positions import axis_cosines
from vlm_lite.profiles import get_compute, resolve_model

# %% [markdown]
# ## 1. Hide, encode, predict
#
# The model is 01's image encoder with two additions: a learnt **mask token** that stands where a patch is hidden (its
# position stays), and a linear head. The encoder never sees the hidden pixels.


# %% tags=["save"]
class MaskedModel(nn.Module):
    """Predicts a target at every patch of an image of which some patches are hidden."""

    def __init__(self, encoder, target_width):
        super().__init__()
        self.encoder, width = encoder, encoder.class_embedding.shape[0]
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.head = nn.Linear(width, target_width)

    def forward(self, pixels, hidden):
        """pixels (B, 3, S, S), hidden (B, N), True where a patch is hidden -> (B, N, T)."""
        encoder, p = self.encoder, self.encoder.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        patches = encoder.patch_embedding(patches)  # (B, N, D)
        patches = torch.where(hidden[..., None], self.mask_token.to(patches.dtype), patches)
        token = encoder.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)
        x = encoder.input_norm(torch.cat([token, patches], dim=1) + encoder.position_embedding)
        for block in encoder.blocks:
            x = block(x)  # (B, 1 + N, D)
        return self.head(encoder.output_norm(x[:, 1:]))  # (B, N, T)


# %% [markdown]
# **Two kinds of target, one loss.** *Pixels*: the patch's own, minus their mean. *Features*: what `shapes-clip`, the CLIP
# that ships with the course, computes at that patch. The loss is $1 - \cos$ of prediction and target, averaged over the
# hidden patches alone.
#
# That teacher *was* trained with captions, and for far more steps than anything here. (EVA's was OpenAI's CLIP.) So a gain
# from its features may be knowledge that it hands down. The control has the same architecture and **untrained** weights.


# %% tags=["save"]
def pixel_targets(images, patch_size=16):
    """uint8 images (N, 3, S, S) -> (N, patches, 3 p p), each patch's pixels minus their mean."""
    pattern = "n c (h p) (w q) -> n (h w) (c p q)"
    patches = rearrange(pixel_values(images), pattern, p=patch_size, q=patch_size)
    return patches - patches.mean(dim=-1, keepdim=True)


@torch.no_grad()
def feature_targets(images, trained=True):
    """uint8 images (N, 3, 64, 64) -> (N, 16, 128), the features of `shapes-clip` or of an untrained model of its sizes.

    Standardised over the images at each patch: otherwise their mean would be a good guess.
    """
    teacher = CLIP.from_pretrained(resolve_model("shapes-clip"))
    if not trained:
        torch.manual_seed(0)
        teacher = CLIP(teacher.config).eval()
    parts = [teacher.patch_features(pixel_values(part), layer=-1) for part in images.split(500)]
    features = torch.cat(parts)
    return (features - features.mean(dim=0)) / features.std(dim=0)


def pretrain(encoder, images, targets, *, steps, batch_size, lr, seed=0, share=0.4):
    """Train an image encoder in place to predict targets (N, patches, T) where patches are hidden -> History.

    share: of the patches that are hidden. 0: none is, and the target is predicted at every patch (distillation).
    """
    torch.manual_seed(seed)
    model = MaskedModel(encoder, targets.shape[-1])
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.98), weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "images": len(images), "share": share}
    code = (MaskedModel, pretrain)
    run = Checkpoint("masked", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for _ in run.steps(steps):
        rows = torch.randperm(len(images))[:batch_size]
        order = torch.rand(len(rows), targets.shape[1]).argsort(dim=1)  # (B, N)
        hidden = order < round(share * targets.shape[1])
        batch = pixel_values(images[rows]), hidden, targets[rows]
        pixels, hidden, target = (part.to(accelerator.device) for part in batch)
        similarity = F.cosine_similarity(prepared(pixels, hidden).float(), target, dim=-1)  # (B, N)
        loss = (1 - similarity)[hidden if share else ~hidden].mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    encoder.cpu()
    return run.history


# %% [markdown]
# ## 2. A CLIP from each start
#
# 240 steps of masked modelling, then 240 steps of 01's contrastive training. *Captions alone, twice the steps* costs as much,
# and spends both halves on captions.


# %% tags=["save"]
def untrained_targets(images):
    """As `feature_targets`, of a model that has learnt nothing."""
    return feature_targets(images, trained=False)


STARTS = {  # the first training's targets and hidden share; how often the steps of the second are taken
    "captions alone": ("nothing", 0, 1),
    "captions alone, twice the steps": ("nothing", 0, 2),
    "hidden pixels first": ("pixels", 0.4, 1),
    "hidden features first": ("features", 0.4, 1),
    "features first, nothing hidden": ("features", 0, 1),
    "untrained features first, nothing hidden": ("untrained", 0, 1),
}


def train_from(start, images, captions, tokenizer, *, steps, batch_size, lr, seed=0):
    """A small CLIP from one of STARTS, trained on images (N, 3, S, S) with N lists of captions."""
    model, recipe = make_clip(tokenizer, seed, **SMALL), {"batch_size": batch_size, "lr": lr}
    kind, share, times = STARTS[start]
    make = {"pixels": pixel_targets, "features": feature_targets, "untrained": untrained_targets}
    if kind in make:
        targets, known = make[kind](images), {"share": share, "seed": seed, **recipe}
        pretrain(model.image_encoder, images, targets, steps=steps, **known)
    ids = tokenize([text for five in captions for text in five], tokenizer)
    ids = ids.view(len(images), len(captions[0]), -1)  # (N, C, T)
    train_clip(model, images, ids, steps=times * steps, seed=seed, **recipe)
    return model.cpu()


def recall_from(start, profile, seed=0):
    """{"R@1": ..., "R@5": ...} on held-out images, of a small CLIP from one of STARTS."""
    images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
    held_out, texts, _ = shapes.load_pairs("val", profile.val_images)
    steps, tokenizer = 2 * profile.contrastive_steps // 3, make_tokenizer()
    recipe = {"steps": steps, "batch_size": 64, "lr": 3e-3, "seed": seed}
    model = train_from(start, images, captions, tokenizer, **recipe)
    return recall(model, held_out, texts, tokenizer)


# %% [markdown]
# **Predict first.** Put the six rows in order of their recall. And which loss falls further: that of features at hidden
# patches, or that of features at patches in sight?

# %%
import numpy as np

from vlm_lite import plots
from vlm_lite.studies import load_study

my_start = "untrained features first, nothing hidden"
live = recall_from(my_start, profile)

recipe = {"steps": 2 * profile.contrastive_steps // 3, "batch_size": 64, "lr": 3e-3}
images, curves = shapes.load_pairs("train", profile.contrastive_images)[0], {}
targets = feature_targets(images)
for name, share in (("features, hidden", 0.4), ("features, in sight", 0)):
    encoder = make_clip(make_tokenizer(), **SMALL).image_encoder
    history = pretrain(encoder, images, targets, share=share, **recipe)
    curves[name] = history.losses
hidden, seen = (curve[-1] for curve in curves.values())
assert profile.name == "smoke" or hidden > 0.65 > 0.45 > seen
plots.losses(curves, "the first training", ylabel="1 - cosine", every=10)

# %% tags=["thumbnail"]
runs = [run["figures"] for run in load_study("vit_variants")["runs"]]


def recorded(row, metric="R@5"):
    return np.array([run[f"{row}: {metric}"] for run in runs])  # (3,), a seed each


found = {row: recorded(row) for row in STARTS}
base, twice, pixels, features, seen, untrained = found.values()
assert twice.min() > 0.95 > max(seen.max(), untrained.max()) and pixels.max() < 0.1 < base.min()
assert (untrained > base).all() and (seen > base).sum() == (features < base).sum() == 2
said = f"captions alone {base.mean():.0%}, hidden features first {features.mean():.0%}"
print("HEADLINE: R@5,", said)
plots.seed_ranges(found, live=(my_start, live["R@5"]), xlabel="R@5, image to text (%)")

# %% [markdown]
# **The steps are best spent on captions.** Twice the steps end at 95% or more in every seed; no other row with as many steps in all
# gets there in any. Why does masked modelling not help here, when it helped EVA?
#
# - *There is nothing to fill in.* In Shapes a patch is a cell, and cells are drawn independently: what is in sight does not
#   tell what is hidden. The upper curve falls for twenty steps, to what is true of most patches, and then slowly. A photograph is
#   redundant, and EVA and MAE live on that. An encoder that has trained on the impossible is a worse start than none:
#   with hidden pixels below 10% in every seed, with hidden features below captions alone in two seeds of three.
# - *With nothing hidden* the task can be learnt (the lower curve). This *distillation* of a CLIP that has seen captions is a
#   better start than none in two seeds of three.
# - *The control surprises.* Predicting an **untrained** network's features is a better start, too: above captions alone in every seed. The
#   two means are close, and the seeds far apart. So what helps here need not be what the teacher has learnt. We don't know
#   why; a study that had left this control out would have told a story about the teacher.
#
# ## 3. Two changes of a ViT
#
# **Post-norm**, the order of the first Transformer: the LayerNorm stands after the sum, on the residual path itself.
# **Mean pooling**: the class is read from the mean of the patches instead of the class token. Both on 02's task and with its
# recipe. `study` makes this page's record, `study_of_02` that of notebook 02 (`vlm-lite study vit_positions --seeds 3`).


# %% tags=["save"]
class PostNormBlock(Block):
    """x (B, N, D) -> (B, N, D), each LayerNorm after its sum (Vaswani et al. 2017)."""

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class MeanPoolViT(ViT):
    """A ViT that is read out at the mean of its patches."""

    def forward(self, pixels):
        return self.head(self.forward_features(pixels)[:, 1:].mean(dim=1))


def post_norm_vit():
    """02's ViT with the blocks of the first Transformer."""
    model = ViT()
    width, heads = model.norm.normalized_shape[0], model.blocks[0].attn.num_heads
    model.blocks = nn.Sequential(*(PostNormBlock(width, heads) for _ in model.blocks))
    return model


def leftmost_rows(makers, profile, seed):
    """{name: (model, History, accuracy)} of the models of {name: function}, trained on 02's task by 02's recipe."""
    train = leftmost_task("train", 2 * profile.train_images)[:2]
    test = leftmost_task("val", profile.val_images)[:2]
    recipe = {name: getattr(profile, f"vit_{name}") for name in ("steps", "batch_size", "lr")}
    found = {}
    for name, make in makers.items():
        torch.manual_seed(seed)
        model = make()
        history = train_vit(model, *train, seed=seed, name=f"{name}, seed {seed}", **recipe)
        found[name] = model, history, accuracy(model, *test)
    return found


def study(seed, profile):
    """Notebook 02b's rows: a small CLIP from each start, and 02's ViT with another norm or readout."""
    found = {start: recall_from(start, profile, seed) for start in STARTS}
    figures = {f"{start}: {k}": value for start, row in found.items() for k, value in row.items()}
    makers = {"post-norm": post_norm_vit, "mean pooling": MeanPoolViT}
    rows = leftmost_rows(makers, profile, seed)
    figures |= {f"{name}: accuracy": right for name, (_, _, right) in rows.items()}
    return rows["mean pooling"][1], figures


def without_positions():
    """02's ViT, its position embeddings held at zero."""
    model = ViT()
    nn.init.zeros_(model.pos_embed).requires_grad_(False)
    return model


def study_of_02(seed, profile):
    """Notebook 02's training: a ViT that says which object stands furthest left; without positions; and a small CNN."""
    makers = {"ViT": ViT, "ViT without positions": without_positions, "CNN": small_cnn}
    rows = leftmost_rows(makers, profile, seed)
    figures = {f"accuracy, {name}": right for name, (_, _, right) in rows.items()}
    model, history, _ = rows["ViT"]
    cosines = axis_cosines(model.pos_embed).items()
    return history, figures | {f"cosine of positions, {where}": each for where, each in cosines}


# %%
of_02 = [run["figures"] for run in load_study("vit_positions")["runs"]]
rows = {"as in 02": "ViT", "as in 02, without positions": "ViT without positions"}
changed = {row: np.array([run[f"accuracy, {key}"] for run in of_02]) for row, key in rows.items()}
changed |= {row: recorded(row, "accuracy") for row in ("post-norm", "mean pooling")}
assert changed["post-norm"].max() < 0.8 < changed["mean pooling"].min()
assert abs(changed["mean pooling"].mean() - changed["as in 02"].mean()) < 0.03
plots.seed_ranges(changed, xlabel="accuracy on 02's task (%)")

# %% [markdown]
# **The readout hardly matters, the norm does.** The mean of the patches is nearly as good as the class token. Post-norm ends below
# pre-norm in every seed, and in one no higher than a model without positions: that one has learnt what is there and not where. Its
# gradients are largest near the output at the start, so it needs a long warm-up or a lower rate (Xiong et al. 2020). Pre-norm
# forgives more, and nearly every ViT since has it.
#
# ## What you showed
#
# - Masked modelling, EVA's recipe, in a loop of your own; and that it needs redundancy, which Shapes has not.
# - That a control with an untrained teacher can turn a conclusion round.
# - Post-norm is harder to train than pre-norm; mean pooling costs little.
#
# ## What this does not show
#
# - What masked modelling does for photographs, for more patches, or in a long training: there EVA gains.
# - Post-norm at its own best learning rate.
#
# ## Where next
#
# [Notebook 03](03_qformer_gpt2.ipynb) asks an encoder's patches.
