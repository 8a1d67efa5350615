"""The official scores of VQA v2 and POPE, as their authors' scripts compute them, habits included.

Generated from notebooks/05c_vqa_and_pope.py by `make notebooks`: edit the notebook.
"""

import re
from collections import Counter

from vlm_lite.data.records import ID, field, read_lines, read_pope_labels, show
from vlm_lite.evals.answers import PARTIAL, match, words
from vlm_lite.files import UserError

OTHER_SPLIT = (
    "Are these the answers to this very file? The splits of POPE share their ids, and no line says its question "
    "(`question` or `prompt`), so that a part could be scored against the labels of other questions."
)


def parse_answer(text, parser="official"):
    """ "yes", "no", or None of one free answer.

    official: as evaluate.py of the authors (github.com/AoiDragon/POPE) reads it. What stands before the first full
    stop, without commas, is cut at spaces, and is "no" where one of the words is exactly No, no or not; **everything
    else is yes**: an empty answer, "NO", "no!", "No" with a line break behind it, "isn't", "I cannot see one".
    strict: the first word, whatever its case and punctuation, is yes or no; else None, which is wrong either way.
    """
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
    if len(answers) != len(labels) or not labels or not {"yes", "no"} >= set(labels):
        raise UserError(
            f"{len(answers)} answers for the {len(labels)} labels {show(labels)}; expected one each, at least one, and yes "
            "or no."
        )
    said = [parse_answer(answer, parser) for answer in answers]
    count = Counter(zip(said, labels, strict=True))
    tp, fp, tn, n = count["yes", "yes"], count["yes", "no"], count["no", "no"], len(labels)
    positive = labels.count("yes")

    return {
        "accuracy": (tp + tn) / n,
        "precision": tp / max(1, tp + fp),
        "recall": tp / max(1, positive),
        "f1": 2 * tp / max(1, tp + fp + positive),
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
    truth, said, compared = read_pope_labels(labels), [], 0
    for where, record in read_lines(answers):
        question_id = field(record, "question_id", ID, answers, where)
        given = {"text", "answer"} & record.keys() if "label" not in record else {"answer"}
        if len(given) > 1:
            raise UserError(
                f"{answers}: {where} has both `text` and `answer`; expected one, the model's answer."
            )
        key = "answer" if "answer" in given else "text"
        said.append((question_id, field(record, key, str, answers, where)))
        texts = [record.get(name) for name in ("question", "prompt", "text") if name != key]
        asked = next((text for text in texts if isinstance(text, str)), None)
        label = truth.get(question_id, ("", {}))[1].get("text")
        if asked is not None and isinstance(label, str):
            compared += 1
            if words(label) not in words(asked):
                raise UserError(
                    f"{answers}: {where} answers {show(asked)}, but question {question_id} of {labels} is {show(label)}. "
                    "Pass the answers to this very split: the splits of POPE share their ids."
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
    return list(given.values()), [truth[question_id][1]["label"] for question_id in given], counts
