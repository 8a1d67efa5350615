"""The assembled VLM: what learns, what the loss counts, what generate says, and what is refused."""

import json
import shutil
import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from tests import small
from tests.small import EOS, PROMPTS, WORDS, tokenizer
from tests.small import TURNS as EXCHANGES
from vlm_lite.files import UserError, data_path
from vlm_lite.models.projectors import make_connector
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vlm import VLM, build_text_batch


def make_language_model(attention="eager"):
    sizes = {"n_positions": 40, "n_layer": 2, "n_head": 4, "initializer_range": 0.6}
    model = small.gpt2(len(WORDS), bos_token_id=EOS, eos_token_id=EOS, **sizes)
    model.set_attn_implementation(attention)
    return model


def make_clip():
    return small.clip(len(WORDS), EOS, patch_size=8, width=24)


QFORMER = dict(num_query_tokens=8, width=32, num_layers=2, num_heads=4, mlp_width=64)


def make_vlm(name="qformer", attention="eager"):
    settings = QFORMER if name == "qformer" else {}
    torch.manual_seed(1)
    connector = make_connector(name, 24, 32, **settings)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return VLM(make_clip(), connector, make_language_model(attention), tokenizer())


@pytest.fixture(scope="module")
def features():
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return make_vlm().encode(pixels)


def test_a_tokenizer_that_adds_a_bos_changes_nothing(features):
    adds, vlm = tokenizer(), make_vlm().eval()
    adds.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<user> $A", special_tokens=[("<user>", WORDS.index("<user>"))]
    )
    assert adds("caption :")["input_ids"][0] == WORDS.index("<user>")
    answers = vlm.generate(features, PROMPTS)
    vlm.tokenizer = adds
    assert vlm.generate(features, PROMPTS) == answers


def test_unknown_words_are_unk_and_a_text_of_which_nothing_is_known_is_refused():
    batch = build_text_batch(tokenizer(), [[("caption : 漢字", "red")]])
    assert WORDS[batch["input_ids"][0, 2]] == "<unk>" and (batch["labels"][0] != -100).sum() == 2
    core = Tokenizer(models.BPE({"<eos>": 0, "r": 1, "e": 2, "d": 3}, []))  # no bytes, no <unk>
    letters = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    with pytest.raises(
        ValueError, match="answer of exchange 1 .*漢字.* has no character that the tokenizer knows"
    ):
        build_text_batch(letters, [[("red", "red")], [("red", "漢字")]])


def test_generate_names_the_words_it_does_not_know_once_a_call():
    vlm = make_vlm().eval()
    with pytest.warns(UserWarning, match=r"read as <unk>: banana, ripe\.$") as seen:
        vlm.generate(None, ["is it banana ripe", "is it red", "banana"] * 2, batch_size=1)
    ours = [warning for warning in seen if "read as" in str(warning.message)]
    assert len(ours) == 1 and ours[0].filename == __file__
    with pytest.warns(UserWarning, match=r": a, b, c, d, e\.$"):
        vlm.generate(None, ["a b c", "d e f g"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*read as")  # ours; a library may say its own
        assert len(vlm.generate(None, PROMPTS)) == 3 and vlm.generate(None, []) == []
        for special in (
            {"unk_token": "<eos>"},
            {"unk_token": None},
        ):  # as in GPT-2 and Qwen: a real token, or none
            vlm.tokenizer = tokenizer(**special)
            vlm.generate(None, ["caption : <eos> red"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_numbered_exchanges_in_one_row_are_answered_as_if_each_were_alone(features, attention):
    vlm, own = make_vlm(attention=attention), features[:1]
    exchanges = [
        ("question : is it round answer :", "yes"),
        ("caption :", "small red round"),
        ("question : is it blue answer :", "no"),
    ]
    row = build_text_batch(vlm.tokenizer, [exchanges])
    alone = [build_text_batch(vlm.tokenizer, [[pair]]) for pair in exchanges]
    number = torch.cat([k * one["attention_mask"] for k, one in enumerate(alone, 1)], dim=1)
    with torch.no_grad():
        together = vlm(own, row["input_ids"], number).logits
        expected = torch.cat(
            [vlm(own, one["input_ids"], one["attention_mask"]).logits for one in alone], dim=1
        )
        plain = vlm(own, row["input_ids"], row["attention_mask"]).logits
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2, (
        "without the numbers a later exchange reads the earlier ones"
    )


def test_a_few_steps_make_the_answer_depend_on_the_picture(features):
    vlm = make_vlm().train()
    batch = build_text_batch(vlm.tokenizer, [[("caption :", "red")], [("caption :", "blue")]])
    optimizer = torch.optim.AdamW(vlm.connector.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = vlm(features[:2], **batch).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert vlm.generate(features[:2], ["caption :"] * 2) == ["red", "blue"]
    assert vlm.generate(features[:2].flip(0), ["caption :"] * 2) == ["blue", "red"]
    assert vlm.training and not vlm.language_model.training


def test_encode_is_the_eyes_patch_features_without_gradient():
    vlm, pixels = make_vlm(), torch.randn(2, 3, 32, 32)
    features = vlm.encode(pixels)
    assert not features.requires_grad and features.shape == (2, 16, 24)
    hidden_states = vlm.vision.vision_model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, hidden_states[-2][:, 1:])


@pytest.fixture
def zoo(tmp_path):
    make_clip().save_pretrained(tmp_path / "seer")
    make_language_model().save_pretrained(tmp_path / "speaker")
    tokenizer().save_pretrained(tmp_path / "speaker")
    return tmp_path


@pytest.mark.parametrize("name", ["linear", "mlp", "qformer"])
def test_saved_and_loaded_it_answers_the_same(zoo, features, name):
    vlm = make_vlm(name).eval()
    vlm.save_pretrained(zoo / "vlm", vision_model="seer", language_model="speaker")
    again = VLM.from_pretrained(zoo / "vlm", resolve=lambda name: str(zoo / name))
    assert not again.training
    batch = build_text_batch(vlm.tokenizer, EXCHANGES)
    torch.testing.assert_close(again(features[:2], **batch).loss, vlm(features[:2], **batch).loss)
    assert again.generate(features, PROMPTS) == vlm.generate(features, PROMPTS)
    total = sum(p.numel() for p in vlm.connector.parameters())
    assert (zoo / "vlm/model.safetensors").stat().st_size < 4 * total + 10_000  # the connector only


def test_a_wrong_folder_is_refused_by_file_and_field(zoo):
    resolve = lambda name: str(zoo / name)  # noqa: E731
    vlm = make_vlm()
    vlm.save_pretrained(zoo / "vlm", vision_model="seer", language_model="speaker")
    config = json.loads((zoo / "vlm/config.json").read_text())

    def load(**change):
        (zoo / "vlm/config.json").write_text(json.dumps({**config, **change}))
        return VLM.from_pretrained(zoo / "vlm", resolve=resolve)

    with pytest.raises(UserError, match="config.json.*resampler"):
        load(connector={**config["connector"], "name": "resampler"})
    with pytest.raises(UserError, match="config.json.*connector"):
        load(connector=None)
    with pytest.raises(UserError, match="layers.2"):
        load(connector={**config["connector"], "num_layers": 3})
    with pytest.raises(UserError, match="no model.*nothing-here"):
        load(language_model="nothing-here")
    with pytest.raises(UserError, match="other weights of seer"):
        load(hashes={**config["hashes"], "vision_model": "0" * 64})
    weights = (zoo / "speaker/model.safetensors").read_bytes()
    (zoo / "speaker/model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(UserError, match="speaker.*model.safetensors"):
        load()
    with pytest.raises(UserError, match="config.json does not exist"):
        VLM.from_pretrained(zoo / "nowhere", resolve=resolve)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_language_models_cut_file_is_named(tmp_path, name):
    folder = shutil.copytree(data_path("zoo", "shapes-gpt2"), tmp_path / "speaker")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"speaker/{name}.*may be cut short"):
        load_language_model(folder)
    (folder / name).unlink()
    with pytest.raises(
        UserError, match=r"no model could be loaded .*the folder holds \w.*Check the name"
    ):
        load_language_model(folder)


def test_widths_that_do_not_meet_are_refused():
    parts = dict(vision=make_clip(), language_model=make_language_model(), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="vision_width 20.*vision_width=24"):
        VLM(connector=make_connector("linear", 20, 32), **parts)
    with pytest.raises(ValueError, match="language_width 20.*language_width=32"):
        VLM(connector=make_connector("linear", 24, 20), **parts)
    parts["tokenizer"].add_tokens(["newword"])
    with pytest.raises(ValueError, match="19 tokens.*18 embeddings"):
        VLM(connector=make_connector("linear", 24, 32), **parts)


def test_what_does_not_fit_the_context_is_refused(features):
    vlm = make_vlm("linear")
    with pytest.raises(AssertionError, match="42 .* 40"):
        vlm(features[:1], torch.full((1, 26), 9))
    with pytest.raises(ValueError, match="47 .* 40"):
        vlm.generate(features[:1], PROMPTS[:1], max_new_tokens=30)


def test_one_image_a_row_is_wanted(features):
    vlm = make_vlm()
    with pytest.raises(ValueError, match="2 images"):
        vlm.generate(features[:2], PROMPTS)
    with pytest.raises(AssertionError, match="one image"):
        vlm(features[:2], torch.full((3, 4), 9))


def test_texts_that_say_nothing_are_refused(features):
    vlm, words = make_vlm(), tokenizer()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        vlm.generate(features[:2], ["caption :", " "])
    with pytest.raises(ValueError, match="list of strings"):
        vlm.generate(features[:1], "caption :")
    with pytest.raises(ValueError, match="answer of exchange 1 is empty"):
        build_text_batch(words, [[("caption :", "red")], [("caption :", "")]])
    for rows in ([], [[]], ["caption :"], [[("caption :",)]], [("caption :", "red")]):
        with pytest.raises(ValueError, match="expected|exchanges is empty"):
            build_text_batch(words, rows)
    with pytest.raises(ValueError, match="no EOS"):
        build_text_batch(tokenizer(eos_token=None), EXCHANGES)
    batch = build_text_batch(words, EXCHANGES)
    with pytest.raises(ValueError, match="no answer token"):
        vlm(features[:2], **{**batch, "labels": torch.full_like(batch["labels"], -100)})
