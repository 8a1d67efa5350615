"""The diagrams at the top of the notebooks, drawn from the shapes of the very model that the notebook builds."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vlm_lite.figures import BLUE, GREY, INK, ORANGE, PALE, SKY, VERMILLION, Figure, styled


def _canvas(width, height, label):
    """A figure and axes over all of it whose units are pixels from the upper left corner."""
    figure = Figure(width=width, height=height, label=label)
    axes = figure.axes_at(0, 0, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _label_box(axes, left, top, width, height, text="", *, fill="white", edge=INK, size=9, **kw):
    """A rounded box with text in its middle."""
    style = "round,pad=0,rounding_size=5"
    axes.add_patch(
        FancyBboxPatch((left, top), width, height, boxstyle=style, fc=fill, ec=edge, lw=1.1, **kw)
    )
    axes.text(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=size)


def _plain_arrow(axes, start, end, **kw):
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=GREY, shrinkA=0, shrinkB=0, **kw
        )
    )


@styled
def vision_transformer(model, image, classes=None):
    """From image to patches, tokens, blocks, class token and logits, with the shapes of `model`, a `lessons.vit.ViT`.

    image: uint8 (3, S, S), S being the model's. classes: names of the logits, or None.
    """
    size, patch, width = image.shape[-1], model.patch_size, model.pos_embed.shape[-1]
    side, depth, heads = size // patch, len(model.blocks), model.blocks[0].attn.num_heads
    count, outputs = side * side, model.head.out_features
    figure, axes = _canvas(920, 330, "a Vision Transformer: image, patches, tokens, blocks, class")

    def caption(x, text, shape):
        axes.text(x, 292, text, ha="center", fontsize=9, fontweight="bold")
        axes.text(x, 312, shape, ha="center", fontsize=9, color=GREY)

    picture = figure.picture_at(image, 16, 76, 144)
    for k in range(1, side):
        picture.axhline(144 * k / side - 0.5, color="white", lw=0.8)
        picture.axvline(144 * k / side - 0.5, color="white", lw=0.8)
    caption(88, "image", f"3 x {size} x {size}")
    _plain_arrow(axes, (164, 148), (196, 148))
    axes.text(180, 138, "cut", ha="center", fontsize=8.5, color=GREY)

    few = count <= 6
    shown = range(count) if few else (0, 1, 2, 3, None, count - 1)  # None: dots for those between
    tops = [70 + 34 * row for row in range(len(shown))]
    for top, k in zip(tops, shown, strict=True):
        if k is None:
            axes.text(215, top + 14, "⋮", ha="center", va="center", fontsize=14)
            continue
        row, column = k // side * patch, k % side * patch
        figure.picture_at(image[:, row : row + patch, column : column + patch], 201, top, 28)
        _plain_arrow(axes, (234, top + 14), (290, top + 14))
    caption(215, "patches", f"{count} x {3 * patch * patch}")
    axes.text(262, tops[0] + 6, "linear", ha="center", fontsize=8.5, color=GREY)

    def tokens(left):
        """A column of vectors, the class token's on top."""
        for top, k in zip([30, *tops], ["cls", *shown], strict=True):
            if k is None:
                axes.text(left + 32, top + 14, "⋮", ha="center", va="center", fontsize=14)
                continue
            for cell in range(8):
                fill = ((VERMILLION, "#f4b89a") if k == "cls" else (SKY, PALE))[cell % 2]
                axes.add_patch(
                    Rectangle((left + 8 * cell, top + 8), 8, 13, fc=fill, ec="white", lw=0.6)
                )

    tokens(296)
    axes.text(328, 22, "class token", ha="center", fontsize=8.5, color=VERMILLION)
    axes.text(376, 148, "+", ha="center", va="center", fontsize=15)
    _label_box(axes, 392, 32, 26, 244, fill="#fdf1dc", edge=ORANGE)
    axes.text(
        405, 154, "position embedding", rotation=90, ha="center", va="center", fontsize=9, color=INK
    )
    caption(350, "tokens", f"(1 + {count}) x {width}")
    _plain_arrow(axes, (424, 148), (452, 148))

    for k in range(min(depth, 3) - 1, -1, -1):  # a stack of blocks, the nearest last
        _label_box(axes, 456 + 7 * k, 52 - 7 * k, 196, 210, fill="#f7f8fa", edge=GREY)
    for top, text, fill in (
        (66, "LayerNorm", "white"),
        (96, f"multi-head attention\n{heads} heads of {width // heads}", "#dcedf8"),
        (168, "LayerNorm", "white"),
        (198, f"MLP\n{width} → {4 * width} → {width}", "#dcedf8"),
    ):
        _label_box(axes, 482, top, 140, 26 if "\n" not in text else 38, text, fill=fill, size=8.5)
    for top, low in ((60, 147), (162, 249)):  # the residual stream, around each step
        axes.plot([552, 552], [low - 12, low], color=GREY, lw=1)
        axes.plot([552, 469, 469, 545], [top, top, low, low], color=BLUE, lw=1.3)
        axes.text(552, low, "+", fontsize=12, ha="center", va="center", color=BLUE)
    caption(556, f"block, {depth} of them", f"(1 + {count}) x {width}")
    _plain_arrow(axes, (672, 148), (700, 148))

    tokens(704)
    axes.add_patch(
        Rectangle((700, 34), 72, 21, fc="none", ec=VERMILLION, lw=1.6, linestyle=(0, (4, 2)))
    )
    caption(736, "tokens out", f"(1 + {count}) x {width}")
    _plain_arrow(axes, (774, 44), (800, 44))
    _label_box(axes, 804, 30, 46, 28, "head", fill="#fdf1dc", edge=ORANGE)
    _plain_arrow(axes, (827, 60), (827, 78))
    names = list(classes or [f"class {k}" for k in range(outputs)])
    for k, name in enumerate(names):
        _label_box(axes, 788, 82 + 27 * k, 80, 22, name, size=8.5)
    caption(828, "logits", f"{outputs}")
    return figure
