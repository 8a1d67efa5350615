"""Notebook 08's program: packing changes no answer, tiles hold the image, and no frame of a clip gives it away."""

import numpy as np
import pytest
import torch
from transformers import image_processing_utils
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from vlm_lite.data import pages
from vlm_lite.labs import check
from vlm_lite.lessons import resolution


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("VLM_LITE_CPU", "plain")
    torch.manual_seed(0)


def noise(*size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def encoder(**options):
    model = resolution.Encoder(width=24, depth=2, num_heads=2, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)  # so that attention is far from even
    return model


@pytest.mark.parametrize("rope", [True, False])
def test_an_image_gets_the_same_answer_alone_and_packed_with_others(rope):
    model, crops = encoder(rope=rope), [[noise(64, 64)], [noise(96, 128)], [noise(32, 192)]]
    with torch.no_grad():
        together = model(crops)
        for k, row in enumerate(crops):
            for mine, theirs in zip(model([row]), together, strict=True):
                torch.testing.assert_close(mine[0], theirs[k], atol=1e-4, rtol=1e-4)


def test_the_answer_depends_on_where_things_are_with_positions_and_only_then():
    image, model = noise(64, 64), encoder()
    moved = image.roll(32, dims=2)  # whole blocks of patches, in another order
    with torch.no_grad():
        assert (model([[image]])[0] - model([[moved]])[0]).abs().max() > 1e-3
        model.layers[0].forward = lambda x, *_: x
        model.layers[1].forward = lambda x, *_: x
        torch.testing.assert_close(model([[image]])[0], model([[moved]])[0])


def test_the_frames_of_a_clip_see_each_other_and_their_order():
    model, clip = encoder(num_classes=6), [noise(64, 64) for _ in range(3)]
    with torch.no_grad():
        found = model([clip, clip[::-1]], clip=True)[0]
        alone = model([clip[:1]], clip=True)[0]
    assert (found[0] - found[1]).abs().max() > 1e-3 < (found[0] - alone[0]).abs().max()


def test_tiles_are_a_thumbnail_and_then_the_image_cut_up():
    image = noise(192, 128)
    thumbnail, *cut = resolution.tiles(image)
    assert torch.equal(thumbnail, pages.resize(image, (64, 64)))
    rows = [torch.cat(cut[k : k + 2], dim=2) for k in (0, 2, 4)]
    assert torch.equal(torch.cat(rows, dim=1), image)
    canvas = torch.cat([*resolution.tiles(noise(30, 90) | 1)[1:]], dim=2)  # 1 x 2 or 1 x 3 tiles
    assert canvas.shape[1] == 64 and not canvas[:, [0, -1]].any() and canvas[:, 32].all()


@pytest.mark.parametrize("seed", range(3))
def test_the_parts_are_those_of_transformers(seed):
    rng = np.random.default_rng(seed)
    for height, width in rng.integers(1, 700, (300, 2)).tolist():
        if (height, width) != (1, 1) and max(height, width) / min(height, width) < 60:
            found = resolution.select_best_resolution((height, width), resolution.GRIDS)
            theirs = image_processing_utils.select_best_resolution
            assert found == theirs((height, width), resolution.GRIDS)
    x = torch.randn(2, 64, 3)
    assert torch.equal(resolution.pixel_shuffle(x), Idefics3Connector.pixel_shuffle(None, x))
    x, where = torch.randn(9, 2, 32), torch.from_numpy(rng.integers(0, 50, (9, 2)))
    theirs = check.qwen2_vl_rotary(x, where)
    torch.testing.assert_close(resolution.rope_2d(x, where), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "crops, said",
    [
        ([[]], "row 0 has no image"),
        ([[noise(64, 64)], [noise(8, 8)]], "row 1: an image of 8 x 8 pixels"),
        ([[noise(1, 5000)]], "1 x 5000 pixels.*multiples of 32"),
        ([[noise(0, 64)]], "0 x 64"),
        ([[noise(64, 64)] * 100], "1600 tokens, and the encoder reads 1024"),
        ([[noise(544, 544)]], "1156 tokens"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row_and_reason(crops, said):
    with pytest.raises(ValueError, match=said):
        encoder()(crops)


def test_a_strip_leaves_no_pixel_in_tiles():
    with pytest.raises(ValueError, match="1 x 5000|1, 5000"):
        resolution.tiles(noise(1, 5000))


@pytest.mark.slow
def test_pages_hold_one_digit_and_the_same_seed_gives_the_same_pages():
    digits, values, shapes, _ = pages.cells("val", 200)
    first, again = (pages.digit_pages("val", 96, 6, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    train = {each.tobytes() for each in pages.cells("train")[0]}
    known = {each.tobytes(): value for each, value in zip(*pages.cells("val")[:2], strict=True)}
    assert not train & set(known) and digits.shape[1:] == shapes.shape[1:] == (16, 16, 3)
    for image, value in zip(*first, strict=True):
        parts = image.permute(1, 2, 0).unfold(0, 16, 16).unfold(1, 16, 16)  # (6, 6, 3, 16, 16)
        parts = parts.permute(0, 1, 3, 4, 2).flatten(0, 1).numpy().astype(digits.dtype)
        found = [known[each.tobytes()] for each in parts if each.tobytes() in known]
        assert found == [value]


def test_of_two_shapes_the_named_one_goes_left_and_no_frame_tells_which():
    clips, moved = pages.moving_clips("val", 400, np.random.default_rng(0))
    _, _, shapes, kinds = pages.cells("val")
    kind_of = {each.tobytes(): kind for each, kind in zip(shapes, kinds, strict=True)}
    columns = np.zeros((2, 3, 4))  # went right or left, frame, column
    for clip, kind in zip(clips, moved.tolist(), strict=True):
        where = {}
        for frame in clip.permute(0, 2, 3, 1).numpy().astype(shapes.dtype):
            for k in range(16):
                cell = frame[16 * (k // 4) :, 16 * (k % 4) :][:16, :16]
                if (found := kind_of.get(cell.tobytes())) is not None:
                    where.setdefault(found, []).append(k % 4)
        assert len(where) == 2
        for found, path in where.items():
            step = 3 if found == kind else 1
            assert [(path[0] + t * step) % 4 for t in range(3)] == path
            columns[int(found == kind), range(3), path] += 1
    assert np.abs(columns / 400 - 0.25).max() < 0.08  # every column as often, in every frame


@pytest.mark.slow
@pytest.mark.parametrize("view", ["square", "tiles", "whole", "clips"])
def test_training_goes_through_every_view(view):
    model = resolution.Encoder(rope=view in ("whole", "clips"), width=24, depth=1, num_heads=2)
    history = resolution.train_encoder(model, view, steps=3, batch_size=4, lr=1e-2)
    assert np.isfinite(history.losses).all()
