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
#     outputs_of: 4c062202dec3c2fefabeefc64087ccfa987e8f89cc90a005cd0ec5275227ca9a
#     title: What the language model reads
#     builds: scenes in words, and the exchanges about them from which a small language model learns to read
#     lesson: reading
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/00d_reading.ipynb)

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
print(describe(profile, compute, notebook="00d_reading"))

# %% [markdown]
# # 0d. What the language model reads
#
# An optional companion of [00](00_start_here.ipynb): the text that the shipped language model was trained on, and why. No training, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.8 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [00c, what is said and asked](00c_language.ipynb).
#
# ## 1. Reading before seeing
#
# A connector can only tell a frozen language model what that model can already *use*. OpenAI's GPT-2 has read the web; ours is small and has read nothing but what follows. So it must learn, from text alone, to take facts
# out of its context and answer with them: first the scene **in words**, then questions. Later the connector's vectors take the place of the words. A model that
# has read captions and questions alone, with no description before them, knows how often each answer comes and has no habit of looking it up.
#
# `describe` writes a scene exactly: every thing, its attributes and its cell. Without a generator the wording is fixed: this is what the **oracle** reads. The rows are called top, upper, lower and bottom, the columns leftmost, left, right and rightmost. With a generator it takes one of five styles, since a model that has learnt one wording
# learns positions in a string, and not to read.

# %% tags=["save"]
import re

from vlm_lite.data.tokenizer import COLUMNS, LETTERS, ROWS
from vlm_lite.lessons.language import (
    ANSWERS,
    CAPTION_PROMPT,
    PAIRS,
    captions,
    cell,
    chat_prompt,
    compare,
    name_of,
    pick,
    place,
    questions,
    references,
    short_prompt,
    thing,
    with_article,
)

STEPS = "think step by step."
REQUESTS = """describe the image.
what do you see?
describe this picture in detail.
what is in the picture?
please describe the picture in one sentence.""".split("\n")


def describe(scene, rng=None):
    """The whole scene in exact words: every thing, its attributes and its cell. This is what the oracle reads.

    Without `rng` the wording is plain and fixed; with it, one of several styles, attributes in any order.
    """
    items = list(scene.items)
    style = 0
    if rng is not None:
        items = [items[i] for i in rng.permutation(len(items))]
        style = int(rng.integers(5))
    if style == 0:
        text = " ".join(f"{thing(i)} in the {cell(i)}." for i in items)
    elif style == 1:
        text = " ".join(shape_first(i, rng) for i in items)
    elif style == 2:
        text = " ".join(f"{cell(i)}: {thing(i)}." for i in items)
    else:  # notes, with the words in any order
        notes = []
        for i in items:
            words = ["digit", str(i.value)] if i.is_digit else [i.size, i.colour, i.shape]
            words += [f"{ROWS[i.row]} row", f"{COLUMNS[i.col]} column"]
            if style != 3 or rng.random() >= 0.3:
                words = [words[k] for k in rng.permutation(len(words))]
            notes.append(" ".join(words))
        text = "; ".join(notes) + "."
    if rng is not None and rng.random() < 0.2 and len(items) > 1:
        one, other = (scene.items[i] for i in rng.permutation(len(items))[:2])
        true = [r for r in PAIRS if compare(one, other, r)]
        text += f" the {name_of(one)} is {pick(rng, true)} the {name_of(other)}."
    return text


def shape_first(item, rng):
    """ "the circle is red and small. it is in the top row, left column." """
    if item.is_digit:
        return f"the digit is {item.value}. it is in the {cell(item)}."
    first, second = ("colour", "size")[:: (1, -1)[int(rng.integers(2))]]
    words = (getattr(item, key) for key in ("shape", first, second))
    return "the {} is {} and {}. it is in the {}.".format(*words, cell(item))


# %%
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.lessons.world import any_scene, render, sample_scene

pd.options.display.max_colwidth = 100
scene = sample_scene(np.random.default_rng(23), "val")
image = torch.from_numpy(render(scene, np.random.default_rng(0))).permute(2, 0, 1)
display(plots.show_images(image[None], ["the scene below"]))
wordings = {describe(scene, np.random.default_rng(k)) for k in range(40)}
assert len(wordings) > 30
print("fixed:", describe(scene), *sorted(wordings)[::8], sep="\n")

# %% [markdown]
# Forty generators, and nearly forty texts of the same scene.
#
# ## 2. Answers in sentences, and with options
#
# A chat wants "the circle is red.", not "red"; MMBench wants a letter. Both are made from the same (question, answer, type) by rule, so a model can be asked the same thing in three forms, and its answers compared.


# %% tags=["save"]
def sentence(question, answer, kind):
    """A short answer as a sentence: ("what colour is the circle?", "red") -> "the circle is red."."""
    text = question.rstrip("?")
    if kind in ("colour", "shape", "size"):
        subject = text[text.index("the ") :].replace(" small or large", "")
        return f"{subject} is {with_article(answer) if kind == 'shape' else answer}."
    if kind == "count":
        noun = re.sub(r"^how many | are there$", "", text)
        if answer == "1":
            noun = noun.removesuffix("es" if noun == "crosses" else "s")
        be, many = "is" if answer == "1" else "are", "no" if answer == "0" else answer
        return f"there {be} {many} {noun}."
    if kind == "digit":
        return f"the digit is {answer}."
    if kind == "existence":
        what = text.removeprefix("is there ")
        return f"{answer}, there is {re.sub('^an? ', 'no ', what) if answer == 'no' else what}."
    parts = re.match(r"is (.+?) (left of|right of|above|below) (.+)$", text)
    subject, relation, other = parts.groups()
    return f"{answer}, {subject} is {'not ' if answer == 'no' else ''}{relation} {other}."


def with_options(question, answer, kind, rng):
    """A question with up to four lettered answers to choose from: (prompt, the right letter)."""
    others = [p for p in ANSWERS[kind] if p != answer]
    chosen = [answer] + [others[i] for i in rng.permutation(len(others))[:3]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, chosen, strict=False))
    return short_prompt(f"{question} {listed}"), LETTERS[chosen.index(answer)]


# %%
rng, rows = np.random.default_rng(1), {}
for question, answer, kind in questions(scene, rng):
    rows[kind] = (
        question,
        answer,
        sentence(question, answer, kind),
        *with_options(question, answer, kind, rng),
    )
pd.DataFrame(rows, ["question", "short", "in a chat", "with options", "its answer"]).T

# %% [markdown]
# ## 3. A relation is an exclusive-or
#
# "Is the star left of the heart?" needs two places, their order, and the relation's word: "left" makes *yes* of what "right" makes *no* of. So the answer is an **exclusive-or** of order and word, and a model that has learnt only the order, or only the word, has gained nothing
# yet: nothing draws it on. (The word with *one* place does help, 83% below: the leftmost thing is left of every other.) So the parts are trained as well. `part_of_relation` asks where a thing is, which of two columns comes first, and for the relation's *name* ("left or right of?"); `in_steps` writes the
# whole way down before the answer, a **chain of thought** (Wei et al. 2022), which [05b](05b_retrieval_and_steps.ipynb) measures.
#
# **Predict first:** of a model that knows both columns and not the word, how often is the best guess right?


# %% tags=["save"]
def draw_two(scene, rng):
    """Two things of a scene, a relation to ask about, and what both need: (one, other, relation, axis, word, names)."""
    one, other = (scene.items[i] for i in rng.permutation(len(scene.items))[:2])
    relation = pick(rng, tuple(PAIRS))
    return one, other, relation, *axis_of(relation)


def axis_of(relation):
    axis = PAIRS[relation][0]
    return (axis, "column", COLUMNS) if axis == "col" else (axis, "row", ROWS)


def either_way(axis, difference):
    """The words of "left or right of" or "above or below", and the one that a difference of places calls for."""
    text = "left or right of" if axis == "col" else "above or below"
    return text, text.split()[0 if difference < 0 else 2]


def in_steps(scene, rng):
    """A relation answered step by step, as a (prompt, answer) pair, or None when the scene has one thing."""
    if len(scene.items) < 2:
        return None
    one, other, relation, axis, word, names = draw_two(scene, rng)
    a, b = ("the digit" if i.is_digit else f"the {name_of(i)}" for i in (one, other))
    true = [r for r in PAIRS if PAIRS[r][0] == axis and compare(one, other, r)]
    so = f"so {a} is {true[0]} {b}." if true else f"they are in the same {word}."
    where = (f"{x} is in the {names[getattr(i, axis)]} {word}." for x, i in ((a, one), (b, other)))
    said = f"{' '.join(where)} {so} the answer is {'yes' if relation in true else 'no'}."
    return short_prompt(f"is {a} {relation} {b}? {STEPS}"), said


def part_of_relation(scene, rng):
    """A (prompt, answer) about a part of a relation: where a thing is, which place comes first, or its name."""
    kind = rng.random()
    if len(scene.items) > 1 and kind < 0.4:
        one, other, _, axis, *_ = draw_two(scene, rng)
        a, b = references(scene, one), references(scene, other)
        if a and b and getattr(one, axis) != getattr(other, axis):
            either, answer = either_way(axis, getattr(one, axis) - getattr(other, axis))
            return short_prompt(f"is {pick(rng, a)} {either} {pick(rng, b)}?"), answer
    relation = pick(rng, tuple(PAIRS))
    axis, word, names = axis_of(relation)
    item = pick(rng, scene.items)
    refs = references(scene, item)
    if refs and kind < 0.7:
        return short_prompt(f"which {word} is {pick(rng, refs)} in?"), names[getattr(item, axis)]
    one, other = (int(i) for i in rng.permutation(4)[:2])
    a, b = f"the {names[one]} {word}", f"the {names[other]} {word}"
    if rng.random() < 0.4:
        either, answer = either_way(axis, one - other)
        return short_prompt(f"is {a} {either} {b}?"), answer
    answer = "yes" if (one - other) * PAIRS[relation][1] > 0 else "no"
    return short_prompt(f"is {a} {relation} {b}?"), answer


# %%
print(*in_steps(scene, np.random.default_rng(0)), sep="\n")
parts = {part_of_relation(scene, np.random.default_rng(k)) for k in range(30)}
display(pd.DataFrame(sorted(parts)[::4], columns=["prompt", "answer"]))
cases = [
    (first, second, word, (first < second) == (word == "left of"))
    for first, second in permutations(range(4), 2)
    for word in ("left of", "right of")
]
cases = pd.DataFrame(cases, columns=["first", "second", "word", "yes"])
best = {}
for known in (["word"], ["first"], ["first", "second"], ["first", "word"], [*cases][:3]):
    sure = cases.groupby(known)["yes"].transform("mean")
    best[" and ".join(known)] = np.maximum(sure, 1 - sure).mean()
assert best["word"] == best["first"] == best["first and second"] == 0.5
pd.Series(best).map("{:.0%}".format).rename_axis("known").to_frame("best guess is right")

# %% [markdown]
# ## 4. Documents
#
# A **document** is a description and a few exchanges about it, each in one of the styles above. With a probability of 12% there is *no* description, and every question is about another scene: from these the model learns the prior, so that it answers a question
# without an image as well as can be done. That makes blind scores honest: a model that falls silent without an image would make any connector look good.


# %% tags=["save"]
def exchange(scene, rng, candidates=None):
    """One (prompt, answer) pair about a scene, in one of the styles that the course uses.

    `candidates` is the scene's `questions`, when the caller has them already.
    """
    style = rng.random()
    if style < 0.06:
        return CAPTION_PROMPT, pick(rng, captions(scene, rng))
    if style < 0.10:
        form = pick(rng, REQUESTS)
        return chat_prompt(form), captions(scene, rng)[0]
    if style < 0.15:
        item = pick(rng, scene.items)
        refs = references(scene, item)
        if refs:
            ref = pick(rng, refs)
            return chat_prompt(f"where is {ref}?"), f"{ref} is in the {place(item)}."
    if style < 0.21 and (steps := in_steps(scene, rng)):
        return steps
    if style < 0.37:
        return part_of_relation(scene, rng)
    candidates = candidates or questions(scene, rng)
    kinds = sorted({k for _, _, k in candidates})
    kind = "relation" if "relation" in kinds and rng.random() < 0.35 else pick(rng, kinds)
    question, answer, kind = pick(rng, [c for c in candidates if c[2] == kind])
    question = question.replace("colour", "color") if rng.random() < 0.2 else question
    if style < 0.45:
        return with_options(question, answer, kind, rng)
    if style < 0.53:
        return chat_prompt(question), sentence(question, answer, kind)
    if kind == "existence" and style < 0.63:
        question = question.replace("?", pick(rng, [" in the image?", " in the picture?"]))
    return short_prompt(question), answer


def document(make_scene, rng, exchanges=8, blind=0.12):
    """One text of the language model: (description or "", [(prompt, answer), ...]).

    With probability `blind` there is no description, and every question is about another scene: the prior.
    """
    if rng.random() < blind:
        return "", [exchange(make_scene(rng), rng) for _ in range(exchanges)]
    scene = make_scene(rng)
    candidates = questions(scene, rng)
    return describe(scene, rng), [exchange(scene, rng, candidates) for _ in range(exchanges)]


# %%
documents = [document(any_scene, np.random.default_rng([5, k]), 6) for k in range(400)]
text, talk = next(each for each in documents if each[0])
print(text, *(f"{prompt} {answer}" for prompt, answer in talk), sep="\n")
tokenizer = make_tokenizer()
said = [" ".join([text, *(f"{p} {a}" for p, a in talk)]) for text, talk in documents]
ids, blind = tokenizer(said, verbose=False)["input_ids"], np.mean([not d for d, _ in documents])
assert tokenizer.unk_token_id not in sum(ids, []) and 0.08 < blind < 0.16
print(
    f"HEADLINE: {len(said)} texts of {np.mean(list(map(len, ids))):.0f} tokens on average, none unknown of {len(tokenizer)}; "
    f"{blind:.0%} without a scene"
)

# %% [markdown]
# ## What this does not show
#
# - That this is how language models come to read: they read the web, and nobody plans their exercises. The recipe (which styles, how often) was found by trying, for this small model.
# - That a step-by-step answer shows what the model does inside: it is text, trained as such.
# - Reading of anything but Shapes: the vocabulary has some 300 words, and questions about a cat are outside of it.
#
# **Next:** [01, CLIP](01_clip_infonce.ipynb).
