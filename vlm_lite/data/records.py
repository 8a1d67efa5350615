"""The official annotation files, read into plain Python with every field checked; pictures are left alone.

An error names the file, the field (`annotations[3].answers[9].answer`), what stands there and what was expected.
"""

import base64
import binascii
import contextlib
import csv
import io
import string
import warnings

import PIL.Image

from vlm_lite.files import UserError, open_text, read_json, read_json_lines, read_text
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
LETTERS = string.ascii_uppercase
# What pandas, which the official tools read with, takes for an empty cell: such an option is not there.
EMPTY = {
    "",
    "nan",
    "NaN",
    "-nan",
    "-NaN",
    "NA",
    "N/A",
    "n/a",
    "<NA>",
    "#N/A",
    "#NA",
    "#N/A N/A",
    "NULL",
    "null",
    "None",
}
GROUPINGS = ("split", "l2-category", "category")
REFERENCE_LENGTH = 64  # a shorter `image` is the index of the row that has the picture


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
    orphans = sum(len(texts) for image_id, texts in captions.items() if image_id not in names)
    if orphans:
        example = next(image_id for image_id in captions if image_id not in names)
        raise UserError(
            f"{annotations}: {orphans} caption(s) belong to an image that `images` does not list, for "
            f"example image_id {show(example)}. Add it to `images`, or take its captions out."
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
    images = _column(asked.values(), "image_id", ID, questions, complete)
    ids = dict(zip(asked, images, strict=True))
    if image_ids is not None:
        ids = {question_id: image for question_id, image in ids.items() if image in image_ids}
    refuse_empty(ids, "questions", questions, image_ids)
    lonely = [question_id for question_id in ids if question_id not in notes]
    if lonely:
        raise UserError(
            f"{annotations}: {len(lonely)} question(s) of {questions} have no annotation, for example "
            f"question_id {show(lonely[0])}. Add their answers, or take the questions out."
        )
    theirs = [notes[question_id] for question_id in ids]
    others = _column(theirs, "image_id", ID, annotations, complete)
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


def _by_question(data, key, file):
    """{question_id: (place, record)} of the list `data[key]`."""
    found = list(records(data, key, file))
    ids = _column(found, "question_id", ID, file)
    by_id = dict(zip(ids, found, strict=True))
    if len(by_id) < len(ids):
        first = {}
        again = next(k for k, i in enumerate(ids) if first.setdefault(i, k) != k)
        raise UserError(
            f"{file}: {found[again][0]}.question_id is {show(ids[again])}, which {found[first[ids[again]]][0]} has "
            "too. Ids must differ."
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
    if text.lstrip().startswith("["):
        return [(f"[{index}]", record) for index, record in enumerate(read_json(path))]
    rows = read_json_lines(path, text)
    if not rows:
        raise UserError(
            f"{path} is empty. Expected one JSON object a line: make or download the file again."
        )
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


def refuse_empty(rows, what, file, image_ids=None):
    """UserError when there are no rows."""
    if not rows:
        about = "" if image_ids is None else f" about the {len(image_ids)} image_ids asked for"
        raise UserError(
            f"{file} holds no {what}{about}: the data set is empty. Check the path"
            f"{' and the ids' if about else ''}, or make or download the file again."
        )


def _ten_answers(note, file, where):
    answers = note.get("answers")
    if type(answers) is not list:
        answers = field(note, "answers", list, file, where)
    if len(answers) != ANSWERS_PER_QUESTION:
        raise UserError(
            f"{file}: `{where}.answers` has {len(answers)} entries; the official accuracy needs "
            f"{ANSWERS_PER_QUESTION}. Give each question {ANSWERS_PER_QUESTION} answers."
        )
    with contextlib.suppress(TypeError, KeyError):  # where there is a fault, `field` names it
        texts = [entry["answer"] for entry in answers]
        if "".join(texts).isascii():
            return texts
    return [
        field(entry, "answer", str, file, f"{where}.answers[{i}]")
        for i, entry in enumerate(answers)
    ]


def read_mmbench(path):
    """The rows of an MMBench TSV: dicts with index, question, hint, options {letter: text}, answer, split, category,
    l2-category ("" where the file has none) and image (base64 text, or "").

    Each picture is checked to be one. A short `image` is the index of the row that has the picture, as in the official
    files, and is replaced by it. UserError names the file, the line and the column of what does not fit.
    """
    rows, places = {}, {}
    for line, cells in read_tsv(path, ("index", "question", "answer")):
        index = index_of(path, line, cells)
        if index in rows:
            raise UserError(
                f"{path}, line {line}: index is {index}, which line {places[index]} has. Indices must "
                "differ."
            )
        options = {
            letter: cells[letter] for letter in LETTERS if cells.get(letter, "") not in EMPTY
        }
        if len(options) < 2:
            raise UserError(
                f"{path}, line {line} (index {index}): it has the options {options}; expected two or more "
                "in the columns A, B, C, D. Is this a file of another kind?"
            )
        if cells["answer"] not in options:
            raise UserError(
                f"{path}, line {line} (index {index}): answer is {show(cells['answer'])}; expected one of "
                f"{', '.join(options)}. (The answers of the test split are not published: use dev.)"
            )
        rows[index] = {
            "index": index,
            "options": options,
            "image": cells.get("image", ""),
            **{name: cells.get(name) or "" for name in ("question", "hint", "answer", *GROUPINGS)},
        }
        places[index] = line
    for index, row in rows.items():
        _find_picture(path, places[index], row, rows)
    return list(rows.values())


def read_tsv(path, columns):
    """(line number, {column: cell}) of each row; UserError where the file is cut short or lacks one of `columns`."""
    csv.field_size_limit(2**31 - 1)  # a picture is one cell
    rows, taken = [], []  # taken: the lines of the row in hand

    def lines(file):
        for line in file:
            taken.append(line)
            yield line

    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(lines(file), delimiter="\t")
            header = next(reader, [])
            absent = [name for name in columns if name not in header]
            if absent:
                raise UserError(
                    f"{path}, line 1: no column {', '.join(absent)} (found: {show(header)}). Expected tabs "
                    f"between columns, {', '.join(columns)} among them. Is this a file of another kind?"
                )
            taken.clear()
            for cells in reader:
                opened = _lone_quote(cells, taken, header)
                if opened is not None:
                    raise UserError(
                        f'{path}, line {reader.line_num - len(taken) + 1 + opened}: a quote (") opens a cell '
                        "and is not closed in it, so that the rows below would be swallowed. Take it out, or "
                        "put the whole cell in quotes and double those inside."
                    )
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells for {len(header)} columns. "
                        "The file may be cut short: make or download it again."
                    )
                if cells:
                    rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
                taken.clear()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a table of UTF-8 text ({error}). Make or download it again; a "
            "spreadsheet is to be saved as TSV (VLMEvalKit does so with PRED_FORMAT=tsv)."
        ) from error
    if not rows:
        raise UserError(f"{path} has no rows below its header. Make or download the file again.")
    return rows


def _lone_quote(cells, lines, header):
    """How many lines into the row `lines` the quote opens that swallowed what is not its cell's; None if none did."""
    is_last = not lines[-1].endswith(("\n", "\r")) or cells[-1:] and cells[-1].endswith("\n")
    if len(lines) == 1 and len(cells) == len(header) and not (is_last and '"' in lines[0]):
        return None  # nearly every row
    try:
        fault = ""
        list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error as error:
        fault = str(error)
    if "unexpected end of data" in fault:  # the last cell never ends
        return sum(cell.count("\n") for cell in cells[:-1])
    place = header.index("index") if "index" in header else 0

    def is_row(line):
        parts = line.split("\t")
        return len(parts) == len(header) and parts[place].isascii() and parts[place].isdigit()

    swallowed = [any(map(is_row, cell.split("\n")[1:])) for cell in cells]
    if len(cells) != len(header) or (fault and len(lines) > 1):
        swallowed = [kept or "\t" in cell for kept, cell in zip(swallowed, cells, strict=True)]
    if fault and len(lines) > 1 and not any(swallowed):
        swallowed = ["\n" in cell for cell in cells]
    if not any(swallowed):
        return None
    return sum(cell.count("\n") for cell in cells[: swallowed.index(True)])


def index_of(path, line, cells):
    if not (cells["index"].isascii() and cells["index"].isdigit()):
        raise UserError(
            f"{path}, line {line}: index is {show(cells['index'])}; expected a whole number of 0 or more."
        )
    return int(cells["index"])


def _find_picture(path, line, row, rows):
    """Put the base64 text of the row's picture into `row`, after a look at whether it is one."""
    image, where = row["image"], f"{path}, line {line} (index {row['index']})"
    if not image:
        return
    if len(image) <= REFERENCE_LENGTH and image.isdigit():
        there = rows.get(int(image), {"image": ""})["image"]
        if len(there) <= REFERENCE_LENGTH:
            raise UserError(
                f"{where}: image is {image}, the index of a row that has no picture. Download the file "
                "again."
            )
        row["image"] = there
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            PIL.Image.open(io.BytesIO(base64.b64decode(image, validate=True))).close()
    except (
        binascii.Error,
        ValueError,
        OSError,
        SyntaxError,
        Warning,
        PIL.Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"{where}: image is not a picture in base64 ({show(str(error))}). The file may be damaged: "
            "make or download it again."
        ) from error
