"""Arrays with a row per image, computed in blocks that the store keeps, laid together in a file of this machine.

A block is written when it is computed: who was killed, another worker and next week's run go on from there.
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

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

_log = logging.getLogger(__name__)
_ROWS = 512  # of a block at most: what a run that is killed computes again
_BYTES = 2**25  # of a block at most: what is held in memory
_DAY = 86_400  # seconds

OnRows = Callable[[int, int], None]


def _nobody(done: int, total: int) -> None: ...


class Source(NamedTuple):
    """What the rows of an array are computed by."""

    folder: str  # of its blocks in the store; other pixels, weights or sizes have another one
    make: Callable[[np.ndarray], np.ndarray]  # row numbers of the manifest, int (n,) -> their rows, (n, *shape)


class Block(NamedTuple):
    """Some images of a manifest, by the content of the images alone."""

    digest: str
    rows: np.ndarray  # row numbers of the manifest, int (n,)


def cut(manifest: pd.DataFrame, limit: int) -> list[Block]:
    """Cuts a manifest into blocks of at most about `limit` images.

    A batch is one block, or one for each beginning of a SHA-256: a version that adds a batch leaves all earlier blocks
    as they were, and an image that a ruling adds or takes out changes its own block only.
    """
    found = []
    for _, batch in manifest.reset_index(drop=True).groupby("batch", sort=True):
        digits = max(0, math.ceil(math.log(len(batch) / limit, 16)))
        for _, part in batch.groupby(batch["sha256"].str[:digits], sort=True):
            part = part.sort_values("sha256")
            digest = hashlib.sha256("\n".join(part["sha256"]).encode()).hexdigest()
            found.append(Block(digest, part.index.to_numpy()))
    return found


def assemble(
    settings: Settings,
    manifest: pd.DataFrame,
    sources: Sequence[Source],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    path: Path | None = None,
    on_rows: OnRows = _nobody,
) -> np.ndarray:
    """An array of all rows of a manifest by each source: from `path`, else from the store, else computed.

    Args:
        settings: the store.
        manifest: one row per image, with sha256 and batch.
        sources: what the rows come from; those of the first source come first.
        shape: of one row.
        dtype: of the array.
        path: the file of this machine, .npy; it may be deleted at any time. None: no file is left.
        on_rows: called with (rows done, rows in all) before the first block and after each.

    Returns:
        (sources · rows, *shape), memory-mapped, read only. At most one block is in memory while it is laid together.

    Raises:
        Refused: the disk has no room for it.
    """
    whole = (len(sources) * len(manifest), *shape)
    if path and (found := _mapped(path, whole, np.dtype(dtype))) is not None:
        return found
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    # Not by the number of the process: containers that share the folder have the same numbers.
    part = settings.cache_dir / f"{uuid.uuid4().hex}.part.npy"
    try:
        _lay(settings, manifest, sources, part, whole, np.dtype(dtype), on_rows)
        laid = np.load(part, mmap_mode="r")
        if path:
            part.replace(path)
        return laid
    finally:
        part.unlink(missing_ok=True)  # what is mapped stays readable; the blocks are in the store


def _mapped(path: Path, whole: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The array in a file; None where there is no file, or a broken one."""
    try:
        found = np.load(path, mmap_mode="r")
        if (found.shape, found.dtype) == (whole, dtype):
            return found
        why: object = f"it holds {found.dtype} {found.shape} instead of {dtype} {whole}"
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:  # cut off, or empty
        why = error
    _log.warning("%s is broken and is laid together again: %s.", path, why)
    return None


def _lay(
    settings: Settings,
    manifest: pd.DataFrame,
    sources: Sequence[Source],
    part: Path,
    whole: tuple[int, ...],
    dtype: np.dtype,
    on_rows: OnRows,
) -> None:
    for left in part.parent.glob("*.part.npy"):
        if time.time() - left.stat().st_mtime > _DAY:  # by a process that was killed: a living one writes to it
            left.unlink(missing_ok=True)
    row = math.prod(whole[1:]) * dtype.itemsize
    _room(part.parent, whole[0] * row)
    blocks = cut(manifest, min(_ROWS, max(1, _BYTES // row)))
    offset = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=whole).offset
    done = 0
    on_rows(done, whole[0])
    with part.open("r+b") as file:
        for number, source in enumerate(sources):
            for block in blocks:
                rows = _block(settings, source, block, whole[1:], dtype)
                # Written, not assigned to a memory map: its pages would count as this process's memory.
                for i, values in zip(block.rows + number * len(manifest), rows, strict=True):
                    os.pwrite(file.fileno(), values.tobytes(), offset + int(i) * row)
                done += len(rows)
                on_rows(done, whole[0])
        os.fsync(file.fileno())


def _room(folder: Path, wanted: int) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < wanted:
        raise Refused(
            f"This needs {wanted / 1e9:.1f} GB below {folder}. Received: {free / 1e9:.1f} GB that are free. "
            "Make room, or let CXR_CACHE_DIR name a folder of a larger disk."
        )


def _block(settings: Settings, source: Source, block: Block, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    key = f"{source.folder}/{block.digest}.npy"
    stored = store.find(settings, key)
    if stored:
        rows = _read(stored[0])
        if rows is not None and rows.shape == (len(block.rows), *shape) and rows.dtype == dtype:
            return rows
        _log.warning("%s is not what was written under that key: its SHA-256 differs. It is computed again.", key)
    rows = np.ascontiguousarray(source.make(block.rows), dtype)
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    if stored:
        store.swap(settings, key, buffer.getvalue(), stored[1], "application/octet-stream")
    else:
        store.put_if_absent(settings, key, buffer.getvalue())
    return rows


def _read(data: bytes) -> np.ndarray | None:
    """The array of a stored block, a .npy file followed by its SHA-256; None where they do not fit."""
    if hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
        return None
    return np.load(io.BytesIO(data), allow_pickle=False)
