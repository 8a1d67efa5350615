"""Notebook 05's checks: right answers in another style pass, and each known mistake is called by its name.

An attempt is the lesson's own code with an edit (what stands there, what instead), or a function.
"""

from vlm_lite.labs import check

SHARE = "min(1, others.count(prediction) / 3)"
ACCURACY = f"sum({SHARE} for others in left_out) / len(answers)"
CLIPPED, BREVITY = (
    "(ngrams(c, n) & top).total()",
    "min(1.0, math.exp(1 - wanted / max(1, said))) * ",
)
F_SCORE = "2.44 * precision * recall / (recall + 1.44 * precision)"
MEANS, ENDS = (
    "sums[draws].sum(dim=1) / counts[draws].sum(dim=1)",
    "means.quantile(0.025), means.quantile(0.975)",
)
AGREE = "sum(s == there for s, there in zip(said, labels, strict=True))"
SORTED, VANILLA = (
    "sorted(zip(indices, right, strict=True))",
    "sum(rows[0] for rows in questions.values()) / len(",
)
RIGHT = {
    check.vqa_accuracy: [(SHARE, "min(3, others.count(prediction)) / 3")],
    check.bleu: [(CLIPPED, "sum(min(t, top[g]) for g, t in ngrams(c, n).items())")],
    check.rouge_l: [(F_SCORE, "2.44 / (1 / precision + 1.44 / recall)")],
    check.clustered_interval: [(ENDS, "means.quantile(torch.tensor([0.025, 0.975])).unbind()")],
    check.pope_metrics: [("hits / max(1, sum(said))", "hits / sum(said) if any(said) else 0")],
    check.circular_and_vanilla: [("all(rows)", "min(rows)")],
}
WRONG = {
    check.vqa_accuracy: {
        "the short form": (ACCURACY, "min(1, answers.count(prediction) / 3)"),
        "only one person is left out": (ACCURACY, "min(1, answers[1:].count(prediction) / 3)"),
        "grows above 1": (SHARE, "others.count(prediction) / 3"),
        "share of people": (ACCURACY, "answers.count(prediction) / 10"),
        "percent": ("return", "return 100 *"),
        "divide by the number of people": (" / len(answers)", ""),
        "as it stands": (
            "others.count(prediction)",
            "[x.lower() for x in others].count(prediction.lower())",
        ),
        "one number": (ACCURACY, f"torch.tensor({ACCURACY})"),
        "for 0, 1, 2": ("return", "return 0.9 *"),
    },
    check.bleu: {
        "nothing is clipped": (CLIPPED, "sum(t for g, t in ngrams(c, n).items() if top[g])"),
        "added together": ("(or_,", "(lambda a, b: a + b,"),
        "where every reference": ("(or_,", "(lambda a, b: a & b,"),
        "counts once": (CLIPPED, "len(ngrams(c, n) & top)"),
        "no brevity penalty": (BREVITY, ""),
        "root is missing": (" ** (1 / n)", ""),
        "percent": ("return scores", "return [100 * each for each in scores]"),
        "four numbers": ("return scores", "return scores[3]"),
        "expected": ("return scores", "return [0.0] * 4"),
    },
    check.rouge_l: {
        "order of words": lambda c, r: 2.44 * 5 / 7 / (1 + 1.44 * 5 / 7),
        "ordinary F1": ("2.44", "2", "1.44", "1"),
        "as its square": ("2.44", "2.2", "1.44", "1.2"),
        "only one reference": ("in references:", "in references[:1]:"),
        "exchanged": ("(recall + 1.44 * precision)", "(precision + 1.44 * recall)"),
        "precision alone": (F_SCORE, "precision"),
        "percent": ("2.44", "244"),
        "yours is 0.123": (F_SCORE, "0.123"),
    },
    check.clustered_interval: {
        "single questions with them": (MEANS, "scores[draws].mean(dim=1)"),
        "weighs more": (MEANS, "(sums / counts)[draws].mean(dim=1)"),
        "which varies": (MEANS, "sums[draws].sum(dim=1) / len(scores)"),
        "percentiles of single": (MEANS, "scores"),
        "ends are exchanged": ("0.025", "0.9", "0.975", "0.025", "0.9", "0.975"),
        "same number": (ENDS, "scores.mean(), scores.mean()"),
        "two numbers": (ENDS, "scores.mean()"),
    },
    check.pope_metrics: {
        "exchanged": ('"precision"', '"one"', '"recall"', '"precision"', '"one"', '"recall"'),
        "positive class": (
            "hits =",
            "said, labels = ([not x for x in each] for each in (said, labels))\n    hits =",
        ),
        "harmonic": (
            "2 * hits / max(1, sum(said) + sum(labels))",
            "(hits / max(1, sum(said)) + hits / max(1, sum(labels))) / 2",
        ),
        "of the *labels*": ("sum(said) / len(said)", "sum(labels) / len(said)"),
        "share of no": ("sum(said) / len(said)", "1 - sum(said) / len(said)"),
        "right noes": (AGREE, "hits"),
        "recall is 0.123": ("hits / max(1, sum(labels))", "0.123"),
        "nothing is to be divided": ("max(1, sum(said))", "sum(said)"),
        "percent": (
            "return {",
            "found = {",
            "    }",
            "    }\n    return {k: 100 * v for k, v in found.items()}",
        ),
        "return a dict": ("return {", "return tuple({", "    }", "    }.values())"),
    },
    check.circular_and_vanilla: {
        "exchanged": (
            "    return",
            f"    return {VANILLA}questions), sum(circular) / len(questions)\n    return",
        ),
        "counts rows": ("sum(circular) / len(questions)", "sum(right) / len(right)"),
        "take any": ("all(rows)", "any(rows)"),
        "the larger part": ("all(rows)", "sum(rows) > len(rows) / 2"),
        "you average": ("all(rows)", "sum(rows) / len(rows)"),
        "four rotations": ("all(rows)", "sum(rows) == 4"),
        "*lowest* index": (SORTED, "zip(indices, right, strict=True)"),
        "two numbers": ("    return", "    return sum(circular) / len(questions)\n    return"),
    },
}
