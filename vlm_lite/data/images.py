"""From an image file to RGB pixels: the one way for figures, models and adapters.

What comes out is what Pillow's viewers show: EXIF orientation applied, 16-bit grey scaled, alpha over white.
"""

import io
import warnings

import numpy as np
import PIL.Image

from vlm_lite.files import UserError

ORIENTATION = 0x0112  # the EXIF tag; 2 to 8 are the ways in which a camera was held or mirrored
_TURNS = PIL.Image.Transpose
UPRIGHT = {
    2: _TURNS.FLIP_LEFT_RIGHT,
    3: _TURNS.ROTATE_180,
    4: _TURNS.FLIP_TOP_BOTTOM,
    5: _TURNS.TRANSPOSE,
    6: _TURNS.ROTATE_270,
    7: _TURNS.TRANSVERSE,
    8: _TURNS.ROTATE_90,
}


def open_image(source, name):
    """The RGB image of a path or of a file's bytes. UserError names one that is missing, too large or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source
            ) as opened:
                return to_rgb(opened)
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist. Make or download the images again.") from error
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{name} is refused: {error}. Replace it with a smaller image.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise UserError(
            f"{name} cannot be decoded ({error}). It is damaged or not an image: make or download it again."
        ) from error


def to_rgb(image):
    """A PIL image of any mode as a new one in RGB: upright, 16-bit grey scaled, transparent parts over white.

    The result carries no orientation, so a second call changes nothing.
    """
    image.load()  # a TIFF turns itself upright here
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    image.info = {}
    return image


def fit_square(image, side):
    """The (side, side) centre of an RGB image whose shorter side is resized to `side` (bicubic), as CLIP's processor
    does: the longer side is rounded down. Of a strip only the middle is resized, so its length costs nothing.
    """
    if image.size == (side, side):
        return image
    image = _crop_strip(image, 4)  # more than the centre and the filter's reach
    short = min(image.size)
    new = [side if s == short else side * s // short for s in image.size]
    return _centre(image.resize(new, PIL.Image.Resampling.BICUBIC), side, side)


def _crop_strip(image, times):
    """The middle of an image whose longer side is over `times` its shorter one and 16 pixels; others as they are."""
    most = times * min(image.size) + 16
    # one pixel fewer where that keeps the parity of the side, and so its middle where it was
    return _centre(
        image, *(side if side <= most else most - (side - most) % 2 for side in image.size)
    )


def _centre(image, width, height):
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _orientation(image):
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF raises as many kinds as damaged pixels; the pixels are whole
        return None


def _grey(image):
    """The 8-bit grey (L, or LA with a transparent value) of an image in 16 bits, 32 bits or floating point.

    16 bits lose the lower 8, as Pillow does in 16-bit RGB. Larger whole numbers are scaled by the largest, fractions of
    0 to 1 by 255; all else is clipped to 0..255, as by Pillow.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64)).clip(0)
    largest, hidden = values.max(), image.info.get("transparency")
    is_deep = image.mode.startswith("I;16") or image.format in ("PNG", "PPM") or largest > 255
    alpha = PIL.Image.fromarray(np.uint8(255 * (values != hidden)))
    if image.mode == "F":
        values = values * 255 if largest <= 1 else values
    elif largest > 65_535:
        values = values * (255 / largest)
    elif is_deep:
        values = values // 256
    grey = PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if isinstance(hidden, int):
        grey.putalpha(alpha)
    return grey
