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
#     title: "Which connector for which data?"
#     builds: four designs trained on four kinds of data, and seven side by side
#     lesson: comparison
#     reads: [zoo/shapes-clip, zoo/shapes-gpt2, results/fusion.json]
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/07c_which_data.ipynb)

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
print(describe(profile, compute, notebook="07c_which_data"))

# %% [markdown]
# # 7c. Which connector for which data?
#
# A companion to [notebook 07](07_fusion.ipynb), optional and short. A lecture on the field gives advice that is often repeated:
#
# | connector | goes with |
# |---|---|
# | linear | captions and instructions |
# | Q-Former | captions and VQA |
# | resampler | captions and reasoning |
# | cross-attention | VQA and compositional questions |
#
# Such a table says that design and data *interact*: not that one design is better, or one kind of data, but that a pair does better than both together would lead one to expect. That can be measured. Here every design is trained on every kind of data, by one loop and for the same steps.
#
# **You will be able to show** which of the four pairs holds on Shapes, with three seeds; and what seven ways of letting an image in cost and bring at one budget.
#
# **Reading time:** 10 minutes. No exercises.
# <!-- figures -->
# <!-- /figures -->
# **Before this:** [07](07_fusion.ipynb), whose designs are imported here.
#
# The comparison is **recorded**, three seeds: `vlm-lite study fusion --seeds 3` repeats it with this page's functions. One cell of it is trained live.

# %% [markdown]
# ## 1. Four kinds of data about the same images
#
# Each image has a list of turns, and a training step draws four of them. Half of each list are captions.
#
# - **captions**: the five captions of the image.
# - **instructions**: a sentence as an answer, a list, a description of every thing in its place (04's data, as LLaVA's).
# - **VQA**: short questions with short answers, balanced over their types.
# - **reasoning**: *how many red shapes are there, and which?*, with a number and what it was counted from.


# %% tags=["save"]
import numpy as np

from vlm_lite.data import instructions
from vlm_lite.data.language import CAPTION_PROMPT, chat_prompt
from vlm_lite.evals.captions import caption_scores
from vlm_lite.lessons.first_stage import frozen_parts, vqa_metrics
from vlm_lite.lessons.fusion import fusion_row

PAIRED = {
    "linear": "captions + instructions",
    "Q-Former": "captions + VQA",
    "resampler": "captions + reasoning",
    "cross-attention": "captions + VQA",
}
OTHERS = "MLP", "pixel shuffle + MLP", "visual expert"
TYPES = "colour", "count", "digit", "existence", "relation", "shape", "size"
DATA = "captions", "captions + instructions", "captions + VQA", "captions + reasoning"


def data_turns(data, kind, seed=0):
    """N lists of (prompt, answer) of an EncodedDataset, half of them captions. kind: one of DATA."""
    rows = []
    for k, (captions, description) in enumerate(zip(data.captions, data.descriptions, strict=True)):
        told, rng = [(CAPTION_PROMPT, text) for text in captions], np.random.default_rng([seed, k])
        scene = instructions.read_boxes(description)
        drawn = [turn for _ in range(3) for turn in instructions.turns(scene, rng)]
        forms = {"sentence", "list", "detail"} if "instructions" in kind else {"reason"}
        more = [(chat_prompt(ask), reply) for ask, reply, form in drawn if form in forms]
        more = {"captions": [], "captions + VQA": data.turns[k][1:]}.get(kind, more)
        rows.append(told[: len(more)] + more[: len(told)] if more else told)
    return rows


def row_of(kind, data, parts, profile, seed=0, **changes):
    """One design trained on one kind of data -> (model, History, {metric: value}): VQA beside its controls, CIDEr, cost."""
    *parts, train, val = parts
    recipe = {
        k: getattr(profile, f"connector_{k}") for k in ("steps", "batch_size", "per_row", "lr")
    }
    turns = data_turns(train, data, seed)
    made = fusion_row(kind, parts, train, val, turns=turns, seed=seed, **recipe | changes)
    model, history, result, row = made
    count = min(100, len(val.ids))
    said = model.generate(val.features[:count].float(), [CAPTION_PROMPT] * count, 48)
    texts = dict(enumerate(val.captions[:count])), dict(enumerate(said))
    found = vqa_metrics(result) | {"CIDEr": caption_scores(*texts, metrics=("CIDEr",))["CIDEr"]}
    return (
        model,
        history,
        found
        | {name: row[name] for name in ("million parameters", "tokens an image", "seconds a step")},
    )


def study(seed, profile):
    """Notebook 07c's rows: four designs on four kinds of data, three more on captions + VQA, after the same 120 steps."""
    parts, figures = frozen_parts(profile, profile.train_images), {}
    for kind in (*PAIRED, *OTHERS):
        for data in DATA if kind in PAIRED else [PAIRED["Q-Former"]]:
            steps = min(120, profile.connector_steps)
            _, history, found = row_of(kind, data, parts, profile, seed, steps=steps)
            figures |= {f"{kind}; {data}; {name}": value for name, value in found.items()}
    return history, figures


# %% [markdown]
# ## 2. One cell of the grid, live
#
# The linear layer on captions and VQA: 120 steps, as in every row of the record. The star is this run, beside the three recorded seeds of all seven designs on the same data.

# %%
import pandas as pd

from vlm_lite import plots
from vlm_lite.studies import load_study

record = load_study("fusion")
frame = pd.DataFrame([run["figures"] for run in record["runs"]]).T  # a column for each seed
frame.index = pd.MultiIndex.from_tuples([name.split("; ") for name in frame.index])
frame.index.names = ["design", "data", "metric"]
parts = frozen_parts(profile, profile.train_images)
steps = min(120, profile.connector_steps)
model, history, found = row_of("linear", "captions + VQA", parts, profile, steps=steps)
print({name: round(found[name], 3) for name in ("VQA vlm", "VQA blind", "VQA shuffled", "CIDEr")})

# %% tags=["thumbnail"]
same = frame.xs("captions + VQA", level="data")
designs = [*PAIRED, *OTHERS]
ranges = {kind: same.loc[kind, "VQA vlm"] for kind in designs}
ranges = dict(sorted(ranges.items(), key=lambda row: -row[1].mean()))
ranges["blind"] = same.loc["linear", "VQA blind"]
plots.seed_ranges(ranges, live=("linear", found["VQA vlm"]), xlabel="VQA accuracy (%)")

# %%
columns = ["VQA vlm", "VQA shuffled"] + [f"VQA vlm, {kind}" for kind in TYPES] + ["CIDEr"]
columns += ["million parameters", "tokens an image", "seconds a step"]
means = same.mean(axis=1).unstack().loc[list(ranges)[:-1], columns].round(2)
means.columns = [name.removeprefix("VQA vlm, ") for name in columns]
means

# %% [markdown]
# ## 3. Does a design go with a kind of data?
#
# VQA accuracy of the four designs in the lecture's table on four kinds of data, means over the seeds, and CIDEr of their captions:

# %%
grid = {m: frame.xs(m, level="metric").loc[list(PAIRED)] for m in ("VQA vlm", "VQA vlm, relation", "CIDEr")}
tables = {m: rows.mean(axis=1).unstack().loc[list(PAIRED), list(DATA)] for m, rows in grid.items()}
pd.concat(tables).round(2)

# %% [markdown]
# A pair *goes together* if it does better than its row and its column let one expect. For design $k$ and data $d$ that is the interaction of a two-way table:
#
# $$\delta_{kd} = y_{kd} - \bar y_{k\cdot} - \bar y_{\cdot d} + \bar y_{\cdot\cdot}$$
#
# One number for each seed; below their mean and its 95% interval (Student's $t$). The lecture's table predicts that all four are above 0.


# %%
from scipy import stats


def interaction(rows, kind, data):
    """The interaction of one pair in a table (design, data) x seeds -> mean, low, high: a 95% interval over the seeds."""
    table = rows.unstack()  # design x (seed, data)
    values = [table[seed].sub(table[seed].mean()).T for seed in rows.columns]  # without its column
    values = np.array([float((v - v.mean()).loc[data, kind]) for v in values])
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), values.mean() - half, values.mean() + half


found_pairs = {
    (kind, data): {m: "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interaction(rows, kind, data)) for m, rows in grid.items()}
    for kind, data in PAIRED.items()
}
pd.DataFrame(found_pairs).T
