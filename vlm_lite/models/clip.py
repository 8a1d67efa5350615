"""CLIP: an image tower and a text tower, trained so that a picture and its caption land on the same spot.

Radford et al. 2021. The loss, for B pairs with cosine similarities s_ij and the learnable inverse temperature
e^logit_scale (initially 1/0.07):

    L = ½ [ mean_i CE(e^logit_scale · s_i: , i) + mean_j CE(e^logit_scale · s_:j , j) ]

Parameter names and the files on disk are those of `transformers.CLIPModel`: save with one, load with the other.
Shapes: B pairs, N patches, T text tokens, D tower width, P joint (projection) width.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.models.checks import check_pairs
from vlm_lite.models.vit import Encoder, VisionTransformer
from vlm_lite.models.weights import find_model, load_exactly, read_weights, write_weights

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The sizes of a CLIP. The defaults are OpenAI's ViT-B/32. `*_mlp_width` None means four times the width.

    eos_token_id: the text is read out at its first EOS. The value 2 means "at the highest id" instead, as in
    transformers, since OpenAI's released configs carry a wrong 2 there.
    """

    image_size: int = 224
    patch_size: int = 32
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_mlp_width: int | None = None
    vocab_size: int = 49408
    context_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_width: int | None = None
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    bos_token_id: int | None = 49406
    pad_token_id: int | None = 1

    def to_hf(self):
        """The same as the dict of a transformers `config.json`."""
        shared = {
            "hidden_act": self.hidden_act,
            "layer_norm_eps": self.layer_norm_eps,
            "projection_dim": self.projection_dim,
            "attention_dropout": 0.0,
        }
        hf = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": math.log(1 / 0.07),
            "vision_config": {"model_type": "clip_vision_model", "num_channels": 3, **shared},
            "text_config": {"model_type": "clip_text_model", **shared},
        }
        for section, names in HF_NAMES.items():
            hf[section].update({theirs: getattr(self, ours) for ours, theirs in names.items()})
        for section, width in (
            ("vision_config", self.vision_width),
            ("text_config", self.text_width),
        ):
            hf[section]["intermediate_size"] = hf[section]["intermediate_size"] or 4 * width
        return hf

    @classmethod
    def from_hf(cls, hf, *, source="config.json"):
        """Read the dict of a transformers `config.json`. UserError, naming the field, for what this CLIP cannot do."""
        if hf.get("model_type") != "clip":
            raise UserError(
                f"{source}: model_type is {hf.get('model_type')!r}, expected 'clip'. "
                "Name a CLIP checkpoint."
            )
        settings = {"projection_dim": hf.get("projection_dim", 512)}
        shared = {}
        for section, names in HF_NAMES.items():
            # Old files carry a `text_config_dict` that transformers lets win over `text_config`.
            values = hf.get(f"{section}_dict") or hf.get(section) or {}
            settings.update(
                {
                    ours: values.get(theirs, HF_DEFAULTS.get(ours, getattr(cls, ours)))
                    for ours, theirs in names.items()
                }
            )
            shared[section] = {
                "hidden_act": values.get("hidden_act", "quick_gelu"),
                "layer_norm_eps": values.get("layer_norm_eps", 1e-5),
            }
            if values.get("num_channels", 3) != 3:
                raise UserError(
                    f"{source}: {section}.num_channels is {values['num_channels']}, expected 3 (RGB). "
                    "Name another checkpoint."
                )
        if shared["vision_config"] != shared["text_config"]:
            raise UserError(
                f"{source}: vision_config has {shared['vision_config']} and text_config "
                f"{shared['text_config']}; this CLIP has one value for both. Name another checkpoint."
            )
        return cls(**settings, **shared["text_config"])


HF_NAMES = {
    "vision_config": {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "vision_width": "hidden_size",
        "vision_layers": "num_hidden_layers",
        "vision_heads": "num_attention_heads",
        "vision_mlp_width": "intermediate_size",
    },
    "text_config": {
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "text_width": "hidden_size",
        "text_layers": "num_hidden_layers",
        "text_heads": "num_attention_heads",
        "text_mlp_width": "intermediate_size",
        "eos_token_id": "eos_token_id",
        "bos_token_id": "bos_token_id",
        "pad_token_id": "pad_token_id",
    },
}
HF_DEFAULTS = {
    "vision_mlp_width": 3072,
    "text_mlp_width": 2048,
}  # where a config.json leaves them out


class CLIPOutput(NamedTuple):
    """logits_per_image (B, B') and its transpose; image_embeds (B, P) and text_embeds (B', P), of unit length."""

    logits_per_image: torch.Tensor
    logits_per_text: torch.Tensor
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor


class TextEmbeddings(nn.Module):
    """Token ids -> vectors, each with its learnt place added."""

    def __init__(self, *, vocab_size, context_length, width):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context_length, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, input_ids):
        """input_ids (B, T) -> (B, T, D)."""
        return (
            self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        )


class TextTransformer(nn.Module):
    """CLIP's text tower: a causal transformer, read out at the end-of-text token, the only one that saw everything."""

    def __init__(
        self,
        *,
        vocab_size,
        context_length,
        width,
        num_layers,
        num_heads,
        eos_token_id,
        mlp_width=None,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ):
        super().__init__()
        self.vocab_size, self.context_length, self.eos_token_id = (
            vocab_size,
            context_length,
            eos_token_id,
        )
        self.embeddings = TextEmbeddings(
            vocab_size=vocab_size, context_length=context_length, width=width
        )
        self.encoder = Encoder(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_width=mlp_width or 4 * width,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=layer_norm_eps)

    def forward(self, input_ids, attention_mask=None):
        """input_ids (B, T), any T up to the context length -> (B, D), the hidden state at each text's EOS.

        Padding stands on the right, so a causal tower never sees it before the EOS: `attention_mask` (B, T) is only
        checked. ValueError for a text without EOS, longer than the context, or padded on the left.
        """
        end = self.eos_positions(input_ids, attention_mask)  # (B,)
        input_ids = input_ids[
            :, : int(end.max()) + 1
        ]  # what follows the last EOS of the batch changes nothing
        x = self.encoder(self.embeddings(input_ids), is_causal=True)  # (B, T, D)
        return self.final_layer_norm(x[torch.arange(len(x), device=x.device), end])  # (B, D)

    def eos_positions(self, input_ids, attention_mask=None):
        """input_ids (B, T) -> (B,), where each text is read out, after the checks that `forward` promises."""
        if input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids is {input_ids.dtype} of shape {tuple(input_ids.shape)}; expected token ids "
                "(B, T). For a single text add the batch axis: input_ids[None]."
            )
        if attention_mask is not None and (
            attention_mask.shape != input_ids.shape
            or not attention_mask[:, 0].all()
            or (attention_mask[:, 1:] > attention_mask[:, :-1]).any()
        ):
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)} is not that of right-padded text "
                f"of shape {tuple(input_ids.shape)}: each row must be 1s, then 0s. "
                "Set tokenizer.padding_side = 'right'."
            )
        if (
            self.eos_token_id == 2
        ):  # OpenAI's configs; their true EOS is the highest id of the vocabulary
            end = input_ids.argmax(dim=1)
        else:
            is_eos = input_ids == self.eos_token_id
            end = is_eos.int().argmax(dim=1)  # the first one: padding may be EOS too
            if not is_eos.any(dim=1).all():
                row = int((~is_eos.any(dim=1)).nonzero()[0])
                raise ValueError(
                    f"input_ids row {row} has no EOS (id {self.eos_token_id}), where the text is read "
                    "out. Append it; when you truncate, cut the words and keep the EOS."
                )
        if int(end.max()) >= self.context_length:
            raise ValueError(
                f"input_ids row {int(end.argmax())} has {int(end.max()) + 1} tokens, but this text tower "
                f"has a context of {self.context_length}. Shorten that text."
            )
        if input_ids.min() < 0 or input_ids.max() >= self.vocab_size:
            raise ValueError(
                f"input_ids holds {int(input_ids.min())}..{int(input_ids.max())}, but this text tower has "
                f"the ids 0..{self.vocab_size - 1}. Use the tokenizer that belongs to these weights."
            )
        return end


class CLIP(nn.Module):
    """Two towers and a temperature. Build it from a `CLIPConfig`, or from its fields as keyword arguments."""

    def __init__(self, config=None, **settings):
        super().__init__()
        if config is None:
            unknown = sorted(set(settings) - {field.name for field in fields(CLIPConfig)})
            if unknown:
                raise ValueError(
                    f"CLIP has no setting {', '.join(unknown)}. It has: "
                    f"{', '.join(field.name for field in fields(CLIPConfig))}."
                )
            config = CLIPConfig(**settings)
        elif settings:
            raise ValueError(
                f"give a CLIPConfig or settings, not both (given: {', '.join(settings)})."
            )
        self.config, self.feature_width = config, config.vision_width
        self.vision_model = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.vision_width,
            num_layers=config.vision_layers,
            num_heads=config.vision_heads,
            mlp_width=config.vision_mlp_width,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.text_model = TextTransformer(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            width=config.text_width,
            num_layers=config.text_layers,
            num_heads=config.text_heads,
            mlp_width=config.text_mlp_width,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            eos_token_id=config.eos_token_id,
        )
        self.visual_projection = nn.Linear(config.vision_width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.projection_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=config.vision_width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=config.text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.load_report = None  # set by from_pretrained

    def encode_image(self, pixel_values):
        """pixel_values (B, 3, S, S), normalised floats -> joint embeddings (B, P), not of unit length."""
        return self.visual_projection(self.vision_model(pixel_values).pooled)

    def encode_text(self, input_ids, attention_mask=None):
        """input_ids (B, T), right-padded, any T up to the context -> joint embeddings (B, P), not of unit length."""
        return self.text_projection(self.text_model(input_ids, attention_mask))

    def patch_features(self, pixel_values, layer=-2):
        """pixel_values (B, 3, S, S) -> (B, N, D), `hidden_states[layer]` of the patches, without the class token."""
        return self.vision_model.patch_features(pixel_values, layer=layer)

    def forward(self, pixel_values, input_ids, attention_mask=None):
        """Every picture against every text -> CLIPOutput with logits e^logit_scale · cosine, (B, B')."""
        image_embeds = F.normalize(self.encode_image(pixel_values), dim=-1)  # (B, P)
        text_embeds = F.normalize(self.encode_text(input_ids, attention_mask), dim=-1)  # (B', P)
        logits = scaled_similarity(image_embeds, text_embeds, self.logit_scale)  # (B, B')
        return CLIPOutput(logits, logits.T, image_embeds, text_embeds)

    @torch.no_grad()
    def clamp_logit_scale(self):
        """Keep e^logit_scale in 1..100 (Radford et al. 2021, section 2.5). Call it after each optimiser step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def save_pretrained(self, folder, *, dtype=torch.float32):
        """Write config.json and model.safetensors that `transformers.CLIPModel.from_pretrained` reads."""
        folder = Path(folder)
        write_weights(folder / "model.safetensors", self.state_dict(), dtype=dtype)
        write_json(
            folder / "config.json",
            {**self.config.to_hf(), "dtype": str(dtype).removeprefix("torch.")},
        )

    @classmethod
    def from_pretrained(cls, folder_or_id):
        """A CLIP in fp32 and eval mode from a folder in Hugging Face layout, or from a hub id (downloaded once).

        `load_report` of the result holds the matched names. UserError when a file is missing or cut short, or when any
        name or shape of the weights does not fit.
        """
        config_path, path = find_model(folder_or_id)
        model = cls(CLIPConfig.from_hf(read_json(config_path), source=config_path))
        state = {
            name.removeprefix(
                "clip."
            ): tensor  # of a model with a CLIP inside: transformers drops it too
            for name, tensor in read_weights(path).items()
            if not name.endswith(".position_ids")
        }  # 0, 1, 2, ...: old files store it, it is no weight
        model.load_report = load_exactly(model, state, source=path, **_other_kind(state))
        return model.eval()


def _other_kind(state):
    """{"advice": what weights of these names are} where they are no whole CLIP in transformers' layout, else {}."""
    fronts = {name.split(".")[0] for name in state}
    if fronts & {"visual", "transformer"}:
        kind = (
            "These are the names of OpenAI's CLIP and of open_clip; take the same model in transformers' "
            "layout, such as openai/clip-vit-base-patch16."
        )
    elif fronts <= {"module", "_orig_mod", "model", "base_model"}:
        kind = (
            f"The names all begin with {', '.join(sorted(fronts))}., which a training script has put in "
            "front: take it off before you save."
        )
    elif len(towers := fronts & {"vision_model", "text_model"}) == 1:
        names = {"vision_model": "a vision encoder", "text_model": "a text encoder"}
        there, lacking = names.pop(towers.pop()), *names.values()
        kind = (
            f"The file holds {there} and no {lacking[2:]}. Take the weights of the whole CLIPModel."
        )
    else:
        return {}
    return {"advice": kind}


def scaled_similarity(image_embeds, text_embeds, logit_scale):
    """e^logit_scale · x yᵀ for unit vectors x (B, P) and y (B', P) -> (B, B'), always in fp32.

    Under autocast the product would be bf16: three digits, of which a scale of 100 leaves nothing after the point.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        return logit_scale.float().exp() * image_embeds.float() @ text_embeds.float().T


def info_nce(image_embeds, text_embeds, logit_scale):
    """The symmetric contrastive loss of the module's first lines -> scalar, fp32.

    image_embeds, text_embeds (B, P): row i of one belongs to row i of the other; any length, they are normalised here.
    logit_scale: the parameter itself, the **log** of the inverse temperature. Agrees with transformers' CLIPModel loss.
    ValueError for shapes that differ, for NaN, and for a scale that is no logarithm (`checks.check_pairs`); a batch of
    one warns, since its loss is 0 whatever the model does.
    """
    check_pairs(image_embeds, text_embeds, logit_scale)
    image_embeds, text_embeds = (
        F.normalize(image_embeds.float(), dim=-1),
        F.normalize(text_embeds.float(), dim=-1),
    )
    logits = scaled_similarity(
        image_embeds, text_embeds, logit_scale
    )  # (B, B), matching pairs on the diagonal
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def info_nce_hard(image_embeds, text_embeds, logit_scale):
    """InfoNCE in which each picture must also tell its caption from almost right ones -> scalar, fp32.

    image_embeds (B, P); text_embeds (B + M, P): the B captions in the order of the pictures, then M texts that are
    wrong for all of them. These count where a picture seeks its text; they seek no picture themselves (NegCLIP,
    Yuksekgonul et al. 2023, section 4). With M = 0 this is `info_nce`.
    """
    captions, wrong = text_embeds[: len(image_embeds)], text_embeds[len(image_embeds) :]
    both_ways = info_nce(image_embeds, captions, logit_scale)
    image_embeds, captions, wrong = (
        F.normalize(x.float(), dim=-1) for x in (image_embeds, captions, wrong)
    )
    logits = scaled_similarity(image_embeds, captions, logit_scale)
    harder = torch.cat([logits, scaled_similarity(image_embeds, wrong, logit_scale)], dim=1)
    # The picture's cross-entropy over B + M texts in the place of that over B: only its normaliser grows.
    return both_ways + (harder.logsumexp(dim=1) - logits.logsumexp(dim=1)).mean() / 2


def one_direction(image_embeds, text_embeds, logit_scale):
    """The half of `info_nce`, with its errors, in which pictures choose and no text does -> scalar, fp32."""
    check_pairs(image_embeds, text_embeds, logit_scale)
    x, y = F.normalize(image_embeds.float(), dim=-1), F.normalize(text_embeds.float(), dim=-1)
    logits = scaled_similarity(x, y, logit_scale)  # (B, B)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def info_nce_shared(image_embeds, text_embeds, logit_scale, same):
    """InfoNCE in which several texts may be right -> scalar, fp32. With the identity for `same` this is `info_nce`.

    same (B, B), symmetric bool: whether text i may stand for text j, as an equal caption may. The right answers share
    the probability 1 (UniCL: Yang et al. 2022, section 3.2). ValueError also where a text may not stand for itself.
    """
    check_pairs(image_embeds, text_embeds, logit_scale)
    x, y = F.normalize(image_embeds.float(), dim=-1), F.normalize(text_embeds.float(), dim=-1)
    if same.shape != 2 * (len(x),) or not same.diagonal().all():
        raise ValueError(
            f"same has shape {tuple(same.shape)}; expected {2 * (len(x),)}, True all along its diagonal."
        )
    logits, target = (
        scaled_similarity(x, y, logit_scale),
        same.float() / same.sum(dim=1, keepdim=True),
    )  # (B, B)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip(image_embeds, text_embeds, logit_scale, logit_bias):
    """SigLIP's sigmoid loss -> scalar, fp32: each of the B² pairs is a yes-or-no question of its own.

    The sum over all pairs, divided by B (Zhai et al. 2023, algorithm 1, which starts with logit_scale = log 10 and
    logit_bias = -10, since nearly all pairs are wrong). Agrees with the loss of transformers' SiglipModel.
    """
    check_pairs(image_embeds, text_embeds, logit_scale, sigmoid=True)
    x, y = F.normalize(image_embeds.float(), dim=-1), F.normalize(text_embeds.float(), dim=-1)
    logits = scaled_similarity(x, y, logit_scale) + logit_bias  # (B, B)
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 on the diagonal, -1 elsewhere
    return -F.logsigmoid(sign * logits).sum() / len(logits)


class GatherWithGradient(torch.autograd.Function):
    """x (B, P) of this process -> (W·B, P), those of all W in the order of their ranks; gradients find their way back.

    torch's own all_gather cuts the graph; here the gradients are summed over all (open_clip's `gather_with_grad`).
    """

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def info_nce_gathered(image_embeds, text_embeds, logit_scale):
    """`info_nce` over the pairs of all processes, each of which gives its own (B, P), all of one B -> scalar, fp32.

    Every process computes the same loss; the mean of their parameters' gradients, as DDP and `train` take it, is the
    gradient of one process with the whole batch.
    """
    return info_nce(
        *(GatherWithGradient.apply(x) for x in (image_embeds, text_embeds)), logit_scale
    )
