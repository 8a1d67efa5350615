"""`make bench` compares what it says it compares, and keeps every row."""

import math
import shutil
import time

import pytest
import torch

from tools import bench, notebooks, timing
from vlm_lite.files import read_json
from vlm_lite.profiles import Compute

FP32 = Compute("cpu", "no", "the test says so")
BF16 = Compute("cpu", "bf16", "the test says so")
AIMS = {
    "models": ["1.1 or less"],
    "answers": ["30 or less", "5 or more"],
    "evaluators": ["30 or less", "8 or less"],
    "smolvlm": [],
    "machine": [],
}


def test_the_ratio_of_two_models_is_ours_over_theirs_and_they_must_do_the_same_work():
    def model(wait, bias=0.0):
        torch.manual_seed(0)
        layer, x = torch.nn.Linear(4, 1), torch.randn(3, 4)
        return lambda: (time.sleep(wait), layer(x) + bias)[1]

    timing.ROWS.clear()
    bench.compare("pair", model(0.09), model(0.03), FP32, 3)
    (row,) = timing.ROWS
    assert 2 < row["value"] < 3.5 and row["aim"] == "1.1 or less" and row["met"] is False
    with pytest.raises(AssertionError):
        bench.compare("pair", model(0), model(0, bias=0.1), FP32, 1)
    bench.compare("both precisions", model(0), model(0), BF16, 1)
    assert [each["name"][-8:] for each in timing.ROWS[1:]] == [" float32", "bfloat16"]


@pytest.mark.slow
def test_every_part_runs_in_its_small_form_and_its_rows_reach_the_record_and_the_page(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bench, "get_compute", lambda: FP32)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(notebooks.ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(notebooks.ROOT / "data" / "times.json", tmp_path / "data")
    (tmp_path / "README.md").write_text("nothing generated\n")
    (tmp_path / "docs").mkdir()
    table = tmp_path / "docs" / "benchmarks.md"
    table.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    bench.main(["--quick"], root=tmp_path)
    record, page = read_json(tmp_path / bench.RECORD), table.read_text()
    assert set(record) == set(bench.PARTS) == set(AIMS)
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n")
    for name, part in record.items():
        assert all(row["value"] > 0 and math.isfinite(row["value"]) for row in part["rows"])
        assert sorted({row["aim"] for row in part["rows"] if "aim" in row}) == AIMS[name]
        for row in part["rows"]:
            note = f" ({row['note']})" if row["note"] else ""
            assert f"{row['name'].strip()}{note} | {timing.shown(row)} |" in page


def test_the_record_that_ships_is_of_the_full_size():
    path = notebooks.ROOT / bench.RECORD
    assert not any(part["quick"] for part in (read_json(path) if path.exists() else {}).values())
