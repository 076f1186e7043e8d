"""Builds the next dataset version from all committed batches. A group never changes its split."""

import hashlib

import pandas as pd

from cxr_ml import store
from cxr_ml.data import batches, ingest
from cxr_ml.errors import Refused
from cxr_ml.records import Dataset
from cxr_ml.settings import Settings

_COLUMNS = ["sha256", "format", "label", "split", "group", "source", "batch"]


def latest(settings: Settings) -> Dataset | None:
    """The newest dataset version, or None before the first."""
    numbers = [int(k.split("/")[1]) for k in store.keys(settings, "datasets/") if k.endswith("/dataset.json")]
    return load(settings, max(numbers)) if numbers else None


def load(settings: Settings, number: int) -> Dataset:
    """The record of a dataset version."""
    return store.load(settings, f"datasets/{number}/dataset.json", Dataset)


def manifest(settings: Settings, dataset: Dataset) -> pd.DataFrame:
    """One row per image: sha256, format, label, split, group, source, batch.

    Raises:
        Refused: the table is not the one that the record names.
    """
    key = f"datasets/{dataset.dataset}/manifest.parquet"
    data = store.get(settings, key)
    if hashlib.sha256(data).hexdigest() != dataset.manifest_sha256:
        raise Refused(f"{key} was changed after dataset {dataset.dataset} was written: its SHA-256 differs.")
    return ingest.read_parquet(settings, key)


def share(group: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the group and the purpose alone."""
    return int(hashlib.sha256(f"{purpose}\n{group}".encode()).hexdigest()[:8], 16) / 2**32


def split_of(group: str, hint: str, settings: Settings) -> str:
    """Split of a group that is new: the drop's word if it has one, else by the hash of the group."""
    if hint in ("test", "validation"):
        return hint
    if not hint and share(group, "test") < settings.test_fraction:
        return "test"
    return "validation" if share(group, "validation") < settings.validation_fraction else "train"


def build(settings: Settings) -> tuple[Dataset, bool]:
    """Writes the next dataset version, unless all is as it was.

    Returns:
        The dataset, and whether it is new.

    Raises:
        Refused: there is no batch yet, or the data is not fit to train on; the message lists what failed.
    """
    from cxr_ml.data import validate  # takes seconds to import, which who only reads a dataset need not wait

    names = batches.committed(settings)
    if not names:
        raise Refused("A dataset needs a validated batch. Put a drop into the inbox; run ingest and validate.")
    parent = latest(settings)
    known = manifest(settings, parent) if parent else pd.DataFrame(columns=_COLUMNS)
    # The parent's batches come first and in its order, so that what they decided stays decided.
    before = [n for n in parent.batches if n in names] if parent else []
    order = [*before, *(n for n in names if n not in before)]
    tables, conflicted = [], set()
    for name in order:
        table = batches.measurements(settings, name)
        conflicted |= batches.conflicts(table)
        tables.append(table[table["verdict"] == "accepted"].assign(batch=name))
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["label"].isin(settings.classes)].drop_duplicates("sha256", keep="first")
    group = ("patient:" + rows["patient"]).where(rows["patient"] != "", "image:" + rows["sha256"])
    rows = rows.assign(group=group)
    splits = dict(zip(known["group"], known["split"], strict=True))
    for name, hint in zip(rows["group"], rows["split_hint"], strict=True):
        if name not in splits:
            splits[name] = split_of(name, hint, settings)
    # Only now: a group that lost its images to conflicts and comes back with others finds the split that it had.
    rows = rows[~rows["sha256"].isin(conflicted)]
    rows = rows.assign(split=rows["group"].map(splits))[_COLUMNS].sort_values("sha256", ignore_index=True)
    rows = rows.astype("string")
    failures, page = validate.judge_dataset(rows, settings.classes, settings.expectations)
    if failures:
        lines = [f"  {f.column}: expected {f.limit}. Received: {f.observed}" for f in failures]
        raise Refused("The data is not fit to train on; add images of what is missing:\n" + "\n".join(lines))
    data = ingest.to_parquet(rows)
    digest = hashlib.sha256(data).hexdigest()
    if parent and parent.manifest_sha256 == digest:
        return parent, False
    number = _write_manifest(settings, parent.dataset + 1 if parent else 1, data)
    counts = {
        split: {label: int(n) for label, n in part["label"].value_counts().sort_index().items()}
        for split, part in rows.groupby("split")
    }
    record = Dataset(
        dataset=number,
        parent=parent.dataset if parent else None,
        batches=tuple(order),
        counts=counts,
        manifest_sha256=digest,
    )
    folder = f"datasets/{number}"
    store.put_uncommitted(settings, f"{folder}/dataset.html", page.encode(), "text/html; charset=utf-8")
    if not store.put_if_absent(settings, f"{folder}/dataset.json", record.to_bytes(), "application/json"):
        raise Refused(f"Dataset {number} was written by another run at this moment. Run this step again.")
    return record, True


def _write_manifest(settings: Settings, number: int, data: bytes) -> int:
    """Writes the manifest under the first number, from `number` on, that is free or holds these very bytes.

    A run that died before it wrote dataset.json leaves a manifest that later data may no longer equal.
    """
    while True:
        key = f"datasets/{number}/manifest.parquet"
        if store.put_if_absent(settings, key, data) or store.get(settings, key) == data:
            return number
        number += 1
