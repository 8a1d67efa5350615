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
#     outputs_of: e69c7b97c7b583c2aa68d9a68c053d5bf0467af0f44df9f3256eb34fcb6b2ddb
#     title: Early fusion
#     builds: an image tokenizer with a codebook, and one transformer that reads and draws images
#     lesson: early
#     reads: [zoo/shapes-clip, results/early_fusion.json]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/07b_early_fusion.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/07b_early_fusion.ipynb)

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
print(describe(profile, compute, notebook="07b_early_fusion"))

# %% [markdown]
# # 7b. Early fusion
#
# A companion to [07](07_fusion.ipynb), optional and short. **Chameleon** (Chameleon Team 2024) has no vision encoder and no
# connector. An image becomes a row of *tokens*, numbers from a list, like words. One transformer is trained from nothing on
# rows of both, and so can write either: it answers questions about an image, and it draws an image from a caption.
#
# **You will build** a vector quantizer (VQ-VAE: van den Oord et al. 2017; VQGAN: Esser et al. 2021), one vocabulary for words
# and image codes, and a Llama with **query-key norm**.
#
# **You will be able to show** that quantizer and transformer equal Chameleon's in `transformers`; which codes die, and what
# restarting them changes; how far answers and drawings come from *their* image and *their* caption.
#
# **Reading time:** 12 minutes. Two exercises, 15 minutes if you write them; neither is needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (2 with bf16) and 1.7 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [07](07_fusion.ipynb), and [09](09_modern_vlm.ipynb), whose Llama and `generate` are imported here.

# %% tags=["save"]
import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import embed_images, embed_strings
from vlm_lite.encoded import encode_shapes
from vlm_lite.evals.probes import run_probes
from vlm_lite.lessons.clip import recall_at_k
from vlm_lite.lessons.modern import Llama, generate
from vlm_lite.lessons.world import BACKGROUND
from vlm_lite.models import text
from vlm_lite.models.clip import CLIP
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute, resolve_model

# %% [markdown]
# ## 1. A list of vectors
#
# A **codebook** holds $K$ vectors $e_1, \dots, e_K$. A vector $z$ of the encoder is replaced by its nearest one, and the number of
# that one is the token:
#
# $$k = \mathrm{argmin}_j \lVert z - e_j \rVert \qquad
# L = \underbrace{\lVert \mathrm{sg}(z) - e_k \rVert^2}_{\text{codebook}} + \beta\,\underbrace{\lVert z - \mathrm{sg}(e_k) \rVert^2}_{\text{commitment}}$$
#
# $\mathrm{sg}$ stops the gradient: the first term moves the code to the vectors that chose it, the second keeps the encoder near
# its code. The choice itself has no gradient. The **straight-through** estimator passes it on as if $z$ had not been
# replaced: `z + (nearest - z).detach()` has the value of the code and the gradient of $z$.
#
# A code that no vector chooses gets no gradient, so it stays where it is, and **dies**. `restart` puts such codes on vectors of
# the last batch, the likelier the worse the codebook fits them.
#
# **Exercise 1: the quantizer.** ★★☆ 10 minutes. What counts how often a code is used is given, and so is `restart`.
# <details><summary>Hint</summary>
#
# `torch.cdist(flat, self.embedding.weight)` has shape (vectors, codes). `F.mse_loss(a, b.detach())` moves a alone.
# </details>


# %% nbgrader={"grade": false, "grade_id": "VectorQuantizer", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class VectorQuantizer(nn.Module):
    """Vectors z (..., N, d) -> the nearest of K codes (..., N, d), the loss (), their numbers (..., N)."""

    def __init__(self, num_codes, width, codebook=1.0, commitment=0.25):
        super().__init__()
        self.embedding, self.weights = nn.Embedding(num_codes, width), (codebook, commitment)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        self.register_buffer("used", torch.zeros(num_codes))  # how often, since the last restart

    def forward(self, z):
        flat = z.flatten(0, -2)
        ### BEGIN SOLUTION
        codes = torch.cdist(flat, self.embedding.weight).argmin(dim=1)
        nearest = self.embedding(codes).view(z.shape)
        codebook, commitment = F.mse_loss(nearest, z.detach()), F.mse_loss(z, nearest.detach())
        loss = self.weights[0] * codebook + self.weights[1] * commitment
        out = z + (nearest - z).detach()
        ### END SOLUTION
        if self.training:
            self.used += torch.bincount(codes, minlength=len(self.used))
            self.seen, self.missed = flat.detach(), (z - nearest).detach().norm(dim=-1).flatten()
        return out, loss, codes.view(z.shape[:-1])

    @torch.no_grad()
    def restart(self):  # move what nothing has chosen since the last call to vectors just seen
        dead = (self.used == 0).nonzero()[:, 0]
        rows = torch.multinomial(self.missed**2 + 1e-9, max(1, len(dead)), replacement=True)
        self.embedding.weight[dead] = self.seen[rows[: len(dead)]]
        self.used.zero_()
        return {"dead codes": len(dead)}


# %% tags=["hide"] cellView="form"
# @title Figures and checks
import pandas as pd
from IPython.display import display

from vlm_lite import plots
from vlm_lite.labs import check, early
from vlm_lite.studies import load_study

# %% nbgrader={"grade": true, "grade_id": "VectorQuantizer-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
VectorQuantizer = check.VectorQuantizer(VectorQuantizer)


# %% [markdown]
# **The proof**: Chameleon's own quantizer, the same codebook. One thing is worth knowing: there, as in VQGAN's first code, $\beta$
# stands at the *other* term, so the encoder is held four times as firmly as the codes. With the weights exchanged the losses agree.

# %%
early.same_quantizer(VectorQuantizer)

# %% [markdown]
# ## 2. An image in 16 tokens
#
# VQGAN has a convolutional encoder and a decoder with an adversarial loss; Chameleon's makes 1,024 tokens of 512 x 512 pixels, from
# 8,192 codes. In Shapes every object stands inside one cell of a 4 x 4 grid, so a small MLP encodes **each cell of
# 16 x 16 pixels into one vector**, one token. A cell knows nothing of the others: where it stands is where its tokens
# stand in the row.
#
# Five cells in six are empty, so training on whole images would spend its time there. `cells` keeps all cells that show
# something, and a few that don't.


# %% tags=["save"]
def cut(images):  # uint8 (B, 3, 64, 64) -> cells (16 B, 3, 16, 16), row after row
    return rearrange(images, "b c (h p) (w q) -> (b h w) c p q", p=16, q=16)


class ImageTokenizer(nn.Module):
    # uint8 cells (M, 3, 16, 16) -> a code each, and back, by an MLP each way

    def __init__(self, num_codes=512, width=32, hidden=256, pixels=768):
        super().__init__()
        first, last = nn.Linear(pixels, hidden), nn.Linear(hidden, pixels)
        self.encoder = nn.Sequential(first, nn.GELU(), nn.Linear(hidden, width))
        self.quantizer = VectorQuantizer(num_codes, width)
        self.decoder = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def quantize(self, cells):  # (M, 3, 16, 16) -> vectors (M, d), loss (), codes (M,)
        return self.quantizer(self.encoder(cells.flatten(1) / 64 - 1).float())

    def forward(self, cells):  # -> the loss (): that of the pixels, and the quantizer's
        z, loss, _ = self.quantize(cells)
        return F.mse_loss(self.decoder(z).float(), cells.flatten(1) / 64 - 1) + loss

    @torch.no_grad()
    def encode(self, images):  # uint8 (B, 3, 64, 64) -> codes (B, 16), cell after cell
        codes = [self.quantize(cut(part))[2] for part in images.split(500)]
        return torch.cat(codes).view(len(images), 16)

    @torch.no_grad()
    def decode(self, codes):  # (B, 16) -> uint8 images (B, 3, 64, 64)
        z = self.quantizer.embedding(codes).flatten(0, 1)  # (B 16, d)
        pixels = (64 * (self.decoder(z) + 1)).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "(b h w) (c p q) -> b c (h p) (w q)", h=4, w=4, p=16, q=16)


def is_object(cells):  # uint8 (M, 3, 16, 16) -> bools (M,); the ground has a deviation of 7
    return torch.cat([part.float().flatten(1).std(dim=1) > 20 for part in cells.split(8000)])


def choose_cells(images):  # -> the cells that show something, and one empty cell for six of them
    some = is_object(cells := cut(images))
    return torch.cat([cells[some], cells[~some][: max(1, int(some.sum()) // 6)]])


# %% [markdown]
# **One loop for both trainings** of this page, the tokenizer's and the transformer's: a model that returns its loss, and a
# function that draws a batch. Every ten steps it calls `look`, which logs: it restarts dead codes here, and measures attention in section 6.


# %% tags=["save"]
def train_early(name, model, draw_batch, *, steps, lr=1e-2, seed=0, look=None):
    # Train a model that returns its loss on batches of draw_batch(), tuples of tensors -> History
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    code, sizes = (type(model), train_early), {"lr": lr, "look": bool(look)}
    run = Checkpoint(name, prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for step in run.steps(steps):
        loss = prepared(*(part.to(accelerator.device) for part in draw_batch()))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
        if look and (step + 1) % 10 == 0 and step < 0.8 * steps:
            run.log(**look(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    model.eval().cpu()
    return run.history


def train_tokenizer(cells, *, seed=0, restart=True, **recipe):
    # An ImageTokenizer trained on uint8 cells (M, 3, 16, 16), 128 a step
    torch.manual_seed(seed)
    model, look = ImageTokenizer(), (lambda model: model.quantizer.restart()) if restart else None
    draw_batch = lambda: (cells[torch.randint(len(cells), (128,))],)  # noqa: E731
    train_early("image tokenizer", model, draw_batch, seed=seed, look=look, **recipe)
    return model


def codebook_report(model, images):
    # {metric: value} on held-out images: error where objects are, codes in use, and their perplexity there
    codes = model.encode(images)
    some = is_object(right := cut(images))
    right, found = right[some].float(), cut(model.decode(codes))[some].float()
    p = codes.flatten()[some].bincount() / some.sum()
    error, perplexity = F.mse_loss(found, right) / right.var(), torch.special.entr(p).sum().exp()
    names = "error where objects are", "codes in use", "perplexity"
    return dict(zip(names, map(float, (error, (p > 0).sum(), perplexity)), strict=True))


# %% [markdown]
# The **perplexity** of the codes is $e^H$, $H$ being the entropy of how often each is chosen: as many equally frequent codes
# would be as diverse. The error is a share of the pixels' variance: 1 is a constant colour.
#
# **Predict first.** Of 512 codes, how many are in use without a restart?

# %%
clip = CLIP.from_pretrained(resolve_model("shapes-clip"))
train = encode_shapes(clip, "train", profile.train_images)
val = encode_shapes(clip, "val", profile.val_images)
cells, steps = choose_cells(train.images), profile.connector_steps
restart = {"no restart": False, "dead codes restarted": True}
tokenizers = {k: train_tokenizer(cells, steps=steps, restart=v) for k, v in restart.items()}
image_tokenizer = tokenizers["dead codes restarted"]
pd.DataFrame({k: codebook_report(v, val.images) for k, v in tokenizers.items()}).T.round(2)

# %% tags=["thumbnail"]
copies = [each.decode(each.encode(val.images[:5])) for each in tokenizers.values()]
plots.show_images(torch.cat([val.images[:5], *copies]), size=96)

# %% [markdown]
# Upper row: held-out images. Middle row: what their 16 tokens keep without the restart; lower row: with it.
#
# **Compare the two rows of the table**: codes in use, their perplexity, and the error where objects are. Without a restart the codes that win in the first steps
# take all the work: the encoder moves towards them, and what is not chosen gets no gradient. Look at what is still lost: neighbouring colours, the tips of
# a shape, sometimes the shape. No reader of these tokens can know what they don't hold.
#
# ## 3. One vocabulary
#
# The words keep their ids; behind them stand the 512 image codes, and two marks, *begin* and *end of image*. Two kinds of row, about twice as many of the first:
#
# - **reading**: `begin` 16 codes `end`, then turns of question and answer. Each reads the image and itself, not the other turns.
# - **drawing**: a caption, then `begin` 16 codes `end`.
#
# The loss counts what is to be written: answers in one kind, the image in the other. A drawing has 17 counted tokens, most of them empty cells, and an answer
# has two. So each *row* counts once, not each token. One reading row in ten has no image: the
# *blind* control is then asked of a model that knows such rows.


# %% tags=["save"]
class Vocabulary:
    # Words of a tokenizer, then num_codes image codes, then the two marks around an image

    def __init__(self, tokenizer, num_codes=512):
        self.tokenizer, self.first = tokenizer, len(tokenizer)
        self.begin, self.end = self.first + num_codes, self.first + num_codes + 1
        self.size = self.end + 1

    def image(self, codes):  # (N,) -> the ids of an image between its marks, a list
        return [self.begin, *(self.first + codes).tolist(), self.end]

    def reading(self, codes, turns):
        # (N,) or None, and (prompt, answer) turns -> ids, labels, whose: 0 image, 1, 2, ... turns
        ids = [] if codes is None else self.image(codes)
        labels, whose = [text.IGNORE] * len(ids), [0] * len(ids)
        for number, turn in enumerate(turns, start=1):
            said, wanted = text.conversation(self.tokenizer, [turn])
            ids, labels, whose = ids + said, labels + wanted, whose + [number] * len(said)
        return ids, labels, whose

    def drawing(self, codes, caption):  # -> ids, labels, whose: the image is to be written
        words, image = text.tokenize(self.tokenizer, [caption])[0], self.image(codes)
        labels = [text.IGNORE] * (len(words) + 1) + image[1:]  # the mark that begins is given
        return words + image, labels, [0] * len(labels)


def pad_rows(rows):  # (ids, labels, whose) each -> ids (B, T), mask (B, T, T), labels (B, T)
    columns = [[torch.tensor(each) for each in column] for column in zip(*rows, strict=True)]
    ids, labels = pad_sequence(columns[0], True), pad_sequence(columns[1], True, text.IGNORE)
    whose = pad_sequence(columns[2], True, -1)
    mask = (whose[:, :, None] == whose[:, None, :]) | (whose[:, None, :] == 0)
    return ids, mask.tril(), labels


def mixed_batch(vocabulary, codes, data, batch_size=16, per_row=8, blind=0.1):
    # A third drawing, the others reading, of an EncodedDataset and its images' codes (N, 16) -> ids, mask, labels
    rows = []
    for place, k in enumerate(random.sample(range(len(codes)), batch_size)):
        turns = data.turns[k][1:] or data.turns[k]  # questions; without any, the caption
        turns = random.sample(turns, min(per_row, len(turns)))
        seen = None if random.random() < blind else codes[k]
        drawing = vocabulary.drawing(codes[k], data.captions[k][0])
        rows.append(vocabulary.reading(seen, turns) if place % 3 else drawing)
    return pad_rows(rows)


# %% [markdown]
# ## 4. One transformer, with query-key norm
#
# The model is 09's Llama. Chameleon's authors found that their larger models diverged: words and image codes compete in one softmax, each
# makes itself heard by larger norms, and attention logits grow until training breaks. Their remedy is a LayerNorm of every
# head's query and key, with a learnt scale. A logit $q \cdot k / \sqrt h$ is then bounded by about $\sqrt h$ times the two scales
# (and what the LayerNorm's shifts add), however large the weights become.
#
# It stands between the projection and RoPE, so it can be put *behind the projection*, and 09's attention stays as it is.
#
# **Exercise 2: the norm of the heads.** ★☆☆ 5 minutes. `F.layer_norm(x, x.shape[-1:])` has no scale and no shift of its own.
# <details><summary>Hint</summary>
#
# `x.unflatten(-1, self.weight.shape)` has shape (..., H, h). The two parameters fit its last two dimensions. Flatten at the end.
# </details>


# %% nbgrader={"grade": false, "grade_id": "HeadNorm", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise", "save"]
class HeadNorm(nn.Module):
    # x (..., H h) -> the same, each head's h numbers normalised, with a scale and a shift for each

    def __init__(self, heads, head_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, head_dim))

    def forward(self, x):
        ### BEGIN SOLUTION
        x = x.unflatten(-1, self.weight.shape)  # (..., H, h)
        return (F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias).flatten(-2)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "HeadNorm-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
HeadNorm = check.HeadNorm(HeadNorm)


# %% tags=["save"]
def llama(vocab_size, width=128, layers=4, heads=4, inner=384, qk_norm=True):
    # 09's Llama of these sizes, with Chameleon's query-key norm or without
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    sizes |= {"num_hidden_layers": layers, "rms_norm_eps": 1e-5, "vocab_size": vocab_size}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    model = Llama(LlamaConfig(**sizes, rope_parameters=rope))
    for attention in (layer.self_attn for layer in model.layers if qk_norm):
        attention.q_proj = nn.Sequential(attention.q_proj, HeadNorm(heads, width // heads))
        attention.k_proj = nn.Sequential(attention.k_proj, HeadNorm(heads, width // heads))
    return model


# %% [markdown]
# **The proof**: a whole small Chameleon, random weights, copied into it. Only names differ.

# %%
early.same_transformer(llama)

# %% [markdown]
# (There, the logits are made from the last layer's output. `ChameleonForConditionalGeneration` itself sets those of all image codes to the smallest number:
# the model that was released was kept from drawing.)
#
# Reading is 09's `generate`. Drawing picks 16 codes, one after another, each *drawn at random* by its probability: a caption says
# *top left* and not which cell, and the likeliest content of any one cell is nothing.


# %% tags=["save"]
class EarlyFusion(nn.Module):
    # One transformer for words and image codes: the loss of mixed rows, answers, and images

    def __init__(self, vocabulary, **sizes):
        super().__init__()
        self.vocabulary, self.text_model = vocabulary, llama(vocabulary.size, **sizes)

    def embed(self, ids, images=None):  # (B, T) -> (B, T, D); images are ids as well
        return self.text_model.embed_tokens(ids)

    def forward(self, ids, mask, labels):  # (B, T), (B, T, T), (B, T) -> loss ()
        logits, wanted = self.text_model(self.embed(ids), mask)[0].float(), labels[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].mT, wanted, reduction="none")  # (B, T - 1)
        counted = (wanted != text.IGNORE).sum(dim=1)
        return (losses.sum(dim=1) / counted).mean()  # each row counts once

    def left_padded(self, rows):  # lists of ids -> ids and mask (B, T)
        length = max(map(len, rows))
        ids = torch.tensor([[-1] * (length - len(row)) + row for row in rows])
        return ids.clamp(min=0), (ids >= 0).long()

    def generate(self, codes, prompts, max_new_tokens=4):
        # codes (B, 16), or None, and B prompts -> B answers in words
        words, rows = self.vocabulary.tokenizer, text.tokenize(self.vocabulary.tokenizer, prompts)
        if codes is not None:
            images = map(self.vocabulary.image, codes.long())
            rows = [image + row for image, row in zip(images, rows, strict=True)]
        found = generate(self, *self.left_padded(rows), None, max_new_tokens, words.eos_token_id)
        found = found.masked_fill(found >= self.vocabulary.first, words.eos_token_id)  # no words
        return text.decode(words, list(found.T), len(prompts))

    @torch.no_grad()
    def draw(self, captions, seed=0):
        # B captions -> codes (B, 16), drawn at random from the model's probabilities of codes
        vocabulary, rng = self.vocabulary, torch.Generator().manual_seed(seed)
        rows = text.tokenize(vocabulary.tokenizer, captions)
        ids, mask = self.left_padded([row + [vocabulary.begin] for row in rows])
        cache, drawn = None, []
        for _ in range(16):
            logits, cache = self.text_model(self.embed(ids), mask, cache)
            p = logits[:, -1, vocabulary.first : vocabulary.begin].float().softmax(dim=-1)
            drawn.append(torch.multinomial(p, 1, generator=rng))  # (B, 1)
            ids, mask = vocabulary.first + drawn[-1], F.pad(mask, (0, 1), value=1)
        return torch.cat(drawn, dim=1)


# %% [markdown]
# ## 5. Trained from nothing
#
# **One step that Chameleon doesn't need.** A code comes up in too few training images for the model to learn from them alone what it shows. So the rows of the image codes, where they
# enter and where they leave the model, start as a random projection of the codebook: codes that draw alike start alike (`start_from`). All else starts at random.
#
# **The budget** is this page's own, apart from 07's comparison: there a trained CLIP and a language model that reads are joined, here nothing is known before. Live it is
# a minute or two of a CPU; `vlm-lite study early_fusion --seeds 3` trains six times as many steps.
#
# **How a drawing is scored.** Not by the model itself: `shapes-clip`, the CLIP that ships with the course, has to find the caption among 128 by the
# drawn image (R@5, chance 4%). The ceilings are the same measure of the true images, and of what the tokenizer keeps of them;
# the control is a drawing made for *another* caption.


# %% tags=["save"]
@torch.no_grad()
def start_from(codebook, model):
    # Set the rows of the image codes, where they enter and where they leave, to projections of codebook (K, d)
    vocabulary, codebook = model.vocabulary, (codebook - codebook.mean(dim=0)) / codebook.std()
    for weight in (model.text_model.embed_tokens.weight, model.text_model.lm_head.weight):
        projection = torch.randn(codebook.shape[1], weight.shape[1]) / codebook.shape[1] ** 0.5
        weight[vocabulary.first : vocabulary.begin] = weight.std() * (codebook @ projection)


def train_fusion(image_tokenizer, data, *, qk_norm=True, seed=0, **recipe):
    # An EarlyFusion trained on an EncodedDataset, its images read by an ImageTokenizer -> (model, History)
    torch.manual_seed(seed)
    codes = image_tokenizer.encode(data.images)
    model = EarlyFusion(Vocabulary(make_tokenizer()), qk_norm=qk_norm)
    start_from(image_tokenizer.quantizer.embedding.weight, model)
    draw_batch = lambda: mixed_batch(model.vocabulary, codes, data)  # noqa: E731
    return model, train_early("early fusion", model, draw_batch, seed=seed, **recipe)


def measure(model, image_tokenizer, clip, val):
    # -> ProbeResult of 384 questions, 128 drawings, {what is shown: R@5 of its caption among 128}
    count, codes = min(128, len(val.images)), image_tokenizer.encode(val.images)
    rows = val.questions.select(range(3 * count))
    blank = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    blank = image_tokenizer.encode(blank)
    result = run_probes(model, codes, rows, blank_features=blank, image_ids=val.ids)
    captions = [five[0] for five in val.captions[:count]]
    texts = embed_strings(clip, captions, model.vocabulary.tokenizer)
    drawn = image_tokenizer.decode(model.draw(captions))
    shown = {"drawing": drawn, "for another caption": drawn.roll(1, 0), "image": val.images[:count]}
    shown["tokenizer's copy"] = image_tokenizer.decode(codes[:count])
    found = {what: recall_at_k(embed_images(clip, x) @ texts.T, 5) for what, x in shown.items()}
    return result, drawn, found


# %%
model, history = train_fusion(image_tokenizer, train, steps=profile.connector_steps)
result, drawn, found = measure(model, image_tokenizer, clip, val)
board = {name: result.accuracy[name] for name in ("vlm", "shuffled", "blank", "blind")}
print(f"HEADLINE: VQA {board['vlm']}, blind {board['blind']}; R@5 drawn {found['drawing']:.0%}")
plots.loss_curve(history, ylabel="loss (nats)", title=f"trained for {history.seconds[-1]:.0f} s")

# %%
display(result.frame()[["questions", *board]].round(1))
display(plots.percent_table({"caption found, R@5 (%)": found}))
plots.controls_bars(board, title="VQA on held-out images")

# %%
plots.show_images([*val.images[:5], *drawn[:5]], [c[0] for c in val.captions[:5]] * 2, size=130)

# %% [markdown]
# Upper row: held-out images with their captions. Lower row: what the model drew from these captions.
#
# **How to read it.** The answers: *vlm* against *shuffled* says what comes from the image; *blind* is what the words of a question give away. The drawings:
# compare *drawing* with *for another caption*, then with *tokenizer's copy*, which no drawing can be expected to exceed.
#
# **There is no oracle here.** Elsewhere in the course the oracle reads the scene in words; this model was never trained to. For the drawings the true image and the tokenizer's copy
# are the ceilings.
#
# The live run is short. In the run saved here, what it gains over *blind* is nearly all in one type of question, the digits (elsewhere it is at *blind*); where *vlm* and *shuffled* overlap, nothing is shown yet. Its drawings are
# made of whole objects, but few of these are the caption's.
#
# **Recorded, three seeds**, six times as many steps for the answers and drawings, twice for the tokenizers, three times for the last section's pair (`vlm-lite study early_fusion --seeds 3`): mean, lowest and highest seed.

# %%
recorded = pd.DataFrame(load_study("early_fusion")["summary"]).T[["mean", "low", "high"]]
assert recorded["low"]["VQA: vlm"] > recorded["high"].filter(regex="VQA: [bs]").max()
recorded.drop("VQA: oracle").round(2)

# %% [markdown]
# Six times as many steps bring the answers clear of every control with all three seeds. The drawings follow their captions, those of one seed far better than the others'.
#
# **Is my loss normal?** *Stuck near 3 or above:* do image codes stand behind the words, each with `first` added? *Answers stay at blind:* are the answers' labels at the ids
# themselves, unshifted?
#
# ## 6. Without query-key norm
#
# How large can an attention logit become? It is at most $\lVert q \rVert \lVert k \rVert / \sqrt h$, and RoPE changes no norm. The
# function below takes the largest query and the largest key of each head. Both models train at **four times** the learning rate,
# for a sixth of the steps.


# %% tags=["save"]
@torch.no_grad()
def logit_bound(model):
    # {name: the largest |q| |k| / sqrt(h) of any head} on a row of all ids: no attention logit is above it
    norms, h = [], model.text_model.head_dim
    keep = lambda _, __, out: norms.append(out.unflatten(-1, (-1, h)).norm(dim=-1).amax((0, 1)))  # noqa: E731
    parts = [getattr(x.self_attn, n) for x in model.text_model.layers for n in ("q_proj", "k_proj")]
    hooks = [part.register_forward_hook(keep) for part in parts]
    model.text_model(model.embed(torch.arange(model.vocabulary.size)[None]))
    [hook.remove() for hook in hooks]
    bounds = torch.stack(norms[::2]) * torch.stack(norms[1::2]) / h**0.5  # (layers, H)
    return {"logit bound": bounds.max().item()}


def study(seed, profile):
    """Notebook 07b: an image tokenizer with and without restarts, a longer training, and query-key norm."""
    clip, steps = CLIP.from_pretrained(resolve_model("shapes-clip")), profile.connector_steps
    train = encode_shapes(clip, "train", profile.train_images)
    val, figures = encode_shapes(clip, "val", profile.val_images), {}
    for name, restart in (("no restart", False), ("restart", True)):
        recipe = {"steps": 2 * steps, "seed": seed, "restart": restart}
        made = train_tokenizer(choose_cells(train.images), **recipe)
        figures |= {f"{name}: {k}": v for k, v in codebook_report(made, val.images).items()}
    model, history = train_fusion(made, train, steps=6 * steps, seed=seed)
    result, _, found = measure(model, made, clip, val)
    figures |= {f"VQA: {name}": each.value for name, each in result.accuracy.items()}
    figures |= {f"R@5: {what}": each for what, each in found.items()}
    recipe = {"steps": steps // 2, "lr": 4e-2, "seed": seed}
    for name, norm in (("norm", True), ("no norm", False)):
        high, losses = train_fusion(made, train, qk_norm=norm, **recipe)
        figures[f"{name}: loss"] = losses.losses[-1]
        figures |= {f"{name}: {k}": v for k, v in logit_bound(high).items()}
    return history, figures


# %%
recipe = {"steps": max(20, profile.connector_steps // 6), "lr": 4e-2, "look": logit_bound}
names = {"with query-key norm": True, "without": False}
rows = {k: train_fusion(image_tokenizer, train, qk_norm=v, **recipe)[1] for k, v in names.items()}
print({name: f"loss {each.losses[-1]:.2f} at the end" for name, each in rows.items()})
bounds = {k: [value for _, value in each.figures["logit bound"]] for k, each in rows.items()}
plots.losses(bounds, "bound of the attention logits", ylabel="|q| |k| / √h", every=10)

# %% [markdown]
# Read the figure: with the norm the bound moves only as its learnt scales do; without it the bound is free. The figure ends at four fifths of the steps. The line above it says whether this mattered to
# the loss *here*: four layers and a few dozen steps. Chameleon saw the divergence with billions of parameters, late in training, so equal losses here are no argument against the norm.
#
# ## What you showed
#
# - Quantizer and transformer are Chameleon's in `transformers`, with the same weights.
# - Codes that nothing chooses die, and a restart brings them back.
# - One transformer with one vocabulary answers in words and draws in codes; both are measured against controls.
#
# ## What this does not show
#
# - **That early fusion is worse than late.** It starts from nothing here; the models of 03 and 07 have a trained CLIP and a language model that reads.
# - **What a VQGAN keeps.** There is no adversarial and no perceptual loss here, and each cell is encoded alone.
# - **Mixed documents.** Chameleon writes text and images in one answer, and learns from every token of a row.
# - **Stability at scale.** See section 6.
#
# ## Where next
#
# Give the tokenizer 64 codes, or 2,048, and predict first which figure moves. [08](08_resolution.ipynb) goes on with late fusion.
