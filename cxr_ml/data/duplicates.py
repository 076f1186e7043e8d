"""Which images show the very picture of an earlier one: candidates by perceptual hash, confirmed on pixels."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import cv2
import numpy as np
import pandas as pd

from cxr_ml.settings import Settings

# Hashes of a mirrored picture differ in exactly the bits of odd horizontal frequency: see images.perceptual_hash.
MIRRORED = np.uint64(0xAAAAAAAAAAAAAAAA)
SIDE = 128  # px, at which two pictures are compared
RADIUS = SIDE / 16  # px, of the blur that takes out what chest films have in common: exposure and large shapes
NOISE = 2.0  # grey levels: contrast below it is not amplified
WORTH_ALIGNING = 0.45  # correlation before alignment; copies cropped by 3 % keep 0.59 or more on real films
_BLOCK = (64, 16_384)  # hashes compared at a time: 8 MiB, so that memory does not grow with the number of images


def find(
    frame: pd.DataFrame, known: pd.DataFrame, load_grey: Callable[[str], np.ndarray], settings: Settings
) -> pd.DataFrame:
    """For each image of `frame` the earlier image that it repeats: one of `known`, or an earlier row of `frame`.

    Exact: the same sha256. Near: at most `duplicate_bits` between the hashes, mirrored or not, and a correlation of at
    least `duplicate_correlation` once the local contrast of both is evened out and one is laid over the other by an
    affine map. A copy of a copy names the first of them.

    Args:
        frame: rows with sha256 and phash (16 hex digits, from `images.measure`); other columns are not used. Every
            row is of a readable image.
        known: rows of earlier batches, likewise.
        load_grey: gives the grey picture of a sha256, uint8 [height, width]; asked for candidates only.
        settings: duplicate_bits, duplicate_correlation.

    Returns:
        On the index of `frame`: duplicate_of (a sha256, "" where it repeats nothing), duplicate_kind (exact, near, "").
    """
    shas = [*known["sha256"], *frame["sha256"]]
    first: dict[str, int] = {}
    for i, sha in enumerate(shas):
        first.setdefault(sha, i)
    distinct = np.fromiter(first.values(), np.int64, len(first))
    hashes = np.array([int(h, 16) for h in [*known["phash"], *frame["phash"]]], np.uint64)[distinct]
    old = int(np.searchsorted(distinct, len(known)))

    @lru_cache(maxsize=4096)  # 64 KiB each
    def picture(sha: str) -> np.ndarray:
        return _normalise(load_grey(sha))

    original: dict[str, str] = {}
    for later, earlier, mirrored in _candidates(hashes, old, settings.duplicate_bits):
        sha, other = shas[distinct[later]], shas[distinct[earlier]]
        if sha in original:
            continue
        copy = picture(sha)[:, ::-1] if mirrored else picture(sha)
        if _same(picture(other), copy, settings.duplicate_correlation):
            original[sha] = original.get(other, other)

    seen = set(known["sha256"])
    found = []
    for sha in frame["sha256"]:
        found.append((original[sha], "near") if sha in original else (sha, "exact") if sha in seen else ("", ""))
        seen.add(sha)
    return pd.DataFrame(found, index=frame.index, columns=["duplicate_of", "duplicate_kind"], dtype="string")


def _candidates(hashes: np.ndarray, old: int, bits: int) -> Iterator[tuple[int, int, bool]]:
    """(later, earlier, mirrored) for hashes at most `bits` apart, ordered; `later` runs over those from `old` on."""
    rows, columns = _BLOCK
    for top in range(old, len(hashes), rows):
        later = hashes[top : top + rows, None]
        found = []
        for left in range(0, top + len(later), columns):
            apart = later ^ hashes[None, left : left + columns]
            for mirrored, mask in ((False, np.uint64(0)), (True, MIRRORED)):
                i, j = np.nonzero(np.bitwise_count(apart ^ mask) <= bits)
                found += [(top + a, left + b, mirrored) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        yield from sorted(pair for pair in found if pair[1] < pair[0])


def _normalise(grey: np.ndarray) -> np.ndarray:
    """The picture at SIDE × SIDE with its local mean taken out and its local contrast evened out, float32."""
    way = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    picture = cv2.resize(grey, (SIDE, SIDE), interpolation=way).astype(np.float32)
    picture -= cv2.GaussianBlur(picture, (0, 0), RADIUS)
    return picture / (np.sqrt(cv2.GaussianBlur(picture * picture, (0, 0), RADIUS)) + NOISE)


def _same(one: np.ndarray, other: np.ndarray, correlation: float) -> bool:
    """Whether two normalised pictures correlate so well, where needed after an affine alignment (ECC).

    Evangelidis and Psarakis, Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization, 2008.
    """
    product = float(np.linalg.norm(one) * np.linalg.norm(other))
    before = float((one * other).sum()) / product if product else 0.0
    if before >= correlation or before < WORTH_ALIGNING:
        return before >= correlation
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    try:
        after, _ = cv2.findTransformECC(
            one, np.ascontiguousarray(other), np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop, None, 5
        )
    except cv2.error:  # it does not converge on pictures that have nothing in common
        return False
    return after >= correlation
