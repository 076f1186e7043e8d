"""Fine hashes of pictures, compared as what they are, 32 × 32 bits: as they are, and stretched as a crop does it."""

from itertools import product

import numpy as np

FINE_BITS = 266  # of 1024, of the likest of `stretched`: benchmarks/duplicates.py
UNKNOWN = -1  # distance of fine hashes of which one was not measured
_PAIRS = 4_096  # stretched fine hashes compared at a time: 1 MiB
# Two rows of a fine hash are a word. Most strangers are told by few words, each from elsewhere, so not all are read.
# Limits are those that nearly all copies cropped by 3 % keep.
_WORDS = (4, 12, 8, 2, 6, 10, 14, 0, 1, 3, 5, 7, 9, 11, 13, 15)
_SIEVE = {2: 54, 4: 104, 8: 194, 16: 360}  # words compared so far: bits at most
_SIDEWAYS = 312  # bits at most, of the likest that is moved sideways only
_EDGE = 10  # pixels of 32 at each side
# How far the top, the bottom, the left and the right edge are moved: see `stretched`.
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


def near(mine: np.ndarray, other: np.ndarray, limit: int = FINE_BITS) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of fine hashes that are at most `limit` apart, the likest way to stretch the first.

    Pairs that differ by far more as they are, and sideways, are not stretched: see _SIEVE.

    Args:
        mine: uint64 [pairs, 16].
        other: uint64 [16, pairs].

    Returns:
        Places of the pairs, and distances, UNKNOWN where one of the hashes is; in no particular order.
    """
    every = np.arange(len(mine))
    places, _, apart = sieved(np.ascontiguousarray(mine.T), other, every, every)
    found = [(places[:0], apart[:0])]
    for start in range(0, len(places), _PAIRS):
        some = slice(start, start + _PAIRS)
        own = np.arange(len(places[some]))
        ways, theirs = stretched(mine[places[some]]), other[:, places[some]]
        kept, _, distances = stretched_apart(ways, theirs, own, own, apart[some], limit)
        found.append((places[some][kept], distances))
    places, apart = map(np.concatenate, zip(*found, strict=True))
    return places, apart


def sieved(mine: np.ndarray, other: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, ...]:
    """i, j and distance of the pairs that pass _SIEVE as they are, and UNKNOWN of those with an unknown hash."""
    # A single word tells nearly all of them; the others are looked at in full.
    known = (mine[0].take(i) != 0) & (other[0].take(j) != 0)
    doubtful = np.flatnonzero(~known)
    known[doubtful] = mine[:, i[doubtful]].any(0) & other[:, j[doubtful]].any(0)
    unknown = np.flatnonzero(~known)
    blank = i[unknown], j[unknown]
    if len(unknown):
        i, j = i[known], j[known]
    apart = np.zeros(len(i), np.int16)
    for number, word in enumerate(_WORDS, 1):
        apart += np.bitwise_count(mine[word].take(i) ^ other[word].take(j))
        if number in _SIEVE:
            i, j, apart = _within(_SIEVE[number], i, j, apart)
    return np.append(i, blank[0]), np.append(j, blank[1]), np.append(apart, np.full(len(unknown), UNKNOWN, np.int16))


def stretched_apart(
    turned: np.ndarray, other: np.ndarray, i: np.ndarray, j: np.ndarray, apart: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of `sieved` that are at most `limit` apart the likest way."""
    for ways, most in ((turned[1:7], max(limit, _SIDEWAYS)), (turned[7:], limit)):
        for start in range(0, len(i), _PAIRS):
            part = slice(start, start + _PAIRS)
            theirs = other[:, j[part]]
            for way in ways:
                differing = np.bitwise_count(way[:, i[part]] ^ theirs).sum(0, dtype=np.int16)
                np.minimum(apart[part], differing, out=apart[part])  # UNKNOWN stays, it is the least
        i, j, apart = _within(most, i, j, apart)
    return i, j, apart


def _within(limit: int, i: np.ndarray, j: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, ...]:
    kept = np.flatnonzero(apart <= limit)
    return i.take(kept), j.take(kept), apart.take(kept)


def stretched(fine: np.ndarray) -> np.ndarray:
    """The fine hashes as they are, and as they would be without a crop by 3 % at some of the sides, or with one.

    Such a crop moves what is at that side by 1 of 32 pixels and what is at the opposite side not at all. So the
    outer _EDGE pixels are moved by 1: inwards at some of the sides if the picture was cropped, else outwards.

    Args:
        fine: uint64 [n, 16].

    Returns:
        uint64 [31, 16, n]: the first as they are, the next 6 moved sideways only.
    """
    rows = fine.view(">u4").T.astype(np.uint32)  # [32, n], the leftmost pixel is the highest bit
    inner = np.arange(_EDGE, 32 - _EDGE)
    result = []
    for top, bottom, left, right in _MOVES:
        first, last = np.arange(_EDGE) + top, np.arange(32 - _EDGE, 32) + bottom
        moved = rows[np.concatenate([first, inner, last]).clip(0, 31)]
        result.append((moved & _MIDDLE) | (_moved(moved, left) & _LEFT) | (_moved(moved, right) & _RIGHT))
    turned = np.stack(result).transpose(0, 2, 1).astype(">u4")  # [31, n, 32]
    return np.ascontiguousarray(np.ascontiguousarray(turned).view(np.uint64).transpose(0, 2, 1))


def _moved(rows: np.ndarray, by: int) -> np.ndarray:
    """Rows of 32 pixels, each pixel replaced by its neighbour, to the right for 1; the outermost stays as it is."""
    if by > 0:
        return rows << np.uint32(1) | rows & np.uint32(1)
    return rows >> np.uint32(1) | rows & np.uint32(1 << 31) if by < 0 else rows
