"""Each metric of the field by hand, the controls beside it, and a model's failures as findings.

Generated from notebooks/05_evaluation.py by `make notebooks`: edit the notebook.
"""

import math
import string
from collections import Counter
from functools import reduce
from operator import or_

import torch


def vqa_accuracy(prediction, answers):
    """A text and the ten people's answers -> accuracy in [0, 1] (Antol et al. 2015, official code)."""
    left_out = [answers[:k] + answers[k + 1 :] for k in range(len(answers))]
    return sum(min(1, others.count(prediction) / 3) for others in left_out) / len(answers)


def ngrams(words, n):
    """A list of words -> Counter of its n-grams."""
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def bleu(candidates, references):
    """N captions and N lists of captions, as lists of words -> [BLEU-1, BLEU-2, BLEU-3, BLEU-4]."""
    pairs = list(zip(candidates, references, strict=True))
    said = sum(map(len, candidates))
    wanted = sum(min((abs(len(r) - len(c)), len(r)) for r in refs)[1] for c, refs in pairs)
    scores, product = [], 1.0
    for n in range(1, 5):
        most = [reduce(or_, (ngrams(r, n) for r in refs)) for refs in references]
        matched = sum((ngrams(c, n) & top).total() for c, top in zip(candidates, most, strict=True))
        product *= matched / max(1, sum(ngrams(c, n).total() for c in candidates))
        scores.append(min(1.0, math.exp(1 - wanted / max(1, said))) * product ** (1 / n))
    return scores


def rouge_l(candidate, references):
    """A list of words and a list of such lists -> ROUGE-L's F as COCO's code has it (beta 1.2)."""
    precision = recall = 0.0
    for reference in references:
        row = [0] * (len(reference) + 1)
        for word in candidate:
            old, row = row, [0]
            for k, other in enumerate(reference):
                row.append(old[k] + 1 if word == other else max(row[k], old[k + 1]))
        precision = max(precision, row[-1] / len(candidate))
        recall = max(recall, row[-1] / len(reference))
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0


def words_of(text):  # the official tokeniser, PTB, runs on Java
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def meteor_alignment(candidate, reference, beam=40):
    """Two lists of words -> (m, k): exact matches, one to one, and the chunks they lie in."""
    states = [(0, 0, -9, 0)]  # matches, minus chunks, the last word matched, those used (as bits)
    for word in candidate:
        after = {(m, k, -9, used) for m, k, _, used in states}
        for j in (j for j, other in enumerate(reference) if other == word):
            free = [state for state in states if not state[3] >> j & 1]
            after |= {(m + 1, k - (j != i + 1), j, used | 1 << j) for m, k, i, used in free}
        states = sorted(after, reverse=True)[:beam]
    return states[0][0], -states[0][1]


def meteor(candidate, references):
    """A list of words and a list of such lists -> METEOR of 2005 with exact matches; the best reference counts."""
    scores = [0.0]
    for reference in references:
        m, k = meteor_alignment(candidate, reference)
        p, r = m / max(1, len(candidate)), m / len(reference)
        scores.append(10 * p * r / (r + 9 * p) * (1 - 0.5 * (k / m) ** 3) if m else 0.0)
    return max(scores)


def cider(candidates, references):
    """N captions and N lists of captions, as lists of words -> CIDEr-D (0 to 10)."""
    total, N = 0.0, len(references)
    for n in range(1, 5):
        have = Counter(g for refs in references for g in {g for r in refs for g in ngrams(r, n)})

        def vector(words, n=n, have=have):
            return {g: k * math.log(N / max(1, have[g])) for g, k in ngrams(words, n).items()}

        for c, refs in zip(candidates, references, strict=True):
            for r in refs:
                a, b, apart = vector(c), vector(r), math.exp(-((len(c) - len(r)) ** 2) / 72)
                dot = sum(min(a[g], b[g]) * b[g] for g in a.keys() & b.keys())
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                total += dot / max(norms, 1e-12) * apart / len(refs)
    return 10 * total / 4 / N


def clustered_interval(scores, clusters, draws):
    """scores (Q,), clusters (Q,) from 0 to C - 1, draws (R, C) of clusters -> (low, high), 95%, of the mean score."""
    sums = torch.zeros(draws.shape[1]).index_add(0, clusters, scores.float())  # (C,)
    counts = torch.bincount(clusters, minlength=draws.shape[1])  # (C,)
    means = sums[draws].sum(dim=1) / counts[draws].sum(dim=1)  # (R,)
    return means.quantile(0.025), means.quantile(0.975)


def interval(scores, rows):
    """scores (Q,) of rows with an image_id -> (mean, low, high), 2,000 resamples of images."""
    clusters = torch.tensor([row["image_id"] for row in rows]).unique(return_inverse=True)[1]
    C = int(clusters.max()) + 1
    draws = torch.randint(C, (2000, C), generator=torch.Generator().manual_seed(0))
    return scores.float().mean().item(), *map(float, clustered_interval(scores, clusters, draws))


def pope_metrics(said, labels):
    """Two lists, True for yes -> accuracy, precision, recall, f1, yes_ratio; 0 where nothing is to divide."""
    hits = sum(s and there for s, there in zip(said, labels, strict=True))
    return {
        "accuracy": sum(s == there for s, there in zip(said, labels, strict=True)) / len(said),
        "precision": hits / max(1, sum(said)),
        "recall": hits / max(1, sum(labels)),
        "f1": 2 * hits / max(1, sum(said) + sum(labels)),
        "yes_ratio": sum(said) / len(said),
    }


def circular_and_vanilla(indices, right):
    """Row indices and whether each row is right -> (CircularEval, VanillaEval), shares of the questions."""
    questions = {}
    for index, good in sorted(zip(indices, right, strict=True)):
        questions.setdefault(index % 1_000_000, []).append(good)
    circular = [all(rows) for rows in questions.values()]
    return sum(circular) / len(questions), sum(rows[0] for rows in questions.values()) / len(
        questions
    )
