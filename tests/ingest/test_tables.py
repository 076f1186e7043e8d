"""Some columns of a large table are read without the others."""

import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from drop_samples import boxed, png, take

from cxr_ml import store
from cxr_ml.ingest import tables

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
    tables.write_table(settings, KEY, (frame[at : at + rows] for at in range(0, len(frame), rows)))


@pytest.mark.parametrize("groups", [1, 3, 300])  # of 300, the footer is longer than what is asked for first
@pytest.mark.parametrize("columns", [["reasons", "file"], ["ring"], ["bytes", "white_box", "lost"], []])
def test_some_columns_are_those_of_the_whole_table(settings, groups, columns):
    write(settings, groups)
    whole = pq.read_table(io.BytesIO(store.get(settings, KEY)))
    found = tables.read_columns(settings, KEY, columns)
    assert found.column_names == [c for c in columns if c != "lost"]
    assert found.equals(whole.select(found.column_names)) or found.to_pylist() == [{}] * len(whole)


def test_of_a_large_table_the_other_columns_are_not_asked_for(settings, monkeypatch):
    write(settings, 1, 3000)
    spans = []
    span = store.span
    monkeypatch.setattr(store, "span", lambda *a: spans.append(len((found := span(*a))[0])) or found)
    assert len(tables.read_columns(settings, KEY, ["file", "reasons"])) == 3000
    assert sum(spans) < 200_000 < len(store.get(settings, KEY))


def test_refused_files_of_a_batch_of_an_earlier_version_are_those_of_a_new_one(settings):
    batch = take(
        settings, "week-1", {"NORMAL/boxed.png": boxed(1), "NORMAL/p.png": b"<p>", "NORMAL/a.png": png(1)}
    ).batch
    new = committed_batches.read_refused(settings, batch)
    store.remove(settings, f"batches/{batch}/refused.parquet")
    old = committed_batches.read_refused(settings, batch)
    assert old.to_pylist() == new.to_pylist() and len(new) == 2
