"""`make notebooks`: run again and save what is stale, and write by machine whatever repeats a figure or an address.

How to write a notebook (NN_name.py is the source, NN_name.ipynb is made from it and is what Colab opens):

    # ---
    # jupyter:
    #   accelerator: GPU
    #   colab:
    #     provenance: []
    #   jupytext:
    #     text_representation:
    #       extension: .py
    #       format_name: percent
    #   kernelspec:
    #     display_name: Python 3
    #     language: python
    #     name: python3
    #   vlm_lite:
    #     title: Start here                             for the pages' tables
    #     builds: a VLM, asked and tested               likewise: what the learner builds
    #     minutes_t4_estimate: 3                        leave it out while the notebook has no t4 part
    #     reads: [zoo/shapes-clip, results/clip.json]   under data/: files and folders whose change makes it stale
    # ---

Then three cells, which this tool rewrites: the badges ("Read it", and "Do the exercises" where there are some, which
opens the blank copy in labs/), a code cell tagged `setup`, and in the header's text a line
`<!-- figures -->` and a line `<!-- /figures -->` for the measured time and memory. Write the first two as

    # %% [markdown]
    # Read it: [![Open in Colab](...)](...)

    # %% tags=["setup"]
    ...

and they are filled in. The setup cell leaves `profile` (a Profile) and `compute` (a Compute) behind. A cell tagged
`thumbnail` has the figure for the README (else the last figure is taken). One printed line that begins with
`HEADLINE: ` holds the figure that `make course` shows. `outputs_of` in the header is this tool's: it says of which
code the outputs are. Times and memory come from data/times.json, which `make course ALL=1 RECORD=1` writes.

With `lesson: clip` in the header's table the code cells tagged `save` are written, in order and with their solutions, to
`vlm_lite/lessons/clip.py`: what later notebooks, studies and tests import is what the notebook shows. They hold imports,
functions, classes and constants, and use nothing that another cell made. With `lesson: [qformer, vlm]` the cells tagged
`save` are the first and those tagged `save-vlm` the second, which imports what it uses of the first.
"""

import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import jupytext
import nbformat
from jupytext.cli import jupytext as jupytext_command

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import execute, timing  # noqa: E402
from vlm_lite.files import UserError, atomic_write  # noqa: E402
from vlm_lite.labs import build  # noqa: E402

THUMBNAILS = "docs/thumbnails"
NOTEBOOK_KEYS = set(
    "kernelspec language_info jupytext accelerator colab execution vlm_lite".split()
)
CELL_KEYS = set("tags nbgrader nbmake cellView lines_to_next_cell".split())
COLAB = "https://colab.research.google.com"
SETUP = """# %% tags=["setup"]
profile = "tiny"  # @param ["tiny", "t4"]

import importlib.metadata
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vlm_lite") is None:
    # Naming what is installed keeps pip from changing it.
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "numpy", "transformers")
        if importlib.util.find_spec(name)
    ]
    source = "git+https://github.com/{slug}@{ref}"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers={offers}), get_compute()
print(describe(profile, compute, notebook="{notebook}", t4_minutes={t4}))
"""


def repository(root=ROOT):
    """(slug, ref) of the repository that badges and install cells point to, from pyproject.toml."""
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vlm-lite"]
    return table["slug"], table["ref"]


def badge(file, root):
    """The badge that opens a file of the repository in Colab."""
    slug, ref = repository(root)
    address = f"{COLAB}/github/{slug}/blob/{ref}/{file}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({address})"


def ref_of(version):
    """The ref that a version of the package belongs to: "v1.2.0" for the release 1.2.0, "main" for 1.3.0.dev0."""
    return "main" if ".dev" in version else f"v{version}"


def sources(root=ROOT):
    """The notebooks' sources, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]*_*.py"))


def main_line(paths):
    """Those of `paths` that are no companion: 00, 01, ..., without 01b, 01t and so on."""
    return [path for path in paths if number(path.stem).isdigit()]


def number(name):
    """The number that a notebook's name begins with: "01", and "01b" for a companion."""
    return name.partition("_")[0]


# ---- the source, and what is generated in it


def facts(text):
    """The `vlm_lite` table of the YAML header of a notebook's source."""
    return dict(jupytext.reads(text, fmt="py:percent").metadata.get("vlm_lite", {}))


def set_fact(text, key, value):
    """`text` with `key: value` in the header's `vlm_lite` table, replaced or put first."""
    head, separator, body = text.partition("\n# ---\n")
    line = f"#     {key}: {value}"
    head, found = re.subn(rf"^#     {key}:.*$", line, head, flags=re.M)
    if not found:
        head = head.replace("#   vlm_lite:", f"#   vlm_lite:\n{line}")
    return head + separator + body


def generate(text, name, root=ROOT):
    """`text`, a notebook's source, with its badge, setup cell and header figures written anew."""
    slug, ref = repository(root)
    t4 = facts(text).get("minutes_t4_estimate")
    badges = f"Read it: {badge(f'notebooks/{name}.ipynb', root)}"
    if build.BEGIN in text:
        badges += f" Do the exercises: {badge(f'labs/{name}.ipynb', root)}"
    text = _filled(r"^# [^\n]*\[!\[Open in Colab\][^\n]*$", f"# {badges}", text)
    setup = SETUP.replace("{slug}", slug).replace("{ref}", ref).replace("{notebook}", name)
    setup = setup.replace("{offers}", '("tiny", "t4", "smoke")' if t4 else '("tiny", "smoke")')
    setup = setup.replace(", t4_minutes={t4}", f", t4_minutes={t4:g}" if t4 else "")
    if not t4:
        setup = setup.replace('["tiny", "t4"]', '["tiny"]')
    text = _filled(r'^# %% tags=\["setup"\]\n.*?(?=\n# %%)', setup, text)
    run, memory = minutes_on_tiny(name, root), memory_on_tiny(name, root)
    measured = f"about {run} and {memory} of memory on `tiny` (measured, 2 CPU cores)"
    run = measured if run else "not measured yet on `tiny`"
    run += f"; about {t4:g} min on a T4 (an estimate until someone has measured it)" if t4 else ""
    figures = f"# <!-- figures -->\n# **Run time:** {run}.\n# <!-- /figures -->"
    return _filled(r"^# <!-- figures -->\n.*?^# <!-- /figures -->$", figures, text)


def _filled(pattern, made, text):
    """`text` with `made` in the place of the first that fits `pattern`."""
    return re.sub(pattern, lambda _: made, text, count=1, flags=re.M | re.S)


def recorded(root=ROOT):
    """The recorded times: see `vlm_lite.speed`."""
    return json.loads((root / "data" / "times.json").read_text(encoding="utf-8"))


def minutes_on_tiny(name, root=ROOT):
    """Such as "3.5 min (1.5 with bf16)", of two plain CPU cores and of two with bf16; "" where not measured."""
    plain, bf16 = (recorded(root)[kind]["seconds"].get(name) for kind in ("plain", "bf16"))
    fast = f"{in_minutes(bf16):g}" if bf16 else "unknown"
    return f"{in_minutes(plain):g} min ({fast} with bf16)" if plain else ""


def minutes_of(target, root=ROOT):
    """Such as "about 16 minutes (8)": `make TARGET` on two plain CPU cores, and on two with bf16."""
    course = [source.stem for source in main_line(sources(root))]
    names = course if target == "course" else [target]
    plain, bf16 = (
        sum(recorded(root)[kind]["seconds"].get(name, 0) for name in names) / 60
        for kind in ("plain", "bf16")
    )
    return f"about {plain:.0f} minutes ({bf16:.0f})"


def memory_on_tiny(name, root=ROOT):
    """Such as "2.1 GB"; "" where not measured."""
    memory = recorded(root)["plain"]["memory_mb"].get(name)
    return f"{memory / 1000:.1f} GB" if memory else ""


def in_minutes(seconds):
    """Minutes, to half a minute, at least half a one."""
    return max(0.5, round(seconds / 30) / 2)


def code_hash(text, root=ROOT):
    """sha256 of what the outputs depend on: the code cells, and the files under data/ that the header says are read.

    The setup cell counts as its template, so that neither a new tag nor a new measurement makes a notebook stale.
    """
    digest = hashlib.sha256(SETUP.encode())
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            digest.update(b"\0cell\0" + cell.source.encode())
    for name in facts(text).get("reads", []):
        path = root / "data" / name
        if not path.exists():
            raise SystemExit(
                f"the header says that the notebook reads data/{name}, which does not exist: correct "
                "`reads`, or make the file"
            )
        for file in sorted(
            p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()
        ):
            digest.update(
                b"\0file\0" + file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes()
            )
    return digest.hexdigest()


# ---- the lesson made from it

LESSON = '''"""{builds}.

Generated from notebooks/{name}.py by `make notebooks`: edit the notebook.
"""

'''


def lessons(text, name):
    """[(path under the root, text), ...]: the modules made of the cells tagged `save`; none where no lesson is named.

    Raises SystemExit, with the line, where a saved cell holds anything but imports, functions, classes and constants.
    """
    known, made, before = facts(text), [], {}
    named = known.get("lesson") or []
    for module in [named] if isinstance(named, str) else named:
        cells = _saved(text, name, f"save-{module}" if made else "save")
        body = "\n\n\n".join(cells) + "\n"
        used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
        for path, defined in before.items():  # what it takes from the lessons before it
            if found := sorted(used & defined):
                body = _with_import(body, f"from {path} import {', '.join(found)}")
        nodes = ast.parse(body).body
        before[f"vlm_lite.lessons.{module}"] = {n.name for n in nodes if hasattr(n, "name")}
        head = LESSON.format(builds=known["builds"][0].upper() + known["builds"][1:], name=name)
        made.append((f"vlm_lite/lessons/{module}.py", head + body))
    return made


def _saved(text, name, tag):
    """The sources of the cells with this tag, without the lines that mark a solution."""
    cells = [
        re.sub(r"^[ \t]*### (BEGIN|END) SOLUTION\n?", "", cell.source + "\n", flags=re.M).strip()
        for cell in jupytext.reads(text, fmt="py:percent").cells
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", [])
    ]
    for cell in cells:
        for node in ast.parse(cell).body:
            if not _may_be_saved(node):
                line = cell.splitlines()[node.lineno - 1]
                raise SystemExit(
                    f"{name}: a cell tagged {tag} holds `{line}`; only imports, functions, classes and "
                    "constants (NAMES in capitals) belong there"
                )
    return cells


def _with_import(body, line):
    """`body` with an import of this package at its place among those that it has."""
    lines = body.splitlines(keepends=True)
    later = [k for k, each in enumerate(lines) if each.startswith("from vlm_lite.") and each > line]
    return "".join([*lines[: later[0]], line + "\n", *lines[later[0] :]])


def _may_be_saved(node):
    if isinstance(node, ast.Assign):
        names = {n.id for target in node.targets for n in ast.walk(target) if hasattr(n, "id")}
        return all(each.isupper() for each in names)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


# ---- the notebook made from it


def paired(source):
    """The text of the .ipynb that `jupytext --update --to ipynb` makes of `source` and of the .ipynb beside it."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / source.name
        copied.write_bytes(source.read_bytes())
        beside = source.with_suffix(".ipynb")
        if beside.exists():
            copied.with_suffix(".ipynb").write_bytes(beside.read_bytes())
        with contextlib.redirect_stdout(io.StringIO()):
            jupytext_command(["--quiet", "--update", "--to", "ipynb", str(copied)])
        return copied.with_suffix(".ipynb").read_text(encoding="utf-8")


def as_text(notebook):
    """The text of a notebook file as jupytext writes it."""
    return nbformat.writes(notebook) + "\n"


def tidy(notebook):
    """Allow-listed metadata, and cell ids that follow from the cells' text, in place."""
    notebook.nbformat_minor = 5
    _keep_only(notebook, NOTEBOOK_KEYS)
    seen = {}
    for cell in notebook.cells:
        _keep_only(cell, CELL_KEYS)
        name = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return notebook


def _keep_only(owner, keys):
    kept = {key: value for key, value in owner.metadata.items() if key in keys}
    owner.metadata = nbformat.NotebookNode(kept)


def write_if_changed(path, text):
    """Write `text` to `path` unless it is there already."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path, "w") as file:
            file.write(text)
        print(f"  wrote {path}", flush=True)


def refresh(source, force=False, root=ROOT):
    """Bring one notebook up to date; True when it was run. Raises SystemExit naming the cell where one fails."""
    target = source.with_suffix(".ipynb")
    text = generate(source.read_text(encoding="utf-8"), source.stem, root)
    now = code_hash(text, root)
    for path, made in lessons(text, source.stem):
        write_if_changed(root / path, made)  # first: what the notebook runs may import it
    stale = force or not target.exists() or facts(text).get("outputs_of") != now
    if stale:
        print(f"{source.stem}: running", flush=True)
        executed = _run(text, source.stem)
        text = set_fact(text, "outputs_of", now)
    write_if_changed(source, text)
    notebook = tidy(nbformat.reads(paired(source), as_version=4))
    for cell, ran in zip(notebook.cells, executed.cells if stale else (), strict=stale):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    write_if_changed(target, as_text(notebook))
    if stale or not thumbnail(source, root).exists():
        _write_thumbnail(notebook, thumbnail(source, root))
    return stale


def _run(text, name):
    notebook = tidy(jupytext.reads(text, fmt="py:percent"))
    with tempfile.TemporaryDirectory() as home:  # a first run, as on a fresh runtime
        environment = {"VLM_LITE_HOME": home, "HF_HUB_OFFLINE": "1"}
        run = execute.run_notebook(notebook, environment=environment)
    if run.failure:
        said = f"cell {run.failure.cell} failed: {run.failure.error}"
        raise SystemExit(f"{name}: {said}. Nothing was saved.")
    print(f"  {run.seconds:.0f} s, {run.peak_mb:.0f} MB", flush=True)
    return notebook


# ---- the pages


def thumbnail(source, root=ROOT):
    return root / THUMBNAILS / f"{source.stem}.png"


def _write_thumbnail(notebook, path):
    from PIL import Image, ImageOps

    images = execute.figures(notebook, "thumbnail") or execute.figures(notebook)
    if not images:
        return
    png = io.BytesIO(base64.b64decode(images[-1]["image/png"]))
    canvas = ImageOps.pad(Image.open(png).convert("RGB"), (480, 320), color="white")
    with atomic_write(path) as file:
        canvas.quantize(128).save(file, "png", optimize=True)
    print(f"  wrote {path}", flush=True)


def pages(root=ROOT):
    """README.md and the pages in docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def page(path, root=ROOT):
    """The text of the page at `path` with its addresses, its minutes and what stands between markers made anew.

    Markers are `<!-- notebooks -->` and `<!-- /notebooks -->`, and so on for each name in GENERATED.
    """
    text = path.read_text(encoding="utf-8")
    slug, ref = repository(root)
    text = re.sub(
        r"(colab\.research\.google\.com/github/)[^/\s]+/[^/\s]+/blob/[^/\s]+/",
        rf"\g<1>{slug}/blob/{ref}/",
        text,
    )
    text = re.sub(r"(git clone https://github\.com/)[\w.-]+/[\w.-]+", rf"\g<1>{slug}", text)
    for target, what in (
        ("course", "notebooks 00 to 10, with pages in build/course/ (ALL=1: companions too)"),
        ("test", "lint, unit tests, notebooks 00 to 10, and companions on smoke"),
    ):
        line = f"make {target:8} # {what}: {minutes_of(target, root)}"
        text = _filled(rf"^make {target} +#[^\n]*$", line, text)
    up = "../" * (len(path.relative_to(root).parts) - 1)
    for marker, made in GENERATED.items():
        start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
        if start in text:
            content = re.sub(r"""(\]\(|(?:src|href)=")(?![a-z]+:|#)""", rf"\g<1>{up}", made(root))
            text = _filled(f"{start}.*?{end}", start + content + "\n" * bool(content) + end, text)
    return text


def notebook_table(root=ROOT):
    """The syllabus: each notebook with its figure, what it builds, its companions, what it costs, and its badge."""
    rows = ["| notebook | you build | 2 plain CPU cores | open |", "|---|---|---|---|"]
    links, built = {}, {}
    for source in sources(root):
        known = facts(source.read_text(encoding="utf-8"))
        file, built[source] = f"notebooks/{source.stem}.ipynb", known["builds"]
        title = f"{number(source.stem)} {known['title']}"
        links[source] = f"[{title}]({file})"
        if thumbnail(source, root).exists() and number(source.stem).isdigit():
            image = f"{THUMBNAILS}/{source.stem}.png"
            figure = f'<img src="{image}" width="130" alt="figure of {title}">'
            links[source] = f'<a href="{file}">{figure}</a><br>{links[source]}'
    for source in main_line(links):
        own = number(source.stem)
        more = [link for s, link in links.items() if s != source and s.stem.startswith(own)]
        builds = built[source] + f"<br><br>Companions: {', '.join(more)}" * bool(more)
        minutes = minutes_on_tiny(source.stem, root)
        link = badge(f"notebooks/{source.stem}.ipynb", root)
        rows.append(f"| {links[source]} | {builds} | {minutes} | {link} |")
    return "\n".join(rows)


def result(root=ROOT):
    """The figure and the printed line of notebook 03, as its saved outputs hold them."""
    found = [s for s in sources(root) if number(s.stem) == "03" and thumbnail(s, root).exists()]
    if not found:
        return ""
    (source,) = found
    notebook = execute.read_notebook(source.with_suffix(".ipynb"))
    return (
        f'<a href="notebooks/{source.stem}.ipynb"><img src="{THUMBNAILS}/{source.stem}.png" width="480" '
        f'alt="a figure of notebook 03"></a>\n\n> {execute.headline(notebook)}'
    )


def record_table(root=ROOT):
    """The recorded studies: what each is, the command that repeats it, and what it took where."""
    rows = ["| record | what | command | minutes | measured on |", "|---|---|---|---|---|"]
    for path in sorted((root / "data" / "results").glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        if "command" in known:
            what = " ".join(known["what"].split())
            minutes = f"{in_minutes(known['seconds']):g}"
            rows.append(
                f"| [{path.stem}](data/results/{path.name}) | {what} | `{known['command']}` | "
                f"{minutes} | {known['hardware']} |"
            )
    return "\n".join(rows)


def lab_table(root=ROOT):
    """The labs: exercises, points, minutes, prerequisites, the badge of the student's copy."""
    rows = [
        "| lab | exercises | points | minutes to read, to write | before it | student's copy |",
        "|---|---|---|---|---|---|",
    ]
    for name, (notebook, found) in build.labs(root / "notebooks").items():
        title = f"{number(name)} {facts((root / 'notebooks' / f'{name}.py').read_text(encoding='utf-8'))['title']}"
        text = "\n".join(
            cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"
        )
        reading = re.search(r"\*\*Reading time:\*\* (\d+) min", text)
        before = re.search(r"\*\*Before this:\*\*\s+(.*?)(?:\.\s|\.?$|\n\n)", text, flags=re.S)
        before = re.sub(
            r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(before[1].split() if before else [])
        )
        rows.append(
            f"| [{title}](labs/{name}.ipynb) | {len(found)} | {sum(each.points for each in found)} | "
            f"{reading[1] if reading else ''}, {sum(each.minutes for each in found)} | {before} | "
            f"{badge(f'labs/{name}.ipynb', root)} |"
        )
    return "\n".join(rows) if len(rows) > 2 else ""


GENERATED = {
    "notebooks": notebook_table,
    "result": result,
    "labs": lab_table,
    "records": record_table,
    "bench": lambda root: timing.table(root / "docs" / "bench.json"),
}


def write_pages(root=ROOT):
    """Write README.md and the pages in docs/ anew."""
    for path in pages(root):
        write_if_changed(path, page(path, root))


def write_labs(root=ROOT):
    """Write the students' copies in labs/ anew, and take away what no longer belongs there."""
    kept = build.build_all(root / "labs", root / "notebooks")
    for path in (root / "labs").glob("*.ipynb"):
        if path not in kept:
            path.unlink()


def main():
    parser = argparse.ArgumentParser(
        description="Run again and save the stale notebooks; rewrite what is generated."
    )
    parser.add_argument("--force", action="store_true", help="run all, stale or not")
    parser.add_argument("names", nargs="*", help="only these (NN or NN_name); default: all")
    options = parser.parse_args()
    chosen = [
        s for s in sources() if not options.names or {s.stem, number(s.stem)} & {*options.names}
    ]
    ran = [source.stem for source in chosen if refresh(source, options.force)]
    try:
        write_labs()
    except UserError as error:
        sys.exit(str(error))
    write_pages()
    print(f"{len(ran)} of {len(chosen)} notebooks run again; the rest were up to date.")


if __name__ == "__main__":
    main()
