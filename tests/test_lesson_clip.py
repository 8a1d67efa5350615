"""Notebook 01's saved cells: equal to transformers' CLIP, resumable, and the same on one process and on two."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from tests import small
from vlm_lite.data import language
from vlm_lite.lessons import clip
from vlm_lite.models.clip import CLIP as LayoutCLIP
from vlm_lite.models.layout import save_clip
from vlm_lite.profiles import Compute

SIZES = dict(width=32, image_layers=2, text_layers=1, num_heads=2, projection_dim=16)


def pairs(count=24):
    """count random images and two captions each, with a model for them."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    tokenizer = language.make_tokenizer()
    words = ["red", "blue", "circle", "star", "large", "small"]
    texts = [f"a {words[k % 6]} {words[k // 6 % 6]} {k % 10}." for k in range(2 * count)]
    return (
        clip.make_clip(tokenizer, **SIZES),
        images,
        clip.tokenize(texts, tokenizer).view(count, 2, -1),
    )


def trained(**options):
    model, images, input_ids = pairs()
    options = {"steps": 6, "batch_size": 12, "lr": 1e-3, **options}
    return model, clip.train_clip(model, images, input_ids, **options)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    return tmp_path


def test_the_model_and_its_loss_equal_transformers(home):
    model, images, input_ids = pairs(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = CLIPModel.from_pretrained(save_clip(model, home / "clip"), dtype=torch.float32).eval()
    layout = LayoutCLIP.from_pretrained(home / "clip")
    pixels, ids = clip.pixel_values(images), input_ids[:, 0]
    with torch.no_grad():
        image_embeds, text_embeds, logit_scale = model(pixels, ids)
        output = theirs(pixel_values=pixels, input_ids=ids, return_loss=True)
        for name, mine in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
            torch.testing.assert_close(
                output[name], F.normalize(mine, dim=-1), atol=2e-6, rtol=1e-4
            )
        loss = clip.info_nce(image_embeds, text_embeds, logit_scale)
        torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layout.encode_text(ids), text_embeds, atol=1e-5, rtol=1e-4)


def test_padding_and_company_change_no_text():
    model, _, input_ids = pairs()
    ids = input_ids[:4, 0]
    longer = F.pad(ids, (0, 7))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(longer), model.encode_text(ids))
        torch.testing.assert_close(model.encode_text(longer[:1]), model.encode_text(ids)[:1])
    with pytest.raises(AssertionError, match="context"):
        model.encode_text(F.pad(ids, (0, 64)))


def test_training_lowers_the_loss_and_a_seed_is_one_run():
    first, history = trained(steps=30)
    again, same = trained(steps=30)
    other, another = trained(steps=30, seed=1)
    assert history.losses[-1] < history.losses[0] - 0.3 and history.losses == same.losses
    assert history.losses != another.losses
    assert torch.equal(first.logit_scale, again.logit_scale)
    assert first.forward.__func__ is clip.CLIP.forward  # accelerate's wrapper is taken off again


def test_a_batch_larger_than_the_data_takes_all_of_it():
    assert trained(batch_size=1000)[1].losses[0] > 0


def interrupted(image_embeds, text_embeds, logit_scale, calls=[]):  # noqa: B006
    calls.append(1)
    if len(calls) == 10:
        signal.raise_signal(signal.SIGINT)
    return clip.info_nce(image_embeds, text_embeds, logit_scale)


def test_an_interrupted_training_goes_on_to_the_same_weights(capsys):
    whole, history = trained(loss_fn=interrupted)  # calls 1 to 6
    with pytest.raises(KeyboardInterrupt):
        trained(loss_fn=interrupted)  # the tenth call is step 4
    model, resumed = trained(loss_fn=interrupted)
    assert "goes on after step 4" in capsys.readouterr().out
    assert resumed.losses == history.losses
    assert all(map(torch.equal, whole.state_dict().values(), model.state_dict().values()))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_at_the_same_total_batch(tmp_path):
    small.in_two_processes(__file__, tmp_path / "two.json")
    two = torch.tensor(json.loads((tmp_path / "two.json").read_text()))
    torch.testing.assert_close(two, losses_in_fp32(), atol=2e-4, rtol=1e-4)


def losses_in_fp32():
    """The losses of four steps on a batch of 12, step by step."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    before, clip.get_compute = clip.get_compute, lambda: Compute("cpu", "no", "a test")
    losses = []

    def kept(*embeds):
        losses.append(clip.info_nce(*embeds))
        return losses[-1]

    try:
        trained(steps=4, loss_fn=kept)
    finally:
        clip.get_compute = before
        if torch.distributed.is_initialized():
            assert torch.distributed.get_world_size() == 2
        else:
            AcceleratorState._reset_state(reset_partial_state=True)
    return torch.tensor([loss.item() for loss in losses])


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = losses_in_fp32().tolist()
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
