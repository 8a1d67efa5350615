"""The Shapes world on disk, in the official COCO-captions and VQA v2 file formats, and read back by the same readers.

    images/shapes_val/COCO_shapes_val_000000000001.png        64x64 images
    annotations/captions_shapes_val.json                      five captions an image
    annotations/v2_OpenEnded_mscoco_shapes_val_questions.json     about four questions an image, in complementary
    annotations/v2_mscoco_shapes_val_annotations.json             pairs: same question, another image, another answer
    annotations/descriptions_shapes_val.json                  each scene in exact words, for the oracle

Splits: `train`; `val` (other scenes, handwriting that train never shows); `novel` (every scene has a colour-shape pair
that the other two hold out). The same (split, count, seed) gives the same pixels and the same JSON on every machine.
"""

import collections
import math
import re

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm_lite.data import formats
from vlm_lite.files import UserError, atomic_dir, home, write_json
from vlm_lite.lessons import language, reading, world

QUESTIONS_PER_IMAGE = 4
FIRST_ID = {"train": 1, "val": 1_000_001, "novel": 2_000_001}  # no image id belongs to two splits
VERSION = 2  # of the world: part of the folder's name, so that an older world on disk is never taken for this one


def load_shapes(split="val", count=1000, *, seed=0, progress=True):
    """The first `count` images of a split as two tables of the common format: (captions, questions).

    `captions` has a row an image, `questions` a row a question; both carry the scene's `description`. The files are
    drawn once and kept under `home()`. Raises UserError for an unknown split, and a count that is no number or under 2.
    """
    folder = home() / f"shapes-v{VERSION}" / f"{split}-{count}-{seed}"
    if not folder.exists() or not isinstance(
        count, int | np.integer
    ):  # else "10" would pass once 10 are drawn
        write_shapes(folder, split, count, seed=seed, progress=progress)
    name, notes = f"shapes_{split}", folder / "annotations"
    images = folder / "images" / name
    descriptions = notes / f"descriptions_{name}.json"
    captions = formats.read_coco_captions(notes / f"captions_{name}.json", images, descriptions)
    questions = formats.read_vqa(
        notes / f"v2_OpenEnded_mscoco_{name}_questions.json",
        notes / f"v2_mscoco_{name}_annotations.json",
        images,
        descriptions,
    )
    return captions, questions


def load_pairs(split, count, **options):
    """`load_shapes`' images and captions: (uint8 (N, 3, S, S), N lists of captions, the table they come from)."""
    table, _ = load_shapes(split, count, **options)
    return formats.image_tensor(table)[0], table["captions"][:], table


def write_shapes(folder, split="val", count=1000, *, seed=0, progress=True):
    """Draw `count` scenes of `split` and write them to `folder` in the official formats, whole or not at all."""
    if split not in FIRST_ID:
        raise UserError(f"split is {split!r}; the Shapes world has {', '.join(FIRST_ID)}.")
    if not isinstance(count, int | np.integer) or count < 2:
        raise UserError(
            f"count is {count!r}; expected a whole number, at least 2 images, so that one can be swapped "
            "for the other."
        )
    subtype = f"shapes_{split}"
    info = {"description": f"vlm-lite Shapes world, {split}", "version": str(VERSION), "seed": seed}
    images, captions, descriptions, asked = [], [], {}, []
    with atomic_dir(folder) as temporary:
        pictures = temporary / "images" / subtype
        pictures.mkdir(parents=True)
        looks = {"desc": f"drawing {split}", "unit": "image", "ncols": 90, "mininterval": 1}
        for index in tqdm(range(count), disable=not progress, **looks):
            rng = np.random.default_rng([seed, world.SPLITS.index(split), index])
            scene, image_id = world.sample_scene(rng, split), FIRST_ID[split] + index
            name = f"COCO_{subtype}_{image_id:012d}.png"
            Image.fromarray(world.render(scene, rng)).save(pictures / name, compress_level=0)
            size = {"width": world.IMAGE_SIZE, "height": world.IMAGE_SIZE}
            images.append({"id": image_id, "file_name": name, **size})
            captions += [
                {"id": 5 * image_id + k, "image_id": image_id, "caption": text}
                for k, text in enumerate(language.captions(scene, rng))
            ]
            descriptions[image_id] = reading.describe(scene)
            asked += [(image_id, *question) for question in language.questions(scene, rng)]
        rng = np.random.default_rng([seed, world.SPLITS.index(split), 1 << 30])
        rows = complementary_pairs(asked, count * QUESTIONS_PER_IMAGE, rng)
        questions, annotations = [], []
        for number, (image_id, question, answer, kind) in enumerate(rows):
            ids = {"question_id": 10 * FIRST_ID[split] + number, "image_id": image_id}
            questions.append({**ids, "question": question})
            answers = [
                {"answer": a, "answer_confidence": "yes", "answer_id": k}
                for k, a in enumerate(language.human_answers(answer, rng), 1)
            ]
            types = {"question_type": kind, "answer_type": language.answer_type(kind)}
            annotations.append(
                {**ids, **types, "multiple_choice_answer": answer, "answers": answers}
            )
        notes = temporary / "annotations"
        of = {"info": info, "data_type": "mscoco", "data_subtype": subtype}
        asked = {**of, "task_type": "Open-Ended", "questions": questions}
        for name, value in (
            ("captions_{}", {"info": info, "images": images, "annotations": captions}),
            ("v2_OpenEnded_mscoco_{}_questions", asked),
            ("v2_mscoco_{}_annotations", {**of, "annotations": annotations}),
            ("descriptions_{}", descriptions),
        ):
            write_json(notes / f"{name.format(subtype)}.json", value, indent=None)


def complementary_pairs(asked, wanted, rng):
    """Choose up to `wanted` questions in pairs as VQA v2 does: the same words, two images, two answers.

    asked: list of (image_id, question, answer, type). The types get equal shares as far as there are pairs. Returns
    rows of the same form, shuffled. Source: Goyal et al. 2017, "Making the V in VQA matter", section 3.
    """
    by_type = collections.defaultdict(list)
    for row in asked:
        by_type[row[3]].append(row)
    chosen = []
    for place, kind in enumerate(
        sorted(by_type, key=lambda k: len(by_type[k]))
    ):  # the scarce first
        rows = [by_type[kind][index] for index in rng.permutation(len(by_type[kind]))]
        share = (wanted - len(chosen)) // (len(by_type) - place)
        for pair in find_pairs(*([row[k] for row in rows] for k in (1, 0, 2)), most=share // 2):
            chosen += [rows[k] for k in pair]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def find_pairs(questions, image_ids, answers, most=math.inf):
    """Up to `most` complementary pairs as (i, j), i < j, no row in two: the same words, two images, two answers.

    A model that does not look answers both alike, so it never has both right. Goyal et al. 2017, section 3.
    """
    waiting, found = collections.defaultdict(list), []
    for k, (question, image_id, answer) in enumerate(
        zip(questions, image_ids, answers, strict=True)
    ):
        if len(found) >= most:
            break
        others = waiting[question]
        fits = (p for p, other in enumerate(others) if other[1] != image_id and other[2] != answer)
        partner = next(fits, None)
        if partner is None:
            others.append((k, image_id, answer))
        else:
            found.append((others.pop(partner)[0], k))
    return found


def recall_limits(captions, ks=(1, 5, 10)):
    """{"chance": {"R@1": ...}, "ceiling": {...}} of image-to-text R@K over these first captions, in 0..1.

    The ceiling is that of a perfect model: equal strings tie, and a tie counts against it, as in notebook 01.
    """
    N, same = len(captions), collections.Counter(captions)
    chance = {f"R@{k}": k / N for k in ks}
    ceiling = {f"R@{k}": sum(same[text] <= k for text in captions) / N for k in ks}
    return {"chance": chance, "ceiling": ceiling}


def zero_shot_task(captions):
    """Which images of a captions table hold exactly one shape, and which: (rows, {"colour": ..., "shape": ...}).

    rows: n row numbers; the values: (C class names, n class numbers). A digit may stand beside the shape.
    """
    named = re.compile(rf"({'|'.join(world.COLOURS)}) ({'|'.join(world.SHAPES)})")
    found = [named.findall(text) for text in captions["description"][:]]
    rows = [row for row, pairs in enumerate(found) if len(pairs) == 1]
    classes = {"colour": list(world.COLOURS), "shape": list(world.SHAPES)}
    return rows, {
        kind: (names, [names.index(found[row][0][part]) for row in rows])
        for part, (kind, names) in enumerate(classes.items())
    }


def zero_shot_prompts(kind):
    """The prompts of each colour, or of each shape: C lists that say the class with every size and every other word."""
    colours, kinds = list(world.COLOURS), list(world.SHAPES)
    if kind == "colour":
        return [[f"a {z} {c} {s}." for z in world.SIZES for s in kinds] for c in colours]
    return [[f"a {z} {c} {s}." for z in world.SIZES for c in colours] for s in kinds]


SCOREBOARD_TYPES = ("colour", "shape", "count", "relation", "digit")
ANSWERS = language.ANSWERS


def five_questions(questions):
    """The scoreboard of the course: a question of each of five types in a questions table, as row dicts.

    Of each type it is the first with the answer that is rarest there, and of "yes" and "no" as often the first with
    "yes": the language model, asked blind, mostly says "no". So a guess seldom gets it.
    """
    kinds, answers = (questions[name][:] for name in ("question_type", "answer"))
    count = collections.Counter(zip(kinds, answers, strict=True))

    def order(row):
        return count[kinds[row], answers[row]], answers[row] != "yes"

    of_kind = ([row for row, k in enumerate(kinds) if k == kind] for kind in SCOREBOARD_TYPES)
    return [questions[min(rows, key=order)] for rows in of_kind]
