"""Copies a drop into the store and measures each image. Nothing is judged here but what cannot be read."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from cxr_ml import store
from cxr_ml.data import drops, images
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

# The fixed columns, in order, with the Arrow type of each.
COLUMNS = {
    "file": "string", "sha256": "string", "format": "string", "bytes": "int64", "width": "int32", "height": "int32",
    "mode": "string", "bits": "int16", "label": "string", "label_raw": "string", "split_hint": "string",
    "patient": "string", "source": "string", "view": "string", "mean": "float64", "std": "float64", "p01": "float64",
    "p99": "float64", "saturation": "float64", "sharpness": "float64", "black_border": "float64",
    "white_border": "float64", "white_box": "float64", "phash": "string", "fine_hash": "string", "ring": "string",
    "verdict": "string", "reasons": "list",
}  # fmt: skip


def image_key(sha256: str, extension: str) -> str:
    """Key of an image in the store."""
    return f"images/{sha256[:2]}/{sha256}.{extension}"


def to_parquet(frame: pd.DataFrame) -> bytes:
    """The frame as Parquet; the same frame gives the same bytes."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def read_parquet(settings: Settings, key: str) -> pd.DataFrame:
    """A table of the store."""
    return pd.read_parquet(io.BytesIO(store.get(settings, key)))


def ingest(settings: Settings, drop: str, on_file: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Copies the readable images of `drop` into the store, free of metadata, and writes what was measured.

    Args:
        settings: where the inbox and the store are.
        drop: name of a drop in the inbox.
        on_file: called with (files done, files in all) after each file.

    Returns:
        Name of the batch. `batches/<batch>/ingested.parquet` has one row per file, with the verdict "accepted" or,
        for what could not be read or has no known label, "quarantined" with the reasons.

    Raises:
        Refused: no such drop, it has no files, or its labels.csv cannot be used.
    """
    entries = drops.listing(settings, drop)
    if not entries:
        raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
    batch = drops.batch_id(drop, entries)
    key = f"batches/{batch}/ingested.parquet"
    if store.exists(settings, key):
        return batch
    table = drops.labels(settings, drop, entries)
    by_file = {drops.printable(e.file): e for e in entries}

    def one(row: dict) -> dict:
        entry = by_file.get(row["file"])
        return row | (_copy(settings, entry) if entry else {})

    rows = []
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for row in pool.map(one, table.to_dict("records")):
            row["reasons"] = [*row["reasons"], *row.pop("unread", [])]
            row["verdict"] = "quarantined" if row["reasons"] else "accepted"
            rows.append(row)
            on_file(len(rows), len(table))
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    for column, kind in COLUMNS.items():
        if kind == "string":
            frame[column] = frame[column].astype("string").fillna("")
        elif kind.startswith("int"):
            frame[column] = frame[column].fillna(0).astype(kind)
        elif kind != "list":
            frame[column] = frame[column].astype(kind)
    store.put_if_absent(settings, key, to_parquet(frame))
    return batch


def _copy(settings: Settings, entry: drops.Entry) -> dict:
    """Measurements of one file, with the codes of what is wrong with it under `unread`."""
    if entry.size < 0:
        return {"unread": ["symlink"]}
    if entry.size > settings.max_file_bytes:
        return {"bytes": entry.size, "unread": ["too_large"]}
    try:
        measured, clean = images.measure(drops.read(settings, entry), settings)
    except images.BadImage as error:
        return {"bytes": entry.size, "unread": [error.code]}
    store.put_if_absent(
        settings,
        image_key(measured["sha256"], measured["format"]),
        clean,
        f"image/{measured['format']}",
    )
    return measured
