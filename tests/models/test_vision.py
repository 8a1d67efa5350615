"""Vision encoders of CLIP and timm stand behind one loader, exactly, each with its own way from image to pixels."""

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from tests import small
from tests.small import refused
from vlm_lite.data.images import fit_square
from vlm_lite.embed import pixel_values
from vlm_lite.encoded import patch_features
from vlm_lite.models.clip import CLIP
from vlm_lite.models.vision import TimmVision, load_vision

NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(the weights of a random model, the file that holds them in order under other names)."""
    torch.manual_seed(0)
    state = timm.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save({f"other.{k}": value for k, value in enumerate(state.values())}, path)
    return state, path


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("side", [1, 2, None])
def test_a_map_is_averaged_over_a_grid_or_left_and_normalised_as_timm_says(weights, side):
    state, path = weights
    encoder, images = load_vision(NAME, path, side), noise(2, 3, 96, 96)
    model = timm.create_model(NAME).eval()
    model.load_state_dict(state)
    expected = model.forward_features((images / 255 - 0.5) / 0.5)  # (2, 1280, 3, 3)
    if side:
        expected = torch.nn.functional.adaptive_avg_pool2d(expected, side)
    found = encoder.patch_features(encoder.pixel_values(images))
    torch.testing.assert_close(found, expected.flatten(2).mT, atol=1e-4, rtol=1e-4)
    assert encoder.feature_width == 1280 and not encoder.training


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"]
)
def test_the_patches_of_a_vit_come_without_its_other_tokens(name):
    """One class token; that and four registers; none."""
    model = timm.create_model(name, img_size=56, depth=1).eval()
    encoder, images = TimmVision(model), noise(1, 3, 56, 56)
    pixels = encoder.pixel_values(images)
    tokens, count = model.forward_features(pixels), (56 // model.patch_embed.patch_size[0]) ** 2
    assert tokens.shape[1] - count == {"t": 1, "s": 5, "b": 0}[name[4]]
    torch.testing.assert_close(encoder.patch_features(pixels), tokens[:, -count:])


def test_a_map_with_its_width_last_is_read_as_the_same_map():
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).eval()
    pixels = torch.randn(1, 3, 224, 224)
    expected = model.forward_features(pixels)  # (1, 7, 7, 768)
    torch.testing.assert_close(TimmVision(model).patch_features(pixels), expected.flatten(1, 2))


def test_features_that_are_no_square_are_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1)
    with refused("vit_tiny_patch16_224: its features are no map and no square"):
        TimmVision(model).patch_features(torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("size", [(300, 200), (90, 411), (224, 224)])
@pytest.mark.parametrize(
    "name", [NAME, "vit_base_patch16_siglip_224", "vit_small_patch14_dinov2", "resnet10t"]
)
def test_an_image_is_cut_and_normalised_by_the_encoder_s_own_transform(name, size):
    """They differ in size, in how much of the image they keep, in interpolation, mean and std."""
    with torch.device("meta"):
        model = timm.create_model(name)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    expected = create_transform(**resolve_model_data_config(model), is_training=False)(image)
    encoder = TimmVision(model)
    images = torch.from_numpy(np.array(encoder.fit(image))).permute(2, 0, 1)[None]
    assert images.shape[2:] == (encoder.image_size,) * 2
    torch.testing.assert_close(encoder.pixel_values(images)[0], expected)


def test_weights_are_read_by_name_from_safetensors(weights, tmp_path):
    state, path = weights
    save_file(state, tmp_path / "model.safetensors")
    named, images = load_vision(f"timm/{NAME}", tmp_path / "model.safetensors"), noise(1, 3, 64, 64)
    pixels = named.pixel_values(images)
    assert torch.equal(named.patch_features(pixels), load_vision(NAME, path).patch_features(pixels))


def test_a_clip_is_loaded_by_its_folder_or_its_name_in_the_zoo(tmp_path):
    clip, images = small.clip(12), noise(1, 3, 32, 32)
    clip.save_pretrained(tmp_path)
    found = load_vision(str(tmp_path))
    assert isinstance(found, CLIP) and found.image_size == 32
    pixels = found.pixel_values(images)
    assert torch.equal(pixels, pixel_values(images))
    assert torch.equal(found.patch_features(pixels), clip.patch_features(pixels))
    image = PIL.Image.new("RGB", (50, 40), "red")
    assert found.fit(image) == fit_square(image, 32)
    assert load_vision("shapes-clip").image_size == 64
    with refused("no name of timm's, and weights and side go with one"):
        load_vision(str(tmp_path), side=2)


def test_the_cache_of_features_knows_one_grid_from_another(weights, tmp_path):
    images = noise(2, 3, 64, 64)
    for side, tokens in ((1, 1), (2, 4), (None, 4)):
        vision = load_vision(NAME, weights[1], side)
        features = patch_features(vision, images, folder=tmp_path, progress=False)
        assert features.shape == (2, tokens, 1280)
    with torch.no_grad():
        expected = vision.patch_features(vision.pixel_values(images)).half()
    assert torch.equal(features, expected)


def test_names_and_files_that_do_not_fit_are_refused(weights, tmp_path):
    state, path = weights
    with refused("zoo has .*timm has no model 'efficientnet_lite99' .near: .*efficientnet_lite"):
        load_vision("efficientnet_lite99")
    bare = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with refused(f"timm has no weights for '{bare}'"):
        load_vision(bare)
    with refused("holds 296 tensors, and timm's resnet10t has"):
        load_vision("resnet10t", path)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:5000])
    with refused("cut.pth cannot be read as weights"):
        load_vision(NAME, cut)
    torch.save(dict(enumerate(reversed(state.values()))), cut)
    with refused("cut.pth does not fit this EfficientNet"):
        load_vision(NAME, cut)


def test_weights_that_the_hub_does_not_give_are_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("the weights of 'resnet10t' cannot be had .*pass a file of weights"):
        load_vision("resnet10t")
