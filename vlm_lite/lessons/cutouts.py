"""Images of cut-outs on photographs, whose captions, questions and answers are right by construction.

Generated from notebooks/10b_cutouts.py by `make notebooks`: edit the notebook.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import torch

from vlm_lite.data.formats import make_dataset
from vlm_lite.data.images import open_image
from vlm_lite.files import UserError, atomic_dir, home

CAPTION_REQUEST, HOW_MANY = "What is in the image?", "How many things are there?"
KINDS = {  # folder of the cut-outs: the answer to "What kind of thing is it?"
    "animals": "It is an animal.",
    "food": "It is food.",
    "plants": "It is a plant.",
    "clothes": "It is clothing.",
    "household": "It is a household thing.",
    "hobbies/music": "It is a musical instrument.",
    "vehicles": "It is a vehicle.",
    "sports": "It is sports equipment.",
}
NOT_PHOTOGRAPHS = {"cartoon", "toys", "plastic"}
SCENES = ("details", "explore_monuments")  # buildings and landscapes, none of them drawn
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("", "There is one.", "There are two.", "There are three.")
SPLITS = ("train", "same", "another", "new")


@dataclass(frozen=True)
class Cutout:
    """One photograph with a transparent background: its name ("a red apple"), its kind and its file."""

    name: str
    kind: str
    path: Path


def read_cutouts(folder):
    """The Cutouts under a folder of Tux Paint's stamps: PNGs of KINDS' folders with a short English name beside them.

    Cartoons are left out, and what the `.txt` does not simply name ("A frog."). UserError where there are none.
    """
    found = []
    for place, kind in KINDS.items():
        for path in sorted(Path(folder, place).rglob("*.png")):
            notes = path.with_suffix(".txt")
            if NOT_PHOTOGRAPHS & set(path.parts) or not notes.exists():
                continue
            first = notes.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
            if re.fullmatch(r"An? [\w’' -]{2,30}\.", first) and len(first.split()) <= 5:
                found.append(Cutout(first[0].lower() + first[1:-1], kind, path))
    if not found:
        raise UserError(
            f"{folder} holds no cut-outs: expected PNG files with a .txt beside each in folders such as animals. "
            "Unpack the package tuxpaint-stamps-default again."
        )
    return found


def draw_parts():
    """A folder laid out as the real packages are, made without a network: drawn cut-outs with names, noise as scenes."""
    folder, shapes = (
        home() / "real" / "drawn-3",
        "triangle square pentagon hexagon heptagon octagon nonagon decagon",
    )
    if folder.is_dir():
        return folder
    with atomic_dir(folder) as made:
        for k, (place, shape) in enumerate(zip(KINDS, shapes.split(), strict=True)):
            Path(made, place).mkdir(parents=True)
            for n, colour in enumerate("red green blue yellow cyan purple red".split()):
                image, path = PIL.Image.new("RGBA", (60, 60)), made / place / f"{n}.png"
                PIL.ImageDraw.Draw(image).regular_polygon((30, 30, 20 + n), 3 + k, fill=colour)
                image.save(path)
                path.with_suffix(".txt").write_text(f"A {colour} {shape}.", encoding="utf-8")
        noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
        with open(made / f"{SCENES[0]}.rcc", "wb") as file:
            for each in noise:
                PIL.Image.fromarray(each).resize((300, 300)).save(file, "webp", lossless=True)
    return folder


def split_cutouts(cutouts):
    """{split: Cutouts}: of each name its last photograph is "another", one name of seven of each kind is "new"."""
    photographs, count, split = {}, {}, {name: [] for name in ("train", "another", "new")}
    for each in cutouts:
        photographs.setdefault((each.kind, each.name), []).append(each)
    for (kind, _), those in photographs.items():
        if len(those) > 1:
            split["train"] += those[:-1]
            split["another"].append(those[-1])
        else:
            count[kind] = count.get(kind, 0) + 1
            split["new" if count[kind] % 7 == 4 else "train"] += those
    return {**split, "same": split["train"]}


def read_backgrounds(folder, least=300):
    """The photographs (RGB) of at least `least` pixels a side in the `.rcc` files of SCENES, in order.

    A Qt resource file stores a WebP image as it is: it begins with RIFF, its length and WEBP. UserError where there are
    too few to train on some and test on others.
    """
    found = []
    for path in [Path(folder, f"{name}.rcc") for name in SCENES]:
        content = path.read_bytes() if path.is_file() else b""
        for match in re.finditer(rb"RIFF(....)WEBP", content, flags=re.S):
            end = match.start() + 8 + int.from_bytes(match[1], "little")
            image = open_image(content[match.start() : end], f"{path.name}, an image")
            if min(image.size) >= least:
                found.append(image)
    if len(found) < 4:
        raise UserError(
            f"{folder} holds {len(found)} photographs in {', '.join(SCENES)} (.rcc); expected at least 4. Unpack the package "
            "gcompris-qt-data again."
        )
    return found


def compose(rng, things, quarters, background, size):
    """An image (size, size, 3): each of the `things` in its quarter of a blurred crop of the background.

    One thing alone is large, and lies anywhere.
    """
    side = int(min(background.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(whole - side + 1)) for whole in background.size)
    image = background.crop((left, top, left + side, top + side)).resize((size, size))
    image = image.filter(PIL.ImageFilter.GaussianBlur(size / 100))
    cell = size if len(things) == 1 else size // 2
    for thing, quarter in zip(things, quarters, strict=True):
        cut = opened_cutout(thing.path, size)
        scale = rng.uniform(0.75, 1) * cell / max(cut.size)
        cut = cut.resize([max(1, int(scale * s)) for s in cut.size])
        if rng.random() < 0.5:
            cut = cut.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        corner = (quarter % 2 * cell, quarter // 2 * cell) if cell < size else (0, 0)
        place = [c + int(rng.integers(cell - s + 1)) for c, s in zip(corner, cut.size, strict=True)]
        image.paste(cut, place, cut)
    return np.asarray(image)


@functools.cache
def opened_cutout(path, size):
    """A cut-out without its margins, of at most `size` pixels a side."""
    with PIL.Image.open(path) as opened:
        cut = opened.convert("RGBA")
    cut = cut.crop(cut.getchannel("A").getbbox())
    cut.thumbnail((size, size))
    return cut


def texts(rng, things, quarters, known):
    """(caption, what the oracle reads, questions as (type, question, answer)) of a composition.

    An answer begins as a language model would begin it: a frozen one keeps its habits.
    """
    names = [each.name for each in things]
    said = told = sentence(names)
    there = bool(rng.integers(2))
    others = [name for name in known if name not in names]
    one = names[rng.integers(len(names))] if there else others[rng.integers(len(others))]
    answer = f"Yes, there is {one}." if there else f"No, there is no {one.split(' ', 1)[1]}."
    questions = [
        ("how many", HOW_MANY, NUMBERS[len(things)]),
        ("is there", f"Is there {one} in the image?", answer),
    ]
    if len(things) == 1:
        questions.append(("kind", "What kind of thing is it?", things[0].kind))
        questions.append(("what", CAPTION_REQUEST, said))
    else:
        places = [f"at the {QUARTERS[quarter]}" for quarter in quarters]
        told = sentence([" ".join(each) for each in zip(names, places, strict=True)])
        asked = rng.integers(len(things))
        the = names[asked].split(" ", 1)[1]
        questions.append(("where", f"Where is the {the}?", f"The {the} is {places[asked]}."))
        questions.append(("what at", f"What is {places[asked]}?", sentence([names[asked]])))
    return said, told, questions


def sentence(parts):
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{joined[0].upper()}{joined[1:]}."


def make_world(cutouts, backgrounds, split, count, *, size=256, seed=0):
    """`count` images of a split: (uint8 (N, 3, S, S), captions, turns, table of questions). Deterministic by seed.

    "train" and "same" show one thing in half of the images and else two or three; "another" and "new" one. One
    background in five is kept for the tests.
    """
    parts = split_cutouts(cutouts)
    pool, known = parts[split], sorted({each.name for each in parts["train"]})
    behind = [b for k, b in enumerate(backgrounds) if (k % 5 == 0) == (split != "train")]
    images, captions, turns, rows = [], [], [], []
    for k in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), k])
        whole, at = divmod(k * max(1, len(pool) // count), len(pool))  # few images: from all kinds
        number = (1, 2, 1, 3)[(k + whole) % 4] if split in ("train", "same") else 1
        rest = [each for each in pool if each.name != pool[at].name]
        things = [pool[at], *(rest[i] for i in rng.permutation(len(rest))[: number - 1])]
        quarters = rng.permutation(4)[:number].tolist()
        images.append(compose(rng, things, quarters, behind[rng.integers(len(behind))], size))
        said, told, questions = texts(rng, things, quarters, known)
        captions.append([said])
        asked = [(q, a) for kind, q, a in questions if kind != "what"]
        turns.append([(CAPTION_REQUEST, said), *asked])
        rows += [(k, kind, q, a, told) for kind, q, a in questions]
    names = ("image_id", "question_type", "question", "answer", "description")
    table = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    table["answers"] = [[answer] * 10 for answer in table["answer"]]
    table["question_id"] = list(range(len(rows)))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, captions, turns, make_dataset(table)
