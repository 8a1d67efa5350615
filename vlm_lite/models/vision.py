"""The frozen vision encoder of a VLM: a trained CLIP, or any model of timm, each with its own way from image to pixels.

Both have `fit` (a PIL image -> the square that the encoder reads), `pixel_values` (uint8 -> normalised floats),
`patch_features`, `feature_width` and `image_size`.
"""

from difflib import get_close_matches

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision.transforms import Compose

from vlm_lite.files import UserError
from vlm_lite.models.clip import CLIP
from vlm_lite.models.weights import load_exactly, read_weights
from vlm_lite.profiles import resolve_model


class TimmVision(nn.Module):
    """A timm model without its classifier: its last map (B, D, H, W), or a ViT's patches as such a map, as tokens.

    side: the map is averaged over a grid of side x side; None leaves it as it is. Images are cropped and normalised
    as timm's data config of the model says.
    """

    def __init__(self, model, side=None):
        super().__init__()
        self.model, self.side = model.to(memory_format=torch.channels_last), side or None  # faster
        data = resolve_model_data_config(model)
        self.config = {
            "architecture": model.pretrained_cfg["architecture"],
            **data,
            "side": self.side,
        }
        self.feature_width, self.image_size = model.num_features, data["input_size"][-1]
        self.fit = Compose(create_transform(**data).transforms[:-2])  # the rest: `pixel_values`
        self.eval()

    def pixel_values(self, images):
        """uint8 images (B, 3, S, S) -> floats, normalised with the model's own mean and std."""
        mean, std = (
            torch.tensor(self.config[name], device=images.device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )
        return (images / 255 - mean) / std

    def patch_features(self, pixel_values, layer=None):
        """pixel_values (B, 3, S, S) -> (B, tokens, D), row by row, of the last map whatever `layer`.

        UserError where the model's features are neither a map nor a square of patches.
        """
        pixel_values = pixel_values.to(memory_format=torch.channels_last)
        found = self.model.forward_features(pixel_values)
        try:
            if found.ndim == 3:  # a ViT's tokens: the class token and its like come first
                found = found[:, getattr(self.model, "num_prefix_tokens", 0) :]
                side = int(found.shape[1] ** 0.5)
                found = rearrange(found, "b (h w) d -> b h w d", h=side, w=side)
            if found.shape[1] != self.feature_width:  # (B, H, W, D), as Swin's
                found = rearrange(found, "b h w d -> b d h w", d=self.feature_width)
        except (AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self.config['architecture']}: its features are no map and no square of patches. Take another."
            ) from error
        return rearrange(F.adaptive_avg_pool2d(found, (self.side,) * 2), "b d h w -> b (h w) d")


def load_vision(name, weights=None, side=None):
    """The CLIP of a folder, the zoo or a hub id; or the TimmVision of a timm model's name, in eval mode.

    For a timm model alone: weights, a file of them (None: timm's own, from the hub), .safetensors with timm's names, or
    .pth with the same tensors in the same order whatever their names, read with weights_only=True; and `side`.
    UserError for a name that is unknown or has no weights, and for a file that is cut or does not fit.
    """
    name = name.removeprefix("timm/")
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models()))
        try:
            folder = resolve_model(name)
        except UserError as error:
            raise UserError(
                f"{error} timm has no model {name!r} (near: {near or 'none'})."
            ) from error
        if weights or side:
            raise UserError(f"{name!r} is no name of timm's, and weights and side go with one.")
        return CLIP.from_pretrained(folder)
    if weights:
        model = timm.create_model(name)
        load_exactly(model, _read(weights, name, list(model.state_dict())), source=weights)
        return TimmVision(model, side)
    if not timm.is_model_pretrained(name):
        raise UserError(
            f"timm has no weights for {name!r}, so it would stay random. Take another "
            "(timm.list_models(pretrained=True)), or pass a file of weights."
        )
    try:
        return TimmVision(timm.create_model(name, pretrained=True), side)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of {name!r} cannot be had ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Check the network, or pass a file of weights."
        ) from error


def _read(path, name, names):
    """{name: tensor} of a file for the timm model `name`, which has `names`."""
    if str(path).endswith(".safetensors"):
        return read_weights(path)
    try:
        values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    except Exception as error:  # pickle, zip and torch raise as many kinds as files can be damaged
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}). It may be cut short: "
            "delete it and download it again."
        ) from error
    if len(values) != len(names):
        raise UserError(
            f"{path} holds {len(values)} tensors, and timm's {name} has {len(names)}. Expected the same tensors "
            "in the same order."
        )
    return dict(zip(names, values, strict=True))
