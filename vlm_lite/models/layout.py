"""The notebooks' models in Hugging Face layout: the same weights under the names of `transformers`.

Notebook 01's CLIP and `transformers.CLIPModel` are one in arithmetic and differ in names: transformers keeps the patch
embedding as a convolution and the query, key and value of attention apart, which the notebook has in one matrix. A VLM is
saved as its connector's weights and the names of its two frozen models.
"""

from pathlib import Path

import torch

from vlm_lite.features import weights_hash
from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.models.clip import CLIP, CLIPConfig
from vlm_lite.models.text import load_language_model
from vlm_lite.models.weights import load_exactly, read_weights, write_weights
from vlm_lite.profiles import resolve_model

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


BLIP2 = {  # transformers' -> ours, in this order
    "encoder.layer.": "layers.",
    "crossattention.attention": "cross_attention",
    "attention.attention": "self_attention",
    "crossattention.output.dense": "cross_attention.output",
    "crossattention.output.LayerNorm": "cross_norm",
    ".attention.output.dense": ".self_attention.output",
    ".attention.output.LayerNorm": ".self_norm",
    "intermediate_query.dense": "mlp_in",
    "output_query.dense": "mlp_out",
    "output_query.LayerNorm": "mlp_norm",
    "layernorm.": "input_norm.",
}


def from_blip2(state):
    """The weights of a `transformers.Blip2QFormerModel` under the names of `lessons.qformer.QFormer`, without queries."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in BLIP2.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def save_vlm(model, folder, kind="qformer", *, vision_model, language_model, dtype=torch.float32):
    """Write a VLM's connector, config.json and model.safetensors; the two frozen models by zoo name or hub id.

    kind: the name of the connector's class for `load_vlm`. Returns the folder.
    """
    weights = model.connector.state_dict()
    write_weights(Path(folder) / "model.safetensors", weights, dtype=dtype)
    config = {
        "model_type": "vlm-lite",
        "vision_model": vision_model,
        "language_model": language_model,
        "hashes": _hashes(model.vision, model.language_model),
        "connector": {"name": kind, **model.connector.settings},
    }
    write_json(Path(folder) / "config.json", config)
    return folder


def load_vlm(folder, vlm_class, connectors, resolve=resolve_model):
    """The VLM that `save_vlm` wrote, fp32, in eval mode. connectors: name -> class. resolve: name -> folder or hub id.

    UserError names the file or field that is wrong, also where a frozen model has other weights than in training.
    """
    path, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    config = read_json(path)
    try:
        names = {key: config[key] for key in ("vision_model", "language_model")}
        settings = {k: v for k, v in config["connector"].items() if k not in ("name", "dropout")}
        connector = connectors[config["connector"]["name"]](**settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the config of a VLM ({type(error).__name__}: {error}). Expected the fields "
            f"vision_model, language_model and connector, of the kinds {', '.join(connectors)}."
        ) from error
    load_exactly(connector, read_weights(weights), source=weights)
    vision = CLIP.from_pretrained(resolve(names["vision_model"]))
    language_model, tokenizer = load_language_model(resolve(names["language_model"]))
    hashes, now = config.get("hashes", {}), _hashes(vision, language_model)
    if changed := [names[key] for key in now if hashes.get(key, now[key]) != now[key]]:
        raise UserError(
            f"{path}: this connector was trained with other weights of {' and '.join(changed)} than "
            "those found under that name. Train it again, or bring the old weights back."
        )
    return vlm_class(vision, connector, language_model, tokenizer).eval()


def _hashes(vision, language_model):
    return {"vision_model": weights_hash(vision), "language_model": weights_hash(language_model)}
