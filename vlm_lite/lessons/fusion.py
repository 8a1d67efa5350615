"""Flamingo's resampler and gated cross-attention, CogVLM's visual expert, and a comparison at one budget.

Generated from notebooks/07_fusion.py by `make notebooks`: edit the notebook.
"""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

from vlm_lite.encoded import probe
from vlm_lite.lessons.llava import Projector
from vlm_lite.lessons.modern import SwiGLU
from vlm_lite.lessons.qformer import QFormerConnector
from vlm_lite.lessons.vlm import VLM, train_vlm
from vlm_lite.models.vit import attend


def split_heads(x, heads):
    """(B, N, D) -> (B, H, N, h)."""
    return rearrange(x, "b n (heads h) -> b heads n h", heads=heads)


def merge_heads(x):
    """(B, H, N, h) -> (B, N, D)."""
    return rearrange(x, "b heads n h -> b n (heads h)")


class PerceiverAttention(nn.Module):
    """Latents (B, L, D) attend to context (B, N, D) and to each other -> (B, L, D)."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.context_layer_norm, self.latents_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.v_proj, self.output_proj = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, context, latents):
        context, latents = self.context_layer_norm(context), self.latents_layer_norm(latents)
        source = torch.cat([context, latents], dim=1)  # (B, N + L, D)
        projected = self.q_proj(latents), self.k_proj(source), self.v_proj(source)
        q, k, v = (split_heads(each, self.num_heads) for each in projected)
        return self.output_proj(merge_heads(attend(q, k, v)))


class ReluMLP(nn.Module):
    """x (..., D) -> (..., D), four times as wide inside, as Idefics has it (Flamingo squares the ReLU)."""

    def __init__(self, width):
        super().__init__()
        self.ln, self.fc = nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        return self.c_proj(F.relu(self.fc(self.ln(x))))


class PerceiverResampler(nn.Module):
    """Image vectors (B, N, D), whatever N is -> latents (B, L, D) (Alayrac et al. 2022, appendix A.1.1)."""

    def __init__(self, width, num_latents=16, depth=2, num_heads=4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        pairs = ([PerceiverAttention(width, num_heads), ReluMLP(width)] for _ in range(depth))
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, context):
        latents = self.latents.expand(len(context), -1, -1)  # (B, L, D)
        for attention, mlp in self.blocks:
            latents = latents + attention(context, latents)
            latents = latents + mlp(latents)
        return self.layer_norm(latents)


def last_image_mask(ids, image_id, num_images, per_image):
    """Ids (B, T) with image tokens -> bools (B, T, I * L): a position reads the L vectors of the last image up to it."""
    last = (ids == image_id).cumsum(dim=1)  # (B, T)
    number = torch.arange(num_images, device=ids.device).repeat_interleave(per_image) + 1
    return last[:, :, None] == number


class MediaAttention(nn.Module):
    """Text x (B, T, D) attends to media (B, M, Dm), where reads (B, T, M) allows; 0 where it allows nothing."""

    def __init__(self, width, media_width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(media_width, width, bias=False) for _ in range(2))

    def forward(self, x, media, reads=None):
        projected = self.q_proj(x), self.k_proj(media), self.v_proj(media)
        q, k, v = (split_heads(each, self.num_heads) for each in projected)
        if reads is None:
            return self.o_proj(merge_heads(attend(q, k, v)))
        some = reads.any(dim=2, keepdim=True)  # (B, T, 1); a softmax over nothing is undefined
        mixed = merge_heads(attend(q, k, v, mask=(reads | ~some)[:, None]))
        return self.o_proj(mixed * some)


class GatedCrossAttention(nn.Module):
    """Stands before a frozen layer: x (B, T, D), media (B, M, Dm) -> (B, T, D) (Alayrac et al. 2022, section 2.2)."""

    def __init__(self, width, media_width, num_heads, inner, eps=1e-6):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.cross_attn = MediaAttention(width, media_width, num_heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = SwiGLU(width, inner)
        self.alpha_cross_attn, self.alpha_dense = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(self, x, media, reads=None):
        mixed = self.cross_attn(self.input_layernorm(x), media, reads)
        x = x + self.alpha_cross_attn.tanh() * mixed
        return x + self.alpha_dense.tanh() * self.mlp(self.post_attention_layernorm(x))


class Conditioned(nn.Module):
    """A frozen layer behind a gated cross-attention to `media` (B, M, Dm); None: the layer alone."""

    def __init__(self, layer, gated):
        super().__init__()
        self.layer, self.gated, self.media, self.reads = layer, gated, None, None

    def forward(self, x, *args, **options):
        if self.media is not None:
            x = self.gated(x, self.media, self.reads)
        return self.layer(x, *args, **options)


class FlamingoVLM(VLM):
    """03's VLM without a prefix: every layer of a GPT-2 reads the connector's vectors by gated cross-attention."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__(vision, connector, copy.deepcopy(language_model), tokenizer)
        config, self.layers = language_model.config, self.language_model.transformer.h
        sizes = config.n_embd, vision.feature_width, config.n_head, config.n_embd
        for k, layer in enumerate(self.layers):
            self.layers[k] = Conditioned(layer, GatedCrossAttention(*sizes))
        self.image_id = tokenizer.convert_tokens_to_ids("<image>")
        self.language_model.register_forward_pre_hook(self.hand_over, with_kwargs=True)

    def inputs(self, features, input_ids, attention_mask):
        """features (B, N, Dv) of one image a row; or (B, I, N, Dv), and an image token where each stands; or None."""
        given = super().inputs(None, input_ids, attention_mask)
        self.media = self.reads = None
        if features is not None:
            assert len(features) == len(input_ids), "one row of text for each row of images"
            features = features.to(input_ids.device).float()
            media = self.connector(features.flatten(0, -3))  # (B * I, L, Dm)
            self.media = media.reshape(len(input_ids), -1, media.shape[-1])
            if features.ndim == 4:
                sizes = features.shape[1], media.shape[1]
                given["reads"] = last_image_mask(input_ids, self.image_id, *sizes)
        return given

    def hand_over(self, module, args, kwargs):
        """Before each call of the language model. A new word of an answer reads what the last of the prompt reads."""
        last = None if self.reads is None else self.reads[:, -1:]
        self.reads = kwargs.pop("reads", last)
        for layer in self.layers:
            layer.media, layer.reads = self.media, self.reads
        return args, kwargs

    def gates(self):
        """The gates of every layer, after tanh: (layers, 2), cross-attention and MLP."""
        pairs = ((x.gated.alpha_cross_attn, x.gated.alpha_dense) for x in self.layers)
        return torch.stack([torch.cat(pair) for pair in pairs]).detach().tanh()


class VisualExpert(nn.Module):
    """A frozen part of a layer, x (B, T, D) -> (B, T, E), and a trained copy of it for image positions."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen, self.expert = frozen, copy.deepcopy(frozen).requires_grad_()
        self.at_image = None  # bools (B, T), set before each call; None: there is no image

    def forward(self, x):
        if self.at_image is None:
            return self.frozen(x)
        out, at_image = self.frozen(x), self.at_image
        return out.masked_scatter(at_image[..., None], self.expert(x[at_image]).type_as(out))


class CogVLM(VLM):
    """03's VLM with a visual expert for QKV and MLP in every layer of a GPT-2 (Wang et al. 2023, section 2.1)."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__(vision, connector, copy.deepcopy(language_model), tokenizer)
        self.experts = []
        for layer in self.language_model.transformer.h:
            layer.attn.c_attn, layer.mlp = VisualExpert(layer.attn.c_attn), VisualExpert(layer.mlp)
            self.experts += [layer.attn.c_attn, layer.mlp]
        self.language_model.register_forward_pre_hook(self.hand_over, with_kwargs=True)

    def inputs(self, features, input_ids, attention_mask):
        given = super().inputs(features, input_ids, attention_mask)
        if features is not None:
            positions = torch.arange(given["inputs_embeds"].shape[1], device=input_ids.device)
            at_image = positions < len(positions) - input_ids.shape[1]
            given["at_image"] = at_image.repeat(len(input_ids), 1)  # (B, Q + T)
        return given

    def hand_over(self, module, args, kwargs):
        """Before each call of the language model: new words of an answer are no image positions."""
        at_image = kwargs.pop("at_image", None)
        for expert in self.experts:
            expert.at_image = at_image
        return args, kwargs


def make_vlm(kind, vision, language_model, tokenizer, num_latents=16):
    """A VLM before training; kind: linear, MLP, pixel shuffle + MLP, Q-Former, resampler, cross-attention, visual expert."""
    widths = vision.feature_width, language_model.config.hidden_size
    resampler, sizes = PerceiverResampler(widths[0], num_latents), vision.config.vision_config
    grid = sizes.image_size // sizes.patch_size
    shuffle = Rearrange("b (r a c d) e -> b (r c) (a d e)", r=grid // 2, a=2, d=2)
    connector = {
        "linear": lambda: nn.Linear(*widths),
        "MLP": lambda: Projector(*widths),
        "pixel shuffle + MLP": lambda: nn.Sequential(shuffle, Projector(4 * widths[0], widths[1])),
        "Q-Former": lambda: QFormerConnector(*widths, num_query_tokens=num_latents),
        "resampler": lambda: nn.Sequential(resampler, nn.Linear(*widths)),
        "cross-attention": lambda: resampler,
        "visual expert": lambda: Projector(*widths),
    }[kind]()
    made = {"cross-attention": FlamingoVLM, "visual expert": CogVLM}.get(kind, VLM)
    return made(vision, connector, language_model, tokenizer)


def no_watch(model, inputs):
    """A hook before each step that does nothing."""


def fusion_row(kind, parts, train, val, *, turns=None, seed=0, limit=400, watch=no_watch, **recipe):
    """Train one kind of VLM with a recipe of `train_vlm`, measure it -> (model, history, ProbeResult, {metric: value}).

    parts: vision, language model, tokenizer. turns: in place of those of `train`. watch: a hook before each step.
    """
    torch.manual_seed(seed)
    model = make_vlm(kind, *parts)
    watching = model.register_forward_pre_hook(watch)
    history = train_vlm(model, train.features, turns or train.turns, seed=seed, **recipe)
    watching.remove()
    result, device = probe(model.eval(), val, limit=limit), model.language_model.device
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    row = {name: 100 * score.value for name, score in result.accuracy.items()}
    row |= {kind: 100 * part.accuracy["vlm"].value for kind, part in result.by_type.items()}
    row["million parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    with torch.no_grad():
        length = model.inputs(val.features[:1], one, one)["inputs_embeds"].shape[1]
    row |= {"tokens an image": length - 1, "seconds a step": history.seconds[-1] / recipe["steps"]}
    return model, history, result, row
