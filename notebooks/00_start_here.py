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
#     title: Start here
#     lesson: conditions
#     builds: nothing yet; the loop that asks a finished vision-language model with its image, another, or none
#     reads: [zoo/shapes-vlm, zoo/shapes-clip, zoo/shapes-gpt2]
#     outputs_of: 8e1f862cf3e2da782a912f533a3bfcca2ac6fa7987bd788855e69866c18e68b3
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/00_start_here.ipynb)

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
print(describe(profile, compute, notebook="00_start_here"))

# %% [markdown]
# # 0. Start here: does it look at the image?
#
# Ask a vision-language model (VLM) about an image and it answers. Hide the image, and it answers all the same. This course
# is about whether an answer comes from the image, and how to show it.
#
# **You will build** nothing yet. You question a small finished VLM, exchange its image, hide it, and draw images for
# it. From notebook 01 on you build its parts yourself.
#
# **You will be able to show** that its answers come from the image: they change when the image does, and fall to the level
# of a guess when it is hidden; and where it fails, why.
#
# **Reading time:** 15 minutes. One exercise, 5 minutes.
# <!-- figures -->
# **Run time:** about 1 min (0.5 with bf16) and 2.1 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** nothing. A little Python helps; PyTorch you can pick up on the way.

# %% tags=["hide"] cellView="form"
# @title The whole model in one diagram
from collections import Counter

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vlm_lite import diagrams, plots
from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import five_questions, load_shapes
from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.embed import pixel_values
from vlm_lite.evals.probes import CONDITIONS, run_probes
from vlm_lite.lessons import language, reading, world
from vlm_lite.lessons.instructions import facts
from vlm_lite.models.vlm import load_vlm

plots.style()
pd.options.display.float_format = "{:.1f}".format
vlm = load_vlm(profile.vlm_model)
captions, questions = load_shapes("val", 1000)  # images that no training has shown
images, image_ids = image_tensor(captions)  # (1000, 3, 64, 64), uint8
image_of = dict(zip(image_ids, images, strict=True))
question = "what colour is the circle?"
diagrams.vision_language_model(vlm, image_of[1000066], language.short_prompt(question), "red")

# %% [markdown]
# ## 1. Three parts
#
# A VLM reads an image and a text, and writes text. Most VLMs today have three parts. A common metaphor is the eye, the
# nerve and the brain:
#
# | part | the metaphor | here | output | you build it in |
# |---|---|---|---|---|
# | **vision encoder** | eye | the image encoder of a CLIP | one vector a patch | notebooks 01 and 02 |
# | **connector** | nerve | a Q-Former | a few vectors as wide as the language model's tokens | notebook 03 |
# | **language model** | brain | the GPT-2 architecture, small | a probability for each next token | (ships with the course) |
#
# The vision encoder learnt from images with captions, the language model from text alone. Then both were **frozen**: their
# weights no longer change. Only the connector was trained, so whatever the language model knows of an image came
# through the connector.
#
# What ships, exactly:
# - The **vision encoder** is our own CLIP, trained on Shapes. ([01](01_clip_infonce.ipynb) says why its position embeddings
#   aren't to be read as learnt.)
# - The **language model** isn't OpenAI's GPT-2. It has GPT-2's architecture, 3.3M parameters and 320 tokens, and was trained
#   on Shapes text: scenes in words with questions, answers, captions and conversations.
#
# **Shapes** is a drawn world with real handwritten digits in it. We know what is in each image, so we can tell for
# certain when the model is wrong, and everything runs on a laptop. ([00b](00b_world.ipynb) draws it and
# changes one thing at a time; [00c](00c_language.ipynb) writes its captions and questions.)

# %%
parts = {"vision encoder": vlm.vision.vision_model, "connector": vlm.connector}
parts["language model"] = vlm.language_model
table = pd.DataFrame(index=pd.Index(parts, name="part"))
table["class"] = [type(part).__name__ for part in parts.values()]
sizes = [[weight.numel() for weight in part.parameters()] for part in parts.values()]
table["million parameters"] = [sum(size) / 1e6 for size in sizes]
trainable = [any(w.requires_grad for w in part.parameters()) for part in parts.values()]
table["trained in the VLM"] = trainable
assert trainable == [False, True, False] and len(vlm.tokenizer) == 320
assert round(table["million parameters"]["language model"], 1) == 3.3
table

# %% [markdown]
# ## 2. What flows through it
#
# The question becomes the **prompt** `question: ... answer:`. In front of its tokens stand the connector's vectors, the
# **prefix**. The language model gives each token $w$ of its vocabulary a probability of coming next:
#
# $$ p(w \mid x, \text{prompt}) = \mathrm{softmax}\big(\mathrm{LM}(\,[\,\mathrm{connector}(\mathrm{encoder}(x))\,;
# \mathrm{embed}(\text{prompt})\,]\,)\big)_w $$

# %%
prompt = language.short_prompt(question)
with torch.no_grad():
    x = pixel_values(image_of[1000066][None])  # (B, 3, S, S): one image, normalised
    features = vlm.encode(x)  # (B, N, Dv): a vector for each of N patches
    prefix = vlm.connector(features)  # (B, Q, D): Q vectors as wide as the token embeddings
    tokens = vlm.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids = tokens["input_ids"]  # (B, T)
    p = vlm(features, ids, torch.ones_like(ids))[:, -1].softmax(-1)  # (B, V): after the last token

assert prefix.shape[-1] == vlm.language_model.config.hidden_size and abs(p.sum() - 1) < 1e-4
shapes = {"pixels": x, "features": features, "prefix": prefix, "token ids": ids, "p": p}
pd.DataFrame({"shape": {name: str(tuple(value.shape)) for name, value in shapes.items()}})

# %% [markdown]
# ## 3. Ask, exchange the image, hide it
#
# Each panel shows the likeliest answers. **Watch the dashed line:** it marks how probable the model finds its first answer
# *without* the image. If the bar ended there, the answer would owe nothing to the image.


# %%
def probabilities(image, question):
    """{token: probability of being the first of the answer}, the likeliest first; image None hides it."""
    prompt = language.short_prompt(question)
    ids = vlm.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        features = None if image is None else vlm.encode(pixel_values(image[None]))  # (1, N, Dv)
        logits = vlm(features, ids, torch.ones_like(ids))[0, -1]  # (V,)
    p, tokens = logits.softmax(-1).sort(descending=True)
    return dict(zip(vlm.tokenizer.convert_ids_to_tokens(tokens.tolist()), p.tolist(), strict=True))


def ask(image, question, title=""):
    """A bar for each answer that is likely with or without the image."""
    if unknown := unknown_words(vlm.tokenizer, question):
        print(f"not in the vocabulary, read as <unk>: {', '.join(unknown)}")
    seen, blind = probabilities(image, question), probabilities(None, question)
    likely = sorted(seen, key=lambda token: -max(seen[token], blind[token]))[:5]
    answers = sorted(likely, key=seen.get, reverse=True)
    line = {"answers": answers, "blind": blind[answers[0]], "title": title}
    return plots.ask_panel(image, question, seen, **line)


first, second = image_of[1000066], image_of[1000180]
display(ask(first, question, "with its image"))
ask(second, question, "another image, the same question")

# %% [markdown]
# The answer follows the image, although the question is the same word for word. (These two images are chosen: both answers
# are right. Section 5 counts whether that is the rule.)
#
# **Predict first:** hide the image. What will the model answer now?

# %% tags=["thumbnail"]
my_answer = "red"

seen = [next(iter(probabilities(image, question).items())) for image in (first, second)]
assert [token for token, _ in seen] == ["red", "blue"] and min(p for _, p in seen) > 0.9
assert max(probabilities(None, question).values()) < 0.3
print("my prediction:", my_answer)
ask(None, question, "no image")

# %% [markdown]
# Without the image no answer is likely. What is left is the **language prior**: how often each answer followed such a
# question in the text that the model was trained on. A model that used nothing but its prior would still be right now and
# then, and would never say that it had not looked. So every score in this course stands beside its blind score.
#
# ## 4. Five fixed questions
#
# Five questions of five types, each about a fixed image. They are picked so that a guess seldom helps: each has the answer
# that is rarest in its type, or *yes* where yes and no are equally frequent, since this language model leans to *no*. They were
# not chosen by whether the VLM gets them right.

# %%
five = five_questions(questions)
shown = torch.stack([image_of[row["image_id"]] for row in five])  # (5, 3, 64, 64)
prompts = [language.short_prompt(row["question"]) for row in five]
features = vlm.encode(pixel_values(shown))
given = {"blind": vlm.generate(None, prompts), "the VLM": vlm.generate(features, prompts)}
texts, right = ([row[key] for row in five] for key in ("question", "answer"))
assert [sum(map(str.__eq__, said, right)) for said in given.values()] == [0, 5]
plots.scoreboard(shown, texts, right, given)

# %% [markdown]
# ## 5. Three hundred questions, five conditions
#
# Blind gets none of them right and the VLM all five. But five questions are no score. So we ask some three hundred of seven types, each under five conditions:
#
# | condition | what the language model gets | what it tells |
# |---|---|---|
# | **blind** | the question alone | the language prior |
# | **blank** | an empty image | whether *any* image will do |
# | **shuffled** | another question's image | whether it must be *this* image |
# | **VLM** | its own image | |
# | **oracle** | no image, the scene described in words | what this language model can answer when told everything |
#
# Some measures are this course's own. The **oracle** is the language model given the scene in words instead of the image.
# The **multimodal gain** is what the image is worth, VLM - blind. The **bridge score** is the share of what those words are worth that came through the connector:
#
# $$ \text{bridge score} = \frac{\text{VLM} - \text{blind}}{\text{oracle} - \text{blind}} $$
#
# Accuracy is that of the VQA v2 benchmark: it compares with ten people's answers. Here a rule writes the ten, mostly
# one word, sometimes a synonym ("big" for "large"). The questions come in **complementary pairs**, as in VQA v2: the same
# words about two images with two different answers.
#
# The loop below asks a list of prompts in batches, each with one image or with none, under every condition. (A cell tagged *save* is
# copied into the package: this one is `vlm_lite.lessons.conditions`, and the later notebooks import it from there.)


# %% tags=["save"]
import torch


@torch.no_grad()
def ask_conditions(vlm, features, blank, own, other, prompts, told, *, batch_size=256,
                   max_new_tokens=4):  # fmt: skip
    """Q prompts -> {condition: Q answers}, greedy.

    features (N, T, D): those of N images; own, other: the numbers of each prompt's image and of another one, Q of each;
    blank (T, D): an empty image's features; told: Q prompts with the scene in words in front, or none.
    """

    def ask(prompts, numbers, features=features):
        asked = list(dict.fromkeys(zip(prompts, numbers, strict=True)))  # the same is asked once
        answers = {}
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            texts, images = zip(*batch, strict=True)
            seen = None if images[0] is None else features[list(images)].float()  # (B, T, D)
            said = vlm.generate(seen, list(texts), max_new_tokens=max_new_tokens)
            answers |= zip(batch, said, strict=True)
        return [answers[each] for each in zip(prompts, numbers, strict=True)]

    no_image, empty = [None] * len(prompts), [0] * len(prompts)
    answers = {"vlm": ask(prompts, own), "blind": ask(prompts, no_image)}
    answers |= {"shuffled": ask(prompts, other), "blank": ask(prompts, empty, blank[None])}
    return answers | ({"oracle": ask(told, no_image)} if told else {})


# %% [markdown]
# `run_probes` picks another image for each question, calls this loop, scores the answers and adds intervals.
#
# **Predict first:** what accuracy will the VLM reach, in percent? Your guess is a dashed line.

# %%
my_guess = 60

waiting, pairs = {}, {}
columns = [questions[name][:] for name in ("question", "answer", "question_type")]
for row, (text, answer, kind) in enumerate(zip(*columns, strict=True)):
    partner = waiting.setdefault(text, row)
    if columns[1][partner] != answer:
        pairs.setdefault(kind, []).append((waiting.pop(text), row))
rows = [row for kind in sorted(pairs) for pair in pairs[kind][:21] for row in pair]
asked = questions.select(rows)  # the two rows of a pair stand together
blank = torch.tensor(world.BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
features, empty = vlm.encode(pixel_values(images)), vlm.encode(pixel_values(blank))[0]
result = run_probes(vlm, features, asked, blank_features=empty, image_ids=image_ids)
title = f"{len(asked)} questions about Shapes"
guess = ("the VLM", my_guess)
plots.controls_bars(result.accuracy, bridge=result.bridge, guess=guess, title=title)

# %% [markdown]
# The VLM is far above blind. Another image or an empty one leaves it at about the blind level: the answer needs *this*
# image. The connector delivers nearly all of what the words are worth. By type of question:

# %%
accuracy = result.accuracy
assert accuracy["vlm"].low > accuracy["blind"].high and result.bridge.low > 0.8
assert max(accuracy[name].low for name in ("shuffled", "blank")) < accuracy["blind"].high
by_type = {"all": result.overall, **result.by_type}
table = pd.DataFrame(
    {kind: {c: 100 * part.accuracy[c].value for c in CONDITIONS} for kind, part in by_type.items()}
).T
table.insert(0, "questions", [part.count for part in by_type.values()])
table["bridge score"] = [f"{part.bridge.value:.2f}" for part in by_type.values()]
display(table)
plots.by_type_bars(table.drop("all").T.to_dict(), title="Accuracy by type of question")

# %% [markdown]
# *Yes or no* and *large or small* give a blind model half of the points, *which digit* almost none: **without its blind
# score, an accuracy says little**. Where a type has few questions the VLM may pass the oracle by chance, and the bridge
# score is then above 1.
#
# **An average can hide a model that looks half of the time. A pair can't.** Whoever gives both images of a pair the same
# answer gets at most one of the two right, and a blind model always does: it reads the same words twice. So count the pairs
# with *both* answers right.

# %%
table = pd.DataFrame(columns=["answers differ", "both right"], dtype=float)
for condition, scores in result.scores.items():
    said = np.array(result.answers[condition]).reshape(-1, 2)  # (pairs, 2)
    both = (scores.reshape(-1, 2) > 0.5).all(axis=1)
    table.loc[condition] = 100 * np.mean(said[:, 0] != said[:, 1]), 100 * both.mean()
assert (table.loc["blind"] == 0).all() and table["both right"]["vlm"] > 75
display(table.rename_axis("% of pairs"))
vlm_both, oracle_both = table["both right"][["vlm", "oracle"]]
print(
    f"HEADLINE: exchange the image and the answer follows, rightly, in {vlm_both:.0f}% of {len(both)} pairs "
    f"(blind 0%, oracle {oracle_both:.0f}%)"
)

# %% [markdown]
# ## 6. It writes captions, too
#
# With the prompt `caption:` the same model describes the whole image; asked as in a conversation, it answers in a
# sentence. **Predict first:** which kind of word will be wrong most often: colour, shape, size or digit?

# %%
chat = language.chat_prompt(question)
print(chat, vlm.generate(vlm.encode(pixel_values(first[None])), [chat])[0])
with_image = vlm.generate(features[:200], [language.CAPTION_PROMPT] * 200, max_new_tokens=64)
plots.show_images(images[:5], with_image[:5])

# %% [markdown]
# Captions need the same controls: blind (no image), shuffled (another image's caption), oracle (the scene in words). The score
# of a kind of word is F1: of the words in the written and the reference caption, the share that both have.

# %%
told = [f"{text} {language.CAPTION_PROMPT}" for text in captions["description"][:200]]
written = {"vlm": with_image, "shuffled": with_image[1:] + with_image[:1]}
written["blind"] = vlm.generate(None, [language.CAPTION_PROMPT], max_new_tokens=64) * 200
written["oracle"] = vlm.generate(None, told, max_new_tokens=64)
known = {"colour": world.COLOURS, "shape": world.SHAPES, "size": world.SIZES}
known["digit"] = "0123456789"
reference = [facts(five[0]) for five in captions["captions"][:200]]  # the first of five says it all
said = {name: [facts(text) for text in texts] for name, texts in written.items()}
f1 = pd.DataFrame(index=list(known), columns=list(written), dtype=float)
for condition, counts in said.items():
    shared = sum((one & two for one, two in zip(counts, reference, strict=True)), Counter())
    both = sum(counts, Counter()) + sum(reference, Counter())
    for kind, words in known.items():
        f1.loc[kind, condition] = 200 * sum(shared[w] for w in words) / sum(both[w] for w in words)
assert f1["vlm"].idxmin() == "shape" and (f1["vlm"] > f1["shuffled"] + 30).all()
f1.rename_axis("F1 in %")

# %% [markdown]
# Shapes are lost most often. Sizes look easy under any condition: there are only two, so a caption of another image, or of
# none, gets many of them right. A score means something only as far as it is above its control.
#
# ## 7. Where it fails, and why
#
# Here are some wrong answers. Look at one about a colour: where in the image is the colour that the model names?

# %%
wrong = [row for row in range(len(asked)) if result.scores["vlm"][row] < 0.5]
some = [(asked[row], result.answers["vlm"][row]) for row in wrong[:: len(wrong) // 5][:5]]
titles = [f"{row['question']} VLM: {said}. Right: {row['answer']}." for row, said in some]
print(f"{len(wrong)} of {len(asked)} answers are wrong, among them:")
plots.show_images([image_of[row["image_id"]] for row, _ in some], titles)

# %% [markdown]
# **Hypothesis 1: it sees the colours and mixes up which object has which.** Then it should do well where all objects share one
# colour and worse where they don't, and its wrong answers should be colours that are in the image.

# %%
kinds = columns[2]
about_colour = questions.select([row for row, kind in enumerate(kinds) if kind == "colour"])
index = {image_id: row for row, image_id in enumerate(image_ids)}
own = features[[index[image_id] for image_id in about_colour["image_id"][:]]]
prompts = [language.short_prompt(text) for text in about_colour["question"][:]]
told = [f"{a} {b}" for a, b in zip(about_colour["description"][:], prompts, strict=True)]
trials = pd.DataFrame({"right": about_colour["answer"][:]})
trials["there"] = [set(world.COLOURS) & set(t.split()) for t in about_colour["description"][:]]
inputs = {"vlm": (own, prompts), "blind": (None, prompts), "oracle": (None, told)}
inputs["shuffled"] = (own.roll(1, dims=0), prompts)
for condition, (seen, texts) in inputs.items():
    trials[condition] = vlm.generate(seen, texts)
several = np.where(trials["there"].str.len() > 1, "several colours", "one colour")
score = trials[list(inputs)].eq(trials["right"], axis=0).groupby(several)
table = 100 * score.mean()
table.insert(0, "questions", score.size())
slips = trials[trials["vlm"] != trials["right"]]
present = 100 * np.mean(
    [said in there for said, there in zip(slips["vlm"], slips["there"], strict=True)]
)
assert table["vlm"]["one colour"] > table["vlm"]["several colours"] + 8 and present > 90
print(
    f"{present:.0f}% of {len(slips)} wrong answers name the colour of another object in the image"
)
table

# %% [markdown]
# Accuracy drops when the image holds several colours, and the wrong answers name the colour of another object. The model
# sees the colours and mixes up which object has which: the **binding problem**, which CLIPs trained on the web have as well
# (Yuksekgonul et al. 2023). The language model is the lesser cause: told the scene in words (*oracle*), it loses far less.
#
# **Hypothesis 2: a known colour on a known shape is no guarantee.** Four pairings of colour and shape were kept out of *every*
# image that the vision encoder and the connector were trained on. The control differs in nothing else: the same four colours
# and shapes, paired anew, and often seen. Each image holds one object, and the question names its size alone. **Predict
# first:** which suffers when the pairing is new, the colour or the shape?

# %%
never = sorted(world.HELD_OUT)
often = [
    (colour, shape) for (colour, _), (_, shape) in zip(never, never[1:] + never[:1], strict=True)
]
rng, table = np.random.default_rng(0), pd.DataFrame(columns=list(inputs), dtype=float)
for group, chosen in {"seen": often, "never seen": never}.items():
    objects = [
        world.Item(shape, colour, ("small", "large")[k % 2], *rng.integers(4, size=2).tolist())
        for colour, shape in chosen
        for k in range(20)
    ]
    single = [world.Scene((each,)) for each in objects]
    drawn = torch.from_numpy(np.stack([world.render(each, rng) for each in single]))
    seen = vlm.encode(pixel_values(drawn.permute(0, 3, 1, 2)))  # (80, N, Dv)
    for kind, form in {
        "colour": "what colour is the {} shape?",
        "shape": "what is the {} shape?",
    }.items():
        prompts = [language.short_prompt(form.format(each.size)) for each in objects]
        told = [f"{reading.describe(s)} {text}" for s, text in zip(single, prompts, strict=True)]
        said = {"vlm": vlm.generate(seen, prompts), "blind": vlm.generate(None, prompts)}
        said["oracle"] = vlm.generate(None, told)
        said["shuffled"] = vlm.generate(seen.roll(20, dims=0), prompts)  # another pairing's image
        truth = [getattr(each, kind) for each in objects]
        score = {name: 100 * np.mean(np.equal(texts, truth)) for name, texts in said.items()}
        table.loc[f"{kind}, {group}"] = score
lost = table["vlm"]["shape, seen"] - table["vlm"]["shape, never seen"]
assert lost > 10 and table["vlm"]["colour, never seen"] > 90 and table["oracle"].min() > 90
display(table)
plots.by_type_bars(
    table.T.to_dict(), title="One object in an image, its pairing seen or never seen"
)

# %% [markdown]
# (Shuffled is below blind here, because the other image always shows another colour and another shape.)
#
# The colour survives and the shape suffers: what the model learnt of a shape is tied to the colours that it came in. Told in
# words, the language model names every pairing, so the fault lies in the vision encoder or the connector. Naming known parts in
# a new combination is **compositional generalisation**; CLEVR has a test set for it (CoGenT, Johnson et al. 2017). A
# held-out set drawn like the training set holds no such pairing, and says nothing about it.
#
# ## 8. Your turn
#
# A scene is a list of objects, each with a shape, a colour, a size, a row and a column (0 to 3). Nobody has seen the image
# that you draw, so no answer to it can have been memorised.
#
# **Exercise** (easy, 5 minutes). Draw two scenes: one that you now expect the model to get right and one that you expect it
# to get wrong. Were you right? Then ask about something that isn't there.
#
# <details><summary>Hint</summary>
#
# Change one thing at a time: the same scene, once with all colours alike and once with each different. Or draw a pairing that
# it has never seen: blue heart, green square, orange circle, red star.
#
# </details>

# %%
my_scene = world.Scene(
    (
        world.Item("star", "yellow", "large", row=0, col=0),
        world.Item("heart", "pink", "small", row=1, col=2),
        world.Item("square", "cyan", "large", row=3, col=3),
    )
)
my_questions = ["what is the small shape?", "what colour is the banana?"]

mine = torch.from_numpy(world.render(my_scene, np.random.default_rng(0))).permute(2, 0, 1)
print("shapes:", *world.SHAPES, "| colours:", *world.COLOURS, "| sizes:", *world.SIZES)
seen = vlm.encode(pixel_values(mine[None]))
print("caption:", *vlm.generate(seen, [language.CAPTION_PROMPT], max_new_tokens=64))
for my_question in my_questions:
    display(ask(mine, my_question, "my own image"))

# %% [markdown]
# ## What you showed
#
# - The answer changes when the image does, and rightly so in the share of pairs that the headline gives.
# - With the image hidden, blank or exchanged, the score falls to the blind level or near it.
# - Nearly all of what the scene in words is worth comes through the connector: the bridge score, with its interval.
# - Its errors have causes that can be tested: binding, and pairings never seen.
#
# ## What this does not show
#
# - Anything about photographs. Shapes has a small grammar and few words. The tests carry over; the scores do not.
# - That its probabilities can be trusted: a long bar says that the model is sure, not that it is right.
# - That this connector is better than another: bridge scores compare connectors under the *same* language model only, and
#   need more than one seed.
#
# **Check yourself.** You can say
# - [ ] what each of the three parts learnt from, and which of them was trained to connect the other two;
# - [ ] what the dashed line in a panel means, and what it would mean if a bar ended there;
# - [ ] why a blind model can never get both halves of a pair right.
#
# **To answer in words.** (1) A new VLM scores high on a benchmark, and the authors give no blind score. What might the
# number mean? (2) Suppose that shuffled images scored clearly *below* blind. Would that speak for or against the model?
# (3) The oracle reads the scene in words. Why is it a ceiling for this connector, and why not for every VLM?
#
# **Where next.** [01](01_clip_infonce.ipynb) trains a vision encoder from images and their captions alone, [02](02_vit.ipynb) opens it,
# [03](03_qformer_gpt2.ipynb) builds the connector and this VLM, [04](04_llava_projection.ipynb) a chat model with a simpler
# connector, [05](05_evaluation.ipynb) measures, [06](06_bug_museum.ipynb) shows silent bugs. Every term, also in Japanese:
# the [glossary](../docs/glossary.md).
#
# **How they work.** An exercise says "Write `forward`", and its solution stands in the cell below. To write it yourself, open
# the copy with blanks: "Do the exercises", at the top of 01. Then comes a line such as `patchify = check.patchify(patchify)`. It
# tests what you wrote and returns it if it is right. If not, it says what is wrong and returns the course's own, so that
# the cells below run all the same.
#
# `profile`, in the first code cell, sets the sizes. `tiny` is the course as described here. `smoke` takes a few dozen images and a few
# steps: it shows that the code runs, and its scores mean nothing.
#
# ## Do you have a T4?
#
# Nobody has measured this course on one yet. In a clone of the repository, with a GPU and the model hub, this runs every notebook that has a part for photographs and
# prints the rows of [the status page](../docs/status.md) with their environment, to paste into a report. It takes about an hour and a half (an estimate).

# %%
verify_t4 = False  # @param {type: "boolean"}

if verify_t4:
    from IPython import get_ipython

    get_ipython().system(f"{sys.executable} -m vlm_lite verify-t4")
else:
    print("not run: tick verify_t4 above, on a GPU")
