"""What goes into a contrastive model and what comes out: normalised pixels, token ids, and embeddings of unit length."""

import torch
import torch.nn.functional as F

from vlm_lite.files import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixel_values(images):
    """uint8 images (N, 3, S, S) in 0..255 -> floats, normalised with the mean and std that CLIP uses."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)
    )
    return (images / 255 - mean) / std


def tokenize(texts, tokenizer):
    """N strings -> token ids (N, T): each text, then EOS, then padding."""
    texts = [text + tokenizer.eos_token for text in texts]
    found = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    return found["input_ids"]


def embed_images(model, images):
    """uint8 images (N, 3, S, S) -> unit vectors (N, P) on the CPU, 500 images at a time, in eval mode."""
    return _embed(model, lambda part: model.encode_image(pixel_values(part)), images)


def embed_texts(model, input_ids):
    """Token ids (N, T) -> unit vectors (N, P) on the CPU, in eval mode."""
    return _embed(model, model.encode_text, input_ids)


def embed_strings(model, texts, tokenizer):
    """N strings -> unit vectors (N, P). UserError for none, and for one beyond the context."""
    if isinstance(texts, str) or not len(texts):
        raise UserError(f"expected texts, got {texts!r}; give a list of one string or more.")
    begin = tokenizer.bos_token or ""  # OpenAI's CLIP begins its texts with a token
    ids = tokenize([begin + text for text in texts], tokenizer)  # (N, T)
    lengths = (ids == tokenizer.eos_token_id).int().argmax(dim=1) + 1
    context = model.config.text_config.max_position_embeddings
    if lengths.max() > context:
        row = int((lengths > context).nonzero()[0])
        raise UserError(
            f"text {row} (the first is 0) has {int(lengths[row])} tokens, and the model reads {context}: "
            f"{texts[row][:60]!r}... Shorten it."
        )
    return embed_texts(model, ids)


@torch.no_grad()
def _embed(model, encode, inputs):
    model.eval()
    device = model.logit_scale.device
    parts = [encode(part.to(device)).float().cpu() for part in inputs.split(500)]
    return F.normalize(torch.cat(parts), dim=-1)
