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
#     title: A Q-Former on photographs
#     builds: notebook 03's VLM between OpenAI's CLIP and GPT-2, on COCO
#     minutes_t4_estimate: 25
#     reads: []
#     outputs_of: e134933cdef0093cffdd521b79bf92a742f90b92353cfbb347ace123c319a258
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/03t_photographs.ipynb)

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
print(describe(profile, compute, notebook="03t_photographs", t4_minutes=25))

# %% [markdown]
# # 3t. A Q-Former on photographs
#
# [Notebook 03](03_qformer_gpt2.ipynb)'s VLM at its real sizes: OpenAI's CLIP ViT-B/16 (196 patches of width 768), 32 queries, six layers with cross-attention
# in every second one, and GPT-2. It trains on 5,000 photographs of COCO with five captions each and some 10,000 questions, and is tested on 1,000 others.
# None is of COCO's val2014, and notebook 04 uses the same. `reader` changes the language model: OPT-1.3B is about ten times as large.
#
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.9 GB of memory on `tiny` (measured, 2 CPU cores); about 25 min on a T4 (an estimate until someone has measured it).
# <!-- /figures -->
# **Before this:** [03, a Q-Former and a VLM](03_qformer_gpt2.ipynb).
#
# **This notebook needs a GPU and the model hub** (`profile = "t4"`), and downloads about 3 GB. On `tiny` it says so and stops. **The authors have not run it on
# a GPU**, nor with the real weights: a test runs its code on a small mirror of the sites. So no result is claimed here.
#
# **How to read the table.** CIDEr alone says little. ClipCap reached 1.13 (published as 113) with all of COCO and a frozen GPT-2; 5,000 images bring less. Compare it with *CIDEr
# blind*, one caption for all images, and *CIDEr shuffled*, each image with the caption of the next: what it has more than these is what the image
# is worth. The *oracle* reads the five captions instead. GPT-2 was never taught to answer questions, so its oracle may be no better than blind.

# %%
import torch
from IPython.display import display

from vlm_lite import plots
from vlm_lite.data.language import CAPTION_PROMPT, short_prompt
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import load_language_model
from vlm_lite.optim import weight_decay_groups
from vlm_lite.profiles import resolve_model

on_photographs = profile if profile.name == "t4" else None


def adamw(model, lr):
    """The optimizer that BLIP-2 uses, with weight decay on matrices alone."""
    return torch.optim.AdamW(weight_decay_groups(model, 0.05), lr)


# %% tags=["t4"]
reader = "gpt2"  # @param ["gpt2", "opt-1.3b"]

if on_photographs:
    import pandas as pd

    from vlm_lite import photo_stages
    from vlm_lite.data.photographs import FULL
    from vlm_lite.data.sources import MODELS

    vision = CLIP.from_pretrained(resolve_model(MODELS["clip"]))
    language_model, tokenizer = load_language_model(resolve_model(MODELS[reader]))
    torch.manual_seed(0)
    widths = vision.feature_width, language_model.config.hidden_size
    connector = QFormerConnector(*widths, **photo_stages.QFORMER)
    model = VLM(vision, connector, language_model, tokenizer).to(compute.device).eval()
    train, test = (photo_stages.load_photos(vision, split, FULL) for split in ("train", "val"))
    said = photo_stages.photo_texts(train, short_prompt)
    turns = [some + asked for some, asked in zip(said["captions"], said["vqa"], strict=True)]
    rounds = {"before training": photo_stages.evaluate_photos(model, test, short_prompt)}
    names = ("steps", "batch_size", "per_row", "lr")
    recipe = {name: getattr(on_photographs, f"connector_{name}") for name in names}
    train_vlm(model, train.features, turns, **recipe, make_optimizer=adamw)
    rounds["after training"] = photo_stages.evaluate_photos(model.eval(), test, short_prompt)
    columns = {
        name: {metric: "{:.3f} [{:.3f}, {:.3f}]".format(*values) for metric, values in each.items()}
        for name, each in rounds.items()
    }
    print(pd.DataFrame(columns).to_string())
    captions = model.generate(test.features[:4], [CAPTION_PROMPT] * 4, max_new_tokens=32)
    people = [texts[0] for texts in test.captions["captions"][:4]]
    shown = [row["image"] for row in test.captions.select(range(4))]
    columns = {"a person's words": people, "the model's": captions}
    display(plots.answer_table(shown, columns, widths=(260, 260)))
else:
    print('photographs: only with profile = "t4", which needs a GPU and the model hub')
print("HEADLINE: a Q-Former on photographs,", "run" if on_photographs else "not run: this needs t4")
