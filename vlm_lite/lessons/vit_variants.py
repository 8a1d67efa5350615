"""An image encoder that learns by filling in hidden patches, and a ViT with another norm or readout.

Generated from notebooks/02b_vit_variants.py by `make notebooks`: edit the notebook.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint
from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import pixel_values, tokenize
from vlm_lite.lessons.clip import make_clip, train_clip
from vlm_lite.lessons.clip_variants import SMALL, recall
from vlm_lite.lessons.vit import Block, ViT, accuracy, leftmost_task, small_cnn, train_vit
from vlm_lite.models.clip import CLIP
from vlm_lite.models.positions import axis_cosines
from vlm_lite.profiles import get_compute, resolve_model


class MaskedModel(nn.Module):
    """Predicts a target at every patch of an image of which some patches are hidden."""

    def __init__(self, encoder, target_width):
        super().__init__()
        self.encoder, width = encoder, encoder.class_embedding.shape[0]
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.head = nn.Linear(width, target_width)

    def forward(self, pixels, hidden):
        """pixels (B, 3, S, S), hidden (B, N), True where a patch is hidden -> (B, N, T)."""
        encoder, p = self.encoder, self.encoder.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        patches = encoder.patch_embedding(patches)  # (B, N, D)
        patches = torch.where(hidden[..., None], self.mask_token.to(patches.dtype), patches)
        token = encoder.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)
        x = encoder.input_norm(torch.cat([token, patches], dim=1) + encoder.position_embedding)
        for block in encoder.blocks:
            x = block(x)  # (B, 1 + N, D)
        return self.head(encoder.output_norm(x[:, 1:]))  # (B, N, T)


def pixel_targets(images, patch_size=16):
    """uint8 images (N, 3, S, S) -> (N, patches, 3 p p), each patch's pixels minus their mean."""
    pattern = "n c (h p) (w q) -> n (h w) (c p q)"
    patches = rearrange(pixel_values(images), pattern, p=patch_size, q=patch_size)
    return patches - patches.mean(dim=-1, keepdim=True)


@torch.no_grad()
def feature_targets(images, trained=True):
    """uint8 images (N, 3, 64, 64) -> (N, 16, 128), the features of `shapes-clip` or of an untrained model of its sizes.

    Standardised over the images at each patch: otherwise their mean would be a good guess.
    """
    teacher = CLIP.from_pretrained(resolve_model("shapes-clip"))
    if not trained:
        torch.manual_seed(0)
        teacher = CLIP(teacher.config).eval()
    parts = [teacher.patch_features(pixel_values(part), layer=-1) for part in images.split(500)]
    features = torch.cat(parts)
    return (features - features.mean(dim=0)) / features.std(dim=0)


def pretrain(encoder, images, targets, *, steps, batch_size, lr, seed=0, share=0.4):
    """Train an image encoder in place to predict targets (N, patches, T) where patches are hidden -> History.

    share: of the patches that are hidden. 0: none is, and the target is predicted at every patch (distillation).
    """
    torch.manual_seed(seed)
    model = MaskedModel(encoder, targets.shape[-1])
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.98), weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "images": len(images), "share": share}
    code = (MaskedModel, pretrain)
    run = Checkpoint("masked", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    for _ in run.steps(steps):
        rows = torch.randperm(len(images))[:batch_size]
        order = torch.rand(len(rows), targets.shape[1]).argsort(dim=1)  # (B, N)
        hidden = order < round(share * targets.shape[1])
        batch = pixel_values(images[rows]), hidden, targets[rows]
        pixels, hidden, target = (part.to(accelerator.device) for part in batch)
        similarity = F.cosine_similarity(prepared(pixels, hidden).float(), target, dim=-1)  # (B, N)
        loss = (1 - similarity)[hidden if share else ~hidden].mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    encoder.cpu()
    return run.history


def untrained_targets(images):
    """As `feature_targets`, of a model that has learnt nothing."""
    return feature_targets(images, trained=False)


STARTS = {  # the first training's targets and hidden share; how often the steps of the second are taken
    "captions alone": ("nothing", 0, 1),
    "captions alone, twice the steps": ("nothing", 0, 2),
    "hidden pixels first": ("pixels", 0.4, 1),
    "hidden features first": ("features", 0.4, 1),
    "features first, nothing hidden": ("features", 0, 1),
    "untrained features first, nothing hidden": ("untrained", 0, 1),
}


def train_from(start, images, captions, tokenizer, *, steps, batch_size, lr, seed=0):
    """A small CLIP from one of STARTS, trained on images (N, 3, S, S) with N lists of captions."""
    model, recipe = make_clip(tokenizer, seed, **SMALL), {"batch_size": batch_size, "lr": lr}
    kind, share, times = STARTS[start]
    make = {"pixels": pixel_targets, "features": feature_targets, "untrained": untrained_targets}
    if kind in make:
        targets, known = make[kind](images), {"share": share, "seed": seed, **recipe}
        pretrain(model.image_encoder, images, targets, steps=steps, **known)
    ids = tokenize([text for five in captions for text in five], tokenizer)
    ids = ids.view(len(images), len(captions[0]), -1)  # (N, C, T)
    train_clip(model, images, ids, steps=times * steps, seed=seed, **recipe)
    return model.cpu()


def recall_from(start, profile, seed=0):
    """{"R@1": ..., "R@5": ...} on held-out images, of a small CLIP from one of STARTS."""
    images, captions, _ = shapes.load_pairs("train", profile.contrastive_images)
    held_out, texts, _ = shapes.load_pairs("val", profile.val_images)
    steps, tokenizer = 2 * profile.contrastive_steps // 3, make_tokenizer()
    recipe = {"steps": steps, "batch_size": 64, "lr": 3e-3, "seed": seed}
    model = train_from(start, images, captions, tokenizer, **recipe)
    return recall(model, held_out, texts, tokenizer)


class PostNormBlock(Block):
    """x (B, N, D) -> (B, N, D), each LayerNorm after its sum (Vaswani et al. 2017)."""

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class MeanPoolViT(ViT):
    """A ViT that is read out at the mean of its patches."""

    def forward(self, pixels):
        return self.head(self.forward_features(pixels)[:, 1:].mean(dim=1))


def post_norm_vit():
    """02's ViT with the blocks of the first Transformer."""
    model = ViT()
    width, heads = model.norm.normalized_shape[0], model.blocks[0].attn.num_heads
    model.blocks = nn.Sequential(*(PostNormBlock(width, heads) for _ in model.blocks))
    return model


def leftmost_rows(makers, profile, seed):
    """{name: (model, History, accuracy)} of the models of {name: function}, trained on 02's task by 02's recipe."""
    train = leftmost_task("train", 2 * profile.train_images)[:2]
    test = leftmost_task("val", profile.val_images)[:2]
    recipe = {name: getattr(profile, f"vit_{name}") for name in ("steps", "batch_size", "lr")}
    found = {}
    for name, make in makers.items():
        torch.manual_seed(seed)
        model = make()
        history = train_vit(model, *train, seed=seed, name=f"{name}, seed {seed}", **recipe)
        found[name] = model, history, accuracy(model, *test)
    return found


def study(seed, profile):
    """Notebook 02b's rows: a small CLIP from each start, and 02's ViT with another norm or readout."""
    found = {start: recall_from(start, profile, seed) for start in STARTS}
    figures = {f"{start}: {k}": value for start, row in found.items() for k, value in row.items()}
    makers = {"post-norm": post_norm_vit, "mean pooling": MeanPoolViT}
    rows = leftmost_rows(makers, profile, seed)
    figures |= {f"{name}: accuracy": right for name, (_, _, right) in rows.items()}
    return rows["mean pooling"][1], figures


def without_positions():
    """02's ViT, its position embeddings held at zero."""
    model = ViT()
    nn.init.zeros_(model.pos_embed).requires_grad_(False)
    return model


def study_of_02(seed, profile):
    """Notebook 02's training: a ViT that says which object stands furthest left; without positions; and a small CNN."""
    makers = {"ViT": ViT, "ViT without positions": without_positions, "CNN": small_cnn}
    rows = leftmost_rows(makers, profile, seed)
    figures = {f"accuracy, {name}": right for name, (_, _, right) in rows.items()}
    model, history, _ = rows["ViT"]
    cosines = axis_cosines(model.pos_embed).items()
    return history, figures | {f"cosine of positions, {where}": each for where, each in cosines}
