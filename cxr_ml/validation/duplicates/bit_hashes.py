"""Distances between fine hashes, 32 × 32 bits each: as they are, and with one of them changed as a crop changes it."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

MAX_FINE_BITS = 266  # of 1024, between copies, by the nearest of `crop_variants`: benchmarks/duplicates.py
_PAIRS_AT_A_TIME = 4_096  # whose crop variants are compared: 1 MiB
# Two rows of a fine hash are a word. Most strangers are told by few words, each from elsewhere, so not all are read.
# Limits are those that nearly all copies cropped by 3 % keep.
_WORDS = (4, 12, 8, 2, 6, 10, 14, 0, 1, 3, 5, 7, 9, 11, 13, 15)
_MAX_BITS_AFTER = {2: 54, 4: 104, 8: 194, 16: 360}  # words compared so far: bits that differ
_MAX_BITS_SIDEWAYS = 312  # by the nearest of the variants moved sideways only
_EDGE = 10  # pixels of 32 at each side
# By how many pixels the top, the bottom, the left and the right edge are moved: see `crop_variants`.
_MOVES = sorted(
    {
        (sign * top, -sign * bottom, sign * left, -sign * right)
        for sign in (1, -1)
        for top, bottom, left, right in product((0, 1), repeat=4)
    },
    key=lambda move: (any(move), any(move[:2]), move),
)
_LEFT, _RIGHT = np.uint32((1 << _EDGE) - 1 << 32 - _EDGE), np.uint32((1 << _EDGE) - 1)
_MIDDLE = ~(_LEFT | _RIGHT)


class Pairs(NamedTuple):
    """Pairs of a later and an earlier picture, or their places in arrays of hashes."""

    later: np.ndarray  # int [pairs]
    earlier: np.ndarray  # int [pairs]
    distance: np.ndarray  # int16 [pairs]: bits by which the fine hashes differ

    def within(self, limit: int) -> "Pairs":
        """Returns the pairs that are at most `limit` bits apart."""
        kept = np.flatnonzero(self.distance <= limit)
        return Pairs(self.later.take(kept), self.earlier.take(kept), self.distance.take(kept))


def concatenate_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Returns all pairs of the parts, of which there must be one, in one."""
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def match_crops(mine: np.ndarray, other: np.ndarray, limit: int = MAX_FINE_BITS) -> Pairs:
    """Returns the pairs of fine hashes that are at most `limit` apart, by the nearest crop variant of the first.

    Pairs that differ by far more as they are, or sideways, are sorted out before: see `prefilter`.

    Args:
        mine: uint64 [pairs, 16].
        other: uint64 [16, pairs].
        limit: bits.

    Returns:
        The places of the pairs, twice, and their distances, in order of the places.
    """
    every = np.arange(len(mine))
    pairs = prefilter(np.ascontiguousarray(mine.T), other, every, every)
    matches = [Pairs(*(column[:0] for column in pairs))]
    for start in range(0, len(pairs.later), _PAIRS_AT_A_TIME):
        places = pairs.later[start : start + _PAIRS_AT_A_TIME]
        numbers = np.arange(len(places))
        candidates = Pairs(numbers, numbers, pairs.distance[start : start + _PAIRS_AT_A_TIME])
        near = match_variants(crop_variants(mine[places]), other[:, places], candidates, limit)
        matches.append(Pairs(places[near.later], places[near.later], near.distance))
    return concatenate_pairs(matches)


def prefilter(mine: np.ndarray, other: np.ndarray, later: np.ndarray, earlier: np.ndarray) -> Pairs:
    """Returns the pairs that are within _MAX_BITS_AFTER as they are, with their distances.

    Args:
        mine: uint64 [16, n].
        other: uint64 [16, m].
        later: int [pairs], places in `mine`.
        earlier: int [pairs], places in `other`.
    """
    pairs = Pairs(later, earlier, np.zeros(len(later), np.int16))
    for number, word in enumerate(_WORDS, 1):
        distance = pairs.distance
        distance += np.bitwise_count(mine[word].take(pairs.later) ^ other[word].take(pairs.earlier))
        if number in _MAX_BITS_AFTER:
            pairs = pairs.within(_MAX_BITS_AFTER[number])
    return pairs


def match_variants(variants: np.ndarray, other: np.ndarray, pairs: Pairs, limit: int) -> Pairs:
    """Returns those of the prefiltered pairs that are at most `limit` apart by the nearest crop variant.

    Args:
        variants: uint64 [31, 16, n], from `crop_variants`.
        other: uint64 [16, m].
        pairs: as `prefilter` returned them; its distances are overwritten.
        limit: bits.
    """
    for some_variants, max_bits in ((variants[1:7], max(limit, _MAX_BITS_SIDEWAYS)), (variants[7:], limit)):
        for start in range(0, len(pairs.later), _PAIRS_AT_A_TIME):
            part = slice(start, start + _PAIRS_AT_A_TIME)
            earlier = other[:, pairs.earlier[part]]
            for variant in some_variants:
                differing = np.bitwise_count(variant[:, pairs.later[part]] ^ earlier).sum(0, dtype=np.int16)
                np.minimum(pairs.distance[part], differing, out=pairs.distance[part])
        pairs = pairs.within(max_bits)
    return pairs


def crop_variants(fine: np.ndarray) -> np.ndarray:
    """Returns fine hashes as they are, and as they would be without a crop by 3 % at some of the sides, or with one.

    Such a crop moves pixels at that side by 1 of 32 and pixels at the opposite side not at all. So the outer _EDGE
    pixels are moved by 1: inwards at some of the sides if the picture was cropped, else outwards.

    Args:
        fine: uint64 [n, 16].

    Returns:
        uint64 [31, 16, n]: the first as they are, the next 6 moved sideways only.
    """
    rows = fine.view(">u4").T.astype(np.uint32)  # [32, n], the leftmost pixel is the highest bit
    inner = np.arange(_EDGE, 32 - _EDGE)
    variants = []
    for top, bottom, left, right in _MOVES:
        first, last = np.arange(_EDGE) + top, np.arange(32 - _EDGE, 32) + bottom
        moved = rows[np.concatenate([first, inner, last]).clip(0, 31)]
        variants.append((moved & _MIDDLE) | (_shift(moved, left) & _LEFT) | (_shift(moved, right) & _RIGHT))
    by_hash = np.stack(variants).transpose(0, 2, 1).astype(">u4")  # [31, n, 32]
    return np.ascontiguousarray(np.ascontiguousarray(by_hash).view(np.uint64).transpose(0, 2, 1))


def _shift(rows: np.ndarray, by: int) -> np.ndarray:
    """Rows of 32 pixels, each pixel replaced by its neighbour, to the right for 1; the outermost stays as it is."""
    if by > 0:
        return rows << np.uint32(1) | rows & np.uint32(1)
    return rows >> np.uint32(1) | rows & np.uint32(1 << 31) if by < 0 else rows
