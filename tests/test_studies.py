"""A study that was cut goes on with the seeds that it has."""

import dataclasses
import types

import pytest

from vlm_lite import studies
from vlm_lite.checkpoint import History
from vlm_lite.files import read_json
from vlm_lite.profiles import SMOKE
from vlm_lite.source import what_counts

RUN = types.SimpleNamespace(calls=[], stop=None)


def cut_study(seed, profile):
    """A study of three seeds."""
    RUN.calls.append(seed)
    if seed == RUN.stop:
        raise KeyboardInterrupt
    return History(steps=[1], losses=[float(seed)], seconds=[2.0]), {"score": seed / 10}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_study_that_was_cut_goes_on_and_another_setting_does_not_take_its_seeds(
    tmp_path, monkeypatch, damaged
):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setitem(studies.STUDIES, "cut", (cut_study, ("val_",), ()))
    RUN.stop, RUN.calls = 2, []
    with pytest.raises(KeyboardInterrupt):
        studies.run("cut", seeds=3, profile=SMOKE, folder=tmp_path)
    assert not (tmp_path / "cut.json").exists() and RUN.calls == [0, 1, 2]
    if damaged:
        first = min((tmp_path / "studies").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        first.write_bytes(first.read_bytes()[:20])
    RUN.stop, RUN.calls = None, []
    record = read_json(studies.run("cut", seeds=3, profile=SMOKE, folder=tmp_path))
    assert RUN.calls == [0] * damaged + [2]
    assert record["summary"]["score"] == {"mean": 0.1, "low": 0.0, "high": 0.2}
    assert [set(run) for run in record["runs"]] == [
        {"seed", "steps", "losses", "seconds", "figures"}
    ] * 3
    assert [run["losses"] for run in record["runs"]] == [[0.0], [1.0], [2.0]]
    RUN.calls = []
    studies.run("cut", seeds=1, profile=dataclasses.replace(SMOKE, val_images=63), folder=tmp_path)
    assert RUN.calls == [0]


RECIPE = '''def recipe(x, lr):
    """What it does."""
    if lr <= 0:
        raise ValueError("lr")
    for value in x:
        if value != value:
            place = x.index(value)
            raise ValueError(place)
    total = sum(x)  # of all
    # twice
    if total > 3:
        total = total * 2
    return total * lr
'''


def test_checks_comments_and_docstrings_do_not_make_a_study_stale():
    bare = (
        "def recipe(x, lr):\n    total = sum(x)  # of all\n    if total > 3:\n        total = total * 2\n"
        "    return (total\n            * lr)"
    )
    assert what_counts(RECIPE) == what_counts(bare)
    checks = "    check_pairs(x, lr)\n    warnings.warn('few')\n    clip._check_finite(x)\n"
    checked = RECIPE.replace("    # twice\n", checks)
    assert checked != RECIPE and what_counts(checked) == what_counts(bare)


@pytest.mark.parametrize(
    "old, new",
    [
        ("total * 2", "total * 3"),
        ("if total > 3", "if total > 4"),
        ("    total = sum(x)  # of all\n", ""),
        ('        raise ValueError("lr")\n', "        lr = 1\n"),
        ("            raise ValueError(place)\n", ""),
        ('raise ValueError("lr")\n', 'raise ValueError("lr")\n    else:\n        lr = 2 * lr\n'),
        ("    # twice\n", "    x.sort()\n"),
    ],
)
def test_what_can_change_a_figure_makes_a_study_stale(old, new):
    assert old in RECIPE
    assert what_counts(RECIPE.replace(old, new)) != what_counts(RECIPE)
