"""Notebook 03's checks: right answers of several styles pass, and each known mistake is called by its name."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.data.language import make_tokenizer
from vlm_lite.labs import qformer as check
from vlm_lite.models.text import build_text_batch

SPLIT, MERGE = "b n (heads h) -> b heads n h", "b heads n h -> b n (heads h)"
STRIPES = "b n (h heads) -> b heads n h"


# ---- queries


def by_init(count, width):
    queries = nn.Parameter(torch.empty(count, width))
    nn.init.normal_(queries, std=0.02)
    return queries


def one_row_repeated(count, width):
    return nn.Parameter(0.02 * torch.randn(1, width).repeat(count, 1))


# ---- attention


def attention(
    q,
    k,
    v,
    heads,
    *,
    scale=lambda width, h: h**0.5,
    dim=-1,
    mask=False,
    split=SPLIT,
    merge=MERGE,
    softmax=True,
):
    width = q.shape[-1]
    q, k, v = (rearrange(x, split, heads=heads) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) / scale(width, width // heads)
    if mask:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf")
        )
    weights = scores.softmax(dim=dim) if softmax else scores
    return rearrange(weights @ v, merge), weights


def wrong_attention(**mistake):
    return lambda q, k, v, heads: attention(q, k, v, heads, **mistake)


def with_views(q, k, v, heads):
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    weights = F.softmax(torch.einsum("bhqd,bhnd->bhqn", q, k) * q.shape[-1] ** -0.5, dim=3)
    return torch.einsum("bhqn,bhnd->bqhd", weights, v).flatten(2), weights


def bare_split(q, k, v, heads):
    q, k, v = (x.reshape(len(x), heads, -1, x.shape[-1] // heads) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).reshape(len(q), -1, heads * q.shape[-1]), weights


def bare_merge(q, k, v, heads):
    mixed, weights = attention(q, k, v, heads)
    return rearrange(mixed, SPLIT, heads=heads).reshape(mixed.shape), weights


def one_head(q, k, v, heads):
    return attention(q, k, v, 1)


def causal_among_queries(q, k, v, heads):
    return attention(q, k, v, heads, mask=q.shape == k.shape)


# ---- a layer


def layer(queries, patches, talk, look, think, norms):
    for norm, step in zip(
        norms, (lambda x: talk(x, x), lambda x: look(x, patches), think), strict=True
    ):
        queries = norm(step(queries) + queries)
    return queries


def pre_norm(queries, patches, talk, look, think, norms):
    normed = norms[0](queries)
    queries = queries + talk(normed, normed)
    queries = queries + look(norms[1](queries), patches)
    return queries + think(norms[2](queries))


def no_residual(queries, patches, talk, look, think, norms):
    queries = norms[0](talk(queries, queries))
    return norms[2](think(norms[1](look(queries, patches))))


def look_first(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + look(queries, patches))
    queries = norms[1](queries + talk(queries, queries))
    return norms[2](queries + think(queries))


def talk_to_patches(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + talk(queries, patches))
    queries = norms[1](queries + look(queries, patches))
    return norms[2](queries + think(queries))


def look_at_queries(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + talk(queries, queries))
    queries = norms[1](queries + look(queries, queries))
    return norms[2](queries + think(queries))


def patches_ask(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + talk(queries, queries))
    queries = norms[1](queries + look(patches, queries))
    return norms[2](queries + think(queries))


def no_last_norm(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + talk(queries, queries))
    queries = norms[1](queries + look(queries, patches))
    return queries + think(queries)


def one_norm_for_all(queries, patches, talk, look, think, norms):
    return layer(queries, patches, talk, look, think, [norms[0]] * 3)


def no_talk(queries, patches, talk, look, think, norms):
    return norms[2](norms[1](queries + look(queries, patches)) + think(queries))


def think_beside(queries, patches, talk, look, think, norms):
    queries = norms[0](queries + talk(queries, queries))
    return norms[2](norms[1](queries + look(queries, patches)) + think(queries))


# ---- labels and padding


def labels(prefix, prompt, answer, eos):
    return [-100] * (prefix + len(prompt)) + answer + [eos]


def pad_batch(rows, labels, pad, *, left=False, mask=None, lost=False, pad_label=-100, extra=0):
    length = max(map(len, rows)) + extra

    def fill(row, value):
        return (
            [value] * (length - len(row)) * left + row + [value] * (length - len(row)) * (not left)
        )

    ids = torch.tensor([fill(row, pad) for row in rows])
    by_length = torch.tensor([fill([1] * len(row), 0) for row in rows])
    targets = torch.tensor([fill(row, pad_label) for row in labels])
    targets = targets.masked_fill(ids == pad, -100) if lost else targets
    return ids, by_length if mask is None else mask(ids, pad), targets


def wrong_padding(**mistake):
    return lambda rows, labels, pad: pad_batch(rows, labels, pad, **mistake)


def with_pad_sequence(rows, labels, pad):
    def padded(lists, value):
        return nn.utils.rnn.pad_sequence(
            [torch.tensor(x) for x in lists], batch_first=True, padding_value=value
        )

    return (
        padded(rows, pad),
        padded([[1] * len(row) for row in rows], 0).bool(),
        padded(labels, -100),
    )


RIGHT = [
    (check.make_queries, by_init),
    (
        check.make_queries,
        lambda count, width: nn.Parameter(torch.normal(0.0, 0.02, (count, width))),
    ),
    (check.multihead_attention, attention),
    (check.multihead_attention, with_views),
    (check.qformer_layer, layer),
    (check.make_labels, labels),
    (check.make_labels, lambda n, p, a, eos: torch.tensor(labels(n, p, a, eos))),
    (check.pad_batch, pad_batch),
    (check.pad_batch, with_pad_sequence),
]
WRONG = [
    (check.make_queries, lambda n, d: nn.Parameter(torch.zeros(n, d)), "all zero"),
    (check.make_queries, one_row_repeated, "one and the same vector"),
    (check.make_queries, lambda n, d: nn.Parameter(torch.randn(n, d)), "expected 0.02"),
    (check.make_queries, lambda n, d: nn.Parameter(0.02**0.5 * torch.randn(n, d)), "no variance"),
    (
        check.make_queries,
        lambda n, d: nn.Parameter(0.02 * torch.rand(n, d)),
        "mean of your queries",
    ),
    (
        check.make_queries,
        lambda n, d: nn.Parameter(0.02 * 3**0.5 * (2 * torch.rand(n, d) - 1)),
        "uniform",
    ),
    (check.make_queries, lambda n, d: 0.02 * torch.randn(n, d), "plain tensor"),
    (
        check.make_queries,
        lambda n, d: nn.Parameter(0.02 * torch.randn(n, d), requires_grad=False),
        "never learn",
    ),
    (check.make_queries, lambda n, d: nn.Parameter(0.02 * torch.randn(1, n, d)), "no batch axis"),
    (check.make_queries, lambda n, d: nn.Parameter(0.02 * torch.randn(d, n)), "one row a query"),
    (check.make_queries, lambda n, d: nn.Parameter(0.02 * torch.randn(d)), "expected (48, 320)"),
    (check.multihead_attention, wrong_attention(scale=lambda width, h: 1), "left out the division"),
    (
        check.multihead_attention,
        wrong_attention(scale=lambda width, h: width**0.5),
        "the whole width",
    ),
    (check.multihead_attention, wrong_attention(scale=lambda width, h: h), "divide by its root"),
    (check.multihead_attention, wrong_attention(dim=-2), "runs over the queries"),
    (check.multihead_attention, wrong_attention(dim=1), "do not sum to 1"),
    (check.multihead_attention, wrong_attention(mask=True), "causal"),
    (check.multihead_attention, causal_among_queries, "hide nobody"),
    (check.multihead_attention, wrong_attention(softmax=False), "the weights are their softmax"),
    (check.multihead_attention, wrong_attention(split=STRIPES), "split in the wrong order"),
    (
        check.multihead_attention,
        wrong_attention(merge="b heads n h -> b n (h heads)"),
        "merged in the wrong order",
    ),
    (check.multihead_attention, bare_split, "mixes tokens with heads"),
    (check.multihead_attention, bare_merge, "mixes queries with heads"),
    (check.multihead_attention, one_head, "one head"),
    (check.multihead_attention, lambda q, k, v, heads: attention(q, k, v, heads)[0], "two things"),
    (
        check.multihead_attention,
        lambda q, k, v, heads: attention(q, k, v, heads)[::-1],
        "the weights, has shape",
    ),
    (
        check.multihead_attention,
        lambda q, k, v, heads: attention(q, k, k, heads),
        "multiply the weights with v",
    ),
    (check.qformer_layer, pre_norm, "post-norm"),
    (check.qformer_layer, no_residual, "add it to them"),
    (check.qformer_layer, look_first, "talk, look, think"),
    (check.qformer_layer, talk_to_patches, "talk looks at the patches"),
    (check.qformer_layer, look_at_queries, "the picture never comes in"),
    (check.qformer_layer, patches_ask, "the patches are asking"),
    (check.qformer_layer, no_last_norm, "each of norms[0]"),
    (check.qformer_layer, one_norm_for_all, "each of norms[0]"),
    (check.qformer_layer, no_talk, "talk is called 0 times"),
    (check.qformer_layer, think_beside, "not put together"),
    (check.make_labels, lambda n, p, a, eos: labels(0, p, a, eos), "needs num_prefix labels"),
    (check.make_labels, lambda n, p, a, eos: labels(n, p, a, eos)[1:] + [-100], "shifting twice"),
    (check.make_labels, lambda n, p, a, eos: labels(n, p, a, eos)[1:], "shifting twice"),
    (check.make_labels, lambda n, p, a, eos: labels(n, p, a, eos)[:-1], "told to stop"),
    (check.make_labels, lambda n, p, a, eos: labels(n, p, a, -100), "told to stop"),
    (
        check.make_labels,
        lambda n, p, a, eos: [-100] * n + p + a + [eos],
        "the prompt is in the loss",
    ),
    (check.make_labels, lambda n, p, a, eos: [0] * n + labels(0, p, a, eos), "real tokens"),
    (check.make_labels, lambda n, p, a, eos: labels(4, p, a, eos), "not a fixed number"),
    (
        check.make_labels,
        lambda n, p, a, eos: labels(n, p, a, eos) + [-100],
        "labels for 10 positions",
    ),
    (check.make_labels, lambda n, p, a, eos: labels(n, p, a[::-1], eos), "they should be"),
    (check.make_labels, lambda n, p, a, eos: "red", "whole numbers"),
    (
        check.pad_batch,
        wrong_padding(mask=lambda ids, pad: (ids != pad).long()),
        "the true EOS is masked",
    ),
    (check.pad_batch, wrong_padding(lost=True), "labels lost the EOS"),
    (check.pad_batch, wrong_padding(left=True), "pad on the left"),
    (check.pad_batch, wrong_padding(mask=lambda ids, pad: torch.ones_like(ids)), "1 everywhere"),
    (check.pad_batch, wrong_padding(pad_label=5), "trained to say it"),
    (check.pad_batch, wrong_padding(pad_label=0), "followed by -100"),
    (check.pad_batch, wrong_padding(extra=2), "longest row"),
    (check.pad_batch, lambda rows, labels, pad: pad_batch(rows, labels, 0), "followed by `pad`"),
    (check.pad_batch, lambda rows, labels, pad: pad_batch(rows, labels, pad)[:2], "three tensors"),
    (
        check.pad_batch,
        lambda rows, labels, pad: dict(enumerate(pad_batch(rows, labels, pad))),
        "not a dict",
    ),
    (check.pad_batch, lambda rows, labels, pad: tuple(rows for _ in range(3)), "is a list"),
]


def test_the_references_of_labels_and_padding_agree_with_the_package():
    tokenizer = make_tokenizer()
    pairs = [
        ("question: what colour is the circle? answer:", "red"),
        ("caption:", "a large blue star."),
    ]
    rows = [
        tokenizer([prompt, answer], add_special_tokens=False)["input_ids"]
        for prompt, answer in pairs
    ]
    eos = tokenizer.eos_token_id
    result = check.pad_batch.reference(
        [p + a + [eos] for p, a in rows],
        [check.make_labels.reference(0, p, a, eos) for p, a in rows],
        0,
    )
    expected = build_text_batch(tokenizer, [[pair] for pair in pairs])
    for mine, name in zip(result, ("input_ids", "attention_mask", "labels"), strict=True):
        assert torch.equal(mine, expected[name]), name
