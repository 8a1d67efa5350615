"""Set up a virtual environment for the course: python3 tools/install.py FOLDER [--newest | --constraints FILE] [--grade].

Needs nothing but a Python with venv and pip. On Linux on x86_64 it installs the exact versions of requirements.lock; on
other systems, with --newest and with --constraints it installs the newest that the ranges of requirements.txt allow.
After the install it looks whether torchvision works with the torch that came: where pip also knows of a folder with a
CPU-only torch, that torch and the index's torchvision do not fit each other, and the pair is installed once more from
the index alone.

With --grade, and run by the Python of a course's environment, it makes a second one in FOLDER that sees all packages of
the first and has the extra [grade], nbgrader, on top. It is kept apart because nbgrader brings ipywidgets, with which
progress bars are saved as widgets and no longer as text.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite import machine  # noqa: E402  needs the standard library alone

LOCK, GRADE_LOCK = "requirements.lock", "requirements-grade.lock"
EVERY = 20  # seconds
# Other versions are on offer, and the one that is asked for is not; without a network pip lists "none", or what a folder
# of this machine holds, after it has said that connections broke.
GONE = re.compile(r"satisfies the requirement (\S+==\S+) \(from versions: (?!none)")
UNREACHABLE = "after connection broken by"
PAIR_WORKS = (
    "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=lambda text: Path(text).absolute())
    parser.add_argument(
        "--newest", action="store_true", help="the newest of the ranges, not the lock"
    )
    parser.add_argument("--constraints", type=lambda text: Path(text).absolute())
    parser.add_argument(
        "--grade", action="store_true", help="on top of this Python's environment, with nbgrader"
    )
    options = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        sys.exit(
            f"The course runs on Python 3.11 to 3.13; {sys.executable} is {sys.version.split()[0]}. "
            "Name another: make PYTHON=python3.12 ..."
        )
    python = options.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", options.folder])
        if made.returncode:
            sys.exit(
                f"{sys.executable} cannot make a virtual environment (see above). On Debian and Ubuntu: "
                "apt install python3-venv. Or name another Python: make PYTHON=python3.12 ..."
            )
    locked = machine.locked() and not (options.newest or options.constraints)
    if options.grade:
        return on_top(python, locked)
    machine.announce(stop=False)
    if not (locked or options.newest or options.constraints):
        print(
            f"{LOCK} is for Linux on x86_64: installing the newest versions that requirements.txt allows instead.",
            flush=True,
        )
    print(
        f"Setting up {options.folder}. With torch's CUDA libraries this is up to 6.5 GB: a few minutes, only once.",
        flush=True,
    )
    wanted = ["-r", ROOT / (LOCK if locked else "requirements.txt")]
    if options.constraints:
        wanted += ["-c", options.constraints]
    if options.newest:
        wanted += ["--upgrade", "--upgrade-strategy", "eager"]
    pip(python, wanted)
    if not pair_works(python):
        print(
            "torch and torchvision came from different builds and do not fit each other. Installing the pair once "
            "more, from the index alone.",
            flush=True,
        )
        run(python, "-m", "pip", "uninstall", "-qq", "-y", "torch", "torchvision")
        with (
            tempfile.TemporaryDirectory() as empty
        ):  # an empty folder in place of the ones that pip is told to search
            pip(python, wanted, {"PIP_FIND_LINKS": empty})
        if not pair_works(python, show=True):
            sys.exit(
                "torch and torchvision still do not work together (see above). Look at `pip config list` for a "
                "find-links or an index that offers one without the other, and take it out for this install."
            )
    pip(python, ["--no-deps", "--no-build-isolation", "-e", ROOT])
    if options.newest:
        run(python, "-m", "pip", "list", "--format=freeze", "--exclude-editable")


def on_top(python, locked):
    """Let the environment of `python` see this one's packages, and install the extra [grade] there."""
    import tomllib

    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(site, "environment_below.pth").write_text(below, encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip(
        python,
        ["-r", ROOT / GRADE_LOCK] if locked else project["optional-dependencies"]["grade"],
    )


def pip(python, arguments, environment=None):
    """pip install, with errors and a line every `EVERY` seconds; stops the set-up with a hint where pip fails."""
    command = [
        str(part) for part in (python, "-m", "pip", "install", "-qq", "--no-compile", *arguments)
    ]
    started, free = time.monotonic(), shutil.disk_usage(ROOT).free
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )
    said = []
    reader = threading.Thread(target=_show, args=(process.stderr, said), daemon=True)
    reader.start()
    while True:
        try:
            failed = process.wait(EVERY)
            break
        except subprocess.TimeoutExpired:
            written = max(0, free - shutil.disk_usage(ROOT).free) / 1e9
            print(
                f"  installing: {time.monotonic() - started:.0f} s, {written:.1f} GB on disk so far",
                flush=True,
            )
    reader.join()
    if failed:
        said = "".join(said)
        gone = GONE.search(said)
        if gone and UNREACHABLE not in said:
            sys.exit(
                f"The package index has no {gone[1]} for this Python and system any more; {LOCK} asks for it. Install "
                "the newest versions instead: `make course LOCK=` (`make newest` tests them). Maintainers: "
                "`make lock` makes it anew."
            )
        sys.exit(
            "pip could not install what the course needs (see above). A network that reaches the package index, "
            "about 10 GB of free disk and a fresh folder (remove .venv) are what it usually lacks."
        )


def _show(lines, said):
    for line in lines:
        sys.stderr.write(line)
        said.append(line)


def pair_works(python, show=False):
    """Whether torchvision's compiled operators load and run beside the installed torch."""
    return (
        run(python, "-c", PAIR_WORKS, stderr=None if show else subprocess.DEVNULL).returncode == 0
    )


def run(*command, **options):
    """A subprocess that reads nothing and works in the repository's root."""
    return subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, cwd=ROOT, **options
    )


if __name__ == "__main__":
    main()
