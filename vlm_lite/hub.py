"""Where models and data come from: the Hugging Face hub, its cache on this machine, or a mirror of all sites.

`VLM_LITE_MIRROR` is the address of a server, or a folder, in which each file lies under its host's name, such as
`images.cocodataset.org/train2014/COCO_train2014_000000000009.jpg`. The hub's own variable `HF_ENDPOINT` moves the hub
alone. A folder may hold the hub too, as `huggingface.co/ID/resolve/main/FILE`. Importing this module probes nothing.
"""

import os
from pathlib import Path

from vlm_lite.files import UserError

HUB = "https://huggingface.co"


def told_offline():
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def cached_snapshot(repo):
    """The folder in the hub's local cache that holds a model's config and weights, of any revision; None without one.

    The weights of an old model may be there under another revision than `main`: see `models.weights.download`.
    """
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots").glob(
        "*"
    )
    whole = ("config.json", "model.safetensors")
    return next((f for f in sorted(folders) if all((f / name).exists() for name in whole)), None)


def mirror():
    """What VLM_LITE_MIRROR says: an address, a folder's absolute path, or None. UserError when it is neither."""
    text = os.environ.get("VLM_LITE_MIRROR", "").rstrip("/")
    if not text or text.startswith(("http://", "https://")):
        return text or None
    if not os.path.isdir(text):
        raise UserError(
            f"VLM_LITE_MIRROR is {text!r}, which is neither an address (http://, https://) nor a folder "
            "here. Set it to one of them, or unset it."
        )
    return os.path.abspath(text)


def locate(address, where=None):
    """The address or path that stands for `address`: itself, or its place in the mirror `where` (default: mirror())."""
    where = where or mirror()
    if where is None:
        endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        return endpoint + address.removeprefix(HUB) if address.startswith(f"{HUB}/") else address
    return f"{where}/{address.split('://', 1)[1]}"


def mirrored_model(name):
    """The folder of the hub id `name` in a mirror that is a folder; None where there is none."""
    folder = locate(f"{HUB}/{name}/resolve/main") if mirror() else ""
    return folder if os.path.isdir(folder) else None
