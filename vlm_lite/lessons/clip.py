"""An image encoder, a text encoder and the InfoNCE loss, trained from images and captions alone.

Generated from notebooks/01_clip_infonce.py by `make notebooks`: edit the notebook.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.distributed import gather
from vlm_lite.embed import embed_images, embed_texts, pixel_values, tokenize
from vlm_lite.models.vit import attend
from vlm_lite.profiles import get_compute


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The sizes of a CLIP. `eos_token_id`: the token at which a text is read out."""

    vocab_size: int
    eos_token_id: int
    image_size: int = 64
    patch_size: int = 16
    context_length: int = 64
    width: int = 128
    image_layers: int = 4
    text_layers: int = 2
    num_heads: int = 4
    projection_dim: int = 128


class Block(nn.Module):
    """A pre-norm transformer block: x (B, N, D) -> (B, N, D). `depth`: how many blocks there are."""

    def __init__(self, config, depth):
        super().__init__()
        self.num_heads, width = config.num_heads, config.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(fc1, nn.GELU(), fc2)
        for layer, share in ((self.qkv, 1), (self.out, 2 * depth), (fc1, 2), (fc2, 2 * depth)):
            nn.init.normal_(layer.weight, std=(share * width) ** -0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x, is_causal=False):
        qkv = self.qkv(self.norm1(x))  # (B, N, 3 D)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        mixed = attend(q, k, v, is_causal=is_causal)  # softmax(q k^T / sqrt(d)) v: (B, h, N, d)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """Pixels (B, 3, S, S) -> one vector an image (B, D), read out at the class token."""

    def __init__(self, config):
        super().__init__()
        self.patch_size, width = config.patch_size, config.width
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position_embedding = nn.Parameter(torch.randn(num_patches + 1, width))
        self.input_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        depth = config.image_layers
        self.blocks = nn.ModuleList(Block(config, depth) for _ in range(depth))
        nn.init.normal_(self.patch_embedding.weight, std=0.02)

    def forward(self, pixels):
        p = self.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)  # (B, N, 3 p p)
        patches = self.patch_embedding(patches)  # (B, N, D)
        token = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)  # (B, 1, D)
        x = self.input_norm(torch.cat([token, patches], dim=1) + self.position_embedding)
        for block in self.blocks:
            x = block(x)  # (B, 1 + N, D)
        return self.output_norm(x[:, 0])  # (B, D)


class TextEncoder(nn.Module):
    """Token ids (B, T) -> one vector a text (B, D), read out at its first EOS."""

    def __init__(self, config):
        super().__init__()
        self.eos_token_id, width = config.eos_token_id, config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.output_norm = nn.LayerNorm(width)
        depth = config.text_layers
        self.blocks = nn.ModuleList(Block(config, depth) for _ in range(depth))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, input_ids):
        assert input_ids.shape[1] <= len(self.position_embedding), "a text exceeds the context"
        end = (input_ids == self.eos_token_id).int().argmax(dim=1)  # (B,) the first EOS of each
        input_ids = input_ids[:, : int(end.max()) + 1]  # what follows the last EOS is padding
        x = self.token_embedding(input_ids) + self.position_embedding[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)  # (B, T, D)
        return self.output_norm(x[torch.arange(len(x)), end])  # (B, D)


class CLIP(nn.Module):
    """An image encoder and a text encoder with one joint space, and a learnt temperature."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.image_encoder, self.text_encoder = ImageEncoder(config), TextEncoder(config)
        self.image_projection = nn.Linear(config.width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=config.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels):
        return self.image_projection(self.image_encoder(pixels))

    def encode_text(self, input_ids):
        return self.text_projection(self.text_encoder(input_ids))

    def forward(self, pixels, input_ids):  # (B, 3, S, S), (B, T) -> (B, P), (B, P), ()
        scale = self.logit_scale.clamp(max=math.log(100))
        return self.encode_image(pixels), self.encode_text(input_ids), scale


def make_clip(tokenizer, seed=0, **sizes):
    """An untrained CLIP for the words of `tokenizer`; sizes: what differs from CLIPConfig's."""
    torch.manual_seed(seed)
    return CLIP(CLIPConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes))


def info_nce(image_embeds, text_embeds, logit_scale):
    """image_embeds, text_embeds (N, P), row i of one belonging to row i of the other; logit_scale () -> loss ()."""
    u, v = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)  # (N, P)
    logits = logit_scale.exp() * u @ v.T  # (N, N)
    target = torch.arange(len(logits), device=logits.device)  # matching pairs on the diagonal
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def training_step(model, pixels, input_ids, loss_fn, accelerator, optimizer, scheduler):
    """One step on a batch of pixels (B, 3, S, S) and token ids (B, T) -> its loss (), detached."""
    image_embeds, text_embeds, logit_scale = model(pixels, input_ids)
    loss = loss_fn(gather(image_embeds), gather(text_embeds), logit_scale)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()


def train_clip(
    model, images, input_ids, *, steps, batch_size, lr, loss_fn=info_nce, seed=0, evaluate=None
):
    """Train a CLIP on uint8 images (N, 3, S, S) and token ids (N, C, T), C captions each -> History."""
    assert len(images) == len(input_ids), "one row of captions an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, (0.9, 0.98), weight_decay=0.05, fused=True
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (type(model), loss_fn, training_step, train_clip)
    run = Checkpoint("clip", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for step in run.steps(steps):
        rows = torch.randperm(len(images))[:batch_size]
        ids = input_ids[rows, torch.randint(input_ids.shape[1], (len(rows),))]  # a caption of each
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = [part[share].to(accelerator.device) for part in (pixel_values(images[rows]), ids)]
        loss = training_step(prepared, *batch, loss_fn, accelerator, optimizer, scheduler)
        run.log(loss=loss)
        if evaluate and (step + 1) % 50 == 0:
            run.log(**evaluate(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


def recall_at_k(similarity, k):
    """similarity (N, N), query i belonging to candidate i -> the share of queries with it among their first k."""
    right = similarity.diagonal()[:, None]  # (N, 1)
    ahead = (~(similarity < right)).sum(dim=1) - 1  # (N,) ties and NaN count as ahead
    return (ahead < k).float().mean().item()


def class_embeddings(encode_text, prompts):
    """prompts: C lists of strings -> (C, P), one vector of unit length for each class."""
    means = [F.normalize(encode_text(each), dim=-1).mean(dim=0) for each in prompts]  # C times (P,)
    return F.normalize(torch.stack(means), dim=-1)  # (C, P)


def zero_shot(model, images, prompts, tokenizer):
    """uint8 images (N, 3, S, S), prompts: C lists of strings -> number (N,) of the nearest class."""
    classes = class_embeddings(
        lambda texts: embed_texts(model, tokenize(texts, tokenizer)), prompts
    )
    return (embed_images(model, images) @ classes.T).argmax(dim=1)  # (N, P) @ (P, C)
