"""Notebook 01's training with one thing changed at a time: temperature, batch, loss, captions; and what each is worth.

Every row starts from the same weights, keeps the learning rate and, unless its name says otherwise, sees as many
pictures. Half the notebook's steps and batch keep the rows apart: left running, many would meet near the ceiling.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F

from . import recipes
from .data import language, shapes
from .data.scenes import COLOURS
from .models.clip import info_nce, info_nce_hard, info_nce_shared, one_direction, siglip

BASE = "nothing changed"
VARIANTS = {  # name: what it changes, as keywords of `train_variant`
    BASE: {},
    "twice the steps": {"length": 2},
    **{
        f"temperature fixed at {temperature}": {"temperature": temperature}
        for temperature in (0.01, 0.07, 0.5)
    },
    "batch size ÷ 2": {"batch": 1 / 2},
    "batch size × 2": {"batch": 2},
    "batch size × 2, as many steps": {"batch": 2, "length": 2},
    "pictures choose, texts do not": {"loss": one_direction},
    "half the captions name colours only": {"coarse": True},
    "the same, equal captions right": {"coarse": True, "loss": info_nce_shared},
    "50% of captions exchanged": {"exchanged": 0.5},
    "50% exchanged, twice the steps": {"exchanged": 0.5, "length": 2},
    "none exchanged, 1/4 of the pictures": {"pictures": 1 / 4},
    "almost right captions as well": {"loss": info_nce_hard, "hard_negatives": True},
    "SigLIP's loss": {"loss": siglip},
    "SigLIP's loss, twice the steps": {"loss": siglip, "length": 2},
    "SigLIP's loss, bias −log(N − 1)": {"loss": siglip, "bias": None},
}


def clip_variants(seed, profile):
    """Notebook 01's training, half as long on half as many pictures a step, with one thing changed at a time."""
    tokenizer, steps = language.make_tokenizer(), max(1, profile.clip_steps // 2)
    images, captions, _ = recipes.load_pictures(
        shapes.load_shapes("train", profile.train_images)[0]
    )
    pictures, texts, _ = recipes.load_pictures(shapes.load_shapes("val", profile.val_images)[0])
    texts = [five[0] for five in texts]
    untrained = recipes.make_shapes_clip(tokenizer, seed=seed).eval()
    figures, histories = (
        {"modality gap before": modality_gap(untrained, pictures, texts, tokenizer)},
        {},
    )
    for name, changes in VARIANTS.items():
        model, histories[name] = train_variant(
            images,
            captions,
            tokenizer,
            steps=steps,
            batch_size=profile.clip_batch_size // 2,
            lr=profile.clip_lr,
            seed=seed,
            description=f"{name}, seed {seed}",
            **changes,
        )
        recall = recipes.clip_recall(model, pictures, texts, tokenizer)["image_to_text"]
        figures |= {f"{name}: R@{k}": recall[k] for k in (1, 5)}
        figures[f"{name}: tells apart"] = recipes.tells_apart(model, pictures, texts, tokenizer)
        figures[f"{name}: modality gap"] = modality_gap(model, pictures, texts, tokenizer)
        figures[f"{name}: temperature"] = float((-model.logit_scale.detach()).exp())
    return histories[BASE], figures


def train_variant(
    images,
    captions,
    tokenizer,
    *,
    steps,
    batch_size,
    seed,
    temperature=None,
    batch=1,
    length=1,
    pictures=1,
    exchanged=0,
    coarse=False,
    loss=info_nce,
    bias=-10.0,
    **options,
):
    """(model, History) of `recipes.train_clip` from the weights of `seed`, with something changed.

    temperature: held at this. batch: times the batch size, and as many fewer steps. length: times the steps. pictures,
    exchanged: the share of the pictures that is kept; that gets another's captions. coarse: half of the captions name a
    picture's colours and no more. bias: what SigLIP's starts from; its paper's -10 suits batches of thousands, None
    makes a pair as likely as it is in this batch, -log(N - 1). `options` go to `recipes.train_clip`.
    """
    model = recipes.make_shapes_clip(tokenizer, seed=seed)
    if temperature is not None:
        model.logit_scale.requires_grad_(False).fill_(-math.log(temperature))
    if loss is siglip:
        model.logit_bias = torch.nn.Parameter(
            torch.tensor(-math.log(batch_size * batch - 1) if bias is None else bias)
        )
        model.logit_scale.data.fill_(math.log(10))
    captions = exchange(captions[: round(pictures * len(captions))], exchanged, seed)
    if coarse:
        captions = [five + [only_colours(five[0])] * len(five) for five in captions]
    read = {}  # the token ids (B, T) that the text tower was given last
    model.text_model.register_forward_pre_hook(lambda tower, given: read.update(ids=given[0]))
    more = {
        siglip: lambda: [model.logit_bias],
        info_nce_shared: lambda: [equal_rows(read["ids"])],
    }.get(loss, list)
    history = recipes.train_clip(
        model,
        images[: len(captions)],
        captions,
        tokenizer,
        seed=seed,
        steps=max(1, round(steps * length / batch)),
        batch_size=round(batch_size * batch),
        loss=lambda *embeds_and_scale: loss(*embeds_and_scale, *more()),
        **options,
    )
    return model.eval(), history


def exchange(captions, share, seed):
    """The captions (a list for each picture), with those of a `share` of the pictures passed on among these."""
    said = list(captions)
    moved = np.random.default_rng([seed, 1]).permutation(len(said))[: round(share * len(said))]
    for row, other in zip(moved, np.roll(moved, 1), strict=True):
        said[row] = captions[other]
    return said


def only_colours(caption):
    """What is left of a caption when only the colours in it are told, by the alphabet: many pictures deserve it."""
    found = sorted(set(re.findall(rf"\b({'|'.join(COLOURS)})\b", caption)))
    return f"{' and '.join(found)}." if found else "a digit."


def equal_rows(ids):
    """ids (B, T) -> bool (B, B): which texts are the same."""
    return (ids[:, None] == ids[None]).all(dim=-1)


def modality_gap(model, pictures, texts, tokenizer):
    """The distance of the mean unit embeddings of pictures and of texts, in 0..2 (Liang et al. 2022, section 2)."""
    u, v = (
        F.normalize(embeds, dim=-1).mean(dim=0)
        for embeds in (
            recipes.embed_images(model, pictures),
            recipes.embed_texts(model, texts, tokenizer),
        )
    )  # (P,)
    return (u - v).norm().item()
