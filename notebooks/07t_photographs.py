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
#     outputs_of: fa20f98676daf1d94cf32dee47cd052f43558bad46602c957ea072e0c0218b92
#     title: Three connectors on photographs
#     builds: an MLP, a resampler and a Q-Former between OpenAI's CLIP and GPT-2, at one budget, on COCO
#     minutes_t4_estimate: 30
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/07t_photographs.ipynb)

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
print(describe(profile, compute, notebook="07t_photographs", t4_minutes=30))

# %% [markdown]
# # 7t. Three connectors on photographs
#
# [Notebook 07](07_fusion.ipynb) set connectors side by side on Shapes. Here three of them stand between the same two frozen parts at real sizes, OpenAI's CLIP ViT-B/16
# (196 patches of width 768) and GPT-2: LLaVA-1.5's **MLP**, Flamingo's **resampler** and BLIP-2's **Q-Former**.
#
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.0 GB of memory on `tiny` (measured, 2 CPU cores); about 30 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [07, Fusion](07_fusion.ipynb); [03t](03t_photographs.ipynb) has the data and the scores.
#
# **Section 1 runs anywhere**, without a download. **Section 2 needs a GPU and the model hub** (`profile = "t4"`), and downloads about 3 GB, the files of 03t. **The authors have not run it
# on a GPU**, nor with the real weights: a test runs its code on small made weights and a made mirror of the sites. So no result is claimed here.

# %% [markdown]
# ## 1. What each of them costs
#
# The resampler gets as many latents, layers and heads as the Q-Former has queries, layers and heads (Flamingo has 64 latents, BLIP-2 32 queries). Each begins from random weights.
#
# **Predict first:** the MLP is by far the smallest of the three. Is it also the cheapest to train?

# %%
import pandas as pd
import torch
from IPython.display import display
from torch import nn
from transformers import GPT2Config, GPT2Model

from vlm_lite import plots
from vlm_lite.lessons.coco import QFORMER, evaluate_photos, load_photos, photo_texts
from vlm_lite.lessons.fusion import PerceiverResampler
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.smolvlm import count, gflop
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vision import load_vision
from vlm_lite.optim import weight_decay_groups
from vlm_lite.profiles import resolve_model

on_photographs = profile if profile.name == "t4" else None


def connectors(vision_width, language_width):
    """{name: a connector before training, (B, N, vision_width) -> (B, tokens, language_width)}"""
    sizes = QFORMER["num_query_tokens"], QFORMER["num_layers"], QFORMER["num_heads"]
    resampler = PerceiverResampler(vision_width, *sizes)
    return {
        "MLP": Projector(vision_width, language_width),
        "resampler": nn.Sequential(resampler, nn.Linear(vision_width, language_width)),
        "Q-Former": QFormerConnector(vision_width, language_width, **QFORMER),
    }


# %% [markdown]
# On the *meta* device a module has shapes and no numbers, so its multiplications are counted without doing them, as in [05t](05t_photographs.ipynb). The language model reads the image's
# tokens and 120 of text: some captions and questions with their answers. *A step* is training on one image: the backward pass costs as much as the forward pass through frozen weights, and twice as much where weights learn.

# %%
TEXT = 120  # tokens
with torch.device("meta"):
    real, gpt2 = connectors(768, 768), GPT2Model(GPT2Config())
nn.ModuleList([*real.values(), gpt2]).requires_grad_(False)  # a forward pass alone
rows = {}
for name, connector in real.items():
    tokens = connector(torch.empty(1, 196, 768, device="meta")).shape[1]
    rows[name] = {
        "million parameters": count(connector) / 1e6,
        "tokens an image": tokens,
        "connector, GFLOP": gflop(connector, 1, 196, 768),
        "GPT-2, GFLOP": gflop(lambda x: gpt2(inputs_embeds=x), 1, tokens + TEXT, 768),
    }
sizes = pd.DataFrame(rows).T
sizes["a step, GFLOP"] = 3 * sizes["connector, GFLOP"] + 2 * sizes["GPT-2, GFLOP"]
assert sizes["million parameters"].idxmin() == "MLP" == sizes["a step, GFLOP"].idxmax()
sizes.round(1)

# %% [markdown]
# **What a small connector saves, the language model pays.** The MLP has two or three per cent of the others' parameters, and it costs the most to train: it hands on all 196 tokens, which every layer of the language model reads, at every step
# and for every question. In exchange nothing is lost on the way: a resampler and a Q-Former must choose 32 summaries before they know the question. MM1 (McKinzie et al. 2024) found that on web-scale data
# the number of image tokens and the resolution matter far more than which connector makes them.
#
# ## 2. The same budget for each, on photographs (`t4`)
#
# As many images, captions and questions as in 03t, as many steps for each as a stage of 04t has, and AdamW: for the MLP at LLaVA's rate, for the others at 03t's. The language model never learns,
# so *blind* is the same for all three: what it guesses without an image.
#
# **Predict first:** which comes first in CIDEr after so few steps, and does it come first in VQA as well?
#
# `reader` may be a chat model, which has learnt to answer (GPT-2 has not); then questions go through its own template. The other fields are those of 03t.

# %% tags=["t4"]
encoder = "clip"  # @param ["clip", "vit_base_patch16_siglip_224", "vit_small_patch14_dinov2", "tf_efficientnet_lite0"] {allow-input: true}
encoder_weights = ""  # @param {type: "string"}
encoder_side = 0  # @param {type: "integer"}
reader = "gpt2"  # @param ["gpt2", "smaller instruct", "instruct"] {allow-input: true}


def adamw(model, lr):
    """The optimizer of 03t, with weight decay on matrices alone."""
    return torch.optim.AdamW(weight_decay_groups(model, 0.05), lr)


if on_photographs:
    from vlm_lite.data.photographs import FULL
    from vlm_lite.data.sources import MODELS

    vision = load_vision(MODELS.get(encoder, encoder), encoder_weights, encoder_side)
    language_model, tokenizer = load_language_model(resolve_model(MODELS.get(reader, reader)))
    # `VLM` applies a model's own template
    prompt = str if tokenizer.chat_template else short_prompt
    train, test = (load_photos(vision, split, FULL) for split in ("train", "val"))
    said = photo_texts(train, prompt)
    turns = [some + asked for some, asked in zip(said["captions"], said["vqa"], strict=True)]
    steps, rates = on_photographs.stage_steps[0], {"MLP": 1e-3}
    recipe = {
        name: getattr(on_photographs, f"connector_{name}") for name in ("batch_size", "per_row")
    }
    torch.manual_seed(0)
    models, scores, costs = {}, {}, {}
    widths = vision.feature_width, language_model.config.hidden_size
    for name, connector in connectors(*widths).items():
        model = VLM(vision, connector, language_model, tokenizer).to(compute.device)
        lr = rates.get(name, on_photographs.connector_lr)
        history = train_vlm(
            model, train.features, turns, steps=steps, lr=lr, **recipe, make_optimizer=adamw
        )
        models[name], scores[name] = model.eval(), evaluate_photos(model, test, prompt)
        costs[name] = {
            "million parameters": f"{count(connector) / 1e6:.2f}",
            "seconds a step": f"{history.seconds[-1] / steps:.2f}",
        }
    table = {
        name: costs[name]
        | {metric: "{:.3f} [{:.3f}, {:.3f}]".format(*values) for metric, values in each.items()}
        for name, each in scores.items()
    }
    print(pd.DataFrame(table).to_string())
    people = [texts[0] for texts in test.captions["captions"][:4]]
    captions = {
        name: model.generate(test.features[:4], [CAPTION_PROMPT] * 4, max_new_tokens=32)
        for name, model in models.items()
    }
    shown = [row["image"] for row in test.captions.select(range(4))]
    columns = {"a person's words": people, **captions}
    display(plots.answer_table(shown, columns, widths=(150,) * len(columns)))
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# **How to read the table.** A CIDEr counts for as much as it exceeds *CIDEr blind*, one caption for all images, and *CIDEr shuffled*, each image with the caption of the next; *concrete* is the second difference with
# its interval. A VQA accuracy counts for as much as it exceeds *blind* (*sees*) and the accuracy with another image (*swap*) or an empty one (*hide*). **A connector whose *sees* or *swap* includes 0 was not shown
# to look**, however good its score. Two connectors whose intervals overlap are not told apart by this run, and it has one seed.

# %% [markdown]
# **What this does not show.** Which connector is best: each has its own best rate, number of steps and number of tokens, and here one was taken for all or from its authors. BLIP-2 trains its Q-Former in a first stage of its own
# ([03b](03b_first_stage.ipynb)), and LLaVA goes on to train the language model ([04t](04t_photographs.ipynb)). Nor does 224 x 224 show what small things an image holds: that is [notebook 08](08_resolution.ipynb).

# %%
print(
    "HEADLINE: MLP, resampler, Q-Former at real sizes: {} million parameters; on photographs: {}".format(
        ", ".join(f"{each:.1f}" for each in sizes["million parameters"]),
        "run" if on_photographs else "not run, this needs t4",
    )
)
