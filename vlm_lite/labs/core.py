"""The frame around every check of an exercise: run it, print one line, and hand back a function that works.

    @exercise(models.clip.info_nce)           # the reference: the package's own
    def info_nce(learner):                    # the learner's function
        x, y, scale = torch.randn(8, 16), ...     # fresh inputs each time
        if not close(learner(x, y, scale), reference(x, y, scale)):
            return "your loss is one-directional: average both"
        # None: nothing was found wrong

In a notebook, `info_nce = check.info_nce(info_nce)` prints "right", a diagnosis, "not attempted", or the error and its
line. It returns the learner's function when it is right and the reference otherwise, so that later cells still run.

Where the environment has VLM_LITE_GRADING (the seconds a check may take; `vlm-lite lab grade` sets it) or nbgrader's
NBGRADER_EXECUTION, a check also leaves its verdict among the cell's outputs as data and, unless it is "right", as an
error, so that nbgrader gives no points. The cell goes on all the same: one wrong answer must not cost another.
"""

import contextlib
import functools
import inspect
import linecache
import os
import signal
import threading
import traceback
from typing import NamedTuple

import torch

from vlm_lite.files import UserError
from vlm_lite.labs import VERDICT


class Verdict(NamedTuple):
    """What a check found: status is "right", "wrong", "not attempted" or "crashed"; message is a sentence, or ""."""

    status: str
    message: str


NBGRADER_SECONDS = 20  # what a check may take under nbgrader, which stops a cell after 30
_record = {}  # the last verdict on each exercise of this session, by name, in the order of the first checks


class NotPassed(Exception):
    """What a grader sees at an exercise that is not right."""


class _ReturnedNothing(Exception):
    pass


class _OutOfTime(
    BaseException
):  # no Exception: a learner's own `except Exception` must not swallow it
    pass


def grading():
    """The seconds that a check may take where a grader runs the notebook, else None."""
    if seconds := os.environ.get("VLM_LITE_GRADING"):
        try:
            return float(seconds)
        except ValueError:
            raise UserError(
                f'VLM_LITE_GRADING is "{seconds}"; expected the seconds that a check may take, such as 30'
            ) from None
    return NBGRADER_SECONDS if os.environ.get("NBGRADER_EXECUTION") else None


def exercise(reference):
    """Decorate `diagnose(learner) -> None or str` into a check: `checked(learner) -> learner or reference`.

    reference: the package's function or class, for learners without a right one. diagnose compares with it on fresh
    random inputs (torch's generator is newly seeded for it, and afterwards as it was) and returns the diagnosis of the
    first thing wrong. Errors it raises are reported, NotImplementedError as "not attempted". `checked.verdict(learner)`
    gives the `Verdict` without printing, for graders and tests; `checked.reference` is the reference.
    """

    def decorate(diagnose):
        def verdict(learner):
            return _verdict(diagnose, learner)

        @functools.wraps(diagnose)
        def checked(learner):
            status, message = _record[diagnose.__name__] = verdict(learner)
            mark = "✓" if status == "right" else "–" if status == "not attempted" else "✗"
            line = f"{mark} {diagnose.__name__}: {status}" + (f": {message}" if message else "")
            line += "" if line.endswith((".", "?", "!")) else "."
            print(line if status == "right" else f"{line} The cells below use vlm_lite's.")
            if grading():
                _tell_grader(diagnose.__name__, status, message)
            return learner if status == "right" else reference

        checked.verdict, checked.reference = verdict, reference
        return checked

    return decorate


def progress(claims=None):
    """Print one line: how many exercises of this session passed, and how many of `claims` {sentence: bool} hold."""
    passed = [name for name, verdict in _record.items() if verdict.status == "right"]
    parts = [_share(passed, _record, "exercises passed")] if _record else []
    if claims is not None:
        parts.append(
            _share([claim for claim, holds in claims.items() if holds], claims, "claims ticked")
        )
    print(f"Progress: {'; '.join(parts)}.")


def _share(done, of, what):
    left = [name for name in of if name not in done]
    return f"{len(done)} of {len(of)} {what}" + (f" (not yet: {', '.join(left)})" if left else "")


def close(mine, theirs, tolerance=1e-4):
    """Whether two results are the same to `tolerance`: tensors or numbers of one shape, or tuples and dicts of them."""
    if isinstance(theirs, dict):
        return (
            isinstance(mine, dict)
            and mine.keys() == theirs.keys()
            and all(close(mine[key], theirs[key], tolerance) for key in theirs)
        )
    if isinstance(theirs, tuple | list):
        return (
            isinstance(mine, tuple | list)
            and len(mine) == len(theirs)
            and all(close(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))
        )
    if isinstance(theirs, str) or isinstance(mine, str):
        return mine == theirs
    mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
    return mine.shape == theirs.shape and torch.allclose(
        mine.double(), theirs.double(), tolerance, tolerance
    )


def same_outputs(mine, theirs, x):
    """Draw the weights of `theirs` anew, copy them into `mine`, and prove that both make the same of x.

    mine, theirs: modules whose parameters have the same names and shapes. AssertionError where the outputs differ.
    """
    for parameter in theirs.parameters():
        torch.nn.init.normal_(
            parameter, std=0.1
        )  # also what is 0 or 1 at first, where a mistake would not show
    mine.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        found, right = mine.eval()(x), theirs.eval()(x)
    names = f"{type(mine).__name__} equals {type(theirs).__module__}.{type(theirs).__name__}"
    same_values(f"{names}: {tuple(x.shape)} -> ", found, right)


def same_values(what, found, right, close=1e-4):
    """Prove that two tensors are the same to `close`, and say so in a line that begins with `what`; else AssertionError."""
    torch.testing.assert_close(found, right, atol=close, rtol=close)
    gap = (found - right).abs().max()
    print(f"{what}{tuple(found.shape)}, largest difference {gap:.0e}")


def random_weights(module):
    """The module with every parameter drawn anew, so large that no part of it goes unnoticed."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


def with_weights_of(learner, reference, *args, **options):
    """(the learner's module with the weights of `reference`, None), or (None, a diagnosis) where they don't fit."""
    module = learner(*args, **options)
    ours, theirs = (
        {name: tuple(p.shape) for name, p in each.named_parameters()}
        for each in (reference, module)
    )
    for names, said in (
        (ours.keys() - theirs, "is missing"),
        (theirs.keys() - ours, "is too many"),
    ):
        if names:
            return (
                None,
                f"the parameter {sorted(names)[0]} {said}: its parts are {_parts(reference)}",
            )
    for name, shape in ours.items():
        if theirs[name] != shape:
            return None, f"{name} has shape {theirs[name]}; expected {shape}"
    module.load_state_dict(reference.state_dict())
    return module.eval(), None


def _parts(module):
    return ", ".join(f"{name} ({type(part).__name__})" for name, part in module.named_children())


def shape_problem(result, expected, what="your result"):
    """A diagnosis when `result` is no tensor of shape `expected` (a tuple), else None."""
    if not isinstance(result, torch.Tensor):
        return f"{what} is a {type(result).__name__}; expected a tensor of shape {tuple(expected)}"
    if tuple(result.shape) != tuple(expected):
        return f"{what} has shape {tuple(result.shape)}; expected {tuple(expected)}"
    return None


def explain(found, mistakes, right=None):
    """The diagnosis in {diagnosis: [values that this mistake gives]} whose value is nearest to `found`.

    Where none is: None, or `generic(found, right)` where the right value is given.

    The nearest, not the first: on one draw in some thousands two mistakes give nearly the same number.
    """

    def distance(value):
        return (
            (torch.as_tensor(found).double() - torch.as_tensor(value).double())
            .abs()
            .nan_to_num()
            .max()
            .item()
        )

    near = [
        (distance(value), said)
        for said, values in mistakes.items()
        for value in values
        if close(found, value)
    ]
    if near:
        return min(near, key=lambda pair: pair[0])[1]
    return right if right is None else generic(found, right)


def generic(found, right):
    """The diagnosis of a wrong value that no known mistake explains."""
    found = torch.as_tensor(found)
    if found.shape != right.shape:
        return f"the result has shape {tuple(found.shape)}; expected {tuple(right.shape)}"
    gap = (found.double() - right.double()).abs().max()
    return f"the result differs from the right one by up to {gap:.3g}, and no mistake we know explains it"


def _verdict(diagnose, learner):
    if learner is None or learner is ...:
        return Verdict("not attempted", "")
    if not callable(learner):
        return Verdict(
            "wrong",
            f"it is a {type(learner).__name__}, not a function; run the cell that defines it again",
        )
    try:
        with _time_limit(grading()), torch.random.fork_rng(devices=[]):
            torch.random.default_generator.seed()
            message = diagnose(_watched(learner))
    except NotImplementedError as error:  # torch raises it too, for operations that it lacks
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        stub = not error.args or line.startswith("raise NotImplementedError")
        return Verdict("not attempted", "") if stub else _crash(error, learner, diagnose)
    except _ReturnedNothing:
        return Verdict("wrong", "your function returned None; is the `return` line missing?")
    except (Exception, SystemExit, _OutOfTime) as error:
        return _crash(error, learner, diagnose)
    return Verdict("wrong", message) if message else Verdict("right", "")


@contextlib.contextmanager
def _time_limit(seconds):
    """End the block with _OutOfTime after `seconds`; None, another thread, or a system without alarms: no limit."""
    if (
        seconds is None
        or threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "SIGALRM")
    ):
        yield
        return

    def stop(*_):
        raise _OutOfTime(f"it had not ended after {seconds:g} seconds (an endless loop?)")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tell_grader(name, status, message):
    from IPython import get_ipython
    from IPython.display import display

    error = NotPassed(f"{name}: {status}" + (f": {message}" if message else ""))
    shell = get_ipython()
    if shell is not None:
        display({VERDICT: {"name": name, "status": status, "message": message}}, raw=True)
    if status != "right" and shell is None:
        raise error
    if status != "right":
        try:
            raise error  # so that it has a traceback to show
        except NotPassed:
            shell.showtraceback(tb_offset=1)


def _watched(learner):
    """A function, wrapped so that a forgotten `return` is noticed; a class stays as it is."""
    if inspect.isclass(learner):
        return learner

    @functools.wraps(learner)
    def call(*args, **kwargs):
        result = learner(*args, **kwargs)
        if result is None:
            raise _ReturnedNothing
        if result is ...:
            raise NotImplementedError
        return result

    return call


def _crash(error, learner, diagnose):
    """The error, with the last line of the learner's own code that it passed through."""
    file, of_check = _code_file(learner), inspect.unwrap(diagnose).__code__
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0].rstrip(
        "."
    )
    text = text.removeprefix(f"{_OutOfTime.__name__}: ")
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename == file and (f.filename, f.name) != (of_check.co_filename, of_check.co_name)
    ]
    if not frames:
        return Verdict("crashed", f"what it returned could not be compared ({text})")
    number = frames[-1].lineno
    return Verdict(
        "crashed", f"{text}, in line {number}: `{linecache.getline(file, number).strip()}`"
    )


def _code_file(learner):
    """The file, or notebook cell, that a function or class was written in; None for what is not written in Python."""
    if inspect.isclass(learner):
        learner = next(
            (value for value in vars(learner).values() if inspect.isfunction(value)), None
        )
    code = getattr(inspect.unwrap(learner), "__code__", None) if callable(learner) else None
    return code.co_filename if code else None
