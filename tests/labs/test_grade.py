"""The grader: a line for every exercise of every copy, whatever is wrong with the copy, and no copy harms another."""

import copy
import json

import nbformat
import pytest

from vlm_lite import cli
from vlm_lite.files import UserError
from vlm_lite.labs import build
from vlm_lite.labs.grade import as_text, grade, to_run

RECALL = "def recall_at_k(similarity, k):\n    {}"
CLASSES = "def class_embeddings(encode_text, prompts):\n    {}"
RANKS = "ahead = (similarity >= similarity.diagonal()[:, None]).sum(dim=1)\n    return (ahead <= k).float().mean()"
MEANS = "unit = F.normalize\n    return unit(torch.stack([unit(encode_text(p)).mean(0) for p in prompts]))"
TODO = "raise NotImplementedError('later')"
IMPORTS, FIRST, FIRST_CHECK, SECOND, SECOND_CHECK = range(5)  # the cells of the lab below


RIGHT = {FIRST: RECALL.format(RANKS), SECOND: CLASSES.format(MEANS)}
ENDLESS = "while True:\n        try:\n            k\n        except Exception:\n            k"
GONE = "Python ended here, and nothing after it was run (cell 4)"
# What is changed in a right copy (None: deleted), a cell in front; how each exercise's line begins; the copy's problem.
CLASS = {
    "loud": (
        {},
        "for _ in range(40):\n    print(100_000 * 'x')",
        "passed",
        "passed",
        "printed 4 MB",
    ),
    "percent": (
        {
            FIRST: RECALL.format(RANKS + " * 100"),
            SECOND: CLASSES.format(TODO),
            SECOND_CHECK: "class_embeddings = len\nprint('✓ class_embeddings: right.')",
        },
        None,
        "wrong: that is a percentage",
        "not attempted",
        None,
    ),
    "deleted": (
        {FIRST: None, SECOND: CLASSES.format("raise SystemExit")},
        None,
        "missing: no cell defines recall_at_k",
        "crashed: SystemExit: no message, in line 2: `raise SystemExit`",
        None,
    ),
    "renamed": (
        {FIRST: RIGHT[FIRST].replace("recall_at_k", "my_recall"), SECOND_CHECK: None},
        None,
        "missing: cell 2 defines my_recall and not recall_at_k",
        "passed",
        None,
    ),
    "endless": (
        {FIRST: RECALL.format(ENDLESS)},
        None,
        "crashed: it had not ended after 5 seconds",
        "passed",
        None,
    ),
    "syntax": (
        {FIRST: "def recall_at_k(similarity, k)\n    return 1"},
        None,
        "crashed: SyntaxError: expected ':', in line 1: `def recall_at_k(similarity, k)` (cell 2)",
        "passed",
        None,
    ),
    "broken": (
        {FIRST: "x = not_there\n" + RIGHT[FIRST], SECOND: "import os\nos._exit(3)"},
        None,
        "crashed: NameError: name 'not_there' is not defined (cell 2)",
        f"crashed: {GONE}",
        None,
    ),
}


def exercise(name, source, points):
    """The two cells of an exercise: its solution between the marks, and its check."""
    head, body = source.split("\n", 1)
    marks = {"grade_id": name, "solution": True}
    cells = [(f"{head}\n    {build.BEGIN}\n{body}\n    {build.END}", marks)]
    marks = {"grade_id": f"{name}-check", "grade": True, "points": points}
    cells.append((f"{name} = check.{name}({name})\nassert callable({name})", marks))
    return [nbformat.v4.new_code_cell(text, metadata={"nbgrader": each}) for text, each in cells]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A folder with a lab of two exercises, and one of a third."""
    folder = tmp_path_factory.mktemp("course")
    imports = "import torch\nimport torch.nn.functional as F\nfrom vlm_lite.labs import check"
    cells = [nbformat.v4.new_code_cell(imports)]
    cells += exercise("recall_at_k", RIGHT[FIRST], 2) + exercise(
        "class_embeddings", RIGHT[SECOND], 1
    )
    other = exercise("info_nce", "def info_nce(x, y, scale):\n    return 1", 1)
    for name, each in (("98_small", cells), ("99_other", other)):
        nbformat.write(nbformat.v4.new_notebook(cells=each), folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def hand_in(course, tmp_path_factory):
    """hand_in(name, {cell: source, or None to delete it}) writes a copy with these changes and returns its path."""
    folder = tmp_path_factory.mktemp("handed-in")
    notebook = build.student(build.read(course / "98_small.ipynb"), "98_small")

    def write(name, changes, extra=None):
        made, front = copy.deepcopy(notebook), copy.deepcopy(notebook["cells"][0])
        for k, source in changes.items():
            made["cells"][k]["source"] = source
        made["cells"] = [each for each in made["cells"] if each["source"] is not None]
        if extra:
            made["cells"].insert(0, {**front, "id": "extra", "source": extra})
        path = folder / f"{name}.ipynb"
        path.write_text(build.dumps(made), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def reports(course, hand_in):
    """The reports on a whole class, by name, and the statuses of the two exercises in each."""
    for name, (changes, extra, *_) in CLASS.items():
        folder = hand_in(name, RIGHT | changes, extra).parent
    (folder / "letter.ipynb").write_text("Dear teacher, my notebook is lost.")
    poem = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(poem, folder / "poem.ipynb")
    found = grade([folder], notebooks=course, jobs=2, seconds=400, check_seconds=5)
    return {report["file"].rsplit("/")[-1].removesuffix(".ipynb"): report for report in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASS)
def test_each_exercise_of_each_copy_has_its_line(reports, name):
    report, (*_, first, second, problem) = reports[name], CLASS[name]
    said = [f"{row['status']}: {row['message']}".removesuffix(": ") for row in report["exercises"]]
    assert said[0].startswith(first) and said[1].startswith(second), said
    assert [problem in each for each in report["problems"]] == [True] * bool(problem)
    points = [2 * (first == "passed"), 1 * (second == "passed")]
    assert [row["points"] for row in report["exercises"]] == points
    assert (report["points"], report["max_points"]) == (sum(points), 3)
    assert report["lab"] == "98_small"
    for words in said:
        assert words.split(" (cell")[0] in as_text(report)


@pytest.mark.slow
def test_what_is_no_copy_of_a_lab_has_a_line_too(reports):
    assert len(reports) == 9
    assert "letter.ipynb, line 1 column 1: not valid JSON" in reports["letter"]["problems"][0]
    assert "no exercise of any lab here (98_small, 99_other)" in reports["poem"]["problems"][0]
    for name in ("letter", "poem"):
        assert reports[name]["exercises"] == [] and reports[name]["points"] == 0
        assert reports[name]["problems"][0] in as_text(reports[name])


@pytest.mark.slow
def test_the_command_prints_the_lines_writes_json_and_a_stuck_copy_is_ended(
    course, hand_in, tmp_path, capsys
):
    loop = "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
    stuck = hand_in("stuck", {}, extra=loop)
    letter, out = stuck.parent / "nobody.ipynb", tmp_path / "grades.json"
    words = f"lab grade {stuck} {letter} --notebooks {course} --timeout 4 --jobs 2 --json {out}"
    status = cli.main(words.split())
    printed = capsys.readouterr().out
    assert status == 1  # one of them could not be graded at all
    assert "(98_small): 0 of 3 points" in printed and "nobody.ipynb does not exist" in printed
    reports = json.loads(out.read_text())
    assert [row["status"] for row in reports[0]["exercises"]] == ["not run", "not run"]
    assert "cell 1: it did not stop after 2 seconds" in reports[0]["problems"][0]


@pytest.mark.slow
def test_a_copy_of_another_lab_is_told_when_one_lab_is_asked_for(course, hand_in):
    (report,) = grade([hand_in("small", {})], notebooks=course, lab="99_other")
    (problem,) = report["problems"]
    assert "98_small (2 of" in problem and "99_other" in problem and report["exercises"] == []


def test_the_checks_are_put_back_where_they_stood_and_after_their_exercise_where_they_are_gone(
    course,
):
    master = build.read(course / "98_small.ipynb")
    found = build.exercises(master)
    made = copy.deepcopy(master["cells"])
    made[FIRST_CHECK]["source"] = "recall_at_k = check.recall_at_k(check.recall_at_k.reference)"
    del made[SECOND_CHECK]
    rows, places = to_run(made, master["cells"], found)
    assert [number for number, _ in rows] == [1, 2, 3, 4, None]
    names = ["recall_at_k", "class_embeddings"]
    assert list(places) == [2, 4] and [each.name for each in places.values()] == names
    assert rows[2][1].endswith(master["cells"][FIRST_CHECK]["source"])
    assert "reference" not in rows[2][1]
    rows, places = to_run([], master["cells"], found)
    assert len(rows) == 2 and [each.name for each in places.values()] == names


def test_the_metadata_may_be_lost_on_the_way(course):
    master = build.read(course / "98_small.ipynb")
    made = copy.deepcopy(master["cells"])
    for cell in made:
        cell["metadata"] = {}
    assert [len(x) for x in to_run(made, master["cells"], build.exercises(master))] == [5, 2]


def test_what_the_teacher_asks_for_wrongly_is_refused(course, tmp_path):
    with pytest.raises(UserError, match="'97' .* 98_small, 99_other"):
        grade([tmp_path / "x.ipynb"], notebooks=course, lab="97")
    with pytest.raises(UserError, match="holds no .ipynb file"):
        grade([tmp_path], notebooks=course)


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["exit()", "quit()", "get_ipython().ask_exit()"])
def test_the_cell_in_which_python_ended_is_named(course, hand_in, leave):
    path = hand_in("left", {FIRST: RECALL.format(RANKS) + f"\n{leave}"})
    (report,) = grade([path], notebooks=course)
    first, second = report["exercises"]
    assert first["message"] == "Python ended here, and nothing after it was run (cell 2)"
    assert (first["status"], second["status"]) == ("crashed", "not run")
    path = hand_in("left_at_once", {}, extra=leave)
    (report,) = grade([path], notebooks=course)
    assert report["problems"] == ["cell 1: Python ended here, and nothing after it was run"]
