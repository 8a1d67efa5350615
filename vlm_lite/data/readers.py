"""More official files in the common format, and a folder of your own images.

LLaVA-Instruct  [{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}]
POPE            JSON lines {"question_id", "image", "text", "label": "yes" | "no"}
MMBench         TSV with index, image (base64), question, hint, A, B, ..., answer, category
your own        images and metadata.jsonl, a line each: {"file_name", and any columns of FEATURES}; the layout of
                the `imagefolder` of `datasets`
"""

import base64
import os
import re
from pathlib import Path, PurePosixPath

from datasets import List

from vlm_lite.data.formats import FEATURES, NUMBER, find_images, from_rows
from vlm_lite.data.records import (
    ANSWERS_PER_QUESTION,
    ID,
    ROTATION,
    field,
    read_lines,
    read_pope_labels,
    records,
    refuse_empty,
    show,
)
from vlm_lite.data.records import read_mmbench as read_mmbench_rows
from vlm_lite.files import UserError

LISTING = "metadata.jsonl"
COCO_STEM = re.compile(r"(?:COCO_\w+_)?(\d{12})", re.ASCII)
TRAIN2017 = re.compile(r"(?:(?:.*/)?train2017/)?(\d{12})\.jpg", re.ASCII)


def read_llava(file, images, *, image_ids=None):
    """Read a LLaVA-Instruct file: one row a conversation, roles `user` and `assistant` in turn, `<image>` taken out.

    images: the folder of the images, which are what `image` names. COCO's train2017 (`000000033471.jpg`) holds the
    images of train2014 under other names, so where such a file is not there `COCO_train2014_000000033471.jpg` will do,
    and captions, questions and instructions can share one folder; nothing else stands in for a missing file.
    image_ids: keep the images of these COCO numbers only. UserError names the file, the entry and the field.
    """
    candidates, rows, owner = {}, [], {}
    for name, record, where in llava_records(file):
        number, other = coco_number(name), TRAIN2017.fullmatch(name)
        if image_ids is not None and number not in image_ids:
            continue
        if image_ids is not None and owner.setdefault(number, name) != name:
            raise UserError(
                f"{file}: {show(owner[number])} and {show(name)} could both be image {number}. Give each its own "
                "number, or read the file without image_ids."
            )
        is_there = not other or os.path.isfile(os.path.join(images, name))
        candidates[name] = [name] if is_there else [name, f"COCO_train2014_{other[1]}.jpg"]
        rows.append({"image": name, "conversation": _conversation(record, file, where)})
    refuse_empty(rows, "conversations", file)
    return _with_images(rows, candidates, images, file)


def _with_images(rows, candidates, folder, file):
    """The table of rows whose `image` is a name: found in `folder`, and identified by COCO's number where all have one.

    candidates: {name: the files that will do}.
    """
    cells = find_images(candidates, folder, file, "image")
    numbers = {name: coco_number(name) for name in candidates}
    are_ids = None not in numbers.values() and len(set(numbers.values())) == len(numbers)
    for row in rows:
        name = row["image"]
        row |= {"image": cells[name], "image_id": numbers[name] if are_ids else name}
    return from_rows(rows)


def llava_records(file):
    """(image name, record, place) of each conversation of a LLaVA-Instruct file."""
    for where, record in read_lines(file):
        yield field(record, "image", str, file, where), record, where


def coco_number(name):
    """42 for "000000000042.jpg" and "val2014/COCO_val2014_000000000042.jpg"; None for a name not of COCO's kind."""
    number = COCO_STEM.fullmatch(PurePosixPath(name).stem)
    return int(number[1]) if number else None


def _conversation(record, file, where):
    said = []
    for index, (place, turn) in enumerate(records(record, "conversations", file, where)):
        speaker, text = (field(turn, key, str, file, place) for key in ("from", "value"))
        expected, role = (("human", "user"), ("gpt", "assistant"))[index % 2]
        if speaker != expected:
            raise UserError(
                f"{file}: `{place}.from` is {show(speaker)}; expected {expected!r}: human and gpt take turns."
            )
        text = text.replace("<image>", "").strip()
        if not text:
            raise UserError(f"{file}: `{place}.value` is empty; expected words.")
        said.append({"role": role, "content": text})
    if not said or len(said) % 2:
        raise UserError(
            f"{file}: `{where}.conversations` has {len(said)} turns; expected pairs of human and gpt."
        )
    return said


def _ten_times(answer):
    return {"answer": answer, "answers": [answer] * ANSWERS_PER_QUESTION}


def read_pope(file, images):
    """Read a POPE file: one row a question; `answer` is the label, yes or no, and `answers` has it ten times."""
    kind = {"question_type": "existence", "answer_type": "yes/no"}
    rows = [
        {
            "image": field(record, "image", str, file, where),
            "question_id": question_id,
            "question": field(record, "text", str, file, where),
            **kind,
            **_ten_times(record["label"]),
        }
        for question_id, (where, record) in read_pope_labels(file).items()
    ]
    return _with_images(rows, {row["image"]: [row["image"]] for row in rows}, images, file)


def read_mmbench(file):
    """Read an MMBench TSV: one row a rotation, its hint and options written into `question`, `answer` the letter.

    `question_id` is the index, `image_id` the question it is a rotation of, `question_type` the category. Rows without
    an image have None. Errors: as `vlm_lite.data.records.read_mmbench`, and for an `image` that is not base64.
    """
    rows = []
    for row in read_mmbench_rows(file):
        try:
            image = base64.b64decode(row["image"], validate=True)
        except ValueError as error:
            raise UserError(
                f"{file}, index {row['index']}: image is not base64 ({error}). Make or download the file again."
            ) from error
        options = map(". ".join, row["options"].items())
        rows.append(
            {
                "image": {"bytes": image, "path": None} if image else None,
                "image_id": row["index"] % ROTATION,
                "question_id": row["index"],
                "question": "\n".join(filter(None, [row["hint"], row["question"], *options])),
                "question_type": row["category"] or None,
                "answer_type": "choice",
                **_ten_times(row["answer"]),
            }
        )
    return from_rows(rows)


def read_folder(folder):
    """Read a folder of your own images with its `metadata.jsonl`: one row a line, every column of FEATURES or fewer.

    A line needs `file_name`, a path inside the folder. Without `image_id`, or where ids are text, the images are
    numbered by first mention; without `question_id` the questions by line. `answers` defaults to ten times `answer`.
    UserError names the file, line and field of what is missing, misspelt or of a wrong kind, and of a name that leaves
    the folder.
    """
    file = Path(folder) / LISTING
    if not file.exists():
        raise UserError(
            f"{folder} holds no {LISTING}. It says what belongs to each image, in lines such as "
            '{"file_name": "beach.jpg", "captions": ["two people on a beach"]}. More of it: vlm-lite data '
            "sample --help."
        )
    names, rows, known = {}, [], [key for key in FEATURES if key != "image"]
    for number, (where, record) in enumerate(read_lines(file), 1):
        name = field(record, "file_name", str, file, where)
        for other in sorted(record.keys() - {"file_name", *known}):
            raise UserError(
                f"{file}, {where}: unknown field {show(other)}. Expected file_name and any of {', '.join(known)}."
            )
        row = {key: _value(record, key, file, where) for key in known if key in record}
        row.setdefault("image_id", list(names).index(name) + 1 if name in names else len(names) + 1)
        if names.setdefault(name, row["image_id"]) != row["image_id"]:
            raise UserError(
                f"{file}, {where}: {name!r} has image_id {show(row['image_id'])}, and {show(names[name])} in a line "
                "before it. Expected one id an image."
            )
        if "question" in row:
            row.setdefault("question_id", number)
            if "answer" in row:
                row = _ten_times(row["answer"]) | row
        rows.append(row)
    if len(set(names.values())) < len(names):
        raise UserError(
            f"{file}: two images have one image_id. Expected an id of its own for each, or none at all."
        )
    cells = find_images({i: [name] for name, i in names.items()}, folder, file, "file_name")
    return from_rows([{**row, "image": cells[row["image_id"]]} for row in rows])


def _value(record, key, file, where):
    """`record[key]`, checked to be what the column `key` holds, and no blank text."""
    if isinstance(FEATURES[key], List):
        found = records(record, key, file, where)
        if key == "conversation":
            return [
                {part: field(entry, part, str, file, place) for part in ("role", "content")}
                for place, entry in found
            ]
        texts = value = [field({place: text}, place, str, file) for place, text in found]
    else:
        value = field(record, key, ID if FEATURES[key] == NUMBER else str, file, where)
        texts = [value]
    if key != "answers" and not all(str(text).strip() for text in texts):
        raise UserError(
            f"{file}: `{where}.{key}` is empty, or an entry is ({show(texts)}). Expected words, or no such field."
        )
    return value
