"""Every exercise of every notebook: its answer passes, its stub is not attempted, and wrong answers are told apart."""

import functools
import importlib
import importlib.util
import inspect
import math
import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from tests import small
from vlm_lite.labs import build, check
from vlm_lite.lessons.vlm import VLM

TABLES = []  # of every test file here: RIGHT {check: answers} and WRONG {check: {what it must say: answer}}
for path in sorted(Path(__file__).parent.glob("test_*_checks.py")):
    spec = importlib.util.spec_from_file_location(f"tables_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    TABLES.append(module)
EXERCISES = [(name, each) for name, (_, found) in build.labs().items() for each in found]
each_exercise = pytest.mark.parametrize(
    "name, exercise", EXERCISES, ids=[f"{n[:2]}-{e.name}" for n, e in EXERCISES]
)


@functools.cache
def rows(table):
    """[(check, answer, and of a wrong one what is said of it), ...] of all tables."""
    made = []
    for checked, found in (each for module in TABLES for each in getattr(module, table).items()):
        for words, answer in found.items() if table == "WRONG" else enumerate(found):
            if isinstance(answer, tuple):
                answer = small.edited(checked.reference, *answer)
            made.append((checked, answer, words)[: 3 if table == "WRONG" else 2])
    return made


def answers(table, exercise):
    checked = getattr(check, exercise.check)
    return [answer for each, answer, *_ in rows(table) if each is checked]


def code(answer):
    """What a function does, by its bytecode and names; anything else as it is."""
    own = getattr(inspect.unwrap(answer), "__code__", answer)
    if not hasattr(own, "co_code"):
        return own
    return own.co_code, own.co_names, *map(code, own.co_consts)


@each_exercise
def test_a_right_answer_in_another_way_and_three_wrong_ones_are_kept(name, exercise):
    checked = getattr(check, exercise.check)
    assert len(answers("WRONG", exercise)) >= 3
    assert {code(right) for right in answers("RIGHT", exercise)} - {code(checked.reference)}


@each_exercise
def test_a_check_is_quick_and_says_in_a_sentence_what_it_looks_for(name, exercise):
    checked = getattr(check, exercise.check)
    start = time.process_time()
    checked.verdict(checked.reference)
    assert time.process_time() - start < 2
    assert len((checked.__doc__ or "").split()) >= 6 and "|" not in checked.__doc__


@pytest.mark.parametrize("checked, learner", rows("RIGHT"))
def test_a_right_answer_passes_in_every_style_and_on_every_draw(checked, learner):
    assert [checked.verdict(learner) for _ in range(5)] == [("right", "")] * 5
    assert checked(learner) is learner


each_wrong_answer = pytest.mark.parametrize("checked, learner, words", rows("WRONG"))


@each_wrong_answer
def test_a_wrong_answer_is_diagnosed(checked, learner, words):
    status, message = checked.verdict(learner)
    assert status in ("wrong", "crashed") and words in message, (status, message)


@pytest.mark.slow
@each_wrong_answer
def test_a_wrong_answer_is_diagnosed_on_every_draw(checked, learner, words):
    for _ in range(5):
        test_a_wrong_answer_is_diagnosed(checked, learner, words)
    assert checked(learner) is checked.reference


def what_the_notebook_has(name):
    """The names that an exercise's cell may use: what notebooks import, and what the notebook's lesson defines."""
    names = {"F": F, "math": math, "nn": nn, "rearrange": rearrange, "torch": torch}
    lessons = build.labs()[name][0]["metadata"].get("vlm_lite", {}).get("lesson", [])
    for lesson in [lessons] if isinstance(lessons, str) else lessons:
        names |= vars(importlib.import_module(f"vlm_lite.lessons.{lesson}"))
    return names


@each_exercise
def test_the_solution_in_the_notebook_is_right_and_its_stub_not_attempted(
    name, exercise, monkeypatch
):
    monkeypatch.setattr(VLM, "generate", VLM.generate)  # the cell sets it: put back afterwards
    checked = getattr(check, exercise.check)
    source = build.labs()[name][0]["cells"][exercise.cell]["source"]
    stub, count = re.subn(
        r"### BEGIN SOLUTION.*?### END SOLUTION", "raise NotImplementedError()", source, flags=re.S
    )
    assert count == 1
    for text, verdict in ((source, "right"), (stub, "not attempted")):
        names = what_the_notebook_has(name)
        exec(text, names)
        assert checked.verdict(names[exercise.name]) == (verdict, "")


@each_exercise
def test_difficulty_minutes_points_and_a_hint_stand_with_the_exercise(name, exercise):
    assert exercise.stars in ("★☆☆", "★★☆", "★★★") and exercise.minutes > 0
    assert exercise.points >= 1 and exercise.title[0].isdigit()
    notebook, _ = build.labs()[name]
    text = [
        cell["source"]
        for cell in notebook["cells"][: exercise.cell]
        if "**Exercise" in cell["source"]
    ][-1]
    assert "<summary>Hint</summary>" in text
