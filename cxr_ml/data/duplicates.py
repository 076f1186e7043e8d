"""Which images show the very picture of an earlier one: candidates by two perceptual hashes, confirmed on pixels."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise, product

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_ml.data import tables
from cxr_ml.settings import Settings

# Hashes of a mirrored picture differ in exactly the bits of odd horizontal frequency: see images.perceptual_hash.
MIRRORED = np.uint64(0xAAAAAAAAAAAAAAAA)
SIDE = 128  # px, at which two pictures are compared
RADIUS = SIDE / 16  # px, of the blur that takes out what chest films have in common: exposure and large shapes
NOISE = 2.0  # grey levels: contrast below it is not amplified
WORTH_ALIGNING = 0.35  # correlation before alignment; copies cropped by 3 % keep 0.43 or more on real films
FINE_BITS = 260  # of 1024, of the likest of `stretched`: benchmarks/duplicates.py
CONFIRMED = 16  # pictures at most that one image is compared with on pixels, the likest by its fine hash
_UNKNOWN = -1  # distance of fine hashes of which one was not measured
_BLOCK = (128, 1 << 14)  # later and earlier hashes that a thread takes at a time
_ROWS = 16  # later ones of them that are compared at a time: 3 MiB, whatever the number of images
_PACKED = pa.binary(128)
_PAIRS = 4_096  # stretched fine hashes compared at a time: 1 MiB
_HELD = 1_000_000  # pairs that a thread collects to stretch together, 18 MB; a drop may be one picture all over
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


def find(
    frame: pd.DataFrame, known: pd.DataFrame, load_grey: Callable[[str], np.ndarray], settings: Settings
) -> pd.DataFrame:
    """For each image of `frame` the earlier image that it repeats: one of `known`, or an earlier row of `frame`.

    Exact: the same sha256. Near: at most `duplicate_bits` between the hashes, mirrored or not, at most FINE_BITS
    between the fine hashes, one of them `stretched`, and a correlation of at least `duplicate_correlation` once the
    local contrast of both is evened out and one is laid over the other by an affine map. Of more than CONFIRMED such
    candidates the likest are compared on pixels, and all whose fine hash is unknown. A copy of a copy names the first
    of them.

    Args:
        frame: rows with sha256, phash and fine_hash, from `images.measure` or `packed`; other columns are not used.
            Every row is of a readable image.
        known: rows of earlier batches, likewise; a fine_hash of "" (measured before there was one) excludes nothing.
        load_grey: gives the grey picture of a sha256, uint8 [height, width]; asked for candidates only.
        settings: duplicate_bits, duplicate_correlation.

    Returns:
        On the index of `frame`: duplicate_of (a sha256, "" where it repeats nothing), duplicate_kind (exact, near, "").
    """
    shas = pd.concat([known["sha256"], frame["sha256"]], ignore_index=True)
    codes = pd.factorize(shas)[0]  # they count the images in order of their first row
    again = np.append(-1, np.maximum.accumulate(codes)[:-1]) >= codes if len(codes) else np.zeros(0, bool)
    first = np.flatnonzero(~again)
    old = int(np.searchsorted(first, len(known)))
    hashes = _numbers(pd.concat([known["phash"], frame["phash"]], ignore_index=True))[first]
    fine = _words(pd.concat([known["fine_hash"], frame["fine_hash"]], ignore_index=True), ~again)
    fine = np.ascontiguousarray(fine.T)
    tables.give_back()  # before pictures are decoded

    @lru_cache(maxsize=256)  # 64 KiB each
    def picture(image: int) -> np.ndarray:
        return normalise(load_grey(shas.iat[first[image]]))

    original = np.full(len(first), -1)
    for later, likest in candidates(hashes, fine, old, settings.duplicate_bits):
        for earlier, mirrored in likest:
            copy = picture(later)[:, ::-1] if mirrored else picture(later)
            if likeness(picture(earlier), copy, settings.duplicate_correlation) >= settings.duplicate_correlation:
                original[later] = earlier if original[earlier] < 0 else original[earlier]
                break

    mine, again = codes[len(known) :], again[len(known) :]
    near = original[mine] >= 0
    repeated = np.where(near, original[mine], np.where(again, mine, -1))
    of = np.full(len(frame), "", object)
    hit = np.flatnonzero(repeated >= 0)
    of[hit] = shas.iloc[first[repeated[hit]]]
    kind = np.where(near, "near", np.where(again, "exact", ""))
    found = {"duplicate_of": of, "duplicate_kind": kind}
    return pd.DataFrame(found, index=frame.index, dtype="string")


def packed(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with its hashes in half the memory: phash a number, fine_hash 128 bytes; zeros where there is none."""
    words = _words(frame["fine_hash"]) if "fine_hash" in frame else np.zeros((len(frame), 16), np.uint64)
    array = pa.FixedSizeBinaryArray.from_buffers(_PACKED, len(words), [None, pa.py_buffer(words)])
    return frame.assign(phash=_numbers(frame["phash"]), fine_hash=pd.array(array, dtype=pd.ArrowDtype(_PACKED)))


def candidates(
    hashes: np.ndarray, fine: np.ndarray, old: int, bits: int
) -> Iterator[tuple[int, list[tuple[int, bool]]]]:
    """The earlier pictures that each picture may repeat, those within both radii, the likest first.

    Args:
        hashes: uint64 [n], in order of time.
        fine: uint64 [16, n], of each 32×32 bits row by row; zeros are unknown.
        old: only pictures from this number on are asked about.
        bits: largest distance of `hashes`.

    Yields:
        (later, [(earlier, mirrored), …]), `later` ascending; CONFIRMED at most of each, and those whose
        fine hash is unknown. Memory does not grow with n.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A few blocks ahead, so that results do not pile up while a caller waits for pictures.
        ahead = 4 * (os.cpu_count() or 1) * _BLOCK[0]
        for begin in range(old, len(hashes), ahead):
            tops = range(begin, min(begin + ahead, len(hashes)), _BLOCK[0])
            for found in pool.map(lambda top: _block(hashes, fine, top, bits), tops):
                yield from found


def _block(hashes: np.ndarray, words: np.ndarray, top: int, bits: int) -> list[tuple[int, list[tuple[int, bool]]]]:
    rows, columns = _BLOCK
    shift = columns.bit_length() - 1
    later = hashes[top : top + rows]
    mine = np.ascontiguousarray(words[:, top : top + rows].T)
    ways = ((False, stretched(mine)), (True, stretched(mirror(mine))))
    likest = tuple(np.zeros(0, kind) for kind in (np.intp, np.intp, np.int16, bool))
    left_over: dict[bool, list[tuple[np.ndarray, ...]]] = {False: [], True: []}
    # Written over and over: fresh memory for each comparison would keep threads waiting for one another.
    differing = np.empty((_ROWS, columns), np.uint64)
    counted = np.full((3, _ROWS, columns), 255, np.uint8)
    for left in range(0, top + len(later), columns):
        other = words[:, left : left + columns]
        near: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for row in range(0, len(later), _ROWS):
            _count(later[row : row + _ROWS], hashes[left : left + columns], differing, counted)
            either = np.flatnonzero(counted[2] <= bits)
            for mirrored in near:
                near[mirrored].append(either[counted[int(mirrored)].take(either) <= bits] + (row << shift))
        for mirrored, turned in ways:
            places = np.concatenate(near[mirrored])
            i, j, apart = _sieved(turned[0], other, places >> shift, places & columns - 1)
            left_over[mirrored].append((i, j + left, apart))
        # Few pairs of each part are left: stretched together, they take fewer calls.
        held = sum(len(i) for parts in left_over.values() for i, _, _ in parts)
        if held < _HELD and left + columns < top + len(later):
            continue
        for mirrored, turned in ways:
            i, j, apart = map(np.concatenate, zip(*left_over[mirrored], strict=True))
            left_over[mirrored] = []
            earlier = np.flatnonzero(j < i + top)
            found = _stretched_apart(turned, words, i[earlier], j[earlier], apart[earlier], FINE_BITS)
            found = (*found, np.full(len(found[0]), mirrored))
            likest = _likest(*map(np.concatenate, zip(likest, found, strict=True)))
    i, j, _, mirrored = likest
    pairs = list(zip(j.tolist(), mirrored.tolist(), strict=True))
    starts = np.flatnonzero(np.diff(i, prepend=-1)).tolist()
    return [(top + int(i[start]), pairs[start:end]) for start, end in pairwise([*starts, len(i)])]


def _count(later: np.ndarray, earlier: np.ndarray, differing: np.ndarray, counted: np.ndarray) -> None:
    """Bits by which hashes differ, into `counted`: as they are, mirrored, and the fewer of both."""
    rows, columns = np.s_[: len(later)], np.s_[: len(earlier)]
    counted[2] = 255
    apart, part = differing[rows, columns], counted[:, rows, columns]
    np.bitwise_xor(later[:, None], earlier, out=apart)
    np.bitwise_count(apart, out=part[0])
    np.bitwise_xor(apart, MIRRORED, out=apart)
    np.bitwise_count(apart, out=part[1])
    np.minimum(part[0], part[1], out=part[2])


def alike(
    turned: np.ndarray, other: np.ndarray, i: np.ndarray, j: np.ndarray, limit: int = FINE_BITS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs (i, j) of fine hashes those at most `limit` apart, of the likest way to stretch one of them.

    Pairs that differ by far more as they are, and sideways, are not stretched: see _SIEVE.

    Args:
        turned: uint64 [31, 16, rows], from `stretched`.
        other: uint64 [16, columns].
        i, j: int [pairs], places in `turned` and in `other`.

    Returns:
        i, j and the distance, _UNKNOWN where one of the hashes is, in no particular order.
    """
    return _stretched_apart(turned, other, *_sieved(turned[0], other, i, j), limit)


def _sieved(mine: np.ndarray, other: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, ...]:
    """i, j and distance of the pairs that pass _SIEVE as they are, and _UNKNOWN of those with an unknown hash."""
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
    return np.append(i, blank[0]), np.append(j, blank[1]), np.append(apart, np.full(len(unknown), _UNKNOWN, np.int16))


def _stretched_apart(
    turned: np.ndarray, other: np.ndarray, i: np.ndarray, j: np.ndarray, apart: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of `_sieved` that are at most `limit` apart the likest way."""
    for ways, most in ((turned[1:7], max(limit, _SIDEWAYS)), (turned[7:], limit)):
        for start in range(0, len(i), _PAIRS):
            part = slice(start, start + _PAIRS)
            theirs = other[:, j[part]]
            for way in ways:
                differing = np.bitwise_count(way[:, i[part]] ^ theirs).sum(0, dtype=np.int16)
                np.minimum(apart[part], differing, out=apart[part])  # _UNKNOWN stays, it is the least
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


def _likest(i: np.ndarray, j: np.ndarray, apart: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, ...]:
    """The CONFIRMED pairs least apart of each i, in this order, and then those whose distance is unknown."""
    order = np.lexsort((mirrored, j, apart.view(np.uint16), i))  # _UNKNOWN becomes the largest
    i, j, apart, mirrored = i[order], j[order], apart[order], mirrored[order]
    kept = (np.arange(len(i)) - np.searchsorted(i, i) < CONFIRMED) | (apart == _UNKNOWN)
    return i[kept], j[kept], apart[kept], mirrored[kept]


def _numbers(hashes: pd.Series) -> np.ndarray:
    """Hashes, 16 hex digits or `packed`, as uint64; 0 where there is none."""
    return np.fromiter((int(h or "0", 16) if isinstance(h, str) else h for h in hashes), np.uint64, len(hashes))


def _words(fine_hashes: pd.Series, kept: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Fine hashes, 256 hex digits or `packed`, as uint64 [n, 16], only those `kept`; zeros where there is none."""
    places = np.arange(len(fine_hashes))[kept]
    words = np.zeros((len(places), 16), np.uint64)
    for start in range(0, len(fine_hashes), _BLOCK[1]):
        first, last = np.searchsorted(places, (start, start + _BLOCK[1]))
        part = fine_hashes.iloc[start : start + _BLOCK[1]]
        data = b"".join(bytes.fromhex(h or "0" * 256) if isinstance(h, str) else h for h in part)
        words[first:last] = np.frombuffer(data, np.uint64).reshape(-1, 16)[places[first:last] - start]
    return words


def mirror(fine: np.ndarray) -> np.ndarray:
    """The fine hashes of the mirrored pictures: each of the 32 rows of 32 bits in reverse order."""
    rows = np.packbits(np.arange(256, dtype=np.uint8)[:, None] >> np.arange(8, dtype=np.uint8) & 1, axis=1)[:, 0]
    reverse = rows[fine.view(np.uint8).reshape(-1, 32, 4)[:, :, ::-1]]
    return np.ascontiguousarray(reverse).reshape(-1, 128).view(np.uint64)


def normalise(grey: np.ndarray) -> np.ndarray:
    """The picture at SIDE × SIDE with its local mean taken out and its local contrast evened out, float32."""
    way = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    picture = cv2.resize(grey, (SIDE, SIDE), interpolation=way).astype(np.float32)
    picture -= cv2.GaussianBlur(picture, (0, 0), RADIUS)
    return picture / (np.sqrt(cv2.GaussianBlur(picture * picture, (0, 0), RADIUS)) + NOISE)


def likeness(one: np.ndarray, other: np.ndarray, enough: float) -> float:
    """Correlation of two normalised pictures, after an affine alignment (ECC) where it is below `enough` before.

    Pictures below WORTH_ALIGNING are not aligned, nor are those on which ECC does not converge.
    Evangelidis and Psarakis, Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization, 2008.
    """
    product = float(np.linalg.norm(one) * np.linalg.norm(other))
    before = float((one * other).sum()) / product if product else 0.0
    if before >= enough or before < WORTH_ALIGNING:
        return before
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    try:
        after, _ = cv2.findTransformECC(
            one, np.ascontiguousarray(other), np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop, None, 5
        )
    except cv2.error:  # it does not converge on pictures that have nothing in common
        return before
    return max(before, after)
