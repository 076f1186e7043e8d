import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_ml.imaging import decode, measure
from cxr_ml.imaging.white_box import measure_white_box
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
    assert measure_white_box(film()) == 0


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
    assert measure_white_box(picture) == pytest.approx(width * height / 300**2, rel=0.15)


def test_boxes_that_overlap_and_an_l_of_padding_are_found_whole():
    overlapping = film()
    overlapping[200:240, 50:120] = 255
    overlapping[220:260, 100:180] = 255
    assert measure_white_box(overlapping) == pytest.approx((40 * 70 + 40 * 80 - 20 * 20) / 300**2, rel=0.05)
    padded = np.full((400, 400), 255, np.uint8)
    padded[:300, :300] = film()
    assert measure_white_box(padded) == pytest.approx(1 - 300**2 / 400**2, rel=0.05)


@pytest.mark.parametrize("level, quality", [(255, None), (247, 75), (255, 50)])  # noqa: PT006
@pytest.mark.parametrize("sides", [(0, 3, 0, 0), (0, 0, 8, 0), (2, 0, 0, 1), (0, 5, 0, 5)])
def test_a_thin_white_strip_along_a_whole_side_or_an_l_of_two_is_a_box(sides, level, quality):
    padded = cv2.copyMakeBorder(film(), *sides, cv2.BORDER_CONSTANT, value=level)
    picture = jpeg(padded, quality) if quality else padded
    assert measure_white_box(picture) == pytest.approx(1 - 300**2 / padded.size, rel=0.35)


def test_writing_on_a_box_does_not_hide_it():
    picture = film()
    picture[240:290, 30:270] = 255
    cv2.putText(picture, "H-4, I-6", (60, 275), cv2.FONT_HERSHEY_SIMPLEX, 1, 0, 2)
    assert measure_white_box(picture) == pytest.approx(50 * 240 / 300**2, rel=0.05)


def test_a_white_frame_of_padding_is_found_and_the_film_inside_is_no_part_of_it():
    framed = jpeg(cv2.copyMakeBorder(film(), 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=255), 75)
    assert measure_white_box(framed) == pytest.approx(1 - 300**2 / 380**2, rel=0.05)


def burnt_out(x, y, radius, picture=None):
    """A film that is clipped to white around a point, and fades there into what can be seen."""
    picture = film() if picture is None else picture
    rows, columns = np.mgrid[0:300, 0:300]
    glow = 500 * np.exp(-((((columns - x) ** 2 + (rows - y) ** 2) / radius**2) ** 1.5))
    return np.clip(picture + glow, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [None, 95, 60])
@pytest.mark.parametrize(
    ("box", "burn"),
    [
        ((80, 100, 60, 50), (150, 125, 40)),  # its right side melts
        ((80, 100, 60, 50), (110, 170, 35)),  # its lower side
        ((80, 90, 60, 60), (145, 155, 45)),  # the lower and the right
        ((0, 100, 60, 50), (75, 125, 40)),  # it lies at the frame
        ((0, 260, 300, 40), (150, 250, 70)),  # a strip across, in the middle
    ],
)
def test_a_box_that_melts_into_burnt_out_film_is_found_by_the_sides_that_are_seen(box, burn, quality):
    x, y, width, height = box
    picture = burnt_out(*burn)
    picture[y : y + height, x : x + width] = 255
    if quality:
        picture = jpeg(picture, quality)
    assert measure_white_box(picture) == pytest.approx(width * height / 300**2, rel=0.4)


@pytest.mark.parametrize("level", [236, 245, 255])
def test_a_box_need_not_be_quite_white(level):
    picture = film()
    picture[200:240, 60:160] = level
    assert measure_white_box(jpeg(picture, 75)) == pytest.approx(40 * 100 / 300**2, rel=0.15)


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


def large_letter():
    return jpeg(cv2.putText(film(), "L", (60, 250), cv2.FONT_HERSHEY_SIMPLEX, 2, 255, 5), 90)


def wedge_beside_a_film_scanned_askew():
    picture = film()
    return cv2.fillPoly(picture, [np.array([(0, 0), (22, 0), (0, 299)])], 255)


def line_along_the_frame():
    return cv2.copyMakeBorder(film(), 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=255)


def one_row_that_a_scanner_left():
    return cv2.copyMakeBorder(film(), 1, 0, 0, 0, cv2.BORDER_CONSTANT, value=255)


def burnt_out_up_to_the_frame():
    """White in each of the last rows, and no straight edge above."""
    picture = film()
    for column in range(300):
        picture[int(285 + 10 * np.sin(column / 30)) :, column] = 255
    return picture


def strip_of_half_a_side():
    picture = film()
    picture[296:, :150] = 255
    return picture


def grey_rectangle():
    picture = film()
    picture[200:260, 60:200] = 215
    return picture


def burnt_out_up_to_the_collimator():
    """As white as a box, with straight sides and right angles, but what lies beyond them is no film."""
    picture = burnt_out(60, 240, 60)
    picture[:, :45] = picture[265:] = 12
    return jpeg(picture, 90)


def outline_on_burnt_out_film():
    """Of a part that is mostly white, the film in the outline is no writing."""
    return cv2.rectangle(burnt_out(150, 230, 90), (90, 100), (150, 160), 255, 3)


def nearly_all_white():
    return burnt_out(180, 150, 150)


def blank_white():
    return np.full((300, 300), 255, np.uint8)


@pytest.mark.parametrize(
    "draw",
    [
        soft_blob,
        over_exposed,
        disc,
        outline,
        arrow_and_letters,
        large_letter,
        wedge_beside_a_film_scanned_askew,
        line_along_the_frame,
        one_row_that_a_scanner_left,
        burnt_out_up_to_the_frame,
        strip_of_half_a_side,
        grey_rectangle,
        burnt_out_up_to_the_collimator,
        outline_on_burnt_out_film,
        nearly_all_white,
        blank_white,
    ],
)
def test_bright_areas_that_are_no_white_rectangle_are_no_box(draw):
    assert measure_white_box(draw()) < LIMIT


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3, 2), (512, 10)])
def test_pictures_of_any_shape_are_measured(shape):
    assert measure_white_box(np.full(shape, 255, np.uint8)) == 0
    assert measure_white_box(np.zeros(shape, np.uint8)) == 0


def measured_box(path):
    return measure.measure_image(path.read_bytes(), Settings().images)[0]["white_box"]


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_boxes_on_real_films_are_found_as_a_person_finds_them():
    folder = Path(os.environ["CXR_XRAYS"])
    judged = pd.read_csv(folder / "white_box.csv")
    found = judged["path"].map(lambda p: measured_box(folder / p)) >= LIMIT
    assert found[judged["white_box"] == 1].mean() >= 0.95
    assert (~found[judged["white_box"] == 0]).mean() >= 0.98


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_hardly_any_real_film_of_the_three_classes_has_a_box():
    folder = Path(os.environ["CXR_XRAYS"], "drops/2026-01-05")
    paths = [p for c in ("NORMAL", "PNEUMONIA", "COVID19") for p in sorted(folder.glob(f"*/{c}/*"))[::3]]
    boxes = [measured_box(p) for p in paths if p.read_bytes()[8:12] != b"WEBP"]
    assert len(boxes) > 300
    assert np.mean(np.array(boxes) >= LIMIT) < 0.01


def resized(picture, side):
    scale = side / max(picture.shape)
    return cv2.resize(
        picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )


def looked_at(picture):
    return measure_white_box(decode.shrink(picture, decode.MEASURED_SIDE)) >= LIMIT


@pytest.mark.xrays
@pytest.mark.skipif("CXR_XRAYS" not in os.environ, reason="CXR_XRAYS names no folder of X-rays")
def test_rectangles_drawn_on_real_films_are_found_and_other_defects_are_not():
    folder = Path(os.environ["CXR_XRAYS"])
    judged = pd.read_csv(folder / "white_box.csv")
    found, alarms = [], []
    for number, path in enumerate(judged.loc[judged["white_box"] == 0, "path"]):
        rng = np.random.default_rng([3, number])
        colour = cv2.imdecode(np.fromfile(folder / path, np.uint8), cv2.IMREAD_COLOR)
        plain = resized(np.ascontiguousarray(colour.min(axis=2)), 600)
        height, width = plain.shape
        high, wide = int(height * rng.uniform(0.08, 0.2)), int(width * rng.uniform(0.12, 0.4))
        top, left = int(rng.uniform(0, height - high)), int(rng.uniform(0, width - wide))
        boxed = plain.copy()
        boxed[top : top + high, left : left + wide] = rng.choice([255, 252, 246])
        found += [looked_at(jpeg(resized(boxed, 224), 80)), looked_at(jpeg(boxed, 50)), looked_at(resized(boxed, 1500))]
        found.append(looked_at(cv2.copyMakeBorder(plain, 0, high, 0, wide, cv2.BORDER_CONSTANT, value=255)))
        strip = cv2.copyMakeBorder(plain, 0, height // 70, 0, width // 100, cv2.BORDER_CONSTANT, value=255)
        found += [looked_at(jpeg(resized(strip, side), 70)) for side in (224, 1500)]
        bright = np.clip(plain.astype(np.float32) * 1.2, 0, 255).astype(np.uint8)
        shield = cv2.ellipse(plain.copy(), (width // 2, height), (wide, high), 0, 0, 360, 255, -1)
        outline = cv2.rectangle(plain.copy(), (left, top), (left + wide, top + high), 255, width // 100)
        alarms += [looked_at(jpeg(p, 80)) for p in (plain, bright, shield, outline)]
    print(f"recall {np.mean(found):.4f} of {len(found)}, specificity {1 - np.mean(alarms):.4f} of {len(alarms)}")
    assert np.mean(found) >= 0.95
    assert np.mean(alarms) <= 0.02
