"""Builds the next dataset version from all committed batches and rulings. A group never changes its split."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_ml import store
from cxr_ml.dataset import drift, shortcuts, splits
from cxr_ml.errors import Refused
from cxr_ml.ingest import process_file, tables
from cxr_ml.progress import OnProgress, begun, nobody
from cxr_ml.records import Dataset, Ruling
from cxr_ml.settings import Settings
from cxr_ml.validation import rulings
from cxr_ml.validation.duplicates import search

_COLUMNS = ["sha256", "format", "label", "split", "group", "source", "batch"]


def latest(settings: Settings) -> Dataset | None:
    """The newest dataset version, or None before the first."""
    found = numbers(settings)
    return load(settings, found[-1]) if found else None


def withheld(settings: Settings) -> tuple[str, ...]:
    """SHA-256 of the images that the newest dataset keeps out for good; none before the first dataset."""
    newest = latest(settings)
    return newest.withheld if newest else ()


def numbers(settings: Settings) -> list[int]:
    """The numbers of all dataset versions, in order."""
    return sorted(int(k.split("/")[1]) for k in store.keys(settings, "datasets/") if k.endswith("/dataset.json"))


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
    return tables.read_parquet(settings, key)


def described(settings: Settings, dataset: Dataset, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a manifest with what was measured of each image beside it: view, width, height.

    Raises:
        Refused: the measurements of a batch, or an image in them, are gone.
    """
    parts = []
    for batch in dataset.batches:
        found = tables.scan_columns(
            settings, f"batches/{batch}/measurements.parquet", ["sha256", "view", "width", "height"]
        )
        parts.append(pa.concat_tables(found).to_pandas().assign(batch=batch))
    facts = pd.concat(parts, ignore_index=True).drop_duplicates(["sha256", "batch"])
    joined = rows.merge(facts, on=["sha256", "batch"], how="left", validate="many_to_one")
    if lost := joined["width"].isna().sum():
        raise Refused(f"Every image of dataset {dataset.dataset} must be in its batch's measurements. Missing: {lost}.")
    return joined


def build(settings: Settings, against: int | None = None, on_progress: OnProgress = nobody) -> tuple[Dataset, bool]:
    """Writes the next dataset version, unless all is as it was.

    Args:
        settings: the store, the suites and the shares of the splits.
        against: the dataset that the champion was trained on, with which new images are compared; None: the parent.
        on_progress: told which part of the work begins.

    Returns:
        The dataset, and whether it is new.

    Raises:
        Refused: there is no batch yet, or the data is not fit to train on; the message lists what failed.
    """
    from cxr_ml.validation import verdicts  # takes seconds to import, which who only reads a dataset need not wait

    names = committed_batches.list_names(settings)
    if not names:
        raise Refused("A dataset needs a validated batch. Put a drop into the inbox; run ingest and validate.")
    parent = latest(settings)
    known = manifest(settings, parent) if parent else pd.DataFrame(columns=_COLUMNS, dtype="string")
    # The parent's batches come first and in its order, so that what they decided stays decided.
    before = [n for n in parent.batches if n in names] if parent else []
    order = [*before, *(n for n in names if n not in before)]
    entries = rulings.read(settings)
    on_progress(begun("which images may be trained on"))
    measured, withheld = _candidates(settings, order, entries, known)
    withheld |= set(parent.withheld) if parent else set()
    measured = measured[~measured["sha256"].isin(withheld)].sort_values("sha256", ignore_index=True)
    rows = measured[_COLUMNS].astype("string")
    against = against or (parent.dataset if parent else None)
    reference = known if not parent or against == parent.dataset else manifest(settings, load(settings, against))
    on_progress(begun("drift"))
    moved = drift.compare(measured, known, reference, against, settings.classes)
    failures, page = verdicts.judge_dataset(rows, settings.classes, settings.expectations, moved)
    if stopping := [f for f in failures if f.severity == "critical"]:
        lines = [f"  {f.column}: expected {f.limit}. Received: {f.observed}" for f in stopping]
        raise Refused("The data is not fit to train on; add images of what is missing:\n" + "\n".join(lines))
    data = tables.to_parquet(rows)
    digest = hashlib.sha256(data).hexdigest()
    if parent and parent.manifest_sha256 == digest:
        return parent, False
    number = _write_manifest(settings, parent.dataset + 1 if parent else 1, data)
    on_progress(begun("shortcut risk"))
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
        rulings=len(entries),
        withheld=tuple(sorted(withheld)),
        shortcuts=shortcuts.probes(measured[measured["split"] != "test"], settings),
        drift=moved,
        warnings=tuple(f for f in failures if f.severity != "critical"),
    )
    folder = f"datasets/{number}"
    store.put_uncommitted(settings, f"{folder}/dataset.html", page.encode(), "text/html; charset=utf-8")
    if not store.put_if_absent(settings, f"{folder}/dataset.json", record.to_bytes(), "application/json"):
        raise Refused(f"Dataset {number} was written by another run at this moment. Run this step again.")
    return record, True


def pending(settings: Settings) -> int:
    """How many rulings the newest dataset does not honour yet; 0 before the first dataset."""
    newest = latest(settings)
    return max(0, rulings.count(settings) - newest.rulings) if newest else 0


def _candidates(
    settings: Settings, order: list[str], entries: list[Ruling], known: pd.DataFrame
) -> tuple[pd.DataFrame, set[str]]:
    """What may be trained on with its measurements, group and split, and the images of `known` that have to go."""
    frame = pd.concat(
        [committed_batches.read_measurements(settings, n).assign(batch=n) for n in order], ignore_index=True
    )
    frame = frame[frame["sha256"] != ""]
    conflicted = committed_batches.find_contradicted(frame)
    ruled = rulings.in_force(entries)
    admitted = rulings.admitted(frame, ruled)
    accepted = frame[frame["verdict"] == "accepted"]
    copies = _copies(settings, admitted[admitted["verdict"] != "accepted"], accepted)
    # Accepted images that conflicts or a human took out are placed too: their group finds the split that it had when it
    # comes back. What a human let in is placed last, so that it changes no split that would be without it.
    candidates = pd.concat([accepted, admitted[admitted["verdict"] != "accepted"]]).drop_duplicates("sha256")
    candidates = candidates[candidates["label"].isin(settings.classes) | candidates["sha256"].isin(set(ruled))]
    placed, gone = splits.assign(frame, candidates, copies, known, settings)
    placed = placed.set_index("sha256")[["group", "split"]]
    rows = admitted[admitted["label"].isin(settings.classes)]
    rows = rows[(rows["ruling"] > 0) | ~rows["sha256"].isin(conflicted)]
    rows = _one_label_each(rows, splits.connected(splits.pictures(frame, copies)))
    return rows.join(placed, on="sha256"), gone


def _copies(settings: Settings, released: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """sha256, duplicate_of of released images that show the picture of an accepted one, or of one another."""
    formats = dict(zip(accepted["sha256"], accepted["format"], strict=True))
    formats |= dict(zip(released["sha256"], released["format"], strict=True))

    def load(sha256: str) -> np.ndarray:
        return process_file.load_grey(settings, sha256, formats[sha256])

    # Judging compared accepted images only; a released one was not among them.
    found = search.find_duplicates(released, accepted, load, settings)["duplicate_of"] if len(released) else []
    return pd.DataFrame({"sha256": released["sha256"], "duplicate_of": found}, dtype="string")


def _one_label_each(rows: pd.DataFrame, picture: pd.Series) -> pd.DataFrame:
    """Without the images whose picture a later ruling gave another label."""
    number = picture.reindex("image:" + rows["sha256"]).to_numpy()
    last = rows.assign(picture=number).sort_values("ruling").drop_duplicates("picture", keep="last")
    labels = {p: label for p, label, r in zip(last["picture"], last["label"], last["ruling"], strict=True) if r}
    agrees = [labels.get(p, label) == label for p, label in zip(number, rows["label"], strict=True)]
    return rows[np.array(agrees, bool)]


def _write_manifest(settings: Settings, number: int, data: bytes) -> int:
    """Writes the manifest under the first number, from `number` on, that is free or holds these very bytes.

    A run that died before it wrote dataset.json leaves a manifest that later data may no longer equal.
    """
    while True:
        key = f"datasets/{number}/manifest.parquet"
        if store.put_if_absent(settings, key, data) or store.get(settings, key) == data:
            return number
        number += 1
