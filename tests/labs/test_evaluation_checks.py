"""Notebook 05's checks: right answers of several styles pass, and the wrong ones that learners write are named."""

import math
from collections import defaultdict

import torch

from vlm_lite.labs import check
from vlm_lite.lessons import evaluation as lesson

# ---- vqa_accuracy


def closed_form(prediction, answers):
    n = answers.count(prediction)
    return (n * min(n - 1, 3) + (10 - n) * min(n, 3)) / 30 if n else 0.0


def without_minimum(prediction, answers):
    return sum((answers[:k] + answers[k + 1 :]).count(prediction) / 3 for k in range(10)) / 10


# ---- bleu, rouge_l


def bleu_with(grams=lesson.ngrams, clip=max, brevity=True, root=True):
    """BLEU written with loops, or with one thing done in another way."""

    def of(candidates, references):
        scores, product = [], 1
        c = sum(len(k) for k in candidates)
        r = sum(
            sorted((abs(len(ref) - len(k)), len(ref)) for ref in refs)[0][1]
            for k, refs in zip(candidates, references, strict=True)
        )
        for n in range(1, 5):
            matched = total = 0
            for k, refs in zip(candidates, references, strict=True):
                for gram, times in grams(k, n).items():
                    matched += min(times, clip([grams(ref, n)[gram] for ref in refs]))
                    total += times
            product *= matched / total
            less = math.exp(1 - r / c) if brevity and c < r else 1
            scores.append(less * (product ** (1 / n) if root else product))
        return scores

    return of


def rouge_by_recursion(candidate, references):
    def longest(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + longest(a[:-1], b[:-1])
        return max(longest(a[:-1], b), longest(a, b[:-1]))

    lengths = [longest(candidate, r) for r in references]
    p = max(lengths) / len(candidate)
    r = max(n / len(ref) for n, ref in zip(lengths, references, strict=True))
    return (1 + 1.2**2) * p * r / (r + 1.2**2 * p)


def f_score(p, r, beta2=1.44):
    return (1 + beta2) * p * r / (r + beta2 * p)


# ---- clustered_interval


def interval_of(means):
    return torch.quantile(means, 0.025), torch.quantile(means, 0.975)


def interval_by_loop(scores, clusters, draws):
    means = []
    for draw in draws:
        questions = torch.cat([(clusters == c).nonzero().flatten() for c in draw])
        means.append(scores[questions].mean())
    return interval_of(torch.stack(means))


def sums_of(scores, clusters, draws):
    C = draws.shape[1]
    return torch.zeros(C).index_add(0, clusters, scores), torch.bincount(clusters, minlength=C)


def mean_of_means(scores, clusters, draws):
    sums, counts = sums_of(scores, clusters, draws)
    return interval_of((sums / counts)[draws].mean(1))


def fixed_count(scores, clusters, draws):
    return interval_of(sums_of(scores, clusters, draws)[0][draws].sum(1) / len(scores))


# ---- pope_metrics


def pope_by_tensor(said, labels):
    said, labels = torch.tensor(said), torch.tensor(labels)
    tp = (said & labels).sum().item()
    yes, there = said.sum().item(), labels.sum().item()
    return {
        "accuracy": (said == labels).float().mean().item(),
        "precision": tp / yes if yes else 0,
        "recall": tp / there if there else 0,
        "f1": 2 * tp / (yes + there),
        "yes_ratio": yes / len(said),
    }


def pope_with(**wrong):
    def of(said, labels):
        right = lesson.pope_metrics(said, labels)
        return {
            **right,
            **{name: function(right, said, labels) for name, function in wrong.items()},
        }

    return of


def pope_that_divides(said, labels):
    tp = sum(a and b for a, b in zip(said, labels, strict=True))
    p, r = tp / sum(said), tp / sum(labels)
    return {
        **lesson.pope_metrics(said, labels),
        "precision": p,
        "recall": r,
        "f1": 2 * p * r / (p + r),
    }


# ---- circular_and_vanilla


def circular(group=all, first=min, size=lambda rows: len(rows)):
    def of(indices, right):
        groups = defaultdict(dict)
        for index, good in zip(indices, right, strict=True):
            groups[index % 1_000_000][index] = good
        return (
            sum(group(list(rows.values())) for rows in groups.values()) / len(groups),
            sum(rows[first(rows)] for rows in groups.values()) / len(groups),
        )

    return of


RIGHT = {
    check.vqa_accuracy: [
        closed_form,
        lambda p, a: sum(min(1, (a[:k] + a[k + 1 :]).count(p) / 3) for k in range(10)) / 10,
    ],
    check.bleu: [bleu_with()],
    check.rouge_l: [rouge_by_recursion],
    check.clustered_interval: [interval_by_loop],
    check.pope_metrics: [pope_by_tensor],
    check.circular_and_vanilla: [circular()],
}
WRONG = {
    check.vqa_accuracy: {
        "the short form": lambda p, a: min(1, a.count(p) / 3),
        "only one person is left out": lambda p, a: min(1, a[1:].count(p) / 3),
        "grows above 1": without_minimum,
        "share of people": lambda p, a: a.count(p) / 10,
        "percent": lambda p, a: 100 * lesson.vqa_accuracy(p, a),
        "divide by the number of people": lambda p, a: 10 * lesson.vqa_accuracy(p, a),
        "as it stands": lambda p, a: lesson.vqa_accuracy(p.lower(), [x.lower() for x in a]),
        "one number": lambda p, a: torch.tensor(lesson.vqa_accuracy(p, a)),
        "for 0, 1, 2": lambda p, a: lesson.vqa_accuracy(p, a) ** 2,
    },
    check.bleu: {
        "nothing is clipped": bleu_with(clip=lambda have: 99 * any(have)),
        "added together": bleu_with(clip=sum),
        "where every reference": bleu_with(clip=min),
        "counts once": bleu_with(clip=any),
        "no brevity penalty": bleu_with(brevity=False),
        "root is missing": bleu_with(root=False),
        "percent": lambda c, r: [100 * x for x in lesson.bleu(c, r)],
        "four numbers": lambda c, r: lesson.bleu(c, r)[3],
        "expected": lambda c, r: [0.0] * 4,
    },
    check.rouge_l: {
        "order of words": lambda c, r: f_score(5 / 7, 4 / 4),
        "ordinary F1": lambda c, r: f_score(5 / 7, 2 / 4, 1),
        "as its square": lambda c, r: f_score(5 / 7, 2 / 4, 1.2),
        "only one reference": lambda c, r: lesson.rouge_l(c, r[:1]),
        "exchanged": lambda c, r: f_score(2 / 4, 5 / 7),
        "precision alone": lambda c, r: 5 / 7,
        "percent": lambda c, r: 100 * lesson.rouge_l(c, r),
        "yours is 0.123": lambda c, r: 0.123,
    },
    check.clustered_interval: {
        "single questions with them": lambda s, c, d: interval_of(s[d].mean(1)),
        "weighs more": mean_of_means,
        "which varies": fixed_count,
        "of single questions": lambda s, c, d: interval_of(s),
        "ends are exchanged": lambda s, c, d: lesson.clustered_interval(s, c, d)[::-1],
        "same number": lambda s, c, d: (s.mean(), s.mean()),
        "two numbers": lambda s, c, d: s.mean(),
    },
    check.pope_metrics: {
        "exchanged": pope_with(
            precision=lambda r, s, b: r["recall"], recall=lambda r, s, b: r["precision"]
        ),
        "positive class": lambda s, b: lesson.pope_metrics([not x for x in s], [not x for x in b]),
        "harmonic": pope_with(f1=lambda r, s, b: (r["precision"] + r["recall"]) / 2),
        "of the *labels*": pope_with(yes_ratio=lambda r, s, b: sum(b) / len(b)),
        "share of no": pope_with(yes_ratio=lambda r, s, b: 1 - r["yes_ratio"]),
        "right noes": pope_with(
            accuracy=lambda r, s, b: sum(x and y for x, y in zip(s, b, strict=True)) / len(b)
        ),
        "recall is 0.123": pope_with(recall=lambda r, s, b: 0.123),
        "nothing is to be divided": pope_that_divides,
        "percent": lambda s, b: {k: 100 * v for k, v in lesson.pope_metrics(s, b).items()},
        "return a dict": lambda s, b: tuple(lesson.pope_metrics(s, b).values()),
    },
    check.circular_and_vanilla: {
        "exchanged": lambda i, r: circular()(i, r)[::-1],
        "counts rows": lambda i, r: (sum(r) / len(r), circular()(i, r)[1]),
        "take any": circular(any),
        "the larger part": circular(lambda rows: sum(rows) > len(rows) / 2),
        "you average": circular(lambda rows: sum(rows) / len(rows)),
        "four rotations": circular(lambda rows: sum(rows) == 4),
        "*lowest* index": circular(first=lambda rows: next(iter(rows))),
        "two numbers": lambda i, r: circular()(i, r)[0],
    },
}
