"""Small files in every official format, and the command that scores each."""

import base64
import io
import json

import numpy as np
from PIL import Image

M = 1_000_000
HEADER = "index question hint A B C D answer category image l2-category split".split()
OWNERS = {  # whose file it is
    "refs.json": "captions",
    "captions.json": "captions",
    "q.json": "vqa",
    "a.json": "vqa",
    "vqa.json": "vqa",
    "labels.json": "pope",
    "pope.jsonl": "pope",
    "t.tsv": "mmbench",
    "p.tsv": "mmbench",
    "e.npz": "retrieval",
    "names.txt": "zeroshot",
}
OPTIONS = {
    "captions": "--refs refs.json --results captions.json --tokenizer whitespace",
    "vqa": "--questions q.json --annotations a.json --results vqa.json",
    "pope": "--labels labels.json --answers pope.jsonl",
    "mmbench": "--tsv t.tsv --predictions p.tsv",
    "retrieval": "--embeddings e.npz",
    "zeroshot": "--images pictures --classes names.txt --model shapes-clip",
}


def png(colour, size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def picture(colour):
    return base64.b64encode(png(colour)).decode()


def cells(index=7, answer="A", image="", **more):
    """A row of MMBench's table."""
    values = ['What is\nit, a "cat"?', "nan", "cat", "dog", "None", "", answer, "animals", image]
    row = dict(zip(HEADER, [index, *values, "seeing", "dev"], strict=True))
    return list({**row, **more}.values())


def tabs(rows):
    """Rows as a TSV with every cell in quotes."""
    quoted = ([str(cell).replace('"', '""') for cell in row] for row in rows)
    return "\n".join("\t".join(f'"{cell}"' for cell in row) for row in quoted)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def vqa_note(question_id, answers, question_type, answer_type, **more):
    return {
        "question_id": question_id,
        "image_id": question_id,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": answer, "answer_id": n} for n, answer in enumerate(answers, 1)],
        **more,
    }


class Files(dict):
    """Paths by name."""

    def write(self, name, value):
        text = value if isinstance(value, str) else json.dumps(value)
        self[name].write_text(text, encoding="utf-8")
        return self[name]

    def change(self, name, change):
        value = json.loads(self[name].read_text(encoding="utf-8"))
        change(value)
        self.write(name, value)

    def arguments(self, benchmark):
        """What `vlm-lite` is called with."""
        template = ["--template", "a {} square."] if benchmark == "zeroshot" else []
        words = (str(self.get(word, word)) for word in OPTIONS[benchmark].split())
        return ["eval", benchmark, *words, *template]


def make_files(folder):
    files = Files({name: folder / name for name in (*OWNERS, "pictures")})
    captions = ((1, "A red circle here."), (2, "My dog runs fast."), (1, "It is a circle."))
    notes = [{"image_id": i, "caption": text} for i, text in captions]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    files.write("refs.json", {"images": images, "annotations": notes})
    said = ((2, "my dog runs fast"), (1, "a red circle here"))
    files.write("captions.json", [{"image_id": i, "caption": text} for i, text in said])
    asked = [{"question_id": k, "image_id": k, "question": "what?"} for k in (1, 2, 3, 4)]
    files.write("q.json", {"data_subtype": "val2014", "questions": asked})
    answered = [
        vqa_note(1, ["yes"] * 10, "is", "yes/no"),
        vqa_note(2, ["2"] * 2 + ["3"] * 8, "what", "number"),
        vqa_note(3, ["red"] * 5 + ["blue"] * 5, "what", "other"),
        vqa_note(4, ["red"] * 10, "what", "other"),
    ]
    files.write("a.json", {"data_subtype": "val2014", "annotations": answered})
    said = ((4, "green"), (3, "Blue."), (2, "two"), (1, "Yes"))
    files.write("vqa.json", [{"question_id": k, "answer": answer} for k, answer in said])
    about = {"image": "a.jpg", "text": "Is there?"}
    labels = enumerate(("yes", "no", "yes", "no"))
    files.write("labels.json", lines({"question_id": k, **about, "label": v} for k, v in labels))
    said = ((3, "No."), (2, "Yes"), (1, "NO"), (0, "yes"))
    files.write("pope.jsonl", lines({"question_id": k, "text": text} for k, text in said))
    red, blue = picture("red"), picture("blue")
    table = [cells(1, "A", red), cells(M + 1, "B", "1"), cells(2, "B", blue, category="plants")]
    files.write("t.tsv", tabs([HEADER, *table]))
    files.write("p.tsv", tabs([["prediction", "index"], ["dog", 2], ["B", M + 1], ["A.", 1]]))
    save_embeddings(files["e.npz"])
    files.write("names.txt", "red\ngreen\nblue")
    for colour in ("red", "blue"):
        (files["pictures"] / colour).mkdir(parents=True)
        (files["pictures"] / colour / "a.png").write_bytes(png(colour))
    return files


def save_embeddings(path, **changed):
    """Twelve images and their texts, each its own; an array that is None is left out."""
    eye, half = np.eye(12), np.eye(12, dtype=np.float16)
    arrays = {"image_embeds": eye, "text_embeds": half, "image_of_text": np.arange(12), **changed}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path
