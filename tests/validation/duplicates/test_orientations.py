import cv2
import numpy as np
import pandas as pd
import pytest
from copy_samples import CHANGES, NO_MARGINS, SETTINGS, asked, film

from cxr_ml.imaging import hashes
from cxr_ml.validation.duplicates import orientations, search

OTHER_WAYS = [way for way in range(16) if way not in orientations.UPRIGHT]


def turn(grey, way):
    """A picture, uint8, turned."""
    picture = np.ascontiguousarray(orientations.turn(grey.astype(int), way))
    return (picture + 255 if way & orientations.INVERTED else picture).astype(np.uint8)


def words(pictures):
    return search._words(pd.Series([hashes.fine_hash(p) for p in pictures]))


@pytest.mark.parametrize("way", range(16))
def test_hashes_are_turned_as_pictures_are(way):
    pictures = [cv2.resize(film(i), (256, 256)) for i in range(4)]
    hashes, others = (
        np.array([int(hashes.perceptual_hash(p), 16) for p in part], np.uint64)
        for part in (pictures, [turn(p, way) for p in pictures])
    )
    assert np.bitwise_count(orientations.turn_hashes(hashes, way) ^ others).max() <= 1
    fine = orientations.turn_fine(words(pictures), way) ^ words([turn(p, way) for p in pictures])
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
    for way, pixels in expected.items():
        assert (orientations.turn_fine(fine, way).view(np.uint8).ravel() == np.packbits(pixels)).all()


@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("change", ["half the size", "JPEG 50", "brighter", "less contrast"])
def test_a_turned_copy_is_near_also_where_it_is_changed_otherwise(way, change):
    known = [(f"known{i}", film(i)) for i in range(4)]
    found = asked([(f"copy{i}", turn(CHANGES[change](film(i)), way)) for i in range(4)], known)
    assert list(found["duplicate_of"]) == [f"known{i}" for i in range(4)]


def test_near_are_the_turned_pairs_of_which_one_part_agrees_among_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 600, np.uint64)
    for copy in range(300, 600):
        flips = np.uint64(0)
        for bit in rng.choice(64, rng.integers(0, 16), replace=False):
            flips |= np.uint64(1) << np.uint64(bit)
        hashes[copy] = orientations.turn_hashes(hashes[[copy - 300]], int(rng.integers(16)))[0] ^ flips
    wanted = rng.random(600) < 0.9
    parts = [orientations.ODD_DOWN & orientations.ODD_ACROSS, orientations.ODD_DOWN & ~orientations.ODD_ACROSS]
    parts += [~orientations.ODD_DOWN & orientations.ODD_ACROSS, ~orientations.ODD_DOWN & ~orientations.ODD_ACROSS]
    expected = set()
    for way in OTHER_WAYS:
        apart = orientations.turn_hashes(hashes, way)[:, None] ^ hashes
        agrees = np.any([np.bitwise_count(apart & part) == 0 for part in parts], axis=0)
        earlier = np.tri(600, k=-1, dtype=bool) & wanted
        places = np.nonzero((np.bitwise_count(apart) <= 12) & agrees & earlier)
        expected |= {(i, j, way) for i, j in zip(*(p.tolist() for p in places), strict=True) if i >= 250}
    index = orientations.index(hashes, wanted, NO_MARGINS.hashes, NO_MARGINS.of)
    found = orientations.near(np.arange(250, 600), index, SETTINGS.duplicate_bits, bits=12)
    assert {(i, j, way) for i, j, way in zip(*(p.tolist() for p in found), strict=True)} == expected
    assert len(expected) > 100


def test_pictures_whose_fine_hash_was_never_measured_are_no_turned_copies():
    hashes = orientations.turn_hashes(np.full(3, 0x0123456789ABCDEF, np.uint64), orientations.FLIPPED)
    hashes[0] = 0x0123456789ABCDEF
    fine = np.zeros((16, 3), np.uint64)
    fine[:, 2] = 5
    assert list(search.candidates(hashes, fine, 2, SETTINGS.duplicate_bits, NO_MARGINS)) == [(2, [(1, 0)])]


def test_turned_strangers_are_not_merged():
    found = asked([(f"film{i}", turn(film(i), i % 16)) for i in range(32)])
    assert set(found["duplicate_of"]) == {""}


def test_of_a_drop_that_is_one_picture_in_many_margins_each_names_the_likest_few_whatever_is_compared_at_a_time(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1000, np.uint64)  # of the whole pictures: no two are alike
    inner = np.full(1000, 0x0123456789ABCDEF, np.uint64)
    index = orientations.index(hashes, np.ones(1000, bool), inner, np.arange(1000))
    expected = orientations.near(np.arange(1000, 2000), index, 19)
    monkeypatch.setattr(orientations, "_HELD", 5000)
    i, j, way = orientations.near(np.arange(1000, 2000), index, 19)
    assert {(*pair,) for pair in zip(i, j, way, strict=True)} == {(*pair,) for pair in zip(*expected, strict=True)}
    assert (way == 0).all() and (j < i).all() and (j >= 1000).all()
    many = np.bincount(i - 1000)
    assert many.max() == orientations.LIKEST and many[0] == 0 and many[1] == 1 and many[-1] == orientations.LIKEST
