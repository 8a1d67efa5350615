"""LLaVA's training in stages (Liu et al. 2023, section 4.2), with the same evaluation after every one.

    stage 0   nothing trained
    stage 1   captions       the connector alone
    stage 2   instructions   the connector and, by LoRA, the language model
    stage 3   VQA            likewise

`run_stages` is resumable: every stage keeps a checkpoint of its own, and a run that was killed goes on, at any moment,
to the same weights. Launched by torchrun as several processes it shares out each batch among them.
"""

import contextlib
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from vlm_lite import recipes
from vlm_lite.data import instructions
from vlm_lite.data.language import CAPTION_PROMPT, short_prompt
from vlm_lite.data.scenes import BACKGROUND
from vlm_lite.data.shapes import load_shapes
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain, run_probes
from vlm_lite.features import weights_hash
from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.models.text import IGNORE, build_text_batch
from vlm_lite.profiles import get_compute
from vlm_lite.train import train

TUNE = ("frozen", "lora", "full")
CHECKS = (
    "swap",
    "hide",
    "concrete",
    "sees",
)  # each is 0 for a model that does not look: see `evaluate`


@dataclass(frozen=True)
class Stage:
    """One training: `data` names the text ("captions", "instructions", "vqa"), `tune` what the language model does.

    A step has `batch_size` pictures (over all processes), and of each up to `per_row` exchanges. optimizer: what
    `run_stages` hands on to `train.train`; whoever calls `train_stage` gives it there.
    """

    name: str
    data: str
    steps: int
    lr: float
    tune: str = "frozen"
    batch_size: int = 64
    per_row: int = 6
    optimizer: str = "adamw"


def llava_plan(steps=(120, 60, 100), batch_size=64, lr=3e-2, lora_lr=1e-3, optimizer="muon"):
    """LLaVA's two stages, and VQA as the third; `lr` and `optimizer` are the connector's alone, `lora_lr` that of both.

    The later stages take half of `batch_size`, as LLaVA-1.5 does, and AdamW. The authors have AdamW in the first stage,
    too; in a hundred steps it gets hold of the captions with some seeds only.
    """
    first, second, third = steps
    return (
        Stage(
            "captions", "captions", first, lr, "frozen", batch_size, per_row=1, optimizer=optimizer
        ),
        Stage(
            "instructions",
            "instructions",
            second,
            lora_lr,
            "lora",
            max(1, batch_size // 2),
            per_row=1,
        ),
        Stage("VQA", "vqa", third, lora_lr, "lora", max(1, batch_size // 2)),
    )


class Pictures(NamedTuple):
    """N pictures: features (N, T, Dv) of the frozen eye, their image ids, and the two tables of the common format."""

    features: torch.Tensor
    ids: list
    captions: object
    questions: object


def load_pictures(vision, split, count, **options):
    """Pictures of the Shapes world, encoded once (cached on disk)."""
    with PartialState().main_process_first():
        captions, questions = load_shapes(split, count, **options)
        images, _, ids = recipes.load_pictures(captions)
        return Pictures(
            recipes.picture_features(vision, images, **options), ids, captions, questions
        )


def stage_texts(pictures, *, seed=0, shuffled=0.0, ask=short_prompt):
    """What each stage reads: {"captions", "instructions", "vqa"} -> N lists of exchanges, a list for each picture.

    instructions: one conversation of several turns a picture, made from its description. shuffled: the share of the
    pictures whose captions are exchanged among one another, as carelessly gathered data are. ask: question -> prompt.
    """
    said = [[(CAPTION_PROMPT, texts[0])] for texts in pictures.captions["captions"][:]]
    rng = np.random.default_rng([seed, 1])
    moved = rng.permutation(len(said))[: round(shuffled * len(said))]
    for row, text in zip(moved, [said[k] for k in np.roll(moved, 1)], strict=True):
        said[row] = text
    asked = {image_id: [] for image_id in pictures.ids}
    columns = (pictures.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        recipes.check_answer(image_id, question, answer)
        asked[image_id].append((ask(question), answer))
    talks = [
        [
            instructions.as_pairs(
                instructions.conversation(text, np.random.default_rng([seed, 2, k]))
            )
        ]
        for k, text in enumerate(pictures.captions["description"][:])
    ]
    return {"captions": said, "instructions": talks, "vqa": list(asked.values())}


def add_lora(language_model, rank=16):
    """Put LoRA's low-rank matrices (Hu et al. 2021) beside every linear map; they start by adding nothing.

    GPT-2 keeps its weights in `Conv1D`, transposed, which `peft` must be told (`fan_in_fan_out`).
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    is_gpt2 = any(isinstance(module, Conv1D) for module in language_model.modules())
    targets = ["c_attn", "c_proj", "c_fc"] if is_gpt2 else "all-linear"
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=is_gpt2),
        language_model,
    )
    for module in language_model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = (
                False  # autocast does it: no detour of every input through fp32
            )


def set_trainable(vlm, tune, seed=0):
    """Let the connector learn, and of the language model nothing, LoRA's matrices (added if need be) or everything."""
    if tune not in TUNE:
        raise UserError(f"tune is {tune!r}; expected one of {', '.join(TUNE)}.")
    language_model = vlm.language_model
    if tune == "lora" and not any("lora_" in name for name, _ in language_model.named_parameters()):
        torch.manual_seed(seed)
        add_lora(language_model)
    for name, parameter in language_model.named_parameters():
        parameter.requires_grad_(tune == "full" or (tune == "lora" and "lora_" in name))
    vlm.connector.requires_grad_(True)


def shard(batch, rank, processes):
    """This process's rows of a batch, and the weight that makes the mean of all losses that of the whole batch."""
    labels, own = batch[-1], slice(rank, None, processes)
    weight = processes * int((labels[own] != IGNORE).sum()) / int((labels != IGNORE).sum())
    return tuple(part[own] for part in batch), weight


@contextlib.contextmanager
def halved(module, dtype):
    """Within the block what does not learn is kept in `dtype`: autocast would turn it over at every step."""
    kept = [
        (parameter, parameter.data)
        for parameter in module.parameters()
        if not parameter.requires_grad
    ]
    for parameter, value in kept:
        parameter.data = value.to(dtype)
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.data = value.to(parameter.device)


def train_stage(vlm, features, texts, stage, *, seed=0, compute=None, **options):
    """Train one stage; a History. `texts`: N lists of exchanges. `options` go to `train.train` (checkpoint, ...)."""
    set_trainable(vlm, stage.tune, seed)
    compute = compute or get_compute()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        compute.mixed_precision, torch.float32
    )
    begins = weights_hash(vlm.connector), weights_hash(vlm.language_model)
    with halved(vlm.language_model, half):
        return train(
            vlm,
            recipes.exchange_batches(
                features, texts, vlm.tokenizer, stage.batch_size, stage.per_row
            ),
            lambda model, batch: model(*batch).loss,
            steps=stage.steps,
            lr=stage.lr,
            seed=seed,
            shard=shard,
            compute=compute,
            settings={**asdict(stage), "images": len(features), "begins": begins},
            **{"weight_decay": 0.0, "description": stage.name, **options},
        )


def run_stages(
    vlm,
    pictures,
    held_out,
    plan=None,
    *,
    texts=None,
    folder=None,
    seed=0,
    measure=None,
    on_stage=None,
    **options,
):
    """Evaluate, then train and evaluate stage after stage: [(name, scores), ...], "nothing trained" first.

    pictures, held_out: Pictures to train on and to evaluate with; texts: default `stage_texts(pictures)`; measure:
    function `vlm -> scores`, default `evaluate` on held_out; on_stage: function `(name, scores, history or None)`.
    folder: where checkpoints and scores are kept; the same call goes on from there, from any moment, and ends with the
    same weights bit for bit (on the same device and precision). `options` go to `train_stage`.
    """
    plan, texts = plan or llava_plan(), texts or stage_texts(pictures, seed=seed)
    measure, found = measure or (lambda vlm: evaluate(vlm, held_out)), []
    for number, stage in enumerate((None, *plan)):
        history = None
        if stage is not None:
            checkpoint = None if folder is None else f"{folder}/stage-{number}"
            history = train_stage(
                vlm,
                pictures.features,
                texts[stage.data],
                stage,
                seed=seed,
                checkpoint=checkpoint,
                **{"optimizer": stage.optimizer, **options},
            )
        scores = _measured(
            vlm, measure, None if folder is None else f"{folder}/stage-{number}.json"
        )
        found.append((stage.name if stage else "nothing trained", scores))
        if on_stage is not None:
            on_stage(*found[-1], history)
    return found


def _measured(vlm, measure, path):
    """The scores of these very weights: from `path` where they were kept, else measured, by one process for all."""
    if path is None:
        return measure(vlm)
    state, weights = PartialState(), weights_hash(vlm)
    with state.main_process_first():
        try:
            kept = read_json(path)
        except UserError:  # not there yet
            kept = {}
        if kept.get("weights") != weights:
            kept = {"weights": weights, "scores": measure(vlm)}
            if state.is_main_process:
                write_json(path, kept)
    return kept["scores"]


# ---------------------------------------------------------------- the same evaluation after every stage


def evaluate(vlm, held_out, *, pictures=200, questions=400, orders=200, seed=0):
    """{name: [value, low, high]} with 95% bootstrap intervals: what a stage bought.

    CIDEr of captions; "VQA" accuracy, and by type ("VQA colour", ...), and "blind"; "form": the share of
    instructions answered in the form asked for (and by form, "form list", ...); "following": in that form and with the
    right facts (`instructions.follows`). Then CHECKS, each a difference that is 0 for a model which does not look:
    "swap" and "hide" are VQA accuracy less that with another and with an empty picture, "sees" less the blind model's;
    "concrete" is the share of a picture's things that its caption names, less what another picture's caption names.
    """
    count = min(pictures, len(held_out.ids))
    said = vlm.generate(
        held_out.features[:count].float(), [CAPTION_PROMPT] * count, max_new_tokens=48
    )
    references = dict(enumerate(held_out.captions["captions"][:count]))
    cider = caption_scores(references, dict(enumerate(said)), metrics=("CIDEr",), each=True)[
        "CIDEr_each"
    ]
    things = [_things(text) for text in held_out.captions["description"][:count]]
    own, other = (
        [
            sum(thing in text for thing in there) / len(there)
            for text, there in zip(texts, things, strict=True)
        ]
        for texts in (said, said[1:] + said[:1])
    )
    asked = instructions.instruction_set(held_out.captions, orders, seed)
    replies = vlm.generate(
        held_out.features[[row for row, *_ in asked]].float(),
        [instructions.chat_prompt(text) for _, text, *_ in asked],
        max_new_tokens=64,
    )
    form = [
        float(instructions.has_form(reply, kind))
        for reply, (*_, kind) in zip(replies, asked, strict=True)
    ]
    followed = [
        instructions.follows(reply, right, kind)
        for reply, (*_, right, kind) in zip(replies, asked, strict=True)
    ]
    rows = held_out.questions.select_columns(["question", "answers", "question_type", "image_id"])
    rows = [{**row, "description": None} for row in rows.select(range(min(questions, len(rows))))]
    size = vlm.vision.image_size
    empty = torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, size, size)
    result = run_probes(
        vlm,
        held_out.features,
        rows,
        image_ids=held_out.ids,
        seed=seed,
        blank_features=vlm.encode(recipes.pixel_values(empty))[0],
    )
    vqa = result.scores["vlm"]
    intervals = {
        "CIDEr": bootstrap_interval(cider),
        "VQA": result.accuracy["vlm"],
        **{f"VQA {kind}": part.accuracy["vlm"] for kind, part in result.by_type.items()},
        "blind": result.accuracy["blind"],
        "form": bootstrap_interval(form),
        "following": bootstrap_interval(followed),
        **{
            f"form {kind}": bootstrap_interval(np.array(form)[[row[3] == kind for row in asked]])
            for kind in sorted({row[3] for row in asked})
        },
        "swap": multimodal_gain(vqa, result.scores["shuffled"]),
        "hide": multimodal_gain(vqa, result.scores["blank"]),
        "concrete": multimodal_gain(own, other),
        "sees": result.gain,
    }
    return {
        name: [round(value, 4) for value in (each.value, each.low, each.high)]
        for name, each in intervals.items()
    }


def _things(description):
    return [
        f"{item.colour} {item.shape}" if not item.is_digit else f"handwritten {item.value}"
        for item in instructions.read_boxes(description).items
    ]


@torch.no_grad()
def perplexity(vlm, texts):
    """exp of the mean loss (nats a token) on the answers of `texts`, [(context or "", [(prompt, answer), ...]), ...].

    No picture: this is what the language model still knows of what it could do before.
    """
    rows = [
        [(f"{context} {prompt}".strip(), answer), *rest]
        for context, ((prompt, answer), *rest) in texts
    ]
    return vlm(None, **build_text_batch(vlm.tokenizer, rows)).loss.exp().item()
