"""Dataset versions as they are stored: their numbers, records and manifests."""

import hashlib
from pathlib import Path

import pandas as pd
import pyarrow as pa

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import tables
from cxr_ml.records import Dataset
from cxr_ml.store import ObjectStore

MANIFEST_COLUMNS = ["sha256", "format", "label", "split", "group", "source", "batch"]


def list_numbers(store: ObjectStore) -> list[int]:
    """Returns the numbers of all dataset versions, in order."""
    return sorted(int(k.split("/")[1]) for k in store.keys(layout.DATASETS) if k.endswith("/dataset.json"))


def load_dataset(store: ObjectStore, number: int) -> Dataset:
    """Returns the record of a dataset version."""
    return store.load(layout.dataset_record(number), Dataset)


def load_latest(store: ObjectStore) -> Dataset | None:
    """Returns the newest dataset version, or None before the first."""
    numbers = list_numbers(store)
    return load_dataset(store, numbers[-1]) if numbers else None


def load_withheld(store: ObjectStore) -> tuple[str, ...]:
    """Returns the SHA-256 of the images that the newest dataset keeps out for good; none before the first dataset."""
    latest = load_latest(store)
    return latest.withheld if latest else ()


def load_manifest(store: ObjectStore, dataset: Dataset) -> pd.DataFrame:
    """Returns the images of a dataset version: one row each, with MANIFEST_COLUMNS.

    Raises:
        Refused: the table is not the one that the record names.
    """
    key = layout.manifest(dataset.dataset)
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != dataset.manifest_sha256:
        raise Refused(f"{key} was changed after dataset {dataset.dataset} was written: its SHA-256 differs.")
    return tables.read_parquet(store, key)


def join_measurements(store: ObjectStore, cache_dir: Path, dataset: Dataset, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows of a manifest with three measurements of each image beside them: view, width and height in pixels.

    Raises:
        Refused: the measurements of a batch, or an image in them, are gone.
    """
    parts = []
    for batch in dataset.batches:
        scanned = tables.scan_columns(
            store, cache_dir, layout.measurements(batch), ["sha256", "view", "width", "height"]
        )
        parts.append(pa.concat_tables(scanned).to_pandas().assign(batch=batch))
    measured = pd.concat(parts, ignore_index=True).drop_duplicates(["sha256", "batch"])
    joined = rows.merge(measured, on=["sha256", "batch"], how="left", validate="many_to_one")
    if missing := joined["width"].isna().sum():
        raise Refused(
            f"Every image of dataset {dataset.dataset} must be in its batch's measurements. Missing: {missing}."
        )
    return joined
