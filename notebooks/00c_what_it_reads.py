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
#     title: What the language model reads
#     builds: the texts that the shipped language model was trained on, and a look at what it learnt from them
#     lesson: reading
#     reads: [zoo/shapes-vlm, zoo/shapes-clip, zoo/shapes-gpt2]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/00c_what_it_reads.ipynb)

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
print(describe(profile, compute, notebook="00c_what_it_reads"))

# %% [markdown]
# # 0c. What the language model reads
#
# An optional companion of [00](00_start_here.ipynb): how the text is made that `shapes-gpt2`, a GPT-2 architecture of 3.3M parameters, was trained on. No training here, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.1 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [00b, the Shapes world](00b_shapes_world.ipynb), which draws the scenes.
#
# ## 1. A relation is an exclusive-or
#
# A VLM can only answer what its language model could answer if it *read* the scene. So before any image, the language model reads scenes in words, with questions and answers. One type resisted: "is the star left of the ring?" has the answer *yes* or *no*, and
# **neither thing's place alone says anything about it**. Where no part of a question carries a part of the answer, a small model stays at chance for long. What helps is to teach the parts by name: in which column a thing is, which of two columns comes first, and then
# "left or right of?", whose answer is a word. Larger models do the same by **writing the steps down** before the answer.

# %% tags=["save"]
from vlm_lite.data.language import (
    ANSWERS,
    CAPTION_PROMPT,
    PAIRS,
    STEPS,
    captions,
    chat_prompt,
    compare,
    describe,
    name_of,
    pick,
    place,
    questions,
    references,
    sentence,
    short_prompt,
)
from vlm_lite.data.tokenizer import COLUMNS, LETTERS, ROWS

REQUESTS = """describe the image.
what do you see?
describe this picture in detail.
what is in the picture?
please describe the picture in one sentence.""".split("\n")


def two_things(scene, rng):
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


def steps(scene, rng):
    """A relation answered step by step, as a (prompt, answer) pair, or None when the scene has one thing."""
    if len(scene.items) < 2:
        return None
    one, other, relation, axis, word, names = two_things(scene, rng)
    a, b = ("the digit" if i.is_digit else f"the {name_of(i)}" for i in (one, other))
    true = [r for r in PAIRS if PAIRS[r][0] == axis and compare(one, other, r)]
    so = f"so {a} is {true[0]} {b}." if true else f"they are in the same {word}."
    where = (f"{x} is in the {names[getattr(i, axis)]} {word}." for x, i in ((a, one), (b, other)))
    answer = "yes" if relation in true else "no"
    return (
        short_prompt(f"is {a} {relation} {b}? {STEPS}"),
        f"{' '.join(where)} {so} the answer is {answer}.",
    )


def single_steps(scene, rng):
    """The steps that a relation is made of: where a thing is, which of two places comes first, and for two things.

    A relation asked for with yes or no is an exclusive-or: no part of it alone says anything about the answer. A small
    model stays at chance for long unless it first learns to *name* the relation ("left or right of?").
    """
    kind = rng.random()
    if len(scene.items) > 1 and kind < 0.4:
        one, other, _, axis, *_ = two_things(scene, rng)
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
    if rng.random() < 0.4:
        either, answer = either_way(axis, one - other)
        return short_prompt(
            f"is the {names[one]} {word} {either} the {names[other]} {word}?"
        ), answer
    question = f"is the {names[one]} {word} {relation} the {names[other]} {word}?"
    return short_prompt(question), "yes" if (one - other) * PAIRS[relation][1] > 0 else "no"


# %%
import numpy as np
import pandas as pd

from vlm_lite.lessons.scenes import any_scene, sample_scene

scene = sample_scene(np.random.default_rng(2))
print(describe(scene))
shown = [single_steps(scene, np.random.default_rng(k)) for k in range(5)]
pd.DataFrame([*shown, steps(scene, np.random.default_rng(1))], columns=["prompt", "answer"])

# %% [markdown]
# ## 2. All styles of a turn
#
# A model answers in the forms that it has read: a caption, a sentence, a single word, a letter among options, steps. Each style has a share, and each question type as well; *relation* gets more, since it is hard. Two spellings of *colour* are read, so that both can be asked.


# %% tags=["save"]
def with_options(question, answer, kind, rng):
    others = [p for p in ANSWERS[kind] if p != answer]
    chosen = [answer] + [others[i] for i in rng.permutation(len(others))[:3]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, chosen, strict=False))
    return short_prompt(f"{question} {listed}"), LETTERS[chosen.index(answer)]


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
    if style < 0.21 and (worked := steps(scene, rng)):
        return worked
    if style < 0.37:
        return single_steps(scene, rng)
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
rng = np.random.default_rng(0)
turns = sum((document(any_scene, rng)[1] for _ in range(500)), [])
frame = pd.DataFrame(turns, columns=["prompt", "answer"])
frame["style"] = np.select(
    [
        frame.prompt == CAPTION_PROMPT,
        frame.prompt.str.contains(STEPS),
        frame.answer.isin(list(LETTERS)),
        frame.prompt.str.startswith("<user>"),
        frame.prompt.str.contains(
            "(?:left or right|above or below) of?|^question: (?:which|is the .* (?:row|column))"
        ),
    ],
    ["caption", "steps", "letter", "chat", "single steps"],
    "short answer",
)
styles = frame["style"].value_counts(normalize=True)
assert 0.03 < styles["caption"] < 0.1
words = frame.answer.str.split().str.len().groupby(frame["style"]).mean()
pd.DataFrame({"share": styles.map("{:.0%}".format), "words an answer": words.round(1)})

# %% [markdown]
# ## 3. The prior, on purpose
#
# One document in eight has **no description**: its questions are about scenes that the model never reads. There it can only learn how answers are distributed, which is what a *blind* VLM falls back on. Without it, the blind control would ask the model for something that it has never done,
# and its score would say nothing.
#
# **Predict first:** how many of 100 questions does it answer with the scene in words, and how many without?

# %%
from vlm_lite.models.vlm import load_vlm

vlm, asked = load_vlm("shapes-vlm"), []
for k in range(100):
    scene = sample_scene(np.random.default_rng([7, k]), "val")
    found = questions(scene, np.random.default_rng(k))
    asked.append((describe(scene), *pick(np.random.default_rng(k), found)))
right = pd.DataFrame({"type": [row[3] for row in asked]})
for name, before in {"reads the scene": "{} ", "blind": ""}.items():
    prompts = [before.format(row[0]) + short_prompt(row[1]) for row in asked]
    said = vlm.generate(None, prompts, 4)
    right[name] = [answer == row[2] for answer, row in zip(said, asked, strict=True)]
reads, blind = right["reads the scene"].mean(), right["blind"].mean()
assert profile.name == "smoke" or reads > 0.8 > 0.6 > blind
print(
    f"HEADLINE: the language model alone: {reads:.0%} with the scene in words, {blind:.0%} without"
)
right.groupby("type").mean(numeric_only=True).map("{:.0%}".format)

# %% [markdown]
# ## What this does not show
#
# - That a language model of the world would need such care: SmolLM2 in [10](10_photographs.ipynb) has read the web. This one has read nothing else.
# - What each style is worth. The mix was found by trying, and no table of it was recorded.
