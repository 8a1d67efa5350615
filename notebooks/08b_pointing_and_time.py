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
#     title: Pointing, and time
#     builds: answers with coordinates, in new tokens of a trained VLM, and positions in time for clips
#     lesson: places
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-llava]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/08b_pointing_and_time.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/08b_pointing_and_time.ipynb)

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
print(describe(profile, compute, notebook="08b_pointing_and_time"))

# %% [markdown]
# # 8b. Pointing, and time
#
# *Where is it?* and *what moved?* have answers that aren't words of the world: coordinates, and order in time. This companion of [08](08_resolution.ipynb) adds both.
#
# **You will build** new tokens for a trained VLM, a parser of points, and Qwen2-VL's three position numbers.
#
# **You will be able to show** that a VLM learns new words while every old row of its embedding stays as it was, how far its points are off, and whether a
# model of clips uses the order of its frames.
#
# **Reading time:** 10 minutes. Two exercises, 16 minutes.
# <!-- figures -->
# **Run time:** not measured yet on `tiny`.
# <!-- /figures -->
# **Before this:** [08](08_resolution.ipynb), whose encoder reads the clips here, and [04](04_llava_projection.ipynb), whose model learns to point.

# %% tags=["save"]
import re

import torch

from vlm_lite.lessons import llava

NEW_WORDS = ("point", '<point x="', '" y="', '">')

# %%
from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import display
from transformers import Qwen2VLConfig, Qwen2VLModel

from vlm_lite import plots
from vlm_lite.data import pages
from vlm_lite.data.language import short_prompt
from vlm_lite.data.scenes import SHAPES
from vlm_lite.embed import pixel_values
from vlm_lite.labs import check
from vlm_lite.lessons.resolution import Encoder, train_encoder
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.clip import CLIP
from vlm_lite.models.layout import load_trained
from vlm_lite.models.text import load_language_model
from vlm_lite.profiles import resolve_model

full_size = profile.name != "smoke"  # what the text says of results holds at full size
COUNT = "how many shapes are there?"
rng = np.random.default_rng(0)
vision = CLIP.from_pretrained(resolve_model(profile.vision_model))

# %% [markdown]
# ## 1. Pointing
#
# Molmo answers *where* by text: `<point x="61.5" y="40.4">`, in percent of the image's width and height. Such an answer can be scored by distance, and *how many?* can be answered by pointing at each.
#
# **New words.** `shapes-llava`, 04's model, has never pointed. It gets four new tokens: the word `point`, and three pieces of syntax; digits it has. `resize_token_embeddings` adds a row for each to the embedding, which is the output layer as well.
#
# Then the language model is trained on pointing, with one question that it could answer before, so that it isn't forgotten. In the embedding **only the new rows learn**: a hook sets the gradient of all others to zero, and without weight decay an
# optimizer then leaves them as they are, bit for bit.


# %% tags=["save"]
def add_words(model, words):
    """Give a VLM new tokens, and let its connector and language model learn: of the embedding, the new rows alone."""
    language_model = model.language_model
    known = language_model.get_input_embeddings().num_embeddings
    model.tokenizer.add_tokens(list(words))
    language_model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    llava.set_trainable(model, "all")
    weight = language_model.get_input_embeddings().weight
    is_new = torch.arange(len(weight), device=weight.device)[:, None] >= known
    weight.register_hook(lambda gradient: gradient * is_new)


# %% [markdown]
# **Exercise 1: parse points.** ★★☆ 8 minutes. A language model writes what it likes. A point that is malformed, or outside, is a `ValueError` that says so, and never a guess. Spaces inside a number don't count: our tokenizer writes `6 2`.
# <details><summary>Hint</summary>
#
# `re.findall(r'<point x="([^"]*)" y="([^"]*)">', said)`, compared with `said.count("<point")`. `float` raises ValueError by itself, but takes `nan`: ask for `0 <= x <= 100`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "parse_points", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def parse_points(said, width, height):
    """Text with points in percent -> [(x, y), ...] in pixels of an image; ValueError for a bad one."""
    ### BEGIN SOLUTION
    found = re.findall(r'<point x="([^"]*)" y="([^"]*)">', said)
    if len(found) < said.count("<point"):
        raise ValueError(f"malformed point in {said!r}")
    points = [[float(value.replace(" ", "")) for value in point] for point in found]
    if not all(0 <= value <= 100 for point in points for value in point):
        raise ValueError(f"point outside the image in {said!r}: x and y are percent, 0 to 100")
    return [(x / 100 * width, y / 100 * height) for x, y in points]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "parse_points-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
parse_points = check.parse_points(parse_points)

language_model, tokenizer = load_language_model(resolve_model(profile.language_model))
vlm = VLM(vision, llava.Projector(128, 256), language_model, tokenizer)
llava.set_trainable(vlm, "all")
load_trained(vlm, resolve_model("shapes-llava"))
before = language_model.get_input_embeddings().weight.detach().clone()  # (V, D)
add_words(vlm, NEW_WORDS)
images, requests = pages.point_task("train", 1500 if full_size else 16)
turns = []
for each in requests:
    count = (short_prompt(COUNT), str(len(each[0][1])))
    turns.append([count, *((short_prompt(ask), said) for ask, _, said in each)])
steps = {"steps": 110 if full_size else 2, "batch_size": 16, "per_row": 4, "lr": 4e-3}
train_vlm(vlm, vlm.encode(pixel_values(images)), turns, **steps)
after = language_model.get_input_embeddings().weight.detach()
assert torch.equal(after[: len(before)], before) and len(after) == len(before) + len(NEW_WORDS)


# %%
def point(features, asked):
    """Points of the replies to one request an image; none where the reply can't be parsed."""
    found = []
    for reply in vlm.generate(features, [short_prompt(text) for text in asked], 44):
        try:
            found.append(parse_points(reply, 64, 64))
        except ValueError:
            found.append([])
    return found


vlm.eval()
images, requests = pages.point_task("val", 80 if full_size else 16)
features = vlm.encode(pixel_values(images))
controls = {"its image": features, "another image": features.roll(1, 0), "no image": 0 * features}
rows = [k for k, each in enumerate(requests) if len(each) > 1]
asked, truth, _ = zip(*(requests[k][1] for k in rows), strict=True)
score = {}
for name, each in controls.items():
    gap = [
        np.hypot(*np.subtract(f[0], t[0])) if f else 64
        for f, t in zip(point(each[rows], asked), truth, strict=True)
    ]
    close = np.mean(np.array(gap) < 8)
    score[name] = {"median distance (pixels)": np.median(gap), "within 8 pixels": close}
asked, truth, _ = zip(*(each[0] for each in requests), strict=True)
number, pointed = list(map(len, truth)), point(features, asked)
said = vlm.generate(features, [short_prompt(COUNT)] * len(number), 3)
counts = {
    "by a number": np.mean([a == str(b) for a, b in zip(said, number, strict=True)]),
    "by pointing": np.mean([len(a) == b for a, b in zip(pointed, number, strict=True)]),
    "always the commonest": max(map(number.count, number)) / len(number),
}
display(pd.DataFrame(score).T.round(2), pd.DataFrame({"how many shapes? right": counts}).round(2))
figure = plots.show_images(
    images[:5],
    [f"{len(t)} shapes, {len(f)} points" for t, f in zip(truth[:5], pointed[:5], strict=True)],
)
for axes, points in zip(figure.axes, pointed, strict=False):
    axes.plot(*2.25 * np.reshape(points, (-1, 2)).T, "wx", ms=9, mew=2)  # 144 pixels for 64
figure

# %% [markdown]
# RESULT OF SECTION 1.
#
# ## 2. Several images, and time
#
# To a language model, frames are images. But which came first? Qwen2-VL gives every token **three numbers**, time, row and column (M-RoPE). Text counts all three up together; an image or clip begins where the text
# ended, and the text after it goes on after the largest number so far.
#
# **Exercise 2: three numbers.** ★★☆ 8 minutes. A part is a number of text tokens, or the (frames, rows, columns) of an image or clip.
# <details><summary>Hint</summary>
#
# `torch.cartesian_prod(*map(torch.arange, part)).T` has the three rows of a clip; `.max() + 1` of what you have so far is the next start.
# </details>


# %% nbgrader={"grade": false, "grade_id": "mrope_positions", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def mrope_positions(parts):
    """Text lengths and (frames, rows, columns) in order -> (3, T): time, row and column of every token."""
    ### BEGIN SOLUTION
    found, start = [], 0
    for part in parts:
        if isinstance(part, int):
            numbers = torch.arange(part).expand(3, -1)
        else:
            numbers = torch.cartesian_prod(*map(torch.arange, part)).T
        found.append(start + numbers)
        start = int(found[-1].max()) + 1
    return torch.cat(found, dim=1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mrope_positions-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
mrope_positions = check.mrope_positions(mrope_positions)

kinds = torch.tensor([[0] * 2 + [1] * 6 + [0] * 2 + [2] * 8 + [0]])  # text, image, text, clip, text
merged = {"image_grid_thw": torch.tensor([[1, 4, 6]]), "video_grid_thw": torch.tensor([[2, 4, 4]])}
ids_of = SimpleNamespace(config=Qwen2VLConfig())
ids_of.get_vision_position_ids = lambda *a, **k: Qwen2VLModel.get_vision_position_ids(None, *a, **k)
theirs, _ = Qwen2VLModel.get_rope_index(ids_of, torch.ones_like(kinds), kinds, **merged)
mine = mrope_positions([2, (1, 2, 3), 2, (2, 2, 2), 1])  # in merged fours
assert torch.equal(mine, theirs[:, 0])
names = [{0: "text", 1: "image", 2: "clip"}[kind] for kind in kinds[0].tolist()]
pd.DataFrame(mine, index=["time", "row", "column"], columns=names)

# %% [markdown]
# (The Qwen2-VL paper goes on after the largest number. `transformers` goes on after the larger *side* of the grid: the same, as here, unless a clip has more frames than its side has merged fours.)
#
# **A clip.** Three frames; one shape goes a cell to the left in each, another to the right. Rows are rings: what leaves on one side comes in on the other, so that neither a single frame nor a set of frames without order
# tells which went left. *Which shape moved left?* Our `Encoder` reads it with `rope_2d` on three axes, and the frames of a clip see each other.
#
# **Predict first.** What will be left when the frames are shuffled? When all three are the first frame?

# %%
torch.manual_seed(0)
watcher = Encoder(num_classes=len(SHAPES))
train_encoder(
    watcher, "clips", steps=120 if full_size else 4, batch_size=32 if full_size else 8, lr=1e-2
)
clips, moved = pages.moving_clips("val", 300 if full_size else 8, rng)
orders = {
    "in order": clips,
    "backwards": clips.flip(1),
    "first frame three times": clips[:, [0] * 3],
}
orders["shuffled"] = torch.stack([clip[rng.permutation(3)] for clip in clips])
orders["blind (dark frames)"] = torch.zeros_like(clips) + 22
right = {}
for name, each in orders.items():
    with torch.no_grad():
        found = watcher.eval()([list(clip) for clip in each], clip=True)
    right[name] = [(logits.argmax(1).cpu() == moved).float().mean().item() for logits in found]
display(pd.DataFrame(right, index=["all", "merged"]).T.round(2))
plots.show_images(clips[0], [f"frame {k + 1}: the {SHAPES[moved[0]]} goes left" for k in range(3)])

# %% [markdown]
# RESULT OF SECTION 2.
#
# ## 3. At the border

# %%
frame = clips[0, 0]
for what, attempt in {
    "outside": lambda: parse_points('<point x="120" y="5">', 64, 64),
    "malformed": lambda: parse_points('<point x="12">', 64, 64),
    "no number": lambda: parse_points('<point x="left" y="5">', 64, 64),
    "zero frames": lambda: watcher([[]], clip=True),
    "a hundred frames": lambda: watcher([[frame] * 100], clip=True),
}.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}: {error}")
    else:
        raise AssertionError(f"{what}: not noticed")
far = {name: round(float(each["median distance (pixels)"]), 1) for name, each in score.items()}
print("HEADLINE: median distance of a point from its shape, in pixels:", far)
check.progress()

# %% [markdown]
# ## What you showed
#
# - SHOWED
#
# ## What this does not show
#
# - **Pointing at what was never asked.** Six shapes were pointed to in training and in the test; the images are other ones.
# - **Motion in a language model.** M-RoPE's numbers are computed here; the clips are read by an encoder with time as a third axis of RoPE.
#
# ## Check yourself
#
# - [ ] I can add a token to a trained model, and say which numbers change.
# - [ ] I know why a malformed point must be an error and not a point at (0, 0).
# - [ ] I can write the three numbers of a text, an image and a text.
#
# ## To answer in words
#
# 1. Counting by pointing shows its work. Which wrong answers can you now tell apart?
# 2. Why are the rows of the clips rings? Which control would fail without it?
#
# ## Where next
#
# [04](04_llava_projection.ipynb)'s stages with pointing as one more kind of data; or the `SmolVLM2` of [05t](05t_photographs.ipynb) on your own images.
