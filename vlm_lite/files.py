"""Where files live, and how they are written so that nothing half-written is ever taken for whole."""

import contextlib
import gzip
import hashlib
import json
import os
import re
import reprlib
import shutil
import sys
import tempfile
import uuid
import zlib
from pathlib import Path

MESSAGE_LENGTH = 580  # with the command's name in front, under 600
STRAY = re.compile(
    r"\.|(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|Thumbs\.db|ehthumbs\.db"
    r"|desktop\.ini|__pycache__)$"
)


class UserError(Exception):
    """Something the user can fix. The message names the file or field, what was found, and what to do.

    A long one is cut in the middle: its start says where, its end what to do.
    """

    def __init__(self, message=""):
        super().__init__(shorten(str(message), MESSAGE_LENGTH))


def shorten(text, length):
    """`text`, or its start and end with " ... " between them where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    end = (length - 5) // 2
    return f"{text[: length - 5 - end]} ... {text[-end:]}"


def show(value):
    """`value` as Python writes it, cut in the middle to 60 characters."""
    short = reprlib.Repr()  # a huge value costs no more than a small one
    short.maxstring = short.maxother = short.maxlong = 60
    return shorten(short.repr(value), 60)


def is_stray(path):
    """Whether a relative path is what an editor or a system puts into folders: hidden, or of a name in STRAY."""
    return any(map(STRAY.match, Path(path).parts))


def say(text):
    """One line to the user that is no error, on stderr."""
    print(f"note: {shorten(text, MESSAGE_LENGTH)}", file=sys.stderr)


def data_path(*parts):
    """The path of a file of the course's own `data/` folder, in a clone or in an installed wheel.

    Raises UserError naming the missing file.
    """
    package = Path(__file__).resolve().parent
    roots = [package.parent / "data", package / "_data"]
    root = next((r for r in roots if (r / "zoo").is_dir()), roots[0])
    path = root.joinpath(*parts)
    if not path.exists():
        raise UserError(
            f"{path} is missing. It ships with vlm-lite: run `git checkout -- data` in a clone, "
            "or install the package again."
        )
    return path


def home():
    """The folder for what a run makes: `VLM_LITE_HOME`, or `vlm-lite` in the user's cache folder. Made on demand."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-lite"
    folder = Path(os.environ.get("VLM_LITE_HOME") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}). Set VLM_LITE_HOME to a folder you can write to, "
            "or free some space."
        ) from error
    return folder


@contextlib.contextmanager
def _beside(path):
    """Yield a new hidden name beside `path`, and leave nothing under it; UserError for what the disk refuses."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Name another path, free some space, or set "
            "VLM_LITE_HOME to another folder; nothing half-written was kept."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):
            new.unlink()


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Yield a file under a temporary name beside `path`; it takes the name `path` only when the block succeeds.

    A link stays one, and what is no file (/dev/stdout, a pipe) is written to itself.
    """
    path = Path(path)
    is_device = path.exists() and not path.is_file() and not path.is_dir()
    path = path if is_device else Path(os.path.realpath(path))
    with _beside(path) as new:
        with open(
            path if is_device else new, mode, encoding=None if "b" in mode else "utf-8"
        ) as file:
            yield file
            file.flush()
            if not is_device:
                os.fsync(file.fileno())
        if not is_device:
            os.replace(new, path)


@contextlib.contextmanager
def atomic_dir(path):
    """Yield a temporary folder beside `path`; it takes the name `path`, replacing it, when the block succeeds."""
    with _beside(Path(path)) as new, _beside(Path(path)) as old:
        new.mkdir()
        yield new
        if os.path.exists(path):
            os.replace(path, old)
        os.replace(new, path)


def refuse_input(path, options):
    """UserError where writing to `path` would replace a file that a value of `options`, or of a list in it, names."""
    paths = [
        v for value in options.values() for v in (value if isinstance(value, list) else [value])
    ]
    if path and os.path.realpath(path) in [os.path.realpath(str(v)) for v in paths]:
        raise UserError(f"{path} is one of the files that are read. Name another to write to.")


def read_text(path, expected="text"):
    """The text of a file, also of a .gz; in UTF-8, 16 or 32, with or without a byte-order mark. Line ends stay.

    UserError where it is missing, closed to us, or not `expected`, which is text.
    """
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        return data.decode(json.detect_encoding(data))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist. Check the path, or make the file again."
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise UserError(
            f"{path} cannot be read as text ({error}). Expected {expected}, in UTF-8: check what it is and who may read it."
        ) from error


def read_json(path):
    """The value of a JSON file; the list of its rows where it holds JSON lines instead, which is said.

    Raises UserError naming the file, line and column where it is not JSON.
    """
    text = read_text(path, "JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, too long a number, or too deep
        before = text[: error.pos] if getattr(error, "msg", "") == "Extra data" else ""
        if before.rstrip(" \t").endswith("\n") and "\n" not in before.strip():
            rows = [row for _, row in read_json_lines(path, text)]
            say(
                f"{path} holds JSON lines where one JSON value is expected: {len(rows)} rows are read."
            )
            return rows
        place, is_cut, what = "", False, getattr(error, "msg", error)
        if isinstance(error, json.JSONDecodeError):
            place = f", line {error.lineno} column {error.colno}"
            is_cut = error.pos >= len(text.rstrip()) or what.startswith("Unterminated string")
        advice = "The file may be cut short: make" if is_cut else "Correct it there, or make"
        raise UserError(
            f"{path}{place}: not valid JSON ({what}). {advice} or download it again."
        ) from error


def read_json_lines(path, text):
    """("line N", value) of each line of `text`, the content of the file `path`, that is not empty."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                what = getattr(error, "msg", error)
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({what}). Expected one value a line; the last line of a file "
                    "that is cut short has half of one."
                ) from error
    return rows


def write_json(path, value, indent=1):
    """Write `value` as JSON with sorted keys, whole or not at all; `indent=None`, in one line, is far quicker."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n")


def digest(data):
    """16 hexadecimal digits of what Python writes for `data`: lists and tuples of texts and numbers."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]
