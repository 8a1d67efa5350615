"""Every lab as it is handed out: it runs to its end, its checks wait for an answer, and two graders mark it alike.

Under `smoke`, our grader executes each notebook. nbgrader's own commands release all of them and mark one; `make soak`
has them mark the others too.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools import notebooks
from vlm_lite.labs import build, check
from vlm_lite.labs.grade import grade

LABS = build.labs()
each_lab = pytest.mark.parametrize("name", LABS)
MARKED = "05_evaluation"  # by nbgrader in `make test`
# Filled in one at a time, each answer must make its own check pass and no other. In the notebook's own names; a later
# cell gets what the notebook would go on with, the course's own where an answer is missing.
ONE_AT_A_TIME = """
def passed(sources):
    names, right = dict(globals()), []
    for name, source in sources.items():
        exec(source, names)
        checked = getattr(check, checks[name])
        if checked.verdict(names[name]).status == "right":
            right.append(name)
        else:
            names[name] = checked.reference
    return right


assert passed(empty) == [], passed(empty)
for name in empty:
    assert passed({**empty, name: full[name]}) == [name], passed({**empty, name: full[name]})
"""


def empty_and_full(name):
    """{exercise: the source of its cell} as handed out, and solved."""
    made = build.student(LABS[name][0], name)
    empty = {each.name: made["cells"][each.cell]["source"] for each in LABS[name][1]}
    return empty, {each.name: LABS[name][0]["cells"][each.cell]["source"] for each in LABS[name][1]}


@pytest.fixture(scope="module")
def nbgrader(request, tmp_path_factory):
    """(its folder, its marks) of nbgrader's work on an assignment of all labs: those that a selected test asks for are
    handed in, with the last exercise answered and the first answered wrongly.
    """
    python = Path(sys.prefix + "-grade") / "bin" / "python"
    assert python.exists(), (
        f"{python} is missing: `make test` sets it up (or `python tools/install.py ... --grade`)"
    )
    course = tmp_path_factory.mktemp("nbgrader")
    shutil.copytree(notebooks.ROOT / "notebooks", course / "source" / "labs", ignore=not_a_lab)
    asked = [getattr(each, "callspec", None) for each in request.session.items]
    answers = {}
    for name in {each.params["marked"] for each in asked if each and "marked" in each.params}:
        notebook, found = LABS[name]
        lines = notebook["cells"][found[0].cell]["source"].splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        answers[name] = {
            found[0].grade_id: "\n".join(
                [*imports, f"def {found[0].name}(*arguments):\n    return 'wrong'"]
            ),
            found[-1].grade_id: empty_and_full(name)[1][found[-1].name],
        }
    (course / "answers.json").write_text(json.dumps(answers))
    environment = {
        **os.environ,
        "VLM_LITE_PROFILE": "smoke",
        "PYTHONPATH": str(notebooks.ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, Path(__file__).parent / "nbgrader_course.py", course, course / "answers.json"],
        capture_output=True,
        text=True,
        cwd=course,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return course, json.loads(done.stdout.splitlines()[-1])


def not_a_lab(folder, names):
    """What `shutil.copytree` leaves out."""
    return [name for name in names if name.removesuffix(".ipynb") not in LABS]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What our grader says of each student's copy, run to its end, with a cell after it that tries the answers out."""
    folder = tmp_path_factory.mktemp("handed-in")
    for name, (notebook, found) in LABS.items():
        made = build.student(notebook, name)
        empty, full = empty_and_full(name)
        extra = (
            f"from vlm_lite.labs import check\nempty, full = {empty!r}, {full!r}\n"
            f"checks = { {each.name: each.check for each in found}!r}\n{ONE_AT_A_TIME}"
        )
        code = next(cell for cell in made["cells"] if cell["cell_type"] == "code")
        made["cells"].append(
            {**copy.deepcopy(code), "id": "one-at-a-time", "source": extra, "metadata": {}}
        )
        (folder / f"{name}.ipynb").write_text(build.dumps(made), encoding="utf-8")
    return {report["lab"]: report for report in grade([folder], jobs=2, seconds=1000, whole=True)}


@pytest.mark.slow
@each_lab
def test_a_student_s_copy_runs_to_its_end_and_every_answer_makes_its_own_check_pass(reports, name):
    assert reports[name]["problems"] == []
    assert {row["status"] for row in reports[name]["exercises"]} == {"not attempted"}
    assert [row["name"] for row in reports[name]["exercises"]] == [
        each.name for each in LABS[name][1]
    ]
    assert reports[name]["points"] == 0 and reports[name]["max_points"] > 0


@pytest.mark.parametrize(
    "marked",
    [
        pytest.param(name, marks=pytest.mark.slow if name == MARKED else pytest.mark.soak)
        for name in LABS
    ],
)
def test_nbgrader_gives_the_points_of_the_one_right_answer_and_no_others(nbgrader, marked):
    course, marks = nbgrader
    found = LABS[marked][1]
    wanted = {
        f"{each.grade_id}-check": [each.points * (each is found[-1]), each.points] for each in found
    }
    assert marks[marked] == wanted
    graded = nbformat.read(course / "autograded" / "ada" / "labs" / f"{marked}.ipynb", as_version=4)
    errors = {
        build.mark(cell).get("grade_id"): output.evalue
        for cell in graded.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    }
    assert errors.keys() == {f"{each.grade_id}-check" for each in found[:-1]}
    assert re.match(rf"{found[0].check}: (wrong|crashed): .", errors[f"{found[0].grade_id}-check"])
    assert all(
        errors[f"{each.grade_id}-check"] == f"{each.check}: not attempted" for each in found[1:-1]
    )


@pytest.mark.slow
@each_lab
def test_what_nbgrader_releases_holds_no_solution(nbgrader, name):
    released = build.read(nbgrader[0] / "release" / "labs" / f"{name}.ipynb")
    assert build.leaks(released, *LABS[name]) == []
    for each in LABS[name][1]:
        assert "raise NotImplementedError()" in released["cells"][each.cell]["source"]
        assert callable(getattr(check, each.check))
