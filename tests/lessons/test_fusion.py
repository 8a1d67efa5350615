"""Notebook 07's models: equal to Idefics, gates that start closed, and what an image may change in a text."""

import pytest
import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics import modeling_idefics, perceiver

from tests import small
from vlm_lite import family
from vlm_lite.labs.core import random_weights
from vlm_lite.lessons import fusion
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models import text

TOKENIZER = small.tokenizer()
IMAGE = 2
KINDS = ["linear", "MLP", "pixel shuffle + MLP", "Q-Former", "resampler", "cross-attention", "visual expert"]  # fmt: skip


def built(kind="cross-attention", layers=2):
    """A VLM around a small CLIP of width 16 and a GPT-2 of width 32, as before training."""
    vision = small.clip(len(small.WORDS))
    language_model = small.gpt2(len(small.WORDS), n_layer=layers).eval()
    torch.manual_seed(0)
    if kind == "Q-Former":
        connector = fusion.QFormerConnector(16, 32, num_query_tokens=4, width=24, num_heads=2)
        return VLM(vision, connector, language_model, TOKENIZER), language_model
    return fusion.make_vlm(kind, vision, language_model, TOKENIZER, 4).eval(), language_model


def opened(model):
    for layer in model.layers:
        nn.init.constant_(layer.gated.alpha_cross_attn, 0.7)
        nn.init.constant_(layer.gated.alpha_dense, -0.4)
    return model


def batch():
    return text.prompt_batch(TOKENIZER, small.PROMPTS[:2])


def idefics(width=24):
    config = IdeficsConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64)
    config.vision_config.embed_dim, config._attn_implementation = width, "eager"
    config.perceiver_config.qk_layer_norms_perceiver = False
    return config


@torch.no_grad()
def test_resampler_and_gated_layer_are_those_of_idefics_with_masks_as_well():
    torch.manual_seed(0)
    theirs = random_weights(perceiver.IdeficsPerceiverResampler(idefics(), 24, 3, 4, 6, 5))
    mine = fusion.PerceiverResampler(24, 5, 3, 4).eval()
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-4, rtol=1e-4)
    theirs = modeling_idefics.IdeficsGatedCrossAttentionLayer(idefics(), layer_idx=0)
    theirs, mine = random_weights(theirs), fusion.GatedCrossAttention(32, 24, 4, 64).eval()
    mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if "rotary" not in k})
    x, media, reads = torch.randn(2, 6, 32), torch.randn(2, 10, 24), torch.rand(2, 6, 10) > 0.6
    reads[0, :3] = False
    some = reads.any(dim=2)
    bias = torch.where(reads | ~some[..., None], 0.0, -1e9)[:, None]
    for mask, gate, own in ((bias, some.float(), reads), (None, torch.ones(2, 6), None)):
        right = theirs(x, None, media, mask, gate)
        torch.testing.assert_close(mine(x, media, own), right, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_closed_gates_leave_the_language_model_bit_for_bit():
    model, language_model = built()
    ids, mask = batch()
    right = language_model(**VLM.inputs(model, None, ids, mask)).logits
    features = torch.randn(2, 4, 16)
    for seen in (features, None):
        assert torch.equal(model.language_model(**model.inputs(seen, ids, mask)).logits, right)
    opened(model)
    assert not torch.allclose(model.language_model(**model.inputs(features, ids, mask)).logits, right)  # fmt: skip
    assert torch.equal(model.language_model(**model.inputs(None, ids, mask)).logits, right)
    assert model.gates().shape == (2, 2)


def test_behind_closed_gates_only_the_gates_get_a_gradient():
    model, _ = built()
    ids, mask = batch()
    model(torch.randn(2, 4, 16), ids, mask, ids).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(moved) == 4 and all("alpha" in name for name in moved)
    frozen = [p for name, p in model.named_parameters() if "layer.attn" in name or "wte" in name]
    assert frozen and not any(p.requires_grad for p in frozen)


@torch.no_grad()
def test_a_text_reads_the_last_image_before_it_and_earlier_ones_only_through_text():
    model = opened(built(layers=1)[0])
    ids = torch.tensor([[7, IMAGE, 7, 11, 8, IMAGE, 7, 12, 8]])
    mask, images = torch.ones_like(ids), torch.randn(1, 2, 4, 16)

    def hidden(images):  # of the one layer's cross-attention alone, before the text is mixed
        seen = []
        hook = model.layers[0].gated.register_forward_hook(lambda *given: seen.append(given[2]))
        model.language_model(**model.inputs(images, ids, mask))
        hook.remove()
        return seen[0][0]

    first, second = images.clone(), images.clone()
    first[:, 0] += torch.randn(4, 16)
    second[:, 1] += torch.randn(4, 16)
    changed = [(hidden(each) - hidden(images)).abs().amax(dim=1) > 1e-6 for each in (first, second)]
    assert changed[0].tolist() == [False, True, True, True, True, False, False, False, False]
    assert changed[1].tolist() == [False] * 5 + [True] * 4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cross-attention", "visual expert"])
def test_a_generated_answer_is_that_without_a_cache_and_without_the_other_rows(kind):
    model, _ = built(kind)
    if kind == "cross-attention":
        opened(model)
    else:
        for expert in model.experts:
            random_weights(expert.expert)
    features, prompts = torch.randn(2, 4, 16), small.PROMPTS[1:]
    answers = model.generate(features, prompts, 5)
    for k, prompt in enumerate(prompts):
        assert model.generate(features[[k]], [prompt], 5) == [answers[k]]
        ids, mask = text.prompt_batch(TOKENIZER, [prompt])
        for _ in range(5):  # the whole text again for each token
            logits = model.language_model(**model.inputs(features[[k]], ids, mask)).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
            mask = torch.ones_like(ids)
        start = len(text.prompt_ids(TOKENIZER, prompt))
        assert text.decode(TOKENIZER, list(ids[:, start:].T), 1) == [answers[k]]


@torch.no_grad()
def test_two_images_in_a_prompt_give_what_the_last_one_alone_gives_its_question():
    model = opened(built(layers=1)[0])
    images = torch.randn(2, 2, 4, 16)
    prompts = ["<image> is it red yes <eos> <image> is it blue", "<image> <image> is it small"]
    both = model.generate(images, prompts, 4)
    assert [model.generate(images[[k]], [prompts[k]], 4)[0] for k in range(2)] == both


@torch.no_grad()
def test_a_visual_expert_is_the_frozen_model_on_text_and_a_copy_at_first():
    model, language_model = built("visual expert")
    plain = VLM(model.vision, model.connector, language_model, TOKENIZER)
    (ids, mask), features = batch(), torch.randn(2, 4, 16)
    torch.testing.assert_close(model(features, ids, mask), plain(features, ids, mask))
    for expert in model.experts:
        random_weights(expert.expert)
    assert not torch.allclose(model(features, ids, mask), plain(features, ids, mask))
    assert torch.equal(model(None, ids, mask), plain(None, ids, mask))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("expert" in name or name.startswith("connector") for name in trained)
    assert (
        len(trained) == 2 * 6 + 4
    )  # QKV and two layers of an MLP, each with a bias; the projector


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_counts_its_tokens(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    model, language_model = built(kind)
    before = {name: p.clone() for name, p in language_model.named_parameters()}
    features = torch.randn(3, 4, 16)
    turns = [[("question : is it red answer :", word)] for word in ("yes", "no", "small")]
    history = train_vlm(model, features, turns, steps=12, batch_size=3, lr=1e-2, per_row=1)
    assert history.losses[-1] < history.losses[0]
    assert all(torch.equal(p, before[name]) for name, p in language_model.named_parameters())
    one = torch.ones(1, 1, dtype=torch.long)
    length = model.inputs(features[:1], one, one)["inputs_embeds"].shape[1] - 1
    assert length == {"pixel shuffle + MLP": 1, "cross-attention": 0}.get(kind, 4)


def test_the_family_has_twelve_models_with_a_paper_each_and_the_tree_names_them_all():
    table = family.models()
    assert len(table) == 12 and table.notna().all(axis=None) and table["arXiv"].is_unique
    assert list(table["year"]) == sorted(table["year"])
    assert [name for name in table.index if table.fusion[name] == "deep"] == ["Flamingo", "CogVLM"]
    assert (
        table.fusion["Molmo"] == "late, input" and "resolution" in table["what is new"]["Qwen2-VL"]
    )
    figure = family.tree()
    words = " ".join(text.get_text() for text in figure.canvas.texts)
    assert all(name in words for name in table.index)
    assert len(figure.to_bytes()[1]) < 100_000


def test_bars_of_the_rows_show_each_condition_and_the_oracle():
    class Result:
        def percent(self):
            return {"blind": (30, 25, 35), "shuffled": (31, 26, 36), "vlm": (50, 45, 55), "oracle": (97, 95, 99)}  # fmt: skip

    (axes,) = family.rows({"MLP": Result(), "resampler": Result()}, "two rows").axes
    assert [bar.get_height() for bar in axes.patches] == [30, 30, 31, 31, 50, 50]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["MLP", "resampler"]
