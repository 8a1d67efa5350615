"""COCO's retrieval test from a local mirror laid out like the hub: every sample once, nothing trusted, or an error."""

import io
import shutil
import tarfile
from pathlib import Path

import huggingface_hub
import PIL.Image
import pytest

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.sources import SOURCES
from vlm_lite.evals.coco5k import load_coco_test, recall_pairs
from vlm_lite.files import UserError
from vlm_lite.hub import locate


def jpeg(shade, size=(40, 30)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (shade, 0, 255 - shade)).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def sample(number, texts=2):
    return {
        f"s{number:07d}.jpg": jpeg(10 * number),
        f"s{number:07d}.txt": "\n".join(
            f"Number {number}, text {k}." for k in range(texts)
        ).encode(),
    }


@pytest.fixture
def mirror(tmp_path):
    """Two shards of three pictures."""
    folder = tmp_path / "made" / "mirror"
    place = Path(locate(SOURCES["retrieval count"].address, str(folder)))
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members |= sample(number, texts=5 + number % 2)
        write_tar(place.parent / f"{shard}.tar", members)
    place.write_text("2\n")
    return folder


def shard(mirror, number=0):
    return Path(locate(SOURCES["retrieval test"].address.format(number), str(mirror)))


def test_the_mirror_lies_as_the_hub_does(mirror):
    assert shard(mirror).relative_to(mirror).as_posix() == (
        "huggingface.co/datasets/clip-benchmark/wds_mscoco_captions/resolve/main/test/0.tar"
    )


def test_every_sample_is_there_once_with_all_its_captions_and_in_order(mirror):
    table = load_coco_test(mirror=str(mirror), progress=False)
    texts, owners = recall_pairs(table)
    assert len(table) == 6 and texts[:2] == ["Number 0, text 0.", "Number 0, text 1."]
    assert owners == [0] * 5 + [1] * 6 + [2] * 5 + [3] * 6 + [4] * 5 + [5] * 6
    assert all(
        text.startswith(f"Number {owner},") for text, owner in zip(texts, owners, strict=True)
    )
    pictures, ids = image_tensor(table, 16)
    assert pictures.shape == (6, 3, 16, 16) and ids == list(range(6))
    assert all(abs(int(p[0].float().mean()) - 10 * k) <= 3 for k, p in enumerate(pictures))


def test_the_second_call_needs_no_mirror_and_the_tar_files_are_gone(mirror):
    first = load_coco_test(mirror=str(mirror), progress=False)
    shutil.rmtree(mirror)
    assert load_coco_test(mirror=str(mirror), progress=False)["captions"][:] == first["captions"][:]
    assert not list(mirror.parent.rglob("*.tar"))


def test_it_comes_from_the_hub_by_its_own_client(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def hf_hub_download(repo, name, *, repo_type, revision, endpoint, local_dir):
        asked.append((repo, name, repo_type, revision))
        target = Path(local_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copyfile(shard(mirror).parent.parent / name, target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    assert len(load_coco_test(progress=False)) == 6
    assert sorted(asked) == [
        ("clip-benchmark/wds_mscoco_captions", f"test/{name}", "dataset", "main")
        for name in ("0.tar", "1.tar", "nshards.txt")
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda m: shard(m, 1).unlink(),
            "1 of 2 files of COCO's retrieval test cannot be had: 1.tar",
        ),
        (
            lambda m: shard(m).parent.joinpath("nshards.txt").write_text("many"),
            "says 'many'; expected how many",
        ),
        (lambda m: cut(shard(m)), "0.tar is no whole tar file"),
        (lambda m: shard(m).write_text("not found"), "0.tar is no whole tar file"),
        (lambda m: write_tar(shard(m), sample(0) | {"s1.txt": b"alone"}), "s1 has captions only"),
        (lambda m: write_tar(shard(m), sample(0) | {"s1.jpg": jpeg(0)}), "s1 has picture only"),
        (lambda m: write_tar(shard(m), {"s1.jpg": jpeg(0), "s1.txt": b" \n"}), "s1 has no caption"),
        (
            lambda m: write_tar(shard(m), {"s1.jpg": jpeg(0)[:200], "s1.txt": b"a"}),
            "s1 is not a whole picture",
        ),
    ],
)
def test_what_is_damaged_is_named_and_nothing_is_kept(mirror, spoil, message):
    spoil(mirror)
    with pytest.raises(UserError, match=message):
        load_coco_test(mirror=str(mirror), progress=False)
    assert not list(mirror.parent.rglob("captions.json"))


def test_a_name_that_leaves_the_folder_is_never_written_to(mirror):
    write_tar(shard(mirror), {"../../evil.jpg": jpeg(0), "../../evil.txt": b"a caption"})
    assert len(load_coco_test(mirror=str(mirror), progress=False)) == 4
    assert not list(mirror.parent.parent.rglob("evil*"))
