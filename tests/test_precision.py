"""As a plain CPU, one step of every model that the course trains multiplies nothing in half precision."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_lite.data.shapes import load_pairs
from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.embed import tokenize
from vlm_lite.encoded import encode_shapes
from vlm_lite.lessons import clip as clip_lesson
from vlm_lite.lessons import instructions, llava, shipped
from vlm_lite.lessons import vit as lesson
from vlm_lite.lessons import vlm as vlm_lesson
from vlm_lite.models.vlm import load_vlm
from vlm_lite.profiles import SMOKE

HALF = torch.bfloat16, torch.float16
PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "convolution",
    "scaled_dot_product",
    "matmul",
    "linear",
)


class Products(TorchDispatchMode):
    """Counts the matrix products within the block, forward, backward and in the optimizer, and keeps the half ones."""

    def __init__(self):
        super().__init__()
        self.count, self.half = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if any(part in name for part in PRODUCTS):
            self.count += 1
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            self.half += [f"{name} in {each.dtype}" for each in tensors if each.dtype in HALF]
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setenv("VLM_LITE_CPU", "plain")


def clip():
    images, texts, _ = load_pairs("train", 16, progress=False)
    tokenizer = make_tokenizer()
    ids = tokenize([text for five in texts for text in five], tokenizer).view(len(images), 5, -1)
    clip_lesson.train_clip(
        clip_lesson.make_clip(tokenizer), images, ids, steps=1, batch_size=8, lr=1e-3
    )


def connector():
    vlm = load_vlm("shapes-vlm")
    data = encode_shapes(vlm.vision, "train", 16, progress=False)
    vlm_lesson.train_vlm(vlm, data.features, data.turns, steps=1, batch_size=4, lr=1e-3, per_row=2)


def vit():
    images, labels, _ = lesson.leftmost_task("train", 16)
    lesson.train_vit(lesson.ViT(), images, labels, steps=1, batch_size=8, lr=1e-3)


def staged(tune):
    vlm, data, _ = shipped.llava_parts(dataclasses.replace(SMOKE, stage_images=16, val_images=16))
    plan = {
        name: {**stage, "trainable": tune if name == "mixed" else stage["trainable"]}
        for name, stage in llava.plan((1, 1, 0), 4).items()
        if name in ("captions", "mixed")
    }
    llava.run_stages(vlm, data.features, instructions.stage_talks(data), plan)


TRAINED = {
    "01, CLIP": clip,
    "02, ViT": vit,
    "03, Q-Former": connector,
    "04, LoRA": lambda: staged("LoRA"),
    "04, full": lambda: staged("all"),
}


@pytest.mark.parametrize("train", TRAINED.values(), ids=TRAINED)
def test_a_step_as_a_plain_cpu_has_no_product_in_half_precision(train):
    with Products() as products:
        train()
    assert products.count > 20
    assert products.half == []


def test_the_check_sees_a_product_in_half_precision_also_in_an_optimizer():
    matrix = torch.nn.Parameter(torch.randn(8, 8))
    matrix.grad = torch.randn(8, 8)
    with Products() as products:
        torch.optim.Muon([matrix], lr=0.1).step()
    assert "mm in torch.bfloat16" in products.half
