"""Builds the next dataset version from all committed batches and rulings. A group never changes its split."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxr_ml import layout
from cxr_ml.dataset import drift, shortcuts, splits, versions
from cxr_ml.errors import Refused
from cxr_ml.ingest import process_file, tables
from cxr_ml.progress import OnProgress, begun, nobody
from cxr_ml.records import Dataset, Drift, Failure, Ruling
from cxr_ml.settings import Settings, ValidationSettings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, rulings
from cxr_ml.validation.duplicates import search


def build_dataset(
    store: ObjectStore, settings: Settings, against: int | None = None, on_progress: OnProgress = nobody
) -> tuple[Dataset, bool]:
    """Writes the next dataset version, unless it would hold the same images as the newest.

    Args:
        store: the object store.
        settings: the suites and the shares of the splits.
        against: the dataset that the champion was trained on, with which new images are compared; None: the parent.
        on_progress: called when a part of the work begins.

    Returns:
        The dataset, and whether it is new.

    Raises:
        Refused: there is no batch yet, or the data is not fit to train on; the message lists what failed.
    """
    from cxr_ml.validation import verdicts  # takes seconds to import; code that only reads datasets should not wait

    parent = versions.load_latest(store)
    batches = _order_batches(store, parent)
    manifest_before = _load_manifest_of(store, parent)
    entries = rulings.read(store)
    on_progress(begun("which images may be trained on"))
    measured, left_out = _select_images(store, settings, batches, entries, manifest_before)
    left_out |= set(parent.withheld) if parent else set()
    measured = measured[~measured["sha256"].isin(left_out)].sort_values("sha256", ignore_index=True)
    rows = measured[versions.MANIFEST_COLUMNS].astype("string")
    on_progress(begun("drift"))
    measured_drift = _measure_drift(store, settings.classes, measured, parent, manifest_before, against)
    failures, page = verdicts.judge_dataset(rows, settings.classes, settings.validation.expectations, measured_drift)
    _refuse_unfit(failures)
    data = tables.to_parquet(rows)
    digest = hashlib.sha256(data).hexdigest()
    if parent and parent.manifest_sha256 == digest:
        return parent, False
    number = _write_manifest(store, parent.dataset + 1 if parent else 1, data)
    on_progress(begun("shortcut risk"))
    record = Dataset(
        dataset=number,
        parent=parent.dataset if parent else None,
        batches=tuple(batches),
        counts=_count_images(rows),
        manifest_sha256=digest,
        rulings=len(entries),
        withheld=tuple(sorted(left_out)),
        shortcuts=shortcuts.fit_probes(measured[measured["split"] != "test"], settings.dataset, settings.classes),
        drift=measured_drift,
        warnings=tuple(f for f in failures if f.severity != "critical"),
    )
    store.put_uncommitted(layout.dataset_data_docs(number), page.encode(), "text/html; charset=utf-8")
    if not store.put_if_absent(layout.dataset_record(number), record.to_bytes(), "application/json"):
        raise Refused(f"Dataset {number} was written by another run at this moment. Run this step again.")
    return record, True


def count_pending_rulings(store: ObjectStore) -> int:
    """Returns how many rulings the newest dataset does not honour yet; 0 before the first dataset."""
    latest = versions.load_latest(store)
    return max(0, rulings.count(store) - latest.rulings) if latest else 0


def _order_batches(store: ObjectStore, parent: Dataset | None) -> list[str]:
    """Names of the committed batches: those of the parent first and in its order, so that they decide as before."""
    names = committed_batches.list_names(store)
    if not names:
        raise Refused("A dataset needs a validated batch. Put a drop into the inbox; run ingest and validate.")
    before = [n for n in parent.batches if n in names] if parent else []
    return [*before, *(n for n in names if n not in before)]


def _load_manifest_of(store: ObjectStore, dataset: Dataset | None) -> pd.DataFrame:
    if dataset is None:
        return pd.DataFrame(columns=versions.MANIFEST_COLUMNS, dtype="string")
    return versions.load_manifest(store, dataset)


def _measure_drift(
    store: ObjectStore,
    classes: tuple[str, ...],
    measured: pd.DataFrame,
    parent: Dataset | None,
    manifest: pd.DataFrame,
    against: int | None,
) -> Drift:
    """Compares the images with those of the dataset `against`, by default the parent, whose manifest is handed in."""
    if parent is None:
        return drift.measure_drift(measured, manifest, manifest, against, classes)
    number, reference = against or parent.dataset, manifest
    if number != parent.dataset:
        reference = versions.load_manifest(store, versions.load_dataset(store, number))
    return drift.measure_drift(measured, manifest, reference, number, classes)


def _refuse_unfit(failures: Sequence[Failure]) -> None:
    critical = [f for f in failures if f.severity == "critical"]
    if critical:
        lines = [f"  {f.column}: expected {f.limit}. Received: {f.observed}" for f in critical]
        raise Refused("The data is not fit to train on; add images of what is missing:\n" + "\n".join(lines))


def _count_images(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Images of each label in each split."""
    return {
        str(split): {str(label): int(n) for label, n in part["label"].value_counts().sort_index().items()}
        for split, part in rows.groupby("split")
    }


def _select_images(
    store: ObjectStore, settings: Settings, batches: list[str], entries: Sequence[Ruling], known: pd.DataFrame
) -> tuple[pd.DataFrame, set[str]]:
    """Images that may be trained on with measurements, group and split; and those of `known` that have to go."""
    frame = pd.concat(
        [committed_batches.read_measurements(store, n).assign(batch=n) for n in batches], ignore_index=True
    )
    frame = frame[frame["sha256"] != ""]
    conflicting = committed_batches.find_contradicted(frame)
    in_force = rulings.in_force(entries)
    admitted = rulings.select_admitted(frame, in_force)
    accepted = frame[frame["verdict"] == "accepted"]
    copies = _find_copies(store, settings.validation, admitted[admitted["verdict"] != "accepted"], accepted)
    # Accepted images that conflicts or a human took out are placed too, so that their group finds its old split when it
    # comes back. Images that a human let in are placed last, so that they change no split of the others.
    candidates = pd.concat([accepted, admitted[admitted["verdict"] != "accepted"]]).drop_duplicates("sha256")
    candidates = candidates[candidates["label"].isin(settings.classes) | candidates["sha256"].isin(set(in_force))]
    placed, left_out = splits.assign_splits(frame, candidates, copies, known, settings.dataset)
    placed = placed.set_index("sha256")[["group", "split"]]
    rows = admitted[admitted["label"].isin(settings.classes)]
    rows = rows[(rows["ruling"] > 0) | ~rows["sha256"].isin(conflicting)]
    rows = _keep_last_label(rows, splits.number_components(splits.pair_copies(frame, copies)))
    return rows.join(placed, on="sha256"), left_out


def _find_copies(
    store: ObjectStore, settings: ValidationSettings, released: pd.DataFrame, accepted: pd.DataFrame
) -> pd.DataFrame:
    """sha256, duplicate_of of released images that show the picture of an accepted one, or of one another."""
    formats = dict(zip(accepted["sha256"], accepted["format"], strict=True))
    formats |= dict(zip(released["sha256"], released["format"], strict=True))

    def load(sha256: str) -> np.ndarray:
        return process_file.load_grey(store, sha256, formats[sha256])

    # Judging compared accepted images only; a released one was not among them.
    originals = search.find_duplicates(released, accepted, load, settings)["duplicate_of"] if len(released) else []
    return pd.DataFrame({"sha256": released["sha256"], "duplicate_of": originals}, dtype="string")


def _keep_last_label(rows: pd.DataFrame, components: pd.Series) -> pd.DataFrame:
    """Returns the rows without images whose picture a later ruling gave another label.

    Args:
        rows: sha256, label, ruling.
        components: as `splits.number_components` returns them: the number of the picture that an image shows.
    """
    pictures = components.reindex("image:" + rows["sha256"]).to_numpy()
    last = rows.assign(picture=pictures).sort_values("ruling").drop_duplicates("picture", keep="last")
    last = last[last["ruling"] > 0]
    labels = dict(zip(last["picture"], last["label"], strict=True))
    agrees = [labels.get(p, label) == label for p, label in zip(pictures, rows["label"], strict=True)]
    return rows[np.array(agrees, bool)]


def _write_manifest(store: ObjectStore, number: int, data: bytes) -> int:
    """Writes the manifest under the first number, from `number` on, that is free or holds these very bytes.

    A run that died before it wrote dataset.json leaves a manifest that later data may no longer equal.
    """
    while True:
        key = layout.manifest(number)
        if store.put_if_absent(key, data) or store.get(key) == data:
            return number
        number += 1
