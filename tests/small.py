"""Models of the real forms with few weights, the same ones at every call."""

import torch
from transformers import CLIPConfig, GPT2Config, GPT2LMHeadModel

from vlm_lite.models.clip import CLIP


def clip(vocab_size, eos_token_id=2, *, image_size=32, patch_size=16, width=16, act="gelu"):
    """A CLIP of OpenAI's form. (An `eos_token_id` of 2 is the wrong one of their files.)"""
    shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 2, "hidden_act": act, "projection_dim": 16}
    vision = {"image_size": image_size, "patch_size": patch_size, **shared}
    text = {"vocab_size": vocab_size, "eos_token_id": eos_token_id, **shared}
    torch.manual_seed(0)
    return CLIP(CLIPConfig(projection_dim=16, vision_config=vision, text_config=text)).eval()


def gpt2(vocab_size, width=32, **settings):
    """A GPT-2 of one layer that reads 256 tokens."""
    sizes = {"n_embd": width, "n_layer": 1, "n_head": 2, "n_positions": 256}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **(sizes | settings)))
