"""The gate: each notebook agrees with its source, holds the outputs of its own code, and opens where it says."""

import re

import nbformat
import pytest

from tools import notebooks

ROOT = notebooks.ROOT
SOURCES = notebooks.sources()
FOLDERS_OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|Users|mnt|opt|usr|var)/[\w.]")
PAGES = notebooks.pages()


def name_of(page):
    return page.relative_to(ROOT).as_posix()


each_notebook = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


@pytest.fixture
def notebook(source):
    assert source.with_suffix(".ipynb").is_file(), (
        f"{source.stem} was never run: run `make notebooks`, and commit it."
    )
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def stale(source):
    return f"{source.stem} is stale. Run `make notebooks`, look at what changed, and commit it."


def test_the_course_is_here_and_every_notebook_has_a_source():
    names = {source.stem for source in SOURCES}
    assert {p.stem for p in (ROOT / "notebooks").iterdir() if p.is_file()} == names
    assert len(names) > 6


@each_notebook
def test_the_notebook_is_what_jupytext_makes_of_its_source(source):
    assert notebooks.paired(source) == source.with_suffix(".ipynb").read_text(encoding="utf-8"), (
        stale(source)
    )


@each_notebook
def test_badge_setup_cell_and_header_are_the_generated_ones(source):
    text = source.read_text(encoding="utf-8")
    assert notebooks.generate(text, source.stem) == text, stale(source)


@each_notebook
def test_the_outputs_are_those_of_this_code_and_these_files(source, notebook):
    text = source.read_text(encoding="utf-8")
    assert notebooks.facts(text).get("outputs_of") == notebooks.code_hash(text), stale(source)
    assert notebook.metadata.vlm_lite.outputs_of == notebooks.code_hash(text), stale(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), stale(source)
    assert any(cell.outputs for cell in code)


@each_notebook
def test_no_output_is_an_error_a_widget_or_names_a_folder_of_the_machine_that_made_it(notebook):
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"cell {number}"
            assert not [kind for kind in output.get("data", {}) if "widget" in kind], (
                f"cell {number}"
            )
            text = output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
            assert "\r" not in text and "\x1b" not in text, f"cell {number}: {text}"
            assert not FOLDERS_OF_A_MACHINE.search(text), f"cell {number}: {text}"


@each_notebook
def test_metadata_is_on_the_allow_list(notebook):
    assert set(notebook.metadata) <= notebooks.NOTEBOOK_KEYS
    for number, cell in enumerate(notebook.cells, start=1):
        assert set(cell.metadata) <= notebooks.CELL_KEYS, f"cell {number}"
    assert set(notebook.metadata.get("colab", {})) <= {"provenance"}
    nbformat.validate(notebook)


@each_notebook
def test_a_notebook_is_short_and_light(notebook, source):
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    lines = [line for line in map(str.strip, code.splitlines()) if line and line[0] != "#"]
    first = int(source.stem[:2]) < 7
    assert len(notebook.cells) <= 45
    assert len(lines) <= (260 if first else 300)
    assert len(re.findall(r"\w+", prose)) <= (2_300 if first else 2_500)
    assert source.with_suffix(".ipynb").stat().st_size < 1_500_000
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png", "")
            assert len(picture) * 3 / 4 < 100_000, f"the figure of cell {number} is over 100 KB"


# Made on a machine whose CPU has no bf16: their times there are still to be measured.
NO_BF16_YET = {"07c_which_data", "08b_places_and_time"}


@each_notebook
def test_the_header_says_what_the_readme_needs_and_one_headline_is_printed(notebook, source):
    known = notebooks.facts(source.read_text(encoding="utf-8"))
    assert {"title", "builds"} <= set(known)
    times = notebooks.recorded()
    assert source.stem in times["plain"]["seconds"]
    assert (source.stem in times["bf16"]["seconds"]) == (source.stem not in NO_BF16_YET)
    printed = "\n".join(
        o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", [])
    )
    assert len(re.findall(r"^HEADLINE: \S", printed, flags=re.M)) == 1


def headings(page):
    """What `#...` in a link may name on a page: its headings as GitHub writes them in an address."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = [title.lower() for title in re.findall(r"^#+ (.+?)\s*$", text, flags=re.M)]
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def broken_links(text, page):
    """The relative links of `text`, which stands in the file `page`, that lead to no file or to no heading."""
    links = re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", text)
    links += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        known = target.suffix == ".md" and target.is_file()
        if not target.exists() or (heading and known and heading not in headings(target)):
            broken.append(link)
    return broken


@each_notebook
def test_links_in_a_notebook_lead_to_files(notebook, source):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert broken_links(text, source.with_suffix(".ipynb")) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "data" / "README.md"], ids=name_of)
def test_links_in_a_page_lead_to_files_and_headings(page):
    assert broken_links(page.read_text(encoding="utf-8"), page) == []


def test_a_link_to_nothing_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Are *2* `parts`?\n```sh\n# no heading\n```\n")
    links = "[a](#are-2-parts) [b](page.md#are-2-parts) [c](page.md#no-heading) [d](gone.md) [e](https://x.org/#y)"
    assert broken_links(links, page) == ["page.md#no-heading", "gone.md"]


def test_every_page_is_reached_from_the_readme():
    text = PAGES[0].read_text(encoding="utf-8")
    assert [name_of(page) for page in PAGES[1:] if f"]({name_of(page)})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tables_of_a_page_are_the_generated_ones(page):
    assert notebooks.page(page) == page.read_text(encoding="utf-8"), (
        f"{name_of(page)} is stale: run `make notebooks`"
    )


def test_every_generated_table_stands_on_one_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(re.findall(r"^<!-- (\w+) -->$", text, flags=re.M)) == sorted(notebooks.GENERATED)
