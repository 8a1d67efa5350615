"""The notebooks' models in Hugging Face layout: the same weights under the names of `transformers` or timm.

They are one in arithmetic and differ in names: transformers keeps the patch embedding of CLIP as a convolution and the
query, key and value of attention apart; notebook 01 and timm have these three in one matrix.
"""

from pathlib import Path

import torch
from transformers import CLIPConfig

from vlm_lite.checkpoint import trainable_parameters
from vlm_lite.models.clip import CLIP
from vlm_lite.models.weights import load_exactly, read_weights, write_weights


def table(text):
    """{name: other name} of lines with both."""
    return dict(line.split() for line in text.strip().splitlines())


NAMES = table("""
image_encoder.patch_embedding    vision_model.embeddings.patch_embedding
image_encoder.class_embedding    vision_model.embeddings.class_embedding
image_encoder.position_embedding vision_model.embeddings.position_embedding.weight
image_encoder.input_norm         vision_model.pre_layrnorm
image_encoder.output_norm        vision_model.post_layernorm
image_encoder.blocks             vision_model.encoder.layers
text_encoder.token_embedding     text_model.embeddings.token_embedding
text_encoder.position_embedding  text_model.embeddings.position_embedding.weight
text_encoder.output_norm         text_model.final_layer_norm
text_encoder.blocks              text_model.encoder.layers
image_projection                 visual_projection
.norm1.                          .layer_norm1.
.norm2.                          .layer_norm2.
.mlp.0.                          .mlp.fc1.
.mlp.2.                          .mlp.fc2.
.out.                            .self_attn.out_proj.
""")  # the notebook's, transformers' (pre_layrnorm is the spelling of the released weights); from norm1 on within a block
TIMM = table("""
embeddings.class_embedding           cls_token
embeddings.position_embedding.weight pos_embed
embeddings.patch_embedding           patch_embed.proj
pre_layrnorm                         norm_pre
post_layernorm                       norm
encoder.layers                       blocks
layer_norm                           norm
self_attn.out_proj                   attn.proj
self_attn.q_proj                     attn.qkv
""")  # transformers' vision model, timm's


def renamed(name, table):
    for own, other in table.items():
        name = name.replace(own, other)
    return name


def to_transformers(model):
    """A `lessons.clip.CLIP` as a `models.clip.CLIP` with the same weights, in eval mode."""
    ours, weights = model.config, {}
    for name, tensor in model.state_dict().items():
        name = renamed(name, NAMES)
        if ".qkv." in name:
            stem, kind = name.split(".qkv.")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{stem}.self_attn.{part}_proj.{kind}"] = piece
        elif name.endswith("patch_embedding.weight"):  # (D, 3 p p) -> (D, 3, p, p)
            weights[name] = tensor.view(len(tensor), 3, ours.patch_size, ours.patch_size)
        else:
            weights[name] = tensor
    shared = {
        "hidden_size": ours.width,
        "intermediate_size": 4 * ours.width,
        "num_attention_heads": ours.num_heads,
        "hidden_act": "gelu",
        "projection_dim": ours.projection_dim,
    }
    vision = {name: getattr(ours, name) for name in ("image_size", "patch_size")}
    text = {name: getattr(ours, name) for name in ("vocab_size", "eos_token_id")}
    vision["num_hidden_layers"] = ours.image_layers
    text |= {"num_hidden_layers": ours.text_layers, "bos_token_id": None, "pad_token_id": None}
    text["max_position_embeddings"] = ours.context_length
    configs = {"vision_config": vision | shared, "text_config": text | shared}
    theirs = CLIP(CLIPConfig(projection_dim=ours.projection_dim, **configs))
    theirs.load_state_dict(weights)
    return theirs.eval()


def save_clip(model, folder, *, dtype=torch.float32):
    """Write a `lessons.clip.CLIP` for `transformers.CLIPModel.from_pretrained`; returns the folder."""
    theirs = to_transformers(model)
    write_weights(Path(folder) / "model.safetensors", theirs.state_dict(), dtype=dtype)
    theirs.config.save_pretrained(folder)
    return folder


def clip_to_timm(state):
    """The state dict of transformers' CLIP vision model under timm's names; q, k and v become one matrix.

    It goes into a timm `VisionTransformer(pre_norm=True)`, or into `lessons.vit.ViT` with a LayerNorm as its `norm_pre`.
    CLIP's patch embedding has no bias: `patch_embed.proj.bias` is zero.
    """
    timms = {}
    for key, value in state.items():
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if not any(name in key for name in ("k_proj", "v_proj", "position_ids")):
            timms[renamed(key, TIMM)] = value
    timms["cls_token"] = timms["cls_token"].view(1, 1, -1)
    timms["pos_embed"] = timms["pos_embed"][None]
    timms["patch_embed.proj.bias"] = torch.zeros(len(timms["patch_embed.proj.weight"]))
    return timms


BLIP2 = table("""
encoder.layer.                  layers.
crossattention.attention        cross_attention
attention.attention             self_attention
crossattention.output.dense     cross_attention.output
crossattention.output.LayerNorm cross_norm
.attention.output.dense         .self_attention.output
.attention.output.LayerNorm     .self_norm
intermediate_query.dense        mlp_in
output_query.dense              mlp_out
output_query.LayerNorm          mlp_norm
layernorm.                      input_norm.
""")  # transformers', ours; in this order


def from_blip2(state):
    """The weights of a `transformers.Blip2QFormerModel` under the names of `lessons.qformer.QFormer`, without queries."""
    return {renamed(name, BLIP2): tensor for name, tensor in state.items()}


def save_trained(model, folder, *, dtype=torch.float32):
    """Write model.safetensors with what is trainable in a model: a VLM's connector and LoRA, say. Returns the folder."""
    weights = {name: each.detach() for name, each in trainable_parameters(model).items()}
    write_weights(Path(folder) / "model.safetensors", weights, dtype=dtype)
    return folder


def load_trained(model, folder):
    """Copy what `save_trained` wrote into a model with the same trainable parameters; UserError where they differ."""
    path = Path(folder) / "model.safetensors"
    weights = read_weights(path)
    state = dict(weights)
    whose = {each.data_ptr(): name for name, each in trainable_parameters(model).items()}
    for name, tensor in model.state_dict().items():
        trained = whose.get(tensor.data_ptr())  # a tied weight has two names, and is kept under one
        if trained is None or trained in weights:
            state[name] = weights.get(trained, tensor)
    load_exactly(model, state, source=path)
    return model
