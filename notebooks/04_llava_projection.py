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
#     title: LLaVA in stages
#     builds: LLaVA's projection and its three trainings, captions, instructions, VQA, with one evaluation after each
#     minutes_t4_estimate: 35
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, results/llava_stages.json, results/llava_failures.json, prompts/comparison.json]
#     outputs_of: cccadf24c9501721b4ba23abdc7afbd6aa1b19cfcf6b257dab2da01ea043c3dd
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/04_llava_projection.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/04_llava_projection.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny", "t4"]

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

profile, compute = get_profile(default=profile, offers=("tiny", "t4", "smoke")), get_compute()
print(describe(profile, compute, notebook="04_llava_projection", t4_minutes=35))

# %% [markdown]
# # 4. LLaVA: a plain projector, trained in stages
#
# A Q-Former asks the image questions. **LLaVA** (Liu et al. 2023) does something simpler: it turns *every* patch into a
# vector of the language model's width, and that is all. What makes it work is not the projector but the **order of the
# lessons**: first captions, then instructions, then questions.
#
# **You will build** the linear and the two-layer projection, the image as a run of words inside the prompt, a chat
# template, the labels of a conversation of several turns, and LoRA.
#
# **You will be able to show** what each stage buys, with the same evaluation and four checks after every one; and what
# is lost when a stage is left out.
#
# **Reading time:** 25 minutes. Six exercises, 36 minutes if you write them all, none needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (1.5 with bf16) and 1.8 GB of memory on `tiny` (measured, 2 CPU cores); about 35 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [03, the Q-Former](03_qformer_gpt2.ipynb), for labels and the five conditions of *does it look?*
#
# Sections 1 to 11 run in the small Shapes world, on any machine; section 12 trains the same stages on photographs, with
# a chat model of half a billion parameters (`t4`). **That part has not been run on a GPU yet.**
#
# ## 1. From patches to words
#
# ```
# image ──► vision encoder ──► patches ──► PROJECTOR: an MLP for each patch ──► 16 "words" ─┐
#           (CLIP, frozen)     (16 × 128)                                       (× 256)     ├─► language model ──► answer
# "<user> what colour is the circle? <assistant>" ──► word vectors ────────────────────────┘   (GPT-2 architecture)
# ```

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display

from vlm_lite import plots, recipes, stages
from vlm_lite.commands import matrix
from vlm_lite.data import instructions, language
from vlm_lite.data.language import chat_prompt, short_prompt
from vlm_lite.figures import BLUE, GREY, ORANGE, PALE, VERMILLION
from vlm_lite.files import data_path
from vlm_lite.labs import check
from vlm_lite.models.projectors import LinearProjector, MLPProjector
from vlm_lite.models.text import build_text_batch

on_photographs = (
    profile if profile.name == "t4" else None
)  # section 12; all that comes before it is the small world
profile = get_profile("tiny") if on_photographs else profile
plots.style()
vlm = recipes.new_vlm(
    "mlp", vision_model=profile.vision_model, language_model=profile.language_model
)
tokenizer, language_model = vlm.tokenizer, vlm.language_model
held_out = stages.load_pictures(
    vlm.vision, "val", profile.val_images, progress=False
)  # never trained on
images, references, _ = recipes.load_pictures(held_out.captions)
print(
    f"{len(images)} images, {len(held_out.questions)} questions, held out; features {tuple(held_out.features.shape)}"
)
for part, module in (
    ("vision encoder", vlm.vision.vision_model),
    ("projector", vlm.connector),
    ("language model", language_model),
):
    print(f"{part:15} {sum(p.numel() for p in module.parameters()):>10,} parameters")


# %% [markdown]
# **Which vectors?** A ViT has a *hidden state* after each of its blocks. LLaVA takes the one **before the last**, and
# drops the class token. CLIP's loss reads the class token alone, so nothing asks the last block to keep what the patches
# say.
#
# **Exercise 1: the features.** ★☆☆ 3 minutes. `hidden_states` is a list of $L + 1$ tensors $(B, 1+N, D)$, the class
# token first.
# <details><summary>Hint</summary>
#
# Lists count from the end with negative numbers. The second axis holds the tokens.
# </details>


# %% nbgrader={"grade": false, "grade_id": "select_features", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def select_features(hidden_states):
    """A ViT's hidden states, L + 1 tensors (B, 1+N, D), class token first -> the patches that LLaVA takes, (B, N, D)."""
    ### BEGIN SOLUTION
    return hidden_states[-2][:, 1:]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "select_features-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
select_features = check.select_features(select_features)

# %% [markdown]
# **Proof.** `transformers`' CLIP with the vision encoder's own weights, run to its end, and your choice among its hidden states:
# these are the features that this notebook trains on.

# %%
import tempfile

from transformers import CLIPModel

with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    vlm.vision.save_pretrained(folder)
    theirs = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .vision_model(recipes.pixel_values(images[:4]), output_hidden_states=True)
        .hidden_states
    )
    mine, ours = select_features(theirs), vlm.encode(recipes.pixel_values(images[:4]))
torch.testing.assert_close(mine, ours, atol=1e-4, rtol=1e-4)
print(
    f"{len(theirs)} hidden states {tuple(theirs[0].shape)}; yours {tuple(mine.shape)}, "
    f"largest difference from vlm_lite's {(mine - ours).abs().max():.1e}"
)


# %% [markdown]
# **The projector.** LLaVA's is one linear map, the same for every patch. LLaVA-1.5 puts a second behind it, with a GELU
# between (`mlp2x_gelu`):
#
# $$\text{LLaVA: } P = V W^\top + b \qquad\qquad \text{LLaVA-1.5: } P = \mathrm{GELU}(V W_1^\top + b_1)\, W_2^\top + b_2$$
#
# $V \in \mathbb{R}^{N \times D_v}$ are the patches, $P \in \mathbb{R}^{N \times D}$ the prefix. Sixteen patches in, sixteen
# "words" out: nothing is compressed, and no patch knows of another. Who looks where is left to the language model.
#
# **Exercise 2: the two-layer projection.** ★☆☆ 4 minutes. Weights are as `nn.Linear` keeps them, (out, in).
# <details><summary>Hint</summary>
#
# `F.linear(x, w, b)` computes $x w^\top + b$; `F.gelu` is exact unless told otherwise.
# </details>


# %% nbgrader={"grade": false, "grade_id": "mlp_projector", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def mlp_projector(features, w1, b1, w2, b2):
    """features (B, N, Dv); w1 (D, Dv), b1 (D,), w2 (D, D), b2 (D,), as nn.Linear keeps them -> (B, N, D)."""
    ### BEGIN SOLUTION
    return F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mlp_projector-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
mlp_projector = check.mlp_projector(mlp_projector)
features = held_out.features[:4].float()
with torch.no_grad():
    torch.testing.assert_close(
        mlp_projector(features, *vlm.connector.parameters()), vlm.connector(features)
    )
for kind in (LinearProjector, MLPProjector):
    projector = kind(vision_width=128, language_width=256)
    print(
        f"{kind.__name__:16} {tuple(features.shape)} -> {tuple(projector(features).shape)}, "
        f"{sum(p.numel() for p in projector.parameters()):,} parameters"
    )


# %% [markdown]
# ## 2. The image is a run of words
#
# A chat model reads one text. LLaVA marks the place of the image in it with a special word, `<image>`, looks up the
# word vectors, and then **puts the image's $N$ vectors where that one word stood**:
#
# $$[\,x_1 \dots x_k,\ \langle\text{image}\rangle,\ x_{k+2} \dots\,] \;\to\; [\,e_1 \dots e_k,\ \underbrace{p_1 \dots p_N}_{\text{the image}},\ e_{k+2} \dots\,]$$
#
# The row grows by $N - 1$. Whatever counts positions must count the new row.
#
# **Exercise 3: put the image in.** ★★☆ 7 minutes.
# <details><summary>Hint</summary>
#
# Find the place with `(input_ids == image_id).nonzero()`; then `torch.cat` of three pieces.
# </details>


# %% nbgrader={"grade": false, "grade_id": "insert_image", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def insert_image(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (T, D) of input_ids (T,), image_embeds (N, D) -> (T-1+N, D): the vectors where `image_id` stood."""
    ### BEGIN SOLUTION
    place = int((input_ids == image_id).nonzero()[0, 0])
    return torch.cat([token_embeds[:place], image_embeds, token_embeds[place + 1 :]])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "insert_image-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
insert_image = check.insert_image(insert_image)

# %% [markdown]
# `vlm_lite`'s `VLM` has the image at one place only, in front of the text, so that it can cut the prefix off before the
# head. That is your function on a text that begins with `<image>`; the proof is that the language model gives the same answer.

# %%
text = tokenizer(f"<image> {short_prompt('how many shapes are there?')}", return_tensors="pt")[
    "input_ids"
]
with torch.no_grad():
    row = insert_image(
        vlm.embed(text[0]),
        text[0],
        vlm.prefix(features[:1])[0],
        tokenizer.convert_tokens_to_ids("<image>"),
    )
    mine = language_model(inputs_embeds=row[None]).logits[0, -1]
    ours = vlm(features[:1], text[:, 1:]).logits[0, -1]
torch.testing.assert_close(mine, ours, atol=1e-4, rtol=1e-4)
print(
    f"{text.shape[1]} words, of which one is <image>  ->  {len(row)} vectors; "
    f"largest difference of the logits {(mine - ours).abs().max():.1e}"
)


# %% [markdown]
# ## 3. A conversation as one text
#
# A **chat template** turns messages into the one text that the model reads. Ours is short: each turn begins with who
# speaks, and the assistant's ends with EOS. When the user spoke last, the text stays *open* with `<assistant>`, and
# the model goes on from there.
#
# ```
# <user> what is it? <assistant> a red star. <eos> <user> where is it? <assistant>
# ```
#
# Each chat model has been trained on one template (`tokenizer.apply_chat_template` knows it). Another one raises no
# error: the model just answers worse.
#
# **Exercise 4: the chat template.** ★★☆ 7 minutes. One space between all parts.
# <details><summary>Hint</summary>
#
# Collect the parts in a list and join them with a space; look at the last message's role at the end.
# </details>


# %% nbgrader={"grade": false, "grade_id": "chat_text", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def chat_text(messages, eos):
    """[{"role": "user" or "assistant", "content": text}, ...] -> one string, open for the assistant after a user's turn."""
    ### BEGIN SOLUTION
    parts = []
    for message in messages:
        parts += [f"<{message['role']}>", message["content"]]
        if message["role"] == "assistant":
            parts.append(eos)
    if messages[-1]["role"] == "user":
        parts.append("<assistant>")
    return " ".join(parts)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "chat_text-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
chat_text = check.chat_text(chat_text)


# %% [markdown]
# **What counts.** A conversation of three turns is *three* examples in one row: the loss covers every word of the
# assistant, each with its EOS, and nothing of the user. A later turn reads the earlier ones, as it will when somebody
# talks with it.
#
# **Exercise 5: the labels of a conversation.** ★★☆ 8 minutes. Ids and labels of equal length, -100 where nothing counts,
# not shifted.
# <details><summary>Hint</summary>
#
# Go through the turns and extend two lists. Where does EOS belong?
# </details>


# %% nbgrader={"grade": false, "grade_id": "conversation_labels", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def conversation_labels(turns, eos):
    """[(prompt ids, answer ids), ...] -> (ids, labels), two lists: -100 on prompts; answers and their EOS count."""
    ### BEGIN SOLUTION
    ids, labels = [], []
    for prompt, answer in turns:
        ids += prompt + answer + [eos]
        labels += [-100] * len(prompt) + answer + [eos]
    return ids, labels
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "conversation_labels-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
conversation_labels = check.conversation_labels(conversation_labels)

# %% [markdown]
# ## 4. Where instructions come from
#
# Nobody wrote LLaVA's 158,000 samples (58,000 conversations, 23,000 descriptions, 77,000 reasoning questions). GPT-4 did, and it **saw no image**: it was given the *captions* of a COCO
# image and the *boxes* of its things, and asked for a conversation, a detailed description, and a question that takes
# some reasoning. Whatever the words do not say, the data cannot teach; whatever GPT-4 made up became the truth.
#
# Here the same is done for real, with rules in the place of GPT-4. A scene's description names every thing and its cell,
# which is its box. `read_boxes` reads it, and `turns` writes five forms of reply. The figure is a row as the model reads
# it: sixteen places of the image, then a conversation of three turns.

# %%
rng = np.random.default_rng(3)
shown = 2
description = held_out.captions[shown]["description"]
print("the words:", description, "\n")
for ask, reply, form in instructions.turns(instructions.read_boxes(description), rng):
    print(f"{form:9} {ask}  →  {reply}")

talk = instructions.as_pairs(instructions.conversation(description, np.random.default_rng(1)))
words = [
    tokenizer([prompt, f" {reply}"], add_special_tokens=False)["input_ids"]
    for prompt, reply in talk
]
ids, labels = conversation_labels(words, tokenizer.eos_token_id)
theirs = build_text_batch(tokenizer, [talk])  # the package's row for the same conversation
assert ids == theirs["input_ids"][0].tolist() and labels == theirs["labels"][0].tolist()
print(f"\nYour row: {len(ids)} tokens, of which {sum(label != -100 for label in labels)} count")


def draw_row(names, counts, prefix=16, wide=13):
    """A row of tokens as boxes: the image in blue, what counts in orange, what is only read in grey."""
    cells = [("", BLUE)] * prefix + [
        (name, ORANGE if count else PALE) for name, count in zip(names, counts, strict=True)
    ]
    lines = -(-len(cells) // wide)
    figure, axes = plt.subplots(figsize=(8.6, 0.36 * lines + 0.3), layout="constrained")
    for k, (name, colour) in enumerate(cells):
        line, column = divmod(k, wide)
        axes.add_patch(plt.Rectangle((column, -line), 0.94, 0.8, color=colour))
        axes.text(column + 0.47, -line + 0.4, name, ha="center", va="center", fontsize=7.5)
    axes.set(
        xlim=(0, wide),
        ylim=(-lines + 0.9, 1),
        title="blue: the image; grey: read; orange: read, and in the loss",
    )
    axes.axis("off")
    plt.show()


draw_row(tokenizer.convert_ids_to_tokens(ids), [label != -100 for label in labels])


# %% [markdown]
# ## 5. LoRA: let the language model learn a little
#
# In stage 1 the language model is frozen. To follow *instructions* it has to change, but not much, and it must not forget how to
# read. LoRA (Hu et al. 2021) leaves every matrix $W$ as it is and learns a small change beside it, of rank $r$:
#
# $$y = x W + b + \frac{\alpha}{r}\, x A^\top B^\top, \qquad A \in \mathbb{R}^{r \times D_{in}},\quad B \in \mathbb{R}^{D_{out} \times r},\quad B = 0 \text{ at the start}$$
#
# GPT-2 keeps its weights in `Conv1D`, which is a linear layer with its matrix **transposed**, $(D_{in}, D_{out})$:
# `peft` must be told so (`fan_in_fan_out=True`), and whoever looks for `nn.Linear` finds nothing but the head.
#
# **Exercise 6: LoRA.** ★★☆ 7 minutes. The output of a `Conv1D` with LoRA beside it.
# <details><summary>Hint</summary>
#
# `x @ weight + bias` is the frozen part. The rank is the number of rows of `a`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "lora_linear", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def lora_linear(x, weight, bias, a, b, alpha):
    """x (B, T, D_in), Conv1D's weight (D_in, D_out) and bias (D_out,), a (r, D_in), b (D_out, r) -> (B, T, D_out)."""
    ### BEGIN SOLUTION
    return x @ weight + bias + alpha / len(a) * (x @ a.T @ b.T)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "lora_linear-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
lora_linear = check.lora_linear(lora_linear)

# %% [markdown]
# **Proof**, against `peft` on a copy of this very language model: one layer with your formula, and all the numbers that will learn.

# %%
import copy

with_lora = copy.deepcopy(language_model)
stages.add_lora(with_lora, rank=16)
layer = with_lora.transformer.h[0].attn.c_attn
with torch.no_grad():
    layer.lora_B[
        "default"
    ].weight.normal_()  # at the start it is 0, and there would be nothing to compare
    x = torch.randn(2, 5, 256)
    mine = lora_linear(
        x,
        layer.base_layer.weight,
        layer.base_layer.bias,
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
        alpha=32,
    )
    torch.testing.assert_close(mine, layer(x), atol=1e-4, rtol=1e-4)
small = sum(p.numel() for name, p in with_lora.named_parameters() if "lora_" in name)
whole = sum(p.numel() for p in language_model.parameters())
print(
    f"your LoRA equals peft's; {small:,} numbers learn beside {whole:,} that do not ({100 * small / whole:.0f}%)"
)
print(
    "(a 7-billion model with rank 128, as LLaVA-1.5's, has about 5%; ours is small, so its share is large)"
)

# %% [markdown]
# ## 6. One evaluation for every stage
#
# After *each* stage the same is asked about the same held-out images:
#
# - **CIDEr** of captions, **VQA** accuracy, over all and by type;
# - **form**: the share of instructions answered in the form asked for (*word*, *sentence*, *list*; *detail*, a
#   description; *reason*, a count with its reason), whatever the reply says; **following**: in that form, *and* with the right facts. Facts are
#   the sizes, colours, shapes, numbers, places and yes or no that a reply states, counted; wording does not matter.
#
# And four checks, each a difference that is about **0 for a model that does not look**. (*Sees* can fall below 0:
# whoever answers a question with a caption does worse than a guesser.)
#
# | check | is | what it says |
# |---|---|---|
# | swap | VQA − VQA with another image | another image, another answer |
# | hide | VQA − VQA with an empty image | hiding the image hurts |
# | concrete | share of a image's things that its caption names − that another image's caption names | captions are about *this* image |
# | sees | VQA − VQA of the blind model | the multimodal gain |
#
# Intervals are 95%, bootstrapped over questions. A fixed set of prompts (`data/prompts/comparison.json`) is asked as
# well, so that you can *read* the difference.

# %%
prompts = json.loads(data_path("prompts", "comparison.json").read_text(encoding="utf-8"))["prompts"]
prompts = [row for row in prompts if row["picture"] < len(images)]
spoken = {}  # what it said to the fixed prompts, by stage


def ask_fixed():
    own = held_out.features[[row["picture"] for row in prompts]].float()
    return vlm.generate(own, [row["prompt"] for row in prompts], max_new_tokens=48)


def measure(vlm):
    return stages.evaluate(vlm, held_out, pictures=100, questions=800, orders=100)


untrained = copy.deepcopy(vlm)
spoken["nothing trained"] = ask_fixed()
for row, said in zip(prompts, spoken["nothing trained"], strict=True):
    print(f"{row['prompt'][:66]:66} {said[:50]!r}")

# %% [markdown]
# ## 7. Three trainings: the one live run
#
# | stage | reads | learns |
# |---|---|---|
# | 1 captions | one caption an image | the projector |
# | 2 instructions | a conversation of three turns an image | projector and LoRA |
# | 3 VQA | questions with short answers | projector and LoRA |
#
# In stage 1 the projector's matrices learn with Muon, as in [03](03_qformer_gpt2.ipynb). LLaVA's authors have AdamW there; in so
# short a training it gets hold of the captions with some seeds and not with others. With LoRA, AdamW takes over.
#
# **Predict first.** After stage 1, which has seen nothing but captions: will VQA be *above* the blind model, at it, or
# *below*? Set `my_guess` to 1, 0 or -1.

# %%
my_guess = 0  # 1, 0 or -1; change it before you go on

# %%
pictures = stages.load_pictures(vlm.vision, "train", profile.stage_images, progress=False)
texts = stages.stage_texts(pictures)
for name, said in texts.items():
    print(
        f"{name:13} {sum(map(len, said)):>6,} turns, for example "
        f"{str(next(filter(None, said))[0])[:100]}"
    )

histories, kept = {}, {}
vlm = copy.deepcopy(untrained)  # from the start again, if you run this cell a second time


def after_stage(name, scores, history):
    if name == "instructions":
        kept[name] = copy.deepcopy(vlm)  # sections 9 and 10 come back to the model of this moment
    if history is not None:
        histories[name], spoken[name] = history, ask_fixed()
        print(
            f"stage {len(histories)}, {name}: {history.steps[-1]} steps in {history.seconds[-1]:.0f} s, "
            f"loss {history.losses[0]:.2f} → {history.losses[-1]:.2f}"
        )


plan = stages.llava_plan(profile.stage_steps, profile.stage_batch_size)
found = stages.run_stages(
    vlm, pictures, held_out, plan, texts=texts, measure=measure, on_stage=after_stage
)
print(matrix(found))
print("* its interval lies wholly above that of the stage before")

sees = dict(found)["captions"]["sees"]
truth = 1 if sees[1] > 0 else -1 if sees[2] < 0 else 0
print(
    f"\nafter captions: VQA less blind {sees[0]:+.2f} [{sees[1]:.2f}, {sees[2]:.2f}]; "
    f"your guess {my_guess:+d}, it is {truth:+d}"
)

# %% [markdown]
# **Is my loss normal?** Your three trainings end to end over the band of the recorded seeds. The loss
# jumps where a stage begins, because the text is another: compare within a stage only. This run has the
# first of the recorded seeds. Where that one is an edge of the band, rounding (it differs with the machine and the number of
# threads) decides on which side of it a point falls: a small share inside is no fault while the curve has the band's form.

# %%
from vlm_lite.studies import load_study
from vlm_lite.train import History

study = load_study("llava_stages")
whole = History()
for history in histories.values():
    start = whole.steps[-1] if whole.steps else 0
    whole.steps += [start + step for step in history.steps]
    whole.losses += history.losses
print(f"the band is recorded: `{study['command']}`, {study['seconds']} s on {study['hardware']}")
plots.loss_curve(
    whole,
    band={**study["band"], "seeds": len(study["seeds"])},
    ylabel="loss on the assistant's words (nats)",
    title="Captions, instructions, VQA",
)

# %% [markdown]
# ## 8. What each stage buys
#
# A panel a metric; from left to right nothing trained, captions, instructions, VQA. Your run with its intervals, over
# the range of the recorded seeds in grey (they were asked half as many questions).

# %% tags=["thumbnail"]
from vlm_lite.figures import Figure

names = {
    "CIDEr": "captions: CIDEr",
    "VQA": "VQA accuracy",
    "form": "form asked for",
    "following": "form and facts",
    "swap": "check: swap",
    "hide": "check: hide",
    "concrete": "check: concrete",
    "sees": "check: sees",
}
figure = Figure(
    width=860, height=400, label="what each stage buys, metric by metric", layout="constrained"
)
for axes, (metric, title) in zip(
    figure.subplots(2, 4, sharex=True).flat, names.items(), strict=True
):
    values, low, high = np.array([scores[metric] for _, scores in found]).T
    recorded = [study["summary"][f"{stage}: {metric}"] for stage, _ in found]
    axes.fill_between(
        range(4), *([each[key] for each in recorded] for key in ("low", "high")), color=PALE
    )
    axes.plot(range(4), [each["mean"] for each in recorded], color=GREY, linewidth=1)
    axes.errorbar(
        range(4), values, yerr=[values - low, high - values], color=BLUE, marker="o", capsize=4
    )
    axes.axhline(
        dict(found)["VQA"]["blind"][0] if metric == "VQA" else 0,
        color=VERMILLION,
        linestyle="--",
        linewidth=1,
    )
    axes.set(
        title=title,
        xticks=range(4),
        xticklabels=["none", "captions", "instr.", "VQA"],
        xlim=(-0.3, 3.3),
    )
print("dashed: 0, and for VQA the blind model")
figure

# %% [markdown]
# **Read it.** Captions make the projector: CIDEr and *concrete* jump at stage 1. But the projector may have learnt more than to
# show the image. It may say "caption this", whatever is asked: look how far the seeds differ in VQA there. Instructions
# bring *form* and *following*, and VQA rises with them, although most replies were long; CIDEr falls, since captions are
# no longer rehearsed. VQA brings the short answers, at a price in conversation: watch *form* again, and which form it is.
# CIDEr need not fall further, though no caption was read: what helps one task can help another.
#
# **By type of question** and by form:

# %%
kinds = sorted(name.removeprefix("VQA ") for name in found[0][1] if name.startswith("VQA "))
print(f"{'VQA accuracy in %':18}" + "".join(f"{kind:>11}" for kind in kinds))
for stage, scores in found:
    print(f"{stage:18}" + "".join(f"{100 * scores[f'VQA {kind}'][0]:>11.0f}" for kind in kinds))
forms = [name for name in found[0][1] if name.startswith("form ")]
print(f"\n{'form in %':18}" + "".join(f"{name.removeprefix('form '):>11}" for name in forms))
for stage, scores in found:
    print(f"{stage:18}" + "".join(f"{100 * scores[name][0]:>11.0f}" for name in forms))

# %% [markdown]
# Two types have only yes and no for an answer, *existence* and *relation*, and a coin earns about 50 there. Far below 50,
# the model mostly says neither, but something else. Near 50, it is no better than the coin: a good mean over all types
# can hide that.
#
# **The fixed prompts**, before and after. Read the last column from the top: what has each prompt won and lost?

# %%
plots.answer_table(
    [images[row["picture"]] for row in prompts],
    {
        "asked": [
            row["prompt"].replace("<user> ", "").replace(" <assistant>", "") for row in prompts
        ],
        **spoken,
    },
    widths=(150, 150, 170, 170, 170),
    label="what it says before and after each stage",
)

# %% [markdown]
# ## 9. What goes wrong
#
# Each of these was trained and recorded like the run above, from the same start, and evaluated on fewer questions.
#
# - *Captions swapped*: half of the images, or all, have another image's caption. No error is raised.
# - *Instructions alone*: stage 1 left out, as many steps of instructions. The language model has LoRA to learn with, and the
#   quickest way down is to guess well without looking.
# - *VQA as chat*: after the instructions, VQA alone, put as a user would put it and with no word about the form. Every
#   question in the data has a short answer, so everything gets one.

# %%
failures = load_study("llava_failures")
rows = [
    "captions",
    "captions, 50% exchanged",
    "captions, 100% exchanged",
    "instructions alone",
    "captions, instructions",
    "captions, instructions, full tuning",
    "captions, instructions, VQA as chat",
]
columns = (
    "CIDEr",
    "concrete",
    "VQA",
    "sees",
    "form",
    "form word",
    "form sentence",
    "form detail",
    "following",
)
print(f"recorded: `{failures['command']}`, mean of {len(failures['seeds'])} seeds\n")
print(
    f"{'':38}"
    + "".join(f"{name.removeprefix('form ') if ' ' in name else name:>10}" for name in columns)
)
for row in rows:
    print(
        f"{row:38}"
        + "".join(f"{failures['summary'][f'{row}: {name}']['mean']:>10.2f}" for name in columns)
    )

# %% [markdown]
# **One of them live**: VQA as chat, on a copy of your model as it was after the instructions, which is where the recorded
# row starts too; with a third of the steps. Watch the loss fall while the conversation is lost.

# %%
talker = kept["instructions"]
spoilt = copy.deepcopy(talker)
as_chat = stages.stage_texts(pictures, ask=chat_prompt)["vqa"]
history = stages.train_stage(
    spoilt,
    pictures.features,
    as_chat,
    stages.Stage(
        "VQA as chat",
        "vqa",
        max(1, profile.stage_steps[2] // 3),
        1e-3,
        "lora",
        profile.stage_batch_size // 2,
    ),
)
orders = instructions.instruction_set(held_out.captions, 60)
own = held_out.features[[row for row, *_ in orders]].float()
asked = [chat_prompt(text) for _, text, *_ in orders]
share = {
    name: np.mean(
        [
            instructions.has_form(reply, form)
            for reply, (*_, form) in zip(
                model.generate(own, asked, max_new_tokens=48), orders, strict=True
            )
        ]
    )
    for name, model in (("before", talker), ("after", spoilt))
}
print(
    f"loss {history.losses[0]:.2f} → {history.losses[-1]:.2f}; form asked for {share['before']:.2f} → {share['after']:.2f}"
)
two = [k for k, (*_, form) in enumerate(orders) if form in ("detail", "sentence")][:3]
plots.answer_table(
    [images[orders[k][0]] for k in two],
    {
        "asked": [orders[k][1] for k in two],
        **{
            name: model.generate(own[two], [asked[k] for k in two], max_new_tokens=48)
            for name, model in (("after instructions", talker), ("after VQA as chat", spoilt))
        },
    },
    label="conversation, before and after VQA as chat",
)

# %% [markdown]
# **Forgetting.** The language model could read scenes in words before it met an image. Can it still? Its **perplexity** on such
# text, $\exp$ of the mean loss on the answers, without any image: frozen, after instructions by LoRA, and after the same
# steps with every weight tuned at the same rate. (Full tuning also *learned* more in these steps: look at *following* in
# the table above. At a tenth of the rate, which is LLaVA's ratio, it would do less of both.) The recorded and the live
# line use different texts: compare within a line only.

# %%
frozen, lora, full = (
    failures["summary"][f"{row}: perplexity"]["mean"]
    for row in ("captions", "captions, instructions", "captions, instructions, full tuning")
)
print(f"recorded, perplexity on text: frozen {frozen:.2f}, LoRA {lora:.2f}, full tuning {full:.2f}")

from vlm_lite.data.scenes import any_scene

texts_only = [
    language.document(any_scene, np.random.default_rng([7, 9, k]), exchanges=5) for k in range(40)
]
live = {
    name: stages.perplexity(model, texts_only)
    for name, model in (
        ("the language model as it came", recipes.new_vlm("mlp")),
        ("yours, after instructions", talker),
        ("after all three stages", vlm),
        ("after VQA as chat", spoilt),
    )
}
print("live: " + ", ".join(f"{name} {value:.2f}" for name, value in live.items()))


# %% [markdown]
# ## 10. Talk with it
#
# Type anything made of the course's words. You talk with two models: yours as it was **after stage 2**, the instructions,
# and as it is **after stage 3**, VQA. Do not wonder if stage 3 begins a long answer like a sentence and then falls apart
# into scraps: that is the price which the table of forms in section 8 shows, here to be read. Whoever wants to talk with
# a model keeps the copy from before; whoever wants short answers takes the last; and who wants both mixes the two kinds
# of text in one stage, as LLaVA-1.5 does. After so short a training the copy errs too, in *what* it says more than in
# *how*: compare *form* with *following*.
#
# The maps show where each looked, by a cause and not by attention: each patch in turn is replaced by the mean patch, and
# lit where the answer becomes less likely.


# %%
def talk_about(image_index, text, chat=True):
    """Two models' answers about a held-out image, and the patches that each answer hangs on."""
    prompt = chat_prompt(text) if chat else short_prompt(text)
    own = held_out.features[image_index].float()  # (16, Dv)
    hidden = own.repeat(17, 1, 1)  # (17, 16, Dv): as it is, then one patch after another hidden
    hidden[range(1, 17), range(16)] = held_out.features[:200].float().mean(dim=(0, 1))
    lit = {}
    print(text)
    for name, model in (("after stage 2", talker), ("after stage 3", vlm)):
        reply = model.generate(own[None], [prompt], max_new_tokens=48)[0]
        batch = build_text_batch(tokenizer, [[(prompt, reply or "no")]])
        with torch.no_grad():
            loss = torch.stack(
                [
                    model(each[None], batch["input_ids"], labels=batch["labels"]).loss
                    for each in hidden
                ]
            )
        lit[name] = (loss[1:] - loss[0]).clamp(min=0).view(4, 4)
        print(f"  {name}: {reply}")
    return plots.attention_over_image(
        images[image_index], torch.stack(list(lit.values())), titles=list(lit), size=170
    )


talk_about(shown, "describe the picture in detail.")

# %%
question = "how many shapes are there?"  # @param {type: "string"}
picture = 3  # @param {type: "integer"}
talk_about(picture, question)

# %% [markdown]
# ## 11. What you showed
#
# The scoreboard of the course: five fixed questions about five fixed images. **Can it see yet?**

# %%
from vlm_lite.data.shapes import five_questions

five = five_questions(held_out.questions)
place = {image_id: k for k, image_id in enumerate(held_out.ids)}
own = held_out.features[[place[row["image_id"]] for row in five]].float()
five_prompts = [short_prompt(row["question"]) for row in five]
scores = {name: dict(found)[name] for name, _ in found}
last = scores["VQA"]
print(
    f"HEADLINE: CIDEr {scores['nothing trained']['CIDEr'][0]:.2f} → {scores['captions']['CIDEr'][0]:.2f} by captions; "
    f"following {scores['captions']['following'][0]:.2f} → {scores['instructions']['following'][0]:.2f} by instructions; "
    f"VQA {scores['instructions']['VQA'][0]:.2f} → {last['VQA'][0]:.2f} by VQA (blind {last['blind'][0]:.2f})"
)


def above(metric, stage, before):
    return scores[stage][metric][1] > scores[before][metric][2]


check.progress(
    {
        "captions make captions concrete": above("concrete", "captions", "nothing trained"),
        "instructions bring the form asked for": above("form", "instructions", "captions"),
        "VQA training brings VQA": above("VQA", "VQA", "instructions"),
        "it sees: above the blind model": last["sees"][1] > 0,
        "another image, another answer": last["swap"][1] > 0,
        "hiding the image hurts": last["hide"][1] > 0,
    }
)
plots.scoreboard(
    [row["image"] for row in five],
    [row["question"] for row in five],
    [row["answer"] for row in five],
    {
        "blind": vlm.generate(None, five_prompts, max_new_tokens=4),
        "after": vlm.generate(own, five_prompts, max_new_tokens=4),
    },
)

# %% [markdown]
# **What this does not show**
#
# - **Anything about photographs**, unless you ran section 12, or about a language model that can reason. Shapes has a small
#   vocabulary and a language model made for it.
# - **That three stages are better than one with everything mixed.** LLaVA-1.5 mixes VQA into the instructions, with a
#   word about the form. Try it: put two texts into one stage.
# - **That *following* is understanding.** It is a regular expression and a count of facts.
# - **More than one run of yours.** The recorded seeds say how far runs differ; the intervals treat questions as
#   independent, which makes them a little too narrow.

# %% [markdown]
# ## 12. The same with photographs (`t4`)
#
# The vision encoder is OpenAI's CLIP ViT-B/16, so an image is 196 words. The language model is a chat model with half a billion parameters,
# whose own chat template takes the place of ours; `language_model` below takes another id. The conversations are
# LLaVA's. Stages, labels, LoRA and checkpoints are the very same code.
#
# **One set of COCO images serves all three stages**: 5,000 to train on and 1,000 held out, drawn by a seed from those that
# captions, VQA v2 and LLaVA-Instruct-150K all speak of. So there is one download and one feature cache. LLaVA-Instruct
# names its images by train2017, which holds about 88% of val2014, the pool that VQA and POPE are tested on; here nothing
# of val2014 is ever chosen. With them come 10,000 conversations and 10,000 questions (`minimal`: 5,000), and 5,000
# questions of the held-out images. `vlm-lite data list` shows every id and address; `VLM_LITE_MIRROR` puts a mirror in
# their place.
#
# After each stage: CIDEr and VQA accuracy, and the four checks with their intervals; *concrete* is CIDEr less CIDEr
# with the captions of other images. (Form and facts of a reply are not measured: in photographs nobody knows the
# truth.) It fetches about 3 GB; a run that died goes on at the next call.
#
# **This part has not been run on a GPU**, nor with the real files: a test runs its code at small sizes, on a made mirror.

# %% tags=["t4"]
minimal = False  # @param {type: "boolean"}
language_model = ""  # @param {type: "string"}

if on_photographs:
    from vlm_lite import photo_stages
    from vlm_lite.data.photographs import FULL, MINIMAL
    from vlm_lite.data.sources import MODELS
    from vlm_lite.files import home

    name = language_model or MODELS["instruct brain"]
    big = recipes.new_vlm("mlp", vision_model=MODELS["eye"], language_model=name).to(compute.device)
    train_photos, test_photos = (
        photo_stages.load_photos(big.vision, split, MINIMAL if minimal else FULL)
        for split in ("train", "val")
    )
    prompt = photo_stages.user_prompt(big.tokenizer)
    photo_said, fixed = (
        {},
        [
            "Describe the picture.",
            "What stands in the middle?",
            "Is there a person? Answer yes or no.",
        ],
    )

    def keep(stage, scores, history):
        photo_said[stage] = big.generate(
            test_photos.features[:3], [prompt(text) for text in fixed], max_new_tokens=48
        )

    table = stages.run_stages(
        big,
        train_photos,
        test_photos,
        photo_stages.photo_plan(on_photographs.stage_steps),
        texts=photo_stages.photo_texts(train_photos, prompt),
        on_stage=keep,
        compute=compute,
        measure=lambda vlm: photo_stages.evaluate_photos(vlm, test_photos, prompt),
        folder=home() / f"llava-{name.replace('/', '--')}{'-minimal' if minimal else ''}",
    )
    print(matrix(table))
    for stage, scores in table:
        print(
            f"{stage:16}"
            + ", ".join(
                f"{key} {value:.2f} [{low:.2f}, {high:.2f}]"
                for key, (value, low, high) in scores.items()
                if key in ("CIDEr", "CIDEr blind", "VQA", "blind", "oracle")
            )
        )
    display(
        plots.answer_table(
            [row["image"] for row in test_photos.captions.select(range(3))],
            {"asked": fixed, **photo_said},
            widths=(150, 150, 170, 170, 170),
        )
    )
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# **Several GPUs, or a run that dies.** The same stages are a command. Every stage keeps checkpoints; the same call goes on
# where a killed one stopped and ends with the same weights, bit for bit on a CPU:
#
# ```sh
# vlm-lite train stages --folder runs/llava
# vlm-lite train stages --folder runs/photos --photographs full
# torchrun --standalone --nproc_per_node 2 -m vlm_lite train stages --folder runs/llava
# ```
#
# ## 13. Check yourself
#
# - [ ] I can say which hidden state LLaVA takes, and why the class token is left out.
# - [ ] I can write the row that the model reads for two turns, and mark what counts.
# - [ ] I know what each stage can teach, and what no stage of the three can.
# - [ ] I can name the number that would have told me that the captions were swapped, although the loss fell.
# - [ ] I would not train on one form of answer alone.
#
# **In words**
#
# 1. Stage 1 reads captions and not one question. Why can the model answer some questions after it, and why does a projector
#    that has learnt to say "caption this", whatever is asked, answer worse than the blind language model?
# 2. GPT-4 saw no image when it wrote LLaVA's data. Which errors of the trained model would you expect from that?
# 3. LoRA changed few numbers and full tuning all of them. Which forgot more here, and what would a lower learning rate
#    change? What would be a fair comparison?
#
# **Where next.** [05](05_evaluation.ipynb) asks what these scores are worth. Or change one thing here, and predict first:
# `linear` for `mlp`; stage 1 twice as long; VQA mixed into the instructions.

# %% [markdown]
# **Glossary**
#
# | term | 日本語 | meaning here |
# |---|---|---|
# | projection, projector | 射影（プロジェクタ） | one map for every patch, from the vision encoder's width to the language model's |
# | hidden state | 隠れ状態 | what comes out of a block of the vision encoder |
# | instruction tuning | 指示チューニング（インストラクションチューニング） | training on requests and the replies wanted |
# | chat template | チャットテンプレート | how messages become one text |
# | turn, multi-turn | ターン（発話）、マルチターン | one side speaks; several times |
# | stage | 段階（ステージ） | one training with one kind of text |
# | LoRA | LoRA（低ランク適応） | a learnt change of low rank beside a frozen matrix |
# | rank | ランク（階数） | how many directions the change may have |
# | forgetting | 破滅的忘却 | losing what was learnt before |
# | perplexity | パープレキシティ | exp of the mean loss; 1 is certainty |
# | CIDEr | CIDEr（キャプション評価指標） | how much a caption resembles those of its image, rare words weighing more |
# | bootstrap interval | ブートストラップ信頼区間 | how far a mean moves when the questions are drawn again |
