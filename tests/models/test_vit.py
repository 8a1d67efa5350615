"""The ViT equals transformers', says what is wrong with a picture, and gives the features a connector needs."""

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlm_lite.models.vit import (
    ACTIVATIONS,
    Attention,
    VisionTransformer,
    attention_rollout,
    attention_weights,
)


def make_vit(**settings):
    torch.manual_seed(0)
    return VisionTransformer(
        **{**dict(image_size=32, patch_size=8, width=24, num_layers=3, num_heads=4), **settings}
    )


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_equals_transformers_with_the_same_weights_and_no_renaming(pixels, hidden_act):
    ours = make_vit(hidden_act=hidden_act)
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            hidden_act=hidden_act,
            attn_implementation="eager",
        )
    ).eval()
    names = theirs.state_dict().keys()
    prefix = "vision_model." if all(name.startswith("vision_model.") for name in names) else ""
    theirs.load_state_dict(
        {prefix + name: value for name, value in ours.state_dict().items()}
    )  # strict
    with torch.no_grad():
        a = ours(pixels, output_hidden_states=True, output_attentions=True)
        b = theirs(pixels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.pooled, b.pooler_output, atol=1e-5, rtol=0)
    assert len(a.hidden_states) == len(b.hidden_states) == 4
    for mine, other in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    for mine, other in zip(a.attentions, b.attentions, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2, -4])
def test_patch_features_are_that_hidden_state_without_the_class_token(pixels, layer):
    vit = make_vit()
    hidden_states = vit(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(vit.patch_features(pixels, layer=layer), hidden_states[layer][:, 1:])


def test_patches_are_numbered_row_by_row(pixels):
    embeddings = make_vit().embeddings
    changed = pixels.clone()
    changed[:, :, 8:16, 24:32] += torch.randn(8, 8)  # row 1, column 3 of 4
    differs = (embeddings(changed) - embeddings(pixels)).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.nonzero().flatten().tolist() == [1 + 1 * 4 + 3]


def test_causal_attention_hides_the_future_and_its_weights_sum_to_one():
    attention, x = Attention(width=16, num_heads=2), torch.randn(1, 5, 16)
    changed = x.clone()
    changed[:, 3] += torch.randn(16)
    (out, weights), other = (
        attention(x, is_causal=True, return_attention=True),
        attention(changed, is_causal=True),
    )
    torch.testing.assert_close(out[:, :3], other[:, :3])
    assert not torch.allclose(out[:, 3:], other[:, 3:])
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 2, 5))


def test_attention_weights_are_those_the_output_was_mixed_with():
    q, k, v = torch.randn(3, 2, 2, 5, 8).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention_weights(q, k) @ v, expected, atol=1e-5, rtol=1e-5)


def test_bf16_autocast_stays_close_to_fp32_and_trains(pixels):
    vit = make_vit()
    exact = vit(pixels).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = vit(pixels).pooled
        half = vit(
            pixels.half()
        ).pooled  # autocast brings another dtype and the weights together, but not float64
        with pytest.raises(ValueError, match="float64"):
            vit(pixels.double())
    rough.float().square().sum().backward()
    assert (exact - rough.float()).abs().max() < 0.1 and (exact - half.float()).abs().max() < 0.1
    assert all(torch.isfinite(p.grad).all() for name, p in vit.named_parameters())


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.zeros(3, 32, 32), r"pixel_values\[None\]"),
        (torch.zeros(1, 1, 32, 32), "RGB"),
        (
            np.zeros((1, 3, 32, 32), np.float32),
            r"expected a torch\.Tensor, got numpy\.ndarray: torch\.from_numpy",
        ),
        ([torch.zeros(3, 32, 32)], r"expected a torch\.Tensor, got list: .*torch\.stack"),
        (torch.zeros(1, 32, 32, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 3, 16, 32), r"\(1, 3, 16, 32\).*expected.*32, 32.*Resize"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8.*255"),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.float64),
            r"float64.*weights are torch.float32.*\.to\(torch.float32\)",
        ),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float16), "float16.*weights are torch.float32"),
        (torch.zeros(1, 1, 3, 32, 32), r"expected floating point \(B, 3, 32, 32\)"),
        (
            torch.zeros(3, 3, 32, 32).index_fill_(0, torch.tensor([1]), float("nan")),
            "NaN or infinity, first in picture 1",
        ),
        (
            torch.zeros(2, 3, 32, 32).index_fill_(0, torch.tensor([0]), float("inf")),
            "NaN or infinity, first in picture 0",
        ),
        (torch.full((1, 3, 32, 32), 255.0), r"lies in 255..255; normalised.*x / 255 - mean"),
    ],
)
def test_a_wrong_picture_is_refused_with_advice(bad, message):
    with pytest.raises(ValueError, match=message):
        make_vit()(bad)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(image_size=30), "Use image_size 24"),
        (dict(patch_size=0), "patches of 0 pixels"),
        (dict(image_size=5), "Use image_size 8"),
        (dict(pool="max"), "'max'; expected 'cls'.*'mean'"),
        (dict(num_heads=5), "heads"),
        (dict(hidden_act="relu6"), "quick_gelu, gelu"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_advice(settings, message):
    with pytest.raises(ValueError, match=message):
        make_vit(**settings)


def test_a_layer_that_is_not_there_is_refused(pixels):
    with pytest.raises(ValueError, match=r"-4\.\.3"):
        make_vit().patch_features(pixels, layer=-5)


def test_the_mean_of_the_patches_leaves_the_class_token_out_and_the_head_reads_what_is_pooled(
    pixels,
):
    vit = make_vit(pool="mean", num_classes=5)
    out = vit(pixels)
    torch.testing.assert_close(
        out.pooled, vit.post_layernorm(out.last_hidden_state[:, 1:].mean(dim=1))
    )
    torch.testing.assert_close(out.logits, vit.head(out.pooled))
    assert make_vit()(pixels).logits is None


def test_without_the_extra_norm_its_parameters_are_not_there():
    with_norm = make_vit().state_dict().keys()
    without = make_vit(embedding_norm=False, patch_bias=True).state_dict().keys()
    assert with_norm - without == {"pre_layrnorm.weight", "pre_layrnorm.bias"}
    assert without - with_norm == {"embeddings.patch_embedding.bias"}


def test_rollout_is_a_share_and_follows_news_through_the_blocks():
    chain = torch.zeros(
        3, 1, 1, 4, 4
    )  # in block l, token l + 1 looks at token l alone, the others at themselves
    for number in range(3):
        chain[number, 0, 0] = torch.eye(4)
        chain[number, 0, 0, number + 1] = torch.eye(4)[number]
    rollout = attention_rollout(list(chain))
    torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(1, 4))
    torch.testing.assert_close(
        rollout[0, 3], torch.tensor([0.125, 0.125, 0.25, 0.5])
    )  # half of the rest, each time
    heads = torch.rand(2, 3, 5, 4, 4).softmax(dim=-1)
    one = (heads[0].mean(dim=1) + torch.eye(4)) / 2
    torch.testing.assert_close(attention_rollout([heads[0]]), one)
