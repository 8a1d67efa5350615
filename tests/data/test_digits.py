"""Handwriting on canvases: the same pixels each time, the digit where it is said to be, and no scan in both splits."""

import numpy as np
import pytest
import torch

from vlm_lite.data import digits
from vlm_lite.files import UserError


def test_no_handwritten_image_is_in_both_splits_and_together_they_are_all_of_them():
    from sklearn.datasets import load_digits

    (train, train_classes), (val, val_classes) = digits.load_glyphs("train"), digits.load_glyphs("val")
    assert train.shape == (1297, 8, 8) and val.shape == (500, 8, 8) and train.dtype == torch.uint8
    every = torch.from_numpy((load_digits().images.astype(int) * 255 // 16).astype(np.uint8))
    assert sorted(map(bytes, torch.cat([train, val]).numpy())) == sorted(map(bytes, every.numpy()))
    assert sorted(torch.cat([train_classes, val_classes]).tolist()) == sorted(load_digits().target.tolist())
    assert not {bytes(each.numpy()) for each in train} & {bytes(each.numpy()) for each in val}


@pytest.mark.parametrize("size", [8, 24, 33])
def test_the_digit_lies_where_it_is_said_to_and_the_rest_is_noise(size):
    pictures, classes, places = digits.make_canvases("val", 50, size=size, noise=0, scraps=0)
    glyphs, targets = digits.load_glyphs("val")
    known = {(bytes(glyph.numpy()), target) for glyph, target in zip(glyphs, targets.tolist(), strict=True)}
    assert pictures.shape == (50, 3, size, size) and pictures.dtype == torch.uint8
    for picture, target, (top, left) in zip(pictures, classes.tolist(), places.tolist(), strict=True):
        crop = picture[0, top:top + 8, left:left + 8].clone()
        assert (bytes(crop.numpy()), target) in known
        picture[:, top:top + 8, left:left + 8] = 0
        assert not picture.any()


def test_noise_reaches_its_bound_and_places_reach_every_edge():
    pictures, _, places = digits.make_canvases("train", 2000, size=12, noise=50, scraps=0)
    assert places.min() == 0 and places.max() == 4
    ground = torch.ones_like(pictures[:, 0], dtype=torch.bool)
    for mask, (top, left) in zip(ground, places.tolist(), strict=True):
        mask[top:top + 8, left:left + 8] = False
    values = pictures[:, 0][ground]
    assert (values.min(), values.max()) == (0, 50) and abs(values.float().mean() - 25) < 0.5
    assert (pictures[:, :1] == pictures).all(), "grey: three equal channels"


def test_scraps_are_pieces_of_other_digits_and_never_lie_on_the_digit():
    bare, strewn = (digits.make_canvases("val", 40, size=24, noise=0, scraps=count) for count in (0, 6))
    assert torch.equal(bare[1], strewn[1]) and torch.equal(bare[2], strewn[2])
    glyphs = digits.load_glyphs("val")[0]
    pieces = {bytes(piece.contiguous().numpy())
              for piece in glyphs.unfold(1, 4, 1).unfold(2, 4, 1).reshape(-1, 4, 4)}
    inked = 0
    for before, after, (top, left) in zip(bare[0], strewn[0], strewn[2].tolist(), strict=True):
        square = slice(top, top + 8), slice(left, left + 8)
        assert torch.equal(before[0][square], after[0][square])
        outside = after[0].clone()
        outside[square] = 0
        inked += (outside > 0).sum().item()
    assert 40 * 6 * 3 < inked < 40 * 6 * 16
    one = digits.make_canvases("val", 40, size=24, noise=0, scraps=1)
    whole = 0
    for picture, (top, left) in zip(one[0][:, 0], one[2].tolist(), strict=True):
        picture = picture.clone()
        picture[top:top + 8, left:left + 8] = 0
        windows = picture.unfold(0, 4, 1).unfold(1, 4, 1).reshape(-1, 4, 4)
        windows = windows[windows.flatten(1).sum(dim=1) == picture.sum()]  # those that hold all there is
        whole += any(bytes(window.contiguous().numpy()) in pieces for window in windows)
    assert whole > 20  # the rest are hidden in part by the digit


def test_the_same_arguments_give_the_same_pixels_and_other_seeds_and_splits_do_not():
    first, again = (digits.make_canvases("train", 30, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], digits.make_canvases("train", 30, seed=2)[0])
    assert not torch.equal(first[2], digits.make_canvases("val", 30, seed=1)[2])


@pytest.mark.parametrize("arguments, message", [
    (dict(split="test"), "'test'; the digits have train, val"), (dict(size=7), "size is 7"),
    (dict(noise=256), "noise 256"), (dict(count=0), "count 0"),
    (dict(scraps=-1), "scraps -1")])
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        digits.make_canvases(**arguments)
