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
#     title: A Q-Former for GPT-2
#     builds: a minimal Q-Former between a frozen CLIP and a frozen GPT-2
#     minutes_t4_estimate: 25
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, zoo/shapes-vlm, results/qformer_connector.json,
#             results/connector_variants.json, results/shapes_vlm.json]
#     outputs_of: 8e0faa5713d7cafef19c567209a7e71733c1956e9d70ff4a18757c52524f3163
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/03_qformer_gpt2.ipynb) Do the exercises: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/labs/03_qformer_gpt2.ipynb)

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
print(describe(profile, compute, notebook="03_qformer_gpt2", t4_minutes=25))

# %% [markdown]
# # 3. A Q-Former between a frozen eye and a frozen brain
#
# An **eye** that cannot speak: a CLIP that has seen thousands of pictures. A **brain** that cannot see: a GPT-2 that has
# read thousands of scenes in words and never met a picture. Neither will change by a single bit. You build the **nerve**
# between them, and after one short training the brain answers questions about pictures.
#
# **You will build** the Q-Former of BLIP-2 (Li et al. 2023) from scratch: learnt queries, attention, layers; the labels
# and padding that make a language model learn answers and nothing else; and the whole model around them.
#
# **You will be able to show** that your Q-Former equals `transformers`' `Blip2QFormerModel`; that the answers come from
# the picture, with four controls and an interval; and on which patch of the picture an answer hangs.
#
# **Reading time:** 25 minutes. Six exercises, 41 minutes if you write them all, none needed to go on.
# <!-- figures -->
# **Run time:** about 2 min (1.5 with bf16) and 1.8 GB of memory on `tiny` (measured, 2 CPU cores); about 25 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [01, CLIP](01_clip_infonce.ipynb), which trains such an eye, and the formula of attention.
# Sections 1 to 12 run in the small Shapes world, on any machine; section 13 does the same with photographs, OpenAI's
# CLIP and the real GPT-2 (`t4`). **That part has not been run on a GPU yet.**
#
# ## 1. The gap
#
# ```
# picture ──► eye (CLIP, frozen) ──► patch vectors ──► NERVE (trained) ──► prefix vectors ─┐
#                                                                                          ├──► brain (GPT-2, frozen) ──► answer
# question ──────────────────────► word vectors, GPT-2's own ──────────────────────────────┘
# ```
#
# The brain reads a row of vectors. Usually they are word vectors, but nothing in GPT-2 asks where they came from. So a
# picture needs only to be turned into a few vectors that this brain *can read*, put in front of the question.

# %%
import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from IPython.display import display
from torch import nn

from vlm_lite import plots, recipes
from vlm_lite.data.shapes import load_shapes
from vlm_lite.labs import check
from vlm_lite.models.blip2 import QFormerStage1
from vlm_lite.models.clip import CLIP
from vlm_lite.models.projectors import make_connector
from vlm_lite.models.text import load_language_model
from vlm_lite.profiles import resolve_model

on_photographs = (
    profile if profile.name == "t4" else None
)  # section 13; all that comes before it is the small world
profile = get_profile("tiny") if on_photographs else profile
plots.style()
eye = CLIP.from_pretrained(resolve_model(profile.vision_model))
brain, tokenizer = load_language_model(resolve_model(profile.language_model))
captions, questions = load_shapes(
    "val", profile.val_images, progress=False
)  # the nerve will never train on these
images, references, ids = recipes.load_pictures(
    captions
)  # pictures (N, 3, H, W), five captions each, their ids

print(f"{len(images)} pictures and {len(questions)} questions, held out")
plots.show_images(images[:5], [texts[0] for texts in references[:5]])

# %% [markdown]
# ## 2. The brain reads
#
# Before any picture: what could this brain know at all? Ask it the same questions twice.
#
# - **Blind:** the question alone. What it gets right is its *prior*, which answer usually follows such a question, and
#   luck: of the yes-or-no questions, about half.
# - **Oracle:** the scene written in words, then the question. No nerve can make this brain answer much better than that.
#
# Everything the nerve can bring lies between these two lines.

# %%
from vlm_lite.data.language import CAPTION_PROMPT, short_prompt
from vlm_lite.evals.vqa import score_vqa


@torch.no_grad()
def ask_brain(prompts, max_new_tokens=4):
    """The bare language model's greedy answers to a list of prompts, padded on the left."""
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    row = brain.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    new = row[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


few = questions.select(range(min(300, len(questions))))
prompts = [short_prompt(question) for question in few["question"][:]]
told = [f"{scene} {prompt}" for scene, prompt in zip(few["description"][:], prompts, strict=True)]
blind, oracle = ask_brain(prompts), ask_brain(told)

print("the scene in words:", few[0]["description"])
print(
    f"{few[0]['question']}   blind: {blind[0]!r}   oracle: {oracle[0]!r}   right: {few[0]['answer']!r}\n"
)
print(
    f"VQA accuracy over {len(few)} questions: blind {score_vqa(blind, few)['overall']:.1f}%, "
    f"oracle {score_vqa(oracle, few)['overall']:.1f}%"
)

# %% [markdown]
# ## 3. The eye offers patches
#
# The eye cuts a picture into patches and gives a vector for each, $V \in \mathbb{R}^{N \times D_v}$. Two customs of
# LLaVA, kept here: take the layer *before the last* (the last one serves CLIP's own matching of captions), and drop the
# class token. In the Shapes world one patch is one cell of the 4 x 4 grid.
#
# The eye is frozen, so its features are computed once and kept on disk. The figure shows for each thing in one picture
# how much its patch resembles every other patch (cosine, after taking off the mean patch).

# %%
import re

from vlm_lite.data.language import COLUMNS, ROWS


def cells(description):
    """The grid cells (row, column) that a description names, in its order."""
    found = re.findall(r"(\w+) row, (\w+) column", description)
    return [(ROWS.index(row), COLUMNS.index(column)) for row, column in found]


features = recipes.picture_features(
    eye, images, progress=False
)  # (N, 16, Dv), fp16, from disk when they are there
print(
    "features",
    tuple(features.shape),
    features.dtype,
    f"{features[0].numel() * 2 / 1000:.0f} kB a picture",
)

scenes = captions["description"][:]
shown = max(
    range(min(50, len(images))), key=lambda k: len(cells(scenes[k]))
)  # a picture with many things in it
unit = F.normalize(
    features[shown].float() - features[:500].float().mean(dim=(0, 1)), dim=-1
)  # (16, Dv)
similar = unit @ unit.T  # (16, 16)
full = [4 * row + column for row, column in cells(scenes[shown])]
empty = [k for k in range(16) if k not in full]
print(
    f"mean cosine of two empty cells {similar[empty][:, empty].mean():.2f}, of an empty cell and one with something "
    f"in it {similar[empty][:, full].mean():.2f}"
)
things = scenes[shown].removesuffix(".").split(". ")
plots.attention_over_image(
    images[shown],
    similar[full].clamp(min=0).view(-1, 4, 4),
    titles=[" ".join(thing.split(" in ")[0].split()[-2:]) for thing in things],
    size=156,
)


# %% [markdown]
# **Read it.** Empty cells resemble one another, and things resemble things: no empty cell lights up in any map (a cosine
# below zero is left dark). How much they do depends on what they share. The star and the red heart, which have neither
# colour nor shape in common, are the least alike here.
#
# ## 4. The Q-Former, piece by piece
#
# **Queries.** A query is a vector that is *learnt*: a question put to every picture alike. There are $Q$ of them, and
# whatever the number of patches, $Q$ vectors come out.
#
# $$Z_0 \in \mathbb{R}^{Q \times D}, \qquad Z_0 \sim \mathcal{N}(0,\, 0.02) \ \text{ at the start}$$
#
# (0.02 is the standard deviation.) They must start *different*: the queries are a set, nothing else in the Q-Former
# tells one from another, and equal queries give equal outputs. Only their places in front of GPT-2 could pull them apart.
#
# **Exercise 1: the queries.** ★☆☆ 3 minutes. Return them as something an optimiser will train.
# <details><summary>Hint</summary>
#
# `nn.Parameter` marks a tensor as trainable; `torch.randn` draws from $\mathcal{N}(0, 1)$.
# </details>


# %% nbgrader={"grade": false, "grade_id": "make_queries", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def make_queries(num_query_tokens, width):
    """Q learnt vectors, at the start drawn from N(0, 0.02): a trainable parameter (Q, D)."""
    ### BEGIN SOLUTION
    return nn.Parameter(0.02 * torch.randn(num_query_tokens, width))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "make_queries-check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
make_queries = check.make_queries(make_queries)
fresh = make_queries(profile.num_query_tokens, 192)  # as many as the model of section 7 will have
print(f"std of {len(fresh)} fresh queries: {fresh.std().item():.4f}")


# %% [markdown]
# **Attention.** One formula does both jobs of a Q-Former. Queries *look* at the picture (keys and values from the
# patches: cross-attention), and queries *talk* to one another (keys and values from the queries: self-attention). In each
# of $H$ heads of width $h = D / H$:
#
# $$A = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{h}}\right), \qquad \text{out} = A\,v$$
#
# Row $i$ of $A$ says how much query $i$ takes from each patch; it sums to 1. There is **no mask**: every query sees every
# patch and every query, *both ways*. Queries are a set, not a sentence.
#
# **Exercise 2: attention.** ★★☆ 10 minutes. Return the mixed values *and* the weights: the pictures in section 11 are
# drawn from them.
# <details><summary>Hint</summary>
#
# Split: `rearrange(q, "b n (heads h) -> b heads n h", heads=num_heads)`, the same for k and v. Then two matrix products
# with a softmax over the last axis between them, and `"b heads n h -> b n (heads h)"` to put the heads side by side.
# </details>


# %% nbgrader={"grade": false, "grade_id": "multihead_attention", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def multihead_attention(q, k, v, num_heads):
    """q (B, Q, D), k and v (B, N, D) -> mixed values (B, Q, D), weights (B, H, Q, N)."""
    ### BEGIN SOLUTION
    q, k, v = (rearrange(x, "b n (heads h) -> b heads n h", heads=num_heads) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, Q, N)
    return rearrange(weights @ v, "b heads n h -> b n (heads h)"), weights
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "multihead_attention-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
multihead_attention = check.multihead_attention(multihead_attention)
some = torch.randn(1, profile.num_query_tokens, 192)
weights = multihead_attention(some, torch.randn(1, 16, 192), torch.randn(1, 16, 192), 6)[1]
print(
    "weights", tuple(weights.shape), "  each row sums to", round(weights.sum(-1).mean().item(), 4)
)


# %% [markdown]
# **A layer** is three steps. After each one its result is *added* to the queries and the sum is normalised ("post-norm",
# as in BERT, from which BLIP-2 takes its Q-Former; a ViT normalises *before* each step):
#
# $$Z \leftarrow \mathrm{LN}_1(Z + \mathrm{talk}(Z, Z)) \qquad
#   Z \leftarrow \mathrm{LN}_2(Z + \mathrm{look}(Z, V)) \qquad
#   Z \leftarrow \mathrm{LN}_3(Z + \mathrm{think}(Z))$$
#
# **Exercise 3: one layer.** ★★☆ 6 minutes. `talk` and `look` take what asks and what is looked at; `think` is an MLP on
# each query alone; `norms` holds the three LayerNorms.
# <details><summary>Hint</summary>
#
# Three lines, each `queries = norms[i](queries + ...)`. Who is looked at when the queries talk? The queries.
# </details>


# %% nbgrader={"grade": false, "grade_id": "qformer_layer", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def qformer_layer(queries, patches, talk, look, think, norms):
    """queries (B, Q, D), patches (B, N, Dv) -> queries (B, Q, D)."""
    ### BEGIN SOLUTION
    queries = norms[0](queries + talk(queries, queries))
    queries = norms[1](queries + look(queries, patches))
    return norms[2](queries + think(queries))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "qformer_layer-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
qformer_layer = check.qformer_layer(qformer_layer)


# %% [markdown]
# **The whole model, in one place.** Copy this cell with your three functions above it, and you have a Q-Former: no other
# line of the course is needed. The parameters bear the same names as `vlm_lite`'s, so that weights can be copied without
# a table of names. With `cross_attention_frequency=2`, BLIP-2's choice, only every second layer looks at the picture.


# %%
def linear_maps(width, source_width):
    """What x asks for, what the source offers, what it gives, and the way out."""
    return nn.ModuleDict(
        {
            "query": nn.Linear(width, width),
            "key": nn.Linear(source_width, width),
            "value": nn.Linear(source_width, width),
            "output": nn.Linear(width, width),
        }
    )


class MyLayer(nn.Module):
    def __init__(self, width, num_heads, mlp_width, vision_width, looks):
        super().__init__()
        self.num_heads, self.looks, self.weights = num_heads, looks, None
        self.self_attention, self.self_norm = (
            linear_maps(width, width),
            nn.LayerNorm(width, eps=1e-12),
        )
        self.cross_attention = linear_maps(width, vision_width) if looks else None
        self.cross_norm = nn.LayerNorm(width, eps=1e-12) if looks else nn.Identity()
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def attend(self, maps, x, source):
        mixed, weights = multihead_attention(
            maps["query"](x), maps["key"](source), maps["value"](source), self.num_heads
        )
        self.weights = weights.detach()  # kept for the pictures
        return maps["output"](mixed)

    def talk(self, queries, source):
        return self.attend(self.self_attention, queries, source)

    def look(self, queries, patches):
        return self.attend(self.cross_attention, queries, patches) if self.looks else 0

    def think(self, queries):
        return self.mlp_out(F.gelu(self.mlp_in(queries)))

    def forward(self, queries, patches):
        norms = self.self_norm, self.cross_norm, self.mlp_norm
        return qformer_layer(queries, patches, self.talk, self.look, self.think, norms)


class MyQFormer(nn.Module):
    def __init__(
        self,
        *,
        num_query_tokens,
        width,
        num_layers,
        num_heads,
        mlp_width,
        vision_width,
        cross_attention_frequency=2,
    ):
        super().__init__()
        self.query_tokens = make_queries(num_query_tokens, width)
        self.input_norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(
            MyLayer(
                width, num_heads, mlp_width, vision_width, looks=i % cross_attention_frequency == 0
            )
            for i in range(num_layers)
        )

    def forward(self, patches, *, return_attention=False):
        """patches (B, N, Dv) -> (B, Q, D); with return_attention also who looked where, (B, H, Q, N)."""
        queries = self.input_norm(
            repeat(self.query_tokens, "q d -> b q d", b=len(patches))
        )  # (B, Q, D)
        for layer in self.layers:
            queries = layer(queries, patches)
        attention = [layer.weights for layer in self.layers if layer.looks][-1]
        return (queries, attention) if return_attention else queries


# %% [markdown]
# **Proof.** Copy the weights of `transformers`' `Blip2QFormerModel`, at a small size (8 queries of width 32, as in the
# rest of this section), into `vlm_lite`'s Q-Former and into yours. All three must give the same numbers for the same picture.

# %%
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from vlm_lite.models.qformer import QFormer

torch.manual_seed(0)
small = dict(num_query_tokens=8, width=32, num_layers=3, num_heads=4, mlp_width=64, vision_width=24)
theirs = Blip2QFormerModel(
    Blip2QFormerConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        encoder_hidden_size=24,
        cross_attention_frequency=2,
        attn_implementation="eager",
    )
).eval()
nn.init.normal_(
    theirs.encoder.layer[0].crossattention.output.dense.bias
)  # so that not every bias is 0

renamed = [
    ("encoder.layer.", "layers."),
    ("crossattention.attention", "cross_attention"),
    ("attention.attention", "self_attention"),
    ("crossattention.output.dense", "cross_attention.output"),
    ("crossattention.output.LayerNorm", "cross_norm"),
    (".attention.output.dense", ".self_attention.output"),
    (".attention.output.LayerNorm", ".self_norm"),
    ("intermediate_query.dense", "mlp_in"),
    ("output_query.dense", "mlp_out"),
    ("output_query.LayerNorm", "mlp_norm"),
    ("layernorm.", "input_norm."),
]
copied = {"query_tokens": torch.randn(8, 32)}
for name, value in theirs.state_dict().items():
    for old, new in renamed:
        name = name.replace(old, new)
    copied[name] = value

mine, packaged = MyQFormer(**small), QFormer(**small)
print("mine:", mine.load_state_dict(copied), "  vlm_lite's:", packaged.load_state_dict(copied))

patches = torch.randn(2, 16, 24)
with torch.no_grad():
    expected = theirs(
        query_embeds=copied["query_tokens"].expand(2, -1, -1), encoder_hidden_states=patches
    )
    torch.testing.assert_close(packaged(patches), expected.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine(patches), packaged(patches), atol=1e-5, rtol=0)
    print(
        f"largest difference: mine to vlm_lite's {(mine(patches) - packaged(patches)).abs().max():.1e}, "
        f"vlm_lite's to transformers' {(packaged(patches) - expected.last_hidden_state).abs().max():.1e}"
    )

# %% [markdown]
# **Formula, code, shape.** One layer by hand, on two pictures. Each row below is *run* from the code it shows; its shape
# is asserted, and at the end the last row must equal what the whole model gives.

# %%
torch.manual_seed(0)
net = MyQFormer(
    num_query_tokens=8,
    width=32,
    num_layers=1,
    num_heads=4,
    mlp_width=64,
    vision_width=eye.feature_width,
)
B, N, Dv, Q, D, H = 2, features.shape[1], eye.feature_width, 8, 32, 4
known = {
    "features": features,
    "net": net,
    "layer": net.layers[0],
    "look": net.layers[0].cross_attention,
    "attend": multihead_attention,
    "F": F,
}
table = [
    ("V, the patches of two pictures", "V", "features[:2].float()", (B, N, Dv)),
    (
        "Z = LN(Z₀), for every picture alike",
        "Z",
        "net.input_norm(net.query_tokens.expand(2, -1, -1))",
        (B, Q, D),
    ),
    ("Z ← LN₁(Z + talk(Z, Z))", "Z", "layer.self_norm(Z + layer.talk(Z, Z))", (B, Q, D)),
    ("q = Z W_q + b_q", "q", "look['query'](Z)", (B, Q, D)),
    ("k = V W_k + b_k", "k", "look['key'](V)", (B, N, D)),
    ("v = V W_v + b_v", "v", "look['value'](V)", (B, N, D)),
    ("A = softmax(q kᵀ / √h)", "A", "attend(q, k, v, 4)[1]", (B, H, Q, N)),
    ("A v, heads side by side", "mixed", "attend(q, k, v, 4)[0]", (B, Q, D)),
    ("Z ← LN₂(Z + A v W_o + b_o)", "Z", "layer.cross_norm(Z + look['output'](mixed))", (B, Q, D)),
    (
        "Z ← LN₃(Z + GELU(Z W₁ + b₁) W₂ + b₂)",
        "Z",
        "layer.mlp_norm(Z + layer.mlp_out(F.gelu(layer.mlp_in(Z))))",
        (B, Q, D),
    ),
]
with torch.no_grad():
    for formula, name, code, shape in table:
        known[name] = eval(code, {}, known)
        assert tuple(known[name].shape) == shape, (
            f"{code} has shape {tuple(known[name].shape)}, expected {shape}"
        )
        print(f"{formula:37} {name + ' = ' + code:68} {shape}")
    torch.testing.assert_close(
        known["A"].sum(dim=-1), torch.ones(B, H, Q)
    )  # each query shares out exactly 1
    torch.testing.assert_close(known["Z"], net(features[:2].float()))  # the table is the model
print("\nall shapes hold, and the last row equals the model")

# %% [markdown]
# **What would go wrong?** Two ways to have all the right parts, no error, and a lame Q-Former.
#
# - *`BertModel(is_decoder=True, add_cross_attention=True)`.* A decoder's self-attention is causal. Disturb one query and
#   see whose output moves: row $i$, column $j$ is lit if output $i$ depends on query $j$.
# - *Queries that start at zero.* (`transformers`' own class starts them so, and counts on a checkpoint to overwrite
#   them.) All give one and the same output, and on the way back LayerNorm divides by almost nothing.

# %%
import matplotlib.pyplot as plt
from transformers import BertConfig, BertModel


@torch.no_grad()
def influence(model, vectors):
    """Which outputs of `model` move when one vector of (1, N, D) is disturbed: booleans (outputs, N)."""
    before, columns = model(vectors), []
    for j in range(vectors.shape[1]):
        disturbed = vectors.clone()
        disturbed[0, j] += torch.randn(
            vectors.shape[2]
        )  # noise: a constant shift would vanish in LayerNorm
        columns.append((model(disturbed) - before).abs().amax(dim=(0, 2)) > 1e-6)
    return torch.stack(columns, dim=1)


torch.manual_seed(0)
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
queries, patches, net = (
    torch.randn(1, 8, 32),
    torch.randn(1, 16, 32),
    MyQFormer(**{**small, "vision_width": 32}),
)
both_ways = influence(
    lambda z: torch.func.functional_call(net, {"query_tokens": z[0]}, (patches,)), queries
)
one_way = influence(
    lambda z: bert(inputs_embeds=z, encoder_hidden_states=patches).last_hidden_state, queries
)
print(
    f"pairs of queries that see each other both ways: yours {(both_ways & both_ways.T).triu(1).sum()} of 28, "
    f"the decoder's {(one_way & one_way.T).triu(1).sum()} of 28"
)

for name, std in (("N(0, 0.02)", 0.02), ("zeros", 0.0)):
    nn.init.normal_(net.query_tokens, std=std)
    net.zero_grad()
    out = net(patches)  # (1, 8, 32)
    (out * torch.randn_like(out)).sum().backward()
    print(
        f"queries from {name:10}: their outputs differ by up to {(out - out[:, :1]).abs().max():.4f}, "
        f"largest gradient of a query {net.query_tokens.grad.abs().max():.0e}"
    )

figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.9), layout="constrained")
for axes, seen, title in zip(
    panels, (both_ways, one_way), ("your Q-Former", "BERT as a decoder"), strict=True
):
    axes.imshow(seen, cmap="cividis", vmin=0, vmax=1)
    axes.set(
        title=title,
        xlabel="query disturbed",
        ylabel="output that moves" if axes is panels[0] else "",
        xticks=range(8),
        yticks=range(8),
        xticklabels=range(1, 9),
        yticklabels=range(1, 9),
    )
    axes.grid(False)
plt.show()


# %% [markdown]
# ## 5. Stage 1: what is worth seeing
#
# Put in front of GPT-2 at once, the queries would have to learn two things together: what to look for in a picture, and
# how to say it to this brain. BLIP-2 parts them. Its **first stage** has no language model. Queries and a caption go
# through the *same* self-attention in one row, only the queries look at the picture, and three losses ask whether the
# queries hold what the caption says. (The text gets word embeddings and an MLP of its own in each layer, and these are
# left behind afterwards.)
#
# | loss | asks | who sees whom |
# |---|---|---|
# | **ITC**, contrastive | is this caption nearer to its picture than to the others of the batch? A picture's score is that of its *best* query | queries and text apart |
# | **ITM**, matching | do this picture and this caption belong together? The wrong ones are drawn among the most alike: **hard negatives** | all see all |
# | **ITG**, generation | say the caption, word by word | the text sees the queries and its own past; the queries do not see the text |
#
# One model, one pass, three tasks: the **mask** alone tells them apart. And a wrong mask raises no error. If the queries
# see the text in ITG, they pass on its words, the loss is splendid, and they have learnt nothing about pictures.
#
# This stage takes longer than a notebook should: `recipes.train_stage1` runs it, and section 12 says what it brought. What
# you see below are its three losses before any training. Each stands about where guessing stands: $\log B$ for one caption
# among $B$, $\log 2$ for yes or no, $\log V$ for one word among $V$. A loss that starts elsewhere has a bug. (The joint
# pass equals `transformers`' Q-Former under each mask, by test.) The masks are yours to write.
#
# **Exercise 4: three masks.** ★★☆ 8 minutes. The row is who reads, the column what is read, queries first. Nobody reads
# padding.
# <details><summary>Hint</summary>
#
# Begin with ones, $(Q+L, Q+L)$, and take away blocks: `sees[:Q, Q:]` is what queries read of the text. The past of a word
# is `.tril()`. At the end hide the columns of padding, row by row of the batch: `sees & real[:, None, :]`.
# </details>


# %% nbgrader={"grade": false, "grade_id": "stage1_mask", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def stage1_mask(task, num_queries, text_mask):
    """task "itc", "itm" or "itg", text_mask (B, L), 1 for words -> bools (B, Q+L, Q+L), True: row may read column."""
    ### BEGIN SOLUTION
    length = text_mask.shape[1]
    sees = torch.ones(num_queries + length, num_queries + length, dtype=torch.bool)
    if task != "itm":
        sees[:num_queries, num_queries:] = False  # what queries read of the text
    if task == "itc":
        sees[num_queries:, :num_queries] = False  # what the text reads of the queries
    if task == "itg":
        sees[num_queries:, num_queries:] = torch.ones(
            length, length, dtype=torch.bool
        ).tril()  # the past alone
    real = F.pad(
        text_mask.bool(), (num_queries, 0), value=True
    )  # (B, Q+L): queries are never padding
    return sees & real[:, None, :]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "stage1_mask-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
stage1_mask = check.stage1_mask(stage1_mask)

words = ["[start]", "a", "small", "red", "star", ".", "<pad>"]
text_mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
figure, panels = plt.subplots(1, 3, figsize=(9.2, 3.5), layout="constrained")
for axes, (task, title) in zip(
    panels,
    {"itc": "ITC: apart", "itm": "ITM: all see all", "itg": "ITG: text sees its past"}.items(),
    strict=True,
):
    sees = stage1_mask(task, 4, text_mask)[0]  # (4 + 7, 4 + 7)
    axes.imshow(sees, cmap="cividis", vmin=0, vmax=1)
    axes.axhline(3.5, color="white", linewidth=1)
    axes.axvline(3.5, color="white", linewidth=1)
    names = [f"q{i + 1}" for i in range(4)] + words
    axes.set(
        title=title,
        xlabel="what is read",
        ylabel="who reads" if task == "itc" else "",
        xticks=range(len(names)),
        yticks=range(len(names)),
        yticklabels=names if task == "itc" else [],
    )
    axes.set_xticklabels(names, rotation=90)
    axes.grid(False)
plt.show()

settings = {**recipes.SHAPES_QFORMER, "num_query_tokens": profile.num_query_tokens}
torch.manual_seed(0)
stage1 = QFormerStage1(
    make_connector("qformer", eye.feature_width, brain.config.hidden_size, **settings),
    vocab_size=len(tokenizer),
).eval()
batch = recipes.caption_batches(features, references, tokenizer, min(50, len(features)))
with torch.no_grad():
    start = stage1(*batch(0, torch.Generator().manual_seed(0)))
knows_nothing = {
    "itc": ("log B", min(50, len(features))),
    "itm": ("log 2", 2),
    "itg": ("log V", len(tokenizer) + 2),
}
for name, (formula, count) in knows_nothing.items():
    print(
        f"{name.upper()} before training {start[name]:.2f}; a model that knows nothing: {formula} = {math.log(count):.2f}"
    )


# %% [markdown]
# ## 6. From queries to words
#
# A last linear layer brings each query to GPT-2's width: the **prefix**. The row that GPT-2 reads is then
#
# $$[\,\underbrace{p_1 \dots p_Q}_{\text{prefix}},\ \underbrace{x_1 \dots x_m}_{\text{prompt}},\ \underbrace{a_1 \dots a_n,\ \langle\text{eos}\rangle}_{\text{answer}}\,]
# \qquad \mathcal{L} = -\frac{1}{n+1} \sum_{t \,\in\, \text{answer}} \log P(t \mid \text{all before } t)$$
#
# The loss is on the answer alone. A **label** says what a position holds for the loss, and `-100` says "leave it out":
# the prefix is no text, and a prompt that counts would teach the nerve to predict questions. The model compares
# position $t$ with its prediction at $t - 1$ *by itself*: do not shift the labels. And "all before" are the *right* words
# so far, even where the model would have said another one: that is **teacher forcing**. When it answers for itself, it
# reads its own words instead.
#
# **Exercise 5: labels.** ★★☆ 6 minutes. One label for each position of the row.
# <details><summary>Hint</summary>
#
# A list: `-100` as many times as there are prefix and prompt positions, then the answer, then EOS. How long is it?
# </details>


# %% nbgrader={"grade": false, "grade_id": "make_labels", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def make_labels(num_prefix, prompt_ids, answer_ids, eos):
    """Labels of prefix, prompt, answer and EOS, not shifted: a list of ids, -100 where there is no loss."""
    ### BEGIN SOLUTION
    return [-100] * (num_prefix + len(prompt_ids)) + answer_ids + [eos]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "make_labels-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
make_labels = check.make_labels(make_labels)
prompt_ids, answer_ids = (
    tokenizer(text, add_special_tokens=False)["input_ids"]
    for text in (short_prompt("what colour is the circle?"), " red")
)
print(make_labels(profile.num_query_tokens, prompt_ids, answer_ids, tokenizer.eos_token_id))


# %% [markdown]
# **Exercise 6: padding.** ★★☆ 8 minutes. Rows of a batch differ in length. Fill the short ones on the *right* with
# `pad`; the attention mask is 1 for a row's own tokens and 0 for padding; padding gets the label `-100`.
#
# GPT-2 has no padding token, so people use EOS for it. Then `ids == pad` finds the true EOS as well, and whoever masks by
# it trains a model that never learns to stop. The check below uses `pad = EOS`: **mask by length.**
# <details><summary>Hint</summary>
#
# `length = max(len(row) for row in rows)`. For each row, `missing = length - len(row)`: `row + [pad] * missing`, and
# `[1] * len(row) + [0] * missing` for the mask.
# </details>


# %% nbgrader={"grade": false, "grade_id": "pad_batch", "locked": false, "schema_version": 3, "solution": true, "task": false} tags=["exercise"]
def pad_batch(rows, labels, pad):
    """B lists of ids, B lists of labels -> input_ids, attention_mask, labels: tensors (B, T), padded on the right."""
    ### BEGIN SOLUTION
    missing = [max(len(row) for row in rows) - len(row) for row in rows]
    ids = [row + [pad] * m for row, m in zip(rows, missing, strict=True)]
    mask = [[1] * len(row) + [0] * m for row, m in zip(rows, missing, strict=True)]
    padded = [row + [-100] * m for row, m in zip(labels, missing, strict=True)]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(padded)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pad_batch-check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
pad_batch = check.pad_batch(pad_batch)

# %% [markdown]
# ## 7. The assembled model
#
# `VLM` joins eye, nerve and brain, and freezes the two that are trained already. The nerve is `vlm_lite`'s connector (a
# LayerNorm on the patches, the Q-Former, a linear layer to GPT-2's width), **with your Q-Former inside**. It starts from
# random weights, those of the recorded runs that you will compare with: everything it will know is learnt in front of
# you.
#
# One thing is left out on purpose. GPT-2's head turns a vector into a score for each word of the vocabulary, 50,257 of
# them in the real GPT-2, and nobody asks what would follow the prefix. So the head runs on the text alone, and in training
# only where an answer token must be predicted.
#
# The proof: the loss that GPT-2 itself computes from *your* labels and *your* padding is the loss of the VLM.

# %%
from vlm_lite.features import weights_hash
from vlm_lite.models.vlm import VLM

torch.manual_seed(0)  # the weights of the recorded runs that you will compare with
nerve = make_connector("qformer", eye.feature_width, brain.config.hidden_size, **settings)
mine = MyQFormer(vision_width=eye.feature_width, **settings)
mine.load_state_dict(nerve.qformer.state_dict())
nerve.qformer = mine  # from here on it is yours that learns
untrained = {name: value.clone() for name, value in nerve.state_dict().items()}
vlm = VLM(vision=eye, connector=nerve, language_model=brain, tokenizer=tokenizer).eval()
frozen = weights_hash(eye), weights_hash(brain)  # to be compared with after training

for part, module in (("eye", eye.vision_model), ("nerve", nerve), ("brain", brain)):
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    print(f"{part:6} {total:>10,} parameters, {trained:>9,} trained")

pairs = [
    ("what colour is the circle?", "red"),
    ("how many shapes are there?", "3"),
    ("is there a star?", "yes"),
]
rows = [
    tokenizer([short_prompt(q), f" {a}"], add_special_tokens=False)["input_ids"] for q, a in pairs
]
eos, Q = tokenizer.eos_token_id, profile.num_query_tokens
ids_of = [prompt + answer + [eos] for prompt, answer in rows]
with torch.no_grad():
    input_ids, mask, labels = pad_batch(ids_of, [make_labels(0, p, a, eos) for p, a in rows], eos)
    ours = vlm(
        features[:3], input_ids, mask, labels
    ).loss  # vlm_lite leaves out the prefix by itself
    input_ids, mask, labels = pad_batch(
        [[eos] * Q + row for row in ids_of],  # Q places for the prefix
        [make_labels(Q, p, a, eos) for p, a in rows],
        eos,
    )
    row = torch.cat(
        [vlm.prefix(features[:3]), vlm.embed(input_ids[:, Q:])], dim=1
    )  # (3, Q + T, D_lm)
    brain.loss_type = (
        "ForCausalLM"  # what it takes anyhow; named, so that transformers does not remark on it
    )
    theirs = brain(inputs_embeds=row, attention_mask=mask, labels=labels).loss
torch.testing.assert_close(ours, theirs)
print(
    f"\nloss of three answers: {ours:.4f} by vlm_lite, {theirs:.4f} by transformers with your labels"
)

# %% [markdown]
# **Who sees whom.** The same measurement as before, now on GPT-2 with a prefix: row $i$ is lit at $j$ if what GPT-2
# predicts at position $i$ depends on the vector at $j$. GPT-2 is causal, so the prefix, standing first, is seen by every
# word, and sees no word itself. The notes at the right mark the only places with a loss: where a token of the answer
# must be predicted.

# %%
from matplotlib.colors import ListedColormap

from vlm_lite.figures import BLUE, ORANGE, PALE, SKY, VERMILLION

prompt, answer = rows[0]
with torch.no_grad():
    text = vlm.embed(torch.tensor([prompt + answer + [eos]]))
    row = torch.cat([vlm.prefix(features[:1]), text], dim=1)  # (1, Q + T, D_lm)
seen = influence(lambda x: brain(inputs_embeds=x).logits, row)  # (Q + T, Q + T)
kind = torch.tensor([1] * Q + [2] * len(prompt) + [3] * (len(answer) + 1))  # prefix, prompt, answer
names = [f"p{j + 1}" for j in range(Q)] + tokenizer.convert_ids_to_tokens(prompt + answer + [eos])
labels = make_labels(Q, prompt, answer, eos)

figure, axes = plt.subplots(figsize=(6.6, 5.2), layout="constrained")
axes.imshow(seen * kind, cmap=ListedColormap([PALE, BLUE, SKY, ORANGE]), vmin=0, vmax=3)
axes.set(
    xlabel="vector that is read",
    ylabel="position that reads",
    xticks=range(len(names)),
    yticks=range(len(names)),
    yticklabels=names,
    title="Who sees whom: blue prefix, light prompt, orange answer",
)
axes.set_xticklabels(names, rotation=90)
axes.grid(False)
for i, label in enumerate(labels[1:]):  # position i predicts position i + 1
    if label != -100:
        axes.annotate(
            f"must predict {tokenizer.convert_ids_to_tokens(label)!r}",
            (len(names) - 0.5, i),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=VERMILLION,
            fontweight="bold",
            annotation_clip=False,
        )
plt.show()
print(f"{len(labels)} positions, {sum(label != -100 for label in labels)} with a loss")

# %% [markdown]
# ## 8. Before training
#
# The nerve is random: what it sends is noise to GPT-2. Keep what the model says now, to set it beside what it will say.
# Some of its five answers may be right all the same, by prior and luck: five questions prove nothing, section 10 asks
# many more.

# %%
from vlm_lite.data.shapes import five_questions

place_of = {image_id: k for k, image_id in enumerate(ids)}


def ask_vlm(rows, seeing=True):
    """The VLM's short answers to rows of questions, each about its own picture, or blind."""
    own = features[[place_of[row["image_id"]] for row in rows]].float() if seeing else None
    return vlm.generate(own, [short_prompt(row["question"]) for row in rows], max_new_tokens=4)


count = min(150, len(images))
five = five_questions(questions)
before = {
    "captions": vlm.generate(features[:count].float(), [CAPTION_PROMPT] * count, max_new_tokens=48),
    "answers": ask_vlm(five),
}
for row, said in zip(five, before["answers"], strict=True):
    print(f"{row['question']:44} {said!r:12} right: {row['answer']!r}")
print("\ncaption of the first picture:", before["captions"][0])

# %% [markdown]
# ## 9. Training: the one live run
#
# BLIP-2's **second stage**: through the frozen language model.
#
# **Predict first.** You know the blind line and the oracle's from section 2. After this training, what will the VLM's
# accuracy be, in percent? Set `my_guess`; the figure of section 10 draws it.
#
# The nerve trains on what is said about each picture, captions and questions, as pairs of prompt and answer. Several
# pairs about one picture share a row and its prefix, which saves time; a mask keeps each pair from reading the others.
# (Without that mask the caption would give the answers away in words, and the nerve would have less to learn.) Only the
# nerve has gradients; they reach it *through* the frozen brain.
#
# **The optimiser.** AdamW scales each number of a gradient by itself. In the gradient of a matrix a few directions are
# loud and many are faint, and a short training mostly follows the loud ones. **Muon** (Jordan et al. 2024) makes all
# directions of a matrix's gradient about equally loud before it takes its step. `optim.MuonAdamW` gives the matrices to
# Muon and the rest (queries, biases, norms) to AdamW. (`torch.optim.Muon` computes in bf16 on every device, which takes
# fifty times as long on a CPU that only emulates bf16; `optim` does the same in fp32.) Try
# `optimizer="adamw", lr=1e-3` in the call below: which types of questions suffer most in section 10?
#
# **Is my loss normal?** Your run will be drawn over the recorded band of several seeds. It has the first of these seeds, and
# begins as that run did. But your own classes add in another order than the package's, in bf16 the sums depend on the
# machine and on the number of threads, and Muon carries a difference along: expect a curve like the band's, not that seed's. The dotted line is the loss of the brain with no
# picture at all, on one batch of the same rows.
#
# *Above the band, or stuck at the dotted line:* check that the features are those of this eye and layer, that the
# queries differ, and that the nerve has gradients. *Below it from the start:* the loss counts easy tokens; check that
# prefix, prompt and padding have the label -100.

# %%
my_guess = 50  # percent; change it before you run this

train_captions, train_questions = load_shapes("train", profile.train_images)
train_images, _, train_ids = recipes.load_pictures(train_captions)
said = recipes.picture_exchanges(train_captions, train_questions)
exchanges = [said[image_id] for image_id in train_ids]
train_features = recipes.picture_features(eye, train_images)

print(f"{len(exchanges):,} pictures, {sum(map(len, exchanges)):,} exchanges; the first picture's:")
for prompt, reply in exchanges[0]:
    print(f"   {prompt}  →  {reply}")

nerve.load_state_dict(untrained)  # from the start again, if you run this cell a second time
history = recipes.train_connector(
    vlm,
    train_features,
    exchanges,
    steps=profile.connector_steps,
    batch_size=profile.connector_batch_size,
    per_row=profile.connector_per_row,
    lr=profile.connector_lr,
    seed=0,
)
assert frozen == (weights_hash(eye), weights_hash(brain))
print("eye and brain are what they were, bit for bit")
print(
    f"{profile.connector_steps} steps in {history.seconds[-1]:.0f} s, "
    f"loss {history.losses[0]:.2f} → {history.losses[-1]:.2f}"
)

from vlm_lite.studies import load_study

study = load_study("qformer_connector")
batch = recipes.exchange_batches(
    train_features, exchanges, tokenizer, profile.connector_batch_size, profile.connector_per_row
)
_, input_ids, mask, labels = batch(0, torch.Generator().manual_seed(0))
with torch.no_grad():
    blind_loss = vlm(None, input_ids, mask, labels).loss.item()
print(f"the band is recorded: `{study['command']}`, {study['seconds']} s on {study['hardware']}")
plots.loss_curve(
    history,
    band={**study["band"], "seeds": len(study["seeds"])},
    chance=blind_loss,
    ylabel="loss on answer tokens (nats)",
    title="Training the nerve",
)

# %% [markdown]
# ## 10. Does it look?
#
# The same questions under five conditions: **blind** (no picture), **blank** (an empty picture), **shuffled** (not its
# own picture), the **VLM**, and the **oracle** (the scene in words). Two figures sum it up:
#
# $$\text{multimodal gain} = \text{VLM} - \text{blind} \qquad\qquad
#   \text{bridge score} = \frac{\text{VLM} - \text{blind}}{\text{oracle} - \text{blind}}$$
#
# The gain says what the picture is worth. The bridge score says how much of what *this brain* could know came through
# *this nerve*; compare it only under the same brain. Intervals are bootstrapped over questions. With a
# shuffled picture a model that looks falls to the blind line; a model that does not look keeps its score. *Blank* may
# even fall below *blind*: an empty picture is not *no* picture, as section 11 shows.
#
# **By type of question**, and **beside the recorded seeds.** Where the oracle itself is low, the brain is the limit;
# where it is high and the bar is not, the nerve or the eye is. One run is one draw: the recorded study trained the same
# nerve from several seeds, and "agrees" means that your run's interval meets the range of those seeds. (The interval is
# for other *questions*, the range for other *trainings*.)

# %% tags=["thumbnail"]
result = recipes.probe(vlm, captions, questions)
print(result.table())

percent = {
    name: (100 * score.value, 100 * score.low, 100 * score.high)
    for name, score in result.accuracy.items()
}
bridge = result.bridge
display(
    plots.gain_bars(
        **percent,
        guess=my_guess,
        title="Does it look?",
        bridge="undefined" if bridge.value is None else (bridge.value, bridge.low, bridge.high),
    )
)
scores = {
    **{f"VQA {name}": score for name, score in result.accuracy.items()},
    "multimodal gain": result.gain,
    "bridge score": result.bridge,
}
print(f"{'':16} {'this run':>26}   recorded: {'the same seed':>14}   {len(study['seeds'])} seeds")
for name, recorded in study["summary"].items():
    run = scores.get(name)
    if run is not None and run.value is not None:
        agrees = run.low <= recorded["high"] and recorded["low"] <= run.high
        print(
            f"{name:16} {str(run):>26}   {study['runs'][0]['figures'][name]:24.3f}   {recorded['low']:.3f} to {recorded['high']:.3f}   "
            f"{'agrees' if agrees else 'apart: see the notes on the loss above'}"
        )
plots.by_type_bars(
    {
        kind: {name: 100 * part.accuracy[name].value for name in ("vlm", "blind", "oracle")}
        for kind, part in result.by_type.items()
    }
)

# %% [markdown]
# **Complementary pairs.** One question, two pictures, two different answers, as VQA v2 is made. A pair counts only if
# *both* answers are right. A blind model says the same twice, so it cannot get a single pair: here a prior is worth
# exactly nothing.
#
# **And if it is left to run?** `shapes-vlm`, the checkpoint of the course, is this nerve again: the same queries, eye and
# brain, 1,040 steps of 64 pictures, and more exchanges for each picture, drawn from its description. The second cell asks
# it the same questions; a recorded study has the same training from several seeds. Which types of questions gain most?

# %%
asked = questions.select(range(len(result.scores["vlm"])))  # the questions of the probe
waiting, found = {}, []
columns = (asked[name][:] for name in ("question", "image_id", "answer"))
for k, (text, picture, right) in enumerate(zip(*columns, strict=True)):
    partner = next((p for p in waiting.get(text, []) if p[1] != picture and p[2] != right), None)
    if partner is None:
        waiting.setdefault(text, []).append((k, picture, right))
    else:
        waiting[text].remove(partner)
        found.append((partner[0], k))

pair_score = {
    name: sum(min(scored[i], scored[j]) > 0.5 for i, j in found) / len(found)
    for name, scored in result.scores.items()
}
assert pair_score["blind"] == pair_score["blank"] == 0
print(
    f"{len(found)} pairs, both right: "
    + ", ".join(f"{name} {100 * value:.1f}%" for name, value in pair_score.items())
)

is_right = [min(result.scores["vlm"][i], result.scores["vlm"][j]) > 0.5 for i, j in found]
examples = [
    k for wanted in (True, False) if wanted in is_right for k in found[is_right.index(wanted)]
]
plots.show_images(
    [asked[k]["image"] for k in examples],
    columns=4,
    titles=[
        f"{asked[k]['question']} says {result.answers['vlm'][k]}, right {asked[k]['answer']}"
        for k in examples
    ],
)

# %%
long_study = load_study("shapes_vlm")
long_run = recipes.probe(VLM.from_pretrained(resolve_model("shapes-vlm")), captions, questions)
bands = long_study["summary"]
print(
    f"recorded: `{long_study['command']}`, {long_study['seconds'] // 60} min on {long_study['hardware']}\n"
)
print(f"{'':12} {'this run':>8} {'shapes-vlm':>11}   recorded, {len(long_study['seeds'])} seeds")
for kind in ("all", *result.by_type):
    short, long = (
        (each.overall if kind == "all" else each.by_type[kind]).accuracy["vlm"].value
        for each in (result, long_run)
    )
    recorded = bands["VQA vlm" if kind == "all" else f"VQA vlm, {kind}"]
    print(f"{kind:12} {short:8.1%} {long:11.1%}   {recorded['low']:.1%} to {recorded['high']:.1%}")
inside = (
    long_run.bridge.low <= bands["bridge score"]["high"]
    and bands["bridge score"]["low"] <= long_run.bridge.high
)
print(
    f"\nbridge score of shapes-vlm {long_run.bridge}; recorded {bands['bridge score']['low']:.3f} to "
    f"{bands['bridge score']['high']:.3f}: {'agrees' if inside else 'apart'}"
)

# %% [markdown]
# ## 11. What it says, and where it looks
#
# **Captions, before and after.** CIDEr scores a caption against the five that belong to its picture, weighing words by
# how few pictures' captions have them. Two controls: one caption for all (blind), and each picture with the caption of
# the next (shuffled): good sentences, about the wrong picture.

# %%
from vlm_lite.evals.captions import caption_scores

after = vlm.generate(features[:count].float(), [CAPTION_PROMPT] * count, max_new_tokens=48)
blind_caption = vlm.generate(None, [CAPTION_PROMPT], max_new_tokens=48)
said = {
    "before training": before["captions"],
    "blind": blind_caption * count,
    "shuffled": after[1:] + after[:1],
    "after training": after,
}
five_each = {k: references[k] for k in range(count)}
cider = {
    name: caption_scores(five_each, dict(enumerate(texts)), metrics=("CIDEr",))["CIDEr"]
    for name, texts in said.items()
}
print(
    f"CIDEr over {count} pictures: "
    + ", ".join(f"{name} {value:.2f}" for name, value in cider.items())
)
some = range(5, 9)
plots.caption_table(
    [images[k] for k in some],
    [before["captions"][k] for k in some],
    [after[k] for k in some],
    [references[k][0] for k in some],
    names=("before training", "after training", "the file's caption"),
)

# %% [markdown]
# **Swap the picture, empty it, take it away.** One question, to which two pictures have different answers. The bars are
# the probabilities of the colours as the next word, those of the two right answers first; the dashed line is the
# probability of the first of them for the brain without a picture.
#
# **An empty picture is not *no* picture.** Each picture that the nerve learnt from holds one to four things. It never met
# an empty one, and still sends its vectors, as if there were something to tell: the answer may be a confident
# invention. Only the last panel, blind, with no prefix at all, shows the brain's prior.

# %%
from vlm_lite.data.scenes import BACKGROUND
from vlm_lite.data.shapes import ANSWERS


@torch.no_grad()
def probabilities(features, question, answers):
    """features (B, 16, Dv), or None for one blind row -> the probability of each one-word answer, (B, answers)."""
    text = tokenizer(short_prompt(question), return_tensors="pt")["input_ids"]
    logits = vlm(features, text.expand(1 if features is None else len(features), -1)).logits[:, -1]
    return logits.softmax(dim=-1)[:, tokenizer.convert_tokens_to_ids(list(answers))]


both_right = [pair for pair, good in zip(found, is_right, strict=True) if good]
first, second = next(
    (
        pair
        for part in (both_right, found)
        for pair in part
        if asked[pair[0]]["question_type"] == "colour"
    ),
    found[0],
)
question, two_answers = asked[first]["question"], [asked[k]["answer"] for k in (first, second)]
colours = two_answers + [colour for colour in ANSWERS["colour"] if colour not in two_answers]
blank = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, *images.shape[2:])
one, other = (images[[place_of[asked[k]["image_id"]]]] for k in (first, second))
shows = {
    f"its picture ({two_answers[0]})": one,
    f"another picture ({two_answers[1]})": other,
    "an empty picture": blank,
    "no picture (blind)": None,
}

chances = {
    title: probabilities(
        None if picture is None else vlm.encode(recipes.pixel_values(picture)), question, colours
    )[0].tolist()
    for title, picture in shows.items()
}
for title, row in chances.items():
    best, answer = max(zip(row, colours, strict=True))
    print(
        f"{title:26} P({two_answers[0]}) = {row[0]:.2f}   P({two_answers[1]}) = {row[1]:.2f}   "
        f"most probable: {answer}, {best:.2f}"
    )
for title, row in chances.items():
    display(
        plots.ask_panel(
            None if shows[title] is None else shows[title][0],
            question,
            title=title,
            answers=colours,
            blind=chances["no picture (blind)"][0],
            probabilities=dict(zip(colours, row, strict=True)),
        )
    )


# %% [markdown]
# **Where each query looks, and what an answer hangs on.** The first figure: each query's attention in the last layer,
# averaged over the heads. It says from where a query *reads*, and no more than that: the eye has mixed its patches before,
# so a patch can carry news of its neighbours. Each map is scaled to its own largest value, the one in brackets: a map that
# is bright all over, with a maximum near 1/16, belongs to a query that reads all sixteen cells alike. The numbers: how
# much of all attention falls on cells with something in them, beside the share of such cells in the pictures.
#
# The second: **hide one patch.** Paint a single cell of the picture over, encode it anew, and ask again: sixteen times,
# once for each cell. Where does the probability of the right answer fall most? Unlike attention, this is a *cause*:
# something was changed, and the answer followed.


# %%
def hide_each_cell(image):
    """One picture uint8 (3, 64, 64) -> sixteen copies, each with another cell painted over."""
    copies = image.repeat(16, 1, 1, 1)
    for k in range(16):
        row, column = divmod(k, 4)
        copies[k, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = torch.tensor(
            BACKGROUND
        ).view(3, 1, 1)
    return copies


def fall(row):
    """By how much the probability of the right colour falls when each cell is hidden: (4, 4)."""
    image = images[place_of[row["image_id"]]]
    batch = torch.cat([image[None], hide_each_cell(image)])  # (17, 3, 64, 64)
    right = probabilities(
        vlm.encode(recipes.pixel_values(batch)), row["question"], [row["answer"]]
    )[:, 0]  # (17,)
    return (right[0] - right[1:]).clamp(min=0).view(4, 4)


maps = torch.cat(
    [vlm.attention_maps(part).mean(dim=1).cpu() for part in features.split(250)]
)  # (N, Q, 16)
occupied = torch.zeros(len(images), 16)
for k, scene in enumerate(scenes):
    occupied[k, [4 * r + c for r, c in cells(scene)]] = 1
on_things = (maps * occupied[:, None]).sum(dim=-1).mean(dim=0)  # (Q,)
print(
    f"attention on cells with something in them: {on_things.mean():.2f}; share of such cells: {occupied.mean():.2f}"
)
print("query by query:", " ".join(f"{share:.2f}" for share in on_things))
display(plots.attention_over_image(images[shown], maps[shown].view(-1, 4, 4)))

# Questions about the colour of a thing, where only one thing has the right colour, so that its cell is known.
tried, hits = [], 0
for k in (k for k, kind in enumerate(asked["question_type"][:]) if kind == "colour"):
    row = asked[k]
    things = row["description"].removesuffix(".").split(". ")
    own = [cells(thing)[0] for thing in things if f" {row['answer']} " in thing]
    if len(own) == 1 and result.scores["vlm"][k] > 0.5 and len(tried) < 40:
        drop = fall(row)
        tried.append((row, drop))
        hits += divmod(drop.argmax().item(), 4) == own[0]
tried = tried or [(asked[first], fall(asked[first]))]
print(
    f"\nthe cell whose hiding hurts most is that of the thing asked about: {hits} of {len(tried)} questions "
    f"(by chance 1 in 16)"
)
row, drop = tried[0]
print(f"{row['question']}  right: {row['answer']}")
plots.attention_over_image(row["image"], drop[None], titles=["fall when hidden"], size=190)

# %% [markdown]
# ## 12. Which nerve? A recorded comparison
#
# Is a Q-Former worth its layers, where LLaVA does with one linear map a patch? Every row below was trained from the same
# start, for 100 steps, with **one thing changed at a time**. (The star in the figure is your run: more steps, of fewer pictures.)
#
# - *How many vectors reach the brain, and made by what:* a Q-Former with 1 to 32 queries; a linear layer and LLaVA's MLP
#   on all 16 patches, or on the means of blocks of patches, 4 or 1 in all. Here 32 queries *expand* what is there: real
#   compression is the 196 patches of a photograph in 32 queries.
# - *BLIP-2's first stage before* (section 5): twice as many steps again, so three times the steps in all.
# - *What the nerve reads:* captions and questions (as above), or captions alone.
# - *AdamW* instead of Muon, at a tenth of the learning rate: compare the last two rows with this one.
# - *The brain tuned too*, by LoRA or in full, instead of frozen: what that buys, and by its **perplexity** on scenes in
#   words what it forgets. (A tuned brain is another brain: it has no bridge score to compare, hence the dash.)
#
# **Predict first:** which of the connectors with 1, 4 or 16 vectors will answer best? Name its row.

# %%
from vlm_lite import connector_variants

my_pick = "Q-Former 16"  # or "linear 4", "MLP 1", ...; change it before you run this

compared = load_study("connector_variants")
print(
    f"recorded: `{compared['command']}`, {compared['seconds'] / 60:.0f} minutes on {compared['hardware']}\n"
)


def recorded(row, figure="VQA vlm", scale=100):
    """(mean, low, high) over the seeds."""
    return tuple(
        scale * compared["summary"][f"{row}: {figure}"][key] for key in ("mean", "low", "high")
    )


wide = max(map(len, connector_variants.VARIANTS))


def line_of(row):
    vqa, low, high = recorded(row)
    own_bridge = (
        f"{recorded(row, 'bridge score', 1)[0]:.2f}"
        if f"{row}: bridge score" in compared["summary"]
        else "-"
    )
    own_cider, perplexity, trained = (
        recorded(row, figure, 1)[0] for figure in ("CIDEr", "perplexity", "parameters")
    )
    return (
        f"{row:{wide}} {vqa:5.1f} {f'{low:.1f} to {high:.1f}':>12} {recorded(row, 'VQA shuffled')[0]:8.1f} "
        f"{own_bridge:>6} {own_cider:5.2f} {perplexity:10.3f} {trained / 1000:6,.0f}k"
    )


print(
    f"{'VQA in %, the rest as named':{wide}} {'VQA':>5} {'seeds':>12} {'shuffled':>8} {'bridge':>6} {'CIDEr':>5} "
    f"{'perplexity':>10} {'trained':>7}",
    *map(line_of, connector_variants.VARIANTS),
    "",
    sep="\n",
)


def versus(row, other):
    """In words: which of two rows answers better, and whether the ranges of their seeds overlap."""
    (worse, loser), (better, winner) = sorted([(recorded(row), row), (recorded(other), other)])
    apart = "the seeds' ranges are apart" if better[1] > worse[2] else "the seeds' ranges overlap"
    return f"{winner} {better[0]:.1f}, {loser} {worse[0]:.1f}: {apart}"


families = {
    name: {n: recorded(f"{name} {n}") for n in counts}
    for name, counts in (
        ("Q-Former", (1, 4, 8, 16, 32)),
        ("linear", (1, 4, 16)),
        ("MLP", (1, 4, 16)),
    )
}
base = connector_variants.BASE
adamw = f"{base}, AdamW"
brains = {
    name: (*recorded(row), recorded(row, "VQA blind")[0])
    for name, row in (
        ("frozen", adamw),
        ("LoRA", f"{adamw}, LoRA"),
        ("full tuning", f"{adamw}, full tuning"),
    )
}
display(
    plots.connector_lines(
        families,
        brains,
        blind=recorded(base, "VQA blind")[0],
        oracle=recorded(base, "VQA oracle")[0],
        live=(Q, percent["vlm"][0]),
    )
)

needed = {}  # vectors -> whether the Q-Former's worst seed beats every seed of both plain connectors
for n in (1, 4, 16):
    plain = max((f"{name} {n}" for name in ("linear", "MLP")), key=recorded)
    needed[n] = recorded(f"Q-Former {n}")[1] > recorded(plain)[2]
    print(f"{n:2} vector{'s' * (n > 1)}: {versus(f'Q-Former {n}', plain)}")
many, few = (recorded(row, "parameters", 1)[0] for row in ("Q-Former 16", "linear 16"))
worth = " and ".join(str(n) for n, better in needed.items() if better)
print(
    f"In this world, after this short training, a Q-Former is worth its {many / few:.0f} times as many parameters "
    + (f"with {worth} vectors." if worth else "nowhere: a plain connector does as well or better.")
)
print(f"Expanding: {versus('Q-Former 32', 'Q-Former 16')}.")
print(f"Stage 1 first: {versus(f'{base}, stage 1 first', base)}; it takes three times the steps.")
print(f"A VQA loss added to captions: {versus(base, f'{base}, captions only')}.")
print(f"Muon for AdamW: {versus(base, adamw)}.")
for row in (f"{adamw}, LoRA", f"{adamw}, full tuning"):
    print(
        f"Tuned: {versus(row, adamw)}; perplexity {recorded(base, 'perplexity', 1)[0]:.3f} → "
        f"{recorded(row, 'perplexity', 1)[0]:.3f}."
    )
ranked = sorted((f"{name} {n}" for name in families for n in needed), key=recorded, reverse=True)
print(
    f"Your pick, {my_pick}: "
    + (
        f"number {ranked.index(my_pick) + 1} of {len(ranked)}; the best is {ranked[0]}."
        if my_pick in ranked
        else f"not one of {', '.join(ranked)}."
    )
)

# %% [markdown]
# **When is which worth it?** A linear layer hands on every patch as it is, and leaves all selecting and combining to the
# brain. That is cheap, and pays where the brain may learn to read patches: LLaVA tunes it too ([notebook
# 04](04_llava_projection.ipynb)). This brain is frozen and small; what it is to read has to come in its own words, and a
# nerve with layers of its own can translate. Each vector also costs the brain a place in its context and time in every
# layer: with the 196 patches of one photograph, or the frames of a film, choosing *before* the brain is what a Q-Former is
# for. The mean of a block of patches compresses as well, for nothing, but blurs what stands side by side. The lines above
# say which of this holds in these runs, after 100 steps at one learning rate. A longer training may change the order.
#
# ## 13. With photographs (`t4`)
#
# The same three parts at their real sizes: OpenAI's CLIP ViT-B/16 (196 patches of 768 numbers), 32 queries, GPT-2. It
# trains on 5,000 photographs of COCO with five captions each and some 10,000 questions about them, and is tested on 1,000
# others. Which images those are is drawn by a seed, none is of COCO's val2014, and notebook 04 uses the very same, so they
# are downloaded and encoded once. `reader` changes the brain: OPT-1.3B is about ten times as large.
#
# Do not look at CIDEr by itself. ClipCap reached 1.13 (published as 113) with all of COCO and a frozen GPT-2; 5,000
# pictures bring less, and how much less nobody has measured here. Look at the two lines below it: one caption for all
# pictures (*blind*), and each picture with the caption of the next (*shuffled*). What CIDEr has more than these is what
# the picture is worth. The *oracle* reads the five captions instead of looking. GPT-2 was never taught to answer
# questions, so its oracle may be no better than blind; then no bridge score is defined.
#
# **This part has not been run on a GPU**, nor with the real weights: a test runs its code at small sizes, on a made mirror
# of the sites. It fetches about 3 GB, says so before it starts, and goes on where it was cut.

# %% tags=["t4"]
reader = "brain"  # @param ["brain", "larger brain"]

if on_photographs:
    from vlm_lite import photo_stages
    from vlm_lite.data.photographs import FULL
    from vlm_lite.data.sources import MODELS
    from vlm_lite.files import home
    from vlm_lite.stages import shard

    big = recipes.new_vlm(
        "qformer", vision_model=MODELS["eye"], language_model=MODELS[reader], **photo_stages.QFORMER
    ).to(compute.device)
    train_photos, test_photos = (
        photo_stages.load_photos(big.vision, split, FULL) for split in ("train", "val")
    )
    said = photo_stages.photo_texts(train_photos, short_prompt)
    said = [some + asked for some, asked in zip(said["captions"], said["vqa"], strict=True)]
    rounds = {"before training": photo_stages.evaluate_photos(big, test_photos, short_prompt)}
    recipes.train_connector(
        big,
        train_photos.features,
        said,
        steps=on_photographs.connector_steps,
        shard=shard,
        batch_size=on_photographs.connector_batch_size,
        lr=on_photographs.connector_lr,
        optimizer="adamw",
        compute=compute,
        checkpoint=home() / f"photographs-{MODELS[reader].split('/')[1]}",
    )
    rounds["after training"] = photo_stages.evaluate_photos(big, test_photos, short_prompt)
    print(f"{'':24}" + "".join(f"{name:>26}" for name in rounds))
    for name in rounds["after training"]:
        print(
            f"{name:24}"
            + "".join(
                f"{value:10.3f} [{low:.3f}, {high:.3f}]"
                for value, low, high in (scores[name] for scores in rounds.values())
            )
        )
    first_four = big.generate(test_photos.features[:4], [CAPTION_PROMPT] * 4, max_new_tokens=32)
    display(
        plots.answer_table(
            [row["image"] for row in test_photos.captions.select(range(4))],
            {
                "a person's words": [texts[0] for texts in test_photos.captions["captions"][:4]],
                "the model's": first_four,
            },
            widths=(260, 260),
        )
    )
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')


# %% [markdown]
# ## 14. What you showed
#
# The figures are those of this run. Under them the scoreboard of the course, five fixed questions about five fixed
# pictures: **can it see yet?**


# %%
def score(name):
    return f"{100 * result.accuracy[name].value:.1f}%"


print(f"""- your Q-Former equals vlm_lite's and transformers' Blip2QFormerModel
- {sum(p.numel() for p in nerve.parameters()):,} trained parameters: {features.shape[1]} patches in, {Q} vectors out
- with the picture {score("vlm")}, without it {score("blind")}, with another one {score("shuffled")}
- complementary pairs: {100 * pair_score["vlm"]:.1f}%, where a blind model has none
- captions: CIDEr {cider["after training"]:.2f}, and {cider["shuffled"]:.2f} when the pictures are exchanged
- hiding the thing asked about hurts most in {hits} of {len(tried)} questions
""")
print(
    f"HEADLINE: bridge score {bridge}; VQA {score('vlm')} against blind {score('blind')}, "
    f"shuffled {score('shuffled')}, oracle {score('oracle')}"
)
check.progress(
    {
        "the picture is worth something": result.gain.low > 0,
        "another picture is worth no more than none": result.accuracy["shuffled"].low
        <= result.accuracy["blind"].high,
        "pairs are answered that no blind model can answer": pair_score["vlm"]
        > pair_score["blind"],
        "captions are about their own pictures": cider["after training"] > cider["shuffled"],
        "the bridge meets the recorded range": result.bridge.high
        >= study["summary"]["bridge score"]["low"],
        "eye and brain are unchanged": frozen == (weights_hash(eye), weights_hash(brain)),
    }
)
plots.scoreboard(
    [row["image"] for row in five],
    [row["question"] for row in five],
    [row["answer"] for row in five],
    {"blind": ask_vlm(five, seeing=False), "before": before["answers"], "after": ask_vlm(five)},
)

# %% [markdown]
# **What this does not show**
#
# - **What BLIP-2's first stage is worth at its own length.** Section 12 gives it a few hundred steps; its authors gave
#   it 250,000.
# - **That one connector is better than another elsewhere.** Section 12 compares them after a short training, at one
#   learning rate, on sixteen patches.
# - **Anything about photographs**, unless you ran section 13. Shapes has a small vocabulary, exact truth and a brain made
#   for it.
# - **More than one run of yours.** The recorded seeds say how far runs differ. The intervals treat questions as
#   independent; several are about one picture, which makes them a little too narrow.
# - **Why a query looks where it looks.** An attention map is no explanation; the hidden patch is better evidence.
#
# ## 15. Check yourself
#
# - [ ] I can say what is the same for every picture (the queries) and what is not (the prefix).
# - [ ] I can draw from memory who sees whom: among queries, between queries and patches, in GPT-2 with a prefix.
# - [ ] I know what each label is in a row of prefix, prompt, answer, EOS and padding, and why nothing is shifted.
# - [ ] I can name two bugs of this model that raise no error, and the number that gives each away.
# - [ ] I would not believe a VLM's accuracy without its blind and its shuffled line.
#
# **In words**
#
# 1. The blind model is right rather often. Why is that no sign of sight, and why do complementary pairs bring it to nothing?
# 2. The loss falls at once, long before the answers depend on the picture. What does the nerve learn first?
# 3. You double the number of queries and the bridge score stays where it was. What may be the limit now: eye, nerve or
#    brain? Which of the figures above would tell you?
#
# **Where next.** [04](04_llava_projection.ipynb) replaces this nerve by one small map per patch, and trains in stages.
# Or change one thing here, and predict first: the number of queries or of layers (`settings`, section 5), or the number
# of pictures or of steps (section 9).
#
# **Glossary**
#
# | term | 日本語 | meaning here |
# |---|---|---|
# | Q-Former | Qフォーマー | a small transformer of learnt queries that reads a picture |
# | ITC, ITM, ITG | 画像・テキスト対照／マッチング／生成学習 | BLIP-2's objectives of stage 1 |
# | hard negative | ハードネガティブ | a wrong caption that is nearly right |
# | learnt query | 学習可能なクエリ | a trained vector, the same for every picture |
# | self-attention | 自己注意（セルフアテンション） | queries take from one another |
# | cross-attention | 交差注意（クロスアテンション） | queries take from the patches |
# | causal mask | 因果マスク | a position sees only what stands before it |
# | frozen | 凍結（重みの固定） | weights that do not change |
# | prefix | プレフィックス（ソフトプロンプト） | vectors put in front of the text |
# | label, -100 | ラベル（損失の対象外は -100） | what a position is compared with, or nothing |
# | padding | パディング | filling short rows of a batch |
# | end of sequence, EOS | 文末トークン | the token that ends an answer |
# | teacher forcing | 教師強制 | training on the right words so far, not on the model's own |
# | language prior | 言語の事前分布（言語バイアス） | what is right without looking |
# | oracle | オラクル（上限の目安） | the brain with the scene in words |
# | multimodal gain | マルチモーダル利得 | VLM minus blind |
# | bridge score | ブリッジスコア（橋渡し率） | the gain as a share of oracle minus blind |
# | complementary pair | 相補ペア | one question, two pictures, two answers |
# | bootstrap interval | ブートストラップ信頼区間 | how far a mean moves when the questions are drawn again |
