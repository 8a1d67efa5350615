"""Other losses, noise, hard negatives, scaling, and a search for near-duplicates.

Generated from notebooks/01b_clip_variants.py by `make notebooks`: edit the notebook.
"""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import embed_images, embed_texts, tokenize
from vlm_lite.lessons.clip import CLIP, info_nce, make_clip, recall_at_k, train_clip, zero_shot
from vlm_lite.lessons.negatives import replaced_word


def one_direction(image_embeds, text_embeds, logit_scale):
    """Half of InfoNCE: each image chooses its text, no text chooses. image_embeds, text_embeds (N, P) -> ()."""
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * u @ v.T  # (N, N)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def siglip(image_embeds, text_embeds, logit_scale, logit_bias):
    """SigLIP (Zhai et al. 2023): is this a pair, yes or no, for each of the N² pairs. logit_bias () -> ()."""
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * u @ v.T + logit_bias  # (N, N)
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 on the diagonal, -1 elsewhere
    return -F.logsigmoid(sign * logits).sum() / len(logits)


class CLIPWithNegatives(CLIP):
    """A CLIP that is given two texts an image, the caption and a wrong one: ids (B, 2, T) -> text_embeds (2 B, P)."""

    def forward(self, pixels, input_ids):
        return super().forward(pixels, rearrange(input_ids, "b two t -> (two b) t"))


def hard_negatives(image_embeds, text_embeds, logit_scale):
    """InfoNCE where each image (N, P) also has N wrong texts to refuse: text_embeds (2 N, P) -> ()."""
    count = len(image_embeds)
    both_ways = info_nce(image_embeds, text_embeds[:count], logit_scale)
    among_all = one_direction(image_embeds, text_embeds, logit_scale)  # 2 N candidates
    return (both_ways + among_all) / 2


def swap_captions(input_ids, share, seed=0):
    """Token ids (N, C, T) -> the same, where a share of the images has got the captions of another."""
    order = torch.randperm(len(input_ids), generator=torch.Generator().manual_seed(seed))
    moved, swapped = order[: round(share * len(order))], input_ids.clone()
    swapped[moved] = input_ids[moved.roll(1)]
    return swapped


def add_negatives(captions, tokenizer):
    """N lists of C captions -> token ids (N, C, 2, T): each caption, and itself with one word replaced."""
    rng = np.random.default_rng(0)
    texts = [t for five in captions for text in five for t in (text, replaced_word(text, rng))]
    return tokenize(texts, tokenizer).view(len(captions), len(captions[0]), 2, -1)


SMALL = {"width": 64, "image_layers": 2, "text_layers": 1, "num_heads": 2, "projection_dim": 64}


def train_variant(
    images,
    captions,
    tokenizer,
    *,
    loss_fn=info_nce,
    bias=None,
    temperature=None,
    swapped=0.0,
    **recipe,
):
    """(model, History): a small CLIP trained by notebook 01's loop with something changed. recipe: `train_clip`'s."""
    model = make_clip(tokenizer, recipe["seed"], **SMALL)
    if loss_fn is hard_negatives:
        torch.manual_seed(recipe["seed"])
        model, ids = CLIPWithNegatives(model.config), add_negatives(captions, tokenizer)
    else:
        texts = [text for five in captions for text in five]
        ids = tokenize(texts, tokenizer).view(len(images), len(captions[0]), -1)  # (N, C, T)
    if loss_fn is siglip:
        model.logit_scale.data.fill_(math.log(10))
        model.logit_bias = torch.nn.Parameter(torch.tensor(bias))
        loss_fn = partial(siglip, logit_bias=model.logit_bias)
    if temperature:
        model.logit_scale.requires_grad_(False).fill_(-math.log(temperature))
    ids = swap_captions(ids, swapped, recipe["seed"])
    history = train_clip(model, images, ids, loss_fn=loss_fn, **recipe)
    return model.cpu(), history


def variants(steps, batch_size):
    """{name: what it changes}, as keywords of `train_variant`. Each sees as many pairs as "nothing changed"."""
    return {
        "nothing changed": {},
        "temperature fixed at 0.01": {"temperature": 0.01},
        "temperature fixed at 0.5": {"temperature": 0.5},
        "half the batch, twice the steps": {"batch_size": batch_size // 2, "steps": 2 * steps},
        "twice the batch, half the steps": {"batch_size": 2 * batch_size, "steps": steps // 2},
        "images choose, captions do not": {"loss_fn": one_direction},
        "SigLIP, bias -10": {"loss_fn": siglip, "bias": -10.0},
        "SigLIP, bias -log(N - 1)": {"loss_fn": siglip, "bias": -math.log(batch_size - 1)},
        "hard negatives": {"loss_fn": hard_negatives},
        "half of the captions swapped": {"swapped": 0.5},
    }


def recall(model, images, captions, tokenizer):
    """{"R@1": ..., "R@5": ...} image to text, of held-out images and the first caption of each."""
    ids = tokenize([five[0] for five in captions], tokenizer)
    similarity = embed_images(model, images) @ embed_texts(model, ids).T  # (N, N)
    return {f"R@{k}": recall_at_k(similarity, k) for k in (1, 5)}


def shape_accuracy(model, images, table, tokenizer):
    """The share of the images with one shape whose shape is named right by notebook 01's ensemble of prompts."""
    rows, tasks = shapes.zero_shot_task(table)
    chosen = zero_shot(model, images[rows], shapes.zero_shot_prompts("shape"), tokenizer)
    return (chosen == torch.tensor(tasks["shape"][1])).float().mean().item()


def small_recipe(profile, seed=0):
    """What all rows share, as keywords of `train_variant`."""
    steps, batch_size = 2 * profile.contrastive_steps // 3, profile.contrastive_batch_size
    return {"steps": steps, "batch_size": batch_size, "lr": 3e-3, "seed": seed}


def train_row(train, val, **recipe):
    """Train on (images, captions), measure on (images, captions, table) -> (model, History, {metric: value})."""
    tokenizer, (images, captions, table) = make_tokenizer(), val
    model, history = train_variant(*train, tokenizer, **recipe)
    found = recall(model, images, captions, tokenizer)
    found["shape"] = shape_accuracy(model, images, table, tokenizer)
    found["temperature"] = float((-model.logit_scale.detach()).exp())
    return model, history, found


def average_hash(images):
    """uint8 images (N, 3, S, S) -> 64 bits each, bool (N, 64): which cells of an 8 x 8 grey thumbnail are bright."""
    grey = images.float().mean(dim=1, keepdim=True)  # (N, 1, S, S)
    cells = F.interpolate(grey, size=(8, 8), mode="area").flatten(1)  # (N, 64)
    return cells > cells.mean(dim=1, keepdim=True)


def hamming(a, b):
    """Bits (N, 64) and (M, 64) -> (N, M), in how many bits each pair differs."""
    a, b = a.float(), b.float()
    return a @ (1 - b).T + (1 - a) @ b.T


def thumbnail_cosine(a, b):
    """uint8 images (N, 3, S, S) and (M, 3, S, S) -> (N, M), the cosines of their centred colour thumbnails."""
    small = (F.interpolate(x.float(), size=(16, 16), mode="area").flatten(1) for x in (a, b))
    u, v = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in small)
    return u @ v.T


def near_duplicates(a, b, bits=2, cosine=0.9):
    """bool (N, M): the pairs whose hashes nearly agree, and whose thumbnails then do so as well."""
    return (hamming(average_hash(a), average_hash(b)) <= bits) & (thumbnail_cosine(a, b) > cosine)


def near_copies(images, seed=0):
    """What happens to an image on the web: darker by a tenth, moved by a pixel, and noise of 4 levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (0.9 * images.roll(1, dims=-1) + 4 * noise).round().clamp(0, 255).byte()


def with_copies(images, captions, test_images, test_captions):
    """{name: (images, captions)}: an eighth of a training set and copies of a quarter of the test set; what a search leaves."""
    few, quarter = len(images) // 8, len(test_images) // 4
    mixed = torch.cat([images[:few], near_copies(test_images[:quarter])])
    said = captions[:few] + test_captions[:quarter]
    kept = ~near_duplicates(mixed, test_images).any(dim=1)
    cleaned = [five for five, keep in zip(said, kept, strict=True) if keep]
    return {"with copies": (mixed, said), "copies removed": (mixed[kept], cleaned)}


def study(seed, profile):
    """Notebook 01b's rows, on a CLIP smaller than 01's: one thing changed, more steps or images, copies of test images."""
    images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
    val, recipe = shapes.load_pairs("val", profile.val_images), small_recipe(profile, seed)
    figures, histories, pools = {}, {}, with_copies(images, captions, *val[:2])
    steps, batch_size, quarter = recipe["steps"], recipe["batch_size"], len(val[0]) // 4
    rows = {name: ((images, captions), it) for name, it in variants(steps, batch_size).items()}
    for times in (0.25, 0.5, 2, 4):
        changed = {"steps": max(1, round(times * steps))}
        rows[f"steps x {times:g}"] = (images, captions), changed
    for part in (64, 16, 4):
        few = len(images) // part
        rows[f"images / {part}"] = (images[:few], captions[:few]), {}
    rows |= {name: (pool, {}) for name, pool in pools.items()}
    for name, (train, changes) in rows.items():
        model, histories[name], found = train_row(train, val, **{**recipe, **changes})
        for which, rank in {"copied": 0, "others": 1}.items() if name in pools else ():
            part = slice(rank * quarter, (rank + 1) * quarter)
            some = recall(model, val[0][part], val[1][part], make_tokenizer())
            found[f"R@1 of {which}"] = some["R@1"]
        figures |= {f"{name}: {metric}": value for metric, value in found.items()}
    figures["images kept"] = float(len(pools["copies removed"][0]))
    return histories["nothing changed"], figures


def study_of_01(seed, profile):
    """Notebook 01's training: CLIP from scratch with InfoNCE on Shapes; R@K over held-out captions, and zero-shot."""
    images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
    tokenizer = make_tokenizer()
    ids = tokenize([text for five in captions for text in five], tokenizer)
    ids, model = ids.view(len(images), len(captions[0]), -1), make_clip(tokenizer, seed)
    history = train_clip(model, images, ids, seed=seed, **profile.contrastive)
    model, figures = model.cpu(), {"chance R@5": 5 / profile.val_images}
    figures["learnt temperature"] = float((-model.logit_scale.detach()).exp())
    for split in ("val", "novel"):
        images, captions, table = shapes.load_pairs(split, profile.val_images)
        v = embed_texts(model, tokenize([five[0] for five in captions], tokenizer))
        u = embed_images(model, images)
        for way, matrix in (("image to text", u @ v.T), ("text to image", v @ u.T)):
            figures |= {f"{split} {way} R@{k}": recall_at_k(matrix, k) for k in (1, 5, 10)}
        if split == "val":
            figures["modality gap"] = float((u.mean(0) - v.mean(0)).norm())
            rows, tasks = shapes.zero_shot_task(table)
            for kind, (_, truth) in tasks.items():
                prompts = shapes.zero_shot_prompts(kind)
                right = zero_shot(model, images[rows], prompts, tokenizer).numpy() == truth
                figures[f"zero-shot {kind}"] = float(np.mean(right))
    return history, figures
