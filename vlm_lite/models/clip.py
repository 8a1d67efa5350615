"""A trained CLIP: `transformers.CLIPModel` with the three outputs that the course uses.

Shapes: B images or texts, N patches, T text tokens, D width of the vision encoder, P width of the joint space.
"""

from transformers import CLIPModel

from vlm_lite.data.images import fit_square
from vlm_lite.embed import pixel_values
from vlm_lite.files import UserError, read_json
from vlm_lite.models.weights import load_pretrained, model_folder


class CLIP(CLIPModel):
    """CLIP of any size in Hugging Face layout: the course's own (see `models.layout`) or OpenAI's."""

    pixel_values = staticmethod(pixel_values)

    @property
    def feature_width(self):
        """D, the width of `patch_features`."""
        return self.config.vision_config.hidden_size

    @property
    def image_size(self):
        """S, the side of an image in pixels."""
        return self.config.vision_config.image_size

    def fit(self, image):
        """An RGB image of PIL -> the (S, S) that is read."""
        return fit_square(image, self.image_size)

    @property
    def patch_size(self):
        """The side of a patch in pixels."""
        return self.config.vision_config.patch_size

    def encode_image(self, pixel_values):
        """pixel_values (B, 3, S, S), normalised floats -> joint embeddings (B, P), not of unit length."""
        return self.visual_projection(self.vision_model(pixel_values).pooler_output)

    def encode_text(self, input_ids, attention_mask=None):
        """input_ids (B, T), right-padded, each with an EOS -> joint embeddings (B, P), not of unit length."""
        return self.text_projection(self.text_model(input_ids, attention_mask).pooler_output)

    def patch_features(self, pixel_values, layer=-2):
        """pixel_values (B, 3, S, S) -> (B, N, D), `hidden_states[layer]` of the patches, without the class token.

        Layer -2 is what LLaVA takes (Liu et al. 2023, section 4.1): the last block works for the class token alone,
        since CLIP's loss sees nothing else. Blocks after `layer` are not run. IndexError for a layer that is not there.
        """
        encoder = self.vision_model
        blocks = encoder.encoder.layers
        depth = range(len(blocks) + 1)[
            layer
        ]  # hidden_states[depth]: after the first `depth` blocks
        x = encoder.pre_layrnorm(encoder.embeddings(pixel_values))  # (B, 1 + N, D)
        for block in blocks[:depth]:
            x = block(x, None)
        return x[:, 1:]

    @classmethod
    def from_pretrained(cls, folder_or_id, **options):
        """A CLIP in fp32 and eval mode from a folder in Hugging Face layout, or from a hub id (downloaded once).

        UserError when a file is missing or cut short, is another kind of model's, or when any name or shape of the
        weights does not fit.
        """
        folder = model_folder(folder_or_id)
        config = read_json(folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else config
        if kind != "clip":
            raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}, expected 'clip'.")
        return load_pretrained(super().from_pretrained, folder, **options)
