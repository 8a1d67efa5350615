"""The training loop: exact resume, honest errors, checkpoints that are whole or absent."""

import functools
import json
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vlm_lite.files import UserError
from vlm_lite.train import History, learning_rate, train, weight_decay_groups

CPU = SimpleNamespace(device="cpu", mixed_precision="no")
BF16 = SimpleNamespace(device="cpu", mixed_precision="bf16")
ROOT = Path(__file__).resolve().parents[1]


class Toy(nn.Module):
    """Dropout, batch statistics, a frozen part, queries and an embedding: whatever a resume could lose."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.queries = nn.Parameter(torch.randn(1, 8, 8))
        self.embedding = nn.Embedding(5, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x, ids):  # (B, 8), (B,) -> (B, 3)
        x = x @ self.queries[0] + self.embedding(ids)
        return self.frozen(self.head(self.norm(self.body(x))))


def batches(step, generator):
    return {
        "x": torch.randn(16, 8, generator=generator),
        "ids": torch.randint(5, (16,), generator=generator),
    }


def loss_fn(model, batch):
    noise = (
        random.random() + np.random.rand()
    )  # draws that only the loop's own seeding makes repeatable
    prediction = model(batch["x"], batch["ids"])
    return (prediction - batch["x"][:, :3]).square().mean() + noise * prediction.mean() * 0.01, {
        "noise": noise
    }


def run_toy(model=None, **kw):
    model = Toy() if model is None else model
    options = (
        dict(steps=12, lr=1e-2, compute=CPU, progress=False, log_every=5, checkpoint_every=4) | kw
    )
    return model, train(model, batches, loss_fn, **options)


run = run_toy


def assert_same_run(first, second):
    (model, history), (other, other_history) = first, second
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for field in ("steps", "losses", "learning_rates", "figures"):
        assert getattr(history, field) == getattr(other_history, field)


def cut_at(step):
    def on_step(done, model):
        if done == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("step", [1, 4, 7, 11])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_cut_at_any_step_and_resumed_ends_bit_identical(
    tmp_path, step, compute, optimizer, capsys
):
    run = functools.partial(run_toy, optimizer=optimizer)
    whole = run(compute=compute)
    with pytest.raises(KeyboardInterrupt):
        run(compute=compute, checkpoint=tmp_path / "run", on_step=cut_at(step))
    printed = capsys.readouterr().out
    assert f"Stopped after step {step} of 12" in printed and str(tmp_path / "run") in printed
    torch.rand(3), random.random()  # whatever happens in between
    assert_same_run(whole, run(compute=compute, checkpoint=tmp_path / "run"))


def test_ctrl_c_inside_a_step_ends_the_step_and_saves(tmp_path, capsys):
    def interrupted_loss(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return loss_fn(model, batch)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(
            Toy(),
            batches,
            interrupted_loss,
            steps=12,
            lr=1e-2,
            compute=CPU,
            progress=False,
            log_every=5,
            checkpoint=tmp_path,
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert "the same call goes on from there" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    assert_same_run(run(), run(checkpoint=tmp_path))


def test_a_finished_run_is_loaded_without_a_step(tmp_path):
    first = run(checkpoint=tmp_path)
    after = torch.rand(1)
    second = run(checkpoint=tmp_path, on_step=lambda *_: pytest.fail("a step was taken"))
    assert torch.equal(after, torch.rand(1))  # and what follows draws the same numbers
    assert_same_run(first, second)
    assert second[1].seconds == first[1].seconds


def test_looking_at_the_model_does_not_change_the_run():
    def evaluate(step, model):
        model.eval()
        torch.rand(3), np.random.rand(), random.random()

    model, history = run(on_step=evaluate)
    assert model.training  # as it was given
    assert_same_run(run(), (model, history))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 13}, "steps was 12 and is now 13"),
        ({"lr": 0.02}, "lr was 0.01 and is now 0.02"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"settings": {"batch_size": 4}}, "batch_size was None and is now 4"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change, says):
    run(checkpoint=tmp_path)
    with pytest.raises(UserError, match=says) as error:
        run(checkpoint=tmp_path, **change)
    assert str(tmp_path) in str(error.value) and "delete that folder" in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(checkpoint=tmp_path)
    model = Toy()
    model.head = nn.Linear(16, 3, bias=False)
    model.queries = nn.Parameter(torch.zeros(1, 4, 8))
    with pytest.raises(
        UserError, match=r"head.bias had shape \[3\] and has none; queries had shape \[1, 8, 8\]"
    ):
        run(model, checkpoint=tmp_path)


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to it"):
        run(
            checkpoint=tmp_path / "file" / "run", on_step=lambda *_: pytest.fail("a step was taken")
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_spares_the_weights(tmp_path, value):
    model = Toy()

    def bad_loss(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        loss, _ = loss_fn(model, batch)
        return loss * value if len(calls) == 6 else loss

    with pytest.raises(UserError, match="the loss is (nan|inf|-inf) at step 6.*learning rate"):
        train(
            model,
            batches,
            bad_loss,
            steps=12,
            lr=1e-2,
            compute=CPU,
            progress=False,
            checkpoint=tmp_path,
            checkpoint_every=4,
        )
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_gradient_that_is_not_finite_names_the_step():
    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(UserError, match="gradient norm is (nan|inf) at step 1"):
        train(
            model,
            lambda step, generator: torch.zeros(1, 1),
            lambda m, x: m(x).square().sum().sqrt(),
            steps=2,
            lr=1e-2,
            compute=CPU,
            progress=False,
        )
    assert torch.isfinite(model.weight).all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def spoil(step, model):
        model.head.weight.data.fill_(float("nan"))

    with pytest.raises(UserError, match="head.weight is not finite after step 4"):
        run(
            checkpoint=tmp_path,
            on_step=lambda step, model: spoil(step, model) if step == 4 else None,
        )
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no trainable parameters.*requires_grad_"):
        run(Toy().requires_grad_(False))
    with pytest.raises(UserError, match="steps=0"):
        run(steps=0)
    options = dict(steps=1, lr=1e-2, compute=CPU, progress=False)
    with pytest.raises(UserError, match=r"tensor of shape \(16, 3\).*scalar"):
        train(Toy(), batches, lambda m, b: m(b["x"], b["ids"]), **options)
    with pytest.raises(UserError, match="a float, and a scalar tensor"):
        train(Toy(), batches, lambda m, b: 1.0, **options)
    with pytest.raises(UserError, match="carries no gradient"):
        train(Toy(), batches, lambda m, b: m(b["x"], b["ids"]).mean().detach(), **options)


def test_only_trainable_parameters_change_and_only_matrices_decay():
    model = Toy()
    frozen = model.frozen.weight.clone()
    decayed, plain = weight_decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["body.0.weight", "head.weight"]
    assert {"queries", "embedding.weight", "norm.weight", "head.bias"} <= {
        names[id(p)] for p in plain["params"]
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    before = model.head.weight.clone()
    run(model)
    assert torch.equal(frozen, model.frozen.weight) and not torch.equal(before, model.head.weight)


def test_one_step_equals_clipped_adamw_by_hand():
    model, reference = nn.Linear(8, 3), nn.Linear(8, 3)
    reference.load_state_dict(model.state_dict())
    x = torch.randn(4, 8)
    train(
        model,
        lambda step, generator: x,
        lambda m, x: m(x).square().mean() * 50,
        steps=1,
        lr=0.1,
        warmup=0,
        weight_decay=0.0,
        max_grad_norm=0.5,
        compute=CPU,
        progress=False,
    )
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.0)
    (reference(x).square().mean() * 50).backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    optimizer.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_the_learning_rate_warms_up_then_falls_along_a_cosine():
    rates = [learning_rate(step, steps=100, lr=2.0, warmup=0.1) for step in range(100)]
    assert (
        rates[0] == pytest.approx(0.2)
        and rates[9] == rates[10] == 2.0
        and rates[55] == pytest.approx(1.0)
    )
    assert (
        all(a > b for a, b in zip(rates[10:], rates[11:], strict=False)) and 0 < rates[-1] < 0.002
    )
    assert learning_rate(0, steps=1, lr=1.0, warmup=0) == 1.0


def test_history_holds_window_means_and_figures():
    seen = []

    def recorded(model, batch):
        loss, figures = loss_fn(model, batch)
        seen.append(loss.item())
        return loss, figures

    history = train(
        Toy(), batches, recorded, steps=12, lr=1e-2, compute=CPU, progress=False, log_every=5
    )
    assert isinstance(history, History) and history.steps == [5, 10, 12]
    assert history.losses == pytest.approx(
        [np.mean(seen[:5]), np.mean(seen[5:10]), np.mean(seen[10:])]
    )
    assert history.seconds == sorted(history.seconds) and len(history.figures["noise"]) == 3
    json.dumps(history.__dict__)


def test_precision_may_change_between_runs_of_one_process():
    dtypes = []
    for compute in (CPU, BF16, CPU):

        def loss(model, batch):
            prediction = model(batch["x"], batch["ids"])
            dtypes.append(prediction.dtype)
            return prediction.float().mean()

        train(Toy(), batches, loss, steps=1, lr=1e-3, compute=compute, progress=False)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
    assert all(p.dtype == torch.float32 for p in Toy().parameters())
