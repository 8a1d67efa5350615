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
#     title: A Q-Former and a VLM
#     builds: a Q-Former, equal to BLIP-2's, and the vision-language model around it
#     lesson: [qformer, vlm]
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm, results/qformer_connector.json,
#             results/qformer_queries.json]
#     outputs_of: e89ee07f1bd509f99b4df646574381f1f1c71a9e42a07e49919530abc57b04e8
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/03_qformer_gpt2.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/03_qformer_gpt2.ipynb)

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
print(describe(profile, compute, notebook="03_qformer_gpt2"))

# %% [markdown]
# # 3. A Q-Former, and a vision-language model around it
#
# A CLIP cannot speak, and a language model cannot see. Freeze both, and train a small **connector**
# that turns image features into vectors which the language model reads like words. That is BLIP-2 (Li et al. 2023), and its connector is the **Q-Former**.
#
# The language model here, `shapes-gpt2`, has GPT-2's *architecture* and 3.3M parameters. It was trained on texts about Shapes,
# never on images, and is not OpenAI's GPT-2. The vision encoder is
# `shapes-clip`, the CLIP of [01](01_clip_infonce.ipynb), trained for longer.
#
# **You will build** the Q-Former, labels that train answers only, the VLM with its loss, generation with a KV cache, and the loop.
#
# **You will be able to show** that the Q-Former equals BLIP-2's and the loss that of `transformers`; that the answers come from the image; and on which patch one depends.
#
# **Reading time:** 25 minutes. Six exercises, 54 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 2.5 min (1.5 with bf16) and 1.9 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** attention, as in [02](02_vit.ipynb). Cells tagged `save` become `lessons/qformer.py`, `save-vlm` `lessons/vlm.py`. Photographs, OpenAI's CLIP and its GPT-2 come in [03t](03t_photographs.ipynb).

# %% tags=["hide"] cellView="form"
# @title The whole model in one diagram
import pandas as pd
from IPython.display import display

from vlm_lite import diagrams, plots
from vlm_lite.encoded import encode_shapes, occlusion, probe
from vlm_lite.labs import check
from vlm_lite.lessons.language import CAPTION_PROMPT
from vlm_lite.models.vlm import load_vlm
from vlm_lite.studies import load_study

shipped = load_vlm(profile.vlm_model)
vision, language_model, tokenizer = shipped.vision, shipped.language_model, shipped.tokenizer
val = encode_shapes(vision, "val", profile.val_images)  # none of them is trained on
diagrams.vlm(shipped, val.images[0], *val.turns[0][1])

# %% [markdown]
# ## 1. The frozen parts
#
# The encoder cuts an image into 16 patches, one for each cell of the 4 x 4 grid, and gives a vector of width 128 for each:
# $V \in \mathbb{R}^{N \times D_v}$. As in LLaVA, we take the layer *before the last* (the last serves the comparison with
# captions), without the class token. The encoder is frozen, so the features are computed once and kept on disk. What is said about an
# image comes in **turns**: a prompt and its answer.

# %%
train = encode_shapes(vision, "train", profile.train_images)  # features (images, 16, 128)
print(*(f"  {prompt} {answer}" for prompt, answer in train.turns[0]), sep="\n")
plots.show_images(train.images[:5], [turns[-1][0] for turns in train.turns[:5]])

# %% [markdown]
# ## 2. The Q-Former
#
# A **query** is a learnt vector, the same for every image. $Q$ queries collect what is needed from the $N$ patches, so $Q$ vectors come
# out, whatever $N$ is. In each layer the queries attend to each other (**self-attention**) and to the patches (**cross-attention**).
# Both are the same operation. In each of $H$ heads of width $h = D / H$:
#
# $$A = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{h}}\right) \qquad \text{out} = A\,v$$
#
# $q$ is computed from $x$, and $k$ and $v$ from a **source**: the patches, or $x$ itself. There is no mask, so queries see each other both ways:
# a set, not a sequence.
#
# **Exercise 1: attention to a source.** ★★☆ 8 minutes. Write `forward`. Keep the detached weights in `self.weights`; section 9 draws them.
#
# <details><summary>Hint</summary>
#
# Split each of the three with `"b n (heads h) -> b heads n h"`. The softmax runs over the last axis, and
# `"b heads n h -> b n (heads h)"` puts the heads side by side before `self.output`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "CrossAttention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
import torch
from einops import rearrange
from torch import nn

from vlm_lite.models.parts import init_linear


class MultiHeadAttention(nn.Module):
    """x (B, Q, D) attends to source (B, N, Ds) -> (B, Q, D); the weights (B, H, Q, N) stay in `self.weights`."""

    def __init__(self, width, num_heads, source_width):
        super().__init__()
        assert width % num_heads == 0, f"width {width} does not divide into {num_heads} heads"
        self.num_heads, self.weights = num_heads, None
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)

    def forward(self, x, source):
        ### BEGIN SOLUTION
        projected = self.query(x), self.key(source), self.value(source)
        split = "b n (heads h) -> b heads n h"
        q, k, v = (rearrange(each, split, heads=self.num_heads) for each in projected)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, Q, N)
        self.weights = weights.detach()
        mixed = weights @ v  # (B, H, Q, N) x (B, H, N, h) -> (B, H, Q, h)
        return self.output(rearrange(mixed, "b heads n h -> b n (heads h)"))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "CrossAttention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
MultiHeadAttention = check.CrossAttention(MultiHeadAttention)

# %% [markdown]
# **A layer** has three steps. Each result is *added* to the queries, and the sum is normalised (**post-norm**, as in BERT; the ViT of 02
# normalises *before* each step):
#
# $$Z \leftarrow \mathrm{LN}(Z + \mathrm{self\_attention}(Z, Z)) \qquad
#   Z \leftarrow \mathrm{LN}(Z + \mathrm{cross\_attention}(Z, V)) \qquad
#   Z \leftarrow \mathrm{LN}(Z + \mathrm{mlp}(Z))$$
#
# **Exercise 2: the layer.** ★★☆ 6 minutes. Write `forward`. A layer with `cross=False` leaves the second step out. The MLP is `mlp_in`, GELU, `mlp_out`.
#
# <details><summary>Hint</summary>
#
# Three lines of the form `queries = norm(queries + step(...))`. What is the source when the queries attend to each other?
# </details>


# %% nbgrader={"grade": false, "grade_id": "QFormerLayer", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class QFormerLayer(nn.Module):
    """queries (B, Q, D), patches (B, N, Dv) -> queries (B, Q, D)."""

    def __init__(self, width, num_heads, mlp_width, vision_width, cross=True):
        super().__init__()
        self.cross = cross
        self.self_attention = MultiHeadAttention(width, num_heads, width)
        self.self_norm = nn.LayerNorm(width, eps=1e-12)
        if cross:
            self.cross_attention = MultiHeadAttention(width, num_heads, vision_width)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, queries, patches):
        ### BEGIN SOLUTION
        queries = self.self_norm(queries + self.self_attention(queries, queries))
        if self.cross:
            queries = self.cross_norm(queries + self.cross_attention(queries, patches))
        return self.mlp_norm(queries + self.mlp_out(nn.functional.gelu(self.mlp_in(queries))))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "QFormerLayer-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
QFormerLayer = check.QFormerLayer(QFormerLayer)

# %% [markdown]
# **The whole Q-Former.** The queries start at N(0, 0.02), so they are *different*. Nothing else distinguishes them: from zeros (`transformers`' start, before a
# checkpoint is loaded) all $Q$ outputs would be equal. BLIP-2 has cross-attention in every second layer
# (`cross_attention_frequency=2`). **We use 1, cross-attention in every layer,** since three layers are few.
#
# **Exercise 3: the forward pass.** ★☆☆ 5 minutes. Queries for each image of the batch, `input_norm`, the layers. The check's cell then copies the weights of
# `transformers`' model, with BLIP-2's frequency of 2, into yours: the same patches must give the same numbers.
#
# <details><summary>Hint</summary>
#
# `self.query_tokens` has shape (Q, D); `.expand(len(patches), -1, -1)` puts a batch axis in front.
# </details>


# %% nbgrader={"grade": false, "grade_id": "QFormer", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class QFormer(nn.Module):
    """patches (B, N, Dv) -> (B, Q, D) (Li et al. 2023, section 3.1)."""

    def __init__(self, vision_width, *, num_query_tokens=16, width=192, num_layers=3, num_heads=6,
                 mlp_width=768, cross_attention_frequency=1):  # fmt: skip
        super().__init__()
        self.query_tokens = nn.Parameter(0.02 * torch.randn(num_query_tokens, width))
        self.input_norm = nn.LayerNorm(width, eps=1e-12)
        crosses = [k % cross_attention_frequency == 0 for k in range(num_layers)]
        sizes = width, num_heads, mlp_width, vision_width
        self.layers = nn.ModuleList(QFormerLayer(*sizes, cross) for cross in crosses)
        # BERT's start, N(0, 0.02); queries and keys of the cross-attention larger: scores near 1
        init_linear(self, sharp=("cross_attention.query", "cross_attention.key"))

    def forward(self, patches):
        ### BEGIN SOLUTION
        queries = self.input_norm(self.query_tokens).expand(len(patches), -1, -1)  # (B, Q, D)
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "QFormer-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
QFormer = check.QFormer(QFormer)
torch.manual_seed(0)
check.same_as_blip2(QFormer)

# %% [markdown]
# ### BLIP-2's first stage: one model, three masks
#
# BLIP-2 trains its Q-Former twice. **Stage 2** is this notebook. **Stage 1** has no language model: queries *and a caption* go
# through the self-attention together, and three losses ask whether the queries hold what the caption says. Only the mask differs:
#
# - **ITC**, contrastive: neither attends to the other; the best query must match the caption, as in CLIP.
# - **ITM**, matching: all attend to all; do the two belong together?
# - **ITG**, generation: text attends to the queries and its own past. Queries never read text, or they could pass the words on.
#
# ([Built in 03b](03b_first_stage.ipynb).)

# %% tags=["hide"]
diagrams.blip2_masks(4, ["[start]", "a", "red", "star"])

# %% [markdown]
# ## 3. From queries to a prefix
#
# The connector has a LayerNorm before the Q-Former, as BLIP-2 does (a few channels of CLIP's features are far larger than the rest),
# and after it a linear layer to the language model's width. The result is the **prefix**: $Q$ vectors in front of the text.


# %% tags=["save"]
class QFormerConnector(nn.Module):
    """features (B, N, Dv) -> prefix (B, Q, D_lm); `sizes` as in QFormer."""

    def __init__(self, vision_width, language_width, **sizes):
        super().__init__()
        self.settings = {"vision_width": vision_width, "language_width": language_width, **sizes}
        self.vision_norm = nn.LayerNorm(vision_width)
        self.qformer = QFormer(vision_width, **sizes)
        self.language_projection = nn.Linear(self.qformer.query_tokens.shape[1], language_width)
        init_linear(self.language_projection)

    def forward(self, features):
        return self.language_projection(self.qformer(self.vision_norm(features)))


# %% [markdown]
# ## 4. Labels: only the answer counts
#
# The language model reads one sequence, and the loss is the mean over the answer's tokens and the EOS that ends it:
#
# $$[\,\underbrace{p_1 \dots p_Q}_{\text{prefix}},\ \underbrace{x_1 \dots x_m}_{\text{prompt}},\ \underbrace{a_1 \dots a_n,\ \langle\text{eos}\rangle}_{\text{answer}}\,]
# \qquad \mathcal{L} = -\frac{1}{n+1} \sum_{t \,\in\, \text{answer}} \log P(t \mid \text{all before } t)$$
#
# A **label** of `-100` leaves a position out. Prompts get it, or the connector would learn to predict questions; so does padding.
# Labels are *not* shifted: the loss compares position $t$ with the prediction at $t - 1$.
#
# OpenAI's GPT-2 has no padding token, so people use EOS. A mask by `ids == pad` then erases the true EOS too, and the model
# never learns to stop. **Mask by length.**
#
# **Exercise 4: a batch with labels.** ★★★ 12 minutes. A row is a list of turns, one after another: prompt, `" " + answer`, EOS. Pad on the right. With a `tokenizer.chat_template`, use `text.conversation(tokenizer, turns)`.
#
# <details><summary>Hint</summary>
#
# `tokenizer(text, add_special_tokens=False)["input_ids"]` is a list of ids. Build each row's ids and labels in step.
# `pad_sequence(tensors, batch_first=True, padding_value=pad)` pads on the right; the mask is padded ones.
# </details>


# %% nbgrader={"grade": false, "grade_id": "build_batch", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save-vlm"]
import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint, digest
from vlm_lite.models import text
from vlm_lite.models.parts import FrozenParts
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute


def build_batch(tokenizer, rows):
    """B lists of (prompt, answer) -> input_ids, attention_mask (1 text, 0 padding), labels: each (B, T)."""
    eos, pad = text.special_ids(tokenizer)
    ids, labels = [[] for _ in rows], [[] for _ in rows]
    ### BEGIN SOLUTION
    for k, turns in enumerate(rows):
        for turn in turns:
            texts = [turn[0], f" {turn[1].lstrip()}"]
            prompt, answer = tokenizer(texts, add_special_tokens=False)["input_ids"]
            ids[k] += prompt + answer + [eos]
            labels[k] += [-100] * len(prompt) + answer + [eos]
        if tokenizer.chat_template:  # then a row is, token for token, what the template renders
            ids[k], labels[k] = text.conversation(tokenizer, turns)
    mask = pad_sequence([torch.ones(len(row)).long() for row in ids], True)  # by length
    ids = pad_sequence([torch.tensor(row) for row in ids], True, pad)
    return ids, mask, pad_sequence([torch.tensor(row) for row in labels], True, -100)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "build_batch-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
build_batch = check.build_batch(build_batch)

ids, mask, labels = build_batch(tokenizer, [train.turns[0][2:3], train.turns[0][3:4]])
row = {"token": tokenizer.convert_ids_to_tokens(ids[0]), "mask": mask[0], "label": labels[0]}
pd.DataFrame(row).T

# %% [markdown]
# ## 5. The VLM, its loss, and generation
#
# Embed the text, put the prefix in front (`text.prefixed` adds mask and positions), and call the language model as it is. Gradients
# reach the connector *through* it. Its output head runs on the text and the last prefix vector only (`logits_to_keep`): 50,257 logits per position, GPT-2's, cost memory.
#
# **Sequence packing.** Several turns about one image share a row, so its prefix is computed once. `text.block_mask` finds the turns by their labels: each
# reads itself and the prefix, or a caption would give the answers away.
#
# **The proof.** Below the class, `transformers` computes loss and logits itself, with labels of -100 for the prefix: they must agree.


# %% tags=["save-vlm"]
class VLM(FrozenParts):
    """A frozen vision encoder, a connector that learns, and a frozen causal language model of transformers."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__()
        self.vision, self.connector = vision.requires_grad_(False), connector
        self.language_model = language_model.requires_grad_(False)
        self.tokenizer = tokenizer

    def inputs(self, features, input_ids, attention_mask):
        """[prefix][text] as the language model takes it. features None: blind, without a prefix."""
        embeds = self.language_model.get_input_embeddings()(input_ids)  # (B, T, D_lm)
        if features is not None:
            assert len(features) == len(input_ids), "one image a row"
            prefix = self.connector(features.to(embeds.device).float())  # (B, Q, D_lm)
            embeds = torch.cat([prefix.to(embeds.dtype), embeds], dim=1)  # (B, Q + T, D_lm)
        return text.prefixed(self.language_model, embeds, attention_mask)  # with mask and positions

    def forward(self, features, input_ids, attention_mask, labels=None):
        """-> logits (B, T, V) of what follows each text token; with labels (B, T), unshifted, the loss ()."""
        inputs, length = self.inputs(features, input_ids, attention_mask), input_ids.shape[1]
        logits = self.language_model(**inputs, use_cache=False, logits_to_keep=length + 1).logits
        if labels is None:
            return logits[:, -length:]
        predicted = logits[:, :-1].float()  # the first at the last prefix vector
        targets = labels[:, -predicted.shape[1] :]
        return F.cross_entropy(predicted.flatten(0, 1), targets.flatten())  # -100 is left out


# %%
torch.manual_seed(0)
sizes = {"num_query_tokens": profile.num_query_tokens, "cross_attention_frequency": 1}
connector = QFormerConnector(128, language_model.config.hidden_size, **sizes)
model = VLM(vision, connector, language_model, tokenizer)
print(f"{sum(p.numel() for p in connector.parameters()):,} parameters are trained")
check.same_as_transformers(model, train.features[:2], ids, mask, labels)

# %% [markdown]
# **Generation.** Greedy: take the most probable token, append it, repeat until EOS. Keys and values of what was read don't change, so
# they stay in a **KV cache**, and from the second round the model reads a single token.
#
# Prompts of a batch differ in length, and the new token must follow the prompt in *every* row. So the padding goes to the left, in front of the prefix
# (`text.padding_first`). Then each row gets the answer it would get alone.
#
# **Exercise 5: generate.** ★★★ 15 minutes. The beginning is given. In each round: call the language model, take the argmax of the last logits, keep it in `answers`, note
# which rows are `finished`, and make the next inputs.
#
# <details><summary>Hint</summary>
#
# Call `model.language_model` on `**inputs` with a cache, and keep one position's logits. The next inputs: the embedding of the new tokens (B, 1, D), a
# mask one column wider, positions one higher, and `output[cache]` under the key `cache`, a string.
# </details>


# %% nbgrader={"grade": false, "grade_id": "generate", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save-vlm"]
@torch.no_grad()
def generate(model, features, prompts, max_new_tokens=16):
    """B prompts and features (B, N, Dv), or None -> B greedy answers, each ended by EOS or the limit."""
    device, cache = model.language_model.device, text.cache_name(model.language_model)
    ids, mask = (each.to(device) for each in text.prompt_batch(model.tokenizer, prompts))  # (B, T)
    inputs = text.padding_first(model.inputs(features, ids, mask))
    stops = torch.tensor(text.stop_ids(model.tokenizer), device=device)
    finished, answers = torch.zeros(len(ids), dtype=torch.bool, device=device), []
    for _ in range(max_new_tokens):
        ### BEGIN SOLUTION
        output = model.language_model(**inputs, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(dim=-1)  # (B,)
        answers.append(token)
        finished |= torch.isin(token, stops)  # EOS, or the chat template's end of a turn
        inputs = {
            "inputs_embeds": model.language_model.get_input_embeddings()(token[:, None]),
            "attention_mask": F.pad(inputs["attention_mask"], (0, 1), value=1),
            "position_ids": inputs["position_ids"][:, -1:] + 1,
            cache: output[cache],
        }
        ### END SOLUTION
        if finished.all():
            break
    return text.decode(model.tokenizer, answers, len(ids))


VLM.generate = generate


# %% nbgrader={"grade": true, "grade_id": "generate-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
generate = check.generate(generate)
VLM.generate = generate

check.alone_as_together(model, val.features[:8], [turns[-1][0] for turns in val.turns[:8]])

# %% [markdown]
# ## 6. Two references, and the start
#
# Two prompts without an image to compare with (section 8 explains the other columns):
#
# - **blind**: the question alone. What it gets right comes from priors (which answer usually follows such a question) and luck.
# - **oracle**: the scene in words, then the question. Few connectors pass it.

# %%
captions = {"before training": model.generate(val.features[5:8], [CAPTION_PROMPT] * 3, 48)}
print("the oracle reads:", val.questions[0]["description"], val.turns[0][1][0])
probe(model, val, limit=100).frame().round(1)

# %% [markdown]
# The scene in words is nearly enough. The untrained connector sends noise: *vlm* is no better than blind.
#
# ## 7. Training
#
# `answers / whole` is this process's answer tokens over the processes' mean (1 with one process): then the mean of their gradients is the whole batch's.
#
# **Exercise 6: one training step.** ★★☆ 8 minutes. In this order: the loss under `accelerator.autocast()`, times `answers / whole`; `accelerator.backward`; clip the
# gradient's norm to 1 with `accelerator.clip_grad_norm_`; step optimizer and schedule; set the gradients to zero. Return the detached loss, averaged over processes.
#
# <details><summary>Hint</summary>
#
# `model(*batch)` is the loss. `accelerator.reduce(loss.detach(), "mean")` averages over the processes.
# </details>


# %% nbgrader={"grade": false, "grade_id": "vlm_training_step", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save-vlm"]
def training_step(model, batch, accelerator, optimizer, scheduler):
    """One step on this process's share of a batch (features, ids, mask, labels) -> the whole batch's loss ()."""
    answers = (batch[3] != -100).sum().float()
    whole = accelerator.reduce(answers, "mean")  # the same, averaged over the processes
    ### BEGIN SOLUTION
    with accelerator.autocast():
        loss = model(*batch) * answers / whole
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return accelerator.reduce(loss.detach(), "mean")
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "vlm_training_step-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
training_step = check.vlm_training_step(training_step)

# %% [markdown]
# **The loop.** AdamW scales each number of a gradient by itself. **Muon** (Jordan et al. 2024) makes all directions of a *matrix's* gradient about equally large, so that
# weak ones are learnt as fast as strong ones. `MuonAdamW` gives matrices to Muon and the rest to AdamW. `Checkpoint` sets train mode, seeds each step and
# saves, so that an interrupted run goes on.
#
# **Predict first.** After this short training, what percentage will it answer correctly?
#
# The same file runs on several processes, `torchrun --standalone --nproc_per_node 2 notebooks/03_qformer_gpt2.py`: each takes its share of the rows.


# %% tags=["save-vlm"]
def train_vlm(model, features, turns, *, steps, batch_size, lr, per_row=None, seed=0,
              evaluate=None, make_optimizer=MuonAdamW):  # fmt: skip
    """Train what is not frozen on features (N, T, D) and N lists of (prompt, answer) turns -> History.

    per_row: so many turns an image, drawn at random, that don't read each other; None: all, as one conversation.
    """
    assert len(features) == len(turns), "one list of turns an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = make_optimizer(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "per_row": per_row, "data": digest(turns)}
    code = (type(model), type(model.connector), training_step, train_vlm, make_optimizer)
    run = Checkpoint("vlm", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    told = [k for k, each in enumerate(turns) if each]  # images of which something is said
    for step in run.steps(steps):
        rows = random.sample(told, min(batch_size, len(told)))
        said = [turns[k] for k in rows]
        if per_row:
            said = [random.sample(each, min(per_row, len(each))) for each in said]
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        ids, mask, labels = build_batch(model.tokenizer, said[share])
        batch = features[rows[share]], ids, text.block_mask(labels) if per_row else mask, labels
        batch = [part.to(accelerator.device) for part in batch]
        run.log(loss=training_step(prepared, batch, accelerator, optimizer, scheduler))
        if evaluate and (step + 1) % 50 == 0:
            run.log(**evaluate(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


# %%
my_guess = 50  # percent
torch.manual_seed(0)  # a finished run starts afresh; an interrupted one goes on
model.connector = QFormerConnector(128, language_model.config.hidden_size, **sizes)
recipe = {k: getattr(profile, f"connector_{k}") for k in ("steps", "batch_size", "per_row", "lr")}
history = train_vlm(model, train.features, train.turns, **recipe)
print(f"{recipe['steps']} steps of {recipe['batch_size']} images in {history.seconds[-1]:.0f} s")

# %% [markdown]
# **Is my loss normal?** The band: three recorded seeds in fp32 (`vlm-lite study qformer_connector`). A run in bf16 may end just above it. *Well above, or flat*: are the features of this encoder and layer, do the queries differ, has the connector gradients? *Below from the start*: the
# loss counts easy tokens; are prompt, prefix and padding -100?

# %%
study = load_study("qformer_connector")
band = {**study["band"], "seeds": len(study["seeds"])}
plots.loss_curve(history, band=band, ylabel="loss on answer tokens (nats)", title="The connector")

# %% [markdown]
# ## 8. Do the answers come from the image?
#
# The same questions (`probe` calls the loop and VQA score of [00](00_start_here.ipynb), section 5) with the image, **blind**, with a **blank** image, with another image (**shuffled**), and the **oracle**. The *multimodal gain* is VLM
# minus blind. The course's own **bridge score** is the share of the possible gain that came through the connector:
#
# $$\text{bridge score} = \frac{\text{VLM} - \text{blind}}{\text{oracle} - \text{blind}}$$
#
# Compare bridge scores under one language model only. Intervals are bootstrapped over questions.

# %% tags=["thumbnail"]
result = probe(model, val, limit=700)
vlm, blind, shuffled = (result.accuracy[name] for name in ("vlm", "blind", "shuffled"))
assert profile.name == "smoke" or result.bridge.low > 0.4 and shuffled.value - blind.value < 0.1
print(f"HEADLINE: bridge score {result.bridge}; VQA {vlm.value:.0%}, blind {blind.value:.0%}")
captions["after training"] = model.generate(val.features[5:8], [CAPTION_PROMPT] * 3, 48)
captions["the file's caption"] = [five[0] for five in val.captions[5:8]]
display(plots.answer_table(val.images[5:8], captions, label="captions before and after training"))
display(result.frame().round(2))
plots.controls_bars(result.accuracy, guess=("the VLM", my_guess), bridge=result.bridge)

# %% [markdown]
# With its image the model is far above blind, with another near it: the answers come from the image. In the saved captions, the cross moves into the 8's corner,
# and the orange cross takes the blue square's shape: 00's binding. *Relation* questions, about two objects at once, gain little. `shapes-vlm` ([05b](05b_retrieval_and_steps.ipynb))
# is this model after 1,040 steps of 32 images. On 1,000 questions: relation 82%, bridge score 0.90 (`vlm-lite study shapes_vlm`).
#
# ## 9. On which patch does an answer depend?
#
# An attention map (here the last layer's mean) shows only where queries *read*: the encoder has already mixed the patches. **Occlusion** is an intervention, so it shows a cause: paint
# one cell over, encode the image again, and see how far the probability of the answer falls. In the saved run, attention is spread over four objects; only the red heart matters much (0.43).

# %%
question, answer = val.turns[0][1]
maps = occlusion(model, val.images[0], question, answer)  # (2, 4, 4)
print(question, answer)
plots.attention_over_image(val.images[0], maps, titles=["attention", "fall when hidden"], size=190)

# %% [markdown]
# ## 10. How many queries?
#
# Here 16 queries read 16 patches. A photograph has 196 patches or more, and each would cost the language model a position and time in every layer. The Q-Former
# compresses *before* it. The training with other numbers of queries, shortened to 100 steps and recorded over three seeds (`vlm-lite study qformer_queries`):

# %%
compared = load_study("qformer_queries")
names = [f"{q} queries: bridge score" for q in (1, 4, 8, 16, 32)]
table = pd.DataFrame(compared["summary"])[names].T
assert (table["high"].iloc[:2].values < table["low"].iloc[1:3].values).all()  # 1 < 4 < 8
table

# %% [markdown]
# After 100 steps, 4 queries reach over half of 16's bridge score; from 8 on neighbours' ranges overlap.
#
# ## What you showed
#
# - With the same weights your Q-Former equals `Blip2QFormerModel`; loss and logits of your VLM are those of `transformers`.
# - Prompts of different lengths get the same answers together as alone.
# - After a short training, over half of what this language model could know comes through.
#
# ## What this does not show
#
# - What BLIP-2's first stage is worth, or another connector.
# - Anything about photographs: the language model was made for Shapes.
# - Why a query attends where it does. And the intervals are a little too narrow: several questions are about one image.
#
# ## Check yourself
#
# - [ ] I can say what is the same for every image (the queries) and what is not (the prefix).
# - [ ] I know the label of each position of prefix, prompt, answer, EOS and padding, and why nothing is shifted.
# - [ ] I would not believe a VLM's accuracy without its blind and shuffled lines.
#
# ## To answer in words
#
# You double the queries and the bridge score stays. Does the encoder, the connector or the language model limit it? Which number tells?
#
# ## Where next
#
# [Notebook 04](04_llava_projection.ipynb) replaces the Q-Former by a map for each patch, and trains in stages.
