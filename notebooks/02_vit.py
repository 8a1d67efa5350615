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
#     builds: the image tower from its patches up; a ViT that reads real handwriting wherever it stands, and CLIP with your tower in it
#     minutes_t4_estimate: 15
#     reads: [zoo/shapes-clip, results/vit_digits.json]
#     seconds: 106
#     peak_memory_mb: 1570
#     outputs_of: f4dc59f02632c94527e47c2e105d4b2563544912649514b99976b188b9f095b2
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/02_vit.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny", "t4"]

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

minutes = {"tiny": 2.0, "t4": 15}
profile, compute = get_profile(default=profile, offers=(*minutes, "smoke")), get_compute()
print(describe(profile, compute, minutes=minutes))

# %% [markdown]
# # 2. The Vision Transformer: a picture read like a sentence
#
# **You will build** the image tower that [01](01_clip_infonce.ipynb) took as given: patches, positions, attention, blocks.
# Then you train one from scratch on real handwriting.
#
# **You will be able to show** that your ViT equals the package's and `timm`'s, weight for weight; that it can replace the
# image tower of a trained CLIP and nothing changes; what it takes to read a digit anywhere on a page in uneven light, for
# a ViT that is told nothing and for nearest neighbour that is told what light is; on which patches the ViT's answer hangs;
# and what a patch costs.
#
# **Reading time:** 25 minutes. Six exercises, 40 minutes if you write them all, none needed to go on.
# <!-- figures -->
# **Run time:** about 2 min and 1.6 GB of memory on `tiny` (measured, 2 CPU cores); about 15 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** tensors, matrix products, softmax, cross-entropy, LayerNorm.
#
# Everything up to section 11 runs on any machine: the small Shapes world, and scans of handwriting. Section 12 wants a GPU
# and a network (profile `t4`): photographs, and a ViT that `timm` has pretrained. **It has not been verified on a GPU yet.**

# %% [markdown]
# ## 1. A picture becomes a sentence
#
# A transformer reads a *sequence of vectors*. So the whole question is: how does a picture become one? The answer of
# Dosovitskiy et al. (2021) is blunt. Cut the picture into squares, flatten each into a vector, and treat the squares as
# words. From a picture $(3, S, S)$ and squares of $p$ pixels come
#
# $$N = (S / p)^2 \ \text{ patches of } \ 3 p^2 \ \text{ numbers}$$
#
# **Exercise 1: patches.** ★★☆ 6 minutes. Return the patches $(B, N, 3p^2)$, row by row of the picture. Inside a patch the
# order is channel, row, column.
#
# <details><summary>Hint</summary>
#
# One `rearrange` does it. On the left name what a side consists of, `(rows p)` and `(columns q)`. On the right say what
# goes together: `b (rows columns) (c p q)`.
# </details>

# %%
import time

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite import plots, recipes, vit_recipe
from vlm_lite.data.digits import load_glyphs, make_canvases
from vlm_lite.data.shapes import load_shapes
from vlm_lite.labs import check

plots.style()
small = get_profile("tiny") if profile.name == "t4" else profile  # sizes of all but section 12


# %% nbgrader={"grade": false, "grade_id": "patchify", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def patchify(images, patch_size):
    """images (B, C, S, S) -> patches (B, N, C·p·p)."""
    ### BEGIN SOLUTION
    return rearrange(
        images, "b c (rows p) (columns q) -> b (rows columns) (c p q)", p=patch_size, q=patch_size
    )
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "patchify-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
patchify = check.patchify(patchify)

# %% [markdown]
# A photograph that comes with scikit-learn, and a picture of the Shapes world, cut up. In the Shapes world a patch is one
# cell of the grid, which is a comfort that photographs do not offer: there a patch holds whatever happens to fall into it.
#
# **The same as a convolution.** Each patch goes through one linear map to width $D$, the same for all. A convolution
# whose stride is its kernel's size does just that: it never lets two windows overlap. That is why `timm` and
# `transformers` write a `Conv2d` where the paper says "linear projection". The weights are the same numbers, flattened.

# %%
from sklearn.datasets import load_sample_image

table = load_shapes("val", small.val_images, progress=False)[0]
pictures, captions, ids = recipes.load_pictures(table)  # Shapes, (1000, 3, 64, 64) uint8
photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[
    :, :420, 110:530
]  # (3, 420, 420)
photo = (
    F.interpolate(photo[None].float(), (224, 224), mode="bicubic", antialias=True)
    .clamp(0, 255)
    .byte()[0]
)


def spread(image, patch_size, gap):
    """The picture with its patches drawn apart: (3, S, S) uint8 -> a larger picture."""
    side = image.shape[-1] // patch_size
    patches = patchify(image[None], patch_size)  # (1, N, 3·p·p)
    patches = F.pad(
        patches.view(-1, 3, patch_size, patch_size), [0, gap, 0, gap], value=120
    )  # a grey edge for each
    return rearrange(patches, "(rows columns) c p q -> c (rows p) (columns q)", rows=side)


for name, image, p in (("photograph", photo, 32), ("Shapes", pictures[0], 16)):
    print(
        f"{name:10} {tuple(image.shape)}, patches of {p}: {tuple(patchify(image[None], p).shape[1:])}"
    )

torch.manual_seed(0)
conv = nn.Conv2d(3, 192, kernel_size=32, stride=32)
x = recipes.pixel_values(photo[None])  # (1, 3, 224, 224), normalised floats
with torch.no_grad():
    by_convolution = rearrange(
        conv(x), "b d rows columns -> b (rows columns) d"
    )  # (1, 192, 7, 7) -> (1, 49, 192)
    by_patches = F.linear(
        patchify(x, 32), conv.weight.flatten(1), conv.bias
    )  # (1, 49, 3072) -> (1, 49, 192)
torch.testing.assert_close(by_patches, by_convolution, atol=1e-5, rtol=1e-5)
print(
    f"convolution {tuple(by_patches.shape)}, largest difference {(by_patches - by_convolution).abs().max():.1e}"
)
plots.show_images(
    [photo, spread(photo, 32, 6), pictures[0], spread(pictures[0], 16, 3)],
    columns=4,
    size=190,
    titles=[
        "a photograph, 224 pixels",
        "49 patches of 32 pixels",
        "a Shapes picture, 64 pixels",
        "16 patches of 16 pixels",
    ],
)

# %% [markdown]
# ## 2. Where a patch stands
#
# Attention treats its input as a *set*. Shuffle the patches and each gets the same answer as before: the model would see
# a bag of scraps. So a vector that says *where* is added to each patch. There are two ways to get one.
#
# - **Learnt:** a table of $N$ vectors, trained like any weight. ViT, CLIP and `timm`'s models do this. Below: the table of the
#   CLIP in the zoo (the small checkpoints that ship with the course), *the zoo's eye*.
# - **Fixed:** sines and cosines of the column $x$ and the row $y$, at falling frequencies (MAE does this):
#
# $$\big[\sin(x\,\omega_k),\ \cos(x\,\omega_k),\ \sin(y\,\omega_k),\ \cos(y\,\omega_k)\big], \qquad
#   \omega_k = 10000^{-k/(D/4)}, \quad k = 0 \dots D/4 - 1$$
#
# The figure has one small map for each place: the cosine of its vector with the vector of every place. (The mean of the
# table is taken off first, for what all places share says nothing of where.)

# %%
from vlm_lite.figures import BLUE, GREY, INK, ORANGE, SKY, VERMILLION, Figure
from vlm_lite.models.clip import CLIP
from vlm_lite.models.positions import sincos_positions
from vlm_lite.profiles import resolve_model


def sincos(width, grid):
    """Positions of a grid of patches, row by row: (grid², D)."""
    omega = 10000 ** (-torch.arange(width // 4) / (width / 4))  # (D/4,)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    x, y = (place.flatten()[:, None] * omega for place in (x, y))  # (grid², D/4) each
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)  # (grid², D)


torch.testing.assert_close(
    sincos(128, 4), sincos_positions(128, 4)[1:]
)  # vlm_lite's has the class token's row first
eye = CLIP.from_pretrained(resolve_model(small.vision_model))
learnt = (
    eye.vision_model.embeddings.position_embedding.weight.detach()
)  # (1 + 16, D): class token, then the patches


def cosines(table):
    """Positions of the patches (N, D) -> how alike each two are, their mean taken off: (N, N)."""
    table = F.normalize(table - table.mean(dim=0), dim=-1)
    return table @ table.T


def place_maps(tables):
    """One panel for each table of positions (grid², D); in it one small map for each place."""
    figure = Figure(
        width=60 + 300 * len(tables),
        height=330,
        label="how alike positions are",
        layout="constrained",
    )
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        grid = round(len(table) ** 0.5)
        maps = F.pad(
            cosines(table).view(-1, grid, grid), [0, 1, 0, 1], value=torch.nan
        )  # a gap after each map
        maps = rearrange(maps, "(rows columns) y x -> (rows y) (columns x)", rows=grid)[:-1, :-1]
        shown = axes.imshow(maps, cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
        centres = [(grid - 1) / 2 + (grid + 1) * k for k in range(grid)]
        axes.set(
            title=name,
            xlabel="column of the place",
            xticks=centres,
            yticks=centres,
            xticklabels=range(1, grid + 1),
            yticklabels=range(1, grid + 1),
        )
        axes.grid(False)
    panels[0].set_ylabel("row of the place")
    figure.colorbar(shown, ax=list(panels), label="cosine", shrink=0.8).outline.set_visible(False)
    return figure


is_neighbour = (
    torch.cdist(*[torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))] * 2) == 1
)  # (16, 16)
far = ~is_neighbour & ~torch.eye(16, dtype=torch.bool)
tables = {"fixed: sines and cosines": sincos(128, 4), "learnt by the zoo's eye": learnt[1:]}
for name, table in tables.items():
    near = cosines(table)
    print(
        f"{name:25} mean cosine of two neighbouring places {near[is_neighbour].mean():+.2f}, of all others {near[far].mean():+.2f}"
    )
place_maps(tables)


# %% [markdown]
# The sines draw hills: each map is brightest at its own place and falls away from it. The learnt table draws one bright
# square a map: this eye learnt that all places differ, and nothing of which are neighbours. Where a patch is exactly one
# cell, captions reward no more. (ViTs trained on photographs do learn hills: Dosovitskiy et al. 2021, figure 7.)
#
# **Another resolution.** A learnt table has one row for each patch of *its* grid. For larger pictures it is treated as
# a small picture with $D$ channels and enlarged. Then neighbours *are* alike, since the interpolation mixed them, whether
# or not anything of the kind was learnt. Whether a model can use such a table is a question for an experiment (section 10).
#
# **Exercise 2: resize the positions.** ★★☆ 8 minutes. `positions` is $(1 + n^2, D)$, the class token's first. Return
# $(1 + m^2, D)$ for a grid of $m$: bicubic, with antialiasing. The class token keeps its own.
#
# <details><summary>Hint</summary>
#
# Take off row 0. Make a picture of the rest with `rearrange(..., "(rows columns) d -> 1 d rows columns", rows=n)`, then
# `F.interpolate(..., size=(m, m), mode="bicubic", antialias=True)`, back again, and put row 0 in front.
# </details>


# %% nbgrader={"grade": false, "grade_id": "resize_positions", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def resize_positions(positions, grid_size):
    """positions (1 + n², D) -> (1 + grid_size², D)."""
    ### BEGIN SOLUTION
    side = round((len(positions) - 1) ** 0.5)
    grid = rearrange(positions[1:], "(rows columns) d -> 1 d rows columns", rows=side)
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], rearrange(grid, "1 d rows columns -> (rows columns) d")])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "resize_positions-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
resize_positions = check.resize_positions(resize_positions)

from timm.layers import resample_abs_pos_embed

for grid in (2, 6, 14):
    theirs = resample_abs_pos_embed(learnt[None], [grid, grid], num_prefix_tokens=1)[0]
    torch.testing.assert_close(resize_positions(learnt, grid), theirs, atol=1e-6, rtol=0)
print("equal to timm's resample_abs_pos_embed for grids of 2, 6 and 14")
place_maps(
    {
        "learnt, a grid of 4": learnt[1:],
        "the same, resized to a grid of 8": resize_positions(learnt, 8)[1:],
    }
)


# %% [markdown]
# ## 3. Attention: patches ask patches
#
# A patch of a digit's stroke means little alone. **Attention** lets each token ask all others. From its vector $x_i$ every
# token makes a **query** $q_i$ (what do I look for?), a **key** $k_i$ (what am I?) and a **value** $v_i$ (what do I give?):
#
# $$A = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{h}}\right) \qquad \text{out} = A\,v$$
#
# Row $i$ of $A$ says how token $i$ shares out its attention; it sums to 1. The division by $\sqrt h$ keeps the scores of
# size 1 whatever the width $h$, so that the softmax neither freezes nor blurs. This is done in $H$ **heads** at once, each
# on its own slice of width $h = D / H$, so that a token can ask several questions.
#
# **Exercise 3: attention.** ★★☆ 8 minutes. The heads are split already. Return what each token takes, *and* the weights.
#
# <details><summary>Hint</summary>
#
# `q @ k.transpose(-2, -1)` is $(B, H, N, N)$. The softmax runs over the last axis: over those who are asked.
# </details>


# %% nbgrader={"grade": false, "grade_id": "attention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def attention(q, k, v):
    """q, k, v (B, H, N, h) -> out (B, H, N, h), weights (B, H, N, N)."""
    ### BEGIN SOLUTION
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, N, N)
    return weights @ v, weights  # (B, H, N, N) x (B, H, N, h) -> (B, H, N, h)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "attention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
attention = check.attention(attention)

# %% [markdown]
# **Formula, code, shape.** Multi-head attention from the tokens of one Shapes picture, a row at a time. Each row below is
# *run* from the code it shows, and its shape is asserted.
#
# **The fused form.** In practice nobody writes the $(B, H, N, N)$ weights to memory.
# `F.scaled_dot_product_attention` computes the same without keeping them. What it saves grows with $N^2$; what it costs is
# that there are no weights to look at. Below the table it is proved equal to yours, in value and in gradient.

# %%
torch.manual_seed(0)
B, N, D, H = 2, 17, 128, 4
tower = eye.vision_model
net, split = tower.encoder.layers[0].self_attn, "b n (heads h) -> b heads n h"
known = {
    "tower": tower,
    "net": net,
    "attention": attention,
    "rearrange": rearrange,
    "split": split,
    "H": H,
    "pixels": recipes.pixel_values(pictures[:2]),
}
rows = [
    (
        "x, class token and 16 patches",
        "x",
        "tower.pre_layrnorm(tower.embeddings(pixels))",
        (B, N, D),
    ),
    (
        "q = x W_q + b_q, in heads",
        "q",
        "rearrange(net.q_proj(x), split, heads=H)",
        (B, H, N, D // H),
    ),
    (
        "k = x W_k + b_k, in heads",
        "k",
        "rearrange(net.k_proj(x), split, heads=H)",
        (B, H, N, D // H),
    ),
    (
        "v = x W_v + b_v, in heads",
        "v",
        "rearrange(net.v_proj(x), split, heads=H)",
        (B, H, N, D // H),
    ),
    ("A = softmax(q kᵀ / √h)", "A", "attention(q, k, v)[1]", (B, H, N, N)),
    ("A v", "mixed", "attention(q, k, v)[0]", (B, H, N, D // H)),
    (
        "heads side by side, W_o + b_o",
        "out",
        "net.out_proj(rearrange(mixed, 'b heads n h -> b n (heads h)'))",
        (B, N, D),
    ),
]
with torch.no_grad():
    for formula, name, code, shape in rows:
        known[name] = eval(code, {}, known)
        assert tuple(known[name].shape) == shape, (
            f"{code} has shape {tuple(known[name].shape)}, expected {shape}"
        )
        print(f"{formula:31} {name + ' = ' + code:72} {shape}")
    torch.testing.assert_close(
        known["A"].sum(dim=-1), torch.ones(B, H, N)
    )  # each token shares out exactly 1
    torch.testing.assert_close(
        known["out"], net(known["x"]), atol=1e-5, rtol=1e-5
    )  # the table is vlm_lite's attention

# The fused form, in value and in gradient
q, k, v = (torch.randn(2, 4, 65, 24, requires_grad=True) for _ in range(3))
mine, fused = attention(q, k, v)[0], F.scaled_dot_product_attention(q, k, v)
torch.testing.assert_close(mine, fused, atol=1e-5, rtol=1e-5)
weight = torch.randn_like(mine)
for a, b in zip(
    torch.autograd.grad((mine * weight).sum(), (q, k, v)),
    torch.autograd.grad((fused * weight).sum(), (q, k, v)),
    strict=True,
):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
print(
    f"fused: largest difference {(mine - fused).abs().max():.1e}; weights not kept: {2 * 4 * 65 * 65 * 4 / 1000:.0f} kB for these two"
)


# %% [markdown]
# ## 4. The block
#
# A **block** is two steps: tokens *talk* (attention), then each *thinks* alone (an MLP of two layers with a GELU). Each
# step adds its result to a running sum, the **residual stream**. LayerNorm stands *before* each step, so that the step
# reads a tidy copy, while the stream itself runs through untouched:
#
# $$x \leftarrow x + \mathrm{talk}(\mathrm{LN}_1(x)) \qquad x \leftarrow x + \mathrm{think}(\mathrm{LN}_2(x))$$
#
# **Exercise 4: a pre-norm block.** ★☆☆ 4 minutes.
#
# <details><summary>Hint</summary>
#
# Two lines. What is normalised is read, never stored back into `x`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pre_norm_block", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def pre_norm_block(x, attend, think, norm1, norm2):
    """x (B, N, D) -> (B, N, D); attend, think, norm1 and norm2 are functions of (B, N, D)."""
    ### BEGIN SOLUTION
    x = x + attend(norm1(x))
    return x + think(norm2(x))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pre_norm_block-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
pre_norm_block = check.pre_norm_block(pre_norm_block)

# %% [markdown]
# **Why before?** The first transformer normalised *after* each sum (post-norm, as BERT does). Then the stream itself passes
# through every LayerNorm, forwards and backwards. Xiong et al. (2020, section 3) show what that does at the first step,
# with the usual Xavier weights: in post-norm the gradient of the last block is as large however many blocks there are; in
# pre-norm it falls with the root of their number, so that a deep stack can start with a full learning rate. We measure it.

# %%
few, few_classes, _ = make_canvases("train", 32, size=vit_recipe.CANVAS)
depths, last_gradient = (2, 4, 8, 16), {"pre-norm": [], "post-norm": []}
for name, found in last_gradient.items():
    for depth in depths:
        norms = []
        for seed in range(3):
            deep = vit_recipe.make_digits_vit(
                num_layers=depth, post_norm=name == "post-norm", seed=seed
            )
            for layer in deep.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
            F.cross_entropy(deep(vit_recipe.digit_pixels(few)).logits, few_classes).backward()
            norms.append(
                sum(p.grad.square().sum() for p in deep.encoder.layers[-1].mlp.parameters())
                .sqrt()
                .item()
            )
        found.append(sum(norms) / len(norms))
    print(
        f"{name:10} gradient of the last MLP: "
        + ", ".join(f"{g:.2f} ({d} blocks)" for g, d in zip(found, depths, strict=True))
    )

figure = Figure(
    width=560, height=270, label="gradient of the last block against depth", layout="constrained"
)
axes = figure.subplots()
for (name, found), colour, mark in zip(
    last_gradient.items(), (BLUE, VERMILLION), "os", strict=True
):
    axes.plot(depths, found, mark + "-", color=colour, label=name)
axes.plot(
    depths,
    [last_gradient["pre-norm"][0] * (depths[0] / d) ** 0.5 for d in depths],
    ":",
    color=GREY,
    label="1/√blocks",
)
axes.set(
    xlabel="blocks",
    ylabel="norm of the gradient",
    xticks=depths,
    ylim=(0, None),
    title="The last MLP before training, mean of 3 seeds",
)
axes.minorticks_off()
axes.yaxis.set_major_formatter("{x:g}")
axes.legend()
figure

# %% [markdown]
# That is the first step of one model, not a proof that post-norm fails: with a warm-up and few blocks it trains. Section 8
# has both, trained, over several seeds. (The package draws its first weights as CLIP does, which is made for pre-norm.)
#
# ## 5. The whole tower, in one place and fit to copy
#
# Before the patches stands one more token, the **class token**, a learnt vector that belongs to no patch. It collects what
# the picture is about, and the answer is read from it. The alternative is the **mean** of the patches. The parameters
# bear the names that they have in `transformers.CLIPVisionModel` and `vlm_lite`, so that weights can be copied.

# %%
from vlm_lite.models.vit import VisionOutput, attend, quick_gelu


class MyEmbeddings(nn.Module):
    def __init__(self, image_size, patch_size, width, patch_bias):
        super().__init__()
        self.patch_size = patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=patch_bias)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, width)

    def forward(self, pixels):
        conv = self.patch_embedding
        x = F.linear(
            patchify(pixels, self.patch_size), conv.weight.flatten(1), conv.bias
        )  # (B, N, D)
        cls = self.class_embedding.expand(len(x), 1, -1).to(x.dtype)  # (B, 1, D)
        return torch.cat([cls, x], dim=1) + self.position_embedding.weight  # (B, 1+N, D)


class MyAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads, self.weights, self.keep = num_heads, None, False
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x):
        q, k, v = (
            rearrange(f(x), "b n (heads h) -> b heads n h", heads=self.num_heads)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (B, H, 1+N, h)
        if self.keep:
            mixed, self.weights = attention(q, k, v)  # written out, where the weights are wanted
        else:
            mixed = attend(q, k, v)  # vlm_lite's call of the fused form
        return self.out_proj(rearrange(mixed, "b heads n h -> b n (heads h)"))


class MyBlock(nn.Module):
    def __init__(self, width, num_heads, mlp_width, activation, eps):
        super().__init__()
        self.self_attn, self.activation = MyAttention(width, num_heads), activation
        self.layer_norm1, self.layer_norm2 = (
            nn.LayerNorm(width, eps=eps),
            nn.LayerNorm(width, eps=eps),
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)}
        )

    def think(self, x):
        return self.mlp["fc2"](self.activation(self.mlp["fc1"](x)))

    def forward(self, x):
        return pre_norm_block(x, self.self_attn, self.think, self.layer_norm1, self.layer_norm2)


class MyViT(nn.Module):
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
        activation = {"gelu": F.gelu, "quick_gelu": quick_gelu}[hidden_act]
        self.pool = pool
        self.embeddings = MyEmbeddings(image_size, patch_size, width, patch_bias)
        self.pre_layrnorm = (
            nn.LayerNorm(width, eps=layer_norm_eps) if embedding_norm else nn.Identity()
        )
        self.encoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    MyBlock(width, num_heads, mlp_width or 4 * width, activation, layer_norm_eps)
                    for _ in range(num_layers)
                )
            }
        )
        self.post_layernorm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.head = nn.Linear(width, num_classes) if num_classes else None

    def forward(self, pixels, *, attentions=False):
        x = self.pre_layrnorm(self.embeddings(pixels))  # (B, 1+N, D)
        for block in self.encoder["layers"]:
            block.self_attn.keep = attentions
            x = block(x)
        pooled = self.post_layernorm(
            x[:, 0] if self.pool == "cls" else x[:, 1:].mean(dim=1)
        )  # (B, D)
        kept = [block.self_attn.weights for block in self.encoder["layers"]] if attentions else None
        return VisionOutput(x, pooled, None, kept, self.head(pooled) if self.head else None)


# %% [markdown]
# **Prove it.** Four models of `timm`, untrained and cut to two blocks so that it is quick. Their weights go into
# `vlm_lite`'s ViT (`load_vit` knows their names), from there into yours, and all three must say the same. The list holds
# both ways of pooling, both activations, and CLIP's extra norm before the blocks.

# %%
import timm

from vlm_lite.models.vit_weights import TIMM_MODELS, load_vit

cases = [
    (
        "vit_tiny_patch16_224",
        {},
        dict(embedding_norm=False, patch_bias=True, hidden_act="gelu", layer_norm_eps=1e-6),
    ),
    (
        "deit_small_patch16_224",
        {},
        dict(embedding_norm=False, patch_bias=True, hidden_act="gelu", layer_norm_eps=1e-6),
    ),
    (
        "vit_small_patch32_224",
        {"global_pool": "avg"},
        dict(
            embedding_norm=False,
            patch_bias=True,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            pool="mean",
        ),
    ),
    ("vit_base_patch16_clip_quickgelu_224", {}, dict()),
]  # CLIP's form is the default
for name, options, form in cases:
    theirs = timm.create_model(
        name, pretrained=False, depth=2, img_size=64, num_classes=10, **options
    ).eval()
    nn.init.normal_(
        theirs.head.weight, std=0.02
    )  # timm starts it at zero, where every model says the same
    packaged = load_vit(name, theirs.state_dict())
    block = packaged.encoder.layers[0]
    mine = MyViT(
        image_size=64,
        patch_size=packaged.patch_size,
        width=packaged.width,
        num_layers=2,
        num_heads=block.self_attn.num_heads,
        num_classes=10,
        **form,
    ).eval()
    mine.load_state_dict(packaged.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(packaged(x).logits, theirs(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(mine(x).logits, theirs(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(mine(x, attentions=True).logits, theirs(x), atol=1e-5, rtol=0)
        print(
            f"{name:36} largest difference: mine {(mine(x).logits - theirs(x)).abs().max():.1e}, "
            f"vlm_lite's {(packaged(x).logits - theirs(x)).abs().max():.1e}"
        )
print(
    f"load_vit knows {len(TIMM_MODELS)} of timm's models; any other is refused, with the key that has no place"
)

# %% [markdown]
# **Positions are all that tells places apart.** Shuffle the patches of each picture in the same way. A ViT with positions of
# zero *cannot* notice. One with positions *can*; whether it *does* is another question, worth asking of any model. Compare
# the vector of a picture with that of its shuffled copy, and, as a yardstick, with that of *another* picture:
#
# $$\text{notices} = \frac{1 - \cos(\text{picture},\ \text{its shuffled copy})}{1 - \cos(\text{picture},\ \text{another picture})}$$
#
# At 0% the model reads a picture as a bag of patches: it can tell what is there, and never where. At 100% the same patches
# elsewhere are a new picture to it. We ask the zoo's eye, in your class, and as its control the same tower before training, on
# the same pictures; then a ViT for canvases, untrained, with positions of three sizes: those it is born with, none, and a
# hundred times as large.

# %%
from vlm_lite.data.language import make_tokenizer


def shuffle_patches(pixels, patch_size):
    """(B, 3, S, S) -> the same patches in another order, one order for all."""
    patches = patchify(pixels, patch_size)
    patches = patches[
        :, torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(1))
    ]
    return rearrange(
        patches,
        "b (rows columns) (c p q) -> b c (rows p) (columns q)",
        p=patch_size,
        q=patch_size,
        rows=pixels.shape[-1] // patch_size,
    )


@torch.no_grad()
def notices_shuffling(model, x):
    """(the share defined above, the length of a patch's vector, the length of a position's) over pixels (B, 3, S, S)."""
    own, other = (
        model(x).pooled,
        model(shuffle_patches(x, model.embeddings.patch_size)).pooled,
    )  # (B, D)
    moved, replaced = (
        1 - F.cosine_similarity(own, vectors).mean() for vectors in (other, own.roll(1, dims=0))
    )
    places = model.embeddings.position_embedding.weight[1:]
    patches = model.embeddings(x)[:, 1:] - places
    return [
        value.item()
        for value in (moved / replaced, patches.norm(dim=-1).mean(), places.norm(dim=-1).mean())
    ]


settings = dict(
    image_size=64,
    patch_size=16,
    width=tower.width,
    num_layers=tower.num_layers,
    num_heads=tower.encoder.layers[0].self_attn.num_heads,
    hidden_act=eye.config.hidden_act,
)
seeing = MyViT(**settings)
seeing.load_state_dict(tower.state_dict())
tokenizer, born = make_tokenizer(), MyViT(**settings)
born.load_state_dict(
    recipes.make_shapes_clip(tokenizer).vision_model.state_dict()
)  # as its training began
asked = {
    name: (each, recipes.pixel_values(pictures[:100]))
    for name, each in (("the zoo's eye", seeing), ("the same, before training", born))
}
for name, scale in (
    ("canvases, untrained", 1.0),
    ("  no positions", 0.0),
    ("  positions x 100", 100.0),
):
    fresh = MyViT(**vit_recipe.DIGITS_VIT)
    fresh.load_state_dict(vit_recipe.make_digits_vit().state_dict())
    fresh.embeddings.position_embedding.weight.data *= scale
    asked[name] = fresh, vit_recipe.digit_pixels(few)
print(f"{'':28} notices   length of a patch's vector, of a position's")
found = {name: notices_shuffling(*each) for name, each in asked.items()}
for name, (share, patch_length, place_length) in found.items():
    print(f"{name:28} {share:7.1%}   {patch_length:26.2f} {place_length:17.2f}")
assert found["  no positions"][0] < 1e-3 < found["canvases, untrained"][0]
trained, untrained = (found[name][0] for name in ("the zoo's eye", "the same, before training"))
print(
    f"training took the zoo's eye from {untrained:.0%} to {trained:.0%}: "
    + (
        "it notices, but what is there has come to count far more than where"
        if trained < untrained / 2
        else "where has come to count as much as what"
        if trained > 2 * untrained
        else "no clear change"
    )
)

# %% [markdown]
# Two things decide such a row. One is the *task*. Captions of random scenes can mostly be told apart by what is in them, so
# the loss rewards little else. Little is not nothing: this eye has also met captions that were almost right
# ([01](01_clip_infonce.ipynb), section 16), where places count. The other is the *size* of a position beside its patch, in
# the last two columns, since only their sum enters the first block: the smaller of the two is drowned out.
#
# ## 6. Your ViT in a trained CLIP
#
# Take the image tower out of the zoo's CLIP, put yours in its place with the weights copied, and ask the thousand test
# pictures for their captions again. If anything at all were wrong (a head split the other way, a norm in another place),
# recall would fall. Two rows are controls: your tower without the weights, and with them, but on pictures whose patches are
# shuffled. The recall that is left there comes from *what* a picture shows, not from where.

# %%
from vlm_lite.evals.retrieval import chance_recall, recall_at_k

texts = [five[0] for five in captions]
before = recipes.clip_recall(eye, pictures, texts, tokenizer)["image_to_text"]

torch.manual_seed(0)
mine, bare = (MyViT(**settings).eval() for _ in range(2))
mine.load_state_dict(eye.vision_model.state_dict())
given, eye.vision_model = eye.vision_model, mine  # from here on the eye looks through your tower
with torch.no_grad():
    x = recipes.pixel_values(pictures[:100])
    torch.testing.assert_close(mine(x).pooled, given(x).pooled, atol=1e-5, rtol=1e-5)
after = recipes.clip_recall(eye, pictures, texts, tokenizer)["image_to_text"]
muddled = recipes.clip_recall(
    eye, shuffle_patches(pictures, mine.embeddings.patch_size), texts, tokenizer
)["image_to_text"]
eye.vision_model = bare
without = recipes.clip_recall(eye, pictures, texts, tokenizer)["image_to_text"]
eye.vision_model = mine

print(f"image to text, {len(texts):,} captions" + "".join(f"{f'R@{k}':>8}" for k in after))
for name, recall in (
    ("the zoo's own tower", before),
    ("your tower, its weights", after),
    ("the same, patches shuffled", muddled),
    ("your tower, no weights", without),
    ("chance", {k: chance_recall(len(texts), k) for k in after}),
):
    print(f"{name:30}" + "".join(f"{value:8.1%}" for value in recall.values()))
assert after[5] == before[5]

# %% [markdown]
# ## 7. Handwriting anywhere, in any light
#
# Now **real handwriting**: scans of 8x8 pixels that come with scikit-learn. Before you train anything, know your baseline.
# On the scans as they are, a method that compares pixel with pixel is all one needs, and a ViT would be a waste.
#
# Then the same digits at a **random place** of a wider canvas, on paper in **uneven light**: a random shade of grey at each
# corner, with some noise. You read them as before. Test canvases hold handwriting that no training canvas shows (who
# wrote which is not recorded, so a writer may appear in both).
#
# **Predict first.** Two things change, so we also change one at a time: light on canvases of 8 pixels, which the digit
# fills; and places on a wide canvas of even, dark paper. Which breaks nearest neighbour? And which breaks logistic
# regression, which has one weight for each pixel and class?

# %%
import numpy as np
from sklearn.neighbors import KNeighborsClassifier


def canvases(**options):
    """The training and the test canvases: each pictures, classes, places."""
    options = {"size": vit_recipe.CANVAS, **options}
    return make_canvases("train", small.train_images, **options), make_canvases(
        "val", small.val_images, **options
    )


bare_digits, bare_val = load_glyphs("train"), load_glyphs("val")
train_set, val_set = canvases()
sets = {
    "bare digits": (bare_digits, bare_val),
    "light, 8 pixels": canvases(size=8),
    "place, no light": canvases(shade=0),
    "place and light": (train_set, val_set),
}
read = {
    name: vit_recipe.pixel_methods(*train[:2], *val[:2], svc_pictures=3000)
    for name, (train, val) in sets.items()
}
plain, wide = read["bare digits"], read["place and light"]
print(f"{'accuracy':22}" + "".join(f"{name:>17}" for name in read))
for method in plain:
    print(f"{method:22}" + "".join(f"{scores[method]:17.1%}" for scores in read.values()))
print(
    f"chance 10%; {len(bare_digits[0]):,} bare digits, {len(train_set[0]):,} canvases (the SVC, whose time grows with the "
    "square, has the first 3,000)"
)
pad = bare_val[0][:5, None].expand(-1, 3, -1, -1)  # grey to RGB
plots.show_images(
    [*pad, *val_set[0][:5]],
    columns=5,
    size=130,
    titles=[f"bare: {c}" for c in bare_val[1][:5]] + [f"canvas: {c}" for c in val_set[1][:5]],
)


# %% [markdown]
# **Which was it?** It depends on whom you ask. The place alone is the end of logistic regression, whose weights are tied to
# pixels, and costs the SVC more than half. Nearest neighbour bears it: among so many canvases there are some with a digit
# like this in this very place. Light on the strokes alone harms none of the three. But give it bare paper to fall on, and
# nearest neighbour breaks: the nearest canvas is now one in like light, and few of those show a like digit.
#
# Now use what you know. Light goes over evenly from corner to corner, so $a + b\,x + c\,y + d\,xy$ describes it. Find
# those four numbers for each canvas, and take the light off.


# %%
def light_of(pictures):
    """Grey uint8 (N, 3, S, S) -> the light (N, S·S): the best fit a + b x + c y + d xy to each canvas."""
    pixels, place = (
        pictures[:, 0].flatten(1).double(),
        torch.linspace(-1, 1, pictures.shape[-1], dtype=torch.float64),
    )
    y, x = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    shades = torch.stack([torch.ones_like(x), x, y, x * y], dim=1)  # (S·S, 4)
    return (shades @ torch.linalg.lstsq(shades, pixels.T).solution).T


def without_light(pictures):
    """Grey uint8 (N, 3, S, S) -> (N, S·S), scaled to length 1."""
    return F.normalize(pictures[:, 0].flatten(1) - light_of(pictures), dim=1).numpy()


known, unseen = without_light(train_set[0]), without_light(val_set[0])
np.testing.assert_allclose(
    unseen, vit_recipe.without_light(val_set[0]), atol=1e-5
)  # the package's, by another way
unlit = vit_recipe.pixel_methods(
    *train_set[:2], *val_set[:2], svc_pictures=3000, prepare=without_light
)
print(f"{'accuracy':22}{'raw canvases':>14}{'light taken off':>18}")
for method in wide:
    print(f"{method:22}{wide[method]:14.1%}{unlit[method]:18.1%}")

lights = light_of(val_set[0])
usual = (lights - lights.roll(1, dims=0)).norm(dim=1).mean()  # between two canvases at random
for name, prepare in (("raw", vit_recipe.flat_pixels), ("light taken off", without_light)):
    index = KNeighborsClassifier(1).fit(prepare(train_set[0]), train_set[1].numpy())
    nearest = index.kneighbors(prepare(val_set[0]), return_distance=False)[:, 0]
    in_place = (train_set[2][nearest] == val_set[2]).all(dim=1).float().mean()
    apart = (light_of(train_set[0][nearest]) - lights).norm(dim=1).mean() / usual
    print(
        f"the nearest canvas, {name + ':':17} the digit in the same place in {in_place:.0%}; "
        f"as far off in light as {apart:.0%} of two at random"
    )
print(
    f"nearest neighbour, light taken off; the digit has {(vit_recipe.CANVAS - 7) ** 2} places to stand:"
)
for count in sorted({min(count, len(known)) for count in (len(bare_digits[0]), 4_000, len(known))}):
    score = (
        KNeighborsClassifier(1)
        .fit(known[:count], train_set[1][:count].numpy())
        .score(unseen, val_set[1].numpy())
    )
    print(
        f"{count:8,} canvases, {count / (vit_recipe.CANVAS - 7) ** 2:3.0f} a place: {score:6.1%}; keeps {known[:count].size:9,} numbers"
    )
as_pictures = [lights[:5], 110 + 500 * torch.from_numpy(unseen[:5])]
as_pictures = [
    each.clamp(0, 255).byte().view(5, 1, *val_set[0].shape[2:]).expand(-1, 3, -1, -1)
    for each in as_pictures
]
plots.show_images(
    [*val_set[0][:5], *as_pictures[0], *as_pictures[1]],
    columns=5,
    size=110,
    titles=[f"canvas: {c}" for c in val_set[1][:5]] + ["its light"] * 5 + ["light taken off"] * 5,
)

# %% [markdown]
# Four numbers a canvas, and the plainest method of all reads most of them. Two things had to be there. Somebody had to *know* what
# light is. And the canvases had to *cover the places*: nearest neighbour has no idea that a 3 further left is a 3 as well.
#
# ## 8. Train
#
# Now a ViT from nothing. It gets the raw canvases, and nobody tells it of light or place: it has to find out both. Patches
# of 4 pixels, so that a digit touches four to nine of them and is cut at another place each time. The recipe is AdamW with
# a warm-up and a cosine, batches of random canvases, cross-entropy.
#
# **Predict first.** It trains for about half a minute (two cores) on the canvases that the others had. What share of the
# test canvases will it read: more than nearest neighbour on raw canvases? More than nearest neighbour that is told what
# light is? Set `my_guess` before you run the cell; a figure below draws it.

# %%
my_guess = 50  # percent

mine = MyViT(**vit_recipe.DIGITS_VIT)
mine.load_state_dict(
    vit_recipe.make_digits_vit(seed=0).state_dict()
)  # to start where the recorded seed 0 started
history = vit_recipe.train_classifier(
    mine,
    *train_set[:2],
    steps=small.vit_steps,
    batch_size=small.vit_batch_size,
    lr=small.vit_lr,
    seed=0,
)
mine = mine.cpu().eval()
reached = vit_recipe.accuracy(mine, *val_set[:2])
print(
    f"{sum(p.numel() for p in mine.parameters()):,} parameters, {small.vit_steps} steps of {small.vit_batch_size} "
    f"in {history.seconds[-1]:.0f} s: loss {history.losses[0]:.2f} -> {history.losses[-1]:.2f}"
)
best, told = max(wide, key=wide.get), max(unlit, key=unlit.get)
print(
    f"HEADLINE: handwriting anywhere, in uneven light: a ViT that is told nothing {reached:.1%}, {best} {wide[best]:.1%}, "
    f"{told} with the light taken off {unlit[told]:.1%}, chance 10%; your tower in CLIP leaves R@5 unchanged"
)

# %% [markdown]
# **Is my loss normal?** Your run over the recorded band of several seeds. It has the seed of *one of them*: the same first
# weights, the same batches. What differs is rounding and the number of threads, which 500 steps blow up. (Another `seed`
# makes it a run of your own.) A plateau near the dotted line at the start is usual. *Stuck there for good:* do the
# pictures keep their classes, do the positions differ, is the learning rate warmed up? *Far above the band:* a head or a
# residual is missing. *Below it from the start:* the test pictures, or one and the same batch, are being learnt by heart.

# %%
import math

from vlm_lite.studies import load_study

study = load_study("vit_digits")
print(
    f"the band is recorded: `{study['command']}`, {len(study['seeds'])} seeds, {study['seconds']} s on {study['hardware']}"
)
plots.loss_curve(
    history,
    band=study["band"],
    chance=math.log(10),
    ylabel="cross-entropy (nats)",
    title="A ViT from scratch",
)

# %% tags=["thumbnail"]
mlp = study["summary"]["accuracy, no attention: an MLP"]
kinds = {
    "bare digits of 8x8": (plain, SKY, "////"),
    "raw canvases": (wide, BLUE, ""),
    "light taken off": (unlit, ORANGE, "..."),
}
figure = Figure(width=700, height=430, label="who can read", layout="constrained")
axes = figure.subplots()
places = {}  # the name of a row -> where it stands
for number, method in enumerate(wide):
    for offset, (kind, (scores, colour, hatch)) in enumerate(kinds.items()):
        row = 3.6 * number + offset
        axes.barh(
            row,
            100 * scores[method],
            0.9,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=kind if number == 0 else None,
        )
        axes.text(100 * scores[method] + 1, row, f"{100 * scores[method]:.1f}", va="center")
    places[method] = 3.6 * number + 1
for row, name, score, note in (
    (
        11.1,
        "an MLP, recorded\n(raw canvases only)",
        mlp["mean"],
        f"  ({100 * mlp['low']:.1f} to {100 * mlp['high']:.1f})",
    ),
    (13, "your ViT, this run\n(raw canvases only)", reached, ""),
):
    axes.barh(row, 100 * score, 0.9, color=BLUE)
    axes.text(
        100 * (mlp["high"] if note else score) + 1.5, row, f"{100 * score:.1f}{note}", va="center"
    )
    places[name] = row
axes.errorbar(
    100 * mlp["mean"],
    11.1,
    xerr=[[100 * (mlp["mean"] - mlp["low"])], [100 * (mlp["high"] - mlp["mean"])]],
    fmt="none",
    color=INK,
    capsize=5,
    label=f"range of {len(study['seeds'])} seeds",
)
axes.axvline(10, color=GREY, linestyle=":", label="chance")
axes.axvline(
    my_guess, color=VERMILLION, linestyle=(0, (5, 3)), label=f"my guess for the ViT: {my_guess:g}"
)
axes.set(
    yticks=list(places.values()),
    yticklabels=list(places),
    xlim=(0, 108),
    xlabel="test pictures read rightly (%)",
    title="Who can read a digit anywhere, in uneven light?",
)
axes.invert_yaxis()
figure.legend(loc="outside lower center", ncols=3)
figure

# %% [markdown]
# **What each was told.** Nearest neighbour with the light taken off was told what light is, and keeps every canvas to have
# each place covered. The ViT was told neither, and keeps its parameters. Training it did not buy the best reading here; it
# bought *not having to know*. (Whether that takes attention is what the MLP stands beside it for.) What you know about
# your data, build in. What nobody can write down in four lines (what makes a dog?) must be learnt.
#
# **One thing changed.** Recorded, with the same recipe, steps and seeds: *post-norm* blocks; the *mean of the patches* in the
# place of the class token; *no positions* (zeros for good); and no ViT at all but *an MLP*, two hidden layers on all pixels
# at once, about as many weights. Before you run the cell: which would you bet on? How much of a digit is left in the mean of
# all patches, or in a bag of its 4-pixel scraps? Look at whether the ranges overlap. One recipe at one size is no verdict:
# each might want another learning rate or more steps.

# %%
print(f"recorded, {len(study['seeds'])} seeds       mean   lowest  highest")
for name in vit_recipe.VARIANTS:
    row = study["summary"][f"accuracy, {name}"]
    print(f"{name:24}{row['mean']:8.1%} {row['low']:8.1%} {row['high']:8.1%}")
print(f"{'this run, seed 0':24}{reached:8.1%}")
ladder = {
    "the ViT, recorded": study["summary"]["accuracy, the ViT"]["mean"],
    "an MLP, recorded": mlp["mean"],
    **wide,
}
print(
    "told nothing of light: "
    + ", ".join(
        f"{name} {ladder[name]:.0%}" for name in sorted(ladder, key=ladder.get, reverse=True)
    )
)
ours, *others = (study["summary"][f"accuracy, {name}"] for name in vit_recipe.VARIANTS)
for name, other in zip(list(vit_recipe.VARIANTS)[1:], others, strict=True):
    apart = max(ours["low"], other["low"]) > min(ours["high"], other["high"])
    print(
        f"{name}: {100 * (other['mean'] - ours['mean']):+.0f} points on the mean; the ranges {'do not' if apart else 'do'} overlap"
    )


# %% [markdown]
# ## 9. Where it looks
#
# In the last block, row 0 of $A$ is what the class token takes from each patch. But the patches have exchanged news in
# the blocks before, so the last block alone does not say where the news came from. **Rollout** (Abnar and Zuidema 2020)
# follows it back: average the heads of each block, give half to the residual (a token keeps what it was), and multiply.
#
# $$\hat A_l = \tfrac12\,\bar A_l + \tfrac12\, I \qquad R = \hat A_L \cdots \hat A_2\, \hat A_1$$
#
# **Exercise 5: rollout.** ★★☆ 7 minutes.
#
# <details><summary>Hint</summary>
#
# Start from the first block. With each further one, multiply *from the left*. The rows of the result sum to 1.
# </details>


# %% nbgrader={"grade": false, "grade_id": "attention_rollout", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def attention_rollout(attentions):
    """A list of weights (B, H, N, N), first block first -> (B, N, N)."""
    ### BEGIN SOLUTION
    rollout = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        rollout = (weights.mean(dim=1) + torch.eye(weights.shape[-1])) / 2 @ rollout
    return rollout
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "attention_rollout-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
attention_rollout = check.attention_rollout(attention_rollout)

patch, side = (
    vit_recipe.DIGITS_VIT["patch_size"],
    vit_recipe.CANVAS // vit_recipe.DIGITS_VIT["patch_size"],
)
some, truth, places = (each[:500] for each in val_set)
with torch.no_grad():
    out = mine(vit_recipe.digit_pixels(some), attentions=True)
rolled = attention_rollout(out.attentions)[:, 0, 1:]  # (n, patches), from the class token
last = out.attentions[-1][:, :, 0, 1:]  # (n, H, patches)

# Which patches the digit touches: those whose square overlaps its 8x8 pixels.
start = patch * torch.arange(side)
touch = [
    (start[None] < places[:, axis, None] + 8) & (start[None] + patch > places[:, axis, None])
    for axis in (0, 1)
]
on_digit = (touch[0][:, :, None] & touch[1][:, None, :]).flatten(1)  # (n, patches)


def share(maps):
    """How much of each map (n, patches), scaled to sum 1, falls on the digit: the mean over pictures."""
    return ((maps * on_digit).sum(dim=1) / maps.sum(dim=1)).mean().item()


print(
    f"the digit touches {on_digit.float().mean():.0%} of the patches; on them falls, of the class token's"
)
print(
    f"   rollout {share(rolled):.0%}, attention in the last block {share(last.mean(dim=1)):.0%}, "
    "head by head " + " ".join(f"{share(last[:, h]):.0%}" for h in range(last.shape[1]))
)
k = int((out.logits.argmax(dim=1) == truth).int().argmax())  # the first that it reads rightly
maps = torch.cat([rolled[k][None], last[k]]).view(-1, side, side)
plots.attention_over_image(
    some[k], maps, columns=6, titles=["rollout"] + [f"head {h + 1}" for h in range(len(last[k]))]
)

# %% [markdown]
# **How far do heads look?** Weigh the distance between two patches by the attention that one pays to the other. The
# yardstick is two patches picked at random: a head at that distance prefers neither near nor far.
#
# **Does the answer hang on it?** A map is a claim, not a proof. So intervene: paint a few patches over with the
# canvas's middle grey and ask again. If the maps point at what matters, hiding *their* patches must hurt more than hiding as
# many at random. (It can fall below chance: a digit without one of its strokes may look like another.)

# %%
where = (
    torch.cartesian_prod(torch.arange(side), torch.arange(side)).float() * patch
)  # (patches, 2) pixels
distance = torch.cdist(where, where)  # (patches, patches)
reaches = []
for number, weights in enumerate(out.attentions, start=1):
    between = weights[:, :, 1:, 1:] / weights[:, :, 1:, 1:].sum(dim=-1, keepdim=True)
    reaches += (between * distance).sum(dim=-1).mean(dim=(0, 2)).tolist()  # of H heads
    print(
        f"block {number}: heads look {min(reaches[-weights.shape[1] :]):.1f} to {max(reaches[-weights.shape[1] :]):.1f} pixels far"
    )
random_reach = distance.mean().item()
least, most = min(reaches) / random_reach, max(reaches) / random_reach
print(
    f"at random {random_reach:.1f}: the heads look {least:.0%} to {most:.0%} as far, so "
    + (
        "none of them prefers near or far by much"
        if 0.85 < least and most < 1.15
        else "some prefer what is near"
        if most < 1.15
        else "some prefer what is far"
        if 0.85 < least
        else "some prefer near, some far"
    )
)

generator = torch.Generator().manual_seed(0)
grey = (
    some.flatten(2).median(dim=2).values[:, :, None, None]
)  # (n, 3, 1, 1): the paper, since most pixels are paper


def hidden(maps, count=4):
    """The accuracy after the `count` patches where each map (n, patches) is largest are painted over."""
    mask = (
        torch.zeros(len(some), side * side)
        .scatter(1, maps.topk(count).indices, 1.0)
        .view(-1, 1, side, side)
    )
    mask = F.interpolate(mask, scale_factor=patch, mode="nearest").bool()  # (n, 1, S, S)
    return vit_recipe.accuracy(mine, torch.where(mask, grey, some), truth)


chosen = torch.rand(on_digit.shape, generator=generator)
print(f"nothing hidden                     {vit_recipe.accuracy(mine, some, truth):.1%}")
for name, maps in (
    ("4 patches at random", chosen),
    ("4 by attention, last block", last.mean(dim=1)),
    ("4 by rollout", rolled),
    ("4 that the digit touches", chosen + on_digit),
):
    print(f"{name:35}{hidden(maps):.1%}")


# %% [markdown]
# ## 10. What a patch costs
#
# Halve the patch and there are four times as many tokens. Count the matrix products of one block: a product of $(a, b)$ and
# $(b, c)$ takes $2abc$ floating-point operations (FLOPs), a multiplication and an addition each.
#
# **Exercise 6: FLOPs of a block.** ★★☆ 7 minutes. For one picture of $N$ tokens (the class token included), width $D$ and
# an MLP of width $M$. Leave out what is small: norms, softmax, activation.
#
# <details><summary>Hint</summary>
#
# Four projections $D \to D$. Two products of attention over all heads together, $q k^\top$ and $A v$. Two layers of the MLP.
# </details>


# %% nbgrader={"grade": false, "grade_id": "block_flops", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def block_flops(tokens, width, mlp_width):
    """FLOPs of the matrix products of one block, for one picture."""
    ### BEGIN SOLUTION
    projections = 4 * 2 * tokens * width * width
    mixing = 2 * 2 * tokens * tokens * width
    mlp = 2 * 2 * tokens * width * mlp_width
    return projections + mixing + mlp
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "block_flops-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
block_flops = check.block_flops(block_flops)

# %% [markdown]
# The formula beside what PyTorch counts when the model runs, and beside the clock. Width 192, four blocks; pictures of 64
# and 128 pixels, patches from 32 down to 8. Attention's own products, $4N^2D$, are the part that grows with $N^2$. Far
# below $N = 2D + M$ halving the patch costs *four* times as much; far beyond it the factor nears sixteen. The second
# table, by the formula alone, walks through that: a picture of 224 pixels, patch after patch. On the clock
# small models pay for other things as well, so time and FLOPs need not grow alike.

# %%
from torch.utils.flop_counter import FlopCounterMode

costs = []
for size, p in ((64, 32), (64, 16), (128, 16), (64, 8), (128, 8)):
    net = MyViT(image_size=size, patch_size=p, width=192, num_layers=4, num_heads=3).eval()
    x, tokens = torch.randn(4, 3, size, size), (size // p) ** 2 + 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x[:1], attentions=True)
    formula = (
        4 * block_flops(tokens, 192, 768) + 2 * (tokens - 1) * 3 * p * p * 192
    )  # blocks, and the first linear map
    assert counter.get_total_flops() == formula, (counter.get_total_flops(), formula)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            begun = time.perf_counter()
            net(x)
            seconds.append((time.perf_counter() - begun) / len(x))
    costs.append(
        (
            size,
            p,
            tokens,
            formula / 1e9,
            4 * 4 * tokens**2 * 192 / formula,
            1000 * sorted(seconds)[2],
        )
    )
print("picture  patch  tokens   GFLOPs  of it N² part   ms a picture   GFLOPs a second")
for size, p, tokens, gflops, squared, ms in costs:
    print(
        f"{size:7} {p:6} {tokens:7} {gflops:8.3f} {squared:14.0%} {ms:14.2f} {1000 * gflops / ms:17.0f}"
    )

print("\n224 pixels, the blocks by the formula: patch, tokens, GFLOPs, times the row before")
last_cost = None
for p in (32, 16, 8, 4, 2):
    tokens = (224 // p) ** 2 + 1
    cost = 4 * block_flops(tokens, 192, 768)
    print(
        f"{p:7} {tokens:7,} {cost / 1e9:10.2f}" + (f"{cost / last_cost:9.1f}" if last_cost else "")
    )
    last_cost = cost

figure = Figure(width=640, height=320, label="cost against tokens", layout="constrained")
axes = figure.subplots()
names = [f"{tokens} tokens\n{size} px\npatch {p}" for size, p, tokens, *_ in costs]
axes.semilogy(
    names, [row[3] / costs[0][3] for row in costs], "o-", color=BLUE, label="FLOPs, by the formula"
)
axes.semilogy(
    names, [row[5] / costs[0][5] for row in costs], "s--", color=ORANGE, label="time, measured"
)
axes.set(
    ylabel=f"times the cost of {costs[0][2]} tokens",
    title="More tokens cost more, however they come about",
)
axes.set_yticks([1, 2, 5, 10, 20, 50], [1, 2, 5, 10, 20, 50])
axes.minorticks_off()
axes.legend()
figure


# %% [markdown]
# **Another resolution.** Your ViT knows one size of canvas. Give it a wider one, with positions resized (exercise 2)
# and no further training: the digits keep their size in pixels, only the grid grows. If it still reads, was that the merit
# of the resized positions? Only if it *minds* other ones. So two controls at each size: the same positions in another order
# (which is to shuffle the patches, as the run asserts), and all of them equal to their mean.
#
# The same for an eye that does mind: section 6 printed what shuffled patches cost the zoo's eye. Its pictures are
# enlarged to 96 pixels, so that a patch of 16 shows only part of a cell: expect its recall to fall far whatever the positions.


# %%
def controls(table):
    """Positions (1 + N, D) as they are, in another order, and all at their mean; the class token keeps its own."""
    order = (
        1 + torch.randperm(len(table) - 1, generator=torch.Generator().manual_seed(1)).argsort()
    )  # undoes shuffle_patches
    return (
        table,
        torch.cat([table[:1], table[order]]),
        torch.cat([table[:1], table[1:].mean(0).expand(len(table) - 1, -1)]),
    )


def under_controls(settings, state, size, score):
    """The scores of a MyViT for `size` pixels, with the weights `state` and its positions resized, as `controls` has them."""
    name, wider, scores = (
        "embeddings.position_embedding.weight",
        MyViT(**{**settings, "image_size": size}).eval(),
        [],
    )
    for table in controls(resize_positions(state[name], size // settings["patch_size"])):
        wider.load_state_dict({**state, name: table})
        scores.append(score(wider))
    return scores


def found_first(tower, images):
    """R@1, picture to text, of the zoo's CLIP looking through `tower`."""
    eye.vision_model = tower
    return recall_at_k(
        recipes.embed_images(eye, images), said, torch.arange(len(texts)), (1,), texts=texts
    )["image_to_text"][1]


own_tower, survives = eye.vision_model, {}
said = recipes.embed_texts(eye, texts, tokenizer)  # (1000, P)
for size in (vit_recipe.CANVAS, vit_recipe.CANVAS + 2 * patch):
    field = make_canvases("val", small.val_images, size=size)[:2]
    survives[f"your ViT, {size} pixels"] = under_controls(
        vit_recipe.DIGITS_VIT,
        mine.state_dict(),
        size,
        lambda model, field=field: vit_recipe.accuracy(model, *field),
    )
for size in (64, 96):
    large = (
        F.interpolate(pictures.float(), (size, size), mode="bicubic", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
    )
    survives[f"the zoo's eye, {size} pixels, R@1"] = under_controls(
        settings, own_tower.state_dict(), size, lambda model, large=large: found_first(model, large)
    )
eye.vision_model = own_tower
assert (
    abs(survives["the zoo's eye, 64 pixels, R@1"][1] - muddled[1]) < 0.005
)  # section 6: its patches shuffled

print(f"{'positions':32}{'own or resized':>16}{'other order':>14}{'their mean':>13}")
for name, scores in survives.items():
    print(f"{name:32}{scores[0]:16.1%}{scores[1]:14.1%}{scores[2]:13.1%}")
for name in list(survives)[1::2]:
    resized, *others = survives[name]
    print(
        f"{name.split(',')[0]}: resized positions are worth {100 * (resized - max(others)):+.1f} points over the better control: "
        + (
            "it does about as well without, so this proves little for resizing"
            if resized - max(others) < 0.05
            else "resizing kept something of what they say"
        )
    )

# %% [markdown]
# ## 11. Can it see yet?
#
# The five questions that end every notebook. The eye is the zoo's, looking through *your* tower. It compares the
# picture with a sentence for each possible answer. The control is your tower without the weights.

# %%
from vlm_lite.data import language, shapes

val_questions = load_shapes("val", small.val_images, progress=False)[1]


def choose(model, question, kind, picture):
    candidates = shapes.ANSWERS[kind]
    sentences = [language.sentence(question, candidate, kind) for candidate in candidates]
    u = F.normalize(recipes.embed_images(model, picture[None]), dim=-1)  # (1, P)
    v = F.normalize(recipes.embed_texts(model, sentences, tokenizer), dim=-1)  # (candidates, P)
    return candidates[(u @ v.T).argmax()]


place = {image_id: i for i, image_id in enumerate(ids)}
five = shapes.five_questions(val_questions)
mine_in_clip, answers = eye.vision_model, {}
for name, tower in (("control", bare), ("my tower", mine_in_clip)):
    eye.vision_model = tower
    answers[name] = [
        choose(eye, q["question"], q["question_type"], pictures[place[q["image_id"]]]) for q in five
    ]
print(
    f"by guessing one expects {sum(1 / len(shapes.ANSWERS[q['question_type']]) for q in five):.1f} of 5"
)
check.progress(
    {
        "my tower in CLIP leaves R@5 unchanged": after[5] == before[5],
        "handwriting on raw canvases: ahead of the best that compares pixels": reached
        > 2 * wide[best],
        "told what light is, nearest neighbour reads what it could not": unlit["nearest neighbour"]
        > 2 * wide["nearest neighbour"],
        "without positions, shuffled patches go unnoticed": found["  no positions"][0] < 1e-3,
        "with its patches shuffled, the zoo's eye loses captions": muddled[1] < before[1] - 0.05,
        "the tower without its weights finds no captions": without[5]
        < 3 * chance_recall(len(texts), 5),
    }
)
plots.scoreboard(
    [q["image"] for q in five], [q["question"] for q in five], [q["answer"] for q in five], answers
)


# %% [markdown]
# ## 12. Photographs, on a GPU
#
# **Not verified on a GPU yet**: the code has run on a CPU, at a small size and without the real weights. It runs with the
# profile `t4`, and fetches some 250 MB (an estimate; the larger figure of the first cell is for all that the course's
# notebooks fetch with this profile): CIFAR-10 (50,000 photographs of 32 pixels, ten classes) and the weights of
# `vit_small_patch16_224`, which `timm` has pretrained on ImageNet-21k and ImageNet.
#
# Two ViTs, one test. **From nothing**: your class, patches of 4 pixels, 30 rounds through the photographs, each moved and
# mirrored anew: that says by example what the ViT does not know, that a dog is a dog at the left as well. **Pretrained**:
# the weights go through `load_vit` into *your* class, photographs are enlarged to the 224 pixels that those weights know,
# and one round is enough. The accuracy before it should be at chance, since the head is new.


# %% tags=["t4"]
def fit_photographs(model, *, epochs, batch_size, lr, size=None):
    """Train a ViT on CIFAR-10 with augmentation -> (accuracy on the test photographs before, after, seconds)."""

    def prepare(pictures):
        return vit_recipe.photo_pixels(pictures, size)

    test = cifar["test"][:2]
    before = vit_recipe.accuracy(model.to(compute.device), *test, prepare=prepare)
    history = vit_recipe.train_classifier(
        model,
        *cifar["train"][:2],
        steps=max(1, epochs * len(cifar["train"][0]) // batch_size),
        batch_size=batch_size,
        lr=lr,
        prepare=prepare,
        augment=vit_recipe.crop_and_flip,
        label_smoothing=0.1,
        log_every=50,
    )
    return before, vit_recipe.accuracy(model, *test, prepare=prepare), history.seconds[-1]


if profile.name == "t4":
    cifar = {split: vit_recipe.load_cifar10(split) for split in ("train", "test")}
    torch.manual_seed(0)
    form = dict(
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        embedding_norm=False,
        patch_bias=True,
        num_classes=10,
    )
    scratch = MyViT(
        image_size=32, patch_size=4, width=192, num_layers=6, num_heads=3, pool="mean", **form
    )
    name = "vit_small_patch16_224"
    loaded = load_vit(name, timm.create_model(name, pretrained=True, num_classes=10).state_dict())
    pretrained = MyViT(
        image_size=224, patch_size=16, width=384, num_layers=loaded.num_layers, num_heads=6, **form
    )
    pretrained.load_state_dict(loaded.state_dict())
    for what, (before, after, seconds) in (
        ("from nothing", fit_photographs(scratch, epochs=30, batch_size=256, lr=1e-3)),
        ("pretrained", fit_photographs(pretrained, epochs=1, batch_size=64, lr=1e-4, size=224)),
    ):
        print(f"{what:13} {before:6.1%} -> {after:6.1%} in {seconds / 60:.1f} min")
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# ## What you showed
#
# - Patches are a strided convolution; multi-head attention written out is `scaled_dot_product_attention`; your resized
#   positions are `timm`'s; your whole ViT is `vlm_lite`'s and `timm`'s, for both ways of pooling.
# - In the place of a trained CLIP's image tower, yours finds the same captions to the last picture.
# - From scratch it reads most of the handwriting, anywhere and in uneven light. Three methods that compare raw pixels do
#   not, although they read nearly all of the bare digits. Told what light is, the plainest of them reads more than the ViT, as
#   long as its canvases cover the places.
# - What it looks at can be drawn, and *tested* by hiding it. What a patch costs can be counted, and timed.
#
# ## What this does not show
#
# - That a ViT is the best tool here: nearest neighbour is better, once told what light is, and a convolutional network,
#   made for things that move about, was not tried.
# - That resized positions are good. Your ViT hardly minds which positions it gets; the zoo's eye does, and resized ones
#   serve it better than wrong ones, though far worse than its own at the size (and the scale) it knows.
# - That attention explains a decision. Hiding patches is evidence; a map alone is not.
# - Which norm, pooling or positions are best in general: the recorded rows hold for one small model, one task, one recipe.
# - Anything about photographs: section 12 is written, and nobody has run it on a GPU yet. That `timm`'s models fit is proved
#   with random weights.
#
# ## Check yourself
#
# - [ ] I can say what changes in a ViT when the patch is halved: tokens, parameters, cost.
# - [ ] I know why a ViT without positions cannot tell a picture from its shuffled patches.
# - [ ] I can write attention with the shape of every tensor, and say over which axis the softmax runs.
# - [ ] I know where the norms stand in pre-norm and in post-norm, and what runs through untouched.
# - [ ] I can name one way to test an attention map.
#
# ## To answer in words
#
# 1. Nearest neighbour, told what light is, beats your ViT. Name a change of the task that should cost the table of canvases
#    more than the ViT. And what would the ViT read if the light were taken off for it, too? How would you find out?
# 2. The class token attends to all patches, and the mean takes all alike. When could the one be better, when the other?
# 3. Twice the resolution with the same patch, or half the patch at the same resolution: the same number of tokens. What is
#    different?
#
# ## Where next
#
# [Notebook 03](03_qformer_gpt2.ipynb) takes the patches of this tower, the layer before the last, and connects them to a
# language model.
#
# ## Glossary
#
# | term | 日本語 | here |
# |---|---|---|
# | patch | パッチ | a square of the picture, one token |
# | patch embedding | パッチ埋め込み | the linear map of a patch to width D |
# | position embedding | 位置埋め込み | what says where a patch stands |
# | class token | クラストークン | the token that belongs to no patch, and collects the answer |
# | self-attention, multi-head | 自己注意、マルチヘッド | tokens ask tokens, in several heads at once |
# | query, key, value | クエリ、キー、バリュー | what a token seeks, is, and gives |
# | residual stream | 残差ストリーム | the running sum to which each step adds |
# | pre-norm, post-norm | 事前正規化、事後正規化 | LayerNorm before each step, or after each sum |
# | mean pooling | 平均プーリング | reading the answer from the mean of the patches |
# | attention rollout | アテンション・ロールアウト | attention followed back through all blocks |
# | inductive bias | 帰納バイアス | what a model takes for granted before it has seen data |
# | interpolation | 補間 | how positions reach another resolution |
