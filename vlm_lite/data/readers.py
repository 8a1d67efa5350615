"""More official files in the common format, and a folder of your own pictures.

LLaVA-Instruct  [{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}]
POPE            JSON lines {"question_id", "image", "text", "label": "yes" | "no"}
MMBench         TSV with index, image (base64), question, hint, A, B, ..., answer, category
your own        pictures and metadata.jsonl, a line each: {"file_name", and any columns of FEATURES}; the layout of
                the `imagefolder` of `datasets`
"""

import base64
import re
from pathlib import Path

from datasets import List

from vlm_lite.data.formats import FEATURES, find_images, make_dataset
from vlm_lite.data.records import ANSWERS_PER_QUESTION, field, read_lines, refuse_empty, show
from vlm_lite.data.records import read_mmbench as read_mmbench_rows
from vlm_lite.files import UserError, read_json

ROLES = {"human": "user", "gpt": "assistant"}
LISTING = "metadata.jsonl"
ROTATION = 1_000_000  # the rotations of question 7 of MMBench have the indices 7, 1000007, ...


def read_llava(file, images, *, image_ids=None):
    """Read a LLaVA-Instruct file: one row a conversation, roles `user` and `assistant` in turn, `<image>` taken out.

    images: the folder of the pictures. The files name train2017's (`000000033471.jpg`); where that is not there, the
    same picture of train2014 (`COCO_train2014_000000033471.jpg`) will do, so captions, questions and instructions can
    share one folder. image_ids: keep these only. UserError names the file, the entry and the field.
    """
    ids, names, conversations = [], {}, []
    for image_id, record, where in llava_records(file):
        if image_ids is None or image_id in image_ids:
            ids.append(image_id)
            names.setdefault(image_id, [record["image"], f"COCO_train2014_{image_id:012d}.jpg"])
            conversations.append(_conversation(record, file, where))
    refuse_empty(ids, "conversations", file, image_ids)
    cells = find_images(names, images, file, "image")
    return make_dataset(
        {"image": [cells[i] for i in ids], "image_id": ids, "conversation": conversations}
    )


def llava_records(file):
    """(image id, record, place) of each conversation of a LLaVA-Instruct file."""
    data = read_json(file)
    if not isinstance(data, list):
        raise UserError(
            f"{file}: the top level is {show(data)}; expected a list of objects with `image` and "
            "`conversations`. Is this a file of another kind?"
        )
    for index, record in enumerate(data):
        where = f"[{index}]"
        yield (
            picture_id(field(record, "image", str, file, where), file, f"{where}.image"),
            record,
            where,
        )


def picture_id(name, file, where):
    """The number at the end of a picture's name: "COCO_val2014_000000000042.jpg" -> 42."""
    digits = re.search(r"(\d+)$", Path(name).stem)
    if not digits or int(digits[1]) >= 2**63:
        raise UserError(
            f"{file}: `{where}` is {show(name)}; expected a name that ends in the picture's number, "
            "such as 000000000042.jpg."
        )
    return int(digits[1])


def _conversation(record, file, where):
    turns = field(record, "conversations", list, file, where)
    said = []
    for index, turn in enumerate(turns):
        place = f"{where}.conversations[{index}]"
        speaker, text = (field(turn, key, str, file, place) for key in ("from", "value"))
        expected = ("human", "gpt")[index % 2]
        if speaker != expected:
            raise UserError(
                f"{file}: `{place}.from` is {show(speaker)}; expected {expected!r}: human and gpt take "
                "turns, and human begins."
            )
        text = text.replace("<image>", "").strip()
        if not text:
            raise UserError(
                f"{file}: `{place}.value` is empty. Give it words, or take the conversation out."
            )
        said.append({"role": ROLES[speaker], "content": text})
    if not said or len(said) % 2:
        raise UserError(
            f"{file}: `{where}.conversations` has {len(said)} turns; expected pairs of human and gpt."
        )
    return said


def read_pope(file, images):
    """Read a POPE file: one row a question; `answer` is the label, yes or no, and `answers` has it ten times."""
    rows, names = [], {}
    for where, record in read_lines(file):
        question_id = field(record, "question_id", int, file, where)
        name, text, label = (
            field(record, key, str, file, where) for key in ("image", "text", "label")
        )
        if label not in ("yes", "no"):
            raise UserError(f"{file}: {where}.label is {show(label)}; expected yes or no.")
        image_id = picture_id(name, file, f"{where}.image")
        names.setdefault(image_id, [name])
        rows.append((question_id, image_id, text, label))
    refuse_empty(rows, "questions", file)
    cells = find_images(names, images, file, "image")
    question_ids, ids, texts, labels = zip(*rows, strict=True)
    return make_dataset(
        {
            "image": [cells[i] for i in ids],
            "image_id": ids,
            "question_id": question_ids,
            "question": texts,
            "question_type": ["existence"] * len(ids),
            "answer_type": ["yes/no"] * len(ids),
            "answer": labels,
            "answers": [[label] * ANSWERS_PER_QUESTION for label in labels],
        }
    )


def read_mmbench(file):
    """Read an MMBench TSV: one row a rotation, its hint and options written into `question`, `answer` the letter.

    `question_id` is the index, `image_id` the question it is a rotation of, `question_type` the category. Rows without
    a picture have None. Errors: as `vlm_lite.data.records.read_mmbench`.
    """
    rows = read_mmbench_rows(file)
    asked = [
        "\n".join(
            filter(
                None,
                [
                    row["hint"],
                    row["question"],
                    *(f"{letter}. {text}" for letter, text in row["options"].items()),
                ],
            )
        )
        for row in rows
    ]
    return make_dataset(
        {
            "image": [
                {"bytes": base64.b64decode(row["image"]), "path": None} if row["image"] else None
                for row in rows
            ],
            "image_id": [row["index"] % ROTATION for row in rows],
            "question_id": [row["index"] for row in rows],
            "question": asked,
            "question_type": [row["category"] or None for row in rows],
            "answer_type": ["choice"] * len(rows),
            "answer": [row["answer"] for row in rows],
            "answers": [[row["answer"]] * ANSWERS_PER_QUESTION for row in rows],
        }
    )


def read_folder(folder):
    """Read a folder of your own pictures with its `metadata.jsonl`: one row a line, every column of FEATURES or fewer.

    A line needs `file_name`, a path inside the folder. Without `image_id` the pictures are numbered by first mention,
    without `question_id` the questions by line; `answers` defaults to ten times `answer`. UserError names the file,
    line and field of what is missing, misspelt or of a wrong kind, and of a name that leaves the folder.
    """
    file = Path(folder) / LISTING
    if not file.exists():
        raise UserError(
            f"{folder} holds no {LISTING}. It says what belongs to each picture, in lines such as "
            '{"file_name": "beach.jpg", "captions": ["two people on a beach"]}. More of it: vlm-lite data '
            "sample --help."
        )
    names, rows = {}, []
    for number, (where, record) in enumerate(read_lines(file), 1):
        name = field(record, "file_name", str, file, where)
        unknown = sorted(set(record) - set(FEATURES) - {"file_name"} | set(record) & {"image"})
        if unknown:
            raise UserError(
                f"{file}, {where}: unknown field {show(unknown[0])}. Expected file_name and any of "
                f"{', '.join(key for key in FEATURES if key != 'image')}."
            )
        row = {
            key: _value(record, key, feature, file, where)
            for key, feature in FEATURES.items()
            if key in record
        }
        row.setdefault("image_id", list(names).index(name) + 1 if name in names else len(names) + 1)
        if names.setdefault(name, row["image_id"]) != row["image_id"]:
            raise UserError(
                f"{file}, {where}: {name!r} has image_id {row['image_id']}, and {names[name]} in a line "
                "before it. Expected one id a picture."
            )
        if "question" in row:
            row.setdefault("question_id", number)
            if "answer" in row:
                row.setdefault("answers", [row["answer"]] * ANSWERS_PER_QUESTION)
        rows.append(row)
    refuse_empty(rows, "lines", file)
    if len(set(names.values())) < len(names):
        raise UserError(
            f"{file}: two pictures have one image_id. Expected an id of its own for each, or none at all."
        )
    cells = find_images(
        {image_id: [name] for name, image_id in names.items()}, folder, file, "file_name"
    )
    columns = {
        key: [row.get(key, [] if isinstance(feature, List) else None) for row in rows]
        for key, feature in FEATURES.items()
    }
    return make_dataset({**columns, "image": [cells[row["image_id"]] for row in rows]})


def _value(record, key, feature, file, where):
    """`record[key]`, checked to be what the column `key` holds, and no blank text."""
    if not isinstance(feature, List):
        value = field(record, key, int if feature.dtype == "int64" else str, file, where)
        if isinstance(value, str) and not value.strip():
            raise UserError(
                f"{file}: `{where}.{key}` is empty ({value!r}). Give it words, or leave the field out."
            )
        return value
    entries = {
        f"{key}[{i}]": entry for i, entry in enumerate(field(record, key, list, file, where))
    }
    if key == "conversation":
        return [
            {part: field(entry, part, str, file, f"{where}.{name}") for part in ("role", "content")}
            for name, entry in entries.items()
        ]
    texts = [field(entries, name, str, file, where) for name in entries]
    if key == "captions" and not all(map(str.strip, texts)):
        raise UserError(
            f"{file}: `{where}.captions` has an empty one ({show(texts)}). Give it words, or leave it out."
        )
    return texts
