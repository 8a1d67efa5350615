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


RIGHT = [
    (check.vqa_accuracy, closed_form),
    (
        check.vqa_accuracy,
        lambda p, a: sum(min(1, (a[:k] + a[k + 1 :]).count(p) / 3) for k in range(10)) / 10,
    ),
    (check.bleu, bleu_with()),
    (check.rouge_l, rouge_by_recursion),
    (check.clustered_interval, interval_by_loop),
    (check.pope_metrics, pope_by_tensor),
    (check.circular_and_vanilla, circular()),
]
WRONG = [
    (check.vqa_accuracy, lambda p, a: min(1, a.count(p) / 3), "the short form"),
    (check.vqa_accuracy, lambda p, a: min(1, a[1:].count(p) / 3), "only one person is left out"),
    (check.vqa_accuracy, without_minimum, "grows above 1"),
    (check.vqa_accuracy, lambda p, a: a.count(p) / 10, "share of people"),
    (check.vqa_accuracy, lambda p, a: 100 * lesson.vqa_accuracy(p, a), "percent"),
    (
        check.vqa_accuracy,
        lambda p, a: 10 * lesson.vqa_accuracy(p, a),
        "divide by the number of people",
    ),
    (
        check.vqa_accuracy,
        lambda p, a: lesson.vqa_accuracy(p.lower(), [x.lower() for x in a]),
        "as it stands",
    ),
    (check.vqa_accuracy, lambda p, a: torch.tensor(lesson.vqa_accuracy(p, a)), "one number"),
    (check.vqa_accuracy, lambda p, a: lesson.vqa_accuracy(p, a) ** 2, "for 0, 1, 2"),
    (check.bleu, bleu_with(clip=lambda have: 99 * any(have)), "nothing is clipped"),
    (check.bleu, bleu_with(clip=sum), "added together"),
    (check.bleu, bleu_with(clip=min), "where every reference"),
    (check.bleu, bleu_with(clip=any), "counts once"),
    (check.bleu, bleu_with(brevity=False), "no brevity penalty"),
    (check.bleu, bleu_with(root=False), "root is missing"),
    (check.bleu, lambda c, r: [100 * x for x in lesson.bleu(c, r)], "percent"),
    (check.bleu, lambda c, r: lesson.bleu(c, r)[3], "four numbers"),
    (check.bleu, lambda c, r: [0.0] * 4, "expected"),
    (check.rouge_l, lambda c, r: f_score(5 / 7, 4 / 4), "order of words"),
    (check.rouge_l, lambda c, r: f_score(5 / 7, 2 / 4, 1), "ordinary F1"),
    (check.rouge_l, lambda c, r: f_score(5 / 7, 2 / 4, 1.2), "as its square"),
    (check.rouge_l, lambda c, r: lesson.rouge_l(c, r[:1]), "only one reference"),
    (check.rouge_l, lambda c, r: f_score(2 / 4, 5 / 7), "exchanged"),
    (check.rouge_l, lambda c, r: 5 / 7, "precision alone"),
    (check.rouge_l, lambda c, r: 100 * lesson.rouge_l(c, r), "percent"),
    (check.rouge_l, lambda c, r: 0.123, "yours is 0.123"),
    (
        check.clustered_interval,
        lambda s, c, d: interval_of(s[d].mean(1)),
        "single questions with them",
    ),
    (check.clustered_interval, mean_of_means, "weighs more"),
    (check.clustered_interval, fixed_count, "which varies"),
    (check.clustered_interval, lambda s, c, d: interval_of(s), "of single questions"),
    (
        check.clustered_interval,
        lambda s, c, d: lesson.clustered_interval(s, c, d)[::-1],
        "ends are exchanged",
    ),
    (check.clustered_interval, lambda s, c, d: (s.mean(), s.mean()), "same number"),
    (check.clustered_interval, lambda s, c, d: s.mean(), "two numbers"),
    (
        check.pope_metrics,
        pope_with(precision=lambda r, s, b: r["recall"], recall=lambda r, s, b: r["precision"]),
        "exchanged",
    ),
    (
        check.pope_metrics,
        lambda s, b: lesson.pope_metrics([not x for x in s], [not x for x in b]),
        "positive class",
    ),
    (
        check.pope_metrics,
        pope_with(f1=lambda r, s, b: (r["precision"] + r["recall"]) / 2),
        "harmonic",
    ),
    (check.pope_metrics, pope_with(yes_ratio=lambda r, s, b: sum(b) / len(b)), "of the *labels*"),
    (check.pope_metrics, pope_with(yes_ratio=lambda r, s, b: 1 - r["yes_ratio"]), "share of no"),
    (
        check.pope_metrics,
        pope_with(
            accuracy=lambda r, s, b: sum(x and y for x, y in zip(s, b, strict=True)) / len(b)
        ),
        "right noes",
    ),
    (check.pope_metrics, pope_with(recall=lambda r, s, b: 0.123), "recall is 0.123"),
    (check.pope_metrics, pope_that_divides, "nothing is to be divided"),
    (
        check.pope_metrics,
        lambda s, b: {k: 100 * v for k, v in lesson.pope_metrics(s, b).items()},
        "percent",
    ),
    (check.pope_metrics, lambda s, b: tuple(lesson.pope_metrics(s, b).values()), "return a dict"),
    (check.circular_and_vanilla, lambda i, r: circular()(i, r)[::-1], "exchanged"),
    (
        check.circular_and_vanilla,
        lambda i, r: (sum(r) / len(r), circular()(i, r)[1]),
        "counts rows",
    ),
    (check.circular_and_vanilla, circular(any), "take any"),
    (
        check.circular_and_vanilla,
        circular(lambda rows: sum(rows) > len(rows) / 2),
        "the larger part",
    ),
    (check.circular_and_vanilla, circular(lambda rows: sum(rows) / len(rows)), "you average"),
    (check.circular_and_vanilla, circular(lambda rows: sum(rows) == 4), "four rotations"),
    (check.circular_and_vanilla, circular(first=lambda rows: next(iter(rows))), "*lowest* index"),
    (check.circular_and_vanilla, lambda i, r: circular()(i, r)[0], "two numbers"),
]
