"""Pretrained parts that come in other formats: a vision encoder of timm, and a language model from a GGUF file.

Both are frozen in the VLM. A GGUF file is converted once into a folder in Hugging Face layout, which
`text.load_language_model` then reads like any other.
"""

import struct

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.files import UserError, atomic_dir
from vlm_lite.models.text import FAMILIES
from vlm_lite.models.weights import load_exactly


class TimmVision(nn.Module):
    """A timm model without its classifier, as a frozen encoder of `side` x `side` tokens.

    Its last map (B, D, H, W), or the patches of a ViT as such a map, is averaged over that grid. The images are
    normalised as timm's own data config says.
    """

    def __init__(self, model, side=2):
        super().__init__()
        self.model, self.side = model.eval().to(memory_format=torch.channels_last), side  # faster
        self.config = {k: model.pretrained_cfg[k] for k in ("architecture", "mean", "std")}
        self.feature_width = model.num_features

    def patch_features(self, images):
        """uint8 images (B, 3, S, S) -> (B, side * side, D), row by row."""
        mean, std = (
            torch.tensor(self.config[name], device=images.device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )
        images = images.to(memory_format=torch.channels_last)
        found = self.model.forward_features((images / 255 - mean) / std)
        if found.ndim == 3:  # a ViT's tokens: the class token and its like come first
            found = found[:, self.model.num_prefix_tokens :]
            height = int(found.shape[1] ** 0.5)
            found = rearrange(found, "b (h w) d -> b d h w", h=height)
        return rearrange(F.adaptive_avg_pool2d(found, self.side), "b d h w -> b (h w) d")


def load_timm(name, weights=None, side=2):
    """TimmVision of the timm model `name`: with its own weights from the hub, or with those of a `.pth` file.

    weights: path of a dict of tensors for this architecture in the same order, whatever their names, read with
    weights_only=True. Raises UserError for a name that timm does not know or has no weights for, and for a file that is
    cut or does not fit.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:8]}*")[:5])
        raise UserError(f"timm has no model {name!r}. Check the name (near: {near or 'none'}).")
    if weights is None:
        if not timm.is_model_pretrained(name):
            raise UserError(
                f"timm has no weights for {name!r}, so it would stay random. Take another "
                "(timm.list_models(pretrained=True)), or pass a file of weights."
            )
        try:
            return TimmVision(timm.create_model(name, pretrained=True), side).eval()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights of {name!r} cannot be had ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Check the network, or pass a file of weights."
            ) from error
    model = timm.create_model(name)
    try:
        values = list(torch.load(weights, map_location="cpu", weights_only=True).values())
    except Exception as error:  # pickle, zip and torch raise as many kinds as files can be damaged
        raise UserError(
            f"{weights} cannot be read as weights ({type(error).__name__}). It may be cut short: "
            "delete it and download it again."
        ) from error
    names = list(model.state_dict())
    if len(values) != len(names):
        raise UserError(
            f"{weights} holds {len(values)} tensors, and timm's {name} has {len(names)}. Expected the same tensors "
            "in the same order."
        )
    load_exactly(model, dict(zip(names, values, strict=True)), source=weights)
    return TimmVision(model, side).eval()


def convert_gguf(path, folder, chat_template=None):
    """Write the model and tokenizer of a GGUF file to `folder` in Hugging Face layout, in fp32; returns the folder.

    Quantised tensors are dequantised: the weights are those that the file stands for. chat_template: in place of the
    file's own. Raises UserError for a file that is cut or no GGUF, and for an architecture not proved in the VLM.
    """
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        family = GGUFReader(path).get_field("general.architecture").contents()
    except (ValueError, IndexError, OSError, AttributeError, struct.error) as error:
        raise UserError(
            f"{path} cannot be read as GGUF ({type(error).__name__}: {str(error)[:80]}). It may be cut short: "
            "delete it and download it again."
        ) from error
    if family not in FAMILIES:
        raise UserError(
            f"{path} holds a model of the architecture {family!r}. Expected one proved to work in the VLM: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    read = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    read.config.quantization_config = None  # what was read is refused by save_pretrained
    model = type(read)(read.config)
    model.tie_weights()
    load_exactly(model, read.state_dict(), source=path)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    with atomic_dir(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
