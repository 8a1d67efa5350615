"""A connector between real pretrained models, its training on photographs, and its controls.

Generated from notebooks/10_photographs.py by `make notebooks`: edit the notebook.
"""

import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite import real
from vlm_lite.data.cutouts import HOW_MANY, NUMBERS, SPLITS
from vlm_lite.evals.probes import bootstrap_interval, run_probes
from vlm_lite.lessons.llava import Projector, run_stages
from vlm_lite.lessons.vlm import VLM


class PhotoConnector(nn.Module):
    """features (B, N, Dv) -> prefix (B, 1 + N, D_lm): the embedding `first` (D_lm,), then vectors of about its scale."""

    def __init__(self, vision_width, first, scale, num_tokens=4):
        super().__init__()
        self.norm, self.projector = nn.LayerNorm(vision_width), Projector(vision_width, len(first))
        self.position = nn.Parameter(torch.zeros(num_tokens, vision_width))
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.register_buffer("first", first)

    def forward(self, features):
        prefix = self.projector(self.norm(features) + self.position)  # (B, N, D_lm)
        prefix = self.scale * F.layer_norm(prefix, prefix.shape[-1:])
        return torch.cat([self.first.expand(len(prefix), 1, -1).to(prefix), prefix], dim=1)


def build_vlm(parts, seed=0):
    """03's VLM between the frozen models of `parts`, with a new connector."""
    torch.manual_seed(seed)
    words, tokenizer = parts.language_model.get_input_embeddings().weight.detach(), parts.tokenizer
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    sizes = words[begin].float().clone(), words.float().std().item(), parts.vision.side**2
    connector = PhotoConnector(parts.vision.feature_width, *sizes)
    return VLM(parts.vision, connector, parts.language_model, tokenizer).eval()


# What only frames an answer.
FRAME = re.compile(r"^(It is|There is|There are|The .* is(?= at the)) |\.$")


def ask(model, data, kinds=None):
    """Ask an EncodedDataset's questions in every control -> {"type: control": Interval}, and the model's answers."""
    rows = data.questions
    if kinds:
        rows = rows.filter(lambda row: row["question_type"] in kinds)
    empty = torch.full((1, *data.images.shape[1:]), 127, dtype=torch.uint8)
    blank = model.encode(model.vision.pixel_values(empty))[0]
    options = {"prompt": str, "batch_size": 64, "max_new_tokens": 16, "image_ids": data.ids}
    found = run_probes(model, data.features, rows, blank_features=blank, **options)
    pairs = zip(found.answers["oracle"], rows["answer"], strict=True)
    right = [FRAME.sub("", answer).lower() in said.lower() for said, answer in pairs]
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


ASKED = {"same": None, "another": ("what", "kind"), "new": ("what", "kind")}


def ask_all(models, data):
    """`ask` of each test -> {"test, type: control": Interval}, {test: {question_id: answer}}."""
    model = models["questions"]
    found = {split: ask(model, data[split], kinds) for split, kinds in ASKED.items()}
    found["same, captions alone"] = ask(models["captions"], data["same"], ("what",))
    named = {f"{test}, {k}": v for test, (scores, _) in found.items() for k, v in scores.items()}
    return named, {test: answers for test, (_, answers) in found.items()}


def twenty(data, answers):
    """Twenty questions, spread over the tests -> [[test, image's number, question, right answer, the model's], ...]."""
    shown = []
    for split, count in (("same", 8), ("another", 5), ("new", 7)):
        rows = [row for row in data[split].questions if row["question_type"] in ("what", "what at")]
        for row in rows[:: max(1, len(rows) // count)][:count]:
            said = answers[split][row["question_id"]]
            shown.append([split, row["image_id"], row["question"], row["answer"], said])
    return shown


FIRST = {"start": "nothing", "data": "captions", "trainable": "connector", "optimizer": "Muon"}
SECOND = {"start": "captions", "data": "questions", "trainable": "LoRA", "optimizer": "AdamW"}
STAGES = {
    "captions": FIRST | {"lr": 2e-2, "steps": 180, "batch_size": 16, "per_row": 1},
    "questions": SECOND | {"lr": 2e-3, "steps": 80, "batch_size": 8, "per_row": 3},
}


def stage_talks(data):
    """What is said of each image in each stage, as conversations of one turn: captions of images of one thing; all."""
    one = (HOW_MANY, NUMBERS[1])
    captions = [[each[:1]] if one in each else [] for each in data.turns]
    return {"captions": captions, "questions": [[[turn] for turn in each] for each in data.turns]}


def study(seed, profile):
    """Notebook 10's training on real parts: what it names, counts and finds beside its controls; answers unedited."""
    parts, stages = real.real_parts, STAGES
    if profile.name == "smoke":
        parts, stages = real.small_parts, {k: {**v, "steps": 2} for k, v in stages.items()}
    parts = parts()
    data = {split: parts.encoded(split) for split in SPLITS}
    features, talks = data["train"].features, stage_talks(data["train"])
    models, histories = run_stages(build_vlm(parts, seed), features, talks, stages, seed)
    found, answers = ask_all(models, data)
    ends = ("value", "low", "high")
    figures = {f"{n}, {end}": getattr(each, end) for n, each in found.items() for end in ends}
    figures |= {f"seconds, {name}": each.seconds[-1] for name, each in histories.items()}
    return histories["captions"], figures, twenty(data, answers)
