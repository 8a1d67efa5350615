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
#     outputs_of: 5b5f93db53e8ebfeac6d16d43bcaf572c669387b2c2f9c683f0dc5a4c39d52cd
#     title: A photographic world
#     builds: images of cut-outs on photographs, whose captions, questions and answers are right by construction
#     lesson: cutouts
#     reads: []
# ---

# %% [markdown]
# Read it: [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vlm-lite/vlm-lite/blob/main/notebooks/10b_cutouts.ipynb)

# %% tags=["setup"]
profile = "tiny"  # @param ["tiny"]

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
    source = "git+https://github.com/vlm-lite/vlm-lite@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *kept, source])

from vlm_lite.profiles import describe, get_compute, get_profile

profile, compute = get_profile(default=profile, offers=("tiny", "smoke")), get_compute()
print(describe(profile, compute, notebook="10b_cutouts"))

# %% [markdown]
# # 10b. A photographic world
#
# An optional companion of [10](10_photographs.ipynb): how its images, questions and three tests are made. No training, no exercises.
# <!-- figures -->
# **Run time:** about 0.5 min (0.5 with bf16) and 0.7 GB of memory on `tiny` (measured, 2 CPU cores).
# <!-- /figures -->
# **Before this:** [10, a VLM from real parts](10_photographs.ipynb), section 2.
#
# ## 1. Cut-outs with names
#
# Photographs of the world come without the truth: somebody has to say what they show, and people disagree. Shapes has the truth and no photographs.
# Between the two lies **composition**: photographs of single things, cut out along their outline, laid on a photographed background. What lies where
# is then known, because we put it there. (Cut-and-paste data trained object detectors: Dwibedi et al. 2017, "Cut, Paste and Learn".)
#
# The cut-outs are the stamps of *Tux Paint*, a drawing program for children: PNG files with transparency, a short text beside each ("A frog."), in a
# folder for each kind. Not all is usable: cartoons are no photographs, and "Eat your lunch!" is no name. **Reading a data set is mostly leaving out.**
#
# Without a network this notebook runs on a stand-in of the same layout, coloured polygons on noise. `real` downloads the packages as 10 does.

# %% tags=["save"]
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


# %%
import pandas as pd
from IPython.display import display

from vlm_lite import plots, real

parts = "small"  # @param ["small", "real"]
is_real = parts == "real" or real.wanted()
stamps = real.debian("tuxpaint-stamps-default") if is_real else draw_parts()
cutouts = read_cutouts(stamps)
files = sum(1 for _ in stamps.rglob("*.png"))
print("real parts" if is_real else "SMALL PARTS: drawn cut-outs on noise")
print(f"{len(cutouts)} cut-outs kept of {files} PNG files: {len({c.name for c in cutouts})} names")
pd.Series([each.kind for each in cutouts]).value_counts().to_frame("cut-outs")

# %% [markdown]
# ## 2. Three tests, kept apart before anything is made
#
# A split by image would be worthless here: two images of the same frog on two meadows are nearly the same. So the split is made over **cut-outs and names**, and before
# the first image exists:
#
# - **same**: cut-outs of the training, newly composed. Right answers need no more than memory of the cut-out.
# - **another**: of a name with several photographs, the last one. The name is known, the photograph is not.
# - **new**: one name of seven of each kind. No training text teaches it; its *kind* can be told all the same.


# %% tags=["save"]
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


# %%
split = split_cutouts(cutouts)
names = {test: {each.name for each in those} for test, those in split.items()}
assert names["another"] <= names["train"] and not names["new"] & names["train"]
assert not {each.path for each in split["another"]} & {each.path for each in split["train"]}
pd.DataFrame({test: [len(split[test]), len(names[test])] for test in SPLITS}, ["cut-outs", "names"])

# %% [markdown]
# ## 3. Backgrounds, found in a file
#
# The scenes come from *GCompris*, whose resource files hold many images one after the other. No unpacker is needed: a WebP image says `RIFF`, then its length in four bytes, then
# `WEBP`. So a search for these bytes finds every image, and the length says where it ends. One background in five is kept for the tests: else a model could learn a thing by the
# meadow behind it.


# %% tags=["save"]
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


# %%
scenes = read_backgrounds(real.debian("gcompris-qt-data") if is_real else stamps)
kept = sum(k % 5 == 0 for k in range(len(scenes)))
print(
    f"{len(scenes)} backgrounds, {kept} of them for the tests alone; the first is {scenes[0].size}"
)

# %% [markdown]
# ## 4. Composition
#
# One thing is large and lies anywhere; of two or three each gets a quarter of the image, in which size, place and mirroring are drawn at random. The
# background is blurred a little, as behind a thing in focus. It does not hide the paste: a sharp outline gives it away still.


# %% tags=["save"]
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


# %%
placed = [cutouts[k * len(cutouts) // 3] for k in range(3)]
rngs = [np.random.default_rng(seed) for seed in range(4)]
made = [compose(rng, placed, [0, 3, 1], scenes[0], 256) for rng in rngs[:3]]
made.append(compose(rngs[3], placed[:1], [0], scenes[-1], 256))
pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
print([each.name for each in placed], "at", [QUARTERS[k] for k in (0, 3, 1)])
plots.show_images(pixels, ["seed 0", "seed 1", "seed 2", "one alone"])

# %% [markdown]
# ## 5. What is said about it
#
# Six types of questions, each with one right answer, in the words with which a language model would begin: "There are two." and not "two", since a frozen language model has habits.
# `told` is the scene in words, with its places: what the **oracle** reads in place of the image. It must hold the answer to every question (but the *kind* has to be known from the name); the caption need not.


# %% tags=["save"]
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


# %%
known = sorted(names["train"])
said, told, asked = texts(np.random.default_rng(0), placed, [0, 3, 1], known)
print(f"caption: {said}\noracle:  {told}")
pd.DataFrame(asked, columns=["type", "question", "answer"])

# %% [markdown]
# ## 6. The world, and what the commonest answer gets of it
#
# `make_world` goes through the cut-outs in turn, so that all are shown, and draws everything else from one generator for each image: **the same seed, split, number and count
# make the same image on every machine**, whatever was made before it. Its table has the columns of the other data sets of this course (VQA v2's ten answers among them),
# so the same evaluation takes it.
#
# **Predict first:** suppose that the commonest answer to a question's type is always given. Which types does that answer best? (A blind *model* can do better: it reads the question, which may name the thing.)


# %% tags=["save"]
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


# %%
counts = {"train": 240, "same": 60, "another": 20, "new": 34}
worlds = {
    test: make_world(cutouts, scenes, test, n if is_real else n // 2, size=64)
    for test, n in counts.items()
}
blind = pd.DataFrame()
for test, (*_, table) in worlds.items():
    frame = pd.DataFrame({name: table[name][:] for name in ("question_type", "answer")})
    blind[test] = frame.groupby("question_type")["answer"].agg(
        lambda answers: answers.value_counts(normalize=True).iloc[0]
    )
again = make_world(cutouts, scenes, "new", len(worlds["new"][0]), size=64)
assert torch.equal(again[0], worlds["new"][0]) and again[1:3] == worlds["new"][1:3]
assert blind["train"]["how many"] > 0.4 > blind["train"]["what"]
display(plots.show_images(worlds["train"][0][:5], [row[0] for row in worlds["train"][1][:5]]))
blind.map("{:.0%}".format).replace("nan%", "")

# %% [markdown]
# *How many*: in *train* and *same* half of the images show one thing, so "There is one." is right half of the time; in *another* and *new* all do, hence 100%, and no questions about places (a gap). Otherwise names are many, and the commonest is seldom right. *Kind* has eight answers, but in the real packages
# not as many cut-outs of each: 10 therefore scores it **balanced**, the mean over the kinds, where one answer for all gets one in so many kinds.

# %%
kinds = pd.Series([each.kind for each in split["new"]]).value_counts(normalize=True)
print(f"the commonest kind, of new things: {kinds.max():.1%}; balanced: {1 / len(kinds):.1%}")
n = sum(len(images) for images, *_ in worlds.values())
print(
    f"HEADLINE: {n} images of {len(known)} known and {len(names['new'])} new names, right by construction"
)

# %% [markdown]
# ## What this does not show
#
# - A photograph as people take them: things overlap, are cut off, belong to their background, and have shadows. None of that is here, so a score on this world is no score on COCO.
# - That a model reads the *thing*: it may read the outline. The polygons of the small parts are nothing but an outline and a colour.
# - Many photographs of one name: most names have one, and "another" is small. [10](10_photographs.ipynb) gives its intervals, and says what they leave out.
