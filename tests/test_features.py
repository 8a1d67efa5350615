"""The feature cache: computed once, never half, never stale."""

import os
import signal

import pytest
import torch
from torch import nn

from tests.small import refused
from vlm_lite.features import cache_features, weights_hash

IMAGES = torch.randint(
    0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def plain(batch):  # (B, 3, 4, 4) -> (B, 3, 16)
    return batch.flatten(2).float() / 255


EXPECTED = plain(IMAGES).half()


class Counter:
    """An encoder that counts its pictures, and may be killed at the second batch."""

    def __init__(self, killed=False):
        self.seen, self.killed = 0, killed

    def __call__(self, batch):
        assert torch.is_inference_mode_enabled()
        if self.killed and self.seen:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += len(batch)
        return plain(batch)


def cached(folder, encode, images=IMAGES, **kw):
    options = {"key": {"layer": -2}, "batch_size": 8, "folder": folder, "progress": False} | kw
    return cache_features(encode, images, **options)


def test_features_are_computed_once_equal_the_encoder_and_can_be_trained_on_and_written_to(
    tmp_path,
):
    encode = Counter()
    first, second = cached(tmp_path, encode), cached(tmp_path, encode)
    assert encode.seen == 50 and first.shape == (50, 3, 16) and first.dtype == torch.float16
    assert torch.equal(first, EXPECTED) and torch.equal(second, EXPECTED)
    layer = nn.Linear(16, 2)
    layer(first.float()).sum().backward()
    first.fill_(0)  # which does not reach the file
    assert layer.weight.grad is not None and torch.equal(cached(tmp_path, encode), EXPECTED)


def test_any_change_of_key_or_pictures_computes_again(tmp_path):
    cached(tmp_path, Counter())
    changed = IMAGES.clone()
    changed[31, 2, 1, 3] ^= 1
    turned = IMAGES.reshape(50, 3, 2, 8)
    for options in (
        {"key": {"layer": -1}},
        *({"images": x} for x in (changed, IMAGES[:49], turned)),
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


def in_a_child(function):
    """Call `function` in a child of this process; returns its process id."""
    if (pid := os.fork()) == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_a_process_killed_in_the_middle_is_never_taken_for_whole(tmp_path):
    pid = in_a_child(lambda: cached(tmp_path, Counter(killed=True)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert torch.equal(cached(tmp_path, Counter()), EXPECTED)


def test_two_processes_at_once_both_get_whole_features(tmp_path):
    def check():
        assert torch.equal(cached(tmp_path, Counter(), batch_size=1), EXPECTED)

    both = [in_a_child(check) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]
    cached(tmp_path, encode := Counter())
    assert encode.seen == 0


@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_damaged_cache_is_made_again(tmp_path, left):
    cached(tmp_path, Counter())
    (data,) = tmp_path.glob("*.npy")
    data.write_bytes(data.read_bytes()[:left])
    encode = Counter()
    assert torch.equal(cached(tmp_path, encode), EXPECTED) and encode.seen == 50


@pytest.mark.parametrize(
    "encode, images, named",
    [
        (plain, IMAGES.float(), "float32 tensor of shape .*expected uint8"),
        (plain, IMAGES[:0], "at least one image"),
        (lambda batch: plain(batch) * 0 + 1e5, IMAGES, "fp16: .*1e.05"),
    ],
)
def test_mistakes_are_named(tmp_path, encode, images, named):
    with refused(named):
        cached(tmp_path, encode, images=images)


def test_an_encoder_that_loses_the_images_axis_leaves_no_cache(tmp_path):
    with pytest.raises(AssertionError, match="150 features of 50 images"):
        cached(tmp_path, lambda batch: plain(batch).flatten(0, 1))
    assert not list(tmp_path.glob("*.npy"))


def test_the_default_folder_is_under_home_and_the_bar_counts_pictures(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    cached(None, Counter(), progress=True)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 1
    assert "50/50" in capsys.readouterr().err
