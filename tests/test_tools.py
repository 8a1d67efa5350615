"""The tools behind `make notebooks`, `make course` and `make colab` do what their pages say."""

import re
import shutil
import time

import jupytext
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import colab_check, course, execute, notebooks
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


def test_a_progress_bar_is_kept_as_its_last_line_in_one_stream_and_widgets_go():
    assert execute.collapse_progress("a\r\nb\n") == "a\nb\n"
    pieces = "\r 1/2", "\r 2/2", "\n", "\x1b[31mred\x1b[0m\n"
    stream = [new_output("stream", name="stderr", text=text) for text in pieces]
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
    cell = new_code_cell("1", outputs=[*stream, widget])
    execute.clean_outputs(cell)
    assert [output.text for output in cell.outputs] == [" 2/2\nred\n"]


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
    row = "[00 Sums](notebooks/00_sums.ipynb) | a sum | 1.5 min (0.5 with bf16) |"
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


def test_make_course_runs_the_main_line_and_with_all_the_companions_too(monkeypatch, tmp_path):
    names, ran = ["00_sums", "01_more", "01b_rest", "01t_photographs"], []
    monkeypatch.setattr(notebooks, "sources", lambda: [tmp_path / f"{name}.py" for name in names])
    monkeypatch.setattr(course, "OUT", tmp_path)
    monkeypatch.setattr(course, "course_run", lambda path, k, of: ran.append((path.stem, of)) or 1)
    monkeypatch.setattr(course, "expected", lambda *_: "")
    monkeypatch.setattr(course, "table", lambda results: 1 / 0)  # it goes no further
    for arguments, expected in (([], names[:2]), (["--all"], names)):
        ran.clear()
        with pytest.raises(ZeroDivisionError):
            course.main(arguments)
        assert ran == [(name, len(expected)) for name in expected]


@pytest.mark.slow
def test_verify_t4_runs_what_has_a_part_for_it_and_prints_rows_to_paste(
    course_folder, monkeypatch, capsys
):
    """A GPU is claimed, and sums need none."""
    without = course_folder / "notebooks" / "00_sums.py"
    good, bad = (without.with_name(f"{name}.py") for name in ("01t_sums", "02t_bad"))
    text = SOURCE.replace("title: Sums", "title: Sums\n#     minutes_t4_estimate: 3")
    text += "assert __import__('os').environ['VLM_LITE_PROFILE'] == 't4'\n"
    good.write_text(text)
    bad.write_text(text.replace("1 + 1", "1 / 0"))
    monkeypatch.setattr(notebooks, "sources", lambda: [without, good, bad])
    monkeypatch.setattr(course, "ROOT", course_folder)
    monkeypatch.setattr(course, "OUT", course_folder / "build" / "course")
    monkeypatch.setattr(course, "get_compute", lambda: Compute("cpu", "no", "a test"))
    with pytest.raises(SystemExit, match="needs a CUDA GPU .*vlm-lite rehearse"):
        course.main(["--t4"])
    monkeypatch.setattr(course, "get_compute", lambda: Compute("cuda", "fp16", "a made T4"))
    assert course.main(["--t4"]) == 1
    *_, rows, machine = capsys.readouterr().out.strip().split("\n\n")
    first, second = rows.splitlines()
    head = re.search(r"^\| notebook, on .*", (notebooks.ROOT / "docs/status.md").read_text(), re.M)
    assert first.count("|") == head[0].count("|") and "torch" in machine and "made T4" in machine
    today = time.strftime("%Y-%m-%d")
    assert re.fullmatch(
        rf"\| 01t_sums \| {today} \| unknown \| 0\.\d \| 0\.0 GB \| 2 apples \|", first
    )
    assert re.search(r"\| 02t_bad .* unknown \| FAILED in cell 4: ZeroDivisionError", second)


def test_ctrl_c_says_where_make_course_stopped(course_folder, monkeypatch, capsys):
    runs = iter([{"name": "00_sums"}])

    def cut(path, k, of):
        try:
            return next(runs)
        except StopIteration:
            raise KeyboardInterrupt from None

    sources = [course_folder / name for name in ("00_sums.py", "01_long.py")]
    monkeypatch.setattr(notebooks, "sources", lambda: sources)
    monkeypatch.setattr(course, "course_run", cut)
    monkeypatch.setattr(course, "ROOT", course_folder)
    monkeypatch.setattr(course, "OUT", course_folder / "build")
    assert course.main([]) == 130
    assert "Stopped in 01_long; the 1 notebooks" in capsys.readouterr().err


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


@pytest.mark.slow
def test_every_formula_of_the_course_becomes_mathml():
    for path in notebooks.sources():
        texts = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
        page = "".join(map(course.as_markup, texts))
        assert page.count("<math ") > 2 or path.name[2] != "_", path
        left = [each for each in re.findall(r"<math.*?</math>", page, re.DOTALL) if "\\" in each]
        assert not left, f"{path}: a command that latex2mathml does not know: {left}"


def test_colab_check_names_a_version_that_was_changed(tmp_path):
    import einops

    path = tmp_path / "versions.txt"
    path.write_text(
        f"# a comment\neinops=={einops.__version__}\nno-such-package==1.0\npytest==0.1\n"
    )
    wrong, installed = colab_check.differences(path)
    assert installed == 2
    assert wrong == [f"pytest: {pytest.__version__} is installed, Colab has 0.1"]
