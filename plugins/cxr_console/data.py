"""Dataset versions, drops, and what rejected a class."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from cxr_console import charts, pages, store_cache
from cxr_console.access import User
from cxr_ml.records import Batch, Dataset
from cxr_ml.reporting import narrative

router = APIRouter()
_EXAMPLES = 12  # of a rejected class
# Column of classes.json for which a class is rejected -> the measure by which its images show it best.
_SHOWN_BY = {"artefact_rate_low": "white_box", "cast_rate_low": "saturation", "border_rate_low": "black_border"}


@router.get("/data")
def data(request: Request, user: User) -> HTMLResponse:
    """All dataset versions and drops, newest first."""
    versions = store_cache.datasets()
    return pages.render(
        request,
        user,
        "data.html",
        "Data",
        versions=[(d, _sums(d)) for d in reversed(versions)],
        classes=store_cache.settings().classes,
        batches=store_cache.batches(),
        chart=_growth(versions),
    )


def _sums(dataset: Dataset) -> dict[str, int]:
    return {split: sum(labels.values()) for split, labels in dataset.counts.items()}


def _growth(versions: list[Dataset]) -> dict[str, Any] | None:
    """Images of each class over the dataset versions, all splits together."""
    series = {
        label: [float(sum(counts.get(label, 0) for counts in d.counts.values())) for d in versions]
        for label in store_cache.settings().classes
    }
    high = max((v for values in series.values() for v in values), default=0.0)
    round_high = -(-high // 100) * 100 if high > 100 else high
    label = "Images of each class in each dataset version"
    return charts.lines(label, [str(d.dataset) for d in versions], series, 0.0, round_high, shares=False)


@router.get("/data/datasets/{number}")
def dataset(request: Request, user: User, number: int) -> HTMLResponse:
    """One dataset version."""
    found = next((d for d in store_cache.datasets() if d.dataset == number), None)
    if found is None:
        raise HTTPException(404, f"There is no dataset version of this number. Received: {number}")
    trained = [row for row in store_cache.models(store_cache.history()) if row["dataset"] == number]
    return pages.render(
        request,
        user,
        "dataset.html",
        f"Dataset {number}",
        dataset=found,
        classes=store_cache.settings().classes,
        shortcuts=narrative.shortcuts(found),
        drift=narrative.drift(found),
        trained=trained,
    )


@router.get("/data/drops/{name}")
def drop(request: Request, user: User, name: str) -> HTMLResponse:
    """One drop: what became of its files, and why its classes were rejected, with examples."""
    record = store_cache.batch(name)
    rows = store_cache.refused(name)
    columns, counts = narrative.table(record)
    return pages.render(
        request,
        user,
        "drop.html",
        f"Drop {record.drop}",
        batch=record,
        columns=columns,
        counts=counts,
        rejected=[(label, why, _examples(rows, label, record)) for label, why in record.rejected_classes.items()],
    )


def _examples(rows: pa.Table, label: str, batch: Batch) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a rejected class with their number, those first that show best what it was rejected for."""
    columns = [f.column for f in batch.failures if (f.suite, f.subject) == ("classes", label)]
    measure = next((_SHOWN_BY[column] for column in columns if column in _SHOWN_BY), "white_box")
    measured = pc.and_(pc.not_equal(rows["sha256"], ""), pc.is_valid(rows[measure]))
    mine = np.flatnonzero(pc.and_(pc.equal(rows["label"], label), measured))
    mine = mine[np.argsort(-rows[measure].to_numpy()[mine], kind="stable")][:_EXAMPLES]
    return list(zip(mine.tolist(), rows.take(mine).to_pylist(), strict=True))
