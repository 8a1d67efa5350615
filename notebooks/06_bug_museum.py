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
#     title: The bug museum
#     builds: sixteen silent bugs of minimal VLMs, each seen in a number, mended, and caught by a one-line test
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm]
#     outputs_of: 84358a5bad1a4a602d3209afee4db25282136e77ff96029bd33d99dd226a850a
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/06_bug_museum.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/06_bug_museum.ipynb)

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
print(describe(profile, compute, notebook="06_bug_museum"))

# %% [markdown]
# # 6. The bug museum: silent bugs of minimal VLMs
#
# A bug that stops your program is a kindness: it says where it is. The bugs in this museum do not. The program runs, the
# loss falls, sentences come out; and the model is blind, or half as good as it could be, or its score is not its own.
#
# **You will build** nothing new. You will break what the other notebooks built, in sixteen ways that are easy to write
# and hard to see. Each exhibit has four parts: the **symptom**, a number measured here and now; the **cause**; the
# **mend**, with the symptom measured again; and **one line of test** that fails on the broken code and passes on the
# mended. The notebook runs that line on both, and stops if it does not tell them apart.
#
# **You will be able to show** for each of the sixteen what it costs, and that one line would have caught it. In six
# exercises you get a plausible function with a bug that nobody points out, and hand it back mended.
#
# **Reading time:** 25 minutes. Six exercises, 40 minutes if you write them all, none needed to go on.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.3 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [01, CLIP](01_clip_infonce.ipynb) and [03, the Q-Former](03_qformer_gpt2.ipynb), for the parts that
# break here. The rooms do not depend on one another: begin with the one that hurts you today.
#
# All runs in the small Shapes world, `tiny`, and no training takes longer than a few seconds.

# %%
import inspect
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn
from transformers.utils import logging

from vlm_lite import plots, recipes
from vlm_lite.data.language import short_prompt
from vlm_lite.data.shapes import load_shapes
from vlm_lite.figures import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, VERMILLION, Figure, wrap
from vlm_lite.labs import check
from vlm_lite.models.vlm import VLM
from vlm_lite.profiles import resolve_model

plots.style()
logging.set_verbosity_error()
logging.disable_progress_bar()
vlm = VLM.from_pretrained(resolve_model("shapes-vlm"))  # eye, nerve and brain, all trained
eye, brain, tokenizer = vlm.vision, vlm.language_model, vlm.tokenizer
table, questions = load_shapes("val", profile.val_images, progress=False)
pictures, captions, ids = recipes.load_pictures(table)
pictures_by_id = dict(zip(ids, pictures, strict=True))
print(
    f"{len(pictures)} pictures, {len(questions)} questions; the parts to be broken: "
    + ", ".join(
        f"{name} {sum(p.numel() for p in part.parameters()):,} parameters"
        for name, part in (("eye", eye.vision_model), ("nerve", vlm.connector), ("brain", brain))
    )
)


# %% [markdown]
# ## How an exhibit is made
#
# `exhibit` takes a broken and a mended version of the same thing, a function that measures the symptom, and a test. It
# measures both, runs the test on both, and **fails if the test does not fail on the broken one and pass on the mended
# one**. So every line of test that you see below is known to work. All exhibits are kept for the last room.


# %%
class Exhibit(NamedTuple):
    name: str
    measure: str  # what the symptom counts
    before: float
    after: float
    form: str  # how to print it
    test: str  # the line that catches it


museum = {}  # by name


def passes(test, thing):
    """Whether a test, run on a thing, passes."""
    try:
        test(thing)
    except AssertionError:
        return False
    return True


def exhibit(name, measure, symptom, test, *, broken, mended, form="{:.0%}"):
    """Measure the symptom and run the test, on the broken and on the mended version."""
    line = inspect.getsource(test).strip().splitlines()[-1].strip()
    before, after = symptom(broken), symptom(mended)
    found = Exhibit(name, measure, before, after, form, line)
    assert not passes(test, broken), f"{name}: the test does not notice the bug"
    assert passes(test, mended), f"{name}: the test rejects the mended version"
    museum[name] = found
    print(
        f"EXHIBIT {list(museum).index(name) + 1}: {name}\n  {measure}: broken {form.format(before)}, mended {form.format(after)}\n"
        f"  fails on the broken one, passes on the mended: {line}"
    )


# %% [markdown]
# ## Room 1. Three bugs and a countdown
#
# A tiny GPT-2 of one layer has one thing to learn: to count down. It reads rows such as
# `5 4 3 2 1 0 ■`, where ■ is the end of sequence (EOS). The rows differ in length and are filled up with ■, because GPT-2
# has no padding token and everyone takes EOS for it.
#
# Four copies learn from the same rows, for the same number of steps. One has right labels. The other three have labels as
# they are found in real code. We call them A, B, C and D.

# %%
from transformers import GPT2Config, GPT2LMHeadModel

STOP = PAD = 10  # the digits are the tokens 0 to 9
STARTS = range(2, 10)
rows = [[*range(start, -1, -1), STOP] for start in STARTS]
longest = max(map(len, rows))
count_ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])  # (8, 11)
count_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def right_labels(ids, mask):
    return ids.masked_fill(mask == 0, -100)


def shifted_labels(ids, mask):
    labels = ids.masked_fill(mask == 0, -100)
    return F.pad(
        labels[:, 1:], (0, 1), value=-100
    )  # "the label of a position is the token after it"


def labels_without_padding(ids, mask):
    return ids.masked_fill(ids == PAD, -100)  # "no loss on padding"


def labels_with_zero_ignored(ids, mask):
    return ids.masked_fill((mask == 0) | (ids == 0), -100)  # what ignore_index=0 does


def learn_to_count(labels, steps=80):
    """A tiny GPT-2, trained with labels(ids, mask), and its losses."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11,
        n_positions=16,
        n_embd=32,
        n_layer=1,
        n_head=2,
        embd_pdrop=0,
        resid_pdrop=0,
        attn_pdrop=0,
        bos_token_id=STOP,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    model, losses = GPT2LMHeadModel(config), []
    model.loss_type = "ForCausalLM"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        loss = model(
            input_ids=count_ids, attention_mask=count_mask, labels=labels(count_ids, count_mask)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


labels_of = {
    "A": labels_without_padding,
    "B": shifted_labels,
    "C": right_labels,
    "D": labels_with_zero_ignored,
}
counters = {name: learn_to_count(labels) for name, labels in labels_of.items()}
figure = Figure(width=640, height=290, label="four losses", layout="constrained")
axes = figure.subplots()
for (name, (_, losses)), colour, line in zip(
    counters.items(), (BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":"), strict=True
):
    axes.plot(
        range(1, len(losses) + 1),
        losses,
        line,
        color=colour,
        label=f"{name}: {losses[-1]:.3f} at the end",
    )
axes.set(
    yscale="log",
    xlabel="training step",
    ylabel="loss (nats)",
    title="Which of the four can count down?",
)
axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
axes.legend(loc="upper right")
figure

# %% [markdown]
# **Predict first.** Which of the four is healthy? You have what most people look at: the loss.

# %%
my_guess = "A"  # A, B, C or D


# %%
@torch.no_grad()
def count_down(model, start, most=14):
    """What the model says after `start`, until it stops or has said `most` tokens."""
    row = [start]
    while len(row) < most and row[-1] != STOP:
        row.append(model(input_ids=torch.tensor([row])).logits[0, -1].argmax().item())
    return row


healthy = [
    name
    for name, (model, _) in counters.items()
    if count_down(model, 9) == [*range(9, -1, -1), STOP]
]
figure = Figure(width=640, height=192, label="what the four say after 9")
figure.text_at(16, 10, "After a 9, they say", fontweight="bold", fontsize=10.5)
for k, (name, (model, losses)) in enumerate(counters.items()):
    top = 38 + 36 * k
    figure.text_at(16, top + 15, f"{name}   loss {losses[-1]:.3f}", va="center", fontweight="bold")
    for place, token in enumerate(count_down(model, 9)):
        axes = figure.axes_at(
            120 + 36 * place, top, 32, 30, facecolor=PALE if name in healthy else "#fbe3d3"
        )
        axes.text(
            0.5,
            0.5,
            "■" if token == STOP else str(token),
            ha="center",
            va="center",
            fontsize=12,
            color=BLUE if name in healthy else VERMILLION,
            fontweight="bold",
        )
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
print(f"you guessed {my_guess}; healthy: {', '.join(healthy)}")
figure


# %% [markdown]
# **What each of them had.** Nothing in the loss tells, because each model learnt its labels perfectly. It was the labels
# that said something else.
#
# - **Labels shifted twice.** `transformers` compares the prediction at $t$ with the label at $t+1$ by itself. Who shifts
#   beforehand, "because a language model predicts the next token", teaches it to predict the token after next. *Mend:*
#   labels are the ids, in place.
# - **EOS erased as padding.** With `pad = eos`, `ids == pad` finds the true EOS as well. The model is never asked to
#   stop, so it does not. *Mend:* mask by length, that is by the attention mask.
# - **`ignore_index=0`.** Token 0 is a word like any other (in GPT-2's vocabulary it is "!"). Whoever marks "nothing here"
#   with 0 never teaches that word. ClipCap's training script did. *Mend:* -100, which no token has.
#
# The symptom is the share of starts from which the countdown is right.


# %%
def right_countdowns(labels):
    model = next(counters[name][0] for name, each in labels_of.items() if each is labels)
    return sum(
        count_down(model, start) == row for start, row in zip(STARTS, rows, strict=True)
    ) / len(rows)


def test(labels):
    assert torch.equal(labels(count_ids, count_mask)[:, 0], count_ids[:, 0])


exhibit(
    "labels shifted twice",
    "countdowns right",
    right_countdowns,
    test,
    broken=shifted_labels,
    mended=right_labels,
)


def test(labels):
    assert (labels(count_ids, count_mask) == STOP).any(dim=1).all()


exhibit(
    "EOS erased as padding",
    "countdowns right",
    right_countdowns,
    test,
    broken=labels_without_padding,
    mended=right_labels,
)


def test(labels):
    assert set(count_ids.unique().tolist()) <= set(labels(count_ids, count_mask).unique().tolist())


exhibit(
    "ignore_index=0",
    "countdowns right",
    right_countdowns,
    test,
    broken=labels_with_zero_ignored,
    mended=right_labels,
)

# %% [markdown]
# ## Room 2. Words around a picture
#
# Now the real thing: `shapes-vlm`, trained and working. A row is prefix, prompt, answer, EOS. Labels must be as long as
# the row, or `transformers` raises an error. So somebody makes them long enough, with zeros for the prefix, and takes the
# ids of the text for the rest.
#
# **Exhibit 4.** *Symptom:* the share of the loss that comes from the answers. *Cause:* the rest of the loss asks the
# nerve to make the brain say `<pad>` after each vector of the prefix, and to guess questions that nobody could know.
# *Mend:* -100 for all that is not answer.

# %%
from vlm_lite.models.text import build_text_batch

few = questions.select(range(24))
pairs = [(short_prompt(q), a) for q, a in zip(few["question"][:], few["answer"][:], strict=True)]
batch = build_text_batch(
    tokenizer, [[pair] for pair in pairs]
)  # input_ids, attention_mask, labels: (24, T)
features = vlm.encode(
    recipes.pixel_values(torch.stack([pictures_by_id[i] for i in few["image_id"][:]]))
)
Q = vlm.prefix(features[:1]).shape[1]


def labels_for_all(batch):
    text = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return F.pad(text, (Q, 0), value=0)  # zeros, so that the lengths agree


def labels_for_answers(batch):
    return F.pad(batch["labels"], (Q, 0), value=-100)


with torch.no_grad():
    row = torch.cat([vlm.prefix(features), vlm.embed(batch["input_ids"])], dim=1)  # (24, Q + T, D)
    row_mask = F.pad(batch["attention_mask"], (Q, 0), value=1)
    row_logits = brain(inputs_embeds=row, attention_mask=row_mask).logits  # (24, Q + T, V)


def share_of_answers(labels):
    targets = labels(batch)[:, 1:]
    surprise = F.cross_entropy(
        row_logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    print(f"    {labels.__name__}: mean loss {surprise.sum() / (targets != -100).sum():.2f}")
    return (surprise[labels_for_answers(batch)[:, 1:] != -100].sum() / surprise.sum()).item()


def test(labels):
    assert (labels(batch) != -100).sum() == sum(
        len(tokenizer.tokenize(answer)) + 1 for _, answer in pairs
    )


exhibit(
    "labels on the prompt",
    "share of the loss on answers",
    share_of_answers,
    test,
    broken=labels_for_all,
    mended=labels_for_answers,
    form="{:.1%}",
)


# %% [markdown]
# **Exercise 1: spot the bug.** ★★☆ 8 minutes. Somebody computes the loss by hand, with the labels right at last: one
# for each token of the text, -100 where there is no loss, not shifted. The function runs, and the loss falls when one
# trains with it. What is wrong? Hand it back mended.
#
# <details><summary>Hint</summary>
#
# Which position predicts the first token of the text? Write the row down: three vectors of prefix, four
# tokens, and under each what its logits are a prediction *of*.
# </details>


# %%
def broken_answer_loss(logits, labels, num_prefix):
    text_logits = logits[:, num_prefix:]  # (B, T, V), the prefix is no text
    return F.cross_entropy(text_logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


# %% nbgrader={"grade": false, "grade_id": "answer_loss", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def answer_loss(logits, labels, num_prefix):
    """logits (B, Q+T, V), labels (B, T) of the text, num_prefix = Q of 1 or more -> mean loss of labelled tokens, ()."""
    ### BEGIN SOLUTION
    text_logits = logits[:, num_prefix - 1 : -1]  # (B, T, V), each predicts the token after it
    return F.cross_entropy(text_logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "answer_loss-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
answer_loss = check.answer_loss(answer_loss)
for name, function in (("broken", broken_answer_loss), ("mended", answer_loss)):
    print(
        f"{name}: loss {function(row_logits, batch['labels'], Q):.2f} for a model that answers well"
    )
with torch.no_grad():
    print(f"vlm_lite: {vlm(features, **batch).loss:.2f}")

# %% [markdown]
# **Exhibit 5: the neighbour in the batch.** Prompts of different length go through the brain together, padded on the
# left so that all end in the same column. The mask is right. Each prompt is then asked alone.

# %%
told = [
    f"{scene} {short_prompt(question)}"
    for scene, question in zip(few["description"][:], few["question"][:], strict=True)
]
padded = tokenizer(
    told, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
)


def broken_position_ids(attention_mask):
    return torch.arange(attention_mask.shape[1]).expand_as(
        attention_mask
    )  # what forward() takes when you give none


@torch.no_grad()
def next_token_logits(position_ids):
    mask = padded["attention_mask"]
    return brain(
        input_ids=padded["input_ids"], attention_mask=mask, position_ids=position_ids(mask)
    ).logits[:, -1]


with torch.no_grad():
    alone = torch.cat(
        [
            brain(
                input_ids=torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            ).logits[:, -1]
            for text in told
        ]
    )  # (24, V)
    nothing_given = brain(**{k: padded[k] for k in ("input_ids", "attention_mask")}).logits[:, -1]
together = next_token_logits(broken_position_ids)
print(
    f"forward() without position ids gives the same: {torch.allclose(nothing_given, together, atol=1e-4)}"
)
print(
    f"answers that change because others are in the batch: {(together.argmax(1) != alone.argmax(1)).sum()} of {len(told)}"
)


# %% [markdown]
# **Exercise 2: spot the bug.** ★★☆ 6 minutes. `broken_position_ids` above. Mend it for padding *anywhere*: on the left, on
# the right, or between the prefix and the text, where a VLM has it.
#
# <details><summary>Hint</summary>
#
# The place of a vector is the number of real vectors before it. `cumsum` counts ones. Padding may get
# any place that exists.
# </details>


# %% nbgrader={"grade": false, "grade_id": "position_ids", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def position_ids(attention_mask):
    """attention_mask (B, T) of ones and zeros -> (B, T), the place of each vector, from 0."""
    ### BEGIN SOLUTION
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "position_ids-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
position_ids = check.position_ids(position_ids)


def test(position_ids):
    torch.testing.assert_close(next_token_logits(position_ids), alone, atol=1e-3, rtol=0)


exhibit(
    "left padding",
    "largest change of a logit",
    lambda positions: (next_token_logits(positions) - alone).abs().max().item(),
    test,
    broken=broken_position_ids,
    mended=position_ids,
    form="{:.2g}",
)

# %% [markdown]
# *Cause:* `generate()` derives the places from the mask; `forward()` does not, and counts padding. A short prompt then
# starts at a place where training never put a first word. So one and the same model may generate well and be scored badly.
# *Mend:* give `forward()` the places yourself, counted from the mask.
#
# **Exhibits 6 and 7: two ways to lose the answer.** The model knows the answers; they get lost on the way. *Symptom:* the
# share of answers that are right.
#
# - *Cause of 6:* given ids, `generate` returns prompt and answer together; given vectors, as by a VLM, it returns **only
#   the answer**. Who cuts the prompt off then cuts the answer off, since a slice beyond the end of a tensor is no error.
#   *Mend:* decode all that came back.
# - *Cause of 7:* trained with `question: ... answer:`, asked with `question: ...`. *Mend:* one function writes the prompt
#   for training and for testing.

# %%
asked = questions.select(range(80))
asked_features = vlm.encode(
    recipes.pixel_values(torch.stack([pictures_by_id[i] for i in asked["image_id"][:]]))
)


def generate_from_vectors(texts):
    """(vectors that were read, ids that came back) of the brain given prefix and prompt as vectors."""
    prompt = tokenizer(
        texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
    )
    vectors = vlm.embed(prompt["input_ids"])  # (B, T, D)
    return vectors, brain.generate(
        inputs_embeds=vectors,
        attention_mask=prompt["attention_mask"],
        max_new_tokens=4,
        do_sample=False,
    )


def prompt_cut_off(vectors, ids):
    return tokenizer.batch_decode(ids[:, vectors.shape[1] :], skip_special_tokens=True)


def all_decoded(vectors, ids):
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


read, came_back = generate_from_vectors(told)


def answers_right(decode):
    return (
        sum(
            said.strip() == right
            for said, right in zip(decode(read, came_back), few["answer"][:], strict=True)
        )
        / 24
    )


def test(decode):
    assert all(decode(read, came_back))


exhibit(
    "the answer sliced off",
    "answers right, scene in words",
    answers_right,
    test,
    broken=prompt_cut_off,
    mended=all_decoded,
)


def other_prompt(question):
    return f"question: {question}"


def vqa(prompt):
    said = vlm.generate(asked_features, [prompt(q) for q in asked["question"][:]], max_new_tokens=4)
    print(f"    {prompt.__name__}: {prompt('...')!r} gives {said[:3]}")
    return sum(a == b for a, b in zip(said, asked["answer"][:], strict=True)) / len(asked)


def test(prompt):
    assert prompt("is it?") == pairs[0][0].replace(few[0]["question"], "is it?")


exhibit("another prompt", "VQA answers right", vqa, test, broken=other_prompt, mended=short_prompt)

# %% [markdown]
# ## Room 3. A lame nerve
#
# Two Q-Formers with all the right parts. Notebook 03 builds the healthy one.
#
# **Exhibit 8: queries that wait in line.** `BertModel(is_decoder=True, add_cross_attention=True)` has queries, self- and
# cross-attention. *Symptom:* disturb one query, and see which outputs move; of the 28 pairs of 8 queries, how many see
# each other both ways? *Cause:* a decoder is causal. The first query learns alone; only the last knows all. *Mend:*
# attention without a mask. (Disturb with noise: a constant shift vanishes in LayerNorm.)
#
# **Exhibit 9: queries that start at zero.** *Symptom:* how many different vectors come out of 8 queries. *Cause:* within
# a Q-Former nothing but their start tells queries apart, so at zero there is one query at the price of eight. Worse, a
# LayerNorm divides by the size of what it is given, and on the way back by almost nothing: look at the gradient. Clipping
# then shrinks the gradient of all *other* weights to almost nothing. (In front of GPT-2 each query stands at another
# place, so their gradients differ, and training may pull them apart. The first steps are lost all the same.) Zeros are how
# `transformers`' BLIP-2 starts, counting on a checkpoint to overwrite them. *Mend:* draw them from $\mathcal{N}(0, 0.02)$.

# %%
from transformers import BertConfig, BertModel

from vlm_lite.lessons.qformer import QFormer
from vlm_lite.models.projectors import make_connector

torch.manual_seed(0)
queries, patches = torch.randn(1, 8, 32), torch.randn(1, 16, 32)
bert = BertModel(
    BertConfig(
        vocab_size=9,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=True,
        add_cross_attention=True,
    )
).eval()
qformer = QFormer(
    32, num_query_tokens=8, width=32, num_layers=2, num_heads=4, mlp_width=64
).eval()


def bert_decoder(queries):
    return bert(inputs_embeds=queries, encoder_hidden_states=patches).last_hidden_state


def plain_qformer(queries):
    return torch.func.functional_call(qformer, {"query_tokens": queries[0]}, (patches,))


@torch.no_grad()
def influence(model):
    """Which of the 8 outputs move when query j is disturbed: booleans (8, 8)."""
    columns = []
    for j in range(8):
        disturbed = queries.clone()
        disturbed[0, j] += torch.randn(32)
        columns.append((model(disturbed) - model(queries)).abs().amax(dim=(0, 2)) > 1e-6)
    return torch.stack(columns, dim=1)


def pairs_both_ways(model):
    return int((influence(model) & influence(model).T).triu(1).sum())


def test(model):
    assert influence(model).all()


exhibit(
    "causal queries",
    "pairs that see each other, of 28",
    pairs_both_ways,
    test,
    broken=bert_decoder,
    mended=plain_qformer,
    form="{:.0f}",
)


def nerve_with(std):
    """A whole VLM with an untrained nerve whose 8 queries are drawn from N(0, std)."""
    torch.manual_seed(0)
    nerve = make_connector(
        "qformer", eye.feature_width, vlm.embed.embedding_dim, **recipes.SHAPES_QFORMER
    )
    nn.init.normal_(nerve.qformer.query_tokens, std=std) if std else nn.init.zeros_(
        nerve.qformer.query_tokens
    )
    return VLM(vision=eye, connector=nerve, language_model=brain, tokenizer=tokenizer).eval()


def different_vectors(std):
    model = nerve_with(std)
    model.train()
    model(features, **batch).loss.backward()
    each = model.connector.qformer.query_tokens.grad  # (8, D)
    norms = {name: p.grad.norm() for name, p in model.connector.named_parameters()}
    of_all, of_queries = torch.stack(list(norms.values())).norm(), norms.pop("qformer.query_tokens")
    left = torch.stack(list(norms.values())).norm() / of_all.clamp(min=1)
    print(
        f"    standard deviation {std}: gradient of the queries {of_queries:.0e}; when the whole is clipped to 1, "
        f"{left:.0e} is left for all other weights\n      the gradient of the second query differs from that of the "
        f"first by {(each[1] - each[0]).norm() / each[0].norm():.0%}"
    )
    return len({tuple(vector) for vector in (model.prefix(features)[0] * 1e3).round().tolist()})


def test(std):
    assert nerve_with(std).prefix(features).std(dim=1).max() > 1e-3


exhibit(
    "queries start at zero",
    "different vectors from 8 queries",
    different_vectors,
    test,
    broken=0.0,
    mended=0.02,
    form="{:.0f}",
)

# %% [markdown]
# ## Room 4. An eye with the wrong glasses
#
# The zoo's CLIP finds the right caption among a few hundred almost always. It was trained on pixels from which CLIP's own
# mean was taken and which were divided by CLIP's own standard deviation. Here are five other ways to prepare the same
# pictures. None raises an error.
#
# **Predict first.** Many copy the constants of ImageNet from another script: (0.485, 0.456, 0.406) and (0.229, 0.224,
# 0.225) instead of (0.481, 0.458, 0.408) and (0.269, 0.261, 0.276). What R@1 is left?

# %%
my_guess = 0.5  # image-to-text R@1 with ImageNet's constants, from 0 to 1

# %%
gallery = min(400, len(pictures))
texts = [five[0] for five in captions[:gallery]]
text_embeds = F.normalize(recipes.embed_texts(eye, texts, tokenizer), dim=-1)  # (gallery, P)


def recall_at_1(image_embeds, text_embeds):
    """The share of rows whose own partner is the nearest; identical captions count as hits."""
    best = (image_embeds @ text_embeds.T).argmax(dim=1).tolist()
    return sum(texts[i] == texts[j] for i, j in enumerate(best)) / len(best)


def pixels_0_to_1(images):
    return images / 255


def pixels_bgr(images):
    return recipes.pixel_values(images.flip(1))  # as OpenCV reads a file


def pixels_minus_1_to_1(images):
    return images / 127.5 - 1


def pixels_imagenet(images):
    return recipes.pixel_values(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pixels_divided_twice(images):
    return recipes.pixel_values(
        (images / 255).to(torch.uint8)
    )  # scaled already: all becomes 0 or 1


@torch.no_grad()
def recall_with(pixels):
    return recall_at_1(
        F.normalize(eye.encode_image(pixels(pictures[:gallery])), dim=-1), text_embeds
    )


ways = {
    "CLIP's own": recipes.pixel_values,
    "ImageNet's": pixels_imagenet,
    "-1 to 1": pixels_minus_1_to_1,
    "BGR for RGB": pixels_bgr,
    "0 to 1": pixels_0_to_1,
    "÷255 twice": pixels_divided_twice,
}
glasses = {name: recall_with(pixels) for name, pixels in ways.items()}
figure = Figure(width=640, height=280, label="recall under six preparations", layout="constrained")
axes = figure.subplots()
axes.bar(
    list(glasses),
    glasses.values(),
    color=[BLUE, *[VERMILLION] * 5],
    hatch=["", *["//"] * 5],
    edgecolor="white",
)
for k, value in enumerate(glasses.values()):
    axes.text(k, value + 0.02, f"{value:.1%}", ha="center", fontweight="bold")
axes.plot([0.6, 1.4], [my_guess] * 2, "--", color="black", label=f"my guess: {my_guess:.0%}")
axes.set(
    ylabel="image-to-text R@1",
    ylim=(0, 1.12),
    title=f"One eye, {gallery} captions, six ways to prepare pixels",
)
axes.legend(loc="upper right")
figure

# %% [markdown]
# **Exhibit 10.** *Cause:* pixels as the model never saw them. *Mend:* the constants that belong to the checkpoint; take
# them from its processor. Look at ImageNet's: next to nothing is lost, which is why the mistake lives so long. A score
# cannot be relied on to find it. A comparison with the reference processor finds all five.
#
# **Exhibit 11: vectors of any length.** The loss with dot products instead of cosines. *Symptom:* the loss at random
# weights. A model that knows nothing must stand at $\log N$; far above it, it is the length
# of the vectors that speaks, and the temperature means nothing any more. *Mend:* unit length. The test asks for what a
# cosine promises: twice as long is the same direction.

# %%
from transformers import CLIPImageProcessor

from vlm_lite.embed import tokenize
from vlm_lite.lessons.clip import info_nce, make_clip

processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)


def test(pixels):
    torch.testing.assert_close(
        pixels(pictures[:1]), processor(pictures[0], return_tensors="pt")["pixel_values"]
    )


for name, pixels in ways.items():
    print(
        f"{name:<12} R@1 {glasses[name]:6.1%}   the test {'passes' if passes(test, pixels) else 'fails'}"
    )
exhibit(
    "pixels not normalised",
    "image-to-text R@1",
    recall_with,
    test,
    broken=pixels_0_to_1,
    mended=recipes.pixel_values,
)

fresh = make_clip(tokenizer)
with torch.no_grad():
    x = fresh.encode_image(recipes.pixel_values(pictures[:128]))  # (128, P)
    y = fresh.encode_text(tokenize([c[0] for c in captions[:128]], tokenizer))


def loss_of_dot_products(x, y, logit_scale):
    logits = logit_scale.exp() * x @ y.T
    target = torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test(loss):
    torch.testing.assert_close(loss(2 * x, y, torch.tensor(2.0)), loss(x, y, torch.tensor(2.0)))


exhibit(
    "vectors of any length",
    f"first loss (log N = {math.log(len(x)):.1f})",
    lambda loss: loss(x, y, fresh.logit_scale.detach()).item(),
    test,
    broken=loss_of_dot_products,
    mended=info_nce,
    form="{:.1f}",
)


# %% [markdown]
# **Exhibit 12: half a loss.** Only pictures choose captions; captions never choose pictures. We tried to make this hurt,
# and it is hard: the first two lines below compare small models trained with either loss. So why mend it? Because half a
# loss is **blind to one whole kind of failure**. Take 100 pairs in which one picture is a *hub*, nearest to every
# caption. No caption finds its picture any more. *Symptom:* what the loss has to say about that batch. *Mend:* the mean of
# both directions. The test swaps the two sides.


# %%
def half_loss(x, y, logit_scale):
    logits = logit_scale.exp() * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    return F.cross_entropy(logits, torch.arange(len(x)))


def two_maps(loss, seed, steps=60):
    """Recall at 1, both ways, of two linear maps trained with `loss` on noisy views of shared meanings."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    meaning = torch.randn(600, 12, generator=generator)
    views = [
        torch.cat([meaning + 0.5 * torch.randn(600, 12, generator=generator), 3 * extra], dim=1)
        for extra in (torch.rand(600, 1, generator=generator), torch.ones(600, 1))
    ]  # and something only the picture has
    maps = nn.ModuleList([nn.Linear(13, 32), nn.Linear(13, 32)])
    optimizer = torch.optim.AdamW(maps.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        some = torch.randint(400, (100,), generator=generator)
        optimizer.zero_grad()
        loss(
            *(each(view[some]) for each, view in zip(maps, views, strict=True)), torch.tensor(2.5)
        ).backward()
        optimizer.step()
    with torch.no_grad():
        x, y = (
            F.normalize(each(view[400:]), dim=-1) for each, view in zip(maps, views, strict=True)
        )
    own = torch.arange(200)
    return torch.stack(
        [((x @ y.T).argmax(dim=dim) == own).float().mean() for dim in (1, 0)]
    )  # (2,)


for name, loss in (("half a loss", half_loss), ("both directions", info_nce)):
    there, back = torch.stack([two_maps(loss, seed) for seed in range(3)]).mean(dim=0)
    print(
        f"trained with {name:<15}  picture to caption R@1 {there:.1%}, caption to picture {back:.1%}  (3 seeds)"
    )

torch.manual_seed(0)
centre = F.normalize(torch.randn(64), dim=0)
x = F.normalize(torch.randn(100, 64), dim=-1)
y = F.normalize(
    F.normalize(x + 0.1 * torch.randn(100, 64), dim=-1) + 1.5 * centre, dim=-1
)  # captions share a direction
x[7] = F.normalize(x[7] + 4 * centre, dim=0)  # and one picture stands in it
finds = ((x @ y.T).argmax(dim=0) == torch.arange(100)).float().mean()
print(f"the batch with a hub: {finds:.0%} of its captions find their picture")


def test(loss):
    torch.testing.assert_close(loss(x, y, torch.tensor(3.0)), loss(y, x, torch.tensor(3.0)))


exhibit(
    "one-directional loss",
    "loss where captions find nothing",
    lambda loss: loss(x, y, torch.tensor(3.0)).item(),
    test,
    broken=half_loss,
    mended=info_nce,
    form="{:.2f}",
)

# %% [markdown]
# **Exhibit 13: read at the wrong word.** CLIP's text tower is causal, and only its last token, EOS, has read the whole
# sentence. *Cause:* when a config says `eos_token_id=2`, `transformers`' CLIP reads at the **highest id** of the sentence instead.
# (The first configs said 2 by mistake; OpenAI's EOS happens to be the highest id, so the old behaviour was kept for 2.) If
# your EOS is another token, the sentence is read at some word in the middle. *Symptom:* R@1 of the zoo's eye with that
# one number changed. *Mend:* the true id. The test: words at the end must count.

# %%
from transformers import CLIPConfig, CLIPModel


def clip_with_eos(eos_token_id):
    """transformers' CLIP with the zoo's weights, and an EOS id of our choice in the config."""
    config = CLIPConfig.from_pretrained(resolve_model(profile.vision_model))
    config.text_config.eos_token_id = eos_token_id
    return CLIPModel.from_pretrained(
        resolve_model(profile.vision_model), config=config, dtype=torch.float32
    ).eval()


@torch.no_grad()
def embed_with(model, texts):
    words = tokenizer(
        [text + tokenizer.eos_token for text in texts],
        padding=True,
        return_tensors="pt",
        add_special_tokens=False,
    )
    return model.get_text_features(
        words["input_ids"], words["attention_mask"]
    ).pooler_output  # (n, P)


image_embeds = F.normalize(recipes.embed_images(eye, pictures[:gallery]), dim=-1)


def test(model):
    assert not torch.allclose(
        *embed_with(model, ["a yellow star and a red cross.", "a yellow star and a red heart."])
    )


exhibit(
    "wrong EOS token",
    "image-to-text R@1",
    lambda model: recall_at_1(image_embeds, F.normalize(embed_with(model, texts), dim=-1)),
    test,
    broken=clip_with_eos(2),
    mended=clip_with_eos(tokenizer.eos_token_id),
)


# %% [markdown]
# **Exercise 3: spot the bug.** ★★☆ 5 minutes. Another text tower has no EOS to read at, and averages its tokens instead.
# The same sentence gets another vector today than yesterday. Mend it.
#
# <details><summary>Hint</summary>
#
# What else changed between yesterday and today? The sentences that stood in the same batch.
# </details>


# %%
def broken_mean_pool(hidden, attention_mask):
    return hidden.mean(dim=1)  # (B, T, D) -> (B, D)


# %% nbgrader={"grade": false, "grade_id": "mean_pool", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def mean_pool(hidden, attention_mask):
    """hidden (B, T, D), attention_mask (B, T) of ones and zeros -> one vector a row, (B, D)."""
    ### BEGIN SOLUTION
    mask = attention_mask[..., None].to(hidden.dtype)  # (B, T, 1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mean_pool-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
mean_pool = check.mean_pool(mean_pool)
short, long = "a red star.", " and ".join(["a large yellow circle"] * 5) + "."
for name, pool in (("broken", broken_mean_pool), ("mended", mean_pool)):
    vectors = []
    for company in ([short], [short, long]):
        words = tokenizer(company, padding=True, return_tensors="pt", add_special_tokens=False)
        vectors.append(pool(vlm.embed(words["input_ids"]), words["attention_mask"])[0])
    print(
        f"{name}: {short!r} alone and beside a long sentence, cosine {F.cosine_similarity(*vectors, dim=0):.3f}"
    )

# %% [markdown]
# ## Room 5. The workshop
#
# The last room holds what happens around a model: loading, training, testing.
#
# **Exhibit 14: the checkpoint that was not loaded.** A model trained on several GPUs was saved from its wrapper, which
# puts `module.` before every name. Loading complained, so somebody wrote `strict=False`, and the complaint was gone.
# *Symptom:* R@1 of the eye after loading.
#
# **Exercise 4: spot the bug, and mend it for good.** ★★☆ 10 minutes. A checkpoint must load with and without `module.` in
# front of its names, and one with a name missing or too many must raise an error.
#
# <details><summary>Hint</summary>
#
# `removeprefix` takes off the front only. "module." may well stand in the middle of a name, too
# ("fusion_module.weight"). `load_state_dict` is strict unless told otherwise.
# </details>

# %%
wrapped = {f"module.{name}": value for name, value in eye.state_dict().items()}


def broken_load_weights(model, state):
    model.load_state_dict(state, strict=False)
    return model


def recall_after(load):
    torch.manual_seed(1)
    model = load(type(eye)(eye.config), wrapped).eval()
    vectors = (
        recipes.embed_images(model, pictures[:gallery]),
        recipes.embed_texts(model, texts, tokenizer),
    )
    return recall_at_1(*(F.normalize(each, dim=-1) for each in vectors))


print(f"image-to-text R@1 after loading: {recall_after(broken_load_weights):.1%}")


# %% nbgrader={"grade": false, "grade_id": "load_weights", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def load_weights(model, state):
    """Copy state {name: tensor} into the model and return the model; an error where names are missing or too many."""
    ### BEGIN SOLUTION
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "load_weights-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
load_weights = check.load_weights(load_weights)


def test(load):
    assert all(
        torch.equal(v, wrapped[f"module.{k}"])
        for k, v in load(type(eye)(eye.config), wrapped).state_dict().items()
    )


exhibit(
    "strict=False",
    "image-to-text R@1",
    recall_after,
    test,
    broken=broken_load_weights,
    mended=load_weights,
    form="{:.1%}",
)


# %% [markdown]
# *Cause:* `strict=False` means "load what fits", and nothing fitted. The model is random and says nothing; trained on, it
# even learns, only from zero. In the issue tracker of a small public VLM (MiniMind-V, number 75) the loss
# of such a "pretrained" model stood at 7.5, and no error said why. *Mend:* be strict, and when you cannot be, look at what
# `load_state_dict` returns.
#
# **Exhibit 15: gradients too small to exist.** fp16 has no number between 0 and 6e-8. In a deep model the gradient
# may shrink from layer to layer on its way back. *Symptom:* the share of gradient values that are exactly 0. *Cause:* they
# were smaller than that. The first layers stand still while the last ones learn. *Mend:* multiply the loss by 65,536
# before the way back, and divide the gradients, in fp32, afterwards: that is what `GradScaler` does, and it lowers the
# factor where something overflows. (bf16 has the range of fp32 and needs none. A T4 has no fast bf16.)


# %%
def deep_net():
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(*layers)


torch.manual_seed(1)
inputs, targets = torch.randn(64, 32), torch.rand(64, 32)


def gradients(scale, dtype=torch.float16):
    """The gradients of the 8 weight matrices, computed in `dtype` from a loss that was multiplied by `scale`."""
    net = deep_net()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        out = net(inputs)
    (scale * F.mse_loss(out.float(), targets)).backward()
    return [
        layer.weight.grad / scale for layer in net if isinstance(layer, nn.Linear)
    ]  # 8 times (32, 32)


def share_lost(scale):
    return sum((g == 0).float().mean().item() for g in gradients(scale)) / 8


def test(scale):
    assert all((g != 0).float().mean() > 0.9 for g in gradients(scale))


exhibit(
    "fp16 without a scaler",
    "gradient values that are 0",
    share_lost,
    test,
    broken=1.0,
    mended=65536.0,
)

figure = Figure(width=640, height=290, label="gradient by layer", layout="constrained")
axes = figure.subplots()
for name, grads, line, colour in (
    ("fp32", gradients(1.0, torch.float32), "-", GREY),
    ("fp16, scaled by 65,536", gradients(65536.0), "--", BLUE),
    ("fp16", gradients(1.0), "o:", VERMILLION),
):
    sizes = torch.stack([g.abs().mean() for g in grads])
    axes.plot(range(1, 9), sizes.clamp(min=1e-12), line, color=colour, label=name)
axes.axhline(2**-24, color="black", linewidth=1, linestyle=(0, (1, 2)))
axes.text(8, 2**-24 * 1.4, "smallest number of fp16", ha="right", fontsize=9)
axes.set(
    yscale="log",
    xlabel="layer",
    ylabel="mean size of the gradient",
    title="The way back is long (0 is drawn at 1e-12)",
    xticks=range(1, 9),
)
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
axes.legend(loc="lower right")
figure


# %% [markdown]
# **Exercise 5: spot the bug.** ★★★ 10 minutes. The batch does not fit into memory, so it is cut into micro-batches whose
# gradients are added up. The result should be the gradient of the large batch: that of the **mean over all labelled
# tokens**. This code ran in many training scripts, and in `transformers`' own `Trainer` until October 2024 (its pull
# request 34191). The rows here have answers of very different length. Mend it; the loss is to be returned as well.
#
# <details><summary>Hint</summary>
#
# A mean of means is the mean only if all parts have equally many members. Count the labels that are not -100
# over *all* micro-batches first; `reduction="sum"`.
# </details>


# %%
def broken_accumulate(model, micro_batches):
    total = 0.0
    for x, labels in micro_batches:
        loss = F.cross_entropy(model(x).flatten(0, -2), labels.flatten(), ignore_index=-100) / len(
            micro_batches
        )
        loss.backward()
        total += loss.item()
    return total


# %% nbgrader={"grade": false, "grade_id": "accumulate", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def accumulate(model, micro_batches):
    """micro_batches [(x (B, T, D), labels (B, T)), ...], model(x) (B, T, V) -> the mean loss; adds to the .grad."""
    ### BEGIN SOLUTION
    count = sum(int((labels != -100).sum()) for _, labels in micro_batches)
    total = 0.0
    for x, labels in micro_batches:
        loss = (
            F.cross_entropy(
                model(x).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
            )
            / count
        )
        loss.backward()
        total += loss.item()
    return total
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "accumulate-check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
accumulate = check.accumulate(accumulate)
torch.manual_seed(0)
head = nn.Linear(16, 10)
large_x, large_labels = torch.randn(8, 12, 16), torch.randint(10, (8, 12))
for k, answer_length in enumerate(
    (1, 1, 2, 2, 12, 12, 12, 12)
):  # short answers first, then captions
    large_labels[k, answer_length:] = -100
micro_batches = list(zip(large_x.split(2), large_labels.split(2), strict=True))
whole = accumulate(head, [(large_x, large_labels)])
right = head.weight.grad.clone()
for name, function in (("broken", broken_accumulate), ("mended", accumulate)):
    head.zero_grad()
    print(
        f"{name}: loss {function(head, micro_batches):.4f} (one large batch {whole:.4f}), "
        f"gradient off by {(head.weight.grad - right).norm() / right.norm():.0%}"
    )

# %% [markdown]
# **Exhibit 16: the exam that was in the textbook.** Each picture has five captions. The rows (picture, caption) are
# shuffled, and a tenth of them is kept for the test. The model is the simplest captioner there is: it says the caption of
# that training picture whose pixels are most alike. It has learnt nothing. *Symptom:* the share of test rows in which it names
# exactly the right things.
#
# **Exercise 6: spot the bug.** ★★☆ 8 minutes. `broken_split` below. The share is a share of *pictures* in yours. The
# same seed must give the same split, another seed another.
#
# <details><summary>Hint</summary>
#
# What is it that must not be on both sides? Shuffle *those*. `sorted(set(image_ids))` has them in an
# order that is the same on every machine, and `random.Random(seed).shuffle(...)` shuffles in place.
# </details>

# %%
import re

from vlm_lite.data.scenes import COLOURS, SHAPES

row_ids = [image_id for image_id, five in zip(ids, captions, strict=True) for _ in five]
row_texts = [text for five in captions for text in five]
thumbnails = F.adaptive_avg_pool2d(pictures.float(), 16).flatten(1)  # (N, 3 * 16 * 16)
thumbnails = dict(zip(ids, F.normalize(thumbnails - thumbnails.mean(dim=0), dim=-1), strict=True))
things = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def broken_split(image_ids, test_share, seed):
    order = torch.randperm(len(image_ids), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(test_share * len(order))
    return order[count:], order[:count]


def parrot_score(split):
    train, held_out = split(row_ids, 0.1, 0)
    known = torch.stack([thumbnails[row_ids[k]] for k in train])
    nearest = (
        (torch.stack([thumbnails[row_ids[k]] for k in held_out]) @ known.T).argmax(dim=1).tolist()
    )
    said = [sorted(things.findall(row_texts[train[k]])) for k in nearest]
    return sum(
        a == sorted(things.findall(row_texts[k])) for a, k in zip(said, held_out, strict=True)
    ) / len(held_out)


print(f"the parrot names the right things in {parrot_score(broken_split):.0%} of the test rows")


# %% nbgrader={"grade": false, "grade_id": "split_by_picture", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def split_by_picture(image_ids, test_share, seed):
    """image_ids: the picture of each row -> (train, test), two lists of row numbers."""
    ### BEGIN SOLUTION
    pictures = sorted(set(image_ids))
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {pictures[k] for k in order[: round(test_share * len(pictures))]}
    train = [k for k, image_id in enumerate(image_ids) if image_id not in held_out]
    return train, [k for k, image_id in enumerate(image_ids) if image_id in held_out]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "split_by_picture-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
split_by_picture = check.split_by_picture(split_by_picture)


def test(split):
    assert not set.intersection(*({row_ids[k] for k in part} for part in split(row_ids, 0.1, 0)))


exhibit(
    "leaked test pictures",
    "a parrot's score",
    parrot_score,
    test,
    broken=broken_split,
    mended=split_by_picture,
)

# %% [markdown]
# *Cause:* rows were dealt out, not pictures. *Mend:* deal out pictures. The same happens with questions about one picture,
# frames of one video, and crops of one photograph. And between data sets: COCO's train2017 holds about 88% of its
# val2014, so a model that trained on the one is no longer tested by the other.
#
# ## Can it see yet?
#
# The five questions of every notebook, put to the same trained model: as it should be, and with three of the bugs
# switched on. A bug does not make a model silent. It goes on answering, in the same tone.

# %%
from vlm_lite.data.shapes import five_questions

five = five_questions(questions)
five_pictures = torch.stack([pictures_by_id[q["image_id"]] for q in five])
lost = VLM.from_pretrained(resolve_model("shapes-vlm"))
torch.manual_seed(0)
for (
    layer
) in lost.connector.modules():  # what is left where strict=False loads nothing: a fresh nerve
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()


def five_answers(model, pixels=recipes.pixel_values, prompt=short_prompt):
    return model.generate(
        model.encode(pixels(five_pictures)), [prompt(q["question"]) for q in five], max_new_tokens=4
    )


plots.scoreboard(
    [q["image"] for q in five],
    [q["question"] for q in five],
    [q["answer"] for q in five],
    {
        "mended": five_answers(vlm),
        "0 to 1": five_answers(vlm, pixels=pixels_0_to_1),
        "not loaded": five_answers(lost),
        "BGR": five_answers(vlm, pixels=pixels_bgr),
    },
)

# %% [markdown]
# ## The last room: all exhibits
#
# Every number below was measured in this run, before and after. None of the sixteen raised an error.

# %% tags=["thumbnail"]
figure = Figure(width=880, height=560, label="sixteen silent bugs, before and after")
figure.text_at(
    16,
    12,
    "Sixteen silent bugs of minimal VLMs: no error, only a number",
    fontsize=13,
    fontweight="bold",
)
figure.text_at(864, 15, "▨ broken   ■ mended", ha="right", color=GREY)
for k, each in enumerate(museum.values()):
    left, top = 16 + 217 * (k % 4), 48 + 130 * (k // 4)
    figure.text_at(left, top, wrap(f"{k + 1}. {each.name}", 212, 9.5, 1, "bold"), fontweight="bold")
    figure.text_at(left, top + 18, wrap(each.measure, 212, 8.5, 1), fontsize=8.5, color=GREY)
    axes = figure.axes_at(left, top + 38, 146, 66)
    longest = max(each.before, each.after) or 1
    for place, (value, colour, hatch) in enumerate(
        ((each.before, VERMILLION, "///"), (each.after, BLUE, ""))
    ):
        axes.barh(place, value / longest, 0.72, color=colour, hatch=hatch, edgecolor="white")
        axes.text(
            value / longest + 0.03,
            place,
            each.form.format(value),
            va="center",
            fontweight="bold",
            color=colour,
        )
    axes.set(xlim=(0, 1), ylim=(1.5, -0.5), xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["bottom"]].set_visible(False)
assert len(museum) == 16
print(
    f"HEADLINE: {len(museum)} silent bugs: 0 errors raised, {len(museum)} caught by one line of test each"
)
display(figure)
width = max(map(len, museum))
for k, each in enumerate(museum.values(), start=1):
    change = f"{each.form.format(each.before)} → {each.form.format(each.after)}"
    print(f"{k:>2}. {each.name:<{width}}  {change:<16} {each.measure}\n    {each.test}")
check.progress({each.name: each.before != each.after for each in museum.values()})

# %% [markdown]
# ## What you showed
#
# - Sixteen programs that run to the end, with what each costs, measured before and after.
# - A loss that falls shows that the model learns what it is given. It does not show that this was what you meant.
# - For each a line of test that fails on the broken code and passes on the mended. They are of few kinds, and the kinds are
#   worth more than the lines: **compare with a reference** (7, 10, 14); **alone and in company must agree** (5); **swap,
#   scale or disturb the input, and see whether the output does what it should** (8, 11, 12, 13); **count what must be
#   there** (1 to 4, 6, 9, 15, 16).
#
# ## What this does not show
#
# - **How often they occur.** These bugs are known. The ones that nobody has found yet are not here.
# - **That they cost you as much.** The figures are those of small models on drawn pictures. Exhibit 12 hardly hurts here,
#   ImageNet's constants do not either; on your data it may be otherwise. The tests hold anywhere.
# - **Two bugs at once.** They can hide one another.
# - **That code without these sixteen is right.** The controls of notebook 03, blind and shuffled, ask the question that
#   stands above all these: does the answer come from the picture?
#
# ## Check yourself
#
# - [ ] I can write the labels of a row of prefix, prompt, answer, EOS and padding without looking.
# - [ ] I can say what each of the four models of room 1 was taught.
# - [ ] I can say what a contrastive loss must be at random weights.
# - [ ] I know when fp16 needs a scaler and bf16 does not.
# - [ ] I have put at least one of these lines into a test of my own.
#
# ## To answer in words
#
# 1. Why can no bug of room 1 be found with a validation loss that is computed by the same function?
# 2. ImageNet's constants and a one-directional loss cost little here. Would you mend them, and how would you defend the
#    time?
# 3. Your model scores ten points better than the paper. Which exhibits do you visit first, and in what order?
#
# ## Where next
#
# This is the last notebook. Take a script of your own, and walk through the rooms with it. Or go back to one that you read
# quickly, [01](01_clip_infonce.ipynb), [02](02_vit.ipynb), [03](03_qformer_gpt2.ipynb), [04](04_llava_projection.ipynb) or
# [05](05_evaluation.ipynb), and find the place where each bug could have stood. Several of these lines are in the tests of
# the package already.
#
# **Glossary**
#
# | term | 日本語 | here |
# |---|---|---|
# | silent bug | サイレントバグ（エラーの出ない不具合） | wrong, and no error says so |
# | symptom, cause, mend | 症状、原因、修正 | the three labels of an exhibit |
# | test, assertion | テスト、アサーション | a line that stops the program when a promise is broken |
# | label, -100 | ラベル（損失の対象外は -100） | what a position is compared with, or nothing |
# | end of sequence, EOS | 文末トークン | the token that ends a text |
# | padding | パディング | filling short rows of a batch |
# | position ids | 位置ID | the place of each vector in its row |
# | prompt template | プロンプトテンプレート | the words around a question |
# | causal mask | 因果マスク | a position sees only what stands before it |
# | normalisation constants | 正規化定数（平均と標準偏差） | what is taken from pixels, and what they are divided by |
# | hub, hubness | ハブ（ハブネス） | one vector that is nearest to many |
# | checkpoint, state dict | チェックポイント、状態辞書 | saved weights, by name |
# | underflow | アンダーフロー | too small a number becomes 0 |
# | loss scaling, GradScaler | 損失スケーリング | multiply before the way back, divide after |
# | gradient accumulation | 勾配累積 | one step from several micro-batches |
# | leakage | データリーク（漏洩） | test data in the training set |
