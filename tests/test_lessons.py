"""The notebook is the program: what the package calls a lesson is what the notebook shows, cell by cell."""

import ast
import importlib

import pytest

from tools import notebooks

ROOT = notebooks.ROOT
LESSONS = {
    source.stem: made
    for source in notebooks.sources()
    if (made := notebooks.lesson(source.read_text(encoding="utf-8"), source.stem))
}
HEAD = """# ---
# jupyter:
#   vlm_lite:
#     title: Sums
#     builds: a sum
#     lesson: sums
# ---

"""
CELLS = """
# %% tags=["save"]
import math

TABLE = {"one": 1}

# %%
print("not kept")

# %% tags=["exercise", "save"]
def area(radius):
    '''radius in m -> area in m^2.'''
    ### BEGIN SOLUTION
    return math.pi * radius**2
    ### END SOLUTION
"""


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_what_its_notebook_saves(name):
    path, text = LESSONS[name]
    assert (ROOT / path).read_text(encoding="utf-8") == text, (
        f"{path} differs from notebooks/{name}.py: run `make notebooks`"
    )
    assert f"notebooks/{name}.py" in ast.get_docstring(ast.parse(text))
    importlib.import_module(path.removesuffix(".py").replace("/", "."))


def test_every_lesson_comes_from_a_notebook():
    found = {f"vlm_lite/lessons/{p.name}" for p in (ROOT / "vlm_lite" / "lessons").glob("*.py")}
    assert found - {"vlm_lite/lessons/__init__.py"} == {path for path, _ in LESSONS.values()}
    assert len(LESSONS) == len({path for path, _ in LESSONS.values()})


def test_saved_cells_alone_are_exported_with_their_solutions():
    path, text = notebooks.lesson(HEAD + CELLS, "09_sums")
    assert path == "vlm_lite/lessons/sums.py"
    namespace = {}
    exec(text, namespace)
    assert (
        namespace["area"](1) == pytest.approx(3.14159, abs=1e-5) and namespace["TABLE"]["one"] == 1
    )
    assert "not kept" not in text and "SOLUTION" not in text and text.startswith('"""A sum.')


@pytest.mark.parametrize(
    "line", ["print(1)", "small = 3", "for k in range(3):\n    pass", "area(2)"]
)
def test_what_runs_on_import_is_refused_in_a_saved_cell(line):
    with pytest.raises(SystemExit, match="09_sums.*only imports"):
        notebooks.lesson(HEAD + f'# %% tags=["save"]\n{line}\n', "09_sums")


def test_a_notebook_without_a_lesson_exports_nothing():
    assert notebooks.lesson(HEAD.replace("#     lesson: sums\n", "") + CELLS, "09_sums") is None
