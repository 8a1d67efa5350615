"""The Shapes world in three more official formats: LLaVA-Instruct's JSON, POPE's JSON lines and MMBench's TSV.

They are made from the captions and questions tables of `load_shapes`, as GPT-4 made LLaVA-Instruct from captions and
boxes: by one who never saw the picture. Written beside the pictures, and read back by the readers of the real files.
"""

import base64
import csv
import json
import random

from vlm_lite.data import language, readers, records, shapes
from vlm_lite.files import atomic_write, home, write_json

REQUESTS = ("describe the image.", "what do you see?", "what is in the picture?")
CHOICES = 4


def load_shapes_benchmarks(split="val", count=1000, *, seed=0):
    """(instructions, POPE questions, MMBench questions) about the pictures of `load_shapes`, in the common format."""
    captions, questions = shapes.load_shapes(split, count, seed=seed, progress=False)
    folder = home() / f"shapes-v{shapes.VERSION}" / f"{split}-{count}-{seed}"
    notes, images = folder / "annotations", folder / "images" / f"shapes_{split}"
    paths = [
        notes / name
        for name in (
            f"llava_instruct_shapes_{split}.json",
            f"shapes_pope_{split}.json",
            f"mmbench_shapes_{split}.tsv",
        )
    ]
    if not all(path.exists() for path in paths):
        write_instructions(paths[0], captions, questions, split, seed=seed)
        write_pope(paths[1], questions, split)
        write_mmbench(paths[2], questions, images, split, seed=seed)
    return (
        readers.read_llava(paths[0], images),
        readers.read_pope(paths[1], images),
        readers.read_mmbench(paths[2]),
    )


def _name(image_id, split):
    return f"COCO_shapes_{split}_{image_id:012d}.png"


def _rows(questions, *kinds):
    columns = ("image_id", "question_id", "question", "answer", "question_type")
    rows = zip(*(questions[name][:] for name in columns), strict=True)
    return [row for row in rows if not kinds or row[-1] in kinds]


def write_instructions(path, captions, questions, split, *, seed=0):
    """One conversation a picture: a description, then its questions answered in sentences."""
    talks, rng = {}, random.Random(seed)
    for image_id, texts in zip(captions["image_id"][:], captions["captions"][:], strict=True):
        talks[image_id] = [(rng.choice(REQUESTS), texts[0])]
    for image_id, _, question, answer, kind in _rows(questions):
        talks[image_id].append((question, language.sentence(question, answer, kind)))
    data = [
        {
            "id": f"{image_id:012d}",
            "image": _name(image_id, split),
            "conversations": [
                {
                    "from": speaker,
                    "value": ("<image>\n" if k == 0 and speaker == "human" else "") + text,
                }
                for k, pair in enumerate(pairs)
                for speaker, text in zip(("human", "gpt"), pair, strict=True)
            ],
        }
        for image_id, pairs in talks.items()
    ]
    write_json(path, data, indent=None)


def write_pope(path, questions, split):
    """The questions of existence, half of them about things that are not there, since they come in pairs."""
    with atomic_write(path, "w") as file:
        for image_id, question_id, question, answer, _ in _rows(questions, "existence"):
            file.write(
                json.dumps(
                    {
                        "question_id": question_id,
                        "image": _name(image_id, split),
                        "text": question,
                        "label": answer,
                    }
                )
                + "\n"
            )


def write_mmbench(path, questions, images, split, *, seed=0):
    """Questions of colour, shape, count and digit with four options, each asked with the options in every rotation."""
    rng = random.Random(seed)
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        letters = records.LETTERS[:CHOICES]
        writer.writerow(
            [
                "index",
                "question",
                "hint",
                *letters,
                "answer",
                "category",
                "l2-category",
                "split",
                "image",
            ]
        )
        for index, (image_id, _, question, answer, kind) in enumerate(
            _rows(questions, "colour", "shape", "count", "digit")
        ):
            others = [other for other in shapes.ANSWERS[kind] if other != answer]
            options = [answer, *rng.sample(others, CHOICES - 1)]
            rng.shuffle(options)
            image = base64.b64encode((images / _name(image_id, split)).read_bytes()).decode()
            for turn in range(CHOICES):
                turned = options[turn:] + options[:turn]
                writer.writerow(
                    [
                        index + turn * readers.ROTATION,
                        question,
                        "",
                        *turned,
                        letters[turned.index(answer)],
                        kind,
                        "perception",
                        "dev",
                        image if turn == 0 else index,
                    ]
                )
