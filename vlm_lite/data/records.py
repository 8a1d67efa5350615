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
REFERENCE_LENGTH = 64  # a shorter `image` is the index of the row that has the image


def read_caption_lists(annotations):
    """An official COCO captions file as ({image_id: file_name}, {image_id: its captions}), both in file order.

    An image without captions is in the first only; a caption without its image is an error.
    """
    data = read_json(annotations)
    captions, names = {}, {}
    for where, record in records(data, "annotations", annotations):
        image_id = field(record, "image_id", ID, annotations, where)
        captions.setdefault(image_id, []).append(field(record, "caption", str, annotations, where))
    for where, record in records(data, "images", annotations):
        image_id = field(record, "id", ID, annotations, where)
        if image_id in names:
            raise UserError(
                f"{annotations}: {where}.id is {show(image_id)}, which an image before it has. Ids must differ."
            )
        names[image_id] = field(record, "file_name", str, annotations, where)
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
        _by_question(answered, "annotations", annotations),
        _by_question(asked, "questions", questions),
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


def _by_question(data, key, file):
    """{question_id: (place, record)} of the list `data[key]`."""
    found = list(records(data, key, file))
    ids = _column(found, "question_id", ID, file)
    by_id = dict(zip(ids, found, strict=True))
    for i, record in zip(ids, found, strict=True):
        if by_id[i] is not record:
            raise UserError(
                f"{file}: {record[0]}.question_id is {show(i)}, which {by_id[i][0]} has too. Ids must differ."
            )
    return by_id


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
        field(record, key, kind, file, place)
        if complete or not isinstance(record, dict) or record.get(key) is not None
        else None
        for place, record in found
    ]


def read_lines(path):
    """(place, record) for each line of a file of JSON lines, empty lines left out; a JSON list will also do.

    Raises UserError naming the file and the line that is not JSON, or the file when it is empty or not text.
    """
    text = read_text(path, "JSON lines")
    is_list = text.lstrip().startswith("[")
    rows = (
        list(records({"": read_json(path)}, "", path)) if is_list else read_json_lines(path, text)
    )
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
    if good and isinstance(value, int):
        good = 0 <= value < 2**63
    if good and kind is ID and isinstance(value, str):
        good = bool(value.strip())
    if good and isinstance(value, str) and not value.isascii():
        good = not any(
            "\ud800" <= letter <= "\udfff" for letter in value
        )  # half of a character, not storable
    if not good:
        raise UserError(
            f"{file}: `{name}` is {show(value)}; expected {_NAMES[kind]}. Correct the file, or make or "
            "download it again."
        )
    return value


def records(data, key, file):
    """(place, record) for each entry of the list `data[key]`."""
    return (
        (f"{key}[{index}]", record) for index, record in enumerate(field(data, key, list, file))
    )


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
    return [
        field(entry, "answer", str, file, f"{where}.answers[{i}]")
        for i, entry in enumerate(answers)
    ]


def read_mmbench(path):
    """The rows of an MMBench TSV: dicts with index, question, hint, options {letter: text}, answer, split, category,
    l2-category ("" where the file has none) and image (base64 text, or "").

    A short `image` is the index of the row that has the image, as in the official files, and is replaced by it.
    UserError names the file, the line and the column of what does not fit.
    """
    rows = {}
    for line, cells in read_tsv(path, ("index", "question", "answer")):
        index, where = index_of(path, line, cells), f"{path}, line {line}"
        if index in rows:
            raise UserError(
                f"{where}: index is {index}, which a line before it has. Indices must differ."
            )
        options = {k: cells[k] for k in string.ascii_uppercase if cells.get(k, "") not in EMPTY}
        if len(options) < 2 or cells["answer"] not in options:
            raise UserError(
                f"{where} (index {index}): answer is {show(cells['answer'])} and the options are {options}; expected "
                "two or more in the columns A, B, C, D, and the letter of one. (The answers of the test split are not "
                "published: use dev.)"
            )
        rows[index] = {
            "index": index,
            "options": options,
            "image": cells.get("image", ""),
            **{name: cells.get(name) or "" for name in ("question", "hint", "answer", *GROUPINGS)},
        }
    for index, row in rows.items():
        if 0 < len(row["image"]) <= REFERENCE_LENGTH and row["image"].isdecimal():
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
    found = {}
    for where, record in read_lines(file):
        question_id = field(record, "question_id", ID, file, where)
        if question_id in found:
            raise UserError(
                f"{file}: {where}.question_id is {show(question_id)}, which a line before it has. Pass one split a file; "
                "the splits share their ids."
            )
        label = field(record, "label", str, file, where)
        if label not in ("yes", "no"):
            raise UserError(f"{file}: {where}.label is {show(label)}; expected yes or no.")
        found[question_id] = where, record
    return found
