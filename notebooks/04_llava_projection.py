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
#     builds: LLaVA's projector, conversations with labels, LoRA, and training in stages with one evaluation
#     lesson: llava
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, prompts/comparison.json]
#     outputs_of: a771633ec12d2fd377021deb4b1660bbf203007c4417312e1c5dbd03934c5ef3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/04_llava_projection.ipynb)

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
print(describe(profile, compute, notebook="04_llava_projection"))

# %% [markdown]
# # 4. LLaVA: a projector, trained in stages
#
# A Q-Former compresses an image into queries. **LLaVA** (Liu et al. 2023) does something simpler: it maps *every* patch to a vector of the language
# model's width, and puts these vectors into the prompt. The rest is data: captions first, then conversations.
#
# **You will build** the projector, the insertion of image features at the image token, a chat template, the labels of a conversation, LoRA, and
# every training stage with one function.
#
# **You will be able to show** what each stage brings and what it loses, with the same evaluation and the same controls after every one, and what
# mixing the data in one stage changes.
#
# **Reading time:** 25 minutes. Six exercises, 36 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (1.5 with bf16) and 1.8 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [03, the Q-Former](03_qformer_gpt2.ipynb): this notebook imports its `VLM`, `train_vlm` and `generate`.
#
# The vision encoder and the language model are those of 03: `shapes-clip`, and `shapes-gpt2`, a GPT-2 architecture of 3.3M parameters trained on
# texts about Shapes.

# %%
import json

import pandas as pd
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data.shapes import load_shapes
from vlm_lite.encoded import encode_shapes
from vlm_lite.files import data_path
from vlm_lite.labs import check
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import load_language_model
from vlm_lite.profiles import resolve_model

vision = CLIP.from_pretrained(resolve_model(profile.vision_model))
language_model, tokenizer = load_language_model(resolve_model(profile.language_model))
train = encode_shapes(vision, "train", profile.stage_images)
val = encode_shapes(vision, "val", profile.val_images)  # none of them is trained on
descriptions = {
    split: load_shapes(split, count)[0]["description"][:]
    for split, count in (("train", profile.stage_images), ("val", profile.val_images))
}
print(
    f"{len(train.ids):,} images to train on, {len(val.ids):,} held out; features {tuple(val.features.shape)}"
)

# %% tags=["save"]
import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlm_lite.data import instructions
from vlm_lite.data.language import CAPTION_PROMPT, chat_prompt, short_prompt
from vlm_lite.encoded import probe
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain
from vlm_lite.lessons.vlm import build_batch, train_vlm
from vlm_lite.optim import MuonAdamW

# %% [markdown]
# ## 1. From patches to a prefix
#
# A ViT has a *hidden state* after each of its blocks. LLaVA takes the one **before the last** and drops the class token. CLIP's loss reads the class
# token alone, so nothing asks the last block to keep what the other tokens hold.
#
# **Exercise 1: the features.** ★☆☆ 3 minutes. `hidden_states` is a list of $L + 1$ tensors $(B, 1+N, D)$, the class token first.
# <details><summary>Hint</summary>
#
# Lists count from the end with negative numbers. The second axis holds the tokens.
# </details>


# %% nbgrader={"grade": false, "grade_id": "select_features", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def select_features(hidden_states):
    """A ViT's hidden states, L + 1 tensors (B, 1+N, D), class token first -> the patches that LLaVA takes, (B, N, D)."""
    ### BEGIN SOLUTION
    return hidden_states[-2][:, 1:]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "select_features-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
select_features = check.select_features(select_features)

# %% [markdown]
# **The projector.** LLaVA's is one linear map, the same for every patch. LLaVA-1.5 adds a GELU and a second map (`mlp2x_gelu`):
#
# $$\text{LLaVA: } P = V W^\top + b \qquad\qquad \text{LLaVA-1.5: } P = \mathrm{GELU}(V W_1^\top + b_1)\, W_2^\top + b_2$$
#
# $V \in \mathbb{R}^{N \times D_v}$ are the patches, $P \in \mathbb{R}^{N \times D}$ the prefix. Sixteen patches give sixteen vectors: nothing is
# compressed, and no patch reads another. Which patch matters is left to the language model's attention.
#
# **Exercise 2: the two-layer projector.** ★☆☆ 4 minutes. Weights are as `nn.Linear` keeps them, (out, in).
# <details><summary>Hint</summary>
#
# `F.linear(x, w, b)` computes $x w^\top + b$; `F.gelu` is exact unless told otherwise.
# </details>


# %% nbgrader={"grade": false, "grade_id": "mlp_projector", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def mlp_projector(features, w1, b1, w2, b2):
    """features (B, N, Dv); w1 (D, Dv), b1 (D,), w2 (D, D), b2 (D,), as nn.Linear keeps them -> (B, N, D)."""
    ### BEGIN SOLUTION
    return F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mlp_projector-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
mlp_projector = check.mlp_projector(mlp_projector)


# %% tags=["save"]
class Projector(nn.Module):
    """features (B, N, Dv) -> prefix (B, N, D_lm), a vector for each patch; kind "linear" (LLaVA) or "mlp" (LLaVA-1.5)."""

    def __init__(self, vision_width, language_width, kind="mlp"):
        super().__init__()
        assert kind in ("linear", "mlp"), f"kind is {kind!r}; expected linear or mlp"
        self.settings = {
            "vision_width": vision_width,
            "language_width": language_width,
            "kind": kind,
        }
        self.first = nn.Linear(vision_width, language_width)
        self.second = nn.Linear(language_width, language_width) if kind == "mlp" else None

    def forward(self, features):
        if self.second is None:
            return self.first(features)
        return mlp_projector(features, *self.first.parameters(), *self.second.parameters())


# %%
torch.manual_seed(0)
projector = Projector(val.features.shape[2], language_model.config.hidden_size)
model = VLM(vision, projector, language_model, tokenizer)
features = val.features[:4].float()
theirs = nn.Sequential(projector.first, nn.GELU(), projector.second)
torch.testing.assert_close(projector(features), theirs(features))
for kind in ("linear", "mlp"):
    size = sum(p.numel() for p in Projector(128, 256, kind).parameters())
    print(
        f"{kind:7} {tuple(features.shape)} -> {tuple(projector(features).shape)}, {size:,} parameters"
    )

# %% [markdown]
# ## 2. Image features at the image token
#
# A chat model reads one text. LLaVA marks the image's position with a special token, `<image>`, looks up the embeddings, and then **puts the image's
# $N$ vectors where that one token stood**:
#
# $$[\,x_1 \dots x_k,\ \langle\text{image}\rangle,\ x_{k+2} \dots\,] \;\to\; [\,e_1 \dots e_k,\ p_1 \dots p_N,\ e_{k+2} \dots\,]$$
#
# The row grows by $N - 1$, and whatever counts positions must count the new row.
#
# **Exercise 3: insert the image.** ★★☆ 7 minutes.
# <details><summary>Hint</summary>
#
# Find the position with `(input_ids == image_id).nonzero()`; then `torch.cat` three pieces.
# </details>


# %% nbgrader={"grade": false, "grade_id": "insert_image", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def insert_image(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (T, D) of input_ids (T,), image_embeds (N, D) -> (T-1+N, D): the vectors where `image_id` stood."""
    ### BEGIN SOLUTION
    place = int((input_ids == image_id).nonzero()[0, 0])
    return torch.cat([token_embeds[:place], image_embeds, token_embeds[place + 1 :]])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "insert_image-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
insert_image = check.insert_image(insert_image)

# %% [markdown]
# 03's `VLM` puts the image in front of the text. That is your function on a text that begins with `<image>`; the proof is that the logits are equal.

# %%
text = tokenizer(f"<image> {short_prompt('how many shapes are there?')}", return_tensors="pt")[
    "input_ids"
]
with torch.no_grad():
    embeds = language_model.get_input_embeddings()(text[0])
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    row = insert_image(embeds, text[0], projector(features[:1])[0], image_id)
    mine = language_model(inputs_embeds=row[None]).logits[0, -1]
    ours = model(features[:1], text[:, 1:], torch.ones_like(text[:, 1:]))[0, -1]
torch.testing.assert_close(mine, ours, atol=1e-4, rtol=1e-4)
print(
    f"{text.shape[1]} tokens -> {len(row)} vectors; largest difference {(mine - ours).abs().max():.1e}"
)

# %% [markdown]
# ## 3. A conversation as one text
#
# A **chat template** turns messages into the text that the model reads. Ours: each turn begins with its role, and the assistant's ends with EOS. When
# the user spoke last, the text stays *open* with `<assistant>`. Each chat model was trained on one template (`tokenizer.apply_chat_template` knows
# it). Another one raises no error: the model just answers worse.
#
# **Exercise 4: the chat template.** ★★☆ 7 minutes. One space between all parts.
# <details><summary>Hint</summary>
#
# Collect the parts in a list and join them with a space; look at the last message's role at the end.
# </details>


# %% nbgrader={"grade": false, "grade_id": "chat_text", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
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
# **Labels.** A conversation of three turns is three examples in one row: the loss covers every token of the assistant, each turn's EOS included, and
# nothing of the user. A later turn reads the earlier ones, as it will in use.
#
# **Exercise 5: the labels of a conversation.** ★★☆ 8 minutes. Ids and labels of equal length, -100 where nothing counts, not shifted.
# <details><summary>Hint</summary>
#
# Go through the turns and extend two lists. Where does EOS belong?
# </details>


# %% nbgrader={"grade": false, "grade_id": "conversation_labels", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
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
# ## 4. How instruction data is made
#
# LLaVA-Instruct-150K was written by a text-only GPT-4, which **saw no image**. It got the *captions* of a COCO image and the *boxes* of its objects,
# with a few examples of the wanted output. It holds 58k conversations, 23k detailed descriptions and 77k reasoning records: 158k, of which only the
# first kind are conversations. What captions and boxes do not say, the data cannot teach; what the writer made up becomes the truth.
#
# Below is such a prompt, and a record in the format of that data set. On Shapes rules take the place of GPT-4: `read_boxes` reads the
# scene's description, and `conversation` writes the turns.


# %% tags=["save"]
def writer_prompt(captions, description, examples):
    """What a text-only writer gets: instructions, examples [(context, reply), ...], and this image's captions and boxes."""
    parts = [
        "You see one image through captions and boxes. Write a conversation about it. Say only what they say."
    ]
    for context, reply in [*examples, ("\n".join([*captions, f"boxes: {description}"]), "")]:
        parts += [f"context:\n{context}", f"conversation:\n{reply}"]
    return "\n\n".join(parts)


def llava_record(image_id, messages):
    """Messages [{"role", "content"}, ...] as a record of LLaVA-Instruct-150K; <image> stands in the first turn."""
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": str(image_id), "image": f"{image_id}.png", "conversations": said}


# %%
kinds = {"conversation": 58_000, "description": 23_000, "reasoning": 77_000}
assert sum(kinds.values()) == 158_000
talks = [
    instructions.conversation(text, np.random.default_rng(k))
    for k, text in enumerate(descriptions["val"][:3])
]
example = (
    "\n".join([*val.captions[0][:2], f"boxes: {descriptions['val'][0]}"]),
    chat_text(talks[0], "<eos>"),
)
print(writer_prompt(val.captions[2][:2], descriptions["val"][2], [example]), "\n")
print(json.dumps(llava_record(val.ids[2], talks[2]), indent=1))

talk = instructions.as_pairs(talks[2])
words = [
    tokenizer([ask, f" {reply}"], add_special_tokens=False)["input_ids"] for ask, reply in talk
]
ids, labels = conversation_labels(words, tokenizer.eos_token_id)
theirs, _, targets = build_batch(tokenizer, [talk])  # 03's row for the same conversation
assert ids == theirs[0].tolist() and labels == targets[0].tolist()
pd.DataFrame({"token": tokenizer.convert_ids_to_tokens(ids), "label": labels}).T

# %% [markdown]
# ## 5. LoRA: a low-rank change
#
# In stage 1 the language model is frozen. To follow instructions it has to change. LLaVA's default is to tune all of it; **LoRA** (Hu et al. 2021) is the
# low-memory way: every matrix $W$ stays as it is, and a change of rank $r$ is learnt beside it:
#
# $$y = x W + b + \frac{\alpha}{r}\, x A^\top B^\top, \qquad A \in \mathbb{R}^{r \times D_{in}},\quad B \in \mathbb{R}^{D_{out} \times r},\quad B = 0 \text{ at the start}$$
#
# GPT-2 keeps its weights in `Conv1D`, a linear layer with its matrix **transposed**, $(D_{in}, D_{out})$. A filter on `nn.Linear` finds nothing but the head.
#
# **Exercise 6: LoRA.** ★★☆ 7 minutes. The output of a `Conv1D` with LoRA beside it.
# <details><summary>Hint</summary>
#
# `x @ weight + bias` is the frozen part. The rank is the number of rows of `a`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "lora_linear", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
def lora_linear(x, weight, bias, a, b, alpha):
    """x (B, T, D_in), Conv1D's weight (D_in, D_out) and bias (D_out,), a (r, D_in), b (D_out, r) -> (B, T, D_out)."""
    ### BEGIN SOLUTION
    return x @ weight + bias + alpha / len(a) * (x @ a.T @ b.T)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "lora_linear-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
lora_linear = check.lora_linear(lora_linear)


# %% tags=["save"]
class LoRA(nn.Module):
    """A frozen linear layer, `nn.Linear` or GPT-2's `Conv1D`, and a learnt change of low rank beside it."""

    def __init__(self, layer, rank=16, alpha=32):
        super().__init__()
        self.layer, self.alpha, self.is_linear = layer, alpha, isinstance(layer, nn.Linear)
        width_in, width_out = layer.weight.T.shape if self.is_linear else layer.weight.shape
        self.a = nn.Parameter(
            nn.init.kaiming_uniform_(layer.weight.new_empty(rank, width_in), 5**0.5)
        )
        self.b = nn.Parameter(layer.weight.new_zeros(width_out, rank))

    def forward(self, x):
        weight = self.layer.weight.T if self.is_linear else self.layer.weight
        bias = 0 if self.layer.bias is None else self.layer.bias
        return lora_linear(x, weight, bias, self.a, self.b, self.alpha)


def set_trainable(model, what):
    """Let the connector learn and, of the language model, nothing ("connector"), "LoRA" (added if need be) or "all"."""
    assert what in ("connector", "LoRA", "all"), f"{what!r}: expected connector, LoRA or all"
    language_model = model.language_model.requires_grad_(what == "all")
    found = [each for each in language_model.modules() if isinstance(each, LoRA)]
    if what == "LoRA" and not found:
        for parent in list(language_model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
                    found.append(LoRA(layer))
                    setattr(parent, name, found[-1])
    for each in found if what == "LoRA" else []:
        each.a.requires_grad_()
        each.b.requires_grad_()
    model.connector.requires_grad_()


# %%
from peft import LoraConfig, inject_adapter_in_model

with_lora = copy.deepcopy(model)
set_trainable(with_lora, "LoRA")
config = LoraConfig(
    r=16, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
)
peft_model = inject_adapter_in_model(config, copy.deepcopy(language_model))
mine, theirs = (
    each.transformer.h[0].attn.c_attn for each in (with_lora.language_model, peft_model)
)
with torch.no_grad():
    mine.b.normal_()  # 0 at the start: there would be nothing to compare
    theirs.lora_A["default"].weight.copy_(mine.a)
    theirs.lora_B["default"].weight.copy_(mine.b)
    x = torch.randn(2, 5, 256)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-4, rtol=1e-4)
count = {
    name: sum(
        p.numel() for n, p in each.named_parameters() if p.requires_grad and "connector" not in n
    )
    for name, each in (("yours", with_lora), ("peft's", peft_model))
}
assert count["yours"] == count["peft's"]
print(f"equal to peft's; {count['yours']:,} parameters learn in the language model")

# %% [markdown]
# ## 6. The stages
#
# **As it was.** LLaVA trains in **two** stages: the projector alone on captions, then projector and language model on instructions. LLaVA-1.5 mixes VQA
# into the second, with a *response-format prompt* ("Answer the question using a single word or phrase.").
#
# The lecture that this course implements makes VQA a stage of its own. So there are our stages, 0 nothing, 1 captions, 2 conversation, 3 VQA, and beside them **mixed**: from the
# checkpoint of stage 1, conversation, captions and VQA with a response-format prompt together, for as many steps as stages 2 and 3.
#
# One function trains them all: 03's `train_vlm` trains whatever is not frozen.


# %% tags=["save"]
def brief_prompt(question):
    """A question with LLaVA-1.5's response-format prompt, in this vocabulary."""
    return chat_prompt(f"{question} {instructions.ONE_WORD}")


def stage_turns(data, descriptions, seed=0):
    """What each stage reads of an EncodedDataset: name -> N lists of turns (3 N where mixed: one kind a row)."""
    captions = [turns[:1] for turns in data.turns]
    talks = [
        instructions.as_pairs(instructions.conversation(text, np.random.default_rng([seed, 2, k])))
        for k, text in enumerate(descriptions)
    ]
    asked = [[] for _ in data.ids]
    number = {image_id: k for k, image_id in enumerate(data.ids)}
    columns = (data.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        if len(asked[number[image_id]]) < 6:  # a row has to fit into the context
            asked[number[image_id]].append((brief_prompt(question), answer))
    vqa = [turns[1:] for turns in data.turns]
    return {
        "captions": captions,
        "conversation": talks,
        "VQA": vqa,
        "mixed": talks + captions + asked,
    }


def adamw(model, lr):
    """LLaVA's optimizer, for what is trainable; no weight decay."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0
    )


def plan(steps, batch_size):
    """The stages, one row each. Stage 1 takes Muon: in so few steps AdamW aligns the projector with some seeds only."""
    first, second, third = steps
    half = max(1, batch_size // 2)
    rows = [
        ("captions", "connector", 3e-2, first, batch_size, None, MuonAdamW),
        ("conversation", "LoRA", 1e-3, second, half, None, adamw),
        ("VQA", "LoRA", 1e-3, third, half, 4, adamw),
        ("mixed", "LoRA", 1e-3, second + third, half, None, adamw),
    ]
    names = "data", "trainable", "lr", "steps", "batch_size", "per_row", "make_optimizer"
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def train_stage(model, features, turns, stage, seed=0):
    """One stage of `plan` on features (N, T, D) and turns of `stage_turns` -> History."""
    settings = dict(stage)
    set_trainable(model, settings.pop("trainable"))
    said = turns[settings.pop("data")]
    features = features.repeat(len(said) // len(features), 1, 1)  # three rows an image where mixed
    return train_vlm(model, features, said, seed=seed, **settings)


# %% [markdown]
# ## 7. One evaluation for every stage
#
# On the same held-out images: **CIDEr** of captions, **VQA** accuracy, and **instruction following**. *Form* is the share of replies in the form asked for (a word, a sentence, a list, a
# description, a count with its reason); *following* also asks for the right facts. Four controls are near **0 for a model that does not use the image**:
#
# | control | is |
# |---|---|
# | blind | VQA less that of the same model without an image |
# | shuffled | VQA less that with another image |
# | hidden | VQA less that with an empty image |
# | concrete | share of an image's objects that its caption names, less what another image's caption names |
#
# Intervals are 95%, bootstrapped over questions.
#
# **Predict first.** Which of CIDEr, form and VQA will be highest after which stage? What will stage 3 lose, and will mixed keep it?


# %% tags=["save"]
def evaluate(model, data, descriptions, *, count=100, questions=300, ask=short_prompt, seed=0):
    """{metric: Interval}: CIDEr, VQA, form, following, and four controls that are 0 for a model that does not look."""
    count = min(count, len(data.ids))
    said = model.generate(data.features[:count].float(), [CAPTION_PROMPT] * count, 48)
    references, replies = dict(enumerate(data.captions[:count])), dict(enumerate(said))
    cider = caption_scores(references, replies, metrics=("CIDEr",), each=True)["CIDEr_each"]
    scenes = [instructions.read_boxes(text) for text in descriptions[:count]]
    names = [
        [f"handwritten {x.value}" if x.is_digit else f"{x.colour} {x.shape}" for x in scene.items]
        for scene in scenes
    ]
    own, other = (
        [
            np.mean([name in text for name in there])
            for text, there in zip(texts, names, strict=True)
        ]
        for texts in (said, said[1:] + said[:1])
    )
    asked = instructions.instruction_set({"description": descriptions}, count, seed)
    seen = data.features[[row for row, *_ in asked]].float()
    replies = model.generate(seen, [chat_prompt(text) for _, text, *_ in asked], 64)
    pairs = list(zip(replies, asked, strict=True))
    result = probe(model, data, questions, prompt=ask)
    vqa = result.scores["vlm"]
    return {
        "CIDEr": bootstrap_interval(cider),
        "VQA": result.accuracy["vlm"],
        "form": bootstrap_interval([float(instructions.has_form(r, a[3])) for r, a in pairs]),
        "following": bootstrap_interval([instructions.follows(r, a[2], a[3]) for r, a in pairs]),
        "blind": result.gain,
        "shuffled": multimodal_gain(vqa, result.scores["shuffled"]),
        "hidden": multimodal_gain(vqa, result.scores["blank"]),
        "concrete": multimodal_gain(own, other),
    }


def run_stages(model, train, val, descriptions, steps, batch_size, seed=0, on_stage=None):
    """Train and evaluate stages 1 to 3, and mixed from stage 1 -> (scores, histories, models), each by stage."""
    turns, stages = stage_turns(train, descriptions["train"], seed), plan(steps, batch_size)
    scores, histories, models = {}, {}, {"nothing trained": model}
    starts = {
        "captions": "nothing trained",
        "conversation": "captions",
        "VQA": "conversation",
        "mixed": "captions",
    }
    for number, name in enumerate(["nothing trained", *stages]):
        if name in stages:
            models[name] = copy.deepcopy(models[starts[name]])
            histories[name] = train_stage(
                models[name], train.features, turns, stages[name], seed=10 * seed + number
            )
        ask = brief_prompt if name == "mixed" else short_prompt
        scores[name] = evaluate(models[name].eval(), val, descriptions["val"], ask=ask)
        if on_stage:
            on_stage(name, scores[name])
    return scores, histories, models


def prompt_truth(prompt, description, captions):
    """(truth, reply -> bool) of a prompt of comparison.json about an image."""
    scene = instructions.read_boxes(description)
    said = {form: reply for _, reply, form in instructions.turns(scene, np.random.default_rng(0))}
    form = next(
        (f for f, word in (("detail", "in detail"), ("list", "list")) if word in prompt), None
    )
    if form:
        return said[form], lambda reply: bool(instructions.follows(reply, said[form], form))
    if prompt == CAPTION_PROMPT:
        right = [instructions.facts(text) for text in captions]
        return captions[0], lambda reply: instructions.facts(reply) in right
    truth = (
        str(len(scene.shapes)) if "how many shapes" in prompt else "yes" if scene.digit else "no"
    )
    return truth, lambda reply: instructions.facts(reply) == instructions.facts(truth)


@torch.no_grad()
def perplexity(model, texts):
    """exp of the mean loss (nats a token) on the answers of texts [(context, [(prompt, answer), ...]), ...], no image."""
    rows = [
        [(f"{context} {turns[0][0]}".strip(), turns[0][1]), *turns[1:]] for context, turns in texts
    ]
    return math.exp(model(None, *build_batch(model.tokenizer, rows)))


# %%
recipe = plan(profile.stage_steps, profile.stage_batch_size)
scores, histories, models = run_stages(
    model, train, val, descriptions, profile.stage_steps, profile.stage_batch_size
)
table = pd.DataFrame(recipe).T.drop(columns=["make_optimizer", "per_row"])
table["optimizer"] = [row["make_optimizer"].__name__ for row in recipe.values()]
table["seconds"] = [round(histories[name].seconds[-1]) for name in recipe]
table

# %% tags=["thumbnail"]
cells = {
    stage: {name: str(each) for name, each in found.items()} for stage, found in scores.items()
}
last, kept = scores["VQA"], scores["mixed"]
print(
    f"HEADLINE: VQA {last['VQA'].value:.2f} after stage 3, {kept['VQA'].value:.2f} mixed; "
    f"form {last['form'].value:.2f} and {kept['form'].value:.2f}"
)
display(pd.DataFrame(cells).T)
plots.loss_curve(
    histories["captions"], title="Stage 1, captions", ylabel="loss on answer tokens (nats)"
)

# %% [markdown]
# **Captions** bring CIDEr and concreteness, and no form: whatever is asked, it captions. **Conversation** brings form and halves CIDEr. **VQA** brings the highest VQA accuracy and loses half of the form.
# **Mixed** keeps what stage 3 loses: form 1.00 against 0.51, and CIDEr as after stage 1, with VQA a little lower (0.72 against 0.76, intervals overlap). It also took longer: its rows hold more turns.
# One seed: your run will differ a little.
#
# ## 8. Read the answers
#
# Numbers first, then words: six fixed prompts (`data/prompts/comparison.json`) about held-out images. ✓ where the reply states the facts of the truth, no more and no
# fewer, and has the form asked for.


# %%
prompts = json.loads(data_path("prompts", "comparison.json").read_text(encoding="utf-8"))["prompts"]
prompts = [row for row in prompts if row["picture"] < len(val.ids)]
shown = [row["picture"] for row in prompts]
texts = [row["prompt"] for row in prompts]
truths = [
    prompt_truth(text, descriptions["val"][k], val.captions[k])
    for k, text in zip(shown, texts, strict=True)
]
columns = {"prompt": texts, "truth": [truth for truth, _ in truths]}
for name in ("captions", "conversation", "VQA", "mixed"):
    replies = models[name].generate(val.features[shown].float(), texts, 48)
    columns[name] = [
        f"{'✓' if right(reply) else '✗'} {reply}"
        for reply, (_, right) in zip(replies, truths, strict=True)
    ]
plots.answer_table([val.images[k] for k in shown], columns, widths=(130, 130, 150, 150, 150, 150))

# %% [markdown]
# **A conversation of several turns** with the mixed model, about two images. The whole text so far is the prompt of the next turn.

# %%
for k in (2, 3):
    messages = []
    for question in (
        "how many shapes are there?",
        "list the shapes in the picture.",
        "describe the picture in detail.",
    ):
        messages.append({"role": "user", "content": question})
        prompt = chat_text(messages, tokenizer.eos_token)
        reply = models["mixed"].generate(val.features[[k]].float(), [prompt], 48)[0]
        messages.append({"role": "assistant", "content": reply})
        print(f"image {k}  {question} {reply}")
    print(f"         truth: {descriptions['val'][k]}\n")
plots.show_images([val.images[2], val.images[3]], ["image 2", "image 3"])

# %% [markdown]
# ## 9. What forgetting costs: frozen, LoRA, full
#
# The language model could read scenes in words before it met an image. Its **perplexity** on such text, $\exp$ of the mean loss on the answers, without an image, says whether it still
# can. Stage 2 with LoRA, and with every weight tuned at the same learning rate. A frozen language model keeps the perplexity of the first row.


# %%
from vlm_lite.data import language
from vlm_lite.zoo import any_scene

read = [
    language.document(any_scene, np.random.default_rng([7, 9, k]), exchanges=5) for k in range(40)
]
turns = stage_turns(train, descriptions["train"])
rows = {"before stage 2": models["captions"], "LoRA": models["conversation"]}
rows["full"] = copy.deepcopy(models["captions"])
full = recipe["conversation"] | {"trainable": "all"}
train_stage(rows["full"], train.features, turns, full, seed=2)
rows |= {"stage 3": models["VQA"], "mixed": models["mixed"]}
asked = instructions.instruction_set({"description": descriptions["val"]}, 100)
forgetting = {}
for name, each in rows.items():
    replies = each.eval().generate(
        val.features[[a[0] for a in asked]].float(), [chat_prompt(a[1]) for a in asked], 64
    )
    form = np.mean(
        [instructions.has_form(reply, a[3]) for reply, a in zip(replies, asked, strict=True)]
    )
    forgetting[name] = {"perplexity on text": perplexity(each, read), "form": form}
pd.DataFrame(forgetting).T.round(2)

# %% [markdown]
# Full tuning learns the form best in these 60 steps and forgets most: perplexity 2.27, from 1.39, where LoRA has 1.51. Mixed stays at 1.42, in more steps. At a tenth of the rate, which
# is LLaVA-1.5's ratio between full tuning and LoRA, full tuning would do less of both; that is not measured here.
#
# ## What you showed
#
# - A projector is a map for each patch; inserting its vectors at the image token gives the logits of the whole VLM.
# - Your template, labels and LoRA equal 03's rows and `peft`'s layer.
# - One function trained every stage, and one evaluation with four controls followed them.
#
# ## What this does not show
#
# - **Anything about photographs**, or about a language model that can reason.
# - **Whether the order of the stages matters.** One order was run, and one mixture, with one seed and no longer training.
# - **That *following* is understanding.** It is a regular expression and a count of facts.
#
# ## Check yourself
#
# - [ ] I can say which hidden state LLaVA takes, and why the class token is left out.
# - [ ] I can write the row that the model reads for two turns, and mark what counts.
# - [ ] I know LLaVA's two stages, and which stage of ours the lecture adds.
# - [ ] I would not train on one form of answer alone.
#
# ## To answer in words
#
# 1. Stage 1 reads captions and not one question. Why can the model answer some questions after it?
# 2. The writer of LLaVA's data saw no image. Which errors of the trained model would you expect from that?
#
# ## Where next
#
# [05](05_evaluation.ipynb) asks what these scores are worth. Or change one thing here, and predict first: `linear` for `mlp`; stage 1 twice as long.
