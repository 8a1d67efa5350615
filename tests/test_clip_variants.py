"""What the rows of the study `clip_variants` change, and that they change nothing else."""

import math
from types import SimpleNamespace

import pytest
import torch

from vlm_lite import clip_variants, recipes
from vlm_lite.clip_variants import VARIANTS, train_variant
from vlm_lite.data import language, shapes
from vlm_lite.data.scenes import COLOURS
from vlm_lite.models.clip import info_nce

FEW = {"steps": 4, "batch_size": 8, "lr": 1e-3, "seed": 0, "progress": False, "log_every": 1}


@pytest.fixture(scope="module")
def world():
    images, captions, _ = recipes.load_pictures(shapes.load_shapes("val", 64, progress=False)[0])
    return images, captions, language.make_tokenizer()


@pytest.mark.slow
def test_the_first_row_is_the_recipe_itself_and_every_other_row_is_another_training(world):
    images, captions, tokenizer = world
    reference = recipes.make_shapes_clip(tokenizer)
    expected = recipes.train_clip(reference, images, captions, tokenizer, **FEW).losses
    found = {
        name: train_variant(*world, **FEW, **changes)[1].losses
        for name, changes in VARIANTS.items()
    }
    assert found[clip_variants.BASE] == expected
    assert all(losses != expected for name, losses in found.items() if name != clip_variants.BASE)
    assert {name: len(losses) for name, losses in found.items() if len(losses) != 4} == {
        "batch size ÷ 2": 8,
        "batch size × 2": 2,
        "twice the steps": 8,
        "50% exchanged, twice the steps": 8,
        "SigLIP's loss, twice the steps": 8,
    }


def test_a_fixed_temperature_stays_and_siglip_starts_as_its_paper_says_and_learns_its_bias(world):
    model, _ = train_variant(*world, **FEW, temperature=0.5)
    assert math.isclose((-model.logit_scale).exp().item(), 0.5, rel_tol=1e-6)
    model, history = train_variant(*world, **FEW, loss=clip_variants.siglip)
    assert (
        0 < (model.logit_bias + 10).abs() < 0.1
        and 0 < (model.logit_scale - math.log(10)).abs() < 0.1
    )
    assert 0.5 < history.losses[0] < 12


def test_a_share_of_the_pictures_get_captions_that_are_not_theirs_and_none_is_lost(world):
    _, captions, _ = world
    for share in (0, 0.25, 0.5, 1):
        said = clip_variants.exchange(captions, share, seed=3)
        assert sum(a is not b for a, b in zip(said, captions, strict=True)) == share * len(captions)
        assert sorted(map(id, said)) == sorted(map(id, captions))
    assert clip_variants.exchange(captions, 0.5, 3) != clip_variants.exchange(captions, 0.5, 4)


def test_a_coarse_caption_names_the_colours_of_its_picture_and_its_words_are_known(world):
    _, captions, tokenizer = world
    table = shapes.load_shapes("val", 64, progress=False)[0]
    for five, scene in zip(captions, table["description"][:], strict=True):
        words = clip_variants.only_colours(five[0])
        told = [] if words == "a digit." else words.removesuffix(".").split(" and ")
        assert told == sorted(told) and set(told) == {
            colour for colour in COLOURS if f" {colour} " in scene
        }
        assert not language.unknown_words(tokenizer, words)


def test_equal_captions_are_known_by_their_tokens(world, monkeypatch):
    ids = torch.tensor([[1, 2, 0], [1, 3, 0], [1, 2, 0]])
    assert clip_variants.equal_rows(ids).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]
    seen = []

    def loss(x, y, t, same):
        seen.append(same)
        return info_nce(x, y, t)

    monkeypatch.setattr(clip_variants, "info_nce_shared", loss)
    train_variant(*world, **FEW, coarse=True, loss=loss)
    assert all(same.diagonal().all() and same.shape == (8, 8) for same in seen) and len(seen) == 4
    assert torch.stack(seen).sum() > 4 * 8, "some of the coarse captions are equal"


def test_the_modality_gap_is_0_for_one_cloud_and_2_for_opposite_ones(world):
    images, captions, tokenizer = world
    texts = [five[0] for five in captions]

    class Eye:
        logit_scale, side, text_model = torch.zeros(()), 1.0, SimpleNamespace(context_length=64)

        def encode_image(self, pixels):
            return self.side * torch.ones(len(pixels), 4)

        def encode_text(self, ids, mask):
            return 3 * torch.ones(len(ids), 4)

    eye = Eye()
    assert clip_variants.modality_gap(eye, images, texts, tokenizer) == pytest.approx(0, abs=1e-6)
    eye.side = -1.0
    assert clip_variants.modality_gap(eye, images, texts, tokenizer) == pytest.approx(2)
