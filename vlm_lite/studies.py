"""The recorded studies behind the bands in the notebooks: several seeds of one training, and what each reached.

`vlm-lite study NAME --seeds 3` is the only writer of `data/results/NAME.json`. A record holds its command, settings,
seeds, seconds, hardware, every seed's curve and figures, and a hash of what it depends on: the study's own source, the
recipe's, and the zoo files it read. A record whose hash no longer fits is stale, and a test says so. Comments,
docstrings and checks of the input do not count: they change no figure.
"""

import dataclasses
import hashlib
import inspect
import time
from pathlib import Path

import numpy as np
import pandas
import torch

from vlm_lite.checkpoint import step_seed
from vlm_lite.data import shapes
from vlm_lite.files import UserError, data_path, home, read_json, write_json
from vlm_lite.lessons import (
    clip_variants,
    comparison,
    early,
    first_stage,
    photographs,
    shipped,
    vit_variants,
)
from vlm_lite.profiles import PROFILES, get_compute
from vlm_lite.source import code_hash

# The modules whose functions count, where a study calls them, beside those in its own.
FOLLOWED = (
    "vlm_lite.lessons",
    "vlm_lite.distributed",
    "vlm_lite.embed",
    "vlm_lite.models.parts",
    "vlm_lite.models.text",
    "vlm_lite.models.vision",
    "vlm_lite.models.vit",
    "vlm_lite.optim",
)
ZOO = ("shapes-clip", "shapes-gpt2")
CONTRASTIVE = (
    "image_size",
    "val_images",
    "contrastive_images",
    "contrastive_batch_size",
    "contrastive_steps",
)
VIT = ("train_images", "val_images", "vit_")
CONNECTOR = ("train_images", "val_images", "connector_", "num_query_tokens")
STAGES = ("val_images", "stage_")
# name: the study, what the profile's settings that it takes begin with, the zoo models that it reads
STUDIES = {
    "clip_infonce": (clip_variants.study_of_01, (*CONTRASTIVE, "contrastive_lr"), ()),
    "contrastive_variants": (clip_variants.study, CONTRASTIVE, ()),
    "qformer_connector": (shipped.qformer_connector, CONNECTOR, ZOO),
    "qformer_queries": (shipped.qformer_queries, CONNECTOR, ZOO),
    "shapes_vlm": (shipped.shapes_vlm, CONNECTOR, ZOO),
    "connectors": (first_stage.study, CONNECTOR, ZOO),
    "llava_stages": (shipped.llava_stages, STAGES, ZOO),
    "llava_longer": (shipped.llava_longer, STAGES, ZOO),
    "early_fusion": (early.study, ("train_images", "val_images", "connector_steps"), ZOO[:1]),
    "fusion": (comparison.study, CONNECTOR, ZOO),
    "photographs_real": (photographs.study, (), ()),
    "vit_positions": (vit_variants.study_of_02, VIT, ()),
    "vit_variants": (vit_variants.study, VIT + CONTRASTIVE, ZOO[:1]),
}


def settings(name, profile):
    """{field: value} of the profile, as far as study `name` takes it."""
    fields = dataclasses.asdict(profile).items()
    return {field: value for field, value in fields if field.startswith(_study(name)[1])}


def study_hash(name):
    """A hash of all that the record of study `name` depends on: the code, the settings, the world, the zoo."""
    function, _, models = _study(name)
    values = shapes.VERSION, *settings(name, PROFILES["tiny"]).values()
    digest = hashlib.sha256(code_hash(function, step_seed, values, follow=FOLLOWED).encode())
    for model in models:
        digest.update(data_path("zoo", model, "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def run(name, *, seeds=3, profile=None, folder=None):
    """Run study `name` with seeds 0, 1, ... and write its record; returns the path. UserError for an unknown name.

    A run that was cut goes on: each seed is kept in `files.home()` until the record is written.
    profile: the sizes (default `tiny`). folder: where the record goes (default: this clone's `data/results`).
    """
    function, *_ = _study(name)
    profile, stamp, runs, kept = profile or PROFILES["tiny"], study_hash(name), [], []
    for seed in range(seeds):
        kept.append(_kept_at(name, stamp, profile, seed))
        try:
            part = read_json(kept[-1])
        except UserError:  # not there yet
            started = time.time()
            history, figures, *replies = function(seed, profile)
            part = {
                "steps": history.steps,
                "losses": _round(history.losses),
                "seconds": _round(history.seconds),
                "figures": {k: round(v, 4) for k, v in figures.items()},
                **({"replies": replies[0]} if replies else {}),
                "took": time.time() - started,
            }
            write_json(kept[-1], part)
            print(
                f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()),
                flush=True,
            )
        runs.append({"seed": seed, **part})
    figures = [run["figures"] for run in runs]
    record = {
        "name": name,
        "what": inspect.getdoc(function),
        "command": f"vlm-lite study {name} --seeds {seeds}",
        "settings": settings(name, profile),
        "seeds": list(range(seeds)),
        "hash": stamp,
        "seconds": round(sum(run.pop("took") for run in runs)),
        "runs": runs,
        "hardware": get_compute().hardware,
        "torch": torch.__version__,
        "band": {"steps": runs[0]["steps"], **_range([run["losses"] for run in runs])},
        "summary": {
            key: _range([each[key] for each in figures])
            for key in figures[0]
            if all(key in each for each in figures)
        },
    }
    folder = folder or Path(__file__).resolve().parent.parent / "data" / "results"
    path = Path(folder) / f"{name}.json"
    write_json(path, record)
    for part in kept:
        part.unlink(missing_ok=True)
    return path


def _kept_at(name, stamp, profile, seed):
    """Where a seed of a study waits for the rest; another study, setting or precision has another place."""
    mark = repr((stamp, settings(name, profile), seed, get_compute().hardware, torch.__version__))
    return home() / "studies" / f"{name}-{hashlib.sha256(mark.encode()).hexdigest()[:24]}.json"


def load_study(name):
    """The record of study `name`, as `run` wrote it. UserError when it is unknown or missing."""
    _study(name)
    record = read_json(data_path("results", f"{name}.json"))
    record["band"]["seeds"] = len(record["seeds"])
    return record


def _study(name):
    if name not in STUDIES:
        raise UserError(f"no study is named {name!r}. There are: {', '.join(STUDIES)}.")
    return STUDIES[name]


def _range(values):
    """{"mean", "low", "high"} over the first axis."""
    values = np.array(values)
    found = {"mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
    return {name: _round(value) for name, value in found.items()}


def _round(values):
    return np.round(np.asarray(values, dtype=float), 4).tolist()


def summary_table(record, names, metrics):
    """A DataFrame of a record's mean over the seeds and their range: a row for each of `names`, a column a metric."""
    cell = "{mean:.2f} [{low:.2f}, {high:.2f}]".format
    rows = {
        name: {each: cell(**record["summary"][f"{name}: {each}"]) for each in metrics}
        for name in names
    }
    return pandas.DataFrame(rows).T
