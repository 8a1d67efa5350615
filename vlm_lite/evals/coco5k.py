"""COCO's retrieval test: the 5,000 photographs of Karpathy's split with their captions, downloaded once.

On the hub they are tar files in which `KEY.jpg` stands beside `KEY.txt`, a caption a line (the layout of webdataset and
of clip-benchmark). They are written out as pictures under names of ours and one table of captions.
"""

import dataclasses
import os
import tarfile
from pathlib import Path

from vlm_lite.data.download import Item, check_picture, fetch
from vlm_lite.data.formats import make_dataset
from vlm_lite.data.sources import SOURCES
from vlm_lite.files import UserError, atomic_dir, home, read_json, write_json

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def load_coco_test(*, mirror=None, progress=True):
    """A table with the columns image, image_id (0, 1, ... in the files' order) and captions; 840 MB at the first call.

    mirror: as in `data.photographs.load_photographs`. UserError for a file that cannot be had or is cut short, for a
    photograph without captions or captions without a photograph, and for one that does not decode.
    """
    root = (Path(mirror).parent if mirror else home()) / "coco-5k"
    if not (root / "whole").exists():
        _unpack(_shards(root / "official" / "test", mirror, progress), root / "whole")
    captions = read_json(root / "whole" / "captions.json")
    return make_dataset(
        {
            "image_id": list(range(len(captions))),
            "captions": captions,
            "image": [
                {"bytes": None, "path": str(root / "whole" / f"{number:05d}.jpg")}
                for number in range(len(captions))
            ],
        }
    )


def recall_pairs(table):
    """The table's captions in one list, and the number of the picture of each, as `recall_at_k` takes them."""
    rows = table["captions"][:]
    return [text for row in rows for text in row], [
        number for number, row in enumerate(rows) for _ in row
    ]


def _shards(folder, mirror, progress):
    """The paths of the tar files, downloaded; a small text file says how many there are."""
    count = folder / "nshards.txt"
    fetch(
        [Item(SOURCES["retrieval count"], count)],
        what="list of files",
        mirror=mirror,
        progress=False,
    )
    said = count.read_text(encoding="utf-8", errors="replace").strip()
    if not said.isdecimal() or not 1 <= int(said) <= 1000:
        raise UserError(
            f"{count} says {said[:40]!r}; expected how many tar files there are. Delete it and run again."
        )
    source = SOURCES["retrieval test"]
    items = [
        Item(
            dataclasses.replace(
                source, address=source.address.format(k), about=source.about // int(said)
            ),
            folder / f"{k}.tar",
        )
        for k in range(int(said))
    ]
    fetch(items, what="files of COCO's retrieval test", mirror=mirror, progress=progress)
    return [item.path for item in items]


def _unpack(shards, target):
    """Write the pictures and captions of all shards to `target`, whole or not at all, and delete the shards."""
    captions = []
    with atomic_dir(target) as folder:
        for shard in shards:
            for key, picture, text in _samples(shard):
                lines = [
                    line.strip()
                    for line in text.decode("utf-8", errors="replace").splitlines()
                    if line.strip()
                ]
                path = Path(folder) / f"{len(captions):05d}.jpg"  # never a name from the tar
                path.write_bytes(picture)
                try:
                    check_picture(path)
                except ValueError as error:
                    raise UserError(
                        f"{shard}: {key} is {error}. Delete the file and run again."
                    ) from error
                if not lines:
                    raise UserError(
                        f"{shard}: {key} has no caption; expected one a line. Delete the file and run "
                        "again."
                    )
                captions.append(lines)
        write_json(Path(folder) / "captions.json", captions)
    for shard in shards:
        shard.unlink()


def _samples(shard):
    """(key, bytes of the picture, bytes of the text) of each sample of a tar file, in its order."""
    found = {}
    try:
        with open(
            shard, "rb"
        ) as file:  # tarfile itself takes a file that is cut between two members for whole
            file.seek(-1024, os.SEEK_END)
            if any(file.read()):
                raise tarfile.ReadError("its end is missing")
        with tarfile.open(shard) as archive:
            for member in archive:
                key, suffix = (
                    Path(member.name).with_suffix("").as_posix(),
                    Path(member.name).suffix.lower(),
                )
                kind = "picture" if suffix in PICTURES else "captions" if suffix == ".txt" else None
                if member.isfile() and kind:
                    found.setdefault(key, {})[kind] = archive.extractfile(member).read()
                    if len(found[key]) == 2:
                        yield key, found[key].pop("picture"), found.pop(key)["captions"]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{shard} is no whole tar file ({error}). Delete it and run again."
        ) from error
    for key, parts in found.items():
        raise UserError(
            f"{shard}: {key} has {next(iter(parts))} only; expected a picture and captions. Delete the "
            "file and run again."
        )
