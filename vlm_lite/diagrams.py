"""One diagram at the top of each notebook, drawn from the sizes of the model that is built below it."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vlm_lite.figures import BLUE, GREY, INK, ORANGE, PALE, SKY, Figure, styled, wrap


def _canvas(width, height, label):
    """A Figure and its axes, in which one unit is one pixel, counted from the upper left corner."""
    figure = Figure(width=width, height=height, label=label)
    axes = figure.axes_at(0, 0, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _box(axes, left, top, width, height, title, lines, colour):
    style = dict(boxstyle="round,pad=0,rounding_size=8", facecolor="white", linewidth=1.6)
    axes.add_patch(FancyBboxPatch((left, top), width, height, edgecolor=colour, **style))
    axes.text(left + width / 2, top + 17, title, ha="center", va="center", fontweight="bold")
    for k, line in enumerate(lines):
        axes.text(left + width / 2, top + 36 + 15 * k, line, ha="center", va="center", fontsize=8.5)


def _arrow(axes, start, end, label="", offset=(0, -8)):
    look = dict(arrowstyle="-|>", mutation_scale=11, color=GREY, linewidth=1.3)
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    x, y = ((a + b) / 2 + o for a, b, o in zip(start, end, offset, strict=True))
    axes.text(x, y, label, ha="center", va="center", fontsize=8.5, color=INK)


@styled
def clip(images, captions, config):
    """CLIP: images and captions, an encoder each, and the N x N matrix of cosines with its diagonal.

    images: N to draw; captions: N strings; config: a lessons.clip.CLIPConfig, whose sizes are written in.
    """
    count, cell, left, top = len(images), 50, 480, 196
    figure, axes = _canvas(720, top + 50 * count + 44, "two encoders and the matrix of cosines")
    patches = (config.image_size // config.patch_size) ** 2
    size, width, joint = config.image_size, config.width, config.projection_dim
    for row, image in enumerate(images):
        figure.picture_at(image, 12, top + cell * row + 4, 42)
    middle = top + cell * count / 2
    words = [
        f"{patches} patches and a class token",
        f"(N, {patches + 1}, {width})",
        f"{config.image_layers} blocks, then the class token",
        f"projection to (N, {joint})",
    ]
    _box(axes, 152, middle - 50, 212, 100, "image encoder", words, BLUE)
    _arrow(axes, (58, middle), (150, middle), f"(N, 3, {size}, {size})", (0, -12))
    _arrow(axes, (366, middle), (left - 26, middle), f"u   (N, {joint})", (0, -12))
    for k, caption in enumerate(captions):
        axes.text(
            12, 20 + 19 * k, wrap(f"{k + 1}  {caption}", 250, 8.5, 1), fontsize=8.5, va="center"
        )
    words = [
        f"tokens and positions (N, T, {width})",
        f"{config.text_layers} causal blocks; read out at EOS",
        f"projection to (N, {joint})",
    ]
    centre = left + cell * count / 2
    _box(axes, centre - 113, 14, 226, 84, "text encoder", words, ORANGE)
    _arrow(axes, (272, 50), (centre - 115, 50), "(N, T)", (0, -10))
    _arrow(axes, (centre, 100), (centre, top - 22), f"v   (N, {joint})", (44, 0))
    for row in range(count):
        axes.text(
            left - 13,
            top + cell * (row + 0.5),
            f"$u_{row + 1}$",
            parse_math=True,
            va="center",
            ha="center",
        )
        axes.text(
            left + cell * (row + 0.5),
            top - 11,
            f"$v_{row + 1}$",
            parse_math=True,
            va="center",
            ha="center",
        )
        for column in range(count):
            own = row == column
            spot = (left + cell * column, top + cell * row)
            colour = SKY if own else "white"
            axes.add_patch(
                Rectangle(
                    spot,
                    cell,
                    cell,
                    facecolor=colour,
                    edgecolor=INK if own else PALE,
                    zorder=1 + own,
                )
            )
            text = f"$u_{row + 1} \\cdot v_{column + 1}$"
            weight = dict(parse_math=True, ha="center", va="center", fontsize=9, zorder=3)
            axes.text(spot[0] + cell / 2, spot[1] + cell / 2, text, **weight)
    note = (
        "rows: which caption belongs to this image?   columns: which image belongs to this caption?"
    )
    axes.text(708, top + cell * count + 20, note, ha="right", va="center", fontsize=8.5, color=INK)
    return figure
