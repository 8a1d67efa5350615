"""The code is clean by ruff's rules (pyproject.toml) and stays as thin as it promises to be."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lines_of_code(path):
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(1 for line in lines if line and not line.startswith("#"))


def docstring_lines(path):
    """How many lines that are not empty the docstrings of a module take."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    )
    return sum(1 for text in found if text for line in text.splitlines() if line.strip())


def test_ruff_finds_nothing():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", ROOT],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"ruff check .\n{result.stdout}{result.stderr}"


def test_every_module_is_read_in_one_sitting_and_the_core_stays_small():
    """A module counts with its docstrings, which are read too; the core (no labs, rehearsal, commands) without."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "vlm_lite").rglob("*.py")}
    sizes = {name: lines_of_code(path) for name, path in paths.items()}
    assert {name: n for name, n in sizes.items() if n > 300} == {}
    core = sum(
        n - docstring_lines(paths[name])
        for name, n in sizes.items()
        if "/labs/" not in name
        and "/rehearsal/" not in name
        and not name.endswith(("/cli.py", "/commands.py"))
    )
    assert core <= 6350
