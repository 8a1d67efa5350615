"""Notebook 01b's saved cells: each loss is its definition, each change changes what it says, and copies are found."""

import math

import pytest
import torch
import torch.nn.functional as F

from vlm_lite.data import shapes
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.lessons import clip, clip_variants


@pytest.fixture
def embeds():
    torch.manual_seed(0)
    return torch.randn(5, 8), torch.randn(10, 8), torch.tensor(1.5)


def test_siglip_asks_yes_or_no_of_each_pair(embeds):
    u, v, scale = embeds
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = scale.exp() * F.cosine_similarity(u[i], v[j], dim=0) - 3
            right = torch.sigmoid(logit) if i == j else 1 - torch.sigmoid(logit)
            total -= math.log(right)
    loss = clip_variants.siglip(u, v[:5], scale, torch.tensor(-3.0))
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_two_directions_make_info_nce(embeds):
    u, v, scale = embeds
    both = clip_variants.one_direction(u, v[:5], scale) + clip_variants.one_direction(
        v[:5], u, scale
    )
    torch.testing.assert_close(both / 2, clip.info_nce(u, v[:5], scale))


def test_a_wrong_text_counts_only_where_an_image_is_near_it(embeds):
    u, v, scale = embeds
    far, near = torch.cat([v[:5], -100 * u]), torch.cat([v[:5], u])
    scale = torch.tensor(math.log(100.0))
    plain = (
        clip.info_nce(u, v[:5], scale) + clip_variants.one_direction(u, v[:5], scale)
    ) / 2  # the wrong texts out of reach
    assert clip_variants.hard_negatives(u, far, scale) == pytest.approx(plain.item(), rel=0.2)
    assert clip_variants.hard_negatives(u, near, scale) > plain + 10


def test_negatives_are_embedded_after_the_captions_by_the_same_weights():
    tokenizer = make_tokenizer()
    plain = clip.make_clip(tokenizer, 3, **clip_variants.SMALL)
    torch.manual_seed(3)
    model = clip_variants.CLIPWithNegatives(plain.config)
    captions = [["a large red circle.", "a red circle."], ["a small blue star.", "a blue star."]]
    ids = clip_variants.add_negatives(captions, tokenizer)  # (2, 2, 2, T)
    assert ids.shape[:3] == (2, 2, 2) and (ids[:, :, 0] != ids[:, :, 1]).any(dim=-1).all()
    pixels = torch.randn(2, 3, 64, 64)
    image_embeds, text_embeds, _ = model(pixels, ids[:, 0])
    assert len(image_embeds) == 2 and len(text_embeds) == 4
    torch.testing.assert_close(text_embeds[:2], plain.encode_text(ids[:, 0, 0]))
    torch.testing.assert_close(text_embeds[2:], plain.encode_text(ids[:, 0, 1]))


def test_a_share_of_the_captions_is_swapped_and_none_is_lost():
    ids = torch.arange(40).view(20, 2, 1)
    swapped = clip_variants.swap_captions(ids, 0.5)
    assert (swapped != ids).any(dim=(1, 2)).sum() == 10
    assert torch.equal(swapped.flatten().sort().values, ids.flatten())
    assert torch.equal(clip_variants.swap_captions(ids, 0.0), ids)


@pytest.mark.parametrize("row", clip_variants.variants(4, 8))
def test_every_row_trains_and_is_scored(row):
    tokenizer = make_tokenizer()
    images, captions, table = shapes.load_pairs("train", 24, progress=False)
    recipe = {
        "steps": 4,
        "batch_size": 8,
        "lr": 1e-3,
        "seed": 1,
        **clip_variants.variants(4, 8)[row],
    }
    model, history = clip_variants.train_variant(images, captions, tokenizer, **recipe)
    assert history.steps[-1] == recipe["steps"]
    learnt = (-model.logit_scale).exp().item()
    start = 0.1 if "SigLIP" in row else recipe.get("temperature", 0.07)
    assert (learnt == pytest.approx(start, abs=1e-7)) == ("fixed" in row)
    if "SigLIP" in row:
        assert model.logit_bias.item() != recipe["bias"]
    found = clip_variants.recall(model, images, captions, tokenizer)
    assert 0 <= found["R@1"] <= found["R@5"] <= 1
    assert 0 <= clip_variants.shape_accuracy(model, images, table, tokenizer) <= 1


def test_a_near_copy_is_found_and_another_colour_is_not():
    images, *_ = shapes.load_pairs("val", 40, progress=False)
    copies = clip_variants.near_copies(images)
    assert not torch.equal(copies, images)
    pairs = clip_variants.near_duplicates(copies, images)
    assert pairs.diagonal().float().mean() > 0.9
    other = images[:, [1, 2, 0]]  # red is green, green is blue: the grey thumbnails stay
    same = clip_variants.average_hash(other) == clip_variants.average_hash(images)
    assert (
        same.all() and clip_variants.near_duplicates(other, images).diagonal().float().mean() < 0.5
    )
