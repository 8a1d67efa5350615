"""Notebook 08b's program: points survive being written and read, only new rows learn, and bad input is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlm_lite.data import pages
from vlm_lite.lessons import pointing
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.reading import describe
from vlm_lite.lessons.vlm import VLM
from vlm_lite.lessons.world import SPLITS, render, sample_scene
from vlm_lite.models.clip import CLIP
from vlm_lite.models.text import load_language_model
from vlm_lite.profiles import resolve_model


@pytest.fixture(scope="module")
def scenes():
    made = []
    for index in range(30):
        rng = np.random.default_rng([3, SPLITS.index("val"), index])
        scene = sample_scene(rng, "val")
        made.append((scene, torch.from_numpy(render(scene, rng)).permute(2, 0, 1)))
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    vision = CLIP.from_pretrained(resolve_model("shapes-clip"))
    return VLM(vision, Projector(128, 256), *load_language_model(resolve_model("shapes-gpt2")))


def test_a_centre_lies_on_its_thing_and_survives_being_written_and_read(scenes):
    for scene, image in scenes:
        points = [(0, *pointing.centre(image, item)) for item in scene.items]
        for item, (_, x, y) in zip(scene.items, points, strict=True):
            assert (y // 16, x // 16) == (item.row, item.col)
        found = pointing.parse_points(pointing.say_points(points))
        assert np.abs(np.subtract(found, points)).max() <= pointing.STEP / 2


@pytest.mark.parametrize("point", [(0, 64, 3), (0, 3, -1), (3, 3, 3), (0, float("nan"), 3)])
def test_a_point_outside_is_not_written(point):
    with pytest.raises(ValueError, match="lies outside"):
        pointing.say_points([point])


@pytest.mark.parametrize(
    "text, said",
    [
        ("<point> <frame0> <x16> <y0>", "outside"),
        ("<point> <frame3> <x1> <y0>", "outside"),
        ("<point> <frame0> <x1>", "malformed"),
        ("<point>", "malformed"),
        ("<x1> <y1>", "malformed"),
        ("<point> <frame0> <x-1> <y1>", "malformed"),
    ],
)
def test_a_bad_point_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        pointing.parse_points(text)


def test_answers_are_scored_by_distance_and_by_number():
    truth = [[(0, 10.0, 10.0)], [(0, 10.0, 10.0)], [(0, 5.0, 5.0), (0, 50.0, 5.0)], []]
    found = [[(0, 13.0, 14.0)], [], [(0, 5.0, 5.0)], []]
    assert pointing.gaps(found[:3], truth[:3]).tolist() == [5.0, np.inf, 0.0]
    assert pointing.all_right(found, truth).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert pointing.all_right(found, truth, limit=5).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_new_rows_learn_and_the_old_ones_stay_bit_for_bit(model, scenes):
    weight = model.language_model.get_input_embeddings().weight
    before = weight.detach().clone()
    frozen = {k: v.clone() for k, v in model.language_model.named_parameters() if "wpe" in k}
    images = torch.stack([image for _, image in scenes[:4]])
    with torch.no_grad():
        features = model.encode(pointing.pixel_values(images))
    texts = [describe(scene) for scene, _ in scenes[:4]]
    data = SimpleNamespace(images=images, descriptions=texts, features=features)
    pointing.train_pointing(model, data, steps=3, batch_size=4)
    after = model.language_model.get_input_embeddings().weight.detach()
    assert model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before)
    assert len(after) == len(before) + len(pointing.NEW_WORDS)
    for name, value in model.language_model.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name])


def test_places_are_the_rows_of_their_words_and_only_whole_frames_are_read(model):
    first = pointing.add_words(model)
    embedding = model.language_model.get_input_embeddings()
    placed = pointing.Placed(model.connector, embedding, first)
    words = placed.words.view(3, 4, 4, -1)
    assert words.sum(dim=-1).eq(3).all()  # one frame, one x, one y
    name = dict(zip(pointing.NEW_WORDS, words[2, 1, 3], strict=True))
    assert name["<frame2>"] == 1 and name["<x12>"] == name["<y4>"] == name["<y7>"] == 0.25
    features = torch.randn(2, 48, 128)
    with torch.no_grad():
        moved = placed(features) - model.connector(features)
    torch.testing.assert_close(moved[0], moved[1])
    for wrong in (0, 8, 24, 64, 1600):
        with pytest.raises(ValueError, match="whole frames"):
            placed(torch.randn(1, wrong, 128))


def test_clips_without_frames_or_with_too_many_are_refused(model):
    clips = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
    for frames in (0, 4, 100):
        with pytest.raises(ValueError, match=f"a clip of {frames} frames"):
            pointing.follow(model, clips[:, [0] * frames], torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.slow
def test_what_went_left_is_read_from_true_places_and_not_from_one_frame():
    clips, moved = pages.moving_clips("val", 40, np.random.default_rng(0))
    _, _, shapes, kinds = pages.cells("val")
    kind_of = {each.tobytes(): kind for each, kind in zip(shapes, kinds, strict=True)}
    x = torch.full((40, 3, 6), torch.nan)
    for b, clip in enumerate(clips):
        for t, frame in enumerate(clip.permute(0, 2, 3, 1).numpy().astype(shapes.dtype)):
            for k in range(16):
                cell = frame[16 * (k // 4) :, 16 * (k % 4) :][:16, :16]
                if (kind := kind_of.get(cell.tobytes())) is not None:
                    x[b, t, kind] = 16 * (k % 4) + 8
    assert torch.equal(pointing.went_left(x), moved)
    assert pointing.went_left(x[:, [0, 0, 0]]).eq(-1).all()
    assert (pointing.went_left(x.flip(1)) != moved).all()
