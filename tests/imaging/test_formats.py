import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import kornia_rs
import numpy as np
import pytest
import simplejpeg
from dicom_samples import dicom
from PIL import Image, PngImagePlugin

from cxr_ml.imaging import decode, formats, measure
from cxr_ml.settings import Settings

SETTINGS = Settings()
COLUMNS = [
    "sha256",
    "format",
    "bytes",
    "width",
    "height",
    "mode",
    "bits",
    "mean",
    "std",
    "p01",
    "p99",
    "saturation",
    "sharpness",
    "black_border",
    "white_border",
    "white_box",
    "phash",
    "fine_hash",
    "inner_hash",
    "ring",
]


def film(height=200, width=160, seed=0):
    """A smooth grey picture with some grain, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    wave = sum(
        rng.uniform(10, 25) * np.cos(2 * np.pi * (a * x + b * y) + rng.uniform(0, 6))
        for a, b in rng.uniform(0, 4, (6, 2))
    )
    return np.clip(120 + wave + rng.normal(0, 3, (height, width)), 5, 235).astype(np.uint8)


def encoded(picture, format="PNG", **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind, payload):
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width, height, bits=8, colour=0, data=b""):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def refused(data, settings=SETTINGS):
    with pytest.raises(formats.BadImage) as caught:
        measure.measure_image(data, settings)
    assert "Received: " in str(caught.value)
    return caught.value.code


ANIMATED = encoded(Image.fromarray(film()), save_all=True, append_images=[Image.fromarray(film(seed=1))])
JPEG = encoded(film(), "JPEG", quality=90)
PNG = encoded(film())


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
def test_hostile_bytes_are_refused_with_the_reason_as_code(data, code):
    assert refused(data) == code


@pytest.mark.parametrize("data", [PNG, JPEG, encoded(film(), "JPEG", progressive=True)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused_as_truncated_and_never_filled_with_grey(data, share):
    cut = data[: int(len(data) * share)]
    assert refused(cut) in ("truncated", "unreadable") if share < 0.5 else refused(cut) == "truncated"
    with pytest.raises(formats.BadImage):
        decode.decode_grey(cut)


def test_no_prefix_of_an_image_raises_anything_but_bad_image():
    for data in (PNG, JPEG):
        for end in range(0, len(data) - 1, 97):
            assert refused(data[:end])


def test_random_damage_is_measured_or_refused_but_never_another_error():
    rng = np.random.default_rng(0)
    outcomes = set()
    for data in (PNG, JPEG):
        for _ in range(300):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                damaged[at] = rng.integers(256)
            try:
                measure.measure_image(bytes(damaged), SETTINGS)
                outcomes.add("measured")
            except formats.BadImage:
                outcomes.add("refused")
    assert "refused" in outcomes


def test_limits_are_checked_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", lambda *_: pytest.fail("decoded"))
    assert refused(PNG, Settings(max_pixels=100)) == "too_many_pixels"
    assert refused(JPEG, Settings(max_pixels=100)) == "too_many_pixels"
    assert refused(PNG, Settings(max_file_bytes=100)) == "too_large"


@pytest.mark.parametrize("data", [PNG, JPEG, encoded(film(), "JPEG", progressive=True)])
def test_a_file_is_decoded_once(monkeypatch, data):
    decoded = []
    for module, name in ((Image, "open"), (simplejpeg, "decode_jpeg"), (kornia_rs.io, "decode_image_png_u8")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, original=original, **k: decoded.append(1) or original(*a, **k))
    measure.measure_image(data, SETTINGS)
    assert len(decoded) == 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"quality": 20}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_gives_the_pixels_that_pillow_gives(mode, options):
    colours = np.random.default_rng(3).integers(0, 60, (1, 1, 3)) + film()[..., None] // 2
    data = encoded(film() if mode == "L" else colours.astype(np.uint8), "JPEG", **options)
    opened = decode.decode_image(data, SETTINGS)
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
    opened = decode.decode_image(data, SETTINGS)
    assert opened.mode == mode
    np.testing.assert_array_equal(opened.pixels, np.asarray(picture.convert("L" if mode == "L" else "RGB")))


def test_a_fault_in_the_decoder_of_png_is_left_to_pillow(monkeypatch):
    class Panic(BaseException):
        """As Rust's panics come to Python."""

    def fail(*_):
        raise Panic

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", fail)
    np.testing.assert_array_equal(decode.decode_image(PNG, SETTINGS).pixels, film())


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS"])
def test_a_png_with_a_palette_or_a_transparent_colour_is_left_to_pillow(kind):
    data = encoded(Image.fromarray(film()).convert("RGB"))
    colour = film()[0, 0]
    extra = bytes(768) if kind == b"PLTE" else struct.pack(">HHH", colour, colour, colour)
    with_extra = data[:33] + png_chunk(kind, extra) + data[33:]
    expected = np.where((film() == colour) & (kind == b"tRNS"), 0, film())
    np.testing.assert_array_equal(decode.decode_grey(with_extra), expected)


LARGE = {
    f"{mode}{' progressive' if progressive else ''}": encoded(
        Image.fromarray(film(1700, 1300)).convert(mode), "JPEG", quality=85, progressive=progressive
    )
    for mode in ("L", "RGB")
    for progressive in (False, True)
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_jpeg_is_measured_on_a_part_of_its_pixels_with_the_figures_of_the_whole(kind):
    data = LARGE[kind]
    assert decode.decode_image(data, SETTINGS, decode.MEASURED_SIDE).pixels.shape[:2] == (425, 325)
    found = measure.measure_image(data, SETTINGS)[0]
    assert (found["height"], found["width"]) == decode.decode_grey(data).shape == (1700, 1300)
    whole = measure.measure_image(encoded(decode.decode_grey(data)), SETTINGS)[0]  # of PNG every pixel is averaged
    for column in ("mean", "std", "p01", "p99", "sharpness"):
        assert found[column] == pytest.approx(whole[column], abs=1, rel=0.05)
    assert (int(found["phash"], 16) ^ int(whole["phash"], 16)).bit_count() <= 2
    assert (int(found["fine_hash"], 16) ^ int(whole["fine_hash"], 16)).bit_count() <= 50


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_large_jpeg_whose_data_end_early_is_refused_though_it_is_decoded_in_part(kind, share):
    cut = LARGE[kind][: int(len(LARGE[kind]) * share)]
    assert refused(cut) in ("truncated", "unreadable")


@pytest.mark.parametrize("kind", [kind for kind in LARGE if "progressive" not in kind])
@pytest.mark.parametrize("share", [0.3, 0.95, 0.999])
def test_missing_data_before_the_end_of_a_large_jpeg_are_noticed_in_a_reduced_decode_and_left_to_pillow(kind, share):
    ended = LARGE[kind][: int(len(LARGE[kind]) * share)] + b"\xff\xd9"
    np.testing.assert_array_equal(decode.decode_image(ended, SETTINGS, decode.MEASURED_SIDE).pixels, pixels(ended))


@pytest.mark.parametrize("kind", LARGE)
def test_a_damaged_large_jpeg_has_the_verdict_of_its_full_decode(kind):
    rng = np.random.default_rng(1)
    scan = LARGE[kind].index(b"\xff\xda")
    for _ in range(12):
        damaged = bytearray(LARGE[kind])
        for at in rng.integers(scan + 20, len(damaged) - 2, 3):
            damaged[at] = rng.integers(255)
        outcome = []
        for side in (None, decode.MEASURED_SIDE):
            try:
                decode.decode_image(bytes(damaged), SETTINGS, side)
                outcome.append("opened")
            except formats.BadImage as error:
                outcome.append(error.code)
        assert outcome[0] == outcome[1]


@pytest.mark.parametrize(
    "size", [(513, 300), (1024, 1024), (1025, 7), (1537, 1100), (2049, 1999), (4600, 90), (1, 4200)]
)
def test_a_large_jpeg_is_brought_down_to_the_size_that_shrink_gives(size):
    data = encoded(np.full(size, 90, np.uint8), "JPEG")
    opened = decode.decode_image(data, SETTINGS, decode.MEASURED_SIDE)
    assert (
        measure._shrink_rest(opened).shape
        == decode.shrink(decode.decode_image(data, SETTINGS).pixels, decode.MEASURED_SIDE).shape
    )
    assert opened.pixels.size < size[0] * size[1]


@pytest.mark.parametrize(
    ("longest", "shrunk"), [(384, 384), (512, 512), (513, 256), (768, 384), (769, 256), (1537, 307)]
)
def test_what_is_longer_by_up_to_a_third_is_not_shrunk_and_nothing_below_two_thirds(longest, shrunk):
    assert decode.shrink(np.zeros((100, longest), np.uint8), 384).shape[1] == shrunk


def test_a_picture_with_an_opaque_alpha_channel_shows_its_colours():
    colours = np.dstack([film(), film(seed=1), film(seed=2)])
    opaque = np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode.decode_image(encoded(opaque), SETTINGS).pixels, colours)
    opaque[0, 0, 3] = 0
    assert not decode.decode_image(encoded(opaque), SETTINGS).pixels[0, 0].any()


def test_measured_and_decoded_at_once_a_file_gives_the_same_as_one_after_the_other():
    wide = (np.arange(200 * 160).reshape(200, 160) * 2).astype(np.uint16)
    see_through = Image.fromarray(np.dstack([film()] * 3 + [film(seed=1)]), "RGBA")
    palette = Image.fromarray(film()).convert("P")
    files = [
        PNG,
        JPEG,
        encoded(film(), "JPEG", progressive=True),
        encoded(wide),
        encoded(see_through),
        encoded(palette),
    ]
    files += [encoded(film(900, 1300), "JPEG"), encoded(film(900, 700)), dicom(film(), 8)]
    for data in files:
        expected, clean = measure.measure_image(data, SETTINGS)
        measured, grey = measure.measure_and_decode(data, SETTINGS)
        assert measured == expected
        np.testing.assert_array_equal(grey, decode.decode_grey(clean))


def test_measurements_have_the_fixed_columns_and_say_what_is_in_the_file():
    picture = film()
    measured, cleaned = measure.measure_image(encoded(picture), SETTINGS)
    assert list(measured) == COLUMNS
    assert measured["sha256"] == hashlib.sha256(cleaned).hexdigest()
    assert (measured["format"], measured["mode"], measured["bits"]) == ("png", "L", 8)
    assert (measured["width"], measured["height"], measured["bytes"]) == (160, 200, len(encoded(picture)))
    assert measured["mean"] == pytest.approx(picture.mean())
    assert measured["std"] == pytest.approx(picture.std())
    assert abs(measured["p01"] - np.percentile(picture, 1)) <= 1
    assert abs(measured["p99"] - np.percentile(picture, 99)) <= 1
    assert len(bytes.fromhex(measured["ring"])) == 32 * 32 - 24 * 24
    assert len(measured["phash"]) == 16 and int(measured["phash"], 16) >= 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_files_keep_their_contrast_whatever_depth_they_use(bits):
    deep = (film().astype(np.uint16) << (bits - 8)) + 1
    data = encoded(deep | (1 << (bits - 1)))
    measured, _ = measure.measure_image(data, SETTINGS)
    assert (measured["bits"], measured["format"]) == (16, "png")
    assert decode.decode_grey(data).dtype == np.uint8
    np.testing.assert_array_equal(decode.decode_grey(data), (film() + (1 if bits == 8 else 0)) | 128)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_png_mode_becomes_grey_of_the_same_size(mode):
    source = Image.fromarray(film()).convert("RGB") if mode in ("P", "RGBA") else Image.fromarray(film())
    data = encoded(source.convert(mode))
    measured, _ = measure.measure_image(data, SETTINGS)
    assert measured["mode"] == mode
    grey = decode.decode_grey(data)
    assert grey.shape == (200, 160) and grey.dtype == np.uint8
    if mode not in ("1", "P"):
        np.testing.assert_allclose(grey.astype(int), film().astype(int), atol=1)


def test_cmyk_jpeg_becomes_the_grey_it_shows():
    data = encoded(Image.fromarray(film()).convert("RGB").convert("CMYK"), "JPEG", quality=95)
    measured, _ = measure.measure_image(data, SETTINGS)
    assert measured["mode"] == "CMYK"
    assert np.abs(decode.decode_grey(data).astype(int) - film()).mean() < 4


def test_a_large_cmyk_jpeg_is_decoded_at_a_part_of_its_size_where_little_is_wanted():
    grey = np.kron(film(), np.ones((8, 8), np.uint8))  # 1600 × 1280 px
    data = encoded(Image.fromarray(grey).convert("RGB").convert("CMYK"), "JPEG", quality=95, progressive=True)
    opened = decode.decode_image(data, SETTINGS, decode.MEASURED_SIDE)
    assert (opened.height, opened.width, opened.pixels.shape) == (1600, 1280, (400, 320, 3))
    measured, whole = measure.measure_image(data, SETTINGS)[0], decode.decode_grey(data)
    assert whole.shape == (1600, 1280)
    assert measured["mean"] == pytest.approx(whole.mean(), abs=0.5)


def test_what_is_transparent_is_black_whatever_colour_hides_there():
    rgba = np.full((40, 40, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[:, :20, 3] = 0
    grey = decode.decode_grey(encoded(rgba))
    assert (grey[:, :20] == 0).all() and (grey[:, 20:] == 200).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_the_smallest_and_the_thinnest_images_can_be_measured(height, width):
    for format in ("PNG", "JPEG"):
        measured, _ = measure.measure_image(encoded(np.full((height, width), 90, np.uint8), format), SETTINGS)
        assert (measured["height"], measured["width"]) == (height, width)
        assert all(np.isfinite(v) for v in measured.values() if isinstance(v, float))


def test_metadata_is_gone_and_the_pixels_are_the_same_in_jpeg():
    exif = Image.Exif()
    exif[0x010E] = "SECRET PATIENT"
    data = encoded(film(), "JPEG", exif=exif, comment=b"SECRET COMMENT", icc_profile=b"SECRET" * 50)
    data = data + b"SECRET TRAILER"
    data = data[:2] + b"\xff\xe0\0\x10SECRET JFIF..." + b"\xff\xed\0\x11Photoshop SECRE" + data[2:]
    assert data.count(b"SECRE") > 4
    measured, cleaned = measure.measure_image(data, SETTINGS)
    assert b"SECRE" not in cleaned and cleaned.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(pixels(cleaned), pixels(data))
    assert measured["bytes"] == len(data)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"keep_rgb": True}]
)
def test_cleaning_keeps_the_pixels_of_every_kind_of_jpeg(options):
    colour = np.dstack([film(seed=1), film(seed=2), film(seed=3)])
    data = encoded(colour, "JPEG", quality=80, **options)
    np.testing.assert_array_equal(pixels(formats.strip_metadata(data, "jpeg")), pixels(data))


def test_metadata_is_gone_and_the_pixels_are_the_same_in_png():
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "SECRET")
    text.add_itxt("Note", "SECRET")
    palette = Image.fromarray(film()).convert("P")
    for image in (Image.fromarray(film()), palette):
        data = encoded(image, pnginfo=text, dpi=(72, 72)) + b"SECRET TRAILER"
        cleaned = formats.strip_metadata(data, "png")
        assert b"SECRET" not in cleaned and b"pHYs" not in cleaned
        np.testing.assert_array_equal(pixels(cleaned), pixels(data))


def test_text_in_segments_that_no_decoder_needs_does_not_stay():
    ycck = encoded(Image.fromarray(film()).convert("RGB").convert("CMYK"), "JPEG", quality=95)
    at = ycck.index(b"Adobe")
    told = ycck[: at + 5] + b"SECRET"[:6] + ycck[at + 11 :]
    hidden = told[:2] + b"\xff\xf7\0\x0cSECRET 1.." + b"\xff\xe5\0\x0cSECRET 2.." + told[2:]
    cleaned = formats.strip_metadata(hidden, "jpeg")
    assert b"SECRE" not in cleaned
    np.testing.assert_array_equal(pixels(cleaned), pixels(ycck))


def test_bloated_text_of_a_png_is_never_unpacked():
    bloated = PNG[:33] + png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200_000_000), 1)) + PNG[33:]
    measured, cleaned = measure.measure_image(bloated, SETTINGS)
    assert cleaned == formats.strip_metadata(PNG, "png") and measured["bytes"] > len(PNG) + 150_000


def test_zeros_behind_the_last_row_of_a_small_picture_are_never_unpacked():
    data = png(100, 100, data=bytes(200_000_000))
    assert len(data) < 400_000
    assert peak_of(data) < 150


def peak_of(data):
    """MB by which a process grows at most while it opens a picture."""
    code = (
        "import resource, sys; from cxr_ml.imaging import measure; from cxr_ml.settings import Settings\n"
        "data, peak = sys.stdin.buffer.read(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "decode.decode_image(data, Settings())\n"
        "print((peak() - before) / (2**20 if sys.platform == 'darwin' else 2**10))"
    )
    return float(subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout)


@pytest.mark.parametrize(("mode", "megabytes"), [("RGBA", 280), ("I;16", 140)])
def test_a_large_picture_is_opened_without_whole_copies(mode, megabytes):
    picture = Image.new(mode, (5000, 5000), 128 if mode == "I;16" else (90, 90, 90, 128))
    assert peak_of(encoded(picture, compress_level=1)) < megabytes


def test_transparency_is_laid_on_black_the_same_in_large_pictures_as_in_small_ones():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (1500, 1600, 4)).astype(np.uint8)  # more than one strip
    expected = (rgba[..., :3].astype(int) * rgba[..., 3:] + 127) // 255
    np.testing.assert_array_equal(decode.decode_image(encoded(rgba, compress_level=1), SETTINGS).pixels, expected)


def test_cleaning_twice_changes_nothing_and_metadata_does_not_change_the_hash():
    exif = Image.Exif()
    exif[0x010E] = "somebody"
    plain, cleaned = measure.measure_image(JPEG, SETTINGS)
    tagged, _ = measure.measure_image(encoded(film(), "JPEG", quality=90, exif=exif), SETTINGS)
    assert tagged["sha256"] == plain["sha256"]
    assert formats.strip_metadata(cleaned, "jpeg") == cleaned


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_that_only_exif_turns_upright_is_refused(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert refused(encoded(film(), format, exif=exif)) == "rotated"


def test_saturation_tells_a_blue_cast_from_grey_film():
    grey = np.dstack([film()] * 3)
    assert measure.measure_image(encoded(grey), SETTINGS)[0]["saturation"] == 0
    blue = grey.copy()
    blue[..., 0] //= 2
    assert measure.measure_image(encoded(blue), SETTINGS)[0]["saturation"] == pytest.approx(0.5, abs=0.01)


def test_sharpness_falls_when_a_film_is_blurred():
    sharp = Image.fromarray(film(300, 300))
    blurred = sharp.resize((30, 30)).resize((300, 300))
    values = [measure.measure_image(encoded(i), SETTINGS)[0]["sharpness"] for i in (sharp, blurred)]
    assert values[0] > 5 * values[1]


@pytest.mark.parametrize(("level", "column"), [(0, "black_border"), (255, "white_border")])
def test_borders_are_their_share_of_the_frame(level, column):
    framed = np.full((200, 200), level, np.uint8)
    framed[20:180, 10:190] = film(160, 180)
    measured, _ = measure.measure_image(encoded(framed), SETTINGS)
    assert measured[column] == pytest.approx(1 - 160 * 180 / 200**2, abs=0.01)
    other = {"black_border": "white_border", "white_border": "black_border"}[column]
    assert measured[other] == 0


def measured(picture, column, **options):
    return measure.measure_image(encoded(picture, **options), SETTINGS)[0][column]


@pytest.mark.parametrize(("level", "column"), [(0, "black_border"), (255, "white_border")])
@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_border_with_the_noise_of_jpeg_is_still_measured(level, column, quality):
    framed = np.full((300, 300), level, np.uint8)
    framed[:, 60:240] = film(300, 180)
    assert measured(framed, column, format="JPEG", quality=quality) == pytest.approx(0.4, abs=0.02)


def test_less_contrast_and_wrong_exposure_move_their_measures():
    picture = film().astype(np.float32)
    flat = (120 + (picture - 120) / 4).astype(np.uint8)
    assert measured(flat, "std") < measured(film(), "std") / 3
    dark, burnt = (picture / 4).astype(np.uint8), np.clip(picture * 2, 0, 255).astype(np.uint8)
    assert measured(dark, "mean") < measured(film(), "mean") / 3 and measured(dark, "p99") < 64
    assert measured(burnt, "mean") > 1.5 * measured(film(), "mean") and measured(burnt, "p99") == 255


def test_sharpness_is_the_variance_of_the_laplacian():
    picture = film(256, 256).astype(int)
    padded = np.pad(picture, 1, mode="reflect")
    edges = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * picture
    assert measured(film(256, 256), "sharpness") == pytest.approx(edges.var())


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_each_complaint_about_published_films_moves_its_measure_beyond_the_limit_that_classes_or_images_set():
    paths = sorted(Path(os.environ["CXR_XRAYS"], "drops/2026-01-05/train/NORMAL").iterdir())[::20]
    assert len(paths) > 10
    for path in paths:
        grey = Image.open(path).convert("L").resize((400, 400))
        array = np.asarray(grey)
        tinted = np.stack([array // 2, array * 0.9, array], axis=2).astype(np.uint8)
        blurred = grey.resize((24, 24), Image.Resampling.BOX).resize((400, 400), Image.Resampling.BICUBIC)
        assert measured(array, "saturation") == 0 and measured(tinted, "saturation") > 0.25
        assert measured(np.pad(array, 80), "black_border") > 0.3 > measured(array, "black_border")
        assert measured(array // 8 + 100, "std") < 10 < measured(array, "std")
        assert measured(blurred, "sharpness") < 5 < measured(array, "sharpness")
        assert measured(array // 8, "mean") < 25 < measured(array, "mean")


def test_many_threads_measure_the_same_as_one():
    data = [encoded(film(seed=i), f) for i in range(8) for f in ("PNG", "JPEG")]
    alone = [measure.measure_image(d, SETTINGS) for d in data]
    together = [None] * len(data)

    def work(start):
        for i in range(start, len(data), 4):
            together[i] = measure.measure_image(data[i], SETTINGS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_real_images_are_clean_without_a_changed_pixel():
    paths = sorted(Path(os.environ["CXR_XRAYS"], "drops/2026-01-05").rglob("*.*"))[::6]
    measured = 0
    for path in paths:
        data = path.read_bytes()
        try:
            _, cleaned = measure.measure_image(data, SETTINGS)
        except formats.BadImage as error:
            assert error.code == "unsupported_format"
            continue
        np.testing.assert_array_equal(pixels(cleaned), pixels(data))
        assert len(cleaned) <= len(data)
        measured += 1
    assert measured > 100
