"""LLaVA's projector, conversations with labels, LoRA, and training in stages with one evaluation.

Generated from notebooks/04_llava_projection.py by `make notebooks`: edit the notebook.
"""

import copy
import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import get_cosine_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

from vlm_lite.checkpoint import Checkpoint, digest
from vlm_lite.encoded import probe, vqa
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain
from vlm_lite.lessons import instructions
from vlm_lite.lessons.language import CAPTION_PROMPT, short_prompt
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.text import pack
from vlm_lite.optim import MuonAdamW, adamw
from vlm_lite.profiles import get_compute


def mlp_projector(features, w1, b1, w2, b2):
    """features (B, N, Dv); w1 (D, Dv), b1 (D,), w2 (D, D), b2 (D,), as nn.Linear keeps them -> (B, N, D)."""
    return F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)


class Projector(nn.Module):
    """features (B, N, Dv) -> prefix (B, N, D_lm): LLaVA-1.5's two layers, the same for each patch."""

    def __init__(self, vision_width, language_width):
        super().__init__()
        self.first = nn.Linear(vision_width, language_width)
        self.second = nn.Linear(language_width, language_width)

    def forward(self, features):
        return mlp_projector(features, *self.first.parameters(), *self.second.parameters())


def insert_image(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (T, D) of input_ids (T,), image_embeds (N, D) -> (T-1+N, D): the vectors where `image_id` stood."""
    place = int((input_ids == image_id).nonzero()[0, 0])
    return torch.cat([token_embeds[:place], image_embeds, token_embeds[place + 1 :]])


def chat_text(messages, eos):
    """[{"role": "user" or "assistant", "content": text}, ...] -> one string, open for the assistant after a user's turn."""
    parts = []
    for message in messages:
        end = [eos] if message["role"] == "assistant" else []
        parts += [f"<{message['role']}>", message["content"], *end]
    return " ".join([*parts, "<assistant>"] if messages[-1]["role"] == "user" else parts)


def conversation_labels(turns, eos):
    """[(prompt ids, answer ids), ...] -> (ids, labels), two lists: -100 on prompts; answers and their EOS count."""
    ids, labels = [], []
    for prompt, answer in turns:
        ids += prompt + answer + [eos]
        labels += [-100] * len(prompt) + answer + [eos]
    return ids, labels


def lora_linear(x, weight, bias, a, b, alpha):
    """x (B, T, D_in), Conv1D's weight (D_in, D_out) and bias (D_out,), a (r, D_in), b (D_out, r) -> (B, T, D_out)."""
    return x @ weight + bias + alpha / len(a) * (x @ a.T @ b.T)


class LoRA(nn.Module):
    """A frozen linear layer, `nn.Linear` or GPT-2's `Conv1D`, and a learnt change of low rank beside it."""

    def __init__(self, layer, rank=16):
        super().__init__()
        self.layer, self.alpha = layer, 2 * rank  # as LLaVA's
        width_in, width_out = self.weight().shape
        self.a = nn.Parameter(torch.empty(rank, width_in).uniform_(-1, 1) / width_in**0.5)
        self.b = nn.Parameter(torch.zeros(width_out, rank))

    def weight(self):  # (D_in, D_out)
        return self.layer.weight.T if isinstance(self.layer, nn.Linear) else self.layer.weight

    def forward(self, x):
        bias = 0 if self.layer.bias is None else self.layer.bias
        return lora_linear(x, self.weight(), bias, self.a, self.b, self.alpha)


def set_trainable(model, what):
    """Let the connector learn and, of the language model, nothing ("connector"), "LoRA" (added if need be) or "all"."""
    assert what in ("connector", "LoRA", "all"), f"{what!r}: expected connector, LoRA or all"
    model.connector.requires_grad_()
    parents = list(model.language_model.requires_grad_(what == "all").modules())
    if what == "LoRA" and not any(isinstance(each, LoRA) for each in parents):
        for parent in parents:
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
                    setattr(parent, name, LoRA(layer))
    for name, parameter in model.language_model.named_parameters():
        if what == "LoRA" and name.endswith((".a", ".b")):
            parameter.requires_grad_()


def train_stage(name, model, features, talks, *, trainable, optimizer, lr, steps, batch_size,
                per_row, seed=0):  # fmt: skip
    """Train on features (N, T, D) and N lists of conversations, `per_row` of them in a row -> History."""
    torch.manual_seed(seed)
    set_trainable(model, trainable)
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = {"Muon": MuonAdamW, "AdamW": adamw}[optimizer](model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"data": digest(talks), "lr": lr, "batch_size": batch_size, "per_row": per_row}
    code = (VLM, type(model.connector), LoRA, train_stage)
    run = Checkpoint(name, prepared, optimizer, scheduler, seed=seed, settings=settings, code=code)
    told = [k for k, each in enumerate(talks) if each]  # images of which something is said
    for _ in run.steps(steps):
        rows = random.sample(told, min(batch_size, len(told)))
        said = [random.sample(talks[k], min(per_row, len(talks[k]))) for k in rows]
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = features[rows[share]], *pack(model.tokenizer, said[share])
        batch = [part.to(accelerator.device) for part in batch]
        answers = (batch[3] != -100).sum().float()
        with accelerator.autocast():  # several processes: each counts for the answers it has
            loss = prepared(*batch) * answers / accelerator.reduce(answers, "mean")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=accelerator.reduce(loss.detach(), "mean"))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


FIELDS = "start", "data", "trainable", "optimizer", "lr", "steps", "batch_size", "per_row"


def plan(steps, batch_size):
    """The stages, {name: {field: value}}. Stage 1 takes Muon: with AdamW so few steps succeed with some seeds only."""
    (first, second, third), half = steps, batch_size // 2
    rows = {
        "captions": ("nothing", "captions", "connector", "Muon", 3e-2, first, batch_size, 1),
        "conversation": ("captions", "conversation", "LoRA", "AdamW", 2e-3, second, half, 1),
        "VQA": ("conversation", "VQA", "LoRA", "AdamW", 2e-3, third, half, 4),
        "mixed": ("captions", "mixed", "LoRA", "AdamW", 2e-3, second + third, half, 3),
    }
    return {name: dict(zip(FIELDS, row, strict=True)) for name, row in rows.items()}


def run_stages(model, features, talks, stages, seed=0):
    """Train each stage from the model that its `start` names -> ({stage: model}, {stage: History})."""
    models, histories = {"nothing": model.eval()}, {}
    for name, stage in stages.items():
        stage = dict(stage)
        models[name] = copy.deepcopy(models[stage.pop("start")])
        settings = models[name], features, talks[stage.pop("data")]
        histories[name] = train_stage(f"{name}, seed {seed}", *settings, **stage, seed=seed)
        models[name].eval()
    return models, histories


@torch.no_grad()
def evaluate(model, data, images=100, questions=300):
    """{metric: Interval}, 95%, on held-out images: captions, VQA, instructions, four controls, and the loss on text."""
    count = min(images, len(data.ids))
    said = model.generate(data.features[:count].float(), [CAPTION_PROMPT] * count, 48)
    texts = dict(enumerate(data.captions[:count])), dict(enumerate(said))
    cider = caption_scores(*texts, metrics=("CIDEr",), each=True)["CIDEr_each"]
    own, other = instructions.concreteness(said, data.descriptions[:count])
    form, following = instructions.ask_instructions(model, data, count)
    short = probe(model, data, questions, prompt=short_prompt)
    brief = vqa(model, data, questions, instructions.brief_prompt)
    text = [pack(model.tokenizer, [[row]]) for row in instructions.reading_rows(40)]
    samples = {
        "CIDEr": cider, "VQA": short.scores["vlm"], "VQA, one word": brief,
        "form": form, "following": following, "text loss": [float(model(None, *t)) for t in text],
    }  # fmt: skip
    pairs = {name: (short.scores["vlm"], short.scores[name]) for name in ("blind", "shuffled")}
    pairs |= {"hidden": (short.scores["vlm"], short.scores["blank"]), "concrete": (own, other)}
    found = {name: bootstrap_interval(values) for name, values in samples.items()}
    return found | {name: multimodal_gain(*pair) for name, pair in pairs.items()}
