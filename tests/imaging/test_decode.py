import io
import struct
import subprocess
import sys

import kornia_rs
import numpy as np
import pytest
import simplejpeg
from image_samples import JPEG, LARGE_JPEGS, PNG, SETTINGS, encoded, film, pixels, png, png_chunk, refused
from PIL import Image

from cxr_ml.imaging import decode, formats, measure
from cxr_ml.settings import Settings


def test_limits_are_checked_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", lambda *_: pytest.fail("decoded"))
    assert refused(PNG, Settings(images={"max_pixels": 100})) == "too_many_pixels"
    assert refused(JPEG, Settings(images={"max_pixels": 100})) == "too_many_pixels"
    assert refused(PNG, Settings(images={"max_file_bytes": 100})) == "too_large"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"quality": 20}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_gives_the_pixels_that_pillow_gives(mode, options):
    colours = np.random.default_rng(3).integers(0, 60, (1, 1, 3)) + film()[..., None] // 2
    data = encoded(film() if mode == "L" else colours.astype(np.uint8), "JPEG", **options)
    opened = decode.decode_image(data, SETTINGS.images)
    assert opened.mode == mode
    np.testing.assert_array_equal(opened.pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"compress_level": 9, "optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_png_gives_the_pixels_that_pillow_gives_without_pillow(monkeypatch, mode, options):
    noise = np.random.default_rng(3).integers(0, 256, (50, 40, 4), np.uint8)
    noise[..., 3] = 255
    picture = Image.fromarray(noise).convert(mode)
    data = encoded(picture, **options)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    opened = decode.decode_image(data, SETTINGS.images)
    assert opened.mode == mode
    np.testing.assert_array_equal(opened.pixels, np.asarray(picture.convert("L" if mode == "L" else "RGB")))


def test_a_fault_in_the_decoder_of_png_is_left_to_pillow(monkeypatch):
    class Panic(BaseException):
        """As Rust's panics come to Python."""

    def fail(*_):
        raise Panic

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", fail)
    np.testing.assert_array_equal(decode.decode_image(PNG, SETTINGS.images).pixels, film())


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS"])
def test_a_png_with_a_palette_or_a_transparent_colour_is_left_to_pillow(kind):
    data = encoded(Image.fromarray(film()).convert("RGB"))
    colour = film()[0, 0]
    extra = bytes(768) if kind == b"PLTE" else struct.pack(">HHH", colour, colour, colour)
    with_extra = data[:33] + png_chunk(kind, extra) + data[33:]
    expected = np.where((film() == colour) & (kind == b"tRNS"), 0, film())
    np.testing.assert_array_equal(decode.decode_grey(with_extra), expected)


@pytest.mark.parametrize("kind", LARGE_JPEGS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_truncated_large_jpeg_is_refused_although_it_is_decoded_in_part(kind, share):
    cut = LARGE_JPEGS[kind][: int(len(LARGE_JPEGS[kind]) * share)]
    assert refused(cut) in ("truncated", "unreadable")


@pytest.mark.parametrize("kind", [kind for kind in LARGE_JPEGS if "progressive" not in kind])
@pytest.mark.parametrize("share", [0.3, 0.95, 0.999])
def test_missing_data_inside_a_large_jpeg_are_left_to_pillow(kind, share):
    ended = LARGE_JPEGS[kind][: int(len(LARGE_JPEGS[kind]) * share)] + b"\xff\xd9"
    np.testing.assert_array_equal(
        decode.decode_image(ended, SETTINGS.images, decode.MEASURED_SIDE).pixels, pixels(ended)
    )


@pytest.mark.parametrize("kind", LARGE_JPEGS)
def test_a_damaged_large_jpeg_has_the_verdict_of_its_full_decode(kind):
    rng = np.random.default_rng(1)
    scan = LARGE_JPEGS[kind].index(b"\xff\xda")
    for _ in range(12):
        damaged = bytearray(LARGE_JPEGS[kind])
        for at in rng.integers(scan + 20, len(damaged) - 2, 3):
            damaged[at] = rng.integers(255)
        outcome = []
        for side in (None, decode.MEASURED_SIDE):
            try:
                decode.decode_image(bytes(damaged), SETTINGS.images, side)
                outcome.append("opened")
            except formats.BadImage as error:
                outcome.append(error.code)
        assert outcome[0] == outcome[1]


@pytest.mark.parametrize(
    ("longest", "shrunk"), [(384, 384), (512, 512), (513, 256), (768, 384), (769, 256), (1537, 307)]
)
def test_a_side_up_to_a_third_too_long_is_not_shrunk(longest, shrunk):
    assert decode.shrink(np.zeros((100, longest), np.uint8), 384).shape[1] == shrunk


def test_a_picture_with_an_opaque_alpha_channel_shows_its_colours():
    colours = np.dstack([film(), film(seed=1), film(seed=2)])
    opaque = np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode.decode_image(encoded(opaque), SETTINGS.images).pixels, colours)
    opaque[0, 0, 3] = 0
    assert not decode.decode_image(encoded(opaque), SETTINGS.images).pixels[0, 0].any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_files_keep_the_contrast_of_their_depth(bits):
    deep = (film().astype(np.uint16) << (bits - 8)) + 1
    data = encoded(deep | (1 << (bits - 1)))
    measured, _ = measure.measure_image(data, SETTINGS.images)
    assert (measured["bits"], measured["format"]) == (16, "png")
    assert decode.decode_grey(data).dtype == np.uint8
    np.testing.assert_array_equal(decode.decode_grey(data), (film() + (1 if bits == 8 else 0)) | 128)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_png_mode_becomes_grey_of_the_same_size(mode):
    source = Image.fromarray(film()).convert("RGB") if mode in ("P", "RGBA") else Image.fromarray(film())
    data = encoded(source.convert(mode))
    measured, _ = measure.measure_image(data, SETTINGS.images)
    assert measured["mode"] == mode
    grey = decode.decode_grey(data)
    assert grey.shape == (200, 160) and grey.dtype == np.uint8
    if mode not in ("1", "P"):
        np.testing.assert_allclose(grey.astype(int), film().astype(int), atol=1)


def test_cmyk_jpeg_becomes_the_grey_it_shows():
    data = encoded(Image.fromarray(film()).convert("RGB").convert("CMYK"), "JPEG", quality=95)
    measured, _ = measure.measure_image(data, SETTINGS.images)
    assert measured["mode"] == "CMYK"
    assert np.abs(decode.decode_grey(data).astype(int) - film()).mean() < 4


def test_a_large_cmyk_jpeg_is_decoded_at_a_fraction_of_its_size():
    grey = np.kron(film(), np.ones((8, 8), np.uint8))  # 1600 × 1280 px
    data = encoded(Image.fromarray(grey).convert("RGB").convert("CMYK"), "JPEG", quality=95, progressive=True)
    opened = decode.decode_image(data, SETTINGS.images, decode.MEASURED_SIDE)
    assert (opened.height, opened.width, opened.pixels.shape) == (1600, 1280, (400, 320, 3))
    measured, whole = measure.measure_image(data, SETTINGS.images)[0], decode.decode_grey(data)
    assert whole.shape == (1600, 1280)
    assert measured["mean"] == pytest.approx(whole.mean(), abs=0.5)


def test_transparent_pixels_are_black_whatever_their_colour():
    rgba = np.full((40, 40, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[:, :20, 3] = 0
    grey = decode.decode_grey(encoded(rgba))
    assert (grey[:, :20] == 0).all() and (grey[:, 20:] == 200).all()


def test_data_after_the_last_row_of_a_png_are_never_unpacked():
    data = png(100, 100, data=bytes(200_000_000))
    assert len(data) < 400_000
    assert peak_of(data) < 150


def peak_of(data):
    """MB by which a process grows at most while it opens a picture."""
    code = (
        "import resource, sys; from cxr_ml.imaging import decode; from cxr_ml.settings import ImageSettings\n"
        "data, peak = sys.stdin.buffer.read(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "decode.decode_image(data, ImageSettings())\n"
        "print((peak() - before) / (2**20 if sys.platform == 'darwin' else 2**10))"
    )
    return float(subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout)


@pytest.mark.parametrize(("mode", "megabytes"), [("RGBA", 280), ("I;16", 140)])
def test_a_large_picture_is_opened_without_whole_copies(mode, megabytes):
    picture = Image.new(mode, (5000, 5000), 128 if mode == "I;16" else (90, 90, 90, 128))
    assert peak_of(encoded(picture, compress_level=1)) < megabytes


def test_transparency_in_large_pictures_is_blended_on_black_too():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (1500, 1600, 4)).astype(np.uint8)  # more than one strip
    expected = (rgba[..., :3].astype(int) * rgba[..., 3:] + 127) // 255
    np.testing.assert_array_equal(
        decode.decode_image(encoded(rgba, compress_level=1), SETTINGS.images).pixels, expected
    )
