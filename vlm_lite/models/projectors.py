"""Connectors by name: one linear layer, LLaVA-1.5's two, or notebook 03's Q-Former.

A connector stands between a frozen vision encoder and a frozen language model: features (B, N, Dv) -> (B, Q, D_lm)
vectors that the language model reads as if they were words. The first two keep the number of patches, Q = N.
"""

from torch import nn

from vlm_lite.lessons.qformer import QFormerConnector


class LinearProjector(nn.Module):
    """One linear map for every patch (LLaVA, Liu et al. 2023, section 4.1)."""

    def __init__(self, *, vision_width, language_width):
        super().__init__()
        self.settings = dict(vision_width=vision_width, language_width=language_width)
        self.projection = nn.Linear(vision_width, language_width)

    def forward(self, features):
        """features (B, N, Dv) -> prefix (B, N, D_lm)."""
        return self.projection(features)


class MLPProjector(nn.Module):
    """Linear, GELU, Linear: LLaVA-1.5's `mlp2x_gelu` (Liu et al. 2024). hidden_width defaults to language_width."""

    def __init__(self, *, vision_width, language_width, hidden_width=None):
        super().__init__()
        hidden_width = hidden_width or language_width
        self.settings = dict(vision_width=vision_width, language_width=language_width)
        self.settings["hidden_width"] = hidden_width
        first, last = nn.Linear(vision_width, hidden_width), nn.Linear(hidden_width, language_width)
        self.projection = nn.Sequential(first, nn.GELU(), last)

    def forward(self, features):
        """features (B, N, Dv) -> prefix (B, N, D_lm)."""
        return self.projection(features)


CONNECTORS = {"linear": LinearProjector, "mlp": MLPProjector, "qformer": QFormerConnector}


def make_connector(name, vision_width, language_width, **settings):
    """The connector called `name` ("linear", "mlp" or "qformer"), with `settings` for its constructor.

    Raises ValueError for another name, TypeError for another setting.
    """
    if name not in CONNECTORS:
        raise ValueError(f"there is no connector {name!r}. There are: {', '.join(CONNECTORS)}.")
    settings.pop("dropout", None)  # in the config of older Q-Formers, always 0
    return CONNECTORS[name](vision_width=vision_width, language_width=language_width, **settings)
