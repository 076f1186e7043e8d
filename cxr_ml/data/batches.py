"""Judges an ingested batch and commits it: bad images, duplicates, bad classes. `batch.json` is the commit mark."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxr_ml import store
from cxr_ml.data import duplicates, images, ingest, rulings, thumbnails
from cxr_ml.records import Batch
from cxr_ml.settings import Settings


def committed(settings: Settings) -> list[str]:
    """Names of all committed batches, in order of name."""
    found = (k for k in store.keys(settings, "batches/") if k.endswith("/batch.json"))
    return sorted(k.split("/")[1] for k in found)


def measurements(settings: Settings, batch: str) -> pd.DataFrame:
    """The final table of a committed batch."""
    return ingest.read_parquet(settings, f"batches/{batch}/measurements.parquet")


def _tables(settings: Settings, but: str) -> Iterator[pd.DataFrame]:
    ruled = rulings.in_force(rulings.read(settings))
    for batch in committed(settings):
        if batch != but:
            table = rulings.known(measurements(settings, batch), ruled)
            yield table[["sha256", "phash", "label", "format"]]


def judge(settings: Settings, batch: str) -> Batch:
    """Judges the batch with Great Expectations, refuses duplicates and commits it.

    A file ends as accepted; as quarantined (unreadable, unfit, or the same picture under two labels); as duplicate
    (of an image that the store has already, or of an earlier file of the batch); or as rejected_class.

    Raises:
        Refused: a suite cannot be used, or an expectation could not be evaluated. Nothing is committed then.
    """
    from cxr_ml.data import validate  # takes seconds to import, which who only reads a batch need not wait

    done = store.find(settings, f"batches/{batch}/batch.json")
    if done is not None:
        return Batch.model_validate_json(done[0])
    frame = ingest.read(settings, batch)
    frame, image_failures, image_page = validate.judge_images(frame, settings.expectations)
    frame = _refuse_duplicates(settings, batch, frame)
    frame, class_failures, rejected, class_page = validate.judge_classes(frame, settings.expectations)
    record = Batch(
        batch=batch,
        drop=batch.rpartition("-")[0],
        counts=_counts(frame),
        reasons=dict(sorted(Counter(r for reasons in frame["reasons"] for r in reasons).items())),
        rejected_classes=rejected,
        failures=image_failures + class_failures,
    )
    for name, page in (("images", image_page), ("classes", class_page)):
        store.put_uncommitted(settings, f"batches/{batch}/{name}.html", page.encode(), "text/html; charset=utf-8")
    thumbnails.write(settings, frame[frame["verdict"] != "accepted"])
    store.put_uncommitted(settings, f"batches/{batch}/measurements.parquet", ingest.to_parquet(frame))
    store.put_if_absent(settings, f"batches/{batch}/batch.json", record.to_bytes(), "application/json")
    return record


def _counts(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    labels = frame["label"].where(frame["label"] != "", "?")
    counts: dict[str, dict[str, int]] = {}
    for (verdict, label), n in frame.groupby(["verdict", labels]).size().items():
        counts.setdefault(str(verdict), {})[str(label)] = int(n)
    return counts


def _refuse_duplicates(settings: Settings, batch: str, frame: pd.DataFrame) -> pd.DataFrame:
    known = pd.concat(
        [frame.iloc[:0][["sha256", "phash", "label", "format"]], *_tables(settings, batch)], ignore_index=True
    )
    rows = frame[frame["verdict"] == "accepted"]
    formats = dict(zip(known["sha256"], known["format"], strict=True)) | dict(
        zip(rows["sha256"], rows["format"], strict=True)
    )

    def load(sha256: str) -> np.ndarray:
        return images.decode_grey(store.get(settings, ingest.image_key(sha256, formats[sha256])))

    found = duplicates.find(rows, known, load, settings)
    label_of = {}
    for sha, label in zip([*known["sha256"], *rows["sha256"]], [*known["label"], *rows["label"]], strict=True):
        label_of.setdefault(sha, label)
    frame = frame.copy()
    frame["duplicate_of"] = found["duplicate_of"].reindex(frame.index, fill_value="").astype("string")
    conflicted = set()
    for i in found.index[found["duplicate_of"] != ""]:
        other = frame.at[i, "duplicate_of"]
        if label_of[other] == frame.at[i, "label"]:
            frame.at[i, "verdict"] = "duplicate"
            frame.at[i, "reasons"] = [*frame.at[i, "reasons"], f"{found.at[i, 'duplicate_kind']}_duplicate"]
        else:
            conflicted |= {other, frame.at[i, "sha256"]}
    # Nobody knows which of two labels is right, so every bearer of the picture goes.
    for i in frame.index[frame["sha256"].isin(conflicted) & frame["verdict"].isin(["accepted", "duplicate"])]:
        frame.at[i, "verdict"] = "quarantined"
        frame.at[i, "reasons"] = ["conflicting_label"]
    return frame


def conflicts(table: pd.DataFrame) -> set[str]:
    """Images, of whatever batch, that this batch shows under another label."""
    rows = table[[("conflicting_label" in set(r)) for r in table["reasons"]]]
    return set(rows["duplicate_of"]) - {""}
