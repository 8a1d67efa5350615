"""The recipe of notebook 02: what is trained, what it is compared with, and one thing changed at a time."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import jupytext
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite import vit_recipe
from vlm_lite.data.digits import load_glyphs, make_canvases
from vlm_lite.files import UserError
from vlm_lite.labs import check
from vlm_lite.models.vit import Block
from vlm_lite.models.vit_weights import load_vit
from vlm_lite.profiles import Compute

FP32 = Compute("cpu", "no", "a test")
NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "02_vit.py"


def test_every_variant_starts_from_the_same_weights_and_says_something_else():
    pictures, _, _ = make_canvases("val", 3, size=vit_recipe.CANVAS)
    x = vit_recipe.digit_pixels(pictures)
    models = {
        name: vit_recipe.make_digits_vit(seed=3, **changes).eval()
        for name, changes in vit_recipe.VARIANTS.items()
    }
    reference = models["the ViT"].state_dict()
    for name, model in models.items():
        if name != "no attention: an MLP":
            differs = [
                key
                for key, value in model.state_dict().items()
                if not torch.equal(value, reference[key])
            ]
            assert differs == (
                ["embeddings.position_embedding.weight"] if name == "no positions" else []
            ), name
        if name != "the ViT":
            assert not torch.allclose(model(x).logits, models["the ViT"](x).logits, atol=1e-4), name


def test_without_positions_the_order_of_the_patches_means_nothing_and_none_is_learnt():
    model = vit_recipe.make_digits_vit(positions=False)
    x, p = (
        torch.randn(1, 3, vit_recipe.CANVAS, vit_recipe.CANVAS),
        vit_recipe.DIGITS_VIT["patch_size"],
    )
    torch.testing.assert_close(
        model(x.roll(p, dims=3)).logits, model(x).logits, atol=1e-5, rtol=1e-5
    )
    assert not model.embeddings.position_embedding.weight.requires_grad


def test_a_post_norm_block_normalises_each_sum():
    block = vit_recipe.PostNormBlock(width=16, num_heads=2, mlp_width=32)
    x = torch.randn(2, 5, 16)
    middle = block.layer_norm1(x + block.self_attn(x))
    out, weights = block(x, return_attention=True)
    torch.testing.assert_close(out, block.layer_norm2(middle + block.mlp(middle)))
    torch.testing.assert_close(out.mean(dim=-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    assert weights.shape == (2, 2, 5, 5) and isinstance(block, Block)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_the_same_seed_gives_the_same_run():
    pictures, classes, _ = make_canvases("train", 64, size=vit_recipe.CANVAS, shade=0, noise=0)

    def run():
        model = vit_recipe.make_digits_vit(num_layers=1)
        history = vit_recipe.train_classifier(
            model,
            pictures,
            classes,
            steps=12,
            batch_size=32,
            lr=3e-3,
            log_every=1,
            progress=False,
            compute=FP32,
        )
        return history.losses, vit_recipe.accuracy(model, pictures, classes)

    (losses, score), (again, _) = run(), run()
    assert losses == again and losses[-1] < losses[0] - 0.2 and score > 0.2


def test_pixel_methods_read_the_bare_digits():
    scores = vit_recipe.pixel_methods(*load_glyphs("train"), *load_glyphs("val"))
    assert set(scores) == {"nearest neighbour", "logistic regression", "SVC"}
    assert all(score > 0.95 for score in scores.values())


def test_without_light_a_canvas_is_what_it_is_in_any_light():
    """The light goes evenly between four corners, so a + b x + c y + d xy fits it wholly, but for rounding."""
    place = torch.linspace(-1, 1, 20)
    light = 60 + 20 * place[:, None] + 15 * place + 9 * place[:, None] * place
    ink = torch.zeros(20, 20)
    ink[5:9, 7:12] = 60
    pictures = torch.stack([ink, ink + light, ink + light.T]).round().byte()
    dark, *lit = vit_recipe.without_light(pictures)
    for other in lit:
        np.testing.assert_allclose(other, dark, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(dark), 1)


def test_the_control_without_attention_has_about_as_many_weights():
    sizes = [
        sum(p.numel() for p in vit_recipe.make_digits_vit(attention=attention).parameters())
        for attention in (True, False)
    ]
    assert 0.7 < sizes[0] / sizes[1] < 1.4, sizes


def test_bytes_are_asked_for_and_classes_must_be_as_many_as_pictures():
    with pytest.raises(UserError, match="float32.*uint8"):
        vit_recipe.digit_pixels(torch.zeros(1, 3, 24, 24))
    with pytest.raises(UserError, match="4 pictures but 3 classes"):
        vit_recipe.train_classifier(
            None, torch.zeros(4, 3, 24, 24, dtype=torch.uint8), torch.zeros(3), steps=1
        )


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(
    "wrong, found", [(12, r"hold 0\.\.12"), (-1, r"hold -1\.\.5"), (10, r"hold 0\.\.10")]
)
def test_a_class_that_the_head_has_not_is_refused_before_the_training(attention, wrong, found):
    model, classes = vit_recipe.make_digits_vit(attention=attention), torch.arange(6)
    classes[2] = wrong
    with pytest.raises(UserError, match=found + r", but the model has 10 of them: expected 0\.\.9"):
        vit_recipe.train_classifier(
            model, torch.zeros(6, 3, 20, 20, dtype=torch.uint8), classes, steps=1
        )


def test_a_moved_and_mirrored_picture_is_the_same_picture_somewhere_else():
    pictures = torch.arange(1, 1 + 200 * 3 * 36, dtype=torch.int32).view(200, 3, 6, 6)
    moved = vit_recipe.crop_and_flip(pictures, torch.Generator().manual_seed(0), pad=2)
    places, mirrored = set(), 0
    for before, after in zip(pictures, moved, strict=True):
        padded = F.pad(before, [2] * 4)
        found = [
            (a, b, flip)
            for a in range(5)
            for b in range(5)
            for flip in (False, True)
            if torch.equal(
                after,
                padded[:, a : a + 6, b : b + 6].flip(2)
                if flip
                else padded[:, a : a + 6, b : b + 6],
            )
        ]
        assert len(found) == 1
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert len(places) == 25 and 70 < mirrored < 130


def test_photographs_get_the_range_of_timm_s_own_vits_and_the_size_asked_for():
    pictures = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    pictures[0, 0, 0, :2] = torch.tensor([0, 255])
    config = timm.create_model("vit_small_patch16_224").default_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(vit_recipe.photo_pixels(pictures), (pictures / 255 - mean) / std)
    larger = vit_recipe.photo_pixels(pictures, 32)
    assert larger.shape == (2, 3, 32, 32) and larger.min() >= -1 and larger.max() <= 1


@pytest.fixture
def twelve_photographs(monkeypatch):
    ten = datasets.ClassLabel(names=[f"class {k}" for k in range(10)])
    noise = torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8).numpy()
    table = datasets.Dataset.from_dict(
        {"img": list(noise), "label": [k % 10 for k in range(12)]},
        features=datasets.Features(img=datasets.Image(), label=ten),
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: {"train": table, "test": table}[split]
    )
    return noise


def test_cifar_10_is_read_as_the_recipe_wants_it(twelve_photographs):
    pictures, classes, names = vit_recipe.load_cifar10("test")
    assert torch.equal(pictures, torch.from_numpy(twelve_photographs).permute(0, 3, 1, 2))
    assert classes.tolist() == [k % 10 for k in range(12)] and names[3] == "class 3"


@pytest.mark.slow
def test_the_notebook_s_part_on_photographs_runs_on_a_cpu_at_a_small_size(
    twelve_photographs, monkeypatch, capsys
):
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, num_classes: create(
            name, pretrained=False, num_classes=num_classes, depth=1
        ),
    )
    cells = jupytext.read(NOTEBOOK).cells
    tower = next(cell for cell in cells if "class MyViT" in cell.source)
    (photographs,) = (cell for cell in cells if "t4" in cell.metadata.get("tags", []))
    names = {
        "F": F,
        "nn": nn,
        "rearrange": rearrange,
        "timm": timm,
        "torch": torch,
        "load_vit": load_vit,
        "vit_recipe": vit_recipe,
        "compute": FP32,
        "profile": SimpleNamespace(name="t4"),
        **{
            name: getattr(check, name).reference
            for name in ("attention", "patchify", "pre_norm_block")
        },
    }
    exec(tower.source, names)
    exec(photographs.source, names)
    lines = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert [line.split("  ")[0] for line in lines] == ["from nothing", "pretrained"]
