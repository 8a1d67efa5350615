"""Every study in a short form. A file of its own, among the first to run: its minutes would else be the last worker's."""

import functools

import pytest

from vlm_lite import studies
from vlm_lite.files import read_json
from vlm_lite.lessons import comparison
from vlm_lite.profiles import PROFILES


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_short_form_of_each_study_runs_and_writes_the_same_fields(name, tmp_path, monkeypatch):
    fewer = functools.partial(comparison.comparison_row, limit=64, images=8)  # in each of 19 rows
    monkeypatch.setattr(comparison, "comparison_row", fewer)
    seeds = 2 if name == "clip_infonce" else 1
    record = read_json(studies.run(name, seeds=seeds, profile=PROFILES["smoke"], folder=tmp_path))
    shipped = studies.load_study(name)
    assert set(record) == set(shipped)
    # Two short runs may leave out the bridge score: an untrained connector is not told from a blind one.
    assert set(record["summary"]) | {"bridge score"} == set(shipped["summary"]) | {"bridge score"}
