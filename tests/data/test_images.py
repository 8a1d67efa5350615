"""One way from a file to pixels, for figures and models alike, held against Pillow's own conversions."""

import io
import time

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageOps

from tests.small import refused
from vlm_lite.data.formats import image_tensor, make_dataset
from vlm_lite.data.images import fit_square, open_image, to_rgb
from vlm_lite.embed import pixel_values
from vlm_lite.figures import enlarge, pil_image
from vlm_lite.files import UserError
from vlm_lite.models.pretrained import PretrainedVLM

ORIENTATION = 0x0112


def noise(seed=0, size=(7, 5), mode="RGB"):
    rng = np.random.default_rng(seed)
    image = PIL.Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), np.uint8), "RGBA")
    return image.convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)


def saved(image, format, orientation=None):
    """The bytes of a file, with an EXIF orientation where one is asked for."""
    buffer, options = io.BytesIO(), {}
    if orientation:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        options = {"exif": exif}
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image):
    return np.asarray(image).tolist()


def table(data):
    return make_dataset({"image": [{"bytes": data, "path": None}], "image_id": [1]})


def seen(data, tmp_path):
    """The pixels of a file's bytes as a model, a figure (twice) and a reader of files see them."""
    (tmp_path / "image").write_bytes(data)
    yield image_tensor(table(data))[0][0].permute(1, 2, 0).tolist()  # (3, H, W) -> (H, W, 3)
    yield pixels(pil_image(PIL.Image.open(io.BytesIO(data))))
    yield pixels(pil_image(table(data)[0]["image"]))
    yield pixels(open_image(tmp_path / "image", "image"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_upright_for_figure_and_model(tmp_path, format, orientation):
    data = saved(noise(), format, orientation)
    opened = PIL.Image.open(io.BytesIO(data))
    upright = pixels(ImageOps.exif_transpose(opened).convert("RGB"))
    assert list(seen(data, tmp_path)) == [upright] * 4


def test_a_finished_vlm_is_shown_the_upright_image():
    shown = []

    class Processor:
        tokenizer = None

        def apply_chat_template(self, *_, **__):
            return "?"

        def __call__(self, *, images, **_):
            shown.extend(image for row in images for image in row)
            raise UserError("seen")

    vlm = object.__new__(PretrainedVLM)
    vlm.processor, vlm.longest_edge = Processor(), None
    with refused("seen"):
        vlm.answer([PIL.Image.open(io.BytesIO(saved(noise(), "PNG", 6)))], ["what?"])
    assert pixels(shown[0]) == pixels(noise().rotate(270, expand=True))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense", b""]
)
def test_damaged_exif_leaves_the_image_as_it_is(exif):
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG", exif=exif)
    plain = PIL.Image.open(io.BytesIO(saved(noise(), "JPEG")))
    assert pixels(open_image(buffer.getvalue(), "a photograph")) == pixels(plain)


@settings(max_examples=60)
@given(
    orientation=st.integers(0, 9),
    mode=st.sampled_from(["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_any_mode_is_pillow_s_conversion_and_a_second_time_changes_nothing(
    orientation, mode, size, seed
):
    image = noise(seed, size).convert("RGB")
    image = PIL.Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image
    image = image.convert(mode)
    image.getexif()[ORIENTATION] = orientation
    expected = ImageOps.exif_transpose(image).convert("RGB")
    shown = to_rgb(image)
    assert pixels(shown) == pixels(expected) and shown.mode == "RGB"
    assert pixels(to_rgb(shown)) == pixels(shown)
    assert image.getexif()[ORIENTATION] == orientation and image.mode == mode  # not touched


ALPHA = {
    "RGBA": lambda i: i,
    "LA": lambda i: i.convert("LA"),
    "PA": lambda i: i.quantize(16).convert("PA"),
    "RGBa": lambda i: i.convert("RGBa"),
    "La": lambda i: i.convert("LA").convert("La"),
}


@pytest.mark.parametrize("mode", ALPHA)
@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_what_alpha_hides_is_white(mode, seed):
    image = noise(seed, mode="RGBA")
    clear = image.copy()
    clear.putalpha(0)
    for each in (ALPHA[mode](image), ALPHA[mode](clear)):
        straight = (each.convert("LA") if mode == "La" else each).convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        shown = PIL.Image.alpha_composite(white, straight).convert("RGB")
        assert pixels(to_rgb(each)) == pixels(shown)
    if mode != "PA":  # whose palette is of opaque colours
        assert (np.asarray(to_rgb(clear)) == 255).all()


@pytest.mark.parametrize(
    "mode, key, other, shown",
    [
        ("P", 3, 7, (9, 9, 9)),
        ("L", 9, 7, (7, 7, 7)),
        ("RGB", (1, 2, 3), (200, 0, 0), (200, 0, 0)),
        ("1", 0, 1, (255, 255, 255)),
    ],
)
def test_a_transparent_colour_of_a_file_is_white(mode, key, other, shown):
    image = PIL.Image.new(mode, (3, 2), key)
    image.putpixel((0, 0), other)
    if mode == "P":
        image.putpalette([0, 0, 0] * 7 + [9, 9, 9])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=key)
    opened = open_image(buffer.getvalue(), "drawing")
    assert opened.getpixel((1, 1)) == (255, 255, 255) and opened.getpixel((0, 0)) == shown


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_not_cut_off(tmp_path, format):
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for deep in (eight * 257, eight):  # the second is dark, and stays dark
        expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2).tolist()
        data = saved(PIL.Image.fromarray(deep), format)
        assert list(seen(data, tmp_path)) == [expected] * 4
        turned = PIL.Image.frombytes("I;16B", (16, 16), deep.astype(">u2").tobytes())
        assert pixels(to_rgb(turned)) == expected


@pytest.mark.parametrize(
    "values, grey",
    [
        (np.array([[0, 100, 255, -5]], np.int32), [0, 100, 255, 0]),
        (np.array([[0, 65535, 25600, -5]], np.int32), [0, 255, 100, 0]),
        (np.array([[0, 2**31 - 1, 2**30]], np.int32), [0, 255, 128]),
        (np.array([[0, 100.4, 300, -5, np.nan]], np.float32), [0, 100, 255, 0, 0]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
    ],
)
def test_whole_numbers_and_fractions_are_brought_to_grey(values, grey):
    shown = np.asarray(to_rgb(PIL.Image.fromarray(values)))
    assert np.abs(shown[0, :, 0].astype(int) - grey).max() <= 1


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 30_000), (30_001, 2)])
def test_a_strip_is_quick_and_small_everywhere(size):
    data = saved(PIL.Image.new("RGB", size, (10, 200, 30)), "PNG")
    started = time.process_time()
    shown = image_tensor(table(data), 224)[0]
    figure = enlarge(PIL.Image.open(io.BytesIO(data)), 128)
    assert time.process_time() - started < 1
    assert shown[0, :, 100, 100].tolist() == [10, 200, 30]
    assert figure.shape == (128, 128, 3)


@pytest.mark.parametrize("size", [(40, 700), (700, 30)])
def test_cropping_a_strip_first_shows_what_cropping_last_shows(size):
    """On a ramp along the long side."""
    ramp = PIL.Image.linear_gradient("L").convert("RGB")
    image = (ramp if size[1] > size[0] else ramp.rotate(90)).resize(size)
    scaled = image.resize([24 * each // min(size) for each in size], PIL.Image.Resampling.BICUBIC)
    left, top = ((each - 24) // 2 for each in scaled.size)
    last = np.asarray(scaled.crop((left, top, left + 24, top + 24))).astype(int)
    assert np.abs(np.asarray(fit_square(image, 24)) - last).max() <= 3


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(1, 500),
    ratio=st.floats(1, 15.9),
    upright=st.booleans(),
    side=st.sampled_from([32, 224]),
)
@example(short=427, ratio=640 / 427, upright=True, side=224)  # rounded, the longer side is 336
@example(short=333, ratio=500 / 333, upright=True, side=224)
@example(short=1, ratio=1, upright=True, side=224)
def test_the_square_is_clip_s_own_at_every_size_and_so_are_its_pixels(short, ratio, upright, side):
    """Up to sides of 1 to 16, from where only the middle of a strip is resized."""
    size = (short, int(short * ratio))
    image = noise(3, size if upright else size[::-1])
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    options = {"size": {"shortest_edge": side}, "crop_size": side}
    plain = kind(**options, do_rescale=False, do_normalize=False)
    theirs = np.asarray(plain(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    square = np.asarray(fit_square(image, side))
    assert np.array_equal(square, theirs)
    pixels = pixel_values(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])
    expected = torch.from_numpy(kind(**options)(image, return_tensors="np")["pixel_values"])
    torch.testing.assert_close(pixels, expected.float(), atol=1e-5, rtol=1e-5)
