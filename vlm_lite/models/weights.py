"""Reading and writing weights so that a wrong file is refused, with the names that did not fit.

A `load_state_dict(strict=False)` that matches nothing leaves a random model and no error: the silent bug of many small
VLMs. Here every load is exact.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlm_lite.files import UserError, atomic_write
from vlm_lite.hub import cached_snapshot

OTHER_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")


def read_weights(path):
    """The tensors of a .safetensors file as a dict on the CPU. Pickled weights are not read: they can run code.

    Raises UserError naming the file when it is missing, cut short or not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        others = [p.name for p in sorted(path.parent.glob("*")) if p.suffix in OTHER_FORMATS]
        raise UserError(
            f"{path} does not exist."
            + (
                f" The folder holds {', '.join(others[:5])}: pickled weights can run code, and other formats "
                "and names are not read. Load it in transformers and save it with save_pretrained."
                if others
                else " Check the folder, or make or download the model again."
            )
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({error}). The file may be cut short: "
            "delete it and make or download it again."
        ) from error


def load_exactly(model, state, *, source):
    """Copy `state` into `model`, each parameter in the model's own dtype.

    UserError, which leaves the model as it was, unless every name and shape fits and every number is finite. `source`
    names the file in the message.
    """
    own = model.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [k for k in own if k in state and own[k].shape != state[k].shape],
        "not finite": [name for name, value in state.items() if not value.isfinite().all()],
    }
    if any(wrong.values()):
        found = [f"{len(names)} {kind} ({names[0]})" for kind, names in wrong.items() if names]
        raise UserError(
            f"{source} does not fit this {type(model).__name__}: {', '.join(found)}. Use the config.json that belongs "
            "to these weights, or make the weights again."
        )
    model.load_state_dict(state)


def write_weights(path, state, *, dtype=torch.float32):
    """Write `state` as a .safetensors file in `dtype`, whole or not at all."""
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


def load_pretrained(from_pretrained, folder, **options):
    """The model that transformers' `from_pretrained` makes of a folder's safetensors, whole, finite and in eval mode.

    UserError naming the file that is missing, cut short or damaged, and the parameters that do not fit or are not finite.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights loaded; downloads keep theirs
    try:
        model, report = from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if not (folder / "model.safetensors.index.json").exists():
            read_weights(folder / "model.safetensors")
        raise UserError(
            f"{folder} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error
    wrong = [
        name
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
        for name in sorted(map(str, report[kind]))
    ]
    wrong += [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} parameters are missing, unknown, of another shape or not finite, for example "
            f"{wrong[0]}. Use the config.json that belongs to these weights, or make or download them again."
        )
    return model.eval()


def model_folder(folder_or_id):
    """The folder of a model in Hugging Face layout, that of a hub id downloaded once. UserError where it gives none."""
    folder = Path(folder_or_id)
    return folder if folder.is_dir() else download(str(folder_or_id))


def download(model_id):
    """The local folder of a hub id's config.json and weights. UserError naming the id when it cannot be had.

    An old repository has only pickled weights in `main`; then the hub's own conversion is taken, which a bot of the hub
    (SFconvertbot) offers as a pull request. transformers looks there too.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*.safetensors",
    ]
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=files))
        if not any((folder / name).exists() for name in files[1:3]):
            folder = cached_snapshot(model_id)
        if folder is None:
            offers = HfApi().get_repo_discussions(
                model_id, author="SFconvertbot", discussion_type="pull_request"
            )
            number = next(
                (
                    offer.num
                    for offer in offers
                    if offer.author == "SFconvertbot" and "safetensors" in offer.title
                ),
                None,
            )
            if number is None:
                raise OSError("it has no model.safetensors, and the hub offers no conversion")
            folder = Path(
                snapshot_download(model_id, revision=f"refs/pr/{number}", allow_patterns=files)
            )
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{model_id!r} is neither a folder here nor a model that the hub or its local cache gave "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the spelling and the network, "
            "or use the profile tiny, which needs no download."
        ) from error
