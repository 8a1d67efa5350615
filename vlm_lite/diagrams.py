"""One diagram at the top of each notebook, drawn from the sizes of the model that is built below it."""

import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vlm_lite.embed import pixel_values
from vlm_lite.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    Figure,
    styled,
    wrap,
)

RED, SAND, WATER, MIST = ("#f4b89a", "#fbe3d6"), "#fbe0b0", "#dcedf8", "#eef1f4"


class Diagram(Figure):
    """A figure whose parts are placed in pixels, counted from its upper left corner."""

    def __init__(self, width, height, label):
        super().__init__(width=width, height=height, label=label)
        self.canvas = self.axes_at(0, 0, width, height)
        self.canvas.set(xlim=(0, width), ylim=(height, 0))
        self.canvas.axis("off")

    def write(self, x, y, text, size=8.5, **kw):
        self.canvas.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center"} | kw)

    def caption(self, x, y, text, shape):
        self.write(x, y, text, 9, fontweight="bold")
        self.write(x, y + 19, shape, 9, color=GREY)

    def box(self, left, top, width, height, text="", *, title="", fill="white", edge=INK, size=8.5):
        """A rounded box with text in its middle, under a title in bold."""
        style = dict(boxstyle="round,pad=0,rounding_size=6", fc=fill, ec=edge, lw=1.2)
        self.canvas.add_patch(FancyBboxPatch((left, top), width, height, **style))
        self.write(left + width / 2, top + 17, title, 9.5, fontweight="bold")
        self.write(left + width / 2, top + height / 2 + 9 * bool(title), text, size)

    def arrow(self, start, end, text="", offset=(0, -11)):
        look = dict(arrowstyle="-|>", mutation_scale=11, color=GREY, shrinkA=0, shrinkB=0)
        self.canvas.add_patch(FancyArrowPatch(start, end, **look))
        self.write(*((a + b) / 2 + o for a, b, o in zip(start, end, offset, strict=True)), text)

    def vector(self, left, top, cell, height, colours, count=8):
        for k in range(count):
            look = dict(fc=colours[k % 2], ec="white", lw=0.6)
            self.canvas.add_patch(Rectangle((left + cell * k, top), cell, height, **look))

    def image(self, image, left, top, side):
        """An image cut into side x side patches, with its shape beneath."""
        axes = self.picture_at(image, left, top, 144)
        for k in range(1, side):
            axes.axhline(144 * k / side - 0.5, color="white", lw=0.8)
            axes.axvline(144 * k / side - 0.5, color="white", lw=0.8)


@styled
def clip(images, captions, config):
    """CLIP: images and captions, an encoder each, and the N x N matrix of cosines with its diagonal.

    images: N to draw; captions: N lists, of each the shortest is shown; config: a lessons.clip.CLIPConfig, whose sizes
    are written in.
    """
    count, cell, left, top = len(images), 50, 480, 196
    figure = Diagram(720, top + 50 * count + 44, "two encoders and the matrix of cosines")
    patches = (config.image_size // config.patch_size) ** 2
    size, width, joint = config.image_size, config.width, config.projection_dim
    middle, centre = top + cell * count / 2, left + cell * count / 2
    words = f"{patches} patches and a class token\n(N, {patches + 1}, {width})\n"
    words += f"{config.image_layers} blocks, then the class token\nprojection to (N, {joint})"
    figure.box(152, middle - 50, 212, 100, words, title="image encoder", edge=BLUE)
    figure.arrow((58, middle), (150, middle), f"(N, 3, {size}, {size})")
    figure.arrow((366, middle), (left - 26, middle), f"u   (N, {joint})")
    words = f"tokens and positions (N, T, {width})\n{config.text_layers} causal blocks; "
    words += f"read out at EOS\nprojection to (N, {joint})"
    figure.box(centre - 113, 14, 226, 84, words, title="text encoder", edge=ORANGE)
    figure.arrow((272, 50), (centre - 115, 50), "(N, T)")
    figure.arrow((centre, 100), (centre, top - 22), f"v   (N, {joint})", (44, 0))
    for row, (image, texts) in enumerate(zip(images, captions, strict=True)):
        figure.picture_at(image, 12, top + cell * row + 4, 42)
        text = wrap(f"{row + 1}  {min(texts, key=len)}", 250, 8.5, 1)
        figure.write(12, 20 + 19 * row, text, ha="left")
        across, down, math = (
            left + cell * (row + 0.5),
            top + cell * (row + 0.5),
            {"parse_math": True},
        )
        figure.write(left - 13, down, f"$u_{row + 1}$", **math)
        figure.write(across, top - 11, f"$v_{row + 1}$", **math)
        for column in range(count):
            own, x = row == column, left + cell * column
            look = dict(fc=SKY if own else "white", ec=INK if own else PALE, zorder=1 + own)
            figure.canvas.add_patch(Rectangle((x, top + cell * row), cell, cell, **look))
            text = f"$u_{row + 1} \\cdot v_{column + 1}$"
            figure.write(x + cell / 2, down, text, 9, zorder=3, **math)
    note = (
        "rows: which caption belongs to this image?   columns: which image belongs to this caption?"
    )
    figure.write(708, top + cell * count + 20, note, ha="right")
    return figure


@styled
def vision_transformer(model, image, classes=None):
    """From image to patches, tokens, blocks, class token and logits, with the shapes of `model`, a `lessons.vit.ViT`.

    image: uint8 (3, S, S), S being the model's. classes: names of the logits, or None.
    """
    size, patch, width = image.shape[-1], model.patch_size, model.pos_embed.shape[-1]
    side, depth, heads = size // patch, len(model.blocks), model.blocks[0].attn.num_heads
    count, outputs = side * side, model.head.out_features
    figure = Diagram(920, 330, "a Vision Transformer: image, patches, tokens, blocks, class")
    figure.image(image, 16, 76, side)
    shown = range(count) if count <= 6 else (0, 1, 2, 3, None, count - 1)  # None: those between
    tops = [70 + 34 * row for row in range(len(shown))]
    for top, k in zip(tops, shown, strict=True):
        if k is None:
            figure.write(215, top + 14, "⋮", 14)
            continue
        row, column = k // side * patch, k % side * patch
        figure.picture_at(image[:, row : row + patch, column : column + patch], 201, top, 28)
        figure.arrow((234, top + 14), (290, top + 14))
    for left in (296, 704):  # a column of vectors, the class token's on top
        for top, k in zip([30, *tops], ["class", *shown], strict=True):
            if k is None:
                figure.write(left + 32, top + 14, "⋮", 14)
            else:
                colours = (VERMILLION, RED[0]) if k == "class" else (SKY, PALE)
                figure.vector(left, top + 8, 8, 13, colours)
    figure.write(262, tops[0] + 3, "linear", color=GREY)
    figure.write(328, 22, "class token", color=VERMILLION)
    figure.write(376, 148, "+", 15)
    figure.box(392, 32, 26, 244, fill="#fdf1dc", edge=ORANGE)
    figure.write(405, 154, "position embedding", 9, rotation=90)
    for k in range(min(depth, 3) - 1, -1, -1):  # a stack of blocks, the nearest last
        figure.box(456 + 7 * k, 52 - 7 * k, 196, 210, fill="#f7f8fa", edge=GREY)
    figure.box(482, 66, 140, 26, "LayerNorm")
    heading = f"multi-head attention\n{heads} heads of {width // heads}"
    figure.box(482, 96, 140, 38, heading, fill=WATER)
    figure.box(482, 168, 140, 26, "LayerNorm")
    figure.box(482, 198, 140, 38, f"MLP\n{width} → {4 * width} → {width}", fill=WATER)
    for top, low in ((60, 147), (162, 249)):  # the residual stream, around each step
        figure.canvas.plot([552, 552], [low - 12, low], color=GREY, lw=1)
        figure.canvas.plot([552, 469, 469, 545], [top, top, low, low], color=BLUE, lw=1.3)
        figure.write(552, low, "+", 12, color=BLUE)
    look = dict(fc="none", ec=VERMILLION, lw=1.6, linestyle=(0, (4, 2)))
    figure.canvas.add_patch(Rectangle((700, 34), 72, 21, **look))
    for start, end, y in ((164, 196, 148), (424, 452, 148), (672, 700, 148), (774, 800, 44)):
        figure.arrow((start, y), (end, y))
    figure.write(180, 135, "cut", color=GREY)
    figure.box(804, 30, 46, 28, "head", fill="#fdf1dc", edge=ORANGE)
    figure.arrow((827, 60), (827, 78))
    for k, name in enumerate(classes or [f"class {k}" for k in range(outputs)]):
        figure.box(788, 82 + 27 * k, 80, 22, name)
    for x, name, shape in (
        (88, "image", f"3 x {size} x {size}"),
        (215, "patches", f"{count} x {3 * patch * patch}"),
        (350, "tokens", f"(1 + {count}) x {width}"),
        (556, f"block, {depth} of them", f"(1 + {count}) x {width}"),
        (736, "tokens out", f"(1 + {count}) x {width}"),
        (828, "logits", outputs),
    ):
        figure.caption(x, 290, name, shape)
    return figure


@styled
def vlm(model, image, prompt, answer):
    """Image, patches, queries that attend to them, prefix, and the row of prefix, prompt, answer and labels.

    model: a trained `lessons.vlm.VLM` with a Q-Former; image: uint8 (3, S, S). The lines are the attention weights of the
    last layer for this very image, averaged over the heads.
    """
    with torch.no_grad():
        features = model.encode(pixel_values(image[None]))  # (1, N, Dv)
        prefix = model.connector(features)  # (1, Q, D_lm)
    qformer, config = model.connector.qformer, model.language_model.config
    weights = qformer.layers[-1].cross_attention.weights[0].mean(dim=0).cpu()  # (Q, N)
    (queries, patches), width = weights.shape, qformer.query_tokens.shape[1]
    size, language = image.shape[-1], prefix.shape[2]
    figure = Diagram(920, 420, "a Q-Former between vision encoder and language model")
    figure.image(image, 14, 54, round(patches**0.5))
    figure.box(190, 92, 92, 68, "vision\nencoder\n(frozen)", fill=MIST, edge=GREY)
    columns = (  # left, number of vectors, colours
        (316, patches, (SKY, PALE)),
        (500, queries, RED),
        (740, queries, (ORANGE, SAND)),
    )
    ends, starts, _ = ([30 + 192 * (k + 0.5) / n for k in range(n)] for _, n, _ in columns)
    for left, number, colours in columns:
        for middle in starts if number == queries else ends:
            figure.vector(left, middle - 4, 10, 8, colours, 6)
    for query, row in zip(starts, weights / weights.max(), strict=True):
        for patch, weight in zip(ends, row.tolist(), strict=True):
            look = dict(color=VERMILLION, lw=1.4, alpha=weight)
            figure.canvas.plot([378, 498], [patch, query], **look)
    figure.write(438, 16, "cross-attention", color=VERMILLION)
    lines = f"Q-Former (trained)\n{len(qformer.layers)} layers of\nself-attention,\n"
    lines += f"cross-attention,\nMLP; then linear\n{width} → {language}"
    figure.box(588, 70, 120, 112, lines, fill="#fdf1dc", edge=ORANGE)
    for start, end in ((162, 186), (286, 310), (564, 585), (711, 734)):
        figure.arrow((start, 126), (end, 126))
    for x, name, shape in (
        (86, "image", f"3 x {size} x {size}"),
        (346, "patches", f"{patches} x {features.shape[2]}"),
        (530, "queries", f"{queries} x {width}"),
        (770, "prefix", f"{queries} x {language}"),
    ):
        figure.caption(x, 233, name, shape)
    figure.canvas.plot([806, 880, 880, 10, 10], [126, 126, 272, 272, 296], color=GREY, lw=1.2)
    figure.arrow((10, 290), (10, 298))

    tokenizer = model.tokenizer
    asked, said = (tokenizer.tokenize(text) for text in (prompt, f" {answer}"))
    first = ["p1", "p2", "…", f"p{queries}"][-queries:]
    said = [*said, tokenizer.eos_token]
    labels = ["-100"] * len(first + asked) + said
    cell = 900 / len(labels)
    for k, (word, label) in enumerate(zip(first + asked + said, labels, strict=True)):
        counts, left, look = (
            label != "-100",
            11.5 + cell * k,
            dict(size=min(8.5, cell / 6), edge=GREY),
        )
        fill = "#d9efe2" if counts else SAND if k < len(first) else WATER
        figure.box(left, 300, cell - 3, 26, word, fill=fill, **look)
        note = "" if word == "…" else label
        figure.box(left, 382, cell - 3, 24, note, fill="#d9efe2" if counts else "white", **look)
    million = sum(p.numel() for p in model.language_model.parameters()) / 1e6
    text = f"language model (frozen): {config.model_type} architecture, {config.num_hidden_layers} "
    text += f"layers, width {language}, {million:.1f}M parameters"
    figure.box(11, 336, 898, 26, text, fill=MIST, edge=GREY, size=9)
    note = "labels: -100 is left out of the loss, which counts the answer and its end"
    figure.write(909, 373, note, ha="right")
    return figure


vision_language_model = vlm  # notebook 00's, of the same model


@styled
def llava(vision, language_model, tokenizer, image, turn):
    """Image, patches, projector, and the row that the language model reads: the prefix where `<image>` stood.

    vision, language_model: the models whose sizes are written in; image: uint8 (3, S, S); turn: (prompt, answer).
    """
    with torch.no_grad():
        count, width = vision.patch_features(pixel_values(image[None])).shape[1:]
    wide = language_model.config.hidden_size
    figure = Diagram(920, 250, "LLaVA: every patch becomes a vector of the prompt")
    figure.picture_at(image, 14, 14, 112)
    figure.arrow((130, 70), (186, 70))
    lines = "layer before the last,\nno class token; frozen"
    figure.box(190, 30, 170, 80, lines, title="vision encoder", edge=BLUE)
    figure.arrow((362, 70), (478, 70), f"{count} x {width}")
    lines = f"{width} → {wide} → {wide},\neach patch by itself; trained"
    figure.box(480, 30, 190, 80, lines, title="projector", edge=VERMILLION)
    figure.canvas.plot([672, 760, 760, 74, 74], [70, 70, 128, 128, 134], color=GREY, lw=1.3)
    figure.arrow((74, 130), (74, 144))
    figure.write(700, 60, f"{count} x {wide}", ha="left")
    words = [tokenizer.tokenize(text) for text in turn]
    read = ["p1", "p2", "…", f"p{count}", *words[0], *words[1], tokenizer.eos_token]
    cell = 900 / len(read)
    for k, word in enumerate(read):
        fill = SAND if k < 4 else WATER if k < 4 + len(words[0]) else "#d9efe2"
        look = dict(size=min(8.5, cell / 6), edge=GREY)
        figure.box(11.5 + cell * k, 148, cell - 3, 26, word, fill=fill, **look)
    size = sum(p.numel() for p in language_model.parameters()) / 1e6
    text = f"language model, {size:.1f}M parameters: frozen in stage 1, then changed by LoRA"
    figure.box(11, 184, 898, 26, text, fill=MIST, edge=GREY, size=9)
    note = "orange: the image, where <image> stood; blue: the prompt; green: the answer, which alone counts in the loss"
    figure.write(909, 228, note, ha="right")
    return figure


@styled
def blip2_masks(num_queries, words):
    """BLIP-2's three masks over queries and a caption's `words`: a filled cell says that the row attends to the column."""
    count = num_queries + len(words)
    names = [f"q{k + 1}" for k in range(num_queries)] + list(words)
    apart = torch.zeros(count, count, dtype=torch.bool)
    apart[:num_queries, :num_queries] = apart[num_queries:, num_queries:] = True
    past = apart.clone()
    past[num_queries:] = True
    past[num_queries:] = past[num_queries:].tril(num_queries)
    masks = {
        "ITC: apart": apart,
        "ITM: all see all": torch.ones_like(apart),
        "ITG: text is causal": past,
    }
    figure = Figure(width=760, height=290, label="BLIP-2's masks", layout="constrained")
    for axes, (title, mask) in zip(figure.subplots(1, 3), masks.items(), strict=True):
        for row, column in mask.nonzero().tolist():
            own = (row < num_queries) == (column < num_queries)
            look = dict(fc=BLUE if own else ORANGE, ec="white", lw=1)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
        axes.axhline(num_queries - 0.5, color=INK, lw=1)
        axes.axvline(num_queries - 0.5, color=INK, lw=1)
        axes.set(title=title, xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        axes.set(xticks=range(count), yticks=range(count), yticklabels=names)
        axes.set_xticklabels(names, rotation=90)
        axes.grid(False)
    return figure
