"""Notebook 01's saved cells: equal to transformers' CLIP, and no text changes by its padding or company."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from vlm_lite.data.tokenizer import make_tokenizer
from vlm_lite.lessons import clip
from vlm_lite.models.clip import CLIP as LayoutCLIP
from vlm_lite.models.layout import save_clip

SIZES = dict(width=32, image_layers=2, text_layers=1, num_heads=2, projection_dim=16)


def pairs(count=24):
    """count random images and two captions each, with a model for them."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    tokenizer = make_tokenizer()
    words = ["red", "blue", "circle", "star", "large", "small"]
    texts = [f"a {words[k % 6]} {words[k // 6 % 6]} {k % 10}." for k in range(2 * count)]
    return (
        clip.make_clip(tokenizer, **SIZES),
        images,
        clip.tokenize(texts, tokenizer).view(count, 2, -1),
    )


def test_the_model_and_its_loss_equal_transformers(tmp_path):
    model, images, input_ids = pairs(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = CLIPModel.from_pretrained(
        save_clip(model, tmp_path / "clip"), dtype=torch.float32
    ).eval()
    layout = LayoutCLIP.from_pretrained(tmp_path / "clip")
    pixels, ids = clip.pixel_values(images), input_ids[:, 0]
    with torch.no_grad():
        image_embeds, text_embeds, logit_scale = model(pixels, ids)
        output = theirs(pixel_values=pixels, input_ids=ids, return_loss=True)
        for name, mine in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
            torch.testing.assert_close(
                output[name], F.normalize(mine, dim=-1), atol=2e-6, rtol=1e-4
            )
        loss = clip.info_nce(image_embeds, text_embeds, logit_scale)
        torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layout.encode_text(ids), text_embeds, atol=1e-5, rtol=1e-4)


def test_padding_and_company_change_no_text():
    model, _, input_ids = pairs()
    ids = input_ids[:4, 0]
    longer = F.pad(ids, (0, 7))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(longer), model.encode_text(ids))
        torch.testing.assert_close(model.encode_text(longer[:1]), model.encode_text(ids)[:1])
    with pytest.raises(AssertionError, match="context"):
        model.encode_text(F.pad(ids, (0, 64)))
