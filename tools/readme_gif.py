"""`make gif`: docs/ask.gif, the README's moving picture, from what the zoo's shapes-vlm really answers.

One question is asked about an image; the image is swapped; then it is hidden. The bars are the probabilities that the
model gives to each colour; the dashed line is what it gives the first right one without an image. The file carries the
hash of the checkpoints it was made from, so that a test can tell when it is out of date.
"""

import hashlib
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite.files import atomic_write, data_path  # noqa: E402
from vlm_lite.lessons.world import COLOURS  # noqa: E402
from vlm_lite.plots import ask_panel  # noqa: E402

TARGET = ROOT / "docs" / "ask.gif"
QUESTION = "what colour is the circle?"
ASKED = {1000066: "red", 1000180: "blue"}  # held-out images of `val`, and what is right
STEPS = ("1  ask", "2  swap the image", "3  hide the image")
ZOO = ("shapes-clip", "shapes-gpt2", "shapes-vlm")
MOVES = 9  # frames from one set of probabilities to the next


def zoo_hash():
    """sha256, shortened, of the weights that the picture shows the answers of."""
    weights = (data_path("zoo", name, "model.safetensors").read_bytes() for name in ZOO)
    return hashlib.sha256(b"".join(weights)).hexdigest()[:16]


def answers():
    """([image (3, 64, 64), ..., None], [{colour: probability} with each, the last of them without one])."""
    import torch

    from vlm_lite.data.shapes import load_pairs
    from vlm_lite.embed import pixel_values
    from vlm_lite.lessons.language import short_prompt
    from vlm_lite.models.vlm import load_vlm

    images, _, table = load_pairs("val", 1000)
    row = {image_id: k for k, image_id in enumerate(table["image_id"][:])}
    vlm = load_vlm("shapes-vlm")
    tokenizer, prompt, found = vlm.tokenizer, short_prompt(QUESTION), []
    text = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]  # (1, T)
    shown = [*(images[row[image_id]] for image_id in ASKED), None]
    for image, right in zip(shown, [*ASKED.values(), None], strict=True):
        features = None if image is None else vlm.encode(pixel_values(image[None]))  # (1, N, Dv)
        with torch.no_grad():
            p = vlm(features, text, torch.ones_like(text))[0, -1].softmax(-1)  # (V,)
        chances = p[tokenizer.convert_tokens_to_ids(list(COLOURS))].tolist()
        found.append(dict(zip(COLOURS, chances, strict=True)))
        if right not in (None, said := max(found[-1], key=found[-1].get)):
            sys.exit(
                f"shapes-vlm says {said} where {right} is right: choose other images in ASKED."
            )
    return shown, found


def frames(images, found):
    """(frames, milliseconds each) of the images, the last None, and their probabilities; it goes round.

    It starts where the first answer stands: that frame is all that a still preview shows.
    """
    shown, milliseconds = [], []
    options = {"answers": list(COLOURS), "blind": found[-1][next(iter(ASKED.values()))]}
    for k, (image, after) in enumerate(zip(images, found, strict=True)):
        for move in range(1, MOVES + 1):
            t = move / MOVES
            share, before = t * t * (3 - 2 * t), found[k - 1]  # slow at both ends
            chances = {c: (1 - share) * before[c] + share * after[c] for c in COLOURS}
            panel = ask_panel(image, QUESTION, chances, title=STEPS[k], **options)
            shown.append(panel.to_image())
            milliseconds.append(60 if move < MOVES else 2600)
    start = MOVES - 1
    return shown[start:] + shown[:start], milliseconds[start:] + milliseconds[:start]


def save(images, milliseconds, path, comment):
    """Write an endless GIF with one palette for all frames, so that what does not move costs nothing."""
    width, height = images[0].size
    together = Image.new("RGB", (width, height * len(images)))
    for row, image in enumerate(images):
        together.paste(image, (0, height * row))
    palette = together.quantize(128, dither=Image.Dither.NONE)
    small = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    options = {"duration": milliseconds, "loop": 0, "optimize": True, "comment": comment}
    with atomic_write(path) as file:
        small[0].save(file, "gif", save_all=True, append_images=small[1:], **options)


def main():
    images, milliseconds = frames(*answers())
    save(images, milliseconds, TARGET, f"made by make gif from the zoo {zoo_hash()}".encode())
    print(f"wrote {TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
