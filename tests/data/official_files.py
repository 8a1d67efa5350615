"""A small folder of every kind of official file, each about its own few images."""

import json

import numpy as np
import PIL.Image

from tests.evals.official import lines, png, vqa_note
from vlm_lite.data.formats import read_coco_captions, read_vqa
from vlm_lite.data.readers import read_folder, read_llava, read_pope

PNG, JPG = "COCO_val2014_000000000042.png", "COCO_val2014_000000000007.jpg"


def picture(seed, size=(8, 8)):
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))


def talk(name, *texts):
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"id": "7", "image": name, "conversations": turns}


class World:
    """The files by their names as JSON values: change one, and `read` writes and reads what it needs."""

    def __init__(self, folder):
        self.folder, self.images, self.train = folder, folder / "images", folder / "train"
        for name in ("images", "train", "own/sub"):
            (folder / name).mkdir(parents=True)
        names = {42: PNG, 7: JPG}
        for i, name in names.items():
            picture(i).save(self.images / name)
        (self.train / "000000000042.jpg").write_bytes(png("red"))
        (self.train / "COCO_train2014_000000000007.jpg").write_bytes(png("blue"))
        (folder / "own" / "b.png").write_bytes(png("red"))
        (folder / "own" / "sub" / "a.png").write_bytes(png("blue", (9, 5)))
        said = ((7, "seven a"), (42, "forty-two é"), (7, "seven b"))
        self.captions = {
            "info": {},
            "images": [{"id": i, "file_name": name, "height": 8} for i, name in names.items()],
            "annotations": [{"image_id": i, "caption": text} for i, text in said],
        }
        self.descriptions = {"7": "seven in words", "42": "forty-two in words"}
        asked = ((70, 7, "how many?"), (420, 42, "what colour?"), (71, 7, "is it?"))
        self.questions = {
            "data_subtype": "val2014",
            "questions": [{"question_id": q, "image_id": i, "question": t} for q, i, t in asked],
        }
        self.annotations = {
            "data_subtype": "val2014",
            "annotations": [
                vqa_note(q, [answer] * 9 + ["other"], kind, of, image_id=i)
                for q, i, kind, of, answer in (
                    (71, 7, "is it", "yes/no", "yes"),
                    (70, 7, "how many", "number", "2"),
                    (420, 42, "what", "other", "red"),
                )
            ],
        }
        self.llava = [
            talk("000000000042.jpg", "<image>\nwhat?", "é", "and?", "b"),
            talk("coco/train2017/000000000007.jpg", "why?\n<image>", "c"),
            talk("000000000042.jpg", "<image>\nmore?", "d"),
        ]
        about = {"image": "000000000042.jpg", "text": "Is there a cat?"}
        self.pope = [{"question_id": k, **about, "label": ("no", "yes")[k % 2]} for k in (1, 2)]
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        self.own = [
            {"file_name": "b.png", "captions": ["<b>1</b>", "two"], "description": "d"},
            {"file_name": "sub/a.png", "question": "how many?", "answer": "2"},
            {"file_name": "b.png", "conversation": turns},
        ]

    def write(self, name):
        value = getattr(self, name)
        path = self.folder / ("own/metadata.jsonl" if name == "own" else f"{name}.json")
        is_lines = name in ("pope", "own") and isinstance(value, list)
        path.write_text(lines(value) if is_lines else json.dumps(value))
        return path

    def read(self, name, **options):
        """The table of the file `name` and of those that go with it."""
        if name in ("questions", "annotations"):
            files = self.write("questions"), self.write("annotations")
            return read_vqa(*files, self.images, **options)
        if name == "own":
            return read_folder(self.write("own").parent)
        if name in ("llava", "pope"):
            read = read_llava if name == "llava" else read_pope
            return read(self.write(name), self.train, **options)
        if name == "descriptions":
            options["descriptions"] = self.write("descriptions")
        return read_coco_captions(self.write("captions"), self.images, **options)
