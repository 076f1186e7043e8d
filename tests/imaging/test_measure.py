import hashlib
import os
import threading
from pathlib import Path

import kornia_rs
import numpy as np
import pytest
import simplejpeg
from dicom_samples import dicom
from image_samples import JPEG, LARGE_JPEGS, PNG, SETTINGS, encoded, film
from PIL import Image

from cxr_ml.imaging import decode, measure

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


@pytest.mark.parametrize("data", [PNG, JPEG, encoded(film(), "JPEG", progressive=True)])
def test_a_file_is_decoded_once(monkeypatch, data):
    decoded = []
    for module, name in ((Image, "open"), (simplejpeg, "decode_jpeg"), (kornia_rs.io, "decode_image_png_u8")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, original=original, **k: decoded.append(1) or original(*a, **k))
    measure.measure_image(data, SETTINGS.images)
    assert len(decoded) == 1


@pytest.mark.parametrize("kind", LARGE_JPEGS)
def test_a_reduced_decode_of_a_large_jpeg_gives_the_figures_of_the_full_one(kind):
    data = LARGE_JPEGS[kind]
    assert decode.decode_image(data, SETTINGS.images, decode.MEASURED_SIDE).pixels.shape[:2] == (425, 325)
    found = measure.measure_image(data, SETTINGS.images)[0]
    assert (found["height"], found["width"]) == decode.decode_grey(data).shape == (1700, 1300)
    whole = measure.measure_image(encoded(decode.decode_grey(data)), SETTINGS.images)[
        0
    ]  # of PNG every pixel is averaged
    for column in ("mean", "std", "p01", "p99", "sharpness"):
        assert found[column] == pytest.approx(whole[column], abs=1, rel=0.05)
    assert (int(found["phash"], 16) ^ int(whole["phash"], 16)).bit_count() <= 2
    assert (int(found["fine_hash"], 16) ^ int(whole["fine_hash"], 16)).bit_count() <= 50


@pytest.mark.parametrize(
    "size", [(513, 300), (1024, 1024), (1025, 7), (1537, 1100), (2049, 1999), (4600, 90), (1, 4200)]
)
def test_a_reduced_decode_ends_in_the_size_that_shrink_gives(size):
    data = encoded(np.full(size, 90, np.uint8), "JPEG")
    opened = decode.decode_image(data, SETTINGS.images, decode.MEASURED_SIDE)
    whole = decode.decode_image(data, SETTINGS.images).pixels
    assert measure._shrink_rest(opened).shape == decode.shrink(whole, decode.MEASURED_SIDE).shape
    assert opened.pixels.size < size[0] * size[1]


def test_measure_and_decode_gives_what_both_give_one_after_the_other():
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
        expected, clean = measure.measure_image(data, SETTINGS.images)
        measured, grey = measure.measure_and_decode(data, SETTINGS.images)
        assert measured == expected
        np.testing.assert_array_equal(grey, decode.decode_grey(clean))


def test_measurements_have_the_fixed_columns_and_describe_the_file():
    picture = film()
    measured, cleaned = measure.measure_image(encoded(picture), SETTINGS.images)
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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_the_smallest_and_thinnest_images_are_measured(height, width):
    for format in ("PNG", "JPEG"):
        measured, _ = measure.measure_image(encoded(np.full((height, width), 90, np.uint8), format), SETTINGS.images)
        assert (measured["height"], measured["width"]) == (height, width)
        assert all(np.isfinite(v) for v in measured.values() if isinstance(v, float))


def test_saturation_distinguishes_a_blue_cast_from_grey_film():
    grey = np.dstack([film()] * 3)
    assert measure.measure_image(encoded(grey), SETTINGS.images)[0]["saturation"] == 0
    blue = grey.copy()
    blue[..., 0] //= 2
    assert measure.measure_image(encoded(blue), SETTINGS.images)[0]["saturation"] == pytest.approx(0.5, abs=0.01)


def test_sharpness_falls_when_a_film_is_blurred():
    sharp = Image.fromarray(film(300, 300))
    blurred = sharp.resize((30, 30)).resize((300, 300))
    values = [measure.measure_image(encoded(i), SETTINGS.images)[0]["sharpness"] for i in (sharp, blurred)]
    assert values[0] > 5 * values[1]


@pytest.mark.parametrize(("level", "column"), [(0, "black_border"), (255, "white_border")])
def test_borders_are_their_share_of_the_frame(level, column):
    framed = np.full((200, 200), level, np.uint8)
    framed[20:180, 10:190] = film(160, 180)
    measured, _ = measure.measure_image(encoded(framed), SETTINGS.images)
    assert measured[column] == pytest.approx(1 - 160 * 180 / 200**2, abs=0.01)
    other = {"black_border": "white_border", "white_border": "black_border"}[column]
    assert measured[other] == 0


def measured(picture, column, **options):
    return measure.measure_image(encoded(picture, **options), SETTINGS.images)[0][column]


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
def test_known_defects_move_their_measure_beyond_the_limit_of_the_suites():
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
    alone = [measure.measure_image(d, SETTINGS.images) for d in data]
    together = [None] * len(data)

    def work(start):
        for i in range(start, len(data), 4):
            together[i] = measure.measure_image(data[i], SETTINGS.images)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone
