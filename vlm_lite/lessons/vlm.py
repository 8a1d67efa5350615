"""A Q-Former, equal to BLIP-2's, and the vision-language model around it.

Generated from notebooks/03_qformer_gpt2.py by `make notebooks`: edit the notebook.
"""

import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup

from vlm_lite.checkpoint import Checkpoint, digest
from vlm_lite.models import text
from vlm_lite.models.parts import FrozenParts
from vlm_lite.optim import MuonAdamW
from vlm_lite.profiles import get_compute


def build_batch(tokenizer, rows):
    """B lists of (prompt, answer) -> input_ids, attention_mask (1 text, 0 padding), labels: each (B, T)."""
    eos, pad = text.special_ids(tokenizer)
    ids, labels = [[] for _ in rows], [[] for _ in rows]
    for k, turns in enumerate(rows):
        for turn in turns:
            texts = [turn[0], f" {turn[1].lstrip()}"]
            prompt, answer = tokenizer(texts, add_special_tokens=False)["input_ids"]
            ids[k] += prompt + answer + [eos]
            labels[k] += [-100] * len(prompt) + answer + [eos]
        if tokenizer.chat_template:  # then a row is, token for token, what the template renders
            ids[k], labels[k] = text.conversation(tokenizer, turns)
    mask = pad_sequence([torch.ones(len(row)).long() for row in ids], True)  # by length
    ids = pad_sequence([torch.tensor(row) for row in ids], True, pad)
    return ids, mask, pad_sequence([torch.tensor(row) for row in labels], True, -100)


class VLM(FrozenParts):
    """A frozen vision encoder, a connector that learns, and a frozen causal language model of transformers."""

    def __init__(self, vision, connector, language_model, tokenizer):
        super().__init__()
        self.vision, self.connector = vision.requires_grad_(False), connector
        self.language_model = language_model.requires_grad_(False)
        self.tokenizer = tokenizer

    def inputs(self, features, input_ids, attention_mask):
        """[prefix][text] as the language model takes it. features None: blind, without a prefix."""
        embeds = self.language_model.get_input_embeddings()(input_ids)  # (B, T, D_lm)
        if features is not None:
            assert len(features) == len(input_ids), "one image a row"
            prefix = self.connector(features.to(embeds.device).float())  # (B, Q, D_lm)
            embeds = torch.cat([prefix.to(embeds.dtype), embeds], dim=1)  # (B, Q + T, D_lm)
        return text.prefixed(self.language_model, embeds, attention_mask)  # with mask and positions

    def forward(self, features, input_ids, attention_mask, labels=None):
        """-> logits (B, T, V) of what follows each text token; with labels (B, T), unshifted, the loss ()."""
        inputs, length = self.inputs(features, input_ids, attention_mask), input_ids.shape[1]
        logits = self.language_model(**inputs, use_cache=False, logits_to_keep=length + 1).logits
        if labels is None:
            return logits[:, -length:]
        predicted = logits[:, :-1].float()  # the first at the last prefix vector
        targets = labels[:, -predicted.shape[1] :]
        return F.cross_entropy(predicted.flatten(0, 1), targets.flatten())  # -100 is left out


@torch.no_grad()
def generate(model, features, prompts, max_new_tokens=16):
    """B prompts and features (B, N, Dv), or None -> B greedy answers, each ended by EOS or the limit."""
    device, cache = model.language_model.device, text.cache_name(model.language_model)
    ids, mask = (each.to(device) for each in text.prompt_batch(model.tokenizer, prompts))  # (B, T)
    inputs = text.padding_first(model.inputs(features, ids, mask))
    stops = torch.tensor(text.stop_ids(model.tokenizer), device=device)
    finished, answers = torch.zeros(len(ids), dtype=torch.bool, device=device), []
    for _ in range(max_new_tokens):
        output = model.language_model(**inputs, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(dim=-1)  # (B,)
        answers.append(token)
        finished |= torch.isin(token, stops)  # EOS, or the chat template's end of a turn
        inputs = {
            "inputs_embeds": model.language_model.get_input_embeddings()(token[:, None]),
            "attention_mask": F.pad(inputs["attention_mask"], (0, 1), value=1),
            "position_ids": inputs["position_ids"][:, -1:] + 1,
            cache: output[cache],
        }
        if finished.all():
            break
    return text.decode(model.tokenizer, answers, len(ids))


VLM.generate = generate


def training_step(model, batch, accelerator, optimizer, scheduler):
    """One step on this process's share of a batch (features, ids, mask, labels) -> the whole batch's loss ()."""
    answers = (batch[3] != -100).sum().float()
    whole = accelerator.reduce(answers, "mean")  # the same, averaged over the processes
    with accelerator.autocast():
        loss = model(*batch) * answers / whole
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return accelerator.reduce(loss.detach(), "mean")


def train_vlm(model, features, turns, *, steps, batch_size, lr, per_row=None, seed=0,
              evaluate=None, make_optimizer=MuonAdamW):  # fmt: skip
    """Train what is not frozen on features (N, T, D) and N lists of (prompt, answer) turns -> History.

    per_row: so many turns an image, drawn at random, that don't read each other; None: all, as one conversation.
    """
    assert len(features) == len(turns), "one list of turns an image"
    accelerator = Accelerator(**get_compute().for_accelerate)
    optimizer = make_optimizer(model, lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sizes = {"batch_size": batch_size, "lr": lr, "per_row": per_row, "data": digest(turns)}
    code = (type(model), type(model.connector), training_step, train_vlm, make_optimizer)
    run = Checkpoint("vlm", prepared, optimizer, scheduler, seed=seed, settings=sizes, code=code)
    told = [k for k, each in enumerate(turns) if each]  # images of which something is said
    for step in run.steps(steps):
        rows = random.sample(told, min(batch_size, len(told)))
        said = [turns[k] for k in rows]
        if per_row:
            said = [random.sample(each, min(per_row, len(each))) for each in said]
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        ids, mask, labels = build_batch(model.tokenizer, said[share])
        batch = features[rows[share]], ids, text.block_mask(labels) if per_row else mask, labels
        batch = [part.to(accelerator.device) for part in batch]
        run.log(loss=training_step(prepared, batch, accelerator, optimizer, scheduler))
        if evaluate and (step + 1) % 50 == 0:
            run.log(**evaluate(model))
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    return run.history
