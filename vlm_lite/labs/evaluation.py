"""The checks of notebook 05: VQA accuracy, BLEU, ROUGE-L, a clustered interval, POPE, CircularEval.

Each check first sees whether the learner's result is right on fresh inputs; if not, whether it equals what a known
mistake would give on the same inputs. The references are the notebook's own, from `lessons.evaluation`.
"""

import math
import random

import torch

from vlm_lite.labs.core import close, exercise, explain
from vlm_lite.lessons import evaluation as lesson

WORDS = "red blue dog cat tree bus lamp kite boat drum fork shoe".split()


@exercise(lesson.vqa_accuracy)
def vqa_accuracy(learner):
    """An answer that none to all ten people gave, in random order; then one that differs in its capital only."""
    right_word, *others = random.sample(WORDS, 5)
    asked = []
    for matches in range(11):
        answers = [right_word] * matches + random.choices(others, k=10 - matches)
        random.shuffle(answers)
        if (
            matches > 1
        ):  # two who agree stand at the ends, so that leaving out one end only gives another score
            ends = [k for k, answer in enumerate(answers) if answer == right_word][:2]
            middle = [answer for k, answer in enumerate(answers) if k not in ends]
            answers = [right_word, *middle, right_word]
        asked.append(answers)
    found = [learner(right_word, list(answers)) for answers in asked]
    if not all(isinstance(value, int | float) for value in found):
        return f"return one number for one question; yours is a {type(found[0]).__name__}"
    right = [lesson.vqa_accuracy(right_word, answers) for answers in asked]
    if close(found, right):
        if learner(right_word.title(), [right_word] * 10) != 0:
            return (
                "you change the text before you compare. Here it is compared as it stands; *when* the official "
                "tool normalises comes next"
            )
        return None
    n = torch.arange(11).double()
    one_out = torch.tensor(
        [[min(1, (row[:j] + row[j + 1 :]).count(right_word) / 3) for j in (0, 9)] for row in asked]
    )
    full = torch.tensor(right).double()
    return explain(
        torch.tensor(found).double(),
        {
            "this is the short form, min(1, n / 3): it counts all ten at once. Leave each person out in turn, so that two "
            "matches give 0.6 and not 0.67": [(n / 3).clamp(max=1)],
            "only one person is left out: do it ten times, once for each, and take the mean": list(
                one_out.T
            ),
            "it grows above 1: three others who agree are enough, min(1, matches / 3)": [
                n * 9 / 30,
                n / 3,
            ],
            "this is the share of people who agree; three of them are enough for a full score": [
                n / 10
            ],
            "this is percent; return a fraction from 0 to 1": [
                100 * full,
                100 * (n / 3).clamp(max=1),
            ],
            "ten scores are added up and not averaged: divide by the number of people": [10 * full],
        },
    ) or (
        "for 0, 1, 2, ... 10 matches yours gives "
        + ", ".join(f"{value:.2f}" for value in found)
        + "; expected 0, 0.30, 0.60, 0.90 and then 1"
    )


@exercise(lesson.bleu)
def bleu(learner):
    """Two captions, one that repeats itself and one that is short, against two references each."""
    a, b, c, d, e, f, *_ = random.sample(WORDS, 12)
    candidates = [[a, a, b, a, a, c, d, a, b, e, e], [a, b, c, d, e]]
    references = [[[a, b, a, a, c, d, f, b], [f, a, b, a, b, a, c, d]]]
    references.append(
        [[a, b, c, d, f, e, f, a, f, c, b, f, f], [b, c, d, e, a, f, c, c, d, e, a, b]]
    )
    found = learner([list(c) for c in candidates], [[list(r) for r in refs] for refs in references])
    if not isinstance(found, list | tuple) or len(found) != 4:
        return "return four numbers, BLEU-1 to BLEU-4"
    found = torch.tensor([float(value) for value in found]).double()

    def value(clip=max, penalty="nearest", each=lambda p: math.prod(p) ** (1 / len(p)), mean=False):
        pairs, rows = list(zip(candidates, references, strict=True)), []
        for k, refs in pairs:
            grams = [[lesson.ngrams(r, n) for r in refs] for n in range(1, 5)]
            said = [lesson.ngrams(k, n) for n in range(1, 5)]
            matched = [
                sum(min(times, clip([one[g] for one in have])) for g, times in own.items())
                for own, have in zip(said, grams, strict=True)
            ]
            rows.append([(m, own.total()) for m, own in zip(matched, said, strict=True)])
        if mean:
            precisions = [sum(m / t for m, t in way) / 2 for way in zip(*rows, strict=True)]
        else:
            precisions = [
                sum(m for m, _ in way) / sum(t for _, t in way) for way in zip(*rows, strict=True)
            ]
        c = sum(len(k) for k, _ in pairs)
        near = {
            "nearest": lambda k, refs: min((abs(len(r) - len(k)), len(r)) for r in refs)[1],
            "longest": lambda k, refs: max(map(len, refs)),
        }.get(penalty)
        r = sum(near(k, refs) for k, refs in pairs) if near else 0
        less = math.exp(1 - r / c) if penalty == "no cap" or c < r else 1.0
        return torch.tensor([less * each(precisions[:n]) for n in range(1, 5)]).double()

    right = value()
    if close(found, right):
        return None
    return (
        explain(
            found,
            {
                "nothing is clipped: an n-gram counts at most as often as in the one reference that has it most": [
                    value(clip=lambda have: 99 * any(have))
                ],
                "the references are added together: clip at the *largest* count in one of them": [
                    value(clip=sum)
                ],
                "an n-gram counts only where every reference has it: one is enough": [
                    value(clip=min)
                ],
                "each different n-gram counts once: count how often": [value(clip=any)],
                "there is no brevity penalty": [value(penalty="none")],
                "the brevity penalty takes the longest reference; take the nearest in length": [
                    value(penalty="longest")
                ],
                "you divide caption by caption: add up over all captions, then divide": [
                    value(mean=True)
                ],
                "these are the precisions one by one: BLEU-n is the geometric mean of the first n": [
                    value(each=lambda p: p[-1])
                ],
                "you take the arithmetic mean of the precisions: the n-th root of their product": [
                    value(each=lambda p: sum(p) / len(p))
                ],
                "the n-th root is missing": [value(each=math.prod)],
                "this is percent; return fractions": [100 * right],
            },
        )
        or f"yours is {found.tolist()}, expected {right.tolist()}"
    )


@exercise(lesson.rouge_l)
def rouge_l(learner):
    """A caption of seven words against two references: one has the better precision, the other the better recall."""
    a, b, c, d, e, f, g, h, *_ = random.sample(WORDS, 12)
    candidate = [a, b, c, d, e, f, a]
    references = [[a, g, b, h, c, g, d, h, e, g, g], [f, d, c, a]]
    found = float(learner(list(candidate), [list(r) for r in references]))
    right = lesson.rouge_l(candidate, references)
    if close(found, right):
        return None
    reversed_ = [r[::-1] for r in references]

    def value(lengths, beta2=1.44, pick=max):
        p = pick(n / len(candidate) for n in lengths)
        r = pick(n / len(ref) for n, ref in zip(lengths, references, strict=True))
        return (1 + beta2) * p * r / (r + beta2 * p)

    common = (5, 2)
    of_one = [lesson.rouge_l(candidate, [r]) for r in references]
    return (
        explain(
            found,
            {
                "the order of words is not looked at: a subsequence keeps it": [
                    value((5, 4)),
                    lesson.rouge_l(candidate, reversed_),
                ],
                "that is the longest run without gaps; gaps are allowed": [value((1, 1))],
                "that is the ordinary F1: beta is 1.2, which weighs recall more": [
                    value(common, 1.0)
                ],
                "beta enters as its square": [value(common, 1.2)],
                "only one reference is looked at": of_one,
                "precision and recall are exchanged: beta weighs recall": [value(common, 1 / 1.44)],
                "this is the precision alone": [5 / 7],
                "this is the recall alone": [2 / 4],
                "this is the length; divide by the caption's and by the reference's": [5],
                "this is percent; return a fraction": [100 * right],
            },
        )
        or f"yours is {found:.3f}, expected {right:.3f}"
    )


@exercise(lesson.clustered_interval)
def clustered_interval(learner):
    """Twelve images with one to nine questions each, which fail together, and 400 draws of images."""
    C, R = 12, 400
    sizes = torch.tensor([1, 1, 1, 1, 2, 2, 3, 5, 9, 9, 9, 9])[torch.randperm(C)]
    clusters = torch.arange(C).repeat_interleave(sizes)[torch.randperm(int(sizes.sum()))]
    scores = (torch.rand(C)[clusters] + 0.1 * torch.rand(len(clusters))).float()
    scores, order = scores.sort()  # so the first C questions alone are far below the mean
    clusters = clusters[order]
    draws = torch.randint(C, (R, C))
    found = learner(scores.clone(), clusters.clone(), draws.clone())
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers, the lower and the upper end"
    found = torch.tensor([float(value) for value in found])
    sums = torch.zeros(C).index_add(0, clusters, scores)
    means = sums[draws].sum(1) / sizes[draws].sum(1)

    def ends(values, level=0.95):
        return torch.quantile(values, torch.tensor([(1 - level) / 2, (1 + level) / 2]))

    def like(values, level=0.95):
        return bool((found - ends(values, level)).abs().max() < 0.03 * values.std())

    if like(means):
        return None
    if bool((found.flip(0) - ends(means)).abs().max() < 1e-3):
        return "the two ends are exchanged: return (low, high)"
    if close(found[0], found[1]):
        return (
            "both ends are the same number: take the 2.5th and the 97.5th percentile over the draws"
        )
    for values, said in (
        (
            scores[draws].mean(1),
            "`draws` holds numbers of images; you index single questions with them",
        ),
        (
            (sums / sizes)[draws].mean(1),
            "you average the images' means: an image with more questions weighs more",
        ),
        (
            sums[draws].sum(1) / len(scores),
            "divide by the number of questions in the draw, which varies",
        ),
        (sums[draws].mean(1), "these are sums of images: divide by the number of their questions"),
        (sums / sizes, "these are percentiles of single images: first the mean of each draw, (R,)"),
        (scores, "these are percentiles of single questions: first the mean of each draw, (R,)"),
    ):
        if like(values):
            return said
    for level in (0.9, 0.99, 0.5):
        if like(means, level):
            return f"this is a {100 * level:.0f}% interval; cut off 2.5% at each end for 95%"
    low, high = ends(means).tolist()
    return f"yours runs from {found[0]:.3f} to {found[1]:.3f}; expected {low:.3f} to {high:.3f}"


@exercise(lesson.pope_metrics)
def pope_metrics(learner):
    """Twenty answers with hits, misses and false alarms in unlike numbers; then a model that says no to everything."""
    tp, fp, fn, tn = random.choice([(7, 4, 2, 5), (6, 3, 5, 4), (5, 2, 4, 9), (8, 3, 1, 6)])
    rows = [(True, True)] * tp + [(True, False)] * fp + [(False, True)] * fn + [(False, False)] * tn
    random.shuffle(rows)
    said, labels = map(list, zip(*rows, strict=True))
    right = lesson.pope_metrics(said, labels)
    found = learner(list(said), list(labels))
    if not isinstance(found, dict) or set(found) != set(right):
        return f"return a dict with {', '.join(right)}"
    found = {name: float(found[name]) for name in right}
    n, precision, recall = len(rows), right["precision"], right["recall"]
    mistakes = {
        "precision": {
            "precision and recall are exchanged: precision is the share of the *yes answers* that are right": [
                recall
            ],
            "that is the precision of no; here yes is the positive class": [tn / (tn + fn)],
        },
        "recall": {
            "recall is the share of the things that *are there* that were found: divide by the yes labels": [
                precision,
                tp / n,
            ],
            "that is the recall of no; yes is the positive class": [tn / (tn + fp)],
        },
        "f1": {
            "f1 is the harmonic mean, 2pr / (p + r), and not the plain one": [
                (precision + recall) / 2
            ],
            "f1 lacks its 2": [right["f1"] / 2],
        },
        "yes_ratio": {
            "that is the yes ratio of the *labels*; it tells nothing about the model": [
                (tp + fn) / n
            ],
            "that is the share of no": [(fn + tn) / n],
        },
        "accuracy": {
            "accuracy counts right noes too": [tp / n],
            "that is the share of wrong answers": [(fp + fn) / n],
        },
    }
    if close(found["precision"], 100 * precision):
        return "these are percent; return fractions"
    for name, known in mistakes.items():
        if not close(found[name], right[name]):
            return (
                explain(found[name], known)
                or f"{name} is {found[name]:.3f}, expected {right[name]:.3f}"
            )
    try:
        never = learner([False] * 4, [True, False, True, False])
    except ZeroDivisionError:
        return "a model that never says yes stops it: nothing is to be divided by. Give 0 there"
    if not close(
        {name: float(never[name]) for name in right},
        lesson.pope_metrics([False] * 4, [True, False] * 2),
    ):
        return "for a model that never says yes, precision, recall and f1 are 0 and accuracy is the share of noes"
    return None


@exercise(lesson.circular_and_vanilla)
def circular_and_vanilla(learner):
    """Seven questions of two to four rotations, rows in random order; some right in all, some in the first only."""
    M, ids = 1_000_000, random.sample(range(2, 900), 7)
    outcomes = [
        (1, 1, 1, 1),
        (1, 1, 1),
        (1, 0, 1, 1),
        (0, 1, 1),
        (0, 1, 1, 1),
        (1, 0, 0, 0),
        (1, 1),
    ]
    rows = [
        (r * M + index, bool(good))
        for index, row in zip(ids, outcomes, strict=True)
        for r, good in enumerate(row)
    ]
    while sum(next(good for i, good in rows if i % M == index) for index in ids) != 4:
        random.shuffle(
            rows
        )  # until the first row that is met would tell another story than the first rotation
    indices, right = map(list, zip(*rows, strict=True))
    expected = torch.tensor(lesson.circular_and_vanilla(indices, right)).double()
    found = learner(list(indices), list(right))
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers: CircularEval, VanillaEval"
    found = torch.tensor([float(value) for value in found]).double()
    if close(found, expected):
        return None
    circular, plain = expected.tolist()
    all_rows = sum(right) / len(right)
    first_met = {}
    for index, good in rows:
        first_met.setdefault(index % M, good)
    of = {index % M: [g for i, g in rows if i % M == index % M] for index, _ in rows}
    for way, name in ((0, "CircularEval"), (1, "VanillaEval")):
        if close(found[way], expected[way]):
            continue
        known = {
            "the two are exchanged: CircularEval comes first": [plain if way == 0 else circular],
            "this counts rows; a *question* is right or wrong as a whole": [all_rows],
            "a question counts only where every rotation is right; you take any": [
                sum(any(rows) for rows in of.values()) / len(of)
            ],
            "a question counts only where every rotation is right; you take the larger part of them": [
                sum(sum(rows) > len(rows) / 2 for rows in of.values()) / len(of)
            ],
            "you average the rotations of each question; CircularEval wants all of them right": [
                sum(sum(rows) / len(rows) for rows in of.values()) / len(of)
            ],
            "not every question has four rotations: all that there are must be right": [
                sum(sum(rows) == 4 for rows in of.values()) / len(of)
            ],
            "the sums are divided by the number of rows; divide by the number of questions": [
                circular * len(of) / len(rows),
                plain * len(of) / len(rows),
            ],
        }
        if way:
            known = {
                "VanillaEval takes the row with the *lowest* index of each question, and rows may stand in any order": [
                    sum(first_met.values()) / len(of)
                ],
                **known,
            }
        return f"{name}: " + (
            explain(found[way], known) or f"{found[way]:.3f}, expected {expected[way]:.3f}"
        )
