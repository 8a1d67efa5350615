"""COCO photographs for every stage: one set of images that captions, questions and instructions share.

    captions      official COCO captions of train2014
    questions     official VQA v2 train
    instructions  LLaVA-Instruct-150K, whose train2017 holds the images of train2014 under other names

An image is chosen only when all three speak of it, so there is one download and one feature cache. No image of val2014
is ever chosen: the test pools of VQA v2, POPE, Karpathy's split and COCO captions come from there, and train2017 alone
would let most of them in. What is chosen is written out as small files in the official formats, and read by the common
readers.
"""

import collections
import dataclasses
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from vlm_lite.data.download import TOLERATED, Item, extract, fetch
from vlm_lite.data.formats import read_coco_captions, read_vqa
from vlm_lite.data.readers import coco_number, llava_records, read_llava
from vlm_lite.data.records import field, records
from vlm_lite.data.sources import SOURCES
from vlm_lite.files import UserError, atomic_dir, home, read_json, write_json

VAL_MEMBER = "annotations/captions_val2014.json"
SPLITS = ("train", "val")
KINDS = ("captions", "questions", "annotations", "instructions")
NAME = "COCO_train2014_{:012d}.jpg"  # ours, whatever a data file says: it becomes a path


@dataclass(frozen=True)
class Choice:
    """How much is chosen: images to train and held out, samples to train, questions to validate; and by which seed."""

    images: int = 5_000
    val_images: int = 1_000
    instructions: int = 10_000
    questions: int = 10_000
    val_questions: int = 5_000
    seed: int = 0


FULL = Choice()
MINIMAL = Choice(questions=5_000)  # 5,000 images' captions, 10,000 instructions, 5,000 questions


class Photographs(NamedTuple):
    """Three tables of the common format: a row an image, a row a question, a row a conversation."""

    captions: Dataset
    questions: Dataset
    instructions: Dataset


def load_photographs(split="train", choice=FULL, *, mirror=None, progress=True):
    """The Photographs of a split, "train" or "val" (the held-out images), downloaded at the first call.

    mirror: a folder laid out like the sites, whose files are its own, such as the one that `vlm_lite.rehearsal` makes;
    what comes from it is kept beside it. Images that cannot be had are named and left out, up to 1 %. Raises
    UserError for a choice that the files cannot fill, and as `download.fetch` does; under
    HF_HUB_OFFLINE that is a list of what the local cache lacks.
    """
    root = Path(mirror).parent / "photographs" if mirror else home() / "photographs"
    name = "-".join(str(value) for value in dataclasses.astuple(choice))
    notes = root / f"choice-{name}"
    if not notes.exists():
        _write_choice(notes, root / "official", choice, mirror, progress)
    ids = {
        s: [record["id"] for record in read_json(notes / s / "captions.json")["images"]]
        for s in SPLITS
    }
    pictures, source = root / "train2014", SOURCES["picture"]
    items = [Item(source.at(i), pictures / NAME.format(i), True) for s in SPLITS for i in ids[s]]
    missing = fetch(items, what="pictures", tolerated=TOLERATED, mirror=mirror, progress=progress)
    here = {i for i in ids[split] if NAME.format(i) not in missing}
    captions, *asked, said = (notes / split / f"{kind}.json" for kind in KINDS)
    return Photographs(
        read_coco_captions(captions, pictures, image_ids=here),
        read_vqa(*asked, pictures, image_ids=here),
        read_llava(said, pictures, image_ids=here),
    )


def choose_images(captions, questions, instructions, *, excluded=(), choice=FULL):
    """(ids to train on, ids held out): disjoint, drawn by the seed from the images that all three speak of.

    questions, instructions: {image id: how many}. An image needs so many of each that the wanted numbers are reached
    whatever is drawn. `excluded` ids are never chosen. UserError with the counts where there are too few images.
    """
    per_image = max(
        math.ceil(choice.questions / choice.images),
        math.ceil(choice.val_questions / choice.val_images),
    )
    talks = math.ceil(choice.instructions / choice.images)
    shared = sorted(
        i
        for i in set(captions) - set(excluded)
        if questions.get(i, 0) >= per_image and instructions.get(i, 0) >= talks
    )
    wanted = choice.images + choice.val_images
    if len(shared) < wanted:
        raise UserError(
            f"{wanted} images are wanted, and only {len(shared)} have captions, {per_image} questions and "
            f"{talks} conversations (with captions: {len(captions)}, questions: {len(questions)}, "
            f"conversations: {len(instructions)}, excluded: {len(excluded)}). Choose fewer of each."
        )
    chosen = random.Random(choice.seed).sample(shared, wanted)
    return chosen[: choice.images], chosen[choice.images :]


def _write_choice(folder, official, choice, mirror, progress):
    """Download the official files and write what is chosen of them to `folder`, whole or not at all."""
    files = _official_files(official, mirror, progress)
    data = {kind: read_json(path) for kind, path in files.items() if kind != "instructions"}
    talks = collections.defaultdict(list)
    for name, record, _ in llava_records(files["instructions"]):
        talks[coco_number(name)].append(record)

    def numbers(kind, of="annotations", key="image_id"):
        """How often each number stands in the field `key` of the entries of `of` in a file."""
        return collections.Counter(
            field(record, key, int, files[kind], where)
            for where, record in records(data[kind], of, files[kind])
        )

    numbers("annotations", key="question_id")  # what is read below without a check
    numbers("captions", "images", "id")
    chosen = choose_images(
        numbers("captions"),
        numbers("questions", "questions"),
        {i: len(found) for i, found in talks.items()},
        excluded=numbers("test pool", "images", "id"),
        choice=choice,
    )
    with atomic_dir(folder) as temporary:
        for split, ids, most, talking in (
            ("train", set(chosen[0]), choice.questions, choice.instructions),
            ("val", set(chosen[1]), choice.val_questions, math.inf),
        ):
            rng = random.Random(choice.seed)

            def kept(kind, of, key, ids):
                return {of: [row for row in data[kind][of] if row[key] in ids]}

            rows = kept("questions", "questions", "image_id", ids)["questions"]
            rows = rng.sample(rows, min(most, len(rows)))
            said = [record for i in sorted(ids) for record in talks[i]]
            said = rng.sample(said, min(talking, len(said)))
            asked = {row["question_id"] for row in rows}
            cut = (
                data["captions"]
                | kept("captions", "annotations", "image_id", ids)
                | kept("captions", "images", "id", ids),
                data["questions"] | {"questions": rows},
                data["annotations"] | kept("annotations", "annotations", "question_id", asked),
                said,
            )
            for kind, value in zip(KINDS, cut, strict=True):
                write_json(temporary / split / f"{kind}.json", value, indent=None)


def _official_files(folder, mirror, progress):
    """{kind: path} of the official annotation files, downloaded and unpacked at the first call."""
    paths = {kind: folder / SOURCES[kind].address.rsplit("/", 1)[1] for kind in KINDS}
    fetch(
        [Item(SOURCES[kind], path) for kind, path in paths.items()],
        what="annotation files",
        mirror=mirror,
        progress=progress,
    )
    members = {kind: (paths[kind], SOURCES[kind].member) for kind in KINDS[:3]}
    members["test pool"] = paths["captions"], VAL_MEMBER
    files = {"instructions": paths["instructions"]}
    for kind, (archive, member) in members.items():
        files[kind] = folder / Path(member).name
        if not files[kind].exists():
            extract(archive, member, files[kind])
    return files
