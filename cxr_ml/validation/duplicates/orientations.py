"""Pictures that lie on their side, stand on their head, are inverted or padded: their hashes, and what they repeat.

A way to turn a picture is a sum of MIRRORED, FLIPPED, TRANSPOSED and INVERTED: transposed first, then the others. A
quarter turn is TRANSPOSED and one of MIRRORED and FLIPPED, a half turn both of these.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIRRORED, FLIPPED, TRANSPOSED, INVERTED = 1, 2, 4, 8
ANY = 15  # all of them
UPRIGHT = (0, MIRRORED)  # ways in which every pair is compared: see search.candidates
SAME = 2  # bits, at most, between the hashes of whole pictures that are not looked at inside their margins, too
LIKEST = 32  # pairs of each hash, at most
MOST = 1 << 14  # hashes that a hash is compared with for each of its parts, at most: those of whole pictures first
BITS = 8  # of 64, at most, by which the hash of a turned picture differs from its original's
# Bits of a perceptual hash (see measure.perceptual_hash) that are odd horizontal (vertical) frequencies: their signs,
# and no other, change when a picture is mirrored (flipped). All change when it is inverted.
ODD_ACROSS, ODD_DOWN = np.uint64(0xAAAAAAAAAAAAAAAA), np.uint64(0xFF00FF00FF00FF00)
_HELD = 1 << 18  # pairs compared at a time, 10 MB; a drop may be one picture all over
_SOME = 1 << 14  # hashes taken to bits at a time: 1 MiB
# Bits by which two parts of a hash differ, or one and the complement of the other; of their exclusive or.
_TURNED_APART = np.minimum(np.bitwise_count(np.arange(1 << 16)), np.bitwise_count(np.arange(1 << 16)[::-1]))


class Index(NamedTuple):
    """Hashes in four orders in which those of turned pictures are found; none is compared with all the others."""

    pictures: np.ndarray  # int32 [n]: the picture that each hash is of, ascending among the whole and the other ones
    whole: int  # so many hashes are of whole pictures; those after them of pictures without their margin
    hashes: np.ndarray  # uint64 [n]
    parts: np.ndarray  # uint64 [n]: the hashes, of which each part is 16 bits
    keys: list[np.ndarray]  # of each part uint16 [m], ascending: what no turn changes but a transposition
    order: list[np.ndarray]  # of each part int32 [m]: numbers of the hashes


def index(hashes: np.ndarray, known: np.ndarray, inner: np.ndarray, of: np.ndarray) -> Index:
    """Index of hashes.

    Args:
        hashes: uint64 [w], of whole pictures; those not `known`, bool [w], are never found.
        inner: uint64 [k], of pictures without their margin, and the pictures `of`, int [k] ascending, that they are of.
    """
    every = np.append(hashes, inner)
    numbers = np.append(np.flatnonzero(known), np.arange(len(hashes), len(every))).astype(np.int32)
    parts, keys, order = _parts(every), [], []
    for each in _keys(parts[numbers]):
        ascending = np.argsort(each, kind="stable")
        keys.append(each[ascending])
        order.append(numbers[ascending])
    pictures = np.append(np.arange(len(hashes)), of).astype(np.int32)
    return Index(pictures, len(hashes), every, parts, keys, order)


def near(mine: np.ndarray, known: Index, upright: int, bits: int = BITS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a picture and an earlier one that it may show turned, or with another margin.

    Of the four parts of a hash each keeps its bits, or changes all of them, whatever the way to turn the picture but
    for a transposition. So a copy is found by those parts in which no bit differs otherwise, of which there has to be
    one: strangers share a part in one case of some hundreds, so few pairs are compared.

    Args:
        mine: numbers of hashes, int [m].
        known: index of all.
        upright: bits by which the hashes of a pair in one of the ways UPRIGHT may differ, for it to be found as it is.
        bits: by which the hashes of a pair differ, at most.

    Returns:
        Numbers of two hashes, the second one of an earlier picture, and the way to turn the first to be like it.
        Whole pictures that are alike as they are, or mirrored, are left out. Of each of the first the LIKEST at
        most. Memory does not grow with their number.
    """
    pairs = [np.zeros((4, 0), np.int64)]
    for transposed in (0, TRANSPOSED):
        parts = _parts(turn_hashes(known.hashes[mine], transposed))
        for keys, theirs, order in zip(_keys(parts), known.keys, known.order, strict=True):
            first, last = (np.searchsorted(theirs, keys, side) for side in ("left", "right"))
            last = np.minimum(last, first + MOST)
            for rows in _portions(last - first):
                i, j, differing, apart = _sharing(parts[rows], first[rows], last[rows], order, known.parts, bits)
                i = mine[rows][i]
                changed = np.bitwise_count(differing.view(np.uint16).reshape(-1, 4)) > 8  # all bits of a part
                odd_down, odd_across, inverted = changed[:, 1:].T
                way = (odd_down ^ inverted) * FLIPPED + (odd_across ^ inverted) * MIRRORED
                way += inverted * INVERTED + transposed
                possible = (known.pictures[j] < known.pictures[i]) & ~np.logical_xor.reduce(changed, axis=1)
                possible &= ~np.isin(way, UPRIGHT) | _is_news(i, j, known, min(SAME, upright))
                pairs.append(_likest(np.stack([i, j, way, apart])[:, possible]))
    i, j, way, _ = _likest(np.unique(np.concatenate(pairs, axis=1), axis=1))
    return i, j, way


def _portions(many: np.ndarray) -> list[slice]:
    """Rows that have at most _HELD pairs together, `many` each; a single one may have more."""
    ends = np.searchsorted(np.cumsum(many), np.arange(_HELD, many.sum() + _HELD, _HELD), "right")
    borders = np.unique(np.concatenate([[0], ends, np.minimum(ends + 1, len(many)), [len(many)]]))
    return [slice(begin, end) for begin, end in pairwise(borders.tolist())]


def _sharing(
    mine: np.ndarray, first: np.ndarray, last: np.ndarray, order: np.ndarray, parts: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of hashes near once turned, of each of `mine` and those from place `first` to `last` of `order`.

    Returns:
        Place in `mine`, number in `order`, differing bits, number of them but for parts that changed as a whole.
    """
    many = last - first
    places = np.arange(many.sum()) + np.repeat(first - (np.cumsum(many) - many), many)
    numbers = order.take(places)
    differing = np.repeat(mine, many) ^ parts.take(numbers)
    # Four bytes for a pair, summed by one multiplication.
    apart = _TURNED_APART.take(differing.view(np.uint16)).view(np.uint32) * np.uint32(0x01010101) >> np.uint32(24)
    kept = np.flatnonzero(apart <= bits)
    i = np.repeat(np.arange(len(mine)), many)
    return i.take(kept), numbers.take(kept), differing.take(kept), apart.take(kept)


def _is_news(i: np.ndarray, j: np.ndarray, known: Index, same: int) -> np.ndarray:
    """Whether one lacks its margin, and the whole pictures differ: else they are compared as they are."""
    differing = known.hashes[known.pictures[i]] ^ known.hashes[known.pictures[j]]
    alike = (np.bitwise_count(differing) <= same) | (np.bitwise_count(differing ^ ODD_ACROSS) <= same)
    return ((i >= known.whole) | (j >= known.whole)) & ~alike


def _likest(found: np.ndarray) -> np.ndarray:
    """Of each first hash the LIKEST pairs that are least apart; rows are the two hashes, the way, bits apart."""
    found = found[:, np.lexsort((found[3], found[0]))]
    return found[:, np.arange(found.shape[1]) - np.searchsorted(found[0], found[0]) < LIKEST]


def _parts(hashes: np.ndarray) -> np.ndarray:
    """uint64 [n], four parts of 16 bits: frequencies odd down and across, odd down only, odd across only, even."""
    found = np.empty(len(hashes), np.uint64)
    for start in range(0, len(hashes), _SOME):
        bits = _bits(hashes[start : start + _SOME])
        parts = [bits[:, down::2, across::2].reshape(-1, 16) for down in (0, 1) for across in (0, 1)]
        found[start : start + _SOME] = np.packbits(np.concatenate(parts, axis=1), axis=1).view(np.uint64).ravel()
    return found


def _bits(hashes: np.ndarray) -> np.ndarray:
    """[n, 8, 8], a row for each vertical frequency, a column for each horizontal one."""
    return np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)


def _keys(parts: np.ndarray) -> np.ndarray:
    """uint16 [4, n]: each part, or its complement where that is less."""
    each = parts.view(np.uint16).reshape(-1, 4).T
    return np.minimum(each, ~each)


def turn_hashes(hashes: np.ndarray, way: int) -> np.ndarray:
    """What the hashes of pictures, uint64 [n], are once the pictures are turned."""
    if way & TRANSPOSED:
        bits = _bits(hashes).transpose(0, 2, 1)
        hashes = np.packbits(bits.reshape(-1, 64), axis=1).view(">u8")[:, 0].astype(np.uint64)
    for turn, changed in ((MIRRORED, ODD_ACROSS), (FLIPPED, ODD_DOWN), (INVERTED, ~np.uint64(0))):
        hashes = hashes ^ changed if way & turn else hashes
    return hashes


def turn_fine(fine: np.ndarray, way: int) -> np.ndarray:
    """What the fine hashes of pictures, uint64 [n, 16] of 32×32 bits row by row, are once the pictures are turned."""
    if not way:
        return fine
    bits = np.unpackbits(fine.view(np.uint8), axis=1).reshape(-1, 32, 32)
    bits = turn(bits, way & ~INVERTED) ^ (1 if way & INVERTED else 0)
    return np.packbits(bits.reshape(len(fine), -1), axis=1).view(np.uint64)


def turn(pictures: np.ndarray, way: int) -> np.ndarray:
    """Pictures, [..., side, side], turned; where they are inverted, grey of 0 is the middle."""
    pictures = pictures.swapaxes(-1, -2) if way & TRANSPOSED else pictures
    pictures = pictures[..., ::-1, :] if way & FLIPPED else pictures
    pictures = pictures[..., ::-1] if way & MIRRORED else pictures
    return -pictures if way & INVERTED else pictures
