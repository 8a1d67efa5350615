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
#     outputs_of: 4878fdc54d213638b728cdf3404168250027502f247e66d84db8b33bdb731647
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
import time

import psutil
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

IMAGE, TEXT, NEW = 49_190, 24, 8  # the id of an image token; tokens of the question; new tokens


def random_smolvlm(layers=None):
    """SmolVLM2-256M's architecture with random weights, in fp32; layers: fewer of them."""
    vision = {"hidden_size": 768, "num_hidden_layers": layers or 12, "num_attention_heads": 12}
    vision |= {"intermediate_size": 3072, "image_size": 512, "patch_size": 16}
    text = {"model_type": "llama", "vocab_size": 49_280, "num_hidden_layers": layers or 30}
    text |= {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    text |= {"intermediate_size": 1536, "max_position_embeddings": 8192}
    text |= {"tie_word_embeddings": False}
    sizes = {"vision_config": vision, "text_config": text, "scale_factor": 4}
    config = SmolVLMConfig(**sizes, image_token_id=IMAGE, pad_token_id=2, tie_word_embeddings=False)
    torch.manual_seed(0)
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
# ## 2. Its real weights, on photographs (`t4`)
#
# POPE's own label files and the COCO photographs they are about: one image at a time and in batches, with its controls; then two settings, the
# resolution and a prompt that asks to think step by step. **The authors have not run this on a GPU**, nor with the real weights: a
# test runs its code with a small random model of the same class. So no result is claimed. It needs a network and is left out on `tiny`. Answers
# of your own go through `vlm-lite eval pope`.

# %% tags=["t4"]
import json
import re
from pathlib import Path

from vlm_lite.evals.pope import pope_scores

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
