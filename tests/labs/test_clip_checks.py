"""Notebook 01's checks: the right answers of several styles pass, and each known mistake is called by its name."""

import math

import torch
import torch.nn.functional as F

from vlm_lite.labs import check


def unit(x):
    return F.normalize(x, dim=-1)


def cross_entropy(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def both_ways(logits):
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def by_hand(x, y, s):
    logits = s.exp() * unit(x) @ unit(y).T
    return -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2


def through_softmax(x, y, s):
    p = s.exp() * unit(x) @ unit(y).T
    return -(p.softmax(0).diagonal().log() + p.softmax(1).diagonal().log()).mean() / 2


def constant_scale(x, y, s):
    return both_ways(math.exp(s.item()) * unit(x) @ unit(y).T)


def half_detached(x, y, s):
    return both_ways(s.exp() * unit(x) @ unit(y).T.detach())


def ranks(similarity):
    return (similarity >= similarity.diagonal()[:, None]).sum(1) - 1


def ties_for_you(similarity, k):
    return ((similarity > similarity.diagonal()[:, None]).sum(1) < k).float().mean()


def best_of_the_others(similarity, k):
    others = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool), -torch.inf)
    return (others.topk(k).values[:, -1] < similarity.diagonal()).float().mean().item()


def top_k(similarity, k):
    return (
        (similarity.topk(k).indices == torch.arange(len(similarity))[:, None])
        .any(1)
        .float()
        .mean()
        .item()
    )


def single(encode, prompts):
    return unit(torch.cat([encode(each[:1]) for each in prompts]))


def means(encode, prompts, before=unit, after=unit):
    return after(torch.stack([before(encode(each)).mean(0) for each in prompts]))


def same(x):
    return x


RIGHT = [
    (check.cosine_similarity, lambda x, y: unit(x) @ unit(y).T),
    (check.cosine_similarity, lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1)),
    (check.info_nce, lambda x, y, s: both_ways(s.exp() * unit(x) @ unit(y).T)),
    (check.info_nce, by_hand),
    (check.information_bound, lambda loss, size: math.log(size) - loss),
    (check.information_bound, lambda loss, size: -(loss + torch.tensor(1 / size).log().item())),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).float().mean()),
    (check.recall_at_k, best_of_the_others),
    (check.class_embeddings, means),
    (
        check.class_embeddings,
        lambda encode, prompts: unit(torch.stack([unit(encode(p)).sum(0) for p in prompts])),
    ),
]
WRONG = [
    (check.cosine_similarity, lambda x, y: x @ y.T, "dot products"),
    (check.cosine_similarity, lambda x, y: unit(x) @ y.T, "only one side"),
    (
        check.cosine_similarity,
        lambda x, y: F.normalize(x, dim=0) @ F.normalize(y, dim=0).T,
        "dim=-1",
    ),
    (check.cosine_similarity, lambda x, y: unit(y) @ unit(x).T, "Transpose"),
    (check.cosine_similarity, lambda x, y: (unit(x) @ unit(y).T).softmax(-1), "softmax"),
    (check.cosine_similarity, lambda x, y: unit(x) @ unit(y).T + 1, "no mistake we know"),
    (check.cosine_similarity, lambda x, y: (unit(x) * unit(x)).sum(-1), "shape (5,)"),
    (
        check.info_nce,
        lambda x, y, s: cross_entropy(s.exp() * unit(x) @ unit(y).T),
        "one-directional, pictures",
    ),
    (
        check.info_nce,
        lambda x, y, s: cross_entropy(s.exp() * unit(y) @ unit(x).T),
        "one-directional, captions",
    ),
    (check.info_nce, lambda x, y, s: 2 * by_hand(x, y, s), "divide by 2"),
    (check.info_nce, lambda x, y, s: both_ways(s.exp() * x @ y.T), "unit length"),
    (check.info_nce, lambda x, y, s: both_ways(s * unit(x) @ unit(y).T), "*logarithm*"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T / s.exp()), "upside down"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T / s), "instead of dividing"),
    (check.info_nce, lambda x, y, s: both_ways(unit(x) @ unit(y).T), "temperature is missing"),
    (check.info_nce, lambda x, y, s: -by_hand(x, y, s), "sign"),
    (check.info_nce, lambda x, y, s: len(x) * by_hand(x, y, s), "summed over the batch"),
    (check.info_nce, lambda x, y, s: s.exp() * unit(x) @ unit(y).T, "one number"),
    (check.info_nce, lambda x, y, s: by_hand(x, y, s) + 0.5, "Check in this order"),
    (check.info_nce, lambda x, y, s: by_hand(x, y, s).item(), "no gradient"),
    (check.info_nce, constant_scale, "logit_scale.exp(), not math.exp"),
    (check.info_nce, half_detached, "no gradient reaches text_embeds"),
    (check.info_nce, through_softmax, "overflows"),
    (check.information_bound, lambda loss, size: loss - math.log(size), "sign"),
    (check.information_bound, lambda loss, size: math.log2(size) - loss, "base 2"),
    (check.information_bound, lambda loss, size: math.log(size - 1) - loss, "log(N - 1)"),
    (check.information_bound, lambda loss, size: size - loss, "logarithm is missing"),
    (check.information_bound, lambda loss, size: math.log(size) / loss, "subtract"),
    (check.recall_at_k, lambda s, k: (ranks(s.T) < k).float().mean(), "down the columns"),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).sum(), "count of hits"),
    (check.recall_at_k, lambda s, k: (ranks(s) < k).float().mean() / k, "precision"),
    (check.recall_at_k, lambda s, k: (ranks(s) <= k).float().mean(), "one candidate too many"),
    (check.recall_at_k, lambda s, k: (ranks(s) == 0).float().mean(), "k is ignored"),
    (check.recall_at_k, lambda s, k: (ranks(-s) < k).float().mean(), "*least*"),
    (check.recall_at_k, lambda s, k: 100 * (ranks(s) < k).float().mean(), "percentage"),
    (check.recall_at_k, lambda s, k: ranks(s) < k, "one number"),
    (check.recall_at_k, ties_for_you, "counted for you"),
    (check.recall_at_k, top_k, "the order of the columns decides"),
    (check.class_embeddings, single, "only one prompt"),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, after=same),
        "once more",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, before=same),
        "*before* averaging",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: means(encode, prompts, same, same),
        "nothing is normalised",
    ),
    (
        check.class_embeddings,
        lambda encode, prompts: unit(torch.cat([encode(p) for p in prompts])),
        "row a *prompt*",
    ),
    (check.class_embeddings, lambda encode, prompts: [encode(p) for p in prompts], "torch.stack"),
    (check.class_embeddings, lambda encode, prompts: encode(prompts), "list of strings"),
]


def test_an_encoder_that_says_nothing_finds_nothing():
    recall = check.recall_at_k.reference
    for nothing in (torch.ones(9, 9), torch.full((9, 9), torch.nan)):
        assert [float(recall(nothing, k)) for k in (1, 5, 8)] == [0, 0, 0]
    assert recall(torch.eye(9), 1) == 1 and recall(torch.eye(9).fill_diagonal_(torch.nan), 5) == 0
