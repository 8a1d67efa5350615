"""Resolve requirements.lock and requirements-grade.lock anew: python3.11 tools/lock.py (nothing is installed).

Asks pip what it would install today for requirements.txt on this Python, and on top of that for the extra [grade], and
writes down the exact versions. Each package's own requirements are then read again for the later Pythons: one that only
some of them need gets a marker, and one that has no wheel there, or does not run there, stops the command.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")  # resolved on the first
AT_MOST = ("torch<=2.14.1", "torchvision<=0.29.1")  # the newest pair that the course has run with
HEADER = """# The exact versions of {what}: Linux, x86_64, Python {first} to {last}.
# Made by `python{first} tools/lock.py` on {day}, resolved on Python {version}. Do not edit: run that again.
"""


def main():
    python = ".".join(platform.python_version_tuple()[:2])
    if (python, sys.platform, platform.machine()) != (PYTHONS[0], "linux", "x86_64"):
        sys.exit(f"The lock is resolved on Linux x86_64 with Python {PYTHONS[0]}.")
    base = requirements(ROOT / "requirements.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    grade = [*base, *project["optional-dependencies"]["grade"]]

    resolved = resolve([*base, *AT_MOST])
    lines = pins(base, resolved)
    write("requirements.lock", "what `make course` and `make test` install", lines)
    check("requirements.lock")
    held = [line.partition(" ;")[0] for line in lines]
    above = pins(grade, resolve([*grade, *held]))
    write(
        "requirements-grade.lock",
        "what nbgrader needs on top of requirements.lock",
        [line for line in above if line not in lines],
    )
    check("requirements-grade.lock")


def requirements(path):
    """The requirements in a file, without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
    if subprocess.run([*command, "--only-binary=:all:", *arguments], cwd=ROOT).returncode:
        sys.exit("pip found no versions that fit (see above).")


def resolve(wanted):
    """{canonical name: metadata} of what pip would install for the requirements, in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        pip("--report", report, *wanted)
        found = json.loads(Path(report).read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in found}


def pins(wanted, resolved):
    """Lines `name==version`, with a marker where only some of PYTHONS need the package."""
    needed = {version: closure(wanted, resolved, version) for version in PYTHONS}
    lines = []
    for name, package in sorted(resolved.items()):
        where = [version for version in PYTHONS if name in needed[version]]
        marker = " or ".join(f'python_version == "{version}"' for version in where)
        line = f"{name}=={package['version'].partition('+')[0]}"
        lines.append(line if where == list(PYTHONS) else f"{line} ; {marker}")
    return lines


def closure(wanted, resolved, version):
    """Names that the requirements bring in on Python `version`, each allowed at its resolved version."""
    environment = default_environment()
    environment |= {"python_version": version, "python_full_version": f"{version}.0"}
    seen, queue = set(), [(Requirement(text), "") for text in wanted]
    while queue:
        package, extra = queue.pop()
        if package.marker and not package.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(package.name)
        if name not in resolved:
            sys.exit(f"Python {version} needs {package}, which Python {PYTHONS[0]} does not.")
        found = resolved[name]
        if not package.specifier.contains(found["version"], prereleases=True):
            sys.exit(f"Python {version} needs {package}; resolved was {found['version']}.")
        for extra in ("", *package.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                queue += [(Requirement(text), extra) for text in found.get("requires_dist", [])]
    return {name for name, _ in seen}


def write(file, what, lines):
    header = HEADER.format(
        what=what,
        first=PYTHONS[0],
        last=PYTHONS[-1],
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        version=platform.python_version(),
    )
    (ROOT / file).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file}: {len(lines)} packages", flush=True)


def check(file):
    """Stop where a locked version has no wheel for one of the later Pythons, or refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        for version in PYTHONS[1:]:
            pip("--no-deps", "--python-version", version, "--target", folder, "-r", file)
            print(f"{file}: wheels for Python {version}", flush=True)


if __name__ == "__main__":
    main()
