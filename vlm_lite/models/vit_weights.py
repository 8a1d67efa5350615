"""The weights of timm's and transformers' vision transformers, in our `VisionTransformer`.

Both libraries hold the same numbers under other names. Two things must be undone for timm: one matrix `qkv` holds the
three projections of attention one above the other, and the class token and the positions carry a batch axis of 1.
What a file of weights does not say (activation, eps, number of heads) hangs on the model's name, so only named models
are loaded, and a key that our model has no place for is refused by its name.
"""

import re

import torch

from vlm_lite.files import UserError
from vlm_lite.models.vit import VisionTransformer
from vlm_lite.models.weights import load_exactly

HEAD_WIDTH = 64  # of every model named below
PLAIN = dict(embedding_norm=False, patch_bias=True, hidden_act="gelu", layer_norm_eps=1e-6)
CLIP_GELU = dict(hidden_act="gelu", layer_norm_eps=1e-5)
CLIP_QUICK = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5)
TIMM_MODELS = {
    **{
        f"vit_{size}_patch{patch}_224": PLAIN
        for size, patch in (
            ("tiny", 16),
            ("small", 16),
            ("small", 32),
            ("base", 16),
            ("base", 32),
            ("large", 16),
        )
    },
    **{f"deit_{size}_patch16_224": PLAIN for size in ("tiny", "small", "base")},
    **{f"vit_base_patch{patch}_clip_224": CLIP_GELU for patch in (16, 32)},
    **{f"vit_base_patch{patch}_clip_quickgelu_224": CLIP_QUICK for patch in (16, 32)},
}
CLIP_MODELS = {
    f"openai/clip-vit-{size}": CLIP_QUICK
    for size in ("base-patch16", "base-patch32", "large-patch14")
}
TIMM_KEYS = (  # timm's name, ours
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding.weight"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"norm_pre\.(weight|bias)", r"pre_layrnorm.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"encoder.layers.\1.mlp.\2.\3"),
    (r"(?:norm|fc_norm)\.(weight|bias)", r"post_layernorm.\1"),
    (r"head\.(weight|bias)", r"head.\1"),
)
CLIP_KEYS = (  # transformers' name, timm's
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.q_proj\.", ".attn.qkv."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)


def load_vit(name, state, *, num_heads=None):
    """The `VisionTransformer` that `state`, a state dict of the model called `name`, belongs to, in eval mode.

    name: one of `TIMM_MODELS` (state from `timm.create_model(name).state_dict()`) or of `CLIP_MODELS` (state from
    transformers' `CLIPVisionModel`, or from a whole `CLIPModel`, whose text tower is left out). Sizes are read from
    the tensors, so a shallower or narrower model of the same form loads too; `num_heads` is width / 64 unless given.
    With `global_pool="avg"` timm's final norm is called `fc_norm`; then the result has `pool="mean"`.
    UserError for an unknown name, and for keys missing, unsupported or of another shape, which it names.
    What no key tells must be right in the name: quick-GELU weights under `vit_base_patch16_clip_224`, say, give wrong
    features without a word.
    """
    if name in TIMM_MODELS:
        settings, ours = TIMM_MODELS[name], from_timm(state, source=name)
        settings = {**settings, "pool": "mean" if "fc_norm.weight" in state else "cls"}
    elif name in CLIP_MODELS:
        towers = (
            "text_model.",
            "visual_projection.",
            "text_projection.",
            "logit_scale",
        )  # of a whole CLIPModel
        settings, ours = (
            CLIP_MODELS[name],
            {
                key.removeprefix("vision_model."): value
                for key, value in state.items()
                if not key.startswith(towers) and not key.endswith(".position_ids")
            },
        )
    else:
        raise UserError(
            f"{name!r} is no model that load_vit knows. It knows "
            f"{', '.join((*TIMM_MODELS, *CLIP_MODELS))}."
        )
    model = VisionTransformer(**_sizes(ours, num_heads, name), **settings)
    load_exactly(
        model,
        ours,
        source=f"the state of {name}",
        advice="These names are ours; theirs are in TIMM_KEYS, or "
        "have vision_model. in front. Give that model's state dict, whole and unchanged.",
    )
    return model.eval()


def from_timm(state, *, source="the state"):
    """A timm state dict under our names. UserError naming the keys that our `VisionTransformer` has no place for."""
    ours, unsupported = {}, []
    for key, value in state.items():
        name = next(
            (re.sub(theirs, mine, key) for theirs, mine in TIMM_KEYS if re.fullmatch(theirs, key)),
            None,
        )
        if name is None:
            unsupported.append(key)
        elif "{}" in name:
            ours.update(
                {
                    name.format(part): piece
                    for part, piece in zip("qkv", value.chunk(3), strict=True)
                }
            )
        elif key in ("cls_token", "pos_embed"):
            ours[name] = (
                value[0].squeeze(0) if key == "cls_token" else value[0]
            )  # (1, 1, D) -> (D), (1, 1+N, D)
        else:
            ours[name] = value
    if unsupported:
        shown = ", ".join(unsupported[:5]) + (
            f" and {len(unsupported) - 5} more" if len(unsupported) > 5 else ""
        )
        raise UserError(
            f"{source} has keys that our VisionTransformer has no place for: {shown}. It is the plain "
            "pre-norm ViT: one class token, learnt positions, one LayerNorm before attention and one "
            "before the MLP. Choose a model of that form."
        )
    return ours


def clip_to_timm(state):
    """The state dict of CLIP's vision model, under transformers' names, under timm's; q, k and v become one matrix.

    It goes into a timm `VisionTransformer(pre_norm=True)`, or into `lessons.vit.ViT` with a LayerNorm as its `norm_pre`.
    CLIP's patch embedding has no bias: `patch_embed.proj.bias` is zero. UserError where q, k or v is missing.
    """
    timms = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        if re.search(r"[kv]_proj\.", key):  # they go with q
            continue
        if "q_proj" in key:
            names = [key.replace("q_proj", f"{part}_proj") for part in "qkv"]
            if missing := [name for name in names if name not in state]:
                raise UserError(f"the state dict lacks {missing[0]}; give a vision model's, whole.")
            value = torch.cat([state[name] for name in names])
        for theirs, mine in CLIP_KEYS:
            key = re.sub(theirs, mine, key)
        timms[key] = value
    timms["cls_token"] = timms["cls_token"].view(1, 1, -1)
    timms["pos_embed"] = timms["pos_embed"][None]
    timms["patch_embed.proj.bias"] = torch.zeros(len(timms["patch_embed.proj.weight"]))
    return timms


def _sizes(ours, num_heads, source):
    """image_size, patch_size, width, ... of a state under our names. UserError naming the first key that is not there."""
    needed = {
        "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        "embeddings.position_embedding.weight": "pos_embed",
        "encoder.layers.0.mlp.fc1.weight": "blocks.0.mlp.fc1.weight",
    }
    for key, timms in needed.items():
        if key not in ours:
            theirs = timms if source in TIMM_MODELS else f"vision_model.{key}"
            raise UserError(
                f"the state of {source} lacks {theirs} (here {key}), without which its size is unknown. "
                f"It begins with {', '.join(list(ours)[:3]) or 'nothing at all'}. Give the state dict of "
                "the whole model."
            )
    patches, positions, mlp = (ours[key] for key in needed)
    width, patch_size = patches.shape[0], patches.shape[-1]
    side = round((len(positions) - 1) ** 0.5)
    layers = {int(key.split(".")[2]) for key in ours if key.startswith("encoder.layers.")}
    return dict(
        image_size=side * patch_size,
        patch_size=patch_size,
        width=width,
        num_layers=max(layers) + 1,
        num_heads=num_heads or width // HEAD_WIDTH,
        mlp_width=len(mlp),
        num_classes=len(ours["head.bias"]) if "head.bias" in ours else 0,
    )
