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
#     outputs_of: c23d59a00479c2507b16f722e4e18a47a005ccb986ccca90ed347627aef17895
#     title: Beyond one small square
#     builds: an encoder of images of any size, with packing, 2D RoPE, tiles and pixel shuffle
#     lesson: resolution
#     reads: [zoo/shapes-clip]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/08_resolution.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/08_resolution.ipynb)

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
print(describe(profile, compute, notebook="08_resolution"))

# %% [markdown]
# # 8. Beyond one small square
#
# Every model of this course so far reads one square of 64 x 64 pixels; CLIP reads 224 x 224. Documents, charts and streets don't fit: what is small in
# a large image shrinks to a few pixels of one patch. Here is what current models do about it.
#
# **You will build** patches of images of any size in one sequence, attention that stays inside each image, rotary positions in two dimensions,
# interpolated positions, tiles with a thumbnail, and pixel shuffle.
#
# **You will be able to show** that each part equals the one in `transformers`, and what resolution costs in tokens and time and buys in accuracy, on
# handwritten digits in pages of 64 to 192 pixels.
#
# **Reading time:** 20 minutes. Six exercises, 47 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 1.5 min (1 with bf16) and 1.4 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [02, the Vision Transformer](02_vit.ipynb), whose block is used again.

# %% tags=["save"]
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data import pages
from vlm_lite.lessons import llava, vit
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute

PATCH, SIDES = 16, (64, 96, 128, 192)  # pixels
GRIDS = [(64 * rows, 64 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]


def by_block(grid):
    """(R, C, ...) -> (R * C, ...): 2 x 2 block after block, each row by row, as Qwen2-VL orders its patches."""
    rows, columns = grid.shape[:2]
    blocks = grid.reshape(rows // 2, 2, columns // 2, 2, *grid.shape[2:])
    return blocks.transpose(1, 2).flatten(0, 3)


# %%
from time import perf_counter

import pandas as pd
from IPython.display import display
from transformers import image_processing_utils, vision_utils
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from vlm_lite import diagrams, figures, plots
from vlm_lite.labs import check
from vlm_lite.lessons import resolution as lesson
from vlm_lite.models.clip import CLIP
from vlm_lite.profiles import resolve_model

full_size = profile.name != "smoke"  # what the text says of results holds at full size
rng = np.random.default_rng(0)
page = pages.digit_pages("val", 192, 1, rng)[0][0]  # (3, 192, 192)
diagrams.resolutions({name: view(page) for name, view in lesson.VIEWS.items()}, PATCH)

# %% [markdown]
# ## 1. Why a fixed square fails
#
# A page holds **one handwritten digit of 16 pixels**, and shapes that don't matter. *Which digit is it?* A page may be 64, 96, 128 or 192 pixels wide;
# the digit stays as small as it is. An encoder of 64 pixels needs the page resized, and then a digit on the largest page has 5 pixels.
#
# More pixels are more tokens. Here are sides that are common in practice, 224 to 672 pixels in patches of 14, beside our pages in patches of 16. Both columns of sides grow by the same factors, so both columns of tokens do.
#
# The last column is a control: can 5 pixels show a digit at all? Each held-out digit, *alone* and resized, is compared with 1,229 training digits, and gets the value of the nearest.


# %%
def nearest(side):
    # Of held-out digits, alone and resized to `side` pixels: how often has the nearest training digit their value?
    (train, known, *_), (val, values, *_) = pages.cells("train"), pages.cells("val")
    grey = [torch.from_numpy(each).float().mean(dim=-1)[:, None] for each in (train, val)]
    a, b = (F.interpolate(each, (side, side), mode="area").flatten(1) for each in grey)
    return np.mean(known[torch.cdist(b, a).argmin(dim=1)] == values)


shown = [pages.digit_pages("val", side, 1, rng)[0][0] for side in SIDES]
sizes = pd.DataFrame({"lecture (pixels)": (224, 336, 448, 672), "page (pixels)": SIDES})
sizes.insert(1, "its tokens", (sizes["lecture (pixels)"] // 14) ** 2)
sizes["tokens"] = (sizes["page (pixels)"] // PATCH) ** 2
sizes["a digit in 64 pixels"] = 16 * 64 / sizes["page (pixels)"]
sizes["its nearest neighbour is right"] = [nearest(round(n)) for n in sizes["a digit in 64 pixels"]]
assert list(sizes["its tokens"]) == [256, 576, 1024, 2304] == list(16 * sizes["tokens"])
display(sizes.round(2))
small = [pages.resize(each, (64, 64)) for each in shown]
plots.show_images(shown + small, [f"{s} pixels" for s in SIDES] + ["resized to 64"] * 4, columns=4)

# %% [markdown]
# ## 2. Packing: images of different sizes in one sequence
#
# A batch of squares is one tensor. Images of different sizes would need padding, up to the largest of them. Qwen2-VL **packs** instead: the patches of all images stand
# in one sequence without padding, and `cu_seqlens` (cumulative lengths: 0, 16, 52, ...) says where each image begins and ends.
#
# Its order of patches is special: not row by row but **2 x 2 block after block** (`by_block` above), so that four neighbours in the sequence are neighbours in the image. Section 5 merges them.
#
# **Exercise 1: pack.** ★★☆ 9 minutes. Patches have channel, row, column inside, as in 02. Return each patch's (row, column) as well, and `cu_seqlens`.
# <details><summary>Hint</summary>
#
# `rearrange(image, "d (r p) (c q) -> r c (d p q)", p=16, q=16)` is a grid of patches; `torch.stack(torch.meshgrid(..., indexing="ij"), dim=-1)` is the grid of their positions. `by_block` orders both.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pack", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def pack(images):
    """B images (3, H, W), sides multiples of 32 -> patches (T, 768), (row, column) (T, 2), cu_seqlens (B + 1,)."""
    ### BEGIN SOLUTION
    patches, places, lengths = [], [], [0]
    for image in images:
        grid = rearrange(image, "d (r p) (c q) -> r c (d p q)", p=PATCH, q=PATCH)
        where = torch.meshgrid(*map(torch.arange, grid.shape[:2]), indexing="ij")
        patches.append(by_block(grid))
        places.append(by_block(torch.stack(where, dim=-1)))
        lengths.append(len(patches[-1]))
    return torch.cat(patches), torch.cat(places), torch.tensor(lengths).cumsum(0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pack-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pack = check.pack(pack)

patches, places, cu_seqlens = pack(shown)
grids = torch.tensor([(1, side // PATCH, side // PATCH) for side in SIDES])  # frames, rows, columns
check.same_values("places ", places, vision_utils.get_vision_position_ids(grids, 2), 0)
check.same_values("cu_seqlens ", cu_seqlens.int(), vision_utils.get_vision_cu_seqlens(grids), 0)
print(f"patches {tuple(patches.shape)}, cu_seqlens {cu_seqlens.tolist()}")

# %% [markdown]
# In one sequence, a patch must not attend to another image. That is a **block-diagonal** mask over T x T pairs, or, with the same result and without the empty pairs, attention in
# each image by itself. FlashAttention's `varlen` function takes `cu_seqlens` for this.
#
# **Exercise 2: packed attention.** ★★☆ 6 minutes.
# <details><summary>Hint</summary>
#
# `pairwise(cu_seqlens.tolist())` gives the ends (a, b) of each image. `F.scaled_dot_product_attention` wants (heads, tokens, h). Or build the mask from `torch.repeat_interleave`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "packed_attention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def packed_attention(q, k, v, cu_seqlens):
    """q, k, v (T, heads, h) of images that end at cu_seqlens (B + 1,) -> (T, heads, h): each attends to its own image."""
    ### BEGIN SOLUTION
    found = []
    for a, b in pairwise(cu_seqlens.tolist()):
        parts = (x[a:b].transpose(0, 1) for x in (q, k, v))  # (heads, tokens, h)
        found.append(F.scaled_dot_product_attention(*parts).transpose(0, 1))
    return torch.cat(found)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "packed_attention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
packed_attention = check.packed_attention(packed_attention)

q, k, v = torch.randn(3, len(patches), 4, 24)
image = torch.repeat_interleave(torch.arange(4), cu_seqlens.diff())  # of each token
mask = image[:, None] == image[None]  # (T, T), block-diagonal
whole = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), mask)
check.same_values("attention ", packed_attention(q, k, v, cu_seqlens), whole.transpose(0, 1))
print(f"{mask.float().mean():.0%} of {len(mask)} x {len(mask)} pairs are allowed")

# %% [markdown]
# ## 3. Rotary positions in two dimensions
#
# A table of positions, one vector a patch, ends where its grid ends. **RoPE** (Su et al. 2021) has no table: it turns queries and keys by an angle that grows with the position. Two
# numbers $(x_j, x_{j+h/2})$ of a head are a point in a plane, turned by $\alpha = p\,\omega_j$, where $p$ is the position:
#
# $$x_j' = x_j\cos\alpha - x_{j+h/2}\sin\alpha \qquad x_{j+h/2}' = x_{j+h/2}\cos\alpha + x_j\sin\alpha$$
#
# The dot product of a query at $p$ and a key at $p'$ depends on positions only through $p - p'$. In **2D** half of the pairs turn with the row and the other half with the column:
# with $n$ pairs an axis, $\omega_i = 10000^{-i/n}$ for $i = 0 \dots n-1$.
#
# **Exercise 3: RoPE.** ★★★ 10 minutes. The axes are the columns of `positions`: two here; a video clip has three, with time.
# <details><summary>Hint</summary>
#
# `(positions[..., None] * frequencies).flatten(1)` has shape (T, h / 2): first the angles of the rows, then those of the columns. All heads turn alike: `[:, None]`. `x.chunk(2, dim=-1)` gives the partners.
# </details>


# %% nbgrader={"grade": false, "grade_id": "rope_2d", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def rope_2d(x, positions):
    """x (T, heads, h), turned by positions (T, axes), h divisible by 2 * axes -> (T, heads, h)."""
    ### BEGIN SOLUTION
    pairs = x.shape[-1] // 2 // positions.shape[1]  # of an axis
    frequencies = 10_000.0 ** (-torch.arange(pairs, device=x.device) / pairs)
    angles = (positions[..., None] * frequencies).flatten(1)[:, None]  # (T, 1, h / 2)
    (first, second), cos, sin = x.chunk(2, dim=-1), angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "rope_2d-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
rope_2d = check.rope_2d(rope_2d)

theirs = check.qwen2_vl_rotary(q, places)  # transformers' classes for Qwen2-VL's vision encoder
check.same_values("turned queries ", rope_2d(q, places), theirs, 1e-5)


def scaled(x, positions):  # as often written: each number times cos and sin, without its partner
    return x * rope_2d(torch.ones_like(x), positions)  # (cos - sin, cos + sin)


places = torch.tensor([(1, 2), (3, 5), (7, 4), (9, 7)])  # two pairs with the same offset
moved = {}
for name, turn in {"RoPE": rope_2d, "multiplied": scaled}.items():
    one, other = turn(q[:1].expand(4, -1, -1), places), turn(k[:1].expand(4, -1, -1), places)
    moved[name] = (one[::2] * other[1::2]).sum(dim=(1, 2)).tolist()
assert abs(np.diff(moved["RoPE"])) < 1e-3 < 0.1 < abs(np.diff(moved["multiplied"]))
pd.DataFrame(moved, index=["(1, 2) and (3, 5)", "(7, 4) and (9, 7)"])

# %% [markdown]
# Rotation keeps lengths, and positions enter the score only as an offset. Multiplying each number by $\cos$ and $\sin$ without its partner does neither: it is a
# scaling, and the same offset gives another score elsewhere.
#
# ## 4. Positions that exist: interpolate
#
# A trained encoder has its table of positions, 4 x 4 here. To read a larger image with it, stretch the table as one stretches an image: bicubic interpolation of each of its D channels.
#
# **Exercise 4: interpolate positions.** ★★☆ 6 minutes.
# <details><summary>Hint</summary>
#
# `F.interpolate` wants (1, D, rows, columns), `mode="bicubic"`, `align_corners=False`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "interpolate_positions", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def interpolate_positions(table, rows, columns):
    """A square table (g * g, D), row by row -> (rows * columns, D), row by row."""
    ### BEGIN SOLUTION
    grid = rearrange(table, "(r c) d -> 1 d r c", r=round(len(table) ** 0.5))
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d r c -> (r c) d")
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "interpolate_positions-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
interpolate_positions = check.interpolate_positions(interpolate_positions)

vision = CLIP.from_pretrained(resolve_model(profile.vision_model))
embeddings = vision.vision_model.embeddings  # of transformers' CLIP, with the shipped weights
with torch.no_grad():
    theirs = embeddings.interpolate_pos_encoding(torch.empty(1, 1 + 6 * 9, 128), 96, 144)
    mine = interpolate_positions(embeddings.position_embedding.weight[1:], 6, 9)
check.same_values("positions of 6 x 9 patches ", mine, theirs[0, 1:])

# %% [markdown]
# ## 5. Tiles and pixel shuffle
#
# **LLaVA-NeXT** keeps its encoder of one square and gives it several: the image is fitted into a grid of squares and cut into **tiles**, and a **thumbnail** of the whole goes first. Which grid?
# The one that keeps most of the image's pixels (enlarging adds none) and, among equals, wastes least area.
#
# **Exercise 5: the best grid.** ★★☆ 8 minutes. The scale is the smaller of the two sides' ratios; the scaled sides are cut to whole pixels by `int`.
# <details><summary>Hint</summary>
#
# `kept = min(scaled height * scaled width, height * width)`. `max` over tuples (kept, -wasted) takes the first of equals.
# </details>


# %% nbgrader={"grade": false, "grade_id": "select_best_resolution", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def select_best_resolution(size, grids):
    """size (height, width) of an image, grids [(height, width), ...] in pixels -> the best of them."""

    ### BEGIN SOLUTION
    def kept_and_wasted(grid):
        scale = min(grid[1] / size[1], grid[0] / size[0])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=kept_and_wasted)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "select_best_resolution-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
select_best_resolution = check.select_best_resolution(select_best_resolution)

asked = [(int(h), int(w)) for h, w in rng.integers(8, 400, (2000, 2))]
best = [select_best_resolution(size, GRIDS) for size in asked]
assert best == [image_processing_utils.select_best_resolution(size, GRIDS) for size in asked]
# %% [markdown]
# Tiles multiply the tokens that the language model must read. **Pixel shuffle** (Idefics3, SmolVLM) divides them: 2 x 2 neighbouring tokens of width $D$ become one of width $4D$. Nothing is
# lost; a projector then brings the width down.
#
# **Exercise 6: pixel shuffle.** ★★☆ 8 minutes. The four go side by side in the order upper left, upper right, lower left, lower right.
# <details><summary>Hint</summary>
#
# One `rearrange` with both sides split: `"b (rows a columns c) d -> ..."`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pixel_shuffle", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def pixel_shuffle(x, factor=2):
    """x (B, N, D) of a square, row by row -> (B, N / factor², factor² * D)."""
    ### BEGIN SOLUTION
    rows = round(x.shape[1] ** 0.5) // factor
    neighbours = "b (rows a columns c) d -> b (rows columns) (a c d)"
    return rearrange(x, neighbours, rows=rows, a=factor, c=factor)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pixel_shuffle-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pixel_shuffle = check.pixel_shuffle(pixel_shuffle)

x = torch.randn(2, 12 * 12, 5)
for factor in (2, 3, 4):
    theirs = Idefics3Connector.pixel_shuffle(None, x, factor)  # SmolVLM has the same function
    check.same_values(f"pixel shuffle by {factor} ", pixel_shuffle(x, factor), theirs, 0)
packed = by_block(x[0].view(12, 12, 5))  # in Qwen2-VL's order
merged = rearrange(packed, "(n four) d -> n (four d)", four=4)
check.same_values("Qwen2-VL's merge ", merged, pixel_shuffle(x)[0], 0)

# %% [markdown]
# The last line: **Qwen2-VL's 2 x 2 merge is pixel shuffle.** In packed order it needs no more than putting each four in a row.
#
# ## 6. One encoder, four ways to read
#
# A layer is 02's block with packed attention. The encoder has learnt positions *or* RoPE, and in place of a language model **two readers**, trained together: one attends to every token, the other to
# every merged four. Each has one query and a head over the ten digits.


# %% tags=["save"]
def tiles(image):
    """uint8 (3, H, W) -> [thumbnail, tile, ...], each (3, 64, 64): LLaVA-NeXT's AnyRes, black around what is fitted."""
    size = np.array(image.shape[1:])
    grid = np.array(select_best_resolution(size, GRIDS))
    fitted = (size * min(grid / size)).astype(int)
    canvas, (top, left) = image.new_zeros(3, *grid), (grid - fitted) // 2
    canvas[:, top : top + fitted[0], left : left + fitted[1]] = pages.resize(image, fitted)
    cut = rearrange(canvas, "d (r p) (c q) -> (r c) d p q", p=64, q=64)
    return [pages.resize(image, (64, 64)), *cut]


VIEWS = {"square": lambda x: [pages.resize(x, (64, 64))], "whole": lambda x: [x], "tiles": tiles}


class Layer(vit.Block):
    """02's block over packed tokens: x (T, D) -> (T, D)."""

    def forward(self, x, positions, cu_seqlens):
        split = "t (three heads h) -> three t heads h"
        q, k, v = rearrange(self.attn.qkv(self.norm1(x)), split, three=3, heads=self.attn.num_heads)
        if positions is not None:
            q, k = (rope_2d(each, positions).type_as(v) for each in (q, k))  # not the values
        x = x + self.attn.proj(packed_attention(q, k, v, cu_seqlens).flatten(1))
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    """In place of a language model: one query attends to each row's tokens (T, inputs) -> logits (B, num_classes)."""

    def __init__(self, inputs, width, num_classes):
        super().__init__()
        self.projector = llava.Projector(inputs, width)
        self.query, self.head = nn.Parameter(torch.zeros(width)), nn.Linear(width, num_classes)

    def forward(self, tokens, cu_seqlens):
        tokens = self.projector(tokens)
        rows = [tokens[a:b] for a, b in pairwise(cu_seqlens.tolist())]
        return self.head(torch.stack([(row @ self.query).softmax(dim=0) @ row for row in rows]))


class Encoder(nn.Module):
    """A ViT over packed images of any size, with RoPE or a learnt table of 4 x 4 positions, and two readers."""

    def __init__(self, rope=True, width=96, depth=3, num_heads=4, num_classes=10, context=1024):
        super().__init__()
        self.context, self.embed = context, nn.Linear(3 * PATCH**2, width)
        self.table = None if rope else nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(Layer(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.all, self.merged = (Reader(n * width, width, num_classes) for n in (1, 4))

    def forward(self, crops, clip=False):
        """B lists of crops (3, H, W), or of a clip's frames -> logits (B, num_classes) of both readers."""
        images = pages.check_crops(crops, PATCH, self.context)
        patches, positions, cu_seqlens = (
            each.to(self.embed.weight.device) for each in pack(images)
        )
        x, rows = (
            self.embed(vit.pixel_values(patches)),
            cu_seqlens[np.cumsum([0, *map(len, crops)])],
        )
        if clip:  # the frames of a row see each other, and time is one more position
            time = torch.cat([torch.arange(len(row)) for row in crops]).to(x.device)
            time = time.repeat_interleave(cu_seqlens.diff())[:, None]
            positions, cu_seqlens = torch.cat([time, positions], dim=1), rows
        if self.table is not None:
            grids = [(image.shape[1] // PATCH, image.shape[2] // PATCH) for image in images]
            table = [interpolate_positions(self.table, *grid).view(*grid, -1) for grid in grids]
            x, positions = x + torch.cat([by_block(each) for each in table]), None
        for layer in self.layers:
            x = layer(x, positions, cu_seqlens)
        x = self.norm(x)
        four = rearrange(x, "(n four) d -> n (four d)", four=4)  # pixel shuffle
        return self.all(x, rows), self.merged(four, rows // 4)


# %% [markdown]
# The first encoder is trained on pages of all sizes, each resized to a square of 64. **The same weights** then read larger inputs without more training: pages in full with interpolated positions, and tiles. The
# second, with RoPE, is trained on pages in full. Both trainings are short.


# %% tags=["save"]
def draw(view, split, rng, count):
    """Rows of crops, as one of VIEWS gives them of pages of all sizes, or of "clips", and their targets (count,)."""
    if view == "clips":
        clips, moved = pages.moving_clips(split, count, rng)
        return [list(clip) for clip in clips], moved
    made = [pages.digit_pages(split, side, count // len(SIDES), rng) for side in SIDES]
    crops = [VIEWS[view](image) for images, _ in made for image in images]
    return crops, torch.cat([values for _, values in made])


def train_encoder(model, view, *, steps, batch_size, lr, seed=0):
    """Train both readers on fresh pages or clips, as `draw` makes them -> History."""
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings, code = {"batch_size": batch_size, "lr": lr}, (Encoder, draw, train_encoder)
    run = Checkpoint(view, model, optimizer, scheduler, seed=seed, settings=settings, code=code)
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # of each batch
    for _ in run.steps(steps):
        rng = np.random.default_rng(np.random.randint(2**31))  # seeded by (seed, step)
        crops, targets = (each[share] for each in draw(view, "train", rng, batch_size))
        with accelerator.autocast():
            logits = torch.stack(model(crops, clip=view == "clips")).float()  # (2, B, classes)
        targets = targets.to(logits.device).expand(2, -1)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return run.history


# %%
torch.manual_seed(0)
square, dynamic = Encoder(rope=False), Encoder()
losses, batch = {}, 32 if full_size else 8
for view, model, steps in (("square", square, 300), ("whole", dynamic, 160)):
    steps = steps if full_size else 4
    losses[view] = train_encoder(model, view, steps=steps, batch_size=batch, lr=1e-2).losses
plots.losses(losses, "two views, two encoders", every=10)

# %% [markdown]
# **Predict first.** On pages of 192 pixels: which of square, interpolated, tiles and RoPE reads most digits? Does a reader of merged fours read fewer? Chance is 0.10. The control *another page* scores each answer by the digit of another page, and *ms* is for one page on this machine.

# %% tags=["thumbnail"]
ways = {"square": (square, "square"), "interpolated": (square, "whole")}
ways |= {"tiles": (square, "tiles"), "2D RoPE": (dynamic, "whole")}
rows = []
for side in SIDES:
    images, values = pages.digit_pages("val", side, 100 if full_size else 8, rng)
    for way, (model, view) in ways.items():
        crops, start = [VIEWS[view](image) for image in images], perf_counter()
        found = torch.no_grad()(model.eval())(crops)
        ms, tokens = 1000 * (perf_counter() - start) / len(crops), len(pack(crops[0])[0])
        for reader, logits, share in zip(("all", "merged"), found, (1, 4), strict=True):
            said = logits.argmax(1).cpu()
            hits = [(said == v).float().mean().item() for v in (values, values.roll(1))]
            rows.append((way, reader, side, tokens // share, *hits, ms))
names = "way, reader, pixels, tokens, right, another page, ms".split(", ")
table = pd.DataFrame(rows, columns=names)
means = table.assign(by=-table.right).groupby(names[:2]).mean().sort_values(["tokens", "by"])
means["front"] = means.right > means.right.cummax().shift(fill_value=0)
display(table.pivot(index=names[:2], columns="pixels", values=["right", "tokens"]).round(2))
display(means.drop(columns=["pixels", "by"]).round(2))
figure = figures.Figure(width=720, height=320, label="digits read", layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
looks = zip("ov^s", (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.ORANGE), strict=True)
for (way, own), (mark, colour) in zip(table.groupby("way", sort=False), looks, strict=True):
    left.plot("pixels", "right", mark + "-", color=colour, label=way, data=own[::2])
    for reader, fill in (("all", "full"), ("merged", "none")):
        right.plot(*means.loc[(way, reader), ["tokens", "right"]], mark, c=colour, fillstyle=fill)
front = {"zorder": 0, "label": "Pareto front", "data": means[means.front]}
right.plot("tokens", "right", "--", color="0.6", **front)
left.set(xlabel="page (pixels)", ylabel="share of digits read", xticks=SIDES, ylim=(0, 1.03))
right.set(xlabel="mean tokens (filled: all; hollow: merged)", xscale="log")
right.set(xticks=(4, 16, 64), xticklabels=("4", "16", "64"))
figure.legend(loc="outside lower center", ncols=5)
figure

# %% [markdown]
# - **Square.** It reads the smallest page and hardly any other. Pixels are not what is missing: alone, a digit of 5 pixels is still read by its nearest neighbour. Resized, a digit is of a size that was not trained, lies anywhere in its patch, and on the largest page shares it with nine squares' worth of other things. Longer training on resized pages might help; it can't add tokens.
# - **Interpolated.** The same weights, without one more step of training, read the pages in full. It costs a token for every 16 x 16 pixels.
# - **Tiles.** The same weights again. A page of 128 or 192 pixels is cut as it is; one of 96 is enlarged to fill 128, and its digits become 21 pixels wide, a size that this encoder has not seen: there it reads hardly more than chance, with more tokens than any other. Tiles also take about twice as long as the page in full. The thumbnail should add nothing to *this* question: no digit has to be seen as part of a whole.
# - **RoPE** reads all sizes with one set of weights and no table.
# - **Merged.** A quarter of the tokens for the reader, at the same cost in the encoder. It costs tiles most: 0.69 at 192, where interpolated pages, with nearly as many tokens, keep 0.96.
#
# The **Pareto front** holds the ways for which no other reads more with as many tokens or fewer, averaged over the four sizes.
#
# ## 7. At the border
#
# Input that can't be read must raise an error where it comes in, with a sentence that helps.

# %%
for what, attempt in {
    "smaller than a patch": lambda: dynamic([[page[:, :8, :8]]]),
    "1 x 5000, in tiles": lambda: tiles(page.new_zeros(3, 1, 5000)),
    "no image": lambda: dynamic([[]]),
    "an image of 1024 x 1024": lambda: dynamic([[page.new_zeros(3, 1024, 1024)]]),
    "a grid of 8 x 9 tiles": lambda: square([[page[:, :64, :64]] * 73]),
}.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}: {error}")
    else:
        raise AssertionError(f"{what}: not noticed")
found = table[(table.pixels == 192) & (table.reader == "all")].set_index("way").right
assert not full_size or found["square"] < 0.3 < 0.7 < found[["interpolated", "2D RoPE"]].min()
print("HEADLINE: digits read on pages of 192 pixels:", found.round(2).to_dict())
check.progress()

# %% [markdown]
# ## What you showed
#
# - Packing, attention by image, 2D RoPE, interpolated positions, the choice of a grid and pixel shuffle are those of `transformers`.
# - RoPE is a rotation: positions enter the scores only as offsets. Multiplying by cos and sin without the partner is not one.
# - Qwen2-VL's 2 x 2 merge and SmolVLM's pixel shuffle are one function.
# - A fixed square failed though its pixels suffice for a nearest neighbour. The same weights read large pages once they got them in full.
#
# ## What this does not show
#
# - **Anything about photographs**, or a large encoder: [08t](08t_photographs.ipynb) has both.
# - **That RoPE reads better than a table.** The two encoders were trained on different views. Reading one digit needs hardly any positions; 02's *leftmost* does.
# - **Digits across patches.** On a page in full, a digit fills exactly one patch. Resized or in tiles it may lie across several. Part of the gap at 96 pixels may be this.
# - **The cost for a language model.** Its attention reads these tokens in every layer; the readers here are small.
#
# ## Check yourself
#
# - [ ] I can say what `cu_seqlens` holds, and why no padding is needed.
# - [ ] I can write a rotation with its partner, and say what it keeps.
# - [ ] I can compute the tokens of a 672 x 448 image for each of the four ways, with patches of 14 and tiles of 224.
# - [ ] I know what a thumbnail is for.
#
# ## To answer in words
#
# 1. Pixel shuffle loses nothing. Why then is there a limit to how often one can apply it?
# 2. A tile doesn't see its neighbours. Which questions about an image suffer, and which of the four ways would you take for a street map?
#
# ## Where next
#
# [08b](08b_places_and_time.ipynb) goes on with several images, clips, and answers as coordinates. Or go back to [04](04_llava_projection.ipynb): which of the four ways would you put before its projector?
