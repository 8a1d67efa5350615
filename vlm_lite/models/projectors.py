"""Connectors that keep the number of patches: one linear layer, or LLaVA-1.5's two; and `make_connector` for all three.

A connector is the nerve between a frozen eye and a frozen brain: (B, N, Dv) image features -> (B, Q, D_lm) vectors that
the language model reads as if they were words. Here Q = N; the Q-Former (qformer.py) has Q of its own choice.
"""

import inspect

from torch import nn

from vlm_lite.models.qformer import QFormerConnector, check_features


class LinearProjector(nn.Module):
    """One linear map for every patch (LLaVA, Liu et al. 2023, section 4.1)."""

    def __init__(self, *, vision_width, language_width):
        super().__init__()
        self.settings = dict(vision_width=vision_width, language_width=language_width)
        self.vision_width, self.language_width = vision_width, language_width
        self.projection = nn.Linear(vision_width, language_width)

    def forward(self, image_embeds):
        """image_embeds (B, N, Dv) -> prefix (B, N, D_lm)."""
        check_features(image_embeds, self.vision_width)
        return self.projection(image_embeds)


class MLPProjector(nn.Module):
    """Linear, GELU, Linear: LLaVA-1.5's `mlp2x_gelu` (Liu et al. 2024). hidden_width defaults to language_width."""

    def __init__(self, *, vision_width, language_width, hidden_width=None):
        super().__init__()
        hidden_width = hidden_width or language_width
        self.settings = dict(
            vision_width=vision_width, language_width=language_width, hidden_width=hidden_width
        )
        self.vision_width, self.language_width = vision_width, language_width
        self.projection = nn.Sequential(
            nn.Linear(vision_width, hidden_width),
            nn.GELU(),
            nn.Linear(hidden_width, language_width),
        )

    def forward(self, image_embeds):
        """image_embeds (B, N, Dv) -> prefix (B, N, D_lm)."""
        check_features(image_embeds, self.vision_width)
        return self.projection(image_embeds)


CONNECTORS = {"linear": LinearProjector, "mlp": MLPProjector, "qformer": QFormerConnector}


def make_connector(name, vision_width, language_width, **settings):
    """The connector called `name` ("linear", "mlp" or "qformer"), with `settings` for its constructor.

    Raises ValueError, listing what there is, for another name or setting.
    """
    if name not in CONNECTORS:
        raise ValueError(f"there is no connector {name!r}. There are: {', '.join(CONNECTORS)}.")
    known = set(inspect.signature(CONNECTORS[name]).parameters) - {"vision_width", "language_width"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"the connector {name!r} has no setting {', '.join(unknown)}. "
            f"It has: {', '.join(sorted(known)) or 'none'}."
        )
    return CONNECTORS[name](vision_width=vision_width, language_width=language_width, **settings)
