"""What all figures of the course share: the style, small files, images enlarged, and a layout in pixels.

The colours are those of Okabe and Ito (2008), which the colour-blind tell apart; lines, hatches and markers differ as
well, so that a figure reads in grey.
"""

import functools
import io
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image, ImageFilter, ImageOps

from vlm_lite.data.images import to_rgb

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION = "#0072B2", "#D55E00"
INK, GREY, PALE = "#1b1f27", "#6b7280", "#e5e7eb"
NIGHT, NIGHT_FRAME, NIGHT_INK = "#14161e", "#4a5060", "#e8eaf0"
LINE = 16  # pixels from one line of text to the next
DPI = 100
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "auto",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
MAX_BYTES = 100_000


def style():
    """Give a notebook's own matplotlib figures the manner of the course's."""
    matplotlib.rcParams.update(STYLE)


class Figure(MatplotlibFigure):
    """A matplotlib Figure sized in pixels, which a notebook shows once, in at most 100 KB, without pyplot."""

    def __init__(self, *, width, height, label, **kw):
        with matplotlib.rc_context(STYLE):
            super().__init__(figsize=(width / DPI, height / DPI), dpi=DPI, **kw)
        self.set_label(label)

    def draw(self, renderer):
        with matplotlib.rc_context(STYLE):  # ticks are made when they are first drawn
            super().draw(renderer)

    def axes_at(self, left, top, width, height, **kw):
        """Axes at a place in pixels, counted from the figure's upper left corner."""
        full_width, full_height = self.get_size_inches() * DPI
        bottom, size = 1 - (top + height) / full_height, (width / full_width, height / full_height)
        return self.add_axes((left / full_width, bottom, *size), **kw)

    def text_at(self, left, top, text, **kw):
        """Text at a place in pixels from the upper left corner, hanging from its top by default."""
        width, height = self.get_size_inches() * DPI
        return self.text(left / width, 1 - top / height, text, **{"va": "top"} | kw)

    def picture_at(self, image, left, top, side, frame=GREY):
        """An image in a thin frame, `side` pixels wide and high, enlarged by `enlarge`. Returns its axes."""
        axes = self.axes_at(left, top, side, side)
        axes.imshow(enlarge(image, side), interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=frame, linewidth=1)
        return axes

    def to_image(self):
        """The figure as a PIL image of mode RGB, for animations."""
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def to_bytes(self):
        """(mime type, bytes): PNG; where that is too large PNG of 256 colours; for photographs JPEG, finest that fits."""
        image = self.to_image()
        few = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        jpegs = [(image, "jpeg", quality) for quality in (90, 70, 45, 30)]
        for each, kind, quality in [(image, "png", 0), (few, "png", 0), *jpegs]:
            buffer = io.BytesIO()
            each.save(buffer, kind, optimize=True, quality=quality)
            if buffer.tell() <= MAX_BYTES:
                break
        return f"image/{kind}", buffer.getvalue()

    def _ipython_display_(self):
        from IPython.display import display

        mime, data = self.to_bytes()
        display({mime: data, "text/plain": f"<Figure: {self.get_label()}>"}, raw=True)


def styled(function):
    """Make a function build its figure in the course's style, leaving the caller's rcParams as they were."""

    @functools.wraps(function)
    def wrapped(*args, **kw):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kw)

    return wrapped


def array(values):
    """A NumPy array of a tensor on any device, a list or an array."""
    return np.asarray(
        values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=float
    )


def pil_image(image):
    """A PIL image (RGB) of a PIL image or of uint8 (3, H, W) or (H, W, 3) values. ValueError for anything else."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    values = np.asarray(image)
    if values.dtype != np.uint8 or values.ndim != 3:
        raise ValueError(
            f"an image must be a PIL image or uint8 (3, H, W); found {values.dtype} {values.shape}. "
            "Undo the normalisation first."
        )
    return Image.fromarray(values.transpose(1, 2, 0) if values.shape[2] != 3 else values)


def enlarge(image, side):
    """(side, side, 3) uint8 of an image: photographs resampled; small drawings enlarged with smooth edges.

    In drawings, noise of a few grey levels is evened out for the eye. Models get the pixels as they are.
    """
    image = pil_image(image)
    if max(image.size) > side * min(image.size):  # a strip: else a side of no pixels
        image = image.resize([max(1, each * side // max(image.size)) for each in image.size])
    if max(image.size) > min(96, side):
        return np.asarray(ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=NIGHT))
    smooth = image.filter(ImageFilter.GaussianBlur(1.5))
    pad = functools.partial(ImageOps.pad, size=(side, side), color=NIGHT)  # bicubic
    sharp, smooth = (np.asarray(pad(each), dtype=float) for each in (image, smooth))
    is_edge = ((np.abs(sharp - smooth).max(axis=2, keepdims=True) - 8) / 16).clip(0, 1)
    mixed = sharp * is_edge + smooth * (1 - is_edge)
    return (mixed // 4 * 4 + 2).clip(0, 255).astype(np.uint8)  # 64 levels: a file of half the size


def wrap(text, width, size=STYLE["font.size"], max_lines=None, weight="normal"):
    """`text` broken into lines of about `width` pixels in a font of `size` points; "…" ends what is cut off."""
    letter = size * DPI / 72 * (0.66 if weight == "bold" else 0.6)  # of DejaVu Sans, on average
    columns = max(1, int(width / letter))
    return "\n".join(textwrap.wrap(str(text), columns, max_lines=max_lines, placeholder="…"))
