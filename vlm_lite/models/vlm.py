"""The assembled vision-language model: a frozen eye, a frozen brain, and the nerve between them that learns.

    pixels --vision--> features (B, N, Dv) --connector--> prefix (B, Q, D) --+
    text ---------- the language model's own token embeddings (B, T, D) -----+--> language model --> answer

The language model never learns that it sees: it reads Q more vectors in front of the text. Only the connector has
gradients, which reach it *through* the frozen language model.

Shapes: B rows, N patches, Q prefix vectors, T text tokens, D language width, V vocabulary.
"""

import warnings
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vlm_lite.data.tokenizer import unknown_words
from vlm_lite.features import weights_hash
from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.models.clip import CLIP
from vlm_lite.models.projectors import CONNECTORS, make_connector
from vlm_lite.models.text import (
    IGNORE,
    context_length,
    load_language_model,
    special_ids,
    tokenize,
)
from vlm_lite.models.text import build_text_batch as build_text_batch
from vlm_lite.models.weights import load_exactly, read_weights, write_weights

GROUPS = (
    2  # of rows in a training batch, on a CPU: more groups cost more calls than they save padding
)


class VLMOutput(NamedTuple):
    """loss: scalar, or None without labels. logits (B, T, V), text positions only; None while training on labels."""

    loss: torch.Tensor | None
    logits: torch.Tensor | None


class VLM(nn.Module):
    """Frozen vision, trainable connector, frozen language model (any causal model of transformers) and its tokenizer.

    vision needs `patch_features(pixel_values) -> (B, N, Dv)`; the connector maps (B, N, Dv) -> (B, Q, D).
    ValueError when their widths do not fit.
    """

    def __init__(self, *, vision, connector, language_model, tokenizer):
        super().__init__()
        self.vision, self.connector, self.language_model = vision, connector, language_model
        self.tokenizer = tokenizer
        self.names = {}  # ids of vision and language model, for save_pretrained
        widths = {"vision_width": getattr(vision, "feature_width", None)}
        widths["language_width"] = self.embed.embedding_dim
        for side, expected in widths.items():
            given = getattr(connector, "settings", {}).get(side)
            if None not in (given, expected) and given != expected:
                raise ValueError(
                    f"the connector has {side} {given}, but the model it meets there has width "
                    f"{expected}. Build it with {side}={expected}."
                )
        if len(tokenizer) > self.embed.num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the language model "
                f"{self.embed.num_embeddings} embeddings. Load both from one folder, "
                "or call language_model.resize_token_embeddings."
            )
        vision.requires_grad_(False)
        language_model.requires_grad_(False)
        self.train(self.training)

    def train(self, mode=True):
        """Set the connector's mode. Vision and language model stay in eval: a frozen model must not drop out."""
        super().train(mode)
        self.vision.eval()
        self.language_model.eval()
        return self

    @property
    def embed(self):
        """The language model's own token embeddings: ids (B, T) -> (B, T, D)."""
        return self.language_model.get_input_embeddings()

    @property
    def device(self):
        """Where the language model's embeddings are."""
        return self.embed.weight.device

    @property
    def context_length(self):
        """How many vectors the language model can read, prefix and text together."""
        return context_length(self.language_model.config)

    @torch.no_grad()
    def encode(self, pixel_values):
        """pixel_values (B, 3, S, S), normalised floats -> features (B, N, Dv). Compute once, use every epoch."""
        return self.vision.patch_features(pixel_values.to(self.device))

    def prefix(self, features):
        """features (B, N, Dv) -> what the language model reads in front of the text, (B, Q, D). ValueError for NaN."""
        features = self._check_features(features)
        prefix = self.connector(features)  # (B, Q, D)
        if prefix.ndim != 3 or prefix.shape[::2] != (len(features), self.embed.embedding_dim):
            raise ValueError(
                f"the connector gave shape {tuple(prefix.shape)}; expected ({len(features)}, Q, "
                f"{self.embed.embedding_dim}), the language model's width. Mend its last layer."
            )
        return prefix.to(self.embed.weight.dtype)

    def _check_features(self, features):
        if not features.is_floating_point():
            raise ValueError(
                f"features are {features.dtype}; expected the floats of vlm.encode(pixel_values)."
            )
        features = features.to(self.device, torch.float32)
        if not torch.isfinite(features).all():
            row = int((~torch.isfinite(features).flatten(1).all(dim=1)).nonzero()[0])
            raise ValueError(
                f"features row {row} holds NaN or infinity. Encode that picture again; "
                "if they were cached in fp16, cache them in fp32."
            )
        return features

    def _inputs(self, features, input_ids, attention_mask, new_tokens=0):
        """Prefix and text: inputs_embeds (B, Q+T, D), mask (B, Q+T) or (B, 1, Q+T, Q+T), position ids, and Q."""
        embeds = self.embed(input_ids)  # (B, T, D)
        if features is None:
            prefix = embeds[:, :0]  # blind: a prefix of none
        else:
            if len(features) != len(input_ids):
                raise ValueError(
                    f"{len(features)} pictures for {len(input_ids)} texts; expected one picture a text. "
                    "Repeat the features of a picture that has several questions."
                )
            prefix = self.prefix(features)
        num_prefix, num_text = prefix.shape[1], input_ids.shape[1]
        if (
            num_prefix + num_text + max(new_tokens - 1, 0) > self.context_length
        ):  # the last new token is not read
            new = f" + {new_tokens} new tokens" if new_tokens else ""
            raise ValueError(
                f"prefix of {num_prefix} + text of {num_text}{new} is longer than the language model's "
                f"context of {self.context_length}. Shorten the text or use fewer query tokens."
            )
        mask = torch.cat(
            [attention_mask.new_ones(len(input_ids), num_prefix), attention_mask], dim=1
        )  # (B, Q+T)
        if mask.max() > 1:
            mask, position_ids = self._separate(mask, num_prefix)
        else:  # Places count what is really there. Else a row padded on the left would start at a later place.
            position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, Q+T)
        return torch.cat([prefix, embeds], dim=1), mask, position_ids, num_prefix

    def _separate(self, number, num_prefix):
        """Exchanges numbered 1, 2, ... in a row: each sees the prefix and itself, and starts at place Q."""
        place = torch.arange(number.shape[1], device=number.device)  # (Q+T,)
        same = (number[:, :, None] == number[:, None, :]) | (
            place < num_prefix
        )  # (B, Q+T, Q+T): row i reads j
        hidden = ~(same & (place[:, None] >= place))
        begins = F.pad(number.diff(dim=1) != 0, (1, 0))
        position_ids = (
            place - torch.where(begins, place - num_prefix, 0).cummax(dim=1).values
        )  # (B, Q+T)
        dtype = self.embed.weight.dtype
        mask = torch.zeros(hidden.shape, device=number.device, dtype=dtype).masked_fill(
            hidden, torch.finfo(dtype).min
        )
        return mask[:, None], position_ids

    def _read(self, embeds, mask, position_ids, attention_mask=None):
        """The decoder's hidden states (B, Q+T, D); with the text's mask (B, T), zeros where only padding stands.

        A CPU's time goes with the number of positions: there the shorter rows are read apart from the longer, and each
        group no further than its longest row.
        """
        decoder = self.language_model.get_decoder()
        if attention_mask is None or embeds.device.type != "cpu":
            return decoder(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=False,
            ).last_hidden_state
        ends = ((attention_mask > 0) * torch.arange(1, 1 + attention_mask.shape[1])).amax(
            dim=1
        )  # of each row's text
        order, length, read = ends.argsort(), embeds.shape[1], []
        for rows in order.chunk(GROUPS):
            end = length - attention_mask.shape[1] + int(ends[rows].max())
            end = min(8 * -(-end // 8), length)  # few shapes: a CPU plans its matmuls once for each
            hidden = decoder(
                inputs_embeds=embeds[rows, :end],
                position_ids=position_ids[rows, :end],
                use_cache=False,
                attention_mask=mask[rows, :end] if mask.ndim == 2 else mask[rows, :, :end, :end],
            )
            read.append(F.pad(hidden.last_hidden_state, (0, 0, 0, length - end)))
        return torch.cat(read)[order.argsort()]

    def forward(self, features, input_ids, attention_mask=None, labels=None):
        """One step of teacher forcing -> VLMOutput(loss, logits).

        features (B, N, Dv), or None for a blind model; input_ids, attention_mask, labels (B, T), as `build_text_batch`
        makes them. attention_mask: 0 padding, 1 text; or, with several exchanges in a row that must not read one
        another, the number 1, 2, ... of each token's exchange. labels hold the token ids of the answers and -100
        elsewhere, **not** shifted: position t is compared with what was predicted at t - 1. The loss is the mean over
        answer tokens, that of transformers; logits[:, t] predicts token t + 1. ValueError for what does not fit the
        context and for labels without one answer token.
        """
        input_ids = input_ids.to(self.device)
        attention_mask = (
            torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        )
        embeds, mask, position_ids, num_prefix = self._inputs(features, input_ids, attention_mask)
        head = self.language_model.get_output_embeddings()
        hidden = self._read(
            embeds, mask, position_ids, attention_mask if self.training else None
        )  # (B, Q+T, D)
        # The vocabulary is large: logits of the prefix, (B, Q, V), would be computed for nobody.
        logits = (
            head(hidden[:, num_prefix:]) if labels is None or not self.training else None
        )  # (B, T, V)
        if labels is None:
            return VLMOutput(None, logits)
        if labels.shape != input_ids.shape:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}; expected "
                "the same. Labels cover the text only: the prefix is left out of the loss here."
            )
        targets = F.pad(labels.to(self.device), (num_prefix, 0), value=IGNORE)[:, 1:]  # (B, Q+T-1)
        is_answer = targets != IGNORE
        if not is_answer.any():
            raise ValueError(
                "no label is an answer token: all are -100. Make labels with build_text_batch, and do not "
                "cut the answer off when you shorten a row."
            )
        answer_logits = head(hidden[:, :-1][is_answer]).float()  # (number of answer tokens, V)
        return VLMOutput(F.cross_entropy(answer_logits, targets[is_answer]), logits)

    @torch.no_grad()
    def generate(self, features, prompts, max_new_tokens=16, *, batch_size=128):
        """Greedy answers to `prompts`, a list of B strings -> list of B strings, ended by EOS or after max_new_tokens.

        features (B, N, Dv), or None for a blind model. Rows are padded on the left, between prefix and text, and each
        gets the answer it would get alone. ValueError for an empty prompt or one too long for the context; a warning
        names words that the tokenizer does not know.
        """
        if isinstance(prompts, str):
            raise ValueError(
                f"prompts is one string, {prompts!r}; expected a list of strings: [prompt]."
            )
        if features is not None and len(features) != len(prompts):
            raise ValueError(
                f"{len(features)} pictures for {len(prompts)} prompts; expected one picture a prompt."
            )
        ids = tokenize(self.tokenizer, prompts, what="prompt") if len(prompts) else []
        unk, eos = (
            self.tokenizer.unk_token_id,
            self.tokenizer.eos_token_id,
        )  # one and the same in GPT-2, a real token
        unknown = dict.fromkeys(
            word
            for prompt, row in zip(prompts, ids, strict=True)
            if unk != eos and unk in row
            for word in unknown_words(self.tokenizer, prompt)
        )
        if unknown:
            warnings.warn(
                "not among the words that the language model knows, and read as "
                f"{self.tokenizer.unk_token}: {', '.join(list(unknown)[:5])}.",
                stacklevel=3,
            )
        was_training = self.training
        self.eval()
        try:
            answers = []
            for start in range(0, len(ids), batch_size):
                rows = slice(start, start + batch_size)
                answers += self._generate(
                    None if features is None else features[rows], ids[rows], max_new_tokens
                )
            return answers
        finally:
            self.train(was_training)

    def _generate(self, features, ids, max_new_tokens):
        length = max(len(row) for row in ids)
        eos, pad = special_ids(self.tokenizer)
        input_ids = torch.tensor(
            [[pad] * (length - len(row)) + row for row in ids], device=self.device
        )  # (B, T)
        mask = torch.tensor(
            [[0] * (length - len(row)) + [1] * len(row) for row in ids], device=self.device
        )
        embeds, mask, position_ids, _ = self._inputs(
            features, input_ids, mask, new_tokens=max_new_tokens
        )
        decoder, head = (
            self.language_model.get_decoder(),
            self.language_model.get_output_embeddings(),
        )
        # transformers 5.24 renamed the argument, and warns at every call under the old name.
        cache_name = (
            "cache" if "cache" in signature(decoder.forward).parameters else "past_key_values"
        )
        cache, new_ids = None, []
        finished = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        for _ in range(max_new_tokens):
            # The cache keeps the keys and values of all that was read: from the second round, one token is new.
            output = decoder(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=True,
                **{cache_name: cache},
            )
            next_ids = (
                head(output.last_hidden_state[:, -1]).argmax(dim=-1).masked_fill(finished, pad)
            )  # (B,)
            finished |= next_ids == eos
            new_ids.append(next_ids)
            if finished.all():
                break
            cache, embeds = output[cache_name], self.embed(next_ids[:, None])  # (B, 1, D)
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
            position_ids = position_ids[:, -1:] + 1
        answers = torch.stack(new_ids, dim=1).tolist() if new_ids else [[]] * len(ids)
        answers = [row[: row.index(eos)] if eos in row else row for row in answers]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]

    def save_pretrained(
        self, folder, *, vision_model=None, language_model=None, dtype=torch.float32
    ):
        """Write the connector only: config.json (its name and settings, the ids of the two frozen models) and weights.

        vision_model, language_model: zoo names or hub ids; by default those that from_pretrained was given.
        """
        name = next(
            (name for name, kind in CONNECTORS.items() if type(self.connector) is kind), None
        )
        if name is None:
            raise ValueError(
                f"{type(self.connector).__name__} is not a connector that from_pretrained could build "
                f"again ({', '.join(CONNECTORS)}). Save its state_dict yourself."
            )
        names = {
            "vision_model": vision_model or self.names.get("vision_model"),
            "language_model": language_model or self.names.get("language_model"),
        }
        if None in names.values():
            raise ValueError(
                "the names of the frozen models are not known. Give vision_model=... and "
                "language_model=..., zoo names or hub ids."
            )
        folder = Path(folder)
        write_weights(folder / "model.safetensors", self.connector.state_dict(), dtype=dtype)
        write_json(
            folder / "config.json",
            {
                "model_type": "vlm-lite",
                **names,
                "hashes": self._hashes(),
                "connector": {"name": name, **self.connector.settings},
            },
        )

    def _hashes(self):
        """What tells the eye and the brain that this connector learnt between from any other of the same shape."""
        return {
            "vision_model": weights_hash(self.vision),
            "language_model": weights_hash(self.language_model),
        }

    @classmethod
    def from_pretrained(cls, folder, *, resolve=None):
        """The VLM of a folder, fp32, in eval mode. `resolve` turns a name in its config.json into a folder or hub id.

        By default that is `vlm_lite.profiles.resolve_model`. UserError names the file or field that is wrong.
        """
        if resolve is None:
            from vlm_lite.profiles import resolve_model as resolve
        path = Path(folder) / "config.json"
        config = read_json(path)
        try:
            names = {key: config[key] for key in ("vision_model", "language_model")}
            settings = dict(config["connector"])
            connector = make_connector(
                settings.pop("name"),
                settings.pop("vision_width"),
                settings.pop("language_width"),
                **settings,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not the config of a VLM ({type(error).__name__}: {error}). Expected the fields "
                "vision_model, language_model and connector. Make it again with save_pretrained."
            ) from error
        weights = Path(folder) / "model.safetensors"
        load_exactly(connector, read_weights(weights), source=weights)
        language_model, tokenizer = load_language_model(resolve(names["language_model"]))
        vlm = cls(
            vision=CLIP.from_pretrained(resolve(names["vision_model"])),
            connector=connector,
            language_model=language_model,
            tokenizer=tokenizer,
        )
        vlm.names = names
        found, expected = vlm._hashes(), config.get("hashes", {})
        changed = [
            f"{key} {names[key]!r}" for key in found if expected.get(key, found[key]) != found[key]
        ]
        if changed:
            raise UserError(
                f"{path}: this connector was trained with other weights of {' and '.join(changed)} than "
                "those found under that name. Train it again, or bring the old weights back."
            )
        return vlm.eval()
