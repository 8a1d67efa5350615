"""BLIP-2's three losses around 03's Q-Former, and a comparison of connectors.

Generated from notebooks/03b_first_stage.py by `make notebooks`: edit the notebook.
"""

import math
import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite import encoded
from vlm_lite.checkpoint import Checkpoint
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import load_language_model
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute, resolve_model


def masked_attention(attention, x, mask):
    """03's MultiHeadAttention of x (B, L, D) with itself, where mask (B, L, L) allows -> (B, L, D)."""
    split = "b n (heads h) -> b heads n h"
    projected = attention.query(x), attention.key(x), attention.value(x)
    q, k, v = (rearrange(each, split, heads=attention.num_heads) for each in projected)
    mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None])  # (B, H, L, h)
    return attention.output(rearrange(mixed, "b heads n h -> b n (heads h)"))


class FirstStage(nn.Module):
    """A Q-Former with a text branch and three heads (Li et al. 2023, section 3.2)."""

    def __init__(self, connector, vocab_size, context_length=64, joint_width=64):
        super().__init__()
        self.connector, layers = connector, connector.qformer.layers
        width, inner = layers[0].mlp_in.in_features, layers[0].mlp_in.out_features
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(context_length, width))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            for _ in layers
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in layers)
        self.image_head, self.text_head = (nn.Linear(width, joint_width) for _ in range(2))
        self.match_head = nn.Linear(width, 2)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for weights in (self.words.weight, self.positions):
            nn.init.normal_(weights, std=0.02)

    def forward(self, features, ids, mask):
        """features (B, N, Dv), ids (B, T), mask (B, Q+T, Q+T) -> queries (B, Q, D), text (B, T, D)."""
        qformer, patches = self.connector.qformer, self.connector.vision_norm(features)
        queries = qformer.query_tokens.expand(len(ids), -1, -1)  # (B, Q, D)
        count, text = queries.shape[1], self.words(ids) + self.positions[: ids.shape[1]]
        x = qformer.input_norm(torch.cat([queries, text], dim=1))  # (B, Q+T, D)
        for layer, mlp, norm in zip(qformer.layers, self.mlps, self.norms, strict=True):
            x = layer.self_norm(x + masked_attention(layer.self_attention, x, mask))
            queries, text = x[:, :count], x[:, count:]
            if layer.cross:
                queries = layer.cross_norm(queries + layer.cross_attention(queries, patches))
            queries = layer.mlp_norm(queries + layer.mlp_out(F.gelu(layer.mlp_in(queries))))
            x = torch.cat([queries, norm(text + mlp(text))], dim=1)
        return x[:, :count], x[:, count:]


def stage_mask(kind, num_queries, text_mask):
    """Who attends to whom, bool (B, Q+T, Q+T); kind "ITC", "ITM" or "ITG"; text_mask (B, T), True at text."""
    length = num_queries + text_mask.shape[1]
    is_text = torch.arange(length, device=text_mask.device) >= num_queries
    row, column = is_text[:, None], is_text[None, :]
    allowed = {
        "ITC": row == column,  # queries and text don't meet
        "ITM": torch.ones(length, length, dtype=torch.bool, device=text_mask.device),
        "ITG": (row | ~column) & ~(row & column).triu(1),  # text reads queries and its own past
    }[kind]
    return allowed & F.pad(text_mask, (num_queries, 0), value=True)[:, None]


def first_stage_losses(model, features, ids, text_mask):
    """features (B, N, Dv), ids and text_mask (B, T) -> the losses ITC, ITM and ITG, () each, and similarities (B, B)."""
    count = len(model.connector.qformer.query_tokens)
    target = torch.arange(len(ids), device=ids.device)
    queries, text = model(features, ids, stage_mask("ITC", count, text_mask))
    u = F.normalize(model.image_head(queries).float(), dim=-1)  # (B, Q, P)
    v = F.normalize(model.text_head(text[:, 0]).float(), dim=-1)  # (B, P), at the first token
    similarity = torch.einsum("iqp,jp->ijq", u, v).amax(dim=-1)  # (B, B): the best query counts
    logits = model.logit_scale.exp().clamp(max=100) * similarity
    itc = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    same = (ids[:, None] == ids[None, :]).all(dim=-1)  # (B, B), the diagonal and equal captions
    chances = logits.detach().masked_fill(same, -torch.inf).softmax(dim=1)
    wrong = torch.multinomial(chances.nan_to_num(1 / len(ids)), 1)[:, 0]  # (B,) a wrong caption
    both = torch.cat([ids, ids[wrong]]), torch.cat([text_mask, text_mask[wrong]])  # (2 B, T)
    queries, _ = model(features.repeat(2, 1, 1), both[0], stage_mask("ITM", count, both[1]))
    logits = model.match_head(queries).float().mean(dim=1)  # (2 B, 2)
    itm = F.cross_entropy(logits, (torch.arange(len(logits), device=ids.device) < len(ids)).long())

    _, text = model(features, ids, stage_mask("ITG", count, text_mask))
    logits = (text[:, :-1] @ model.words.weight.T).float()  # (B, T-1, V)
    nexts = ids[:, 1:].masked_fill(~text_mask[:, 1:], -100)
    return itc, itm, F.cross_entropy(logits.flatten(0, 1), nexts.flatten()), similarity


def caption_ids(tokenizer, captions):
    """B strings -> ids (B, T), each EOS, text, EOS; and a mask (B, T), True at these."""
    eos = tokenizer.eos_token_id
    found = tokenizer(list(captions), add_special_tokens=False)["input_ids"]
    rows = [torch.tensor([eos, *row, eos]) for row in found]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], True)
    return pad_sequence(rows, True, eos), mask


def train_first_stage(connector, features, captions, tokenizer, *, steps, batch_size, lr, seed=0):
    """Train a QFormerConnector in place on features (N, T, Dv) and N lists of captions -> (model, History)."""
    torch.manual_seed(seed)
    model = FirstStage(connector, len(tokenizer))
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "images": len(features)}
    code = (FirstStage, first_stage_losses, train_first_stage)
    run = Checkpoint("first", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for _ in run.steps(steps):
        rows = random.sample(range(len(features)), batch_size)
        ids, mask = caption_ids(tokenizer, [random.choice(captions[k]) for k in rows])
        batch = [part.to(accelerator.device) for part in (features[rows].float(), ids, mask)]
        with accelerator.autocast():
            itc, itm, itg, _ = first_stage_losses(model, *batch)
        accelerator.backward(itc + itm + itg)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=(itc + itm + itg).detach(), ITC=itc.item(), ITM=itm.item(), ITG=itg.item())
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return model.eval(), run.history


@torch.no_grad()
def caption_recall(model, features, captions, tokenizer, k=5):
    """R@k, image to text, by the ITC head: features (N, T, Dv) and N strings."""
    device = model.positions.device
    ids, mask = (part.to(device) for part in caption_ids(tokenizer, captions))
    similarity = first_stage_losses(model, features.float().to(device), ids, mask)[3]
    ahead = (similarity >= similarity.diagonal()[:, None]).sum(dim=1)
    return (ahead <= k).float().mean().item()


def frozen_parts(profile, train_images):
    """(vision encoder, language model, tokenizer, train, val): what 03's training starts from."""
    vision = CLIP.from_pretrained(resolve_model(profile.vision_model))
    parts = vision, *load_language_model(resolve_model(profile.language_model))
    train = encoded.encode_shapes(vision, "train", train_images)
    return *parts, train, encoded.encode_shapes(vision, "val", profile.val_images)


def make_connector(row, parts, profile, seed=0):
    """The connector called `row` before 03's training, its first stage done on the training images where it has one."""
    vision, language_model, tokenizer, train, _ = parts
    widths = vision.feature_width, language_model.config.hidden_size
    torch.manual_seed(seed)
    if row == "linear":
        return nn.Linear(*widths)  # the same for each patch, as in LLaVA (Liu et al. 2023)
    if row == "MLP":
        return Projector(*widths)  # LLaVA-1.5's, from notebook 04
    connector = QFormerConnector(*widths, num_query_tokens=profile.num_query_tokens)
    if row == "Q-Former, first stage":
        recipe = {"steps": min(150, profile.connector_steps), "batch_size": 32, "lr": 5e-3}
        captions = train.captions, tokenizer
        train_first_stage(connector, train.features, *captions, seed=seed, **recipe)
    return connector


def train_connector(row, parts, profile, seed=0, turns=None, **changes):
    """03's training with the connector `row`, on `turns` (the images' own by default) -> (VLM, History)."""
    vision, language_model, tokenizer, train, _ = parts
    model = VLM(vision, make_connector(row, parts, profile, seed), language_model, tokenizer)
    names = "steps", "batch_size", "per_row", "lr"
    recipe = {name: getattr(profile, f"connector_{name}") for name in names} | changes
    return model, train_vlm(model, train.features, turns or train.turns, seed=seed, **recipe)


def vqa_metrics(result):
    """{name: value} of a probe: VQA beside its controls, and by type; the bridge score where it has one."""
    found = {f"VQA {name}": interval.value for name, interval in result.accuracy.items()}
    parts = result.by_type.items()
    found |= {f"VQA vlm, {kind}": part.accuracy["vlm"].value for kind, part in parts}
    bridge = result.bridge.value  # none where a short training does not tell oracle from blind
    return found if bridge is None else found | {"bridge score": bridge}


CONNECTORS = "linear", "MLP", "Q-Former", "Q-Former, first stage"


def study(seed, profile):
    """Notebook 03b's rows: four connectors after the same 100 steps of 03's training; VQA beside its controls."""
    parts, figures = frozen_parts(profile, profile.train_images), {}
    for row in CONNECTORS:
        steps = min(100, profile.connector_steps)
        model, history = train_connector(row, parts, profile, seed, steps=steps)
        found = vqa_metrics(encoded.probe(model.eval(), parts[-1]))
        found["million parameters"] = sum(p.numel() for p in model.connector.parameters()) / 1e6
        figures |= {f"{row}: {name}": value for name, value in found.items()}
    return history, figures
