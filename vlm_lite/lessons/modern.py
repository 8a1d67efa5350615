"""SmolVLM's architecture, from RMSNorm to generation with a KV cache, equal to transformers' and trained on Shapes.

Generated from notebooks/09_modern_vlm.py by `make notebooks`: edit the notebook.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.embed import pixel_values
from vlm_lite.lessons.resolution import pixel_shuffle
from vlm_lite.models import text, vit


class RMSNorm(nn.Module):
    """x (..., D) over its root mean square, times a learnt weight (Zhang and Sennrich 2019)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        wide = x.float()  # squares of fp16 or bf16 would lose digits
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)


class SwiGLU(nn.Module):
    """x (..., D) -> (..., D): one projection opens and closes the channels of another (Shazeer 2020)."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_tables(positions, head_dim, theta):
    """positions (B, T) -> cos and sin of the angles, each (B, 1, T, h): the two halves of h repeat them."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, h / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """x (B, H, T, h) with each pair (i, i + h / 2) turned by its position's angle -> (B, H, T, h)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """x (B, T, D) -> (B, T, D), and the keys and values (B, G, S, h) of all S positions so far."""

    def __init__(self, width, heads, groups, head_dim, bias=False):
        super().__init__()
        assert heads % groups == 0, f"{groups} heads of keys can't serve {heads} heads of queries"
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias)
        self.k_proj, self.v_proj = (nn.Linear(width, groups * head_dim, bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * head_dim, width, bias)

    def forward(self, x, rope=None, reads=None, past=None):
        """rope: cos, sin (B, 1, T, h); reads: bools (B, 1, T, S); past: keys and values before x. Each may be None."""
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        split = "b t (heads h) -> b heads t h"
        q, k, v = (rearrange(each, split, h=self.head_dim) for each in projected)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        share = q.shape[1] // k.shape[1]  # query heads that share one head of keys and values
        keys, values = (each.repeat_interleave(share, dim=1) for each in (k, v))  # (B, H, S, h)
        mixed = vit.attend(q, keys, values, mask=reads)
        return self.o_proj(rearrange(mixed, "b heads t h -> b t (heads h)")), (k, v)


class Block(nn.Module):
    """A pre-norm layer: x (B, T, D) -> (B, T, D), and what its attention keeps."""

    def __init__(self, norm, width, eps, attention, mlp):
        super().__init__()
        self.norm1, self.norm2 = norm(width, eps), norm(width, eps)
        self.self_attn, self.mlp = attention, mlp

    def forward(self, x, *how):
        mixed, kept = self.self_attn(self.norm1(x), *how)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), kept


class Llama(nn.Module):
    """Vectors (B, T, D) -> logits (B, T, V), and the cache: keys and values (B, G, S, h) of every layer."""

    def __init__(self, config):
        super().__init__()
        self.theta, self.head_dim = config.rope_parameters["rope_theta"], config.head_dim
        width, eps = config.hidden_size, config.rms_norm_eps
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            steps = GroupedQueryAttention(width, *heads), SwiGLU(width, config.intermediate_size)
            self.layers.append(Block(RMSNorm, width, eps, *steps))
        self.norm = RMSNorm(width, eps)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeds, attention_mask=None, cache=None):
        """attention_mask (B, S): 1 text, 0 padding, of all that was read; or (B, T, S): what each position may read."""
        past = cache[0][0].shape[2] if cache else 0
        place = torch.arange(past + embeds.shape[1], device=embeds.device)
        before, itself = place <= place[past:, None], place == place[past:, None]  # (T, S)
        mask = torch.ones_like(before)[None] if attention_mask is None else attention_mask.bool()
        reads = before & (mask if mask.ndim == 3 else mask[:, None]) | itself  # (B, T, S)
        positions = reads.sum(dim=2) - 1  # (B, T) padding is not counted
        rope = rope_tables(positions, self.head_dim, self.theta)
        x, kept = embeds, []
        for layer, old in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, new = layer(x, rope, reads[:, None], old)
            kept.append(new)
        return self.lm_head(self.norm(x)), kept


class VisionEncoder(nn.Module):
    """Pixels (I, 3, S, S) -> (I, N, Dv): SigLIP's ViT, with learnt positions and no class token."""

    def __init__(self, config):
        super().__init__()
        self.side, patch, width = config.image_size, config.patch_size, config.hidden_size
        heads, inner = config.num_attention_heads, config.intermediate_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2, width)
        self.layers = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))
            attention = GroupedQueryAttention(width, heads, heads, width // heads, bias=True)
            self.layers.append(Block(nn.LayerNorm, width, config.layer_norm_eps, attention, mlp))
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels):
        if pixels.shape[1:] != (3, self.side, self.side):
            raise ValueError(f"pixels {tuple(pixels.shape)}; expected sides of {self.side}")
        x = self.patch_embedding(pixels).flatten(2).mT + self.position_embedding.weight
        for layer in self.layers:
            x, _ = layer(x)
        return self.post_layernorm(x)


def insert_images(token_embeds, input_ids, image_embeds, image_id):
    """token_embeds (B, T, D) of input_ids (B, T), with image_embeds (I, N, D) at the I · N image tokens, in order."""
    at_image = input_ids == image_id  # (B, T)
    found, needed = int(at_image.sum()), len(image_embeds.flatten(0, 1))
    if found != needed:
        raise ValueError(f"the text has {found} image tokens, and its images have {needed} vectors")
    return token_embeds.masked_scatter(at_image[..., None], image_embeds.to(token_embeds.dtype))


class ModernVLM(nn.Module):
    """SmolVLM: a ViT, pixel shuffle and a linear layer, a Llama. config: transformers' SmolVLMConfig."""

    def __init__(self, config):
        super().__init__()
        self.vision_model, self.scale = VisionEncoder(config.vision_config), config.scale_factor
        self.text_model, self.image_id = Llama(config.text_config), config.image_token_id
        wide = self.scale**2 * config.vision_config.hidden_size
        self.connector = nn.Linear(wide, config.text_config.hidden_size, bias=False)

    def encode(self, pixels):
        """Pixels (I, 3, S, S) -> image embeddings (I, N, D)."""
        return self.connector(pixel_shuffle(self.vision_model(pixels), self.scale))

    def embed(self, ids, images=None):
        """Token ids (B, T), with image embeddings (I, N, D) where the image tokens are -> (B, T, D)."""
        embeds = self.text_model.embed_tokens(ids)
        return embeds if images is None else insert_images(embeds, ids, images, self.image_id)

    def forward(self, ids, attention_mask=None, pixels=None):
        """ids (B, T), mask (B, T), pixels (I, 3, S, S) or None -> logits (B, T, V)."""
        images = None if pixels is None else self.encode(pixels)
        return self.text_model(self.embed(ids, images), attention_mask)[0]


@torch.no_grad()
def generate(model, input_ids, attention_mask, image_embeds=None, max_new_tokens=16, eos=None):
    """Prompts (B, T), padded on the left -> greedy new tokens (B, up to max_new_tokens), until each row said eos."""
    embeds, cache, said = model.embed(input_ids, image_embeds), None, []
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        logits, cache = model.text_model(embeds, attention_mask, cache)
        token = logits[:, -1].argmax(dim=-1)  # (B,)
        said.append(token)
        finished |= token == eos
        embeds = model.text_model.embed_tokens(token[:, None])  # (B, 1, D): all that is new
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        if finished.all():
            break
    return torch.stack(said, dim=1)


class ShapesVLM(ModernVLM):
    """The model with a tokenizer: the loss of answers, and answers in words."""

    def __init__(self, config, tokenizer):
        super().__init__(config)
        self.tokenizer, side = tokenizer, self.vision_model.side // config.vision_config.patch_size
        self.slots = "<image> " * (side // config.scale_factor) ** 2  # an image in the text

    def forward(self, images, ids, mask, labels, blind_share=0.1):
        """Images (B, 3, S, S) uint8; rows of turns: ids, labels (B, T), mask (B, T, T) of who reads whom -> loss ()."""
        embeds, at_image = self.encode(pixel_values(images)), ids == self.image_id
        turns = at_image.sum(dim=1) // embeds.shape[1]  # (B,) each shows the image anew
        embeds = self.embed(ids, embeds.repeat_interleave(turns, dim=0))
        seen = torch.rand(len(ids), 1, device=ids.device) >= blind_share  # the others are blind
        logits = self.text_model(embeds, mask & (seen | ~at_image)[:, None])[0][:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    def generate(self, image_embeds, prompts, max_new_tokens=8):
        """B prompts, with image embeddings (B, N, D) or None -> B answers in words."""
        slots, (eos, _) = self.slots * (image_embeds is not None), text.special_ids(self.tokenizer)
        ids, mask = text.prompt_batch(self.tokenizer, [slots + prompt for prompt in prompts])
        rows = text.padding_first({"input_ids": ids, "attention_mask": mask}).values()
        found = generate(self, *rows, image_embeds, max_new_tokens, eos)
        return text.decode(self.tokenizer, list(found.T), len(prompts))
