"""Dataset versions as they are stored: their numbers, records and manifests."""

import hashlib

import pandas as pd
import pyarrow as pa

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.ingest import tables
from cxr_ml.records import Dataset
from cxr_ml.settings import Settings

MANIFEST_COLUMNS = ["sha256", "format", "label", "split", "group", "source", "batch"]


def list_numbers(settings: Settings) -> list[int]:
    """Returns the numbers of all dataset versions, in order."""
    return sorted(int(k.split("/")[1]) for k in store.keys(settings, "datasets/") if k.endswith("/dataset.json"))


def load_dataset(settings: Settings, number: int) -> Dataset:
    """Returns the record of a dataset version."""
    return store.load(settings, f"datasets/{number}/dataset.json", Dataset)


def load_latest(settings: Settings) -> Dataset | None:
    """Returns the newest dataset version, or None before the first."""
    numbers = list_numbers(settings)
    return load_dataset(settings, numbers[-1]) if numbers else None


def load_withheld(settings: Settings) -> tuple[str, ...]:
    """Returns the SHA-256 of the images that the newest dataset keeps out for good; none before the first dataset."""
    latest = load_latest(settings)
    return latest.withheld if latest else ()


def load_manifest(settings: Settings, dataset: Dataset) -> pd.DataFrame:
    """Returns the images of a dataset version: one row each, with MANIFEST_COLUMNS.

    Raises:
        Refused: the table is not the one that the record names.
    """
    key = f"datasets/{dataset.dataset}/manifest.parquet"
    data = store.get(settings, key)
    if hashlib.sha256(data).hexdigest() != dataset.manifest_sha256:
        raise Refused(f"{key} was changed after dataset {dataset.dataset} was written: its SHA-256 differs.")
    return tables.read_parquet(settings, key)


def join_measurements(settings: Settings, dataset: Dataset, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows of a manifest with three measurements of each image beside them: view, width and height in pixels.

    Raises:
        Refused: the measurements of a batch, or an image in them, are gone.
    """
    parts = []
    for batch in dataset.batches:
        scanned = tables.scan_columns(
            settings, f"batches/{batch}/measurements.parquet", ["sha256", "view", "width", "height"]
        )
        parts.append(pa.concat_tables(scanned).to_pandas().assign(batch=batch))
    measured = pd.concat(parts, ignore_index=True).drop_duplicates(["sha256", "batch"])
    joined = rows.merge(measured, on=["sha256", "batch"], how="left", validate="many_to_one")
    if missing := joined["width"].isna().sum():
        raise Refused(
            f"Every image of dataset {dataset.dataset} must be in its batch's measurements. Missing: {missing}."
        )
    return joined
