"""Setting up: which versions are installed where, and what a machine that lacks something is told."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import execute, install
from vlm_lite import machine

ROOT = Path(__file__).resolve().parent.parent


def run_limited(kilobytes, *command):
    """Run a command of the course with `ulimit -v`."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -v {kilobytes}; exec "$@"', "bash", sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def big_x86(monkeypatch):
    """A machine that has everything."""
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "memory_gb", lambda: 16.0)
    monkeypatch.setattr(machine, "address_space_gb", lambda: None)
    assert list(machine.concerns()) == []


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that runs the set-up with these options and returns pip's arguments, call by call."""

    def call(*options, works=(True,)):
        calls, answers = [], iter(works)
        monkeypatch.setattr(install.sys, "argv", ["install.py", str(tmp_path / "venv"), *options])
        done = SimpleNamespace(returncode=0, stdout=f"{tmp_path}\n")
        for owner, name, fake in (
            (install, "pip", lambda python, wanted, more=(): calls.append([*wanted, *more])),
            (install, "run", lambda *command, **_: calls.append(command[1:])),
            (install, "pair_works", lambda python, show=False: next(answers)),
            (install.subprocess, "run", lambda *_, **__: done),
        ):
            monkeypatch.setattr(owner, name, fake)
        install.main()
        return [[str(part) for part in wanted] for wanted in calls]

    return call


def test_a_torch_and_a_torchvision_that_do_not_fit_each_other_are_installed_again(installed):
    calls = installed("--newest", works=(False, True))
    (away,) = (k for k, words in enumerate(calls) if words[:3] == ["-m", "pip", "uninstall"])
    assert "-r" in calls[away + 1] and "PIP_FIND_LINKS" in calls[away + 1]


def test_linux_on_x86_64_gets_the_exact_versions(big_x86, installed, capsys):
    assert installed()[0] == ["-r", str(ROOT / "requirements.lock")]
    assert installed("--grade") == [["-r", str(ROOT / "requirements-grade.lock")]]
    assert "instead" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--newest"], ["--constraints", "versions.txt"]])
def test_the_newest_and_colab_s_versions_come_from_the_ranges(big_x86, installed, options):
    wanted = installed(*options)[0]
    assert wanted[:2] == ["-r", str(ROOT / "requirements.txt")]
    assert ("--upgrade" in wanted) == ("--newest" in options)
    (grade,) = installed("--grade", *options)
    assert any(part.startswith("nbgrader") for part in grade)


@pytest.mark.parametrize(
    "system, processor, known",
    [("linux", "aarch64", True), ("darwin", "arm64", True), ("linux", "riscv64", False)],
)
def test_another_processor_gets_the_ranges_and_a_line_that_says_so(
    big_x86, installed, monkeypatch, capsys, system, processor, known
):
    monkeypatch.setattr(machine.sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    assert installed()[0] == ["-r", str(ROOT / "requirements.txt")]
    said = capsys.readouterr()
    assert "requirements.lock is for Linux on x86_64" in said.out
    assert (f"There is no torch for {system} on {processor}" in said.err) == (not known)
    assert ("Times will differ" in said.err) == known


def test_a_long_installation_says_that_it_goes_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(install, "EVERY", 0.2)
    (tmp_path / "python").write_text("#!/bin/sh\nsleep 0.7\n")
    (tmp_path / "python").chmod(0o755)
    install.pip(tmp_path / "python", ["nothing"])
    assert capfd.readouterr().out.count("installing: ") >= 2


@pytest.fixture
def failing_pip(tmp_path):
    """A function that makes a Python whose pip says these lines and fails."""

    def make(*lines):
        program = tmp_path / "python"
        program.write_text("#!/bin/sh\ncat >&2 <<'END'\n" + "\n".join(lines) + "\nEND\nexit 1\n")
        program.chmod(0o755)
        return program

    return make


MISSING = "ERROR: Could not find a version that satisfies the requirement einops==0.8.2 (from versions: {})"


def test_a_version_that_the_index_no_longer_has_is_named_with_what_to_do(failing_pip, capfd):
    program = failing_pip(MISSING.format("0.8.0, 0.9.0"))
    with pytest.raises(SystemExit, match="has no einops==0.8.2 .*make course LOCK=") as stopped:
        install.pip(program, ["nothing"])
    assert "network" not in str(stopped.value)
    assert "from versions: 0.8.0" in capfd.readouterr().err, "what pip said is shown"


@pytest.mark.parametrize(
    "lines",
    [
        [MISSING.format("none")],
        [
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'",
            MISSING.format("0.8.0, of a folder on this machine"),
        ],
    ],
)
def test_a_package_index_out_of_reach_is_a_matter_of_the_network(failing_pip, lines):
    with pytest.raises(SystemExit, match="A network that reaches the package index"):
        install.pip(failing_pip(*lines), ["nothing"])


@pytest.mark.slow
def test_pip_s_own_words_for_a_missing_version_are_the_ones_that_are_looked_for(tmp_path):
    """The real pip, offline, with one wheel in a folder and another version of it asked for."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "apples-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "apples-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: apples\nVersion: 1.0\n"
        )
        wheel.writestr(
            "apples-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("apples-1.0.dist-info/RECORD", "")
    offline = ["--no-index", "--find-links", tmp_path, "--target", tmp_path / "out"]
    with pytest.raises(SystemExit, match="has no apples==2.0 "):
        install.pip(sys.executable, [*offline, "apples==2.0"])
    with pytest.raises(SystemExit, match="A network that reaches"):
        install.pip(sys.executable, [*offline, "pears==2.0"])


def test_one_core_works_and_is_said_to_take_twice_as_long(big_x86, monkeypatch, capsys):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    machine.announce()
    assert "one CPU core: all works, and takes about twice as long" in capsys.readouterr().err


def test_cores_are_those_that_this_process_may_use():
    assert 1 <= machine.cores() <= os.cpu_count()
    if hasattr(os, "sched_setaffinity"):
        code = (
            "import os; from vlm_lite import machine; os.sched_setaffinity(0, "
            "{min(os.sched_getaffinity(0))}); print([line for _, line in machine.concerns()])"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "There is one CPU core" in result.stdout


def test_little_memory_names_the_notebooks_that_may_not_fit_and_those_that_do(big_x86, monkeypatch):
    peaks = machine.notebook_peaks_gb()
    assert set(peaks) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    monkeypatch.setattr(machine, "notebook_peaks_gb", lambda: {"00_small": 1.4, "03_large": 3.9})
    monkeypatch.setattr(machine, "memory_gb", lambda: 4.0)
    ((fatal, line),) = machine.concerns()
    assert not fatal and "4.0 GB of memory" in line and "03_large (3.9 GB)" in line
    assert "Colab" in line and line.endswith("These need less: 00_small.")


def test_the_memory_is_the_container_s_where_that_is_less(tmp_path):
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert machine.memory_gb([tmp_path / "memory.max"]) == 1.0
    (tmp_path / "memory.max").write_text("max\n")
    whole = machine.memory_gb([tmp_path / "memory.max"])
    assert whole == machine.memory_gb([tmp_path / "none"]) > 1.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v limits nothing elsewhere")
@pytest.mark.parametrize("command", [["-m", "vlm_lite", "doctor"], ["tools/course.py"]])
def test_with_4_gb_of_address_space_a_line_says_what_to_do(command):
    result = run_limited(4_000_000, *command)
    assert result.returncode == 1
    said = result.stdout + result.stderr
    assert "4.1 GB of address space here (ulimit -v)" in said and "`ulimit -v unlimited`" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v limits nothing elsewhere")
def test_a_command_for_which_torch_does_not_fit_is_no_traceback():
    result = run_limited(1_500_000, "-m", "vlm_lite", "report", "shapes-vlm")
    assert result.returncode == 2
    assert re.match("vlm-lite: there was not enough memory", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr


def test_a_cell_without_memory_says_what_to_do_and_another_error_only_what_it_is():
    failed = SimpleNamespace(ename="MemoryError", evalue="")
    assert execute._last_line(failed).startswith("MemoryError: there was not enough memory.")
    failed = SimpleNamespace(ename="ValueError", evalue="no memory of it")
    assert execute._last_line(failed) == "ValueError: no memory of it"
