"""`make bench` compares what it says it compares, times what it says it times, and keeps every row."""

import math
import shutil
import time

import pytest
import torch
from torch.nn import functional as F

from tools import bench, bench_clip, notebooks, timing
from vlm_lite import recipes
from vlm_lite.data.language import make_tokenizer
from vlm_lite.data.shapes import load_shapes
from vlm_lite.files import read_json, write_json
from vlm_lite.profiles import Compute

FP32 = Compute("cpu", "no", "the test says so")
BF16 = Compute("cpu", "bf16", "the test says so")


@pytest.fixture(scope="module")
def data():
    return recipes.load_pictures(load_shapes("train", 64, progress=False)[0])[:2]


def runner(chosen, data, compute=FP32):
    tokenizer = make_tokenizer()
    batches = recipes.caption_batches(*data, tokenizer, 16)
    return bench_clip.Runner(frozenset(chosen), batches, tokenizer, compute, total=3)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_ours_in_the_race_is_the_course_s_own_training(data, compute):
    tokenizer, ours = make_tokenizer(), runner(bench_clip.REMEDIES, data, compute)
    model = recipes.make_shapes_clip(tokenizer)
    history = recipes.train_clip(
        model,
        *data,
        tokenizer,
        steps=3,
        batch_size=16,
        compute=compute,
        log_every=1,
        progress=False,
    )
    assert [ours.step() for _ in range(3)] == pytest.approx(history.losses, abs=1e-5)
    torch.testing.assert_close(ours.model.state_dict(), model.state_dict(), atol=1e-5, rtol=0)


def test_the_plain_recipe_is_the_one_that_people_write(data):
    from transformers import CLIPConfig, CLIPModel

    tokenizer, plain = make_tokenizer(), runner((), data)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig.from_dict(recipes.make_shapes_clip(tokenizer).config.to_hf()))
    torch.manual_seed(0)
    model = CLIPModel(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    texts = {
        ids: text
        for text, ids in (
            (t, tuple(tokenizer(t + tokenizer.eos_token, add_special_tokens=False)["input_ids"]))
            for said in data[1]
            for t in said
        )
    }
    for step in range(3):
        pictures, ids, mask = plain.batches(
            step, torch.Generator().manual_seed(bench_clip.step_seed(0, step, "batch"))
        )
        said = [texts[tuple(row[:n].tolist())] for row, n in zip(ids, mask.sum(1), strict=True)]
        text = tokenizer(
            [t + tokenizer.eos_token for t in said],
            padding="max_length",
            max_length=64,
            return_tensors="pt",
            add_special_tokens=False,
        )
        loss = model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            pixel_values=recipes.pixel_values(pictures),
            return_loss=True,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert plain.step() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(plain.model.state_dict(), model.state_dict(), atol=1e-5, rtol=0)
    places = model.vision_model.embeddings.position_embedding.weight
    assert places.std().item() < 0.1 < recipes.POSITION_STD  # not our initial weights


@pytest.mark.parametrize("remedy", ["bf16", "bf16 attention", "short", "fused", "towers"])
def test_a_remedy_for_a_step_s_time_leaves_the_loss_as_it_is(data, remedy):
    plain, remedied = runner((), data, BF16), runner(remedy.split(), data, BF16)
    for _ in range(2):
        assert remedied.step() == pytest.approx(
            plain.step(), abs=0.02 if "bf16" in remedy else 1e-4
        )


@pytest.mark.parametrize("remedy", ["schedule", "limits", "start"])
def test_a_remedy_for_the_number_of_steps_changes_what_is_learnt(data, remedy):
    plain, remedied = runner((), data), runner((remedy,), data)
    losses = [(plain.step(), remedied.step()) for _ in range(3)]
    assert abs(losses[-1][0] - losses[-1][1]) > 1e-4


def test_recall_is_taken_from_the_weights_of_the_step_before(data):
    plain = runner((), data)
    plain.step()
    pictures, texts = data[0][:16], [said[0] for said in data[1][:16]]
    with torch.no_grad():
        plain.model.text_projection.weight.zero_()
    assert (
        plain.recall(pictures, texts) == 0
    )  # all captions tie, and a tie counts against the model


class Fake:
    """Arrives at its goal after `needs` steps of one second on the test's clock; an evaluation takes an hour."""

    def __init__(self, clock, needs):
        self.clock, self.needs, self.steps, self.seconds, self.when, self.recalls = (
            clock,
            needs,
            0,
            [],
            [],
            [],
        )

    def step(self):
        self.steps, self.clock[0] = self.steps + 1, self.clock[0] + 1
        self.seconds.append(1)
        self.when.append(self.clock[0] % 3600)
        return (
            0.0 if self.steps > 10 else 9.0
        )  # an evaluation after the first ten steps has no hope

    def recall(self):
        self.clock[0] += 3600
        self.recalls.append(self.steps / self.needs)
        return self.recalls[-1]


def test_the_racers_take_turns_until_each_arrives_or_is_stopped():
    clock = [0]
    runners = {"slow": Fake(clock, 95), "fast": Fake(clock, 20), "never": Fake(clock, 1000)}
    arrived = bench_clip.race(runners, (), goal=1.0, every=10, most=105, hope=1.0)
    assert arrived == {"slow", "fast"}
    assert {name: each.steps for name, each in runners.items()} == {
        "slow": 100,
        "fast": 20,
        "never": 105,
    }
    assert sum(runners["fast"].seconds) == 20
    assert runners["fast"].when == [*range(11, 21), *range(41, 51)]  # between those of the others
    assert clock[0] == 100 + 20 + 105 + 3600 * (9 + 1 + 10)


def test_the_seconds_of_a_racer_leave_the_evaluation_out(data, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench_clip, "now", lambda: clock[0])
    plain = runner((), data)
    loss = plain.loss
    monkeypatch.setattr(
        plain, "loss", lambda *batch: (clock.__setitem__(0, clock[0] + 2), loss(*batch))[1]
    )
    recall = recipes.clip_recall
    monkeypatch.setattr(
        recipes, "clip_recall", lambda *a: (clock.__setitem__(0, clock[0] + 99), recall(*a))[1]
    )
    bench_clip.race(
        {"plain": plain},
        (data[0][:8], [said[0] for said in data[1][:8]]),
        goal=2,
        every=2,
        most=4,
        hope=9,
    )
    assert plain.seconds == [2, 2, 2, 2] and len(plain.recalls) == 2 and clock[0] == 8 + 2 * 99


def test_patches_by_a_linear_map_are_those_of_the_convolution():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 8, 4, stride=4, bias=False)
    pixels = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(bench_clip.LinearPatches(convolution)(pixels), convolution(pixels))


def test_attention_in_fp32_is_the_same_attention_and_ends_with_its_block():
    torch.manual_seed(0)
    plain, query = F.scaled_dot_product_attention, torch.randn(2, 4, 5, 8, dtype=torch.bfloat16)
    mask = torch.zeros(5, 5, dtype=torch.bfloat16).masked_fill(
        torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf
    )
    with bench_clip.attention_in_fp32():
        mended = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    right = plain(query.float(), query.float(), query.float(), is_causal=True).bfloat16()
    assert mended.dtype == torch.bfloat16 and torch.equal(mended, right)
    with bench_clip.attention_in_fp32(False):
        assert F.scaled_dot_product_attention is plain
    assert F.scaled_dot_product_attention is plain


def test_the_ratio_of_two_towers_is_ours_over_theirs_and_they_must_do_the_same_work():
    def tower(wait, bias=0.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss(x):
            time.sleep(wait)
            return model(x).mean() + bias

        return model, loss

    timing.ROWS.clear()
    batch = [torch.randn(3, 4)]
    bench_clip.compare("pair", {"ours": tower(0.09), "theirs": tower(0.03)}, batch, FP32, 3)
    (row,) = timing.ROWS
    assert 2 < row["value"] < 3.5 and row["aim"] == "1.05 or less" and row["met"] is False
    with pytest.raises(AssertionError):
        bench_clip.compare("pair", {"ours": tower(0), "theirs": tower(0, bias=0.1)}, batch, FP32, 1)


AIMS = {
    "race": ["0.6 or less"],
    "remedies": ["1.05 or less"],
    "towers": ["1.05 or less"],
    "qformer": ["1 or less"],
    "connector": ["90 or more"],
    "stages": ["1.5 or more", "90 or more"],
    "answers": ["30 or less", "5 or more"],
    "evaluators": [],
    "machine": [],
}


@pytest.mark.slow
def test_every_part_runs_in_its_small_form_and_its_rows_reach_the_record_and_the_readme(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bench, "get_compute", lambda: BF16)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(notebooks.ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    bench.main(["--quick"], root=tmp_path)
    record, page = read_json(tmp_path / bench.RECORD), (tmp_path / "README.md").read_text()
    assert set(record) == set(bench.PARTS) == set(AIMS)
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n")
    for name, part in record.items():
        assert part["rows"] and all(
            row["value"] > 0 and math.isfinite(row["value"]) for row in part["rows"]
        )
        assert sorted({row["aim"] for row in part["rows"] if "aim" in row}) == AIMS[name]
        for row in part["rows"]:
            note = f" ({row['note']})" if row["note"] else ""
            assert f"{row['name'].strip()}{note} | {timing.shown(row)} |" in page
    assert all(
        word in page
        for word in (
            "small form",
            "fp32, text padded to 64",
            *(bench_clip.REMEDIES[name] for name in ("short", "fused", *bench_clip.STEPS)),
        )
    )

    record["machine"]["rows"], record["answers"]["rows"] = [], []
    write_json(tmp_path / bench.RECORD, record)
    bench.main(["--quick", "machine"], root=tmp_path)
    again = read_json(tmp_path / bench.RECORD)
    assert len(again["machine"]["rows"]) == 3 and again["answers"]["rows"] == []
    assert {k: v for k, v in again.items() if k != "machine"} == {
        k: v for k, v in record.items() if k != "machine"
    }


def test_a_row_says_whether_its_aim_is_met(tmp_path):
    timing.ROWS.clear()
    timing.line("slow", 1.2, "times", 2, at_most=1.05)
    timing.line("   quick", 91, "%", at_least=90)
    timing.line("never", None, "s", at_most=3, note="R@5 0.10")
    write_json(
        tmp_path / "bench.json",
        {
            "towers": {
                "what": "towers",
                "rows": timing.ROWS,
                "quick": False,
                "commit": "abc",
                "date": "today",
                "torch": "2",
                "hardware": "cpu",
                "seconds": 3,
                "place": 0,
            }
        },
    )
    assert timing.table(tmp_path / "bench.json").splitlines()[5:] == [
        "| slow | 1.20 times | 1.05 or less: **missed** |",
        "| &emsp;quick | 91.0 % | 90 or more: met |",
        "| never (R@5 0.10) | not reached | 3 or less: **missed** |",
    ]


def test_the_record_that_ships_is_of_the_full_size():
    path = notebooks.ROOT / bench.RECORD
    assert not any(part["quick"] for part in (read_json(path) if path.exists() else {}).values())


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(["races"])
    assert "no part is called races" in capsys.readouterr().err
