"""`make gif`: docs/ask.gif, the README's moving picture, from what the zoo's shapes-vlm really answers.

One question is asked about a picture; the picture is swapped; then it is hidden. The bars are the probabilities that
the model gives to each colour; the dashed line is what it gives them without a picture. The file carries the hash of
the checkpoints it was made from, so that a test can tell when it is out of date.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vlm_lite.data.scenes import COLOURS  # noqa: E402
from vlm_lite.figures import BLUE, GREY, INK, PALE, VERMILLION, Figure, enlarge, styled  # noqa: E402
from vlm_lite.files import atomic_write, data_path  # noqa: E402

TARGET = ROOT / "docs" / "ask.gif"
QUESTION, PICTURES = (
    "what colour is the circle?",
    {1000066: "red", 1000180: "blue"},
)  # held-out pictures of `val`
STEPS = ("ask", "swap the picture", "hide the picture")
ZOO = ("shapes-clip", "shapes-gpt2", "shapes-vlm")
WIDTH, HEIGHT, SIDE, COLOURS_IN_FILE = 720, 312, 236, 144


def zoo_hash():
    """sha256, shortened, of the weights that the picture shows the answers of."""
    digest = hashlib.sha256()
    for name in ZOO:
        digest.update(data_path("zoo", name, "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def answers():
    """([picture (3, 64, 64), ...], [{colour: probability} with each picture, ..., and without one])."""
    import torch

    from vlm_lite.data.language import short_prompt
    from vlm_lite.data.shapes import load_shapes
    from vlm_lite.models.vlm import VLM
    from vlm_lite.profiles import resolve_model
    from vlm_lite.recipes import load_pictures, pixel_values

    images, _, ids = load_pictures(load_shapes("val", 1000, progress=False)[0])
    vlm = VLM.from_pretrained(resolve_model("shapes-vlm"))
    text = vlm.tokenizer(short_prompt(QUESTION), return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ]  # (1, T)
    colours = vlm.tokenizer.convert_tokens_to_ids(list(COLOURS))
    pictures = [images[ids.index(image_id)] for image_id in PICTURES]
    found = []
    for picture in [*pictures, None]:
        features = (
            None if picture is None else vlm.encode(pixel_values(picture[None]))
        )  # (1, N, Dv)
        with torch.no_grad():
            p = vlm(features, text).logits[0, -1].softmax(-1)[colours]  # (V,) -> (8,)
        found.append(dict(zip(COLOURS, p.tolist(), strict=True)))
    for (image_id, right), chances in zip(PICTURES.items(), found, strict=False):
        said = max(chances, key=chances.get)
        if said != right:
            sys.exit(
                f"shapes-vlm says {said} of picture {image_id}, where {right} is right. Choose other pictures: "
                "PICTURES in tools/readme_gif.py."
            )
    return pictures, found


# ---------------------------------------------------------------- the frames


def ease(count):
    """`count` numbers that run from just above 0 to 1, slow at both ends."""
    t = np.arange(1, count + 1) / count
    return t * t * (3 - 2 * t)


def cover():
    """What hides a picture: a pale hatched board, (SIDE, SIDE, 3) uint8."""
    board = Image.new("RGB", (SIDE, SIDE), PALE)
    draw = ImageDraw.Draw(board)
    for start in range(-SIDE, SIDE, 18):
        draw.line([(start, SIDE), (start + SIDE, 0)], fill="#cfd3da", width=2)
    return np.asarray(board)


def swapped(old, new, share):
    """`old` pushed out to the left by `share` of its width as `new` comes in."""
    cut = round(share * SIDE)
    return np.concatenate([old[:, cut:], new[:, :cut]], axis=1)


def covered(picture, board, share):
    """`picture` with `board` let down over `share` of its height."""
    cut = round(share * SIDE)
    return np.concatenate([board[SIDE - cut :], picture[cut:]], axis=0)


@styled
def frame(stage, text, chances, blind, step, hidden=False):
    """One frame: the picture, the question as far as it is typed, a bar for each colour, and the step of the story."""
    figure = Figure(width=WIDTH, height=HEIGHT, label=text)
    left, top = 24, 46
    figure.picture_at(Image.fromarray(stage), left, top, SIDE)
    if hidden:
        figure.text_at(
            left + SIDE / 2,
            top + SIDE / 2,
            "picture hidden",
            ha="center",
            va="center",
            fontsize=11,
            bbox={"facecolor": PALE, "edgecolor": "none", "pad": 5},
        )
    for index, (name, place) in enumerate(zip(STEPS, (0, 76, 250), strict=True)):
        now = index == step
        figure.text_at(
            left + place,
            16,
            f"{index + 1}  {name}",
            fontsize=10.5,
            color=BLUE if now else "#9aa1ac",
            fontweight="bold" if now else "normal",
        )
    right = left + SIDE + 34
    figure.text_at(right, top - 4, text, fontsize=15, fontweight="bold", color=INK)
    axes = figure.axes_at(right + 58, top + 52, WIDTH - right - 58 - 56, SIDE - 52)
    best = max(chances, key=chances.get)
    for row, (name, chance) in enumerate(chances.items()):
        bar = "#" + bytes(COLOURS[name]).hex()
        axes.barh(
            row, 100 * chance, 0.7, color=bar, edgecolor=INK if chance else "none", linewidth=0.7
        )
        if chance >= 0.005:
            strong = name == best and chance > 0.5
            beside = (
                blind[name] if chance <= blind[name] < chance + 0.1 else chance
            )  # not upon the line
            axes.text(
                100 * beside + 1.8,
                row,
                f"{100 * chance:.0f}%",
                va="center",
                color=INK if strong else GREY,
                fontsize=10.5 if strong else 9.5,
                fontweight="bold" if strong else "normal",
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            )
    for row, name in enumerate(chances):  # together, row by row, a dashed line
        halo = [("white", 4.5)] if chances[name] > blind[name] + 0.02 else []
        for colour, width in (*halo, (VERMILLION, 2.2)):
            axes.plot(
                [100 * blind[name]] * 2,
                [row - 0.4, row + 0.4],
                color=colour,
                linewidth=width,
                zorder=4,
                solid_capstyle="butt",
            )
    axes.text(
        100 * blind[next(iter(chances))],
        -0.72,
        "without a picture",
        color=VERMILLION,
        fontsize=9.5,
        va="bottom",
        ha="center",
    )
    axes.set(
        yticks=range(len(chances)),
        yticklabels=list(chances),
        xlim=(0, 100),
        xticks=range(0, 101, 25),
        ylim=(len(chances) - 0.4, -0.6),
    )
    axes.tick_params(axis="x", labelbottom=False)
    figure.text_at(
        right + 58,
        top + SIDE + 5,
        "probability of each answer, by shapes-vlm",
        color=GREY,
        fontsize=9,
    )
    axes.tick_params(axis="y", labelsize=10)
    axes.grid(axis="y", visible=False)
    return figure.to_image()


def frames(pictures, found):
    """The whole story as (frames, milliseconds each) of the two pictures and the three sets of probabilities.

    It goes round, and starts where the first answer stands: that frame is all that a still preview shows.
    """
    one, other = (enlarge(picture, SIDE) for picture in pictures)
    first, second, blind = found
    nothing, board = dict.fromkeys(blind, 0.0), cover()
    shown = []

    def show(milliseconds, stage, text, chances, step, hidden=False):
        shown.append((frame(stage, text, chances, blind, step, hidden), milliseconds))

    def move(before, after, stage, step, hidden=False):
        for share in ease(9):
            show(
                50,
                stage,
                QUESTION,
                {name: (1 - share) * before[name] + share * after[name] for name in before},
                step,
                hidden,
            )
        shown[-1] = shown[-1][0], 2200

    for length in range(0, len(QUESTION) + 1, 2):
        show(70, one, QUESTION[:length], nothing, 0)
    shown[0], shown[-1] = (shown[0][0], 500), (shown[-1][0], 400)
    move(nothing, first, one, 0)
    full = len(shown) - 1
    for share in ease(9)[:-1]:
        show(50, swapped(one, other, share), QUESTION, first, 1)
    show(350, other, QUESTION, first, 1)
    move(first, second, other, 1)
    for share in ease(9)[:-1]:
        show(50, covered(other, board, share), QUESTION, second, 2)
    show(350, board, QUESTION, second, 2, hidden=True)
    move(second, blind, board, 2, hidden=True)
    shown[-1] = shown[-1][0], 3200
    shown = shown[full:] + shown[:full]
    return [image for image, _ in shown], [milliseconds for _, milliseconds in shown]


def palette_of(images):
    """One palette for all frames: the colours of bars and lines as they are, then the commonest of the rest."""
    course = (ImageColor.getrgb(colour) for colour in ("white", INK, GREY, BLUE, VERMILLION))
    exact = [*course, *COLOURS.values()]
    some = images[::6]
    together = Image.new("RGB", (WIDTH, HEIGHT * len(some)))
    for row, image in enumerate(some):
        together.paste(image, (0, HEIGHT * row))
    rest = together.quantize(COLOURS_IN_FILE - len(exact), dither=Image.Dither.NONE).getpalette()
    rest = np.array(rest).reshape(-1, 3)
    near = (np.abs(rest[:, None] - np.array(exact)).max(axis=2) < 12).any(
        axis=1
    )  # Pillow would mix these two up
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.array(exact).ravel().tolist(), *rest[~near].ravel().tolist()])
    return palette


def save(images, milliseconds, path, comment):
    """Write an endless GIF with one palette for all frames, so that what does not move costs nothing."""
    palette = palette_of(images)
    small = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with atomic_write(path) as file:
        small[0].save(
            file,
            "gif",
            save_all=True,
            append_images=small[1:],
            duration=milliseconds,
            loop=0,
            optimize=True,
            comment=comment,
        )


def main():
    images, milliseconds = frames(*answers())
    save(images, milliseconds, TARGET, f"made by make gif from the zoo {zoo_hash()}".encode())
    print(
        f"wrote {TARGET.relative_to(ROOT)}: {len(images)} frames, {sum(milliseconds) / 1000:.0f} s, "
        f"{TARGET.stat().st_size / 1000:.0f} KB"
    )


if __name__ == "__main__":
    main()
