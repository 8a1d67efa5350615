"""Fail where this environment holds another version than a constraints file pins: colab_check.py FILE."""

import sys
from importlib import metadata
from pathlib import Path


def differences(constraints):
    """(lines about packages whose installed version is not the pinned one, number of pinned packages installed)."""
    wrong, installed = [], 0
    for line in Path(constraints).read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.partition("#")[0].strip().partition("==")
        if not pinned:
            continue
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Colab has it, and the course does not ask for it
        installed += 1
        if found.split("+")[0] != pinned:
            wrong.append(f"{name}: {found} is installed, Colab has {pinned}")
    return wrong, installed


if __name__ == "__main__":
    wrong, installed = differences(sys.argv[1])
    print("\n".join(wrong) or f"{installed} packages are at the versions that {sys.argv[1]} names.")
    sys.exit(bool(wrong) or installed == 0)
