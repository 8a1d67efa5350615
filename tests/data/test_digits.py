"""Handwriting on canvases: the same pixels each time, the digit where it is said to be, and no scan in both splits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlm_lite.data import digits
from vlm_lite.files import UserError


def test_no_handwritten_image_is_in_both_splits_and_together_they_are_all_of_them():
    from sklearn.datasets import load_digits

    (train, train_classes), (val, val_classes) = (
        digits.load_glyphs("train"),
        digits.load_glyphs("val"),
    )
    assert train.shape == (1297, 8, 8) and val.shape == (500, 8, 8) and train.dtype == torch.uint8
    every = torch.from_numpy((load_digits().images.astype(int) * 255 // 16).astype(np.uint8))
    assert sorted(map(bytes, torch.cat([train, val]).numpy())) == sorted(map(bytes, every.numpy()))
    assert sorted(torch.cat([train_classes, val_classes]).tolist()) == sorted(
        load_digits().target.tolist()
    )
    assert not {bytes(each.numpy()) for each in train} & {bytes(each.numpy()) for each in val}


@pytest.mark.parametrize("size", [8, 24, 33])
def test_the_digit_lies_where_it_is_said_to_and_the_rest_is_paper(size):
    pictures, classes, places = digits.make_canvases("val", 50, size=size, shade=0, noise=0)
    glyphs, targets = digits.load_glyphs("val")
    known = {
        (bytes(glyph.numpy()), target)
        for glyph, target in zip(glyphs, targets.tolist(), strict=True)
    }
    assert pictures.shape == (50, 3, size, size) and pictures.dtype == torch.uint8
    assert (pictures[:, :1] == pictures).all(), "grey: three equal channels"
    for picture, target, (top, left) in zip(
        pictures[:, 0].clone(), classes.tolist(), places.tolist(), strict=True
    ):
        assert (
            bytes(picture[top : top + 8, left : left + 8].contiguous().numpy()),
            target,
        ) in known
        picture[top : top + 8, left : left + 8] = 0
        assert not picture.any()


def paper(**options):
    """The canvases (N, size, size) with NaN where the digit lies, and its places."""
    pictures, _, places = digits.make_canvases("train", 2000, **options)
    values = pictures[:, 0].float()
    for picture, (top, left) in zip(values, places.tolist(), strict=True):
        picture[top : top + 8, left : left + 8] = torch.nan
    return values, places


def test_noise_reaches_its_bound_and_places_reach_every_edge():
    values, places = paper(size=12, shade=0, noise=50)
    assert places.min() == 0 and places.max() == 4
    values = values[~values.isnan()]
    assert (values.min(), values.max()) == (0, 50) and abs(values.mean() - 25) < 0.5


def test_light_is_any_shade_at_the_corners_and_goes_over_evenly_between_them():
    values, _ = paper(size=13, shade=100, noise=0)
    corners = values[:, ::12, ::12]  # (N, 2, 2)
    seen = corners[~corners.isnan()]
    assert (seen.min(), seen.max()) == (0, 100) and abs(seen.mean() - 50) < 2
    whole = ~corners.isnan().any(dim=(1, 2))
    even = F.interpolate(corners[whole][:, None], (13, 13), mode="bilinear", align_corners=True)[
        :, 0
    ]
    away = (values[whole] - even).nan_to_num(-0.5)
    assert whole.sum() > 100 and away.min() > -1 and away.max() < 1e-3  # rounded down


def test_the_same_arguments_give_the_same_pixels_and_other_seeds_and_splits_do_not():
    first, again = (digits.make_canvases("train", 30, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], digits.make_canvases("train", 30, seed=2)[0])
    assert not torch.equal(first[2], digits.make_canvases("val", 30, seed=1)[2])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(split="test"), "'test'; the digits have train, val"),
        (dict(size=7), "size is 7"),
        (dict(noise=256), "noise 256"),
        (dict(count=0), "count 0"),
        (dict(shade=-1), "shade -1"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        digits.make_canvases(**arguments)
