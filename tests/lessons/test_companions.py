"""The saved cells of the companions 02b and 03b: what is hidden stays hidden, and each mask lets through what it should."""

import pytest
import torch

from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.lessons import first_stage, vit, vit_variants
from vlm_lite.lessons.clip import make_clip
from vlm_lite.lessons.clip_variants import SMALL
from vlm_lite.lessons.qformer import QFormerConnector


def images(count):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def test_hidden_pixels_reach_no_prediction_and_seen_ones_do():
    torch.manual_seed(0)
    encoder = make_clip(make_tokenizer(), **SMALL).image_encoder
    model, pixels = vit_variants.MaskedModel(encoder, 8).eval(), torch.randn(1, 3, 64, 64)
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True  # second row, second column
    changed = pixels.clone()
    changed[:, :, 16:32, 16:32] += 1
    assert torch.equal(model(pixels, hidden), model(changed, hidden))
    assert not torch.allclose(model(pixels, ~hidden), model(changed, ~hidden))


@pytest.mark.parametrize("trained", [True, False])
def test_targets_are_one_a_patch_and_standardised_where_they_are_features(trained):
    features = vit_variants.feature_targets(images(32), trained)
    assert features.shape == (32, 16, 128)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(16, 128), atol=1e-4, rtol=0)
    pixels = vit_variants.pixel_targets(images(4))
    assert pixels.shape == (4, 16, 768) and pixels.mean(dim=-1).abs().max() < 1e-5


def test_masked_modelling_learns_and_moves_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    encoder = make_clip(make_tokenizer(), **SMALL).image_encoder
    before, drawn = encoder.blocks[0].norm1.weight.clone(), images(8)
    targets = vit_variants.pixel_targets(drawn)
    history = vit_variants.pretrain(encoder, drawn, targets, steps=30, batch_size=8, lr=3e-3)
    assert history.losses[-1] < history.losses[0]
    assert not torch.equal(before, encoder.blocks[0].norm1.weight)


def test_post_norm_normalises_the_residual_itself_and_mean_pooling_ignores_the_class_token():
    x = 50 + 9 * torch.randn(2, 17, 64)
    post = vit_variants.post_norm_vit().blocks[0](x)
    torch.testing.assert_close(post.mean(dim=-1), torch.zeros(2, 17), atol=1e-4, rtol=0)
    assert vit.ViT().blocks[0](x).mean() > 40
    model = vit_variants.MeanPoolViT()
    tokens = model.forward_features(pixels := torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(model(pixels), model.head(tokens[:, 1:].mean(dim=1)))


def outputs(kind, features, ids):
    torch.manual_seed(0)
    sizes = {"num_query_tokens": 4, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_width": 64}
    model = first_stage.FirstStage(QFormerConnector(24, 20, **sizes), vocab_size=50).eval()
    for weights in model.parameters():  # its start is small: nothing would be seen to move
        torch.nn.init.normal_(weights, std=0.3)
    text_mask = torch.ones_like(ids, dtype=torch.bool)
    return model(features, ids, first_stage.stage_mask(kind, 4, text_mask))


@pytest.mark.parametrize(
    "kind, queries_read_text, text_reads_image, text_reads_what_follows",
    [("ITC", False, False, True), ("ITM", True, True, True), ("ITG", False, True, False)],
)
def test_a_mask_lets_through_what_its_loss_needs_and_nothing_else(
    kind, queries_read_text, text_reads_image, text_reads_what_follows
):
    features, ids = torch.randn(1, 9, 24), torch.tensor([[1, 2, 3, 4]])
    other = torch.tensor([[1, 2, 3, 7]])  # the last word changed
    queries, text = outputs(kind, features, ids)
    moved, moved_text = outputs(kind, features, other)
    assert torch.allclose(queries, moved) != queries_read_text
    assert torch.allclose(text[:, :3], moved_text[:, :3]) != text_reads_what_follows
    blind = outputs(kind, -features, ids)[1]
    assert torch.allclose(text, blind) != text_reads_image


@pytest.mark.slow
def test_a_wrong_caption_is_never_the_same_words_and_padding_is_not_learnt(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    tokenizer = make_tokenizer()
    ids, mask = first_stage.caption_ids(tokenizer, ["a red star.", "a small blue circle."])
    eos = tokenizer.eos_token_id
    assert (ids[:, 0] == eos).all() and (ids[~mask] == eos).all() and not mask.all()
    assert [ids[k][mask[k]][-1].item() for k in (0, 1)] == [eos, eos]
    captions, features = [["a red star."], ["a small blue circle."]], torch.randn(2, 9, 24)
    sizes = {"num_query_tokens": 4, "width": 64, "num_layers": 1, "num_heads": 4, "mlp_width": 64}
    torch.manual_seed(0)
    connector, recipe = (
        QFormerConnector(24, 20, **sizes),
        {"steps": 60, "batch_size": 2, "lr": 0.02},
    )
    model, history = first_stage.train_first_stage(
        connector, features, captions, tokenizer, **recipe
    )
    assert history.losses[-1] < 0.5 * history.losses[0]
    first = [each[0] for each in captions]
    assert first_stage.caption_recall(model, features, first, tokenizer, k=1) == 1
