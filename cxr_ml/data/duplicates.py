"""Which images show the very picture of an earlier one: candidates by two perceptual hashes, confirmed on pixels."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_ml.data import tables, turned
from cxr_ml.data.fine_hashes import FINE_BITS, UNKNOWN, alike, sieved, stretched, stretched_apart
from cxr_ml.settings import Settings

SIDE = 128  # px, at which two pictures are compared
RADIUS = SIDE / 16  # px, of the blur that takes out what chest films have in common: exposure and large shapes
NOISE = 2.0  # grey levels: contrast below it is not amplified
WORTH_ALIGNING = 0.35  # correlation before alignment; copies cropped by 3 % keep 0.43 or more on real films
CONFIRMED = 16  # pictures at most that one image is compared with on pixels, the likest by its fine hash
_BLOCK = (128, 1 << 14)  # later and earlier hashes that a thread takes at a time
_ROWS = 16  # later ones of them that are compared at a time: 3 MiB, whatever the number of images
_PACKED = pa.binary(128)
_KINDS = (np.intp, np.intp, np.int16, np.int64)  # of places, of a distance of fine hashes, of a way to turn
_HELD = 1_000_000  # pairs that a thread collects to stretch together, 18 MB; a drop may be one picture all over


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
        for earlier, way in likest:
            copy = turned.turn(picture(later), way)
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
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The earlier pictures that each picture may repeat, those within both radii, the likest first.

    Every pair is compared as it is and mirrored. Pictures turned or inverted are found by `turned.near`.

    Args:
        hashes: uint64 [n], in order of time.
        fine: uint64 [16, n], of each 32×32 bits row by row; zeros are unknown.
        old: only pictures from this number on are asked about.
        bits: largest distance of `hashes`.

    Yields:
        (later, [(earlier, way to turn the later one), …]), `later` ascending; CONFIRMED at most of each, and those
        whose fine hash is unknown. Memory does not grow with n.
    """
    index = turned.index(hashes, fine.any(0))

    def block(top: int) -> list[tuple[int, list[tuple[int, int]]]]:
        upright = _upright(hashes, fine, top, bits)
        likest = _likest(*map(np.concatenate, zip(upright, _turned(hashes, fine, top, index), strict=True)))
        return _by_picture(top, *likest)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A few blocks ahead, so that results do not pile up while a caller waits for pictures.
        ahead = 4 * (os.cpu_count() or 1) * _BLOCK[0]
        for begin in range(old, len(hashes), ahead):
            for found in pool.map(block, range(begin, min(begin + ahead, len(hashes)), _BLOCK[0])):
                yield from found


def _by_picture(
    top: int, i: np.ndarray, j: np.ndarray, apart: np.ndarray, way: np.ndarray
) -> list[tuple[int, list[tuple[int, int]]]]:
    pairs = list(zip(j.tolist(), way.tolist(), strict=True))
    starts = np.flatnonzero(np.diff(i, prepend=-1)).tolist()
    return [(top + int(i[start]), pairs[start:end]) for start, end in pairwise([*starts, len(i)])]


def _turned(hashes: np.ndarray, words: np.ndarray, top: int, index: turned.Index) -> tuple[np.ndarray, ...]:
    """Pairs (i, j, distance of fine hashes, way) of a block that are alike once turned, other than mirrored."""
    rows = slice(top, top + _BLOCK[0])
    i, j, ways = turned.near(hashes[rows], top, index)
    found = [tuple(np.zeros(0, kind) for kind in _KINDS)]
    for way in np.unique(ways).tolist():
        these = np.flatnonzero(ways == way)
        mine, own = np.unique(i[these], return_inverse=True)
        fine = turned.turn_fine(np.ascontiguousarray(words[:, top + mine].T), way)
        own, other, apart = alike(stretched(fine), words, own, j[these])
        known = np.flatnonzero(apart != UNKNOWN)
        found.append((mine[own[known]], other[known], apart[known], np.full(len(known), way)))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _upright(hashes: np.ndarray, words: np.ndarray, top: int, bits: int) -> tuple[np.ndarray, ...]:
    """Pairs (i, j, distance of fine hashes, way) of a block, as they are or mirrored."""
    rows, columns = _BLOCK
    shift = columns.bit_length() - 1
    later = hashes[top : top + rows]
    mine = np.ascontiguousarray(words[:, top : top + rows].T)
    ways = [(way, stretched(turned.turn_fine(mine, way))) for way in turned.UPRIGHT]
    likest = tuple(np.zeros(0, kind) for kind in _KINDS)
    left_over: dict[int, list[tuple[np.ndarray, ...]]] = {way: [] for way in turned.UPRIGHT}
    # Written over and over: fresh memory for each comparison would keep threads waiting for one another.
    differing = np.empty((_ROWS, columns), np.uint64)
    counted = np.full((3, _ROWS, columns), 255, np.uint8)
    for left in range(0, top + len(later), columns):
        other = words[:, left : left + columns]
        near: dict[int, list[np.ndarray]] = {way: [] for way in turned.UPRIGHT}
        for row in range(0, len(later), _ROWS):
            _count(later[row : row + _ROWS], hashes[left : left + columns], differing, counted)
            either = np.flatnonzero(counted[2] <= bits)
            for way in near:
                near[way].append(either[counted[way].take(either) <= bits] + (row << shift))
        for way, fine in ways:
            places = np.concatenate(near[way])
            i, j, apart = sieved(fine[0], other, places >> shift, places & columns - 1)
            left_over[way].append((i, j + left, apart))
        # Few pairs of each part are left: stretched together, they take fewer calls.
        held = sum(len(i) for parts in left_over.values() for i, _, _ in parts)
        if held < _HELD and left + columns < top + len(later):
            continue
        for way, fine in ways:
            i, j, apart = map(np.concatenate, zip(*left_over[way], strict=True))
            left_over[way] = []
            earlier = np.flatnonzero(j < i + top)
            found = stretched_apart(fine, words, i[earlier], j[earlier], apart[earlier], FINE_BITS)
            found = (*found, np.full(len(found[0]), way))
            likest = _likest(*map(np.concatenate, zip(likest, found, strict=True)))
    return likest


def _count(later: np.ndarray, earlier: np.ndarray, differing: np.ndarray, counted: np.ndarray) -> None:
    """Bits by which hashes differ, into `counted`: as they are, mirrored, and the fewer of both."""
    rows, columns = np.s_[: len(later)], np.s_[: len(earlier)]
    counted[2] = 255
    apart, part = differing[rows, columns], counted[:, rows, columns]
    np.bitwise_xor(later[:, None], earlier, out=apart)
    np.bitwise_count(apart, out=part[0])
    np.bitwise_xor(apart, turned.ODD_ACROSS, out=apart)
    np.bitwise_count(apart, out=part[1])
    np.minimum(part[0], part[1], out=part[2])


def _likest(i: np.ndarray, j: np.ndarray, apart: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, ...]:
    """The CONFIRMED pairs least apart of each i, in this order, and then those whose distance is unknown."""
    order = np.lexsort((way, j, apart.view(np.uint16), i))  # UNKNOWN becomes the largest
    i, j, apart, way = i[order], j[order], apart[order], way[order]
    kept = (np.arange(len(i)) - np.searchsorted(i, i) < CONFIRMED) | (apart == UNKNOWN)
    return i[kept], j[kept], apart[kept], way[kept]


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
