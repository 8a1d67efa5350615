"""A connector between real pretrained models, its training on photographs, and its controls.

Generated from notebooks/10_photographs.py by `make notebooks`: edit the notebook.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.checkpoint import digest
from vlm_lite.evals.probes import bootstrap_interval, run_probes
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.optim import adamw
from vlm_lite.real import train_once
from vlm_lite.source import code_hash


class PhotoConnector(nn.Module):
    """features (B, N, Dv) -> prefix (B, N, D_lm), of the scale of word_embeddings (V, D_lm)."""

    def __init__(self, vision_width, word_embeddings):
        super().__init__()
        width = word_embeddings.shape[1]
        self.norm, self.scale = nn.LayerNorm(vision_width), word_embeddings.std().item()
        self.first, self.second = nn.Linear(vision_width, width), nn.Linear(width, width)

    def forward(self, features):
        hidden = F.gelu(self.first(self.norm(features)))  # (B, N, D_lm)
        prefix = self.second(hidden)
        return self.scale * F.layer_norm(prefix, prefix.shape[-1:])


def build_vlm(parts, seed=0):
    """03's VLM between the frozen models of `parts`, with a new connector."""
    torch.manual_seed(seed)
    words = parts.language_model.get_input_embeddings().weight.detach()
    connector = PhotoConnector(parts.vision.feature_width, words)
    return VLM(parts.vision, connector, parts.language_model, parts.tokenizer).eval()


STAGES = {
    "captions": {"steps": 110, "batch_size": 16, "per_row": 1, "lr": 1.5e-3},
    "questions": {"steps": 100, "batch_size": 16, "per_row": 1, "lr": 1.5e-3},
}


def train_photographs(model, data, stages, seed=0):
    """Train the connector stage after stage -> {stage: History}. What a cut run has done is not done again."""
    histories, code = {}, code_hash(VLM, PhotoConnector, train_vlm, adamw)
    for name, settings in stages.items():
        turns = data.turns if name == "questions" else [each[:1] for each in data.turns]
        key = {"stages": stages, "stage": name, "seed": seed, "data": digest(turns), "code": code}

        def train(settings=settings, turns=turns):
            chosen = {**settings, "seed": seed, "make_optimizer": adamw}
            return train_vlm(model, data.features, turns, **chosen)

        histories[name] = train_once(key, model.connector, train)
    model.eval()
    return histories


def ask(model, data, kinds=None):
    """Ask an EncodedDataset's questions in every control -> {"type: control": Interval}, and the model's answers."""
    rows = data.questions
    if kinds:
        rows = rows.filter(lambda row: row["question_type"] in kinds)
    empty = torch.full((1, *data.images.shape[1:]), 127, dtype=torch.uint8)
    blank = model.vision.patch_features(empty)[0]
    options = {"prompt": str, "batch_size": 64, "max_new_tokens": 12, "image_ids": data.ids}
    found = run_probes(model, data.features, rows, blank_features=blank, **options)
    pairs = zip(found.answers["oracle"], rows["answer"], strict=True)
    right = [answer.rstrip(".").lower() in said.lower() for said, answer in pairs]
    scores = {**found.scores, "oracle": right}
    intervals, types, answers = {}, rows["question_type"][:], rows["answer"][:]
    for kind in dict.fromkeys(types):
        of_kind = [k for k, each in enumerate(types) if each == kind]
        times = Counter(answers[k] for k in of_kind)  # balanced: each right answer weighs the same
        share = {k: len(of_kind) / (len(times) * times[answers[k]]) for k in of_kind}
        for control, values in scores.items():
            intervals[f"{kind}: {control}"] = bootstrap_interval([values[k] for k in of_kind])
            if kind == "kind":
                balanced = [values[k] * share[k] for k in of_kind]
                intervals[f"kind, balanced: {control}"] = bootstrap_interval(balanced)
    return intervals, dict(zip(rows["question_id"][:], found.answers["vlm"], strict=True))


ASKED = {"same": None, "another": ("what", "kind", "where"), "new": ("what", "kind")}


def ask_all(model, data):
    """`ask` of each test -> {"test, type: control": Interval}, {test: {question_id: answer}}."""
    found = {split: ask(model, data[split], kinds) for split, kinds in ASKED.items()}
    named = {f"{split}, {k}": v for split, (scores, _) in found.items() for k, v in scores.items()}
    return named, {split: answers for split, (_, answers) in found.items()}
