"""The staged recipe: what is made from words, what learns when, and that a run survives kill -9 and a second one."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import small
from vlm_lite import cli, commands, recipes, stages
from vlm_lite.data import instructions, language, scenes
from vlm_lite.features import weights_hash
from vlm_lite.files import UserError, read_json
from vlm_lite.models.projectors import make_connector
from vlm_lite.models.text import build_text_batch
from vlm_lite.models.vlm import VLM
from vlm_lite.profiles import Compute

ROOT = Path(__file__).resolve().parent.parent
CPU = Compute("cpu", "no", "a test")


def small_vlm(width=32):
    tokenizer = language.make_tokenizer()
    return VLM(
        vision=small.clip(len(tokenizer), tokenizer.eos_token_id, image_size=64, width=128),
        connector=make_connector("mlp", 128, width),
        language_model=small.gpt2(len(tokenizer), width, bos_token_id=5, eos_token_id=5),
        tokenizer=tokenizer,
    ).eval()


def small_run(folder=None, **options):
    """A run of three short stages without an evaluation; returns the hash of all weights and the VLM."""
    vlm = small_vlm()
    pictures = stages.load_pictures(vlm.vision, "val", 32, progress=False)
    stages.run_stages(
        vlm,
        pictures,
        pictures,
        stages.llava_plan((6, 6, 6), 8),
        folder=folder,
        compute=CPU,
        measure=lambda vlm: {},
        checkpoint_every=2,
        progress=False,
        **options,
    )
    return weights_hash(vlm), vlm


@pytest.fixture(scope="module")
def pictures():
    return stages.load_pictures(small_vlm().vision, "val", 32, progress=False)


# ---- instruction data


def scene_of(seed):
    return scenes.sample_scene(np.random.default_rng(seed))


def test_boxes_read_from_a_description_are_the_scene_that_was_described():
    for seed in range(50):
        text = language.describe(scene_of(seed))
        assert language.describe(instructions.read_boxes(text)) == text
    for bad in (
        "",
        "a small red circle.",
        "a small red circle in the top row, left column. and more",
    ):
        with pytest.raises(UserError, match="no description of a Shapes scene"):
            instructions.read_boxes(bad)


def test_every_instruction_is_in_the_vocabulary_and_its_own_reply_follows_it():
    tokenizer, seen = language.make_tokenizer(), set()
    for seed in range(100):
        for ask, reply, form in instructions.turns(scene_of(seed), np.random.default_rng(seed)):
            assert not language.unknown_words(tokenizer, f"{ask} {reply}")
            decoded = tokenizer.decode(
                tokenizer(reply)["input_ids"]
            )  # with the tokenizer's own spaces
            assert instructions.follows(decoded, reply, form) == 1
            seen.add(form)
    assert seen == set(instructions.FORMS)


@pytest.mark.parametrize(
    "reply, form, has_form, follows",
    [
        ("red", "word", True, 0),
        ("blue.", "word", True, 1),
        ("the star is blue.", "word", False, 0),
        ("the star is blue.", "sentence", True, 1),
        ("blue", "sentence", False, 0),
        ("the star is red.", "sentence", True, 0),
        ("red circle, blue star", "list", True, 0),
        ("a star. a circle.", "list", False, 0),
        ("there is a star. there is a circle.", "detail", True, 0),
        ("star, circle", "detail", False, 0),
        ("2: a star and a circle.", "reason", True, 0),
        ("two stars.", "reason", False, 0),
    ],
)
def test_form_and_facts_are_told_apart(reply, form, has_form, follows):
    expected = {"word": "blue", "sentence": "the star is blue."}.get(form, "there is a cross.")
    assert instructions.has_form(reply, form) == has_form
    assert instructions.follows(reply, expected, form) == follows


def test_facts_ignore_wording_and_number_but_count():
    assert instructions.facts("A red star, and 2 red stars.") == {"red": 2, "star": 2, "2": 1}
    assert instructions.facts("two crosses") == {"cross": 1}


def test_a_conversation_has_the_common_format_and_becomes_pairs():
    text = language.describe(scene_of(3))
    messages = instructions.conversation(text, np.random.default_rng(0))
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3
    pairs = instructions.as_pairs(messages)
    assert pairs[1] == (f"<user> {messages[2]['content']} <assistant>", messages[3]["content"])
    for bad in ([], messages[1:], messages[:3]):
        with pytest.raises(UserError, match="user and assistant in turn"):
            instructions.as_pairs(bad)


# ---- what is trained on


def test_the_loss_of_a_conversation_is_on_the_assistants_words_and_its_turns_read_one_another(
    pictures,
):
    vlm, texts = small_vlm(), stages.stage_texts(pictures)
    talk = texts["instructions"][0][0]
    batch = recipes.exchange_batches(pictures.features[:2], [[talk], [talk]], vlm.tokenizer, 2)
    features, ids, mask, labels = batch(0, torch.Generator().manual_seed(0))
    assert mask.max() == 1, "one conversation is one exchange: nothing is hidden within it"
    alone = build_text_batch(vlm.tokenizer, [talk])
    length = alone["input_ids"].shape[1]
    assert torch.equal(labels[:1, :length], alone["labels"]) and torch.equal(
        ids[:1, :length], alone["input_ids"]
    )
    said = vlm.tokenizer.decode(labels[0][labels[0] != -100])
    assert "<user>" not in said and said.count("<eos>") == len(talk)
    twice = (alone[key].expand(2, -1) for key in ("input_ids", "attention_mask", "labels"))
    torch.testing.assert_close(vlm(features, ids, mask, labels).loss, vlm(features, *twice).loss)


def test_a_share_of_the_captions_changes_places_and_none_is_lost(pictures):
    straight, mixed = (
        stages.stage_texts(pictures, shuffled=share)["captions"] for share in (0, 0.5)
    )
    moved = sum(a != b for a, b in zip(straight, mixed, strict=True))
    assert 14 <= moved <= 16 and sorted(map(str, straight)) == sorted(map(str, mixed))


def test_lora_starts_by_adding_nothing_and_leaves_every_weight_of_the_language_model_alone(
    pictures,
):
    vlm = small_vlm()
    ids = torch.randint(6, 50, (2, 9))
    before, kept = (
        vlm.language_model(ids).logits,
        {k: v.clone() for k, v in vlm.language_model.named_parameters()},
    )
    stages.set_trainable(vlm, "lora")
    torch.testing.assert_close(vlm.language_model(ids).logits, before)
    lora = [name for name, p in vlm.named_parameters() if p.requires_grad and "lora_" in name]
    assert len(lora) == 2 * 4
    assert all(part in " ".join(lora) for part in ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"))
    texts = stages.stage_texts(pictures)["vqa"]
    stage = stages.Stage("VQA", "vqa", 3, 1e-2, "lora", 8)
    stages.train_stage(vlm, pictures.features, texts, stage, compute=CPU, progress=False)
    after = {
        name.replace(".base_layer", ""): p for name, p in vlm.language_model.named_parameters()
    }
    assert all(torch.equal(after[name], value) for name, value in kept.items())
    assert (vlm.language_model(ids).logits - before).abs().max() > 1e-3
    with pytest.raises(UserError, match="frozen, lora, full"):
        stages.set_trainable(vlm, "half")


def test_stage_one_moves_the_connector_only_and_full_tuning_moves_everything(pictures):
    for tune in ("frozen", "full"):
        vlm = small_vlm()
        eye, brain, nerve = (
            weights_hash(part) for part in (vlm.vision, vlm.language_model, vlm.connector)
        )
        stages.train_stage(
            vlm,
            pictures.features,
            stages.stage_texts(pictures)["captions"],
            stages.Stage("one", "captions", 2, 1e-3, tune, 8, 1),
            compute=CPU,
            progress=False,
        )
        assert weights_hash(vlm.vision) == eye and weights_hash(vlm.connector) != nerve
        assert (weights_hash(vlm.language_model) == brain) is (tune == "frozen")


# ---- the evaluation


class Knowing:
    """In the place of `vlm.generate`: answers from the truth, by the pictures' features, or only pretends to look."""

    def __init__(self, pictures, looks):
        self.features, self.looks, captions = pictures.features, looks, pictures.captions
        self.said = {
            (row, "caption:"): texts[0] for row, texts in enumerate(captions["captions"][:])
        }
        place = {image_id: row for row, image_id in enumerate(pictures.ids)}
        for row in pictures.questions.remove_columns("image"):
            self.said[place[row["image_id"]], language.short_prompt(row["question"])] = row[
                "answer"
            ]
        for row, ask, reply, _ in instructions.instruction_set(captions, 64):
            self.said[row, language.chat_prompt(ask)] = reply

    def __call__(self, features, prompts, max_new_tokens, **_):
        rows = [
            None
            if features is None or not self.looks
            else next(
                (k for k, own in enumerate(self.features) if torch.equal(own.float(), each)), None
            )
            for each in (prompts if features is None else features)
        ]
        return [
            self.said.get((row, prompt), "no") for row, prompt in zip(rows, prompts, strict=True)
        ]


@pytest.mark.parametrize("looks", [True, False])
def test_the_four_checks_hold_for_a_model_that_looks_and_for_no_other(pictures, looks, monkeypatch):
    vlm = small_vlm()
    monkeypatch.setattr(vlm, "generate", Knowing(pictures, looks))
    scores = stages.evaluate(vlm, pictures, pictures=32, questions=64, orders=64)
    assert all(low <= value <= high for value, low, high in scores.values())
    if looks:
        assert (
            scores["following"][0] == scores["form"][0] == 1
            and scores["VQA"][0] > 0.9
            and scores["CIDEr"][0] > 1
        )
        assert all(scores[check][1] > 0 for check in stages.CHECKS)
    else:
        assert scores["following"][0] < 0.2 and not any(
            scores[check][1] > 0 for check in stages.CHECKS
        )
    assert {f"VQA {kind}" for kind in set(pictures.questions["question_type"][:64])} <= set(scores)


def test_the_matrix_marks_a_gain_outside_its_interval():
    low, high = (
        {
            name: [v, v - 0.1, v + 0.1]
            for name in ("CIDEr", "VQA", "form", "following", *stages.CHECKS)
        }
        for v in (0.2, 0.5)
    )
    lines = commands.matrix(
        [("nothing trained", low), ("captions", high), ("VQA", high)]
    ).splitlines()
    assert len(lines) == 4 and lines[2].count("0.50*") == 8 and "*" not in lines[1] + lines[3]


def test_perplexity_is_that_of_the_answers_alone():
    vlm = small_vlm()
    texts = [
        (
            "a small red circle in the top row, left column.",
            [
                (language.short_prompt("what is it?"), "red"),
                (language.short_prompt("how many?"), "1"),
            ],
        )
    ]
    found = stages.perplexity(vlm, texts)
    assert (
        100 < found < 2 * len(vlm.tokenizer)
    )  # an untrained model is about as surprised as a die of all words
    batch = build_text_batch(
        vlm.tokenizer, [[(f"{texts[0][0]} {texts[0][1][0][0]}", "red"), texts[0][1][1]]]
    )
    with torch.no_grad():
        loss = vlm.language_model(batch["input_ids"], labels=batch["labels"]).loss
    assert found == pytest.approx(loss.exp().item(), rel=1e-4)


# ---- it survives

CHILD = """
import os, sys, time, random, signal, shutil
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_stages as t
import peft, transformers.pytorch_utils, vlm_lite.evals.probes
folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)

def go(name):
    pid = os.fork()  # nothing was computed yet, so no threads are lost
    if pid == 0:
        found, _ = t.small_run(f"{{folder}}/{{name}}")
        open(f"{{folder}}/{{name}}.hash", "w").write(found)
        os._exit(0)
    return pid

started = time.time()
assert os.waitpid(go("whole"), 0)[1] == 0
seconds, killed, ends = time.time() - started, 0, []
while killed < kills or not ends:
    pid, wait = go("cut"), chance.uniform(0, 1.3 * seconds)
    until = time.time() + (wait if killed < kills else 1e9)
    done = 0
    while not done and time.time() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        print("killed with", sorted(os.listdir(f"{{folder}}/cut")) if os.path.isdir(f"{{folder}}/cut") else None)
        continue
    assert status == 0
    ends.append(open(f"{{folder}}/cut.hash").read())
    shutil.rmtree(f"{{folder}}/cut")
print(killed, len(ends), len({{open(f"{{folder}}/whole.hash").read(), *ends}}))
"""


def kill_and_resume(folder, kills, seed):
    command = [
        sys.executable,
        "-c",
        CHILD.format(tests=str(ROOT / "tests")),
        str(folder),
        str(kills),
        str(seed),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1100)
    assert done.returncode == 0, done.stderr[-2000:]
    killed, ended, different = map(int, done.stdout.splitlines()[-1].split())
    assert killed == kills and ended >= 1
    assert different == 1, f"the weights differ from those of the uninterrupted run:\n{done.stdout}"


@pytest.mark.slow
def test_a_run_killed_three_times_with_kill_9_ends_with_the_same_weights(tmp_path):
    kill_and_resume(tmp_path, 3, seed=1)


@pytest.mark.soak
def test_a_run_killed_twenty_times_with_kill_9_ends_with_the_same_weights(tmp_path):
    kill_and_resume(tmp_path, 20, seed=random.SystemRandom().randrange(2**32))


def test_a_finished_run_is_read_back_without_training_and_another_start_is_refused(tmp_path):
    first, _ = small_run(tmp_path)
    started = time.perf_counter()
    again, _ = small_run(tmp_path, on_step=lambda *_: pytest.fail("a step was taken"))
    assert again == first and time.perf_counter() - started < 30
    vlm = small_vlm()
    with torch.no_grad():
        next(vlm.connector.parameters()).add_(1)
    pictures = stages.load_pictures(vlm.vision, "val", 32, progress=False)
    with pytest.raises(UserError, match="belongs to another run: begins"):
        stages.run_stages(
            vlm,
            pictures,
            pictures,
            stages.llava_plan((6, 6, 6), 8),
            folder=tmp_path,
            compute=CPU,
            measure=lambda vlm: {},
            checkpoint_every=2,
            progress=False,
        )


def test_scores_kept_for_other_weights_are_measured_again(tmp_path):
    vlm, calls = small_vlm(), []
    for _ in range(2):
        stages._measured(vlm, lambda _: calls.append(1) or {"x": 1}, tmp_path / "s.json")
    with torch.no_grad():
        next(vlm.connector.parameters()).add_(1)
    assert (
        stages._measured(vlm, lambda _: {"x": 2}, tmp_path / "s.json") == {"x": 2}
        and len(calls) == 1
    )


# ---- several processes


def test_shares_of_a_batch_with_their_weights_add_up_to_the_loss_of_the_whole(pictures):
    vlm = small_vlm()
    batch = recipes.exchange_batches(
        pictures.features, stages.stage_texts(pictures)["vqa"], vlm.tokenizer, 9
    )(0, torch.Generator().manual_seed(0))
    shares = [stages.shard(batch, rank, 4) for rank in range(4)]
    assert [len(part[0]) for part, _ in shares] == [3, 2, 2, 2]
    mean = sum(vlm(*part).loss * weight for part, weight in shares) / 4
    torch.testing.assert_close(mean, vlm(*batch).loss)


LAUNCHED = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from safetensors.torch import save_file
import test_stages as t
state = PartialState(cpu=True)
_, vlm = t.small_run(sys.argv[1] + "/run")
found = [None] * state.num_processes
torch.distributed.all_gather_object(found, t.weights_hash(vlm))
if state.is_main_process:
    trained = {{name: p.contiguous() for name, p in vlm.named_parameters() if p.requires_grad}}
    save_file(trained, sys.argv[1] + "/two.safetensors")
    json.dump({{"processes": state.num_processes, "hashes": found}}, open(sys.argv[1] + "/two.json", "w"))
state.destroy_process_group()  # a process that ends without it aborts now and then: gloo's threads are still there
"""


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_at_the_same_effective_batch(tmp_path):
    """Tolerance 1e-5 in fp32: the sums of a batch are taken in another order, which Adam carries along for 18 steps."""
    from safetensors.torch import load_file

    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(tests=str(ROOT / "tests")))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script,
        tmp_path,
    ]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = read_json(tmp_path / "two.json")
    assert report["processes"] == 2 and len(set(report["hashes"])) == 1, (
        "two processes, and both hold the same weights"
    )
    _, one = small_run()
    two = load_file(tmp_path / "two.safetensors")
    trained = {name: p for name, p in one.named_parameters() if p.requires_grad}
    assert trained.keys() == two.keys()
    start = dict(small_vlm().named_parameters())
    moved = max(
        (p - start[name]).abs().max().item() for name, p in trained.items() if name in start
    )
    assert moved > 1e-3, "or there would be nothing to agree on"
    for name, p in trained.items():
        torch.testing.assert_close(two[name], p.detach(), atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_the_command_runs_as_two_processes_that_both_end_well(tmp_path):
    """As docs/machines.md has it. A group of processes that nobody takes down aborts one run in ten at its very end."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "vlm_lite",
        "train",
        "stages",
        "--folder",
        str(tmp_path / "run"),
        "--steps",
        "1,1,1",
        "--pictures",
        "32",
        "--held-out",
        "32",
        "--batch-size",
        "8",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "VLM_LITE_PROFILE": "smoke",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stdout.startswith("2 processes, cpu") and done.stdout.count("nothing trained") == 1
    ), done.stdout
    assert {path.name for path in (tmp_path / "run").glob("stage-*.json")} == {
        f"stage-{k}.json" for k in range(4)
    }


@pytest.mark.slow
def test_the_command_trains_evaluates_and_prints_the_matrix(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VLM_LITE_PROFILE", "smoke")
    monkeypatch.setattr(
        stages,
        "evaluate",
        lambda vlm, held_out: {
            name: [0.5, 0.4, 0.6] for name in ("CIDEr", "VQA", "form", "following", *stages.CHECKS)
        },
    )
    arguments = [
        "train",
        "stages",
        "--folder",
        str(tmp_path / "run"),
        "--steps",
        "1,1,1",
        "--pictures",
        "32",
        "--held-out",
        "32",
        "--batch-size",
        "8",
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 process, cpu") and "instructions" in printed
    assert json.loads((tmp_path / "run" / "stage-3.json").read_text())["scores"]["VQA"] == [
        0.5,
        0.4,
        0.6,
    ]
    for wrong in ("1,2", "a,b,c", "1,0,2"):
        with pytest.raises(SystemExit):
            cli.main(["train", "stages", "--folder", "x", "--steps", wrong])
        assert f"{wrong!r} is not three numbers of 1 or more" in capsys.readouterr().err
