"""Notebook 03's Q-Former: transformers' own with its weights, queries that see each other both ways, and its connector."""

import pytest
import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from vlm_lite.lessons import qformer
from vlm_lite.models.layout import from_blip2

SIZES = dict(num_query_tokens=8, width=32, num_layers=3, num_heads=4, mlp_width=64)


@pytest.mark.parametrize("frequency", [1, 2])
def test_it_is_transformers_own_with_its_weights(frequency):
    config = Blip2QFormerConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        encoder_hidden_size=24,
        cross_attention_frequency=frequency,
        attn_implementation="eager",
    )
    theirs = Blip2QFormerModel(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    mine = qformer.QFormer(24, **SIZES, cross_attention_frequency=frequency)
    queries, patches = torch.randn(8, 32), torch.randn(2, 16, 24)
    mine.load_state_dict({"query_tokens": queries, **from_blip2(theirs.state_dict())})
    with torch.no_grad():
        expected = theirs(
            query_embeds=queries.expand(2, -1, -1),
            encoder_hidden_states=patches,
            output_attentions=True,
        )
        found = mine(patches)
    torch.testing.assert_close(found, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    weights = mine.layers[0].cross_attention.weights
    torch.testing.assert_close(weights, expected.cross_attentions[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 8))


def test_queries_attend_to_each_other_both_ways_and_start_different():
    torch.manual_seed(0)
    model, patches = qformer.QFormer(24, **SIZES), torch.randn(1, 16, 24)
    assert model.query_tokens.std().item() == pytest.approx(0.02, rel=0.2)
    with torch.no_grad():
        before = model(patches)
        assert (before - before[:, :1])[:, 1:].abs().amax(dim=(0, 2)).min() > 1e-3
        for j in range(8):
            start = model.query_tokens.clone()
            model.query_tokens[j] += torch.randn(32)  # noise: LayerNorm removes a constant
            assert (model(patches) - before).abs().amax(dim=(0, 2)).min() > 1e-6, j
            model.query_tokens.copy_(start)


def test_a_connector_of_one_query_gives_one_vector_and_keeps_its_settings():
    connector = qformer.QFormerConnector(24, 48, width=32, num_heads=4, num_query_tokens=1)
    assert connector(torch.randn(3, 5, 24)).shape == (3, 1, 48)
    again = qformer.QFormerConnector(**connector.settings)
    again.load_state_dict(connector.state_dict())


def test_a_width_that_does_not_divide_into_heads_is_refused_with_a_sentence():
    with pytest.raises(AssertionError, match="32 does not divide into 5"):
        qformer.QFormer(24, **{**SIZES, "num_heads": 5})
