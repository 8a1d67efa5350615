"""SmolVLM2-256M's architecture, timed here, and its real weights under POPE on photographs.

Generated from notebooks/05t_photographs.py by `make notebooks`: edit the notebook.
"""

import re
import time

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from vlm_lite.embed import pixel_values
from vlm_lite.models import layout

IMAGE, TEXT, NEW = 49_190, 24, 8  # the id of an image token; tokens of the question; new tokens
SIZES = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"


def smolvlm_config(vision, text, scale, *, image_id=0, tied=False, **more):
    """Two rows of sizes -> transformers' SmolVLMConfig.

    vision: width, inner width, layers, heads, image side, patch side. text: width, inner width, layers, heads of
    queries, heads of keys, vocabulary. scale: that of pixel shuffle.
    """
    vision = dict(zip((*SIZES, "image_size", "patch_size"), vision, strict=True))
    text = dict(zip((*SIZES, "num_key_value_heads", "vocab_size"), text, strict=True))
    text |= {"model_type": "llama", "tie_word_embeddings": tied}
    options = {"scale_factor": scale, "image_token_id": image_id, "tie_word_embeddings": tied}
    return SmolVLMConfig(vision_config=vision, text_config=text, **options, **more)


def random_smolvlm(layers=None):
    """SmolVLM2-256M's architecture with random weights, in fp32; layers: fewer of them."""
    vision = 768, 3072, layers or 12, 12, 512, 16
    text = 576, 1536, layers or 30, 9, 3, 49_280
    torch.manual_seed(0)
    config = smolvlm_config(vision, text, 4, image_id=IMAGE, pad_token_id=2)
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


def count(part):
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in part.parameters())


def gflop(part, *shape):
    """Billions of multiplications and additions of a module on the meta device for an input of this shape."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


NAMES = layout.table("""
input_layernorm          norm1
post_attention_layernorm norm2
layer_norm1              norm1
layer_norm2              norm2
mlp.fc1                  mlp.0
mlp.fc2                  mlp.2
out_proj                 o_proj
""")  # transformers', the lesson's
LEFT_OUT = re.compile(r"^model\.|embeddings\.|encoder\.|\.modality_projection\.proj")


def renamed(state):
    """A state dict of transformers' Llama, SigLIP or SmolVLM with the names of notebook 09's modules."""
    head = "text_model." * any("text_model." in name for name in state)
    found = {layout.renamed(LEFT_OUT.sub("", name), NAMES): state[name] for name in state}
    return {head * (name == "lm_head.weight") + name: value for name, value in found.items()}


@torch.no_grad()
def as_siglip(clip, images, num_layers):
    """The first blocks of a CLIP's vision encoder as the state dict of a SigLIP encoder of transformers.

    CLIP's class token is left out. Its LayerNorm before the blocks becomes a constant scale, that of `images`, uint8
    (I, 3, S, S): the features stay nearly the same.
    """
    theirs, place = clip.vision_model, clip.vision_model.embeddings
    patches, positions = place.patch_embedding, place.position_embedding.weight[1:]
    tokens = patches(pixel_values(images)).flatten(2).mT + positions
    scale = theirs.pre_layrnorm.weight / tokens.std(dim=-1).mean()
    state = theirs.encoder.layers[:num_layers].state_dict(prefix="encoder.layers.")
    state |= theirs.post_layernorm.state_dict(prefix="post_layernorm.")
    state["embeddings.patch_embedding.weight"] = patches.weight * scale[:, None, None, None]
    state["embeddings.patch_embedding.bias"] = theirs.pre_layrnorm.bias
    state["embeddings.position_embedding.weight"] = positions * scale
    return state
