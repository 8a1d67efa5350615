"""Notebook 02's program: the task has one right answer, the model is timm's, and it learns where things are or cannot."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vlm_lite.lessons import vit


@pytest.mark.parametrize("axis", ["col", "row"])
def test_one_object_alone_comes_first_and_the_label_names_it(axis):
    images, labels, scenes = vit.leftmost_task("val", 40, axis=axis)
    assert images.shape == (40, 3, 64, 64) and images.dtype == torch.uint8
    for image, label, scene in zip(images, labels, scenes, strict=True):
        at = [getattr(item, axis) for item in scene.items]
        (first,) = [item for item in scene.items if getattr(item, axis) == min(at)]
        assert vit.CLASSES[label] == first.shape and len(scene.items) > 1
        cell = image[:, 16 * first.row :, 16 * first.col :][:, :16, :16]
        assert cell.float().std() > 20  # it is drawn there: the background varies by a few levels


def test_the_same_arguments_give_the_same_images_and_no_split_shares_a_scene():
    first, again, train = (vit.leftmost_task(split, 20) for split in ("val", "val", "train"))
    assert torch.equal(first[0], again[0]) and first[2] == again[2]
    assert not set(first[2]) & set(train[2])


def test_the_model_is_timms_with_timms_weights():
    sizes = dict(img_size=48, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    theirs = timm.models.vision_transformer.VisionTransformer(**sizes).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    mine = vit.ViT(image_size=48, patch_size=16, width=32, depth=2, num_heads=4, num_classes=5)
    mine.load_state_dict(theirs.state_dict())
    pixels = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(pixels), theirs(pixels), atol=1e-5, rtol=1e-5)
        tokens = mine.forward_features(pixels)
        torch.testing.assert_close(tokens, theirs.forward_features(pixels), atol=1e-5, rtol=1e-5)
        (weights, *_) = (block.attn.weights for block in mine.blocks)
    assert weights.shape == (3, 4, 10, 10)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 10))


def test_without_positions_patches_in_other_places_change_nothing():
    model, pixels = vit.ViT().eval(), torch.randn(2, 3, 64, 64)
    moved = pixels.roll((16, 32), dims=(2, 3))
    with torch.no_grad():
        assert (model(moved) - model(pixels)).abs().max() > 1e-4
        nn.init.zeros_(model.pos_embed)
        torch.testing.assert_close(model(moved), model(pixels), atol=1e-5, rtol=1e-5)


def test_positions_start_small():
    assert vit.ViT(width=256).pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: vit.ViT(depth=1), vit.small_cnn])
def test_a_model_learns_a_few_images_by_heart_also_from_batches_larger_than_the_data(make):
    torch.manual_seed(0)
    model, (images, labels, _) = make(), vit.leftmost_task("train", 24)
    history = vit.train_vit(model, images, labels, steps=60, batch_size=32, lr=3e-3)
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert vit.accuracy(model, images, labels) > 0.8


def test_rollout_of_uniform_attention_keeps_more_of_the_token_itself():
    rollout = vit.attention_rollout([torch.full((1, 2, 4, 4), 0.25)] * 2)
    expected = 0.25 * np.eye(4) + 0.75 * 0.25  # half, and half of the half, stays
    np.testing.assert_allclose(rollout[0].numpy(), expected, atol=1e-6)


def test_sizes_that_do_not_divide_are_refused_with_a_sentence():
    with pytest.raises(AssertionError, match="64 pixels, patches of 24"):
        vit.ViT(patch_size=24)
    with pytest.raises(AssertionError, match="10 does not divide into 4"):
        vit.MultiHeadAttention(10, 4)
