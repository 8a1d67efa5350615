# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vlm_lite:
#     outputs_of: d82def87a5174681f1f0124d00f4d5ed34fd6ac988a0dbfac20a9c6851df3359
#     title: VQA's and POPE's scores, in view
#     builds: the official scores of VQA v2 and POPE, as their authors' scripts compute them, habits included
#     lesson: [vqa, pope]
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/05c_vqa_and_pope.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vlm_lite") is None:
    # Naming what is installed keeps pip from changing it.
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "numpy", "transformers")
        if importlib.util.find_spec(name)
    ]
    source = "git+https://github.com/vlm-lite/vlm-lite@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers=("tiny", "smoke")), get_compute()
print(describe(profile, compute, notebook="05c_vqa_and_pope"))

# %% [markdown]
# # 5c. VQA's and POPE's scores, in view
#
# An optional companion of [05](05_evaluation.ipynb): the two scripts that papers' figures on VQA and POPE come from, line by line. `vlm-lite eval vqa` and `vlm-lite eval pope` run what stands here. No exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.7 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [05, Evaluation](05_evaluation.ipynb), sections 1 and 6.
#
# ## 1. VQA v2: what counts as the same answer
#
# Ten people answered each question, and a model's answer is compared with theirs **as text**. So the score depends on what the script makes of "Two dogs." and "2 dogs": case, articles, number words, punctuation, missing
# apostrophes. Everybody who writes this anew gets it slightly differently, and two figures by two scripts cannot be compared. Here is the official one (Antol et al. 2015), its slips included: they are
# part of every published number.
#
# **Predict first:** which of "1,000 dogs", "The 1000 dogs!" and "one thousand dogs" does it take for "1000 dogs"?

# %% tags=["save"]
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


# %%
from IPython.display import display

given = "1,000 dogs|The 1000 dogs!|one thousand dogs|Dont know|a t-shirt, red|a t-shirt - red|3.|.5|none|TWO"
display(
    pandas.DataFrame(
        {each: [normalize_answer(each)] for each in re.split(r"\|", given)}, ["read as"]
    ).T
)
assert normalize_answer("1,000 dogs") == normalize_answer("The 1000 dogs!") == "1000 dogs"

# %% [markdown]
# A mark between two words becomes a space, but where one of its kind stands beside a space, all of them vanish: "t-shirt, red" and "t-shirt - red" are different answers. "One thousand" is no number word of the script.
#
# ## 2. Ten people, leave one out
#
# $$ \mathrm{acc}(\hat a) = \frac{1}{10} \sum_{k=1}^{10} \min\!\left(1,\ \tfrac{1}{3}\,\big|\{\,j \neq k : a_j = \hat a\,\}\big|\right) $$
#
# Why leave each out? So that people can be scored as well, against the other nine. Papers print $\min(1, n/3)$, which is what an answer would get if nobody were left out.
# One more habit: **where all ten agree, nothing is normalised**, so "Yes" against ten "yes" is wrong.


# %% tags=["save"]
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


# %%
people = {n: ["red"] * n + ["blue"] * (10 - n) for n in range(6)}
scores = {n: vqa_accuracy("red", answers) for n, answers in people.items()}
assert [round(10 * each) for each in scores.values()] == [0, 3, 6, 9, 10, 10]
assert vqa_accuracy("Yes", ["yes"] * 10) == 0 and vqa_accuracy("Yes", ["yes"] * 10, "always") == 1
try:
    vqa_accuracy("red", ["red"])
except UserError as error:
    print(error)
shown = {"who say red": scores.keys(), "official": scores.values()}
pandas.DataFrame({**shown, "short formula": [min(1, n / 3) for n in scores]}).round(2).T

# %% [markdown]
# ## 3. A whole data set
#
# The mean over the questions, and the means of each type. **Always read the types beside a score that needs no image:** here, the answer "yes" to everything.


# %% tags=["save"]
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


# %%
from vlm_lite.data import shapes

table, questions = shapes.load_shapes("val", profile.val_images, progress=False)
yes = score_vqa(["yes"] * len(questions), questions)
assert yes["overall"] < 30 and yes["per_question_type"]["colour"] == 0
pandas.Series({"all": yes["overall"], **yes["per_question_type"]}).round(1).to_frame(
    '"yes", percent'
)

# %% [markdown]
# ## 4. POPE: when is an answer a no?
#
# POPE (Li et al. 2023) asks "Is there a chair in the image?", half of the time about things that are not there, and reads free text. The authors' script looks for three words before the first full stop, and **everything else is a yes**: silence, a refusal, "NO".
# A model that talks much can thus look as if it hallucinated, or be right by accident. A strict parser, beside it, counts what cannot be read as wrong for either label.

# %% tags=["save-pope"]
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


# %%
said = "No.|no, there is not|NO|There isn't one.|I cannot see one.||Yes, and no dog.|Sure. No chair here."
read = {each: [parse_answer(each), parse_answer(each, "strict")] for each in said.split("|")}
pandas.DataFrame(read, ["official", "strict"]).T

# %% [markdown]
# "Yes, and no dog." is a *no*, and "There isn't one." a *yes*. Tell a model to answer with one word, and look at twenty raw answers before believing a figure.
#
# ## 5. Precision, recall, and the ratio of yes
#
# *Yes* is the positive class, so a hallucination is a false positive, and **precision** falls. Accuracy alone hides which way a model errs: the *yes ratio* tells. F1 does not treat the classes alike: always *yes* gets two thirds, always *no* nothing, both without an image.


# %% tags=["save-pope"]
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


# %%
labels = ["yes", "no"] * 50
blind = {"always yes": ["yes"] * 100, "always no": ["no"] * 100, "refuses": ["I cannot tell"] * 100}
found = {name: pope_scores(answers, labels) for name, answers in blind.items()}
found["refuses, strict"] = pope_scores(blind["refuses"], labels, "strict")
assert found["always yes"]["f1"] == found["refuses"]["f1"] == 2 / 3 and not found["always no"]["f1"]
print(
    f"HEADLINE: POPE's F1 without an image: {found['refuses']['f1']:.0%} for a refusal, by the official script"
)
pandas.DataFrame(found).loc[["accuracy", "precision", "recall", "f1", "yes_ratio", "neither"]].T

# %% [markdown]
# `read_pope` reads the label file and a file of answers. The three splits share their ids, so answers to one can be scored against another without a word: where a line has its question, it is compared.
#
# ## What this does not show
#
# - That these scripts are good: they are what others used. A model judged by another model, or by people, is measured on something else, and its figure has to say so.
# - That ours equal them on every text: tests compare each habit with values worked out by hand, and POPE's metrics against scikit-learn's.
