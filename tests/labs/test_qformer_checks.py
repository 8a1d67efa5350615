"""Notebook 03's checks: right answers of several styles pass, and each known mistake is called by its name."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs import check
from vlm_lite.labs import qformer as known
from vlm_lite.lessons import qformer


def changed(base, forward):
    """A subclass of a module of the lesson with another `forward`."""
    return type(base.__name__, (base,), {"forward": forward})


# ---- attention to a source


def with_einsum(self, x, source):
    q, k, v = self.query(x), self.key(source), self.value(source)
    q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
    weights = torch.einsum("bhqd,bhnd->bhqn", q, k).div(q.shape[-1] ** 0.5).softmax(3)
    self.weights = weights.detach()
    return self.output(torch.einsum("bhqn,bhnd->bqhd", weights, v).flatten(2))


def attends(keep=True, **how):
    def forward(self, x, source):
        out, weights = known._attended(self, x, source, **how)
        self.weights = {True: weights.detach(), False: None, "graph": weights, "x": weights.mT}[
            keep
        ]
        return out

    return changed(qformer.MultiHeadAttention, forward)


def reads(inputs):
    """The right attention between other inputs than (x, source)."""

    def forward(self, x, source):
        return qformer.MultiHeadAttention.forward(self, *inputs(x, source))

    return changed(qformer.MultiHeadAttention, forward)


class OtherNames(nn.Module):
    def __init__(self, width, num_heads, source_width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))


# ---- a layer, the model


def layer(change):
    return changed(
        qformer.QFormerLayer, lambda self, z, patches: known._layer(self, z, patches, change=change)
    )


def in_steps(self, queries, patches):
    queries = self.self_norm(torch.add(self.self_attention(queries, queries), queries))
    if hasattr(self, "cross_attention"):
        queries = self.cross_norm(torch.add(self.cross_attention(queries, patches), queries))
    hidden = self.mlp_out(nn.GELU()(self.mlp_in(queries)))
    return self.mlp_norm(hidden + queries)


def always_cross(self, queries, patches):
    if not self.cross:
        return self.mlp_norm(queries)
    return qformer.QFormerLayer.forward(self, queries, patches)


def repeated(self, patches):
    queries = self.input_norm(self.query_tokens.unsqueeze(0).repeat(len(patches), 1, 1))
    for k in range(len(self.layers)):
        queries = self.layers[k](queries, patches)
    return queries


def model(norm="before", order=slice(None), batch=True, first=False):
    def forward(self, patches):
        queries = self.query_tokens
        queries = self.input_norm(queries) if norm == "before" else queries
        queries = queries.expand(len(patches), -1, -1)
        for each in list(self.layers)[order]:
            queries = each(queries, patches[:1].expand_as(patches) if first else patches)
        queries = self.input_norm(queries) if norm == "after" else queries
        return queries if batch else queries[0]

    return changed(qformer.QFormer, forward)


# ---- labels, generation, a step


def batch(change):
    return lambda tokenizer, rows: known._batch(tokenizer, rows, change=change)


def left_padded(model, features, prompts, max_new_tokens=16, **wrong):
    """Greedy decoding written another way, with a mistake where `wrong` names one."""
    tokenizer = model.tokenizer
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    inputs = model.inputs(features, ids, mask)
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    at = torch.arange(len(rows))[:, None], order
    embeds, mask, positions = (value[at] for value in inputs.values())
    said, cache = [[] for _ in rows], None
    for _ in range(max_new_tokens):
        how = {} if wrong.get("no_cache") else {"cache": cache}
        output = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, **how
        )
        logits = output.logits[:, 0 if wrong.get("first") else -1]
        token = logits.argmin(dim=-1) if wrong.get("least") else logits.argmax(dim=-1)
        for row, word in zip(said, token.tolist(), strict=True):
            row.append(word)
        if all(5 in row for row in said) and not wrong.get("endless"):
            break
        new = model.language_model.get_input_embeddings()(token[:, None])
        whole = wrong.get("whole")
        embeds = torch.cat([embeds, new], dim=1) if whole else new
        if not wrong.get("mask"):
            mask = F.pad(mask, (0, 1), value=0 if wrong.get("masked") else 1)
        positions = positions[:, -1:] + (0 if wrong.get("position") else 1)
        cache = output["cache"]
    ended = [row[: row.index(5)] if 5 in row else row for row in said]
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ended]
    return texts[0] if wrong.get("one") else texts


def generates(**wrong):
    return lambda *args, **options: left_padded(*args, **options, **wrong)


def step(*what):
    """A step that clips, averages, schedules and zeroes in another order, or leaves something out."""

    def training_step(model, batch, accelerator, optimizer, scheduler):
        whole = accelerator.reduce((batch[3] != -100).sum().float(), "mean")
        optimizer.zero_grad()
        with contextlib.nullcontext() if "outside" in what else accelerator.autocast():
            loss = model(*batch)
            loss = (batch[3] != -100).sum() * loss / whole
        loss.backward() if "own backward" in what else accelerator.backward(loss)
        if "early zero" in what:
            optimizer.zero_grad()
        accelerator.clip_grad_norm_(list(model.parameters()), max_norm=1.0)
        optimizer.step()
        scheduler.step()
        return loss if "graph" in what else accelerator.reduce(loss.detach(), reduction="mean")

    return training_step


RIGHT = {
    check.CrossAttention: [changed(qformer.MultiHeadAttention, with_einsum)],
    check.QFormerLayer: [changed(qformer.QFormerLayer, in_steps)],
    check.QFormer: [changed(qformer.QFormer, repeated)],
    check.build_batch: [known._batch],
    check.generate: [left_padded],
    check.vlm_training_step: [step()],
}
WRONG = {
    check.CrossAttention: {
        "left out the division": attends(scale=1),
        "divide by its root": attends(scale=8),
        "*whole* width": attends(scale=24**0.5),
        "over the queries": attends(dim=-2),
        "split the heads": attends(change="stripes"),
        "merged as": attends(merge="h heads"),
        "not side by side": attends(change="not merged"),
        "causal": attends(change="causal"),
        "keys come from x": attends(change="keys of x"),
        "values come from x": attends(change="values of x"),
        "average the keys": attends(change="keys"),
        "`output` is missing": attends(change="no output"),
        "still None": attends(keep=False),
        "detach": attends(keep="graph"),
        "does not hold": attends(keep="x"),
        "exchanged": reads(lambda x, source: (source, x)),
        "x alone": reads(lambda x, source: (x, x)),
        "as long as x": reads(
            lambda x, source: (x, torch.cat([source] * 2, dim=1)[:, : x.shape[1]])
        ),
        "key.bias is missing": OtherNames,
    },
    check.QFormerLayer: {
        "post-norm": layer("pre-norm"),
        "residuals are missing": layer("no residual"),
        "norms are missing": layer("no norm"),
        "comes first": layer("cross first"),
        "has the patches as its source": layer("self to patches"),
        "never comes in": layer("cross to queries"),
        "self-attention is missing": layer("no self"),
        "cross-attention is missing": layer("no cross"),
        "MLP is missing": layer("no mlp"),
        "no activation": layer("no gelu"),
        "ReLU": layer("relu"),
        "cross=False": changed(qformer.QFormerLayer, always_cross),
    },
    check.QFormer: {
        "`input_norm` is missing": model(norm=None),
        "not after them": model(norm="after"),
        "only one of the layers": model(order=slice(1)),
        "only one of the layers runs": model(order=slice(1, 2)),
        "wrong order": model(order=slice(None, None, -1)),
        "layers are missing": model(order=slice(0)),
        "its own patches": model(first=True),
        "batch axis": model(batch=False),
    },
    check.build_batch: {
        "mask by length": batch("mask by pad"),
        "lost the EOS": batch("labels by pad"),
        "1 everywhere": batch("ones"),
        "trained to say it": batch("pad label"),
        "label 0": batch("zero label"),
        "on the left": batch("left"),
        "prompts are in the loss": batch("prompt"),
        "shifted": batch("shifted"),
        "no EOS ends": batch("no eos"),
        "EOS": batch("eos unlabelled"),
        "first turn": batch("first turn"),
        "three tensors": lambda tokenizer, rows: known._batch(tokenizer, rows)[:2],
        "has shape": lambda tokenizer, rows: known._batch(tokenizer, rows[:2]),
        "of row": lambda tokenizer, rows: known._batch(tokenizer, rows[::-1]),
    },
    check.generate: {
        "not handed": generates(no_cache=True),
        "only the new token": generates(whole=True),
        "grow by one column": generates(mask=True),
        "must be read": generates(masked=True),
        "one higher": generates(position=True),
        "go on although": generates(endless=True),
        "not the embedding": generates(least=True),
        "not the embedding of": generates(first=True),
        "list of one string": generates(one=True),
    },
    check.vlm_training_step: {
        "answers / whole": known._step(share=False),
        "average it": known._step(average=False),
        "add up": known._step(zero=False),
        "not clipped": known._step(clip=None),
        "scheduler.step() is missing": known._step(schedule=False),
        "outside": step("outside"),
        "accelerator.backward": step("own backward"),
        "detached": step("graph"),
        "did not change": step("early zero"),
    },
}


def test_rearranged_attention_of_the_checks_is_the_lessons():
    reference, x = qformer.MultiHeadAttention(12, 3, 8), torch.randn(2, 4, 12)
    source = torch.randn(2, 6, 8)
    out, weights = known._attended(reference, x, source)
    torch.testing.assert_close(out, reference(x, source))
    torch.testing.assert_close(weights, reference.weights)
    assert rearrange(weights, "b h q n -> (b h q) n").shape == (24, 6)


def test_equality_with_blip2_is_proved_of_a_learners_model_and_a_wrong_one_is_refused():
    check.same_as_blip2(qformer.QFormer)
    for norm in (None, "after"):
        with pytest.raises(AssertionError):
            check.same_as_blip2(model(norm=norm))
