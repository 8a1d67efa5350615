"""The training recipe of notebook 02: a small ViT that reads a digit wherever it stands, and what it is compared with.

Used alike by the notebook and by the recorded study `vit_digits`. What is for photographs serves the notebook's part on
a GPU.
"""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data.images import to_rgb
from .files import UserError
from .models.vit import Block, VisionTransformer
from .train import train

CANVAS = 20  # pixels a side
DIGITS_VIT = dict(
    image_size=CANVAS,
    patch_size=4,
    width=96,
    num_layers=4,
    num_heads=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    embedding_norm=False,
    patch_bias=True,
    num_classes=10,
)
VARIANTS = {
    "the ViT": {},
    "post-norm": {"post_norm": True},
    "mean of the patches": {"pool": "mean"},
    "no positions": {"positions": False},
    "no attention: an MLP": {"attention": False},
}


class PostNormBlock(Block):
    """A block as in the first transformer (Vaswani et al. 2017): the sum is normalised, after each of the two steps."""

    def forward(self, x, *, is_causal=False, return_attention=False):
        """x (B, N, D) -> (B, N, D), and the attention weights (B, H, N, N) when asked for."""
        attended = self.self_attn(x, is_causal=is_causal, return_attention=return_attention)
        attended, weights = attended if return_attention else (attended, None)
        x = self.layer_norm1(x + attended)
        x = self.layer_norm2(x + self.mlp(x))
        return (x, weights) if return_attention else x


class PixelMLP(nn.Module):
    """The control without attention: two hidden layers on all pixels of a canvas at once, about as many weights."""

    def __init__(self, width=512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(CANVAS**2, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, DIGITS_VIT["num_classes"]),
        )

    def forward(self, pixels):
        """pixels (B, 3, S, S), grey -> an output with logits (B, 10)."""
        return SimpleNamespace(logits=self.layers(pixels[:, 0]))


def make_digits_vit(*, seed=0, post_norm=False, positions=True, attention=True, **settings):
    """An untrained ViT for the canvases: `DIGITS_VIT` with `settings` changed; without positions they stay at zero.

    Without attention it is no ViT at all but a PixelMLP.
    """
    torch.manual_seed(seed)
    if not attention:
        return PixelMLP()
    model = VisionTransformer(**{**DIGITS_VIT, **settings})
    if post_norm:
        blocks = model.encoder.layers
        for number, block in enumerate(blocks):
            width, mlp_width = block.mlp.fc1.in_features, block.mlp.fc1.out_features
            after = PostNormBlock(
                width=width,
                num_heads=block.self_attn.num_heads,
                mlp_width=mlp_width,
                hidden_act="gelu",
                layer_norm_eps=block.layer_norm1.eps,
            )
            after.load_state_dict(block.state_dict())  # the same weights to begin with
            blocks[number] = after
    if not positions:
        nn.init.zeros_(model.embeddings.position_embedding.weight).requires_grad_(False)
    return model


def digit_pixels(pictures):
    """uint8 (B, 3, S, S) -> floats of about mean 0 and deviation 1. UserError for anything but bytes."""
    if pictures.dtype != torch.uint8:
        raise UserError(
            f"digit_pixels got {pictures.dtype}; expected uint8 in 0..255, as make_canvases gives them."
        )
    return (pictures / 255 - 0.33) / 0.2


def photo_pixels(pictures, size=None):
    """uint8 (B, 3, H, W) -> floats in -1..1, as timm's own ViTs want them; enlarged or shrunk to `size` if given."""
    pixels = pictures.float() / 127.5 - 1
    return (
        pixels
        if size is None
        else F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    )


def crop_and_flip(pictures, generator, pad=4):
    """Augmentation: each picture (B, 3, S, S) moved by up to `pad` pixels, black coming in, and half of them mirrored."""
    size, count = pictures.shape[-1], len(pictures)
    windows = (
        F.pad(pictures, [pad] * 4).unfold(2, size, 1).unfold(3, size, 1)
    )  # (B, 3, 2 pad + 1, 2 pad + 1, S, S)
    down, right = torch.randint(2 * pad + 1, (2, count), generator=generator)
    moved = windows[torch.arange(count), :, down, right]  # (B, 3, S, S)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def load_cifar10(split):
    """CIFAR-10 (Krizhevsky 2009) from the hub: uint8 (N, 3, 32, 32), classes (N,), and the ten names. 150 MB, once.

    split: "train" (50,000) or "test" (10,000).
    """
    from datasets import load_dataset

    table = load_dataset("uoft-cs/cifar10", split=split)
    pictures = torch.stack([torch.from_numpy(np.array(to_rgb(image))) for image in table["img"]])
    return (
        pictures.permute(0, 3, 1, 2).contiguous(),
        torch.tensor(table["label"][:]),
        table.features["label"].names,
    )


def train_classifier(
    model,
    pictures,
    classes,
    *,
    steps,
    batch_size=128,
    lr=1.5e-3,
    prepare=digit_pixels,
    augment=None,
    label_smoothing=0.0,
    **options,
):
    """Train a ViT with a head on uint8 pictures (N, 3, S, S) and classes (N,) by cross-entropy. A History.

    Recipe: AdamW, weight decay 0.05, one cosine with warm-up, each batch drawn at random. `prepare` makes floats of a
    batch; `augment(pictures, generator)` changes its pictures first. `options` go to `train.train`.
    """
    if len(pictures) != len(classes):
        raise UserError(
            f"{len(pictures)} pictures but {len(classes)} classes; expected one class a picture."
        )
    if (
        known := model(prepare(pictures[:1].to(next(model.parameters()).device))).logits.shape[1]
    ) <= int(classes.max()) or classes.min() < 0:
        raise UserError(
            f"classes hold {int(classes.min())}..{int(classes.max())}, but the model has {known} of them: "
            f"expected 0..{known - 1}. Count classes from 0, or build it with another num_classes."
        )

    def batches(step, generator):
        rows = torch.randint(len(pictures), (batch_size,), generator=generator)
        return augment(pictures[rows], generator) if augment else pictures[rows], classes[rows]

    def loss_fn(model, batch):
        return F.cross_entropy(
            model(prepare(batch[0])).logits.float(), batch[1], label_smoothing=label_smoothing
        )

    options = {"weight_decay": 0.05, "description": "ViT", **options}
    return train(
        model,
        batches,
        loss_fn,
        steps=steps,
        lr=lr,
        settings={"batch_size": batch_size, "images": len(pictures)},
        **options,
    )


@torch.no_grad()
def accuracy(model, pictures, classes, *, prepare=digit_pixels, batch_size=250):
    """The share of pictures uint8 (N, 3, S, S) whose class (N,) a trained ViT finds."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = [
        model(prepare(part.to(device))).logits.argmax(dim=1).cpu()
        for part in pictures.split(batch_size)
    ]
    model.train(was_training)
    return (torch.cat(found) == classes).float().mean().item()


def flat_pixels(pictures):
    """uint8 (N, S, S) or grey (N, 3, S, S) -> floats (N, S * S) in 0..1, as NumPy."""
    return (pictures if pictures.ndim == 3 else pictures[:, 0]).flatten(1).float().div(255).numpy()


def without_light(pictures):
    """The same with what a person knows of the light taken off: the best fit a + b x + c y + d xy; then length 1."""
    pixels, place = flat_pixels(pictures), np.linspace(-1, 1, pictures.shape[-1])
    x, y = (axis.ravel() for axis in np.meshgrid(place, place))
    light, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * y], axis=1))  # (S * S, 4)
    pixels = pixels - pixels @ light @ light.T
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True)


def pixel_methods(
    train_pictures, train_classes, pictures, classes, *, svc_pictures=3000, prepare=flat_pixels
):
    """Accuracy of three methods that compare pixel with pixel: {name: share}. Pictures uint8 (N, ..., S, S).

    Nearest neighbour and logistic regression train on all of `train_pictures`, the support vector classifier, whose
    time grows with the square of their number, on the first `svc_pictures`. prepare: what they get of the pictures.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    known, unseen = prepare(train_pictures), prepare(pictures)
    methods = {
        "nearest neighbour": (KNeighborsClassifier(1), None),
        "logistic regression": (LogisticRegression(max_iter=300, tol=1e-3), None),
        "SVC": (SVC(), svc_pictures),
    }
    return {
        name: method.fit(known[:limit], train_classes[:limit].numpy()).score(
            unseen, classes.numpy()
        )
        for name, (method, limit) in methods.items()
    }
