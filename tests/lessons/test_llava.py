"""Notebook 04: the projector, LoRA, what each stage trains and reads, its loop, and an evaluation that finds out."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tests import small
from tests.small import refused
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.encoded import encode_shapes
from vlm_lite.files import data_path, read_json
from vlm_lite.lessons import instructions, language, shipped
from vlm_lite.lessons import llava as lesson
from vlm_lite.lessons.vlm import VLM, build_batch
from vlm_lite.models.layout import load_trained, save_trained
from vlm_lite.models.text import pack
from vlm_lite.profiles import SMOKE, resolve_model

CONTROLS = "blind", "shuffled", "hidden", "concrete"


def small_vlm(width=32):
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id
    vision = small.clip(len(tokenizer), eos, image_size=64, width=128)
    reader = small.gpt2(len(tokenizer), width, bos_token_id=eos, eos_token_id=eos)
    return VLM(vision, lesson.Projector(128, width), reader, tokenizer).eval()


@pytest.fixture(scope="module")
def data():
    return encode_shapes(small_vlm().vision, "val", 32, progress=False)


@pytest.fixture(scope="module")
def talks(data):
    return instructions.stage_talks(data)


# ---- what is read


def test_packed_conversations_are_read_as_if_each_were_alone(data, talks):
    vlm = small_vlm()
    row = [talks["conversation"][0][0], *talks["VQA"][1][:2]]
    ids, mask, labels = pack(vlm.tokenizer, [row, row[:1]])
    together = vlm(data.features[:1], ids[:1], mask[:1])[0]
    start = 0
    for turns in row:
        alone = build_batch(vlm.tokenizer, [turns])
        stop = start + alone[0].shape[1]
        assert torch.equal(ids[0, start:stop], alone[0][0])
        assert torch.equal(labels[0, start:stop], alone[2][0])
        separate = vlm(data.features[:1], *alone[:2])[0]
        torch.testing.assert_close(together[start:stop], separate, atol=1e-5, rtol=1e-4)
        start = stop
    assert (
        start == ids.shape[1]
        and (labels[1, len(build_batch(vlm.tokenizer, row[:1])[0][0]) :] == -100).all()
    )


def test_every_stage_reads_its_own_data_and_mixed_all_of_it(data, talks):
    assert talks["captions"][0] == [[("caption:", data.captions[0][0])]]
    assert [len(talk) for row in talks["conversation"] for talk in row] == [3] * len(data.ids)
    asked = [talk[0][0] for row in talks["VQA"] for talk in row]
    brief = sum(instructions.ONE_WORD in prompt for prompt in asked)
    assert len(asked) == len(data.questions) and 0.5 <= brief / len(asked) < 0.65
    kinds = "captions", "conversation", "VQA"
    assert talks["mixed"][3] == [talk for kind in kinds for talk in talks[kind][3]]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_captions_changes_places_and_none_is_lost(data, talks, share):
    found = instructions.stage_talks(data, exchanged=share)["captions"]
    moved = sum(a != b for a, b in zip(found, talks["captions"], strict=True))
    assert abs(moved - share * len(data.ids)) <= 1
    assert sorted(map(str, found)) == sorted(map(str, talks["captions"]))


# ---- what learns


def test_lora_starts_by_adding_nothing_and_leaves_every_weight_of_the_language_model_alone(
    data, talks
):
    vlm, ids = small_vlm(), torch.randint(6, 50, (2, 9))
    before = vlm.language_model(ids).logits
    kept = {name: each.clone() for name, each in vlm.language_model.named_parameters()}
    lesson.set_trainable(vlm, "LoRA")
    torch.testing.assert_close(vlm.language_model(ids).logits, before)
    settings = {"trainable": "LoRA", "optimizer": "AdamW", "lr": 1e-2, "steps": 3}
    lesson.train_stage(
        "lora", vlm, data.features, talks["VQA"], **settings, batch_size=8, per_row=2
    )
    after = {
        name.replace(".layer.", "."): each for name, each in vlm.language_model.named_parameters()
    }
    assert all(torch.equal(kept[name], after[name]) for name in kept)
    changes = [each for each in vlm.modules() if isinstance(each, lesson.LoRA)]
    assert len(changes) == 4 and all(each.b.abs().max() > 0 for each in changes)
    assert not any(isinstance(each.layer, lesson.LoRA) for each in changes)


def test_lora_beside_a_linear_layer_is_that_beside_the_same_conv1d():
    linear, conv = torch.nn.Linear(6, 8), Conv1D(8, 6)
    conv.load_state_dict({"weight": linear.weight.T, "bias": linear.bias})
    one, other = lesson.LoRA(linear, rank=2), lesson.LoRA(conv, rank=2)
    torch.nn.init.normal_(one.b)
    other.load_state_dict({"a": one.a, "b": one.b}, strict=False)
    x = torch.randn(3, 6)
    torch.testing.assert_close(one(x), other(x))
    assert not torch.allclose(one(x), linear(x))


@pytest.mark.parametrize("what", ["connector", "all"])
def test_stage_one_moves_the_connector_only_and_full_tuning_moves_everything(data, talks, what):
    vlm = small_vlm()
    before = copy.deepcopy(vlm.state_dict())
    settings = {"trainable": what, "optimizer": "Muon", "lr": 1e-2, "steps": 2}
    lesson.train_stage(
        "one", vlm, data.features, talks["captions"], **settings, batch_size=8, per_row=1
    )
    moved = {
        name.split(".")[0] for name, t in vlm.state_dict().items() if (t != before[name]).any()
    }
    assert moved == ({"connector"} if what == "connector" else {"connector", "language_model"})


@pytest.mark.parametrize("what", ["LoRA", "all"])
def test_what_was_trained_is_saved_and_comes_back_into_a_model_of_its_kind_only(tmp_path, what):
    vlm, again, other = small_vlm(), small_vlm(), small_vlm()
    for each, kind in ((vlm, what), (again, what), (other, "connector")):
        lesson.set_trainable(each, kind)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    load_trained(again, save_trained(vlm, tmp_path))
    assert all(map(torch.equal, vlm.state_dict().values(), again.state_dict().values()))
    if what == "LoRA":
        with refused("Unexpected key.*c_attn.a"):
            load_trained(other, tmp_path)


@pytest.mark.slow
def test_the_shipped_model_answers_as_its_card_says():
    model, _, val = shipped.llava_parts(replace(SMOKE, val_images=1000))
    lesson.set_trainable(model, "all")
    load_trained(model, resolve_model("shapes-llava"))
    scores = read_json(data_path("zoo", "shapes-llava", "card.json"))["scores"]
    found = lesson.evaluate(model.eval(), val)
    for name in ("CIDEr", "VQA", "VQA, one word", "form"):
        assert found[name].value == pytest.approx(float(scores[name].split()[0]), abs=0.03)
    right = sum(row[-1] for row in shipped.ask_fixed(model, val))
    assert right == pytest.approx(scores["fixed prompts right"], abs=1)  # bf16 may turn one


# ---- the evaluation


class Knowing:
    """In place of `generate`: the right answers, of this very image (looks) or of always the same one."""

    def __init__(self, data, looks):
        self.features, self.looks = data.features.float(), looks
        asked = instructions.instruction_set(data.descriptions, 32)
        self.said = {(row, language.chat_prompt(ask)): reply for row, ask, reply, _ in asked}
        number = {image_id: row for row, image_id in enumerate(data.ids)}
        for each in data.questions:
            for ask in (language.short_prompt, instructions.brief_prompt):
                self.said[number[each["image_id"]], ask(each["question"])] = each["answer"]
        for row, texts in enumerate(data.captions):
            self.said[row, language.CAPTION_PROMPT] = texts[0]

    def __call__(self, features, prompts, max_new_tokens=16):
        if features is None or not self.looks:
            rows = [0] * len(prompts)
        else:
            distance = torch.cdist(features.flatten(1), self.features.flatten(1))
            rows = distance.argmin(1).tolist()
        return [
            self.said.get((row, prompt), "no") for row, prompt in zip(rows, prompts, strict=True)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("looks", [True, False])
def test_the_controls_hold_for_a_model_that_looks_and_for_no_other(data, looks, monkeypatch):
    vlm = small_vlm()
    monkeypatch.setattr(vlm, "generate", Knowing(data, looks))
    scores = lesson.evaluate(vlm, data, images=32, questions=64)
    assert all(each.low <= each.value <= each.high for each in scores.values())
    if looks:
        assert scores["following"].value == scores["form"].value == 1
        assert scores["VQA"].value > 0.9 and scores["VQA, one word"].value > 0.9
        assert scores["CIDEr"].value > 1 and all(scores[name].low > 0 for name in CONTROLS)
    else:
        assert scores["following"].value < 0.2
        assert not any(scores[name].low > 0 for name in CONTROLS)
    assert 3 < scores["text loss"].value < 8  # an untrained model: about ln of the vocabulary
