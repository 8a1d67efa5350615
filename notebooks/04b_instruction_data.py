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
#     outputs_of: 68b1cb605e16acb442db19785a90e31a3807ab90bb663b8145546d076323b43b
#     title: How instruction data are made
#     builds: instruction data written by rule from captions and boxes, their official format, and a check of form and facts
#     lesson: instructions
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/04b_instruction_data.ipynb)

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
print(describe(profile, compute, notebook="04b_instruction_data"))

# %% [markdown]
# # 4b. How instruction data are made
#
# An optional companion of [04](04_llava_projection.ipynb): the data behind its stages, and how a reply is judged. No training, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.8 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [04, LLaVA](04_llava_projection.ipynb), section 4.
#
# ## 1. A writer that sees only words
#
# LLaVA's model is a CLIP, one projection and a language model. What was new was its **data**: 158,000 records written by GPT-4, which could not
# see. It got an image as *words*: the captions of COCO and the boxes of its objects. From these it wrote conversations (58,000), detailed
# descriptions (23,000) and reasoning (77,000), after a few examples written by hand (Liu et al. 2023, section 3 and table 14).
#
# So the records hold what the words hold, and nothing else: a colour that no caption names is never asked for. And the writer may invent. Here
# rules do the writing, and the words are the exact description of a Shapes scene, whose grid cells are its boxes. **`read_boxes` reads the
# scene back from them**, so all below is made from words, as LLaVA's was.

# %% tags=["save"]
import json
import re
from collections import Counter

import numpy as np

from vlm_lite.data.tokenizer import plural
from vlm_lite.files import UserError
from vlm_lite.lessons import language, reading
from vlm_lite.lessons.language import join, name_of, pick, place, thing
from vlm_lite.lessons.world import COLOURS, SHAPES, SIZES, Item, Scene, any_scene

BOX = re.compile(
    r"an? (?:(?P<size>\w+) (?P<colour>\w+) (?P<shape>\w+)|handwritten (?P<value>\d)) in the "
    r"(?P<row>\w+) row, (?P<column>\w+) column\."
)


def read_boxes(description):
    """The Scene, things and their cells, that a `reading.describe` text is about; UserError for another text."""
    found, items = list(BOX.finditer(description)), []
    if not found or " ".join(match.group() for match in found) != description.strip():
        raise UserError(
            f"{description[:80]!r} is no description of a Shapes scene; expected sentences such as "
            "'a small red circle in the top row, left column.'"
        )
    for match in found:
        row, column, digit = match["row"], match["column"], match["value"]
        cell = {"row": language.ROWS.index(row), "col": language.COLUMNS.index(column)}
        look = ("digit", "white", "large") if digit else match.group("shape", "colour", "size")
        items.append(Item(*look, **cell, value=int(digit or -1)))
    return Scene(tuple(items))


# %%
import pandas as pd
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data import shapes
from vlm_lite.data.formats import image_tensor

pd.options.display.max_colwidth = 200
table, questions = shapes.load_shapes("val", profile.val_images, progress=False)
images, _ = image_tensor(table)
texts, scenes = table["description"][:], [read_boxes(text) for text in table["description"][:]]
print(texts[2], *table["captions"][2], sep="\n")
assert [reading.describe(scene) for scene in scenes] == texts  # nothing is lost
display(plots.show_images(images[:4], [f"image {k}" for k in range(4)]))
pd.DataFrame(scenes[2].items)

# %% [markdown]
# ## 2. Three kinds of turns, in five forms
#
# LLaVA's *conversation* asks several short questions about one image, its *detailed description* asks for everything, its *complex reasoning*
# for an answer with its grounds. Ours:
#
# | LLaVA's kind | form | a reply |
# |---|---|---|
# | conversation | word, sentence, list | `red` · `the star is red.` · `red star, blue heart` |
# | detailed description | detail | one sentence a thing, in reading order |
# | reasoning | reason | a number, and what it was counted from |
#
# LLaVA-1.5 found that a model that has learnt conversations does not answer in one word when a benchmark wants one, and added a
# **response-format prompt** to every VQA question: "Answer the question using a single word or phrase." `ONE_WORD` is that, cut to our vocabulary.
# The prompt tells *which* form; without it the same question would have two right answers, and the model could only guess.

# %% tags=["save"]
ONE_WORD = "answer the question using a single word."  # LLaVA-1.5's words, cut to the vocabulary
IN_DETAIL = "describe the picture in detail."


def brief_prompt(question):
    """A question with LLaVA-1.5's response-format prompt, in this vocabulary."""
    return language.chat_prompt(f"{question} {ONE_WORD}")


def turns(scene, rng):
    """One (instruction, reply, form) of each form that the scene allows, in random order."""
    candidates = language.questions(scene, rng)  # [(question, answer, type), ...]
    items = sorted(scene.items, key=lambda item: (item.row, item.col))  # in reading order

    def ask():  # a type first, then a question: else the commonest type would rule
        kind = pick(rng, sorted({kind for *_, kind in candidates}))
        return pick(rng, [row for row in candidates if row[2] == kind])

    one, other = ask(), ask()
    listed = ", ".join(name_of(item, item.size) for item in items)
    all_said = " ".join(f"there is {thing(item)} in the {place(item)}." for item in items)
    found = [
        (f"{one[0]} {ONE_WORD}", one[1], "word"),
        (other[0], reading.sentence(*other), "sentence"),
        (f"list the {'things' if scene.digit else 'shapes'} in the picture.", listed, "list"),
        (IN_DETAIL, all_said, "detail"),
    ]
    if scene.shapes:
        key = pick(rng, ("colour", "size"))
        word = getattr(pick(rng, scene.shapes), key)
        same = [item for item in items if getattr(item, key) == word and not item.is_digit]
        reply = f"{len(same)}: {join([thing(item, item.size) for item in same])}."
        found.append((f"how many {word} shapes are there, and which?", reply, "reason"))
    return [found[k] for k in rng.permutation(len(found))]


# %%
pd.DataFrame(turns(scenes[2], np.random.default_rng(2)), columns=["instruction", "reply", "form"])

# %% [markdown]
# ## 3. A conversation, and the official file
#
# A conversation is a few of these turns, kept as everybody keeps them today: a list of messages with a role and a content. LLaVA's file says
# `from: human / gpt` instead, and puts `<image>` into the first turn, where the image's features will stand. `writer_prompt` (printed in 04) has the parts of what LLaVA gave
# GPT-4: instructions, examples of a context with the conversation wanted, then the new context.


# %% tags=["save"]
def conversation(description, rng, length=3):
    """A conversation of at most `length` turns about a described scene: [{"role", "content"}, ...], user first."""
    return [
        {"role": role, "content": text}
        for ask, reply, _ in turns(read_boxes(description), rng)[:length]
        for role, text in (("user", ask), ("assistant", reply))
    ]


def writer_prompt(captions, description, examples):
    """What a text-only writer gets: examples [(context, reply), ...], then this image's captions and boxes."""
    parts = [
        "You see one image through captions and boxes. Write a conversation about it. Say only what they say."
    ]
    for context, reply in [*examples, ("\n".join([*captions, f"boxes: {description}"]), "")]:
        parts += [f"context:\n{context}", f"conversation:\n{reply}"]
    return "\n\n".join(parts)


def llava_record(image_id, messages):
    """Messages as a record of LLaVA-Instruct-150K, JSON; <image> stands in the first turn."""
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    record = {"id": str(image_id), "image": f"{image_id}.png", "conversations": said}
    return json.dumps(record, indent=1)


def as_pairs(messages, prompt=language.chat_prompt):
    """Messages -> [(prompt, reply), ...], `prompt` made of what the user says. UserError out of turn."""
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"the roles of a conversation are {roles}; expected user and assistant in turn."
        )
    said = [message["content"] for message in messages]
    return [(prompt(ask), reply) for ask, reply in zip(said[::2], said[1::2], strict=True)]


# %%
import tempfile
from pathlib import Path

from PIL import Image

from vlm_lite.data.readers import read_llava

talks = [conversation(text, np.random.default_rng(k)) for k, text in enumerate(texts[:20])]
with tempfile.TemporaryDirectory() as folder:
    records = [json.loads(llava_record(k, talk)) for k, talk in enumerate(talks)]
    Path(folder, "instruct.json").write_text(json.dumps(records))
    for k, image in enumerate(images[: len(talks)]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(folder, f"{k}.png"))
    assert read_llava(Path(folder, "instruct.json"), folder)["conversation"][:] == talks
print(llava_record(2, talks[2]))

# %% [markdown]
# `read_llava`, which reads the real file, reads ours back to the same messages.
#
# ## 4. What came out
#
# Before a model is trained, look at its data: how many of each form, how long, how varied.

# %%
rows = [(*t, k) for k, scene in enumerate(scenes) for t in turns(scene, np.random.default_rng(k))]
said = pd.DataFrame(rows, columns=["instruction", "reply", "form", "image"])
said["words"] = said["reply"].str.split().str.len()
of_form = said.groupby("form")
sizes = of_form["words"].describe()[["count", "mean", "max"]].round(1)
sizes = sizes.join(of_form[["instruction", "reply"]].nunique().add_prefix("different: "))
share = of_form["words"].sum() / said["words"].sum()
assert share.idxmax() == "detail" and sizes.loc["detail", "different: instruction"] == 1
print(f"words to learn: {share['detail']:.0%} in descriptions, {share['word']:.0%} in single words")
sizes

# %% [markdown]
# All forms have about equally many records, but not equally many **words**, and the loss is a mean over tokens: long replies rule it. A single instruction
# asks for every description, so its wording teaches nothing; LLaVA drew it from a list of phrasings. Ours are templates: *different: instruction* counts how few.
#
# ## 5. What a question may reveal
#
# "Is there …?" is answered "yes" in some data sets far more often than "no", and a model that learns this scores well blind. **Predict first:** a guesser
# sees half of the questions with their answers, and then answers the other half *without the images*, by the commonest answer to the same words (else to
# the same type of question). What does it reach on all questions that the rules make, and what on the *complementary pairs* that Shapes' question files
# keep, as VQA v2's: the same words, two images, two answers (Goyal et al. 2017)?


# %%
def guessed_right(asked):
    """The share that a guesser gets right who learns from one half what answer is the commonest, by type; and the mean."""
    half, kind = len(asked) // 2, "question_type"
    asked = asked.sample(frac=1, random_state=0)
    of_words, of_kind = (
        asked[key].map(asked[:half].groupby(key)["answer"].agg(lambda each: each.mode()[0]))
        for key in ("question", kind)
    )
    right = of_words.fillna(of_kind)[half:] == asked["answer"][half:]
    right = right.groupby(asked[kind][half:]).mean()
    return pd.concat([right, pd.Series({"mean": right.mean()})])


rngs, columns = (
    map(np.random.default_rng, range(len(scenes))),
    ["question", "answer", "question_type"],
)
every = sum(map(language.questions, scenes, rngs), [])
pairs = pd.DataFrame({name: questions[name][:] for name in columns})
asked = {"all questions": pd.DataFrame(every, columns=columns), "pairs": pairs}
counts = {n: t["answer"][t["question_type"] == "count"].value_counts() for n, t in asked.items()}
guessed = pd.DataFrame({name: guessed_right(each) for name, each in asked.items()})
high, low = guessed.loc["mean"]
assert profile.name == "smoke" or low < high and guessed.loc["relation", "pairs"] < 0.5
display(
    plots.share_bars(pd.DataFrame(counts).sort_index().fillna(0), title="Answers to 'how many'")
)
guessed.map("{:.0%}".format)

# %% [markdown]
# The bars show how the answers to "how many" are spread: the pairs level them only a little. The pairs take most from *relation*, *existence* and *size*, which fall **below** the half that a coin gets: where the guesser has learnt an answer from one
# of a pair, the other has the opposite one. A colour, a shape or a digit is hard to guess in either set, because Shapes draws them evenly; COCO's world does not.
#
# ## 6. What each stage reads
#
# Notebook 04's stages read captions, conversations and VQA questions, or all mixed. Every second question has the response-format prompt, the others
# Shapes' own `question: … answer:`. `exchanged` gives a share of the images another image's caption: data that are false but look right. `reading_rows` gives texts as the language model was trained on, with the scene in words.


# %% tags=["save"]
def stage_talks(data, seed=0, exchanged=0.0):
    """What LLaVA's stages read of an EncodedDataset: {name: N lists of conversations, lists of (prompt, answer)}."""
    captions, asked = [five[0] for five in data.captions], {image_id: [] for image_id in data.ids}
    count = round(exchanged * len(captions))
    captions[:count] = captions[count - 1 : count] + captions[: max(0, count - 1)]
    columns = (data.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        ask = (brief_prompt, language.short_prompt)[len(asked[image_id]) % 2]
        asked[image_id].append([(ask(question), answer)])
    said = [
        [as_pairs(conversation(text, np.random.default_rng([seed, 2, k])))]
        for k, text in enumerate(data.descriptions)
    ]
    found = {
        "captions": [[[(language.CAPTION_PROMPT, text)]] for text in captions],
        "conversation": said,
        "VQA": list(asked.values()),
    }
    return found | {"mixed": [sum(each, []) for each in zip(*found.values(), strict=True)]}


def reading_rows(count, seed=7):
    """`count` texts as the language model was trained on: a scene in words before the first of five prompts."""
    rngs = (np.random.default_rng([seed, 9, k]) for k in range(count))
    documents = (reading.document(any_scene, rng, 5) for rng in rngs)
    return [[(f"{text} {talk[0][0]}".strip(), talk[0][1]), *talk[1:]] for text, talk in documents]


# %%
from types import SimpleNamespace

from vlm_lite.data.tokenizer import make_tokenizer

tokenizer, captions = make_tokenizer(), table["captions"][:]
data = SimpleNamespace(
    captions=captions, descriptions=texts, ids=table["image_id"][:], questions=questions
)
read = pd.DataFrame()
for name, each in stage_talks(data).items():
    replies = [reply for of_image in each for talk in of_image for _, reply in talk]
    read.loc[name, ["conversations", "turns"]] = sum(map(len, each)), len(replies)
    read.loc[name, "tokens to learn"] = sum(map(len, tokenizer(replies)["input_ids"]))
read.astype(int)

# %% [markdown]
# ## 7. Was it followed?
#
# Two judgements, kept apart. **Form**: has the reply the form that was asked for, whatever it says? A pattern tells. **Facts**: does it state what the expected reply
# states, no more and no less? The facts are its sizes, colours, shapes, numbers, places, yes and no, *counted*, and the wording drops out. A reply follows its instruction where
# both hold. (LLaVA let GPT-4 judge; a rule is exact here, and misses a shape that is given the other's colour: both facts are there.)

# %% tags=["save"]
NOUNS = {plural(name, 2): name for name in SHAPES}
WORDS = "yes no not top bottom left right above below".split()
FACTS = {*SHAPES, *COLOURS, *SIZES, *"0123456789", *WORDS}
FORMS = {
    "word": r"[\w-]+\.?",
    "sentence": r"[^.:]+ (?:is|are) [^.:]+\.",
    "list": r"\w+ \w+(?:, \w+ \w+)*\.?",
    "detail": r"(?:there is [^.:]+\. ?)+",
    "reason": r"\d ?: [^.:]+\.",
}


def has_form(reply, form):
    """Whether a reply has the form asked for, whatever it says."""
    return re.fullmatch(FORMS[form], reply.strip()) is not None


def facts(text):
    """The facts a text states, counted: sizes, colours, shapes, numbers, places, yes and no."""
    words = (NOUNS.get(word, word) for word in re.findall(r"\w+", text.lower()))
    return Counter(word for word in words if word in FACTS)


def follows(reply, expected, form):
    """1.0 where the reply has the form asked for and states the facts of the expected one, no more and no less."""
    return float(has_form(reply, form) and facts(reply) == facts(expected))


def concreteness(texts, descriptions):
    """Two arrays (N,): the share of its image's things that a text names, and of those that the text before it names."""
    names = [[name_of(i, i.size) for i in read_boxes(text).items] for text in descriptions]
    return [
        np.array([np.mean([n in t for n in own]) for t, own in zip(said, names, strict=True)])
        for said in (texts, [*texts[-1:], *texts[:-1]])
    ]


# %%
right, form = "the star is red.", "sentence"
tried = f"""{right}
red
the star is blue.
the red one is a star.
a red star."""
said = {reply: (has_form(reply, form), facts(reply) == facts(right)) for reply in tried.split("\n")}
own, other = concreteness([five[0] for five in captions], texts)
assert own.mean() > 0.95 and other.mean() < 0.3
print(f"things named by an image's caption: {own.mean():.0%}, by another's: {other.mean():.0%}")
pd.DataFrame(said, ["form", "facts"]).T

# %% [markdown]
# A caption names what its own image holds, and another's seldom does: *concreteness* is this share, with its control beside it. A model that
# writes the same fluent caption for every image has the two equal.
#
# 04 asks its models such instructions, and scores form and following apart. Before a model is trusted with a score, see what the score gives to one
# that knows nothing: below, a "model" that answers every instruction with the reply to the one before it.


# %% tags=["save"]
def instruction_set(descriptions, count, seed=0):
    """`count` single instructions about described images: (image's row, instruction, reply, form)."""
    rows = []
    for index, description in enumerate(descriptions):
        chosen = turns(read_boxes(description), np.random.default_rng([seed, 4, index]))
        rows += [(index, *turn) for turn in chosen[: -(-count // len(descriptions))]]
    return rows[:count]


def ask_instructions(model, data, count):
    """Two lists of up to `count` scores in 0..1, of form and of following, of `instruction_set`'s replies."""
    rows, orders, expected, forms = zip(*instruction_set(data.descriptions, count), strict=True)
    prompts = [language.chat_prompt(order) for order in orders]
    replies = model.generate(data.features[list(rows)].float(), prompts, 64)
    judged = list(zip(replies, expected, forms, strict=True))
    return [float(has_form(r, f)) for r, _, f in judged], [follows(*each) for each in judged]


# %%
replies = [reply for *_, reply, _ in instruction_set(texts, len(texts))]
late = SimpleNamespace(generate=lambda *_: [*replies[-1:], *replies[:-1]])  # a turn too late
data.features = images  # it is never shown them
form, following = (np.mean(each) for each in ask_instructions(late, data, len(texts)))
print(f"replies to another instruction: form {form:.0%}, followed {following:.0%}")
print(f"HEADLINE: guessed blind: {high:.0%} of all questions, {low:.0%} of balanced pairs")

# %% [markdown]
# ## What this does not show
#
# - That template data teach as GPT-4's do: there are few phrasings here, and no knowledge of the world. A model trained on them follows *these* instructions.
# - What a writer's inventions cost. The rules never err; GPT-4 did, and nobody has counted the errors in all 158,000 records.
# - That a reply which passes is right in every case: *form* and *facts* are rules, and say nothing about which word belongs to which.
#
# **Next:** [05, Evaluation](05_evaluation.ipynb).
