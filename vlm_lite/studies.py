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

from vlm_lite import encoded
from vlm_lite.checkpoint import step_seed
from vlm_lite.data import instructions, shapes
from vlm_lite.files import UserError, data_path, home, read_json, write_json
from vlm_lite.lessons import clip_variants, first_stage, llava, vit_variants, vlm
from vlm_lite.profiles import PROFILES, get_compute
from vlm_lite.source import code_hash


def qformer_connector(seed, profile):
    """Notebook 03's training: a Q-Former between frozen encoder and language model; VQA beside its controls."""
    parts = first_stage.frozen_parts(profile, profile.train_images)
    model, history = first_stage.train_connector("Q-Former", parts, profile, seed)
    result = encoded.probe(model, parts[-1])
    return history, first_stage.vqa_metrics(result) | {"multimodal gain": result.gain.value}


def qformer_queries(seed, profile):
    """Notebook 03's compression: 1 to 32 queries for 16 patches, 100 steps each; VQA beside its controls."""
    figures = {}
    for count in (1, 4, 8, 32, 16):
        steps = min(100, profile.connector_steps)
        short = dataclasses.replace(profile, num_query_tokens=count, connector_steps=steps)
        history, found = qformer_connector(seed, short)
        figures |= {f"{count} queries: {name}": value for name, value in found.items()}
    return history, {name: value for name, value in figures.items() if "vlm, " not in name}


def train_long(seed=0, profile=PROFILES["tiny"], steps=1_040):
    """Notebook 03's training, longer, with more said about each of twice as many images -> (VLM, History, val).

    It takes half the learning rate: at the whole one, two runs of this length fell back after some 350 steps.
    """
    *_, train, val = parts = first_stage.frozen_parts(profile, 2 * profile.train_images)
    turns = [
        said + instructions.more_exchanges(description, np.random.default_rng([5, image_id]))
        for said, description, image_id in zip(
            train.turns, train.descriptions, train.ids, strict=True
        )
    ]
    changes = {
        "steps": min(steps, 8 * profile.connector_steps),
        "batch_size": 2 * profile.connector_batch_size,
        "per_row": 6,
        "lr": profile.connector_lr / 2,
    }
    return *first_stage.train_connector("Q-Former", parts, profile, seed, turns, **changes), val


def shapes_vlm(seed, profile):
    """The long run behind the zoo's `shapes-vlm` (`train_long`); VQA beside its controls, and by type."""
    model, history, val = train_long(seed, profile)
    return history, first_stage.vqa_metrics(encoded.probe(model, val))


def llava_stages(seed, profile):
    """Notebook 04's stages; the second one frozen and fully tuned; four trainings that fail. Their replies as well."""
    model, train, val = llava_parts(profile, seed)
    stages = llava.plan(profile.stage_steps, profile.stage_batch_size)
    first, second, third, _ = stages.values()
    stages |= {
        "frozen": second | {"trainable": "connector"},
        "full": second | {"trainable": "all"},
        "full, lr / 10": second | {"trainable": "all", "lr": second["lr"] / 10},
        "instructions alone": second | {"start": "nothing"},
        "VQA alone": third | {"start": "nothing"},
        "half exchanged": first | {"data": "half exchanged"},
        "all exchanged": first | {"data": "all exchanged"},
    }
    talks = instructions.stage_talks(train, seed)
    for name, share in (("half", 0.5), ("all", 1.0)):
        wrong = instructions.stage_talks(train, seed, exchanged=share)
        talks[f"{name} exchanged"] = wrong["captions"]
    models, histories = llava.run_stages(model, train.features, talks, stages, seed)
    return histories["captions"], *_measured(models, val, images=60, questions=200)


def llava_longer(seed, profile):
    """The longer training behind the zoo's `shapes-llava`, measured as notebook 04 measures its stages."""
    model, train, val = llava_parts(profile, seed)
    models, histories = train_llava(model, train, profile, seed)
    return histories["mixed"], *_measured({"mixed": models["mixed"]}, val)


LONGER = {
    "captions": {"steps": 160},
    "mixed": {
        "trainable": "all",
        "optimizer": "Muon",
        "lr": 2e-3,
        "steps": 450,
        "batch_size": 32,
        "per_row": 4,
    },
}


def train_llava(model, train, profile, seed=0):
    """Stage 1 and the mixed stage of notebook 04, longer, the latter in full and with Muon -> (models, histories)."""
    plan = llava.plan(profile.stage_steps, profile.stage_batch_size)
    stages = {name: plan[name] | LONGER[name] for name in LONGER}
    if profile.name == "smoke":
        stages = {name: stage | {"steps": 2} for name, stage in stages.items()}
    talks = instructions.stage_talks(train, seed)
    return llava.run_stages(model, train.features, talks, stages, seed)


def llava_parts(profile, seed=0):
    """(untrained VLM, train, val) of notebook 04."""
    vision, *text, train, val = parts = first_stage.frozen_parts(profile, profile.stage_images)
    connector = first_stage.make_connector("MLP", parts, profile, seed)
    return vlm.VLM(vision, connector, *text).eval(), train, val


def _measured(models, val, **sizes):
    """({"stage: metric": value}, {stage: [[reply, whether it is right], ...] to the fixed prompts})."""
    scores = {name: llava.evaluate(model, val, **sizes) for name, model in models.items()}
    replies = {name: instructions.ask_fixed(model, val) for name, model in models.items()}
    figures = {
        f"{name}: {metric}": each.value
        for name, found in scores.items()
        for metric, each in found.items()
    }
    figures |= {
        f"{name}: prompts right": sum(row[-1] for row in rows) for name, rows in replies.items()
    }
    return figures, {name: [row[-2:] for row in rows] for name, rows in replies.items()}


# The modules whose functions count, where a study calls them, beside those in its own.
FOLLOWED = (
    "vlm_lite.lessons",
    "vlm_lite.data.instructions",
    "vlm_lite.data.negatives",
    "vlm_lite.distributed",
    "vlm_lite.embed",
    "vlm_lite.models.parts",
    "vlm_lite.models.text",
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
    "qformer_connector": (qformer_connector, CONNECTOR, ZOO),
    "qformer_queries": (qformer_queries, CONNECTOR, ZOO),
    "shapes_vlm": (shapes_vlm, CONNECTOR, ZOO),
    "connectors": (first_stage.study, CONNECTOR, ZOO),
    "llava_stages": (llava_stages, STAGES, ZOO),
    "llava_longer": (llava_longer, STAGES, ZOO),
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
