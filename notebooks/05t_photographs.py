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
#     title: SmolVLM2 and photographs
#     builds: SmolVLM2-256M's architecture, timed here, and its real weights under POPE on photographs
#     lesson: smolvlm
#     minutes_t4_estimate: 10
#     reads: []
#     outputs_of: 776af7e7c1ba3366ecf898b54fac344157a96b028f8042fc83f05946454dc7d2
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05t_photographs.ipynb)

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
print(describe(profile, compute, notebook="05t_photographs", t4_minutes=10))

# %% [markdown]
# # 5t. SmolVLM2 and photographs
#
# [Notebook 05](05_evaluation.ipynb) evaluated a small model. Here is one that people use:
# `HuggingFaceTB/SmolVLM2-256M-Video-Instruct`. A SigLIP encoder cuts a 512-pixel *tile* into 1,024 patches of 16 pixels; *pixel
# shuffle* stacks 4 x 4 of them, so 64 vectors a tile reach a language model of 135 million parameters.
#
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 2.1 GB of memory on `tiny` (measured, 2 CPU cores); about 10 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [05, Evaluation](05_evaluation.ipynb).
#
# ## 1. Its architecture, at full size, with random weights
#
# This needs no download. **Tokens, seconds and memory are true of this machine; the answers are noise**, since the weights are
# random and only the configuration is SmolVLM2's. One image of one tile; batches of 1 and 2; 8 new tokens.

# %% tags=["save"]
import re
import time

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from vlm_lite.embed import pixel_values
from vlm_lite.models import layout

IMAGE, TEXT, NEW = 49_190, 24, 8  # the id of an image token; tokens of the question; new tokens
SIZES = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"


def smolvlm_config(vision, text, scale, *, image_id=0, tied=False, **more):
    """Two rows of sizes -> transformers' SmolVLMConfig.

    vision: width, inner width, layers, heads, image side, patch side. text: width, inner width, layers, heads of
    queries, heads of keys, vocabulary. scale: that of pixel shuffle.
    """
    vision = dict(zip((*SIZES, "image_size", "patch_size"), vision, strict=True))
    text = dict(zip((*SIZES, "num_key_value_heads", "vocab_size"), text, strict=True))
    text |= {"model_type": "llama", "tie_word_embeddings": tied}
    options = {"scale_factor": scale, "image_token_id": image_id, "tie_word_embeddings": tied}
    return SmolVLMConfig(vision_config=vision, text_config=text, **options, **more)


def random_smolvlm(layers=None):
    """SmolVLM2-256M's architecture with random weights, in fp32; layers: fewer of them."""
    vision = 768, 3072, layers or 12, 12, 512, 16
    text = 576, 1536, layers or 30, 9, 3, 49_280
    torch.manual_seed(0)
    config = smolvlm_config(vision, text, 4, image_id=IMAGE, pad_token_id=2)
    return SmolVLMForConditionalGeneration(config).eval()


def measure(model, images=1, tiles=1):
    """Answer `images` prompts of `tiles` tiles each with NEW tokens: what it takes, as a row of a table."""
    image_ids = torch.full((64 * tiles,), IMAGE)  # 64 tokens a tile
    ids = torch.cat([image_ids, torch.randint(10, 49_000, (TEXT,))]).repeat(images, 1)
    pixels, start = torch.randn(images, tiles, 3, 512, 512), time.perf_counter()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True}
    prompt = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    out = model.generate(**prompt, **options, do_sample=False)
    seconds, layers = time.perf_counter() - start, out.past_key_values.layers
    cache = sum(part.numel() * part.element_size() for x in layers for part in (x.keys, x.values))
    return {
        "images": images,
        "tiles": tiles,
        "tokens read": ids.numel(),
        "seconds": seconds,
        "new tokens a second": images * NEW / seconds,
        "KV cache, MB": cache / 1e6,
        "memory, GB": psutil.Process().memory_info().rss / 1e9,
    }


# %%
import pandas as pd

noise = random_smolvlm(layers=1 if profile.name == "smoke" else None)
assert profile.name == "smoke" or noise.num_parameters() == 256_484_928  # as its model card has it
rows = [measure(noise, images) for images in (1, 1, 2)]  # the first is the warm-up
weights = noise.get_memory_footprint() / 1e9
print(f"{noise.num_parameters() / 1e6:.1f} million parameters, {weights:.2f} GB in {noise.dtype}")
pd.DataFrame(rows[1:]).round(2)

# %% [markdown]
# Most of the time goes into the encoder: 1,024 patches a tile, for 64 tokens that the language model reads. A photograph of four by four tiles
# and a small copy of the whole has 17 tiles: 1,088 image tokens. `make bench PARTS=smolvlm` measures batches of 1 to 8 and 1 to 17 tiles, and
# [docs/benchmarks.md](../docs/benchmarks.md) has its last table. The keys and values of three heads (not nine:
# *grouped-query attention*) keep the cache small.
#
# **Where the arithmetic goes** can be counted instead of timed: on the *meta* device a module has shapes and no numbers, so a forward pass costs nothing and each multiplication
# is counted all the same. Below, the MLPs alone, of the encoder for 1,024 patches and of the language model for 64 image tokens and 24 of the question.


# %% tags=["save"]
def count(part):
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in part.parameters())


def gflop(part, *shape):
    """Billions of multiplications and additions of a module on the meta device for an input of this shape."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


# %%
import copy

parts = noise.model.vision_model.encoder.layers, noise.model.text_model.layers
mlps = [copy.deepcopy(layers[0].mlp).to("meta") for layers in parts]
spent = gflop(mlps[0], 1, 1024, 768), gflop(mlps[1], 1, 64 + TEXT, 576)
spent = [len(layers) * each for layers, each in zip(parts, spent, strict=True)]
assert spent[0] > 5 * spent[1]
print("MLPs, GFLOP: encoder {:.0f}, language model {:.0f}".format(*spent))
print({name: f"{count(part) / 1e6:.1f}M" for name, part in noise.model.named_children()})

# %% [markdown]
# ## 2. The same architecture under other names
#
# [09](09_modern_vlm.ipynb) builds this model from nothing, and loads the weights of transformers' into it. Two implementations of one architecture differ in their **names**: a state dict
# is a table of names and tensors, so loading foreign weights is renaming, and a strict load says at once which name was forgotten. Its small encoder comes from `shapes-clip`: a SigLIP has
# no class token and no LayerNorm before its blocks, so `as_siglip` leaves the first out and folds the second into the patch embedding, as a constant scale.


# %% tags=["save"]
NAMES = layout.table("""
input_layernorm          norm1
post_attention_layernorm norm2
layer_norm1              norm1
layer_norm2              norm2
mlp.fc1                  mlp.0
mlp.fc2                  mlp.2
out_proj                 o_proj
""")  # transformers', the lesson's
LEFT_OUT = re.compile(r"^model\.|embeddings\.|encoder\.|\.modality_projection\.proj")


def renamed(state):
    """A state dict of transformers' Llama, SigLIP or SmolVLM with the names of notebook 09's modules."""
    head = "text_model." * any("text_model." in name for name in state)
    found = {layout.renamed(LEFT_OUT.sub("", name), NAMES): state[name] for name in state}
    return {head * (name == "lm_head.weight") + name: value for name, value in found.items()}


@torch.no_grad()
def as_siglip(clip, images, num_layers):
    """The first blocks of a CLIP's vision encoder as the state dict of a SigLIP encoder of transformers.

    CLIP's class token is left out. Its LayerNorm before the blocks becomes a constant scale, that of `images`, uint8
    (I, 3, S, S): the features stay nearly the same.
    """
    theirs, place = clip.vision_model, clip.vision_model.embeddings
    patches, positions = place.patch_embedding, place.position_embedding.weight[1:]
    tokens = patches(pixel_values(images)).flatten(2).mT + positions
    scale = theirs.pre_layrnorm.weight / tokens.std(dim=-1).mean()
    state = theirs.encoder.layers[:num_layers].state_dict(prefix="encoder.layers.")
    state |= theirs.post_layernorm.state_dict(prefix="post_layernorm.")
    state["embeddings.patch_embedding.weight"] = patches.weight * scale[:, None, None, None]
    state["embeddings.patch_embedding.bias"] = theirs.pre_layrnorm.bias
    state["embeddings.position_embedding.weight"] = positions * scale
    return state


# %%
state = noise.model.text_model.layers[0].state_dict(prefix="model.layers.0.")
pd.DataFrame({"transformers'": list(state), "in 09": list(renamed(state))})

# %% [markdown]
# ## 3. Its real weights, on photographs (`t4`)
#
# POPE's own label files and the COCO photographs they are about: one image at a time and in batches, with its controls; then two settings, the
# resolution and a prompt that asks to think step by step. **The authors have not run this on a GPU**, nor with the real weights: a
# test runs its code with a small random model of the same class. So no result is claimed. It needs a network and is left out on `tiny`. Answers
# of your own go through `vlm-lite eval pope`.

# %% tags=["t4"]
import json
import re
from pathlib import Path

from vlm_lite.lessons.pope import pope_scores

COMMIT = "7ef3026faa9a89ed11fd508385fad652fdc6349f"  # of github.com/AoiDragon/POPE, whose label files these are
PHOTOGRAPHS = 30  # with six questions each
if profile.name == "t4":
    import pooch
    from PIL import Image

    from vlm_lite.models.pretrained import PretrainedVLM

    cache = pooch.os_cache("vlm-lite-pope")
    source = f"https://raw.githubusercontent.com/AoiDragon/POPE/{COMMIT}/output/coco"
    real = {}
    for split in ("random", "popular", "adversarial"):
        path = pooch.retrieve(
            f"{source}/coco_pope_{split}.json", None, fname=f"{split}.json", path=cache
        )
        real[split] = [
            json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()
        ][: 6 * PHOTOGRAPHS]
    names = sorted({line["image"] for lines in real.values() for line in lines})
    coco = "http://images.cocodataset.org/val2014"
    photographs = {
        name: Image.open(pooch.retrieve(f"{coco}/{name}", None, fname=name, path=cache))
        for name in names
    }
    smol = PretrainedVLM(profile.vlm_model)
    millions = sum(p.numel() for p in smol.model.parameters()) / 1e6
    print(
        f"{len(photographs)} photographs; {millions:.0f} million parameters in {smol.model.dtype}"
    )
else:
    print(
        f'left out: the profile is "{profile.name}". On a GPU with a network, choose "t4" in the first cell.'
    )


# %% tags=["t4"]
def timed(model, lines, batch_size, suffix=" Answer with yes or no.", other=None, words=8):
    """Answers to POPE lines, seconds a question, and the peak of GPU memory in MB; `other` shuffles the images."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    said, start = [], time.perf_counter()
    for k in range(0, len(lines), batch_size):
        part = lines[k : k + batch_size]
        seen = (
            None
            if other == "blind"
            else [photographs[(other or {}).get(line["image"], line["image"])] for line in part]
        )
        said += model.answer(seen, [line["text"] + suffix for line in part], words)
    memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else float("nan")
    return said, (time.perf_counter() - start) / len(lines), memory


def last_yes_or_no(text):
    """What an answer in steps comes to. POPE's parser reads the first sentence, where the steps only begin."""
    return (re.findall(r"\b(?:yes|no)\b", text.lower()) or [""])[-1]


def real_row(name, lines, model, batch_size, read=str, **options):
    said, seconds, memory = timed(model, lines, batch_size, **options)
    found = pope_scores(list(map(read, said)), [line["label"] for line in lines])
    print(
        f"{name:34}"
        + "".join(f"{100 * found[key]:10.1f}" for key in ("accuracy", "f1", "yes_ratio"))
        + f"{seconds:12.3f}{memory:10.0f}"
    )


if profile.name == "t4":
    print(
        f"{'POPE on photographs':34}{'accuracy':>10}{'f1':>10}{'yes %':>10}{'s/question':>12}{'MB':>10}"
    )
    hard, turned = real["adversarial"], dict(zip(names, names[1:] + names[:1], strict=True))
    real_row("adversarial, one at a time", hard[:30], smol, 1)
    for split, lines in real.items():
        real_row(f"{split}, batches of 8", lines, smol, 8)
    real_row("adversarial, blind", hard, smol, 8, other="blind")
    real_row("adversarial, shuffled", hard, smol, 8, other=turned)
    for edge in (512, 1024, 2048):
        smol.longest_edge = edge
        real_row(f"adversarial, longest edge {edge}", hard[:60], smol, 4)
    smol.longest_edge = 512
    think = {"suffix": " Think step by step, then answer: yes or no.", "words": 96}
    real_row("adversarial, step by step", hard[:60], smol, 8, **think)
    real_row("the same, its last yes or no read", hard[:60], smol, 8, last_yes_or_no, **think)

# %%
print(
    f"HEADLINE: SmolVLM2's architecture, random weights: {rows[1]['seconds']:.1f} s an image of one tile"
)
