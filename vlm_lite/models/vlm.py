"""A trained VLM of notebook 03 as a folder: its connector's weights, and the names of its two frozen models."""

from pathlib import Path

import torch

from vlm_lite.features import weights_hash
from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import load_language_model
from vlm_lite.models.weights import load_exactly, read_weights, write_weights
from vlm_lite.profiles import resolve_model


def save_vlm(model, folder, *, vision_model, language_model, dtype=torch.float32):
    """Write the Q-Former of a VLM, config.json and model.safetensors; the frozen models by zoo name or hub id -> folder."""
    weights = model.connector.state_dict()
    write_weights(Path(folder) / "model.safetensors", weights, dtype=dtype)
    config = {
        "model_type": "vlm-lite",
        "vision_model": vision_model,
        "language_model": language_model,
        "hashes": _hashes(model.vision, model.language_model),
        "connector": {"name": "qformer", **model.connector.settings},
    }
    write_json(Path(folder) / "config.json", config)
    return folder


def load_vlm(name, resolve=resolve_model):
    """The VLM that `save_vlm` wrote to a folder or the zoo, fp32, in eval mode. resolve: name -> folder or hub id.

    UserError names the file or field that is wrong, also where a frozen model has other weights than in training.
    """
    folder = Path(resolve(name))
    path, weights = folder / "config.json", folder / "model.safetensors"
    config = read_json(path)
    try:
        names = {key: config[key] for key in ("vision_model", "language_model")}
        settings = {k: v for k, v in config["connector"].items() if k not in ("name", "dropout")}
        connector = QFormerConnector(**settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the config of a VLM ({type(error).__name__}: {error}). Expected the fields "
            "vision_model, language_model and connector, a Q-Former's sizes."
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
    return VLM(vision, connector, language_model, tokenizer).eval()


def _hashes(vision, language_model):
    return {"vision_model": weights_hash(vision), "language_model": weights_hash(language_model)}
