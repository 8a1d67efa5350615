"""Downloads over a loopback server with every fault: nothing corrupt is accepted, what is whole counts."""

import errno
import hashlib
import json
import os
import time
import zipfile
from types import SimpleNamespace

import PIL.Image
import pytest

from tests import small
from tests.data.site_of_faults import Site
from tests.evals.official import png
from vlm_lite import hub as sites
from vlm_lite.data import download
from vlm_lite.data.download import Item, extract, fetch
from vlm_lite.data.sources import Source
from vlm_lite.files import UserError
from vlm_lite.models.clip import CLIP

DATA = bytes(range(256)) * 40
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # back-off without the waiting
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("pooch.core.time", quick)
    monkeypatch.setattr(download, "TIMEOUT", (2, 0.5))
    site = Site()
    yield site
    site.close()


@pytest.fixture
def item(site, tmp_path):
    def make(data=DATA, name="a.bin", faults=(), picture=False, **known):
        site.files[f"/{name}"] = data
        site.faults[f"/{name}"] = list(faults)
        return Item(Source(f"{site.address}/{name}", **known), tmp_path / "out" / name, picture)

    return make


@pytest.mark.parametrize(
    "faults", [[], [500, 500], [503, "cut"], ["cut"] * 3, ["slow"], ["redirect"], ["stall"], [429]]
)
@pytest.mark.parametrize("known", [{}, {"size": len(DATA), "hash": MD5}])
def test_a_file_arrives_whole_through_what_passes(site, item, faults, known, capsys):
    one = item(faults=faults, **known)
    assert fetch([one]) == {}
    assert one.path.read_bytes() == DATA
    assert os.listdir(one.path.parent) == ["a.bin"]
    assert "To download: 1 files" in capsys.readouterr().out
    asked = len(site.asked)
    assert fetch([one]) == {} and len(site.asked) == asked  # what is there is not asked for again


@pytest.mark.parametrize(
    ("faults", "known", "reason"),
    [
        ([404], {}, "404"),
        ([500] * 9, {}, "500"),
        (["cut"] * 9, {}, "IncompleteRead"),
        (["short"] * 9, {"size": len(DATA)}, "5120 bytes, expected 10240"),
        (["short"] * 9, {"hash": MD5}, "hash"),
        ([], {"size": len(DATA) + 1}, "10240 bytes, expected 10241"),
        ([], {"hash": f"md5:{'0' * 32}"}, "hash"),
        ([], {"picture": True}, "not a whole picture"),
        ([], {"picture": True, "data": png("red")[:100]}, "not a whole picture"),
    ],
)
def test_nothing_wrong_is_kept_and_the_reason_is_said(site, item, faults, known, reason):
    one = item(faults=faults, **known)
    with pytest.raises(UserError, match=f"1 of 1 files cannot be had: a.bin .*{reason}"):
        fetch([one], progress=False)
    assert os.listdir(one.path.parent) == []
    assert len(site.asked) == (1 if 404 in faults else 1 + download.RETRIES)


@pytest.mark.parametrize(
    "limit", [64 * 64 - 1, 64 * 32 - 1]
)  # Pillow warns, and above twice raises
def test_a_decompression_bomb_is_no_picture(item, monkeypatch, limit):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match="(?i)decompression bomb"):
        fetch([item(png("red"), picture=True)], progress=False)


def test_a_few_missing_pictures_are_named_and_counted_and_the_run_goes_on(site, item, capsys):
    items = [item(png("red"), name=f"{k}.png", picture=True) for k in range(100)]
    del site.files["/7.png"]
    assert list(fetch(items, what="pictures", tolerated=0.01)) == ["7.png"]
    assert "1 of 100 pictures cannot be had: 7.png" in capsys.readouterr().out
    assert len(os.listdir(items[0].path.parent)) == 99
    del site.files["/8.png"]
    items[8].path.unlink()
    with pytest.raises(UserError, match="2 of 100 pictures"):
        fetch(items, what="pictures", tolerated=0.01)
    site.files |= dict.fromkeys(("/7.png", "/8.png"), png("red"))
    site.asked.clear()
    assert fetch(items, what="pictures") == {}
    assert sorted(site.asked) == ["/7.png", "/8.png"]  # the next call finishes


def test_a_full_disk_stops_the_run_and_keeps_what_is_whole(item, tmp_path, monkeypatch):
    items = [item(name=f"{k}.bin") for k in range(40)]
    real, written = download.get, []

    def until_full(*arguments):
        if len(written) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(arguments)
        real(*arguments)

    monkeypatch.setattr(download, "get", until_full)
    with pytest.raises(UserError, match="the disk of .*out is full"):
        fetch(items, progress=False, tolerated=1.0)
    kept = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert 1 <= len(kept) <= 6 and set(kept) == {DATA}


def test_too_little_space_is_said_before_anything_is_asked(site, item, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=9_000))
    with pytest.raises(UserError, match="space .*0.0 GB free"):
        fetch([item(about=10_000)])
    assert site.asked == []


def test_ctrl_c_keeps_what_is_whole(item, tmp_path, monkeypatch):
    def stop(jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "as_completed", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch([item(name=f"{k}.bin") for k in range(40)], progress=False)
    assert all(path.read_bytes() == DATA for path in (tmp_path / "out").iterdir())


def test_offline_nothing_is_asked_and_what_lacks_is_listed(site, item, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="3 of 3 files cannot be had: 0, 1, 2 .*HF_HUB_OFFLINE"):
        fetch([item(name=str(k)) for k in range(3)])
    assert site.asked == []


def test_a_mirror_takes_the_place_of_the_sites(site, tmp_path, monkeypatch):
    place = "images.cocodataset.org/train2014/x.bin"
    one = Item(Source(f"http://{place}"), tmp_path / "out" / "x.bin")
    site.files[f"/{place}"] = DATA
    monkeypatch.setenv("VLM_LITE_MIRROR", f"{site.address}/")
    assert fetch([one], progress=False) == {} and one.path.read_bytes() == DATA
    file = tmp_path / "mirror" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA[:9])
    one.path.unlink()
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch([one], progress=False) == {} and one.path.read_bytes() == DATA[:9]
    one.path.unlink()
    file.unlink()
    with pytest.raises(UserError, match=place):
        fetch([one], progress=False)
    monkeypatch.setenv("VLM_LITE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="VLM_LITE_MIRROR"):
        sites.locate("http://x/y")


@pytest.fixture
def hub(site, monkeypatch, tmp_path):
    """A CLIP on the hub: pickles in main, its conversion as the bot's pull request 3."""
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    template = site.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_CACHE", str(tmp_path / "hub")),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("ENDPOINT", site.address),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    small.clip(9).save_pretrained(tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    old = {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    site.add_model("someone/clip", old)
    site.add_model("someone/clip", files, "refs/pr/3")
    return site


@pytest.mark.parametrize("faults", [[], [500, 500], ["cut"], ["slow"], [404]])
def test_the_hubs_files_come_from_its_endpoint(hub, tmp_path, faults):
    path = "/datasets/someone/talks/resolve/main/talks.json"
    hub.files[path], hub.faults[path] = DATA, list(faults)
    one = Item(Source(f"{sites.HUB}{path}"), tmp_path / "out" / "talks.json")
    if 404 in faults:
        with pytest.raises(UserError, match="talks.json"):
            fetch([one], progress=False)
    else:
        assert fetch([one], progress=False) == {} and one.path.read_bytes() == DATA


def offer(hub, author="SFconvertbot", title="Adding `safetensors` variant of this model"):
    request = {
        "num": 3,
        "title": title,
        "author": {"name": author},
        "repo": {"name": "someone/clip", "type": "model"},
        "status": "open",
        "isPullRequest": True,
        "createdAt": "2024-01-01T00:00:00.000Z",
    }
    page = {"count": 1, "start": 0, "discussions": [request]}
    hub.files["/api/models/someone/clip/discussions"] = json.dumps(page).encode()


def test_weights_that_main_has_only_as_pickles_come_from_the_hubs_own_conversion(hub, monkeypatch):
    offer(hub)
    assert sites.cached_snapshot("someone/clip") is None
    assert CLIP.from_pretrained("someone/clip").feature_width == 16
    assert sites.cached_snapshot("someone/clip").name == hashlib.sha1(b"refs/pr/3").hexdigest()
    assert not any(path.endswith("pytorch_model.bin") for path in hub.asked)
    # and from then on without a network
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert CLIP.from_pretrained("someone/clip").feature_width == 16


@pytest.mark.parametrize("other", [{"author": "mallory"}, {"title": "Please merge"}])
def test_nobody_elses_conversion_is_taken(hub, other):
    offer(hub, **other)
    with pytest.raises(UserError, match="'someone/clip' .*conversion"):
        CLIP.from_pretrained("someone/clip")


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in entries.items():
            opened.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["x", "../evil", "a/../../evil", "/etc/evil", "..\\evil"])
def test_one_member_is_unpacked_under_our_own_name_and_no_other(tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    whole = archive(tmp_path / "a.zip", {"annotations/c.json": "[1]", info: "evil"})
    extract(whole, "annotations/c.json", tmp_path / "out" / "c")
    assert (tmp_path / "out" / "c").read_text() == "[1]"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_zip_that_is_cut_damaged_or_another_is_refused(tmp_path):
    whole = archive(tmp_path / "a.zip", {"c.json": os.urandom(5000)})
    data = whole.read_bytes()
    for name, harmed in (
        ("d.json", data),
        *(("c.json", d) for d in (data[:-30], b"", data[:1000] + b"\0\0\0" + data[1003:])),
    ):
        whole.write_bytes(harmed)
        with pytest.raises(UserError, match=f"a.zip .*{name}"):
            extract(whole, name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
