"""MMBench's CircularEval with its reading of letters, and the controls that need no model.

Generated from notebooks/05d_mmbench_and_controls.py by `make notebooks`: edit the notebook.
"""

import random
import re

import pandas

from vlm_lite.data.records import GROUPINGS as GROUPINGS
from vlm_lite.data.records import ROTATION as ROTATION
from vlm_lite.data.records import index_of, read_tsv
from vlm_lite.data.records import read_mmbench as read_mmbench
from vlm_lite.evals.answers import match, words
from vlm_lite.files import UserError, atomic_write, show

# Letters are read as VLMEvalKit does at its commit a67ace50033b1feed0e42c60749a9f5d0354c7d8.
STATED = re.compile(r"answer\s+is\s+\**([A-D])", flags=re.IGNORECASE)
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def extract_letter(prediction, options):
    """The letter that `prediction` chooses among `options` {letter: text}, or None where it is not clear.

    1. Each of .()[],:;!*#{} becomes a space; exactly one option letter, as a capital, is a word of it, and is first met
       among the last four words: that letter. (So "A" in "A dog is seen there" is no answer.) A lone Z is no answer.
    2. Else what follows the first "answer is", case apart, past white space and then asterisks, is the letter of an
       option from A to D: "The correct answer is **B**. Here is why: ...". (So "The answer is a dog, ..." may be A.)
    3. Else exactly one option's text stands somewhere in the prediction, case apart ("cat" stands in "category"), and
       the prediction is at most twice as long as all the options together: that option's letter.
    Four stock refusals are no answer at all.
    """
    if "Failed to obtain answer via API" not in prediction:
        if any(phrase in prediction for phrase in REFUSALS):
            return None
        words = prediction.translate(str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))).split()
        found = [letter for letter in options if letter in words]
        if len(found) == 1 and words.index(found[0]) > len(words) - 5:
            return found[0]
        if not found and "Z" in words:
            return None
        stated = STATED.search(prediction)
        if stated and stated[1].upper() in options:
            return stated[1].upper()
    prediction = prediction.lower()
    if len(prediction) <= 2 * sum(map(len, options.values())):
        found = [letter for letter, text in options.items() if text.lower() in prediction]
        if len(found) == 1:
            return found[0]
    return None


def group_of(index):
    """The question that row `index` is a rotation of."""
    return index % ROTATION


def mmbench_scores(rows, predictions):
    """Score `predictions` {index: free text}, one for each of `rows`, as `read_mmbench` returns them.

    circular: the part of the questions of which every row is right; a question may have fewer rows than options, and
    where its first row (index below 1,000,000) is not in the file it still counts. plain: VanillaEval, the part of the
    questions whose first row is right. rows: the part of all rows. chance_*: what guessing among the options earns.
    All in [0, 1], over all questions and, where the file has them, by split, l2-category and category (that of the
    first row). unanswered: rows from which no letter could be read. The order of rows does not matter.
    """
    table = pandas.DataFrame(sorted(rows, key=lambda row: row["index"]))
    read = [
        extract_letter(predictions[i], o)
        for i, o in zip(table["index"], table["options"], strict=True)
    ]
    table["right"], table["chance"] = table["answer"] == read, 1 / table["options"].map(len)
    table["group"] = table["index"].map(group_of)
    groups = table.groupby("group").agg(
        circular=("right", "all"), plain=("right", "first"), right=("right", "sum"),
        chance_circular=("chance", "prod"), chance_plain=("chance", "first"), rows=("right", "size"),
        **{name: (name, "first") for name in GROUPINGS},
    )  # fmt: skip

    def part(chosen):
        names = ("circular", "plain", "chance_circular", "chance_plain")
        rows = chosen["right"].sum() / chosen["rows"].sum()
        means = {name: float(chosen[name].mean()) for name in names}
        return {**means, "rows": float(rows), "questions": len(chosen)}

    result = {**part(groups), "row_count": len(rows), "unanswered": read.count(None)}
    for grouping in GROUPINGS:
        named = groups[groups[grouping] != ""].groupby(grouping)
        if len(named):
            result[f"per_{grouping}"] = {name: part(chosen) for name, chosen in named}
    return result


def sample_groups(rows, count, seed=0):
    """The rows of `count` whole questions, all their rotations with them; the same seed chooses the same questions."""
    groups = sorted({group_of(row["index"]) for row in rows})
    if not 1 <= count <= len(groups):
        raise UserError(
            f"{count} groups were asked for; expected 1 to {len(groups)}, as the file has."
        )
    chosen = set(random.Random(seed).sample(groups, count))
    return [row for row in rows if group_of(row["index"]) in chosen]


def read_predictions(path, rows=()):
    """(index, text) of each row of a TSV with the columns `index` and `prediction`.

    rows: those of `read_mmbench`. Files of MMBench share their indices, so where the TSV has a column `question`, too, that
    of the row must stand in it; other columns are ignored.
    """
    asked, said = {row["index"]: row["question"] for row in rows}, []
    for line, cells in read_tsv(path, ("index", "prediction")):
        index = index_of(path, line, cells)
        if index in asked and words(asked[index]) not in words(cells.get("question", asked[index])):
            raise UserError(
                f"{path}, line {line}: it answers {show(cells['question'])}, but the question of index {index} is "
                f"{show(asked[index])}. Pass the answers to this very file: the files of MMBench share indices."
            )
        said.append((index, cells["prediction"]))
    return said


def match_predictions(rows, predictions, *, file, against, partial=False, known=()):
    """(rows, {index: text}, counts) with a prediction for each row; see `answers.match`. `known`: indices that are of
    the benchmark but not asked for. `partial` keeps the questions of which every rotation has its prediction.
    """
    asked = {row["index"]: row for row in rows}
    others = set(known) - set(asked)
    pairs = [pair for pair in predictions if pair[0] not in others]
    names = {"file": file, "against": against, "name": "index"}
    given, counts = match(asked, pairs, **names, partial=partial)
    cut = {group_of(index) for index in asked if index not in given}
    kept = [row for row in rows if group_of(row["index"]) not in cut]
    if not kept:
        raise UserError(
            f"{file} answers no question of {against} in all its rotations, for example not "
            f"{next(i for i in asked if i not in given)}. Ask whole groups: every index with the same "
            "remainder by 1,000,000."
        )
    return kept, given, {**counts, "scored": len(kept)}


def write_mmbench(path, rows):
    """Write rows, as `read_mmbench` returns them, as MMBench's TSV; it may have other columns, such as `prediction`."""
    table = pandas.DataFrame(rows).drop(columns=["options", "image_id"], errors="ignore")
    for place, letter in enumerate(sorted({letter for row in rows for letter in row["options"]})):
        table.insert(2 + place, letter, [row["options"].get(letter, "") for row in rows])
    with atomic_write(path, "w") as file:
        table.to_csv(file, sep="\t", index=False)
