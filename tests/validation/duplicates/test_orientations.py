import cv2
import numpy as np
import pandas as pd
import pytest
from copy_samples import CHANGES, NO_MARGINS, SETTINGS, asked, film

from cxr_ml.imaging import hashes
from cxr_ml.validation.duplicates import hash_columns, orientations

NOT_UPRIGHT = [orientation for orientation in range(16) if orientation not in orientations.UPRIGHT]


def turn(grey, orientation):
    """Returns a picture, uint8, turned."""
    picture = np.ascontiguousarray(orientations.turn_pictures(grey.astype(int), orientation))
    return (picture + 255 if orientation & orientations.INVERTED else picture).astype(np.uint8)


def words(pictures):
    return hash_columns.parse_fine_hashes(pd.Series([hashes.fine_hash(p) for p in pictures]))


@pytest.mark.parametrize("orientation", range(16))
def test_hashes_are_turned_as_pictures_are(orientation):
    pictures = [cv2.resize(film(i), (256, 256)) for i in range(4)]
    turned, others = (
        np.array([int(hashes.perceptual_hash(p), 16) for p in part], np.uint64)
        for part in (pictures, [turn(p, orientation) for p in pictures])
    )
    assert np.bitwise_count(orientations.turn_hashes(turned, orientation) ^ others).max() <= 1
    fine = orientations.turn_fine_hashes(words(pictures), orientation) ^ words([turn(p, orientation) for p in pictures])
    assert np.bitwise_count(fine).sum(1).max() <= 10  # as bright as around it is neither


def test_a_fine_hash_is_turned_pixel_by_pixel():
    bits = np.random.default_rng(0).integers(0, 2, (2, 32, 32), np.uint8)
    fine = np.packbits(bits).view(np.uint64).reshape(2, 16)
    expected = {
        orientations.MIRRORED: bits[:, :, ::-1],
        orientations.FLIPPED: bits[:, ::-1],
        orientations.INVERTED: 1 - bits,
    }
    expected |= {
        orientations.TRANSPOSED: bits.transpose(0, 2, 1),
        orientations.TRANSPOSED | orientations.MIRRORED: np.rot90(bits, 3, (1, 2)),
    }
    for orientation, pixels in expected.items():
        assert (orientations.turn_fine_hashes(fine, orientation).view(np.uint8).ravel() == np.packbits(pixels)).all()


@pytest.mark.parametrize("orientation", NOT_UPRIGHT)
@pytest.mark.parametrize("change", ["half the size", "JPEG 50", "brighter", "less contrast"])
def test_a_turned_copy_that_was_changed_too_is_near(orientation, change):
    known = [(f"known{i}", film(i)) for i in range(4)]
    found = asked([(f"copy{i}", turn(CHANGES[change](film(i)), orientation)) for i in range(4)], known)
    assert list(found["duplicate_of"]) == [f"known{i}" for i in range(4)]


def test_turned_pairs_are_those_that_comparing_every_pair_by_parts_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 600, np.uint64)
    for copy in range(300, 600):
        flips = np.uint64(0)
        for bit in rng.choice(64, rng.integers(0, 16), replace=False):
            flips |= np.uint64(1) << np.uint64(bit)
        hashes[copy] = orientations.turn_hashes(hashes[[copy - 300]], int(rng.integers(16)))[0] ^ flips
    parts = [orientations.ODD_DOWN & orientations.ODD_ACROSS, orientations.ODD_DOWN & ~orientations.ODD_ACROSS]
    parts += [~orientations.ODD_DOWN & orientations.ODD_ACROSS, ~orientations.ODD_DOWN & ~orientations.ODD_ACROSS]
    expected = set()
    for orientation in NOT_UPRIGHT:
        apart = orientations.turn_hashes(hashes, orientation)[:, None] ^ hashes
        agrees = np.any([np.bitwise_count(apart & part) == 0 for part in parts], axis=0)
        earlier = np.tri(600, k=-1, dtype=bool)
        places = np.nonzero((np.bitwise_count(apart) <= 12) & agrees & earlier)
        expected |= {(i, j, orientation) for i, j in zip(*(p.tolist() for p in places), strict=True) if i >= 250}
    index = orientations.build_index(hashes, NO_MARGINS.hashes, NO_MARGINS.of)
    found = orientations.find_turned(np.arange(250, 600), index, SETTINGS.validation.duplicate_bits, max_bits=12)
    assert {(i, j, orientation) for i, j, orientation in zip(*(p.tolist() for p in found), strict=True)} == expected
    assert len(expected) > 100


def test_turned_strangers_are_not_merged():
    found = asked([(f"film{i}", turn(film(i), i % 16)) for i in range(32)])
    assert set(found["duplicate_of"]) == {""}


def test_one_picture_in_many_margins_gives_few_pairs_each_in_any_portions(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1000, np.uint64)  # of the whole pictures: no two are alike
    inner = np.full(1000, 0x0123456789ABCDEF, np.uint64)
    index = orientations.build_index(hashes, inner, np.arange(1000))
    expected = orientations.find_turned(np.arange(1000, 2000), index, 19)
    monkeypatch.setattr(orientations, "_PAIRS_AT_A_TIME", 5000)
    i, j, orientation = orientations.find_turned(np.arange(1000, 2000), index, 19)
    assert {(*pair,) for pair in zip(i, j, orientation, strict=True)} == {
        (*pair,) for pair in zip(*expected, strict=True)
    }
    assert (orientation == 0).all() and (j < i).all() and (j >= 1000).all()
    many = np.bincount(i - 1000)
    assert many.max() == orientations.MAX_PAIRS and many[0] == 0 and many[1] == 1 and many[-1] == orientations.MAX_PAIRS
