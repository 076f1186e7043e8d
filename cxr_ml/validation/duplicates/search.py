"""Finds the images that show the same picture as an earlier one: candidates by their hashes, confirmed on pixels."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_ml.imaging.borders import crop_margin
from cxr_ml.imaging.decode import MEASURED_SIDE, shrink
from cxr_ml.ingest import tables
from cxr_ml.settings import ValidationSettings
from cxr_ml.validation.duplicates import orientations
from cxr_ml.validation.duplicates.bit_hashes import (
    MAX_FINE_BITS,
    Pairs,
    concatenate_pairs,
    crop_variants,
    match_crops,
    match_variants,
    prefilter,
)
from cxr_ml.validation.duplicates.hash_columns import InnerHashes, parse_fine_hashes, parse_hashes, parse_inner_hashes
from cxr_ml.validation.duplicates.pixel_similarity import correlate, normalise

MAX_CANDIDATES = 16  # pictures that one image is compared with on pixels, the nearest by their fine hashes
WITHOUT_OWN_MARGIN, WITHOUT_OTHER_MARGIN = 16, 32  # added to an orientation: of the later, of the earlier picture
_THREADS = 1 + (os.cpu_count() or 1)  # that fetch and compare pictures
_BLOCK = (128, 1 << 14)  # later and earlier hashes that a thread takes at a time
_ROWS_AT_A_TIME = 16  # later ones of them that are compared: 3 MiB, whatever the number of images
_TURNED_AT_A_TIME = 1 << 14  # pairs whose fine hashes are turned, 40 MB
_MAX_COLLECTED = 1_000_000  # pairs that a thread collects before it matches them, 18 MB; a drop may be one picture


class Candidate(NamedTuple):
    """An earlier picture that a later one may repeat."""

    earlier: int
    orientation: int  # to turn the later picture to, with WITHOUT_OWN_MARGIN and WITHOUT_OTHER_MARGIN


class Candidates(NamedTuple):
    """The candidates of one picture, the nearest first."""

    later: int
    nearest: list[Candidate]


class _Matches(NamedTuple):
    """Pairs of pictures, with the orientation to turn the later one to."""

    later: np.ndarray  # int [pairs]
    earlier: np.ndarray  # int [pairs]
    distance: np.ndarray  # int16 [pairs]
    orientation: np.ndarray  # int [pairs]


_Confirm = Callable[[int, list[Candidate]], int | None]
_NO_MATCHES = _Matches(*(np.zeros(0, kind) for kind in (np.intp, np.intp, np.int16, np.int64)))


def find_duplicates(
    frame: pd.DataFrame, known: pd.DataFrame, load_grey: Callable[[str], np.ndarray], settings: ValidationSettings
) -> pd.DataFrame:
    """Finds for each image of `frame` the earlier image that it repeats: one of `known`, or an earlier row of `frame`.

    Exact: the same sha256. Near: at most `duplicate_bits` between the hashes, mirrored or not, or such hashes as
    `orientations.find_turned` finds where one is turned, inverted or without its margin; at most MAX_FINE_BITS between
    the fine hashes, one of them changed as by a crop; and a correlation of at least `duplicate_correlation` once the
    local contrast of both is evened out and one is laid over the other by an affine map. Of more than MAX_CANDIDATES
    such candidates the nearest are compared on pixels. A copy of a copy names the first of them.

    Args:
        frame: rows with sha256 and hash_columns.HASHES, as measured or packed; other columns are not used. Every row is
            of a readable image.
        known: rows of earlier batches, likewise.
        load_grey: returns the grey picture of a sha256, uint8 [height, width]; called for candidates only, by several
            threads at once.
        settings: duplicate_bits, duplicate_correlation.

    Returns:
        On the index of `frame`: duplicate_of (a sha256, "" where it repeats nothing), duplicate_kind (exact, near, "").
    """
    shas = pd.concat([known["sha256"], frame["sha256"]], ignore_index=True)
    codes = pd.factorize(shas)[0]  # they count the images in order of their first row
    repeated_bytes = np.append(-1, np.maximum.accumulate(codes)[:-1]) >= codes if len(codes) else np.zeros(0, bool)
    first = np.flatnonzero(~repeated_bytes)
    hashes = parse_hashes(pd.concat([known["phash"], frame["phash"]], ignore_index=True))[first]
    fine = parse_fine_hashes(pd.concat([known["fine_hash"], frame["fine_hash"]], ignore_index=True), ~repeated_bytes)
    fine = np.ascontiguousarray(fine.T)
    inner = parse_inner_hashes(pd.concat([known["inner_hash"], frame["inner_hash"]], ignore_index=True), first)
    tables.release_memory()  # before pictures are decoded

    start = int(np.searchsorted(first, len(known)))
    candidates = find_candidates(hashes, fine, start, settings.duplicate_bits, inner)
    confirm = _compare_pixels(lambda image: load_grey(shas.iat[first[image]]), settings.duplicate_correlation)
    original = np.full(len(first), -1)
    for later, earlier in _in_threads(confirm, candidates):
        if earlier is not None:
            original[later] = earlier if original[earlier] < 0 else original[earlier]

    own, repeated_bytes = codes[len(known) :], repeated_bytes[len(known) :]
    near = original[own] >= 0
    repeated = np.where(near, original[own], np.where(repeated_bytes, own, -1))
    duplicate_of = np.full(len(frame), "", object)
    rows = np.flatnonzero(repeated >= 0)
    duplicate_of[rows] = shas.iloc[first[repeated[rows]]]
    kind = np.where(near, "near", np.where(repeated_bytes, "exact", ""))
    return pd.DataFrame({"duplicate_of": duplicate_of, "duplicate_kind": kind}, index=frame.index, dtype="string")


def _compare_pixels(load_grey: Callable[[int], np.ndarray], enough: float) -> _Confirm:
    """A function that returns the first candidate whose picture correlates with the later one by `enough`, or None."""

    @lru_cache(maxsize=256)  # 64 KiB each
    def load(image: int, without_margin: bool) -> np.ndarray:
        grey = load_grey(image)
        return normalise(crop_margin(shrink(grey, MEASURED_SIDE)) if without_margin else grey)  # as it was measured

    def confirm(later: int, nearest: list[Candidate]) -> int | None:
        for earlier, orientation in nearest:
            own = load(later, bool(orientation & WITHOUT_OWN_MARGIN))
            turned = orientations.turn_pictures(own, orientation & orientations.ALL)
            if correlate(load(earlier, bool(orientation & WITHOUT_OTHER_MARGIN)), turned, enough) >= enough:
                return earlier
        return None

    return confirm


def _in_threads(confirm: _Confirm, candidates: Iterator[Candidates]) -> Iterator[tuple[int, int | None]]:
    """(later, what `confirm` returns) of each in its order, a few at a time: half of the time goes into S3."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[int, Future[int | None]]] = deque()
        for later, nearest in candidates:
            waiting.append((later, pool.submit(confirm, later, nearest)))
            if len(waiting) > 4 * _THREADS:
                number, answer = waiting.popleft()
                yield number, answer.result()
        for number, answer in waiting:
            yield number, answer.result()


def find_candidates(
    hashes: np.ndarray, fine: np.ndarray, start: int, max_bits: int, inner: InnerHashes
) -> Iterator[Candidates]:
    """Yields the earlier pictures that each picture may repeat, by both of their hashes.

    Every pair is compared as it is and mirrored. Pictures turned, inverted or with another margin are found by
    `orientations.find_turned`.

    Args:
        hashes: uint64 [n], in order of time.
        fine: uint64 [16, n], of each 32×32 bits row by row.
        start: only pictures from this number on are asked about.
        max_bits: largest distance of `hashes`.
        inner: hashes of those that have a margin.

    Yields:
        Of each picture that has any, in order of time, MAX_CANDIDATES at most. Memory does not grow with n.
    """
    index = orientations.build_index(hashes, inner.hashes, inner.of)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A few blocks ahead, so that results do not pile up while a caller waits for pictures.
        ahead = 4 * (os.cpu_count() or 1) * _BLOCK[0]
        for begin in range(start, len(hashes), ahead):
            end = min(begin + ahead, len(hashes))
            turned = pool.submit(_match_turned, fine, inner, begin, end, index, max_bits)
            tops = range(begin, end, _BLOCK[0])
            upright = pool.map(lambda top: _match_upright(hashes, fine, top, max_bits), tops)
            for top, matches in zip(tops, upright, strict=True):
                in_block = np.isin(turned.result().later - top, range(_BLOCK[0]))
                of_block = _Matches(*(column[in_block] for column in turned.result()))
                yield from _by_picture(_keep_nearest(_concatenate([matches, of_block])))


def _by_picture(matches: _Matches) -> Iterator[Candidates]:
    candidates = list(map(Candidate, matches.earlier.tolist(), matches.orientation.tolist()))
    starts = np.flatnonzero(np.diff(matches.later, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(matches.later)]):
        yield Candidates(int(matches.later[start]), candidates[start:end])


def _match_turned(
    fine: np.ndarray, inner: InnerHashes, begin: int, end: int, index: orientations.Index, max_bits: int
) -> _Matches:
    """Pairs of pictures that are alike once turned, or without a margin; of the later pictures `begin` to `end`."""
    numbers = np.append(np.arange(begin, end), index.whole + np.arange(*np.searchsorted(inner.of, (begin, end))))
    pairs = orientations.find_turned(numbers, index, max_bits)
    parts = [_NO_MATCHES]
    for start in range(0, len(pairs.later), _TURNED_AT_A_TIME):
        later, earlier, orientation = (column[start : start + _TURNED_AT_A_TIME] for column in pairs)
        own = _select_fine(later, fine, inner).T.copy()
        for value in np.unique(orientation).tolist():
            rows = orientation == value
            own[rows] = orientations.turn_fine_hashes(own[rows], value)
        near = match_crops(own, _select_fine(earlier, fine, inner))
        later, earlier, orientation = later[near.later], earlier[near.later], orientation[near.later]
        orientation += (later >= index.whole) * WITHOUT_OWN_MARGIN + (earlier >= index.whole) * WITHOUT_OTHER_MARGIN
        parts.append(_Matches(index.pictures[later], index.pictures[earlier], near.distance, orientation))
    return _concatenate(parts)


def _select_fine(numbers: np.ndarray, fine: np.ndarray, inner: InnerHashes) -> np.ndarray:
    """Fine hashes, uint64 [16, n], by the numbers of an `orientations.Index`."""
    words = np.empty((16, len(numbers)), np.uint64)
    whole = numbers < fine.shape[1]
    words[:, whole], words[:, ~whole] = fine[:, numbers[whole]], inner.fine[:, numbers[~whole] - fine.shape[1]]
    return words


def _match_upright(hashes: np.ndarray, fine: np.ndarray, top: int, max_bits: int) -> _Matches:
    """Pairs of pictures that are alike as they are or mirrored, of the block of later ones from number `top` on."""
    rows, columns = _BLOCK
    shift = columns.bit_length() - 1  # columns is a power of two
    later = hashes[top : top + rows]
    own = np.ascontiguousarray(fine[:, top : top + rows].T)
    variants = {o: crop_variants(orientations.turn_fine_hashes(own, o)) for o in orientations.UPRIGHT}
    nearest = _NO_MATCHES
    collected: dict[int, list[Pairs]] = {o: [] for o in orientations.UPRIGHT}
    # Written over and over: fresh memory for each comparison would keep threads waiting for one another.
    differing = np.empty((_ROWS_AT_A_TIME, columns), np.uint64)
    counts = np.full((3, _ROWS_AT_A_TIME, columns), 255, np.uint8)
    for left in range(0, top + len(later), columns):
        other = fine[:, left : left + columns]
        places: dict[int, list[np.ndarray]] = {o: [] for o in orientations.UPRIGHT}
        for row in range(0, len(later), _ROWS_AT_A_TIME):
            _count_bits(later[row : row + _ROWS_AT_A_TIME], hashes[left : left + columns], differing, counts)
            either = np.flatnonzero(counts[2] <= max_bits)
            for o in orientations.UPRIGHT:
                places[o].append(either[counts[o].take(either) <= max_bits] + (row << shift))
        for o in orientations.UPRIGHT:
            flat = np.concatenate(places[o])
            pairs = prefilter(variants[o][0], other, flat >> shift, flat & columns - 1)
            collected[o].append(pairs._replace(earlier=pairs.earlier + left))
        # Few pairs of each part are left: matched together, they take fewer calls.
        is_last = left + columns >= top + len(later)
        if is_last or sum(len(p.later) for parts in collected.values() for p in parts) >= _MAX_COLLECTED:
            nearest = _keep_nearest(_concatenate([nearest, *_match_collected(variants, fine, collected, top)]))
            collected = {o: [] for o in orientations.UPRIGHT}
    return nearest._replace(later=nearest.later + top)


def _match_collected(
    variants: dict[int, np.ndarray], fine: np.ndarray, collected: dict[int, list[Pairs]], top: int
) -> Iterator[_Matches]:
    for orientation, parts in collected.items():
        pairs = concatenate_pairs(parts)
        before = np.flatnonzero(pairs.earlier < pairs.later + top)
        pairs = Pairs(*(column[before] for column in pairs))
        near = match_variants(variants[orientation], fine, pairs, MAX_FINE_BITS)
        yield _Matches(*near, np.full(len(near.later), orientation))


def _count_bits(later: np.ndarray, earlier: np.ndarray, differing: np.ndarray, counts: np.ndarray) -> None:
    """Bits by which hashes differ, into `counts`: as they are, mirrored, and the fewer of both."""
    rows, columns = np.s_[: len(later)], np.s_[: len(earlier)]
    counts[2] = 255
    bits, part = differing[rows, columns], counts[:, rows, columns]
    np.bitwise_xor(later[:, None], earlier, out=bits)
    np.bitwise_count(bits, out=part[0])
    np.bitwise_xor(bits, orientations.ODD_ACROSS, out=bits)
    np.bitwise_count(bits, out=part[1])
    np.minimum(part[0], part[1], out=part[2])


def _concatenate(parts: list[_Matches]) -> _Matches:
    return _Matches(*map(np.concatenate, zip(*parts, strict=True)))


def _keep_nearest(matches: _Matches) -> _Matches:
    """The MAX_CANDIDATES nearest matches of each later picture, in order of distance."""
    order = np.lexsort((matches.orientation, matches.earlier, matches.distance, matches.later))
    later = matches.later[order]
    kept = order[np.arange(len(order)) - np.searchsorted(later, later) < MAX_CANDIDATES]
    return _Matches(*(column[kept] for column in matches))
