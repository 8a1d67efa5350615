"""A training loop of your own that can be cut at any moment and goes on exactly as if it had not been.

    run = Checkpoint("clip", model, optimizer, scheduler, seed=0, settings={"lr": 1e-3}, code=(CLIP, info_nce))
    for step in run.steps(480):
        loss = ...                          # drawn at random as you like: each step is seeded by (seed, step)
        ...                                 # backward, optimizer.step(), scheduler.step()
        run.log(loss=loss)
    run.history

What is kept lies in `runs/NAME` of `files.home()`: a safetensors file with all else as JSON in its header, written whole
or not at all. It is used only by the same code: its key holds the settings, the names and shapes of the parameters, and
the syntax tree of the functions given and of what they call in their own module. Another loss therefore starts afresh,
and a line says so.
A run that has ended keeps nothing, so that the next call trains.
"""

import dataclasses
import hashlib
import json
import math
import random
import shutil
import signal
import sys
import threading
import time

import numpy as np
import safetensors
import safetensors.torch
import torch
from accelerate import PartialState
from tqdm import tqdm

from vlm_lite.files import UserError, atomic_write, home
from vlm_lite.files import digest as digest  # for notebook 04
from vlm_lite.source import code_hash


@dataclasses.dataclass
class History:
    """What a run recorded, one entry every `log_every` steps and one for the last step.

    steps: steps completed; losses: mean loss since the entry before; seconds: of training so far; learning_rates: of
    the entry's last step; figures: name -> [[steps completed, value], ...] of whatever else was logged.
    """

    steps: list = dataclasses.field(default_factory=list)
    losses: list = dataclasses.field(default_factory=list)
    seconds: list = dataclasses.field(default_factory=list)
    learning_rates: list = dataclasses.field(default_factory=list)
    figures: dict = dataclasses.field(default_factory=dict)


class Checkpoint:
    """The state of one training run and its place on disk: see the module's first lines.

    model: a module, or what `accelerator.prepare` made of it. optimizer, scheduler: likewise; the scheduler may be None.
    settings: a dict of JSON values that must be the same to go on (batch size, learning rate, size of the data).
    code: functions and classes that must be the same. every: steps from one checkpoint to the next.
    UserError where nothing is trainable or the folder cannot be written to.
    """

    def __init__(self, name, model, optimizer, scheduler=None, *, seed=0, settings=None, code=(),
                 every=100, log_every=10, progress=True):  # fmt: skip
        self.name, self.seed, self.every, self.log_every = name, seed, every, log_every
        self.model = getattr(model, "module", model)  # DistributedDataParallel has it inside
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.scaler, self.scheduler = getattr(optimizer, "scaler", None), scheduler
        shapes = {n: list(p.shape) for n, p in trainable_parameters(self.model).items()}
        self.key = {"seed": seed, **(settings or {}), "code": code_hash(*code), "shapes": shapes}
        self.key = json.loads(json.dumps(self.key))
        self.is_main, self.progress = PartialState().is_main_process, progress
        self.folder = home() / "runs" / name
        self.history, self.done, self.seconds, self.window = History(), 0, 0.0, []

    def steps(self, total):
        """Yield the steps from where the run stands up to `total`, counted from 0, each seeded by (seed, step)."""
        if total < 1:
            raise UserError(f"{self.name}: steps is {total}; expected at least 1.")
        self.key["steps"] = total
        self._load()
        was_training = self.model.training
        columns = min(100, shutil.get_terminal_size((100, 24)).columns)
        look = dict(desc=self.name, ncols=columns, mininterval=1.0)
        look["disable"] = not (self.progress and self.is_main)
        self.bar = tqdm(total=total, initial=self.done, **look)
        with self.bar, _DeferredInterrupt(sys._getframe(1)) as interrupt:
            while self.done < total:
                started = time.perf_counter()
                self.model.train()
                seed_everything(step_seed(self.seed, self.done))
                yield self.done
                self.done += 1
                self.seconds += time.perf_counter() - started
                self.bar.update(1)
                if self.window and (self.done % self.log_every == 0 or self.done == total):
                    self._record()
                if interrupt.asked or self.done % self.every == 0 and self.done < total:
                    self._save()
                if interrupt.asked:
                    where = f"Saved in {self.folder}: the same call goes on from there"
                    self._say(f"stopped after step {self.done} of {total}. {where}")
                    raise KeyboardInterrupt
        self.model.train(was_training)
        seed_everything(step_seed(self.seed, total))  # what follows draws the same, resumed or not
        if self.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, loss=None, **figures):
        """Keep this step's loss, a scalar tensor or a number, and other figures by name, in `history`."""
        if loss is not None:
            self.window.append(loss.detach() if torch.is_tensor(loss) else loss)
        for name, value in figures.items():
            self.history.figures.setdefault(name, []).append([self.done + 1, float(value)])

    def _fetch(self):
        """Bring the losses of the window from the device; UserError, naming the step, for one that is not finite."""
        self.window = [float(loss) for loss in self.window]
        for step, loss in enumerate(self.window, start=self.done - len(self.window) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at step {step}. Check, in this order: a learning rate that "
                    "is too high (try a tenth); a batch with no label to learn from, or with NaN in it; a log "
                    "or a division by zero in the loss; mixed precision."
                )

    def _record(self):
        self._fetch()
        history = self.history
        history.steps.append(self.done)
        history.losses.append(sum(self.window) / len(self.window))
        history.seconds.append(round(self.seconds, 3))
        history.learning_rates.append(self.optimizer.param_groups[0]["lr"])
        self.window = []
        last = {name: f"{series[-1][1]:.4g}" for name, series in history.figures.items()}
        self.bar.set_postfix(loss=f"{history.losses[-1]:.3f}", **last, refresh=False)

    def _tensors(self):
        """What a step may change: parameters, persistent buffers (running means) and the optimizer's moments, by name."""
        parameters = trainable_parameters(self.model)
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        found = {
            k: v
            for k, v in self.model.state_dict().items()
            if k not in known and torch.is_tensor(v)
        }
        moments = {
            f"{name}/{k}": v
            for name, p in parameters.items()
            for k, v in self.optimizer.state[p].items()
        }
        return parameters | found, moments

    def _save(self):
        """Write `step-N.safetensors`, then remove the files that it replaces.

        UserError when the disk is full (the file before stays) or a parameter is not finite (it would be no use).
        """
        self._fetch()
        if self.is_main:
            model, moments = self._tensors()
            trained = trainable_parameters(self.model).items()
            bad = [name for name, p in trained if not torch.isfinite(p).all()]
            if bad:
                raise UserError(
                    f"{bad[0]} is not finite after step {self.done}; no checkpoint was written, and an earlier one in "
                    f"{self.folder} stays. Try a tenth of the learning rate."
                )
            state = {
                "step": self.done,
                "seconds": self.seconds,
                "window": self.window,
                "history": dataclasses.asdict(self.history),
                "scheduler": self.scheduler and self.scheduler.state_dict(),
                "scaler": self.scaler and self.scaler.state_dict(),
                "fingerprint": self.key,
            }
            tensors = {
                k: v.detach().cpu().contiguous().clone() for k, v in (model | moments).items()
            }
            path = self.folder / f"step-{self.done:08d}.safetensors"
            with atomic_write(path) as file:
                file.write(safetensors.torch.save(tensors, {"state": json.dumps(state)}))
            for other in {*self.folder.glob("*step-*.safetensors*")} - {path}:
                other.unlink()
        PartialState().wait_for_everyone()

    def _load(self):
        """Bring everything to the newest checkpoint of this very run; say so, or why another one is not used.

        UserError naming a file that is damaged; then nothing has been changed.
        """
        other = None
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            try:
                with safetensors.safe_open(path, "pt") as file:
                    state = json.loads(file.metadata()["state"])
                    saved = {name: file.get_tensor(name) for name in file.keys()}
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"{path} is damaged ({error}). Delete it and train again."
                ) from error
            if state["fingerprint"] != self.key:
                other = other or state["fingerprint"]
                continue
            model, parameters = self._tensors()[0], trainable_parameters(self.model)
            with torch.no_grad():
                for name, value in saved.items():
                    if name in model:
                        model[name].copy_(value)
                    else:
                        name, _, moment = name.rpartition("/")
                        own = parameters[name]
                        self.optimizer.state[own][moment] = value.to(own.device, copy=True)
            if self.scaler and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            if self.scheduler:
                self.scheduler.load_state_dict(state["scheduler"])
                rates = self.scheduler.get_last_lr()
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            self.history, self.done = History(**state["history"]), state["step"]
            self.seconds, self.window = state["seconds"], state["window"]
            return self._say(f"goes on after step {self.done}, from {path}")
        if other:
            names = sorted(n for n in {*other, *self.key} if other.get(n) != self.key.get(n))
            self._say(
                f"starts afresh: the checkpoint in {self.folder} has other {', '.join(names)}"
            )

    def _say(self, text):
        if self.is_main:
            tqdm.write(f"{self.name}: {text}.")


def trainable_parameters(model):
    """Name -> parameter of what an optimizer may change. Raises UserError when there is none."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError(
            f"{type(model).__name__} has no trainable parameters: every one has requires_grad=False. "
            "Unfreeze the part that should learn, for instance `model.connector.requires_grad_(True)`."
        )
    return parameters


def step_seed(seed, step, what="step"):
    """A 63-bit seed that depends on `(seed, step, what)` only."""
    digest = hashlib.sha256(f"{seed}/{step}/{what}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(value):
    """Seed Python's, NumPy's and torch's generators. (torch.manual_seed also walks unused accelerators: 0.3 ms.)"""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    np.random.seed(value % 2**32)
    random.seed(value)


class _DeferredInterrupt:
    """While `frame` runs, the first Ctrl-C is only counted, so that no step is cut in two; the second raises.

    Several processes would hear it at different steps: there it raises at once, and the checkpoint before stands.
    """

    def __init__(self, frame):
        self.frame, self.asked, self.before = id(frame), 0, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread() and signal.getsignal(
            signal.SIGINT
        ):
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number, frame):
        self.asked += 1
        while frame is not None and id(frame) != self.frame:
            frame = frame.f_back
        if self.asked > 1 or frame is None:  # None: the loop has failed and is no longer at work
            raise KeyboardInterrupt

    def __exit__(self, *_):
        if self.before is not None and signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, self.before)
