"""Notebook 03's checks: right answers of several styles pass, and each known mistake is called by its name."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs import check
from vlm_lite.labs import qformer as known
from vlm_lite.lessons import qformer, vlm


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


def exchanged(self, x, source):
    return qformer.MultiHeadAttention.forward(self, source, x)


def alone(self, x, source):
    return qformer.MultiHeadAttention.forward(self, x, x)


def fixed_length(self, x, source):
    source = torch.cat([source, source], dim=1)[:, : x.shape[1]]
    return qformer.MultiHeadAttention.forward(self, x, source)


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


def by_lists(tokenizer, rows):
    return known._batch(tokenizer, rows)


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


def in_another_order(model, batch, accelerator, optimizer, scheduler):
    whole = accelerator.reduce((batch[3] != -100).sum().float(), "mean")
    optimizer.zero_grad()
    with accelerator.autocast():
        loss = model(*batch)
        loss = (batch[3] != -100).sum() * loss / whole
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(list(model.parameters()), max_norm=1.0)
    optimizer.step()
    scheduler.step()
    return accelerator.reduce(loss.detach(), reduction="mean")


def no_autocast(model, batch, accelerator, optimizer, scheduler):
    loss = model(*batch) / 1.5
    accelerator.backward(loss)
    optimizer.step()
    return loss.detach()


def own_backward(model, batch, accelerator, optimizer, scheduler):
    with accelerator.autocast():
        loss = model(*batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


def with_graph(model, batch, accelerator, optimizer, scheduler):
    with accelerator.autocast():
        return model(*batch)


def zero_too_early(model, batch, accelerator, optimizer, scheduler):
    with accelerator.autocast():
        loss = model(*batch)
    accelerator.backward(loss)
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


RIGHT = [
    (check.CrossAttention, changed(qformer.MultiHeadAttention, with_einsum)),
    (check.QFormerLayer, changed(qformer.QFormerLayer, in_steps)),
    (check.QFormer, changed(qformer.QFormer, repeated)),
    (check.build_batch, by_lists),
    (check.generate, left_padded),
    (check.vlm_training_step, in_another_order),
]
WRONG = [
    (check.CrossAttention, attends(scale=1), "left out the division"),
    (check.CrossAttention, attends(scale=8), "divide by its root"),
    (check.CrossAttention, attends(scale=24**0.5), "*whole* width"),
    (check.CrossAttention, attends(dim=-2), "over the queries"),
    (check.CrossAttention, attends(change="stripes"), "split the heads"),
    (check.CrossAttention, attends(merge="h heads"), "merged as"),
    (check.CrossAttention, attends(change="not merged"), "not side by side"),
    (check.CrossAttention, attends(change="causal"), "causal"),
    (check.CrossAttention, attends(change="keys of x"), "keys come from x"),
    (check.CrossAttention, attends(change="values of x"), "values come from x"),
    (check.CrossAttention, attends(change="keys"), "average the keys"),
    (check.CrossAttention, attends(change="no output"), "`output` is missing"),
    (check.CrossAttention, attends(keep=False), "still None"),
    (check.CrossAttention, attends(keep="graph"), "detach"),
    (check.CrossAttention, attends(keep="x"), "does not hold"),
    (check.CrossAttention, changed(qformer.MultiHeadAttention, exchanged), "exchanged"),
    (check.CrossAttention, changed(qformer.MultiHeadAttention, alone), "x alone"),
    (check.CrossAttention, changed(qformer.MultiHeadAttention, fixed_length), "as long as x"),
    (check.CrossAttention, OtherNames, "key.bias is missing"),
    (check.QFormerLayer, layer("pre-norm"), "post-norm"),
    (check.QFormerLayer, layer("no residual"), "residuals are missing"),
    (check.QFormerLayer, layer("no norm"), "norms are missing"),
    (check.QFormerLayer, layer("cross first"), "comes first"),
    (check.QFormerLayer, layer("self to patches"), "has the patches as its source"),
    (check.QFormerLayer, layer("cross to queries"), "never comes in"),
    (check.QFormerLayer, layer("no self"), "self-attention is missing"),
    (check.QFormerLayer, layer("no cross"), "cross-attention is missing"),
    (check.QFormerLayer, layer("no mlp"), "MLP is missing"),
    (check.QFormerLayer, layer("no gelu"), "no activation"),
    (check.QFormerLayer, layer("relu"), "ReLU"),
    (check.QFormerLayer, changed(qformer.QFormerLayer, always_cross), "cross=False"),
    (check.QFormer, model(norm=None), "`input_norm` is missing"),
    (check.QFormer, model(norm="after"), "not after them"),
    (check.QFormer, model(order=slice(1)), "only one of the layers"),
    (check.QFormer, model(order=slice(1, 2)), "only one of the layers"),
    (check.QFormer, model(order=slice(None, None, -1)), "wrong order"),
    (check.QFormer, model(order=slice(0)), "layers are missing"),
    (check.QFormer, model(first=True), "its own patches"),
    (check.QFormer, model(batch=False), "batch axis"),
    (check.build_batch, batch("mask by pad"), "mask by length"),
    (check.build_batch, batch("labels by pad"), "lost the EOS"),
    (check.build_batch, batch("ones"), "1 everywhere"),
    (check.build_batch, batch("pad label"), "trained to say it"),
    (check.build_batch, batch("zero label"), "label 0"),
    (check.build_batch, batch("left"), "on the left"),
    (check.build_batch, batch("prompt"), "prompts are in the loss"),
    (check.build_batch, batch("shifted"), "shifted"),
    (check.build_batch, batch("no eos"), "no EOS ends"),
    (check.build_batch, batch("eos unlabelled"), "EOS"),
    (check.build_batch, batch("first turn"), "first turn"),
    (check.build_batch, lambda tokenizer, rows: by_lists(tokenizer, rows)[:2], "three tensors"),
    (check.build_batch, lambda tokenizer, rows: by_lists(tokenizer, rows[:2]), "has shape"),
    (check.build_batch, lambda tokenizer, rows: by_lists(tokenizer, rows[::-1]), "of row"),
    (check.generate, generates(no_cache=True), "not handed"),
    (check.generate, generates(whole=True), "only the new token"),
    (check.generate, generates(mask=True), "grow by one column"),
    (check.generate, generates(masked=True), "must be read"),
    (check.generate, generates(position=True), "one higher"),
    (check.generate, generates(endless=True), "go on although"),
    (check.generate, generates(least=True), "not the embedding"),
    (check.generate, generates(first=True), "not the embedding"),
    (check.generate, generates(one=True), "list of one string"),
    (check.vlm_training_step, known._step(share=False), "answers / whole"),
    (check.vlm_training_step, known._step(average=False), "average it"),
    (check.vlm_training_step, known._step(zero=False), "add up"),
    (check.vlm_training_step, known._step(clip=None), "not clipped"),
    (check.vlm_training_step, known._step(schedule=False), "scheduler.step() is missing"),
    (check.vlm_training_step, no_autocast, "outside"),
    (check.vlm_training_step, own_backward, "accelerator.backward"),
    (check.vlm_training_step, with_graph, "detached"),
    (check.vlm_training_step, zero_too_early, "did not change"),
]


def test_rearranged_attention_of_the_checks_is_the_lessons():
    reference, x = qformer.MultiHeadAttention(12, 3, 8), torch.randn(2, 4, 12)
    source = torch.randn(2, 6, 8)
    out, weights = known._attended(reference, x, source)
    torch.testing.assert_close(out, reference(x, source))
    torch.testing.assert_close(weights, reference.weights)
    assert rearrange(weights, "b h q n -> (b h q) n").shape == (24, 6)


def test_two_things_are_proved_of_a_learners_model_and_a_wrong_one_is_refused():
    check.same_as_blip2(qformer.QFormer)
    for wrong in (model(norm=None), model(norm="after")):
        try:
            check.same_as_blip2(wrong)
        except AssertionError:
            continue
        raise RuntimeError("a wrong Q-Former passed")
    assert vlm.VLM.generate is vlm.generate
