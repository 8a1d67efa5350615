"""An image encoder, a text encoder and the InfoNCE loss, trained from captions alone.

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
from vlm_lite.models.vit import attend
from vlm_lite.profiles import get_compute

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixel_values(images):
    """uint8 images (N, 3, S, S) in 0..255 -> floats, normalised with the mean and std that CLIP uses."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)
    )
    return (images / 255 - mean) / std


def tokenize(texts, tokenizer):
    """N strings -> token ids (N, T): each text, then EOS, then padding."""
    texts = [text + tokenizer.eos_token for text in texts]
    return tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ]


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
    """A pre-norm transformer block: x (B, N, D) -> (B, N, D). `depth`: how many blocks the encoder has."""

    def __init__(self, width, num_heads, depth):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        layers = (self.qkv, 1), (self.out, 2 * depth), (self.mlp[0], 2), (self.mlp[2], 2 * depth)
        for layer, share in layers:  # OpenAI's: what is added to the residual stream starts small
            nn.init.normal_(layer.weight, std=(share * width) ** -0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x, is_causal=False):
        q, k, v = rearrange(
            self.qkv(self.norm1(x)),
            "b n (three heads d) -> three b heads n d",
            three=3,
            heads=self.num_heads,
        )
        mixed = attend(q, k, v, is_causal=is_causal)  # softmax(q k^T / sqrt(d)) v: (B, heads, N, d)
        x = x + self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
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
        blocks = (
            Block(width, config.num_heads, config.image_layers) for _ in range(config.image_layers)
        )
        self.blocks = nn.ModuleList(blocks)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)

    def forward(self, pixels):
        patches = rearrange(
            pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size
        )  # (B, N, 3 p q)
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
        blocks = (
            Block(width, config.num_heads, config.text_layers) for _ in range(config.text_layers)
        )
        self.blocks = nn.ModuleList(blocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, input_ids):
        assert input_ids.shape[1] <= len(self.position_embedding), (
            "a text exceeds the context length"
        )
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
        """Pixels (B, 3, S, S) -> (B, P), of any length."""
        return self.image_projection(self.image_encoder(pixels))

    def encode_text(self, input_ids):
        """Token ids (B, T) -> (B, P), of any length."""
        return self.text_projection(self.text_encoder(input_ids))

    def forward(self, pixels, input_ids):
        """-> image_embeds (B, P), text_embeds (B, P), logit_scale ()."""
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
    model,
    images,
    input_ids,
    *,
    steps,
    batch_size,
    lr,
    loss_fn=info_nce,
    seed=0,
    evaluate=None,
    name="clip",
):
    """Train a CLIP on uint8 images (N, 3, S, S) and token ids (N, C, T), C captions each -> a History."""
    assert len(images) == len(input_ids), "one row of captions an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (type(model), loss_fn, training_step, train_clip)
    run = Checkpoint(name, prepared, optimizer, scheduler, seed=seed, settings=settings, code=code)
    rank, processes = accelerator.process_index, accelerator.num_processes
    for step in run.steps(steps):
        rows = torch.randperm(len(images))[:batch_size]
        ids = input_ids[rows, torch.randint(input_ids.shape[1], (len(rows),))]  # a caption of each
        batch = pixel_values(images[rows]), ids
        batch = [part[rank::processes].to(accelerator.device) for part in batch]
        loss = training_step(prepared, *batch, loss_fn, accelerator, optimizer, scheduler)
        run.log(loss=loss)
        if evaluate and (step + 1) % 50 == 0:
            run.log(**evaluate(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history


@torch.no_grad()
def embed_images(model, images):
    """uint8 images (N, 3, S, S) -> unit vectors (N, P) on the CPU, 500 images at a time."""
    model.eval()
    device = model.logit_scale.device
    parts = [model.encode_image(pixel_values(part.to(device))).cpu() for part in images.split(500)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


@torch.no_grad()
def embed_texts(model, input_ids):
    """Token ids (N, T) -> unit vectors (N, P) on the CPU."""
    model.eval()
    device = model.logit_scale.device
    parts = [model.encode_text(part.to(device)).cpu() for part in input_ids.split(500)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


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
    """uint8 images (N, 3, S, S), prompts: C lists of strings -> the number (N,) of the nearest class of each image."""
    classes = class_embeddings(
        lambda texts: embed_texts(model, tokenize(texts, tokenizer)), prompts
    )
    return (embed_images(model, images) @ classes.T).argmax(dim=1)  # (N, P) @ (P, C)
