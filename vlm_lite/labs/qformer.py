"""The checks of notebook 03: learnt queries, attention, a Q-Former layer, labels and padding of the language model.

Each check has a reference with the exercise's signature, which the notebook goes on with when the learner has none.
Shapes: B rows, N patches, Q queries of width D, H heads of width h = D / H, T tokens.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vlm_lite.labs.core import close, exercise, shape_problem
from vlm_lite.models.text import IGNORE
from vlm_lite.models.vit import attention_weights

SPLIT, MERGE = "b n (heads h) -> b heads n h", "b heads n h -> b n (heads h)"


# ---- the references


def _make_queries(num_query_tokens, width):
    """Q learnt vectors, drawn from N(0, 0.02) -> nn.Parameter (Q, D)."""
    return nn.Parameter(0.02 * torch.randn(num_query_tokens, width))


def _multihead_attention(q, k, v, num_heads):
    """softmax(q kᵀ / √h) v per head: q (B, Q, D), k and v (B, N, D) -> (B, Q, D) and the weights (B, H, Q, N)."""
    q, k, v = (rearrange(x, SPLIT, heads=num_heads) for x in (q, k, v))
    weights = attention_weights(q, k)
    return rearrange(weights.to(v.dtype) @ v, MERGE), weights


def _qformer_layer(queries, patches, talk, look, think, norms):
    """Talk, look, think, each followed by "add and normalise": queries (B, Q, D), patches (B, N, Dv) -> (B, Q, D)."""
    queries = norms[0](queries + talk(queries, queries))
    queries = norms[1](queries + look(queries, patches))
    return norms[2](queries + think(queries))


def _make_labels(num_prefix, prompt_ids, answer_ids, eos):
    """What each position of prefix, prompt, answer, EOS is to be compared with: a list of ids, -100 for "nothing"."""
    return [IGNORE] * (num_prefix + len(prompt_ids)) + list(answer_ids) + [eos]


def _pad_batch(rows, labels, pad):
    """B lists of ids and B lists of labels -> input_ids, attention_mask, labels, each (B, T), padded on the right."""
    length = max(len(row) for row in rows)
    return (
        torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        torch.tensor([row + [IGNORE] * (length - len(row)) for row in labels]),
    )


# ---- the checks


@exercise(_make_queries)
def make_queries(learner):
    """Shape, kind and spread of 48 queries: a trainable parameter, drawn from the normal distribution N(0, 0.02)."""
    count, width = 48, 320
    queries = learner(count, width)
    if isinstance(queries, torch.Tensor) and tuple(queries.shape) in {
        (1, count, width),
        (width, count),
    }:
        return (
            f"your queries have shape {tuple(queries.shape)}; expected ({count}, {width}), one row a query (they "
            "are the same for every picture, so they have no batch axis)"
        )
    if problem := shape_problem(queries, (count, width), "the queries"):
        return problem
    if not isinstance(queries, nn.Parameter):
        return "your queries are a plain tensor, which no optimiser is given: wrap them in nn.Parameter"
    if not queries.requires_grad:
        return "your queries have requires_grad=False, so they would never learn"
    values = queries.detach()
    if not values.any():
        return (
            "your queries are all zero: all of them say the same, and LayerNorm's gradient divides by almost "
            "nothing. Draw them at random, N(0, 0.02)"
        )
    if close(values, values[:1].expand_as(values)):
        return "all your queries are one and the same vector, so all of them say the same: draw each of them at random"
    if abs(values.mean()) > 0.2 * values.std():
        return (
            f"the mean of your queries is {values.mean():.3f} and should be 0: torch.randn draws from the normal "
            "distribution, torch.rand from 0 to 1"
        )
    if close(values.std(), math.sqrt(0.02), 0.1):
        return "the standard deviation of your queries is √0.02: multiply by 0.02 itself (it is no variance)"
    if not close(values.std(), 0.02, 0.1):
        return f"the standard deviation of your queries is {values.std():.3g}; expected 0.02"
    if values.abs().max() < 0.045:  # a uniform distribution with this deviation ends at 0.035
        return "your queries are uniform, not normal: draw them with torch.randn"


@exercise(_multihead_attention)
def multihead_attention(learner):
    """Random queries on random patches, weights first and then the mixed values; then queries on one another."""
    heads, width = 4, 24
    q, k, v = 2 * torch.randn(2, 5, width), 2 * torch.randn(2, 7, width), torch.randn(2, 7, width)
    result = learner(q, k, v, heads)
    if not isinstance(result, tuple | list) or len(result) != 2:
        return "return two things, the mixed values (B, Q, D) and the weights (B, H, Q, N)"
    mixed, weights = result
    right, right_weights = _multihead_attention(q, k, v, heads)
    if isinstance(weights, torch.Tensor) and tuple(weights.shape) == (2, 1, 5, 7):
        return f"there is one head where there should be {heads}: split the width into num_heads parts first"
    if problem := shape_problem(weights, right_weights.shape, "the second result, the weights,"):
        return problem
    if problem := shape_problem(mixed, right.shape, "the first result, the mixed values,"):
        return problem + ": put the heads side by side again"
    if not close(weights, right_weights):
        return _wrong_weights(q, k, weights, heads)
    if close(
        weights @ rearrange(v, SPLIT, heads=heads),
        rearrange(mixed, "b n (h heads) -> b heads n h", heads=heads),
    ):
        return "the heads are merged in the wrong order: 'b heads n h -> b n (heads h)', as they were split"
    if close((weights @ rearrange(v, SPLIT, heads=heads)).reshape(right.shape), mixed):
        return (
            "a bare reshape mixes queries with heads: bring the heads back beside their width first"
        )
    if not close(mixed, right):
        return "the weights are right, but the mixed values are not: multiply the weights with v, head by head"
    # Queries that look at one another: nobody is hidden.
    if not close(learner(q, q, q, heads)[0], _multihead_attention(q, q, q, heads)[0]):
        return "it is right for patches but not for queries that look at one another: hide nobody from anybody"


def _wrong_weights(q, k, weights, heads):
    width = q.shape[-1]
    q, k = (rearrange(x, SPLIT, heads=heads) for x in (q, k))
    scores = q @ k.transpose(-2, -1)  # (B, H, Q, N)
    scaled = scores / (width / heads) ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if close(weights, scaled):
        return "you return the scores; the weights are their softmax over the patches"
    if close(weights, scaled.softmax(dim=-2)):
        return (
            "your softmax runs over the queries: each query's weights over the patches must sum to 1, so take it "
            "over the last axis"
        )
    if close(weights, scores.softmax(dim=-1)):
        return "you left out the division of the scores by √h, where h is the width of one head"
    if close(weights, (scores / width**0.5).softmax(dim=-1)):
        return f"you divide by √{width}, the whole width: divide by the root of one head's width, √{width // heads}"
    if close(weights, (scores / (width // heads)).softmax(dim=-1)):
        return "you divide by h: divide by its root, √h"
    if close(weights, scaled.masked_fill(future, -math.inf).softmax(dim=-1)):
        return (
            "your attention is causal: a query sees nothing after its own place. Queries are a set, not a "
            "sentence: take the mask away"
        )
    q, k = (rearrange(x, MERGE) for x in (q, k))
    if close(
        weights, attention_weights(*(x.reshape(len(x), heads, -1, width // heads) for x in (q, k)))
    ):
        return "a bare reshape to (B, H, N, h) mixes tokens with heads: split the width, then move the heads forward"
    if close(
        weights,
        attention_weights(
            *(rearrange(x, "b n (h heads) -> b heads n h", heads=heads) for x in (q, k))
        ),
    ):
        return "the width is split in the wrong order: heads are neighbouring channels, 'b n (heads h) -> b heads n h'"
    if not close(weights.sum(dim=-1), torch.ones(weights.shape[:-1])):
        return "a query's weights over the patches do not sum to 1: take the softmax over the last axis"
    return "the weights are not softmax(q kᵀ / √h), head by head"


@exercise(_qformer_layer)
def qformer_layer(learner):
    """Random weights that record their calls: who asks, who is looked at, in which order, and what is added where."""
    width = 16  # patches and queries of one width and number, so that a mixed-up source is diagnosed and not a crash
    queries, patches = torch.randn(2, 6, width), torch.randn(2, 6, width)
    a, b, c, d, e = (torch.randn(width, width) / width**0.5 for _ in range(5))
    sources, norms_met = {"talk": [], "look": []}, []

    def talk(x, source):
        sources["talk"].append((x, source))
        return x @ a + (source @ b).mean(dim=1, keepdim=True)

    def look(x, source):
        sources["look"].append((x, source))
        return x @ c + (source @ d).mean(dim=1, keepdim=True)

    def think(x):
        return F.gelu(x @ e)

    def norm(index):
        scale, shift = torch.rand(width) + 0.5, torch.randn(width)

        def apply(x):
            norms_met.append(index)
            return F.layer_norm(x, (width,)) * scale + shift

        return apply

    norms = [norm(index) for index in range(3)]
    result = learner(queries, patches, talk, look, think, norms)
    met, calls = list(norms_met), {name: list(found) for name, found in sources.items()}
    if problem := shape_problem(result, queries.shape):
        return problem
    right = _qformer_layer(queries, patches, talk, look, think, norms)
    if close(result, right):
        return None
    for name, found in calls.items():
        if len(found) != 1:
            return (
                f"{name} is called {len(found)} times; each of talk, look and think is called once"
            )
    (talker, heard), (looker, seen) = calls["talk"][0], calls["look"][0]
    if close(talker, patches) or close(looker, patches):
        return "the patches are asking: the queries come first in talk(...) and look(...), what they look at second"
    if close(heard, patches):
        return "talk looks at the patches: when queries talk, the source is the queries themselves"
    if close(seen, looker):
        return "look looks at the queries themselves: its source is `patches`, or the picture never comes in"
    if close(looker, queries) and not close(talker, queries):
        return "your queries look before they talk: the order is talk, look, think"
    if close(result, _pre_norm(queries, patches, talk, look, think, norms)):
        return "you normalise before each step, as a ViT does: a Q-Former adds first and normalises the sum (post-norm)"
    if close(result, _no_residual(queries, patches, talk, look, think, norms)):
        return "you replace the queries by what a step returns: add it to them, queries + step(queries, ...)"
    if sorted(met) != [0, 1, 2]:
        return f"norms {met} were applied; each of norms[0], norms[1], norms[2] is applied once, after its own step"
    return "the pieces are all called, but not put together as norm(queries + step(queries, ...)), three times over"


def _pre_norm(queries, patches, talk, look, think, norms):
    normed = norms[0](queries)
    queries = queries + talk(normed, normed)
    queries = queries + look(norms[1](queries), patches)
    return queries + think(norms[2](queries))


def _no_residual(queries, patches, talk, look, think, norms):
    queries = norms[0](talk(queries, queries))
    return norms[2](think(norms[1](look(queries, patches))))


@exercise(_make_labels)
def make_labels(learner):
    """One row with a prefix and the same without: the length, what has a label and what has -100, unshifted."""
    prefix, prompt, answer, eos = 4, [11, 12, 13], [21, 22], 5
    result = learner(prefix, list(prompt), list(answer), eos)
    try:
        labels = torch.as_tensor(result).tolist()
    except (TypeError, ValueError, RuntimeError):
        return "your labels are not a list of whole numbers, one for each position"
    right = _make_labels(prefix, prompt, answer, eos)
    if not isinstance(labels, list) or any(not isinstance(label, int) for label in labels):
        return "your labels are not a list of whole numbers, one for each position"
    if labels == right:
        if (
            learner(0, list(prompt), list(answer), eos) != right[prefix:]
            and torch.as_tensor(learner(0, list(prompt), list(answer), eos)).tolist()
            != right[prefix:]
        ):
            return "with no prefix (num_prefix = 0) they are wrong: count num_prefix positions, not a fixed number"
        return None
    if labels == right[prefix:]:
        return (
            f"there are {len(labels)} labels for {len(right)} positions: the prefix has positions too, so "
            "it needs num_prefix labels of -100 (transformers would stop at the mismatch)"
        )
    if labels in (right[1:], right[1:] + [IGNORE]):
        return "you shifted the labels by one place: the model does that itself, and shifting twice trains a wrong word"
    if labels in (right[:-1], right[:-1] + [IGNORE]):
        return "the EOS is not among the labels: a model that is never told to stop never does"
    if labels[prefix : prefix + len(prompt)] == prompt:
        return "the prompt is in the loss: the model would learn to ask the question; give the prompt -100"
    if labels[-len(right) + prefix :] == right[prefix:] and len(labels) == len(right):
        return (
            f"the prefix has labels {labels[:prefix]}: 0 and other ids are real tokens, "
            f"only -100 leaves a position out"
        )
    if len(labels) != len(right):
        return f"there are {len(labels)} labels for {len(right)} positions (prefix, prompt, answer, EOS)"
    return f"for a prefix of 4, prompt {prompt}, answer {answer} and EOS 5 they should be {right}, not {labels}"


@exercise(_pad_batch)
def pad_batch(learner):
    """Three rows of different lengths, with EOS as padding: ids, a mask by length, and labels that keep the EOS."""
    pad = eos = 5  # GPT-2 has no padding token, so EOS is commonly used for both
    rows = [[11, 12, 21, eos], [13, 22, 23, 24, 25, eos], [14, eos]]
    labels = [[IGNORE, IGNORE, 21, eos], [IGNORE, 22, 23, 24, 25, eos], [IGNORE, eos]]
    result = learner([list(row) for row in rows], [list(row) for row in labels], pad)
    names = ("input_ids", "attention_mask", "labels")
    if isinstance(result, dict):
        return "return a tuple of three tensors, input_ids, attention_mask, labels, not a dict"
    if not isinstance(result, tuple | list) or len(result) != 3:
        return "return three tensors: input_ids, attention_mask, labels"
    right = _pad_batch(rows, labels, pad)
    for name, mine, theirs in zip(names, result, right, strict=True):
        if problem := shape_problem(mine, theirs.shape, name):
            return problem + " (the longest row sets the length)"
    (ids, mask, targets), (right_ids, right_mask, right_targets) = (
        tuple(x.long() for x in r) for r in (result, right)
    )
    if close(ids, torch.tensor([[pad] * (6 - len(row)) + row for row in rows])):
        return "you pad on the left: that is for generating. For training pad on the right"
    if not close(ids, right_ids):
        return "input_ids are not each row followed by `pad`"
    if close(mask, (right_ids != pad).long()):
        return (
            "your mask is `ids != pad`, and here pad is EOS, as it is for GPT-2: the true EOS is masked as well. "
            "Mask by the length of each row"
        )
    if mask.all():
        return "your mask is 1 everywhere: padding is 0"
    if not close(mask, right_mask):
        return "attention_mask is not 1 for each token of a row and 0 for its padding"
    if close(targets, right_targets.masked_fill(right_ids == pad, IGNORE)):
        return (
            "your labels lost the EOS: pad is EOS here, as it is for GPT-2, so `labels[ids == pad] = -100` erases "
            "both, and the model never learns to stop. Mask by length"
        )
    if (targets[right_mask == 0] == pad).any():
        return "the padding has `pad` as its label, so the model is trained to say it: give padding -100"
    if not close(targets, right_targets):
        return "labels are not each row's labels followed by -100"
