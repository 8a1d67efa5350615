"""The feature cache: computed once, never half, never stale."""

import errno
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm_lite import features
from vlm_lite.features import cache_features, weights_hash
from vlm_lite.files import UserError

IMAGES = torch.randint(
    0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def plain(batch):  # (B, 3, 4, 4) -> (B, 3, 16)
    return batch.flatten(2).float() / 255


EXPECTED = plain(IMAGES).half()


class Counter:
    """An encoder that counts its pictures, and may fail at one."""

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.seen, self.fail_at, self.error = 0, fail_at, error

    def __call__(self, batch):
        assert torch.is_inference_mode_enabled()
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise self.error
        self.seen += len(batch)
        return plain(batch)


def cached(folder, encode, images=IMAGES, **kw):
    return cache_features(
        encode,
        images,
        **{"key": {"layer": -2}, "batch_size": 8, "folder": folder, "progress": False} | kw,
    )


def test_features_are_computed_once_and_equal_the_encoder(tmp_path):
    encode = Counter()
    first, second = cached(tmp_path, encode), cached(tmp_path, encode)
    assert encode.seen == 50
    assert first.shape == (50, 3, 16) and first.dtype == torch.float16
    assert torch.equal(first, EXPECTED) and torch.equal(second, EXPECTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_number_formats_have_their_own_cache(tmp_path, dtype):
    cached(tmp_path, Counter())
    assert torch.equal(cached(tmp_path, Counter(), dtype=dtype), plain(IMAGES).to(dtype))


def test_writing_to_the_features_does_not_reach_the_file(tmp_path):
    cached(tmp_path, Counter()).fill_(0)
    assert torch.equal(cached(tmp_path, Counter(fail_at=0)), EXPECTED)


def test_features_can_be_trained_on(tmp_path):
    layer = nn.Linear(16, 2)
    layer(cached(tmp_path, Counter()).float()).sum().backward()
    assert layer.weight.grad is not None


def test_any_change_of_key_or_pictures_computes_again(tmp_path):
    cached(tmp_path, Counter())
    changed = IMAGES.clone()
    changed[31, 2, 1, 3] ^= 1
    for options in (
        {"key": {"layer": -1}},
        {"images": changed},
        {"images": IMAGES[:49]},
        {"images": IMAGES.reshape(50, 3, 2, 8)},
    ):
        encode = Counter()
        cached(tmp_path, encode, **options)
        assert encode.seen == len(options.get("images", IMAGES))


def test_weights_hash_sees_one_changed_bit_and_nothing_else():
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    assert weights_hash(model) == weights_hash(twin)
    with torch.no_grad():
        twin.bias[1] = torch.nextafter(twin.bias[1], torch.tensor(9.0))
    assert weights_hash(model) != weights_hash(twin)
    assert weights_hash(model) != weights_hash(nn.Linear(3, 2).to(torch.bfloat16))


@pytest.mark.parametrize("fail_at", [0, 8, 24, 48])
@pytest.mark.parametrize("save_every", [1, 16])
def test_ctrl_c_keeps_what_is_done_and_goes_on(tmp_path, fail_at, save_every, capsys):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, Counter(fail_at), save_every=save_every)
    assert f"Stopped after {fail_at} of 50 images" in capsys.readouterr().out
    encode = Counter()
    assert torch.equal(cached(tmp_path, encode, save_every=save_every), EXPECTED)
    assert encode.seen == 50 - fail_at


def in_a_child(function):
    """Run `function` in a copy of this process; returns its process id."""
    if (pid := os.fork()) == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_a_process_killed_in_the_middle_is_never_taken_for_whole(tmp_path):
    class Killed(Counter):
        def __call__(self, batch):
            if self.seen == 40:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    pid = in_a_child(lambda: cached(tmp_path, Killed(), save_every=16))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    encode = Counter()
    assert torch.equal(cached(tmp_path, encode), EXPECTED)
    assert encode.seen == 50 - 32  # two safe points of 16 pictures


def test_two_processes_at_once_both_get_whole_features(tmp_path):
    def check():
        assert torch.equal(cached(tmp_path, Counter(), batch_size=1, save_every=1), EXPECTED)

    both = [in_a_child(check) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]
    assert torch.equal(cached(tmp_path, Counter(fail_at=0)), EXPECTED)


@pytest.mark.parametrize("harm", ["cut", "gone", "meta cut", "meta gone", "meta wrong"])
def test_a_damaged_cache_is_made_again(tmp_path, harm):
    cached(tmp_path, Counter())
    (data,) = tmp_path.glob("*.bin")
    meta = data.with_suffix(".json")
    match harm:
        case "cut":
            os.truncate(data, data.stat().st_size - 1)
        case "gone":
            data.unlink()
        case "meta cut":
            os.truncate(meta, 20)
        case "meta gone":
            meta.unlink()
        case "meta wrong":
            meta.write_text(json.dumps([1]))
    encode = Counter()
    assert torch.equal(cached(tmp_path, encode), EXPECTED) and encode.seen == 50


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path, monkeypatch):
    def full(handle, real=os.fsync, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 2:  # data and JSON of the first safe point are on the disk
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            cached(tmp_path, Counter(), save_every=16)
    encode = Counter()
    assert torch.equal(cached(tmp_path, encode), EXPECTED) and encode.seen == 50 - 16


def test_too_little_space_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    encode = Counter()
    with pytest.raises(UserError, match="needs 0.00 GB and the disk has 0.00 GB left"):
        cached(tmp_path, encode)
    assert encode.seen == 8


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="float32 tensor of shape .*expected uint8"):
        cached(tmp_path, plain, images=IMAGES.float())
    with pytest.raises(UserError, match="at least one picture"):
        cached(tmp_path, plain, images=IMAGES[:0])
    with pytest.raises(UserError, match=r"encode returned \(24, 16\) for a batch of 8"):
        cached(tmp_path, lambda batch: plain(batch).flatten(0, 1))
    with pytest.raises(UserError, match="do not fit torch.float16: the largest magnitude is 1e.05"):
        cached(tmp_path, lambda batch: plain(batch) * 0 + 1e5)
    with pytest.raises(UserError, match="key: .*not JSON serializable"):
        cached(tmp_path, plain, key={"dtype": torch.float16})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the feature cache"):
        cached(tmp_path / "file" / "cache", plain)


def test_the_default_folder_is_under_home_and_the_bar_counts_pictures(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    cached(None, Counter(), progress=True)
    assert len(list((tmp_path / "features").glob("*.bin"))) == 1
    assert "features: 100%" in capsys.readouterr().err


@pytest.mark.soak
def test_memory_stays_flat_from_1000_to_100000_images(tmp_path):
    """Each in a process of its own, pictures drawn as they are asked for; its figures are printed.

    What grows with the number is the file on the disk. Pages that are mapped but clean are the system's to take back,
    so memory is what the process itself holds (its peak of anonymous pages, RssAnon).
    """
    code = """
import sys, threading, time, torch
from vlm_lite.features import cache_features
count, folder = int(sys.argv[1]), sys.argv[2]
class Drawn:  # like a tensor of pictures, but none is kept
    dtype, ndim = torch.uint8, 4
    shape = (count, 3, 8, 8)
    def __len__(self): return count
    def __getitem__(self, rows):
        first, last, _ = rows.indices(count)
        return (torch.arange(first, last)[:, None] + torch.arange(192)).to(torch.uint8).view(-1, 3, 8, 8)
def encode(batch):  # (B, 3, 8, 8) -> (B, 8, 768)
    return batch.flatten(1)[:, :8, None].float().expand(-1, 8, 768)
peak = 0
def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
def watch():
    global peak
    while True:
        peak = max(peak, held()); time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
features = cache_features(encode, Drawn(), key={}, folder=folder, progress=False)
made = time.perf_counter() - started
rows = torch.randperm(count)[:1000]
started = time.perf_counter()
total = sum(features[part].float().sum() for part in rows.split(64))
print(peak / 1e3, made, 1000 / (time.perf_counter() - started), features.nbytes / 1e6)
"""
    found = {}
    for count in (1_000, 10_000, 100_000):
        run = subprocess.run(
            [sys.executable, "-c", code, str(count), str(tmp_path / str(count))],
            check=True,
            capture_output=True,
            text=True,
        )
        found[count] = [float(value) for value in run.stdout.split()]
        memory, made, read, size = found[count]
        print(
            f"{count:7,} images: {memory:6.0f} MB held at most, {size:8,.0f} MB on the disk, {count / made:8,.0f} "
            f"images/s written, {read:8,.0f} rows/s read at random",
            flush=True,
        )
    assert found[100_000][0] < 1.1 * found[1_000][0] + 20
