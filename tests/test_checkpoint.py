"""Checkpoint: a loop of one's own, cut at any moment, ends bit for bit as if it had not been."""

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup

from tests.small import refused
from vlm_lite.checkpoint import Checkpoint
from vlm_lite.source import code_hash

ROOT = Path(__file__).resolve().parents[1]
RATE = 0.3


class Toy(nn.Module):
    """Dropout, batch statistics and a frozen part: whatever a resume could lose."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(RATE), nn.Linear(16, 3)
        )
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):  # (B, 8) -> (B, 3)
        return self.frozen(self.body(x))


def squared(prediction, target):
    return (prediction - target).square().mean()


def doubled(prediction, target):
    return 2 * squared(prediction, target)


def train_toy(model=None, *, steps=12, lr=1e-2, loss_fn=squared, seed=0, on_step=None, **options):
    model = model or Toy()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 3, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    options = {"settings": {"lr": lr}, "every": 4, "log_every": 5, "progress": False, **options}
    code = (Toy, loss_fn, train_toy)
    run = Checkpoint("toy", prepared, optimizer, scheduler, seed=seed, code=code, **options)
    for step in run.steps(steps):
        x = torch.randn(16, 8) + random.random() + np.random.rand()
        loss = loss_fn(prepared(x), x[:, :3])
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss, spread=x.std())
        if on_step:
            on_step(step + 1, model)
    return model, run.history


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    return tmp_path / "runs" / "toy"


def kept(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_same_run(first, second):
    (model, history), (other, other_history) = first, second
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for field in ("steps", "losses", "learning_rates", "figures"):
        assert getattr(history, field) == getattr(other_history, field)


def interrupt(at, **options):
    """Train until Ctrl-C at this step."""
    with pytest.raises(KeyboardInterrupt):
        train_toy(
            on_step=lambda k, _: signal.raise_signal(signal.SIGINT) if k == at else 0, **options
        )


@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_ctrl_c_ends_the_step_saves_says_where_and_goes_on_bit_identical(folder, at, capsys):
    whole, before = train_toy(), signal.getsignal(signal.SIGINT)
    interrupt(at)
    said = capsys.readouterr().out
    assert f"stopped after step {at} of 12" in said and str(folder) in said
    assert signal.getsignal(signal.SIGINT) is before and kept(folder) == [
        f"step-{at:08d}.safetensors"
    ]
    torch.rand(3), random.random()  # whatever happens in between
    assert_same_run(whole, train_toy())
    assert f"goes on after step {at}" in capsys.readouterr().out


def test_a_finished_run_keeps_nothing_so_that_the_next_call_trains(folder):
    taken = []
    first = train_toy(on_step=lambda done, _: taken.append(done))
    assert kept(folder) == []
    after = torch.rand(1)
    assert_same_run(first, train_toy(on_step=lambda done, _: taken.append(done)))
    assert taken == 2 * list(range(1, 13)) and torch.equal(after, torch.rand(1))


CHILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_checkpoint as t
def slow(step, model):
    print(step, flush=True)
    time.sleep(0.02)
t.train_toy(steps=30, every=3, on_step=slow)
"""


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, 9])
def test_a_process_killed_with_kill_9_goes_on_where_it_was(folder, last):
    command = [sys.executable, "-c", CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.strip() == str(last):
                child.kill()
    done = max((int(name[5:13]) for name in kept(folder) if name[0] == "s"), default=0)
    assert last - 3 <= done <= last
    seen = []
    resumed = train_toy(steps=30, every=3, on_step=lambda step, _: seen.append(step))
    assert seen[0] == done + 1 and kept(folder) == []
    assert_same_run(train_toy(steps=30, every=3), resumed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss_fn": doubled}, "code"),
        ({"lr": 0.02}, "lr"),
        ({"seed": 1}, "seed"),
        ({"steps": 13}, "steps"),
    ],
)
def test_edited_code_or_other_settings_start_afresh_and_say_so(folder, change, says, capsys):
    whole = train_toy(**change)
    interrupt(9)
    capsys.readouterr()
    first = []
    again = train_toy(**change, on_step=lambda step, _: first.append(step))
    said = capsys.readouterr().out
    assert first[0] == 1 and f"starts afresh: the checkpoint in {folder} has other {says}" in said
    assert_same_run(whole, again)


def test_the_checkpoint_of_other_code_stays_until_the_new_run_saves(folder):
    interrupt(9)
    with pytest.raises(RuntimeError):
        train_toy(loss_fn=doubled, on_step=fail_at(3))
    assert kept(folder) == ["step-00000009.safetensors"]
    with pytest.raises(RuntimeError):
        train_toy(loss_fn=doubled, on_step=fail_at(5))
    assert kept(folder) == ["step-00000004.safetensors"]


def fail_at(at):
    def on_step(done, model):
        if done == at:
            raise RuntimeError("the loop fails")

    return on_step


def test_after_a_loop_that_failed_ctrl_c_is_heard_at_once(folder):
    before = signal.getsignal(signal.SIGINT)
    try:
        train_toy(on_step=fail_at(3))
    except RuntimeError as error:
        held = (
            error  # with its traceback it keeps the suspended generator alive, as a notebook does
        )
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert held.__traceback__ is not None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loss_that_is_not_finite_names_its_step():
    def spoiled(prediction, target, calls=[]):  # noqa: B006
        calls.append(1)
        return squared(prediction, target) * (float("nan") if len(calls) == 3 else 1)

    with refused("at step 3"):
        train_toy(loss_fn=spoiled)


@pytest.mark.parametrize("kept_bytes", [slice(-40), slice(100), slice(0), slice(8, None)])
def test_a_damaged_checkpoint_is_named(folder, kept_bytes):
    interrupt(4)
    path = folder / "step-00000004.safetensors"
    path.write_bytes(path.read_bytes()[kept_bytes])
    with refused(path.name):
        train_toy()


def test_a_full_disk_leaves_the_checkpoint_before(folder, monkeypatch):
    def full(handle, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) >= 2:  # that of the second checkpoint
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with refused("No space left on device"):
            train_toy()
    assert kept(folder) == ["step-00000004.safetensors"]
    assert_same_run(train_toy(), train_toy())


def test_what_is_kept_is_safetensors_without_frozen_weights(folder):
    interrupt(4)
    with safe_open(folder / "step-00000004.safetensors", "pt") as file:
        saved, state = set(file.keys()), json.loads(file.metadata()["state"])
    assert "frozen.weight" not in saved and "body.1.running_mean" in saved
    assert state["step"] == 4 and state["fingerprint"]["lr"] == 0.01


def test_no_trainable_parameter_and_no_step_are_refused():
    with refused("no trainable parameters"):
        Checkpoint("toy", Toy().requires_grad_(False), None)
    with refused("steps is 0"):
        next(Checkpoint("toy", Toy(), None).steps(0))


def test_the_bar_shows_the_loss_and_the_last_figure(capsys):
    train_toy(progress=True)
    assert "loss=" in (said := capsys.readouterr().err) and "spread=" in said


# ---- what the code of a run is


def helper(x):
    return RATE * x


def outer(x):
    """A docstring."""
    return [helper(each) for each in x]


def test_the_code_of_a_run_is_what_it_calls_beside_it_and_its_constants(monkeypatch):
    before = code_hash(outer)
    assert code_hash(outer) == before != code_hash(helper)
    monkeypatch.setitem(globals(), "RATE", 0.4)
    changed = code_hash(outer)
    assert changed != before
    monkeypatch.setitem(globals(), "helper", squared)
    assert code_hash(outer) not in (before, changed)
    assert code_hash(functools.partial(outer, 1)) != code_hash(functools.partial(outer, 2))


def test_another_module_counts_only_where_it_is_followed(monkeypatch):
    def uses():
        return code_hash

    def bare():
        return F

    assert code_hash(uses, follow=("vlm_lite",)) != code_hash(uses)
    assert code_hash(bare) == code_hash(bare, follow=("vlm_lite",))


def test_what_dataclass_adds_to_a_class_is_not_its_code():
    @dataclasses.dataclass
    class Sizes:
        width: int = 4

        def area(self):
            return self.width**2

    before = code_hash(Sizes)
    Sizes.__replace__ = dataclasses.replace  # Python 3.13 adds such a method, 3.11 does not
    assert code_hash(Sizes) == before
