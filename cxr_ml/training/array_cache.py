"""Arrays with a row per image: computed in blocks that the store keeps, and assembled in a file of this machine.

A block is stored as soon as it is computed, so it is never computed again: not after the process was killed, not by
another worker, not for next week's dataset.
"""

import hashlib
import io
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.store import ObjectStore

_log = logging.getLogger(__name__)
MAX_BLOCK_ROWS = 512  # what a run that is killed computes again at most
MAX_BLOCK_BYTES = 2**25  # of a block, which is held in memory
MAX_PART_AGE = 86_400  # seconds without a change, after which an unfinished file is that of a killed process

OnRows = Callable[[int, int], None]


def _nobody(done: int, total: int) -> None: ...


class Source(NamedTuple):
    """How the rows of an array are computed, and where their blocks are stored."""

    folder: str  # of the blocks in the store; other pixels, weights or sizes have another one
    compute: Callable[[np.ndarray], np.ndarray]  # row numbers of the manifest, int (n,) -> their rows, (n, *shape)


class Block(NamedTuple):
    """Some images of a manifest, identified by their content alone."""

    digest: str
    rows: np.ndarray  # row numbers of the manifest, int (n,)


class _Layout(NamedTuple):
    """The array that is wanted."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def split_into_blocks(manifest: pd.DataFrame, max_rows: int) -> list[Block]:
    """Returns a manifest in blocks of at most about `max_rows` images.

    A batch is one block, or one for each first digits of the SHA-256: a dataset version that adds a batch leaves the
    other blocks as they are, and an image that a ruling adds or removes changes its own block only.
    """
    blocks = []
    for _, batch in manifest.reset_index(drop=True).groupby("batch", sort=True):
        digits = max(0, math.ceil(math.log(len(batch) / max_rows, 16)))
        for _, part in batch.groupby(batch["sha256"].str[:digits], sort=True):
            part = part.sort_values("sha256")
            digest = hashlib.sha256("\n".join(part["sha256"]).encode()).hexdigest()
            blocks.append(Block(digest, part.index.to_numpy()))
    return blocks


def load_array(
    store: ObjectStore,
    cache_dir: Path,
    manifest: pd.DataFrame,
    sources: Sequence[Source],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    path: Path | None = None,
    on_rows: OnRows = _nobody,
) -> np.ndarray:
    """Returns an array of all rows of a manifest by each source: from `path`, else from the store, else computed.

    Args:
        store: the object store.
        cache_dir: folder of what may be deleted between runs.
        manifest: one row per image, with sha256 and batch.
        sources: what the rows come from; those of the first source come first.
        shape: of one row.
        dtype: of the array.
        path: the file of this machine, .npy; it may be deleted at any time. None: no file remains.
        on_rows: called with (rows done, rows in all) before the first block and after each.

    Returns:
        (sources · rows, *shape), memory-mapped, read only. No more than one block is held in memory at a time.

    Raises:
        Refused: the disk has no room for it.
    """
    layout = _Layout((len(sources) * len(manifest), *shape), np.dtype(dtype))
    if path and (existing := _open_existing(path, layout)) is not None:
        return existing
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Not named by the process id: containers that share the folder have the same ones.
    part = cache_dir / f"{uuid.uuid4().hex}.part.npy"
    try:
        _write_array(store, manifest, sources, part, layout, on_rows)
        array = np.load(part, mmap_mode="r")
        if path:
            part.replace(path)
        return array
    finally:
        part.unlink(missing_ok=True)  # the mapped array stays readable; the blocks are in the store


def _open_existing(path: Path, layout: _Layout) -> np.ndarray | None:
    """Returns the array in a file; None where there is no file, or a broken one."""
    try:
        array = np.load(path, mmap_mode="r")
        if (array.shape, array.dtype) == layout:
            return array
        why: object = f"it holds {array.dtype} {array.shape} instead of {layout.dtype} {layout.shape}"
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:  # cut off, or empty
        why = error
    _log.warning("%s is broken and is assembled again: %s.", path, why)
    return None


def _write_array(
    store: ObjectStore, manifest: pd.DataFrame, sources: Sequence[Source], part: Path, layout: _Layout, on_rows: OnRows
) -> None:
    for other in part.parent.glob("*.part.npy"):
        if time.time() - other.stat().st_mtime > MAX_PART_AGE:
            other.unlink(missing_ok=True)
    total, row_bytes = layout.shape[0], layout.row_bytes
    _check_free_space(part.parent, total * row_bytes)
    blocks = split_into_blocks(manifest, min(MAX_BLOCK_ROWS, max(1, MAX_BLOCK_BYTES // row_bytes)))
    offset = np.lib.format.open_memmap(part, mode="w+", dtype=layout.dtype, shape=layout.shape).offset
    done = 0
    on_rows(done, total)
    with part.open("r+b") as file:
        for number, source in enumerate(sources):
            for block in blocks:
                rows = _load_or_compute(store, source, block, layout)
                # Written, not assigned to a memory map: its pages would count as this process's memory.
                for i, values in zip(block.rows + number * len(manifest), rows, strict=True):
                    os.pwrite(file.fileno(), values.tobytes(), offset + int(i) * row_bytes)
                done += len(rows)
                on_rows(done, total)
        os.fsync(file.fileno())


def _check_free_space(folder: Path, needed: int) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise Refused(
            f"This needs {needed / 1e9:.1f} GB below {folder}. Received: {free / 1e9:.1f} GB that are free. "
            "Make room, or let CXR_CACHE_DIR name a folder of a larger disk."
        )


def _load_or_compute(store: ObjectStore, source: Source, block: Block, layout: _Layout) -> np.ndarray:
    key = f"{source.folder}/{block.digest}.npy"
    stored = store.get_or_none(key)
    if stored:
        rows = _parse_block(stored[0])
        if rows is not None and rows.shape == (len(block.rows), *layout.shape[1:]) and rows.dtype == layout.dtype:
            return rows
        _log.warning("%s is not what was written under that key: its SHA-256 differs. It is computed again.", key)
    rows = np.ascontiguousarray(source.compute(block.rows), layout.dtype)
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    if stored:
        store.swap(key, buffer.getvalue(), stored[1], "application/octet-stream")
    else:
        store.put_if_absent(key, buffer.getvalue())
    return rows


def _parse_block(data: bytes) -> np.ndarray | None:
    """Returns the array of a stored block, a .npy file followed by its SHA-256; None where they do not fit."""
    if hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
        return None
    return np.load(io.BytesIO(data), allow_pickle=False)
