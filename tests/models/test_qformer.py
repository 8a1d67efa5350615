"""The Q-Former equals transformers', its queries see each other both ways and differ, and connectors are checked."""

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from vlm_lite.models.projectors import CONNECTORS, make_connector
from vlm_lite.models.qformer import QFormer

OUR_NAMES = [  # (a part of transformers' name, ours); applied in this order
    ("encoder.layer.", "layers."),
    ("crossattention.attention", "cross_attention"),
    ("attention.attention", "self_attention"),
    ("crossattention.output.dense", "cross_attention.output"),
    ("crossattention.output.LayerNorm", "cross_norm"),
    (".attention.output.dense", ".self_attention.output"),
    (".attention.output.LayerNorm", ".self_norm"),
    ("intermediate_query.dense", "mlp_in"),
    ("output_query.dense", "mlp_out"),
    ("output_query.LayerNorm", "mlp_norm"),
    ("layernorm.", "input_norm."),
]


def make_qformer(**settings):
    torch.manual_seed(0)
    return QFormer(
        **{
            **dict(num_query_tokens=8, width=32, num_layers=4, num_heads=4, vision_width=24),
            **settings,
        }
    )


def our_name(name):
    for theirs, ours in OUR_NAMES:
        name = name.replace(theirs, ours)
    return name


@pytest.fixture
def image_embeds():
    return torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_equals_transformers_with_copied_weights(image_embeds, frequency):
    ours = make_qformer(cross_attention_frequency=frequency, mlp_width=48).eval()
    theirs = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            encoder_hidden_size=24,
            cross_attention_frequency=frequency,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {our_name(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(
        {"query_tokens": ours.query_tokens.detach(), **state}
    )  # strict: every name on both sides
    with torch.no_grad():
        out, attention = ours(image_embeds, return_attention=True)
        expected = theirs(
            query_embeds=ours.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=image_embeds,
            output_attentions=True,
        )
    torch.testing.assert_close(out, expected.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, expected.cross_attentions[-1], atol=1e-5, rtol=0)


def test_queries_attend_to_each_other_both_ways(image_embeds):
    qformer = make_qformer().eval()
    with torch.no_grad():
        for (
            parameter
        ) in qformer.layers.parameters():  # fresh weights are so small that the effect would be too
            parameter.add_(0.2 * torch.randn_like(parameter))
        before = qformer(image_embeds)
        qformer.query_tokens[5] += torch.randn(
            32
        )  # noise: a constant shift would vanish in LayerNorm
        change = (qformer(image_embeds) - before).abs().amax(dim=(0, 2))
    assert (change > 1e-3).all(), f"perturbing query 5 changed each query by {change.tolist()}"


def test_queries_start_different_and_get_different_gradients(image_embeds):
    qformer = make_qformer()
    assert qformer.query_tokens.std().item() == pytest.approx(0.02, rel=0.2)
    out = qformer(image_embeds)
    spread = (out - out.mean(dim=1, keepdim=True)).abs().amax(dim=(0, 2))
    assert (spread > 1e-2).all()
    (out * torch.randn_like(out)).sum().backward()
    gradient = qformer.query_tokens.grad
    assert torch.isfinite(gradient).all() and gradient.abs().max() < 1e4
    assert torch.linalg.matrix_rank(gradient) == len(gradient)


def test_the_queries_read_the_picture(image_embeds):
    qformer = make_qformer().eval()
    assert not torch.allclose(qformer(image_embeds)[0], qformer(image_embeds)[1], atol=1e-4)


def test_any_number_of_patches_gives_the_same_number_of_vectors(image_embeds):
    qformer = make_qformer()
    assert qformer(image_embeds).shape == qformer(image_embeds[:, :3]).shape == (2, 8, 32)


def test_attention_maps_sum_to_one_over_the_patches(image_embeds):
    out, attention = make_qformer().eval()(image_embeds, return_attention=True)
    assert attention.shape == (2, 4, 8, 10)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4, 8))
    torch.testing.assert_close(out, make_qformer().eval()(image_embeds))


def test_dropout_is_on_in_training_only(image_embeds):
    qformer = make_qformer(dropout=0.5)
    assert not torch.equal(qformer(image_embeds), qformer(image_embeds))
    qformer.eval()
    assert torch.equal(qformer(image_embeds), qformer(image_embeds))


@pytest.mark.parametrize("name, num_prefix", [("linear", 10), ("mlp", 10), ("qformer", 8)])
def test_every_connector_maps_to_the_language_width_and_can_be_built_again(
    image_embeds, name, num_prefix
):
    connector = make_connector(name, 24, 48).eval()
    prefix = connector(image_embeds)
    assert prefix.shape == (2, num_prefix, 48)
    again = make_connector(name, **connector.settings).eval()
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(image_embeds), prefix)


def test_mlp_is_linear_gelu_linear(image_embeds):
    mlp = make_connector("mlp", 24, 48)
    first, second = mlp.projection[0], mlp.projection[2]
    torch.testing.assert_close(
        mlp(image_embeds), second(torch.nn.functional.gelu(first(image_embeds)))
    )


@pytest.mark.parametrize("name", CONNECTORS)
@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.zeros(2, 10, 32), "expected.*24.*vision_width=32"),
        (torch.zeros(2, 3, 16, 16), "pixels.*encode"),
        (torch.zeros(10, 24), "expected"),
        (torch.zeros(2, 10, 24, dtype=torch.long), "floating point"),
    ],
)
def test_wrong_features_are_refused_with_advice(name, bad, message):
    with pytest.raises(ValueError, match=message):
        make_connector(name, 24, 48)(bad)


def test_unknown_connectors_and_settings_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'resampler'.*linear, mlp, qformer"):
        make_connector("resampler", 24, 48)
    with pytest.raises(ValueError, match="no setting queries.*num_query_tokens"):
        make_connector("qformer", 24, 48, queries=4)
    with pytest.raises(ValueError, match="num_query_tokens is 0"):
        make_qformer(num_query_tokens=0)
    with pytest.raises(ValueError, match="heads"):
        make_qformer(num_heads=5)
