"""POPE: is there a chair in the picture? Yes-no questions about objects, half of them about objects that are not there.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models". A model that says yes to everything
has a recall of 1 and a yes ratio of 1; published F1 figures are often the mean of the three splits.
"""

import re

from vlm_lite.data.records import ID, field, show
from vlm_lite.evals.answers import PARTIAL, match, read_lines, words
from vlm_lite.files import UserError

OTHER_SPLIT = (
    "Are these the answers to this very file? The splits of POPE share their ids, and no line says its question "
    "(`question` or `prompt`), so that a part could be scored against the labels of other questions."
)
PARSERS = ("official", "strict")


def parse_answer(text, parser="official"):
    """ "yes", "no", or None of one free answer.

    official: as evaluate.py of the authors (github.com/AoiDragon/POPE) reads it. What stands before the first full
    stop, without commas, is cut at spaces, and is "no" where one of the words is exactly No, no or not; **everything
    else is yes**: an empty answer, "NO", "no!", "No" with a line break behind it, "isn't", "I cannot see one".
    strict: the first word, whatever its case and punctuation, is yes or no; else None, which is wrong either way.
    """
    if parser not in PARSERS:
        raise UserError(f"parser is {parser!r}; expected one of {', '.join(PARSERS)}.")
    if not isinstance(text, str):
        raise UserError(f"the answer is {text!r}; expected text.")
    if parser == "strict":
        first = re.search(r"\w+", text.lower())
        return first[0] if first and first[0] in ("yes", "no") else None
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_scores(answers, labels, parser="official"):
    """Score free `answers` against `labels`, each "yes" or "no", in the same order; yes is the positive class.

    Returns accuracy, precision, recall, f1 and yes_ratio **of the answers**, in [0, 1], the counts TP, FP, TN, FN and
    "neither" (answers the strict parser could not read: right for neither label), and the parser. A ratio with nothing
    to divide by, such as the precision where no answer is yes, is 0; the authors' script stops there.
    """
    if len(answers) != len(labels) or not labels:
        raise UserError(
            f"{len(answers)} answers for {len(labels)} labels; expected one each, and at least one."
        )
    odd = next((label for label in labels if label not in ("yes", "no")), None)
    if odd is not None:
        raise UserError(f"a label is {odd!r}; expected yes or no.")
    said = [parse_answer(answer, parser) for answer in answers]
    count = {(s, label): 0 for s in ("yes", "no", None) for label in ("yes", "no")}
    for pair in zip(said, labels, strict=True):
        count[pair] += 1
    tp, fp, tn, n = count["yes", "yes"], count["yes", "no"], count["no", "no"], len(labels)
    positive = labels.count("yes")

    def ratio(a, b):
        return a / b if b else 0.0

    return {
        "accuracy": (tp + tn) / n,
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, positive),
        "f1": ratio(2 * tp, tp + fp + positive),
        "yes_ratio": (tp + fp) / n,
        "TP": tp,
        "FP": fp,
        "TN": tn,
        "FN": positive - tp,
        "neither": said.count(None),
        "count": n,
        "parser": parser,
    }


def read_pope(labels, answers, *, partial=False):
    """(answers, labels, counts) of a POPE label file and an answer file, both of JSON lines with `question_id`.

    A label is yes or no. An answer stands in `text` or in `answer`; a line that has a `label` too has the question in
    `text`, so only `answer` will do there. counts: see `answers.match`. The splits share their ids, so where a line of
    answers has its question too (`question`, `prompt`), that of its label must stand in it.
    """
    truth, questions, compared = {}, {}, 0
    for where, record in read_lines(labels):
        question_id = field(record, "question_id", ID, labels, where)
        label = field(record, "label", str, labels, where)
        if question_id in truth:
            raise UserError(
                f"{labels}: {where}.question_id is {question_id}, which a line before it has. Pass one "
                "split a file; the splits share their ids."
            )
        if label not in ("yes", "no"):
            raise UserError(f"{labels}: {where}.label is {show(label)}; expected yes or no.")
        truth[question_id] = label
        if isinstance(record.get("text"), str):
            questions[question_id] = record["text"]
    said = []
    for where, record in read_lines(answers):
        keys = {"text", "answer"} & set(record if isinstance(record, dict) else ())
        if isinstance(record, dict) and "label" in record:
            keys = {"answer"}
        if len(keys) == 2:
            raise UserError(
                f"{answers}: {where} has both `text` and `answer`; expected one, the model's answer."
            )
        if isinstance(record, dict) and "question" in record and "question_id" not in record:
            raise UserError(
                f"{answers}: {where} has no `question_id`. The authors' script pairs answers and labels by "
                "line; here rows may stand in any order. Add to each answer the id of its label."
            )
        key = keys.pop() if keys else "text"
        question_id = field(record, "question_id", ID, answers, where)
        said.append((question_id, field(record, key, str, answers, where)))
        asked = [record.get(name) for name in ("question", "prompt", "text") if name != key]
        asked = next((text for text in asked if isinstance(text, str)), None)
        if asked is not None and question_id in questions:
            compared += 1
            if words(questions[question_id]) not in words(asked):
                raise UserError(
                    f"{answers}: {where} answers {show(asked)}, but question {question_id} of {labels} is "
                    f"{show(questions[question_id])}. Pass the answers to this very split: the splits of POPE "
                    "share their ids."
                )
    given, counts = match(
        truth,
        said,
        file=answers,
        against=labels,
        name="question_id",
        partial=partial,
        offer=PARTIAL if compared else OTHER_SPLIT,
    )
    return list(given.values()), [truth[question_id] for question_id in given], counts
