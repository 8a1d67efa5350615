"""Make labs of a notebook: the student's copy, the solved copy, and the rubric.

An exercise is a code cell with nbgrader's `solution: true`, whose answer stands between `### BEGIN SOLUTION` and
`### END SOLUTION`; its check is the cell with `grade: true` and the id of the exercise followed by `-check`, which
holds `name = check.name(name)`. Title, difficulty and minutes stand in the text before: `**Exercise 1: cosines.** ★☆☆ 3
minutes.` Nothing is listed by hand, so a new notebook needs no change here. Notebooks are plain dicts of their JSON.
"""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from vlm_lite.files import UserError, atomic_write, read_json

LARGEST = 20_000_000  # bytes; a notebook that is larger than this is not read
SHORTEST, LONG = (
    12,
    40,
)  # characters of a solution's line: shorter ones tell nothing, longer ones tell by themselves
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
REGION = re.compile(rf"^([ \t]*){BEGIN}[^\n]*\n(.*?)^[ \t]*{END}[^\n]*$", flags=re.M | re.S)
CALL = re.compile(r"^(\w+) = check\.(\w+)\(", flags=re.M)
HEADING = re.compile(r"\*\*Exercise\b\s*([^*]*?)[.:]?\*\*\s*([★☆]*)[^\n]*?(?:(\d+) minutes?)?[.\n]")
BADGE = re.compile(
    r"https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/(.+?)/notebooks/"
)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook. `cell` and `check_cell` are the places of its two cells, counted from 0."""

    name: str  # the variable that the learner defines and the check receives
    check: str  # the check's name in vlm_lite.labs.check
    grade_id: str
    points: int
    title: str
    stars: str
    minutes: int
    cell: int
    check_cell: int


# ---- reading


def read(path):
    """The notebook in the file `path`, as a dict whose sources are strings. Raises UserError where it is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist or is not a file. Name a notebook, a file that ends in .ipynb; to "
            "grade, a folder of them will do."
        )
    if path.stat().st_size > LARGEST:
        raise UserError(
            f"{path} has {path.stat().st_size / 1e6:.0f} MB; a notebook of at most {LARGEST / 1e6:.0f} MB "
            "is expected. Clear its outputs and save it again."
        )
    notebook = read_json(path)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or notebook.get("nbformat") != 4:
        raise UserError(
            f"{path} is not a notebook of format 4 (no list of cells in it, or another format). Save it as "
            ".ipynb from Jupyter or Colab."
        )
    for number, cell in enumerate(cells, start=1):
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = cell["source"] = "".join(source)
        metadata = cell.setdefault("metadata", {}) if isinstance(source, str) else None
        if not isinstance(metadata, dict) or cell.get("cell_type") not in (
            "code",
            "markdown",
            "raw",
        ):
            raise UserError(
                f"{path}, cell {number}: not a notebook cell (its source, type or metadata is no such "
                "thing). Save the notebook again from Jupyter or Colab."
            )
    return notebook


def mark(cell):
    """The cell's nbgrader metadata, a dict; {} where it has none."""
    found = cell["metadata"].get("nbgrader")
    return found if isinstance(found, dict) else {}


def exercises(notebook, name="the notebook"):
    """The Exercises of a notebook, in order; [] when it has none.

    Raises UserError naming the cell when an exercise has no solution, no check, no points, or an id used twice.
    """
    cells, found, seen = notebook["cells"], [], set()
    checks = {
        mark(cell).get("grade_id"): k for k, cell in enumerate(cells) if mark(cell).get("grade")
    }
    text = ""
    for k, cell in enumerate(cells):
        grade_id, where = mark(cell).get("grade_id"), f"{name}, cell {k + 1}"
        if cell["cell_type"] == "markdown":
            text = cell["source"] if "**Exercise" in cell["source"] else text
        if grade_id in seen:
            raise UserError(
                f"{where}: the grade_id {grade_id} stands twice. Give each cell its own."
            )
        seen |= {grade_id} - {None}
        if not mark(cell).get("solution") or mark(cell).get("grade"):
            if BEGIN in cell["source"]:
                raise UserError(
                    f"{where}: {BEGIN} in a cell that nbgrader's metadata does not call a solution. Add "
                    '"solution": true, or take the mark out.'
                )
            continue
        if not REGION.search(cell["source"]):
            raise UserError(
                f"{where}: {grade_id} has no {BEGIN} and {END} around its answer. Add them."
            )
        at = checks.get(f"{grade_id}-check")
        call = CALL.search(cells[at]["source"]) if at is not None and at > k else None
        if call is None or not mark(cells[at]).get("points"):
            raise UserError(
                f"{where}: {grade_id} needs a cell after it with the grade_id {grade_id}-check, points, "
                f"and the line `{grade_id} = check.{grade_id}({grade_id})`."
            )
        heading = (list(HEADING.finditer(text)) or [None])[-1]
        title, stars, minutes = heading.groups() if heading else (grade_id, "", None)
        found.append(
            Exercise(
                call[1],
                call[2],
                grade_id,
                mark(cells[at])["points"],
                " ".join(title.split()) or grade_id,
                stars,
                int(minutes or 0),
                k,
                at,
            )
        )
    return found


def notebooks_folder(folder=None):
    """The folder of the course's notebooks: `folder`, or that of the clone this package runs from."""
    folder = Path(folder) if folder else Path(__file__).resolve().parents[2] / "notebooks"
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist. The notebooks are not part of the installed package: run this in a "
            "clone of the repository, or name their folder with --notebooks."
        )
    return folder


def labs(folder=None):
    """{name: (notebook, [Exercise, ...])} of every notebook in the folder that has exercises, by name."""
    found = {
        path.stem: read(path)
        for path in sorted(notebooks_folder(folder).glob("[0-9][0-9]*_*.ipynb"))
    }
    known = {name: (notebook, exercises(notebook, name)) for name, notebook in found.items()}
    return {name: pair for name, pair in known.items() if pair[1]}


# ---- making


def student(notebook, name, siblings=()):
    """The student's copy of the notebook called `name`: no solution, no output, nothing that pairs it with a source.

    siblings: names of the notebooks that have a student's copy, so that links lead there and to no solved notebook.
    Raises UserError when a line of a solution is still to be found in the copy.
    """
    found = _with_exercises(notebook, name)
    made = _unpaired(notebook, name)
    for cell in made["cells"]:
        cell.pop("attachments", None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    for each in found:
        cell = made["cells"][each.cell]
        cell["source"] = REGION.sub(
            lambda match, each=each: match[1] + _stub(each, match[1]), cell["source"]
        )
    badge = BADGE.search(made["cells"][0]["source"])
    if badge:
        first = made["cells"][0]  # of the two badges, the one that opens this copy
        first["source"] = re.sub(r"^Read it: .*?(?=Do the exercises)", "", first["source"])
        for cell in made["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = _links(cell["source"], *badge.groups(), {name, *siblings})
    if made["cells"][0]["cell_type"] == "markdown":
        made["cells"][0]["source"] += "\n\n" + _welcome(found)
    left = leaks(made, notebook, found)
    if left:
        raise UserError(
            f"{name}: the student's copy would still hold a line of a solution: {left[0]!r}. Take it out "
            "of the text around the exercise, or write one of the two in another way."
        )
    return made


def solution(notebook, name):
    """The solved copy: answers and outputs kept, the marks around the answers gone, unpaired."""
    _with_exercises(notebook, name)
    made = _unpaired(notebook, name)
    for cell in made["cells"]:
        cell["source"] = REGION.sub(lambda match: match[2].rstrip("\n"), cell["source"])
    return made


def rubric(notebook, name):
    """The rubric in Markdown: exercises, points, minutes, difficulty, and what each check looks for."""
    from vlm_lite.labs import check

    found = _with_exercises(notebook, name)
    rows = [
        f"## {name}",
        "",
        "| exercise | function | points | difficulty | minutes | the check |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        looks = " ".join((getattr(check, each.check).__doc__ or "").split())
        rows.append(
            f"| {each.title} | `{each.name}` | {each.points} | {each.stars} | {each.minutes} | {looks} |"
        )
    rows.append(
        f"| together | | {sum(each.points for each in found)} | | {sum(each.minutes for each in found)} | |"
    )
    return "\n".join(rows) + "\n"


def build_all(folder, source=None):
    """Write the student's copy of every lab, and their rubric, to `folder`; returns {path: text} of what is there."""
    known = labs(source)
    texts = {
        f"{name}.ipynb": dumps(student(notebook, name, known))
        for name, (notebook, _) in known.items()
    }
    parts = [rubric(notebook, name) for name, (notebook, _) in known.items()]
    texts["RUBRIC.md"] = "\n".join(
        ["# What the labs ask for, and what each check looks for\n", *parts]
    )
    for name, text in texts.items():
        write(Path(folder) / name, text)
    return {Path(folder) / name: text for name, text in texts.items()}


def leaks(made, notebook, found):
    """The lines of the solutions, comments apart, that stand anywhere in the copy: text, metadata or attachments.

    A long line counts by itself, unless another code cell gives it away on purpose (as a function with a bug to be
    spotted does); shorter ones, which many a cell may hold, where all of a solution's are there.
    """
    text, left = json.dumps(made, ensure_ascii=False), []
    given = "\n".join(
        REGION.sub("", cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    )
    for each in found:
        for match in REGION.finditer(notebook["cells"][each.cell]["source"]):
            lines = [re.sub(r"\s+#.*$", "", line).strip() for line in match[2].splitlines()]
            lines = [line for line in lines if len(line) >= SHORTEST] or [
                line for line in lines if line
            ]
            there = [line for line in lines if json.dumps(line, ensure_ascii=False)[1:-1] in text]
            left += (
                there
                if len(there) == len(lines)
                else [line for line in there if len(line) >= LONG and line not in given]
            )
    return left


def dumps(notebook):
    """The text of a notebook's file, as Jupyter writes it."""
    made = copy.deepcopy(notebook)
    for cell in made["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(path, text):
    """Write `text` to `path`, whole or not at all, unless it is there already."""
    path = Path(path)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path, "w") as file:
            file.write(text)


def _with_exercises(notebook, name):
    found = exercises(notebook, name)
    if not found:
        raise UserError(
            f"{name} has no exercises, so there is no lab in it. An exercise is a cell with nbgrader's "
            f'"solution": true and {BEGIN} and {END} around the answer.'
        )
    return found


def _unpaired(notebook, name):
    made = copy.deepcopy(notebook)
    kept = {
        key: made["metadata"][key]
        for key in ("accelerator", "colab", "kernelspec")
        if key in made["metadata"]
    }
    made["metadata"] = {**kept, "language_info": {"name": "python"}, "vlm_lite": {"lab": name}}
    for cell in made["cells"]:
        cell["metadata"] = {
            k: v for k, v in cell["metadata"].items() if k in ("tags", "nbgrader", "cellView")
        }
    return made


def _stub(exercise, indent):
    todo = f"Exercise {exercise.title}: write {exercise.name} here".replace("\\", "").replace(
        '"', "'"
    )
    if not indent:  # outside a function: an error here would end the cell, so the name gets Python's "nothing yet"
        return f"{exercise.name} = ...  # {todo}"
    return f'raise NotImplementedError("{todo}")'


def _links(text, slug, ref, with_copy):
    """Relative links made absolute, those to notebooks leading to Colab, to the student's copy where there is one."""
    colab = f"https://colab.research.google.com/github/{slug}/blob/{ref}/"

    def absolute(match):
        target = match[1]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path = urljoin("notebooks/", target)
        stem = re.fullmatch(r"notebooks/(\w+)\.ipynb(#.*)?", path)
        if stem:
            return f"]({colab}{'labs' if stem[1] in with_copy else 'notebooks'}/{stem[1]}.ipynb{stem[2] or ''})"
        return f"](https://github.com/{slug}/blob/{ref}/{path})"

    text = re.sub(
        rf"({re.escape(colab)})notebooks/(\w+)\.ipynb",
        lambda match: (
            f"{match[1]}{'labs' if match[2] in with_copy else 'notebooks'}/{match[2]}.ipynb"
        ),
        text,
    )
    return re.sub(r"\]\(([^)\s]+)\)", absolute, text)


def _welcome(found):
    return (
        f"**A lab: {len(found)} exercises, {sum(each.points for each in found)} points, about "
        f"{sum(each.minutes for each in found)} minutes of writing.** In each, replace the line with "
        "`NotImplementedError` by your code, then run the check below it: it says what is wrong. What you leave "
        "out is taken from vlm_lite, so the whole notebook runs at any time."
    )
