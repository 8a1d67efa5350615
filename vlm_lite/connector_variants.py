"""The recorded study of the nerve: one thing is changed at a time, and every row is trained from the same start.

The base is notebook 03's Q-Former, with half as many queries. The rows change how many vectors reach the brain and by
what connector, what the nerve reads, whether BLIP-2's first stage goes before, and whether the brain learns too. Every
row takes 100 steps, at the learning rate of its optimiser: what is compared is what a short training buys.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from einops import reduce
from torch import nn

from vlm_lite import recipes, stages
from vlm_lite.data import language, shapes
from vlm_lite.data.language import CAPTION_PROMPT
from vlm_lite.data.scenes import any_scene
from vlm_lite.evals.captions import caption_scores
from vlm_lite.models.blip2 import QFormerStage1

STEPS = 100
SIZES = {
    "questions": 600,
    "pictures": 150,
    "texts": 80,
}  # to answer, to caption, and to read for the perplexity


@dataclass(frozen=True)
class Variant:
    """One row: `tokens` vectors from `connector`; `reads` and `tune` as in `stages`; BLIP-2's first stage or not.

    The brain itself is tuned with AdamW: Muon's large steps are for a nerve that starts from nothing.
    """

    connector: str = "qformer"
    tokens: int = 8
    reads: str = "captions and questions"
    tune: str = "frozen"
    stage1: bool = False
    optimizer: str = "muon"


BASE = "Q-Former 8"
VARIANTS = {
    **{f"Q-Former {n}": Variant(tokens=n) for n in (1, 4, 8, 16, 32)},
    **{f"{name} {n}": Variant(name.lower(), n) for name in ("linear", "MLP") for n in (1, 4, 16)},
    f"{BASE}, stage 1 first": Variant(stage1=True),
    f"{BASE}, captions only": Variant(reads="captions"),
    f"{BASE}, AdamW": Variant(optimizer="adamw"),
    f"{BASE}, AdamW, LoRA": Variant(optimizer="adamw", tune="lora"),
    f"{BASE}, AdamW, full tuning": Variant(optimizer="adamw", tune="full"),
}


class Pooled(nn.Module):
    """A connector that reads the mean of each block of `block` x `block` patches: (B, N, Dv) -> (B, N / block², D)."""

    def __init__(self, connector, block):
        super().__init__()
        self.connector, self.block = connector, block

    def forward(self, image_embeds):
        side = math.isqrt(image_embeds.shape[1]) // self.block
        return self.connector(
            reduce(
                image_embeds,
                "b (row i column j) d -> b (row column) d",
                "mean",
                row=side,
                column=side,
                i=self.block,
                j=self.block,
            )
        )


def connector_variants(seed, profile):
    """Notebook 03's question: which connector, with how many vectors, taught how? Every row of `VARIANTS`."""
    figures, histories = {}, {}
    for row in VARIANTS:
        histories[row], found = train_variant(row, seed, profile)
        figures |= {f"{row}: {name}": value for name, value in found.items()}
    return histories[BASE], figures


def train_variant(row, seed, profile):
    """(History, figures) of one row, from the weights of `seed`."""
    variant, (features, captions, said, held_out) = VARIANTS[row], _world(profile)
    vlm = new_vlm(variant, seed)
    seconds, steps = 0.0, min(STEPS, profile.connector_steps)
    if variant.stage1:
        stage1 = QFormerStage1(vlm.connector, vocab_size=len(vlm.tokenizer))
        seconds += recipes.train_stage1(
            stage1,
            features,
            captions,
            vlm.tokenizer,
            steps=2 * steps,
            batch_size=profile.stage_batch_size,
            seed=seed,
            description=f"{row}, seed {seed}: stage 1",
        ).seconds[-1]
    texts = {"captions and questions": said, "captions": [pairs[:1] for pairs in said]}[
        variant.reads
    ]
    lr = profile.connector_lr * (1.0 if variant.optimizer == "muon" else 0.1)
    stage = stages.Stage(row, variant.reads, steps, lr, variant.tune, profile.stage_batch_size)
    history = stages.train_stage(
        vlm,
        features,
        texts,
        stage,
        seed=seed,
        weight_decay=0.01,
        optimizer=variant.optimizer,
        description=f"{row}, seed {seed}",
    )
    return history, {
        **scores(vlm.eval(), held_out, bridge=variant.tune == "frozen"),
        "parameters": sum(p.numel() for p in vlm.parameters() if p.requires_grad),
        "seconds a step": history.seconds[-1] / stage.steps,
        "seconds": seconds + history.seconds[-1],
    }


def new_vlm(variant, seed=0):
    """The untrained VLM of a row. A pooled connector is given all patches, and takes their mean block by block."""
    if variant.connector == "qformer":
        return recipes.new_vlm("qformer", seed=seed, num_query_tokens=variant.tokens)
    vlm = recipes.new_vlm(variant.connector, seed=seed)
    patches = (vlm.vision.image_size // vlm.vision.patch_size) ** 2
    if variant.tokens < patches:
        vlm.connector = Pooled(vlm.connector, math.isqrt(patches // variant.tokens))
    return vlm


def scores(vlm, held_out, *, bridge=True):
    """VQA accuracy under each condition, CIDEr, the bridge score where it is defined, and the brain's perplexity.

    The perplexity is that of scenes in words, questions and answers: what the brain still knows of its own work.
    `bridge`: whether the brain is the one that the other rows have.
    """
    captions, questions = held_out
    result = recipes.probe(vlm, captions, questions, limit=SIZES["questions"])
    few = captions.select(range(min(SIZES["pictures"], len(captions))))
    images, references, _ = recipes.load_pictures(few)
    said = vlm.generate(
        recipes.picture_features(vlm.vision, images, progress=False).float(),
        [CAPTION_PROMPT] * len(images),
        max_new_tokens=48,
    )
    texts = [
        language.document(any_scene, np.random.default_rng([9, k]), exchanges=5)
        for k in range(SIZES["texts"])
    ]
    found = {
        f"VQA {name}": score.value for name, score in result.accuracy.items() if name != "blank"
    }
    if bridge and result.bridge.value is not None:
        found["bridge score"] = result.bridge.value
    cider = caption_scores(dict(enumerate(references)), dict(enumerate(said)), metrics=("CIDEr",))[
        "CIDEr"
    ]
    return found | {"CIDEr": cider, "perplexity": stages.perplexity(vlm, texts)}


@functools.lru_cache(1)
def _world(profile):
    """What every row reads: features, captions, exchanges (captions first) to train on; the held-out tables."""
    captions, questions = shapes.load_shapes("train", profile.train_images)
    images, texts, ids = recipes.load_pictures(captions)
    said = recipes.picture_exchanges(captions, questions)
    features = recipes.picture_features(new_vlm(Variant("linear", 16)).vision, images)
    return features, texts, [said[i] for i in ids], shapes.load_shapes("val", profile.val_images)
