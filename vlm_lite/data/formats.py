"""The common format: every data set, real or drawn, is read into one `datasets.Dataset` with the columns of FEATURES.

The official layouts read here:
    COCO captions   {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    VQA v2          {"data_subtype", "questions": [{"question_id", "image_id", "question"}]} and
                    {"data_subtype", "annotations": [{"question_id", "image_id", "question_type", "answer_type",
                    "multiple_choice_answer", "answers": [ten of {"answer"}]}]}, images COCO_{subtype}_{id:012d}.jpg
"""

import os

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Image, List, Value

from vlm_lite.data.images import fit_square, open_image
from vlm_lite.data.records import field, read_caption_lists, read_vqa_rows, refuse_empty
from vlm_lite.files import UserError, read_json, shorten, show

NUMBER, TEXT = Value("int64"), Value("string")
FEATURES = Features(
    {
        "image": Image(),
        "image_id": NUMBER,
        "captions": List(TEXT),
        "question_id": NUMBER,
        "question": TEXT,
        "question_type": TEXT,
        "answer_type": TEXT,
        "answer": TEXT,
        "answers": List(TEXT),
        "conversation": List({"role": TEXT, "content": TEXT}),
        "description": TEXT,
    }
)
EMPTY = {name: [] if isinstance(feature, List) else None for name, feature in FEATURES.items()}


def make_dataset(columns):
    """A Dataset with the columns of FEATURES; what `columns` lacks is None, or an empty list for list columns.

    The `image` column holds undecoded cells: {"bytes": None or bytes, "path": path or None}. Where a file's ids are
    text, `image_id` or `question_id` numbers them from 1, in the order of their first mention.
    """
    count = len(columns["image_id"])
    filled = {name: columns.get(name, [EMPTY[name]] * count) for name in FEATURES}
    for name in ("image_id", "question_id"):
        if any(isinstance(value, str) for value in filled[name]):
            numbers = {value: k for k, value in enumerate(dict.fromkeys(filled[name]), 1)}
            filled[name] = [numbers[value] for value in filled[name]]
    table = pa.table(filled, schema=FEATURES.arrow_schema)
    return Dataset(table)  # 5 times faster than Dataset.from_dict


def from_rows(rows):
    """`make_dataset` of N rows, dicts that may each lack any column."""
    return make_dataset({name: [row.get(name, EMPTY[name]) for row in rows] for name in FEATURES})


def read_coco_captions(annotations, images, descriptions=None, *, image_ids=None):
    """Read an official COCO captions file: one row an image that has captions, with its captions in file order.

    annotations: path of the JSON file. images: the folder that its `file_name`s are in.
    descriptions: optional path of a JSON file {image_id: text} for the `description` column.
    image_ids: keep these images only (default: all), so that several files can share one downloaded set of images.
    Images are found but not opened. Raises UserError naming the file and the field: see the tests of this module.
    """
    names, captions = read_caption_lists(annotations)
    kept = [i for i in names if i in captions and (image_ids is None or i in image_ids)]
    refuse_empty(kept, "captions", annotations)
    paths = find_images({i: [names[i]] for i in kept}, images, annotations, "images[].file_name")
    return make_dataset(
        {
            "image": [paths[i] for i in kept],
            "image_id": kept,
            "captions": [captions[i] for i in kept],
            "description": _descriptions(descriptions, kept),
        }
    )


def read_vqa(questions, annotations, images, descriptions=None, *, image_ids=None):
    """Read the official VQA v2 question and annotation files: one row a question, in the order of the question file.

    `answer` is the official `multiple_choice_answer`, `answers` the ten people's answers as they stand in the file.
    The images are `COCO_{data_subtype}_{image_id:012d}`, or `{image_id}` where that is text, with .jpg or .png in the
    folder `images`; where both are there the file is refused.
    descriptions, image_ids and errors: as in `read_coco_captions`.
    """
    rows, subtype = read_vqa_rows(questions, annotations, image_ids=image_ids)
    ids, names = rows["image_id"], {}
    for i in dict.fromkeys(ids):
        stem = i if isinstance(i, str) else f"COCO_{subtype}_{i:012d}"
        names[i] = [f"{stem}.jpg", f"{stem}.png"]
    paths = find_images(names, images, questions, "data_subtype")
    cells = {"image": [paths[i] for i in ids], "description": _descriptions(descriptions, ids)}
    return make_dataset(rows | cells)


def image_tensor(dataset, image_size=None, fit=None):
    """Decode each image of `dataset` once: (uint8 tensor (N, 3, H, W), the N image ids in first-seen order).

    image_size: resize the shorter side to it (bicubic) and crop the centre, as CLIP's own transform does; needed where
    images differ in size. fit: a function of an RGB image of PIL in its place. Raises UserError naming an image that is
    missing, damaged, over Pillow's size limit, or of another size than the first.
    """
    first = {}
    for index, image_id in enumerate(dataset["image_id"][:]):
        first.setdefault(image_id, index)
    refuse_empty(first, "pictures", "the data set")
    rows = dataset.select(list(first.values())).cast_column("image", Image(decode=False))
    pixels = []
    for image_id, source in zip(first, rows["image"][:], strict=True):
        name = (source or {}).get("path") or f"the image of image_id {image_id}"
        if not source:
            raise UserError(
                f"{name} is missing: its `image` is empty. Give the row an image, or take it out."
            )
        image = open_image(source["path"] if source["bytes"] is None else source["bytes"], name)
        if fit or image_size:
            image = fit(image) if fit else fit_square(image, image_size)
        pixels.append(np.asarray(image))
        if pixels[-1].shape != pixels[0].shape:
            (height, width), (first_height, first_width) = pixels[-1].shape[:2], pixels[0].shape[:2]
            raise UserError(
                f"{name} is {width}x{height} pixels, the images before it are {first_width}x{first_height}. Pass "
                "image_size= to bring all to one size."
            )
    return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy()), list(first)


def find_images(candidates, folder, file, field):
    """{image_id: undecoded `image` cell} for {image_id: possible file names}, each inside `folder` and on the disk.

    Of an image's names one must be there: none, or two, is an error.
    """
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder} is not a folder; expected the folder of the images of {file}. Check the path."
        )
    root = os.path.realpath(folder)
    found, absent = {}, []
    for image_id, names in candidates.items():
        there = []
        for name in names:
            path = os.path.join(root, name)
            if "\0" in name or not os.path.realpath(path).startswith(os.path.join(root, "")):
                raise UserError(
                    f"{file}: `{field}` makes {show(name)} (image {show(image_id)}), which leaves the folder "
                    f"{root}. Expected a name inside it: put the image itself there."
                )
            if os.path.isfile(path):
                there.append(path)
        if len(there) > 1:
            raise UserError(
                f"{file}: {' and '.join(map(os.path.basename, there))} are both in {folder}, and either could "
                f"be image {show(image_id)}. Keep the one that is meant."
            )
        if there:
            found[image_id] = {"bytes": None, "path": there[0]}
        else:
            absent.append(" or ".join(names))
    if absent:
        raise UserError(
            f"{file}: {len(absent)} of {len(candidates)} images are not in {folder}, for example "
            f"{shorten(absent[0], 200)}. Make or download them, or take what speaks of them out of that file."
        )
    return found


def _descriptions(path, image_ids):
    """The text for each of `image_ids` from the JSON file {image_id: text} at `path`; None for all without a file."""
    if path is None:
        return [None] * len(image_ids)
    texts = read_json(path)
    return [field(texts, str(i), str, path) for i in image_ids]
