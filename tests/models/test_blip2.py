"""Stage 1 of BLIP-2: the joint pass equals transformers', the masks hide what they should, the losses teach."""

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from tests.models.test_qformer import OUR_NAMES
from vlm_lite.models.blip2 import MASKS, QFormerStage1, hard_negatives, stage1_mask
from vlm_lite.models.qformer import QFormerConnector

VOCABULARY = 30


def make_stage1(num_query_tokens=5):
    torch.manual_seed(0)
    connector = QFormerConnector(
        vision_width=24,
        language_width=16,
        width=32,
        num_heads=4,
        num_layers=3,
        mlp_width=48,
        num_query_tokens=num_query_tokens,
    )
    return QFormerStage1(connector, vocab_size=VOCABULARY, max_text_length=12)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (4, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0], [1] * 2 + [0] * 5])
    return torch.randn(4, 10, 24, generator=generator), ids * mask, mask


@pytest.mark.parametrize("task", MASKS)
def test_the_joint_pass_equals_transformers_with_copied_weights(batch, task):
    features, ids, mask = batch
    ours = make_stage1().eval()
    config = Blip2QFormerConfig(
        vocab_size=VOCABULARY + 2,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        encoder_hidden_size=24,
        cross_attention_frequency=2,
        max_position_embeddings=12,
        use_qformer_text_input=True,
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs, embeddings = Blip2QFormerModel(config).eval(), Blip2TextEmbeddings(config)
    with torch.no_grad():
        for parameter in [*theirs.parameters(), *embeddings.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {}
    for name, value in theirs.state_dict().items():
        for part, own in (
            *OUR_NAMES,
            (".intermediate.dense", ".text.mlp_in"),
            (".output.dense", ".text.mlp_out"),
            (".output.LayerNorm", ".text.mlp_norm"),
        ):
            name = name.replace(part, own)
        layer, _, rest = name.partition(".text.")
        state[
            f"text_mlps.{layer.removeprefix('layers.')}.{rest}"
            if rest
            else f"connector.qformer.{name}"
        ] = value
    state["word_embedding.weight"] = embeddings.word_embeddings.weight
    state["position_embedding.weight"] = embeddings.position_embeddings.weight
    report = ours.load_state_dict(state, strict=False)
    assert not report.unexpected_keys and len(state) == len(theirs.state_dict()) + 2
    see = stage1_mask(task, 5, mask)
    with torch.no_grad():
        queries, text = ours.joint(features, ids, see)
        query_embeds = ours.connector.qformer.query_tokens.expand(4, -1, -1)
        hidden = torch.zeros(see.shape).masked_fill(~see, torch.finfo(torch.float32).min)[
            :, None
        ]  # its form of a mask
        embeds = theirs.layernorm(embeddings(input_ids=ids, query_embeds=query_embeds))
        expected = theirs.encoder(
            embeds, attention_mask=hidden, encoder_hidden_states=features, query_length=5
        ).last_hidden_state
    torch.testing.assert_close(queries, expected[:, :5], atol=1e-5, rtol=0)
    real = mask.bool()
    torch.testing.assert_close(text[real], expected[:, 5:][real], atol=1e-5, rtol=0)


def test_without_text_the_queries_are_those_of_the_connector(batch):
    features, ids, mask = batch
    stage1 = make_stage1().eval()
    with torch.no_grad():
        image_embeds = stage1.connector.vision_norm(features)
        alone = stage1.connector.qformer(image_embeds)
        for task in ("itc", "itg"):
            queries, _ = stage1.joint(image_embeds, ids, stage1_mask(task, 5, mask))
            torch.testing.assert_close(queries, alone, atol=1e-5, rtol=0)
        queries, _ = stage1.joint(image_embeds, ids, stage1_mask("itm", 5, mask))
    assert (queries - alone).abs().max() > 1e-4


def test_what_each_mask_hides():
    see = {task: stage1_mask(task, 2, torch.tensor([[1, 1, 1, 0]]))[0] for task in MASKS}
    queries, text = slice(0, 2), slice(2, 5)
    for task in MASKS:
        assert (
            see[task].shape == (6, 6)
            and not see[task][:, 5].any()
            and see[task][queries, queries].all()
        )
    assert (
        not see["itc"][queries, text].any()
        and not see["itc"][text, queries].any()
        and see["itc"][text, text].all()
    )
    assert see["itm"][:, :5].all()
    assert not see["itg"][queries, text].any() and see["itg"][text, queries].all()
    assert torch.equal(see["itg"][text, text], torch.ones(3, 3, dtype=torch.bool).tril())
    with pytest.raises(ValueError, match="itc, itm, itg"):
        stage1_mask("mlm", 2, torch.ones(1, 3))


def test_hard_negatives_are_wrong_and_alike():
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 8, 0, 0], [8, 9, 0, 0], [0, 0, 9, 8], [0, 0, 8, 9]])
    same = torch.eye(4, dtype=torch.bool)
    drawn = torch.stack(
        [torch.stack(hard_negatives(similarity, same)) for _ in range(200)]
    )  # (200, 2, 4)
    assert not (drawn == torch.arange(4)).any()
    assert (drawn == torch.tensor([1, 0, 3, 2])).float().mean() > 0.9
    same[0, 1] = same[1, 0] = True  # equal captions are no wrong ones, however alike
    drawn = torch.stack([torch.stack(hard_negatives(similarity, same)) for _ in range(50)])
    assert (drawn[:, :, :2] >= 2).all()


@pytest.mark.slow
def test_the_losses_fall_and_reach_the_queries(batch):
    features, ids, mask = batch
    stage1 = make_stage1()
    optimizer = torch.optim.AdamW(stage1.parameters(), lr=3e-3)
    first = None
    for _ in range(150):
        losses = stage1(features, ids, mask)
        first = first or {name: loss.item() for name, loss in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert set(losses) == set(MASKS)
    assert all(losses[name] < 0.6 * first[name] for name in MASKS), (first, losses)
    assert stage1.connector.qformer.query_tokens.grad.abs().sum() > 0


def test_bad_input_is_named(batch):
    features, ids, mask = batch
    stage1 = make_stage1()
    with pytest.raises(ValueError, match="no other to tell it from"):
        stage1(features[:1], ids[:1], mask[:1])
    with pytest.raises(ValueError, match="max_text_length 12"):
        stage1(features, ids.repeat(1, 2), mask.repeat(1, 2))
    with pytest.raises(ValueError, match=r"\(B, N, 24\)"):
        stage1(features[..., :20], ids, mask)
