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
#     outputs_of: 3659bf78b92e942776878e8e24b62ceb27711fa0ef480bf82fcb31bac0029d0c
#     title: Which connector for which data?
#     builds: four training sets of one world, and 19 rows of connectors by data at one budget
#     lesson: comparison
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm, results/fusion.json]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/07c_which_data.ipynb)

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
print(describe(profile, compute, notebook="07c_which_data"))

# %% [markdown]
# # 7c. Which connector for which data?
#
# A companion to [07](07_fusion.ipynb), optional and short. Lectures on vision-language models often give advice of this kind: a **linear**
# projection goes with captions + instructions, a **Q-Former** with captions + VQA, a **resampler** with captions + reasoning, **cross-attention**
# with VQA + compositional questions. Is it so? Such advice is read off models that were trained so, and they
# differ in much else. Here everything else is held fixed.
#
# **You will build** four training sets about the same images, which differ in what is said of them, and one row of a table: a connector, a training
# set, one budget, and what came of it.
#
# **You will be able to show** which parts of the advice hold in this world over three seeds, and which don't; how
# far apart training sets lie that differ in their words alone; and what each connector costs.
#
# **Reading time:** 10 minutes. One live row of the table; the other rows are recorded (`vlm-lite study fusion --seeds 3`).
# <!-- figures -->
# **Run time:** about 3 min (unknown with bf16) and 1.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [07](07_fusion.ipynb), whose `fusion_row` is imported here, and [04b](04b_instruction_data.ipynb), which writes the instructions.

# %% tags=["save"]
import numpy as np

from vlm_lite.encoded import encode_shapes
from vlm_lite.evals.captions import caption_scores
from vlm_lite.lessons import reading
from vlm_lite.lessons.fusion import fusion_row
from vlm_lite.lessons.instructions import as_pairs, ask_instructions, conversation, read_boxes
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.models.vlm import load_vlm

# %% [markdown]
# ## 1. Four training sets, the same images
#
# - **captions**: the five captions of an image.
# - **captions + instructions**: two captions, and the conversation that 04b writes from the image's boxes: a word, a sentence, a list, a description in detail.
# - **captions + VQA**: two captions, and the image's questions with one-word answers. About one in six is about a *relation* ("is the circle left of the square?"): our compositional questions.
# - **captions + reasoning**: two captions, and up to two relations answered in steps: where is one, where is the other, so the answer is.
#
# In each step the model reads 16 images and four texts about each (fewer where there are fewer), drawn at random. So the sets differ in what is said and also in *how much*: an answer in steps is thirty words long, an answer to a question one. That is part of what such data are.


# %% tags=["save"]
def reasoned(description, rng, count=2):
    """Up to `count` relations of a described scene, answered step by step: [(prompt, answer), ...]."""
    scene = read_boxes(description)
    drawn = (reading.in_steps(scene, rng) for _ in range(count))
    return list(dict.fromkeys(pair for pair in drawn if pair))


def data_sets(data, seed=0):
    """{name: N lists of (prompt, answer)} of an EncodedDataset: captions alone, and with three other kinds of text."""
    captions = [[(CAPTION_PROMPT, text) for text in five] for five in data.captions]
    rngs = [np.random.default_rng([seed, 7, k]) for k in range(len(captions))]
    described = list(zip(data.descriptions, rngs, strict=True))
    others = {
        "instructions": [as_pairs(conversation(text, rng, 5)) for text, rng in described],
        "VQA": [turns[1:] for turns in data.turns],
        "reasoning": [reasoned(text, rng) for text, rng in described],
    }
    mixed = {
        f"captions + {name}": [said[:2] + more for said, more in zip(captions, texts, strict=True)]
        for name, texts in others.items()
    }
    return {"captions": captions, **mixed}


# %%
import pandas as pd
from IPython.display import display

from vlm_lite import family, plots
from vlm_lite.lessons.fusion import make_vlm
from vlm_lite.lessons.vlm import train_vlm
from vlm_lite.studies import load_study

shipped = load_vlm(profile.vlm_model)
parts = shipped.vision, shipped.language_model, shipped.tokenizer
train = encode_shapes(shipped.vision, "train", profile.train_images)
val = encode_shapes(shipped.vision, "val", profile.val_images)  # none of them is trained on
sets = data_sets(train)
plots.show_images(train.images[1:2], [train.captions[1][0]], size=200)


# %%
def words(turns):
    return np.mean([len(answer.split()) for each in turns for _, answer in each])


for name, turns in sets.items():
    prompt, answer = turns[1][-1]
    texts = np.mean([len(each) for each in turns])
    print(f"{name}: {texts:.1f} texts an image, {words(turns):.0f} words to learn in each")
    print(f"    {prompt} -> {answer}\n")

# %% [markdown]
# ## 2. What a row measures
#
# All rows share the frozen CLIP, the frozen language model and `train_vlm` of 03. Each is asked the same 400 questions about held-out images, and blind, shuffled and oracle are measured beside it. Three more figures are nearer to what the data teach: CIDEr of captions, the share of instructions that are followed, form and facts, and the relations once more with *think step by step*, where the last word counts.


# %% tags=["save"]
def in_steps(model, data, limit=400):
    """The relations among the first `limit` questions, asked for an answer in steps -> scores 0 or 1, of its last word."""
    asked = data.questions.select(range(min(limit, len(data.questions)))).remove_columns("image")
    asked = asked.filter(lambda kind: kind == "relation", input_columns="question_type")
    prompts = [short_prompt(f"{question} {reading.STEPS}") for question in asked["question"][:]]
    said = model.generate(data.of(asked).float(), prompts, 48)
    last = [(text.rstrip(" .").split() or [""])[-1] for text in said]
    return np.array(
        [float(word == answer) for word, answer in zip(last, asked["answer"], strict=True)]
    )


def comparison_row(kind, parts, train, val, turns, *, seed=0, images=100, **recipe):
    """`fusion_row` on these turns, with what else the data may teach -> (model, History, ProbeResult, {metric: value})."""
    made = fusion_row(kind, parts, train, val, turns=turns, seed=seed, **recipe)
    model, *_, row = made
    said = model.generate(val.features[:images].float(), [CAPTION_PROMPT] * images, 48)
    texts = dict(enumerate(val.captions[:images])), dict(enumerate(said))
    row["CIDEr"] = caption_scores(*texts, metrics=("CIDEr",))["CIDEr"]
    row["instructions followed"] = 100 * np.mean(ask_instructions(model, val, images)[1])
    row["relation, in steps"] = 100 * in_steps(model, val).mean()
    return made


# %% [markdown]
# **What the language model brings along.** It was trained to read scenes in words and has answered all these kinds of questions there, in steps as well. So no row has to teach it what an instruction is. What a row teaches is to read *images*, and the question becomes: from which texts is that learnt fastest?
#
# ## 3. One row, live
#
# A Q-Former on captions + VQA, as the advice has it.
#
# **Predict first.** Will its answers be best on this set? Or on captions alone, which name every thing in every text?

# %%
my_guess = "captions + VQA"
recipe = {k: getattr(profile, f"connector_{k}") for k in ("batch_size", "per_row", "lr")}
recipe["steps"] = min(100, profile.connector_steps)
live = "Q-Former, captions + VQA"
recipe |= {"limit": 200, "images": min(50, len(val.ids))}  # half of the record's
made = comparison_row("Q-Former", parts, train, val, sets["captions + VQA"], **recipe)
*_, result, row = made
family.rows({live: result}, f"{live}, after {recipe['steps']} steps")

# %% [markdown]
# The bars are one model, asked half of the record's questions: without an image, with another question's image, with its own.
#
# ## 4. Four connectors, four sets
#
# The function below made the record: four connectors on each of the four sets, and the other three of 07 on captions + VQA, each with the same hundred steps.

# %% tags=["save"]
CLAIMED = "linear", "Q-Former", "resampler", "cross-attention"  # a claim names data for these
OTHERS = "MLP", "pixel shuffle + MLP", "visual expert"


def study(seed, profile):
    """Notebook 07c: four connectors on four kinds of data each, three more on captions + VQA, after the same 100 steps."""
    shipped, figures = load_vlm(profile.vlm_model), {}
    parts = shipped.vision, shipped.language_model, shipped.tokenizer
    train = encode_shapes(shipped.vision, "train", profile.train_images)
    val, sets = encode_shapes(shipped.vision, "val", profile.val_images), data_sets(train)
    recipe = {k: getattr(profile, f"connector_{k}") for k in ("batch_size", "per_row", "lr")}
    recipe["steps"] = min(100, profile.connector_steps)
    rows = [(kind, name) for kind in CLAIMED for name in sets]
    for kind, name in [*rows, *((kind, "captions + VQA") for kind in OTHERS)]:
        made = comparison_row(kind, parts, train, val, sets[name], seed=seed, **recipe)
        figures |= {f"{kind}, {name}: {metric}": value for metric, value in made[-1].items()}
    return made[1], figures


# %%
runs = [run["figures"] for run in load_study("fusion")["runs"]]


def seeds(kind, name, metric="vlm"):  # -> (seeds,)
    return np.array([run[f"{kind}, {name}: {metric}"] for run in runs])


def told(values):
    return f"{values.mean():.0f} ({values.min():.0f} to {values.max():.0f})"


found = {f"{kind}, {name}": seeds(kind, name) / 100 for kind in CLAIMED for name in sets}
blind = {"blind": seeds("linear", "captions", "blind") / 100}
plots.seed_ranges(
    blind | found, live=(live, row["vlm"] / 100), xlabel="VQA accuracy on held-out images (%)"
)

# %%
titles = {
    "vlm": "VQA accuracy",
    "relation": "relations",
    "relation, in steps": "relations, in steps",
}
for metric in (*titles, "instructions followed"):
    print(f"{titles.get(metric, metric)} (%): mean (lowest to highest seed)")
    columns = {name: {kind: told(seeds(kind, name, metric)) for kind in CLAIMED} for name in sets}
    display(pd.DataFrame(columns))

# %% [markdown]
# **Captions alone teach answering as well as questions do, or better.** For linear, Q-Former and resampler they are ahead in all three seeds (by 1 to 38 of 400 questions); for cross-attention questions are, in two of three. No caption holds a question. But the language model could answer before this training, from scenes in words; it lacked the image, and a caption names everything in it. A one-word answer tells the connector one fact about the image, a caption a dozen.
#
# **Conversations come last, for each of the four, in every seed**; nine of these twelve runs end below *blind*, which is the same for all rows, since without an image only the frozen language model answers. The lowest are near zero at yes and no or at counting: probably they no longer answer in the form asked for. Much in the replies, a word, a list, three sentences, can be told without the image (*there is a … in the …*): perhaps the loss falls for a long time before the image is needed. In 04 they come after captions, to a connector that can read already. Here nothing has been read before.
#
# **Instructions are hardly followed** by any row; cross-attention after conversations comes furthest, with 13 to 21%.
#
# **Relations are learnt from none of these sets.** They are 63 questions for yes or no; in steps and without, the figures are near a coin's (63% is the highest of 96), or far below it where the last word is neither. `shapes-vlm`, 03's model after 1,040 steps of 32 images, answers 82% (recorded: `shapes_vlm`).
#
# ## 5. Does the advice hold?
#
# It can be read in two ways. *For this connector, take this set*: then of the four sets it should bring the best answers. *For this set, take this connector*: then of the four connectors it should be best at what the set teaches. **Holds** means ahead of each of the others in every seed; **fails** means that at least one of the others, those named, is ahead in every seed. Were all four rows equal, a reading would hold in 2% of cases and fail in 28%, about two of eight: so a failure says little by itself.

# %%
advice = {
    "linear": ("captions + instructions", "instructions followed"),
    "Q-Former": ("captions + VQA", "vlm"),
    "resampler": ("captions + reasoning", "relation, in steps"),
    "cross-attention": ("captions + VQA", "relation"),
}


def verdict(one, others):
    """one (seeds,), others {name: (seeds,)} -> what the seeds say of "one is best"."""
    ahead = [name for name, other in others.items() if (other > one).all()]
    if ahead:
        return "fails: " + ", ".join(ahead)
    return "holds" if all((one > other).all() for other in others.values()) else "undecided"


verdicts = {}
for kind, (name, metric) in advice.items():
    by_set = {each: seeds(kind, each) for each in sets if each != name}
    by_kind = {each: seeds(each, name, metric) for each in CLAIMED if each != kind}
    verdicts[f"{kind}, {name}"] = {
        "best set for the connector?": verdict(seeds(kind, name), by_set),
        "best connector on the set?": verdict(seeds(kind, name, metric), by_kind),
    }
verdicts = pd.DataFrame(verdicts).T
with pd.option_context("display.max_colwidth", None):
    display(verdicts)

# %% [markdown]
# None of the eight readings holds. Four fail: for linear, Q-Former and resampler the advised set loses to plain captions in every seed, and after captions + instructions each of the other three follows more instructions than linear does. Of the other four, both about cross-attention among them, the seeds can't tell.
#
# This does not show that the advice is wrong about LLaVA or Flamingo. Their parts are larger, their images photographs, their training longer; and our language model had answered all these kinds of questions in words before.
#
# ## 6. Seven connectors, and what they cost
#
# All seven of 07 on captions + VQA, from the record. A step's time depends on the machine, so it is measured here, over two steps each.

# %%
every = (*CLAIMED, *OTHERS)
metrics = {
    "vlm": "VQA (%)",
    "shuffled": "shuffled (%)",
    "digit": "digits (%)",
    "CIDEr": "CIDEr x 100",
}
scale = {"CIDEr": 100}
shown = {
    title: {k: told(scale.get(m, 1) * seeds(k, "captions + VQA", m)) for k in every}
    for m, title in metrics.items()
}
for cost in ("million parameters", "tokens an image"):
    shown[cost] = {k: f"{seeds(k, 'captions + VQA', cost).mean():.3g}" for k in every}
few = {**{k: recipe[k] for k in ("batch_size", "per_row", "lr")}, "steps": 2}
shown["seconds a step"] = {}
for kind in every:
    timed = train_vlm(make_vlm(kind, *parts), train.features, sets["captions + VQA"], **few)
    shown["seconds a step"][kind] = f"{timed.seconds[-1] / few['steps']:.2f}"
display(pd.DataFrame(shown))

# %% [markdown]
# **The visual expert is ahead in every seed**, with three million trained parameters; the MLP that it contains is next on average, and not in every seed. Size isn't all: cross-attention trains two million and is not clear of the MLP with a tenth of one. Its gates open slowly (07), and it takes no position in the text. Of the connectors that put vectors into the text, the one with the fewest, four after pixel shuffle, has the lowest mean: one vector must hold four patches, and the language model must learn to take them apart. **Digits** divide them: chance is one in ten, and only expert and MLP read about half or more in every seed.
#
# On this set the mean CIDEr has almost the same order: what names more things answers more questions. Across the sets it doesn't: after reasoning, cross-attention's captions are far better than linear's after captions, and its answers are not.

# %% tags=["thumbnail"]
gains = {
    kind: seeds(kind, "captions + VQA") / 100
    for kind in sorted(every, key=lambda k: -seeds(k, "captions + VQA").mean())
}
plots.seed_ranges(blind | gains, xlabel="VQA accuracy after 100 steps on captions + VQA (%)")

# %%
for kind in CLAIMED:
    by_set = {name: seeds(kind, name) for name in sets}
    assert all((by_set["captions + instructions"] <= each).all() for each in by_set.values())
for kind in CLAIMED[:3]:
    assert (seeds(kind, "captions") > seeds(kind, "captions + VQA")).all()
expert = seeds("visual expert", "captions + VQA")
assert all((expert > seeds(k, "captions + VQA")).all() for k in every if k != "visual expert")
best = max(sets, key=lambda name: np.mean([seeds(kind, name).mean() for kind in CLAIMED]))
count = int((verdicts == "holds").to_numpy().sum())
print(
    f"HEADLINE: best set over four connectors: {best}; {count} of {verdicts.size} readings of the advice hold"
)

# %% [markdown]
# ## Which model when, with figures
#
# - *A finished language model, little compute, answers in words:* captions alone did as well as questions or better (cross-attention: undecided). On average Q-Former and resampler came first there; on captions + VQA, the only set it was tried on, the simpler MLP was ahead of both.
# - *Text must stay as it was, and memory is there:* the visual expert learns fastest; cross-attention leaves the context free and needs more steps.
# - *Conversations as the first training set:* no, for any of the four.
#
# ## What you showed
#
# - Four training sets about the same images, and 19 rows at one budget, recorded with shuffled and blind scores.
# - That popular advice about connectors and data can be put to a test: in this world four of its eight readings fail, and none holds.
#
# ## What this does not show
#
# - **The order after a longer training.** A hundred steps measure how a training begins. 07's cross-attention has hardly left its plateau after eighty.
# - **Anything about a language model that can't answer yet**.
# - **The same number of words.** The sets differ in words a step, and rows on long texts took about twice as long; equal are the images, the steps, and the limit of four texts an image.
# - **More than three seeds.** Two rows whose ranges overlap have not been told apart.
#
# ## Where next
#
# Train a row on captions, and its model on conversations afterwards, by `train_vlm` with half of the steps for each: does the order matter more than the set? Then go on to [08](08_resolution.ipynb).
