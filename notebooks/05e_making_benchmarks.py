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
#     outputs_of: 1ed6132f06892cdc3557ac98398a6bc74aa5922d13a64fbca76afb179f4d69cd
#     title: Making a benchmark
#     builds: POPE's and MMBench's files, captions one word apart and questions of one kind, made from known scenes
#     lesson: benchmarks
#     reads: [zoo/shapes-vlm, zoo/shapes-clip, zoo/shapes-gpt2]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05e_making_benchmarks.ipynb)

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
print(describe(profile, compute, notebook="05e_making_benchmarks"))

# %% [markdown]
# # 5e. Making a benchmark
#
# An optional companion of [05](05_evaluation.ipynb), which uses all that is written here. No training, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.4 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [05, Evaluation](05_evaluation.ipynb).
#
# ## 1. Ask under controls
#
# A benchmark is questions with right answers, and a rule that says what a wrong one is worth. Where the scenes are known, questions cost nothing, so they can be made
# *for one thing at a time*. First come the conditions under which one asks: the same questions with the image, with an **empty** one, with **another**, with its **patches in disorder** (what is there stays, where goes),
# **blind**, and of an **oracle** that reads the scene in words. A benchmark on which these agree measures nothing.

# %% tags=["save"]
import base64
import dataclasses
import io
import json
import random
import re
from collections import Counter
from itertools import permutations

import numpy as np
import torch
from PIL import Image

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import ANSWERS
from vlm_lite.data.tokenizer import plural
from vlm_lite.lessons import language, world
from vlm_lite.lessons.controls import shuffle_patches
from vlm_lite.lessons.instructions import read_boxes
from vlm_lite.lessons.mmbench import ROTATION, read_mmbench, write_mmbench


def controlled(images):
    """{condition: images (N, 3, S, S)}: the images, empty ones, each one's neighbour, and each with its patches in disorder."""
    dark = torch.tensor(world.BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand_as(images)
    others = {"blank": dark, "shuffled": images.roll(1, dims=0)}
    return {"vlm": images, **others, "patch-shuffled": shuffle_patches(images, world.CELL)}


class Asker:
    """A VLM of the Shapes world and the images of a captions table: asked with them, and under the controls.

    vlm: has `vision` and generate(features or None, prompts, max_new_tokens=...). Every row of questions needs
    "question" and "image_id"; "description" for the oracle, "answer" for `right`.
    """

    def __init__(self, vlm, captions, encode):
        """encode: vision model, uint8 images (N, 3, S, S) -> features (N, T, D); encoded.patch_features."""
        self.vlm, (self.images, self.ids) = vlm, image_tensor(captions)
        self.number = {image_id: k for k, image_id in enumerate(self.ids)}
        self.seen = controlled(self.images)
        self.features = {
            name: encode(vlm.vision, each, progress=False).float()
            for name, each in self.seen.items()
        }

    def __call__(self, rows, condition="vlm", suffix="", words=4):
        """Texts, one a row. condition: one of `seen`; "blind", no image; "oracle", the scene in words instead."""
        prompts = [language.short_prompt(row["question"] + suffix) for row in rows]
        if condition == "oracle":
            prompts = [f"{row['description']} {p}" for row, p in zip(rows, prompts, strict=True)]
        at = [self.number[row["image_id"]] for row in rows]
        prefix = self.features[condition][at] if condition in self.features else None
        return self.vlm.generate(prefix, prompts, max_new_tokens=words)

    def right(self, rows, condition="vlm"):
        """Whether each answer is the row's, exactly: float tensor (Q,)."""
        pairs = zip(self(rows, condition), rows, strict=True)
        return torch.tensor([float(said == row["answer"]) for said, row in pairs])

    def image(self, image_id):
        """The image (3, S, S) of an id."""
        return self.images[self.number[image_id]]


def of_type(rows, kind, count):
    """The first `count` rows whose question_type is `kind`."""
    return [row for row in rows if row["question_type"] == kind][:count]


# %%
import tempfile
from pathlib import Path

import pandas as pd
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data import shapes
from vlm_lite.encoded import patch_features
from vlm_lite.lessons.mmbench import mmbench_scores
from vlm_lite.models.vlm import load_vlm

pd.options.display.max_colwidth = 150
count = min(200, profile.val_images)
table, questions = shapes.load_shapes("val", count, progress=False)
ask = Asker(load_vlm("shapes-vlm"), table, patch_features)
every = questions.remove_columns("image").to_list()[:200]
right = {name: ask.right(every, name).mean().item() for name in ("blind", *ask.seen, "oracle")}
assert profile.name == "smoke" or right["vlm"] > 0.2 + max(right["blind"], right["shuffled"])
display(plots.show_images([seen[0] for seen in ask.seen.values()], list(ask.seen)))
pd.Series(right).map("{:.0%}".format).to_frame("right")

# %% [markdown]
# *Patches in disorder* cost only five points: one patch holds one whole thing, and of the seven types only *relation* asks where. So this set of questions hardly measures places; [05](05_evaluation.ipynb) shows it by type.
#
# ## 2. POPE: what is asked for when nothing is there
#
# POPE (Li et al. 2023) asks "Is there a …?" for each thing that is there and for as many that are not, so that *always yes* gets a half. Its point is **which absent things**: any
# (*random*), the most frequent of the data set (*popular*), or those that most often come together with what is there (*adversarial*). A model that answers by habit hallucinates what usually stands
# beside the things that it saw. In Shapes things come together by chance, so the three should differ less than on COCO; 05 shows how far they do.


# %% tags=["save"]
def told(captions):
    """(image_id, description, its Scene) of each row of a captions table."""
    ids, texts = captions["image_id"][:], captions["description"][:]
    return zip(ids, texts, map(read_boxes, texts), strict=True)


def as_row(image_id, description, question, answer):
    row = {"image_id": image_id, "description": description}
    return {**row, "question": question, "answer": answer}


def write_pope(path, captions, split, count, seed=0):
    """Write POPE's JSON lines about the first `count` images of a captions table, and return the questions.

    Asked is for each "colour shape" there and for as many that are absent: any ("random"), the most frequent
    ("popular"), or those that most often come together with what is there ("adversarial").
    """
    all_told = list(told(captions))
    present = [sorted({f"{i.colour} {i.shape}" for i in scene.shapes}) for *_, scene in all_told]
    frequent = Counter(kind for kinds in present for kind in kinds)
    together = Counter(pair for kinds in present for pair in permutations(kinds, 2))
    draw, lines, rows = random.Random(seed), [], []
    for (image_id, description, _), kinds in zip(all_told[:count], present, strict=False):
        rank = {
            "random": lambda kind: 0,
            "popular": lambda kind: -frequent[kind],
            "adversarial": lambda kind, kinds=kinds: -sum(together[here, kind] for here in kinds),
        }[split]
        absent = sorted(set(frequent) - set(kinds))
        draw.shuffle(absent)  # equals stand in no order
        for kind in (*kinds, *sorted(absent, key=rank)[: len(kinds)]):
            text, label = f"Is there a {kind} in the image?", "yes" if kind in kinds else "no"
            rows.append(as_row(image_id, description, text, label))
            ids = {"question_id": len(rows), "image": str(image_id)}
            lines.append(json.dumps({**ids, "text": text, "label": label}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return rows


# %%
splits = "random", "popular", "adversarial"
with tempfile.TemporaryDirectory() as folder:
    asked = {kind: write_pope(Path(folder, kind), table, kind, 60) for kind in splits}
    print(Path(folder, "popular").read_text().splitlines()[0])
absent = {
    kind: Counter(row["question"][11:-14] for row in rows if row["answer"] == "no").most_common(3)
    for kind, rows in asked.items()
}
labels = [row["answer"] for row in asked["popular"]]
assert labels.count("yes") == labels.count("no")
pd.DataFrame({kind: [f"{name}: {n}" for name, n in top] for kind, top in absent.items()})

# %% [markdown]
# The most frequent absent things of each split, and how often they are asked for: *popular* asks for the same few again and again.
#
# ## 3. MMBench: every rotation of the options
#
# A model that likes the letter A is right on a quarter of the questions with four options, and half of those with two, without an image. MMBench's **CircularEval** (Liu et al. 2023) asks each question once for each rotation of its options, and counts it only when all are right.
# Its file is a table with one row a rotation; the image stands in the first, and the others point to it by their number.


# %% tags=["save"]
def write_choices(path, rows, image_of, each=12, seed=0):
    """Write MMBench's TSV, all rotations of `each` questions a type, from VQA rows. image_of: image_id -> (3, H, W).

    Returns the sheet as the reader of MMBench's file gives it, and its rows as one asks them, with options and image_id.
    """
    draw, table = random.Random(seed), []
    for kind in sorted(ANSWERS):
        for row in of_type(rows, kind, each):
            others = [word for word in ANSWERS[kind] if word != row["answer"]]
            options = [row["answer"], *draw.sample(others, min(3, len(others)))]
            draw.shuffle(options)
            png, number = io.BytesIO(), len(table) + 1
            Image.fromarray(image_of(row["image_id"]).permute(1, 2, 0).numpy()).save(png, "png")
            for turn in range(len(options)):
                turned = dict(zip("ABCD", options[turn:] + options[:turn], strict=False))
                answer = next(letter for letter, word in turned.items() if word == row["answer"])
                image = str(number) if turn else base64.b64encode(png.getvalue()).decode()
                index = {"index": turn * ROTATION + number, "image_id": row["image_id"]}
                asked = {"question": row["question"], "options": turned, "answer": answer}
                table.append({**index, **asked, "category": kind, "image": image})
    write_mmbench(path, table)
    sheet, owner = read_mmbench(path), {row["index"]: row["image_id"] for row in table}
    asked = []
    for row in sheet:
        listed = " ".join(f"{letter}. {word}" for letter, word in row["options"].items())
        asked.append({"question": f"{row['question']} {listed}", "image_id": owner[row["index"]]})
    return sheet, asked


# %%
with tempfile.TemporaryDirectory() as folder:
    sheet, put = write_choices(Path(folder, "shapes.tsv"), every, ask.image, each=4)
always = mmbench_scores(sheet, {row["index"]: "A" for row in sheet})
assert always["circular"] == 0 < always["plain"] < 0.6
print(f"always A: VanillaEval {always['plain']:.0%}, CircularEval {always['circular']:.0%}")
first = [row for row in sheet if row["index"] % 1_000_000 == sheet[0]["index"]]
pd.DataFrame([{**row["options"], "answer": row["answer"]} for row in first])

# %% [markdown]
# ## 4. Captions one word apart, and captions that fool a metric
#
# A gallery of unrelated images is easy for retrieval: one thing gives each away. `one_word_apart` makes families of scenes that differ in **one attribute of one thing**, so in one word of the caption; whoever finds the right one has read
# that word. ([05b](05b_retrieval_and_steps.ipynb) measures it.) And `fooling_captions` writes what a caption metric should punish: the right words in no order, a true caption that leaves things out, one colour wrong.


# %% tags=["save"]
def one_word_apart(families, each, seed=0):
    """Scenes in families that differ in one attribute of one thing: (images uint8 (N, 3, S, S), N captions, N kinds).

    The captions of a family differ in one word, and the kind is that word's: shape, colour, size or value (a digit's);
    "" for the scene that a family begins with.
    """
    found, index = [], 0
    kinds = {"shape": world.SHAPES, "colour": world.COLOURS, "size": world.SIZES}
    while len(found) < families * each:
        scene = world.sample_scene(np.random.default_rng([seed, 9, index]), "val")
        index += 1
        changed = [
            (k, kind, word)
            for k, item in enumerate(scene.items)
            for kind, words in ({"value": range(10)} if item.is_digit else kinds).items()
            for word in words
            if word != getattr(item, kind)
        ]
        if len(changed) < each or len(scene.items) < 3:
            continue
        family = [(scene, "")]
        for place in np.random.default_rng([seed, index]).permutation(len(changed))[: each - 1]:
            (k, kind, word), items = changed[place], list(scene.items)
            items[k] = dataclasses.replace(items[k], **{kind: word}, glyph=-1)
            family.append((world.Scene(tuple(items)), kind))
        for one, kind in family:
            text = language.captions(one, np.random.default_rng([seed, index]))[0]
            found.append((one, text, kind))
    drawn = [world.render(one, np.random.default_rng(k)) for k, (one, *_) in enumerate(found)]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    return images, [text for _, text, _ in found], [kind for *_, kind in found]


def fooling_captions(references):
    """For N images with five captions each, N captions of each kind that says less, or something else, than the first."""
    first, colour = [five[0] for five in references], re.compile("|".join(world.COLOURS))
    words = [sorted(re.findall(r"\w+", text)) for text in first]
    swapped = [
        colour.sub(lambda m: "red" if m[0] != "red" else "blue", text, count=1) for text in first
    ]
    return {
        "true": first,
        "its words sorted": [" ".join(each) for each in words],
        "true, one object only": [re.split(", | and ", text)[0] for text in first],
        "one colour wrong": swapped,
        "of the next": first[1:] + first[:1],
    }


# %%
family, said, kinds = one_word_apart(1, 6)
display(plots.show_images(family[:5], [kind or "the first" for kind in kinds[:5]]))
print(*said[:3], sep="\n")
pd.DataFrame(
    {kind: [texts[0]] for kind, texts in fooling_captions(table["captions"][:4]).items()}
).T

# %% [markdown]
# ## 5. Questions of one kind
#
# A mean over all questions hides what a model cannot do. *Level* questions ask whether one of two things in one row is above the other (or, in one column, left of it): the answer is always no, and a model that has learnt to guess "one of the two" fails. "Are there
# more circles than squares?" needs two counts and a comparison. `reworded` puts the same question in other words: a model that changes its answer did not have one.


# %% tags=["save"]
def the(item):
    """How the questions name a thing: "the small red circle", or "the digit"."""
    return "the digit" if item.is_digit else f"the {item.size} {item.colour} {item.shape}"


def level_questions(captions, count, seed=0):
    """Rows about two things in one row or column, asked above or below, left or right: the answer is always no."""
    draw, rows = random.Random(seed), []
    for image_id, text, scene in told(captions):
        for one, other in permutations(scene.items, 2):
            for words in reversed(language.RELATIONS):
                axis = language.PAIRS[words[0]][0]
                if getattr(one, axis) == getattr(other, axis) and the(one) != the(other):
                    asked = f"is {the(one)} {draw.choice(words)} {the(other)}?"
                    rows.append(as_row(image_id, text, asked, "no"))
    return rows[:count]


def is_level(row):
    """Whether a relation question is about two things in one row (above, below) or column (left of, right of)."""
    found = re.match(r"is (.+?) (left of|right of|above|below) (.+)\?", row["question"])
    axis, items = language.PAIRS[found[2]][0], read_boxes(row["description"]).items
    one, other = (
        next(getattr(i, axis) for i in items if words <= set(the(i).split()))
        for words in (set(name.split()) - {"the", "shape"} for name in found.group(1, 3))
    )
    return one == other


def more_questions(captions, count, seed=0):
    """Rows of "are there more circles than squares?" and the same turned round: two counts and a comparison."""
    draw, rows = random.Random(seed), []
    for image_id, text, scene in told(captions):
        here = [item.shape for item in scene.shapes]
        kinds = sorted(set(here)) if len(set(here)) > 1 else world.SHAPES
        for one, other in permutations(draw.sample(kinds, 2)) if len(here) > 1 else ():
            asked = f"are there more {plural(one, 2)} than {plural(other, 2)}?"
            right = "yes" if here.count(one) > here.count(other) else "no"
            rows.append(as_row(image_id, text, asked, right))
    return rows[:count]


def reworded(rows, ends):
    """Each row once for each of `ends`, which takes the place of its question mark."""
    return [{**row, "question": row["question"].replace("?", e)} for row in rows for e in ends]


# %%
made = {"relation": of_type(every, "relation", 100), "level": level_questions(table, 100)}
made["more"] = more_questions(table, 100)
score = {kind: ask.right(rows).mean().item() for kind, rows in made.items()}
yes = {kind: sum(row["answer"] == "yes" for row in rows) / len(rows) for kind, rows in made.items()}
print(*(rows[0]["question"] for rows in made.values()), sep="\n")
print(f"HEADLINE: relations {score['relation']:.0%} right, of level things {score['level']:.0%}")
pd.DataFrame({"right": score, "answer is yes": yes}).map("{:.0%}".format)

# %% [markdown]
# Read the table beside *answer is yes*. Of *level* questions, where "no" is always right, the model gets about half. Of *more*, it gets 28%, where "no" to everything gets 78%: worse than not looking. The 90% of *relation* says nothing of either.
#
# ## What this does not show
#
# - That a benchmark with exact answers is a *good* one: it measures what it was made for. Whether that matters to anybody is another question.
# - COCO's co-occurrences, which make POPE's *adversarial* hard: [05t](05t_photographs.ipynb) asks about photographs.
# - Ambiguity. On real images people disagree about what is there; here nobody can.
