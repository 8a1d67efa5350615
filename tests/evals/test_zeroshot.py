"""Zero-shot: equal to transformers' CLIP pipeline done by hand, and the rules for folders, names and templates."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import small
from vlm_lite.embed import embed_strings
from vlm_lite.evals.zeroshot import class_folders, classify_folder, ensemble, zeroshot_scores
from vlm_lite.files import UserError
from vlm_lite.models.clip import CLIP

COLOURS = ("green", "blue_square", "red", "white", "yellow", "black", "orange")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures a class, in 64 pixels, folders named after COLOURS."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in COLOURS:
        (folder / name).mkdir()
        for k in range(2):
            noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
            plain = Image.new("RGB", (64, 64), name.split("_")[0])
            Image.blend(Image.fromarray(noise), plain, 0.5).save(folder / name / f"{k}.png")
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


TEMPLATES = ("a photo of a {}.", "art of the {}.", "a bad photo of the {}.")


def test_scores_equal_transformers_clip_by_hand(pictures, openai_like):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    scores = classify_folder(str(pictures), str(openai_like), TEMPLATES, batch_size=5)
    model, tokenizer = (
        CLIPModel.from_pretrained(openai_like, dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(openai_like),
    )
    names = sorted(COLOURS)
    files = [
        (pictures / name / f"{k}.png", number)
        for number, name in enumerate(names)
        for k in range(2)
    ]
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    pixels = processor([Image.open(path).convert("RGB") for path, _ in files], return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        images = model.get_image_features(pixel_values=pixels).pooler_output
        weights = []
        texts = ["a cat", "two dogs."]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        torch.testing.assert_close(
            embed_strings(CLIP.from_pretrained(openai_like), texts, tokenizer),
            model.get_text_features(**encoded).pooler_output,
        )
        for name in names:
            texts = tokenizer(
                [t.format(name.replace("_", " ")) for t in TEMPLATES],
                padding=True,
                return_tensors="pt",
            )
            embeds = model.get_text_features(**texts).pooler_output
            weights.append(embeds / embeds.norm(dim=-1, keepdim=True))
    weights = torch.stack(weights)  # (C, T, P)
    labels = torch.tensor([label for _, label in files])
    for key, w in (("ensemble", weights.mean(1)), ("single", weights[:, 0])):
        similarity = (
            images / images.norm(dim=-1, keepdim=True) @ (w / w.norm(dim=-1, keepdim=True)).T
        )
        best = similarity.topk(5, dim=1).indices
        for k in (1, 5):
            hits = (best[:, :k] == labels[:, None]).any(dim=1)
            assert scores[key][f"top{k}"] == pytest.approx(hits.float().mean().item())
    assert scores["chance"] == {"top1": 1 / 7, "top5": 5 / 7}
    assert (scores["images"], scores["templates"]) == (14, list(TEMPLATES))
    assert scores["classes"] == [name.replace("_", " ") for name in names]


def test_a_model_of_the_zoo_tells_the_colours(tmp_path):
    for name, colour in (("red", "#e02020"), ("blue", "#2040e0")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (80, 70), colour).save(tmp_path / name / "a.png")
    scores = classify_folder(tmp_path, "shapes-clip", ("a {} square.", "a {} circle."))
    assert scores["ensemble"]["top1"] == 1
    with pytest.raises(UserError, match="shapes-clip does not know .* for example 'itap'"):
        classify_folder(tmp_path, "shapes-clip")


def test_the_ensemble_is_a_unit_mean_of_unit_vectors():
    embeds = torch.tensor([[[10.0, 0, 0], [0, 1, 0]], [[0, 0, 2], [0, 0, 5]]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]])
    torch.testing.assert_close(ensemble(embeds), expected)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_bounds_order_and_a_perfect_copy(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(classes, 12, generator=generator)
    labels = torch.randint(classes, (20,), generator=generator)
    images = torch.randn(20, 12, generator=generator)
    scores = zeroshot_scores(images, texts, labels)
    assert 0 <= scores["top1"] <= scores["top5"] <= 1
    order = torch.randperm(20, generator=generator)
    assert zeroshot_scores(images[order], texts, labels[order]) == scores
    assert zeroshot_scores(texts[labels], texts, labels) == {"top1": 1, "top5": 1}


def test_equal_embeddings_earn_nothing():
    assert zeroshot_scores(torch.ones(4, 3), torch.ones(9, 3), [0, 1, 2, 3]) == {
        "top1": 0,
        "top5": 0,
    }


def test_classes_may_be_named_renamed_and_more_than_the_folders(pictures, tmp_path):
    paths, labels, names = class_folders(pictures)
    assert (
        names == ["black", "blue square", "green", "orange", "red", "white", "yellow"]
        and len(paths) == 14
    )
    assert labels == [k for k in range(7) for _ in range(2)]
    file = tmp_path / "names.txt"
    file.write_text(
        "zebra\n" + "\n".join(sorted(COLOURS, reverse=True)).replace("red", "red\tcrimson") + "\n"
    )
    paths, labels, names = class_folders(pictures, file)
    assert names == [
        "zebra",
        "yellow",
        "white",
        "crimson",
        "orange",
        "green",
        "blue square",
        "black",
    ]
    assert [names[k] for k in labels[::2]] == [
        "black",
        "blue square",
        "green",
        "orange",
        "crimson",
        "white",
        "yellow",
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("red\nblue", r"names.txt does not name 6 of 7 sub-folder\(s\).* for example 'black'"),
        ("red\nred", "names 'red' twice"),
        ("", "has 0 class names"),
        (None, "does not exist"),
    ],
)
def test_bad_class_names_are_named(pictures, tmp_path, text, message):
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        class_folders(pictures, tmp_path / "names.txt")


def test_bad_folders_pictures_and_templates_are_named(tmp_path, openai_like):
    with pytest.raises(UserError, match="is not a folder"):
        class_folders(tmp_path / "none")
    with pytest.raises(UserError, match="has no sub-folders"):
        class_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="have no pictures, for example 'cat'"):
        class_folders(tmp_path)
    (tmp_path / "cat" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="a.png cannot be decoded"):
        classify_folder(tmp_path, str(openai_like), ("a {}.",))
    with pytest.raises(UserError, match="a prompt does not fit"):
        classify_folder(tmp_path, str(openai_like), ("a very long prompt " * 9 + "{}",))
    for templates in (("a cat",), ("{} {}",), ()):
        with pytest.raises(UserError, match="expected one, where the class name goes"):
            classify_folder(tmp_path, str(openai_like), templates)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_embeds": torch.full((2, 3), float("nan"))}, "image_embeds .* NaN"),
        ({"class_embeds": torch.ones(3)}, r"class_embeds of shape \(3,\)"),
        ({"labels": [0, 2]}, "2 class numbers, each below 2"),
        ({"labels": [0]}, "expected 2 class numbers"),
    ],
)
def test_bad_embeddings_are_named(change, message):
    good = {"image_embeds": torch.eye(2, 3), "class_embeds": torch.eye(2, 3), "labels": [0, 1]}
    with pytest.raises(UserError, match=message):
        zeroshot_scores(**{**good, **change})


@pytest.mark.parametrize(
    "stray",
    [
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/cat/._1.png",
        "cat/._1.png",
        "cat/@eaDir/1.png",
        "cat/Thumbs.db",
        "dog/.DS_Store",
        "cat/.1.png.swp.png",
    ],
)
def test_what_no_person_put_there_is_skipped_and_named_in_one_line(tmp_path, stray, capsys):
    for name in ("cat/1.png", "cat/kittens/2.png", "dog/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"not looked at")
    class_folders(tmp_path)
    assert not capsys.readouterr().err
    (tmp_path / stray).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / stray).write_bytes(b"not looked at")
    paths, labels, names = class_folders(tmp_path)
    assert [str(tmp_path / n) for n in ("cat/1.png", "cat/kittens/2.png", "dog/3.png")] == paths
    assert (labels, names) == ([0, 0, 1], ["cat", "dog"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "1 file" in said and stray in said
