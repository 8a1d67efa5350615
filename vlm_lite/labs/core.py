"""The frame around every check of an exercise: run it, print one line, and hand back a function that works.

    @exercise(models.clip.info_nce)           # the reference: the package's own
    def info_nce(learner):                    # the learner's function
        x, y, scale = torch.randn(8, 16), ...     # fresh inputs each time
        if not close(learner(x, y, scale), reference(x, y, scale)):
            return "your loss is one-directional: average both"
        # None: nothing was found wrong

In a notebook, `info_nce = check.info_nce(info_nce)` prints "right", a diagnosis, "not attempted", or the error and its
line. It returns the learner's function when it is right and the reference otherwise, so that later cells still run.
"""

import functools
import inspect
import linecache
import traceback
from typing import NamedTuple

import torch


class Verdict(NamedTuple):
    """What a check found: status is "right", "wrong", "not attempted" or "crashed"; message is a sentence, or ""."""

    status: str
    message: str


class _ReturnedNothing(Exception):
    pass


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
            status, message = verdict(learner)
            mark = "✓" if status == "right" else "–" if status == "not attempted" else "✗"
            line = f"{mark} {diagnose.__name__}: {status}" + (f": {message}" if message else "")
            line += "" if line.endswith((".", "?", "!")) else "."
            print(line if status == "right" else f"{line} The cells below use vlm_lite's.")
            return learner if status == "right" else reference

        checked.verdict, checked.reference = verdict, reference
        return checked

    return decorate


def close(mine, theirs, tolerance=1e-4):
    """Whether two results are the same to `tolerance`: tensors or numbers of one shape, or tuples and dicts of them."""
    if isinstance(theirs, dict):
        return isinstance(mine, dict) and mine.keys() == theirs.keys() and all(
            close(mine[key], theirs[key], tolerance) for key in theirs)
    if isinstance(theirs, tuple | list):
        return isinstance(mine, tuple | list) and len(mine) == len(theirs) and all(
            close(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))
    if isinstance(theirs, str) or isinstance(mine, str):
        return mine == theirs
    mine, theirs = torch.as_tensor(mine), torch.as_tensor(theirs)
    return mine.shape == theirs.shape and torch.allclose(mine.double(), theirs.double(), tolerance, tolerance)


def shape_problem(result, expected, what="your result"):
    """A diagnosis when `result` is no tensor of shape `expected` (a tuple), else None."""
    if not isinstance(result, torch.Tensor):
        return f"{what} is a {type(result).__name__}; expected a tensor of shape {tuple(expected)}"
    if tuple(result.shape) != tuple(expected):
        return f"{what} has shape {tuple(result.shape)}; expected {tuple(expected)}"
    return None


def _verdict(diagnose, learner):
    if learner is None or learner is ...:
        return Verdict("not attempted", "")
    if not callable(learner):
        return Verdict("wrong", f"it is a {type(learner).__name__}, not a function; run the cell that defines it again")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.seed()
            message = diagnose(_watched(learner))
    except NotImplementedError as error:  # torch raises it too, for operations that it lacks
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        stub = not error.args or line.startswith("raise NotImplementedError")
        return Verdict("not attempted", "") if stub else _crash(error, learner, diagnose)
    except _ReturnedNothing:
        return Verdict("wrong", "your function returned None; is the `return` line missing?")
    except Exception as error:
        return _crash(error, learner, diagnose)
    return Verdict("wrong", message) if message else Verdict("right", "")


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
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0].rstrip(".")
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if f.filename == file and (f.filename, f.name) != (of_check.co_filename, of_check.co_name)]
    if not frames:
        return Verdict("crashed", f"what it returned could not be compared ({text})")
    number = frames[-1].lineno
    return Verdict("crashed", f"{text}, in line {number}: `{linecache.getline(file, number).strip()}`")


def _code_file(learner):
    """The file, or notebook cell, that a function or class was written in; None for what is not written in Python."""
    if inspect.isclass(learner):
        learner = next((value for value in vars(learner).values() if inspect.isfunction(value)), None)
    code = getattr(inspect.unwrap(learner), "__code__", None) if callable(learner) else None
    return code.co_filename if code else None
