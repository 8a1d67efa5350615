"""The study of connectors: what its rows change, that they run, and that a study which was cut goes on."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vlm_lite import connector_variants, studies
from vlm_lite.connector_variants import BASE, VARIANTS, Pooled, Variant
from vlm_lite.files import home, read_json
from vlm_lite.profiles import PROFILES
from vlm_lite.train import History

SMOKE = PROFILES["smoke"]


def test_pooling_takes_the_mean_of_each_block_of_the_grid():
    grid = torch.randn(2, 8, 4, 4)  # (B, D, rows, columns)
    for block in (2, 4):
        found = Pooled(torch.nn.Identity(), block)(grid.flatten(2).transpose(1, 2))  # (B, 16, D)
        torch.testing.assert_close(found, F.avg_pool2d(grid, block).flatten(2).transpose(1, 2))


def test_a_row_changes_one_thing_and_sends_the_vectors_that_its_name_says():
    base = VARIANTS[BASE]
    assert base == Variant() and len(set(VARIANTS.values())) == len(VARIANTS)
    for name, variant in VARIANTS.items():
        changed = {key for key, value in dataclasses.asdict(variant).items() if value != getattr(base, key)}
        assert len(changed - {"tokens"} if variant.connector != "qformer" else changed) == (name != BASE), name
        if changed <= {"tokens", "connector"} and variant.tokens <= 4:
            vlm = connector_variants.new_vlm(variant)
            assert vlm.prefix(torch.randn(2, 16, 128)).shape[1] == variant.tokens == int(name.split()[-1])


@pytest.mark.slow
def test_a_short_form_of_each_kind_of_row_gives_every_figure_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(connector_variants, "SIZES", {"questions": 40, "pictures": 8, "texts": 8})
    rows = "Q-Former 8", "linear 4", f"{BASE}, LoRA", f"{BASE}, stage 1 first"
    monkeypatch.setitem(studies.ROWS, "connector_variants", rows)
    record = read_json(studies.run("connector_variants", seeds=1, profile=SMOKE, folder=tmp_path))
    assert not list((home() / "studies").glob("connector_variants-*")), "what was kept goes when the record is written"
    for row in rows:
        found = {name for name in connector_variants.FIGURES if f"{row}: {name}" in record["summary"]}
        assert found >= set(connector_variants.FIGURES) - {"bridge score"}, row
    means = {name: figure["mean"] for name, figure in record["summary"].items()}
    assert means["linear 4: parameters"] < means["Q-Former 8: parameters"] < means[f"{BASE}, LoRA: parameters"]
    assert means["linear 4: perplexity"] == means["Q-Former 8: perplexity"] != means[f"{BASE}, LoRA: perplexity"]
    assert means["linear 4: VQA oracle"] == means["Q-Former 8: VQA oracle"], "a frozen brain is the same brain"
    assert means[f"{BASE}, stage 1 first: seconds"] > 2 * means["Q-Former 8: seconds"], "its first stage counts"
    monkeypatch.setattr(connector_variants, "VARIANTS", {row: VARIANTS[row] for row in rows})
    lines = connector_variants.table(record).splitlines()
    assert len(lines) == 1 + len(rows) and all(line.startswith(row) for line, row in zip(lines[1:], rows, strict=True))


def cut_study(seed, profile, row):
    """A study of three rows."""
    CALLS.append((seed, row))
    if (seed, row) == STOP:
        raise KeyboardInterrupt
    return History(steps=[1], losses=[float(seed)], seconds=[2.0]), {f"{row}: score": seed / 10}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_study_that_was_cut_goes_on_and_another_setting_does_not_take_its_rows(tmp_path, monkeypatch, damaged):
    global STOP, CALLS
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setitem(studies.STUDIES, "cut", (cut_study, (), ()))
    monkeypatch.setitem(studies.FIELDS, "cut", ("val_images",))
    monkeypatch.setitem(studies.ROWS, "cut", ("a", "b", "c"))
    STOP, CALLS = (1, "b"), []
    with pytest.raises(KeyboardInterrupt):
        studies.run("cut", seeds=2, profile=SMOKE, folder=tmp_path)
    assert not (tmp_path / "cut.json").exists() and len(CALLS) == 5
    if damaged:
        first = min((tmp_path / "studies").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        first.write_bytes(first.read_bytes()[:20])
    STOP, CALLS = None, []
    record = read_json(studies.run("cut", seeds=2, profile=SMOKE, folder=tmp_path))
    assert CALLS == [(0, "a")] * damaged + [(1, "b"), (1, "c")]
    assert record["summary"]["b: score"] == {"mean": 0.05, "low": 0.0, "high": 0.1}
    assert [run["losses"] for run in record["runs"]] == [[0.0] * 3, [1.0] * 3]
    assert record["runs"][0]["seconds"] == [2.0, 4.0, 6.0] and set(record["runs"][0]) == {
        "seed", "steps", "losses", "seconds", "figures"}
    CALLS = []
    studies.run("cut", seeds=1, profile=dataclasses.replace(SMOKE, val_images=63), folder=tmp_path)
    assert len(CALLS) == 3
