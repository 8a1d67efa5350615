"""A Vision Transformer, each part equal to timm's, and the loop that trains it.

Generated from notebooks/02_vit.py by `make notebooks`: edit the notebook.
"""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.lessons import world
from vlm_lite.profiles import get_compute

CLASSES = (*world.SHAPES, "digit")


def leftmost_task(split, count, axis="col", seed=0):
    """Images (count, 3, 64, 64) uint8, the class that comes first along `axis` (count,), and the scenes."""
    images, labels, kept, index = [], [], [], 0
    while len(kept) < count:
        rng = np.random.default_rng([seed, world.SPLITS.index(split), index])
        scene, index = world.sample_scene(rng, split), index + 1
        first, *others = sorted(scene.items, key=lambda item: getattr(item, axis))
        if others and getattr(first, axis) < getattr(others[0], axis):
            images.append(world.render(scene, rng))
            labels.append(CLASSES.index(first.shape))
            kept.append(scene)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels), kept


def pixel_values(images):
    """uint8 (B, 3, S, S) -> floats, normalised: (x - mean) / std."""
    return (images / 255 - 0.12) / 0.14


def patchify(images, patch_size):
    """images (B, C, S, S) -> patches (B, N, C·p·p)."""
    squares = "b c (rows p) (columns q) -> b (rows columns) (c p q)"
    return rearrange(images, squares, p=patch_size, q=patch_size)


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): x (B, N, D) -> (B, N, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        assert width % num_heads == 0, f"width {width} does not divide into {num_heads} heads"
        self.num_heads, self.weights = num_heads, None
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        split = "b n (three heads h) -> three b heads n h"
        q, k, v = rearrange(self.qkv(x), split, three=3, heads=self.num_heads)  # each (B, H, N, h)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, N, N)
        self.weights = weights.detach()
        mixed = weights @ v  # (B, H, N, N) x (B, H, N, h) -> (B, H, N, h)
        return self.proj(rearrange(mixed, "b heads n h -> b n (heads h)"))


class Block(nn.Module):
    """A pre-norm transformer block: x (B, N, D) -> (B, N, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = MultiHeadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021); the parameters have timm's names and shapes."""

    def __init__(self, image_size=64, patch_size=16, width=64, depth=3, num_heads=4, num_classes=7):
        super().__init__()
        assert image_size % patch_size == 0, f"{image_size} pixels, patches of {patch_size}"
        self.patch_size, tokens = patch_size, 1 + (image_size // patch_size) ** 2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, pixels):
        """pixels (B, 3, S, S) -> tokens (B, 1+N, D), the class token first."""
        conv = self.patch_embed["proj"]
        x = patchify(pixels, self.patch_size)  # (B, N, 3·p·p)
        x = F.linear(x, conv.weight.flatten(1), conv.bias)  # (B, N, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1+N, D)
        x = self.norm_pre(x + self.pos_embed)
        return self.norm(self.blocks(x))

    def forward(self, pixels):
        """pixels (B, 3, S, S) -> logits (B, num_classes)."""
        return self.head(self.forward_features(pixels)[:, 0])


def training_step(model, pixels, labels, optimizer, scheduler, accelerator):
    """One step on pixels (B, 3, S, S) and labels (B,); returns the loss, detached."""
    with accelerator.autocast():
        loss = F.cross_entropy(model(pixels).float(), labels)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()


def small_cnn(num_classes=7):
    """A convolutional baseline: pixels (B, 3, 64, 64) -> logits (B, num_classes)."""
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):  # 32, 16, 8, 4 pixels a side
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, num_classes))


def train_vit(model, images, labels, *, steps, batch_size, lr, seed=0, held_out=None, name="vit"):
    """Train a classifier on images (N, 3, S, S) uint8 and labels (N,); its history."""
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings = {"batch_size": batch_size, "lr": lr, "images": len(images)}
    code = (ViT, training_step, train_vit)
    run = Checkpoint(name, model, optimizer, scheduler, seed=seed, settings=settings, code=code)
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # of each batch
    for step in run.steps(steps):
        rows = torch.randint(len(images), (batch_size,))[share]
        pixels = pixel_values(images[rows]).to(accelerator.device)
        targets = labels[rows].to(accelerator.device)
        run.log(loss=training_step(model, pixels, targets, optimizer, scheduler, accelerator))
        if held_out and (step + 1) % 100 == 0:
            run.log(accuracy=accuracy(model, *held_out))
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return run.history


@torch.no_grad()
def accuracy(model, images, labels):
    """The share of images (N, 3, S, S) uint8 whose class (N,) a model finds."""
    model.eval()
    device = next(model.parameters()).device
    found = [model(pixel_values(part).to(device)).argmax(dim=1).cpu() for part in images.split(250)]
    return (torch.cat(found) == labels).float().mean().item()


def attention_rollout(attentions):
    """A list of weights (B, H, N, N), the first block's first -> (B, N, N)."""
    identity = rollout = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights in attentions:
        rollout = (weights.mean(dim=1) + identity) / 2 @ rollout
    return rollout
