"""Run a notebook as a learner would: a fresh kernel, an empty folder, nothing kept but the outputs."""

import contextlib
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from vlm_lite import machine

SILENCE = 900  # seconds that a cell may run without printing anything; a moving progress bar prints
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Failure:
    """The cell that failed, counted from 1 as a reader counts them, and the last line of its error."""

    cell: int
    error: str


@dataclass
class Run:
    """What a run gave. The notebook's cells hold their outputs; `failure` is None when every cell ran."""

    seconds: float
    peak_mb: float
    failure: Failure | None


@contextlib.contextmanager
def peak_memory(process_id, on_look):
    """A list of the largest resident memory so far, in MB (10^6 bytes), of a process and its children.

    They are looked at four times a second, and `on_look` is called each time.
    """
    peak, stopped, process = [0.0], threading.Event(), psutil.Process(process_id)

    def watch():
        while not stopped.wait(0.25):
            try:
                family = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(each.memory_info().rss for each in family) / 1e6)
            except psutil.Error:
                pass  # a child ended between being listed and being looked at
            on_look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


class Client(NotebookClient):
    """A NotebookClient without a limit on a cell's time, which interrupts a cell that has been silent for `SILENCE`."""

    silent, last = False, math.inf

    def process_message(self, msg, cell, cell_index):
        self.last = time.monotonic()
        return super().process_message(msg, cell, cell_index)

    def interrupt_if_silent(self):
        """Interrupt the kernel when its cell has printed nothing for too long; kill it the second time."""
        if time.monotonic() - self.last > SILENCE:
            self.km.provisioner.process.send_signal(
                signal.SIGKILL if self.silent else signal.SIGINT
            )
            self.silent, self.last = True, time.monotonic()


def run_notebook(notebook, *, profile="tiny", environment=None):
    """Execute `notebook` (an nbformat node, changed in place) in an empty temporary folder and return its Run.

    `environment` is added to the kernel's.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = {
        **os.environ,
        "VLM_LITE_PROFILE": profile,
        # Without ipywidgets, which would save widget state, tqdm warns and then draws its bar as text.
        "PYTHONWARNINGS": "ignore:IProgress not found",
        **(environment or {}),
    }
    failure = None
    with tempfile.TemporaryDirectory() as folder:
        client = Client(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        start = time.perf_counter()
        try:
            # What the kernel itself says on being interrupted or killed is no news: the failure below has it in words.
            with (
                client.setup_kernel(env=environment, stderr=subprocess.DEVNULL),
                peak_memory(client.km.provisioner.process.pid, client.interrupt_if_silent) as peak,
            ):
                for index, cell in enumerate(notebook.cells):
                    client.last = time.monotonic()
                    try:
                        client.execute_cell(cell, index)
                    except (CellExecutionError, DeadKernelError) as error:
                        silent = f"a cell printed nothing for more than {SILENCE} seconds"
                        failure = Failure(index + 1, silent if client.silent else _last_line(error))
                        break
                seconds = time.perf_counter() - start
        finally:
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None and process.poll() is None:  # after Ctrl-C while it was starting
                process.kill()
    for cell in notebook.cells:
        clean_outputs(cell)
    return Run(seconds, peak[0], failure)


def _last_line(error):
    if isinstance(error, DeadKernelError):
        return "the kernel died, most likely for want of memory"
    line = ANSI.sub("", f"{error.ename}: {error.evalue}").strip().splitlines()[0]
    hint = machine.memory_hint(line)
    return f"{line.rstrip(': ')}: {hint}" if hint else line


def clean_outputs(cell):
    """Make a code cell's outputs fit for keeping: one piece a stream, progress bars as their last line, no widgets."""
    if cell.cell_type != "code":
        return
    kept = []
    for output in cell.outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        elif "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = collapse_progress(output.text)
        output.pop("transient", None)
    cell.outputs = [
        output for output in kept if output.output_type != "stream" or output.text.strip()
    ]


def collapse_progress(text):
    """`text` as a terminal would show it in the end: of what a carriage return overwrote, only the last is left."""
    lines = ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    shown = [
        next((part for part in reversed(line.split("\r")) if part.strip()), "") for line in lines
    ]
    return "\n".join(shown)


def headline(notebook):
    """The text after `HEADLINE:` in the last printed line that begins with it; "" where there is none."""
    found = ""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for line in output.get("text", "").splitlines():
                if line.startswith("HEADLINE:"):
                    found = line.removeprefix("HEADLINE:").strip()
    return found


def figures(notebook, tag=None):
    """The outputs' data with a PNG picture of the cells (those that carry `tag`, if given), in order."""
    return [
        output.data
        for cell in notebook.cells
        if tag is None or tag in cell.metadata.get("tags", [])
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def label(data):
    """What a picture in the outputs shows: the text that stands beside it, `<Figure: ...>`."""
    return data.get("text/plain", "").removeprefix("<Figure: ").removesuffix(">") or "a figure"


def read_notebook(path):
    """The notebook in the file `path`, without checking that it is valid."""
    return nbformat.read(Path(path), as_version=4)
