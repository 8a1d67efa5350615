"""The official scores of VQA v2 and POPE, as their authors' scripts compute them, habits included.

Generated from notebooks/05c_vqa_and_pope.py by `make notebooks`: edit the notebook.
"""

import re
from functools import lru_cache

import numpy as np
import pandas

from vlm_lite.data.records import ANSWERS_PER_QUESTION
from vlm_lite.files import UserError

NORMALIZE = ("official", "always")

# The evaluator restores the apostrophe of these words where exactly one is missing: "dont", "couldnt've", "couldn'tve".
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in APOSTROPHES for i, c in enumerate(word) if c == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round
NUMBERS = "zero one two three four five six seven eight nine ten".split()
REPLACED = CONTRACTIONS | {word: str(n) for n, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither the colon nor the apostrophe


@lru_cache(maxsize=100_000)
def trim(answer):
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=100_000)
def normalize_answer(answer):
    """`answer` as the official evaluator compares it: lower case; no punctuation, articles or number words; with
    apostrophes put back. Two of its habits that surprise: a punctuation mark becomes a space, unless one of its kind
    stands beside a space or a comma stands between two digits anywhere ("1,000"), when it vanishes; and a full stop
    vanishes unless a digit follows ("3." -> "3", ".5" stays), the first 32 of them only.
    """
    text = raw = trim(answer)
    if not raw.replace(" ", "").isalnum():  # else there is no punctuation
        comma_in_number = re.search(r"\d,\d", raw)
        for mark in PUNCTUATION:
            vanishes = comma_in_number or f"{mark} " in raw or f" {mark}" in raw
            text = text.replace(mark, "" if vanishes else " ")
        # The official pattern opens with `(?!<=\d)`, a slip for a lookbehind that changes nothing, and its `re.UNICODE`
        # (32) stands where `count` belongs.
        text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = text.lower().split()
    return " ".join([REPLACED.get(word, word) for word in words if word not in ARTICLES])


def vqa_accuracy(prediction, answers, normalize="official"):
    """The accuracy in [0, 1] of one predicted answer against the ten people's `answers`.

    normalize: "official" compares normalised text only where the ten answers are not all identical, so "Yes" against
    ten "yes" scores 0; "always" normalises always, as many tools do. Say which one a reported figure used.
    Raises UserError for another `normalize`, a prediction that is not text, or not ten answers.
    """
    if normalize not in NORMALIZE:
        raise UserError(f"normalize is {normalize!r}; expected one of {', '.join(NORMALIZE)}.")
    are_texts = all(isinstance(text, str) for text in (prediction, *set(answers)))
    if len(answers) != ANSWERS_PER_QUESTION or not are_texts:
        raise UserError(
            f"the prediction is {prediction!r} and the answers are {list(answers)!r}; expected a text, and "
            f"{ANSWERS_PER_QUESTION} of them, one a person."
        )
    differ = len(set(answers)) > 1 and len(set(map(trim, answers))) > 1
    prepare = normalize_answer if normalize == "always" or differ else trim
    matches, people = [*map(prepare, answers)].count(prepare(prediction)), ANSWERS_PER_QUESTION
    # Leaving out one who agrees leaves matches - 1, leaving out one who does not leaves all.
    return (matches * min(matches - 1, 3) + (people - matches) * min(matches, 3)) / (3 * people)


def column(rows, name):
    """The values of one column of a Dataset (without decoding its images) or of a list of dicts."""
    try:
        return [row[name] for row in rows] if isinstance(rows, list | tuple) else rows[name][:]
    except KeyError as error:
        raise UserError(
            f"the rows have no field {name!r}. Expected rows of the common format (data/formats.py)."
        ) from error


def vqa_scores(predictions, rows, normalize="official"):
    """The accuracy of each prediction against its row's `answers`: float array (Q,) in [0, 1]."""
    answers = column(rows, "answers")
    if len(predictions) != len(answers) or not answers:
        raise UserError(
            f"{len(predictions)} predictions for {len(answers)} questions; expected one each, in order, and at least one."
        )
    pairs = zip(predictions, answers, strict=True)
    return np.array([vqa_accuracy(said, given, normalize) for said, given in pairs])


def score_vqa(predictions, dataset, normalize="official"):
    """Score answers to `dataset`, in its order: a Dataset, a list of dicts, or a dict of columns.

    Returns {"overall": percent, "per_question_type": {type: percent}, "per_answer_type": {type: percent},
    "count": questions, "normalize": the rule used}. Percentages are not rounded (the evaluator rounds to two places).
    A type that the data set does not have (all None) is left out.
    """
    scores = vqa_scores(predictions, dataset, normalize)
    result = {"overall": 100 * float(scores.mean())}
    for kind in ("question_type", "answer_type"):
        values = column(dataset, kind)
        if any(value is not None for value in values):
            means = pandas.Series(100 * scores).groupby(list(map(str, values))).mean()
            result[f"per_{kind}"] = means.to_dict()
    return {**result, "count": len(scores), "normalize": normalize}
