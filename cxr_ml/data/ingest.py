"""Copies a drop into the store and measures each image. Nothing is judged here but what cannot be read."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from cxr_ml import store
from cxr_ml.data import containers, drops, identity, images
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

# The fixed columns, in order, with the Arrow type of each.
COLUMNS = {
    "file": "string", "sha256": "string", "format": "string", "bytes": "int64", "width": "int32", "height": "int32",
    "mode": "string", "bits": "int16", "label": "string", "label_raw": "string", "split_hint": "string",
    "patient": "string", "source": "string", "view": "string", "mean": "float64", "std": "float64", "p01": "float64",
    "p99": "float64", "saturation": "float64", "sharpness": "float64", "black_border": "float64",
    "white_border": "float64", "white_box": "float64", "phash": "string", "ring": "string",
    "verdict": "string", "reasons": "list",
}  # fmt: skip


def image_key(sha256: str, format: str) -> str:
    """Key of an image in the store; `format` as measured: png, jpeg or dicom."""
    return f"images/{sha256[:2]}/{sha256}.{containers.extension(format)}"


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
    batch = drops.batch_id(drop, drops.listing(settings, drop))  # no archive is opened for it
    if store.exists(settings, f"batches/{batch}/ingested.parquet"):
        return batch
    with drops.opened(settings, drop) as (batch, entries):
        if not entries:
            raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
        table = drops.labels(settings, drop, entries)

        def one(row: dict) -> dict:
            return _copy(settings, entries[row["entry"]], row) if row["entry"] >= 0 else row

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
    store.put_if_absent(settings, f"batches/{batch}/ingested.parquet", to_parquet(frame))
    return batch


def _copy(settings: Settings, entry: drops.Entry, row: dict) -> dict:
    """`row` with the measurements of its file, or with the codes of what is wrong with it under `unread`."""
    try:
        data = drops.read(settings, entry)
        row = identity.from_header(settings, row, data)
        measured, clean = images.measure(data, settings)
    except images.BadImage as error:
        return row | {"bytes": max(0, entry.size), "unread": [error.code]}
    store.put_if_absent(
        settings,
        image_key(measured["sha256"], measured["format"]),
        clean,
        f"image/{containers.extension(measured['format'])}",
    )
    return row | measured
