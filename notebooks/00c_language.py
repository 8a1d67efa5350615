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
#     outputs_of: 606882772ed5318e06573539a776164c4ab65c8cf593391d8b7cc22bf8292f98
#     title: What is said and asked
#     builds: captions and questions of a scene in many ways, with unique names and balanced answers
#     lesson: language
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/00c_language.ipynb)

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
print(describe(profile, compute, notebook="00c_language"))

# %% [markdown]
# # 0c. What is said and asked
#
# An optional companion of [00](00_start_here.ipynb): the captions, questions and answers of Shapes, and why they are balanced. No training, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [00b, a world with exact truth](00b_world.ipynb).
#
# ## 1. Names
#
# A text about an image has to *name* things, and a name is right only where it fits one thing. "The circle" is fine in a scene with one circle, and in a scene with two it is a question without an answer.
# Data sets of photographs hold many of those, and people answer them all the same. Linguists call a phrase that picks out one thing among others a **referring expression** (ReferItGame: Kazemzadeh et al. 2014; RefCOCO: Yu et al. 2016).
#
# `references` lists every phrase that names one thing and nothing else in its scene. `hidden` takes an attribute away: a question about the colour must not say it.

# %% tags=["save"]
from itertools import permutations

from vlm_lite.data.tokenizer import COLUMNS, ROWS, plural
from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES

REFERENCES = "shape, colour, colour shape, size shape, size colour, size colour shape"


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def with_article(phrase):
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def name_of(item, without=""):
    """An item's attributes as words: "small red circle"; `without` is a word to leave out."""
    if item.is_digit:
        return f"handwritten {item.value}"
    return " ".join(word for word in (item.size, item.colour, item.shape) if word != without)


def thing(item, without=""):
    """An item with its article: "a small red circle"."""
    return with_article(name_of(item, without))


def place(item):
    """The quarter of the image an item is in: "top left", "bottom right", ..."""
    return ("top" if item.row < 2 else "bottom") + (" left" if item.col < 2 else " right")


def cell(item):
    """The exact grid cell of an item in words: "top row, right column"."""
    return f"{ROWS[item.row]} row, {COLUMNS[item.col]} column"


def references(scene, item, hidden=()):
    """Every phrase that names `item` and nothing else in the scene, not using the attributes in `hidden`."""
    if item.is_digit:
        return [] if "value" in hidden else ["the digit"]
    phrases = []
    for keys in map(str.split, REFERENCES.split(",")):
        words = [getattr(item, k) for k in keys]
        same = [o for o in scene.shapes if [getattr(o, k) for k in keys] == words]
        if len(same) == 1 and not set(keys) & set(hidden):
            phrases.append("the " + " ".join(words if "shape" in keys else [*words, "shape"]))
    return phrases


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vlm_lite import plots
from vlm_lite.lessons.world import Item, Scene, render, sample_scene

pd.options.display.max_colwidth = 100
scene = Scene(
    (
        Item("circle", "red", "large", row=0, col=0),
        Item("circle", "red", "small", row=1, col=3),
        Item("star", "blue", "small", row=3, col=1),
    )
)
image = torch.from_numpy(render(scene, np.random.default_rng(0))).permute(2, 0, 1)
display(plots.show_images(image[None], ["two red circles"]))
named = {name_of(each): references(scene, each) for each in scene.items}
assert not any("the circle" in phrases or "the red circle" in phrases for phrases in named.values())
pd.DataFrame({name: pd.Series(phrases) for name, phrases in named.items()}).fillna("")

# %% [markdown]
# How often is a name unique? **Predict first:** in a scene with four things, how often does its shape alone name a thing?

# %%
N = 2000
rngs = [np.random.default_rng([0, 1, k]) for k in range(N)]
scenes = [sample_scene(rng, "val") for rng in rngs]
rows = [
    (len(each.items), name, f"the {' '.join(words)}" in references(each, item))
    for each in scenes
    for item in each.shapes
    for name, words in {
        "the [shape]": [item.shape],
        "the [colour] [shape]": [item.colour, item.shape],
        "the [size] [colour] [shape]": [item.size, item.colour, item.shape],
    }.items()
]
unique = pd.DataFrame(rows, columns=["things", "name", "unique"])
unique = unique.groupby(["name", "things"])["unique"].mean().unstack()
assert (unique.loc["the [size] [colour] [shape]"] == 1).all() and unique.loc["the [shape]", 4] < 0.7
unique.map("{:.0%}".format)

# %% [markdown]
# No two things of a scene share size, colour *and* shape (00b's sampling sees to it), so the full name always works. The short ones work less often the fuller the scene is, and are asked only where they do.
#
# ## 2. Five captions, by five people
#
# COCO has five captions an image, because there is no *right* one: people name other things, in another order, and leave things out. A model trained on a single wording learns the wording.
# So here: the first caption says everything but the exact cells; the second says it in another order and frame; the third goes by places; the fourth leaves the places out, and sometimes the sizes; the last
# says how two things lie to each other.


# %% tags=["save"]
CAPTION_PROMPT = "caption:"
RELATIONS = (("left of", "right of"), ("above", "below"))
PAIRS = {"left of": ("col", -1), "right of": ("col", 1), "above": ("row", -1), "below": ("row", 1)}


def compare(one, other, relation):
    """Whether `one` is "left of" (right of, above, below) `other`; in the same column, neither left nor right."""
    axis, sign = PAIRS[relation]
    return (getattr(one, axis) - getattr(other, axis)) * sign > 0


def captions(scene, rng):
    """Five captions of a scene, as five people might write them. The first tells everything but the exact cells."""
    items = [scene.items[i] for i in rng.permutation(len(scene.items))]
    full = [f"{thing(i)} in the {place(i)}" for i in items]
    corners = {place(i): [thing(o) for o in items if place(o) == place(i)] for i in items[::-1]}
    by_place = [
        f"in the {p} there {'is' if len(n) == 1 else 'are'} {join(n)}" for p, n in corners.items()
    ]
    plain = [thing(i) for i in items]
    less = [thing(i, i.size) for i in items]
    if len(items) == 1:
        alone = f"a single {name_of(items[0])} on a dark background."
        last = pick(rng, [f"there is only {plain[0]}.", alone])
    else:
        relation = pick(rng, [r for r in PAIRS if compare(*items[:2], r)])
        rest = f", with {join(plain[2:])}" if plain[2:] else ""
        last = f"{plain[0]} {relation} {plain[1]}{rest}."
    second = pick(rng, ["there is ", "this picture shows ", "i see "])
    second += join([full[k] for k in rng.permutation(len(full))])
    fourth = pick(rng, ["a picture of ", "", "this is "])
    fourth += join(plain if rng.random() < 0.7 else less)
    return [join(full) + ".", second + ".", ", ".join(by_place) + ".", fourth + ".", last]


# %%
five = [captions(each, np.random.default_rng(k)) for k, each in enumerate(scenes)]
print(*captions(scene, np.random.default_rng(0)), sep="\n")
told = pd.DataFrame(index=pd.Index(range(1, 6), name="caption"))
told["different"] = [len({texts[k] for texts in five}) / N for k in range(5)]
told["words"] = [np.mean([len(texts[k].split()) for texts in five]) for k in range(5)]
told["sizes said"] = [
    np.mean(
        [all(i.size in texts[k] for i in s.shapes) for s, texts in zip(scenes, five, strict=True)]
    )
    for k in range(5)
]
assert told["sizes said"][1] == 1 > told["sizes said"][4]
told.round(2)

# %% [markdown]
# (*Different*: the share of the 2,000 texts that are distinct; *sizes said*: the share that say every size.) The captions are templates, so they vary in what they say more than in how. What this costs shows in 01: two images whose captions hold the same words cannot be told apart by them, and retrieval has a ceiling that can be computed.
#
# ## 3. Questions of seven types
#
# A score over all questions hides what a model can do: yes or no is half right by chance, a colour one time in eight. So every question has a **type**, and every table of this course goes by type.
#
# - *colour, shape, size*: of a thing named without that attribute. They ask for **binding**: which colour belongs to which thing.
# - *count*: all shapes, or those of one kind, which may be zero.
# - *existence*: "is there a red star?". Some of the *no* questions change one attribute of a thing that is there, so that each word may fit something in the image.
# - *relation*: between two things with unique names. Things in the same row or column are asked about now and then: *no*, both ways.
# - *digit*: to read the handwriting.


# %% tags=["save"]
def questions(scene, rng):
    """Candidate questions about a scene: a list of (question, answer, type), several of each type it allows."""
    found, shapes = [], scene.shapes
    for item in shapes:
        for ref in references(scene, item, hidden=("colour",)):
            found.append((f"what colour is {ref}?", item.colour, "colour"))
        for key, forms in (
            ("shape", ("what is {}?", "what kind of shape is {}?")),
            ("size", ("what size is {}?", "is {} small or large?")),
        ):
            for ref in references(scene, item, hidden=(key,)):
                second = rng.random() >= 0.5 if key == "shape" else int(rng.integers(2))
                found.append((forms[second].format(ref), getattr(item, key), key))
    found.append(("how many shapes are there?", str(len(shapes)), "count"))
    for key, words in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES))):
        here = [getattr(i, key) for i in shapes]
        for word in sorted({*here, pick(rng, words)}):
            noun = plural(word, 2) if key == "shape" else f"{word} shapes"
            found.append((f"how many {noun} are there?", str(here.count(word)), "count"))
    found += existence_questions(scene, rng) + relation_questions(scene, rng)
    if scene.digit:
        forms = (
            "which digit is written?",
            "what digit is in the picture?",
            "which digit is there?",
        )
        found.append((pick(rng, forms), str(scene.digit.value), "digit"))
    return found


def existence_questions(scene, rng):
    """Questions "is there ...?": what is there, what isn't, and a thing of the scene with one attribute changed."""
    pairs, found = {(i.colour, i.shape) for i in scene.shapes}, []

    def add(what, answer):
        found.append((f"is there {with_article(what)}?", answer, "existence"))

    for key, words in (("shape", SHAPES), ("colour", tuple(COLOURS))):
        here = sorted({getattr(i, key) for i in scene.shapes})
        noun = " shape" if key == "colour" else ""
        if here:
            add(pick(rng, here) + noun, "yes")
        add(pick(rng, [w for w in words if w not in here]) + noun, "no")
    for item in scene.shapes:
        add(name_of(item, item.size), "yes")
        other = rng.random() < 0.5
        colour = pick(rng, tuple(COLOURS)) if other else item.colour
        wrong = (colour, item.shape if other else pick(rng, SHAPES))
        if wrong not in pairs:
            add(" ".join(wrong), "no")
    if rng.random() < 0.5:
        add("digit", "yes" if scene.digit else "no")
    return found


def relation_questions(scene, rng):
    """Questions such as "is the star left of the red circle?", both ways round, of things with unique names."""
    found, named = [], [(item, references(scene, item)) for item in scene.items]
    for (one, its), (other, others) in permutations(named, 2):
        if not its or not others:
            continue
        a, b = pick(rng, its), pick(rng, others)
        for relations in RELATIONS:
            level = not any(compare(one, other, relation) for relation in relations)
            if level and rng.random() >= 0.15:
                continue
            relation = pick(rng, relations)
            answer = "yes" if compare(one, other, relation) else "no"
            found.append((f"is {a} {relation} {b}?", answer, "relation"))
    return found


# %%
columns = ["question", "answer", "type"]
some = pd.DataFrame(questions(scene, np.random.default_rng(0)), columns=columns)
some.sample(frac=1, random_state=0).groupby("type").head(2).sort_values("type")

# %% [markdown]
# ## 4. Balance: what a blind model gets
#
# VQA v1 asked "Is there a clock tower?" mostly where there was one, and people learnt that a model without the image got about half of all points. VQA v2 reduced this with **complementary pairs** (Goyal et al. 2017):
# for each question a second image in which the *same words* have another answer. Whoever ignores the image gives both the same answer, and has one right at most.
#
# `complementary_pairs` (in `data/shapes.py`) does this here: it goes through the questions of all images, shuffled, and pairs the same words with two answers. The types get equal shares, as far as there are pairs (*digit* has too few).
#
# **Predict first:** a model that always gives the commonest answer to the type: for which type does its score fall most when the questions are balanced?

# %%
from vlm_lite.data.shapes import complementary_pairs

asked = [
    (k, *row)
    for k, each in enumerate(scenes)
    for row in questions(each, np.random.default_rng([1, k]))
]
sets = {"all": asked, "pairs": complementary_pairs(asked, 4 * N, np.random.default_rng(0))}
blind = pd.DataFrame()
for name, chosen in sets.items():
    frame = pd.DataFrame(chosen, columns=["image", *columns])
    by_type, by_words = frame.groupby("type")["answer"], frame.groupby("question")["answer"]
    most = by_words.transform(lambda answers: answers.value_counts().max() / len(answers))
    blind[f"questions, {name}"] = by_type.count()
    blind[f"by type, {name}"] = by_type.agg(
        lambda answers: answers.value_counts().max() / len(answers)
    )
    blind[f"by words, {name}"] = most.groupby(frame["type"]).mean()
binary = blind.loc[["existence", "relation", "size"], "by words, pairs"]
assert (binary == 0.5).all() and (blind["by words, pairs"] <= 0.5).all()
high, low = blind[["by words, all", "by words, pairs"]].mean()
share = [column for column in blind if column.startswith("by")]
blind.astype({c: int for c in blind if c not in share}).assign(**blind[share].map("{:.0%}".format))

# %% [markdown]
# Read each pair of columns. *By type* is the model that knows the type alone, *by words* one that knows the commonest answer to these very words; both are scored on the data they were counted on, so they flatter the blind model (*relation* by words most of all:
# many of its questions are asked only once).
# By type, *count* falls most, from 52% to 44%. *Colour* and *shape* rise a little by words: fewer questions share the same words, so the commonest answer weighs more. On the pairs no words have an answer above one half, whatever the type; yes-or-no questions sit at exactly one half. Pairs cannot take away more than that: a blind model is still right on half of "is the star left of the heart?".
# **So the blind score stands beside every score of this course.** ([04b](04b_instruction_data.ipynb) lets a guesser learn on one half and guess on the other.)
#
# ## 5. Prompts, and answers in other forms
#
# A language model continues text, so a question becomes a **prompt**. Ours has two forms: `question: … answer:` for one word, and turns of a chat for a sentence. A model knows the form that it was trained on, and one
# asked in another often fails for that reason alone. VQA's score takes ten people's answers; here a rule writes the ten, now and then with a synonym, so that VQA's own metric can be used unchanged.

# %% tags=["save"]
ANSWERS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "count": tuple("01234"),
    "digit": tuple("0123456789"),
    "existence": ("yes", "no"),
    "relation": ("yes", "no"),
}


def short_prompt(question):
    """The prompt for a short answer, as the language model learned it."""
    return f"question: {question} answer:"


def chat_prompt(question):
    """The prompt for an answer in a sentence; several turns follow one another."""
    return f"<user> {question} <assistant>"


def answer_type(question_type):
    """The VQA v2 answer type of one of our question types."""
    known = {"existence": "yes/no", "relation": "yes/no", "count": "number", "digit": "number"}
    return known.get(question_type, "other")


def human_answers(answer, rng):
    """Ten answers as ten people might give them: mostly `answer`, sometimes another word for the same thing."""
    words = "large big, small little, 0 zero, 1 one, 2 two, 3 three, 4 four"
    other = dict(map(str.split, words.split(","))).get(answer)
    few = int(rng.integers(0, 4)) if other else 0
    return [answer] * (10 - few) + [other] * few


# %%
rng = np.random.default_rng(3)
forms = [
    (short_prompt(q), chat_prompt(q), a, " ".join(human_answers(a, rng)))
    for q, a, _ in questions(scene, rng)
]
display(pd.DataFrame(forms[::5], columns=["short prompt", "chat prompt", "answer", "ten people"]))
print(
    f"HEADLINE: the commonest answer to the same words: {high:.0%} of all questions, {low:.0%} of pairs"
)

# %% [markdown]
# ## What this does not show
#
# - Language as people write it: there are a few dozen sentence forms. A model that reads these has not learnt English, and an unknown word is an unknown word.
# - Questions that cannot be answered, or whose premise is false ("what colour is the cat?"). None are asked, so none of the scores says what a model does with them.
# - That balance removes every shortcut. Pairs balance the answers to the same *words*; a shortcut from part of the image to the answer is still open. 00b repaints single things for that.
#
# **Next:** [00d, what the language model reads](00d_reading.ipynb).
