"""The official annotation files, read into plain Python with every field checked; images are left alone.

An error names the file, the field (`annotations[3].answers[9].answer`), what stands there and what was expected.
"""

import contextlib
import csv
import io
import re
import string

from vlm_lite.files import UserError, read_json, read_json_lines, read_text
from vlm_lite.files import show as show

ANSWERS_PER_QUESTION = 10
ID = (int, str)
_NAMES = {
    int: "a whole number of 0 or more",
    str: "text",
    ID: "a whole number of 0 or more, or text",
    list: "a list",
    dict: "an object",
}
# What pandas, which the official tools read with, takes for an empty cell: such an option is not there.
EMPTY = set(" nan NaN -nan -NaN NA N/A n/a <NA> #N/A #NA NULL null None".split(" ")) | {"#N/A N/A"}
GROUPINGS = ("split", "l2-category", "category")
TEXTS = ("image", "question", "hint", "answer", *GROUPINGS)
ROTATION = 1_000_000  # the rotations of question 7 of MMBench have the indices 7, 1000007, ...
REFERENCE_LENGTH = 64  # a shorter `image` is the index of the row that has the image


def read_caption_lists(annotations):
    """An official COCO captions file as ({image_id: file_name}, {image_id: its captions}), both in file order.

    An image without captions is in the first only; a caption without its image is an error.
    """
    data, captions = read_json(annotations), {}
    for where, record in records(data, "annotations", annotations):
        image_id = field(record, "image_id", ID, annotations, where)
        captions.setdefault(image_id, []).append(field(record, "caption", str, annotations, where))
    images = by_id(records(data, "images", annotations), "id", annotations)
    names = dict(zip(images, _column(images.values(), "file_name", str, annotations), strict=True))
    orphan = next((image_id for image_id in captions if image_id not in names), None)
    if orphan is not None:
        raise UserError(
            f"{annotations}: `images` does not list image_id {show(orphan)}, which has captions. Add it, or take its "
            "captions out."
        )
    return names, captions


def read_vqa_rows(questions, annotations, *, image_ids=None, complete=True):
    """Official VQA v2 question and annotation files as ({column: list}, data_subtype), in the order of the questions.

    Columns: question_id, image_id, question, question_type, answer_type, answer, answers (ten texts).
    Ids are what the file says: whole numbers or text.
    complete: without it, only the question_id, the question and the ten answers must be there; the rest may be None.
    image_ids: keep the questions about these images only.
    """

    asked, answered = read_json(questions), read_json(annotations)
    if not complete:  # JSON lines, or a bare list, say all that is needed
        asked = {"questions": asked} if isinstance(asked, list) else asked
        answered = {"annotations": answered} if isinstance(answered, list) else answered
    [subtype], [other] = (
        _column([("", data)], "data_subtype", str, file, complete)
        for data, file in ((asked, questions), (answered, annotations))
    )
    if subtype != other and None not in (subtype, other):
        raise UserError(
            f"data_subtype is {subtype!r} in {questions} and {other!r} in {annotations}. "
            "Pass the questions and the annotations of the same split."
        )
    notes, asked = (
        by_id(records(data, key, file), "question_id", file)
        for data, key, file in (
            (answered, "annotations", annotations),
            (asked, "questions", questions),
        )
    )
    images = _images(asked.values(), questions, complete)
    ids = dict(zip(asked, images, strict=True))
    if image_ids is not None:
        ids = {question_id: image for question_id, image in ids.items() if image in image_ids}
    refuse_empty(ids, "questions", questions)
    lonely = [question_id for question_id in ids if question_id not in notes]
    if lonely:
        raise UserError(
            f"{annotations}: {len(lonely)} question(s) of {questions} have no annotation, for example "
            f"question_id {show(lonely[0])}. Add their answers, or take the questions out."
        )
    theirs = [notes[question_id] for question_id in ids]
    others = _images(theirs, annotations, complete)
    for (question_id, image), other, (place, _) in zip(ids.items(), others, theirs, strict=True):
        if other != image and str(other) != str(image) and None not in (other, image):
            raise UserError(
                f"{annotations}: {place}.image_id is {show(other)}, but {questions} asks question "
                f"{show(question_id)} about image {show(image)}. Pass two files that belong together."
            )
    return {
        "question_id": list(ids),
        "image_id": list(ids.values()),
        "question": _column([asked[i] for i in ids], "question", str, questions),
        "question_type": _column(theirs, "question_type", str, annotations, complete),
        "answer_type": _column(theirs, "answer_type", str, annotations, complete),
        "answer": _column(theirs, "multiple_choice_answer", str, annotations, complete),
        "answers": [_ten_answers(note, annotations, place) for place, note in theirs],
    }, subtype


def _images(found, file, complete):
    """The image_id of every (place, record); without `complete`, where it is only compared, of any type."""
    if complete:
        return _column(found, "image_id", ID, file)
    return [record.get("image_id") for _, record in found]


def by_id(found, key, file):
    """{id: (place, record)} of (place, record) pairs; UserError where two have one id in the field `key`."""
    found = list(found)
    ids = _column(found, key, ID, file)
    known = dict(zip(ids, found, strict=True))
    if len(known) < len(ids):
        first, i = next(
            (place, i) for (place, _), i in zip(found, ids, strict=True) if known[i][0] != place
        )
        raise UserError(
            f"{file}: {known[i][0]}.{key} is {show(i)}, which {first} has too. Ids must differ; files of other splits may "
            "share them."
        )
    return known


def _column(found, key, kind, file, complete=True):
    """The value of one field in every (place, record); without `complete` it may be missing, which is None."""
    with contextlib.suppress(
        TypeError, KeyError
    ):  # the whole column at once; faults are left to `field`
        values = [record[key] for _, record in found]
        if kind is str and "".join(values).isascii():
            return values
        if (
            kind is ID
            and set(map(type, values)) == {int}
            and 0 <= min(values) <= max(values) < 2**63
        ):
            return values
    return [
        None
        if not complete and isinstance(record, dict) and record.get(key) is None
        else field(record, key, kind, file, place)
        for place, record in found
    ]


def read_lines(path):
    """(place, record) for each line of a file of JSON lines, empty lines left out; a JSON list will also do.

    Raises UserError naming the file and the line that is not JSON, or the file when it is empty or not text.
    """
    text = read_text(path, "JSON lines")
    is_list = text.lstrip().startswith("[")
    rows = records({"": read_json(path)}, "", path) if is_list else read_json_lines(path, text)
    refuse_empty(rows, "rows", path)
    return rows


def field(record, key, kind, file, where=""):
    """`record[key]`, checked to be of `kind`. UserError names the file, the field and what stands there."""
    name = f"{where}.{key}" if where else key
    if not isinstance(record, dict):
        raise UserError(
            f"{file}: {where or 'the top level'} is {show(record)}; expected an object with the field "
            f"`{key}`. Is this a file of another kind?"
        )
    if key not in record:
        raise UserError(
            f"{file}: `{name}` is missing (found: {', '.join(map(show, list(record)[:8])) or 'nothing'}). "
            f"Expected {_NAMES[kind]}. Is this a file of another kind?"
        )
    value = record[key]
    if kind is ID and isinstance(value, float) and value.is_integer():  # as pandas writes them
        value = int(value)
    good = isinstance(value, kind) and not isinstance(value, bool)
    if isinstance(value, int):
        good = good and 0 <= value < 2**63
    elif isinstance(value, str):  # half of a character cannot be stored
        whole = value.isascii() or value.encode("utf-8", "ignore").decode() == value
        good = good and whole and (kind is not ID or value.strip())
    if not good:
        raise UserError(
            f"{file}: `{name}` is {show(value)}; expected {_NAMES[kind]}. Correct the file, or make or "
            "download it again."
        )
    return value


def records(data, key, file, where=""):
    """(place, record) for each entry of the list `data[key]`."""
    name = f"{where}.{key}" if where else key
    entries = enumerate(field(data, key, list, file, where))
    return [(f"{name}[{index}]", record) for index, record in entries]


def refuse_empty(rows, what, file):
    """UserError when there are no rows."""
    if not rows:
        raise UserError(
            f"{file} is empty or holds no {what} that were asked for. Check the path and the ids, or make or download the "
            "file again."
        )


def _ten_answers(note, file, where):
    with contextlib.suppress(TypeError, KeyError):  # where there is a fault, `field` names it
        texts = [entry["answer"] for entry in note["answers"]]
        if len(texts) == ANSWERS_PER_QUESTION and "".join(texts).isascii():
            return texts
    answers = field(note, "answers", list, file, where)
    if len(answers) != ANSWERS_PER_QUESTION:
        raise UserError(
            f"{file}: `{where}.answers` has {len(answers)} entries; expected {ANSWERS_PER_QUESTION}, which the official "
            "accuracy needs."
        )
    return _column(records(note, "answers", file, where), "answer", str, file)


def read_mmbench(path):
    """The rows of an MMBench TSV: dicts with index, question, hint, options {letter: text}, answer, split, category,
    l2-category ("" where the file has none) and image (base64 text, or "").

    A short `image` is the index of the row that has the image, as in the official files, and is replaced by it.
    UserError names the file, the line and the column of what does not fit.
    """
    rows = {}
    for line, cells in read_tsv(path, ("index", "question", "answer")):
        index = index_of(path, line, cells)
        if index in rows:
            raise UserError(f"{path}, line {line}: index is {index}, which a line before it has.")
        options = {k: cells[k] for k in string.ascii_uppercase if cells.get(k, "") not in EMPTY}
        if len(options) < 2 or cells["answer"] not in options:
            raise UserError(
                f"{path}, line {line} (index {index}): answer is {show(cells['answer'])} and the options are {options}; expected "
                "two or more in the columns A, B, C, D, and the letter of one. (The answers of the test split are not "
                "published: use dev.)"
            )
        rows[index] = {
            "index": index,
            "options": options,
            **{name: cells.get(name) or "" for name in TEXTS},
        }
    for index, row in rows.items():
        if len(row["image"]) <= REFERENCE_LENGTH and row["image"].isdecimal():
            there = rows.get(int(row["image"]), row)["image"]
            if len(there) <= REFERENCE_LENGTH:
                raise UserError(
                    f"{path}, index {index}: image is {there}, the index of a row that has no image. Download the "
                    "file again."
                )
            row["image"] = there
    return list(rows.values())


def read_tsv(path, columns):
    """(line number, {column: cell}) of each row; UserError where it is no table, is cut short or lacks one of `columns`.

    The line is that where the row begins. A quote that opens a cell and is not closed in it is an error: it would
    swallow the rows below.
    """
    csv.field_size_limit(2**31 - 1)  # an image is one cell
    text = io.StringIO(read_text(path, "a table"), newline="")
    reader, rows, line = csv.reader(text, delimiter="\t", strict=True), [], 1
    try:
        header = next(reader, [])
        absent = [name for name in columns if header.count(name) != 1]
        if absent:
            raise UserError(
                f"{path}, line 1: no column {', '.join(absent)}, or two of that name (found: {show(header)}). Expected "
                f"tabs between columns, {', '.join(columns)} among them. Is this a file of another kind?"
            )
        line = reader.line_num + 1
        for cells in reader:
            inner = (part for cell in cells for part in cell.split("\n")[1:])
            swallowed = any(p[:1].isdigit() and p.count("\t") >= len(header) - 1 for p in inner)
            if cells and (len(cells) != len(header) or swallowed):
                raise csv.Error(f"{len(cells)} cells for {len(header)} columns")
            rows += [(line, dict(zip(header, cells, strict=True)))] if cells else []
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f'{path}, line {line}: not a row of a table ({error}). It is cut short, or a quote (") opens a cell and is '
            "not closed in it: put the whole cell in quotes and double those inside. A spreadsheet is to be saved as TSV "
            "(VLMEvalKit does so with PRED_FORMAT=tsv)."
        ) from error
    if not rows:
        raise UserError(f"{path} has no rows below its header. Make or download the file again.")
    return rows


def index_of(path, line, cells):
    if not re.fullmatch("[0-9]{1,18}", cells["index"]):
        raise UserError(
            f"{path}, line {line}: index is {show(cells['index'])}; expected a whole number of 0 or more."
        )
    return int(cells["index"])


def read_pope_labels(file):
    """{question_id: (place, record)} of a POPE file; UserError for an id that comes twice and a label but yes or no."""
    found = by_id(read_lines(file), "question_id", file)
    for where, record in found.values():
        label = field(record, "label", str, file, where)
        if label not in ("yes", "no"):
            raise UserError(f"{file}: {where}.label is {show(label)}; expected yes or no.")
    return found
