"""COCO's retrieval test from a local mirror laid out like the hub: every sample once, nothing trusted, or an error."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.evals.official import png
from tests.small import refused
from vlm_lite.data.formats import image_tensor
from vlm_lite.data.sources import SOURCES
from vlm_lite.hub import locate
from vlm_lite.lessons.coco_test import load_coco_test, recall_pairs


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def sample(number, texts=2):
    said = "\n".join(f"Number {number}, text {k}." for k in range(texts)).encode()
    return {f"s{number:07d}.jpg": png((10 * number, 0, 0)), f"s{number:07d}.txt": said}


def shard(mirror, number=0):
    return Path(locate(SOURCES["retrieval test"].address.format(number), str(mirror)))


@pytest.fixture
def mirror(tmp_path):
    """Two shards of three images."""
    folder = tmp_path / "made" / "mirror"
    for k in range(2):
        samples = [sample(number, 5 + number % 2) for number in range(3 * k, 3 * k + 3)]
        write_tar(shard(folder, k), {name: data for one in samples for name, data in one.items()})
    shard(folder).with_name("nshards.txt").write_text("2\n")
    return folder


def load(mirror):
    return load_coco_test(mirror=str(mirror), progress=False)


def test_every_sample_is_there_once_with_all_its_captions_and_in_order(mirror):
    assert shard(mirror).relative_to(mirror).as_posix() == (
        "huggingface.co/datasets/clip-benchmark/wds_mscoco_captions/resolve/main/test/0.tar"
    )
    table = load(mirror)
    texts, owners = recall_pairs(table)
    assert owners == [0] * 5 + [1] * 6 + [2] * 5 + [3] * 6 + [4] * 5 + [5] * 6
    assert [int(text.split(",")[0][7:]) for text in texts] == owners
    images, ids = image_tensor(table, 16)
    assert images[:, 0, 5, 5].tolist() == [10 * k for k in range(6)] and ids == list(range(6))
    shutil.rmtree(mirror)  # the second call needs none
    assert load(mirror)["captions"][:] == table["captions"][:]


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("1.tar", Path.unlink, "1 of 2 .*1.tar"),
        ("nshards.txt", lambda path: path.write_text("many"), "nshards.txt says 'many'"),
        ("0.tar", lambda path: path.write_bytes(path.read_bytes()[:3072]), "0.tar"),
        (
            "0.tar",
            lambda path: write_tar(path, sample(0) | {"s1.txt": b"alone"}),
            "s1 has no image",
        ),
        (
            "0.tar",
            lambda path: write_tar(path, {"s1.jpg": b"0", "s1.txt": b" \n"}),
            "s1 has no capt",
        ),
    ],
)
def test_what_is_damaged_is_named(mirror, name, spoil, message):
    spoil(shard(mirror).with_name(name))
    with refused(message):
        load(mirror)


def test_a_name_that_leaves_the_folder_is_never_written_to(mirror):
    write_tar(shard(mirror), {"../../evil.jpg": png("red"), "../../evil.txt": b"a caption"})
    assert len(load(mirror)) == 4 and not list(mirror.parent.parent.rglob("evil*"))
