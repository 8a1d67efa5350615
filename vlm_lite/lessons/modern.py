"""SmolVLM's architecture, from RMSNorm to generation with a KV cache, equal to transformers' and trained on Shapes.

Generated from notebooks/09_modern_vlm.py by `make notebooks`: edit the notebook.
"""

import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.embed import pixel_values
from vlm_lite.models import text
from vlm_lite.models.vit import attend
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute


class RMSNorm(nn.Module):
    """x (..., D) over its root mean square, times a learnt weight (Zhang and Sennrich 2019)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        wide = x.float()  # squares of fp16 or bf16 would lose digits
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)


class SwiGLU(nn.Module):
    """x (..., D) -> (..., D): one projection opens and closes the channels of another (Shazeer 2020)."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_tables(positions, head_dim, theta):
    """positions (B, T) -> cos and sin of the angles, each (B, 1, T, h): the two halves of h repeat them."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, h / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """x (B, H, T, h) with each pair (i, i + h / 2) turned by its position's angle -> (B, H, T, h)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """x (B, T, D) -> (B, T, D), and the keys and values (B, G, S, h) of all S positions so far."""

    def __init__(self, config):
        super().__init__()
        self.head_dim, width = config.head_dim, config.hidden_size
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        assert queries % groups == 0, f"{queries} heads of queries can't share {groups} of keys"
        self.q_proj = nn.Linear(width, queries * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(queries * self.head_dim, width, bias=False)

    def forward(self, x, rope, reads, past=None):
        """rope: cos, sin (B, 1, T, h); reads: bools (B, 1, T, S); past: keys and values before x, or None."""
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b t (heads h) -> b heads t h"
        q, k, v = (rearrange(each, split, h=self.head_dim) for each in projected)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        share = q.shape[1] // k.shape[1]  # query heads that share one head of keys and values
        keys, values = (each.repeat_interleave(share, dim=1) for each in (k, v))  # (B, H, S, h)
        mixed = attend(q, keys, values, mask=reads)
        return self.o_proj(rearrange(mixed, "b heads t h -> b t (heads h)")), (k, v)


class LlamaLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(width, eps),
            RMSNorm(width, eps),
        )
        self.self_attn = GroupedQueryAttention(config)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, x, rope, reads, past=None):
        mixed, kept = self.self_attn(self.input_layernorm(x), rope, reads, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Llama(nn.Module):
    """Vectors (B, T, D) -> logits (B, T, V), and a cache: keys and values (B, G, S, h) of every layer."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeds, attention_mask=None, cache=None):
        """attention_mask (B, S): 1 for text, 0 for padding, of what the cache holds and of embeds."""
        length, past = embeds.shape[1], cache[0][0].shape[2] if cache else 0
        if attention_mask is None:
            attention_mask = torch.ones(len(embeds), past + length, device=embeds.device)
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # (B, T)
        keys = torch.arange(past + length, device=embeds.device)
        queries = keys[past:, None]  # (T, 1)
        reads = (keys <= queries) & attention_mask[:, None].bool() | (keys == queries)  # (B, T, S)
        theta = self.config.rope_parameters["rope_theta"]
        rope = rope_tables(positions, self.config.head_dim, theta)
        x, kept = embeds, []
        for layer, before in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, both = layer(x, rope, reads[:, None], before)
            kept.append(both)
        return self.lm_head(self.norm(x)), kept


def load_from(model, state):
    """Copy a state dict of transformers' Llama or SmolVLM, whose names are the same but for their nesting."""
    shorter = {}
    for name, value in state.items():
        name = name.removeprefix("model.").replace("embeddings.", "").replace("encoder.", "")
        name = name.replace("modality_projection.", "")
        if name == "lm_head.weight" and hasattr(model, "text_model"):
            name = "text_model.lm_head.weight"
        shorter[name] = value
    model.load_state_dict(shorter)
    return model.eval()


class VisionAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x):
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b n (heads h) -> b heads n h"
        mixed = attend(*(rearrange(each, split, heads=self.num_heads) for each in projected))
        return self.out_proj(rearrange(mixed, "b heads n h -> b n (heads h)"))


class VisionLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.self_attn = VisionAttention(width, config.num_attention_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        inner = F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh")
        return x + self.mlp["fc2"](inner)


class VisionEncoder(nn.Module):
    """Pixels (I, 3, S, S) -> (I, N, Dv): SigLIP's ViT, with learnt positions and no class token."""

    def __init__(self, config):
        super().__init__()
        self.side, patch, width = config.image_size, config.patch_size, config.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2, width)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels):
        if pixels.shape[1:] != (3, self.side, self.side):
            expected = f"(I, 3, {self.side}, {self.side})"
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected {expected}")
        x = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)


def pixel_shuffle(features, scale):
    """features (I, N, Dv) of a square grid -> (I, N / scale², Dv · scale²): squares of patches side by side."""
    rows = round(features.shape[1] ** 0.5) // scale
    squares = "i (rows r columns c) d -> i (rows columns) (r c d)"
    return rearrange(features, squares, rows=rows, r=scale, c=scale)


class Connector(nn.Module):
    """features (I, N, Dv) -> image embeddings (I, N / scale², D): pixel shuffle, then one linear layer."""

    def __init__(self, config):
        super().__init__()
        self.scale, width = config.scale_factor, config.vision_config.hidden_size
        self.proj = nn.Linear(width * self.scale**2, config.text_config.hidden_size, bias=False)

    def forward(self, features):
        return self.proj(pixel_shuffle(features, self.scale))


def insert_images(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (B, T, D) of input_ids (B, T), with image_embeds (I, N, D) at the I · N image tokens, in order."""
    at_image = input_ids == image_id  # (B, T)
    found, needed = int(at_image.sum()), image_embeds.shape[0] * image_embeds.shape[1]
    if found != needed:
        images = f"{len(image_embeds)} images of {image_embeds.shape[1]} vectors need {needed}"
        raise ValueError(f"the text has {found} image tokens; {images}")
    return token_embeds.masked_scatter(at_image[..., None], image_embeds.to(token_embeds.dtype))


class ModernVLM(nn.Module):
    """SmolVLM: a ViT, pixel shuffle and a linear layer, a Llama. config: transformers' SmolVLMConfig."""

    def __init__(self, config):
        super().__init__()
        self.vision_model, self.connector = VisionEncoder(config.vision_config), Connector(config)
        self.text_model, self.image_id = Llama(config.text_config), config.image_token_id

    def encode(self, pixels):
        """Pixels (I, 3, S, S) -> image embeddings (I, N, D)."""
        return self.connector(self.vision_model(pixels))

    def embed(self, input_ids, image_embeds=None):
        """Token ids (B, T), with image embeddings (I, N, D) where the image tokens are -> (B, T, D)."""
        embeds = self.text_model.embed_tokens(input_ids)
        if image_embeds is None:
            return embeds
        return insert_images(embeds, input_ids, image_embeds, self.image_id)

    def forward(self, input_ids, attention_mask=None, pixels=None):
        """ids (B, T), mask (B, T), pixels (I, 3, S, S) or None -> logits (B, T, V)."""
        image_embeds = None if pixels is None else self.encode(pixels)
        return self.text_model(self.embed(input_ids, image_embeds), attention_mask)[0]


@torch.no_grad()
def generate(model, input_ids, attention_mask, image_embeds=None, max_new_tokens=16, eos=None):
    """Prompts (B, T), padded on the left -> greedy new tokens (B, up to max_new_tokens), until each row said eos."""
    embeds, cache, said = model.embed(input_ids, image_embeds), None, []
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        logits, cache = model.text_model(embeds, attention_mask, cache)
        token = logits[:, -1].argmax(dim=-1)  # (B,)
        said.append(token)
        finished |= token == eos
        embeds = model.text_model.embed_tokens(token[:, None])  # (B, 1, D): all that is new
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        if finished.all():
            break
    return torch.stack(said, dim=1)


@torch.no_grad()
def start_from_clip(encoder, clip, images):
    """Give a VisionEncoder the weights of a CLIP; uint8 images (I, 3, S, S) say by how much to scale the input."""
    theirs, embeddings = clip.vision_model, clip.vision_model.embeddings
    state = {name.removeprefix("encoder."): value for name, value in theirs.state_dict().items()}
    state = {name: state.get(name, own) for name, own in encoder.state_dict().items()}
    patches, places = embeddings.patch_embedding, embeddings.position_embedding.weight[1:]
    tokens = patches(pixel_values(images)).flatten(2).mT + places  # what CLIP normalises
    scale = theirs.pre_layrnorm.weight / tokens.std(dim=-1).mean()
    state["patch_embedding.weight"] = patches.weight * scale[:, None, None, None]
    state["patch_embedding.bias"] = theirs.pre_layrnorm.bias
    state["position_embedding.weight"] = places * scale
    encoder.load_state_dict(state)


class ShapesVLM(ModernVLM):
    """The model with a tokenizer: batches, the loss of answers, and answers in words."""

    def __init__(self, config, tokenizer):
        super().__init__(config)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.slots = [self.image_id] * (side // config.scale_factor) ** 2  # an image in the text
        self.tokenizer, (self.eos, self.pad) = tokenizer, text.special_ids(tokenizer)

    def batch(self, images, asked, blind_share=0.1):
        """B images, uint8, and (prompt, answer) pairs -> ids, mask, pixels, labels. Some rows go without their image."""
        prompts, answers = zip(*asked, strict=True)
        prompts = text.tokenize(self.tokenizer, prompts)
        answers = text.tokenize(self.tokenizer, [f" {answer}" for answer in answers])
        seen = torch.rand(len(asked)) >= blind_share
        heads = [self.slots * int(s) + prompt for s, prompt in zip(seen, prompts, strict=True)]
        pairs = list(zip(heads, answers, strict=True))
        ids = [torch.tensor([*head, *answer, self.eos]) for head, answer in pairs]
        labels = [torch.tensor([-100] * len(head) + answer + [self.eos]) for head, answer in pairs]
        mask = pad_sequence([torch.ones_like(row) for row in ids], True)
        labels = pad_sequence(labels, True, -100)
        return pad_sequence(ids, True, self.pad), mask, pixel_values(images[seen]), labels

    def forward(self, input_ids, attention_mask, pixels, labels):
        """Labels (B, T), unshifted, -100 where nothing counts -> the loss ()."""
        logits = super().forward(input_ids, attention_mask, pixels)[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    def generate(self, image_embeds, prompts, max_new_tokens=8):
        """B prompts, with image embeddings (B, N, D) or None -> B answers in words."""
        slots = [] if image_embeds is None else self.slots
        ids = [torch.tensor(slots + row) for row in text.tokenize(self.tokenizer, prompts)]
        mask = pad_sequence([torch.ones_like(row) for row in ids], True, padding_side="left")
        ids = pad_sequence(ids, True, self.pad, padding_side="left")
        found = generate(self, ids, mask, image_embeds, max_new_tokens, self.eos)
        return text.decode(self.tokenizer, list(found.T), len(prompts))


def train_modern(model, images, turns, *, steps, batch_size, lr, seed=0):
    """Train on uint8 images (N, 3, S, S) and N lists of (prompt, answer) turns -> History."""
    assert len(images) == len(turns), "one list of turns an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (type(model), Llama, VisionEncoder, Connector, train_modern)
    run = Checkpoint(
        "modern", prepared, optimizer, scheduler, seed=seed, settings=settings, code=code
    )
    told = [k for k, each in enumerate(turns) if each]  # images of which something is asked
    for _ in run.steps(steps):
        rows = random.sample(told, min(batch_size, len(told)))
        rows = rows[accelerator.process_index :: accelerator.num_processes]
        batch = model.batch(images[rows], [random.choice(turns[k]) for k in rows])
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
