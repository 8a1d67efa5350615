"""Every training loop that a lesson shows: it learns, a seed is one run, Ctrl-C costs nothing, and two processes are one."""

import json
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator

from tests import small
from tests.lessons.test_llava import small_vlm
from tests.lessons.test_vlm import make_vlm
from tests.test_lesson_clip import pairs
from vlm_lite.lessons import clip, llava, vit, vlm

ROWS = 24


def clip_run(**options):
    model, images, input_ids = pairs(ROWS)
    return model, clip.train_clip(model, images, input_ids, **{"lr": 1e-3, **options})


def vit_run(**options):
    model, (images, labels, _) = vit.ViT(width=16, depth=1), vit.leftmost_task("train", ROWS)
    return model, vit.train_vit(model, images, labels, **{"lr": 1e-2, **options})


def talks(**options):
    turns = [[("is it red", ("yes", "no")[k % 2]), ("caption :", "small red")] for k in range(ROWS)]
    return turns, {"lr": 1e-2, "per_row": 2, **options}


def vlm_run(data="all", **options):
    model, features, (turns, options) = make_vlm(), torch.randn(ROWS, 16, 24), talks(**options)
    return model, vlm.train_vlm(model, features, turns[:: 1 if data == "all" else -1], **options)


def llava_run(data="stage", **options):
    model, features, (turns, options) = small_vlm(), torch.randn(ROWS, 16, 128), talks(**options)
    options |= {"trainable": "LoRA", "optimizer": "AdamW"}
    said = [[[turn] for turn in row] for row in turns[:: 1 if data == "stage" else -1]]
    return model, llava.train_stage("stage", model, features, said, **options)


RUNS = {"clip": clip_run, "vit": vit_run, "vlm": vlm_run, "llava": llava_run}
each_loop = pytest.mark.parametrize("name", RUNS)


def trained(name, **options):
    """(its model, the weights that learn as one vector, the losses) of one run."""
    torch.manual_seed(5)
    model, history = RUNS[name](**{"steps": 6, "batch_size": 8, **options})
    learnt = [p.detach().flatten() for p in model.parameters() if p.requires_grad]
    return model, torch.cat(learnt), history.losses


def interrupt(name):
    """A run until Ctrl-C in step 4, in each of its processes."""
    calls, clip_norm = [], Accelerator.clip_grad_norm_

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return clip_norm(*arguments)

    with mock.patch.object(Accelerator, "clip_grad_norm_", cut), pytest.raises(KeyboardInterrupt):
        trained(name)


@pytest.mark.slow
@each_loop
def test_training_lowers_the_loss_and_a_seed_is_one_run(name):
    model, first, losses = trained(name, steps=30)
    _, again, same = trained(name, steps=30)
    assert losses[-1] < 0.96 * losses[0] and losses == same and torch.equal(first, again)
    assert trained(name, seed=1)[2] != trained(name)[2]
    assert model.forward.__func__ is type(model).forward  # accelerate's wrapper is taken off again


@each_loop
def test_a_batch_larger_than_the_data_takes_all_of_it(name):
    assert trained(name, steps=1, batch_size=1000)[2][0] > 0


@pytest.mark.slow
@each_loop
def test_an_interrupted_training_goes_on_to_the_same_weights_on_the_same_data(name, capsys):
    _, whole, losses = trained(name)
    interrupt(name)
    _, resumed, again = trained(name)
    assert "goes on after step 4" in capsys.readouterr().out
    assert again == losses and torch.equal(resumed, whole)
    if name in ("vlm", "llava"):  # of which each training has the same name
        interrupt(name)
        trained(name, data="another")
        assert "other data" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_of_which_one_writes_go_on_to_the_weights_of_one(home):
    said = small.in_two_processes(__file__, home / "two.json")
    assert said.count("stopped after step 4") == len(RUNS) <= said.count("goes on after step 4")
    two = json.loads((home / "two.json").read_text())
    for name in RUNS:
        one = trained(name)[1]
        torch.testing.assert_close(torch.tensor(two[name]), one, atol=3e-3, rtol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name in RUNS:
        interrupt(name)
        found[name] = trained(name)[1].tolist()
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
