"""Features of a frozen encoder, computed once and kept on disk.

The name of a cache is the hash of all it depends on: the model's weights, the layer and transform (both in `key`), the
pictures and the number format. `NAME.bin` grows batch by batch, and `NAME.json` says how many pictures of it count; the
JSON is replaced by one rename after the data is on the disk, so a cut run is never taken for whole, and goes on.
"""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

from vlm_lite.files import UserError, home, read_json, write_json


def weights_hash(module):
    """The SHA-256 (hex) of a module's parameters and buffers: names, shapes, number formats and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def cache_features(encode, images, *, key, batch_size=256, dtype=torch.float16, folder=None,
                   progress=True, save_every=2048):  # fmt: skip
    """Features (N, T, D) of `images`, computed at the first call and mapped from disk at every later one.

    encode: function of a uint8 batch (B, 3, H, W) on the CPU -> (B, T, D) on any device; it runs under inference_mode
        in batches of `batch_size`, and casts, normalises and moves the batch itself.
    images: uint8 tensor (N, 3, H, W).
    key: dict of JSON values that names all the features depend on but the pictures: `weights_hash(model)`, the layer,
        the transform.
    folder: where caches lie; None for `features` in `files.home()`. `save_every`: pictures between two safe points.

    Returns a tensor of `dtype` mapped from the file: pages are read when touched, so it may exceed the memory; writing
    to it changes this process's copy only. Two processes may ask for the same features at once: one computes.
    Raises UserError for an empty or wrong `images`, an output of the wrong shape, values that `dtype` cannot hold, a
    folder that cannot be written, and a full disk. Ctrl-C keeps what is done.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"images: found a {images.dtype} tensor of shape {tuple(images.shape)}, expected uint8 "
            "(N, 3, H, W) with at least one picture. Normalise within `encode`."
        )
    folder = Path(folder or home() / "features")
    path = folder / f"{_digest(key, images, dtype)}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            shape, done = _resume_point(path, dtype)
            if done < len(images):
                bar = tqdm(total=len(images), initial=done, desc="features", unit="image",
                           ncols=min(100, shutil.get_terminal_size().columns), disable=not progress)  # fmt: skip
                with open(path, "ab") as file, bar:
                    batches = range(done, len(images), batch_size)
                    kept = done
                    try:
                        for start in batches:
                            batch = images[start : start + batch_size]
                            with torch.inference_mode():
                                output = encode(batch)
                            _check_output(output, batch, shape, dtype)
                            if shape is None:
                                shape = tuple(output.shape[1:])
                                _check_space(path, len(images), shape, dtype)
                            file.write(_bytes(output.to(dtype)))
                            done = start + len(batch)
                            bar.update(len(batch))
                            if done - kept >= save_every or done == len(images):
                                _keep(path, file, shape, done, key)
                                kept = done
                    except KeyboardInterrupt:
                        if shape is not None:
                            _keep(path, file, shape, done, key)
                        of = f"{done} of {len(images)} images"
                        tqdm.write(f"Stopped after {of}; the same call goes on from there.")
                        raise
    except OSError as error:
        raise UserError(
            f"cannot write the feature cache {path}: {error.strerror or error}. Free some space, or set "
            "VLM_LITE_HOME to another folder; what is done so far counts when you run again."
        ) from error
    shape = (len(images), *shape)
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)


def _keep(path, file, shape, done, key):
    """A safe point: what is written so far is on the disk, and then counts."""
    file.flush()
    os.fsync(file.fileno())
    write_json(path.with_suffix(".json"), {"shape": shape, "done": done, "key": key})


def _resume_point(path, dtype):
    """(shape of one picture's features or None, pictures that count); cuts off or removes what does not count."""
    try:
        meta = read_json(path.with_suffix(".json"))
        shape, done = tuple(meta["shape"]), meta["done"]
        size = done * math.prod(shape) * dtype.itemsize
        if path.stat().st_size >= size:
            os.truncate(path, size)
            return shape, done
    except (UserError, OSError, TypeError, KeyError):  # absent or damaged: it can be made again
        pass
    path.unlink(missing_ok=True)  # a new file: whoever has the old one mapped keeps what they see
    return None, 0


def _lock(path):
    """A lock for `path` that the system frees when its process ends, however it ends."""
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
        lock.release()
    except filelock.Timeout:
        tqdm.write("Another process is computing the same features: waiting for it.")
    return lock


def _digest(key, images, dtype):
    try:
        text = json.dumps(key, sort_keys=True)
    except TypeError as error:
        raise UserError(f"key: {error}. Use strings, numbers, lists and dicts only.") from error
    digest = hashlib.sha256(f"{text}\n{dtype}\n{tuple(images.shape)}\n".encode())
    for start in range(0, len(images), 1024):
        digest.update(_bytes(images[start : start + 1024]))
    return digest.hexdigest()[:32]


def _bytes(tensor):
    """The tensor's bytes, in row-major order. (By way of uint8, as NumPy has no bfloat16.)"""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _check_output(output, batch, shape, dtype):
    found = tuple(output.shape) if torch.is_tensor(output) else f"a {type(output).__name__}"
    if len(found) < 2 or found[0] != len(batch) or shape not in (None, found[1:]):
        expected = (len(batch), *(shape or "TD"))
        raise UserError(
            f"encode returned {found} for a batch of {len(batch)} pictures, expected a tensor {expected}."
        )
    if not torch.isfinite(output.to(dtype)).all():
        largest = output.float().abs().max().item()
        raise UserError(
            f"encode's features do not fit {dtype}: the largest magnitude is {largest:.4g}. Pass "
            "dtype=torch.bfloat16 or torch.float32, or look for NaN in the encoder's weights."
        )


def _check_space(path, count, shape, dtype):
    need, free = count * math.prod(shape) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"the feature cache {path} needs {need / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB "
            "left. Free some space, set VLM_LITE_HOME to another disk, or use fewer pictures."
        )
