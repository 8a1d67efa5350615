"""The commands `vlm-lite data ...`: what can be downloaded, getting it, and samples cut of any official file."""

import argparse
import io
import json
import random
from pathlib import Path

from vlm_lite.files import UserError, atomic_dir, atomic_write

READERS = {  # for each kind of data: what --help says, and the files it needs
    "captions": ("COCO captions", ("annotations", "images")),
    "vqa": ("VQA v2", ("questions", "annotations", "images")),
    "llava": ("LLaVA-Instruct", ("annotations", "images")),
    "pope": ("POPE", ("annotations", "images")),
    "mmbench": ("MMBench", ("annotations",)),
    "folder": ("your own pictures with metadata.jsonl", ("images",)),
}
SAMPLE = """examples:
  vlm-lite data sample captions --annotations captions_val2014.json --images val2014/ --count 100 -o sample/
  vlm-lite data sample vqa --questions questions.json --annotations annotations.json --images val2014/ --count 100 -o s/
  vlm-lite data sample mmbench --annotations mmbench_dev_en.tsv --count 20 -o sample/
  vlm-lite data sample folder --images holiday/ --count 10 -o sample/

The sample holds COUNT pictures with all that belongs to them (all rotations of an MMBench question), chosen by the
seed: sample/images/ and sample/metadata.jsonl, one row of the common table a line. `vlm_lite.data.readers.read_folder`
reads it, and so does `datasets.load_dataset("imagefolder", data_dir="sample")`. Its rows are what every part of the
course takes: ask a model about them (notebook 05, docs/evaluating.md), or encode and train.

Your own pictures work the same way: a folder with a metadata.jsonl of lines such as
  {"file_name": "beach.jpg", "captions": ["two people on a beach"]}
  {"file_name": "beach.jpg", "question": "how many people are there?", "answer": "2"}"""
GET = """example:
  vlm-lite data get --minimal

Brings the annotation files of COCO captions 2014, VQA v2 and LLaVA-Instruct-150K, chooses the same images for
all three, and downloads those: about 0.5 GB of annotations and 1 GB of pictures. Run it again to finish what
was cut."""


def add(commands):
    """Register `data` with the argparse subparsers of `vlm-lite`."""

    def parser(parent, name, text, call, epilog):
        made = parent.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(call=call)
        return made

    data = commands.add_parser(
        "data", help="real data: where it comes from, getting it, cutting samples of it"
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser(
        actions,
        "list",
        "every id and address, and what a mirror makes of them",
        run_list,
        "example:\n  VLM_LITE_MIRROR=http://mirror.example vlm-lite data list",
    )
    get = parser(actions, "get", "download the photographs and texts of profile t4", run_get, GET)
    get.add_argument("--minimal", action="store_true", help="5,000 questions instead of 10,000")
    get.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="N images to train on, with as many questions (default "
        "5,000; a fifth of it is held out)",
    )
    get.add_argument("--seed", type=int, default=0, help="which images (default 0)")
    sample = parser(
        actions,
        "sample",
        "cut a sample of official files, or of a folder of your own",
        run_sample,
        SAMPLE,
    )
    sample.add_argument(
        "kind",
        metavar="KIND",
        choices=READERS,
        help="; ".join(f"{name}: {about}" for name, (about, _) in READERS.items()),
    )
    sample.add_argument(
        "--annotations", metavar="FILE", help="the official file (vqa: the annotations)"
    )
    sample.add_argument("--questions", metavar="FILE", help="vqa: the questions")
    sample.add_argument("--images", metavar="FOLDER", help="the folder of its images")
    sample.add_argument("--count", type=int, required=True, metavar="N", help="how many images")
    sample.add_argument("--seed", type=int, default=0, help="which N (default 0)")
    sample.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, help="a folder that is not there yet"
    )


def run_list(options):
    """`vlm-lite data list`."""
    from vlm_lite.data.sources import DATASETS, MODELS, SOURCES
    from vlm_lite.hub import locate, mirrored_model

    for name, model in MODELS.items():
        mirrored = mirrored_model(model)
        print(f"{name:16} {model}" + (f"  -> {mirrored}" if mirrored else ""))
    for name, dataset in DATASETS.items():
        print(f"{name:16} datasets/{dataset}")
    for name, source in SOURCES.items():
        size = source.size or source.about
        print(
            f"{name:16} {locate(source.address)}"
            + (f"  {size / 1e6:,.1f} MB" if size else "")
            + (f"  {source.hash}" if source.hash else "")
        )


def run_get(options):
    """`vlm-lite data get`."""
    import dataclasses

    from vlm_lite.data.photographs import FULL, MINIMAL, load_photographs

    choice = dataclasses.replace(MINIMAL if options.minimal else FULL, seed=options.seed)
    if options.images is not None:
        if options.images < 5:
            raise UserError(f"--images {options.images}: expected 5 or more.")
        n = options.images
        choice = dataclasses.replace(
            choice, images=n, val_images=n // 5, instructions=n, questions=n, val_questions=n // 5
        )
    for split in ("train", "val"):
        images, asked, talks = map(len, load_photographs(split, choice))
        print(f"{split}: {images:,} images, {asked:,} questions, {talks:,} conversations")


def run_sample(options):
    """`vlm-lite data sample KIND`."""
    from vlm_lite.data import formats, readers

    _, needed = READERS[options.kind]
    lacking = [f"--{name}" for name in needed if getattr(options, name) is None]
    if lacking:
        raise UserError(
            f"{options.kind} needs {' and '.join(lacking)} too. See vlm-lite data sample --help."
        )
    if Path(options.output).exists():
        raise UserError(
            f"{options.output} is there already. Name a folder that is not, so that nothing is lost."
        )
    read = {
        "captions": formats.read_coco_captions,
        "vqa": formats.read_vqa,
        "llava": readers.read_llava,
        "pope": readers.read_pope,
        "mmbench": readers.read_mmbench,
        "folder": readers.read_folder,
    }[options.kind]
    chosen = sample(read(*(getattr(options, name) for name in needed)), options.count, options.seed)
    write_folder(chosen, options.output)
    print(f"{len(chosen)} rows of {options.count} pictures in {options.output}")


def sample(dataset, count, seed=0):
    """The rows of `count` images, all that belongs to them, in their order; the same seed chooses the same."""
    ids = sorted(set(dataset["image_id"][:]))
    if not 1 <= count <= len(ids):
        raise UserError(
            f"{count} images were asked for; the data set has {len(ids)}. Ask for 1 to {len(ids)}."
        )
    chosen = set(random.Random(seed).sample(ids, count))
    rows = enumerate(dataset["image_id"][:])
    return dataset.select([row for row, image_id in rows if image_id in chosen])


def write_folder(dataset, folder):
    """Write a table of the common format as a folder that `read_folder` reads back; whole or not at all."""
    from datasets import Image

    from vlm_lite.data.readers import LISTING

    with atomic_dir(folder) as temporary, atomic_write(temporary / LISTING, "w") as listing:
        (temporary / "images").mkdir()
        names = {}
        for row in dataset.cast_column("image", Image(decode=False)):
            cell, image_id = row.pop("image"), row["image_id"]
            if image_id not in names:
                names[image_id] = _write_picture(cell, temporary / "images", image_id)
            said = {key: value for key, value in row.items() if value not in (None, [])}
            line = json.dumps(
                {"file_name": f"images/{names[image_id]}", **said}, ensure_ascii=False
            )
            listing.write(f"{line}\n")


def _write_picture(cell, folder, image_id):
    if not cell:
        raise UserError(
            f"image_id {image_id} has no image, so it cannot stand in a folder of images. Leave it "
            "out."
        )
    import PIL.Image

    from vlm_lite.data.images import open_image

    path, data = cell["path"], cell["bytes"]
    data = Path(path).read_bytes() if data is None else data
    open_image(data, path or f"the picture of image_id {image_id}")  # refused where it is damaged
    kind = PIL.Image.open(io.BytesIO(data)).format.lower()
    name = f"{image_id:012d}.{'jpg' if kind == 'jpeg' else kind}"
    (folder / name).write_bytes(data)
    return name
