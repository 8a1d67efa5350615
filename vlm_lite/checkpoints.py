"""What `train.train` alone needs beside `checkpoint`: a checkpoint of another run is refused. It goes with `train`."""

import re
import tempfile
from pathlib import Path

from vlm_lite.checkpoint import load_step, save_checkpoint, trainable_parameters  # noqa: F401
from vlm_lite.files import UserError, read_json


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
