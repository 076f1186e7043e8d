"""Which images show the very picture of an earlier one: candidates by two perceptual hashes, confirmed on pixels."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_ml.imaging.borders import crop_margin
from cxr_ml.imaging.decode import MEASURED_SIDE, shrink
from cxr_ml.ingest import tables
from cxr_ml.settings import Settings
from cxr_ml.validation.duplicates import bit_hashes, orientations
from cxr_ml.validation.duplicates.bit_hashes import FINE_BITS, UNKNOWN, sieved, stretched, stretched_apart

SIDE = 128  # px, at which two pictures are compared
RADIUS = SIDE / 16  # px, of the blur that takes out what chest films have in common: exposure and large shapes
NOISE = 2.0  # grey levels: contrast below it is not amplified
WORTH_ALIGNING = 0.35  # correlation before alignment; copies cropped by 3 % keep 0.43 or more on real films
# Of 577 copies of real films aligned at half their size, each kept 0.93 or more; of 301 strangers one in twenty 0.85.
COARSELY = 0.07  # correlation below `enough` at which two pictures are told apart at half their size
CONFIRMED = 16  # pictures at most that one image is compared with on pixels, the likest by its fine hash
_THREADS = 1 + (os.cpu_count() or 1)  # that fetch and compare pictures
_BLOCK = (128, 1 << 14)  # later and earlier hashes that a thread takes at a time
_ROWS = 16  # later ones of them that are compared at a time: 3 MiB, whatever the number of images
_PACKED = pa.binary(128)
HASHES = ("phash", "fine_hash", "inner_hash")  # columns of measure.measure_image that tell a picture from others
MINE_INNER, OTHER_INNER = 16, 32  # with a way to turn a picture: without the margin of the later, of the earlier one
_KINDS = (np.intp, np.intp, np.int16, np.int64)  # of places, of a distance of fine hashes, of a way to turn
_SOME = 1 << 14  # pairs whose fine hashes are turned at a time, 40 MB
_HELD = 1_000_000  # pairs that a thread collects to stretch together, 18 MB; a drop may be one picture all over


class Inner(NamedTuple):
    """Hashes of pictures without their plain margin: images.inner_hash."""

    of: np.ndarray  # int [k], ascending: numbers of the pictures
    hashes: np.ndarray  # uint64 [k]
    fine: np.ndarray  # uint64 [16, k]


def find(
    frame: pd.DataFrame, known: pd.DataFrame, load_grey: Callable[[str], np.ndarray], settings: Settings
) -> pd.DataFrame:
    """For each image of `frame` the earlier image that it repeats: one of `known`, or an earlier row of `frame`.

    Exact: the same sha256. Near: at most `duplicate_bits` between the hashes, mirrored or not, or such hashes as
    `orientations.near` finds where one is turned, inverted or without its margin; at most FINE_BITS between the fine
    hashes, one of them `stretched`; and a correlation of at least `duplicate_correlation` once the local contrast of
    both is evened out and one is laid over the other by an affine map. Of more than CONFIRMED such candidates the
    likest are compared on pixels, and all whose fine hash is unknown. A copy of a copy names the first of them.

    Args:
        frame: rows with sha256 and HASHES, from `measure.measure_image` or `packed`; other columns are not used.
            Every row is of a readable image.
        known: rows of earlier batches, likewise; a fine_hash of "" (measured before there was one) excludes nothing,
            an inner_hash may be missing.
        load_grey: gives the grey picture of a sha256, uint8 [height, width]; asked for candidates only, by several
            threads at once.
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
    inner = inner_of(pd.concat([_inner_hashes(known), _inner_hashes(frame)], ignore_index=True), first)
    tables.release_memory()  # before pictures are decoded

    @lru_cache(maxsize=256)  # 64 KiB each
    def picture(image: int, inner: bool) -> np.ndarray:
        grey = load_grey(shas.iat[first[image]])
        return normalise(crop_margin(shrink(grey, MEASURED_SIDE)) if inner else grey)  # as it was measured

    def confirm(later: int, likest: list[tuple[int, int]]) -> int | None:
        for earlier, way in likest:
            copy = orientations.turn(picture(later, bool(way & MINE_INNER)), way & orientations.ANY)
            one = picture(earlier, bool(way & OTHER_INNER))
            if likeness(one, copy, settings.duplicate_correlation) >= settings.duplicate_correlation:
                return earlier
        return None

    original = np.full(len(first), -1)
    asked = candidates(hashes, fine, old, settings.duplicate_bits, inner)
    for later, earlier in _in_threads(confirm, asked):
        if earlier is not None:
            original[later] = earlier if original[earlier] < 0 else original[earlier]

    mine, again = codes[len(known) :], again[len(known) :]
    near = original[mine] >= 0
    repeated = np.where(near, original[mine], np.where(again, mine, -1))
    of = np.full(len(frame), "", object)
    hit = np.flatnonzero(repeated >= 0)
    of[hit] = shas.iloc[first[repeated[hit]]]
    kind = np.where(near, "near", np.where(again, "exact", ""))
    found = {"duplicate_of": of, "duplicate_kind": kind}
    return pd.DataFrame(found, index=frame.index, dtype="string")


def _in_threads(
    confirm: Callable[[int, list[tuple[int, int]]], int | None], asked: Iterator[tuple[int, list[tuple[int, int]]]]
) -> Iterator[tuple[int, int | None]]:
    """(later, what `confirm` says) of each candidate in its order, a few at a time: half of the time goes into S3."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[int, Future[int | None]]] = deque()
        for later, likest in asked:
            waiting.append((later, pool.submit(confirm, later, likest)))
            if len(waiting) > 4 * _THREADS:
                number, answer = waiting.popleft()
                yield number, answer.result()
        for number, answer in waiting:
            yield number, answer.result()


def packed(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with its HASHES in half the memory: numbers and bytes; those not measured are 0, zeros and no bytes."""
    words = _words(frame["fine_hash"]) if "fine_hash" in frame else np.zeros((len(frame), 16), np.uint64)
    fine = pa.FixedSizeBinaryArray.from_buffers(_PACKED, len(words), [None, pa.py_buffer(words)])
    inner = pa.array([_bytes(h) for h in _inner_hashes(frame)], pa.binary())
    return frame.assign(
        phash=_numbers(frame["phash"]),
        fine_hash=pd.array(fine, dtype=pd.ArrowDtype(_PACKED)),
        inner_hash=pd.array(inner, dtype=pd.ArrowDtype(pa.binary())),
    )


def candidates(
    hashes: np.ndarray, fine: np.ndarray, old: int, bits: int, inner: Inner
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The earlier pictures that each picture may repeat, those within both radii, the likest first.

    Every pair is compared as it is and mirrored. Pictures turned, inverted or with another margin are found by
    `orientations.near`.

    Args:
        hashes: uint64 [n], in order of time.
        fine: uint64 [16, n], of each 32×32 bits row by row; zeros are unknown.
        old: only pictures from this number on are asked about.
        bits: largest distance of `hashes`.
        inner: hashes of those that have a margin.

    Yields:
        (later, [(earlier, way to turn the later one, with MINE_INNER and OTHER_INNER), …]), `later` ascending;
        CONFIRMED at most of each, and those whose fine hash is unknown. Memory does not grow with n.
    """
    index = orientations.index(hashes, fine.any(0), inner.hashes, inner.of)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A few blocks ahead, so that results do not pile up while a caller waits for pictures.
        ahead = 4 * (os.cpu_count() or 1) * _BLOCK[0]
        for begin in range(old, len(hashes), ahead):
            end = min(begin + ahead, len(hashes))
            others = pool.submit(_turned, fine, inner, begin, end, index, bits)
            tops = range(begin, end, _BLOCK[0])
            for top, upright in zip(tops, pool.map(lambda top: _upright(hashes, fine, top, bits), tops), strict=True):
                here = np.isin(others.result()[0] - top, range(_BLOCK[0]))
                mine = [column[here] for column in others.result()]
                yield from _by_picture(*_likest(*map(np.concatenate, zip(upright, mine, strict=True))))


def _by_picture(
    i: np.ndarray, j: np.ndarray, apart: np.ndarray, way: np.ndarray
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    pairs = list(zip(j.tolist(), way.tolist(), strict=True))
    starts = np.flatnonzero(np.diff(i, prepend=-1)).tolist()
    return ((int(i[start]), pairs[start:end]) for start, end in pairwise([*starts, len(i)]))


def _turned(
    fine: np.ndarray, inner: Inner, begin: int, end: int, index: orientations.Index, bits: int
) -> tuple[np.ndarray, ...]:
    """Pairs of pictures that are alike once turned, or without a margin: later, earlier, fine bits apart, way."""
    mine = np.append(
        begin + np.flatnonzero(fine[:, begin:end].any(0)),
        index.whole + np.arange(*np.searchsorted(inner.of, (begin, end))),
    )
    found = [tuple(np.zeros(0, kind) for kind in _KINDS)]
    every = np.stack(orientations.near(mine, index, bits))
    for start in range(0, every.shape[1], _SOME):
        i, j, way = every[:, start : start + _SOME]
        words = _fine_of(i, fine, inner).T.copy()
        for one in np.unique(way).tolist():
            words[way == one] = orientations.turn_fine(words[way == one], one)
        kept, apart = bit_hashes.near(words, _fine_of(j, fine, inner))
        i, j, way = i[kept], j[kept], way[kept]
        way += (i >= index.whole) * MINE_INNER + (j >= index.whole) * OTHER_INNER
        found.append((index.pictures[i], index.pictures[j], apart, way))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _fine_of(numbers: np.ndarray, fine: np.ndarray, inner: Inner) -> np.ndarray:
    """Fine hashes, uint64 [16, n], by the numbers of a `orientations.Index`."""
    words = np.empty((16, len(numbers)), np.uint64)
    whole = numbers < fine.shape[1]
    words[:, whole], words[:, ~whole] = fine[:, numbers[whole]], inner.fine[:, numbers[~whole] - fine.shape[1]]
    return words


def _upright(hashes: np.ndarray, words: np.ndarray, top: int, bits: int) -> tuple[np.ndarray, ...]:
    """Pairs of pictures as they are or mirrored, of a block of later ones: later, earlier, fine bits apart, way."""
    rows, columns = _BLOCK
    shift = columns.bit_length() - 1
    later = hashes[top : top + rows]
    mine = np.ascontiguousarray(words[:, top : top + rows].T)
    ways = [(way, stretched(orientations.turn_fine(mine, way))) for way in orientations.UPRIGHT]
    likest = tuple(np.zeros(0, kind) for kind in _KINDS)
    left_over: dict[int, list[tuple[np.ndarray, ...]]] = {way: [] for way in orientations.UPRIGHT}
    # Written over and over: fresh memory for each comparison would keep threads waiting for one another.
    differing = np.empty((_ROWS, columns), np.uint64)
    counted = np.full((3, _ROWS, columns), 255, np.uint8)
    for left in range(0, top + len(later), columns):
        other = words[:, left : left + columns]
        near: dict[int, list[np.ndarray]] = {way: [] for way in orientations.UPRIGHT}
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
    i, *others = likest
    return i + top, *others


def _count(later: np.ndarray, earlier: np.ndarray, differing: np.ndarray, counted: np.ndarray) -> None:
    """Bits by which hashes differ, into `counted`: as they are, mirrored, and the fewer of both."""
    rows, columns = np.s_[: len(later)], np.s_[: len(earlier)]
    counted[2] = 255
    apart, part = differing[rows, columns], counted[:, rows, columns]
    np.bitwise_xor(later[:, None], earlier, out=apart)
    np.bitwise_count(apart, out=part[0])
    np.bitwise_xor(apart, orientations.ODD_ACROSS, out=apart)
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


def _inner_hashes(frame: pd.DataFrame) -> pd.Series:
    return frame["inner_hash"] if "inner_hash" in frame else pd.Series("", frame.index)


def inner_of(inner_hashes: pd.Series, kept: np.ndarray | slice = slice(None)) -> Inner:
    """Those that there are among the column of that name, as measured or `packed`, and their places in `kept`."""
    numbers = np.arange(len(inner_hashes))[kept]
    of, hashes, fine = [np.zeros(0, np.intp)], [np.zeros(0, np.uint64)], [np.zeros((16, 0), np.uint64)]
    for start in range(0, len(numbers), _BLOCK[1]):
        found = list(map(_bytes, inner_hashes.iloc[numbers[start : start + _BLOCK[1]]]))
        words = np.frombuffer(b"".join(found), np.uint64).reshape(-1, 17)
        of.append(start + np.flatnonzero(list(map(len, found))))
        hashes.append(words[:, 0].byteswap() if sys.byteorder == "little" else words[:, 0].copy())
        fine.append(words[:, 1:].T.copy())
    return Inner(np.concatenate(of), np.concatenate(hashes), np.concatenate(fine, axis=1))


def _bytes(inner_hash: str | bytes) -> bytes:
    return bytes.fromhex(inner_hash) if isinstance(inner_hash, str) else inner_hash


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

    Pictures below WORTH_ALIGNING are not aligned, nor are those on which ECC does not converge, nor those that are far
    from `enough` when they are aligned at half their size.
    Evangelidis and Psarakis, Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization, 2008.
    """
    product = float(np.linalg.norm(one) * np.linalg.norm(other))
    before = float((one * other).sum()) / product if product else 0.0
    if before >= enough or before < WORTH_ALIGNING:
        return before
    small = (cv2.resize(picture, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA) for picture in (one, other))
    if _aligned(*small, 3) < enough - COARSELY:
        return before
    return max(before, _aligned(one, other, 5))


def _aligned(one: np.ndarray, other: np.ndarray, blur: int) -> float:
    """Correlation after alignment, -1 where ECC does not converge: the pictures have nothing in common."""
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        return cv2.findTransformECC(one, np.ascontiguousarray(other), start, cv2.MOTION_AFFINE, stop, None, blur)[0]
    except cv2.error:
        return -1.0
