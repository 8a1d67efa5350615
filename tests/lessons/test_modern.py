"""Notebook 09's model: equal to transformers' SmolVLM, its text to that without a cache, and its borders clear."""

import copy

import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tests import small
from vlm_lite.labs.core import random_weights
from vlm_lite.lessons import modern

IMAGE, TOKENIZER = 2, small.tokenizer()


def config(tied=True):
    vision = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, model_type="llama")
    text |= dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=len(TOKENIZER))
    text |= dict(tie_word_embeddings=tied, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    vision |= dict(image_size=32, patch_size=8)
    options = dict(scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=tied)
    return SmolVLMConfig(vision_config=vision, text_config=text, **options)


def both(tied=True):
    torch.manual_seed(0)
    theirs = random_weights(SmolVLMForConditionalGeneration(config(tied)))
    return modern.load_from(modern.ModernVLM(config(tied)), theirs.state_dict()), theirs


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
    with pytest.raises(ValueError, match=r"\(4, 3, 16, 16\); expected \(I, 3, 32, 32\)"):
        mine(ids, mask, pixels.flatten(0, 1)[..., :16, :16])
    with pytest.raises(RuntimeError, match="Missing key"):
        modern.load_from(mine, {"model.other": torch.zeros(1)})


def test_an_encoder_that_starts_from_clip_gives_nearly_clips_features():
    clip, sizes = small.clip(len(TOKENIZER)), config().vision_config
    sizes.update(dict(hidden_size=16, intermediate_size=64, image_size=32, patch_size=16))
    encoder = modern.VisionEncoder(sizes)
    before = copy.deepcopy(encoder.state_dict())
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    modern.start_from_clip(encoder, clip, images)
    after = encoder.state_dict()
    assert not any(torch.equal(before[n], after[n]) for n in before if "post" not in n)
    assert torch.equal(
        after["layers.0.mlp.fc1.weight"], clip.vision_model.encoder.layers[0].mlp.fc1.weight
    )


def test_the_loss_counts_answers_alone_and_training_lowers_it(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = modern.ShapesVLM(config(), TOKENIZER)
    turns = [[("question : is it red answer :", "yes")], [("caption :", "small blue")], []]
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    ids, mask, pixels, labels = model.batch(images[:2], [turns[0][0], turns[1][0]], blind_share=0.0)
    assert labels[labels != -100].tolist()[:2] == [TOKENIZER.get_vocab()["yes"], small.EOS]
    assert (ids == IMAGE).sum() == 8 and len(pixels) == 2
    assert len(model.batch(images[:2], [turns[0][0]] * 2, blind_share=1.0)[2]) == 0
    history = modern.train_modern(model, images, turns, steps=20, batch_size=2, lr=1e-2)
    assert history.losses[-1] < history.losses[0]
    said = model.generate(model.encode(pixels), ["caption :"] * 2, 4)
    assert len(said) == 2 and model.generate(None, ["caption :"], 4)
