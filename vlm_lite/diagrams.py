"""One diagram at the top of each notebook, drawn from the sizes of the model that is built below it."""

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, Rectangle

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
LEAF, CREAM = "#d9efe2", "#fdf1dc"


class Diagram(Figure):
    """A figure whose parts are placed in pixels, counted from its upper left corner."""

    def __init__(self, width, height, label):
        super().__init__(width=width, height=height, label=label)
        self.canvas = self.axes_at(0, 0, width, height)
        self.canvas.set(xlim=(0, width), ylim=(height, 0))
        self.canvas.axis("off")

    def write(self, x, y, text, size=8.5, **kw):
        self.canvas.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center"} | kw)

    def captions(self, y, *parts):
        """A name in bold and a shape below it, for each (x, name, shape)."""
        for x, name, shape in parts:
            self.write(x, y, name, 9, fontweight="bold")
            self.write(x, y + 19, shape, 9, color=GREY)

    def row(self, top, *parts):
        """A row of words over the whole width; parts: (colour, words) from the left."""
        cell, left = 900 / sum(len(words) for _, words in parts), 11.5
        for fill, words in parts:
            for word in words:
                self.box(left, top, cell - 3, 26, word, fill=fill, size=min(8.5, cell / 6))
                left += cell

    def language_model(self, top, model, text):
        """The language model as a box over the whole width; text: what is said of it, with {size} and {config}."""
        size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"
        self.box(11, top, 898, 26, text.format(size=size, config=model.config), fill=MIST, size=9)

    def box(self, left, top, width, height, text="", title="", fill="white", edge=GREY, size=8.5):
        """A rounded box with text in its middle, under a title in bold."""
        style = dict(boxstyle="round,pad=0,rounding_size=6", fc=fill, ec=edge, lw=1.2)
        self.canvas.add_patch(FancyBboxPatch((left, top), width, height, **style))
        self.write(left + width / 2, top + 17, title, 9.5, fontweight="bold")
        self.write(left + width / 2, top + height / 2 + 9 * bool(title), text, size)

    def arrow(self, *points, text="", offset=(0, -11)):
        """A line through points with a head at its end, and a text beside the middle of its first part."""
        look = dict(arrowstyle="-|>", mutation_scale=11, color=GREY, shrinkA=0, shrinkB=0)
        self.canvas.annotate("", points[-1], points[-2], arrowprops=look)
        self.canvas.plot(*zip(*points[:-1], strict=True), color=GREY, lw=1)
        self.write(*np.mean(points[:2], axis=0) + offset, text)

    def vector(self, left, top, cell, height, colours, count=8):
        for k in range(count):
            look = dict(fc=colours[k % 2], ec="white", lw=0.6)
            self.canvas.add_patch(Rectangle((left + cell * k, top), cell, height, **look))

    def image(self, image, left, top, side, size=144):
        """An image cut into side x side patches."""
        axes = self.picture_at(image, left, top, size)
        for k in range(1, side):
            for line in (axes.axhline, axes.axvline):
                line(size * k / side - 0.5, color="white", lw=0.7)

    def pipeline(self, image, *parts):
        """An image, boxes (shape that goes in, title, text, colour) and the shape that comes out, led down to a row."""
        self.picture_at(image, 14, 14, 112)
        end = 130
        for left, (shape, title, text, edge) in zip((216, 490), parts, strict=False):
            self.arrow((end, 70), (left - 4, 70), text=shape)
            self.box(left, 30, 190, 80, text, title, edge=edge)
            end = left + 192
        self.arrow((end, 70), (762, 70), (762, 130), (74, 130), (74, 146), text=parts[-1])


@styled
def clip(images, captions, config):
    """CLIP: images and captions, an encoder each, and the N x N matrix of cosines with its diagonal.

    images: N to draw; captions: N lists, of each the shortest is shown; config: a lessons.clip.CLIPConfig, whose sizes
    are written in.
    """
    count, cell, left, top = len(images), 50, 480, 196
    figure = Diagram(720, top + cell * count + 44, "two encoders and the matrix of cosines")
    patches = (config.image_size // config.patch_size) ** 2
    size, width, joint = config.image_size, config.width, config.projection_dim
    middle, centre = top + cell * count / 2, left + cell * count / 2
    words = f"{patches} patches and a class token\n(N, {patches + 1}, {width})\n"
    words += f"{config.image_layers} blocks, then the class token\nprojection to (N, {joint})"
    figure.box(152, middle - 50, 212, 100, words, "image encoder", edge=BLUE)
    figure.arrow((58, middle), (150, middle), text=f"(N, 3, {size}, {size})")
    figure.arrow((366, middle), (left - 26, middle), text=f"u   (N, {joint})")
    words = f"tokens and positions (N, T, {width})\n{config.text_layers} causal blocks; "
    words += f"read out at EOS\nprojection to (N, {joint})"
    figure.box(centre - 113, 14, 226, 84, words, "text encoder", edge=ORANGE)
    figure.arrow((272, 50), (centre - 115, 50), text="(N, T)")
    figure.arrow((centre, 100), (centre, top - 22), text=f"v   (N, {joint})", offset=(44, 0))
    for row, (image, texts) in enumerate(zip(images, captions, strict=True), start=1):
        across, down = (start + cell * (row - 0.5) for start in (left, top))
        figure.picture_at(image, 12, down - 21, 42)
        text = wrap(f"{row}  {min(texts, key=len)}", 250, 8.5, 1)
        figure.write(12, 1 + 19 * row, text, ha="left")
        figure.write(left - 13, down, f"$u_{row}$", parse_math=True)
        figure.write(across, top - 11, f"$v_{row}$", parse_math=True)
        for column in range(1, count + 1):
            look = dict(fc=SKY, ec=INK, zorder=2) if row == column else dict(fc="white", ec=PALE)
            x = left + cell * (column - 1)
            figure.canvas.add_patch(Rectangle((x, down - cell / 2), cell, cell, **look))
            text = f"$u_{row} \\cdot v_{column}$"
            figure.write(x + cell / 2, down, text, 9, zorder=3, parse_math=True)
    note = "rows: which caption belongs to this image?   "
    note += "columns: which image belongs to this caption?"
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
    for top, k in zip(range(70, 274, 34), shown, strict=False):
        if k is None:
            for x in (215, 328, 736):
                figure.write(x, top + 14, "⋮", 14)
            continue
        row, column = k // side * patch, k % side * patch
        figure.picture_at(image[:, row : row + patch, column : column + patch], 201, top, 28)
        figure.arrow((234, top + 14), (290, top + 14))
        for left in (296, 704):
            figure.vector(left, top + 8, 8, 13, (SKY, PALE))
    for left in (296, 704):
        figure.vector(left, 38, 8, 13, (VERMILLION, RED[0]))
    figure.write(262, 73, "linear", color=GREY)
    figure.write(328, 22, "class token", color=VERMILLION)
    figure.write(376, 148, "+", 15)
    figure.box(392, 32, 26, 244, fill=CREAM, edge=ORANGE)
    figure.write(405, 154, "position embedding", 9, rotation=90)
    for k in range(min(depth, 3) - 1, -1, -1):  # a stack of blocks, the nearest last
        figure.box(456 + 7 * k, 52 - 7 * k, 196, 210, fill="#f7f8fa")
    steps = (
        f"multi-head attention\n{heads} heads of {width // heads}",
        f"MLP\n{width} → {4 * width} → {width}",
    )
    for top, text in zip((60, 162), steps, strict=True):
        figure.box(482, top + 6, 140, 26, "LayerNorm", edge=INK)
        figure.box(482, top + 36, 140, 38, text, fill=WATER, edge=INK)
        low = top + 87  # where the residual stream, around each step, comes back
        figure.canvas.plot([552, 552], [low - 12, low], color=GREY, lw=1)
        figure.canvas.plot([552, 469, 469, 545], [top, top, low, low], color=BLUE, lw=1.3)
        figure.write(552, low, "+", 12, color=BLUE)
    look = dict(fc="none", ec=VERMILLION, lw=1.6, linestyle=(0, (4, 2)))
    figure.canvas.add_patch(Rectangle((700, 34), 72, 21, **look))
    for start, end, y in ((164, 196, 148), (424, 452, 148), (672, 700, 148), (774, 800, 44)):
        figure.arrow((start, y), (end, y))
    figure.write(180, 135, "cut", color=GREY)
    figure.box(804, 30, 46, 28, "head", fill=CREAM, edge=ORANGE)
    figure.arrow((827, 60), (827, 78))
    for k, name in enumerate(classes or [f"class {k}" for k in range(outputs)]):
        figure.box(788, 82 + 27 * k, 80, 22, name, edge=INK)
    figure.captions(
        290,
        (88, "image", f"3 x {size} x {size}"),
        (215, "patches", f"{count} x {3 * patch * patch}"),
        (350, "tokens", f"(1 + {count}) x {width}"),
        (556, f"block, {depth} of them", f"(1 + {count}) x {width}"),
        (736, "tokens out", f"(1 + {count}) x {width}"),
        (828, "logits", outputs),
    )
    return figure


@styled
@torch.no_grad()
def vlm(model, image, prompt, answer):
    """Image, patches, queries that attend to them, prefix, and the row of prefix, prompt, answer and labels.

    model: a trained `lessons.vlm.VLM` with a Q-Former; image: uint8 (3, S, S). The lines are the attention weights of the
    last layer for this very image, averaged over the heads.
    """
    features = model.encode(pixel_values(image[None]))  # (1, N, Dv)
    language = model.connector(features).shape[2]
    qformer, size = model.connector.qformer, image.shape[-1]
    weights = qformer.layers[-1].cross_attention.weights[0].mean(dim=0).cpu()  # (Q, N)
    (queries, patches), width = weights.shape, qformer.query_tokens.shape[1]
    figure = Diagram(920, 420, "a Q-Former between vision encoder and language model")
    figure.image(image, 14, 54, round(patches**0.5))
    figure.box(190, 92, 92, 68, "vision\nencoder\n(frozen)", fill=MIST)
    ends, starts = (30 + 192 * (np.arange(n) + 0.5) / n for n in (patches, queries))
    for left, places, colours in (
        (316, ends, (SKY, PALE)),
        (500, starts, RED),
        (740, starts, (ORANGE, SAND)),
    ):
        for middle in places:
            figure.vector(left, middle - 4, 10, 8, colours, 6)
    for (query, patch), weight in np.ndenumerate(weights / weights.max()):
        look = dict(color=VERMILLION, lw=1.4, alpha=float(weight))
        figure.canvas.plot([378, 498], [ends[patch], starts[query]], **look)
    figure.write(438, 16, "cross-attention", color=VERMILLION)
    lines = f"Q-Former (trained)\n{len(qformer.layers)} layers of\nself-attention,\n"
    lines += f"cross-attention,\nMLP; then linear\n{width} → {language}"
    figure.box(588, 70, 120, 112, lines, fill=CREAM, edge=ORANGE)
    for start, end in ((162, 186), (286, 310), (564, 585), (711, 734)):
        figure.arrow((start, 126), (end, 126))
    figure.captions(
        233,
        (86, "image", f"3 x {size} x {size}"),
        (346, "patches", f"{patches} x {features.shape[2]}"),
        (530, "queries", f"{queries} x {width}"),
        (770, "prefix", f"{queries} x {language}"),
    )
    figure.arrow((806, 126), (880, 126), (880, 272), (10, 272), (10, 298))

    asked, said = (model.tokenizer.tokenize(text) for text in (prompt, f" {answer}"))
    said.append(model.tokenizer.eos_token)
    first = ["p1", "p2", "…", f"p{queries}"][-queries:]
    figure.row(300, (SAND, first), (WATER, asked), (LEAF, said))
    left_out = ["" if word == "…" else "-100" for word in first + asked]
    figure.row(382, ("white", left_out), (LEAF, said))
    text = "language model (frozen): {config.model_type} architecture, {config.num_hidden_layers} "
    text += "layers, width {config.hidden_size}, {size}"
    figure.language_model(336, model.language_model, text)
    note = "labels: -100 is left out of the loss, which counts the answer and its end"
    figure.write(909, 373, note, ha="right")
    return figure


vision_language_model = vlm  # notebook 00's, of the same model


@styled
@torch.no_grad()
def llava(vision, language_model, tokenizer, image, turn):
    """Image, patches, projector, and the row that the language model reads: the prefix where `<image>` stood.

    vision, language_model: the models whose sizes are written in; image: uint8 (3, S, S); turn: (prompt, answer).
    """
    count, width = vision.patch_features(pixel_values(image[None])).shape[1:]
    wide, size = language_model.config.hidden_size, image.shape[-1]
    figure = Diagram(920, 250, "LLaVA: every patch becomes a vector of the prompt")
    lines = "layer before the last,\nno class token; frozen"
    encoder = f"3 x {size} x {size}", "vision encoder", lines, BLUE
    lines = f"{width} → {wide} → {wide},\neach patch by itself; trained"
    projector = f"{count} x {width}", "projector", lines, VERMILLION
    figure.pipeline(image, encoder, projector, f"{count} x {wide}")
    asked, said = map(tokenizer.tokenize, turn)
    prefix = ["p1", "p2", "…", f"p{count}"]
    figure.row(148, (SAND, prefix), (WATER, asked), (LEAF, [*said, tokenizer.eos_token]))
    text = "language model, {size}: frozen in stage 1, then changed by LoRA"
    figure.language_model(184, language_model, text)
    note = "orange: the image, where <image> stood; blue: the prompt; green: the answer, which alone counts in the loss"
    figure.write(909, 228, note, ha="right")
    return figure


@styled
def modern_vlm(config, tokenizer, image, turn):
    """Image, ViT, pixel shuffle, the row with image tokens and the parts of a Llama: the sizes of a SmolVLMConfig.

    image: uint8 (3, S, S); turn: (prompt, answer).
    """
    vision, language, scale = config.vision_config, config.text_config, config.scale_factor
    size, inner, width = vision.image_size, vision.hidden_size, language.hidden_size
    patches = (size // vision.patch_size) ** 2
    count = patches // scale**2
    label = "SmolVLM: ViT, pixel shuffle, and a Llama that reads the image tokens"
    figure = Diagram(920, 300, label)
    lines = f"{vision.num_hidden_layers} layers, learnt positions,\nno class token"
    encoder = f"3 x {size} x {size}", "ViT", lines, BLUE
    lines = f"{scale} x {scale} patches side by side,\nthen linear, {scale**2 * inner} → {width}"
    shuffle = f"{patches} x {inner}", "pixel shuffle", lines, VERMILLION
    figure.pipeline(image, encoder, shuffle, f"{count} x {width}")
    asked, said = map(tokenizer.tokenize, turn)
    words = [*said, tokenizer.eos_token]
    figure.row(148, (SAND, ["image"] * count), (WATER, asked), (LEAF, words))
    figure.box(11, 184, 898, 92, fill=MIST)
    title = f"Llama, {language.num_hidden_layers} layers of"
    figure.write(24, 200, title, 9, fontweight="bold", ha="left")
    heads = f"{language.num_attention_heads} heads of queries turned by RoPE,\n"
    heads += f"{language.num_key_value_heads} of keys and values, kept in a cache"
    mlp = f"SwiGLU\n{width} → {language.intermediate_size} → {width}"
    parts = ("RMSNorm", 80), (heads, 270), ("RMSNorm", 80), (mlp, 130)
    left = 24
    for text, wide in parts:
        figure.box(left, 216, wide, 46, text)
        left += wide + 14
        figure.arrow((left - 13, 239), (left - 1, 239))
    head = f"RMSNorm, head\n{width} → {language.vocab_size}"
    figure.box(left, 216, 898 - left, 46, head, edge=ORANGE)
    return figure


@styled
def blip2_masks(num_queries, words):
    """BLIP-2's three masks over queries and a caption's `words`: a filled cell says that the row attends to the column."""
    names = [*(f"q{k + 1}" for k in range(num_queries)), *words]
    count = len(names)
    is_text = np.arange(count) >= num_queries
    apart = is_text[:, None] == is_text
    masks = {
        "ITC: apart": apart,
        "ITM: all see all": np.ones_like(apart),
        "ITG: text is causal": np.where(is_text[:, None], np.tri(count), ~is_text),
    }
    figure = Figure(width=760, height=290, label="BLIP-2's masks", layout="constrained")
    for axes, (title, mask) in zip(figure.subplots(1, 3), masks.items(), strict=True):
        colours = ListedColormap(
            ["white", BLUE, ORANGE]
        )  # 1: among queries or among words, 2: across
        axes.pcolormesh(mask * (2 - apart), cmap=colours, vmin=0, vmax=2, ec="white", lw=0.6)
        axes.axhline(num_queries, color=INK, lw=1)
        axes.axvline(num_queries, color=INK, lw=1)
        axes.set(title=title, aspect="equal", ylim=(count, 0))
        axes.set_xticks(np.arange(count) + 0.5, names, rotation=90)
        axes.set_yticks(np.arange(count) + 0.5, names)
        axes.grid(False)
    return figure


@styled
def resolutions(views, patch):
    """One image as encoders read it: `views` {name: its crops, uint8 (3, H, W)}, cut into patches, with the tokens.

    A view of several crops is a thumbnail and a square grid of tiles.
    """
    figure = Diagram(920, 262, "one image, fixed, whole and in tiles: patches and tokens")
    for k, (name, (first, *tiles)) in enumerate(views.items()):
        left, side, total = 30 + 300 * k, round(len(tiles) ** 0.5), 0
        places = [(0, 0)] + [(62 + 52 * (n % side), 52 * (n // side)) for n in range(len(tiles))]
        for crop, (x, y) in zip((first, *tiles), places, strict=True):
            figure.image(crop, left + x, 14 + y, crop.shape[2] // patch, crop.shape[2] * 3 // 4)
            total += crop.shape[1] * crop.shape[2] // patch**2
        sizes = f"{first.shape[1]} x {first.shape[2]} pixels"
        sizes += f", {len(tiles)} tiles of the same size" * bool(tiles)
        figure.write(left, 222, name, 9.5, ha="left", fontweight="bold")
        words = f"{sizes}\n{total} tokens, merged by four {total // 4}"
        figure.write(left, 243, words, ha="left")
    return figure
