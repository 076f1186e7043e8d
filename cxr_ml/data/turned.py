"""Pictures that lie on their side, stand on their head or are inverted: how their hashes, pictures and pairs are told.

A way to turn a picture is a sum of MIRRORED, FLIPPED, TRANSPOSED and INVERTED: transposed first, then the others. A
quarter turn is TRANSPOSED and one of MIRRORED and FLIPPED, a half turn both of these.
"""

from typing import NamedTuple

import numpy as np

MIRRORED, FLIPPED, TRANSPOSED, INVERTED = 1, 2, 4, 8
UPRIGHT = (0, MIRRORED)  # ways in which every pair is compared: see duplicates.candidates
BITS = 8  # of 64, at most, by which the hash of a turned picture differs from its original's
# Bits of a perceptual hash (see images.perceptual_hash) that are odd horizontal (vertical) frequencies: their signs,
# and no other, change when a picture is mirrored (flipped). All change when it is inverted.
ODD_ACROSS, ODD_DOWN = np.uint64(0xAAAAAAAAAAAAAAAA), np.uint64(0xFF00FF00FF00FF00)
# Bits by which two parts of a hash differ, or one and the complement of the other; of their exclusive or.
_TURNED_APART = np.minimum(np.bitwise_count(np.arange(1 << 16)), np.bitwise_count(np.arange(1 << 16)[::-1]))


class Index(NamedTuple):
    """Hashes in four orders in which those of turned pictures are found; none is compared with all the others."""

    keys: np.ndarray  # uint16 [4, n], ascending: what no turn changes of a part, but a transposition
    order: np.ndarray  # int [4, n]: numbers of the pictures
    parts: np.ndarray  # uint64 [4, n]: their hashes, of which each part is 16 bits


def index(hashes: np.ndarray, wanted: np.ndarray) -> Index:
    """Index of `hashes`, uint64 [n], of which those `wanted`, bool [n], are to be found."""
    numbers = np.flatnonzero(wanted)
    parts = _parts(hashes[numbers])
    keys = _keys(parts)
    order = np.argsort(keys, axis=1, kind="stable")
    return Index(np.take_along_axis(keys, order, axis=1), numbers[order], parts[order])


def near(hashes: np.ndarray, top: int, known: Index, bits: int = BITS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a picture and an earlier one that it may show turned, in another way than those of UPRIGHT.

    Of the four parts of a hash each keeps its bits, or changes all of them, whatever the way to turn the picture but
    for a transposition. So a copy is found by those parts in which no bit differs otherwise, of which there has to be
    one: strangers share a part in one case of some hundreds, so few pairs are compared.

    Args:
        hashes: uint64 [m], those of the pictures with the numbers top to top + m - 1.
        known: index of all.
        bits: by which the hashes of a pair differ, at most.

    Returns:
        i (from 0 to m - 1), j (number of the earlier picture) and the way to turn the picture i to be like j.
    """
    pairs = []
    for transposed in (0, TRANSPOSED):
        mine = _parts(hashes, bool(transposed))
        for keys, *columns in zip(_keys(mine), *known, strict=True):
            i, j, differing = _sharing(mine, keys, columns, bits)
            changed = np.bitwise_count(differing.view(np.uint16).reshape(-1, 4)) > 8  # all bits of a part
            possible = np.flatnonzero((j < i + top) & ~np.logical_xor.reduce(changed, axis=1))
            i, j, (odd_down, odd_across, inverted) = i[possible], j[possible], changed[possible, 1:].T
            way = (odd_down ^ inverted) * FLIPPED + (odd_across ^ inverted) * MIRRORED
            pairs.append(np.stack([i, j, way + inverted * INVERTED + transposed]))
    found = np.concatenate(pairs, axis=1)
    i, j, way = np.unique(found[:, ~np.isin(found[2], UPRIGHT)], axis=1)
    return i, j, way


def _sharing(
    mine: np.ndarray, keys: np.ndarray, known: list[np.ndarray], bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and differing bits of the pairs that have a key in common and are near once turned.

    Args:
        mine, keys: hashes and their keys, [m].
        known: keys in ascending order, numbers and hashes, [n].
    """
    first, last = (np.searchsorted(known[0], keys, side) for side in ("left", "right"))
    many = last - first
    places = np.arange(many.sum()) + np.repeat(first - (np.cumsum(many) - many), many)
    differing = np.repeat(mine, many) ^ known[2].take(places)
    # Four bytes for a pair, summed by one multiplication.
    apart = _TURNED_APART.take(differing.view(np.uint16)).view(np.uint32) * np.uint32(0x01010101) >> np.uint32(24)
    kept = np.flatnonzero(apart <= bits)
    return np.repeat(np.arange(len(keys)), many).take(kept), known[1].take(places.take(kept)), differing.take(kept)


def _parts(hashes: np.ndarray, transposed: bool = False) -> np.ndarray:
    """uint64 [n], four parts of 16 bits: frequencies odd down and across, odd down only, odd across only, even."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)
    if transposed:
        bits = bits.transpose(0, 2, 1)
    parts = [bits[:, down::2, across::2].reshape(-1, 16) for down in (0, 1) for across in (0, 1)]
    return np.packbits(np.concatenate(parts, axis=1), axis=1).view(np.uint64).ravel()


def _keys(parts: np.ndarray) -> np.ndarray:
    """uint16 [4, n]: each part, or its complement where that is less."""
    each = parts.view(np.uint16).reshape(-1, 4).T
    return np.minimum(each, ~each)


def turn_hashes(hashes: np.ndarray, way: int) -> np.ndarray:
    """What the hashes of pictures, uint64 [n], are once the pictures are turned."""
    if way & TRANSPOSED:
        bits = np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8).transpose(0, 2, 1)
        hashes = np.packbits(bits.reshape(-1, 64), axis=1).view(">u8")[:, 0].astype(np.uint64)
    for turn, changed in ((MIRRORED, ODD_ACROSS), (FLIPPED, ODD_DOWN), (INVERTED, ~np.uint64(0))):
        hashes = hashes ^ changed if way & turn else hashes
    return hashes


def turn_fine(fine: np.ndarray, way: int) -> np.ndarray:
    """What the fine hashes of pictures, uint64 [n, 16] of 32×32 bits row by row, are once the pictures are turned."""
    bits = np.unpackbits(fine.view(np.uint8), axis=1).reshape(-1, 32, 32)
    bits = turn(bits, way & ~INVERTED) ^ (1 if way & INVERTED else 0)
    return np.packbits(bits.reshape(len(fine), -1), axis=1).view(np.uint64)


def turn(pictures: np.ndarray, way: int) -> np.ndarray:
    """Pictures, [..., side, side], turned; where they are inverted, grey of 0 is the middle."""
    pictures = pictures.swapaxes(-1, -2) if way & TRANSPOSED else pictures
    pictures = pictures[..., ::-1, :] if way & FLIPPED else pictures
    pictures = pictures[..., ::-1] if way & MIRRORED else pictures
    return -pictures if way & INVERTED else pictures
