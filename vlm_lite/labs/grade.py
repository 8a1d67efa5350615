"""Grade students' copies: each runs in a kernel of its own, with a time limit, and gets a line for every exercise.

The checks of a copy are put back from the course's notebook before it runs, so that a deleted or edited one counts for
nothing; everything else runs as the student left it, up to the last check. Each copy is graded by a process of its own,
so whatever one does ends with that one. This runs code that others wrote, with your rights: see docs/teaching.md
on how to do it in a container.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from vlm_lite.files import UserError, read_json, write_json
from vlm_lite.labs import VERDICT, build

GRACE = 5  # seconds between asking a cell to stop and ending its kernel
MUCH = 2_000_000  # bytes of output of one cell that are worth a line in the report
STATUS = {"right": "passed"}  # a check's word for it, where the report has another
MARKS = {"passed": "✓", "not attempted": "–"}


# ---- a class


def grade(
    paths,
    *,
    notebooks=None,
    lab=None,
    jobs=None,
    seconds=600,
    check_seconds=30,
    profile="smoke",
    whole=False,
    on_done=None,
):
    """Grade the copies in `paths` (files, and folders searched for .ipynb) and return their reports, in order.

    lab: the name of the notebook that all must be copies of; None finds it out for each. seconds: the most a copy may
    take, and half of it the most for one cell; check_seconds: the most one check may take; whole: run a copy to its end
    and not only to its last check. A report has file, lab, points, max_points, exercises (name,
    status, message, points, max_points), problems (sentences) and seconds; nothing in a copy makes this function fail.
    """
    files = list(_files(paths))
    source = build.notebooks_folder(notebooks)
    known = build.labs(source)
    if lab is not None and lab not in known:
        raise UserError(
            f"there is no lab {lab!r} in {source}; there are: {', '.join(known) or 'none'}"
        )
    _need_nbclient()
    jobs = jobs or max(1, (os.cpu_count() or 2) // 2)

    def one(path):
        with tempfile.TemporaryDirectory(prefix="vlm-lite-grade-") as folder:
            report = _in_a_process(
                path,
                folder,
                source=str(source.resolve()),
                lab=lab,
                seconds=seconds,
                check_seconds=check_seconds,
                profile=profile,
                whole=whole,
                threads=max(1, (os.cpu_count() or 2) // jobs),
            )
        if on_done:
            on_done(report)
        return report

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, files))


def _files(paths):
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
        if path.is_dir() and not inside:
            raise UserError(
                f"{path} holds no .ipynb file. Name the students' notebooks, or a folder with them."
            )
        yield from inside or [path]


def _need_nbclient():
    try:
        import ipykernel  # noqa: F401
        import nbclient  # noqa: F401
    except ImportError as error:
        raise UserError(f"grading needs {error.name}: pip install nbclient ipykernel") from error


def _in_a_process(path, folder, **options):
    """The report on one copy, made by a process that is ended with its kernel when it takes too long."""
    report, order = Path(folder, "report.json"), Path(folder, "order.json")
    write_json(
        order, {"path": str(Path(path).absolute()), "name": str(path), "folder": folder, **options}
    )
    command = [sys.executable, "-m", "vlm_lite.labs.grade", str(order), str(report)]
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(":"),
    }
    start = time.monotonic()
    with open(Path(folder, "log.txt"), "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            process.wait(options["seconds"] + 60)
            return read_json(report)
        except subprocess.TimeoutExpired:
            said = f"grading it took more than {options['seconds'] + 60:g} seconds and was stopped"
        except UserError:  # no report: the process died
            last = Path(folder, "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            said = f"grading it ended without a report ({(last or ['nothing was said'])[0][:200]})"
        finally:
            _end(process)
    return {**_empty(str(path)), "problems": [said], "seconds": round(time.monotonic() - start, 1)}


def _end(process):
    """End a process and all that it started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def _empty(name, lab=None):
    return {
        "file": name,
        "lab": lab,
        "points": 0,
        "max_points": 0,
        "exercises": [],
        "problems": [],
        "seconds": 0.0,
    }


# ---- one copy


def grade_copy(
    path,
    *,
    name=None,
    source,
    lab=None,
    folder,
    seconds=600,
    check_seconds=30,
    profile="smoke",
    whole=False,
    threads=1,
):
    """The report on one copy (see `grade`), run in this process's own kernel with `folder` as its home."""
    report = _empty(name or str(path))
    try:
        copy = build.read(path)
    except UserError as error:
        return {**report, "problems": [str(error)]}
    known = build.labs(source)
    of, answered = which(copy, known)
    if of is None:
        return {
            **report,
            "problems": [
                f"it holds no exercise of any lab here ({', '.join(known) or 'there is none'}): "
                "is it another notebook?"
            ],
        }
    if lab not in (None, of):
        return {
            **report,
            "problems": [
                f"it is a copy of {of} ({answered} of its exercises are there); a copy of {lab} "
                "is expected"
            ],
        }
    notebook, found = known[of]
    cells, places = to_run(copy["cells"], notebook["cells"], found, whole)
    start = time.monotonic()
    verdicts, problems = _run(cells, places, folder, seconds, check_seconds, profile, threads)
    rows = []
    for each in found:
        status, message = _judge(each, copy["cells"], verdicts.get(each.name), problems)
        got = each.points if status == "passed" else 0
        rows.append(
            {
                "name": each.name,
                "status": status,
                "message": message,
                "points": got,
                "max_points": each.points,
            }
        )
    said = [f"cell {k}: {what}" if k else what for k, what in problems.items()]
    return {
        **report,
        "lab": of,
        "points": sum(row["points"] for row in rows),
        "exercises": rows,
        "problems": said,
        "max_points": sum(row["max_points"] for row in rows),
        "seconds": round(time.monotonic() - start, 1),
    }


def which(copy, known):
    """(name, number of exercises found) of the lab in `known` that has most of its exercises in the copy, or None."""
    found = {
        name: sum(
            bool(_places(copy["cells"], each) + _checks(copy["cells"], each)) for each in exercises
        )
        for name, (_, exercises) in known.items()
    }
    best = max(found, key=found.get, default=None)
    return (best, found[best]) if best and found[best] else (None, 0)


def _places(cells, exercise):
    """Where the exercise's own cell is: by its id, else where its name is defined."""
    code = [k for k, cell in enumerate(cells) if cell["cell_type"] == "code"]
    by_id = [k for k in code if build.mark(cells[k]).get("grade_id") == exercise.grade_id]
    define = re.compile(
        rf"^(?:def|class) {exercise.name}\b|^{exercise.name}\s*=(?!\s*check\.)", flags=re.M
    )
    return by_id or [k for k in code if define.search(cells[k]["source"])]


def _checks(cells, exercise):
    call = re.compile(rf"\bcheck\.{exercise.check}\s*\(")
    return [
        k
        for k, cell in enumerate(cells)
        if cell["cell_type"] == "code"
        and (
            build.mark(cell).get("grade_id") == f"{exercise.grade_id}-check"
            or call.search(cell["source"])
        )
    ]


def to_run(cells, original, exercises, whole=False):
    """([(number, source), ...], {place in that list: Exercise}): what is run of a copy, its checks put back.

    number: the cell's in the copy, counted from 1; None for a check that the copy lacks.
    """
    checks, last = (
        {},
        -1,
    )  # cell of the copy: [(number, Exercise, source)], which replace it or follow it
    for each in exercises:
        source = (
            f"from vlm_lite.labs import check\n{each.name} = globals().get({each.name!r})\n"
            + original[each.check_cell]["source"]
        )
        where = _checks(cells, each)
        if not where:  # after the exercise's cell or, without one, after the check before
            last = max([last, *_places(cells, each)])
            checks.setdefault(last, []).append((None, each, source))
        for k in where:
            checks.setdefault(k, []).append((k + 1, each, source))
            last = max(last, k)
    rows = checks.get(-1, [])
    for k, cell in enumerate(cells):
        replaced = any(number for number, *_ in checks.get(k, []))
        rows = rows + (
            [] if replaced or cell["cell_type"] != "code" else [(k + 1, None, cell["source"])]
        )
        rows = rows + checks.get(k, [])
    if not whole:
        rows = rows[: 1 + max(k for k, row in enumerate(rows) if row[1])]
    return [(number, source) for number, _, source in rows], {
        k: row[1] for k, row in enumerate(rows) if row[1]
    }


def _run(cells, places, folder, seconds, check_seconds, profile, threads):
    """({name: (status, message)}, {cell number: what went wrong}) of running the sources in a fresh kernel."""
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for _, source in cells]
    )
    work = Path(folder, "work")
    work.mkdir()
    environment = {
        **os.environ,
        "VLM_LITE_GRADING": str(check_seconds),
        "VLM_LITE_PROFILE": profile,
        "VLM_LITE_HOME": str(Path(folder, "home")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    client = _client(notebook, work)
    verdicts, problems = {}, {}
    try:
        with client.setup_kernel(env=environment):
            deadline = time.monotonic() + seconds
            for index, (number, _) in enumerate(cells):
                each, left = places.get(index), deadline - time.monotonic()
                if left <= 0:
                    problems[number] = f"not run: the copy had its {seconds:g} seconds"
                    break
                limit = min(left, seconds / 2)
                with _limited(client.km.provisioner.process.pid, limit) as stopped:
                    try:
                        client.execute_cell(notebook.cells[index], index)
                    except CellExecutionError as error:
                        problems[number] = (
                            f"stopped after {limit:.0f} seconds (an endless loop?)"
                            if stopped
                            else _one_line(error.ename, error.evalue)
                        )
                    except DeadKernelError:
                        problems[number] = (
                            f"it did not stop after {limit:.0f} seconds, and nothing after it was run"
                            if stopped
                            else "Python ended here, and nothing after it was run"
                        )
                        break
                if client.left:  # by exit(): the kernel ends after it has answered
                    problems[number] = "Python ended here, and nothing after it was run"
                    break
                if client.printed > MUCH:
                    problems.setdefault(
                        number, f"it printed {client.printed / 1e6:.0f} MB, which were thrown away"
                    )
                if each and client.verdict and client.verdict["name"] == each.check:
                    verdicts[each.name] = (client.verdict["status"], client.verdict["message"])
    except Exception as error:  # the kernel did not start, or its messages made no sense
        problems[None] = f"the run was given up: {_one_line(type(error).__name__, error)}"
    return verdicts, problems


def _client(notebook, work):
    from nbclient import NotebookClient

    class Client(NotebookClient):
        """Keeps of a cell its last verdict, how much it printed and whether it called exit(); none of the output."""

        def start_cell(self, **_):
            self.verdict, self.printed, self.left = None, 0, False

        def end_cell(self, execute_reply, **_):
            said = execute_reply["content"].get("payload") or []
            self.left = any(each.get("source") == "ask_exit" for each in said)

        def process_message(self, msg, cell, cell_index):
            kind, content = msg["msg_type"], msg["content"]
            if kind in ("status", "error", "execute_input"):
                return super().process_message(msg, cell, cell_index)
            self.printed += len(content.get("text", "")) + sum(
                map(len, map(str, content.get("data", {}).values()))
            )
            self.verdict = content.get("data", {}).get(VERDICT, self.verdict)
            return None

    client = Client(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR", "--HistoryManager.enabled=False"],
        resources={"metadata": {"path": str(work)}},
    )
    client.on_cell_start, client.on_cell_executed = client.start_cell, client.end_cell
    return client


@contextlib.contextmanager
def _limited(pid, seconds):
    """Interrupt the process after `seconds`, and end it where that does not help; yields the list of signals sent."""
    stopped = []

    def send(number):
        stopped.append(number)
        with contextlib.suppress(OSError):
            os.kill(pid, number)

    timers = [
        threading.Timer(seconds, send, [signal.SIGINT]),
        threading.Timer(seconds + GRACE, send, [signal.SIGTERM]),
        threading.Timer(seconds + 2 * GRACE, send, [signal.SIGKILL]),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield stopped
    finally:
        for timer in timers:
            timer.cancel()


def _judge(exercise, cells, verdict, problems):
    """(status, message) of one exercise: the check's verdict, or where that says little, what the copy's cell shows."""
    status, message = verdict or ("not run", "the run ended before its check")
    status = STATUS.get(status, status)
    if status == "passed":
        return status, message
    where = _places(cells, exercise)
    if not where:
        return "missing", f"no cell defines {exercise.name}; was its cell deleted?"
    number = where[0] + 1
    try:
        tree = ast.parse(re.sub(r"^[ \t]*[%!].*$", "", cells[where[0]]["source"], flags=re.M))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = (
            f", in line {error.lineno}: `{(error.text or '').strip()}`"
            if getattr(error, "lineno", None)
            else ""
        )
        problems.pop(number, None)
        return (
            "crashed",
            f"{type(error).__name__}: {getattr(error, 'msg', error)}{line} (cell {number})",
        )
    names = _defined(tree)
    if verdict and status == "not attempted" and exercise.name not in names:
        return "missing", (
            f"cell {number} defines {', '.join(sorted(names)) or 'nothing'} and not {exercise.name}; "
            "was it renamed?"
        )
    if status in ("not attempted", "not run") and number in problems:
        return "crashed", f"{problems.pop(number)} (cell {number})"
    return status, message


def _defined(tree):
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return found


def _one_line(kind, message):
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", f"{kind}: {message}").strip().splitlines()
    return (lines or [str(kind)])[0][:300]


# ---- the report


def as_text(report):
    """The report on one copy, as lines to print."""
    head = report["file"]
    if report["exercises"]:
        head += f"  ({report['lab']}): {report['points']} of {report['max_points']} points"
    lines = [head]
    for row in report["exercises"]:
        said = row["status"] + (f": {row['message']}" if row["message"] else "")
        lines.append(
            f"  {MARKS.get(row['status'], '✗')} {row['name']:24} {row['points']}/{row['max_points']}  {said}"
        )
    return "\n".join([*lines, *(f"  ! {problem}" for problem in report["problems"])])


def main(arguments=None):
    """`python -m vlm_lite.labs.grade ORDER REPORT`: grade the one copy that the file ORDER describes."""
    parser = argparse.ArgumentParser(
        description="Grade one copy; `vlm-lite lab grade` starts this for each."
    )
    parser.add_argument("order")
    parser.add_argument("report")
    options = parser.parse_args(arguments)
    order = read_json(options.order)
    write_json(options.report, grade_copy(order.pop("path"), **order))


if __name__ == "__main__":
    main()
