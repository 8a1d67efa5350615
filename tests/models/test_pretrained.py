"""Finished VLMs behind one call: a small random SmolVLM, alone and in batches."""

import time

import pytest
import torch
from PIL import Image

from vlm_lite.files import UserError
from vlm_lite.models.pretrained import PretrainedVLM, allow_smolvlm
from vlm_lite.profiles import Compute

CPU = Compute("cpu", "no", "a test")


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """The folder of a SmolVLM of the real architecture with few random weights, and its processor."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMProcessor,
    )
    from transformers import SmolVLMImageProcessor as Pictures
    from transformers import SmolVLMVideoProcessor as Videos

    allow_smolvlm()
    special = [
        "<pad>",
        "<unk>",
        "<end_of_utterance>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
    ]
    words = [*special, *"User : Assistant Is there a dog cat here ? yes no Answer".split()]
    core = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end_of_utterance>",
        additional_special_tokens=special[3:],
    )
    template = (
        "{% for m in messages %}User : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
        "{% else %} {{ c['text'] }}{% endif %}{% endfor %} <end_of_utterance> {% endfor %} Assistant :"
    )
    size, most = {"longest_edge": 64}, {"longest_edge": 32}
    processor = SmolVLMProcessor(
        Pictures(size=size, max_image_size=most),
        tokenizer,
        Videos(size=size, max_image_size=most),
        image_seq_len=4,
        chat_template=template,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            image_token_id=3,
            pad_token_id=0,
            scale_factor=2,
            vision_config=dict(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=32,
                patch_size=8,
            ),
            text_config=dict(
                model_type="llama",
                vocab_size=len(words),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                max_position_embeddings=512,
            ),
        )
    )
    folder = tmp_path_factory.mktemp("smol")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def photographs():
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(
            torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy()
        )
        for h, w in ((40, 64), (64, 64), (90, 30))
    ]


TEXTS = ["Is there a dog ?", "Is there a cat here ? Answer yes", "a dog ?"]


def test_a_batch_answers_what_each_question_gets_alone(smol):
    vlm, images = PretrainedVLM(str(smol), compute=CPU), photographs()
    alone = [vlm.answer([image], [text], 6)[0] for image, text in zip(images, TEXTS, strict=True)]
    assert vlm.answer(images, TEXTS, 6) == alone
    assert not any(
        "User" in text and "Assistant" in text for text in alone
    )  # the answer only, not the prompt


def test_the_picture_is_seen_and_blind_it_is_not(smol):
    vlm = PretrainedVLM(str(smol), compute=CPU)
    seen = []
    forward = vlm.model.generate
    vlm.model.generate = lambda **inputs: seen.append(inputs) or forward(**inputs)
    vlm.answer(photographs(), TEXTS, 2)
    vlm.answer(None, TEXTS, 2)
    assert "pixel_values" in seen[0] and "pixel_values" not in seen[1]
    assert (seen[1]["input_ids"] != 3).all() and (seen[0]["input_ids"] == 3).any()


def test_the_longest_edge_decides_into_how_many_tiles_a_picture_is_cut(smol):
    tiles = {}
    for edge in (32, 64, 128):
        vlm = PretrainedVLM(str(smol), compute=CPU, longest_edge=edge)
        forward = vlm.model.generate
        vlm.model.generate = lambda edge=edge, forward=forward, **inputs: (
            tiles.update({edge: inputs["pixel_values"].shape[1]}) or forward(**inputs)
        )
        vlm.answer(photographs()[1:2], TEXTS[:1], 2)
    assert tiles[32] < tiles[64] < tiles[128]


@pytest.mark.parametrize("images, texts", [([], []), (None, []), (photographs()[:1], ["a", "b"])])
def test_as_many_pictures_as_texts_are_wanted(smol, images, texts):
    with pytest.raises(UserError, match="images for"):
        PretrainedVLM(str(smol), compute=CPU).answer(images, texts)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        PretrainedVLM(str(tmp_path / "nothing"), compute=CPU)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_strip_is_answered_about_and_is_quick(smol, size):
    vlm = PretrainedVLM(str(smol), compute=CPU)
    started = time.process_time()
    assert len(vlm.answer([Image.new("RGB", size)], [TEXTS[0]], 2)) == 1
    assert time.process_time() - started < 5
