"""Notebook 05t's `t4` cells run offline, with a small random SmolVLM and stand-ins for POPE's files and photographs."""

import json
import math
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest
import torch
from PIL import Image

from tests.evals.official import lines
from tests.models.test_pretrained import smol  # noqa: F401
from vlm_lite.lessons.pope import pope_scores

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "05t_photographs.py"
CELLS = [
    cell.source for cell in jupytext.read(NOTEBOOK).cells if "t4" in cell.metadata.get("tags", [])
]


def names(**more):
    return {
        "json": json,
        "math": math,
        "random": random,
        "re": re,
        "Path": Path,
        "time": time,
        "torch": torch,
        "pope_scores": pope_scores,
        **more,
    }


@pytest.mark.slow
def test_the_cells_run_and_print_a_row_for_every_condition(smol, tmp_path, monkeypatch, capsys):  # noqa: F811
    import pooch

    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append(url)
        file = tmp_path / fname
        if fname.endswith(".json"):
            about = {"text": "Is there a dog ?"}
            labels = enumerate(["yes", "no"] * 6)
            names = [f"COCO_val2014_{k // 6:012d}.jpg" for k in range(12)]
            file.write_text(
                lines({"question_id": k, "image": names[k], "label": v, **about} for k, v in labels)
            )
        else:
            Image.effect_noise((60, 40), 90).convert("RGB").save(file)
        return str(file)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    found = names(profile=SimpleNamespace(name="t4", vlm_model=str(smol)))
    for cell in CELLS:
        small = cell.replace("PHOTOGRAPHS = 30", "PHOTOGRAPHS = 2").replace(
            "(512, 1024, 2048)", "(32, 64)"
        )
        exec(small.replace("= 512", "= 32").replace('"words": 96', '"words": 6'), found)
    rows = [line for line in capsys.readouterr().out.splitlines() if re.search(r"\d\.\d{3}", line)]
    assert len(rows) == 10 and all(len(row[34:].split()) == 5 for row in rows)
    assert sum("/coco_pope_" in url for url in asked) == 3
    assert {url for url in asked if "cocodataset" in url} == {
        f"http://images.cocodataset.org/val2014/COCO_val2014_{k:012d}.jpg" for k in (0, 1)
    }


def test_on_tiny_they_ask_for_nothing(capsys, monkeypatch):
    import pooch

    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("a download on tiny"))
    for cell in CELLS:
        exec(cell, found := names(profile=SimpleNamespace(name="tiny")))
    assert "left out" in capsys.readouterr().out and "smol" not in found


@pytest.mark.parametrize(
    "text, word",
    [
        ("The dog is there. Yes.", "yes"),
        ("No, wait. There is. So yes", "yes"),
        ("I know not", ""),
        ("", ""),
    ],
)
def test_an_answer_in_steps_is_read_at_its_end(text, word):
    exec(CELLS[1], found := names(profile=SimpleNamespace(name="tiny")))
    assert found["last_yes_or_no"](text) == word
