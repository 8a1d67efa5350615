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


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A folder with a lab of two exercises."""
    folder = tmp_path_factory.mktemp("course")
    cells = [
        nbformat.v4.new_code_cell(
            "import torch\nimport torch.nn.functional as F\nfrom vlm_lite.labs import check"
        )
    ]
    for name, source, points in (
        ("recall_at_k", RECALL.format(RANKS), 2),
        ("class_embeddings", CLASSES.format(MEANS), 1),
    ):
        head, body = source.split("\n", 1)
        marked = f"{head}\n    {build.BEGIN}\n{body}\n    {build.END}"
        cells.append(
            nbformat.v4.new_code_cell(
                marked, metadata={"nbgrader": {"grade_id": name, "solution": True}}
            )
        )
        cells.append(
            nbformat.v4.new_code_cell(
                f"{name} = check.{name}({name})\nassert callable({name})",
                metadata={
                    "nbgrader": {"grade_id": f"{name}-check", "grade": True, "points": points}
                },
            )
        )
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "98_small.ipynb")
    other = nbformat.v4.new_notebook(cells=cells[3:])
    other.cells[0].source = other.cells[0].source.replace("class_embeddings", "info_nce")
    other.cells[1].source = "info_nce = check.info_nce(info_nce)"
    for cell in other.cells:
        marked = cell.metadata.nbgrader
        marked.grade_id = marked.grade_id.replace("class_embeddings", "info_nce")
    nbformat.write(other, folder / "99_other.ipynb")
    return folder


@pytest.fixture(scope="module")
def hand_in(course, tmp_path_factory):
    """hand_in(name, {cell: source, or None to delete it}) writes a copy with these changes and returns its path."""
    folder = tmp_path_factory.mktemp("handed-in")
    notebook = build.student(build.read(course / "98_small.ipynb"), "98_small")

    def write(name, changes, extra=None):
        made = copy.deepcopy(notebook)
        for k, source in changes.items():
            made["cells"][k]["source"] = source or ""
        made["cells"] = [
            cell for k, cell in enumerate(made["cells"]) if changes.get(k, "") is not None
        ]
        if extra:
            made["cells"].insert(
                0, {**copy.deepcopy(notebook["cells"][0]), "id": "extra", "source": extra}
            )
        path = folder / f"{name}.ipynb"
        path.write_text(build.dumps(made), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def reports(course, hand_in):
    """The reports on a whole class, by name, and the statuses of the two exercises in each."""
    right = {FIRST: RECALL.format(RANKS), SECOND: CLASSES.format(MEANS)}
    hand_in("loud", right, extra="for _ in range(40):\n    print(100_000 * 'x')")
    hand_in(
        "percent",
        {
            FIRST: RECALL.format(RANKS + " * 100"),
            SECOND: CLASSES.format(TODO),
            SECOND_CHECK: "class_embeddings = len\nprint('✓ class_embeddings: right.')",
        },
    )
    hand_in("deleted", {FIRST: None, SECOND: CLASSES.format("raise SystemExit")})
    hand_in(
        "renamed",
        {
            FIRST: RECALL.format(RANKS).replace("recall_at_k", "my_recall"),
            SECOND: CLASSES.format(MEANS),
            SECOND_CHECK: None,
        },
    )
    hand_in(
        "endless",
        {
            **right,
            FIRST: RECALL.format(
                "while True:\n        try:\n            k\n        except Exception:\n            k"
            ),
        },
    )
    hand_in("syntax", {**right, FIRST: "def recall_at_k(similarity, k)\n    return 1"})
    path = hand_in(
        "broken",
        {FIRST: "x = not_there\n" + RECALL.format(RANKS), SECOND: "import os\nos._exit(3)"},
    )
    (path.parent / "letter.ipynb").write_text("Dear teacher, my notebook is lost.")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]),
        path.parent / "poem.ipynb",
    )
    found = grade([path.parent], notebooks=course, jobs=2, seconds=400, check_seconds=5)
    return {report["file"].rsplit("/")[-1].removesuffix(".ipynb"): report for report in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, first, second, problem",
    [
        ("loud", "passed", "passed", "cell 1: it printed 4 MB, which were thrown away"),
        (
            "percent",
            "wrong: that is a percentage; a fraction in 0..1 is wanted",
            "not attempted",
            None,
        ),
        (
            "deleted",
            "missing: no cell defines recall_at_k; was its cell deleted?",
            "crashed: SystemExit: no message, in line 2: `raise SystemExit`",
            None,
        ),
        (
            "renamed",
            "missing: cell 2 defines my_recall and not recall_at_k; was it renamed?",
            "passed",
            None,
        ),
        (
            "endless",
            "crashed: it had not ended after 5 seconds (an endless loop?), in line ",
            "passed",
            None,
        ),
        (
            "syntax",
            "crashed: SyntaxError: expected ':', in line 1: `def recall_at_k(similarity, k)` (cell 2)",
            "passed",
            None,
        ),
        (
            "broken",
            "crashed: NameError: name 'not_there' is not defined (cell 2)",
            "crashed: Python ended here, and nothing after it was run (cell 4)",
            None,
        ),
    ],
)
def test_each_exercise_of_each_copy_has_its_line(reports, name, first, second, problem):
    report = reports[name]
    said = [f"{row['status']}: {row['message']}".removesuffix(": ") for row in report["exercises"]]
    assert said[0].startswith(first) and said[1].startswith(second), said
    assert report["problems"] == ([problem] if problem else [])
    passed = [first == "passed", second == "passed"]
    assert [row["points"] for row in report["exercises"]] == [2 * passed[0], 1 * passed[1]]
    assert (report["points"], report["max_points"], report["lab"]) == (
        2 * passed[0] + passed[1],
        3,
        "98_small",
    )
    for words in said:
        assert words.split(" (cell")[0] in as_text(report)


@pytest.mark.slow
def test_what_is_no_copy_of_a_lab_has_a_line_too(reports):
    assert len(reports) == 9
    assert "letter.ipynb, line 1 column 1: not valid JSON" in reports["letter"]["problems"][0]
    assert reports["poem"]["problems"] == [
        "it holds no exercise of any lab here (98_small, 99_other): is it another notebook?"
    ]
    for name in ("letter", "poem"):
        assert reports[name]["exercises"] == [] and reports[name]["points"] == 0
        assert reports[name]["problems"][0] in as_text(reports[name])


@pytest.mark.slow
def test_the_command_prints_the_lines_writes_json_and_a_stuck_copy_is_ended(
    course, hand_in, tmp_path, capsys
):
    stuck = hand_in(
        "stuck",
        {},
        extra="while True:\n    try:\n        while True:\n            pass\n"
        "    except BaseException:\n        pass",
    )
    letter = stuck.parent / "nobody.ipynb"
    status = cli.main(
        [
            "lab",
            "grade",
            str(stuck),
            str(letter),
            "--notebooks",
            str(course),
            "--timeout",
            "4",
            "--jobs",
            "2",
            "--json",
            str(tmp_path / "grades.json"),
        ]
    )
    printed = capsys.readouterr().out
    assert status == 1  # one of them could not be graded at all
    assert "(98_small): 0 of 3 points" in printed and "nobody.ipynb does not exist" in printed
    reports = json.loads((tmp_path / "grades.json").read_text())
    assert [row["status"] for row in reports[0]["exercises"]] == ["not run", "not run"]
    assert reports[0]["problems"] == [
        "cell 1: it did not stop after 2 seconds, and nothing after it was run"
    ]


@pytest.mark.slow
def test_a_copy_of_another_lab_is_told_when_one_lab_is_asked_for(course, hand_in):
    (report,) = grade([hand_in("small", {})], notebooks=course, lab="99_other")
    assert report["problems"] == [
        "it is a copy of 98_small (2 of its exercises are there); a copy of 99_other is expected"
    ]
    assert report["exercises"] == []


def test_the_checks_are_put_back_where_they_stood_and_after_their_exercise_where_they_are_gone(
    course,
):
    master = build.read(course / "98_small.ipynb")
    found = build.exercises(master)
    made = copy.deepcopy(master["cells"])
    made[FIRST_CHECK]["source"] = "recall_at_k = check.recall_at_k(check.recall_at_k.reference)"
    del made[SECOND_CHECK]
    rows, places = to_run(made, master["cells"], found)
    assert [number for number, _ in rows] == [1, 2, 3, 4, None] and {
        k: e.name for k, e in places.items()
    } == {2: "recall_at_k", 4: "class_embeddings"}
    assert "reference" not in rows[2][1] and rows[2][1].endswith(
        master["cells"][FIRST_CHECK]["source"]
    )
    rows, places = to_run([], master["cells"], found)
    assert len(rows) == 2 and [each.name for each in places.values()] == [
        "recall_at_k",
        "class_embeddings",
    ]


def test_the_metadata_may_be_lost_on_the_way(course):
    master = build.read(course / "98_small.ipynb")
    made = copy.deepcopy(master["cells"])
    for cell in made:
        cell["metadata"] = {}
    assert [len(x) for x in to_run(made, master["cells"], build.exercises(master))] == [5, 2]


def test_what_the_teacher_asks_for_wrongly_is_refused(course, tmp_path):
    with pytest.raises(
        UserError, match="there is no lab '97' in .*; there are: 98_small, 99_other"
    ):
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
