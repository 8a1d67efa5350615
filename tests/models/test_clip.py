"""A trained CLIP gives the hidden states that connectors read, and refuses weights that do not fit."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests import small
from tests.small import refused
from vlm_lite.models.clip import CLIP
from vlm_lite.models.layout import clip_to_timm


@pytest.fixture
def saved(tmp_path):
    small.clip(12).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_patch_features_are_that_hidden_state_without_the_class_token(pixels, layer):
    clip = small.clip(12, act="quick_gelu")
    with torch.no_grad():
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(clip.patch_features(pixels, layer), states[layer][:, 1:])
    with pytest.raises(IndexError):
        clip.patch_features(pixels, layer=3)


def test_it_loads_in_fp32_what_was_saved_in_fp16(saved, pixels):
    small.clip(12).half().save_pretrained(saved)
    ours, theirs = CLIP.from_pretrained(saved), CLIPModel.from_pretrained(saved).float().eval()
    assert {p.dtype for p in ours.parameters()} == {torch.float32} and not ours.training
    ids = torch.tensor([[3, 4, 11, 0], [5, 11, 0, 0]])
    with torch.no_grad():
        expected = theirs(ids, pixels)
        for mine, other in (
            (ours.encode_image(pixels), expected.image_embeds),
            (ours.encode_text(ids), expected.text_embeds),
        ):
            torch.testing.assert_close(torch.nn.functional.normalize(mine, dim=-1), other)


def damaged(state, how):
    if how == "missing":
        del state["logit_scale"]
    elif how == "unknown":
        state["text_model.encoder.layers.9.mlp.fc1.bias"] = torch.zeros(3)
    elif how == "of another shape":
        state["visual_projection.weight"] = torch.zeros(3, 3)
    elif how == "not finite":
        state["visual_projection.weight"][3, 2] = float("nan")
    elif how == "renamed":
        state = {f"module.{name}": value for name, value in state.items()}
    return state


@pytest.mark.parametrize(
    "how, named",
    [
        ("missing", "logit_scale"),
        ("unknown", "layers.9"),
        ("of another shape", "visual_projection"),
        ("not finite", "visual_projection.weight"),
        ("renamed", "logit_scale.* the file has module\\.logit_scale"),
    ],
)
def test_weights_that_do_not_fit_exactly_are_refused_by_name(saved, how, named):
    path = saved / "model.safetensors"
    save_file(damaged(load_file(path), how), path, metadata={"format": "pt"})
    with refused(named):
        CLIP.from_pretrained(saved)


def test_files_missing_cut_short_or_of_another_kind_are_named(saved):
    weights, config = saved / "model.safetensors", saved / "config.json"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with refused("model.safetensors"):
        CLIP.from_pretrained(saved)
    weights.rename(saved / "pytorch_model.bin")  # pickles can run code
    with refused("model.safetensors .* pytorch_model.bin"):
        CLIP.from_pretrained(saved)
    config.write_text(json.dumps({"model_type": "siglip"}))
    with refused("config.json.*'siglip'"):
        CLIP.from_pretrained(saved)
    with refused("no/such-model"):
        CLIP.from_pretrained("no/such-model")
    config.rename(saved / "adapter_config.json")  # as LoRA's folders have it
    with refused("no config.json; it holds adapter_config.json"):
        CLIP.from_pretrained(saved)


@pytest.mark.parametrize(
    "field, value",
    [("hidden_size", "x"), ("num_attention_heads", 0), ("hidden_act", "nope"), ("", [])],
)
def test_a_config_that_no_model_can_have_is_named(saved, field, value):
    """transformers raises a KeyError, ZeroDivisionError or TypeError."""
    config = json.loads((saved / "config.json").read_text())
    config["vision_config"][field] = value
    (saved / "config.json").write_text(json.dumps(config if field else value))
    with refused("no model could be loaded|model_type is"):
        CLIP.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with refused("no model could be loaded|model_type is"):
        CLIP.from_pretrained(saved)


def test_a_sharded_checkpoint_is_read_by_its_index(saved):
    whole = CLIP.from_pretrained(saved)
    whole.save_pretrained(saved / "parts", max_shard_size="20KB")
    shards = sorted((saved / "parts").glob("model-*.safetensors"))
    ours = CLIP.from_pretrained(saved / "parts").state_dict()
    assert len(shards) > 1 and all(torch.equal(ours[k], v) for k, v in whole.state_dict().items())
    shards[1].unlink()
    with refused(shards[1].name):
        CLIP.from_pretrained(saved / "parts")


def test_its_vision_encoder_under_timms_names_is_timms_model(pixels):
    theirs = small.clip(12).vision_model
    ours = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        pre_norm=True,
        norm_layer=torch.nn.LayerNorm,
    ).eval()
    missing, unexpected = ours.load_state_dict(clip_to_timm(theirs.state_dict()), strict=False)
    assert not missing and unexpected == ["patch_embed.proj.bias"]  # timm's has none there
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels).pooler_output, atol=1e-5, rtol=0)
