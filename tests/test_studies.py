"""A study that was cut goes on with the seeds that it has."""

import dataclasses

import pytest

from vlm_lite import studies
from vlm_lite.files import read_json
from vlm_lite.profiles import SMOKE
from vlm_lite.train import History

CALLS, STOP = [], None


def cut_study(seed, profile):
    """A study of three seeds."""
    CALLS.append(seed)
    if seed == STOP:
        raise KeyboardInterrupt
    return History(steps=[1], losses=[float(seed)], seconds=[2.0]), {"score": seed / 10}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_study_that_was_cut_goes_on_and_another_setting_does_not_take_its_seeds(tmp_path, monkeypatch, damaged):
    global STOP, CALLS
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setitem(studies.STUDIES, "cut", (cut_study, (), ()))
    monkeypatch.setitem(studies.FIELDS, "cut", ("val_images",))
    STOP, CALLS = 2, []
    with pytest.raises(KeyboardInterrupt):
        studies.run("cut", seeds=3, profile=SMOKE, folder=tmp_path)
    assert not (tmp_path / "cut.json").exists() and CALLS == [0, 1, 2]
    if damaged:
        first = min((tmp_path / "studies").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        first.write_bytes(first.read_bytes()[:20])
    STOP, CALLS = None, []
    record = read_json(studies.run("cut", seeds=3, profile=SMOKE, folder=tmp_path))
    assert CALLS == [0] * damaged + [2]
    assert record["summary"]["score"] == {"mean": 0.1, "low": 0.0, "high": 0.2}
    assert [set(run) for run in record["runs"]] == [{"seed", "steps", "losses", "seconds", "figures"}] * 3
    assert [run["losses"] for run in record["runs"]] == [[0.0], [1.0], [2.0]]
    CALLS = []
    studies.run("cut", seeds=1, profile=dataclasses.replace(SMOKE, val_images=63), folder=tmp_path)
    assert CALLS == [0]
