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
#     outputs_of: 99de3e5e0286bb2e1b8e2cdb70029bb0a97ceab26b23258ea83703fa6c6150f7
#     title: Several images, clips, and pointing
#     builds: new tokens for points, answers as coordinates on an image, and three numbers of position
#     lesson: pointing
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-llava]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/08b_places_and_time.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/08b_places_and_time.ipynb)

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
print(describe(profile, compute, notebook="08b_places_and_time"))

# %% [markdown]
# # 8b. Several images, clips, and pointing
#
# A companion to [08](08_resolution.ipynb), optional and short. Two things that current models do beside answering in words: they read several images or the frames of a
# video, and they answer *where* by coordinates. **Molmo** (Deitke et al. 2024) points, and counts by pointing; **Qwen2-VL** (Wang et al. 2024) gives every token a position of three numbers, one of them time.
#
# **You will build** M-RoPE's three numbers, new tokens with rows of their own, a parser of points, and a connector that says where each patch stands.
#
# **You will be able to show** how far a point is from what was asked, against controls; whether counting by pointing beats counting by a number; and which shape of a clip moved left, from points alone.
#
# **Reading time:** 12 minutes. Two exercises, 16 minutes if you write them; neither is needed to go on.
# <!-- figures -->
# **Run time:** about 3 min (unknown with bf16) and 1.7 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [04](04_llava_projection.ipynb), whose model learns to point here.

# %% tags=["save"]
import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.data.tokenizer import COLUMNS, ROWS, plural
from vlm_lite.embed import pixel_values
from vlm_lite.lessons.instructions import read_boxes
from vlm_lite.lessons.language import pick, references, short_prompt
from vlm_lite.lessons.llava import set_trainable
from vlm_lite.lessons.vlm import train_vlm
from vlm_lite.lessons.world import BACKGROUND, CELL, COLOURS, GRID, IMAGE_SIZE, SHAPES

# %% [markdown]
# ## 1. Three numbers for a position
#
# To a language model the frames of a video are images, one after another. Their order in the sequence is one number, and it mixes time with rows and columns. **M-RoPE** gives each token three: time, row
# and column. Text counts all three up together. An image or clip begins where the text before it ended, and the text after it goes on after the largest number so far. Each number turns its own share of a head's planes, as in 08's `rope_2d`, which takes three axes as well.
#
# **Exercise 1: three numbers.** ★★☆ 8 minutes. A part is a number of text tokens, or the (frames, rows, columns) of an image or clip; an image is a clip of one frame.
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


# %% tags=["hide"] cellView="form"
# @title Figures and checks
import pandas as pd
from IPython.display import display

from vlm_lite import places, plots
from vlm_lite.data import pages
from vlm_lite.encoded import encode_shapes
from vlm_lite.labs import check
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.clip import CLIP
from vlm_lite.models.layout import load_trained
from vlm_lite.models.text import load_language_model
from vlm_lite.profiles import resolve_model

# %% [markdown]
# **The proof**: Qwen2-VL's own function in `transformers`, on two tokens of text, an image of 2 x 3 tokens, text, a clip of two frames, text.

# %% nbgrader={"grade": true, "grade_id": "mrope_positions-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
mrope_positions = check.mrope_positions(mrope_positions)

places.same_positions(mrope_positions)

# %% [markdown]
# (The paper goes on after the largest number. `transformers` goes on after the larger *side* of the grid: the same, as here, unless a clip has more frames than the larger side of its merged grid.)
#
# ## 2. Points as words
#
# Molmo writes `<point x="61.5" y="40.4">`, in percent of the image. Other models have a token for each level of a coordinate: PaliGemma has 1,024, `<loc0000>` to `<loc1023>`. Our images have 64 pixels, and 16 levels an axis will do, 4 pixels each.
# A point is `<point> <frame0> <x3> <y5>`: time, then column and row.
#
# None of these words is in the vocabulary of the language model. Not even the verb *point* is: its tokenizer reads `<unk>`.
#
# Where is a thing really? Each stands in a cell of a 4 x 4 grid, somewhere inside it. `centre` finds the middle of what differs from the ground, to half a pixel.


# %% tags=["save"]
LEVELS, FRAMES = 16, 3  # of x and of y; of a clip
AXES = {"frame": FRAMES, "x": LEVELS, "y": LEVELS}
NEW_WORDS = ["point", "<point>", *(f"<{axis}{k}>" for axis, n in AXES.items() for k in range(n))]
STEP = IMAGE_SIZE / LEVELS  # pixels a level


def say_points(points):
    """[(frame, x, y), ...] in pixels -> "<point> <frame0> <x3> <y5> ...", or "nothing". ValueError outside."""
    for frame, x, y in points:
        if frame not in range(FRAMES) or not (0 <= x < IMAGE_SIZE and 0 <= y < IMAGE_SIZE):
            limits = f"x and y are 0 to {IMAGE_SIZE} pixels, frames 0 to {FRAMES - 1}"
            raise ValueError(f"the point ({x}, {y}) in frame {frame} lies outside: {limits}")
    said = (f"<point> <frame{t}> <x{int(x / STEP)}> <y{int(y / STEP)}>" for t, x, y in points)
    return " ".join(said) or "nothing"


def centre(image, item):
    """The middle (x, y), in pixels, of what is drawn in an item's cell of an image, uint8 (3, 64, 64)."""
    top, left = CELL * item.row, CELL * item.col
    cell = image[:, top : top + CELL, left : left + CELL].int()
    drawn = (cell - torch.tensor(BACKGROUND).view(3, 1, 1)).abs().amax(dim=0) > 60
    y, x = ((each.min() + each.max() + 1).item() / 2 for each in drawn.nonzero().T)
    return left + x, top + y


# %% [markdown]
# **Exercise 2: parse points.** ★★☆ 8 minutes. A language model writes what it likes. A point that is malformed, or outside, is a `ValueError` that says so, and never a guess. Return the middle of each level.
# <details><summary>Hint</summary>
#
# `re.findall(r"<point> ?<frame(\d+)> ?<x(\d+)> ?<y(\d+)>", text)`, compared with how often `<point`, `<frame`, `<x` and `<y` stand in the text.
# </details>


# %% nbgrader={"grade": false, "grade_id": "parse_points", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def parse_points(text):
    """What a model says -> [(frame, x, y), ...], x and y in pixels; ValueError for a bad point."""
    ### BEGIN SOLUTION
    found = re.findall(r"<point> ?<frame(\d+)> ?<x(\d+)> ?<y(\d+)>", text)
    if any(text.count(f"<{name}") != len(found) for name in ("point", *AXES)):
        raise ValueError(f"malformed point in {text!r}: expected <point> <frame0> <x3> <y5>")
    points = [tuple(map(int, each)) for each in found]
    if any(t >= FRAMES or max(x, y) >= LEVELS for t, x, y in points):
        limits = f"x and y are 0 to {LEVELS - 1}, frames 0 to {FRAMES - 1}"
        raise ValueError(f"point outside the image in {text!r}: {limits}")
    return [(t, STEP * (x + 0.5), STEP * (y + 0.5)) for t, x, y in points]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "parse_points-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
parse_points = check.parse_points(parse_points)

# %% [markdown]
# ## 3. New rows, and nothing else
#
# `shapes-llava`, 04's model after a longer training, answers in words. New tokens need rows in its embedding, which is the output layer as well (the two are *tied*). `resize_token_embeddings` adds them. Where should they start? Random rows mean nothing to the layers above. Here a level starts
# **between the words it lies between**: the language model knows `leftmost left right rightmost` and `top upper lower bottom`, and the first levels begin near the first word. All other new rows start at the mean.
#
# What learns: the new rows, LoRA and the connector. A hook sets the gradient of the old rows to zero; without weight decay AdamW then leaves them as they are, bit for bit. New rows take a learning rate five times as high.


# %% tags=["save"]
def add_words(model):
    """Give a VLM NEW_WORDS: their rows of the embedding learn, LoRA and the connector. -> the number of the first row."""
    language_model, tokenizer = model.language_model, model.tokenizer
    first, ids = len(tokenizer), tokenizer.convert_tokens_to_ids
    tokenizer.add_tokens(NEW_WORDS)
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = language_model.get_input_embeddings().weight
    with torch.no_grad():
        weight[first:] = weight[:first].mean(dim=0)
        for axis, words in {"x": COLUMNS, "y": ROWS}.items():
            known = weight[ids(list(words))].T[None]  # (1, D, 4)
            rows = ids([f"<{axis}{k}>" for k in range(LEVELS)])
            weight[rows] = F.interpolate(known, LEVELS, mode="linear")[0].T
        noise = torch.randn_like(weight[first:])
        weight[first:] += 0.3 * weight[:first].std(dim=0) * noise
    set_trainable(model, "LoRA")
    is_new = (torch.arange(len(weight)) >= first)[:, None]
    weight.requires_grad_().register_hook(lambda gradient: gradient * is_new.to(gradient.device))
    return first


def two_rates(model, lr):
    """AdamW without weight decay; for the embedding's rows at five times the learning rate."""
    learn = [each for each in model.parameters() if each.requires_grad]
    rows = model.language_model.get_input_embeddings().weight
    rest = [each for each in learn if each is not rows]
    groups = [{"params": rest}, {"params": [rows], "lr": 5 * lr}]
    return torch.optim.AdamW(groups, lr, weight_decay=0.0)


# %% [markdown]
# ## 4. Where does a patch stand?
#
# The connector of 04 maps each patch by itself. Where a patch stands has to come from CLIP's features, or from its place in the sequence. Look at the lengths of the vectors before you trust the second: beside a patch, what a position embedding adds is next to nothing.

# %%
full_size = profile.name != "smoke"  # what the text says of results holds at full size
vision = CLIP.from_pretrained(resolve_model(profile.vision_model))
train = encode_shapes(vision, "train", min(profile.train_images, 2000))
val = encode_shapes(vision, "val", min(profile.val_images, 200))


def shipped():  # 04's model after a longer training
    language_model, tokenizer = load_language_model(resolve_model(profile.language_model))
    vlm = VLM(vision, Projector(128, 256), language_model, tokenizer)
    set_trainable(vlm, "all")
    return load_trained(vlm, resolve_model("shapes-llava")).eval()


answering = shipped()
vectors = {"patch": answering.connector(val.features[:50].float())}
vectors["word"] = answering.language_model.get_input_embeddings().weight
vectors["position"] = answering.language_model.transformer.wpe.weight
lengths = {name: each.detach().norm(dim=-1).mean().item() for name, each in vectors.items()}
pd.DataFrame({"mean length": lengths}).round(1)

# %% [markdown]
# So the vectors of patches are told where they stand, **in the words in which the answer will be given**: to each patch `Placed` adds the mean of its levels' rows, and its frame's, scaled to a third of a patch's length. The rows are those of the embedding: reading a place and writing it share them, and the model has to copy.
#
# This is in the manner of SmolVLM, which writes `<row_1_col_2>` before each tile, and of M-RoPE: three numbers for each patch, here as three words.


# %% tags=["save"]
class Placed(nn.Module):
    """A connector, and beside each patch the rows of the words that say where it stands: features (B, F N, Dv) -> (B, F N, D)."""

    def __init__(self, connector, embedding, first, share=1 / 3):
        super().__init__()
        self.connector, self.first, self.share = connector, first, share
        self.embedding = [embedding]  # in a list: it is the language model's, not a part of this
        words, per = torch.zeros(FRAMES, GRID, GRID, len(NEW_WORDS)), LEVELS // GRID
        for t in range(FRAMES):
            words[t, :, :, NEW_WORDS.index(f"<frame{t}>")] = 1
        for k in range(LEVELS):
            words[:, :, k // per, NEW_WORDS.index(f"<x{k}>")] = 1 / per
            words[:, k // per, :, NEW_WORDS.index(f"<y{k}>")] = 1 / per
        self.register_buffer("words", words.flatten(0, 2))  # (FRAMES N, new words)

    def forward(self, features):
        frames, rest = divmod(features.shape[1], GRID**2)
        if not 1 <= frames <= FRAMES or rest:
            given = f"{features.shape[1]} patches are {frames} frames of {GRID**2}, and {rest} more"
            raise ValueError(f"{given}; give 1 to {FRAMES} whole frames")
        x, rows = self.connector(features), self.embedding[0].weight[self.first :]
        place = self.words[: features.shape[1]] @ rows  # (F N, D)
        lengths = [each.detach().norm(dim=-1).mean() for each in (x, place)]
        return x + self.share * lengths[0] / lengths[1] * place


# %% [markdown]
# ## 5. To point
#
# Three kinds of request, drawn at random for each image: a thing with a unique name (*point to the red circle*), a kind of thing (*point to the red shapes*: every one, in reading order; *nothing* where there is none), and *how many red shapes are there?*, to be answered by a number. So
# both ways of counting are trained, pointing by more requests.


# %% tags=["save"]
def requests(image, description, rng):
    """{kind: [(prompt, answer, points), ...]} about an image: of "one" thing, of "each" of a kind, by a "number"."""
    scene = read_boxes(description)
    items = sorted(scene.items, key=lambda item: (item.row, item.col))  # in reading order
    at = {item: (0, *centre(image, item)) for item in items}
    one = [(name, [at[item]]) for item in items for name in references(scene, item)]
    found = {"one": [(f"point to {name}.", say_points(p), p) for name, p in one]}
    found |= {"each": [], "number": []}
    for key, words in {"colour": tuple(COLOURS), "shape": SHAPES}.items():
        here = {getattr(item, key) for item in scene.shapes}
        for word in sorted({*here, pick(rng, words)}):
            noun = plural(word, 2) if key == "shape" else f"{word} shapes"
            points = [at[item] for item in items if word == getattr(item, key)]
            found["each"].append((f"point to the {noun}.", say_points(points), points))
            found["number"].append((f"how many {noun} are there?", str(len(points)), points))
    return {kind: [(short_prompt(ask), *rest) for ask, *rest in v] for kind, v in found.items()}


def train_pointing(model, data, *, steps, share=1 / 3, seed=0, batch_size=16, lr=2e-3):
    """Teach a trained VLM to point on an EncodedDataset -> History. share: of the places in a patch's vector."""
    torch.manual_seed(seed)
    first, rng = add_words(model), np.random.default_rng(seed)
    embedding = model.language_model.get_input_embeddings()
    model.connector = Placed(model.connector, embedding, first, share)
    turns = []
    for image, text in zip(data.images, data.descriptions, strict=True):
        kinds = requests(image, text, rng)
        turns.append([row[:2] for row in kinds["one"] + kinds["each"] + kinds["number"][::2]])
    sizes = {"steps": steps, "batch_size": batch_size, "lr": lr, "per_row": 4, "seed": seed}
    return train_vlm(model, data.features, turns, make_optimizer=two_rates, **sizes)


# %%
steps = 120 if full_size else 2
before = answering.language_model.get_input_embeddings().weight.detach().clone()
models, curves = {"with places": shipped(), "without": shipped()}, {}
for (name, model), share in zip(models.items(), (1 / 3, 0), strict=True):
    curves[name] = train_pointing(model, train, steps=steps, share=share).losses
    model.eval()
    after = model.language_model.get_input_embeddings().weight.detach()
    check.same_values(f"{len(NEW_WORDS)} new rows; old ", after[: -len(NEW_WORDS)], before, 0)
plots.losses(curves, "learning to point", every=10)

# %% [markdown]
# **Predict first.** A point is *right* within 8 pixels, half a cell, of the middle of its thing. How many are right, of held-out images? How many with another image (*shuffled*), or with none (*blind*)? Would the model without places do better than shuffled?


# %% tags=["save"]
def ask_points(model, features, prompts):
    """The points of B answers; none where an answer is malformed."""
    found = []
    for text in model.generate(features, prompts, max_new_tokens=22):
        try:
            found.append(parse_points(text))
        except ValueError:
            found.append([])
    return found


def gaps(found, truth):
    """Pixels from the first point of each answer to the first of the truth: array (B,), infinite where there is none."""
    pairs = zip(found, truth, strict=True)
    return np.array([np.hypot(*np.subtract(f[0], t[0])[1:]) if f else np.inf for f, t in pairs])


def all_right(found, truth, limit=8):
    """1.0 where an answer has as many points as the truth and each within `limit` pixels of its own, else 0.0."""
    right = []
    for f, t in zip(found, truth, strict=True):
        near = all(gaps([[a]], [[b]])[0] < limit for a, b in zip(f, t, strict=False))
        right.append(float(len(f) == len(t) and near))
    return np.array(right)


# %% tags=["thumbnail"]
rng = np.random.default_rng(0)
asked = [requests(i, text, rng) for i, text in zip(val.images, val.descriptions, strict=True)]
rows = [(k, *pick(rng, each["one"])) for k, each in enumerate(asked) if each["one"]]
numbers, prompts, _, truth = map(list, zip(*rows, strict=True))
own = val.features[numbers].float()
pointing = models["with places"]
views = {"with places": (pointing, own), "shuffled": (pointing, own.roll(1, 0))}
views |= {"blind": (pointing, None), "without places": (models["without"], own)}
found = {name: ask_points(model, x, prompts) for name, (model, x) in views.items()}
far = {name: gaps(points, truth) for name, points in found.items()}
points = pd.DataFrame(
    {
        name: {
            "within 8 pixels": (each < 8).mean(),
            "median distance (pixels)": np.median(each),
            "gives a point": np.isfinite(each).mean(),
        }
        for name, each in far.items()
    }
).T
display(points.round(2))
captions = [f"{prompts[k][10:-8]} off by {far['with places'][k]:.0f} pixels" for k in range(5)]
places.marked(val.images[numbers[:5]], captions, found["with places"], truth)

# %% [markdown]
# The circle is the thing that was asked for, the cross the model's answer. **Read the table:** with places, most points are right and lie within a few pixels; part of what is left is the width of a level. With another image the model points somewhere else, where that image has such a thing, or guesses, or (one in four) gives none; without any image it gives none or points at random.
#
# *Without places* is the same training with `share=0`. Its points are far better than shuffled ones by distance and still mostly wrong: the captions that taught this connector speak of quarters of an image, not of cells. The rows are there, LoRA is there; what each patch's vector lacks, it seems, is its cell in a form that so few steps can use.
#
# ## 6. Counting by pointing
#
# Molmo counts by pointing at each thing and counting its points: the answer shows its work. Is it more often right than a number?
#
# **Predict first.** The same images, the same kinds of thing: by pointing, or by a number?

# %%
each = [(k, int(rng.integers(len(found["each"]))), found) for k, found in enumerate(asked)]
features = val.features[[k for k, *_ in each]].float()
prompts = {kind: [found[kind][j][0] for _, j, found in each] for kind in ("each", "number")}
truth = [found["each"][j][2] for _, j, found in each]
number = np.array([str(len(points)) for points in truth])
table, pointed = {}, {}
for view, x in {"own": features, "shuffled": features.roll(1, 0), "blind": None}.items():
    pointed[view] = ask_points(pointing, x, prompts["each"])
    said = {"by pointing": [str(len(p)) for p in pointed[view]]}
    said["by a number"] = pointing.generate(x, prompts["number"], 3)
    said["by a number, before this training"] = answering.generate(x, prompts["number"], 3)
    table[view] = {name: np.mean(np.array(answers) == number) for name, answers in said.items()}
    table[view]["by pointing, and each point right"] = all_right(pointed[view], truth).mean()
counts = pd.DataFrame(table)
counts["commonest number"] = pd.Series(number).value_counts(normalize=True).iloc[0]
display(counts.round(2))
shown = [k for k, right in enumerate(all_right(pointed["own"], truth)) if not right][:5]
said, right = ([each[k] for k in shown] for each in (pointed["own"], truth))
captions = [f"{prompts['each'][k][10:-8]} {number[k]} there" for k in shown]
places.marked(val.images[[each[k][0] for k in shown]], captions, said, right)

# %% [markdown]
# **Pointing is not more accurate here**: in the run saved here a number is right more often, and so it was before this training. Molmo points in photographs with many things; here are four at most. What pointing adds is the last row: answers that can be *checked*, each point on its thing. A wrong number says nothing of what was missed, and such images do: a thing that wasn't found, one found twice, or one that isn't there.
#
# The commonest number alone is right about half of the time: hold every figure of this table against it.
#
# ## 7. A clip: which shape moved left?
#
# Three frames of 64 x 64. One shape goes a cell to the left in each, another a cell to the right. The rows are rings: what leaves on one side comes in on the other, so neither one frame nor a set of frames without order tells which went left.
#
# The model of this page was trained on single images and has never seen a clip. It is asked about **each frame as an image**, *point to the star.*, and each point gets the frame's number as its time. The question names two shapes, *did the star or the heart go left?*, and the answer is arithmetic: whose $x$ fell by a cell in each frame? Where neither did, there is no answer. Guessing between the two is right half of the time.
#
# **Predict first.** With the frames in random order, how often is the answer right? Backwards? With the first frame three times?


# %% tags=["save"]
@torch.no_grad()
def follow(model, clips, pairs):
    """Point to two shapes in each frame of clips, uint8 (B, F, 3, 64, 64); pairs (B, 2): their numbers in SHAPES.

    -> x in pixels (B, F, 2), NaN where there is no point.
    """
    if not 1 <= clips.shape[1] <= FRAMES:
        raise ValueError(f"a clip of {clips.shape[1]} frames; give 1 to {FRAMES} of them")
    features, found = model.encode(pixel_values(clips.flatten(0, 1))), []
    for own in pairs.T:
        names = [SHAPES[k] for k in own.repeat_interleave(clips.shape[1])]
        points = ask_points(model, features, [short_prompt(f"point to the {n}.") for n in names])
        found.append([each[0][1] if each else np.nan for each in points])
    return torch.tensor(found).T.unflatten(0, clips.shape[:2])


def went_left(x):
    """x (B, F, shapes) on rings -> which of them went a cell to the left in each frame (B,), or -1 for none."""
    steps = (x.diff(dim=1) + IMAGE_SIZE / 2) % IMAGE_SIZE - IMAGE_SIZE / 2  # the shorter way round
    gap = (steps + CELL).abs().nan_to_num(8.0).mean(dim=1)  # a step not seen: 8 pixels
    return torch.where(gap.amin(dim=1) <= 6, gap.argmin(dim=1), -1)


# %%
clips, moved, others = pages.moving_clips("val", 60 if full_size else 6, rng, others=True)
pairs = torch.stack([moved, others], dim=1).sort(dim=1).values  # the order tells nothing
ground = torch.tensor(BACKGROUND, dtype=torch.uint8).view(3, 1, 1)
orders = {"in order": clips, "shuffled frames": torch.stack([c[rng.permutation(3)] for c in clips])}
orders |= {"backwards": clips.flip(1), "first frame three times": clips[:, [0, 0, 0]]}
orders |= {"another clip": clips.roll(1, 0), "blind (empty frames)": ground.expand_as(clips)}
names = F.pad(pairs, (0, 1), value=-1)  # went_left's -1 is the last
answers = {k: went_left(follow(pointing, each, pairs)) for k, each in orders.items()}
named = {k: names[torch.arange(len(clips)), each] for k, each in answers.items()}
table = {
    what: {name: (each == right).float().mean().item() for name, each in named.items()}
    for what, right in {"right": moved, "the other shape": others, "no answer": -1}.items()
}
motion = pd.DataFrame(table)
display(motion.round(2))
places.tracks(clips[0], follow(pointing, clips[:1], pairs[:1])[0], [SHAPES[k] for k in pairs[0]])

# %% [markdown]
# **In order**, most of the 60 clips are answered rightly, by a model that has never seen one. **Backwards**, it names the other shape: the answer comes from the order of the frames and from nothing else. **Shuffled**, about one clip in four is right, and somewhat fewer answers name the other shape: one order of six is the right one, one is its reverse, and the other four leave no shape that goes a cell to the left twice. **Another clip's** frames give either shape about equally often. One frame three times, or empty frames, give no answer at all, where a model that must answer would guess.
#
# The lines in the figure are the points' $x$, one for each of the two shapes. They are the evidence for an answer, which *the star* alone doesn't give. Where the two lines fall together and the shapes don't stand in one column, the model has taken one for the other.
#
# ## 8. At the border
#
# Input that can't be read must raise an error where it comes in, with a sentence that helps.

# %%
for what, attempt in {
    "zero frames": lambda: follow(pointing, clips[:, :0], pairs),
    "a hundred frames": lambda: follow(pointing, clips[:1, [0] * 100], pairs),
    "half an image": lambda: pointing.connector(val.features[:1, :8].float()),
    "a point to write, outside": lambda: say_points([(0, 70, 10)]),
    "a point to read, outside": lambda: parse_points("<point> <frame0> <x16> <y3>"),
    "malformed": lambda: parse_points("<point> <frame0> <x3>"),
    "the second malformed": lambda: parse_points("<point> <frame0> <x3> <y5> <point> <y2>"),
}.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}: {error}")
    else:
        raise AssertionError(f"{what}: not noticed")
right = points["within 8 pixels"]
assert not full_size or right["with places"] > 0.8 > 0.3 > right.drop("with places").max()
print("HEADLINE: right within 8 pixels:", right.round(2).to_dict())
check.progress()

# %% [markdown]
# ## What you showed
#
# - M-RoPE's three numbers are those of Qwen2-VL in `transformers`.
# - New tokens take new rows, and every old row stays as it was, bit for bit.
# - A VLM that answers in words learns to point in 120 steps once each patch says where it stands; without that it hardly does, with the same rows and LoRA.
# - Points can be parsed, scored by distance and refused where they are bad.
#
# ## What this does not show
#
# - **Time inside the model.** M-RoPE's numbers are computed here and not trained with; the frames of a clip are read one by one, and the frame's number is the program's. Three frames in one sequence, with the words of their frames on the patches (`Placed` can do it), is left to try.
# - **Pointing where it is hard.** Things stand in cells here, four at most, on a dark ground, and each cell is one patch.
# - **What a shape that isn't there does.** Asked for one, the model often points at something else. So the clips' question names two shapes that are there.
# - **More than one seed.** Train with another `seed` before you rest anything on a difference.
#
# ## Check yourself
#
# - [ ] I can write the three numbers of a text, an image and a text.
# - [ ] I can add a token to a trained model, and say which numbers change.
# - [ ] I know why a malformed point must be an error, and not a point at (0, 0).
#
# ## To answer in words
#
# 1. Counting by pointing shows its work. Which wrong answers can you now tell apart?
# 2. Why are the rows of the clips rings? Which control would fail without it?
#
# ## Where next
#
# Give `train_pointing` rows of three images side by side, `features[[a, b, c]].flatten(0, 1)`, with the frame's number in the points, and measure how often the frame is right. [09](09_modern_vlm.ipynb) builds a VLM as they are built today.
