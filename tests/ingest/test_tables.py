"""Some columns of a large table are read without the others."""

import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxr_ml.ingest import tables
from cxr_ml.store import ObjectStore

KEY = "batches/b/measurements.parquet"


def write(settings, groups, rows=100):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "file": [f"{n}.png" for n in range(groups * rows)],
            "bytes": rng.integers(0, 99, groups * rows),
            "ring": [rng.bytes(448).hex() for _ in range(groups * rows)],
            "white_box": np.where(rng.random(groups * rows) < 0.5, np.nan, 0.5),
            "reasons": [["blank", "blurred"][: n % 3] for n in range(groups * rows)],
        }
    )
    tables.write_table(
        ObjectStore(settings.store),
        settings.cache_dir,
        KEY,
        (frame[at : at + rows] for at in range(0, len(frame), rows)),
    )


@pytest.mark.parametrize("groups", [1, 3, 300])  # of 300, the footer is longer than what is asked for first
@pytest.mark.parametrize("columns", [["reasons", "file"], ["ring"], ["bytes", "white_box"], []])
def test_some_columns_are_those_of_the_whole_table(store, settings, groups, columns):
    write(settings, groups)
    whole = pq.read_table(io.BytesIO(store.get(KEY)))
    found = tables.read_columns(store, KEY, columns)
    assert found.column_names == columns
    assert found.equals(whole.select(found.column_names)) or found.to_pylist() == [{}] * len(whole)


def test_of_a_large_table_the_other_columns_are_not_asked_for(store, settings, monkeypatch):
    write(settings, 1, 3000)
    spans = []
    get_range = ObjectStore.get_range
    monkeypatch.setattr(ObjectStore, "get_range", lambda *a: spans.append(len((found := get_range(*a))[0])) or found)
    assert len(tables.read_columns(store, KEY, ["file", "reasons"])) == 3000
    assert sum(spans) < 200_000 < len(store.get(KEY))
