"""Every lab as it is handed out: it runs to its end, its checks wait for an answer, and two graders mark it alike.

Under `smoke`, each notebook is executed twice: once by our grader, once by nbgrader's own commands, at the same time.
"""

import copy
import json
import os
import re
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
def nbgrader(tmp_path_factory):
    """nbgrader at work on an assignment of all labs; the last exercise of each is answered, the first wrongly."""
    python = Path(sys.prefix + "-grade") / "bin" / "python"
    assert python.exists(), (
        f"{python} is missing: `make test` sets it up (or `python tools/install.py ... --grade`)"
    )
    course = tmp_path_factory.mktemp("nbgrader")
    answers = {}
    for name, (notebook, found) in LABS.items():
        lines = notebook["cells"][found[0].cell]["source"].splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        target = course / "source" / "labs" / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((notebooks.ROOT / "notebooks" / target.name).read_bytes())
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
    with open(course / "log", "w") as log:
        process = subprocess.Popen(
            [python, Path(__file__).parent / "nbgrader_course.py", course, course / "answers.json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=course,
            env=environment,
        )
    yield course, process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def reports(nbgrader, tmp_path_factory):
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
    return {report["lab"]: report for report in grade([folder], jobs=1, seconds=1000, whole=True)}


@pytest.fixture(scope="module")
def marks(nbgrader, reports):
    course, process = nbgrader
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, (course / "log").read_text()[-3000:]
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
@each_lab
def test_a_student_s_copy_runs_to_its_end_and_every_answer_makes_its_own_check_pass(reports, name):
    assert reports[name]["problems"] == []
    assert {row["status"] for row in reports[name]["exercises"]} == {"not attempted"}
    assert [row["name"] for row in reports[name]["exercises"]] == [
        each.name for each in LABS[name][1]
    ]
    assert reports[name]["points"] == 0 and reports[name]["max_points"] > 0


@pytest.mark.slow
@each_lab
def test_nbgrader_gives_the_points_of_the_one_right_answer_and_no_others(marks, nbgrader, name):
    found = LABS[name][1]
    wanted = {
        f"{each.grade_id}-check": [each.points * (each is found[-1]), each.points] for each in found
    }
    assert marks[name] == wanted
    graded = nbformat.read(
        nbgrader[0] / "autograded" / "ada" / "labs" / f"{name}.ipynb", as_version=4
    )
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
def test_what_nbgrader_releases_holds_no_solution(marks, nbgrader, name):
    released = build.read(nbgrader[0] / "release" / "labs" / f"{name}.ipynb")
    assert build.leaks(released, *LABS[name]) == []
    for each in LABS[name][1]:
        assert "raise NotImplementedError()" in released["cells"][each.cell]["source"]
        assert callable(getattr(check, each.check))
