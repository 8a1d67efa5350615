"""InfoNCE whose negatives are gathered from several processes: the loss and the gradients of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_lite import recipes
from vlm_lite.data import language, shapes
from vlm_lite.files import UserError
from vlm_lite.models.clip import info_nce, info_nce_gathered
from vlm_lite.profiles import Compute
from vlm_lite.train import equal_shares

ROOT = Path(__file__).resolve().parent.parent
CPU = Compute("cpu", "no", "a test")
BATCH = 12


def one_batch():
    images, captions, _ = recipes.load_pictures(shapes.load_shapes("val", 64, progress=False)[0])
    tokenizer = language.make_tokenizer()
    batches = recipes.caption_batches(images, captions, tokenizer, BATCH)
    return images, captions, tokenizer, batches(0, torch.Generator().manual_seed(0))


def loss_and_gradients(model, batch, loss):
    pictures, ids, mask = batch
    value = loss(
        model.encode_image(recipes.pixel_values(pictures)),
        model.encode_text(ids, mask),
        model.logit_scale,
    )
    value.backward()
    return {"loss": value.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def losses(images, captions, tokenizer, **options):
    """The losses of three steps of the recipe. (The weights themselves need not agree: the bias of the keys has no
    gradient but rounding, and AdamW makes whole steps of it.)"""
    history = recipes.train_clip(
        recipes.make_shapes_clip(tokenizer),
        images,
        captions,
        tokenizer,
        steps=3,
        log_every=1,
        batch_size=BATCH,
        compute=CPU,
        progress=False,
        **options,
    )
    return {"losses": torch.tensor(history.losses)}


def in_each_process(folder):
    """What torchrun starts twice."""
    from accelerate import PartialState

    state = PartialState(cpu=True)
    assert state.num_processes == 2 == torch.distributed.get_world_size()
    images, captions, tokenizer, batch = one_batch()
    share, weight = equal_shares(batch, state.process_index, 2)
    assert weight == 1 and len(share[0]) == BATCH // 2
    mine = loss_and_gradients(recipes.make_shapes_clip(tokenizer), share, info_nce_gathered)
    own = loss_and_gradients(recipes.make_shapes_clip(tokenizer), share, info_nce)
    for value in [*mine.values(), *own.values()]:
        torch.distributed.all_reduce(value)
        value /= 2
    run = losses(images, captions, tokenizer, loss=info_nce_gathered, shard=equal_shares)
    if state.is_main_process:
        for name, found in (("gathered", mine), ("own", own), ("trained", run)):
            save_file(
                {key: value.contiguous() for key, value in found.items()},
                f"{folder}/{name}.safetensors",
            )
    state.destroy_process_group()  # a process that ends without it aborts now and then: gloo's threads are still there


@pytest.mark.slow
def test_two_processes_with_gathered_negatives_have_the_loss_and_the_gradients_of_one(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(tmp_path),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    images, captions, tokenizer, batch = one_batch()
    whole = loss_and_gradients(recipes.make_shapes_clip(tokenizer), batch, info_nce)
    gathered, own, two = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("gathered", "own", "trained")
    )
    assert whole.keys() == gathered.keys() and max(g.abs().max() for g in whole.values()) > 1e-2
    for name, value in whole.items():
        torch.testing.assert_close(gathered[name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert abs(own["loss"] - whole["loss"]) > 0.3, (
        "without gathering, each process has half of the negatives"
    )
    torch.testing.assert_close(two, losses(images, captions, tokenizer), atol=1e-5, rtol=1e-5)


def test_a_batch_that_cannot_be_shared_out_equally_is_refused():
    with pytest.raises(UserError, match="batch of 7 .* 2 processes.*multiple of 2"):
        equal_shares((torch.zeros(7, 2), torch.zeros(7)), 0, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_each_process(sys.argv[1])
