"""The tools behind `make notebooks`, `make course` and `make colab` do what their pages say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import colab_check, course, execute, install, notebooks
from vlm_lite import speed
from vlm_lite.profiles import Compute

SOURCE = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vlm_lite:
#     title: Sums
#     builds: a sum
#     reads: [results/numbers.json]
# ---

# %% [markdown]
# [![Open in Colab](a badge)](an address)

# %% tags=["setup"]
# filled in

# %% [markdown]
# # Sums
# <!-- figures -->
# <!-- /figures -->

# %%
total = 1 + 1
print(f"HEADLINE: {total} apples")
"""


@pytest.fixture
def course_folder(tmp_path):
    """A repository with one notebook of one sum."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_sums.py").write_text(SOURCE)
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "data" / "results" / "numbers.json").write_text("{}")
    (tmp_path / "data" / "times.json").write_text(
        '{"plain": {"seconds": {"00_sums": 100}, "memory_mb": {"00_sums": 1250}}, '
        '"bf16": {"seconds": {"00_sums": 40}, "memory_mb": {}}}'
    )
    (tmp_path / "README.md").write_text("<!-- notebooks -->\nold\n<!-- /notebooks -->\n")
    shutil.copy(notebooks.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_progress_bar_is_kept_as_its_last_line():
    assert (
        execute.collapse_progress("\r  0%|\r 50%|\r100%|\n\x1b[31mred\x1b[0m\n") == "100%|\nred\n"
    )
    assert execute.collapse_progress("a\r\nb\n") == "a\nb\n"


def test_pieces_of_one_stream_become_one_and_widgets_go():
    stream = [new_output("stream", name="stderr", text=text) for text in ("\r 1/2", "\r 2/2", "\n")]
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
    cell = new_code_cell("1", outputs=[*stream, widget])
    execute.clean_outputs(cell)
    assert [output.text for output in cell.outputs] == [" 2/2\n"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("for k in range(30):\n    time.sleep(0.1)\n    print(k, end='\\r')", None),
        ("time.sleep(60)", "a cell printed nothing for more than 2 seconds"),
    ],
)
def test_a_cell_may_run_for_as_long_as_its_bar_moves_and_no_longer(monkeypatch, code, failure):
    monkeypatch.setattr(execute, "SILENCE", 2)
    cells = [new_code_cell(text) for text in ("import time", code)]
    start = time.perf_counter()
    run = execute.run_notebook(new_notebook(cells=cells))
    assert (run.failure and run.failure.error) == failure
    assert 2.5 < time.perf_counter() - start < 50


def test_the_expected_time_follows_the_recorded_one_and_grows_on_a_slower_cpu(monkeypatch):
    times = {"plain": {"gflops": 100, "seconds": {"00_sums": 120, "01_more": 360, "test": 1000}}}
    monkeypatch.setattr(speed, "recorded_times", lambda: times)
    compute = Compute("cpu", "no", "plain")
    for rate, minutes, told in ((50, 16, True), (95, 8, False), (200, 8, False)):
        monkeypatch.setattr(speed, "matmul_rate", lambda dtype, rate=rate: rate)
        line = course.expected(compute, ["00_sums", "01_more"])
        assert f"about {minutes} minutes" in line
        assert ("not the recorded 8: this CPU does 50 GFLOP/s" in line) == told


def test_a_product_is_timed_in_the_precision_that_is_asked_for():
    assert speed.matmul_rate(torch.float32, seconds=0.05) > 0.1
    assert speed.kind_of_cpu(Compute("cpu", "bf16", "")) == "bf16"
    assert speed.kind_of_cpu(Compute("cpu", "no", "")) == "plain"


def test_recording_changes_one_column_and_keeps_the_other(course_folder, monkeypatch):
    path = course_folder / "data" / "times.json"
    monkeypatch.setattr(course, "ROOT", course_folder)
    monkeypatch.setattr(course, "TIMES", path)
    monkeypatch.setattr(speed, "recorded_times", lambda: json.loads(path.read_text()))
    before = json.loads(path.read_text())
    course.record(Compute("cpu", "bf16", ""), {"00_sums": 30}, {"00_sums": 1300})
    course.record(Compute("cpu", "bf16", ""), {"test": 900})
    after = json.loads(path.read_text())
    assert after["plain"] == before["plain"]
    assert after["bf16"]["seconds"] == {"00_sums": 30, "test": 900}
    assert after["bf16"]["memory_mb"] == {"00_sums": 1300} and after["bf16"]["gflops"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", after["bf16"]["date"])


def test_cell_ids_follow_from_the_text_and_are_unique():
    cells = [new_code_cell(text, metadata={"scrolled": True}) for text in ("1", "2", "1")]
    first, second = (notebooks.tidy(new_notebook(cells=cells)) for _ in range(2))
    ids = [cell.id for cell in first.cells]
    assert ids == [cell.id for cell in second.cells]
    assert len(set(ids)) == 3 and ids[2] == f"{ids[0]}-2"
    assert all(not cell.metadata for cell in first.cells)
    nbformat.validate(first)


def test_a_fact_is_written_into_the_header_and_nowhere_else():
    once = notebooks.set_fact(SOURCE, "seconds", 12)
    twice = notebooks.set_fact(once, "seconds", 34)
    assert notebooks.facts(once)["seconds"] == 12
    assert notebooks.facts(twice) == {**notebooks.facts(SOURCE), "seconds": 34}
    assert twice.split("# ---")[2] == SOURCE.split("# ---")[2]


def test_code_and_read_files_make_a_notebook_stale_and_prose_does_not(course_folder):
    before = notebooks.code_hash(SOURCE, course_folder)
    assert notebooks.code_hash(SOURCE.replace("# # Sums", "# # Additions"), course_folder) == before
    made = notebooks.generate(SOURCE, "00_sums", course_folder)
    assert notebooks.code_hash(made, course_folder) == before
    assert notebooks.code_hash(SOURCE.replace("1 + 1", "1 + 2"), course_folder) != before
    (course_folder / "data" / "results" / "numbers.json").write_text("[]")
    assert notebooks.code_hash(SOURCE, course_folder) != before
    (course_folder / "data" / "results" / "numbers.json").unlink()
    with pytest.raises(SystemExit, match="reads data/results/numbers.json, which does not exist"):
        notebooks.code_hash(SOURCE, course_folder)


def test_badge_and_install_cell_come_from_the_one_place_that_names_the_repository(course_folder):
    project = course_folder / "pyproject.toml"
    project.write_text(project.read_text().replace('ref = "main"', 'ref = "v9"'))
    text = notebooks.generate(SOURCE, "00_sums", course_folder)
    slug, _ = notebooks.repository(course_folder)
    assert f"/github/{slug}/blob/v9/notebooks/00_sums.ipynb)" in text and "/labs/" not in text
    assert f'"git+https://github.com/{slug}@v9"' in text
    assert notebooks.generate(text, "00_sums", course_folder) == text
    exercise = text + "# %%\n### BEGIN SOLUTION\n### END SOLUTION\n"
    exercise = notebooks.generate(exercise, "00_sums", course_folder)
    assert f"/github/{slug}/blob/v9/labs/00_sums.ipynb)" in exercise
    assert notebooks.generate(exercise, "00_sums", course_folder) == exercise


def test_a_notebook_without_a_t4_part_does_not_offer_it(course_folder):
    assert '"t4"' not in notebooks.generate(SOURCE, "00_sums", course_folder)
    with_part = notebooks.set_fact(SOURCE, "minutes_t4_estimate", 20)
    text = notebooks.generate(with_part, "00_sums", course_folder)
    assert '["tiny", "t4"]' in text and ", t4_minutes=20)" in text and "20 min on a T4" in text


@pytest.mark.slow
def test_make_notebooks_runs_what_is_stale_once_and_leaves_the_rest_alone(course_folder, capsys):
    source = course_folder / "notebooks" / "00_sums.py"
    assert notebooks.refresh(source, root=course_folder)
    files = {path: path.read_bytes() for path in course_folder.rglob("*") if path.is_file()}
    notebook = execute.read_notebook(source.with_suffix(".ipynb"))
    assert execute.headline(notebook) == "2 apples"
    assert "tiny, the embedded Shapes world" in notebook.cells[1].outputs[0].text
    assert notebooks.paired(source) == source.with_suffix(".ipynb").read_text()
    assert "about 1.5 min (0.5 with bf16) and 1.2 GB of memory" in source.read_text()
    row = "[00 Sums](notebooks/00_sums.ipynb) | a sum | 1.5 min (0.5 with bf16) | 1.2 GB |"
    assert row in notebooks.page(course_folder / "README.md", course_folder)

    assert not notebooks.refresh(source, root=course_folder)
    assert {path: path.read_bytes() for path in course_folder.rglob("*") if path.is_file()} == files

    source.write_text(source.read_text().replace("1 + 1", "1 / 0"))
    with pytest.raises(
        SystemExit, match="00_sums: cell 4 failed: ZeroDivisionError: division by zero"
    ):
        notebooks.refresh(source, root=course_folder)
    assert source.with_suffix(".ipynb").read_bytes() == files[source.with_suffix(".ipynb")]


@pytest.mark.slow
def test_make_course_writes_pages_and_fails_naming_notebook_cell_and_error(
    course_folder, monkeypatch, capsys
):
    good = course_folder / "notebooks" / "00_sums.py"
    bad = good.with_name("01_bad.py")
    bad.write_text(SOURCE.replace("1 + 1", "1 / 0"))
    monkeypatch.setattr(notebooks, "sources", lambda: [good, bad])
    monkeypatch.setattr(course, "ROOT", course_folder)
    monkeypatch.setattr(course, "OUT", course_folder / "build" / "course")
    assert course.main([]) == 1
    captured = capsys.readouterr()
    assert "01_bad: cell 4 failed: ZeroDivisionError: division by zero" in captured.err
    row = next(line for line in captured.out.splitlines() if line.startswith("00_sums "))
    assert row.endswith("2 apples")
    index = (course_folder / "build" / "course" / "index.html").read_text()
    assert "2 apples" in index and "FAILED in cell 4" in index
    assert "HEADLINE" in (course_folder / "build" / "course" / "00_sums.html").read_text()


@pytest.mark.slow
def test_ctrl_c_says_where_make_course_stopped_and_shows_no_traceback(course_folder):
    (course_folder / "notebooks" / "01_long.py").write_text(
        SOURCE.replace("1 + 1", "__import__('time').sleep(600)")
    )
    script = (
        "from pathlib import Path; from tools import course, notebooks; import sys; root = Path(sys.argv[1]); "
        "notebooks.sources = lambda: sorted((root / 'notebooks').glob('*.py')); course.ROOT = root; "
        "course.OUT = root / 'build'; sys.exit(course.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, course_folder],
        cwd=notebooks.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("[2/2]"):
            break
    time.sleep(5)  # the second notebook is at work
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped in 01_long; the 1 notebooks" in errors
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert (course_folder / "build" / "00_sums.html").exists()


def test_a_page_links_to_pages_says_what_its_figures_show_and_needs_no_network_for_its_formulas():
    shown = {"image/png": "iVBORw0KGgo=", "text/plain": '<Figure: a "b" & c>'}
    text = (
        "[03](03_qformer_gpt2.ipynb) and [part](04_llava.ipynb#a-part): $-\\log p_i$, which is\n\n"
    )
    text += "$$\\frac{a}{b}$$\n\nand in code `echo $HOME$`."
    cells = [
        new_markdown_cell(text),
        new_code_cell("x", outputs=[new_output("display_data", shown)]),
    ]
    page = course.as_html(new_notebook(cells=cells), "00_sums")
    assert 'href="03_qformer_gpt2.html"' in page and 'href="04_llava.html#a-part"' in page
    assert 'alt="a &quot;b&quot; &amp; c"' in page and "No description" not in page
    assert page.count("<math ") == 2 and "<mfrac>" in page and "<msub>" in page and "$$" not in page
    assert "echo $HOME$" in page, "code stays as it is"
    assert "<script" not in page and "cdnjs" not in page


def test_every_formula_of_the_course_becomes_mathml():
    for path in notebooks.sources():
        texts = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
        page = "".join(map(course.as_markup, texts))
        assert page.count("<math ") > 2 or path.name[2] != "_", path
        left = [each for each in re.findall(r"<math.*?</math>", page, re.DOTALL) if "\\" in each]
        assert not left, f"{path}: a command that latex2mathml does not know: {left}"


def test_a_long_installation_says_that_it_goes_on_and_a_failed_one_what_to_look_for(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(install, "EVERY", 0.2)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nsleep 0.7\n")
    program.chmod(0o755)
    install.pip(program, ["nothing"])
    assert capfd.readouterr().out.count("installing: ") >= 2
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SystemExit, match="pip could not install"):
        install.pip(program, ["nothing"])


def test_a_headline_is_the_last_line_that_begins_with_it():
    cells = [
        new_code_cell("", outputs=[new_output("stream", text=text)])
        for text in ("HEADLINE: one\n", "not a HEADLINE: no\nHEADLINE: two\n")
    ]
    assert execute.headline(new_notebook(cells=cells)) == "two"
    assert execute.headline(jupytext.reads(SOURCE, fmt="py:percent")) == ""


def test_colab_check_names_a_version_that_was_changed(tmp_path):
    import einops

    path = tmp_path / "versions.txt"
    path.write_text(
        f"# a comment\neinops=={einops.__version__}\nno-such-package==1.0\npytest==0.1\n"
    )
    wrong, installed = colab_check.differences(path)
    assert installed == 2
    assert wrong == [f"pytest: {pytest.__version__} is installed, Colab has 0.1"]


def test_setting_up_reinstalls_a_torch_and_a_torchvision_that_do_not_fit(
    tmp_path, monkeypatch, capsys
):
    calls, works, done = [], iter([False, True]), SimpleNamespace(returncode=0)
    monkeypatch.setattr(install.sys, "argv", ["install.py", str(tmp_path / "venv")])
    for owner, name, fake in (
        (install, "pip", lambda python, wanted, more=None: calls.append((wanted, more))),
        (install, "run", lambda *command, **options: calls.append(command[1:4])),
        (install, "pair_works", lambda python, show=False: next(works)),
        (install.subprocess, "run", lambda *a, **k: done),
    ):
        monkeypatch.setattr(owner, name, fake)
    install.main()
    assert "do not fit each other" in capsys.readouterr().out
    assert calls[1] == ("-m", "pip", "uninstall")
    assert set(calls[2][1]) == {"PIP_FIND_LINKS"} and "-r" in calls[2][0] and "-e" in calls[3][0]


def test_students_copies_are_written_listed_on_a_page_and_taken_away_with_their_notebook(
    course_folder,
):
    name = sorted(path.stem for path in (notebooks.ROOT / "labs").glob("*.ipynb"))[0]
    for suffix in (".py", ".ipynb"):
        shutil.copy(notebooks.ROOT / "notebooks" / f"{name}{suffix}", course_folder / "notebooks")
    (course_folder / "labs").mkdir()
    (course_folder / "labs" / "50_gone.ipynb").write_text("{}")
    teaching = course_folder / "docs" / "teaching.md"
    teaching.parent.mkdir()
    teaching.write_text("<!-- labs -->\nold\n<!-- /labs -->\n")
    notebooks.write_labs(course_folder)
    made = course_folder / "labs"
    assert {path.name for path in made.iterdir()} == {f"{name}.ipynb", "RUBRIC.md"}
    page = notebooks.page(teaching, course_folder)
    assert (
        f"(../labs/{name}.ipynb)" in page and f"/labs/{name}.ipynb) |" in page and "old" not in page
    )
    (course_folder / "notebooks" / f"{name}.ipynb").unlink()
    notebooks.write_labs(course_folder)
    assert [path.name for path in made.iterdir()] == ["RUBRIC.md"]
    assert notebooks.lab_table(course_folder) == ""
