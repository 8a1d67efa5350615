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

from vlm_lite import embed, encoded, optim, real, recipes
from vlm_lite.checkpoint import step_seed
from vlm_lite.data import cutouts, instructions, language, shapes
from vlm_lite.data.formats import image_tensor
from vlm_lite.data.negatives import replaced_word
from vlm_lite.files import UserError, data_path, home, read_json, write_json
from vlm_lite.lessons import clip as clip_lesson
from vlm_lite.lessons import clip_variants as variants
from vlm_lite.lessons import llava, photographs, vit
from vlm_lite.lessons import vlm as vlm_lesson
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.models import clip
from vlm_lite.models.foreign import TimmVision
from vlm_lite.models.positions import axis_cosines
from vlm_lite.models.text import load_language_model, pack
from vlm_lite.profiles import PROFILES, get_compute, resolve_model
from vlm_lite.source import code_hash, what_counts


def clip_infonce(seed, profile):
    """Notebook 01's training: CLIP from scratch with InfoNCE on Shapes; R@K over held-out captions, and zero-shot."""
    tokenizer = language.make_tokenizer()
    table, _ = shapes.load_shapes("train", profile.contrastive_images)
    images, captions = image_tensor(table)[0], table["captions"][:]
    texts = [text for five in captions for text in five]
    model = clip_lesson.make_clip(tokenizer, seed)
    history = clip_lesson.train_clip(
        model,
        images,
        embed.tokenize(texts, tokenizer).view(len(images), len(captions[0]), -1),
        steps=profile.contrastive_steps,
        batch_size=profile.contrastive_batch_size,
        lr=profile.contrastive_lr,
        seed=seed,
    )
    model, figures = model.cpu(), {}
    for split in ("val", "novel"):
        table, _ = shapes.load_shapes(split, profile.val_images)
        images, texts = image_tensor(table)[0], [five[0] for five in table["captions"][:]]
        ids = embed.tokenize(texts, tokenizer)
        u, v = embed.embed_images(model, images), embed.embed_texts(model, ids)
        for way, matrix in (("image to text", u @ v.T), ("text to image", v @ u.T)):
            for k in (1, 5, 10):
                figures[f"{split} {way} R@{k}"] = clip_lesson.recall_at_k(matrix, k)
        if split == "val":
            rows, tasks = shapes.zero_shot_task(table)
            for kind, (_, truth) in tasks.items():
                prompts = shapes.zero_shot_prompts(kind)
                found = clip_lesson.zero_shot(model, images[rows], prompts, tokenizer)
                figures[f"zero-shot {kind}"] = float(np.mean(found.numpy() == np.array(truth)))
            figures["modality gap"] = float((u.mean(0) - v.mean(0)).norm())
    figures["chance R@5"] = 5 / profile.val_images
    figures["learnt temperature"] = float((-model.logit_scale.detach()).exp())
    return history, figures


def contrastive_variants(seed, profile):
    """Notebook 01b's rows, on a CLIP smaller than 01's: one thing changed, more steps or images, copies of test images."""
    tokenizer, (images, captions, _) = (
        language.make_tokenizer(),
        shapes.load_pairs("train", profile.contrastive_images),
    )
    held_out, texts, table = shapes.load_pairs("val", profile.val_images)
    steps, batch_size = 2 * profile.contrastive_steps // 3, profile.contrastive_batch_size
    figures, histories = {}, {}

    def row(name, count=None, images=images, captions=captions, **changes):
        recipe = {"steps": steps, "batch_size": batch_size, "lr": 3e-3, "seed": seed, **changes}
        model, histories[name] = variants.train_variant(
            images[:count], captions[:count], tokenizer, **recipe
        )
        found = variants.recall(model, held_out, texts, tokenizer)
        found["shape"] = variants.shape_accuracy(model, held_out, table, tokenizer)
        found["temperature"] = float((-model.logit_scale.detach()).exp())
        figures.update({f"{name}: {metric}": value for metric, value in found.items()})
        return model

    for name, changes in variants.variants(steps, batch_size).items():
        row(name, **changes)
    for times in (0.25, 0.5, 2, 4):
        row(f"steps x {times:g}", steps=max(1, round(times * steps)))
    for part in (64, 16, 4):
        row(f"images / {part}", count=len(images) // part)
    quarter = len(held_out) // 4
    mixed = torch.cat([images[: len(images) // 8], variants.near_copies(held_out[:quarter])])
    said = captions[: len(images) // 8] + texts[:quarter]
    kept = ~variants.near_duplicates(mixed, held_out).any(dim=1)
    cleaned = [five for five, keep in zip(said, kept, strict=True) if keep]
    pools = {"with copies": (mixed, said), "copies removed": (mixed[kept], cleaned)}
    for name, (some, their) in pools.items():
        model = row(name, images=some, captions=their)
        for which, part in (("copied", slice(quarter)), ("others", slice(quarter, 2 * quarter))):
            found = variants.recall(model, held_out[part], texts[part], tokenizer)
            figures[f"{name}: R@1 of {which}"] = found["R@1"]
    figures["images kept"] = float(kept.sum())
    return histories["nothing changed"], figures


def qformer_connector(seed, profile):
    """Notebook 03's training: a Q-Former between frozen encoder and language model; VQA beside its controls."""
    vision = clip.CLIP.from_pretrained(resolve_model(profile.vision_model))
    language_model, tokenizer = load_language_model(resolve_model(profile.language_model))
    train, val = (
        encoded.encode_shapes(vision, split, count)
        for split, count in (("train", profile.train_images), ("val", profile.val_images))
    )
    torch.manual_seed(seed)
    widths = vision.feature_width, language_model.config.hidden_size
    connector = QFormerConnector(*widths, num_query_tokens=profile.num_query_tokens)
    model = vlm_lesson.VLM(vision, connector, language_model, tokenizer)
    history = vlm_lesson.train_vlm(
        model,
        train.features,
        train.turns,
        steps=profile.connector_steps,
        batch_size=profile.connector_batch_size,
        per_row=profile.connector_per_row,
        lr=profile.connector_lr,
        seed=seed,
    )
    result = encoded.probe(model, val)
    figures = {f"VQA {name}": interval.value for name, interval in result.accuracy.items()}
    figures |= {
        f"VQA vlm, {kind}": part.accuracy["vlm"].value for kind, part in result.by_type.items()
    }
    # A training too short to tell oracle from blind has no bridge score: then the figure is left out.
    if result.bridge.value is not None:
        figures["bridge score"] = result.bridge.value
    figures["multimodal gain"] = result.gain.value
    return history, figures


def qformer_queries(seed, profile):
    """Notebook 03's compression: 1 to 32 queries for 16 patches, 100 steps each; VQA beside its controls."""
    figures = {}
    for count in (1, 4, 8, 32, 16):
        steps = min(100, profile.connector_steps)
        short = dataclasses.replace(profile, num_query_tokens=count, connector_steps=steps)
        history, found = qformer_connector(seed, short)
        figures |= {f"{count} queries: {name}": value for name, value in found.items()}
    return history, {name: value for name, value in figures.items() if "vlm, " not in name}


def train_vlm(seed=0, profile=PROFILES["tiny"], *, steps=None, **options):
    """The long run: notebook 03's Q-Former, 1,040 steps of 64 images, told more about each picture.

    It takes half the learning rate: at the whole one, two runs of this length fell back after some 350 steps. Besides
    a caption and the questions of its file, each picture has instructions and `instructions.more_exchanges`. Returns
    (VLM, History, the probes on val, settings). `options` go to `train.train`.
    """
    captions, questions = shapes.load_shapes("train", profile.train_images)
    images, _, ids = recipes.load_pictures(captions)
    said = recipes.picture_exchanges(captions, questions, chat=True)
    for image_id, description in zip(ids, captions["description"][:], strict=True):
        said[image_id] += instructions.more_exchanges(
            description, np.random.default_rng([5, image_id])
        )
    vlm = recipes.new_vlm("qformer", seed=seed, num_query_tokens=profile.num_query_tokens)
    settings = dict(
        steps=steps or min(1_040, 8 * profile.connector_steps),
        batch_size=64,
        lr=profile.connector_lr / 2,
        optimizer="muon",
        seed=seed,
    )
    history = recipes.train_connector(
        vlm,
        recipes.picture_features(vlm.vision, images),
        [said[i] for i in ids],
        **settings,
        **options,
        description=f"shapes-vlm, seed {seed}",
    )
    return (
        vlm,
        history,
        recipes.probe(vlm, *shapes.load_shapes("val", profile.val_images)),
        settings,
    )


def shapes_vlm(seed, profile):
    """The long run behind the zoo's `shapes-vlm` (`train_vlm`); VQA beside its controls, and by type."""
    _, history, result, _ = train_vlm(seed, profile)
    figures = {f"VQA {name}": interval.value for name, interval in result.accuracy.items()}
    figures |= {
        f"VQA vlm, {kind}": part.accuracy["vlm"].value for kind, part in result.by_type.items()
    }
    if result.bridge.value is not None:
        figures["bridge score"] = result.bridge.value
    return history, figures


def vit_positions(seed, profile):
    """Notebook 02's training: a ViT that says which object stands furthest left; without positions; and a small CNN."""
    train = vit.leftmost_task("train", 2 * profile.train_images)[:2]
    held_out = vit.leftmost_task("val", profile.val_images)[:2]
    makers = {"ViT": vit.ViT, "ViT without positions": vit.ViT, "CNN": vit.small_cnn}
    figures, histories = {}, {}
    for name, make in makers.items():
        torch.manual_seed(seed)
        model = make()
        if name == "ViT without positions":
            torch.nn.init.zeros_(model.pos_embed).requires_grad_(False)
        histories[name] = vit.train_vit(
            model,
            *train,
            steps=profile.vit_steps,
            batch_size=profile.vit_batch_size,
            lr=profile.vit_lr,
            seed=seed,
            name=f"{name}, seed {seed}",
        )
        figures[f"accuracy, {name}"] = vit.accuracy(model, *held_out)
        if name == "ViT":
            cosines = axis_cosines(model.pos_embed)
            figures |= {f"cosine of positions, {where}": c for where, c in cosines.items()}
    return histories["ViT"], figures


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
    vision = clip.CLIP.from_pretrained(resolve_model(profile.vision_model))
    language_model, tokenizer = load_language_model(resolve_model(profile.language_model))
    train, val = (
        encoded.encode_shapes(vision, split, count)
        for split, count in (("train", profile.stage_images), ("val", profile.val_images))
    )
    torch.manual_seed(seed)
    connector = llava.Projector(vision.feature_width, language_model.config.hidden_size)
    return vlm_lesson.VLM(vision, connector, language_model, tokenizer).eval(), train, val


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


def photographs_real(seed, profile):
    """Notebook 10's training on real parts: what it names, counts and finds beside its controls; answers unedited."""
    parts, stages = real.real_parts(), photographs.STAGES
    if profile.name == "smoke":
        parts, stages = real.small_parts(), {k: {**v, "steps": 2} for k, v in stages.items()}
    data = {split: parts.encoded(split) for split in cutouts.SPLITS}
    model = photographs.build_vlm(parts, seed)
    histories = photographs.train_photographs(model, data["train"], stages, seed)
    found, answers = photographs.ask_all(model, data)
    figures = {f"{name}, {k}": v for name, each in found.items() for k, v in vars(each).items()}
    figures |= {f"seconds, {name}": each.seconds[-1] for name, each in histories.items()}
    return histories["captions"], figures, photographs.twenty(data, answers)


CONNECTOR_RECIPE = (
    recipes.train_connector,
    recipes.exchange_batches,
    recipes.picture_exchanges,
    recipes.SHAPES_QFORMER,
)
# What a study runs of a notebook's saved cells counts with all that it calls, down to the world's version.
LLAVA_CODE = (
    llava.Projector,
    llava.plan,
    llava.run_stages,
    llava.evaluate,
    vlm_lesson.VLM,
    instructions.stage_talks,
    instructions.ask_fixed,
    pack,
    optim.MuonAdamW,
    optim.adamw,
    step_seed,
)
LESSON_CODE = {
    "clip_infonce": (
        clip_lesson.make_clip,
        clip_lesson.train_clip,
        clip_lesson.zero_shot,
        clip_lesson.recall_at_k,
        step_seed,
    ),
    "qformer_connector": (
        QFormerConnector,
        vlm_lesson.VLM,
        vlm_lesson.train_vlm,
        optim.MuonAdamW,
        step_seed,
    ),
    "qformer_queries": (
        QFormerConnector,
        vlm_lesson.VLM,
        vlm_lesson.train_vlm,
        optim.MuonAdamW,
        step_seed,
    ),
    "llava_stages": LLAVA_CODE,
    "llava_longer": LLAVA_CODE,
    "contrastive_variants": (
        variants.variants,
        variants.train_variant,
        variants.recall,
        variants.shape_accuracy,
        variants.near_duplicates,
        variants.near_copies,
        replaced_word,
        step_seed,
    ),
    "photographs_real": (
        photographs.train_photographs,
        photographs.ask_all,
        cutouts.make_world,
        cutouts.read_cutouts,
        real.real_parts,
        TimmVision,
        step_seed,
    ),
    "vit_positions": (
        vit.leftmost_task,
        vit.ViT,
        vit.small_cnn,
        vit.train_vit,
        vit.accuracy,
        step_seed,
    ),
}
FOLLOWED = (
    "vlm_lite.lessons",
    "vlm_lite.embed",
    "vlm_lite.models.vit",
    "vlm_lite.models.text",
    "vlm_lite.models.parts",
    "vlm_lite.distributed",
    "vlm_lite.data.cutouts",
)
# name: the study, the recipe that it depends on, the zoo models that it reads
STUDIES = {
    "clip_infonce": (clip_infonce, (), ()),
    "contrastive_variants": (contrastive_variants, (), ()),
    "qformer_connector": (qformer_connector, (), ("shapes-clip", "shapes-gpt2")),
    "qformer_queries": (qformer_queries, (qformer_connector,), ("shapes-clip", "shapes-gpt2")),
    "shapes_vlm": (
        shapes_vlm,
        (train_vlm, instructions.more_exchanges, *CONNECTOR_RECIPE),
        ("shapes-clip", "shapes-gpt2"),
    ),
    "llava_stages": (llava_stages, (llava_parts, _measured), ("shapes-clip", "shapes-gpt2")),
    "llava_longer": (
        llava_longer,
        (train_llava, llava_parts, _measured, LONGER),
        ("shapes-clip", "shapes-gpt2"),
    ),
    "photographs_real": (photographs_real, (photographs.STAGES,), ()),
    "vit_positions": (vit_positions, (), ()),
}
CONNECTOR_FIELDS = (
    "train_images",
    "val_images",
    "connector_batch_size",
    "connector_per_row",
    "connector_steps",
    "connector_lr",
    "num_query_tokens",
)
LLAVA_FIELDS = ("stage_images", "val_images", "stage_steps", "stage_batch_size")
CONTRASTIVE_FIELDS = (
    "image_size",
    "val_images",
    "contrastive_images",
    "contrastive_batch_size",
    "contrastive_steps",
)
FIELDS = {
    "clip_infonce": (*CONTRASTIVE_FIELDS, "contrastive_lr"),
    "contrastive_variants": CONTRASTIVE_FIELDS,
    "qformer_connector": CONNECTOR_FIELDS,
    "qformer_queries": CONNECTOR_FIELDS,
    "shapes_vlm": CONNECTOR_FIELDS,
    "llava_stages": LLAVA_FIELDS,
    "llava_longer": LLAVA_FIELDS,
    "photographs_real": (),
    "vit_positions": ("train_images", "val_images", "vit_batch_size", "vit_steps", "vit_lr"),
}


def study_hash(name):
    """A hash of all that the record of study `name` depends on: its source, the recipe's, the settings, the zoo."""
    function, recipe, models = _study(name)
    profile = dataclasses.asdict(PROFILES["tiny"])
    parts = [
        *(
            what_counts(inspect.getsource(part))
            if callable(part) or inspect.ismodule(part)
            else repr(part)
            for part in (function, *recipe)
        ),
        repr((shapes.VERSION, [profile[field] for field in FIELDS[name]])),
    ]
    if name in LESSON_CODE:
        parts.append(code_hash(*LESSON_CODE[name], follow=FOLLOWED))
    digest = hashlib.sha256("\n".join(parts).encode())
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
        "settings": {field: getattr(profile, field) for field in FIELDS[name]},
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
    settings = [getattr(profile, field) for field in FIELDS[name]]
    mark = repr((stamp, settings, seed, get_compute().hardware, torch.__version__))
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
