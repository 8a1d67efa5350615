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
#     minutes_t4_estimate: 35
#     reads: []
#     outputs_of: aa5582ec99a6850823d89fcd5f63da6ab1b399e9e7fc30ad061d3c01e4ddff47
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/04t_photographs.ipynb)

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
# hundred million parameters, whose own chat template takes the place of ours. `language_model` takes another id.
#
# <!-- figures -->
# **Run time:** not measured yet on `tiny`; about 35 min on a T4 (an estimate until someone has measured it).
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
# A run that died goes on at the next call. After each stage: CIDEr and VQA accuracy, and the controls with their intervals. The scale of *concrete* is CIDEr
# less CIDEr with the captions of other images.

# %%
from IPython.display import display

from vlm_lite import plots, recipes, stages
from vlm_lite.commands import matrix

on_photographs = profile if profile.name == "t4" else None

# %% tags=["t4"]
minimal = False  # @param {type: "boolean"}
language_model = ""  # @param {type: "string"}

if on_photographs:
    from vlm_lite import photo_stages
    from vlm_lite.data.photographs import FULL, MINIMAL
    from vlm_lite.data.sources import MODELS
    from vlm_lite.files import home

    name = language_model or MODELS["instruct brain"]
    big = recipes.new_vlm("mlp", vision_model=MODELS["eye"], language_model=name).to(compute.device)
    train_photos, test_photos = (
        photo_stages.load_photos(big.vision, split, MINIMAL if minimal else FULL)
        for split in ("train", "val")
    )
    prompt = photo_stages.user_prompt(big.tokenizer)
    photo_said, fixed = (
        {},
        [
            "Describe the picture.",
            "What stands in the middle?",
            "Is there a person? Answer yes or no.",
        ],
    )

    def keep(stage, scores, history):
        photo_said[stage] = big.generate(
            test_photos.features[:3], [prompt(text) for text in fixed], max_new_tokens=48
        )

    table = stages.run_stages(
        big,
        train_photos,
        test_photos,
        photo_stages.photo_plan(on_photographs.stage_steps),
        texts=photo_stages.photo_texts(train_photos, prompt),
        on_stage=keep,
        compute=compute,
        measure=lambda vlm: photo_stages.evaluate_photos(vlm, test_photos, prompt),
        folder=home() / f"llava-{name.replace('/', '--')}{'-minimal' if minimal else ''}",
    )
    print(matrix(table))
    for stage, scores in table:
        print(
            f"{stage:16}"
            + ", ".join(
                f"{key} {value:.2f} [{low:.2f}, {high:.2f}]"
                for key, (value, low, high) in scores.items()
                if key in ("CIDEr", "CIDEr blind", "VQA", "blind", "oracle")
            )
        )
    display(
        plots.answer_table(
            [row["image"] for row in test_photos.captions.select(range(3))],
            {"asked": fixed, **photo_said},
            widths=(150, 150, 170, 170, 170),
        )
    )
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')

# %% [markdown]
# **What this does not show.** Form and facts of a reply are not measured here: for photographs nobody has written the truth down.
