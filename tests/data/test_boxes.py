import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_ml.data import images
from cxr_ml.data.boxes import white_box
from cxr_ml.settings import Settings

LIMIT = 0.005


def film(size=300, seed=0):
    """A bright body with two dark lungs on a dark ground, softly shaded and grainy."""
    rng = np.random.default_rng(seed)
    picture = np.full((size, size), 20, np.float32)
    cv2.ellipse(picture, (size // 2, size * 2 // 3), (size * 2 // 5, size * 3 // 5), 0, 0, 360, 190, -1)
    for x in (size // 3, size * 2 // 3):
        cv2.ellipse(picture, (x, size // 2), (size // 9, size // 4), 0, 0, 360, 60, -1)
    picture = cv2.GaussianBlur(picture, (0, 0), size / 40) + rng.normal(0, 4, picture.shape)
    return np.clip(picture, 0, 235).astype(np.uint8)


def jpeg(picture, quality):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


def test_a_film_without_a_box_has_none():
    assert white_box(film()) == 0


@pytest.mark.parametrize("quality", [None, 95, 75, 50])
@pytest.mark.parametrize(
    "box",
    [(100, 200, 60, 30), (0, 0, 50, 25), (120, 275, 100, 25), (0, 280, 300, 20), (270, 0, 30, 300), (140, 140, 24, 24)],
)
def test_a_solid_white_rectangle_is_found_with_its_area(box, quality):
    x, y, width, height = box
    picture = film()
    picture[y : y + height, x : x + width] = 255
    if quality:
        picture = jpeg(picture, quality)
    assert white_box(picture) == pytest.approx(width * height / 300**2, rel=0.15)


def test_boxes_that_overlap_and_an_l_of_padding_are_found_whole():
    overlapping = film()
    overlapping[200:240, 50:120] = 255
    overlapping[220:260, 100:180] = 255
    assert white_box(overlapping) == pytest.approx((40 * 70 + 40 * 80 - 20 * 20) / 300**2, rel=0.05)
    padded = np.full((400, 400), 255, np.uint8)
    padded[:300, :300] = film()
    assert white_box(padded) == pytest.approx(1 - 300**2 / 400**2, rel=0.05)


def test_writing_on_a_box_does_not_hide_it():
    picture = film()
    picture[240:290, 30:270] = 255
    cv2.putText(picture, "H-4, I-6", (60, 275), cv2.FONT_HERSHEY_SIMPLEX, 1, 0, 2)
    assert white_box(picture) == pytest.approx(50 * 240 / 300**2, rel=0.05)


def soft_blob():
    picture = film().astype(np.float32)
    y, x = np.mgrid[0:300, 0:300]
    return np.clip(picture + 400 * np.exp(-((x - 150) ** 2 + (y - 200) ** 2) / 50**2), 0, 255).astype(np.uint8)


def over_exposed():
    return np.clip(film().astype(np.float32) * 1.6, 0, 255).astype(np.uint8)


def disc():
    return cv2.circle(film(), (150, 200), 40, 255, -1)


def outline():
    return cv2.rectangle(film(), (60, 60), (240, 240), 255, 2)


def arrow_and_letters():
    picture = cv2.arrowedLine(film(), (40, 40), (140, 120), 255, 3)
    return cv2.putText(picture, "AP L", (150, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 4)


def line_along_the_frame():
    return cv2.copyMakeBorder(film(), 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=255)


def grey_rectangle():
    picture = film()
    picture[200:260, 60:200] = 215
    return picture


def blank_white():
    return np.full((300, 300), 255, np.uint8)


@pytest.mark.parametrize(
    "draw",
    [soft_blob, over_exposed, disc, outline, arrow_and_letters, line_along_the_frame, grey_rectangle, blank_white],
)
def test_what_is_bright_but_no_white_rectangle_is_no_box(draw):
    assert white_box(draw()) < LIMIT


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3, 2), (512, 10)])
def test_pictures_of_any_shape_can_be_asked(shape):
    assert white_box(np.full(shape, 255, np.uint8)) == 0
    assert white_box(np.zeros(shape, np.uint8)) == 0


def measured_box(path):
    return images.measure(path.read_bytes(), Settings())[0]["white_box"]


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_boxes_on_real_films_are_told_as_the_eye_tells_them():
    folder = Path(os.environ["CXR_XRAYS"])
    judged = pd.read_csv(folder / "white_box.csv")
    found = judged["path"].map(lambda p: measured_box(folder / p)) >= LIMIT
    assert found[judged["white_box"] == 1].mean() >= 0.95
    assert (~found[judged["white_box"] == 0]).mean() >= 0.98


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_hardly_any_real_film_of_the_three_classes_is_said_to_have_a_box():
    folder = Path(os.environ["CXR_XRAYS"], "drops/2026-01-05")
    paths = [p for c in ("NORMAL", "PNEUMONIA", "COVID19") for p in sorted(folder.glob(f"*/{c}/*"))[::3]]
    boxes = [measured_box(p) for p in paths if p.read_bytes()[8:12] != b"WEBP"]
    assert len(boxes) > 300
    assert np.mean(np.array(boxes) >= LIMIT) < 0.01
