"""The notebook is the program: what the package calls a lesson is what the notebook shows, cell by cell."""

import ast
import importlib

import pytest

from tools import notebooks

ROOT = notebooks.ROOT
LESSONS = {
    path: (source.stem, text)
    for source in notebooks.sources()
    for path, text in notebooks.lessons(source.read_text(encoding="utf-8"), source.stem)
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


@pytest.mark.parametrize("path", LESSONS)
def test_a_lesson_is_what_its_notebook_saves(path):
    name, text = LESSONS[path]
    assert (ROOT / path).read_text(encoding="utf-8") == text, (
        f"{path} differs from notebooks/{name}.py: run `make notebooks`"
    )
    assert f"notebooks/{name}.py" in ast.get_docstring(ast.parse(text))
    importlib.import_module(path.removesuffix(".py").replace("/", "."))


def test_every_lesson_comes_from_a_notebook():
    found = {f"vlm_lite/lessons/{p.name}" for p in (ROOT / "vlm_lite" / "lessons").glob("*.py")}
    assert found - {"vlm_lite/lessons/__init__.py"} == set(LESSONS)


def test_saved_cells_alone_are_exported_with_their_solutions():
    ((path, text),) = notebooks.lessons(HEAD + CELLS, "09_sums")
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
        notebooks.lessons(HEAD + f'# %% tags=["save"]\n{line}\n', "09_sums")


def test_a_notebook_without_a_lesson_exports_nothing():
    assert notebooks.lessons(HEAD.replace("#     lesson: sums\n", "") + CELLS, "09_sums") == []


def test_a_second_lesson_imports_what_it_uses_of_the_first():
    more = """
# %% tags=["save-solids"]
import math

from vlm_lite.files import home
from vlm_lite.optim import MuonAdamW

# %% tags=["save-solids"]
def volume(radius, height):
    return area(radius) * height
"""
    text = HEAD.replace("lesson: sums", "lesson: [sums, solids]") + CELLS + more
    (_, first), (path, second) = notebooks.lessons(text, "09_sums")
    assert path == "vlm_lite/lessons/solids.py" and "volume" not in first
    lines = second.splitlines()
    at = lines.index("from vlm_lite.lessons.sums import area")
    assert "files" in lines[at - 1] and "optim" in lines[at + 1] and "TABLE" not in second
