"""Notebook 01t's `t4` cell runs offline, on a mirror laid out like the hub with a small random CLIP of OpenAI's form."""

import functools
import io
import re
import tarfile
from pathlib import Path

import datasets
import jupytext
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel

from tests import small
from vlm_lite import embed
from vlm_lite.data import photographs
from vlm_lite.data.formats import make_dataset
from vlm_lite.data.sources import DATASETS, MODELS, SOURCES
from vlm_lite.hub import HUB, locate
from vlm_lite.lessons import clip, coco_test
from vlm_lite.lessons.retrieval import chance_recall, recall_at_k
from vlm_lite.models.clip import CLIP
from vlm_lite.profiles import Compute, resolve_model
from vlm_lite.rehearsal.mirror import _write_sites, train_tokenizer

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "01t_photographs.py"
(CELL,) = (
    cell.source for cell in jupytext.read(NOTEBOOK).cells if "t4" in cell.metadata.get("tags", [])
)
COLOURS = np.random.default_rng(0).integers(256, size=(12, 3))


def names(on_photographs):
    """What the notebook's earlier cells leave behind."""
    return {
        "F": F,
        "torch": torch,
        "CLIP": CLIP,
        "resolve_model": resolve_model,
        "ks": (1, 5, 10),
        "compute": Compute("cpu", "no", "a test"),
        "recall_at_k": recall_at_k,
        "on_photographs": on_photographs,
        "class_embeddings": clip.class_embeddings,
        "make_clip": clip.make_clip,
        "train_clip": lambda *a, **k: clip.train_clip(*a, **{**k, "steps": 2}),
        **{
            name: getattr(embed, name)
            for name in ("embed_images", "embed_strings", "embed_texts", "tokenize")
        },
        "seed": 0,
        "load_coco_test": coco_test.load_coco_test,
        "recall_pairs": coco_test.recall_pairs,
        "make_dataset": make_dataset,
        "chance_recall": chance_recall,
    }


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """OpenAI's small model, with its wrong eos_token_id, and a shard of COCO's test; CIFAR-10 comes by `datasets`."""
    folder = tmp_path / "mirror"
    monkeypatch.setenv("VLM_LITE_HOME", str(tmp_path / "home"))
    said = _write_sites(
        folder, 32
    )  # COCO's own site, small: 16 photographs to train on, 4 held out, and two steps
    model = Path(locate(f"{HUB}/{MODELS['smaller clip']}/resolve/main", str(folder)))
    model.mkdir(parents=True)
    tokenizer = train_tokenizer(
        ["a photo of a class", "the low contrast photo"] * 9 + said,
        900,
        ("<|startoftext|>", "<|endoftext|>"),
    )
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = (
        "<|startoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    )
    tokenizer.save_pretrained(model)
    small.clip(900, image_size=48, width=32).save_pretrained(model)
    tar = Path(locate(SOURCES["retrieval test"].address.format(0), str(folder)))
    tar.parent.mkdir(parents=True)
    (tar.parent / "nshards.txt").write_text("1")
    with tarfile.open(tar, "w") as archive:
        for number, colour in enumerate(COLOURS):
            picture = io.BytesIO()
            PIL.Image.new("RGB", (64, 56), tuple(int(v) for v in colour)).save(picture, "png")
            texts = "\n".join(f"a photo number {number} {k}" for k in range(5)).encode()
            for suffix, data in (("png", picture.getvalue()), ("txt", texts)):
                entry = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    ten = datasets.ClassLabel(names=[f"class {k}" for k in range(10)])
    cifar = datasets.Dataset.from_dict(
        {
            "img": [np.full((32, 32, 3), colour, np.uint8) for colour in COLOURS],
            "label": [k % 10 for k in range(12)],
        },
        features=datasets.Features(img=datasets.Image(), label=ten),
    )
    imagenette = cifar.rename_column("img", "image")
    found = {(DATASETS["cifar-10"], "test"): cifar, (DATASETS["imagenette"], "train"): imagenette}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: found[name, split])
    monkeypatch.setattr(
        photographs,
        "load_photographs",
        functools.partial(
            photographs.load_photographs,
            choice=photographs.Choice(16, 4, 16, 16, 4),
            mirror=str(folder),
            progress=False,
        ),
    )
    monkeypatch.setenv("VLM_LITE_MIRROR", str(folder))
    return model


def theirs(folder, texts):
    """What transformers' own CLIP says of the twelve colours and of `texts`: unit embeddings of both."""
    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    text = tokenizer(
        [f"<|startoftext|>{t}<|endoftext|>" for t in texts],
        padding=True,
        return_tensors="pt",
        add_special_tokens=False,
    )
    flat = torch.from_numpy(COLOURS).to(torch.uint8)[:, :, None, None].expand(-1, -1, 48, 48)
    with torch.no_grad():
        found = model(text["input_ids"], embed.pixel_values(flat), text["attention_mask"])
    return found.image_embeds, found.text_embeds


@pytest.mark.slow
def test_the_cell_prints_what_transformers_finds_with_the_same_weights(mirror, capsys):
    exec(CELL, names(True))
    printed = capsys.readouterr().out
    rows = {
        line[:34].strip(): float(line[34:42])
        for line in printed.splitlines()
        if re.match(".{34} *[0-9]", line)
    }
    assert len(rows) == 12
    assert len(re.findall(r"(?:NOT )?within 1 point$", printed, flags=re.M)) == 7, (
        "the others have no published figure"
    )
    assert "from nothing: 16 photographs, 2 steps" in printed
    assert rows["chance"] == rows["OpenAI's: R@5 among 4 held out"] == 100, "four of four"
    images, texts = theirs(mirror, [f"a photo number {n} {k}" for n in range(12) for k in range(5)])
    found = recall_at_k(images, texts, torch.arange(60) // 5)
    for way in found:
        for k, share in found[way].items():
            assert rows[f"COCO {way.replace('_', ' ')} R@{k}, 12"] == pytest.approx(
                100 * share, abs=0.06
            )
    kinds = (
        "photo",
        "blurry photo",
        "black and white photo",
        "low contrast photo",
        "high contrast photo",
        "bad photo",
        "good photo",
    )
    prompts = [f"a {kind} of {article} {{}}." for kind in kinds for article in ("a", "the")] + [
        f"a photo of {article} {{}}." for article in ("a small", "a big", "the small", "the big")
    ]
    images, texts = theirs(
        mirror, [prompt.format(f"class {k}") for k in range(10) for prompt in prompts]
    )
    texts = texts.unflatten(0, (10, 18))
    for name, classes in (
        ("one prompt", texts[:, 0]),
        ("ensemble of 18", F.normalize(texts.mean(dim=1), dim=-1)),
    ):
        right = ((images @ classes.T).argmax(dim=1) == torch.arange(12) % 10).float().mean().item()
        assert rows[f"CIFAR-10 zero-shot, {name}"] == pytest.approx(100 * right, abs=0.06)


def test_on_tiny_it_asks_for_nothing(capsys, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("a download on tiny"))
    exec(CELL, names(False))
    assert "only with profile" in capsys.readouterr().out
