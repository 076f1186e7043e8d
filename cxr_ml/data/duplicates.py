"""Which images show the very picture of an earlier one: candidates by two perceptual hashes, confirmed on pixels."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

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
WORTH_ALIGNING = 0.45  # correlation before alignment; copies cropped by 3 % keep 0.59 or more on real films
FINE_BITS = 272  # of 1024: benchmarks/duplicates.py; it lets 1 in 2,000 of the strangers that share a phash through
CONFIRMED = 16  # pictures at most that one image is compared with on pixels, the likest by its fine hash
_UNKNOWN = -1  # distance of fine hashes of which one was not measured
_BLOCK = (64, 16_384)  # hashes compared at a time by one thread: 9 MiB, whatever the number of images
_PACKED = pa.binary(128)
_PAIRS = 32_768  # fine hashes compared at a time: 8 MiB


def find(
    frame: pd.DataFrame, known: pd.DataFrame, load_grey: Callable[[str], np.ndarray], settings: Settings
) -> pd.DataFrame:
    """For each image of `frame` the earlier image that it repeats: one of `known`, or an earlier row of `frame`.

    Exact: the same sha256. Near: at most `duplicate_bits` between the hashes, mirrored or not, at most FINE_BITS
    between the fine hashes, and a correlation of at least `duplicate_correlation` once the local contrast of both is
    evened out and one is laid over the other by an affine map. Of more than CONFIRMED such candidates the likest are
    compared on pixels, and all whose fine hash is unknown. A copy of a copy names the first of them.

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
    """The earlier pictures that each picture may repeat, exactly those within both radii, the likest first.

    Args:
        hashes: uint64 [n], in order of time.
        fine: uint64 [n, 16], row-major 32×32 bits; a row of zeros is unknown.
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


def _block(hashes: np.ndarray, fine: np.ndarray, top: int, bits: int) -> list[tuple[int, list[tuple[int, bool]]]]:
    rows, columns = _BLOCK
    later = hashes[top : top + rows, None]
    flipped = mirror(fine[top : top + rows])
    kept: dict[int, list[tuple[int, int, bool]]] = {}
    # Written over and over: fresh memory for each comparison would keep threads waiting for one another.
    differing = np.empty((len(later), columns), np.uint64)
    counted = np.empty((len(later), columns), np.uint8)
    for left in range(0, top + len(later), columns):
        part = hashes[None, left : left + columns]
        for mirrored, mask in ((False, np.uint64(0)), (True, MIRRORED)):
            width = part.shape[1]
            np.bitwise_xor(later ^ mask, part, out=differing[:, :width])
            np.bitwise_count(differing[:, :width], out=counted[:, :width])
            near = np.flatnonzero(counted[:, :width] <= bits)
            i, j = np.divmod(near, width)
            i, j = i + top, j + left
            i, j = i[j < i], j[j < i]
            for start in range(0, len(i), _PAIRS):
                a, b = i[start : start + _PAIRS], j[start : start + _PAIRS]
                mine, other = (flipped[a - top] if mirrored else fine[a]), fine[b]
                apart = np.bitwise_count(mine ^ other).sum(1, dtype=np.int32)
                apart[~mine.any(1) | ~other.any(1)] = _UNKNOWN
                for k in np.flatnonzero(apart <= FINE_BITS).tolist():
                    kept.setdefault(int(a[k]), []).append((int(apart[k]), int(b[k]), mirrored))
    return [(i, _likest(kept[i])) for i in sorted(kept)]


def _likest(found: list[tuple[int, int, bool]]) -> list[tuple[int, bool]]:
    # Where the fine hash is unknown it cannot say which are the likest, so none of them is left out.
    found = sorted(found)
    known = [f for f in found if f[0] != _UNKNOWN][:CONFIRMED]
    return [(j, m) for _, j, m in known + [f for f in found if f[0] == _UNKNOWN]]


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
