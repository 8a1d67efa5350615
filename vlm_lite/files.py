"""Where files live, and how they are written so that nothing half-written is ever taken for whole."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message names the file or field, what was found, and what to do."""


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


def read_json(path):
    """The value of a JSON file. Raises UserError naming the file, line and column where it is not JSON."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist. Check the path, or make the file again."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}). Check what it is and who may read it."
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not JSON, not UTF-8, a number too long, or nested too deeply
        where = (
            f", line {error.lineno} column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        found = getattr(error, "msg", error) if path.stat().st_size else "it is empty"
        raise UserError(
            f"{path}{where}: not valid JSON ({found}). The file may be cut short: "
            "delete it and make or download it again."
        ) from error


def write_json(path, value, indent=1):
    """Write `value` as JSON with sorted keys, whole or not at all; `indent=None`, in one line, is far quicker."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n")
