"""The checks of notebook 05, second part: a prior, a paired interval, pairs, POPE's figures, circular and plain.

Q questions, R resamples, P pairs.
"""

import random
from collections import Counter

import torch

from vlm_lite.evals.controls import type_prior as _type_prior
from vlm_lite.labs.core import close, exercise, explain

# ---- the references


def _paired_interval(a, b, draws):
    """Scores a, b (Q,) of the same questions, draws (R, Q) of question numbers -> 95% interval of mean(a - b)."""
    means = (a - b)[draws].mean(dim=1)  # (R,)
    return torch.quantile(means, 0.025), torch.quantile(means, 0.975)


def _pair_accuracy(scores, pairs):
    """scores (Q,) in [0, 1], P pairs of question numbers -> the share of pairs with both scores above a half."""
    return sum(bool(scores[i] > 0.5 and scores[j] > 0.5) for i, j in pairs) / len(pairs)


def _pope_figures(said, labels):
    """Two lists of True for yes -> {accuracy, precision, recall, f1, yes_ratio}, 0 where there is nothing to divide."""
    pairs = Counter(zip(said, labels, strict=True))
    tp, n = pairs[True, True], len(labels)
    precision, recall = tp / max(1, sum(said)), tp / max(1, sum(labels))
    return {
        "accuracy": (tp + pairs[False, False]) / n,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if tp else 0.0,
        "yes_ratio": sum(said) / n,
    }


def _circular_and_plain(indices, right):
    """Row indices, question = index % 1_000_000; whether each row is right -> circular and plain accuracy."""
    groups = {}
    for index, good in sorted(zip(indices, right, strict=True)):
        groups.setdefault(index % 1_000_000, []).append(good)
    return (
        sum(all(rows) for rows in groups.values()) / len(groups),
        sum(rows[0] for rows in groups.values()) / len(groups),
    )


# ---- the checks


@exercise(_type_prior)
def type_prior(learner):
    """Three types of questions, each with a favourite answer of its own, and at the end a type that is new."""
    names = random.sample(["colour", "shape", "size", "count", "digit"], 4)
    words = random.sample("red blue big small one two star heart yes no".split(), 7)
    favourite = dict(zip(names[:3], words, strict=False))
    rows = [(names[0], words[0])] * 9 + [(names[1], words[1])] * 5 + [(names[2], words[2])] * 4
    rows += (
        [(names[0], words[3])] * 2
        + [(names[1], words[4])] * 3
        + [(names[2], words[0])] * 3
        + [(names[1], words[5]), (names[2], words[6])]
    )
    random.shuffle(rows)
    types, answers = map(list, zip(*rows, strict=True))
    asked = random.choices(names[:3], k=6) + names[:3] + [names[3]]
    random.shuffle(asked)
    right = _type_prior(types, answers, asked)
    try:
        found = learner(list(types), list(answers), list(asked))
    except (KeyError, ValueError) as error:
        if names[3] in str(error) or "empty" in str(error):
            return (
                "a type that training never had stops it: there, answer what is most frequent over all of "
                "training"
            )
        raise
    if not isinstance(found, list | tuple) or len(found) != len(asked):
        return f"return one answer for each of the {len(asked)} test questions, in their order"
    if list(found) == right:
        return None
    if list(found) == [words[0]] * len(asked):
        return "you give everyone the answer that is most frequent overall, the *majority*: take it by type"
    known = [k for k, kind in enumerate(asked) if kind != names[3]]
    if all(found[k] == right[k] for k in known):
        return (
            "for a type that training never had, answer what is most frequent over all of training"
        )
    if any(not isinstance(answer, str) for answer in found):
        odd = next(answer for answer in found if not isinstance(answer, str))
        return f"an answer is text; yours has {odd!r}. Keep the word, not its count"
    if all(found[k] in {a for t, a in rows if t == asked[k]} for k in known):
        least = {
            kind: min({a for t, a in rows if t == kind}, key=rows_of(rows, kind))
            for kind in favourite
        }
        if all(found[k] == least[asked[k]] for k in known):
            return "you take the rarest answer of each type; take the most frequent"
        return "you take some training answer of the right type, but not the most frequent one"
    return "the answers do not belong to the types: is the order of the test questions lost?"


def rows_of(rows, kind):
    """answer -> how often it is given to questions of type `kind`."""
    return lambda answer: rows.count((kind, answer))


@exercise(_paired_interval)
def paired_interval(learner):
    """Two models on the same 80 questions, some hard for both, and 400 draws of questions with replacement."""
    Q, R = 80, 400
    hard = torch.rand(Q)
    a = (torch.rand(Q) < 0.3 + 0.7 * hard).float()
    b = 0.7 * a + 0.3 * torch.rand(Q) * hard
    draws = torch.randint(Q, (R, Q))
    found = learner(a.clone(), b.clone(), draws.clone())
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers, the lower and the upper end"
    found = torch.tensor([float(value) for value in found])
    means = (a - b)[draws].mean(dim=1)

    def ends(values, level=0.95):
        values = values.sort().values
        place = (1 - level) / 2 * (len(values) - 1)
        return (
            values[int(place)] - 1e-5,
            values[int(place) + 1] + 1e-5,
            values[-int(place) - 2] - 1e-5,
            values[-int(place) - 1] + 1e-5,
        )

    low, low2, high, high2 = ends(means)  # any rule between two neighbours will do
    if low <= found[0] <= low2 and high <= found[1] <= high2:
        return None
    if low <= found[1] <= low2 and high <= found[0] <= high2:
        return "the two ends are exchanged: return (low, high)"
    if close(found[0], found[1]):
        return "both ends are the same number: take the 2.5th and the 97.5th percentile of the resampled means"
    unpaired = [a[draws].mean(1) - b[draws.roll(shift, 0)].mean(1) for shift in range(1, R, 57)]
    width, own = float(found[1] - found[0]), float(high - low)
    mean, centre = float((a - b).mean()), float(found.mean())
    for name, values in (("the first model", a), ("the second model", b)):
        ends_of = ends(values[draws].mean(1))
        if ends_of[0] <= found[0] <= ends_of[1]:
            return f"this is the interval of {name} alone; it is the *difference* of the two that is asked for"
    each = torch.quantile(a - b, torch.tensor([0.025, 0.975]))
    if close(found, each, 1e-3):
        return (
            "these are percentiles of single questions. First the mean of each draw, (R,), then the percentiles of "
            "those means"
        )
    if abs(centre + mean) < abs(centre - mean) and width < 2 * own:
        return "the sign is turned: mean(a - b), how much better the *first* model is"
    for level, said in ((0.90, "90"), (0.99, "99"), (0.5, "50")):
        ends_of = ends(means, level)
        if ends_of[0] <= found[0] <= ends_of[1]:
            return f"this is a {said}% interval; 2.5% are cut off at each end for 95%"
    if width > 1.15 * own and width > 0.8 * min(float(u.std()) for u in unpaired) * 3.9:
        return (
            "the two models are resampled apart, and the interval is too wide: use the *same* draw for both, since "
            "a hard question is hard for both"
        )
    return (
        f"yours runs from {found[0]:.3f} to {found[1]:.3f}; expected {means.quantile(0.025):.3f} to "
        f"{means.quantile(0.975):.3f}: percentiles of mean(a[draw] - b[draw]) over the draws"
    )


@exercise(_pair_accuracy)
def pair_accuracy(learner):
    """Eight pairs among eighteen questions, scored by VQA's 0, 0.3, 0.6, 0.9 and 1, in random order."""
    each = [
        (1.0, 1.0),
        (0.6, 0.9),
        (1.0, 0.9),
        (1.0, 0.0),
        (0.3, 0.9),
        (0.0, 0.0),
        (0.3, 0.3),
        (0.9, 0.0),
    ]
    scores, pairs, places = torch.zeros(18), [], torch.randperm(18).tolist()
    for k, values in enumerate(each):
        pair = (places[2 * k], places[2 * k + 1])
        scores[pair[0]], scores[pair[1]] = values
        pairs.append(pair[:: random.choice((1, -1))])
    scores[places[16:]] = 1.0  # questions without a partner
    random.shuffle(pairs)
    found = float(learner(scores.clone(), list(pairs)))
    right = _pair_accuracy(scores, pairs)
    if close(found, right):
        return None
    both = torch.tensor([[float(scores[i]), float(scores[j])] for i, j in pairs])
    return (
        explain(
            found,
            {
                "a pair counts where *both* are right; you take one": [
                    (both > 0.5).any(1).float().mean()
                ],
                "this is the mean score of the questions in pairs; a pair is right or wrong as a whole": [
                    both.mean(),
                    (both > 0.5).float().mean(),
                ],
                "this is the mean over all questions; the pairs are not used": [
                    scores.mean(),
                    (scores > 0.5).float().mean(),
                ],
                "a score of 0.3 is not right: ask for more than a half": [
                    (both > 0).all(1).float().mean(),
                    (both > 0.25).all(1).float().mean(),
                ],
                "0.6 and 0.9 count as right too: ask for more than a half, not for 1": [
                    (both == 1).all(1).float().mean()
                ],
                "you multiply or take the smaller score: a pair is right or wrong as a whole": [
                    both.prod(1).mean(),
                    both.amin(1).mean(),
                ],
                "you divide by the number of questions: divide by the number of pairs": [
                    right * len(pairs) / len(scores),
                    right * len(pairs) / (2 * len(pairs)),
                ],
                "you return how many pairs are right; return their share": [right * len(pairs)],
                "this is percent; return a fraction": [100 * right],
            },
        )
        or f"yours is {found:.3f}, expected {right:.3f}"
    )


@exercise(_pope_figures)
def pope_figures(learner):
    """Twenty answers with hits, misses and false alarms in unlike numbers; then a model that says no to everything."""
    tp, fp, fn, tn = random.choice([(7, 4, 2, 5), (6, 3, 5, 4), (5, 2, 4, 9), (8, 3, 1, 6)])
    rows = [(True, True)] * tp + [(True, False)] * fp + [(False, True)] * fn + [(False, False)] * tn
    random.shuffle(rows)
    said, labels = map(list, zip(*rows, strict=True))
    right = _pope_figures(said, labels)
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
        {name: float(never[name]) for name in right}, _pope_figures([False] * 4, [True, False] * 2)
    ):
        return "for a model that never says yes, precision, recall and f1 are 0 and accuracy is the share of noes"
    return None


@exercise(_circular_and_plain)
def circular_and_plain(learner):
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
    expected = torch.tensor(_circular_and_plain(indices, right)).double()
    found = learner(list(indices), list(right))
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers: circular, plain"
    found = torch.tensor([float(value) for value in found]).double()
    if close(found, expected):
        return None
    circular, plain = expected.tolist()
    all_rows = sum(right) / len(right)
    first_met = {}
    for index, good in rows:
        first_met.setdefault(index % M, good)
    of = {index % M: [g for i, g in rows if i % M == index % M] for index, _ in rows}
    for place, name in ((0, "circular"), (1, "plain")):
        if close(found[place], expected[place]):
            continue
        known = {
            "the two are exchanged: circular comes first": [plain if place == 0 else circular],
            "this counts rows; a *question* is right or wrong as a whole": [all_rows],
            "a question counts only where every rotation is right; you take any": [
                sum(any(rows) for rows in of.values()) / len(of)
            ],
            "a question counts only where every rotation is right; you take the larger part of them": [
                sum(sum(rows) > len(rows) / 2 for rows in of.values()) / len(of)
            ],
            "you average the rotations of each question; circular wants all of them right": [
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
        if place:
            known = {
                "plain takes the row with the *lowest* index of each question, and rows may stand in any order": [
                    sum(first_met.values()) / len(of)
                ],
                **known,
            }
        return f"{name}: " + (
            explain(found[place], known) or f"{found[place]:.3f}, expected {expected[place]:.3f}"
        )
