"""What a machine may lack for the course, each in a line that says what to do. Needs the standard library alone.

Asked where a command begins: `tools/install.py`, `make course` and `vlm-lite doctor`.
"""

import os
import platform
import re
import sys
from pathlib import Path

from vlm_lite.files import data_path, read_json

# Measured with torch 2.14.1: the libraries alone map 5.3 GB, with CUDA's among them; notebook 00 maps 6.8 GB.
LEAST_ADDRESS_SPACE_GB = 7.0
FOR_THE_SYSTEM_GB = 1.0
TORCH_RUNS_ON = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "amd64")}
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|failed to map|annot allocate memory|can't allocate memory|CUDA out of memory"
)


def concerns():
    """Yield (whether nothing can run, line) for what this machine is short of; nothing on one that has everything."""
    system, processor = sys.platform, platform.machine()
    if (system, processor.lower()) not in TORCH_RUNS_ON:
        yield (
            False,
            f"There is no torch for {system} on {processor}, as far as we know. Open the notebooks in Colab (their "
            "badges), or install into a Python environment that has a torch: pip install -e .",
        )
    elif not locked():
        yield (
            False,
            f"This is {system} on {processor}; the course was tried on Linux on x86_64 only. Times will differ.",
        )
    if cores() == 1:
        yield (
            False,
            "There is one CPU core: all works, and takes about twice as long as the times given, which are for two.",
        )
    limit, memory = address_space_gb(), memory_gb()
    if limit and limit < LEAST_ADDRESS_SPACE_GB:
        yield (
            True,
            f"A program may use {limit:.1f} GB of address space here (ulimit -v); torch and the other libraries alone "
            f"take about {LEAST_ADDRESS_SPACE_GB:g}. Lift the limit: `ulimit -v unlimited`, or at least "
            f"{2 * LEAST_ADDRESS_SPACE_GB:g} GB. Where that is refused, open the notebooks in Colab (their badges).",
        )
    peaks = notebook_peaks_gb()
    large = [name for name in peaks if memory and peaks[name] + FOR_THE_SYSTEM_GB > memory]
    if large:
        listed = ", ".join(f"{name} ({peaks[name]:.1f} GB)" for name in large)
        rest = ", ".join(name for name in peaks if name not in large)
        yield (
            False,
            f"There are {memory:.1f} GB of memory; these notebooks may not fit beside the system: {listed}. Close other "
            f"programs, or open them in Colab (their badges). These need less: {rest or 'none'}.",
        )


def announce(stop=True):
    """Print the concerns on stderr; with `stop`, end the program at one with which nothing can run."""
    for fatal, line in concerns():
        if fatal and stop:
            sys.exit(line)
        print(line, file=sys.stderr, flush=True)


def locked():
    """Whether requirements.lock holds for this machine: Linux on x86_64."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def cores():
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def address_space_gb():
    """What `ulimit -v` lets a program map, in GB (10^9 bytes); None where nothing is limited."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft / 1e9


def memory_gb(limit_files=("/sys/fs/cgroup/memory.max",)):
    """The memory of the machine, or of the container where that is less, in GB (10^9 bytes); None where unknown."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for file in limit_files:
        try:
            sizes.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no container, or "max"
            pass
    return min(sizes) / 1e9


def notebook_peaks_gb():
    """{"03_qformer_gpt2": 3.9, ...}: the peak memory of each notebook, as recorded in data/times.json."""
    times = read_json(data_path("times.json"))
    return {name: megabytes / 1e3 for name, megabytes in times["plain"]["memory_mb"].items()}


def memory_hint(error):
    """What to do about an error, or a message, that comes of too little memory; "" for every other."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    if not NO_MEMORY.search(text):
        return ""
    return (
        "there was not enough memory. Close other programs, lift a limit (`ulimit -v unlimited`), or open the "
        "notebook in Colab; the README's table gives the memory that each notebook takes"
    )
