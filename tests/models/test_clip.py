"""Our CLIP and transformers' read each other's files and agree; wrong files, texts and batches are refused."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel

from vlm_lite.files import UserError
from vlm_lite.models.clip import (
    CLIP,
    CLIPConfig,
    info_nce,
    info_nce_hard,
    info_nce_shared,
    one_direction,
    siglip,
)
from vlm_lite.models.weights import load_exactly

SIZES = dict(
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    vocab_size=30,
    context_length=12,
    text_width=24,
    text_layers=2,
    text_heads=2,
    projection_dim=16,
    eos_token_id=5,
    bos_token_id=None,
    pad_token_id=0,
)
IDS = torch.tensor([[6, 29, 8, 9, 5, 0, 0], [9, 5, 0, 0, 0, 0, 0], [7, 7, 7, 7, 7, 7, 5]])
IDS_HIGHEST = torch.tensor(
    [[6, 8, 9, 29, 29, 29], [9, 29, 0, 0, 0, 0], [7, 7, 7, 7, 7, 29]]
)  # EOS = pad = highest id


def make_clip(**settings):
    torch.manual_seed(0)
    model = CLIP(**{**SIZES, **settings})
    with torch.no_grad():
        for parameter in (
            model.parameters()
        ):  # so that no parameter is at a value that hides it: biases 0, norms 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path):
    make_clip().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def assert_agree(ours, theirs, pixels, ids, mask):
    with torch.no_grad():
        a = ours(pixels, ids, mask)
        b = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask, return_loss=True)
        loss = info_nce(a.image_embeds, a.text_embeds, ours.logit_scale)
    for mine, other in (
        (a.image_embeds, b.image_embeds),
        (a.text_embeds, b.text_embeds),
        (loss, b.loss),
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        a.logits_per_image, b.logits_per_image, atol=1e-4, rtol=1e-5
    )  # of size e^logit_scale
    torch.testing.assert_close(a.logits_per_text, b.logits_per_text, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("eos_token_id, ids", [(5, IDS), (2, IDS_HIGHEST)])
def test_saved_by_us_transformers_loads_and_agrees(tmp_path, pixels, eos_token_id, ids, hidden_act):
    ours = make_clip(eos_token_id=eos_token_id, hidden_act=hidden_act)
    ours.save_pretrained(tmp_path)
    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (
        not report["missing_keys"]
        and not report["unexpected_keys"]
        and not report["mismatched_keys"]
    )
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    assert_agree(ours, theirs, pixels, ids, mask)


@pytest.mark.parametrize("eos_token_id, ids", [(5, IDS), (2, IDS_HIGHEST)])
def test_saved_by_transformers_we_load_and_agree(tmp_path, pixels, eos_token_id, ids):
    torch.manual_seed(0)
    theirs = CLIPModel(TheirConfig(**make_clip(eos_token_id=eos_token_id).config.to_hf())).eval()
    theirs.save_pretrained(tmp_path)
    ours = CLIP.from_pretrained(tmp_path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert len(ours.load_report.matched) == len(theirs.state_dict())
    assert_agree(ours, theirs, pixels, ids, None)


def test_our_files_come_back_as_they_were(saved, pixels):
    model, again = make_clip(), CLIP.from_pretrained(str(saved))
    assert again.config.to_hf() == model.config.to_hf() and not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_saved_in_fp16_loads_in_fp32(tmp_path):
    make_clip().save_pretrained(tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert {p.dtype for p in CLIP.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_fields_missing_from_an_old_config_take_transformers_defaults():
    old = {
        "model_type": "clip",
        "vision_config": {"patch_size": 16},
        "text_config": {},
        "text_config_dict": {"hidden_size": 640},
        "vision_config_dict": None,
    }
    ours, theirs = CLIPConfig.from_hf(old), TheirConfig(**json.loads(json.dumps(old)))
    assert (ours.text_width, ours.patch_size) == (640, 16)
    assert ours.to_hf()["text_config"].items() <= theirs.text_config.to_dict().items()
    assert ours.to_hf()["vision_config"].items() <= theirs.vision_config.to_dict().items()


def test_position_ids_of_old_checkpoints_are_not_taken_for_weights(saved):
    state = load_file(saved / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, saved / "model.safetensors")
    assert not CLIP.from_pretrained(saved).load_report.unexpected


def damage(state, how):
    if how == "missing":
        del state["logit_scale"]
    elif how == "unexpected":
        state["text_model.encoder.layers.9.mlp.fc1.bias"] = torch.zeros(3)
    elif how == "another shape":
        state["visual_projection.weight"] = torch.zeros(3, 3)
    else:
        state = {f"module.{name}": value for name, value in state.items()}
    return state


@pytest.mark.parametrize(
    "how, names",
    [
        ("missing", "1 missing .logit_scale"),
        ("unexpected", "1 unexpected .*layers.9"),
        ("another shape", "1 of another shape .visual_projection"),
        ("renamed", "0 matched"),
    ],
)
def test_weights_that_do_not_fit_exactly_are_refused_by_name(saved, how, names):
    save_file(damage(load_file(saved / "model.safetensors"), how), saved / "model.safetensors")
    with pytest.raises(UserError, match=names) as error:
        CLIP.from_pretrained(saved)
    assert "model.safetensors" in str(error.value)


def test_files_missing_or_cut_short_are_named(saved, tmp_path):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="model.safetensors.*cut short"):
        CLIP.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors does not exist"):
        CLIP.from_pretrained(saved)
    (saved / "config.json").write_text('{"model_type": "clip"')
    with pytest.raises(UserError, match="config.json, line 1"):
        CLIP.from_pretrained(saved)
    with pytest.raises(UserError, match="no/such-model"):
        CLIP.from_pretrained("no/such-model")


def test_a_sharded_checkpoint_is_read_by_its_index(saved):
    whole = CLIP.from_pretrained(saved).state_dict()
    CLIPModel.from_pretrained(saved).save_pretrained(saved / "parts", max_shard_size="20KB")
    shards = sorted((saved / "parts").glob("model-*.safetensors"))
    assert len(shards) > 1 and not (saved / "parts" / "model.safetensors").exists()
    ours = CLIP.from_pretrained(saved / "parts").state_dict()
    assert ours.keys() == whole.keys() and all(torch.equal(ours[k], whole[k]) for k in whole)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} does not exist.*index.json"):
        CLIP.from_pretrained(saved / "parts")


@pytest.mark.parametrize(
    "index, message",
    [
        ("{}", "`weight_map` is missing"),
        ('{"weight_map": {"logit_scale": 3}}', "`weight_map.logit_scale` is 3"),
        ('{"weight_map": {"logit_scale": "../model.safetensors"}}', "beside it"),
        ('{"weight_map": {}}', "names no weights"),
        ('{"weight_map": {"never": "part.safetensors"}}', "part.safetensors lacks never"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_named(saved, index, message):
    (saved / "model.safetensors").rename(saved / "part.safetensors")
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        CLIP.from_pretrained(saved)


def test_the_prefix_that_transformers_drops_is_dropped(saved):
    state = load_file(saved / "model.safetensors")
    prefixed = {f"clip.{name}": value for name, value in state.items()}
    save_file(prefixed, saved / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(CLIPModel.from_pretrained(saved).logit_scale, state["logit_scale"])
    ours = CLIP.from_pretrained(saved).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "name, message",
    [
        ("visual.transformer.resblocks.0.ln_1.weight", "names of OpenAI's CLIP and of open_clip"),
        ("vision_model.post_layernorm.bias", "holds a vision encoder and no text encoder"),
        ("text_model.final_layer_norm.bias", "holds a text encoder and no vision encoder"),
        ("module.logit_scale", "all begin with module., which a training script"),
    ],
)
def test_weights_of_another_kind_are_named(saved, name, message):
    save_file({name: torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(UserError, match=message):
        CLIP.from_pretrained(saved)


def test_a_folder_with_weights_of_another_format_is_named(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="does not exist.*holds pytorch_model.bin.*can run code"):
        CLIP.from_pretrained(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "siglip"}, "model_type is 'siglip'"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1"),
        ({"vision_config": {"hidden_act": "gelu"}}, "one value for both"),
    ],
)
def test_a_config_this_clip_cannot_do_is_refused_by_field(saved, change, message):
    (saved / "config.json").write_text(
        json.dumps({**json.loads((saved / "config.json").read_text()), **change})
    )
    with pytest.raises(UserError, match=message):
        CLIP.from_pretrained(saved)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused_by_name(saved, value):
    state = load_file(saved / "model.safetensors")
    state["visual_projection.weight"][3, 2] = float(value)
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match="model.safetensors: visual_projection.weight holds NaN or infinity.*again"
    ):
        CLIP.from_pretrained(saved)


def test_large_weights_are_numbers():
    model = make_clip()
    state = {**model.state_dict(), "visual_projection.weight": torch.full((16, 32), 3e38)}
    assert "visual_projection.weight" in load_exactly(model, state, source="a test").matched


def test_text_padded_to_any_length_reads_the_same():
    model = make_clip()
    long = torch.nn.functional.pad(IDS, (0, 5))
    torch.testing.assert_close(model.encode_text(IDS), model.encode_text(long))
    beyond = torch.nn.functional.pad(IDS, (0, 50))  # padding past the context costs nothing
    torch.testing.assert_close(model.encode_text(IDS), model.encode_text(beyond))


def test_text_is_read_out_at_its_first_eos_and_nothing_after_it_counts():
    model, other = make_clip(), IDS.clone()
    other[0, 5:], other[1, 2:] = torch.tensor([5, 9]), torch.tensor([9, 9, 5, 9, 5])
    torch.testing.assert_close(model.encode_text(IDS), model.encode_text(other))
    other[0, 0] = 10
    assert not torch.allclose(model.encode_text(IDS)[0], model.encode_text(other)[0])


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        (torch.tensor([[6, 7, 5], [6, 7, 8]]), None, r"row 1 has no EOS \(id 5\)"),
        (
            torch.tensor([[6, 5] + [0] * 11, [6] * 12 + [5]]),
            None,
            "row 1 has 13 tokens.*context of 12. Shorten",
        ),
        (torch.tensor([[0, 6, 5]]), torch.tensor([[0, 1, 1]]), "padding_side"),
        (torch.tensor([6, 7, 5]), None, r"input_ids\[None\]"),
        (torch.zeros(1, 0, dtype=torch.long), None, r"shape \(1, 0\)"),
        (torch.tensor([[99, 5]]), None, r"holds 5\.\.99, but .* 0\.\.\d+\. Use the tokenizer"),
        (torch.tensor([[-1, 5]]), None, r"holds -1\.\.5"),
    ],
)
def test_a_text_that_cannot_be_read_out_is_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        make_clip().encode_text(ids, mask)


def test_info_nce_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    x, y, scale = torch.randn(4, 8), torch.randn(4, 8), torch.tensor(1.0)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1) * math.e
    image, text = cosine.log_softmax(dim=1).diag().mean(), cosine.log_softmax(dim=0).diag().mean()
    torch.testing.assert_close(info_nce(x, y, scale), -(image + text) / 2)
    assert abs(image - text) > 0.01


def test_info_nce_is_ln_b_when_nothing_is_told_apart_and_near_0_when_all_is():
    same = torch.ones(8, 4)
    torch.testing.assert_close(info_nce(same, same, torch.tensor(2.0)), torch.tensor(math.log(8)))
    assert info_nce(torch.eye(8), torch.eye(8), torch.tensor(math.log(100.0))) < 1e-6


def test_hard_negatives_count_for_the_pictures_only():
    torch.manual_seed(0)
    x, y, wrong, scale = torch.randn(6, 9), torch.randn(6, 9), torch.randn(4, 9), torch.tensor(1.3)
    torch.testing.assert_close(info_nce_hard(x, y, scale), info_nce(x, y, scale))
    n = torch.nn.functional.normalize
    logits = scale.exp() * n(x, dim=1) @ n(torch.cat([y, wrong]), dim=1).T  # (6, 10)
    image = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    text = torch.nn.functional.cross_entropy(logits[:, :6].T, torch.arange(6))
    torch.testing.assert_close(info_nce_hard(x, torch.cat([y, wrong]), scale), (image + text) / 2)


def test_info_nce_is_fp32_under_autocast():
    torch.manual_seed(0)
    x, y, scale = torch.randn(16, 64), torch.randn(16, 64), torch.tensor(math.log(100.0))
    exact = info_nce(x, y, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(info_nce(x, y, scale), exact)


@pytest.mark.parametrize("loss", [info_nce, one_direction, siglip, info_nce_shared])
def test_a_contrastive_loss_refuses_what_has_no_meaning(loss):
    x, scale = torch.randn(3, 8), torch.tensor(1.0)
    more = {siglip: [torch.tensor(-10.0)], info_nce_shared: [torch.eye(3, dtype=torch.bool)]}.get(
        loss, []
    )
    assert loss(x, x.flip(0), scale, *more).isfinite()
    for y, found in (
        (x[:2], r"\(3, 8\).*\(2, 8\)"),
        (x[:, :4], r"\(3, 8\).*\(3, 4\)"),
        (x[0], r"\(8,\)"),
    ):
        with pytest.raises(ValueError, match=found + ".*one caption a picture"):
            loss(x, y, scale, *more)
    with pytest.raises(ValueError, match=r"\(0, 8\)"):
        loss(x[:0], x[:0], scale, *more)
    for value in ("nan", "inf"):
        with pytest.raises(
            ValueError, match="text_embeds row 1 holds NaN or infinity.*learning rate"
        ):
            loss(x, x.clone().index_fill_(0, torch.tensor([1]), float(value)), scale, *more)
        with pytest.raises(ValueError, match="image_embeds row 2 holds NaN or infinity"):
            loss(x.clone().index_fill_(0, torch.tensor([2]), float(value)), x, scale, *more)


def test_a_scale_that_is_no_logarithm_is_refused():
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    more = {siglip: [torch.tensor(-10.0)], info_nce_shared: [torch.eye(3, dtype=torch.bool)]}
    for loss in (info_nce, info_nce_hard, one_direction, info_nce_shared, siglip):
        most = "1000 = 6.908" if loss is siglip else "100 = 4.605"
        for value, found in (
            (100.0, "100"),
            (10.0, "10"),
            (float("nan"), "nan"),
            (float("inf"), "inf"),
        ):
            with pytest.raises(
                ValueError, match=f"logit_scale is {found}: expected the logarithm .* log {most}"
            ):
                loss(x, y, torch.tensor(value), *more.get(loss, []))
        for allowed in (
            torch.tensor(math.log(100)),
            torch.tensor(math.log(100), dtype=torch.float16),
        ):
            assert loss(x, y, allowed, *more.get(loss, [])).isfinite()
    with pytest.raises(ValueError, match="clamp it after each step"):
        info_nce(x, y, torch.tensor(4.7))
    assert siglip(x, y, torch.tensor(4.7215), torch.tensor(-16.0)).isfinite(), (
        "as released for ViT-SO400M-14"
    )


@pytest.mark.parametrize("loss", [info_nce, one_direction, info_nce_shared])
def test_a_batch_of_one_says_nothing_and_warns(loss):
    more = [torch.ones(1, 1, dtype=torch.bool)] if loss is info_nce_shared else []
    with pytest.warns(
        UserWarning, match="batch of one.*InfoNCE is 0 whatever the model does"
    ) as seen:
        assert loss(torch.randn(1, 8), torch.randn(1, 8), torch.tensor(1.0), *more) == 0
    assert seen[0].filename == __file__, "the line that the reader wrote"


def test_in_a_batch_of_one_hard_negatives_count_and_siglip_has_a_question():
    x, y, scale = torch.randn(1, 8), torch.randn(3, 8), torch.tensor(1.0)
    with pytest.warns(UserWarning, match="batch of one.* only hard negatives count"):
        assert info_nce_hard(x, y, scale) > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batch of one")
        assert siglip(x, y[:1], scale, torch.tensor(0.0)) > 0


@pytest.mark.parametrize(
    "same", [torch.eye(2, dtype=torch.bool), torch.eye(3, dtype=torch.bool)[[1, 0, 2]]]
)
def test_which_texts_are_the_same_is_refused_where_it_cannot_be(same):
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"same has shape.*expected \(3, 3\)"):
        info_nce_shared(x, x, torch.tensor(1.0), same)


def test_the_temperature_is_learnt_and_clamped_at_100(pixels):
    model = CLIP(**SIZES)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    info_nce(model.encode_image(pixels), model.encode_text(IDS), model.logit_scale).backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for p in model.parameters()
        if p.requires_grad
    )
    assert model.logit_scale.grad != 0
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no setting vision_depth.*vision_layers"):
        CLIP(vision_depth=3)


def test_one_direction_is_the_pictures_half_of_info_nce():
    torch.manual_seed(0)
    x, y, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(1.2)
    torch.testing.assert_close(
        (one_direction(x, y, scale) + one_direction(y, x, scale)) / 2, info_nce(x, y, scale)
    )
    assert abs(one_direction(x, y, scale) - one_direction(y, x, scale)) > 0.01


def test_equal_captions_that_are_right_for_one_another_share_the_answer():
    torch.manual_seed(0)
    x, y, scale = torch.randn(4, 8), torch.randn(4, 8), torch.tensor(1.2)
    y[2] = y[0]
    same = (y[:, None] == y[None]).all(dim=-1)
    torch.testing.assert_close(
        info_nce_shared(x, y, scale, torch.eye(4, dtype=torch.bool)), info_nce(x, y, scale)
    )
    cosine = scale.exp() * torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1)
    image, text = cosine.log_softmax(dim=1), cosine.log_softmax(dim=0)
    right = [[0, 2], [1], [0, 2], [3]]
    expected = (
        -sum(
            each[i, j] / len(js)
            for each in (image, text.T)
            for i, js in enumerate(right)
            for j in js
        )
        / 8
    )
    torch.testing.assert_close(info_nce_shared(x, y, scale, same), expected)
    # Pictures 0 and 2 on top of their one caption: nothing is left to blame but the choice between two equal texts.
    best = torch.eye(4)[[0, 1, 0, 3]]
    torch.testing.assert_close(
        info_nce_shared(best, best, torch.tensor(math.log(100.0)), same),
        torch.tensor(math.log(2) / 2),
    )
    one = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce_shared(one, best, torch.tensor(3.0), same), one)
    (mistaken,) = torch.autograd.grad(info_nce(one, best, torch.tensor(3.0)), one)
    assert gradient.norm() < mistaken.norm() + 1e-6


def test_siglip_is_the_loss_of_transformers():
    from transformers import SiglipConfig, SiglipModel

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    theirs = SiglipModel(
        SiglipConfig(
            text_config={**sizes, "vocab_size": 30, "max_position_embeddings": 6},
            vision_config={**sizes, "image_size": 16, "patch_size": 8},
        )
    ).eval()
    for scale, bias in ((math.log(10), -10.0), (2.0, 0.7)):
        with torch.no_grad():
            theirs.logit_scale.fill_(scale), theirs.logit_bias.fill_(bias)
        found = theirs(
            input_ids=torch.randint(30, (5, 6)),
            pixel_values=torch.randn(5, 3, 16, 16),
            return_loss=True,
        )
        ours = siglip(
            3 * found.image_embeds, found.text_embeds, theirs.logit_scale, theirs.logit_bias
        )
        torch.testing.assert_close(ours, found.loss)
        torch.testing.assert_close(
            torch.autograd.grad(ours, theirs.logit_bias, retain_graph=True),
            torch.autograd.grad(found.loss, theirs.logit_bias, retain_graph=True),
        )
