"""Notebook 05's checks: right answers of several styles pass, and the wrong ones that learners write are named."""

import math
from collections import Counter, defaultdict

import torch

from vlm_lite.labs import check
from vlm_lite.labs.controls import _paired_interval, _pope_figures
from vlm_lite.labs.evaluation import (
    _caption_recall,
    _clipped_matches,
    _rarity,
    _vqa_accuracy,
    ngrams,
)

# ---- vqa_accuracy


def closed_form(prediction, answers):
    n = answers.count(prediction)
    return (n * min(n - 1, 3) + (10 - n) * min(n, 3)) / 30 if n else 0.0


def without_minimum(prediction, answers):
    return sum((answers[:k] + answers[k + 1 :]).count(prediction) / 3 for k in range(10)) / 10


# ---- clipped_matches


def by_hand(candidate, references, n):
    counts = Counter(tuple(candidate[k : k + n]) for k in range(len(candidate) - n + 1))
    matched = 0
    for gram, count in counts.items():
        most = max(sum(tuple(r[k : k + n]) == gram for k in range(len(r))) for r in references)
        matched += min(count, most)
    return matched, len(candidate) - n + 1


def matching(clip, total=lambda candidate, references, n: len(candidate) - n + 1):
    def of(candidate, references, n):
        said = Counter(ngrams(candidate, n))
        have = [Counter(ngrams(r, n)) for r in references]
        return sum(min(c, clip(c, [h[g] for h in have])) for g, c in said.items()), total(
            candidate, references, n
        )

    return of


largest = matching(lambda count, have: max(have))


# ---- rarity


def rarity_by_sets(pictures):
    sets = [set().union(*map(set, captions)) for captions in pictures]
    return {
        gram: math.log(len(sets)) - math.log(sum(gram in each for each in sets))
        for gram in set().union(*sets)
    }


def of_captions(pictures, every):
    counts = Counter(
        gram for captions in pictures for caption in captions for gram in every(caption)
    )
    return {gram: math.log(len(pictures) / count) for gram, count in counts.items()}


def changed(function):
    return lambda pictures: {
        gram: function(weight, len(pictures)) for gram, weight in _rarity(pictures).items()
    }


# ---- caption_recall


def recall_by_loop(similarity, picture_of, k):
    to_text = [
        any(picture_of[m] == n for m in row.argsort(descending=True)[:k])
        for n, row in enumerate(similarity)
    ]
    to_picture = [
        picture_of[m] in column.argsort(descending=True)[:k]
        for m, column in enumerate(similarity.T)
    ]
    return sum(to_text) / len(to_text), sum(to_picture) / len(to_picture)


def all_captions(similarity, picture_of, k):
    top = similarity.topk(k, dim=1).indices
    hits = [
        all(m in top[n] for m in (picture_of == n).nonzero()[:, 0]) for n in range(len(similarity))
    ]
    return sum(hits) / len(hits), _caption_recall(similarity, picture_of, k)[1]


def captions_counted(similarity, picture_of, k):
    top = similarity.topk(k, dim=1).indices
    hits = (picture_of[top] == torch.arange(len(similarity))[:, None]).sum()
    return hits / len(picture_of), _caption_recall(similarity, picture_of, k)[1]


def diagonal(similarity, picture_of, k):
    N = len(similarity)
    text = (similarity.topk(k, 1).indices == torch.arange(N)[:, None]).any(1).float().mean()
    return text, (similarity[:, :N].topk(k, 0).indices == torch.arange(N)).any(0).float().mean()


# ---- type_prior


def prior_by_counter(train_types, train_answers, types):
    by_type = defaultdict(Counter)
    for kind, answer in zip(train_types, train_answers, strict=True):
        by_type[kind][answer] += 1
    default = Counter(train_answers).most_common(1)[0][0]
    return [by_type[kind].most_common(1)[0][0] if kind in by_type else default for kind in types]


def priors(choose, default=lambda answers: Counter(answers).most_common(1)[0][0]):
    def of(train_types, train_answers, types):
        given = {
            kind: [a for t, a in zip(train_types, train_answers, strict=True) if t == kind]
            for kind in types
        }
        return [choose(given[kind]) if given[kind] else default(train_answers) for kind in types]

    return of


def most(answers):
    return Counter(answers).most_common(1)[0][0]


# ---- paired_interval


def interval(values, low=0.025, high=0.975):
    return torch.quantile(values, low), torch.quantile(values, high)


# ---- pair_accuracy, pope_figures


def pairs_by_tensor(scores, pairs):
    return (scores[torch.tensor(pairs)] > 0.5).all(dim=1).double().mean()


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
        right = _pope_figures(said, labels)
        return {
            **right,
            **{name: function(right, said, labels) for name, function in wrong.items()},
        }

    return of


def pope_that_divides(said, labels):
    tp = sum(a and b for a, b in zip(said, labels, strict=True))
    p, r = tp / sum(said), tp / sum(labels)
    return {**_pope_figures(said, labels), "precision": p, "recall": r, "f1": 2 * p * r / (p + r)}


# ---- circular_and_plain


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
    (check.clipped_matches, by_hand),
    (check.clipped_matches, largest),
    (check.rarity, rarity_by_sets),
    (
        check.rarity,
        lambda pictures: of_captions(
            [[[g for caption in captions for g in caption]] for captions in pictures], set
        ),
    ),
    (check.caption_recall, recall_by_loop),
    (check.type_prior, prior_by_counter),
    (check.type_prior, priors(most)),
    (check.paired_interval, lambda a, b, draws: interval(a[draws].mean(1) - b[draws].mean(1))),
    (
        check.paired_interval,
        lambda a, b, draws: tuple((a - b)[draws].mean(1).sort().values[[10, 389]].tolist()),
    ),
    (check.pair_accuracy, pairs_by_tensor),
    (check.pope_figures, pope_by_tensor),
    (check.circular_and_plain, circular()),
]
WRONG = [
    (check.vqa_accuracy, lambda p, a: min(1, a.count(p) / 3), "the short form"),
    (check.vqa_accuracy, lambda p, a: min(1, a[1:].count(p) / 3), "only one person is left out"),
    (check.vqa_accuracy, without_minimum, "grows above 1"),
    (check.vqa_accuracy, lambda p, a: a.count(p) / 10, "share of people"),
    (check.vqa_accuracy, lambda p, a: 100 * _vqa_accuracy(p, a), "percent"),
    (check.vqa_accuracy, lambda p, a: float(a.count(p) > 5), "counts in part"),
    (check.vqa_accuracy, lambda p, a: 10 * _vqa_accuracy(p, a), "divide by the number of people"),
    (
        check.vqa_accuracy,
        lambda p, a: _vqa_accuracy(p.lower(), [x.lower() for x in a]),
        "as it stands",
    ),
    (check.vqa_accuracy, lambda p, a: torch.tensor(_vqa_accuracy(p, a)), "one number"),
    (check.vqa_accuracy, lambda p, a: _vqa_accuracy(p, a) ** 2, "for 0, 1, 2"),
    (check.clipped_matches, matching(lambda count, have: count * any(have)), "nothing is clipped"),
    (check.clipped_matches, matching(lambda count, have: sum(have)), "added together"),
    (check.clipped_matches, matching(lambda count, have: have[0]), "only one reference"),
    (check.clipped_matches, matching(lambda count, have: min(have)), "every reference has it"),
    (check.clipped_matches, matching(lambda count, have: any(have)), "a set forgets"),
    (
        check.clipped_matches,
        matching(lambda count, have: max(have), lambda c, r, n: len(r[0]) - n + 1),
        "recall",
    ),
    (check.clipped_matches, lambda c, r, n: _clipped_matches(c, r, 1), "n is not used"),
    (
        check.clipped_matches,
        matching(lambda count, have: max(have), lambda c, r, n: len(c) - n),
        "L - n + 1",
    ),
    (check.clipped_matches, lambda c, r, n: _clipped_matches(c, r, n)[0] / len(c), "two numbers"),
    (check.clipped_matches, lambda c, r, n: (0, len(c)), "for n = 1 and 2"),
    (check.rarity, lambda pictures: of_captions(pictures, set), "counts once for each *picture*"),
    (check.rarity, lambda pictures: of_captions(pictures, list), "how often it is said"),
    (check.rarity, changed(lambda weight, n: math.exp(weight)), "logarithm is missing"),
    (check.rarity, changed(lambda weight, n: -weight), "sign is turned"),
    (check.rarity, changed(lambda weight, n: n / math.exp(weight)), "how common it is"),
    (check.rarity, changed(lambda weight, n: weight / math.log(2)), "base 2 or 10"),
    (check.rarity, changed(lambda weight, n: math.log(1 + math.exp(weight))), "1 is added"),
    (check.rarity, lambda pictures: list(_rarity(pictures).values()), "return a dict"),
    (
        check.rarity,
        lambda pictures: {gram[0]: weight for gram, weight in _rarity(pictures).items()},
        "as they stand",
    ),
    (check.rarity, changed(lambda weight, n: 3 * weight), "not log(pictures"),
    (check.caption_recall, lambda s, p, k: _caption_recall(s, p, k)[::-1], "exchanged"),
    (check.caption_recall, all_captions, "all of them"),
    (check.caption_recall, captions_counted, "one query"),
    (check.caption_recall, diagonal, "stand in picture_of"),
    (check.caption_recall, lambda s, p, k: _caption_recall(s, p, k + 1), "one too many"),
    (check.caption_recall, lambda s, p, k: _caption_recall(s, p, k - 1), "k - 1 only"),
    (check.caption_recall, lambda s, p, k: _caption_recall(s, p, k)[0], "two numbers"),
    (
        check.caption_recall,
        lambda s, p, k: (torch.tensor(2.0), torch.tensor(2.0)),
        "each direction alone",
    ),
    (check.type_prior, lambda tt, ta, types: [most(ta)] * len(types), "the *majority*"),
    (check.type_prior, priors(most, lambda answers: "unknown"), "never had"),
    (
        check.type_prior,
        lambda tt, ta, types: [
            most([a for t, a in zip(tt, ta, strict=True) if t == kind]) for kind in types
        ],
        "IndexError",
    ),
    (check.type_prior, priors(lambda a: min(sorted(set(a)), key=a.count)), "the rarest"),
    (check.type_prior, priors(lambda a: Counter(a).most_common(1)[0][1]), "not its count"),
    (check.type_prior, lambda tt, ta, types: dict(zip(tt, ta, strict=True)), "one answer for each"),
    (
        check.paired_interval,
        lambda a, b, draws: interval(a[draws].mean(1) - b[draws.roll(1, 0)].mean(1)),
        "apart",
    ),
    (
        check.paired_interval,
        lambda a, b, draws: interval(a[draws].mean(1)),
        "the first model alone",
    ),
    (
        check.paired_interval,
        lambda a, b, draws: interval(b[draws].mean(1)),
        "the second model alone",
    ),
    (check.paired_interval, lambda a, b, draws: interval(a - b), "single questions"),
    (check.paired_interval, lambda a, b, draws: interval((b - a)[draws].mean(1)), "sign is turned"),
    (
        check.paired_interval,
        lambda a, b, draws: interval((a - b)[draws].mean(1), 0.05, 0.95),
        "90%",
    ),
    (
        check.paired_interval,
        lambda a, b, draws: interval((a - b)[draws].mean(1), 0.25, 0.75),
        "50%",
    ),
    (
        check.paired_interval,
        lambda a, b, draws: _paired_interval(a, b, draws)[::-1],
        "ends are exchanged",
    ),
    (check.paired_interval, lambda a, b, draws: ((a - b).mean(), (a - b).mean()), "same number"),
    (check.paired_interval, lambda a, b, draws: (a - b)[draws].mean(1), "two numbers"),
    (
        check.pair_accuracy,
        lambda s, pairs: sum(bool(s[i] > 0.5 or s[j] > 0.5) for i, j in pairs) / len(pairs),
        "both*",
    ),
    (check.pair_accuracy, lambda s, pairs: s[torch.tensor(pairs)].mean(), "mean score"),
    (check.pair_accuracy, lambda s, pairs: s.mean(), "pairs are not used"),
    (
        check.pair_accuracy,
        lambda s, pairs: (s[torch.tensor(pairs)] > 0).all(1).float().mean(),
        "0.3 is not right",
    ),
    (
        check.pair_accuracy,
        lambda s, pairs: (s[torch.tensor(pairs)] == 1).all(1).float().mean(),
        "0.6 and 0.9",
    ),
    (check.pair_accuracy, lambda s, pairs: s[torch.tensor(pairs)].prod(1).mean(), "smaller score"),
    (
        check.pair_accuracy,
        lambda s, pairs: pairs_by_tensor(s, pairs) * len(pairs),
        "return their share",
    ),
    (check.pair_accuracy, lambda s, pairs: pairs_by_tensor(s, pairs) / 2, "by the number of pairs"),
    (check.pair_accuracy, lambda s, pairs: 100 * pairs_by_tensor(s, pairs), "percent"),
    (
        check.pope_figures,
        pope_with(precision=lambda r, s, b: r["recall"], recall=lambda r, s, b: r["precision"]),
        "exchanged",
    ),
    (
        check.pope_figures,
        lambda s, b: _pope_figures([not x for x in s], [not x for x in b]),
        "positive class",
    ),
    (
        check.pope_figures,
        pope_with(f1=lambda r, s, b: (r["precision"] + r["recall"]) / 2),
        "harmonic",
    ),
    (check.pope_figures, pope_with(yes_ratio=lambda r, s, b: sum(b) / len(b)), "of the *labels*"),
    (check.pope_figures, pope_with(yes_ratio=lambda r, s, b: 1 - r["yes_ratio"]), "share of no"),
    (
        check.pope_figures,
        pope_with(
            accuracy=lambda r, s, b: sum(x and y for x, y in zip(s, b, strict=True)) / len(b)
        ),
        "right noes",
    ),
    (check.pope_figures, pope_with(recall=lambda r, s, b: 0.123), "recall is 0.123"),
    (check.pope_figures, pope_that_divides, "nothing is to be divided"),
    (
        check.pope_figures,
        lambda s, b: {k: 100 * v for k, v in _pope_figures(s, b).items()},
        "percent",
    ),
    (check.pope_figures, lambda s, b: tuple(_pope_figures(s, b).values()), "return a dict"),
    (check.circular_and_plain, lambda i, r: circular()(i, r)[::-1], "exchanged"),
    (check.circular_and_plain, lambda i, r: (sum(r) / len(r), circular()(i, r)[1]), "counts rows"),
    (check.circular_and_plain, circular(any), "take any"),
    (check.circular_and_plain, circular(lambda rows: sum(rows) > len(rows) / 2), "the larger part"),
    (check.circular_and_plain, circular(lambda rows: sum(rows) / len(rows)), "you average"),
    (check.circular_and_plain, circular(lambda rows: sum(rows) == 4), "four rotations"),
    (check.circular_and_plain, circular(first=lambda rows: next(iter(rows))), "*lowest* index"),
    (check.circular_and_plain, lambda i, r: circular()(i, r)[0], "two numbers"),
]
