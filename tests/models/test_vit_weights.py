"""Our ViT equals timm's and transformers' with their weights, and refuses by name what it has no place for."""

import re

import pytest
import timm
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from vlm_lite.files import UserError
from vlm_lite.models.vit_weights import CLIP_MODELS, TIMM_MODELS, clip_to_timm, load_vit


def scattered(model):
    """Every parameter away from a value that would hide it: biases and tokens 0, norms 1, a head of zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter.shape[0] == 1 or not parameter.any():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def timm_model(name, **options):
    torch.manual_seed(0)
    patch = 32 if "patch32" in name else 16
    return scattered(
        timm.create_model(name, pretrained=False, **{"depth": 2, "img_size": 3 * patch, **options})
    )


def pixels(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_equal_to_timm(ours, theirs):
    x = pixels(ours.image_size)
    with torch.no_grad():
        mine, tokens = ours(x), theirs.forward_features(x)
        torch.testing.assert_close(
            mine.pooled, theirs.forward_head(tokens, pre_logits=True), atol=1e-5, rtol=0
        )
        logits = theirs(x)
    torch.testing.assert_close(
        mine.pooled if mine.logits is None else mine.logits, logits, atol=1e-5, rtol=0
    )


def test_the_list_names_six_timm_models_or_more():
    assert len(TIMM_MODELS) >= 6


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_equals_timm(name):
    theirs = timm_model(name)
    assert_equal_to_timm(load_vit(name, theirs.state_dict()), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch32_224"]
)
def test_equals_timm_at_its_own_size(name):
    theirs = timm_model(name, depth=12, img_size=224)
    ours = load_vit(name, theirs.state_dict())
    assert (ours.image_size, ours.num_layers) == (224, 12)
    assert_equal_to_timm(ours, theirs)


@pytest.mark.parametrize(
    "options, pool",
    [
        (dict(global_pool="avg"), "mean"),
        (dict(num_classes=0), "cls"),
        (dict(num_classes=7), "cls"),
        (dict(mlp_ratio=2.5), "cls"),
    ],
)
def test_equals_timm_with_another_pool_head_or_mlp(options, pool):
    theirs = timm_model("vit_tiny_patch16_224", **options)
    ours = load_vit("vit_tiny_patch16_224", theirs.state_dict())
    assert ours.pool == pool
    assert_equal_to_timm(ours, theirs)


@pytest.mark.parametrize("name", CLIP_MODELS)
@pytest.mark.parametrize("whole", [False, True])
def test_equals_clip_vision_model(name, whole):
    torch.manual_seed(0)
    vision = dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    if whole:
        text = dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            vocab_size=9,
        )
        theirs = scattered(CLIPModel(CLIPConfig(vision_config=vision, text_config=text)))
        tower = theirs.vision_model
    else:
        theirs = tower = scattered(CLIPVisionModel(CLIPVisionConfig(**vision)))
    ours = load_vit(name, theirs.state_dict())
    with torch.no_grad():
        mine, other = ours(pixels(28)), tower(pixels(28))
    torch.testing.assert_close(mine.last_hidden_state, other.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.pooled, other.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options, key",
    [
        (dict(init_values=0.1), r"blocks\.0\.ls1\.gamma"),
        (dict(qk_norm=True), r"blocks\.0\.attn\.q_norm\.weight"),
        (dict(reg_tokens=2), "reg_token"),
        (dict(class_token=False, global_pool="avg"), "class_embedding"),
        (dict(qkv_bias=False), r"q_proj\.bias"),
        (dict(pre_norm=True), r"pre_layrnorm"),
        (dict(no_embed_class=True), "position_embedding"),
    ],
)
def test_another_form_of_vit_is_refused_by_the_key_that_does_not_fit(options, key):
    with pytest.raises(UserError, match=key):
        load_vit("vit_tiny_patch16_224", timm_model("vit_tiny_patch16_224", **options).state_dict())


def test_a_distilled_model_is_refused_by_its_second_token():
    state = timm_model("vit_tiny_patch16_224").state_dict()
    with pytest.raises(UserError, match="no place for: dist_token"):
        load_vit("deit_tiny_patch16_224", {"dist_token": torch.zeros(1, 1, 192), **state})


def test_missing_keys_and_other_shapes_are_named():
    state = timm_model("vit_tiny_patch16_224").state_dict()
    without = {key: value for key, value in state.items() if key != "blocks.1.mlp.fc2.bias"}
    with pytest.raises(
        UserError, match=r"1 missing \(encoder\.layers\.1\.mlp\.fc2\.bias\).*are ours.*state dict"
    ):
        load_vit("vit_tiny_patch16_224", without)
    with pytest.raises(
        UserError, match=r"1 of another shape \(encoder\.layers\.1\.mlp\.fc2\.bias\)"
    ):
        load_vit("vit_tiny_patch16_224", {**state, "blocks.1.mlp.fc2.bias": torch.zeros(3)})
    for name, lacking, theirs, ours in (
        (
            "vit_tiny_patch16_224",
            state,
            "patch_embed.proj.weight",
            "embeddings.patch_embedding.weight",
        ),
        (
            "vit_tiny_patch16_224",
            ["blocks.0.mlp.fc1.weight"],
            "blocks.0.mlp.fc1.weight",
            "encoder.layers.0.mlp.fc1.weight",
        ),
        (
            "openai/clip-vit-base-patch16",
            state,
            "vision_model.embeddings.patch_embedding.weight",
            "embeddings.patch_embedding.weight",
        ),
    ):
        with pytest.raises(
            UserError, match=re.escape(f"lacks {theirs} (here {ours})") + ".*Give the state dict"
        ):
            load_vit(name, {key: value for key, value in state.items() if key not in lacking})
    with pytest.raises(UserError, match=r"1 unexpected \(extra\)"):
        load_vit(
            "openai/clip-vit-base-patch16",
            {
                **load_vit(
                    "vit_base_patch16_clip_quickgelu_224",
                    timm_model("vit_base_patch16_clip_quickgelu_224", num_classes=0).state_dict(),
                ).state_dict(),
                "extra": torch.zeros(1),
            },
        )


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="'resnet50'.*vit_tiny_patch16_224.*openai/clip-vit-base-patch16"
    ):
        load_vit("resnet50", {})


def test_clips_vision_weights_under_timms_names_give_timms_model_the_same_output():
    sizes = dict(hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3)
    theirs = scattered(
        CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=16, hidden_act="gelu", **sizes))
    )
    state = {key.removeprefix("vision_model."): v for key, v in theirs.state_dict().items()}
    timms = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        pre_norm=True,
        norm_layer=torch.nn.LayerNorm,
    ).eval()
    missing, unexpected = timms.load_state_dict(clip_to_timm(state), strict=False)
    assert not missing and unexpected == ["patch_embed.proj.bias"]  # timm's has none there
    with torch.no_grad():
        torch.testing.assert_close(
            timms(pixels(32)), theirs(pixels(32)).pooler_output, atol=1e-5, rtol=0
        )
    del state["encoder.layers.1.self_attn.v_proj.bias"]
    with pytest.raises(UserError, match="layers.1.self_attn.v_proj.bias"):
        clip_to_timm(state)
