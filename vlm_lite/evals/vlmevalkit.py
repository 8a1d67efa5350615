"""VLMEvalKit: our models as it calls models, and our answers in the tables that it scores.

Its convention (vlmeval/vlm/base.py, vlmeval/inference.py and docs/en/Model.md of github.com/open-compass/VLMEvalKit):
`model.generate(message=..., dataset=name)` brings a message to the form [{"type": "image", "value": path}, {"type":
"text", "value": text}, ...] and hands it to `generate_inner`, which returns the answer. Predictions are a TSV,
{model}_{benchmark}.tsv: the benchmark's own columns without `image`, and `prediction`.
"""

import csv
import os
import warnings

from vlm_lite.data.images import open_image
from vlm_lite.evals.answers import match, read_lines
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
        return self.generate_inner(
            [
                part
                if isinstance(part, dict)
                else {"type": "image" if os.path.isfile(part) else "text", "value": part}
                for part in parts
            ],
            dataset,
        )

    def generate_inner(self, message, dataset=None):
        """The answer to [{"type": "image" or "text", "value": ...}, ...]; UserError names the part that will not do."""
        for k, part in enumerate(message):
            if (
                not isinstance(part, dict)
                or part.get("type") not in self.allowed_types
                or not part.get("value")
            ):
                raise UserError(
                    f"message[{k}] is {part!r}; expected {{'type': 'image' or 'text', 'value': a path or a "
                    "text}. Videos are not understood."
                )
        texts = [part["value"] for part in message if part["type"] == "text"]
        images = [part["value"] for part in message if part["type"] == "image"]
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
    letters = sorted({letter for row in rows for letter in row["options"]})
    grouped = [
        name for name in GROUPINGS if any(row.get(name) for row in rows)
    ]  # its mean over an empty split is NaN
    columns = ["index", "question", "hint", *letters, "answer", *grouped]
    name, last = "image", {row["index"]: row["image"] for row in rows}
    if predictions is not None:
        name = "prediction"
        last, _ = match(
            list(last), predictions.items(), file="the predictions", against=str(path), name="index"
        )
    _write_tsv(
        path,
        [*columns, name],
        (
            [
                *(({**row, **row["options"]}).get(column, "") for column in columns),
                last[row["index"]],
            ]
            for row in rows
        ),
    )


def write_pope(path, splits):
    """Write POPE's answers as the TSV that VLMEvalKit scores. splits: {"random": (label file, answer file), ...}.

    Its `category` is the split, its `answer` Yes or No; `index` runs on over the splits. Files: see `pope.read_pope`.
    It reads an answer by its words yes and no; with neither, or both, the answer is wrong and counts as no in F1, where
    the authors' script takes for yes what is not plainly no. Its figures differ by such answers.
    """
    rows = []
    for name, (labels, answers) in splits.items():
        said, truth, _ = read_pope(labels, answers)
        asked = [record.get("text", "") for _, record in read_lines(labels)]
        rows += [
            [len(rows) + k, text, label.title(), name, answer]
            for k, (text, label, answer) in enumerate(zip(asked, truth, said, strict=True))
        ]
    _write_tsv(path, ["index", "question", "answer", "category", "prediction"], rows)


def _write_tsv(path, header, rows):
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
