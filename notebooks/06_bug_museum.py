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
#     builds: twelve silent bugs of vision-language models, each with its cost as a score and a test that catches it
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm]
#     outputs_of: 3fbb18781428b3de222a0b8bcce2d3ac4a637509217623aaca381511ee744356
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
# # 6. The bug museum: silent bugs and what they cost
#
# A bug that raises an error says where it is. The bugs here don't: the program runs, the loss falls, sentences come out; and
# the model ignores its image, or is worse than it could be, or its score measures something else.
#
# **You will build** nothing new. You break what the other notebooks built, in twelve ways that are easy to write and hard to
# see. Each exhibit runs twice, with the bug and without, so its **cost** is a score; and each has one **named
# test** that fails with the bug and passes without.
#
# **You will be able to show** what each bug costs, and that one assertion would have caught it. In three exercises you get a
# plausible function with a bug, and fix it.
#
# **Reading time:** 20 minutes. Three exercises, 24 minutes if you write them all; none is needed to go on.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.3 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [01, CLIP](01_clip_infonce.ipynb) and [03, the Q-Former](03_qformer_gpt2.ipynb), for the parts that break here.
# Run all cells once; then read the sections in any order, beginning with the bug that you suspect today.

# %%
import copy
import timeit

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPImageProcessor, GPT2Config, GPT2LMHeadModel

from vlm_lite import plots
from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import load_shapes
from vlm_lite.embed import embed_texts, pixel_values, tokenize
from vlm_lite.labs import check
from vlm_lite.lessons import vit
from vlm_lite.lessons.language import short_prompt
from vlm_lite.models.vlm import load_vlm

plots.style()
vlm = load_vlm("shapes-vlm")
clip, language_model, tokenizer = vlm.vision, vlm.language_model, vlm.tokenizer
table, questions = load_shapes("val", 400, progress=False)
(images, ids), captions = image_tensor(table), table["captions"][:]  # (400, 3, 64, 64) uint8

# %% [markdown]
# **How an exhibit is made.** `exhibit` takes a broken and a fixed version of the same thing, a function that computes the
# score, and a test. It stops the notebook unless the test fails on the broken version, passes on the fixed one, and the fix
# improves the score. So every test below is known to work.

# %%
museum = pd.DataFrame(columns=["measure", "broken", "fixed", "lower is better", "test"])


def fails(test, thing):
    try:
        test(thing)
    except AssertionError:
        return True
    return False


def exhibit(name, measure, score, test, broken, fixed, lower=False):
    """Score the broken and the fixed version, and see that `test` separates them."""
    assert fails(test, broken) and not fails(test, fixed), f"{name}: the test doesn't separate them"
    before, after = score(broken), score(fixed)
    assert (after < before) == lower, f"{name}: the fix doesn't improve the score"
    museum.loc[name] = measure, before, after, lower, test.__name__
    print(
        f"{len(museum)}. {name}. {measure}: broken {before:.2g}, fixed {after:.2g}; {test.__name__}"
    )


# %% [markdown]
# ## 1. Four equal losses
#
# A GPT-2 of one layer has one thing to learn: to count down. It reads rows such as `5 4 3 2 1 0 ■`, where ■ is the end-of-sequence
# token (EOS). Shorter rows are padded with ■, because GPT-2 has no padding token and everyone takes EOS for it.
#
# Four copies train on the same rows for the same number of steps. One has right labels; three have labels as they are found in
# real code.

# %%
STOP = 10  # EOS and padding; the digits are the tokens 0 to 9
rows = [[*range(start, -1, -1), STOP] for start in range(2, 10)]
count_ids = torch.tensor([row + [STOP] * (11 - len(row)) for row in rows])  # (8, 11)
mask = torch.tensor([[1] * len(row) + [0] * (11 - len(row)) for row in rows])
labels = {"A": count_ids.masked_fill(count_ids == STOP, -100)}  # "no loss on padding"
labels["C"] = count_ids.masked_fill(mask == 0, -100)
labels["B"] = F.pad(labels["C"][:, 1:], (0, 1), value=-100)  # "the label is the token after it"
labels["D"] = labels["C"].masked_fill(count_ids == 0, -100)  # what ignore_index=0 does


def train_gpt2(ids, labels, steps=80, stop_below=0.0):
    """A one-layer GPT-2 trained on ids and labels (B, T) -> (model, losses)."""
    torch.manual_seed(0)
    sizes = {"vocab_size": int(ids.max()) + 1, "n_positions": 16, "n_embd": 32, "n_layer": 1}
    sizes |= {"n_head": 2, "bos_token_id": None, "eos_token_id": None}
    model, losses = GPT2LMHeadModel(GPT2Config(**sizes)).eval(), []  # eval: no dropout
    model.loss_type = "ForCausalLM"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    while len(losses) < steps and not (losses and losses[-1] < stop_below):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


counters = {name: train_gpt2(count_ids, labels[name]) for name in "ABCD"}
losses = {name: losses for name, (_, losses) in counters.items()}
assert max(each[-1] for each in losses.values()) < 0.4
plots.losses(losses, "Which one can count down?")

# %% [markdown]
# **Predict first.** Which of the four is healthy? You have what most people look at: the loss.

# %%
my_guess = "A"  # A, B, C or D


@torch.no_grad()
def count_down(name, start=9):
    """What a model generates after `start`, until it stops or has 14 tokens."""
    row = [start]
    while len(row) < 14 and row[-1] != STOP:
        row.append(counters[name][0](torch.tensor([row])).logits[0, -1].argmax().item())
    return row


print("my guess:", my_guess)
assert count_down("C") == rows[-1]
said = {name: " ".join(map(str, count_down(name))).replace("10", "■") for name in "ABCD"}
pd.DataFrame({"after a 9 it says": said, "loss": {name: losses[name][-1] for name in "ABCD"}})

# %% [markdown]
# C is healthy. The loss can't tell: each model learnt its labels almost perfectly, and three times the labels said something else.
#
# - **A: EOS erased as padding.** With `pad = eos`, `ids == pad` finds the true EOS too. No label ever asks the model to stop. *Fix:*
#   mask by length, that is by the attention mask.
# - **B: labels shifted twice.** `transformers` compares the prediction at $t$ with the label at $t + 1$ by itself. Shift beforehand,
#   and the model learns to skip: after 9 it says 7. *Fix:* labels are the ids, in place.
# - **D: `ignore_index=0`.** Token 0 is a token like any other. Marking "nothing here" with 0, as ClipCap's training
#   script does, means that token 0 is never learnt. *Fix:* -100, which no token has.


# %%
def right_countdowns(name):
    return sum(count_down(name, row[0]) == row for row in rows) / len(rows)


def test_labels_are_the_ids_in_place(name):
    assert torch.equal(labels[name][:, 0], count_ids[:, 0])


def test_every_row_is_asked_to_stop(name):
    assert (labels[name] == STOP).any(dim=1).all()


def test_every_token_occurs_among_the_labels(name):
    assert set(count_ids.flatten().tolist()) <= set(labels[name].flatten().tolist())


score = "countdowns right", right_countdowns
exhibit("EOS erased as padding", *score, test_every_row_is_asked_to_stop, "A", "C")
exhibit("labels shifted twice", *score, test_labels_are_the_ids_in_place, "B", "C")
exhibit("ignore_index=0", *score, test_every_token_occurs_among_the_labels, "D", "C")

# %% [markdown]
# ## 2. Prompts and answers
#
# **A shared prompt counted in the loss.** Chat models begin every row with the same system prompt. Counted in the mean, its twelve
# tokens are learnt at once, and their low loss hides the answer's. Training here stops when the loss falls below 0.7: with
# the bug, that happens while half of the answers are still wrong. *Fix:* -100 for all that isn't answer. *Test:* as many labels as answer tokens.
#
# **A space that the chat template doesn't have.** To a tokenizer, "A" and " A" are two tokens. The template ends in
# `assistant\n`, but training put `" " + answer` behind it. Then a multiple-choice benchmark compares the logits of "A", "B", "C" and
# "D" after the template: tokens that training never showed there. *Fix:* let the template write the answer too. *Test:* the row
# trained on is the row scored.

# %%
number, letter = torch.arange(10)[:, None], torch.arange(4)[:, None]
chats = torch.cat([torch.arange(10, 22).expand(10, 12), number, (3 * number + 1) % 10], dim=1)


def chat_labels(left_out):
    return F.pad(chats[:, left_out:], (left_out, 0), value=-100)


def choices(first):
    """Rows of question, template, answer: "A" to "D" are the tokens from 4, " A" to " D" from 8."""
    return torch.cat([letter, torch.full((4, 1), 12), letter + first], dim=1)  # (4, 3)


@torch.no_grad()
def share_right(model, ids, options):
    """How often the last token of ids (B, T) is the most probable of the tokens in `options`."""
    logits = model(ids[:, :-1]).logits[:, -1, options]  # (B, number of options)
    return (logits.argmax(dim=1) + options.start == ids[:, -1]).float().mean().item()


def right_when_stopped(left_out):
    return share_right(train_gpt2(chats, chat_labels(left_out), 200, 0.7)[0], chats, slice(0, 10))


def right_letters(first):
    labels = F.pad(choices(first)[:, 2:], (2, 0), value=-100)
    return share_right(train_gpt2(choices(first), labels, 40)[0], choices(4), slice(4, 8))


def test_as_many_labels_as_answer_tokens(left_out):
    assert (chat_labels(left_out) != -100).sum() == len(chats)


def test_row_trained_is_row_scored(first):
    assert torch.equal(choices(first), choices(4))


score = "answers right when the loss is 0.7", right_when_stopped
exhibit("shared prompt in the loss", *score, test_as_many_labels_as_answer_tokens, 0, 13)
exhibit("a space too many", "letters right", right_letters, test_row_trained_is_row_scored, 8, 4)

# %% [markdown]
# ## 3. Evaluation
#
# Now the shipped language model. It reads eighty scenes in words, each with a question, padded on the left so that all end in
# the same column.
#
# **Left padding.** `generate()` derives the positions from the mask; `forward()` doesn't, and counts padding. A short prompt
# then starts at a position where training never put a first token: the same model generates well and is scored too low.
#
# **Exercise 1: positions.** ★★☆ 6 minutes. Fix `broken_position_ids` for padding *anywhere*: on the left, on the right, or
# between prefix and text, where a VLM has it.
#
# <details><summary>Hint</summary>
#
# The position of a token is the number of real tokens before it. `cumsum` counts ones. Padding may get any position that exists.
# </details>

# %%
asked = questions.select_columns(["description", "question", "answer"]).to_pandas()[:80]
told = (asked["description"] + " " + asked["question"].map(short_prompt)).tolist()
pad = {"padding": True, "padding_side": "left", "add_special_tokens": False}
batch = tokenizer(told, return_tensors="pt", **pad)  # input_ids, attention_mask (80, T)


def broken_position_ids(attention_mask):
    return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)


@torch.no_grad()
def answers_right(model, position_ids):
    positions = position_ids(batch["attention_mask"])
    logits = model(**batch, position_ids=positions, logits_to_keep=1).logits  # (80, 1, V)
    said = tokenizer.batch_decode(logits.argmax(dim=-1))
    return (pd.Series(said).str.strip() == asked["answer"]).mean()


# %% nbgrader={"grade": false, "grade_id": "position_ids", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def position_ids(attention_mask):
    """attention_mask (B, T) of ones and zeros -> (B, T), the position of each token, from 0."""
    ### BEGIN SOLUTION
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "position_ids-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
position_ids = check.position_ids(position_ids)


def test_positions_count_tokens(positions):
    mask = batch["attention_mask"]
    assert torch.equal(positions(mask)[:, -1] + 1, mask.sum(dim=1))


score = "answers right, scene in words", lambda positions: answers_right(language_model, positions)
exhibit("left padding", *score, test_positions_count_tokens, broken_position_ids, position_ids)


# %% [markdown]
# **Evaluation in train mode.** `model.train()` once too often, and dropout stays on (0.1 here, GPT-2's default): the score falls
# and changes from run to run. *Fix:* `model.eval()`. *Test:* the same input twice gives the same output.

# %%
dropping = copy.deepcopy(language_model)
for layer in dropping.modules():
    if isinstance(layer, nn.Dropout):
        layer.p = 0.1


def test_same_input_same_output(training):
    one, two = (dropping.train(training)(**batch, logits_to_keep=1).logits for _ in range(2))
    assert torch.equal(one, two)


score = score[0], lambda training: answers_right(dropping.train(training), position_ids)
exhibit("evaluation in train mode", *score, test_same_input_same_output, True, False)

# %% [markdown]
# ## 4. The vision encoder
#
# **Pixels not normalised.** The shipped CLIP was trained on pixels normalised with CLIP's own mean and standard deviation. Five
# other ways to prepare the same images raise no error. **Predict first:** many copy ImageNet's constants from another script.
# What image-to-text R@1 is left?

# %%
my_guess = 0.5  # with ImageNet's constants, from 0 to 1

mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
ways = {
    "CLIP's own": pixel_values,
    "ImageNet's": lambda images: (images / 255 - mean) / std,
    "-1 to 1": lambda images: images / 127.5 - 1,
    "BGR for RGB": lambda images: pixel_values(images.flip(1)),  # as OpenCV reads a file
    "0 to 1": lambda images: images / 255,
    "divided by 255 twice": lambda images: pixel_values((images / 255).byte()),
}
texts = [five[0] for five in captions]
processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)


@torch.no_grad()
def recall_at_1(model, pixels=pixel_values):
    """The share of images whose nearest caption is their own, or word for word the same."""
    text_embeds = embed_texts(model, tokenize(texts, tokenizer))  # (400, P)
    best = (model.encode_image(pixels(images)) @ text_embeds.T).argmax(dim=1).tolist()
    return sum(texts[i] == texts[j] for i, j in enumerate(best)) / len(best)


def test_pixels_are_those_of_the_reference_processor(way):
    reference = processor(images[0], return_tensors="pt")["pixel_values"]
    assert torch.allclose(ways[way](images[:1]), reference, atol=1e-4)


test = test_pixels_are_those_of_the_reference_processor
recall = {way: recall_at_1(clip, pixels) for way, pixels in ways.items()}
assert recall["ImageNet's"] == recall["CLIP's own"] > 1.5 * recall["BGR for RGB"]
exhibit("pixels from 0 to 1", "image-to-text R@1", recall.get, test, "0 to 1", "CLIP's own")
print("my guess for ImageNet's constants:", my_guess)
pd.DataFrame({"R@1": recall, "test fails": {way: fails(test, way) for way in ways}})

# %% [markdown]
# ImageNet's constants cost nothing here, which may be why the mistake is so common. A score can't be relied on to find it;
# the comparison with the reference processor finds all five.
#
# **Initialisation taken for knowledge.** A figure of position embeddings looks structured, and the caption says "learnt". We train
# two ViTs for sixty steps on [02](02_vit.ipynb)'s task and compare each table with **its own start**. From $\mathcal{N}(0, 1)$ it hardly
# moves: the figure would show the random numbers that it began with. (The shipped encoder began like this, too: notebook 00.)
# *Fix:* start small, at 0.02, before you show a table as learnt. *Test:* the table has left its start.

# %%
task, tables = vit.leftmost_task("train", 600)[:2], {}
for std in (1.0, 0.02):
    torch.manual_seed(0)
    model = vit.ViT()
    nn.init.normal_(model.pos_embed, std=std)
    start = model.pos_embed.detach().clone()
    vit.train_vit(model, *task, steps=60, batch_size=64, lr=2e-3, name=f"positions-{std}")
    tables[std] = start[0], model.pos_embed.detach().cpu()[0]  # (1 + N, D) each


def cosine(std):
    return F.cosine_similarity(*tables[std], dim=-1).mean().item()


def test_positions_moved(std):
    assert cosine(std) < 0.95


score = "cosine of the positions with their start", cosine
exhibit("initialisation taken for learnt", *score, test_positions_moved, 1.0, 0.02, lower=True)

# %% [markdown]
# ## 5. Loading and training
#
# **The checkpoint that was not loaded.** A model trained on several GPUs was saved from its wrapper, which puts `module.` before
# every name. Loading raised an error, somebody wrote `strict=False`, and the error was gone: it means "load what fits", and nothing
# fitted. In the issue tracker of a small public VLM (MiniMind-V, number 75) such a "pretrained" model's loss stood at 7.5.
#
# **Exercise 2: load, or raise an error.** ★★☆ 10 minutes. A checkpoint must load with and without `module.` in front of its names;
# one with a name missing or too many must raise an error.
#
# <details><summary>Hint</summary>
#
# `removeprefix` takes off the front only: "module." may stand in the middle of a name as well. `load_state_dict` is strict
# unless told otherwise.
# </details>

# %%
wrapped = {f"module.{name}": value for name, value in clip.state_dict().items()}


def broken_load_weights(model, state):
    model.load_state_dict(state, strict=False)
    return model


# %% nbgrader={"grade": false, "grade_id": "load_weights", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def load_weights(model, state):
    """Copy state {name: tensor} into the model and return the model; an error where names are missing or too many."""
    ### BEGIN SOLUTION
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "load_weights-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
load_weights = check.load_weights(load_weights)


def loaded(load):
    torch.manual_seed(1)
    return load(type(clip)(clip.config), wrapped).eval()


def test_every_weight_arrives(load):
    assert all(map(torch.equal, loaded(load).state_dict().values(), wrapped.values()))


score = "image-to-text R@1", lambda load: recall_at_1(loaded(load))
exhibit("strict=False", *score, test_every_weight_arrives, broken_load_weights, load_weights)


# %% [markdown]
# **An optimizer in half precision where the hardware has none.** Muon multiplies matrices to orthogonalise each gradient, and
# `torch.optim.Muon` does so in bfloat16 on every device. A CPU without that arithmetic emulates it: no error, and steps that take
# many times as long. *Fix:* fp32 there. *Test:* half precision isn't much slower than fp32. (The cell
# takes the slower of float16 and bfloat16. Where a CPU is fast in both, it shows nothing.)

# %%
gradient = torch.randn(192, 768)


def orthogonalise(m):
    """Five Newton-Schulz steps on a matrix (192, 768), as Muon takes them for each gradient."""
    for _ in range(5):
        gram = m @ m.T
        m = 3.4445 * m + (-4.775 * gram + 2.0315 * gram @ gram) @ m


def seconds_a_step(dtype):
    m = (gradient / gradient.norm()).to(dtype)
    repeat = 3 if dtype.itemsize == 2 else 20  # fp32 is quick: so a busy machine does no harm
    return min(timeit.repeat(lambda: orthogonalise(m), number=1, repeat=repeat))


def test_half_precision_is_not_much_slower(dtype):
    assert seconds_a_step(dtype) < 3 * seconds_a_step(torch.float32)


half = max(torch.float16, torch.bfloat16, key=seconds_a_step)
score, test = ("seconds a step", seconds_a_step), test_half_precision_is_not_much_slower
if fails(test, half):
    exhibit(f"optimizer in {str(half)[6:]}", *score, test, half, torch.float32, lower=True)

# %% [markdown]
# **Test images in the training set.** Each image has five captions. The rows (image, caption) are shuffled and a tenth is held out.
# The captioner learns nothing: it copies a caption of the training image with the most similar pixels. Its score should be
# near 0. COCO's train2017 holds about 88% of its val2014, so this happens between data sets, too.
#
# **Exercise 3: split by image.** ★★☆ 8 minutes. Fix `broken_split`. The share is a share of *images* in yours; the same seed gives
# the same split, another seed another.
#
# <details><summary>Hint</summary>
#
# What must not be on both sides? Shuffle *those*. `sorted(set(image_ids))` has them in an order that is the same on every machine.
# </details>

# %%
row_ids = [image_id for image_id in ids for _ in range(5)]
scene = dict(zip(ids, table["description"], strict=True))
small = F.adaptive_avg_pool2d(images.float(), 16).flatten(1)  # (400, 768)
small = F.normalize(small - small.mean(dim=0), dim=-1).repeat_interleave(5, dim=0)  # of each row


def broken_split(image_ids, test_share, seed):
    order = torch.randperm(len(image_ids), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(test_share * len(order))
    return order[count:], order[:count]


def copies_right(split):
    """The share of held-out rows whose most similar training image shows exactly the same scene."""
    train, held_out = split(row_ids, 0.1, 0)
    nearest = (small[held_out] @ small[train].T).argmax(dim=1).tolist()
    pairs = zip((train[k] for k in nearest), held_out, strict=True)
    return sum(scene[row_ids[a]] == scene[row_ids[b]] for a, b in pairs) / len(held_out)


# %% nbgrader={"grade": false, "grade_id": "split_by_image", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def split_by_image(image_ids, test_share, seed):
    """image_ids: the image of each row -> (train, test), two lists of row numbers."""
    ### BEGIN SOLUTION
    images = sorted(set(image_ids))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {images[k] for k in order[: round(test_share * len(images))]}
    train = [k for k, image_id in enumerate(image_ids) if image_id not in held_out]
    return train, [k for k, image_id in enumerate(image_ids) if image_id in held_out]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "split_by_image-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
split_by_image = check.split_by_image(split_by_image)


def test_no_image_on_both_sides(split):
    assert not set.intersection(*({row_ids[k] for k in part} for part in split(row_ids, 0.1, 0)))


score = "right by copying alone", copies_right
exhibit("leaked images", *score, test_no_image_on_both_sides, broken_split, split_by_image, True)


# %% [markdown]
# ## 6. All exhibits
#
# Every number was measured in this run. None of the bugs raised an error.

# %% tags=["thumbnail"]
print(f"HEADLINE: {len(museum)} silent bugs: no error raised, each caught by one named test")
plots.museum_wall(museum)

# %%
museum[["test"]]

# %% [markdown]
# ## What you showed
#
# - Twelve programs that run to the end, and what each bug costs as a score.
# - A falling loss shows that the model learns what it is given. It doesn't show that this was what you meant.
# - A test for each. They are of few kinds: **compare with a reference** (pixels, weights, the row scored); **the same input gives the
#   same output**; **count what must be there** (labels, stops, positions, images on one side); **compare with the start**
#   (positions); **time it** (the optimizer).
#
# ## What this does not show
#
# - **How often they occur.** These bugs are known; those that nobody has found yet are not here.
# - **That they cost you as much.** Models and data are small; the tests hold anywhere.
# - **That code without these twelve is right.** The controls of notebook 03, blind and shuffled, ask the question above all
#   these: does the answer come from the image?
#
# **Check yourself**
#
# - [ ] I can write the labels of a row of prefix, prompt, answer, EOS and padding without looking.
# - [ ] I can say what each of the four models of section 1 was taught.
# - [ ] I know which arithmetic my hardware lacks, and what my optimizer computes in.
# - [ ] I have put at least one of these tests into a project of my own.
#
# **To answer in words.** (1) Why can no bug of section 1 be found with a validation loss computed by the same function?
# (2) ImageNet's constants cost nothing here. Would you fix them, and how would you defend the time? (3) Your model scores ten
# points better than the paper. Which exhibits do you visit first?
#
# **Where next.** Apply these tests to a script of your own, or go back to [01](01_clip_infonce.ipynb), [02](02_vit.ipynb),
# [03](03_qformer_gpt2.ipynb), [04](04_llava_projection.ipynb) or [05](05_evaluation.ipynb) and find where each bug could have
# been. New material follows in [08, resolution](08_resolution.ipynb) and [09, a modern VLM](09_modern_vlm.ipynb). Terms: the [glossary](../docs/glossary.md).
