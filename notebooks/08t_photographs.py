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
#     outputs_of: 54b7d593383b8b91fdb14c346c9639456222e6ace5927933cc9da80f9c69ef5b
#     title: SmolVLM2 at several resolutions
#     builds: SmolVLM2 on photographs, resized or cut into tiles, and what each token count costs and buys
#     minutes_t4_estimate: 20
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/08t_photographs.ipynb)

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
print(describe(profile, compute, notebook="08t_photographs", t4_minutes=20))

# %% [markdown]
# # 8t. SmolVLM2 at several resolutions
#
# [Notebook 08](08_resolution.ipynb) read small digits at several sizes. Here `HuggingFaceTB/SmolVLM2-256M-Video-Instruct` reads photographs: **resized** to one square of 512 pixels, or cut into **tiles** of
# 512 pixels with a small copy of the whole. One image is then 64 tokens or hundreds. What do they buy?
#
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.1 GB of memory on `tiny` (measured, 2 CPU cores); about 20 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [08, Beyond one small square](08_resolution.ipynb); [05t](05t_photographs.ipynb) has the model's architecture.
#
# **Section 1 runs anywhere**, without a download. **Section 2 needs a GPU and the model hub** (`profile = "t4"`), and downloads about 2 GB. **The authors have not run it on a GPU**, nor with the
# real weights: a test runs its code with a small random model of the same class on a made mirror of the sites. So no result is claimed here.

# %% [markdown]
# ## 1. What an image costs
#
# The processor scales an image until its longest edge has so many pixels, rounds both sides up to whole tiles, and cuts. `tiles_of` says how many come out.
#
# **Predict first:** a photograph of COCO has 640 x 480 pixels. How many tiles is it at a longest edge of 1024, and how many at 2048?

# %%
import math
import time

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import SmolVLMImageProcessor

from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain
from vlm_lite.lessons.coco import SHORT
from vlm_lite.lessons.smolvlm import gflop, random_smolvlm
from vlm_lite.lessons.vqa import vqa_scores

on_photographs = profile if profile.name == "t4" else None
SIDE, PER_TILE = 512, 64  # pixels of a tile's side, tokens of a tile
WAYS = {"resized": (64, 128, 256, 512), "tiles": (1024, 1536, 2048)}  # longest edges


def resized(image, edge):
    """A PIL image scaled so that its longest side has `edge` pixels."""
    scale = edge / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size])


def tiles_of(width, height, edge):
    """How many tiles SmolVLM makes of an image whose longest side is scaled to `edge`, the small copy included."""
    long, short = max(width, height), min(width, height)
    across = math.ceil(edge / SIDE)
    down = math.ceil(across * SIDE * short // long / SIDE)  # whole pixels, then whole tiles
    return across * down + (across * down > 1)


# %% [markdown]
# Below, the counts for one photograph, checked against `transformers`' processor, and the arithmetic of a forward pass, counted on the *meta* device as in [05t](05t_photographs.ipynb): the encoder for all tiles, the
# language model for their tokens and 24 of a question. An image resized to fewer pixels is scaled up again to one tile: it costs as much, and shows less.

# %%
with torch.device("meta"):
    model = random_smolvlm().requires_grad_(False).model
blocks = model.vision_model.encoder.layers
a_tile = len(blocks) * gflop(lambda x: blocks[0](x, None), 1, (SIDE // 16) ** 2, 768)
photograph = Image.fromarray(np.full((480, 640, 3), 127, np.uint8))
rows = []
for way, edges in WAYS.items():
    for edge in edges:
        seen = resized(photograph, edge) if way == "resized" else photograph
        tiles = tiles_of(*seen.size, max(edge, SIDE))
        processor = SmolVLMImageProcessor(
            size={"longest_edge": max(edge, SIDE)}, max_image_size={"longest_edge": SIDE}
        )
        made = processor([[seen]], return_tensors="pt")["pixel_values"]
        assert made.shape[1] == tiles, f"{made.shape[1]} tiles at {edge}, not {tiles}"
        tokens = PER_TILE * tiles
        reads = gflop(lambda x: model.text_model(inputs_embeds=x), 1, tokens + 24, 576)
        rows.append([way, edge, tiles, tokens, tiles * a_tile, reads])
names = ["way", "longest edge", "tiles", "image tokens", "encoder, GFLOP", "language model, GFLOP"]
costs = pd.DataFrame(rows, columns=names)
costs.round(0)

# %% [markdown]
# **Most of it is the encoder**, whatever the number of tiles: 1,024 patches a tile go in, and 64 tokens come out. At 2048 pixels a photograph of COCO is enlarged more than three times: no detail is added, but each patch of
# 16 pixels shows five pixels of the photograph, and more tokens describe them. With a larger photograph the tiles would add detail as well.
#
# ## 2. What it buys, on photographs (`t4`)
#
# Questions of VQA v2 on the held-out images of [03t](03t_photographs.ipynb), asked once in each way, with the image of another question as a control for each, and once without an image (*blind*). These images are of train2014,
# which SmolVLM2 may have been trained on. So read the **differences between rows**, not how high they are.
#
# **Predict first:** which rows stay near *blind*? Do counting and reading gain more from tiles than yes or no?

# %% tags=["t4"]
QUESTIONS, BATCH = 200, 4


def ask(vlm, images, texts):
    """Q images, or None to ask blind, and Q texts -> Q answers."""
    said = []
    for k in range(0, len(texts), BATCH):
        seen = None if images is None else images[k : k + BATCH]
        said += vlm.answer(seen, texts[k : k + BATCH], 8)
    return said


def image_tokens(vlm, image):
    """How many image tokens the processor puts into a prompt for one image."""
    size = {"longest_edge": vlm.longest_edge}
    ids = vlm.processor(text="<image>", images=[[image]], size=size)["input_ids"]
    return int((np.array(ids) == vlm.model.config.image_token_id).sum())


if on_photographs:
    from vlm_lite.data import photographs
    from vlm_lite.models.pretrained import PretrainedVLM

    vlm = PretrainedVLM(on_photographs.vlm_model, compute=compute)
    asked = photographs.load_photographs("val", photographs.FULL).questions
    asked = [asked[k] for k in range(min(QUESTIONS, len(asked)))]
    texts = [f"{row['question']} {SHORT}" for row in asked]
    images = {row["image_id"]: row["image"].convert("RGB") for row in asked}
    turned = dict(zip(images, [*images][1:] + [*images][:1], strict=True))
    blind = vqa_scores(ask(vlm, None, texts), asked)
    kinds = [row["answer_type"] for row in asked]
    table, answers = [], {}
    for way, edges in WAYS.items():
        for edge in edges:
            vlm.longest_edge = max(edge, SIDE)
            seen = {
                key: resized(image, edge) if way == "resized" else image
                for key, image in images.items()
            }
            start = time.perf_counter()
            said = ask(vlm, [seen[row["image_id"]] for row in asked], texts)
            seconds = (time.perf_counter() - start) / len(asked)
            other = ask(vlm, [seen[turned[row["image_id"]]] for row in asked], texts)
            scores, shuffled = vqa_scores(said, asked), vqa_scores(other, asked)
            answers[f"{way} {edge}"] = said
            table.append(
                {
                    "way": way,
                    "longest edge": edge,
                    "image tokens": np.mean([image_tokens(vlm, each) for each in seen.values()]),
                    "seconds": round(seconds, 3),
                    "VQA": bootstrap_interval(scores),
                    "blind": round(blind.mean(), 3),
                    "shuffled": round(shuffled.mean(), 3),
                    "VQA - blind": multimodal_gain(scores, blind),
                    "VQA - shuffled": multimodal_gain(scores, shuffled),
                }
                | {
                    kind: round(scores[[each == kind for each in kinds]].mean(), 3)
                    for kind in sorted(set(kinds))
                }
            )
    print(pd.DataFrame(table).to_string(index=False))
    columns = {"question": [row["question"] for row in asked], **answers}
    columns["people"] = [", ".join(sorted(set(row["answers"]))) for row in asked]
    print(pd.DataFrame(columns)[:: max(1, len(asked) // 8)].T.to_string())
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# **How to read the table.** *VQA - shuffled* is what the right photograph is worth at this resolution, with its interval; a row where it includes 0 was not shown to see anything that the question asks for. Two rows are worth
# comparing with the tokens and seconds beside them: the cheapest of those whose intervals overlap is the one to take.
#
# **What this does not show.** How the model does on documents, where text is small and tiles matter most: photographs of COCO are small, and few questions are about a detail. Nor is a score here comparable with
# published ones: 200 questions, and greedy answers of eight tokens at most.

# %%
most = costs.iloc[-1]
print(
    f"HEADLINE: SmolVLM2 reads a photograph as {costs['image tokens'].min()} to {most['image tokens']} tokens; on photographs:",
    "run" if on_photographs else "not run, this needs t4",
)
