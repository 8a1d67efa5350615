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
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vlm_lite
from tools import execute, notebooks

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_lines():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_the_package_s_own_needs_and_then_its_extra_dev():
    project = PROJECT["project"]
    assert requirement_lines() == project["dependencies"] + project["optional-dependencies"]["dev"]


def test_the_ranges_accept_the_versions_that_colab_preinstalls():
    pins = re.findall(
        r"^([\w.-]+)==(\S+)$",
        (ROOT / "tests/constraints/colab-2026-08.txt").read_text(),
        flags=re.M,
    )
    colab = {canonicalize_name(name): version for name, version in pins}
    wanted = [Requirement(line) for line in requirement_lines()]
    shared = [each for each in wanted if canonicalize_name(each.name) in colab]
    assert len(shared) >= 15
    for package in shared:
        assert package.specifier.contains(colab[canonicalize_name(package.name)]), package


def locked_versions(*files):
    """{name: version} of the lock on this Python; a line that is not `name==version`, with a marker at most, is an error."""
    found = {}
    for file in files:
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                pin = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)(?: ; (python_full_version .*))?", line)
                assert pin, f"{file}: {line}"
                if pin[3] and not Marker(pin[3]).evaluate():
                    continue
                assert pin[1] not in found, f"{file}: {pin[1]} is there twice"
                found[pin[1]] = pin[2]
    return found


def outside(wanted, locked):
    """The requirements whose range does not admit the locked version, or that the lock lacks."""
    packages = [Requirement(line) for line in wanted]
    return [
        str(package)
        for package in packages
        if not package.specifier.contains(locked.get(canonicalize_name(package.name), "0"))
    ]


def test_every_range_admits_the_locked_version():
    locked = locked_versions("requirements.lock")
    assert outside(requirement_lines(), locked) == []
    assert outside(["torch<=2.14.1", "torchvision<=0.29.1"], locked) == []
    both = locked_versions("requirements.lock", "requirements-grade.lock")
    assert outside(PROJECT["project"]["optional-dependencies"]["grade"], both) == []
    assert "nbgrader" not in locked
    assert outside(["einops>=0.8", "apples>=1"], {"einops": "0.7"}) == ["einops>=0.8", "apples>=1"]


def test_a_release_s_install_cells_and_badges_name_its_own_tag():
    assert PROJECT["tool"]["vlm-lite"]["ref"] == notebooks.ref_of(vlm_lite.__version__)
    assert notebooks.ref_of("1.2.0") == "v1.2.0" and notebooks.ref_of("1.3.0.dev0") == "main"


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


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("vlm_lite", "data"):
        left_out = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    quiet = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    pip("wheel", *quiet, "--wheel-dir", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_carries_the_zoo_the_results_and_the_prompts_and_stays_light(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    data = ROOT / "data"
    for part in ("zoo", "results", "prompts"):
        files = [path.relative_to(data) for path in (data / part).rglob("*") if path.is_file()]
        assert {f"vlm_lite/_data/{path.as_posix()}" for path in files} <= held
    assert any(name.startswith("vlm_lite/_data/zoo/shapes-vlm/") for name in held)
    assert not [name for name in held if name.startswith(("tests/", "notebooks/", "tools/"))]
    assert wheel.stat().st_size < 25e6


@pytest.mark.slow
def test_notebook_00_runs_against_the_installed_wheel_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    notebook = jupytext.read(ROOT / "notebooks" / "00_start_here.py")
    code = "import vlm_lite.files as f\nfor p in (f.__file__, f.data_path('zoo')):\n"
    code += f"    assert str(p).startswith({str(site)!r}), p"
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    environment = {"PYTHONPATH": str(site), "VLM_LITE_HOME": str(tmp_path / "home")}
    run = execute.run_notebook(notebook, profile="smoke", environment=environment)
    assert run.failure is None, f"cell {run.failure.cell}: {run.failure.error}"
