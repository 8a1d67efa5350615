"""LLaVA's projector, conversations with labels, LoRA, and training in stages with one evaluation.

Generated from notebooks/04_llava_projection.py by `make notebooks`: edit the notebook.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlm_lite.data import instructions
from vlm_lite.data.language import CAPTION_PROMPT, chat_prompt, short_prompt
from vlm_lite.encoded import probe
from vlm_lite.evals.captions import caption_scores
from vlm_lite.evals.probes import bootstrap_interval, multimodal_gain
from vlm_lite.lessons.vlm import build_batch, train_vlm
from vlm_lite.optim import MuonAdamW


def select_features(hidden_states):
    """A ViT's hidden states, L + 1 tensors (B, 1+N, D), class token first -> the patches that LLaVA takes, (B, N, D)."""
    return hidden_states[-2][:, 1:]


def mlp_projector(features, w1, b1, w2, b2):
    """features (B, N, Dv); w1 (D, Dv), b1 (D,), w2 (D, D), b2 (D,), as nn.Linear keeps them -> (B, N, D)."""
    return F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2)


class Projector(nn.Module):
    """features (B, N, Dv) -> prefix (B, N, D_lm), a vector for each patch; kind "linear" (LLaVA) or "mlp" (LLaVA-1.5)."""

    def __init__(self, vision_width, language_width, kind="mlp"):
        super().__init__()
        assert kind in ("linear", "mlp"), f"kind is {kind!r}; expected linear or mlp"
        self.settings = {
            "vision_width": vision_width,
            "language_width": language_width,
            "kind": kind,
        }
        self.first = nn.Linear(vision_width, language_width)
        self.second = nn.Linear(language_width, language_width) if kind == "mlp" else None

    def forward(self, features):
        if self.second is None:
            return self.first(features)
        return mlp_projector(features, *self.first.parameters(), *self.second.parameters())


def insert_image(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (T, D) of input_ids (T,), image_embeds (N, D) -> (T-1+N, D): the vectors where `image_id` stood."""
    place = int((input_ids == image_id).nonzero()[0, 0])
    return torch.cat([token_embeds[:place], image_embeds, token_embeds[place + 1 :]])


def chat_text(messages, eos):
    """[{"role": "user" or "assistant", "content": text}, ...] -> one string, open for the assistant after a user's turn."""
    parts = []
    for message in messages:
        parts += [f"<{message['role']}>", message["content"]]
        if message["role"] == "assistant":
            parts.append(eos)
    if messages[-1]["role"] == "user":
        parts.append("<assistant>")
    return " ".join(parts)


def conversation_labels(turns, eos):
    """[(prompt ids, answer ids), ...] -> (ids, labels), two lists: -100 on prompts; answers and their EOS count."""
    ids, labels = [], []
    for prompt, answer in turns:
        ids += prompt + answer + [eos]
        labels += [-100] * len(prompt) + answer + [eos]
    return ids, labels


def writer_prompt(captions, description, examples):
    """What a text-only writer gets: instructions, examples [(context, reply), ...], and this image's captions and boxes."""
    parts = [
        "You see one image through captions and boxes. Write a conversation about it. Say only what they say."
    ]
    for context, reply in [*examples, ("\n".join([*captions, f"boxes: {description}"]), "")]:
        parts += [f"context:\n{context}", f"conversation:\n{reply}"]
    return "\n\n".join(parts)


def llava_record(image_id, messages):
    """Messages [{"role", "content"}, ...] as a record of LLaVA-Instruct-150K; <image> stands in the first turn."""
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": str(image_id), "image": f"{image_id}.png", "conversations": said}


def lora_linear(x, weight, bias, a, b, alpha):
    """x (B, T, D_in), Conv1D's weight (D_in, D_out) and bias (D_out,), a (r, D_in), b (D_out, r) -> (B, T, D_out)."""
    return x @ weight + bias + alpha / len(a) * (x @ a.T @ b.T)


class LoRA(nn.Module):
    """A frozen linear layer, `nn.Linear` or GPT-2's `Conv1D`, and a learnt change of low rank beside it."""

    def __init__(self, layer, rank=16, alpha=32):
        super().__init__()
        self.layer, self.alpha, self.is_linear = layer, alpha, isinstance(layer, nn.Linear)
        width_in, width_out = layer.weight.T.shape if self.is_linear else layer.weight.shape
        self.a = nn.Parameter(
            nn.init.kaiming_uniform_(layer.weight.new_empty(rank, width_in), 5**0.5)
        )
        self.b = nn.Parameter(layer.weight.new_zeros(width_out, rank))

    def forward(self, x):
        weight = self.layer.weight.T if self.is_linear else self.layer.weight
        bias = 0 if self.layer.bias is None else self.layer.bias
        return lora_linear(x, weight, bias, self.a, self.b, self.alpha)


def set_trainable(model, what):
    """Let the connector learn and, of the language model, nothing ("connector"), "LoRA" (added if need be) or "all"."""
    assert what in ("connector", "LoRA", "all"), f"{what!r}: expected connector, LoRA or all"
    language_model = model.language_model.requires_grad_(what == "all")
    found = [each for each in language_model.modules() if isinstance(each, LoRA)]
    if what == "LoRA" and not found:
        for parent in list(language_model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
                    found.append(LoRA(layer))
                    setattr(parent, name, found[-1])
    for each in found if what == "LoRA" else []:
        each.a.requires_grad_()
        each.b.requires_grad_()
    model.connector.requires_grad_()


def brief_prompt(question):
    """A question with LLaVA-1.5's response-format prompt, in this vocabulary."""
    return chat_prompt(f"{question} {instructions.ONE_WORD}")


def stage_turns(data, descriptions, seed=0):
    """What each stage reads of an EncodedDataset: name -> N lists of turns (3 N where mixed: one kind a row)."""
    captions = [turns[:1] for turns in data.turns]
    talks = [
        instructions.as_pairs(instructions.conversation(text, np.random.default_rng([seed, 2, k])))
        for k, text in enumerate(descriptions)
    ]
    asked = [[] for _ in data.ids]
    number = {image_id: k for k, image_id in enumerate(data.ids)}
    columns = (data.questions[name][:] for name in ("image_id", "question", "answer"))
    for image_id, question, answer in zip(*columns, strict=True):
        if len(asked[number[image_id]]) < 6:  # a row has to fit into the context
            asked[number[image_id]].append((brief_prompt(question), answer))
    vqa = [turns[1:] for turns in data.turns]
    return {
        "captions": captions,
        "conversation": talks,
        "VQA": vqa,
        "mixed": talks + captions + asked,
    }


def adamw(model, lr):
    """LLaVA's optimizer, for what is trainable; no weight decay."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0
    )


def plan(steps, batch_size):
    """The stages, one row each. Stage 1 takes Muon: in so few steps AdamW aligns the projector with some seeds only."""
    first, second, third = steps
    half = max(1, batch_size // 2)
    rows = [
        ("captions", "connector", 3e-2, first, batch_size, None, MuonAdamW),
        ("conversation", "LoRA", 1e-3, second, half, None, adamw),
        ("VQA", "LoRA", 1e-3, third, half, 4, adamw),
        ("mixed", "LoRA", 1e-3, second + third, half, None, adamw),
    ]
    names = "data", "trainable", "lr", "steps", "batch_size", "per_row", "make_optimizer"
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def train_stage(model, features, turns, stage, seed=0):
    """One stage of `plan` on features (N, T, D) and turns of `stage_turns` -> History."""
    settings = dict(stage)
    set_trainable(model, settings.pop("trainable"))
    said = turns[settings.pop("data")]
    features = features.repeat(len(said) // len(features), 1, 1)  # three rows an image where mixed
    return train_vlm(model, features, said, seed=seed, **settings)


def evaluate(model, data, descriptions, *, count=100, questions=300, ask=short_prompt, seed=0):
    """{metric: Interval}: CIDEr, VQA, form, following, and four controls that are 0 for a model that does not look."""
    count = min(count, len(data.ids))
    said = model.generate(data.features[:count].float(), [CAPTION_PROMPT] * count, 48)
    references, replies = dict(enumerate(data.captions[:count])), dict(enumerate(said))
    cider = caption_scores(references, replies, metrics=("CIDEr",), each=True)["CIDEr_each"]
    scenes = [instructions.read_boxes(text) for text in descriptions[:count]]
    names = [
        [f"handwritten {x.value}" if x.is_digit else f"{x.colour} {x.shape}" for x in scene.items]
        for scene in scenes
    ]
    own, other = (
        [
            np.mean([name in text for name in there])
            for text, there in zip(texts, names, strict=True)
        ]
        for texts in (said, said[1:] + said[:1])
    )
    asked = instructions.instruction_set({"description": descriptions}, count, seed)
    seen = data.features[[row for row, *_ in asked]].float()
    replies = model.generate(seen, [chat_prompt(text) for _, text, *_ in asked], 64)
    pairs = list(zip(replies, asked, strict=True))
    result = probe(model, data, questions, prompt=ask)
    vqa = result.scores["vlm"]
    return {
        "CIDEr": bootstrap_interval(cider),
        "VQA": result.accuracy["vlm"],
        "form": bootstrap_interval([float(instructions.has_form(r, a[3])) for r, a in pairs]),
        "following": bootstrap_interval([instructions.follows(r, a[2], a[3]) for r, a in pairs]),
        "blind": result.gain,
        "shuffled": multimodal_gain(vqa, result.scores["shuffled"]),
        "hidden": multimodal_gain(vqa, result.scores["blank"]),
        "concrete": multimodal_gain(own, other),
    }


def run_stages(model, train, val, descriptions, steps, batch_size, seed=0, on_stage=None):
    """Train and evaluate stages 1 to 3, and mixed from stage 1 -> (scores, histories, models), each by stage."""
    turns, stages = stage_turns(train, descriptions["train"], seed), plan(steps, batch_size)
    scores, histories, models = {}, {}, {"nothing trained": model}
    starts = {
        "captions": "nothing trained",
        "conversation": "captions",
        "VQA": "conversation",
        "mixed": "captions",
    }
    for number, name in enumerate(["nothing trained", *stages]):
        if name in stages:
            models[name] = copy.deepcopy(models[starts[name]])
            histories[name] = train_stage(
                models[name], train.features, turns, stages[name], seed=10 * seed + number
            )
        ask = brief_prompt if name == "mixed" else short_prompt
        scores[name] = evaluate(models[name].eval(), val, descriptions["val"], ask=ask)
        if on_stage:
            on_stage(name, scores[name])
    return scores, histories, models


def prompt_truth(prompt, description, captions):
    """(truth, reply -> bool) of a prompt of comparison.json about an image."""
    scene = instructions.read_boxes(description)
    said = {form: reply for _, reply, form in instructions.turns(scene, np.random.default_rng(0))}
    form = next(
        (f for f, word in (("detail", "in detail"), ("list", "list")) if word in prompt), None
    )
    if form:
        return said[form], lambda reply: bool(instructions.follows(reply, said[form], form))
    if prompt == CAPTION_PROMPT:
        right = [instructions.facts(text) for text in captions]
        return captions[0], lambda reply: instructions.facts(reply) in right
    truth = (
        str(len(scene.shapes)) if "how many shapes" in prompt else "yes" if scene.digit else "no"
    )
    return truth, lambda reply: instructions.facts(reply) == instructions.facts(truth)


@torch.no_grad()
def perplexity(model, texts):
    """exp of the mean loss (nats a token) on the answers of texts [(context, [(prompt, answer), ...]), ...], no image."""
    rows = [
        [(f"{context} {turns[0][0]}".strip(), turns[0][1]), *turns[1:]] for context, turns in texts
    ]
    return math.exp(model(None, *build_batch(model.tokenizer, rows)))
