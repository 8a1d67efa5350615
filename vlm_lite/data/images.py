"""From an image file to RGB pixels: the one way for figures, models and adapters.

What comes out is what Pillow's viewers show: EXIF orientation applied, 16-bit grey scaled, alpha over white.
"""

import contextlib
import io
import warnings

import numpy as np
import PIL.Image
from PIL import ImageOps

from vlm_lite.files import UserError


def open_image(source, name):
    """The RGB image of a path or of a file's bytes. UserError names one that is missing, too large or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            source = io.BytesIO(source) if isinstance(source, bytes) else source
            with PIL.Image.open(source) as opened:
                return to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise UserError(
            f"{name} does not exist. Make or download the images again."
            if isinstance(error, FileNotFoundError)
            else f"{name} cannot be decoded ({error}). It is damaged, too large or not an image: make or download it "
            "again."
        ) from error


def to_rgb(image):
    """A PIL image of any mode as a new one in RGB: upright, 16-bit grey scaled, transparent parts over white.

    The result carries no orientation, so a second call changes nothing.
    """
    image.load()
    kind = image.format
    with contextlib.suppress(Exception):  # damaged EXIF raises many kinds; the pixels are whole
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey(image, kind)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}
    return image


def fit_square(image, side):
    """The (side, side) centre of an RGB image whose shorter side is resized to `side` (bicubic), as CLIP's processor
    does: the longer side is rounded down. Only the centre is resized, so the length of a strip costs nothing.
    """
    if image.size == (side, side):
        return image
    short = min(image.size)
    new = [side if s == short else side * s // short for s in image.size]
    box = [(n - side) // 2 + end for end in (0, side) for n in new]
    if max(new) < 16 * side:
        return image.resize(new, PIL.Image.Resampling.BICUBIC).crop(box)
    box = [edge * s / n for edge, s, n in zip(box, image.size * 2, new * 2, strict=True)]
    return image.resize((side, side), PIL.Image.Resampling.BICUBIC, box)


def _grey(image, kind):
    """The 8-bit grey (L, or LA with a transparent value) of an image in 16 bits, 32 bits or floating point.

    16 bits lose the lower 8, as Pillow does in 16-bit RGB. Larger whole numbers are scaled by the largest, fractions of
    0 to 1 by 255; all else is clipped to 0..255, as by Pillow.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64)).clip(0)
    largest, hidden = values.max(), image.info.get("transparency")
    alpha = PIL.Image.fromarray(np.uint8(255 * (values != hidden)))
    if image.mode == "F":
        values = values * 255 if largest <= 1 else values
    elif largest > 65_535:
        values = values * (255 / largest)
    elif image.mode.startswith("I;16") or kind in ("PNG", "PPM") or largest > 255:
        values = values // 256
    grey = PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if isinstance(hidden, int):
        grey.putalpha(alpha)
    return grey
