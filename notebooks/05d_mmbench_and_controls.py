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
#     outputs_of: 5c1ff0b1de673d133459bfa872d372a0656fcd6129f204923516b8f99ada6d7f
#     title: MMBench's score, and what a score must beat
#     builds: MMBench's CircularEval with its reading of letters, and the controls that need no model
#     lesson: [mmbench, controls]
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05d_mmbench_and_controls.ipynb)

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
print(describe(profile, compute, notebook="05d_mmbench_and_controls"))

# %% [markdown]
# # 5d. MMBench's score, and what a score must beat
#
# An optional companion of [05](05_evaluation.ipynb): how a multiple-choice benchmark reads a letter out of free text, why it asks each question several times, and three controls.
# `vlm-lite eval mmbench` and `vlm-lite report` run what stands here. No exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.8 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [05, Evaluation](05_evaluation.ipynb), sections 5 and 7. ([05e](05e_making_benchmarks.ipynb) writes MMBench's file.)
#
# ## 1. Which letter did it say?
#
# A model answers "The correct answer is **B**.", or "B: a dog", or "a dog". Somebody has to make a letter of it, and every rule errs on some text. MMBench's paper (Liu et al. 2023) let ChatGPT judge what its rules could not read; today most figures come from **VLMEvalKit**, whose rules
# are below, in their order, without a judge. What they cannot read counts as wrong.
#
# **Predict first:** which letter do the rules read in "A dog is seen there, I think", with the options A. cat, B. dog, C. hippopotamus and D. grasshopper?

# %% tags=["save"]
import random
import re

import pandas

from vlm_lite.data.records import GROUPINGS as GROUPINGS
from vlm_lite.data.records import ROTATION as ROTATION
from vlm_lite.data.records import index_of, read_tsv
from vlm_lite.data.records import read_mmbench as read_mmbench
from vlm_lite.evals.answers import match, words
from vlm_lite.files import UserError, atomic_write, show

# Letters are read as VLMEvalKit does at its commit a67ace50033b1feed0e42c60749a9f5d0354c7d8.
STATED = re.compile(r"answer\s+is\s+\**([A-D])", flags=re.IGNORECASE)
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def extract_letter(prediction, options):
    """The letter that `prediction` chooses among `options` {letter: text}, or None where it is not clear.

    1. Each of .()[],:;!*#{} becomes a space; exactly one option letter, as a capital, is a word of it, and is first met
       among the last four words: that letter. (So "A" in "A dog is seen there" is no answer.) A lone Z is no answer.
    2. Else what follows the first "answer is", case apart, past white space and then asterisks, is the letter of an
       option from A to D: "The correct answer is **B**. Here is why: ...". (So "The answer is a dog, ..." may be A.)
    3. Else exactly one option's text stands somewhere in the prediction, case apart ("cat" stands in "category"), and
       the prediction is at most twice as long as all the options together: that option's letter.
    Four stock refusals are no answer at all.
    """
    if "Failed to obtain answer via API" not in prediction:
        if any(phrase in prediction for phrase in REFUSALS):
            return None
        words = prediction.translate(str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))).split()
        found = [letter for letter in options if letter in words]
        if len(found) == 1 and words.index(found[0]) > len(words) - 5:
            return found[0]
        if not found and "Z" in words:
            return None
        stated = STATED.search(prediction)
        if stated and stated[1].upper() in options:
            return stated[1].upper()
    prediction = prediction.lower()
    if len(prediction) <= 2 * sum(map(len, options.values())):
        found = [letter for letter, text in options.items() if text.lower() in prediction]
        if len(found) == 1:
            return found[0]
    return None


# %%
pandas.options.display.max_colwidth = 100
options, tried = (
    {"A": "cat", "B": "dog", "C": "hippopotamus", "D": "grasshopper"},
    """B
The correct answer is **B**. Here is why: it barks.
A dog is seen there, I think
The answer is a dog
It belongs to the category of pets
I would say A or B
It is no cat""",
)
read = {each: [extract_letter(each, options)] for each in tried.splitlines()}
assert read["A dog is seen there, I think"] == ["B"] and read["The answer is a dog"] == ["A"]
pandas.DataFrame(read, ["read as"]).T

# %% [markdown]
# The word "A" counts as a letter only near the end of the text, so the first sentence about the dog is read by its *text*. "The answer is a dog" is read as **A**, the cat. "category" holds a cat, and "It is no cat" is one. Rules of this kind favour models that
# answer in the form that the rules expect: a fair comparison asks every model for the letter alone.
#
# ## 2. CircularEval
#
# **Each question is asked once for each rotation of its options, and counts only when every row is right.** Guessing among $n$ options earns $1/n$ in VanillaEval (the first row alone) and $1/n^n$ in CircularEval, and a liking for one letter earns nothing. The rows of a question share
# the remainder of their index by a million.


# %% tags=["save"]
def group_of(index):
    """The question that row `index` is a rotation of."""
    return index % ROTATION


def mmbench_scores(rows, predictions):
    """Score `predictions` {index: free text}, one for each of `rows`, as `read_mmbench` returns them.

    circular: the part of the questions of which every row is right; a question may have fewer rows than options, and
    where its first row (index below 1,000,000) is not in the file it still counts. plain: VanillaEval, the part of the
    questions whose first row is right. rows: the part of all rows. chance_*: what guessing among the options earns.
    All in [0, 1], over all questions and, where the file has them, by split, l2-category and category (that of the
    first row). unanswered: rows from which no letter could be read. The order of rows does not matter.
    """
    table = pandas.DataFrame(sorted(rows, key=lambda row: row["index"]))
    read = [
        extract_letter(predictions[i], o)
        for i, o in zip(table["index"], table["options"], strict=True)
    ]
    table["right"], table["chance"] = table["answer"] == read, 1 / table["options"].map(len)
    table["group"] = table["index"].map(group_of)
    groups = table.groupby("group").agg(
        circular=("right", "all"), plain=("right", "first"), right=("right", "sum"),
        chance_circular=("chance", "prod"), chance_plain=("chance", "first"), rows=("right", "size"),
        **{name: (name, "first") for name in GROUPINGS},
    )  # fmt: skip

    def part(chosen):
        names = ("circular", "plain", "chance_circular", "chance_plain")
        rows = chosen["right"].sum() / chosen["rows"].sum()
        means = {name: float(chosen[name].mean()) for name in names}
        return {**means, "rows": float(rows), "questions": len(chosen)}

    result = {**part(groups), "row_count": len(rows), "unanswered": read.count(None)}
    for grouping in GROUPINGS:
        named = groups[groups[grouping] != ""].groupby(grouping)
        if len(named):
            result[f"per_{grouping}"] = {name: part(chosen) for name, chosen in named}
    return result


# %%
rng, names = random.Random(0), ["cat", "dog", "cow", "hen"]
rows = []
for number in range(1, 101):
    rng.shuffle(names)
    for turn in range(4):
        turned = dict(zip("ABCD", names[turn:] + names[:turn], strict=True))
        answer = next(letter for letter, name in turned.items() if name == "dog")
        row = {"index": turn * ROTATION + number, "options": turned, "answer": answer}
        rows.append(row | dict.fromkeys(GROUPINGS, ""))
likes = {
    "knows": [1.0, "A"],
    "knows 80%": [0.8, "A"],
    "guesses": [0.0, "ABCD"],
    "says A": [0.0, "A"],
}
table = {}
for name, (share, letters) in likes.items():
    sure = [rng.random() < share for _ in rows]
    said = [row["answer"] if s else rng.choice(letters) for row, s in zip(rows, sure, strict=True)]
    by_index = {row["index"]: letter for row, letter in zip(rows, said, strict=True)}
    table[name] = mmbench_scores(rows, by_index)
scores = pandas.DataFrame(table).loc[
    ["rows", "plain", "circular", "chance_plain", "chance_circular"]
]
assert scores["says A"]["circular"] == 0 and scores["knows 80%"]["circular"] < 0.65
scores.T.map("{:.0%}".format)

# %% [markdown]
# *Rows* is the share of all rows that are right, *plain* is VanillaEval. (*Guesses* gets 32% there by chance: a hundred questions are few.) *Knows 80%* says A where it does not know. A model that is right on about 85% of the rows has every rotation right in 55% of the questions, if its errors fall by chance. So a CircularEval figure is no share of questions that a model "knows": it also measures how steady it is.
#
# ## 3. Parts of a file, and files of answers
#
# A sample has to be one of **questions**, with all their rotations. The files of MMBench share their indices, so answers to one can be scored against another; where the answers carry their question, it is compared.


# %% tags=["save"]
def sample_groups(rows, count, seed=0):
    """The rows of `count` whole questions, all their rotations with them; the same seed chooses the same questions."""
    groups = sorted({group_of(row["index"]) for row in rows})
    if not 1 <= count <= len(groups):
        raise UserError(
            f"{count} groups were asked for; expected 1 to {len(groups)}, as the file has."
        )
    chosen = set(random.Random(seed).sample(groups, count))
    return [row for row in rows if group_of(row["index"]) in chosen]


def read_predictions(path, rows=()):
    """(index, text) of each row of a TSV with the columns `index` and `prediction`.

    rows: those of `read_mmbench`. Files of MMBench share their indices, so where the TSV has a column `question`, too, that
    of the row must stand in it; other columns are ignored.
    """
    asked, said = {row["index"]: row["question"] for row in rows}, []
    for line, cells in read_tsv(path, ("index", "prediction")):
        index = index_of(path, line, cells)
        if index in asked and words(asked[index]) not in words(cells.get("question", asked[index])):
            raise UserError(
                f"{path}, line {line}: it answers {show(cells['question'])}, but the question of index {index} is "
                f"{show(asked[index])}. Pass the answers to this very file: the files of MMBench share indices."
            )
        said.append((index, cells["prediction"]))
    return said


def match_predictions(rows, predictions, *, file, against, partial=False, known=()):
    """(rows, {index: text}, counts) with a prediction for each row; see `answers.match`. `known`: indices that are of
    the benchmark but not asked for. `partial` keeps the questions of which every rotation has its prediction.
    """
    asked = {row["index"]: row for row in rows}
    others = set(known) - set(asked)
    pairs = [pair for pair in predictions if pair[0] not in others]
    names = {"file": file, "against": against, "name": "index"}
    given, counts = match(asked, pairs, **names, partial=partial)
    cut = {group_of(index) for index in asked if index not in given}
    kept = [row for row in rows if group_of(row["index"]) not in cut]
    if not kept:
        raise UserError(
            f"{file} answers no question of {against} in all its rotations, for example not "
            f"{next(i for i in asked if i not in given)}. Ask whole groups: every index with the same "
            "remainder by 1,000,000."
        )
    return kept, given, {**counts, "scored": len(kept)}


def write_mmbench(path, rows):
    """Write rows, as `read_mmbench` returns them, as MMBench's TSV; it may have other columns, such as `prediction`."""
    table = pandas.DataFrame(rows).drop(columns=["options", "image_id"], errors="ignore")
    for place, letter in enumerate(sorted({letter for row in rows for letter in row["options"]})):
        table.insert(2 + place, letter, [row["options"].get(letter, "") for row in rows])
    with atomic_write(path, "w") as file:
        table.to_csv(file, sep="\t", index=False)


# %%
few = sample_groups(rows, 3)
print(sorted(row["index"] for row in few))
assert len(few) == 12 and few == sample_groups(rows, 3)

# %% [markdown]
# ## 4. What a score must beat
#
# Before a figure says anything about a model, it must beat what needs no model. **The prior of a type**: for each question the commonest *training* answer to its type. It reads no image and not even the question; taken from the test it would know what it is asked.

# %% tags=["save-controls"]
from collections import Counter, defaultdict

import numpy as np
import torch
from einops import rearrange


def majority_answer(answers):
    """The most frequent of `answers`; of equally frequent ones the first in the alphabet."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def type_prior(train_types, train_answers, types):
    """For each of `types` the most frequent training answer to questions of that type, or of all for a new type.

    It reads no image and not even the question. The answers must be those of *training*: a prior taken from the
    test knows what it is asked.
    """
    of_type = defaultdict(list)
    for kind, answer in zip(train_types, train_answers, strict=True):
        of_type[kind].append(answer)
    default = majority_answer(train_answers)
    return [majority_answer(of_type[kind]) if kind in of_type else default for kind in types]


# %%
from vlm_lite import plots
from vlm_lite.data import shapes
from vlm_lite.data.formats import image_tensor

images, questions = shapes.load_shapes("val", profile.val_images, progress=False)
_, seen = shapes.load_shapes("train", profile.val_images, progress=False)
kinds, answers = (questions[name][:] for name in ("question_type", "answer"))
prior = type_prior(seen["question_type"][:], seen["answer"][:], kinds)
hit = np.array([a == b for a, b in zip(prior, answers, strict=True)])
pandas.Series(hit).groupby(kinds).mean().map("{:.0%}".format).to_frame("the type's prior")

# %% [markdown]
# **Patches in disorder** keep what is in an image and lose where it is. **Complementary pairs** (Goyal et al. 2017) are the same question about two images with two answers: who does not look answers both alike, so **never has both right**.


# %% tags=["save-controls"]
def shuffle_patches(images, patch_size, seed=0):
    """uint8 images (N, 3, H, W) with the patches of each in an order of its own: what is there stays, where goes."""
    rows, columns = (side // patch_size for side in images.shape[2:])
    parts = rearrange(images, "n c (r p) (k q) -> n (r k) c p q", p=patch_size, q=patch_size)
    draw = torch.rand(parts.shape[:2], generator=torch.Generator().manual_seed(seed))
    parts = parts[torch.arange(len(parts))[:, None], draw.argsort(dim=1)]
    return rearrange(parts, "n (r k) c p q -> n c (r p) (k q)", r=rows, k=columns)


def pair_scores(scores, pairs):
    """1.0 for each pair (i, j) of which both `scores` are above a half, else 0.0: float array (P,)."""
    right = np.asarray(scores, dtype=float) > 0.5
    return right[np.array(pairs, dtype=int).reshape(-1, 2)].all(axis=1).astype(float)


# %%
pairs = shapes.find_pairs(questions["question"][:], questions["image_id"][:], answers)
both = pair_scores(hit, pairs).mean()
assert both == 0
pixels, _ = image_tensor(images)
few = torch.cat([pixels[:2], shuffle_patches(pixels[:2], 16)])
print(
    f"HEADLINE: the prior alone: {hit.mean():.0%} of the questions, {both:.0%} of {len(pairs)} complementary pairs"
)
plots.show_images(few, ["image 0", "image 1", "0 in disorder", "1 in disorder"])

# %% [markdown]
# ## What this does not show
#
# - That CircularEval is a fair price for multiple choice: it punishes unsteadiness and ignorance alike.
# - That rules read a letter as a person would. Tests compare these with VLMEvalKit's own code at one commit; it changes its rules from time to time, so a figure needs its date.
# - Controls that need the model: blind, another image, an empty one. [05](05_evaluation.ipynb) runs them.
