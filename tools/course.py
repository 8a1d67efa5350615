"""`make course`: run the notebooks on tiny, and write what they showed to build/course/index.html.

With --record the seconds and the memory of the run become this kind of CPU's column of data/times.json, from which
headers and pages are written (`make notebooks`). With --record-seconds NAME S one other figure goes there. With --t4
(`vlm-lite verify-t4`) the notebooks that have a part for t4 run at t4, and rows of docs/status.md's table are printed.
"""

import argparse
import html
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import jupytext
import pandas as pd
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite import machine  # noqa: E402

if __name__ == "__main__":  # before torch is loaded, which fails where memory is limited
    machine.announce()

from tools import execute, notebooks  # noqa: E402
from vlm_lite import speed  # noqa: E402
from vlm_lite.files import write_json  # noqa: E402
from vlm_lite.profiles import get_compute  # noqa: E402

COLUMNS = ("seconds", "peak memory, MB", "headline")
OUT = ROOT / "build" / "course"
TIMES = ROOT / "data" / "times.json"
BUDGET_MINUTES = {"plain": 24, "bf16": 12}  # for notebooks 00 to 10 on two cores
GPU_MEMORY = "import torch\n\nprint(torch.cuda.max_memory_allocated() / 1e9)"  # a last cell at t4
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vlm-lite: the course</title>
<style>body {{font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}}
td, th {{text-align: left; padding: .4em 1em .4em 0; border-bottom: 1px solid #ccc; vertical-align: top}}
.strip img {{height: 11em; margin: .5em .5em 0 0; border: 1px solid #ccc}}</style></head>
<body><h1>vlm-lite: the course</h1><p>Run on the profile <code>tiny</code> on {day}.</p>
{rows}<div class="strip">{pictures}</div></body></html>
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the times to data/times.json")
    parser.add_argument("--all", action="store_true", help="companions (01b, 01t, ...) as well")
    parser.add_argument("--record-seconds", nargs=2, metavar=("NAME", "S"), help="only that")
    parser.add_argument("--t4", action="store_true", help="at t4: rows of docs/status.md's table")
    options = parser.parse_args(arguments)
    compute = get_compute()
    if options.record_seconds:
        name, seconds = options.record_seconds
        return record(compute, {name: round(float(seconds))})
    paths = notebooks.sources()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.t4:
        return verify_t4(paths, compute)
    paths = paths if options.all else notebooks.main_line(paths)
    if not paths:
        sys.exit("there is no notebook in notebooks/: is this a whole clone?")
    print(expected(compute, [path.stem for path in paths]), flush=True)
    if options.record:  # a first run is what gets measured: nothing is in the cache
        home = tempfile.TemporaryDirectory()
        os.environ["VLM_LITE_HOME"] = home.name
    results = []
    try:
        for k, path in enumerate(paths, start=1):
            results.append(course_run(path, k, len(paths)))
    except KeyboardInterrupt:
        # asyncio would tell what became of the cut cell
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print(
            f"\nStopped in {paths[len(results)].stem}; the {len(results)} notebooks before it have new pages in "
            f"{OUT.relative_to(ROOT)}. `make course` begins again with the first.",
            file=sys.stderr,
        )
        return 130
    print(f"\n{table(results).to_string()}")
    kind = speed.kind_of_cpu(compute)
    minutes = sum(result["seconds"] for result in results) / 60
    print(
        f"\n{minutes:.1f} minutes on a {kind} CPU; 00 to 10 may take {BUDGET_MINUTES[kind]} on two cores."
    )
    write_index(results)
    print(f"Read it: {OUT.relative_to(ROOT) / 'index.html'}")
    failed = {result["name"]: result["failure"] for result in results if result["failure"]}
    for name, failure in failed.items():
        print(f"\n{name}: cell {failure.cell} failed: {failure.error}", file=sys.stderr)
    if options.record and not failed:
        kept = ({r["name"]: round(r[kind]) for r in results} for kind in ("seconds", "memory"))
        record(compute, *kept)
    return int(bool(failed))


def expected(compute, names):
    """A line on how long the notebooks `names` will take here, from the recorded times and a second's measurement."""
    factor, rate, recorded = speed.slowdown(compute)
    known = speed.recorded_times()[speed.kind_of_cpu(compute)]
    minutes = sum(known["seconds"].get(name, 0) for name in names) / 60
    told = f"Expect about {minutes * factor:.0f} minutes"
    if factor > 1:
        told += f", and not the recorded {minutes:.0f}: this CPU does {rate:.0f} GFLOP/s, the recorded one {recorded:.0f}"
    return f"{told} ({os.cpu_count()} cores, {compute.reason})."


def record(compute, seconds, memory=None):
    """Write figures into this kind of CPU's column of data/times.json, with the CPU and the day."""
    times, kind = speed.recorded_times(), speed.kind_of_cpu(compute)
    column = times.setdefault(kind, {"seconds": {}, "memory_mb": {}})
    column["seconds"] |= seconds
    column["memory_mb"] |= memory or {}
    if memory:
        column |= {"cpu": compute.hardware, "date": time.strftime("%Y-%m-%d")}
        column["gflops"] = round(speed.rate_of(compute))
    write_json(TIMES, times)
    print(f"recorded in {TIMES.relative_to(ROOT)}: {', '.join(seconds)} ({kind})")


def verify_t4(paths, compute):
    """Run at t4 what has a part for it; print a row of docs/status.md's table each as it ends, and what it ran on."""
    if compute.device != "cuda":
        sys.exit(
            f"verify-t4 needs a CUDA GPU and the model hub ({compute.reason}). Choose a GPU runtime, or run t4's path "
            "without either on a made mirror: vlm-lite rehearse."
        )
    paths = [p for p in paths if "minutes_t4_estimate" in notebooks.facts(p.read_text("utf-8"))]
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    results, rows = [], []
    for k, path in enumerate(paths, start=1):
        results.append(course_run(path, k, len(paths), "t4"))
        name, minutes = path.stem, f"{results[-1]['seconds'] / 60:.1f} | {results[-1]['gpu']}"
        said = table(results[-1:]).headline.iloc[0]
        rows.append(f"| {name} | {time.strftime('%Y-%m-%d')} | {commit} | {minutes} | {said} |")
        print(rows[-1], flush=True)
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "timm")]
    print("", *rows, f"\n{compute.reason}; {compute.hardware}; {', '.join(versions)}", sep="\n")
    return any(each["failure"] for each in results)


def course_run(path, k, of, profile="tiny"):
    """Run one notebook, write its page, and return its row."""
    label = f"[{k}/{of}] {path.stem}"
    print(f"{label} ...", flush=True)
    notebook = jupytext.read(path)
    notebook.cells += [new_code_cell(GPU_MEMORY)] * (profile == "t4")
    run = execute.run_notebook(notebook, profile=profile)
    memory = notebook.cells.pop().outputs if profile == "t4" else []
    status = f"failed in cell {run.failure.cell}" if run.failure else "done"
    print(f"{label}: {status} in {run.seconds:.0f} s", flush=True)
    (OUT / f"{path.stem}.html").write_text(as_html(notebook, path.stem), encoding="utf-8")
    return {
        "name": path.stem,
        "seconds": run.seconds,
        "memory": run.peak_mb,
        "gpu": f"{float(memory[0].text):.1f} GB" if memory else "unknown",
        "failure": run.failure,
        "headline": execute.headline(notebook),
        "pictures": execute.figures(notebook, "thumbnail") or execute.figures(notebook)[-1:],
    }


def as_html(notebook, name):
    """The page of an executed notebook: figures inside, each described by its label, and links to the other pages.

    It needs no network: formulas are MathML, and the scripts of nbconvert's template, which would fetch others, go.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(filters={"markdown2html": as_markup})
    page = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})[0]
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    labels = [html.escape(execute.label(data), quote=True) for data in execute.figures(notebook)]
    page = re.sub(
        r'alt="No description has been provided for this image"',
        lambda _: f'alt="{labels.pop(0) if labels else "a figure"}"',
        page,
    )
    return re.sub(r'href="([0-9]{2}_\w+)\.ipynb', r'href="\1.html', page)


def as_markup(markdown):
    """Markdown -> HTML, with formulas as MathML."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return convert(body)

        def block_math(self, body):
            return convert(body, display="block")

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(markdown)


def table(results):
    """A row for each notebook: seconds, memory, and what it found or how it failed."""
    rows = {}
    for result in results:
        failure = result["failure"]
        said = f"FAILED in cell {failure.cell}: {failure.error}" if failure else result["headline"]
        numbers = [f"{result['seconds']:.0f}", f"{result['memory']:.0f}"]
        rows[result["name"]] = dict(zip(COLUMNS, [*numbers, said], strict=True))
    return pd.DataFrame(rows).T


def write_index(results):
    rows = (
        table(results)
        .map(html.escape)
        .rename(index=lambda name: f'<a href="{name}.html">{name}</a>')
    )
    pictures = [
        f'<a href="{result["name"]}.html"><img alt="{result["name"]}" src="data:image/png;base64,{data["image/png"]}"></a>'
        for result in results
        for data in result["pictures"]
    ]
    rows, day = rows.to_html(escape=False, border=0), time.strftime("%Y-%m-%d")
    page = PAGE.format(day=day, rows=rows, pictures="".join(pictures))
    (OUT / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
