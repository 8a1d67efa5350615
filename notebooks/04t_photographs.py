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
#     title: LLaVA on photographs
#     builds: the stages of notebook 04 with OpenAI's CLIP and a chat model, on COCO
#     lesson: coco_stages
#     minutes_t4_estimate: 35
#     reads: []
#     outputs_of: d107782837adda825321b2978f99e8a8e274098a9acf8d023e997151ecf60fda
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/04t_photographs.ipynb)

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
print(describe(profile, compute, notebook="04t_photographs", t4_minutes=35))

# %% [markdown]
# # 4t. LLaVA on photographs
#
# The stages of [notebook 04](04_llava_projection.ipynb) at real sizes: OpenAI's CLIP ViT-B/16, so an image is 196 vectors, and a chat model with some
# hundred million parameters, whose own chat template takes the place of ours.
#
# `encoder`, `encoder_weights` and `encoder_side` choose another vision encoder, as in [notebook 03t](03t_photographs.ipynb). `reader` is SmolLM2-360M-Instruct ("instruct"), the 135M one ("smaller instruct"), or a hub id, a folder or a GGUF file.
#
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 1.0 GB of memory on `tiny` (measured, 2 CPU cores); about 35 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [04, LLaVA in stages](04_llava_projection.ipynb).
#
# **One set of COCO images serves all stages**: 5,000 to train on and 1,000 held out, drawn by a seed from those that captions, VQA v2 and LLaVA-Instruct-150K
# all speak of. LLaVA-Instruct names its images by train2017, which holds about 88% of val2014, the pool that VQA and POPE are tested on; here nothing of val2014
# is chosen. `vlm-lite data list` shows every id and address; `VLM_LITE_MIRROR` puts a mirror in their place.
#
# **This notebook needs a GPU and the model hub** (`profile = "t4"`), and downloads about 3 GB. On `tiny` it says so and stops. **The authors have not run it on
# a GPU**, nor with the real files: a test runs its code on a small made mirror. So no result is claimed here.
#
# The loop, the stages and their order are 04's. A run that died goes on at the next call. After each stage: CIDEr and VQA accuracy, and four controls with their intervals: what another image
# (*swap*), an empty one (*hide*) and none (*sees*) cost in VQA accuracy, and CIDEr less CIDEr with the captions of other images (*concrete*).

# %% tags=["save"]
from vlm_lite.lessons import llava
from vlm_lite.lessons.coco import photo_texts


def photo_talks(photos, prompt):
    """What notebook 04's stages train on: {data: N lists of conversations}, "mixed" being all of it."""
    said = photo_texts(photos, prompt)
    found = {
        "captions": [[[pair] for pair in row] for row in said["captions"]],
        "conversation": said["instructions"],
        "VQA": [[[pair] for pair in row] for row in said["vqa"]],
    }
    return found | {"mixed": [sum(each, []) for each in zip(*found.values(), strict=True)]}


def photo_plan(steps, batch_size=16):
    """Notebook 04's `plan`, as LLaVA's authors have it for pretrained models: AdamW throughout, at their rates."""
    rates = {"connector": 1e-3, "LoRA": 2e-4}
    return {
        name: stage | {"optimizer": "AdamW", "lr": rates[stage["trainable"]]}
        for name, stage in llava.plan(steps, batch_size).items()
    }


# %%
import pandas as pd
import torch
from IPython.display import display

from vlm_lite import plots
from vlm_lite.lessons.coco import evaluate_photos, load_photos
from vlm_lite.lessons.language import CAPTION_PROMPT, chat_prompt
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vision import load_vision
from vlm_lite.profiles import resolve_model

on_photographs = profile if profile.name == "t4" else None

# %% tags=["t4"]
minimal = False  # @param {type: "boolean"}
encoder = "clip"  # @param ["clip", "vit_base_patch16_siglip_224", "vit_small_patch14_dinov2", "tf_efficientnet_lite0"] {allow-input: true}
encoder_weights = ""  # @param {type: "string"}
encoder_side = 0  # @param {type: "integer"}
reader = "instruct"  # @param ["instruct", "smaller instruct"] {allow-input: true}

if on_photographs:
    from vlm_lite.data.photographs import FULL, MINIMAL
    from vlm_lite.data.sources import MODELS

    vision = load_vision(MODELS.get(encoder, encoder), encoder_weights, encoder_side)
    language_model, tokenizer = load_language_model(resolve_model(MODELS.get(reader, reader)))
    torch.manual_seed(0)
    projector = llava.Projector(vision.feature_width, language_model.config.hidden_size)
    model = VLM(vision, projector, language_model, tokenizer).to(compute.device)
    prompt = str if tokenizer.chat_template else chat_prompt  # `VLM` applies a model's own template
    photos, others = (
        load_photos(vision, split, MINIMAL if minimal else FULL) for split in ("train", "val")
    )
    stages = photo_plan(on_photographs.stage_steps)
    talks = photo_talks(photos, prompt)
    models, histories = llava.run_stages(model, photos.features, talks, stages)
    seconds = [round(each.seconds[-1]) for each in histories.values()]
    display(pd.DataFrame(stages).T.assign(seconds=seconds))
    scores = {name: evaluate_photos(each, others, prompt) for name, each in models.items()}
    print(pd.DataFrame(scores).map("{0[0]:.2f} [{0[1]:.2f}, {0[2]:.2f}]".format).to_string())
    asked = ["Describe the picture.", "What stands in the middle?", "Is there a person?"]
    said = {
        name: each.generate(others.features[:3].float(), [prompt(text) for text in asked], 48)
        for name, each in models.items()
    }
    shown = [row["image"] for row in others.captions.select(range(3))]
    display(plots.answer_table(shown, {"asked": asked, **said}, widths=(120, *[130] * len(said))))
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# **What this does not show.** Form and facts of a reply are not measured here: for photographs nobody has written the truth down.
#
# ## Your own images
#
# A folder of images with a file `metadata.jsonl`, one line an image: `{"file_name": "cat.jpg", "captions": ["a cat on a sofa."]}`. Name the folder, and the model trains on them from the checkpoint
# of the mixed stage, is asked about the first three, and its trained part is saved beside them (`load_trained` of `vlm_lite.models.layout` reads it back).

# %% tags=["own"]
own_images = ""  # @param {type: "string"}

if own_images and on_photographs:
    from pathlib import Path

    from vlm_lite.data.formats import image_tensor
    from vlm_lite.data.readers import read_folder
    from vlm_lite.encoded import patch_features
    from vlm_lite.models.layout import save_trained

    table = read_folder(own_images)
    features = patch_features(vision, image_tensor(table, fit=vision.fit)[0])
    talks = {"own": [[[(CAPTION_PROMPT, text)] for text in five] for five in table["captions"][:]]}
    stage = stages["mixed"] | {"start": "nothing", "data": "own", "steps": 60, "per_row": 1}
    mine, _ = llava.run_stages(models["mixed"], features, talks, {"own": stage})
    print(
        *mine["own"].generate(features[:3].float(), [CAPTION_PROMPT] * len(features[:3]), 32),
        sep="\n",
    )
    print("saved:", save_trained(mine["own"], Path(own_images) / "llava"))
else:
    print("your own images: name a folder above (and profile t4)")
print("HEADLINE: LLaVA on photographs,", "run" if on_photographs else "not run: this needs t4")
