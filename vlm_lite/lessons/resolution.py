"""An encoder of images of any size, with packing, 2D RoPE, tiles and pixel shuffle.

Generated from notebooks/08_resolution.py by `make notebooks`: edit the notebook.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data import pages
from vlm_lite.lessons import llava, vit
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute

PATCH, SIDES = 16, (64, 96, 128, 192)  # pixels
GRIDS = [(64 * rows, 64 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]


def by_block(grid):
    """(R, C, ...) -> (R * C, ...): 2 x 2 block after block, each row by row, as Qwen2-VL orders its patches."""
    rows, columns = grid.shape[:2]
    blocks = grid.reshape(rows // 2, 2, columns // 2, 2, *grid.shape[2:])
    return blocks.transpose(1, 2).flatten(0, 3)


def pack(images):
    """B images (3, H, W), sides multiples of 32 -> patches (T, 768), (row, column) (T, 2), cu_seqlens (B + 1,)."""
    patches, places, lengths = [], [], [0]
    for image in images:
        grid = rearrange(image, "d (r p) (c q) -> r c (d p q)", p=PATCH, q=PATCH)
        where = torch.meshgrid(*map(torch.arange, grid.shape[:2]), indexing="ij")
        patches.append(by_block(grid))
        places.append(by_block(torch.stack(where, dim=-1)))
        lengths.append(len(patches[-1]))
    return torch.cat(patches), torch.cat(places), torch.tensor(lengths).cumsum(0)


def packed_attention(q, k, v, cu_seqlens):
    """q, k, v (T, heads, h) of images that end at cu_seqlens (B + 1,) -> (T, heads, h): each attends to its own image."""
    found = []
    for a, b in pairwise(cu_seqlens.tolist()):
        parts = (x[a:b].transpose(0, 1) for x in (q, k, v))  # (heads, tokens, h)
        found.append(F.scaled_dot_product_attention(*parts).transpose(0, 1))
    return torch.cat(found)


def rope_2d(x, positions):
    """x (T, heads, h), turned by positions (T, axes), h divisible by 2 * axes -> (T, heads, h)."""
    pairs = x.shape[-1] // 2 // positions.shape[1]  # of an axis
    frequencies = 10_000.0 ** (-torch.arange(pairs, device=x.device) / pairs)
    angles = (positions[..., None] * frequencies).flatten(1)[:, None]  # (T, 1, h / 2)
    (first, second), cos, sin = x.chunk(2, dim=-1), angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def interpolate_positions(table, rows, columns):
    """A square table (g * g, D), row by row -> (rows * columns, D), row by row."""
    grid = rearrange(table, "(r c) d -> 1 d r c", r=round(len(table) ** 0.5))
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d r c -> (r c) d")


def select_best_resolution(size, grids):
    """size (height, width) of an image, grids [(height, width), ...] in pixels -> the best of them."""

    def kept_and_wasted(grid):
        scale = min(grid[1] / size[1], grid[0] / size[0])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=kept_and_wasted)


def pixel_shuffle(x, factor=2):
    """x (B, N, D) of a square, row by row -> (B, N / factor², factor² * D)."""
    rows = round(x.shape[1] ** 0.5) // factor
    neighbours = "b (rows a columns c) d -> b (rows columns) (a c d)"
    return rearrange(x, neighbours, rows=rows, a=factor, c=factor)


def tiles(image):
    """uint8 (3, H, W) -> [thumbnail, tile, ...], each (3, 64, 64): LLaVA-NeXT's AnyRes, black around what is fitted."""
    size = np.array(image.shape[1:])
    grid = np.array(select_best_resolution(size, GRIDS))
    fitted = (size * min(grid / size)).astype(int)
    canvas, (top, left) = image.new_zeros(3, *grid), (grid - fitted) // 2
    canvas[:, top : top + fitted[0], left : left + fitted[1]] = pages.resize(image, fitted)
    cut = rearrange(canvas, "d (r p) (c q) -> (r c) d p q", p=64, q=64)
    return [pages.resize(image, (64, 64)), *cut]


VIEWS = {"square": lambda x: [pages.resize(x, (64, 64))], "whole": lambda x: [x], "tiles": tiles}


class Layer(vit.Block):
    """02's block over packed tokens: x (T, D) -> (T, D)."""

    def forward(self, x, positions, cu_seqlens):
        split = "t (three heads h) -> three t heads h"
        q, k, v = rearrange(self.attn.qkv(self.norm1(x)), split, three=3, heads=self.attn.num_heads)
        if positions is not None:
            q, k = (rope_2d(each, positions).type_as(v) for each in (q, k))  # not the values
        x = x + self.attn.proj(packed_attention(q, k, v, cu_seqlens).flatten(1))
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    """In place of a language model: one query attends to each row's tokens (T, inputs) -> logits (B, num_classes)."""

    def __init__(self, inputs, width, num_classes):
        super().__init__()
        self.projector = llava.Projector(inputs, width)
        self.query, self.head = nn.Parameter(torch.zeros(width)), nn.Linear(width, num_classes)

    def forward(self, tokens, cu_seqlens):
        tokens = self.projector(tokens)
        rows = [tokens[a:b] for a, b in pairwise(cu_seqlens.tolist())]
        return self.head(torch.stack([(row @ self.query).softmax(dim=0) @ row for row in rows]))


class Encoder(nn.Module):
    """A ViT over packed images of any size, with RoPE or a learnt table of 4 x 4 positions, and two readers."""

    def __init__(self, rope=True, width=96, depth=3, num_heads=4, num_classes=10, context=1024):
        super().__init__()
        self.context, self.embed = context, nn.Linear(3 * PATCH**2, width)
        self.table = None if rope else nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(Layer(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.all, self.merged = (Reader(n * width, width, num_classes) for n in (1, 4))

    def forward(self, crops, clip=False):
        """B lists of crops (3, H, W), or of a clip's frames -> logits (B, num_classes) of both readers."""
        images = pages.check_crops(crops, PATCH, self.context)
        patches, positions, cu_seqlens = (
            each.to(self.embed.weight.device) for each in pack(images)
        )
        x, rows = (
            self.embed(vit.pixel_values(patches)),
            cu_seqlens[np.cumsum([0, *map(len, crops)])],
        )
        if clip:  # the frames of a row see each other, and time is one more position
            time = torch.cat([torch.arange(len(row)) for row in crops]).to(x.device)
            time = time.repeat_interleave(cu_seqlens.diff())[:, None]
            positions, cu_seqlens = torch.cat([time, positions], dim=1), rows
        if self.table is not None:
            grids = [(image.shape[1] // PATCH, image.shape[2] // PATCH) for image in images]
            table = [interpolate_positions(self.table, *grid).view(*grid, -1) for grid in grids]
            x, positions = x + torch.cat([by_block(each) for each in table]), None
        for layer in self.layers:
            x = layer(x, positions, cu_seqlens)
        x = self.norm(x)
        four = rearrange(x, "(n four) d -> n (four d)", four=4)  # pixel shuffle
        return self.all(x, rows), self.merged(four, rows // 4)


def draw(view, split, rng, count):
    """Rows of crops, as one of VIEWS gives them of pages of all sizes, or of "clips", and their targets (count,)."""
    if view == "clips":
        clips, moved = pages.moving_clips(split, count, rng)
        return [list(clip) for clip in clips], moved
    made = [pages.digit_pages(split, side, count // len(SIDES), rng) for side in SIDES]
    crops = [VIEWS[view](image) for images, _ in made for image in images]
    return crops, torch.cat([values for _, values in made])


def train_encoder(model, view, *, steps, batch_size, lr, seed=0):
    """Train both readers on fresh pages or clips, as `draw` makes them -> History."""
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = MuonAdamW(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    settings, code = {"batch_size": batch_size, "lr": lr}, (Encoder, draw, train_encoder)
    run = Checkpoint(view, model, optimizer, scheduler, seed=seed, settings=settings, code=code)
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # of each batch
    for _ in run.steps(steps):
        rng = np.random.default_rng(np.random.randint(2**31))  # seeded by (seed, step)
        crops, targets = (each[share] for each in draw(view, "train", rng, batch_size))
        with accelerator.autocast():
            logits = torch.stack(model(crops, clip=view == "clips")).float()  # (2, B, classes)
        targets = targets.to(logits.device).expand(2, -1)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return run.history
