"""Checkpoints of a training run: written whole or not at all, and refused where they belong to another run.

A checkpoint is a folder `step-00000200` inside the run's folder, with `model.safetensors` (trainable parameters and
persistent buffers), `optimizer.safetensors` (moments, named `parameter/moment`) and `state.json` (everything else).
It appears by one rename, and only then is the one before it removed: a run killed at any moment finds a whole one.
"""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from vlm_lite.files import UserError, atomic_dir, atomic_write, read_json

TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


def trainable_parameters(model):
    """Name -> parameter of what an optimizer may change. Raises UserError when there is none."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError(
            f"{type(model).__name__} has no trainable parameters: every one has requires_grad=False. "
            "Unfreeze the part that should learn, for instance `model.connector.requires_grad_(True)`."
        )
    return parameters


def writable_folder(folder):
    """`folder` as a Path, made if need be. Raises UserError where it cannot be written to."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"checkpoint folder {folder}: cannot write to it ({error.strerror or error}). Choose another "
            "folder, or free some space."
        ) from error
    return folder


def save_checkpoint(folder, model, optimizer, scaler, state):
    """Write `folder/step-N`, N being `state["step"]`, then remove the checkpoints that it replaces.

    state: dict of JSON values. scaler: a GradScaler or None. Raises UserError when the disk is full (the checkpoint
    before stays) or when a parameter is not finite (such a checkpoint would be no use).
    """
    parameters = trainable_parameters(model)
    bad = [name for name, p in parameters.items() if not torch.isfinite(p).all()]
    if bad:
        raise UserError(
            f"{bad[0]} is not finite after step {state['step']}; no checkpoint was written, and an earlier "
            f"one in {folder} stays. Try a tenth of the learning rate."
        )
    moments = {
        f"{name}/{key}": value
        for name, p in parameters.items()
        for key, value in optimizer.state[p].items()
    }
    state = state | {"scaler": scaler.state_dict() if scaler is not None else None, "sha256": {}}
    path = folder / f"step-{state['step']:08d}"
    with atomic_dir(path) as new:
        for name, tensors in zip(
            TENSOR_FILES, (parameters | _buffers(model), moments), strict=True
        ):
            data = safetensors.torch.save(
                {key: v.detach().cpu().contiguous().clone() for key, v in tensors.items()}
            )
            state["sha256"][name] = hashlib.sha256(data).hexdigest()
            with atomic_write(new / name) as file:
                file.write(data)
        with atomic_write(new / "state.json", "w") as file:
            json.dump(state, file)
    for other in folder.iterdir():
        if other != path and re.fullmatch(r"\.?step-\d{8}(\..*)?", other.name):
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(folder, model, optimizer, scaler, fingerprint):
    """Bring model, optimizer and scaler to the newest checkpoint in `folder`; return its state, or None for none.

    Raises UserError naming what differs where its `fingerprint` is not the one given, or the file that is damaged.
    """
    found = sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))
    if not found:
        return None
    state = read_json(found[-1] / "state.json")
    _check_fingerprint(folder, state["fingerprint"], fingerprint)
    load_step(found[-1], state, model, optimizer, scaler)
    return state


def load_step(path, state, model, optimizer, scaler):
    """Bring model, optimizer and scaler to the checkpoint in the folder `path`, whose `state.json` holds `state`.

    Raises UserError naming the file that is damaged; then nothing has been changed.
    """
    loaded = []
    for name in TENSOR_FILES:
        data = (path / name).read_bytes() if (path / name).exists() else b""
        if hashlib.sha256(data).hexdigest() != state["sha256"][name]:
            raise UserError(
                f"{path / name} is damaged: its SHA-256 is not the one in state.json. Delete {path} and "
                "train again."
            )
        loaded.append(safetensors.torch.load(data))
    parameters = trainable_parameters(model)
    with torch.no_grad():
        for name, target in (parameters | _buffers(model)).items():
            target.copy_(loaded[0][name])
    for key, value in loaded[1].items():
        name, _, moment = key.rpartition("/")
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])


def _buffers(model):
    """Persistent buffers (running means), which a step may change although no gradient does."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name not in names and torch.is_tensor(value)
    }


def _check_fingerprint(folder, saved, asked):
    differ = [
        f"{key} was {saved.get(key)!r} and is now {asked.get(key)!r}"
        for key in sorted((saved.keys() | asked.keys()) - {"parameters"})
        if saved.get(key) != asked.get(key)
    ]
    before, now = saved["parameters"], asked["parameters"]
    names = [
        name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
    ]
    differ += [
        f"{name} had shape {before.get(name, 'none')} and has {now.get(name, 'none')}"
        for name in names[:3]
    ]
    if differ:
        more = f"; and {len(names) - 3} more parameters" if len(names) > 3 else ""
        raise UserError(
            f"the checkpoint in {folder} belongs to another run: {'; '.join(differ)}{more}. To start "
            "again delete that folder, or give `checkpoint` another one."
        )
