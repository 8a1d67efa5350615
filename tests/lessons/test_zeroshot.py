"""Zero-shot: equal to transformers' CLIP pipeline done by hand, and the rules for folders, names and templates."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests import small
from tests.evals.official import png
from tests.small import refused
from vlm_lite.cli.zeroshot import class_folders, classify_folder
from vlm_lite.lessons.retrieval import zeroshot_scores

COLOURS = ["black", "blue_square", "green", "orange", "red", "white", "yellow"]
TEMPLATES = ("a photo of a {}.", "art of the {}.", "a bad photo of the {}.")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures a class, in 64 pixels, folders named after COLOURS."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in COLOURS:
        (folder / name).mkdir()
        for k in range(2):
            noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            plain = Image.new("RGB", (64, 64), name.split("_")[0])
            Image.blend(noise, plain, 0.5).save(folder / name / f"{k}.png")
    (folder / ".hidden").mkdir()
    (folder / "names.txt").write_text("not a class")
    return folder


@pytest.fixture(scope="module")
def openai_like(tmp_path_factory):
    """A tiny CLIP with a tokenizer of OpenAI's kind (byte-level letters, a token before and after each text)."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz.,'"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    eos = tokenizer.eos_token_id
    small.clip(len(words), eos, image_size=64, patch_size=32).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_scores_equal_transformers_clip_by_hand(pictures, openai_like):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    scores = classify_folder(str(pictures), str(openai_like), TEMPLATES, batch_size=5)
    model = CLIPModel.from_pretrained(openai_like, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(openai_like)
    names = [name.replace("_", " ") for name in COLOURS]
    files = [Image.open(pictures / name / f"{k}.png") for name in COLOURS for k in range(2)]
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    pixels = processor(files, return_tensors="pt")
    images = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
    texts = [template.format(name) for name in names for template in TEMPLATES]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    texts = F.normalize(model.get_text_features(**encoded).pooler_output, dim=-1)
    texts = texts.view(len(names), len(TEMPLATES), -1)
    labels = torch.arange(len(names)).repeat_interleave(2)
    for key, w in (("ensemble", F.normalize(texts.mean(1), dim=-1)), ("single", texts[:, 0])):
        best = (images @ w.T).topk(5, dim=1).indices
        for k in (1, 5):
            hits = (best[:, :k] == labels[:, None]).any(dim=1).float().mean().item()
            assert scores[key][f"top{k}"] == pytest.approx(hits)
    assert scores["chance"] == {"top1": 1 / 7, "top5": 5 / 7}
    assert (scores["images"], scores["templates"]) == (14, list(TEMPLATES))
    assert scores["classes"] == names


def test_a_model_of_the_zoo_tells_the_colours(tmp_path):
    for name, colour in (("red", "#e02020"), ("blue", "#2040e0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(colour, (80, 70)))
    scores = classify_folder(tmp_path, "shapes-clip", ("a {} square.", "a {} circle."))
    assert scores["ensemble"]["top1"] == 1
    with refused("shapes-clip.*'itap'"):
        classify_folder(tmp_path, "shapes-clip")


def test_an_encoder_that_says_nothing_finds_nothing():
    equal = zeroshot_scores(torch.ones(4, 3), torch.ones(9, 3), [0, 1, 2, 3])
    assert equal == {"top1": 0, "top5": 0}


def test_classes_may_be_named_renamed_and_more_than_the_folders(pictures, tmp_path):
    paths, labels, names = class_folders(pictures)
    assert names == [name.replace("_", " ") for name in COLOURS] and len(paths) == 14
    assert labels == [k for k in range(7) for _ in range(2)]
    file = tmp_path / "names.txt"
    file.write_text("\n".join(["zebra", *COLOURS[::-1], ""]).replace("red", "red\tcrimson"))
    paths, labels, names = class_folders(pictures, file)
    renamed = [{"red": "crimson"}.get(name, name.replace("_", " ")) for name in COLOURS]
    assert names == ["zebra", *renamed[::-1]]
    assert [names[k] for k in labels[::2]] == renamed


@pytest.mark.parametrize(
    "text, message",
    [
        ("red\nblue", "names.txt .*'black'"),
        ("\n".join([*COLOURS, "red"]), "8 lines with 7 different"),
        ("\n".join(COLOURS).replace("red", "red\tblue square"), "7 lines with 6 different"),
        (None, "does not exist"),
    ],
)
def test_bad_class_names_are_named(pictures, tmp_path, text, message):
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with refused(message):
        class_folders(pictures, tmp_path / "names.txt")


def test_bad_folders_pictures_and_templates_are_named(tmp_path, openai_like):
    for folder in (tmp_path / "none", tmp_path):
        with refused("has 0 sub-folders"):
            class_folders(folder)
    (tmp_path / "cat").mkdir()
    with refused(r"without images \['cat'\]"):
        class_folders(tmp_path)
    (tmp_path / "cat" / "a.png").write_bytes(b"not a picture")
    for templates, words in (
        (("a {}.",), "a.png cannot be decoded"),
        (("a very long prompt " * 9 + "{}",), "the prompts do not fit"),
        (("a cat",), "one {}"),
        (("{} {}",), "one {}"),
        ((), "one {}"),
    ):
        with refused(words):
            classify_folder(tmp_path, str(openai_like), templates)


STRAYS = """cat/.ipynb_checkpoints/1-checkpoint.png .ipynb_checkpoints/1-checkpoint.png __MACOSX/cat/._1.png cat/._1.png
    cat/@eaDir/1.png cat/Thumbs.db dog/.DS_Store cat/.1.png.swp.png"""


@pytest.mark.parametrize("stray", ["", *STRAYS.split()])
def test_what_no_person_put_there_is_skipped_and_named_in_one_line(tmp_path, stray, capsys):
    kept = ["cat/1.png", "cat/kittens/2.png", "dog/3.png"]
    for name in filter(None, [*kept, stray]):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"not looked at")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    paths, labels, names = class_folders(tmp_path)
    assert [str(tmp_path / name) for name in kept] == paths
    assert (labels, names) == ([0, 0, 1], ["cat", "dog"])
    said = capsys.readouterr().err
    assert said.count("\n") == bool(stray) and stray in said
