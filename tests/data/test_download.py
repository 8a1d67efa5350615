"""Downloads over a loopback server with every fault: nothing corrupt is accepted, what is whole counts."""

import errno
import hashlib
import io
import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from site_of_faults import Site  # noqa: E402

from tests import small
from vlm_lite import hub as sites
from vlm_lite.data import download  # noqa: E402
from vlm_lite.data.download import Item, check_picture, extract, fetch  # noqa: E402
from vlm_lite.data.sources import Source  # noqa: E402
from vlm_lite.files import UserError  # noqa: E402

DATA = bytes(range(256)) * 40


def jpeg(seed=0):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 48, 3), np.uint8)).save(
        buffer, "jpeg"
    )
    return buffer.getvalue()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    quick = SimpleNamespace(
        **{**vars(time), "sleep": lambda seconds: None}
    )  # back-off without the waiting
    monkeypatch.setattr("pooch.core.time", quick)
    monkeypatch.setattr(download, "time", quick)
    monkeypatch.setattr(download, "TIMEOUT", (2, 0.5))
    site = Site()
    yield site
    site.close()


def item(site, tmp_path, data=DATA, name="a.bin", faults=(), **kw):
    site.files[f"/{name}"] = data
    site.faults[f"/{name}"] = list(faults)
    picture = kw.pop("picture", False)
    return Item(Source(f"{site.address}/{name}", **kw), tmp_path / "out" / name, picture)


@pytest.mark.parametrize(
    "faults",
    [[], [500, 500], [503, "cut"], ["cut", "cut", "cut"], ["slow"], ["redirect"], ["stall"], [429]],
)
@pytest.mark.parametrize(
    "known", [{}, {"size": len(DATA), "hash": f"md5:{hashlib.md5(DATA).hexdigest()}"}]
)
def test_a_file_arrives_whole_through_what_passes(site, tmp_path, faults, known, capsys):
    one = item(site, tmp_path, faults=faults, **known)
    assert fetch([one]) == {}
    assert one.path.read_bytes() == DATA
    assert os.listdir(one.path.parent) == ["a.bin"]
    assert "To download: 1 files" in capsys.readouterr().out
    asked = len(site.asked)
    assert fetch([one]) == {} and len(site.asked) == asked  # what is there is not asked for again


@pytest.mark.parametrize(
    ("faults", "known", "reason"),
    [
        ([404], {}, "Absent: the server answers 404"),
        ([500] * 9, {}, "500 Server Error"),
        (["cut"] * 9, {}, "IncompleteRead|was cut"),
        (["short"] * 9, {"size": len(DATA)}, "has 5120 bytes, expected 10240"),
        (["short"] * 9, {"hash": f"md5:{hashlib.md5(DATA).hexdigest()}"}, "hash"),
        ([], {"size": len(DATA) + 1}, "has 10240 bytes, expected 10241"),
        ([], {"hash": f"md5:{'0' * 32}"}, "MD5 hash|hash of downloaded file"),
    ],
)
def test_nothing_wrong_is_kept_and_the_reason_is_said(site, tmp_path, faults, known, reason):
    one = item(site, tmp_path, faults=faults, **known)
    with pytest.raises(UserError, match="1 of 1 files cannot be had: a.bin") as raised:
        fetch([one], progress=False)
    assert re.search(reason, str(raised.value)), raised.value
    assert os.listdir(one.path.parent) == []
    assert len(site.asked) == (1 if 404 in faults else 1 + download.RETRIES)


def test_a_server_that_trickles_is_given_up_and_asked_again(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (2, 0.05))
    monkeypatch.setattr(download, "SLOWEST", 1e9)
    one = item(site, tmp_path, faults=["slow"] * 9)
    with pytest.raises(UserError, match="comes at under"):
        fetch([one], progress=False)
    assert len(site.asked) == 1 + download.RETRIES


@pytest.mark.parametrize(
    "harm", [lambda d: d[: len(d) // 2], lambda d: b"<html>404</html>", lambda d: b""]
)
def test_a_picture_that_does_not_decode_is_not_kept(site, tmp_path, harm):
    one = item(site, tmp_path, data=harm(jpeg()), name="a.jpg", picture=True)
    with pytest.raises(UserError, match="a.jpg .*not a whole picture"):
        fetch([one], progress=False)
    assert not one.path.exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_no_picture(tmp_path, monkeypatch):
    (tmp_path / "bomb.jpg").write_bytes(jpeg())
    check_picture(tmp_path / "bomb.jpg")
    for limit in (
        64 * 48 - 1,
        64 * 48 // 2 - 1,
    ):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="(?i)decompression bomb"):
            check_picture(tmp_path / "bomb.jpg")


def test_a_few_missing_pictures_are_named_and_counted_and_the_run_goes_on(site, tmp_path, capsys):
    items = [item(site, tmp_path, data=jpeg(k), name=f"{k}.jpg", picture=True) for k in range(100)]
    del site.files["/7.jpg"]
    assert list(fetch(items, what="pictures", tolerated=0.01)) == ["7.jpg"]
    assert (
        "1 of 100 pictures cannot be had: 7.jpg (Absent: the server answers 404"
        in capsys.readouterr().out
    )
    assert len(os.listdir(tmp_path / "out")) == 99
    del site.files["/8.jpg"]
    os.remove(tmp_path / "out" / "8.jpg")
    with pytest.raises(UserError, match="2 of 100 pictures cannot be had"):
        fetch(items, what="pictures", tolerated=0.01)
    site.files |= {"/7.jpg": jpeg(7), "/8.jpg": jpeg(8)}
    site.asked.clear()
    assert fetch(items, what="pictures") == {}
    assert sorted(site.asked) == ["/7.jpg", "/8.jpg"]  # the next call finishes


def test_a_full_disk_stops_the_run_and_keeps_what_is_whole(site, tmp_path, monkeypatch):
    items = [item(site, tmp_path, name=f"{k}.bin") for k in range(40)]
    real, written = download._get_http, []

    def until_full(address, path):
        if len(written) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(address)
        real(address, path)

    monkeypatch.setattr(download, "_get_http", until_full)
    with pytest.raises(UserError, match="the disk of .*out is full"):
        fetch(items, progress=False, tolerated=1.0)
    kept = os.listdir(tmp_path / "out")
    assert 1 <= len(kept) <= 6 and all(
        (tmp_path / "out" / name).read_bytes() == DATA for name in kept
    )


def test_too_little_space_is_said_before_anything_is_asked(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=9_000))
    with pytest.raises(UserError, match="need about 0.00 GB and .* has 0.00 GB free"):
        fetch([item(site, tmp_path, about=10_000)])
    assert site.asked == []


def test_ctrl_c_keeps_what_is_whole(site, tmp_path, monkeypatch):
    items = [item(site, tmp_path, name=f"{k}.bin") for k in range(40)]
    monkeypatch.setattr(
        download, "as_completed", lambda jobs: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        fetch(items, progress=False)
    assert all(
        (tmp_path / "out" / name).read_bytes() == DATA for name in os.listdir(tmp_path / "out")
    )


def test_offline_nothing_is_asked_and_what_lacks_is_listed(site, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    items = [item(site, tmp_path, name=f"{k}.bin") for k in range(3)]
    with pytest.raises(
        UserError, match="3 of 3 files cannot be had: 0.bin, 1.bin, 2.bin .not in the local cache"
    ):
        fetch(items)
    assert site.asked == []


def test_a_mirror_takes_the_place_of_the_sites(site, tmp_path, monkeypatch):
    one = Item(Source("http://images.cocodataset.org/train2014/x.bin"), tmp_path / "out" / "x.bin")
    site.files["/images.cocodataset.org/train2014/x.bin"] = DATA
    monkeypatch.setenv("VLM_LITE_MIRROR", f"{site.address}/")
    assert fetch([one], progress=False) == {} and one.path.read_bytes() == DATA
    folder = tmp_path / "mirror" / "images.cocodataset.org" / "train2014"
    folder.mkdir(parents=True)
    (folder / "x.bin").write_bytes(DATA[:9])
    one.path.unlink()
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch([one], progress=False) == {} and one.path.read_bytes() == DATA[:9]
    one.path.unlink()
    (folder / "x.bin").unlink()
    with pytest.raises(UserError, match="Absent: the mirror has no"):
        fetch([one], progress=False)
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="VLM_LITE_MIRROR is .*neither an address .* nor a folder"):
        sites.locate("http://x/y")


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(site, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return site


@pytest.mark.parametrize("faults", [[], [500, 500], ["cut"], ["slow"]])
def test_the_hubs_files_come_by_its_own_client(hub, tmp_path, faults):
    path = "/datasets/someone/talks/resolve/main/talks.json"
    hub.files[path], hub.faults[path] = DATA, list(faults)
    one = Item(Source(f"{sites.HUB}{path}"), tmp_path / "out" / "talks.json")
    assert fetch([one], progress=False) == {}
    assert one.path.read_bytes() == DATA


def test_a_file_that_the_hub_lacks_is_named(hub, tmp_path):
    one = Item(
        Source(f"{sites.HUB}/datasets/someone/talks/resolve/main/none.json"),
        tmp_path / "out" / "none.json",
    )
    with pytest.raises(UserError, match="1 of 1 files cannot be had: none.json"):
        fetch([one], progress=False)
    assert not one.path.exists()


@pytest.fixture
def tiny_clip(hub, tmp_path, monkeypatch):
    """A CLIP on the hub: pickles in main, its conversion as the bot's pull request 3; {file name: bytes}."""
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    small.clip(9).save_pretrained(tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    hub.add_model(
        "someone/clip", {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    )
    return files


def offer(hub, author="SFconvertbot", title="Adding `safetensors` variant of this model"):
    hub.files["/api/models/someone/clip/discussions"] = json.dumps(
        {
            "count": 1,
            "start": 0,
            "discussions": [
                {
                    "num": 3,
                    "title": title,
                    "author": {"name": author},
                    "repo": {"name": "someone/clip", "type": "model"},
                    "status": "open",
                    "isPullRequest": True,
                    "createdAt": "2024-01-01T00:00:00.000Z",
                }
            ],
        }
    ).encode()


def test_weights_that_main_has_only_as_pickles_come_from_the_hubs_own_conversion(
    hub, tiny_clip, monkeypatch
):
    from vlm_lite.hub import cached_snapshot
    from vlm_lite.models.clip import CLIP

    hub.add_model("someone/clip", tiny_clip, "refs/pr/3")
    offer(hub)
    assert cached_snapshot("someone/clip") is None
    assert CLIP.from_pretrained("someone/clip").feature_width == 16
    assert cached_snapshot("someone/clip").name == hashlib.sha1(b"refs/pr/3").hexdigest()
    assert not any(path.endswith("pytorch_model.bin") for path in hub.asked)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # and from then on without a network
    assert CLIP.from_pretrained("someone/clip").feature_width == 16


@pytest.mark.parametrize("other", [{"author": "mallory"}, {"title": "Please merge"}])
def test_nobody_elses_conversion_is_taken(hub, tiny_clip, other):
    from vlm_lite.models.clip import CLIP

    hub.add_model("someone/clip", tiny_clip, "refs/pr/3")
    offer(hub, **other)
    with pytest.raises(
        UserError, match="'someone/clip' is neither .* and the hub offers no conversion"
    ):
        CLIP.from_pretrained("someone/clip")


# ---------------------------------------------------------------- zips


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in entries.items():
            opened.writestr(name, data)
    return path


def test_one_member_is_unpacked_under_our_own_name(tmp_path):
    extract(
        archive(tmp_path / "a.zip", {"annotations/c.json": "[1]", "x": "y"}),
        "annotations/c.json",
        tmp_path / "c",
    )
    assert (tmp_path / "c").read_text() == "[1]"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil"])
def test_a_zip_with_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    archive(tmp_path / "a.zip", {"c.json": "[1]", info: "evil"})
    with pytest.raises(UserError, match="leaves the folder, so nothing of it is used"):
        extract(tmp_path / "a.zip", "c.json", tmp_path / "out" / "c.json")
    assert not (tmp_path / "out" / "c.json").exists() and not (tmp_path / "evil").exists()


def test_a_zip_that_is_cut_damaged_huge_or_another_is_refused(tmp_path):
    whole = archive(tmp_path / "a.zip", {"c.json": os.urandom(5000)})
    with pytest.raises(UserError, match="has no d.json .found: c.json"):
        extract(whole, "d.json", tmp_path / "out")
    with pytest.raises(UserError, match="unpacks to .* expected under"):
        extract(whole, "c.json", tmp_path / "out", limit=4999)
    data = whole.read_bytes()
    for harmed in (data[:-30], b"", data[:1000] + b"\0\0\0" + data[1003:]):
        whole.write_bytes(harmed)
        with pytest.raises(UserError, match="is no whole zip"):
            extract(whole, "c.json", tmp_path / "out")
        assert not (tmp_path / "out").exists()
