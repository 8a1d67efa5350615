"""The CLIP of notebook 01 in Hugging Face layout: the same weights under the names of `transformers.CLIPModel`.

The two models are one in arithmetic and differ in names: transformers keeps the patch embedding as a convolution and the
query, key and value of attention apart, which the notebook has in one matrix.
"""

from pathlib import Path

import torch

from vlm_lite.files import write_json
from vlm_lite.models.clip import CLIPConfig
from vlm_lite.models.weights import write_weights

NAMES = {  # ours -> theirs, longest first where one begins like another
    "image_encoder.patch_embedding": "vision_model.embeddings.patch_embedding",
    "image_encoder.class_embedding": "vision_model.embeddings.class_embedding",
    "image_encoder.position_embedding": "vision_model.embeddings.position_embedding.weight",
    "image_encoder.input_norm": "vision_model.pre_layrnorm",  # the spelling of the released weights
    "image_encoder.output_norm": "vision_model.post_layernorm",
    "image_encoder.blocks": "vision_model.encoder.layers",
    "text_encoder.token_embedding": "text_model.embeddings.token_embedding",
    "text_encoder.position_embedding": "text_model.embeddings.position_embedding.weight",
    "text_encoder.output_norm": "text_model.final_layer_norm",
    "text_encoder.blocks": "text_model.encoder.layers",
    "image_projection": "visual_projection",
}
INSIDE = {  # within a block
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
    ".out.": ".self_attn.out_proj.",
}


def to_transformers(model):
    """(config, weights) of a `lessons.clip.CLIP` as `transformers.CLIPModel` has them: a CLIPConfig, name -> tensor."""
    ours, weights = model.config, {}
    for name, tensor in model.state_dict().items():
        for own, other in (NAMES | INSIDE).items():
            name = name.replace(own, other)
        if ".qkv." in name:
            stem, kind = name.split(".qkv.")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{stem}.self_attn.{part}_proj.{kind}"] = piece
        elif name.endswith("patch_embedding.weight"):  # (D, 3 p p) -> (D, 3, p, p)
            weights[name] = tensor.view(len(tensor), 3, ours.patch_size, ours.patch_size)
        else:
            weights[name] = tensor
    config = CLIPConfig(
        image_size=ours.image_size,
        patch_size=ours.patch_size,
        vision_width=ours.width,
        vision_layers=ours.image_layers,
        vision_heads=ours.num_heads,
        vocab_size=ours.vocab_size,
        context_length=ours.context_length,
        text_width=ours.width,
        text_layers=ours.text_layers,
        text_heads=ours.num_heads,
        projection_dim=ours.projection_dim,
        hidden_act="gelu",
        eos_token_id=ours.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    return config, weights


def save_clip(model, folder, *, dtype=torch.float32):
    """Write a `lessons.clip.CLIP` as config.json and model.safetensors for `transformers.CLIPModel.from_pretrained`.

    `vlm_lite.models.clip.CLIP.from_pretrained` reads them as well. Returns the folder.
    """
    config, weights = to_transformers(model)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_weights(Path(folder) / "model.safetensors", weights, dtype=dtype)
    write_json(
        Path(folder) / "config.json",
        {**config.to_hf(), "dtype": str(dtype).removeprefix("torch.")},
    )
    return folder
