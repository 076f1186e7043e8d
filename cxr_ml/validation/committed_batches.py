"""Reads what judging left in the store: the committed batches, their measurements and their refused files."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml import layout
from cxr_ml.ingest import tables
from cxr_ml.store import ObjectStore
from cxr_ml.validation.duplicates.hash_columns import HASHES

OUTCOME_COLUMNS = (
    *("file", "sha256", "format", "label", "label_raw", "verdict", "reasons", "duplicate_of", "duplicate_file"),
)
_OF_THE_PICTURE = ("ring", *HASHES)  # columns that tell a reader nothing
_REFUSED_COLUMNS = [c for c in (*tables.COLUMNS, "duplicate_of", "duplicate_file") if c not in _OF_THE_PICTURE]


def list_names(store: ObjectStore) -> list[str]:
    """Returns the names of all committed batches, in order of name."""
    marks = (k for k in store.keys(layout.BATCHES) if k.endswith("/batch.json"))
    return sorted(k.split("/")[1] for k in marks)


def read_measurements(store: ObjectStore, batch: str) -> pd.DataFrame:
    """Returns the final table of a committed batch: one row per file, with its measurements and verdict."""
    return tables.read_parquet(store, layout.measurements(batch))


def read_outcomes(store: ObjectStore, batch: str) -> pa.Table:
    """Returns OUTCOME_COLUMNS of a committed batch: which file is which image, and what became of it."""
    return tables.read_columns(store, layout.measurements(batch), OUTCOME_COLUMNS)


def read_refused(store: ObjectStore, batch: str) -> pa.Table:
    """Returns the rows of `read_measurements` that were not accepted, in their order, without ring and hashes."""
    return pq.read_table(io.BytesIO(store.get(layout.refused_rows(batch))))


def write_refused(store: ObjectStore, cache_dir: Path, batch: str) -> None:
    """Writes the table of `read_refused`, so that its readers need not read the accepted rows."""

    def select_refused() -> Iterator[pd.DataFrame]:
        for part in tables.scan_columns(store, cache_dir, layout.measurements(batch), _REFUSED_COLUMNS):
            rows = part.to_pandas()
            yield rows[rows["verdict"] != "accepted"]

    tables.write_table(store, cache_dir, layout.refused_rows(batch), select_refused())


def is_disputed(reasons: pd.Series) -> np.ndarray:
    """Returns for each row whether it was quarantined because its picture has different labels: bool [rows]."""
    return np.fromiter(("conflicting_label" in set(codes) for codes in reasons), bool, len(reasons))


def find_contradicted(table: pd.DataFrame) -> set[str]:
    """Returns the images, of whatever batch, that files of this table show under another label: SHA-256."""
    return set(table.loc[is_disputed(table["reasons"]), "duplicate_of"]) - {""}
