"""Pictures that lie on their side, stand on their head, are inverted or padded: their hashes, and what they repeat.

An orientation is a sum of MIRRORED, FLIPPED, TRANSPOSED and INVERTED: transposed first, then the others. A quarter turn
is TRANSPOSED and one of MIRRORED and FLIPPED, a half turn both of these.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIRRORED, FLIPPED, TRANSPOSED, INVERTED = 1, 2, 4, 8
ALL = MIRRORED | FLIPPED | TRANSPOSED | INVERTED
UPRIGHT = (0, MIRRORED)  # orientations in which every pair is compared: see search.find_candidates
MAX_BITS = 8  # of 64, by which the hash of a turned picture differs from its original's
MAX_BITS_SAME = 2  # between the hashes of whole pictures that are not compared without their margins, too
MAX_PAIRS = 32  # of each hash
MAX_COMPARED = 1 << 14  # hashes that a hash is compared with for each of its parts, those of whole pictures first
# Bits of a perceptual hash (see measure.perceptual_hash) that are odd horizontal (vertical) frequencies: their signs,
# and no other, change when a picture is mirrored (flipped). All change when it is inverted.
ODD_ACROSS, ODD_DOWN = np.uint64(0xAAAAAAAAAAAAAAAA), np.uint64(0xFF00FF00FF00FF00)
_PAIRS_AT_A_TIME = 1 << 18  # compared, 10 MB; a drop may be one picture all over
_HASHES_AT_A_TIME = 1 << 14  # taken to bits: 1 MiB
# Bits by which two parts of a hash differ, or one and the complement of the other; of their exclusive or.
_PART_DISTANCE = np.minimum(np.bitwise_count(np.arange(1 << 16)), np.bitwise_count(np.arange(1 << 16)[::-1]))


class Index(NamedTuple):
    """Hashes in four orders in which those of turned pictures are found; none is compared with all the others."""

    pictures: np.ndarray  # int32 [n]: the picture that each hash is of, ascending among the whole and the other ones
    whole: int  # so many hashes are of whole pictures; those after them of pictures without their margin
    hashes: np.ndarray  # uint64 [n]
    parts: np.ndarray  # uint64 [n]: the hashes, of which each part is 16 bits
    keys: list[np.ndarray]  # of each part uint16 [n], ascending: what only a transposition changes
    order: list[np.ndarray]  # of each part int32 [n]: numbers of the hashes


class TurnedPairs(NamedTuple):
    """Numbers of hashes in an Index."""

    later: np.ndarray  # int [pairs]
    earlier: np.ndarray  # int [pairs]
    orientation: np.ndarray  # int [pairs]: how to turn the later picture to be like the earlier one


class _SharedParts(NamedTuple):
    place: np.ndarray  # int [pairs]: among the hashes that were asked about
    number: np.ndarray  # int32 [pairs]: of the hash that shares a part
    differing: np.ndarray  # uint64 [pairs]: bits that differ
    distance: np.ndarray  # uint32 [pairs]: how many, but for parts that changed as a whole


def build_index(hashes: np.ndarray, inner: np.ndarray, of: np.ndarray) -> Index:
    """Returns the index of hashes.

    Args:
        hashes: uint64 [w], of whole pictures.
        inner: uint64 [k], of pictures without their margin.
        of: int [k] ascending, the pictures that `inner` are of.
    """
    every = np.append(hashes, inner)
    parts, keys, order = _split_into_parts(every), [], []
    for part_keys in _keys(parts):
        ascending = np.argsort(part_keys, kind="stable").astype(np.int32)
        keys.append(part_keys[ascending])
        order.append(ascending)
    pictures = np.append(np.arange(len(hashes)), of).astype(np.int32)
    return Index(pictures, len(hashes), every, parts, keys, order)


def find_turned(numbers: np.ndarray, index: Index, upright_bits: int, max_bits: int = MAX_BITS) -> TurnedPairs:
    """Returns pairs of a picture and an earlier one that it may show turned, or with another margin.

    Of the four parts of a hash each keeps its bits, or changes all of them, in every orientation but a transposed one.
    So a copy is found by the parts in which no bit differs otherwise, of which there has to be one: strangers share a
    part in one case of some hundreds, so few pairs are compared.

    Args:
        numbers: of hashes in the index, int [m].
        index: all hashes.
        upright_bits: by which the hashes of a pair in one of the UPRIGHT orientations may differ, for it to be found by
            comparing every pair.
        max_bits: by which the hashes of a pair differ.

    Returns:
        The pairs, at most MAX_PAIRS of each later one. Whole pictures that are alike as they are, or mirrored, are left
        out. Memory does not grow with their number.
    """
    rows = [np.zeros((4, 0), np.int64)]
    for transposed in (0, TRANSPOSED):
        parts = _split_into_parts(turn_hashes(index.hashes[numbers], transposed))
        for keys, sorted_keys, order in zip(_keys(parts), index.keys, index.order, strict=True):
            first, last = (np.searchsorted(sorted_keys, keys, side) for side in ("left", "right"))
            last = np.minimum(last, first + MAX_COMPARED)
            for portion in _portions(last - first):
                shared = _compare(parts[portion], first[portion], last[portion], order, index.parts, max_bits)
                later = numbers[portion][shared.place]
                changed = np.bitwise_count(shared.differing.view(np.uint16).reshape(-1, 4)) > 8  # all bits of a part
                odd_down, odd_across, inverted = changed[:, 1:].T
                orientation = (odd_down ^ inverted) * FLIPPED + (odd_across ^ inverted) * MIRRORED
                orientation += inverted * INVERTED + transposed
                possible = index.pictures[shared.number] < index.pictures[later]
                possible &= ~np.logical_xor.reduce(changed, axis=1)
                possible &= ~np.isin(orientation, UPRIGHT) | _differs_in_margin(
                    later, shared.number, index, min(MAX_BITS_SAME, upright_bits)
                )
                pairs = np.stack([later, shared.number, orientation, shared.distance])
                rows.append(_keep_nearest(pairs[:, possible]))
    return TurnedPairs(*_keep_nearest(np.unique(np.concatenate(rows, axis=1), axis=1))[:3])


def _portions(counts: np.ndarray) -> list[slice]:
    """Rows that have at most _PAIRS_AT_A_TIME pairs together, `counts` each; a single one may have more."""
    ends = np.arange(_PAIRS_AT_A_TIME, counts.sum() + _PAIRS_AT_A_TIME, _PAIRS_AT_A_TIME)
    ends = np.searchsorted(np.cumsum(counts), ends, "right")
    borders = np.unique(np.concatenate([[0], ends, np.minimum(ends + 1, len(counts)), [len(counts)]]))
    return [slice(begin, end) for begin, end in pairwise(borders.tolist())]


def _compare(
    mine: np.ndarray, first: np.ndarray, last: np.ndarray, order: np.ndarray, parts: np.ndarray, max_bits: int
) -> _SharedParts:
    """Pairs of hashes that are near once turned: of each of `mine`, those from place `first` to `last` of `order`."""
    counts = last - first
    places = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    numbers = order.take(places)
    differing = np.repeat(mine, counts) ^ parts.take(numbers)
    # Four bytes for a pair, summed by one multiplication.
    distance = _PART_DISTANCE.take(differing.view(np.uint16)).view(np.uint32) * np.uint32(0x01010101) >> np.uint32(24)
    kept = np.flatnonzero(distance <= max_bits)
    owners = np.repeat(np.arange(len(mine)), counts)
    return _SharedParts(owners.take(kept), numbers.take(kept), differing.take(kept), distance.take(kept))


def _differs_in_margin(later: np.ndarray, earlier: np.ndarray, index: Index, max_bits: int) -> np.ndarray:
    """Whether one lacks its margin, and the whole pictures differ: else they are compared as they are."""
    differing = index.hashes[index.pictures[later]] ^ index.hashes[index.pictures[earlier]]
    alike = (np.bitwise_count(differing) <= max_bits) | (np.bitwise_count(differing ^ ODD_ACROSS) <= max_bits)
    return ((later >= index.whole) | (earlier >= index.whole)) & ~alike


def _keep_nearest(pairs: np.ndarray) -> np.ndarray:
    """The MAX_PAIRS nearest pairs of each later hash; rows are the two hashes, the orientation, the distance."""
    pairs = pairs[:, np.lexsort((pairs[3], pairs[0]))]
    return pairs[:, np.arange(pairs.shape[1]) - np.searchsorted(pairs[0], pairs[0]) < MAX_PAIRS]


def _split_into_parts(hashes: np.ndarray) -> np.ndarray:
    """uint64 [n], four parts of 16 bits: frequencies odd down and across, odd down only, odd across only, even."""
    words = np.empty(len(hashes), np.uint64)
    for start in range(0, len(hashes), _HASHES_AT_A_TIME):
        bits = _to_bits(hashes[start : start + _HASHES_AT_A_TIME])
        parts = [bits[:, down::2, across::2].reshape(-1, 16) for down in (0, 1) for across in (0, 1)]
        packed = np.packbits(np.concatenate(parts, axis=1), axis=1)
        words[start : start + _HASHES_AT_A_TIME] = packed.view(np.uint64).ravel()
    return words


def _to_bits(hashes: np.ndarray) -> np.ndarray:
    """[n, 8, 8], a row for each vertical frequency, a column for each horizontal one."""
    return np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)


def _keys(parts: np.ndarray) -> np.ndarray:
    """uint16 [4, n]: each part, or its complement where that is less."""
    by_part = parts.view(np.uint16).reshape(-1, 4).T
    return np.minimum(by_part, ~by_part)


def turn_hashes(hashes: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the hashes, uint64 [n], of the pictures turned to that orientation."""
    if orientation & TRANSPOSED:
        bits = _to_bits(hashes).transpose(0, 2, 1)
        hashes = np.packbits(bits.reshape(-1, 64), axis=1).view(">u8")[:, 0].astype(np.uint64)
    for part, changed in ((MIRRORED, ODD_ACROSS), (FLIPPED, ODD_DOWN), (INVERTED, ~np.uint64(0))):
        hashes = hashes ^ changed if orientation & part else hashes
    return hashes


def turn_fine_hashes(fine: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the fine hashes, uint64 [n, 16] of 32×32 bits row by row, of the pictures turned to that orientation."""
    if not orientation:
        return fine
    bits: np.ndarray = np.unpackbits(fine.view(np.uint8), axis=1).reshape(-1, 32, 32)
    bits = turn_pictures(bits, orientation & ~INVERTED) ^ (1 if orientation & INVERTED else 0)
    return np.packbits(bits.reshape(len(fine), -1), axis=1).view(np.uint64)


def turn_pictures(pictures: np.ndarray, orientation: int) -> np.ndarray:
    """Returns pictures, [..., side, side], turned; where they are inverted, a grey level of 0 is the middle."""
    pictures = pictures.swapaxes(-1, -2) if orientation & TRANSPOSED else pictures
    pictures = pictures[..., ::-1, :] if orientation & FLIPPED else pictures
    pictures = pictures[..., ::-1] if orientation & MIRRORED else pictures
    return -pictures if orientation & INVERTED else pictures
