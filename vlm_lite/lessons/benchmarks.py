"""POPE's and MMBench's files, captions one word apart and questions of one kind, made from known scenes.

Generated from notebooks/05e_making_benchmarks.py by `make notebooks`: edit the notebook.
"""

import base64
import dataclasses
import io
import json
import random
import re
from collections import Counter
from itertools import permutations

import numpy as np
import torch
from PIL import Image

from vlm_lite.data.formats import image_tensor
from vlm_lite.data.shapes import ANSWERS
from vlm_lite.data.tokenizer import plural
from vlm_lite.lessons import language, world
from vlm_lite.lessons.controls import shuffle_patches
from vlm_lite.lessons.instructions import read_boxes
from vlm_lite.lessons.mmbench import ROTATION, read_mmbench, write_mmbench


def controlled(images):
    """{condition: images (N, 3, S, S)}: the images, empty ones, each one's neighbour, and each with its patches in disorder."""
    dark = torch.tensor(world.BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1).expand_as(images)
    others = {"blank": dark, "shuffled": images.roll(1, dims=0)}
    return {"vlm": images, **others, "patch-shuffled": shuffle_patches(images, world.CELL)}


class Asker:
    """A VLM of the Shapes world and the images of a captions table: asked with them, and under the controls.

    vlm: has `vision` and generate(features or None, prompts, max_new_tokens=...). Every row of questions needs
    "question" and "image_id"; "description" for the oracle, "answer" for `right`.
    """

    def __init__(self, vlm, captions, encode):
        """encode: vision model, uint8 images (N, 3, S, S) -> features (N, T, D); encoded.patch_features."""
        self.vlm, (self.images, self.ids) = vlm, image_tensor(captions)
        self.number = {image_id: k for k, image_id in enumerate(self.ids)}
        self.seen = controlled(self.images)
        self.features = {
            name: encode(vlm.vision, each, progress=False).float()
            for name, each in self.seen.items()
        }

    def __call__(self, rows, condition="vlm", suffix="", words=4):
        """Texts, one a row. condition: one of `seen`; "blind", no image; "oracle", the scene in words instead."""
        prompts = [language.short_prompt(row["question"] + suffix) for row in rows]
        if condition == "oracle":
            prompts = [f"{row['description']} {p}" for row, p in zip(rows, prompts, strict=True)]
        at = [self.number[row["image_id"]] for row in rows]
        prefix = self.features[condition][at] if condition in self.features else None
        return self.vlm.generate(prefix, prompts, max_new_tokens=words)

    def right(self, rows, condition="vlm"):
        """Whether each answer is the row's, exactly: float tensor (Q,)."""
        pairs = zip(self(rows, condition), rows, strict=True)
        return torch.tensor([float(said == row["answer"]) for said, row in pairs])

    def image(self, image_id):
        """The image (3, S, S) of an id."""
        return self.images[self.number[image_id]]


def of_type(rows, kind, count):
    """The first `count` rows whose question_type is `kind`."""
    return [row for row in rows if row["question_type"] == kind][:count]


def told(captions):
    """(image_id, description, its Scene) of each row of a captions table."""
    ids, texts = captions["image_id"][:], captions["description"][:]
    return zip(ids, texts, map(read_boxes, texts), strict=True)


def as_row(image_id, description, question, answer):
    row = {"image_id": image_id, "description": description}
    return {**row, "question": question, "answer": answer}


def write_pope(path, captions, split, count, seed=0):
    """Write POPE's JSON lines about the first `count` images of a captions table, and return the questions.

    Asked is for each "colour shape" there and for as many that are absent: any ("random"), the most frequent
    ("popular"), or those that most often come together with what is there ("adversarial").
    """
    all_told = list(told(captions))
    present = [sorted({f"{i.colour} {i.shape}" for i in scene.shapes}) for *_, scene in all_told]
    frequent = Counter(kind for kinds in present for kind in kinds)
    together = Counter(pair for kinds in present for pair in permutations(kinds, 2))
    draw, lines, rows = random.Random(seed), [], []
    for (image_id, description, _), kinds in zip(all_told[:count], present, strict=False):
        rank = {
            "random": lambda kind: 0,
            "popular": lambda kind: -frequent[kind],
            "adversarial": lambda kind, kinds=kinds: -sum(together[here, kind] for here in kinds),
        }[split]
        absent = sorted(set(frequent) - set(kinds))
        draw.shuffle(absent)  # equals stand in no order
        for kind in (*kinds, *sorted(absent, key=rank)[: len(kinds)]):
            text, label = f"Is there a {kind} in the image?", "yes" if kind in kinds else "no"
            rows.append(as_row(image_id, description, text, label))
            ids = {"question_id": len(rows), "image": str(image_id)}
            lines.append(json.dumps({**ids, "text": text, "label": label}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return rows


def write_choices(path, rows, image_of, each=12, seed=0):
    """Write MMBench's TSV, all rotations of `each` questions a type, from VQA rows. image_of: image_id -> (3, H, W).

    Returns the sheet as the reader of MMBench's file gives it, and its rows as one asks them, with options and image_id.
    """
    draw, table = random.Random(seed), []
    for kind in sorted(ANSWERS):
        for row in of_type(rows, kind, each):
            others = [word for word in ANSWERS[kind] if word != row["answer"]]
            options = [row["answer"], *draw.sample(others, min(3, len(others)))]
            draw.shuffle(options)
            png, number = io.BytesIO(), len(table) + 1
            Image.fromarray(image_of(row["image_id"]).permute(1, 2, 0).numpy()).save(png, "png")
            for turn in range(len(options)):
                turned = dict(zip("ABCD", options[turn:] + options[:turn], strict=False))
                answer = next(letter for letter, word in turned.items() if word == row["answer"])
                image = str(number) if turn else base64.b64encode(png.getvalue()).decode()
                index = {"index": turn * ROTATION + number, "image_id": row["image_id"]}
                asked = {"question": row["question"], "options": turned, "answer": answer}
                table.append({**index, **asked, "category": kind, "image": image})
    write_mmbench(path, table)
    sheet, owner = read_mmbench(path), {row["index"]: row["image_id"] for row in table}
    asked = []
    for row in sheet:
        listed = " ".join(f"{letter}. {word}" for letter, word in row["options"].items())
        asked.append({"question": f"{row['question']} {listed}", "image_id": owner[row["index"]]})
    return sheet, asked


def one_word_apart(families, each, seed=0):
    """Scenes in families that differ in one attribute of one thing: (images uint8 (N, 3, S, S), N captions, N kinds).

    The captions of a family differ in one word, and the kind is that word's: shape, colour, size or value (a digit's);
    "" for the scene that a family begins with.
    """
    found, index = [], 0
    kinds = {"shape": world.SHAPES, "colour": world.COLOURS, "size": world.SIZES}
    while len(found) < families * each:
        scene = world.sample_scene(np.random.default_rng([seed, 9, index]), "val")
        index += 1
        changed = [
            (k, kind, word)
            for k, item in enumerate(scene.items)
            for kind, words in ({"value": range(10)} if item.is_digit else kinds).items()
            for word in words
            if word != getattr(item, kind)
        ]
        if len(changed) < each or len(scene.items) < 3:
            continue
        family = [(scene, "")]
        for place in np.random.default_rng([seed, index]).permutation(len(changed))[: each - 1]:
            (k, kind, word), items = changed[place], list(scene.items)
            items[k] = dataclasses.replace(items[k], **{kind: word}, glyph=-1)
            family.append((world.Scene(tuple(items)), kind))
        for one, kind in family:
            text = language.captions(one, np.random.default_rng([seed, index]))[0]
            found.append((one, text, kind))
    drawn = [world.render(one, np.random.default_rng(k)) for k, (one, *_) in enumerate(found)]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    return images, [text for _, text, _ in found], [kind for *_, kind in found]


def fooling_captions(references):
    """For N images with five captions each, N captions of each kind that says less, or something else, than the first."""
    first, colour = [five[0] for five in references], re.compile("|".join(world.COLOURS))
    words = [sorted(re.findall(r"\w+", text)) for text in first]
    swapped = [
        colour.sub(lambda m: "red" if m[0] != "red" else "blue", text, count=1) for text in first
    ]
    return {
        "true": first,
        "its words sorted": [" ".join(each) for each in words],
        "true, one object only": [re.split(", | and ", text)[0] for text in first],
        "one colour wrong": swapped,
        "of the next": first[1:] + first[:1],
    }


def the(item):
    """How the questions name a thing: "the small red circle", or "the digit"."""
    return "the digit" if item.is_digit else f"the {item.size} {item.colour} {item.shape}"


def level_questions(captions, count, seed=0):
    """Rows about two things in one row or column, asked above or below, left or right: the answer is always no."""
    draw, rows = random.Random(seed), []
    for image_id, text, scene in told(captions):
        for one, other in permutations(scene.items, 2):
            for words in reversed(language.RELATIONS):
                axis = language.PAIRS[words[0]][0]
                if getattr(one, axis) == getattr(other, axis) and the(one) != the(other):
                    asked = f"is {the(one)} {draw.choice(words)} {the(other)}?"
                    rows.append(as_row(image_id, text, asked, "no"))
    return rows[:count]


def is_level(row):
    """Whether a relation question is about two things in one row (above, below) or column (left of, right of)."""
    found = re.match(r"is (.+?) (left of|right of|above|below) (.+)\?", row["question"])
    axis, items = language.PAIRS[found[2]][0], read_boxes(row["description"]).items
    one, other = (
        next(getattr(i, axis) for i in items if words <= set(the(i).split()))
        for words in (set(name.split()) - {"the", "shape"} for name in found.group(1, 3))
    )
    return one == other


def more_questions(captions, count, seed=0):
    """Rows of "are there more circles than squares?" and the same turned round: two counts and a comparison."""
    draw, rows = random.Random(seed), []
    for image_id, text, scene in told(captions):
        here = [item.shape for item in scene.shapes]
        kinds = sorted(set(here)) if len(set(here)) > 1 else world.SHAPES
        for one, other in permutations(draw.sample(kinds, 2)) if len(here) > 1 else ():
            asked = f"are there more {plural(one, 2)} than {plural(other, 2)}?"
            right = "yes" if here.count(one) > here.count(other) else "no"
            rows.append(as_row(image_id, text, asked, right))
    return rows[:count]


def reworded(rows, ends):
    """Each row once for each of `ends`, which takes the place of its question mark."""
    return [{**row, "question": row["question"].replace("?", e)} for row in rows for e in ends]
