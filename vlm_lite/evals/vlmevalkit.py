"""VLMEvalKit: our models as it calls models, and our answers in the tables that it scores.

Its convention (vlmeval/vlm/base.py, vlmeval/inference.py and docs/en/Model.md of github.com/open-compass/VLMEvalKit):
`model.generate(message=..., dataset=name)` brings a message to the form [{"type": "image", "value": path}, {"type":
"text", "value": text}, ...] and hands it to `generate_inner`, which returns the answer. Predictions are a TSV,
{model}_{benchmark}.tsv: the benchmark's own columns without `image`, and `prediction`.
"""

import os
import warnings

import pandas

from vlm_lite.data.images import open_image
from vlm_lite.data.records import read_pope_labels
from vlm_lite.evals.answers import match
from vlm_lite.evals.mmbench import GROUPINGS
from vlm_lite.evals.pope import read_pope
from vlm_lite.files import UserError, atomic_write


class VLMEvalModel:
    """Anything with answer(images, texts, max_new_tokens) (models/pretrained.py), called as VLMEvalKit calls a model.

    It takes one picture a question: of several the first, with a warning, as VLMEvalKit's own `message_to_promptimg`.
    """

    is_api = False
    INTERLEAVE = False
    allowed_types = ("text", "image")

    def __init__(self, model, max_new_tokens=16):
        self.model, self.max_new_tokens = model, max_new_tokens

    def use_custom_prompt(self, dataset):
        """False: the benchmark's own prompts are taken."""
        return False

    def set_dump_image(self, dump_image_func):
        """What writes a row's picture to disk; only models with prompts of their own need it."""
        self.dump_image_func = dump_image_func

    def generate(self, message, dataset=None):
        """The answer to a message: a text, a path, one {"type", "value"}, or a list of them."""
        parts = message if isinstance(message, list) else [message]
        kinds = ("text", "image")
        return self.generate_inner(
            [
                {"type": kinds[os.path.isfile(part)], "value": part}
                if isinstance(part, str)
                else part
                for part in parts
            ],
            dataset,
        )

    def generate_inner(self, message, dataset=None):
        """The answer to [{"type": "image" or "text", "value": ...}, ...]; UserError names the part that will not do."""
        found = {"text": [], "image": []}
        for k, part in enumerate(message):
            if part.get("type") not in found or not part.get("value"):
                raise UserError(
                    f"message[{k}] is {part!r}; expected {{'type': 'image' or 'text', 'value': a path or a "
                    "text}. Videos are not understood."
                )
            found[part["type"]].append(part["value"])
        texts, images = found["text"], found["image"]
        if not texts:
            raise UserError(
                f"the message of {len(message)} parts has no text; expected a question."
            )
        if len(images) > 1:
            warnings.warn(
                f"{len(images)} pictures in one message: the first is shown, the others are left out.",
                stacklevel=2,
            )
        seen = [open_image(images[0], images[0])] if images else None
        return self.model.answer(seen, ["\n".join(texts)], self.max_new_tokens)[0]


def write_mmbench(path, rows, predictions=None):
    """Write rows, as `mmbench.read_mmbench` returns them, as MMBench's TSV.

    With `predictions` {index: text} it is what VLMEvalKit scores: a column `prediction`, and no `image`. All rows must
    have one. A sample of whole groups is a subset, which it accepts.
    """
    table = pandas.DataFrame(rows).drop(columns=["options", "image", "image_id"], errors="ignore")
    for place, letter in enumerate(sorted({letter for row in rows for letter in row["options"]})):
        table.insert(2 + place, letter, [row["options"].get(letter, "") for row in rows])
    # a column that no row fills is left out: VLMEvalKit's mean over an empty split is NaN
    table = table[[name for name in table if name not in GROUPINGS or table[name].any()]]
    if predictions is None:
        table["image"] = [row["image"] for row in rows]
    else:
        wanted = [row["index"] for row in rows]
        named = {"file": "the predictions", "against": str(path), "name": "index"}
        table["prediction"] = match(wanted, predictions.items(), **named)[0].values()
    _write_tsv(path, table)


def write_pope(path, splits):
    """Write POPE's answers as the TSV that VLMEvalKit scores. splits: {"random": (label file, answer file), ...}.

    Its `category` is the split, its `answer` Yes or No; `index` runs on over the splits. Files: see `pope.read_pope`.
    It reads an answer by its words yes and no; with neither, or both, the answer is wrong and counts as no in F1, where
    the authors' script takes for yes what is not plainly no. Its figures differ by such answers.
    """
    tables = []
    for name, (labels, answers) in splits.items():
        said, truth, _ = read_pope(labels, answers)
        asked = [record.get("text", "") for _, record in read_pope_labels(labels).values()]
        right = [label.title() for label in truth]
        columns = {"question": asked, "answer": right, "category": name, "prediction": said}
        tables.append(pandas.DataFrame(columns))
    table = pandas.concat(tables, ignore_index=True)
    _write_tsv(path, table.reset_index(names="index"))


def _write_tsv(path, table):
    with atomic_write(path, "w") as file:
        table.to_csv(file, sep="\t", index=False)
