"""What notebook 09 takes for granted: SmolVLM's configuration and names, a SigLIP made of a CLIP, and counted arithmetic."""

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm_lite.embed import pixel_values
from vlm_lite.models import layout

SIZES = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
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


def smolvlm_config(vision, text, scale, *, image_id=0, tied=False):
    """Two rows of sizes -> transformers' SmolVLMConfig.

    vision: width, inner width, layers, heads, image side, patch side. text: width, inner width, layers, heads of
    queries, heads of keys, vocabulary. scale: that of pixel shuffle.
    """
    from transformers import SmolVLMConfig

    vision = dict(zip((*SIZES, "image_size", "patch_size"), vision, strict=True))
    text = dict(zip((*SIZES, "num_key_value_heads", "vocab_size"), text, strict=True))
    text |= {"model_type": "llama", "tie_word_embeddings": tied}
    options = {"scale_factor": scale, "image_token_id": image_id, "tie_word_embeddings": tied}
    return SmolVLMConfig(vision_config=vision, text_config=text, **options)


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


def count(part):
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in part.parameters())


def gflop(part, *shape):
    """Billions of multiplications and additions of a module on the meta device for an input of this shape."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9
