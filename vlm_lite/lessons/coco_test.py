"""OpenAI's CLIP on CIFAR-10, Imagenette and COCO, beside a CLIP trained from nothing.

Generated from notebooks/01t_photographs.py by `make notebooks`: edit the notebook.
"""

import tarfile
from pathlib import Path

from vlm_lite.data.download import Item, fetch
from vlm_lite.data.formats import make_dataset
from vlm_lite.data.sources import SOURCES
from vlm_lite.files import UserError, home, read_text

PARTS = {"txt": "captions"} | dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image")


def load_coco_test(*, mirror=None, progress=True):
    """A table with the columns image, image_id (0, 1, ... in the files' order) and captions; 840 MB at the first call.

    mirror: as in `data.photographs.load_photographs`. UserError for a file that cannot be had or is cut short, and for a
    photograph without captions or captions without a photograph.
    """
    folder = (Path(mirror).parent if mirror else home()) / "coco-5k" / "test"
    count, source = folder / "nshards.txt", SOURCES["retrieval test"]
    fetch([Item(SOURCES["retrieval count"], count)], mirror=mirror, progress=False)
    said = read_text(count).strip()
    if not said.isdecimal() or not 1 <= int(said) <= 1000:
        raise UserError(
            f"{count} says {said[:40]!r}; expected how many tar files there are. Delete it and run again."
        )
    about, found = source.about // int(said), {}
    shards = [Item(source.at(k, about=about), folder / f"{k}.tar") for k in range(int(said))]
    fetch(shards, what="files of COCO's retrieval test", mirror=mirror, progress=progress)
    for shard in shards:
        try:
            # tarfile takes a cut between two members for the end
            if any(shard.path.read_bytes()[-1024:]):
                raise tarfile.ReadError("its end is missing")
            with tarfile.open(shard.path) as archive:
                for member in filter(tarfile.TarInfo.isfile, archive):
                    key, _, suffix = member.name.rpartition(".")
                    if part := PARTS.get(suffix.lower()):
                        found.setdefault(key, {})[part] = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"{shard.path} is no whole tar file ({error}). Delete it and run again."
            ) from error
    columns = {"image_id": list(range(len(found))), "captions": [], "image": []}
    for key, parts in found.items():
        text = parts.get("captions", b"").decode("utf-8", "replace")
        columns["captions"].append([line.strip() for line in text.splitlines() if line.strip()])
        columns["image"].append({"bytes": parts.get("image"), "path": None})
        if "image" not in parts or not columns["captions"][-1]:
            raise UserError(
                f"{folder}: {key} has no {'captions' if 'image' in parts else 'image'}; expected an image and a caption "
                "a line. Delete the folder and run again."
            )
    return make_dataset(columns)


def recall_pairs(table):
    """The table's captions in one list, and the number of the image of each, as `recall_at_k` takes them."""
    rows = table["captions"][:]
    return [text for row in rows for text in row], [k for k, row in enumerate(rows) for _ in row]
