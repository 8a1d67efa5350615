"""Notebook 03's VLM as commands and the other notebooks ask it: loaded by name, with its input checked.

    pixels --vision--> features (B, N, Dv) --connector--> prefix (B, Q, D) --+
    text ---------- the language model's own token embeddings (B, T, D) -----+--> language model --> answer

Shapes: B rows, N patches, Q prefix vectors, T text tokens, D language width, V vocabulary.
"""

import warnings
from typing import NamedTuple

import torch

from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.lessons import vlm as lesson
from vlm_lite.models import layout
from vlm_lite.models.projectors import CONNECTORS
from vlm_lite.models.text import IGNORE, context_length, special_ids, tokenize
from vlm_lite.models.text import build_text_batch as build_text_batch
from vlm_lite.profiles import resolve_model


class VLMOutput(NamedTuple):
    """loss: scalar, or None without labels. logits (B, T, V), text positions only; None with labels."""

    loss: torch.Tensor | None
    logits: torch.Tensor | None


class VLM(lesson.VLM):
    """Frozen vision, trainable connector, frozen language model (a causal model of transformers) and its tokenizer.

    vision needs `patch_features(pixel_values) -> (B, N, Dv)`; the connector maps (B, N, Dv) -> (B, Q, D).
    ValueError when their widths do not fit.
    """

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__(vision, connector, language_model, tokenizer)
        widths = {"vision_width": getattr(vision, "feature_width", None)}
        widths["language_width"] = self.embed.embedding_dim
        for side, given in getattr(connector, "settings", {}).items():
            if given != (expected := widths.get(side) or given):
                raise ValueError(
                    f"the connector has {side} {given}, but the model it meets there has width "
                    f"{expected}. Build it with {side}={expected}."
                )
        if len(tokenizer) > self.embed.num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the language model "
                f"{self.embed.num_embeddings} embeddings. Load both from one folder."
            )
        self.train(self.training)

    @property
    def embed(self):
        """The language model's own token embeddings: ids (B, T) -> (B, T, D)."""
        return self.language_model.get_input_embeddings()

    @property
    def device(self):
        """Where the language model's embeddings are."""
        return self.embed.weight.device

    def prefix(self, features):
        """features (B, N, Dv) -> what the language model reads in front of the text, (B, Q, D)."""
        return self.connector(features.to(self.device).float()).to(self.embed.weight.dtype)

    def inputs(self, features, input_ids, attention_mask):
        """As notebook 03's, with features that may be on another device."""
        features = None if features is None else features.to(self.device)
        return super().inputs(features, input_ids, attention_mask)

    def forward(self, features, input_ids, attention_mask=None, labels=None):
        """One step of teacher forcing -> VLMOutput(loss, logits).

        features (B, N, Dv), or None for a blind model; input_ids, attention_mask, labels (B, T), as `build_text_batch`
        makes them. attention_mask: 0 padding, 1 text; or, with several turns in a row that must not read one another,
        the number 1, 2, ... of each token's turn. labels hold the token ids of the answers and -100 elsewhere, **not**
        shifted. ValueError for what does not fit the context and for labels without one answer token.
        """
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.to(self.device)
        if mask.max() > 1:
            mask = (mask[:, :, None] == mask[:, None, :]).tril()  # (B, T, T)
        if labels is None:
            return VLMOutput(None, super().forward(features, input_ids, mask))
        if not (labels[:, features is None :] != IGNORE).any():
            raise ValueError("labels hold no answer token; build_text_batch makes them.")
        return VLMOutput(super().forward(features, input_ids, mask, labels.to(self.device)), None)

    @torch.no_grad()
    def generate(self, features, prompts, max_new_tokens=16, *, batch_size=128):
        """Greedy answers to `prompts`, a list of B strings -> list of B strings, ended by EOS or after max_new_tokens.

        features (B, N, Dv), or None for a blind model. ValueError for an empty prompt or one too long for the context;
        a warning names words that the tokenizer does not know.
        """
        if isinstance(prompts, str) or (features is not None and len(features) != len(prompts)):
            raise ValueError(
                f"prompts is {prompts!r:.60}, with {None if features is None else len(features)} images; expected a "
                "list of strings, one for each image."
            )
        if not prompts:
            return []
        ids = tokenize(self.tokenizer, prompts, what="prompt")
        special_ids(self.tokenizer)  # one without EOS is refused
        unk = self.tokenizer.unk_token_id
        if unk != self.tokenizer.eos_token_id:  # one and the same in GPT-2, a real token
            asked = (text for text, row in zip(prompts, ids, strict=True) if unk in row)
            words = (word for text in asked for word in unknown_words(self.tokenizer, text))
            if unknown := list(dict.fromkeys(words)):
                warnings.warn(
                    "not among the words that the language model knows, and read as "
                    f"{self.tokenizer.unk_token}: {', '.join(unknown[:5])}.",
                    stacklevel=3,
                )
        count = 0 if features is None else self.prefix(features[:1]).shape[1]
        length = count + max(map(len, ids)) + max(max_new_tokens - 1, 0)
        longest = context_length(self.language_model.config)
        if length > longest:
            raise ValueError(
                f"prefix, text and new tokens take {length} positions; the language model reads {longest}. Shorten the "
                "text or ask for fewer new tokens."
            )
        was_training, answers = self.training, []
        self.eval()
        try:
            for start in range(0, len(prompts), batch_size):
                rows = slice(start, start + batch_size)
                part = None if features is None else features[rows]
                answers += lesson.generate(self, part, prompts[rows], max_new_tokens)
        finally:
            self.train(was_training)
        return answers

    def save_pretrained(self, folder, *, vision_model, language_model, dtype=torch.float32):
        """Write the connector only, and the names (zoo names or hub ids) of the two frozen models."""
        (kind,) = (name for name, each in CONNECTORS.items() if type(self.connector) is each)
        names = {"vision_model": vision_model, "language_model": language_model}
        return layout.save_vlm(self, folder, kind, **names, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder, *, resolve=resolve_model):
        """The VLM of a folder, fp32, in eval mode. `resolve` turns a name in its config.json into a folder or hub id.

        UserError names the file or field that is wrong.
        """
        return layout.load_vlm(folder, cls, CONNECTORS, resolve)
