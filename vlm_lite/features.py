"""Features of a frozen encoder, computed once and kept on disk.

The name of a cache is the hash of all it depends on: the model's weights, the layer and transform (both in `key`), the
images and the number format. It is written whole or not at all.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import filelock
import numpy as np
import torch
from tqdm import tqdm

from vlm_lite.files import UserError, atomic_write, home


def weights_hash(module):
    """The SHA-256 (hex) of a module's parameters and buffers: names, shapes, number formats and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value).data)
    return digest.hexdigest()


def cache_features(encode, images, *, key, batch_size=256, folder=None, progress=True):
    """Features (N, T, D) in fp16 of `images`, computed at the first call and mapped from disk at every later one.

    encode: function of a uint8 batch (B, 3, H, W) on the CPU -> (B, T, D) on any device; it runs under inference_mode
        in batches of `batch_size`, and casts, normalises and moves the batch itself.
    images: uint8 tensor (N, 3, H, W).
    key: dict of JSON values that names all the features depend on but the images: `weights_hash(model)`, the layer,
        the transform.
    folder: where caches lie; None for `features` in `files.home()`.

    Returns a tensor mapped from the file: pages are read when touched; writing to it changes this process's copy only.
    Two processes may ask for the same features at once: one computes. Raises UserError for an empty or wrong `images`,
    values that fp16 cannot hold, and a full disk.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"images: found a {images.dtype} tensor of shape {tuple(images.shape)}, expected uint8 "
            "(N, 3, H, W) with at least one image. Normalise within `encode`."
        )
    digest = hashlib.sha256(json.dumps([key, "fp16", images.shape], sort_keys=True).encode())
    digest.update(_bytes(images).data)
    folder = Path(folder or home() / "features")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest.hexdigest()[:32]}.npy"
    with filelock.FileLock(path.with_suffix(".lock")):  # the system frees it when a process ends
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged
            return torch.from_numpy(np.load(path, mmap_mode="c"))
        parts, look = [], {"desc": "features", "unit": "image", "ncols": 90}
        bar = tqdm(total=len(images), disable=not progress, **look)
        with bar, torch.inference_mode():
            for batch in images.split(batch_size):
                output = encode(batch)
                parts.append(output.to(torch.float16).cpu().numpy())
                if not np.isfinite(parts[-1]).all():
                    raise UserError(
                        f"encode's features do not fit fp16: the largest magnitude is {output.float().abs().max():.4g}. "
                        "Look for NaN in the encoder's weights, or scale its output."
                    )
                bar.update(len(batch))
        features = np.concatenate(parts)  # NumPy's: autocast on a CPU joins no fp16
        assert len(features) == len(images), f"{len(features)} features of {len(images)} images"
        with atomic_write(path) as file:
            np.save(file, features)
        return torch.from_numpy(np.load(path, mmap_mode="c"))


def _bytes(tensor):
    """The tensor's bytes, in row-major order. (By way of uint8, as NumPy has no bfloat16.)"""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
