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

    images: N to draw; captions: N lists, of each the shortest is shown; config: a lessons.clip.CLIPConfig, whose sizes
    are written in.
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
    for k, caption in enumerate(min(each, key=len) for each in captions):
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


@styled
def vision_language_model(vlm, image, prompt, answer):
    """Image, vision encoder, connector; prefix and prompt in front of the language model; the answer's first token.

    vlm: a VLM whose parts have their true shapes written in. image: uint8 (3, S, S).
    """
    figure, axes = _canvas(920, 300, "a vision-language model in three parts")
    size = image.shape[-1]
    features = vlm.encode((image[None] / 255).to(vlm.device))
    prefix = vlm.prefix(features)
    count, queries = features.shape[1], prefix.shape[1]
    figure.picture_at(image, 16, 26, 112)
    axes.text(72, 152, f"3 x {size} x {size}", ha="center", va="center", fontsize=9, color=GREY)
    _arrow(axes, (134, 82), (208, 82), "pixels", (0, -12))
    lines = ("one vector a patch", "frozen")
    _box(axes, 210, 48, 170, 70, "vision encoder", lines, BLUE)
    _arrow(axes, (382, 82), (498, 82), f"{count} x {features.shape[2]}", (0, -12))
    lines = (f"{queries} learnt queries", "trained")
    _box(axes, 500, 48, 170, 70, "connector (Q-Former)", lines, VERMILLION)
    left, top, tokens = 26, 172, vlm.tokenizer.tokenize(prompt)
    middle = left + 8 * queries
    axes.plot([585, 585, middle], [119, 138, 138], color=GREY, lw=1.3)
    _plain_arrow(axes, (middle, 138), (middle, top - 3))
    axes.text(middle + 10, 155, f"prefix: {queries} x {prefix.shape[2]}", fontsize=9)
    for k in range(queries):
        axes.add_patch(Rectangle((left + 16 * k, top), 14, 22, fc=VERMILLION, ec="white", lw=0.6))
    left += 16 * queries + 8
    step = (894 - left) / len(tokens)
    for k, token in enumerate(tokens):
        _label_box(axes, left + step * k, top, step - 4, 22, token, fill=PALE, size=8.5)
    words = f"prompt: {len(tokens)} token embeddings"
    axes.text(890, 155, words, fontsize=9, ha="right")
    middle = left + step * (len(tokens) - 0.5)
    lines = (f"GPT-2 architecture, {vlm.embed.num_embeddings} tokens; frozen",)
    _box(axes, 26, 212, 868, 44, "language model", lines, ORANGE)
    _plain_arrow(axes, (middle, 258), (middle, 276))
    axes.text(middle, 286, answer, ha="center", va="center", fontweight="bold")
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
    figure, axes = _canvas(920, 420, "a Q-Former between vision encoder and language model")

    def caption(x, text, shape):
        axes.text(x, 236, text, ha="center", fontsize=9, fontweight="bold")
        axes.text(x, 254, shape, ha="center", fontsize=9, color=GREY)

    size, side = image.shape[-1], round(patches**0.5)
    picture = figure.picture_at(image, 14, 54, 144)
    for k in range(1, side):
        picture.axhline(144 * k / side - 0.5, color="white", lw=0.8)
        picture.axvline(144 * k / side - 0.5, color="white", lw=0.8)
    caption(86, "image", f"3 x {size} x {size}")
    _plain_arrow(axes, (162, 126), (186, 126))
    _label_box(axes, 190, 92, 92, 68, "vision\nencoder\n(frozen)", fill="#eef1f4", edge=GREY)
    _plain_arrow(axes, (286, 126), (310, 126))

    def column(left, count, colours):
        """`count` vectors, one above the other; the middle heights."""
        middles = [30 + 192 * (k + 0.5) / count for k in range(count)]
        for middle in middles:
            for cell in range(6):
                spot = (left + 10 * cell, middle - 4)
                axes.add_patch(Rectangle(spot, 10, 8, fc=colours[cell % 2], ec="white", lw=0.5))
        return middles

    ends = column(316, patches, (SKY, PALE))
    caption(346, "patches", f"{patches} x {features.shape[2]}")
    starts = column(500, queries, ("#f4b89a", "#fbe3d6"))
    caption(530, "queries", f"{queries} x {width}")
    for query, row in zip(starts, weights / weights.max(), strict=True):
        for patch, weight in zip(ends, row.tolist(), strict=True):
            axes.plot([378, 498], [patch, query], color=VERMILLION, lw=1.4, alpha=weight)
    axes.text(438, 16, "cross-attention", ha="center", fontsize=8.5, color=VERMILLION)
    _label_box(axes, 588, 70, 120, 112, "", fill="#fdf1dc", edge=ORANGE)
    lines = f"Q-Former (trained)\n{len(qformer.layers)} layers of\nself-attention,\ncross-attention,\nMLP; then linear\n"
    lines += f"{width} → {prefix.shape[2]}"
    axes.text(648, 126, lines, ha="center", va="center", fontsize=8.5)
    _plain_arrow(axes, (564, 126), (585, 126))
    _plain_arrow(axes, (711, 126), (734, 126))
    column(740, queries, (ORANGE, "#fbe0b0"))
    caption(770, "prefix", f"{queries} x {prefix.shape[2]}")
    axes.plot([806, 880, 880, 10, 10], [126, 126, 272, 272, 296], color=GREY, lw=1.2)
    _plain_arrow(axes, (10, 290), (10, 298))

    tokenizer = model.tokenizer
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f" {answer}")
    ]
    words = [tokenizer.convert_ids_to_tokens(part) for part in ids]
    first = (
        ["p1", "p2", "…", f"p{queries}"] if queries > 3 else [f"p{k + 1}" for k in range(queries)]
    )
    read = first + words[0] + words[1] + [tokenizer.eos_token]
    labels = ["-100"] * len(first + words[0]) + words[1] + [tokenizer.eos_token]
    cell = 900 / len(read)
    for k, (word, label) in enumerate(zip(read, labels, strict=True)):
        fill = "#fbe0b0" if k < len(first) else "#dcedf8" if label == "-100" else "#d9efe2"
        look = dict(size=min(8.5, cell / 6), edge=GREY)
        _label_box(axes, 10 + cell * k + 1.5, 300, cell - 3, 26, word, fill=fill, **look)
        counts = label != "-100"
        fill, note = ("#d9efe2", label) if counts else ("white", "" if word == "…" else label)
        _label_box(axes, 10 + cell * k + 1.5, 382, cell - 3, 24, note, fill=fill, **look)
    size = sum(p.numel() for p in model.language_model.parameters()) / 1e6
    text = f"language model (frozen): {config.model_type} architecture, {config.num_hidden_layers} "
    text += f"layers, width {prefix.shape[2]}, {size:.1f}M parameters"
    _label_box(axes, 11, 336, 898, 26, text, fill="#eef1f4", edge=GREY, size=9)
    note = "labels: -100 is left out of the loss, which counts the answer and its end"
    axes.text(909, 374, note, ha="right", va="center", fontsize=8.5, color=INK)
    return figure


@styled
def llava(vision, language_model, tokenizer, image, turn):
    """Image, patches, projector, and the row that the language model reads: the prefix where `<image>` stood.

    vision, language_model: the models whose sizes are written in; image: uint8 (3, S, S); turn: (prompt, answer).
    """
    with torch.no_grad():
        count, width = vision.patch_features(pixel_values(image[None])).shape[1:]
    wide = language_model.config.hidden_size
    figure, axes = _canvas(920, 250, "LLaVA: every patch becomes a vector of the prompt")
    figure.picture_at(image, 14, 14, 112)
    _plain_arrow(axes, (130, 70), (186, 70))
    lines = ("layer before the last,", "no class token; frozen")
    _box(axes, 190, 30, 170, 80, "vision encoder", lines, BLUE)
    _arrow(axes, (362, 70), (478, 70), f"{count} x {width}", (0, -12))
    lines = (f"{width} → {wide} → {wide},", "each patch by itself; trained")
    _box(axes, 480, 30, 190, 80, "projector", lines, VERMILLION)
    axes.plot([672, 760, 760, 74, 74], [70, 70, 128, 128, 134], color=GREY, lw=1.3)
    _plain_arrow(axes, (74, 130), (74, 144))
    axes.text(700, 60, f"{count} x {wide}", fontsize=8.5)
    words = [tokenizer.tokenize(text) for text in turn]
    read = ["p1", "p2", "…", f"p{count}", *words[0], *words[1], tokenizer.eos_token]
    cell = 900 / len(read)
    for k, word in enumerate(read):
        fill = "#fbe0b0" if k < 4 else "#dcedf8" if k < 4 + len(words[0]) else "#d9efe2"
        look = dict(size=min(8.5, cell / 6), edge=GREY)
        _label_box(axes, 10 + cell * k + 1.5, 148, cell - 3, 26, word, fill=fill, **look)
    size = sum(p.numel() for p in language_model.parameters()) / 1e6
    text = f"language model, {size:.1f}M parameters: frozen in stage 1, then changed by LoRA"
    _label_box(axes, 11, 184, 898, 26, text, fill="#eef1f4", edge=GREY, size=9)
    note = "orange: the image, where <image> stood; blue: the prompt; green: the answer, which alone counts in the loss"
    axes.text(909, 228, note, ha="right", va="center", fontsize=8.5, color=INK)
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
