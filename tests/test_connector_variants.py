"""The study of connectors: what its rows change, and that they run."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vlm_lite import connector_variants, studies
from vlm_lite.connector_variants import BASE, VARIANTS, Pooled, Variant
from vlm_lite.files import home, read_json
from vlm_lite.profiles import PROFILES

SMOKE = PROFILES["smoke"]
FIGURES = (
    "VQA vlm",
    "VQA blind",
    "VQA shuffled",
    "VQA oracle",
    "bridge score",
    "CIDEr",
    "perplexity",
    "parameters",
    "seconds a step",
    "seconds",
)


def test_pooling_takes_the_mean_of_each_block_of_the_grid():
    grid = torch.randn(2, 8, 4, 4)  # (B, D, rows, columns)
    for block in (2, 4):
        found = Pooled(torch.nn.Identity(), block)(grid.flatten(2).transpose(1, 2))  # (B, 16, D)
        torch.testing.assert_close(found, F.avg_pool2d(grid, block).flatten(2).transpose(1, 2))


def test_a_row_changes_one_thing_and_sends_the_vectors_that_its_name_says():
    base = VARIANTS[BASE]
    assert base == Variant() and len(set(VARIANTS.values())) == len(VARIANTS)
    for name, variant in VARIANTS.items():
        changed = {
            key for key, value in dataclasses.asdict(variant).items() if value != getattr(base, key)
        }
        if variant.connector != "qformer":
            changed -= {"tokens"}  # the connector and how many vectors it sends come together
        if variant.tune != "frozen":
            changed -= {"optimizer"}  # their base is the row with AdamW
        assert len(changed) == (name != BASE), name
        if changed <= {"tokens", "connector"} and variant.tokens <= 4:
            vlm = connector_variants.new_vlm(variant)
            assert (
                vlm.prefix(torch.randn(2, 16, 128)).shape[1]
                == variant.tokens
                == int(name.split()[-1])
            )


@pytest.mark.slow
def test_a_short_form_of_each_kind_of_row_gives_every_figure_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(connector_variants, "SIZES", {"questions": 40, "pictures": 8, "texts": 8})
    rows = "Q-Former 8", "linear 4", f"{BASE}, AdamW, LoRA", f"{BASE}, stage 1 first"
    monkeypatch.setattr(connector_variants, "VARIANTS", {row: VARIANTS[row] for row in rows})
    record = read_json(studies.run("connector_variants", seeds=1, profile=SMOKE, folder=tmp_path))
    assert not list((home() / "studies").glob("connector_variants-*")), (
        "what was kept goes when the record is written"
    )
    for row in rows:
        found = {name for name in FIGURES if f"{row}: {name}" in record["summary"]}
        assert found >= set(FIGURES) - {"bridge score"}, row
    means = {name: figure["mean"] for name, figure in record["summary"].items()}
    assert (
        means["linear 4: parameters"]
        < means["Q-Former 8: parameters"]
        < means[f"{BASE}, AdamW, LoRA: parameters"]
    )
    assert (
        means["linear 4: perplexity"]
        == means["Q-Former 8: perplexity"]
        != means[f"{BASE}, AdamW, LoRA: perplexity"]
    )
    assert means["linear 4: VQA oracle"] == means["Q-Former 8: VQA oracle"], (
        "a frozen brain is the same brain"
    )
    own = {row: SMOKE.connector_steps * means[f"{row}: seconds a step"] for row in rows}
    assert means["Q-Former 8: seconds"] == pytest.approx(own["Q-Former 8"], abs=1e-3)
    assert means[f"{BASE}, stage 1 first: seconds"] > own[f"{BASE}, stage 1 first"] + 0.01, (
        "its first stage counts"
    )
