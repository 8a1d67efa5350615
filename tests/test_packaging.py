"""The package installs by itself, carries the zoo, imports fast, and asks for versions that Colab has."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jupytext
import nbformat
import pytest
from packaging.requirements import Requirement

from tools import execute

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_lines():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_the_package_s_own_needs_and_then_its_extra_dev():
    project = PROJECT["project"]
    assert requirement_lines() == project["dependencies"] + project["optional-dependencies"]["dev"]


def test_nbgrader_comes_with_its_extra_and_not_with_the_requirements():
    extra = PROJECT["project"]["optional-dependencies"]["grade"]
    assert any(line.startswith("nbgrader") for line in extra)
    assert not any("nbgrader" in line for line in requirement_lines())


def test_the_ranges_accept_the_versions_that_colab_preinstalls():
    pins = re.findall(
        r"^([\w.-]+)==(\S+)$",
        (ROOT / "tests/constraints/colab-2026-08.txt").read_text(),
        flags=re.M,
    )
    colab = {name.lower().replace("_", "-"): version for name, version in pins}
    wanted = [Requirement(line) for line in requirement_lines()]
    shared = [package for package in wanted if package.name.lower().replace("_", "-") in colab]
    assert len(shared) >= 15
    for package in shared:
        assert package.specifier.contains(colab[package.name.lower().replace("_", "-")]), str(
            package
        )


def test_every_package_folder_is_listed_for_the_wheel():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "vlm_lite").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"vlm_lite._data"}


def test_importing_the_package_takes_less_than_a_second_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import vlm_lite; print(time.perf_counter() - start); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 1.0


def test_ci_runs_the_readme_s_test_command_and_nothing_else():
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")
    ]
    assert commands == ['cd "$(dirname "$0")/.." || exit 1', "exec make test </dev/null"]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("vlm_lite", "data"):
        shutil.copytree(
            ROOT / name,
            folder / "source" / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--wheel-dir",
            folder,
            folder / "source",
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_carries_the_zoo_the_results_and_the_prompts_and_stays_light(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for part in ("zoo", "results", "prompts"):
        files = [path for path in (ROOT / "data" / part).rglob("*") if path.is_file()]
        missing = {
            f"vlm_lite/_data/{path.relative_to(ROOT / 'data').as_posix()}" for path in files
        } - held
        assert missing == set()
    assert any(name.startswith("vlm_lite/_data/zoo/shapes-vlm/") for name in held)
    assert not [name for name in held if name.startswith(("tests/", "notebooks/", "tools/"))]
    assert wheel.stat().st_size < 25e6


@pytest.mark.slow
def test_notebook_00_runs_against_the_installed_wheel_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            site,
            wheel,
        ],
        check=True,
    )
    notebook = jupytext.read(ROOT / "notebooks" / "00_start_here.py")
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            f"import vlm_lite, vlm_lite.files\n"
            f"assert vlm_lite.__file__.startswith({str(site)!r}), vlm_lite.__file__\n"
            f"assert str(vlm_lite.files.data_path('zoo')).startswith({str(site)!r})"
        )
    )
    run = execute.run_notebook(
        notebook, environment={"PYTHONPATH": str(site), "VLM_LITE_HOME": str(tmp_path / "home")}
    )
    assert run.failure is None, f"cell {run.failure.cell}: {run.failure.error}"
