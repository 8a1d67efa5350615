"""Labs made of notebooks: the student's copy holds no answer and is not stale, and a faulty notebook is refused."""

import copy
import json
from pathlib import Path

import nbformat
import pytest

from tools import notebooks
from vlm_lite import cli
from vlm_lite.files import UserError
from vlm_lite.labs import build, check
from vlm_lite.labs.commands import EXAMPLES

LABS = build.labs()
each_lab = pytest.mark.parametrize("name", LABS)


@pytest.fixture
def notebook(name):
    return copy.deepcopy(LABS[name][0])


@pytest.fixture
def small(tmp_path):
    """A notebook with one exercise, and its parts to damage."""
    answer = f"    {build.BEGIN}\n    return the_answer_of_this_one(similarity)\n    {build.END}"
    new, marks = nbformat.v4.new_code_cell, {"grade_id": "recall_at_k", "solution": True}
    written = new(f"def recall_at_k(similarity, k):\n{answer}", metadata={"nbgrader": marks})
    marks = {"grade_id": "recall_at_k-check", "grade": True, "points": 2}
    checked = new("recall_at_k = check.recall_at_k(recall_at_k)", metadata={"nbgrader": marks})
    title = nbformat.v4.new_markdown_cell("**Exercise 1: recall.** ★★☆ 5 minutes. Do it.")
    notebook = nbformat.v4.new_notebook(cells=[title, written, checked])
    nbformat.write(notebook, tmp_path / "99.ipynb")
    return build.read(tmp_path / "99.ipynb")


def test_the_labs_are_the_notebooks_with_exercises_whatever_they_are():
    with_exercises = {
        source.stem for source in notebooks.sources() if build.BEGIN in source.read_text("utf-8")
    }
    assert set(LABS) == with_exercises and len(LABS) >= 2


def test_the_copies_in_the_folder_labs_are_those_of_today(tmp_path):
    wanted = {path.name: text for path, text in build.build_all(tmp_path).items()}
    there = {
        path.name: path.read_text(encoding="utf-8") for path in (notebooks.ROOT / "labs").iterdir()
    }
    assert (
        there.keys() == wanted.keys()
        and {name for name in wanted if wanted[name] != there[name]} == set()
    ), "labs/ is stale: run `make notebooks`, and commit it"


@each_lab
def test_outputs_and_measurements_do_not_make_a_copy_stale_but_text_and_code_do(name, notebook):
    before = build.dumps(build.student(notebook, name))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], 1
    notebook["metadata"]["vlm_lite"] = {"seconds": 1, "outputs_of": "another"}
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.99"}
    assert build.dumps(build.student(notebook, name)) == before
    notebook["cells"][2]["source"] += "."
    assert build.dumps(build.student(notebook, name)) != before


@each_lab
def test_a_student_s_copy_is_a_valid_notebook_without_outputs_or_pairing_and_all_else_is_there(
    name, notebook
):
    made = build.student(notebook, name, LABS)
    nbformat.validate(nbformat.from_dict(made))
    assert "jupytext" not in json.dumps(made["metadata"]) and made["metadata"]["vlm_lite"] == {
        "lab": name
    }
    assert not any(cell.get("outputs") or cell.get("attachments") for cell in made["cells"])
    changed = {each.cell for each in LABS[name][1]}
    for k, (mine, theirs) in enumerate(zip(made["cells"], notebook["cells"], strict=True)):
        assert mine["cell_type"] == "markdown" or k in changed or mine["source"] == theirs["source"]
        assert (k in changed) == ("NotImplementedError(" in mine["source"])
    ids = [build.mark(cell)["grade_id"] for cell in made["cells"] if build.mark(cell)]
    assert len(ids) == len(set(ids)) == 2 * len(changed)


@each_lab
def test_no_part_of_a_solution_is_anywhere_in_a_student_s_copy(name):
    text = (notebooks.ROOT / "labs" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in text and build.leaks(json.loads(text), *LABS[name]) == []
    for each in LABS[name][1]:
        region = build.REGION.search(LABS[name][0]["cells"][each.cell]["source"])[2]
        assert region.strip() and json.dumps(region)[1:-1] not in text


@each_lab
def test_a_student_s_copy_opens_at_its_own_badge_and_its_links_lead_to_copies_and_files(
    name, notebook
):
    made = build.student(notebook, name, LABS)
    slug, ref = notebooks.repository()
    colab = f"https://colab.research.google.com/github/{slug}/blob/{ref}/"
    assert made["cells"][0]["source"].count(colab) == 1
    assert f"]({colab}labs/{name}.ipynb)" in made["cells"][0]["source"]
    text = "\n".join(cell["source"] for cell in made["cells"] if cell["cell_type"] == "markdown")
    for line in text.split("]("):
        target = line.split(")")[0]
        if target.startswith((colab, f"https://github.com/{slug}/")):
            path = target.split(f"/blob/{ref}/")[1].split("#")[0]
            assert (notebooks.ROOT / path).is_file(), path
            assert Path(path).stem not in LABS or path.startswith("labs/")
    assert "](0" not in text and "](../" not in text


@each_lab
def test_a_solved_copy_has_the_answers_and_the_outputs_and_no_marks(name, notebook):
    made = build.solution(notebook, name)
    nbformat.validate(nbformat.from_dict(made))
    assert "SOLUTION" not in json.dumps(made) and "jupytext" not in made["metadata"]
    mine, theirs = ([cell.get("outputs") for cell in each["cells"]] for each in (made, notebook))
    assert mine == theirs
    for each in LABS[name][1]:
        compile(made["cells"][each.cell]["source"], name, "exec")
        assert "return" in made["cells"][each.cell]["source"]


@each_lab
def test_the_rubric_has_every_exercise_with_its_points_and_what_its_check_looks_for(name, notebook):
    text, found = build.rubric(notebook, name), LABS[name][1]
    for each in found:
        row = next(line for line in text.splitlines() if f"| `{each.name}` |" in line)
        assert f"| {each.points} | {each.stars} | {each.minutes} | " in row
        assert " ".join(getattr(check, each.check).__doc__.split()) in row
    assert f"| together | | {sum(each.points for each in found)} |" in text


def test_an_answer_outside_a_function_becomes_a_name_with_nothing_in_it_yet(small):
    small["cells"][1]["source"] = (
        f"{build.BEGIN}\nrecall_at_k = the_answer_of_this_one\n{build.END}"
    )
    assert build.student(small, "99")["cells"][1]["source"] == (
        "recall_at_k = ...  # Exercise 1: recall: write recall_at_k here"
    )


def test_a_solution_that_is_also_told_elsewhere_is_refused(small):
    small["cells"][0]["source"] += " Hint: return the_answer_of_this_one(similarity)"
    with pytest.raises(UserError, match="99: .*'return the_an"):
        build.student(small, "99")


FAULTS = {
    "99, cell 2: recall_at_k needs .* recall_at_k-check": lambda cells: cells.pop(2),
    "99, cell 2: recall_at_k needs": lambda cells: cells.reverse(),
    "99, cell 4: the grade_id recall_at_k": lambda cells: cells.append(cells[1]),
    "needs .* points": lambda cells: cells[2]["metadata"]["nbgrader"].pop("points"),
    "no ### BEGIN": lambda cells: cells[1].update(source="def recall_at_k():\n    pass"),
    "cell 2: ### BEGIN": lambda cells: cells[1]["metadata"].clear(),
    "99 has no exercises": lambda cells: cells.clear(),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_faulty_notebook_is_refused_by_the_cell(small, message):
    FAULTS[message](small["cells"])
    with pytest.raises(UserError, match=message):
        build.student(small, "99")


@pytest.mark.parametrize(
    "text, message",
    [
        ("hello", "line 1 column 1"),
        ("[]", "format 4"),
        ('{"nbformat": 3, "worksheets": []}', "format 4"),
        ("[" * 100_000, "recursion"),
        ('{"nbformat": 4, "cells": [{"cell_type": "code", "source": 3}]}', "cell 1"),
        ('{"nbformat": 4, "cells": [7]}', "cell 1"),
        (
            '{"nbformat": 4, "cells": [{"cell_type": "code", "source": "", "metadata": []}]}',
            "cell 1",
        ),
        (None, "does not exist"),
        (" " * (build.LARGEST + 1), "at most 20 MB"),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_notebook_is_refused_by_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "lab.ipynb").write_text(text)
    with pytest.raises(UserError, match=f"lab.ipynb.*{message}"):
        build.read(tmp_path / "lab.ipynb")


# ---------------------------------------------------------------- the commands


def test_the_commands_write_and_print_what_they_make(tmp_path, capsys):
    name = next(iter(LABS))
    source = f"{notebooks.ROOT}/notebooks/{name}.ipynb"

    def lab(action, *words):
        assert cli.main(["lab", action, *map(str, words)]) == 0

    lab("student", source, "-o", tmp_path / "lab.ipynb")
    there = notebooks.ROOT / "labs" / f"{name}.ipynb"
    assert (tmp_path / "lab.ipynb").read_text() == there.read_text()
    lab("solution", source, "-o", tmp_path / "solved.ipynb")
    assert "NotImplementedError(" not in (tmp_path / "solved.ipynb").read_text()
    capsys.readouterr()
    lab("rubric", source)
    assert capsys.readouterr().out == build.rubric(LABS[name][0], name)
    lab("all", "-o", tmp_path / "all")
    made = {path.name for path in (tmp_path / "all").iterdir()}
    assert made == {"RUBRIC.md", *(f"{n}.ipynb" for n in LABS)}


@pytest.mark.parametrize("action", EXAMPLES)
def test_help_has_an_example_that_the_command_understands(action, capsys):
    with pytest.raises(SystemExit):
        cli.main(["lab", action, "--help"])
    shown = capsys.readouterr().out.split("example:\n")[1]
    words = shown.split("\n\n")[0].split()
    assert (
        words[:3] == ["vlm-lite", "lab", action]
        and cli.build_parser().parse_args(words[1:]).action == action
    )
    assert ("code that your students wrote, with your rights" in shown) == (action == "grade")


def test_the_commands_refuse_what_is_no_lab_with_status_2(tmp_path, capsys):
    folder = notebooks.ROOT / "notebooks"
    for words, said in (
        (f"student {tmp_path}/none.ipynb", "none.ipynb does not exist"),
        (f"student {folder}/00_start_here.ipynb", "00_start_here has no exercises"),
        (f"all -o {tmp_path} --notebooks {tmp_path}/nowhere", "nowhere does not exist"),
    ):
        assert cli.main(["lab", *words.split()]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
