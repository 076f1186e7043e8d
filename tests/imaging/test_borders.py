import cv2
import numpy as np
import pytest
from copy_samples import CHANGES, asked, film

from cxr_ml.imaging import borders, hashes


def padded(picture, top=0, bottom=0, left=0, right=0, level=0):
    return cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT, value=level)


@pytest.mark.parametrize("level", [0, 100, 255])
@pytest.mark.parametrize("sides", [{"left": 30, "right": 30}, {"top": 40}, {"top": 9, "bottom": 70, "left": 5}])
def test_the_content_of_a_padded_picture_is_the_picture(level, sides):
    picture = film(0).clip(40, 220)
    picture[::7, ::5] = 130  # no row or column is plain
    np.testing.assert_array_equal(borders.crop_margin(padded(picture, level=level, **sides)), picture)


def test_a_margin_beside_a_single_plain_row_is_found():
    picture = film(0).clip(60, 220)
    picture[0] = 60
    np.testing.assert_array_equal(borders.crop_margin(padded(picture, right=80, level=255)), picture)


def test_letters_in_a_margin_and_the_noise_of_jpeg_do_not_hide_it():
    picture = padded(film(0).clip(60, 220), left=60, right=60)
    picture[20:26, 5:11] = 255
    coded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 0)
    assert borders.crop_margin(coded).shape == pytest.approx((320, 320), abs=4)


@pytest.mark.parametrize(
    "picture", [film(0).clip(60, 220), np.full((50, 40), 90, np.uint8), np.zeros((1, 1), np.uint8)]
)
def test_a_picture_without_a_margin_and_a_blank_one_are_their_own_content(picture):
    assert borders.crop_margin(picture) is picture
    assert hashes.inner_hash(picture) == ""


def test_a_margin_that_is_no_more_than_a_slight_crop_is_left():
    picture = film(0).clip(60, 220)
    assert borders.crop_margin(padded(picture, left=2)).shape == (320, 322)
    assert borders.crop_margin(padded(picture, left=8)).shape == (320, 320)


def test_the_inner_hash_of_a_padded_picture_is_that_of_the_picture():
    picture = film(0).clip(60, 220)
    whole = hashes.perceptual_hash(picture), hashes.fine_hash(picture)
    found = hashes.inner_hash(padded(picture, top=50, right=80, level=255))
    assert found[:16] == whole[0]
    assert (int(found[16:], 16) ^ int(whole[1], 16)).bit_count() < 40
    assert len(found) == 16 + 256


def test_what_is_blank_inside_of_its_margin_has_no_inner_hash():
    assert hashes.inner_hash(padded(np.full((50, 60), 128, np.uint8), 9, 9, 9, 9)) == ""


PADDED = {
    "to a square": lambda p: padded(p[:, 60:260], left=60, right=60),
    "white": lambda p: padded(p, 40, 40, 40, 40, 255),
    "grey, at one side": lambda p: padded(p, right=70, level=120),
    "and small": lambda p: cv2.resize(padded(p, 30, 50), (160, 200), interpolation=cv2.INTER_AREA),
    "after it was changed": lambda p: padded(CHANGES["JPEG 50"](CHANGES["brighter"](p)), 20, 60),
    "mirrored": lambda p: padded(p[:, ::-1], 60, 20),
    "on its side, inverted": lambda p: padded(255 - np.rot90(p), 20, 20, 40, 40, 255),
}


@pytest.mark.parametrize("change", PADDED)
def test_a_padded_copy_is_near_whichever_comes_first(change):
    originals = [film(i)[:, 60:260] if change == "to a square" else film(i) for i in range(5)]
    copies = [PADDED[change](film(i)) for i in range(5)]
    for first, second in ((originals, copies), (copies, originals)):
        found = asked(
            [(f"second{i}", p) for i, p in enumerate(second)], [(f"first{i}", p) for i, p in enumerate(first)]
        )
        assert list(found["duplicate_of"]) == [f"first{i}" for i in range(5)]


def test_copies_padded_differently_are_near_to_one_another():
    copies = [(f"copy{i}", padded(film(0), *sides, level=level)) for i, (sides, level) in enumerate(
        [((0, 0, 80, 0), 0), ((60, 60, 0, 0), 255), ((0, 90, 0, 20), 128), ((5, 5, 100, 100), 0)]
    )]  # fmt: skip
    assert list(asked(copies)["duplicate_of"]) == ["", "copy0", "copy0", "copy0"]


def test_strangers_in_margins_are_not_merged():
    found = asked(
        [(f"film{i}", padded(film(i), *[(40, 10), (0, 60), (30, 30)][i % 3], level=i % 2 * 255)) for i in range(24)]
    )
    assert set(found["duplicate_of"]) == {""}
