"""What stands beside the models of the lessons: their initialisation, and pretrained parts that stay in eval mode."""

import torch
from torch import nn


class FrozenParts(nn.Module):
    """A module with a `vision` encoder, and a `language_model` that is frozen unless some of its weights are trained."""

    def train(self, mode=True):
        """As `nn.Module.train`, but the pretrained parts stay in eval mode: they must not drop out."""
        super().train(mode)
        self.vision.eval()
        self.language_model.eval()
        return self

    @torch.no_grad()
    def encode(self, pixels):
        """Normalised pixels (B, 3, S, S) -> features (B, N, Dv)."""
        return self.vision.patch_features(pixels.to(next(self.vision.parameters()).device))


def init_linear(module, sharp=()):
    """BERT's start for every linear layer in `module`: weights N(0, 0.02), biases 0.

    Layers whose name ends in one of `sharp` get a standard deviation of 1 / sqrt(inputs): attention scores near 1.
    """
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear):
            std = linear.in_features**-0.5 if name.endswith(tuple(sharp)) else 0.02
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
