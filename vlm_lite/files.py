"""Where files live, and how they are written so that nothing half-written is ever taken for whole."""

import codecs
import contextlib
import hashlib
import json
import os
import reprlib
import shutil
import sys
import tempfile
from pathlib import Path

MESSAGE_LENGTH = 580  # with the command's name in front, under 600
MARKS = (  # byte-order marks; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
STRAY = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
} | {
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__pycache__",
}
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlevel = _REPR.maxdict = 3


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
    return shorten(_REPR.repr(value), 60)


def is_stray(path):
    """Whether a relative path is what an editor or a system puts into folders: hidden, or of a name in STRAY."""
    return any(part.startswith(".") or part in STRAY for part in Path(path).parts)


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
def _explain_oserror(path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free some space or set VLM_LITE_HOME to "
            "another folder; nothing half-written was kept."
        ) from error


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Yield a file under a temporary name beside `path`; it takes the name `path` only when the block succeeds."""
    path = Path(path)
    with _explain_oserror(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        encoding = None if "b" in mode else "utf-8"
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_dir(path):
    """Yield a temporary folder beside `path`; it takes the name `path`, replacing it, when the block succeeds."""
    path = Path(path)
    with _explain_oserror(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield folder
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(folder, 0o777 & ~umask)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, old / "was")
                os.replace(folder, path)
                shutil.rmtree(old)
            else:
                os.replace(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def open_text(path, newline=None):
    """Open a text file in UTF-8, or in what its byte-order mark says. UserError where it is missing or closed to us."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        encoding = next((name for mark, name in MARKS if start.startswith(mark)), "utf-8-sig")
        return open(path, encoding=encoding, newline=newline)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist. Check the path, or make the file again."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}). Check what it is and who may read it."
        ) from error


def read_text(path, expected="text"):
    """The text of a file, as `open_text` reads it. UserError where it is not `expected`, which is text in UTF-8."""
    try:
        with open_text(path) as file:
            return file.read()
    except ValueError as error:  # UnicodeError is one
        raise UserError(
            f"{path} cannot be read as text ({error}). Expected {expected}, in UTF-8."
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
        raise UserError(f"{path}{_not_json(error, text)}") from error


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
                    f"{path}, line {number}: not valid JSON ({what}). Expected one value a line. "
                    + (
                        "The file may be cut short."
                        if text.rstrip().endswith(line.rstrip())
                        else ""
                    )
                ) from error
    return rows


def _not_json(error, text):
    """Where and why `text` is not JSON, and what to do."""
    if not text.strip():
        return ": not valid JSON (it is empty). Make or download it again."
    if not isinstance(error, json.JSONDecodeError):
        return f": not valid JSON ({error}). Make or download it again."
    is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    advice = (
        "The file may be cut short: make or download it again." if is_cut else "Look at that place."
    )
    return f", line {error.lineno} column {error.colno}: not valid JSON ({error.msg}). {advice}"


def write_json(path, value, indent=1):
    """Write `value` as JSON with sorted keys, whole or not at all; `indent=None`, in one line, is far quicker."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n")


def digest(data):
    """16 hexadecimal digits of what Python writes for `data`: lists and tuples of texts and numbers."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]
