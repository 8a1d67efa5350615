"""Reading and writing weights so that a wrong file is refused, with the names that did not fit.

A `load_state_dict(strict=False)` that matches nothing leaves a random model and no error: the silent bug of many small
VLMs. Here every load is exact.
"""

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlm_lite.files import UserError, atomic_write, read_json
from vlm_lite.hub import cached_snapshot


def read_weights(path):
    """The tensors of a .safetensors file as a dict on the CPU. Pickled weights are not read: they can run code.

    Raises UserError naming the file when it is missing, cut short or not what its name says.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        held = ", ".join(each.name for each in sorted(Path(path).parent.glob("*.*")))
        raise UserError(
            f"{path} does not exist{f'; the folder holds {held}' if held else ''}. Pickled weights can run code "
            "and are not read: load them in transformers and save them with save_pretrained."
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({error}). The file may be cut short: "
            "delete it and make or download it again."
        ) from error


def load_exactly(model, state, *, source):
    """Copy `state` into `model`, each parameter in the model's own dtype.

    UserError unless every name and shape fits and every number is finite. `source` names the file in the message.
    """
    wrong = [f"{name} is not finite" for name, value in state.items() if not value.isfinite().all()]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # it lists the names
        wrong.append(" ".join(str(error).split()))
    if wrong:
        raise UserError(
            f"{source} does not fit this {type(model).__name__}: {wrong[-1]} Use the config.json that belongs to these "
            "weights, or make the weights again."
        )


def write_weights(path, state, *, dtype=torch.float32):
    """Write `state` as a .safetensors file in `dtype`, whole or not at all."""
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


@contextlib.contextmanager
def faults_named(folder_or_id):
    """Turn what transformers raises while it loads a model into a UserError, naming the folder's file at fault."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights loaded; downloads keep theirs
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a faulty config.json or index raises any kind
        here = sorted(Path(folder_or_id).glob("*.*")) if os.path.isdir(folder_or_id) else []
        for path in here:
            if path.suffix in (".json", ".safetensors"):
                (read_json if path.suffix == ".json" else read_weights)(path)
        holds = f"; the folder holds {', '.join(path.name for path in here)}" if here else ""
        check = "Check the name, the network and the folder's files (config.json, model.safetensors, tokenizer.json)."
        if str(folder_or_id).endswith(".gguf"):
            check = "It may be cut short or of a kind that is not read: download it again, or take another."
        raise UserError(
            f"no model could be loaded from {str(folder_or_id)!r} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}{holds}). {check}"
        ) from error


def load_pretrained(from_pretrained, folder_or_id, *, exact=True, **options):
    """The model that transformers' `from_pretrained` makes of a folder's safetensors: fp32, whole, finite, in eval mode.

    UserError naming the file that is missing, cut short or damaged, and the parameters that are missing, of another
    shape or not finite; where `exact`, unknown ones as well.
    """
    with faults_named(folder_or_id):
        model, report = from_pretrained(
            folder_or_id,
            dtype=torch.float32,
            use_safetensors=True,  # pickles can run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **options,
        )
    kinds = ["missing_keys", "mismatched_keys", *["unexpected_keys"] * exact]
    wrong = [name for kind in kinds for name in sorted(map(str, report[kind]))]
    wrong += [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if wrong:
        other = [f"; the file has {name}" for name in sorted(report["unexpected_keys"])[:1]]
        raise UserError(
            f"{folder_or_id}: {len(wrong)} parameters are missing, unknown, of another shape or not finite, for "
            f"example {wrong[0]}{''.join(other)}. Use the config.json that belongs to these weights, or make or download "
            "them again."
        )
    if head := model.get_output_embeddings():
        # Where gradients flow, PyTorch multiplies a strided slice (`logits_to_keep`) with a frozen head row by row.
        head.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
    return model.eval()


def model_folder(folder_or_id):
    """The folder of a model in Hugging Face layout, that of a hub id downloaded once. UserError where it gives none."""
    folder = Path(folder_or_id)
    if not os.path.isdir(folder):
        return download(str(folder_or_id))
    held = sorted(each.name for each in folder.iterdir())
    if "config.json" not in held:
        raise UserError(
            f"{folder} has no config.json; it holds {', '.join(held) or 'nothing'}. Expected a model in Hugging Face layout: "
            "config.json and safetensors, as save_pretrained writes them."
        )
    return folder


def download(model_id):
    """The local folder of a hub id's config.json and weights. UserError naming the id when it cannot be had.

    An old repository has only pickled weights in `main`; then the hub's own conversion is taken, which a bot of the hub
    (SFconvertbot) offers as a pull request. transformers looks there too.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = ["config.json", "model.safetensors", "model.safetensors.index.json"]
    files.append("model-*.safetensors")
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=files))
        if not any((folder / name).exists() for name in files[1:3]):
            folder = cached_snapshot(model_id)
        if folder is None:
            author = "SFconvertbot"
            offers = HfApi().get_repo_discussions(
                model_id, author=author, discussion_type="pull_request"
            )
            numbers = [o.num for o in offers if o.author == author and "safetensors" in o.title]
            if not numbers:
                raise OSError("it has no model.safetensors, and the hub offers no conversion")
            revision = f"refs/pr/{numbers[0]}"
            folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=files))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{model_id!r} is neither a folder here nor a model that the hub or its local cache gave "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the spelling and the network, "
            "or use the profile tiny, which needs no download."
        ) from error
