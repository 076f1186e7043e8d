import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_samples import JPEG, PNG, SETTINGS, encoded, film, pixels, png, png_chunk, refused
from PIL import Image, PngImagePlugin

from cxr_ml.imaging import decode, formats, measure

ANIMATED = encoded(Image.fromarray(film()), save_all=True, append_images=[Image.fromarray(film(seed=1))])


SCAN = JPEG[JPEG.index(b"\xff\xda") : JPEG.index(b"\xff\xda") + 30]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"this is text behind .png\n" * 10, "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (encoded(film(), "GIF"), "unsupported_format"),
        (encoded(film(), "WEBP"), "unsupported_format"),
        (encoded(film(), "TIFF"), "unsupported_format"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "not_an_image"),
        (png(100_000, 100_000), "too_many_pixels"),
        (JPEG[:160] + b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0" + JPEG[160:], "unreadable"),
        (png(0, 10), "unreadable"),
        (png(100, 100, data=b"\0" * 50), "truncated"),
        (png(100, 100, bits=7, data=b"\0" * 20_000), "unreadable"),
        (ANIMATED, "animated"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "unreadable"),
        (b"PK\3\4" + b"\0" * 50, "nested_archive"),
        (gzip.compress(PNG), "nested_archive"),
        (b"\0" * 257 + b"ustar\0" + b"\0" * 300, "nested_archive"),
        (PNG[:33] + png_chunk(b"IDAT", b"") * 70_000 + PNG[33:], "unreadable"),
        (JPEG[:2] + b"\xff\xfe\0\2" * 70_000 + JPEG[2:], "unreadable"),
        (JPEG[:-2] + SCAN * 200 + JPEG[-2:], "unreadable"),
    ],
)
def test_hostile_bytes_are_refused_with_a_reason_code(data, code):
    assert refused(data) == code


@pytest.mark.parametrize("data", [PNG, JPEG, encoded(film(), "JPEG", progressive=True)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_and_never_filled_with_grey(data, share):
    cut = data[: int(len(data) * share)]
    assert refused(cut) in ("truncated", "unreadable") if share < 0.5 else refused(cut) == "truncated"
    with pytest.raises(formats.BadImage):
        decode.decode_grey(cut)


def test_no_prefix_of_an_image_raises_anything_but_bad_image():
    for data in (PNG, JPEG):
        for end in range(0, len(data) - 1, 97):
            assert refused(data[:end])


def test_random_damage_raises_nothing_but_bad_image():
    rng = np.random.default_rng(0)
    outcomes = set()
    for data in (PNG, JPEG):
        for _ in range(300):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                damaged[at] = rng.integers(256)
            try:
                measure.measure_image(bytes(damaged), SETTINGS.images)
                outcomes.add("measured")
            except formats.BadImage:
                outcomes.add("refused")
    assert "refused" in outcomes


def test_a_jpeg_loses_its_metadata_and_keeps_its_pixels():
    exif = Image.Exif()
    exif[0x010E] = "SECRET PATIENT"
    data = encoded(film(), "JPEG", exif=exif, comment=b"SECRET COMMENT", icc_profile=b"SECRET" * 50)
    data = data + b"SECRET TRAILER"
    data = data[:2] + b"\xff\xe0\0\x10SECRET JFIF..." + b"\xff\xed\0\x11Photoshop SECRE" + data[2:]
    assert data.count(b"SECRE") > 4
    measured, cleaned = measure.measure_image(data, SETTINGS.images)
    assert b"SECRE" not in cleaned and cleaned.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(pixels(cleaned), pixels(data))
    assert measured["bytes"] == len(data)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"keep_rgb": True}]
)
def test_stripping_metadata_keeps_the_pixels_of_every_kind_of_jpeg(options):
    colour = np.dstack([film(seed=1), film(seed=2), film(seed=3)])
    data = encoded(colour, "JPEG", quality=80, **options)
    np.testing.assert_array_equal(pixels(formats.strip_metadata(data, "jpeg")), pixels(data))


def test_a_png_loses_its_metadata_and_keeps_its_pixels():
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "SECRET")
    text.add_itxt("Note", "SECRET")
    palette = Image.fromarray(film()).convert("P")
    for image in (Image.fromarray(film()), palette):
        data = encoded(image, pnginfo=text, dpi=(72, 72)) + b"SECRET TRAILER"
        cleaned = formats.strip_metadata(data, "png")
        assert b"SECRET" not in cleaned and b"pHYs" not in cleaned
        np.testing.assert_array_equal(pixels(cleaned), pixels(data))


def test_text_in_segments_that_no_decoder_needs_is_removed():
    ycck = encoded(Image.fromarray(film()).convert("RGB").convert("CMYK"), "JPEG", quality=95)
    at = ycck.index(b"Adobe")
    told = ycck[: at + 5] + b"SECRET"[:6] + ycck[at + 11 :]
    hidden = told[:2] + b"\xff\xf7\0\x0cSECRET 1.." + b"\xff\xe5\0\x0cSECRET 2.." + told[2:]
    cleaned = formats.strip_metadata(hidden, "jpeg")
    assert b"SECRE" not in cleaned
    np.testing.assert_array_equal(pixels(cleaned), pixels(ycck))


def test_compressed_text_of_a_png_is_never_unpacked():
    bloated = PNG[:33] + png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200_000_000), 1)) + PNG[33:]
    measured, cleaned = measure.measure_image(bloated, SETTINGS.images)
    assert cleaned == formats.strip_metadata(PNG, "png") and measured["bytes"] > len(PNG) + 150_000


def test_stripping_is_idempotent_and_metadata_does_not_change_the_hash():
    exif = Image.Exif()
    exif[0x010E] = "somebody"
    plain, cleaned = measure.measure_image(JPEG, SETTINGS.images)
    tagged, _ = measure.measure_image(encoded(film(), "JPEG", quality=90, exif=exif), SETTINGS.images)
    assert tagged["sha256"] == plain["sha256"]
    assert formats.strip_metadata(cleaned, "jpeg") == cleaned


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_that_exif_rotates_is_refused(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert refused(encoded(film(), format, exif=exif)) == "rotated"


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_real_images_are_stripped_without_a_changed_pixel():
    paths = sorted(Path(os.environ["CXR_XRAYS"], "drops/2026-01-05").rglob("*.*"))[::6]
    measured = 0
    for path in paths:
        data = path.read_bytes()
        try:
            _, cleaned = measure.measure_image(data, SETTINGS.images)
        except formats.BadImage as error:
            assert error.code == "unsupported_format"  # noqa: PT017
            continue
        np.testing.assert_array_equal(pixels(cleaned), pixels(data))
        assert len(cleaned) <= len(data)
        measured += 1
    assert measured > 100
