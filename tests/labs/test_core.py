"""The frame around the exercises: it says what is wrong, stays silent about nothing, and lets later cells run."""

import sys

import pytest
import torch

from tests.small import refused
from vlm_lite.labs import VERDICT
from vlm_lite.labs.core import NotPassed, close, exercise, grading, progress, shape_problem


def double_reference(x):
    return 2 * x


@exercise(double_reference)
def double(learner):
    """Twice a random tensor."""
    x = torch.randn(4)
    found = learner(x)
    problem = shape_problem(found, (4,))
    if problem or close(found, 2 * x):
        return problem
    return "you returned x itself" if close(found, x) else "that is not twice x. Look again."


def test_a_right_function_is_given_back_and_one_line_printed(capsys):
    def mine(x):
        return x + x

    assert double(mine) is mine
    assert capsys.readouterr().out == "✓ double: right.\n"


def test_a_wrong_function_is_diagnosed_and_the_reference_given_back(capsys):
    assert double(lambda x: x) is double_reference
    assert "✗ double: wrong: you returned x itself. " in capsys.readouterr().out


def attempt_nothing(x):
    raise NotImplementedError


def attempt_later(x):
    raise NotImplementedError("do this tomorrow")


@pytest.mark.parametrize("learner", [attempt_nothing, attempt_later, lambda x: ..., None, ...])
def test_an_empty_exercise_is_not_attempted_and_no_mistake(learner, capsys):
    assert double(learner) is double_reference
    assert "– double: not attempted." in capsys.readouterr().out


def endless(x):
    while True:
        try:
            x + x
        except Exception:  # which must not swallow the end
            pass


@pytest.mark.parametrize(
    "learner, status, named",
    [
        (lambda x: x.long().log_softmax(-1), "crashed", "Error: "),  # torch's NotImplementedError
        (lambda x: None, "wrong", "returned None"),
        (lambda x: torch.zeros(x, x), "crashed", "torch.zeros(x, x)"),
        (torch.ones(2), "wrong", "Tensor, not a function"),
        (lambda x: sys.exit(), "crashed", "SystemExit"),
        (endless, "crashed", "after 0.2 seconds"),
    ],
)
def test_what_stops_an_attempt_is_named_with_its_own_line(monkeypatch, learner, status, named):
    # the others must not meet the limit where a machine is slow
    monkeypatch.setenv("VLM_LITE_GRADING", "0.2" if learner is endless else "60")
    found = double.verdict(learner)
    assert found.status == status and named in found.message
    assert double.verdict(double_reference).status == "right"


def test_a_crash_in_a_notebook_cell_names_its_line():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        shell.run_cell("def learner(x):\n    a = 1\n    return undefined_name * x\n")
        found = double.verdict(shell.user_ns["learner"])
    finally:
        InteractiveShell.clear_instance()
    assert "NameError" in found.message and "line 3: `return undefined_name" in found.message


def test_a_result_that_cannot_be_compared_is_said_so_and_nothing_escapes():
    @exercise(double_reference)
    def fragile(learner):
        """Takes for granted that the result is a tensor."""
        return None if learner(torch.ones(2)).shape == (2,) else "shape"

    found = fragile.verdict(lambda x: 3.0)
    assert found.status == "crashed" and "AttributeError: 'float'" in found.message


def test_inputs_are_fresh_each_time_and_the_notebooks_own_randomness_is_left_alone():
    seen = []
    state = torch.random.get_rng_state()
    for _ in range(2):
        double.verdict(lambda x: seen.append(x) or x)
    assert not torch.equal(*seen)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_class_can_be_an_exercise():
    @exercise(torch.nn.Identity)
    def layer(learner):
        """A module of the learner's."""
        x = torch.randn(3)
        return None if close(learner()(x), x) else "it must change nothing"

    class Mine(torch.nn.Module):
        def forward(self, x):
            return x

    class Empty(torch.nn.Module):
        def forward(self, x):
            raise NotImplementedError()

    class Broken(torch.nn.Module):
        def forward(self, x):
            return x @ self.weight  # there is none

    assert layer.verdict(Mine).status == "right" and layer(Mine) is Mine
    assert layer.verdict(Empty).status == "not attempted" and layer(Empty) is torch.nn.Identity
    assert "there is none" in layer.verdict(Broken).message


def test_close_compares_shapes_numbers_tuples_and_dicts():
    one = torch.ones(2)
    for same in ((1.0, one[0]), ((1, one), (1, one)), ({"a": [1.0]}, {"a": [1.0]}), ("yes", "yes")):
        assert close(*same)
    for other in ((one, one[:1]), ((1,), (1, 2)), ({"a": 1}, {"b": 1}), (1.0, 1.01), ("yes", "no")):
        assert not close(*other)
    assert not close(float("nan"), 1.0)


# ---------------------------------------------------------------- under a grader, and the line at the end


class Shell:
    """What the checks use of IPython's shell."""

    def __init__(self):
        self.errors, self.shown = [], []

    def showtraceback(self, **_):
        self.errors.append(str(sys.exc_info()[1]))


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    show = lambda data, raw: shell.shown.append(data[VERDICT])  # noqa: E731
    monkeypatch.setattr("IPython.display.display", show)
    return shell


@pytest.mark.parametrize(
    "variable, value", [("VLM_LITE_GRADING", "5"), ("NBGRADER_EXECUTION", "autograde")]
)
def test_under_a_grader_a_verdict_is_left_as_data_and_unless_right_as_an_error(
    shell, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    assert double(lambda x: x) is double_reference  # the cell goes on
    double(attempt_nothing)
    double(double_reference)
    assert [shown["status"] for shown in shell.shown] == ["wrong", "not attempted", "right"]
    assert shell.errors == ["double: wrong: you returned x itself", "double: not attempted"]


def test_without_a_grader_there_is_neither(shell):
    double(lambda x: x)
    assert shell.shown == [] and shell.errors == []


def test_a_grader_s_time_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("VLM_LITE_GRADING", "yes")
    with refused('VLM_LITE_GRADING is "yes"; expected the seconds'):
        grading()


def test_without_a_notebook_a_grader_gets_the_error_itself(monkeypatch):
    monkeypatch.setenv("VLM_LITE_GRADING", "5")
    with pytest.raises(NotPassed, match="double: wrong: you returned x itself"):
        double(lambda x: x)
    assert double(double_reference) is double_reference


def test_the_progress_line_counts_the_last_verdicts_and_the_claims(monkeypatch, capsys):
    monkeypatch.setattr("vlm_lite.labs.core._record", {})

    @exercise(double_reference)
    def half(learner):
        """Anything goes."""

    double(lambda x: x)
    half(double_reference)
    capsys.readouterr()
    progress()
    double(double_reference)
    progress({"it looks": True, "it reads": False})
    assert capsys.readouterr().out.splitlines() == [
        "Progress: 1 of 2 exercises passed (not yet: double).",
        "✓ double: right.",
        "Progress: 2 of 2 exercises passed; 1 of 2 claims ticked (not yet: it reads).",
    ]
