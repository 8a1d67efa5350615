"""SmolVLM2-256M's architecture, timed here, and its real weights under POPE on photographs.

Generated from notebooks/05t_photographs.py by `make notebooks`: edit the notebook.
"""

import time

import psutil
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

IMAGE, TEXT, NEW = 49_190, 24, 8  # the id of an image token; tokens of the question; new tokens


def random_smolvlm(layers=None):
    """SmolVLM2-256M's architecture with random weights, in fp32; layers: fewer of them."""
    vision = {"hidden_size": 768, "num_hidden_layers": layers or 12, "num_attention_heads": 12}
    vision |= {"intermediate_size": 3072, "image_size": 512, "patch_size": 16}
    text = {"model_type": "llama", "vocab_size": 49_280, "num_hidden_layers": layers or 30}
    text |= {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    text |= {"intermediate_size": 1536, "max_position_embeddings": 8192}
    text |= {"tie_word_embeddings": False}
    sizes = {"vision_config": vision, "text_config": text, "scale_factor": 4}
    config = SmolVLMConfig(**sizes, image_token_id=IMAGE, pad_token_id=2, tie_word_embeddings=False)
    torch.manual_seed(0)
    return SmolVLMForConditionalGeneration(config).eval()


def measure(model, images=1, tiles=1):
    """Answer `images` prompts of `tiles` tiles each with NEW tokens: what it takes, as a row of a table."""
    image_ids = torch.full((64 * tiles,), IMAGE)  # 64 tokens a tile
    ids = torch.cat([image_ids, torch.randint(10, 49_000, (TEXT,))]).repeat(images, 1)
    pixels, start = torch.randn(images, tiles, 3, 512, 512), time.perf_counter()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "return_dict_in_generate": True}
    prompt = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    out = model.generate(**prompt, **options, do_sample=False)
    seconds, layers = time.perf_counter() - start, out.past_key_values.layers
    cache = sum(part.numel() * part.element_size() for x in layers for part in (x.keys, x.values))
    return {
        "images": images,
        "tiles": tiles,
        "tokens read": ids.numel(),
        "seconds": seconds,
        "new tokens a second": images * NEW / seconds,
        "KV cache, MB": cache / 1e6,
        "memory, GB": psutil.Process().memory_info().rss / 1e9,
    }
