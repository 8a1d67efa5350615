"""Notebook 03's VLM: transformers' loss and answers, packing, resuming, two processes, and the checkpoint that ships."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import small
from tests.models.test_families import make
from tests.small import PROMPTS, TURNS, WORDS
from vlm_lite.data import shapes
from vlm_lite.encoded import encode_shapes
from vlm_lite.files import UserError, data_path, read_json, write_json
from vlm_lite.lessons import vlm as lesson
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.models import layout
from vlm_lite.models.layout import save_vlm
from vlm_lite.models.text import block_mask
from vlm_lite.profiles import SMOKE, resolve_model


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 24)


def make_vlm(family="gpt2", attention="eager"):
    """A small VLM with large random weights, so that every part shows in its answers."""
    language_model = make(family)
    language_model.set_attn_implementation(attention)
    connector = QFormerConnector(24, 32, width=32, num_heads=4, num_layers=2, num_query_tokens=3)
    for parameter in [*language_model.parameters(), *connector.parameters()]:
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return lesson.VLM(Patches(), connector, language_model, small.tokenizer()).eval()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    monkeypatch.setenv("VLM_LITE_CPU", "plain")
    return tmp_path


@pytest.fixture
def features():
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_labels_hold_the_answers_and_their_eos_and_nothing_else():
    ids, mask, labels = lesson.build_batch(small.tokenizer(), TURNS)
    words = [[WORDS[i] for i in row] for row in ids]
    assert words[0] == "caption : small red <eos>".split() + ["<pad>"] * 9
    assert words[1] == "question : is it red answer : yes <eos> caption : blue round <eos>".split()
    kept = [[WORDS[i] for i in row if i != -100] for row in labels]
    assert kept == [["small", "red", "<eos>"], ["yes", "<eos>", "blue", "round", "<eos>"]]
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert mask.sum(dim=1).tolist() == [5, 14]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def test_with_a_chat_template_its_text_is_trained_and_its_end_of_turn_ends_an_answer(features):
    model, turns = make_vlm(), [("what is it?", "a red star"), ("where?", "the top row")]
    tokenizer = model.tokenizer
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    model.language_model.resize_token_embeddings(len(tokenizer))
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids, _, labels = lesson.build_batch(tokenizer, [turns])
    assert ids[0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = ids[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (labels[0][ends] != -100).tolist() == [False, True, False, True]
    head = model.language_model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    head.bias.data[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 1e4
    assert model.generate(features[:2], ["what is it?", "where?"], 5) == ["", ""]


def test_where_padding_is_eos_the_true_eos_is_still_learnt():
    ids, mask, labels = lesson.build_batch(small.tokenizer(pad_token=None), TURNS)
    assert (labels == WORDS.index("<eos>")).sum(dim=1).tolist() == [1, 2]
    assert mask[0].tolist() == [1] * 5 + [0] * 9 and ids[0, -1] == WORDS.index("<eos>")


def test_blind_and_seeing_it_says_what_transformers_says_of_the_same_inputs(features):
    """With an image, tests/models/test_families.py proves it of every family."""
    model = make_vlm()
    ids, mask, labels = lesson.build_batch(model.tokenizer, TURNS)
    with torch.no_grad():
        inputs = model.inputs(None, ids, mask)
        expected = model.language_model(**inputs, labels=labels)
        loss, logits = model(None, ids, mask, labels), model(None, ids, mask)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": small.EOS,
        "pad_token_id": 0,
    }
    for own in (features, None):
        together = model.generate(own, PROMPTS, max_new_tokens=8)
        for k, prompt in enumerate(PROMPTS):
            alone = None if own is None else own[k : k + 1]
            ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
            inputs = model.inputs(alone, ids, torch.ones_like(ids))
            theirs = model.language_model.generate(**inputs, **options)[0]
            theirs = model.tokenizer.decode(theirs, skip_special_tokens=True).strip()
            assert together[k] == model.generate(alone, [prompt], max_new_tokens=8)[0] == theirs
    assert len(set(together)) > 1 and model.generate(None, PROMPTS, max_new_tokens=0) == [""] * 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3"])
def test_packed_turns_are_read_as_if_each_were_alone(features, family, attention):
    model, own = make_vlm(family, attention), features[:1]
    turns = [("question : is it round answer :", "yes"), *TURNS[0], ("is it blue", "no")]
    ids, mask, labels = lesson.build_batch(model.tokenizer, [turns])
    with torch.no_grad():
        packed = model(own, ids, block_mask(labels))
        alone = [lesson.build_batch(model.tokenizer, [[turn]]) for turn in turns]
        expected = torch.cat([model(own, *each[:2]) for each in alone], dim=1)
        conversation = model(own, ids, mask)
        blind = model(None, ids, block_mask(labels))
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)
    assert (conversation - expected).abs().max() > 1e-2  # there later turns read earlier ones
    assert (blind - expected).abs().max() > 1e-2


def test_only_the_connector_learns_and_what_is_frozen_stays_in_eval(features):
    model = make_vlm().train()
    assert model.connector.training and not model.language_model.training
    ids, mask, labels = lesson.build_batch(model.tokenizer, TURNS)
    model(features[:2], ids, mask, labels).backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {f"connector.{name}" for name, _ in model.connector.named_parameters()}
    with pytest.raises(AssertionError, match="one image a row"):
        model(features, ids, mask)


# ---- training

DATA = 24


def trained(**options):
    torch.manual_seed(5)
    model = make_vlm()
    features = torch.randn(DATA, 16, 24)
    turns = [[("is it red", ("yes", "no")[k % 2]), ("caption :", "small red")] for k in range(DATA)]
    options = {"steps": 6, "batch_size": 8, "lr": 1e-2, "per_row": 2, **options}
    return model, lesson.train_vlm(model, features, turns, **options)


@pytest.mark.parametrize("per_row", [2, None])
def test_training_lowers_the_loss_and_a_seed_is_one_run(per_row):
    model, history = trained(steps=30, per_row=per_row)
    again, same = trained(steps=30, per_row=per_row)
    _, other = trained(steps=30, per_row=per_row, seed=1)
    assert history.losses[-1] < 0.85 * history.losses[0] and history.losses == same.losses
    assert history.losses != other.losses
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert model.forward.__func__ is lesson.VLM.forward  # accelerate's wrapper is taken off again


def test_a_batch_larger_than_the_data_takes_all_of_it():
    assert trained(batch_size=1000)[1].losses[0] > 0


def test_an_interrupted_training_goes_on_to_the_same_weights(capsys):
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"calls": len(calls)}

    whole, history = trained(steps=60, evaluate=evaluate)  # evaluates once, at step 50
    with pytest.raises(KeyboardInterrupt):
        trained(steps=60, evaluate=evaluate)
    model, resumed = trained(steps=60, evaluate=evaluate)
    assert "goes on after step 50" in capsys.readouterr().out
    assert resumed.losses == history.losses
    assert all(map(torch.equal, whole.state_dict().values(), model.state_dict().values()))


def load_vlm(folder):
    return layout.load_vlm(folder, lesson.VLM, {"qformer": QFormerConnector})


def smoke_weights():
    """The connector after a training on `smoke`, one vector."""
    shipped = load_vlm(resolve_model("shapes-vlm"))
    data = encode_shapes(shipped.vision, "train", SMOKE.train_images, progress=False)
    torch.manual_seed(0)
    connector = QFormerConnector(128, 256, num_query_tokens=SMOKE.num_query_tokens)
    model = lesson.VLM(shipped.vision, connector, shipped.language_model, shipped.tokenizer)
    names = ("steps", "batch_size", "per_row", "lr")
    recipe = {name: getattr(SMOKE, f"connector_{name}") for name in names}
    start = torch.cat([p.detach().flatten() for p in connector.parameters()])
    history = lesson.train_vlm(model, data.features, data.turns, **recipe)
    end = torch.cat([p.detach().flatten() for p in connector.parameters()])
    assert (end - start).abs().max() > 1e-3
    return end, history.losses


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(home):
    small.in_two_processes(__file__, home / "two.json")
    weights, losses = json.loads((home / "two.json").read_text())
    one, alone = smoke_weights()
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(weights), one, atol=1e-3, rtol=0)


# ---- the checkpoint


def test_a_saved_vlm_comes_back_and_one_of_other_models_is_refused(home):
    shipped = load_vlm(resolve_model("shapes-vlm"))
    names = {"vision_model": "shapes-clip", "language_model": "shapes-gpt2"}
    folder = save_vlm(shipped, home / "vlm", **names)
    again = load_vlm(folder)
    pairs = zip(shipped.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert read_json(folder / "config.json")["connector"]["num_query_tokens"] == 16
    config = read_json(data_path("zoo", "shapes-vlm", "config.json"))
    for change, word in (
        ({"hashes": {"vision_model": "0" * 64}}, "shapes-clip"),
        ({"connector": {"name": "mlp"}}, "mlp"),
        ({"connector": None}, "connector"),
    ):
        write_json(folder / "config.json", {**config, **change})
        with pytest.raises(UserError, match=word):
            load_vlm(folder)


def test_what_is_said_of_an_image_comes_with_it(home):
    vision = load_vlm(resolve_model("shapes-vlm")).vision
    data = encode_shapes(vision, "val", 6, progress=False)
    captions, questions = shapes.load_shapes("val", 6, progress=False)
    assert data.ids == captions["image_id"][:] and len(data.features) == len(data.images) == 6
    row = questions[4]
    number = data.ids.index(row["image_id"])
    assert (f"question: {row['question']} answer:", row["answer"]) in data.turns[number]
    assert data.turns[number][0] == ("caption:", data.captions[number][0])
    assert torch.equal(data.of([row])[0], data.features[number])


if __name__ == "__main__":
    torch.set_num_threads(1)
    found, losses = smoke_weights()
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps([found.tolist(), losses]))
    torch.distributed.destroy_process_group()
