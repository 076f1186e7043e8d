"""Perceptual hashes of a table, as the search needs them: from hex digits to arrays of words, and packed to wait."""

import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

HASHES = ("phash", "fine_hash", "inner_hash")  # columns of measure.measure_image that tell a picture from others
_PACKED = pa.binary(128)
_ROWS = 1 << 14  # converted at a time


class InnerHashes(NamedTuple):
    """Hashes of pictures without their plain margin: `measure.inner_hash`."""

    of: np.ndarray  # int [k], ascending: numbers of the pictures
    hashes: np.ndarray  # uint64 [k]
    fine: np.ndarray  # uint64 [16, k]


def pack_hashes(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns `frame` with its HASHES as numbers and bytes, in half the memory; an unreadable file's are zeros."""
    words = parse_fine_hashes(frame["fine_hash"])
    fine = pa.FixedSizeBinaryArray.from_buffers(_PACKED, len(words), [None, pa.py_buffer(words)])
    inner = pa.array([_to_bytes(h) for h in frame["inner_hash"]], pa.binary())
    return frame.assign(
        phash=parse_hashes(frame["phash"]),
        fine_hash=pd.array(fine, dtype=pd.ArrowDtype(_PACKED)),
        inner_hash=pd.array(inner, dtype=pd.ArrowDtype(pa.binary())),
    )


def parse_hashes(hashes: pd.Series) -> np.ndarray:
    """Returns hashes, 16 hex digits or packed, as uint64 [n]; 0 for an unreadable file."""
    return np.fromiter((int(h or "0", 16) if isinstance(h, str) else h for h in hashes), np.uint64, len(hashes))


def parse_fine_hashes(fine_hashes: pd.Series, kept: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Returns fine hashes, 256 hex digits or packed, as uint64 [n, 16]: those `kept`; zeros for an unreadable file."""
    places = np.arange(len(fine_hashes))[kept]
    words = np.zeros((len(places), 16), np.uint64)
    for start in range(0, len(fine_hashes), _ROWS):
        first, last = np.searchsorted(places, (start, start + _ROWS))
        part = fine_hashes.iloc[start : start + _ROWS]
        data = b"".join(bytes.fromhex(h or "0" * 256) if isinstance(h, str) else h for h in part)
        words[first:last] = np.frombuffer(data, np.uint64).reshape(-1, 16)[places[first:last] - start]
    return words


def parse_inner_hashes(inner_hashes: pd.Series, kept: np.ndarray | slice = slice(None)) -> InnerHashes:
    """Returns the inner hashes, as measured or packed, of the `kept` pictures that have one, numbered among these."""
    numbers = np.arange(len(inner_hashes))[kept]
    of, hashes, fine = [np.zeros(0, np.intp)], [np.zeros(0, np.uint64)], [np.zeros((16, 0), np.uint64)]
    for start in range(0, len(numbers), _ROWS):
        data = list(map(_to_bytes, inner_hashes.iloc[numbers[start : start + _ROWS]]))
        words = np.frombuffer(b"".join(data), np.uint64).reshape(-1, 17)
        of.append(start + np.flatnonzero(list(map(len, data))))
        hashes.append(words[:, 0].byteswap() if sys.byteorder == "little" else words[:, 0].copy())
        fine.append(words[:, 1:].T.copy())
    return InnerHashes(np.concatenate(of), np.concatenate(hashes), np.concatenate(fine, axis=1))


def _to_bytes(inner_hash: str | bytes) -> bytes:
    return bytes.fromhex(inner_hash) if isinstance(inner_hash, str) else inner_hash
