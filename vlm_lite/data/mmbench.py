"""An MMBench TSV, read into plain Python with every cell checked: the index, the options, the picture in base64."""

import base64
import binascii
import csv
import io
import string
import warnings
from pathlib import Path

import PIL.Image

from vlm_lite.data.records import show
from vlm_lite.files import UserError

LETTERS = string.ascii_uppercase
# What pandas, which the official tools read with, takes for an empty cell: such an option is not there.
EMPTY = {"", "nan", "NaN", "-nan", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "#N/A N/A", "NULL", "null",
         "None"}
GROUPINGS = ("split", "l2-category", "category")
REFERENCE_LENGTH = 64  # a shorter `image` is the index of the row that has the picture


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
            raise UserError(f"{path}, line {line}: index is {index}, which line {places[index]} has. Indices must "
                            "differ.")
        options = {letter: cells[letter] for letter in LETTERS if cells.get(letter, "") not in EMPTY}
        if len(options) < 2:
            raise UserError(f"{path}, line {line} (index {index}): it has the options {options}; expected two or more "
                            "in the columns A, B, C, D. Is this a file of another kind?")
        if cells["answer"] not in options:
            raise UserError(f"{path}, line {line} (index {index}): answer is {show(cells['answer'])}; expected one of "
                            f"{', '.join(options)}. (The answers of the test split are not published: use dev.)")
        rows[index] = {"index": index, "options": options, "image": cells.get("image", ""),
                       **{name: cells.get(name) or "" for name in ("question", "hint", "answer", *GROUPINGS)}}
        places[index] = line
    for index, row in rows.items():
        _find_picture(path, places[index], row, rows)
    return list(rows.values())


def read_tsv(path, columns):
    """(line number, {column: cell}) of each row; UserError where the file is cut short or lacks one of `columns`."""
    csv.field_size_limit(2**31 - 1)  # a picture is one cell
    path, rows = Path(path), []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            absent = [name for name in columns if name not in header]
            if absent:
                raise UserError(f"{path}, line 1: no column {', '.join(absent)} (found: {show(header)}). Expected tabs "
                                f"between columns, {', '.join(columns)} among them. Is this a file of another kind?")
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells for {len(header)} columns. "
                                    "The file may be cut short: make or download it again.")
                if cells:
                    rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Check the path, or make the file again.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of UTF-8 text ({error}). Make or download it "
                        "again.") from error
    if not rows:
        raise UserError(f"{path} has no rows below its header. Make or download the file again.")
    return rows


def index_of(path, line, cells):
    if not (cells["index"].isascii() and cells["index"].isdigit()):
        raise UserError(f"{path}, line {line}: index is {show(cells['index'])}; expected a whole number of 0 or more.")
    return int(cells["index"])


def _find_picture(path, line, row, rows):
    """Put the base64 text of the row's picture into `row`, after a look at whether it is one."""
    image, where = row["image"], f"{path}, line {line} (index {row['index']})"
    if not image:
        return
    if len(image) <= REFERENCE_LENGTH and image.isdigit():
        there = rows.get(int(image), {"image": ""})["image"]
        if len(there) <= REFERENCE_LENGTH:
            raise UserError(f"{where}: image is {image}, the index of a row that has no picture. Download the file "
                            "again.")
        row["image"] = there
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            PIL.Image.open(io.BytesIO(base64.b64decode(image, validate=True))).close()
    except (binascii.Error, ValueError, OSError, SyntaxError, Warning, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{where}: image is not a picture in base64 ({show(str(error))}). The file may be damaged: "
                        "make or download it again.") from error
