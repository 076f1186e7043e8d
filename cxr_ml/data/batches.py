"""Judges an ingested batch and commits it: bad images, duplicates, bad classes. `batch.json` is the commit mark."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxr_ml import store
from cxr_ml.data import duplicates, files, ingest, rulings, thumbnails
from cxr_ml.records import Batch
from cxr_ml.settings import Settings

_LATER = ("fine_hash", "ring", "duplicate_file")  # columns that batches of earlier versions lack
_KNOWN = ["sha256", "phash", "fine_hash", "label", "format", "file", "verdict", "reasons"]


def committed(settings: Settings) -> list[str]:
    """Names of all committed batches, in order of name."""
    found = (k for k in store.keys(settings, "batches/") if k.endswith("/batch.json"))
    return sorted(k.split("/")[1] for k in found)


def measurements(settings: Settings, batch: str) -> pd.DataFrame:
    """The final table of a committed batch. What was not yet measured when it was judged is ""."""
    table = ingest.read_parquet(settings, f"batches/{batch}/measurements.parquet")
    return table.assign(**{name: "" for name in _LATER if name not in table})


def _earlier(settings: Settings, but: str) -> Iterator[pd.DataFrame]:
    """The measured images of the other committed batches, but not those that repeat one already there.

    What humans let in counts as accepted, and labels are those in force.
    """
    ruled = rulings.in_force(rulings.read(settings))
    for batch in committed(settings):
        if batch != but:
            table = measurements(settings, batch)
            entering = rulings.known(table, ruled).assign(verdict="accepted")
            rest = table.drop(index=entering.index)
            rest = rest[(rest["sha256"] != "") & (rest["verdict"] != "duplicate")]
            table = pd.concat([entering, rest]).sort_index()
            yield table.assign(file=batch + "/" + table["file"])[_KNOWN]


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
    validate.check_suites(settings.expectations)
    frame = ingest.read(settings, batch)
    frame, image_failures, image_page = validate.judge_images(frame, settings.expectations)
    frame = _refuse_duplicates(settings, batch, frame)
    frame, class_failures, rejected, class_page = validate.judge_classes(frame, settings.expectations)
    counts = _counts(frame)
    record = Batch(
        batch=batch,
        drop=batch.rpartition("-")[0],
        counts=counts,
        reasons=dict(sorted(Counter(r for reasons in frame["reasons"] for r in reasons).items())),
        rejected_classes=rejected,
        failures=image_failures + class_failures,
        untrained={k: n for k, n in counts.get("accepted", {}).items() if k not in settings.classes},
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
    """Verdicts of the accepted images that show the picture of an earlier one; `duplicate_of` and `duplicate_file`.

    The earlier image (of whatever batch, or of this one) decides:
    accepted, same label: duplicate. Another label: all bearers of the picture in this batch are quarantined as
    conflicting_label, each naming another; what is committed stays, and the dataset leaves it out.
    Refused itself (unfit, rejected_class), same label: no consequence: this file was judged on its own and passed.
    Refused itself, another label: conflicting_label. Refused as conflicting_label: conflicting_label, whatever this
    file says. Without a known label: no consequence, since it contradicts nobody.
    """
    measured = frame[frame["sha256"] != ""]
    mine = measured.assign(file=batch + "/" + measured["file"])[_KNOWN]
    before = pd.concat([mine.iloc[:0], *_earlier(settings, batch)], ignore_index=True)
    accepted = before[before["verdict"] == "accepted"]
    rows = mine[mine["verdict"] == "accepted"]
    refused = pd.concat([before[before["verdict"] != "accepted"], mine[mine["verdict"] != "accepted"]])
    refused = refused[refused["label"] != ""]
    everything = pd.concat([before, mine])
    formats = dict(zip(everything["sha256"], everything["format"], strict=True))

    def load(sha256: str) -> np.ndarray:
        return files.stored_grey(settings, sha256, formats[sha256])

    frame = frame.copy()
    for column in ("duplicate_of", "duplicate_file"):
        frame[column] = pd.Series("", index=frame.index, dtype="string")

    def name(i: int, other: pd.Series) -> None:
        frame.at[i, "duplicate_of"], frame.at[i, "duplicate_file"] = other["sha256"], other["file"]

    def conflict(i: int) -> None:
        frame.at[i, "verdict"], frame.at[i, "reasons"] = "quarantined", ["conflicting_label"]

    found = duplicates.find(rows, accepted, load, settings)
    pictures = found["duplicate_of"].where(found["duplicate_of"] != "", rows["sha256"])
    first = accepted.drop_duplicates("sha256").set_index("sha256", drop=False)
    for picture, bearers in rows.groupby(pictures, sort=False):
        known = first.loc[[picture]] if picture in first.index else rows.iloc[:0]
        together = pd.concat([known, bearers])
        conflicting = together["label"].nunique() > 1  # nobody knows which is right, so every bearer goes
        for i, row in bearers.iterrows():
            if conflicting:
                name(i, together[together["label"] != row["label"]].iloc[0])
                conflict(i)
            elif found.at[i, "duplicate_kind"]:
                name(i, together.iloc[0])
                frame.at[i, "verdict"] = "duplicate"
                frame.at[i, "reasons"] = [*frame.at[i, "reasons"], f"{found.at[i, 'duplicate_kind']}_duplicate"]

    rest = rows.loc[frame.loc[rows.index, "verdict"] == "accepted"]
    in_dispute = refused["reasons"].map(lambda codes: "conflicting_label" in set(codes)).astype(bool)
    for label, part in rest.groupby("label"):
        against = refused[in_dispute | (refused["label"] != label)].drop_duplicates("sha256")
        bearers = against.set_index("sha256", drop=False)
        hit = duplicates.find(part, against, load, settings)
        for i in hit.index[hit["duplicate_of"].isin(bearers.index)]:
            other = bearers.loc[hit.at[i, "duplicate_of"]]
            name(i, other)
            conflict(i)
            # Refused for reasons of its own, which stay; it names this one all the same.
            for bearer in mine.index[(mine["file"] == other["file"]) & (frame["duplicate_of"].loc[mine.index] == "")]:
                name(bearer, mine.loc[i])
            # Its copies in this batch are refused with it.
            same = frame.index[(frame["verdict"] == "duplicate") & (frame["duplicate_of"] == frame.at[i, "sha256"])]
            for copy in same:
                conflict(copy)
    return frame


def conflicts(table: pd.DataFrame) -> set[str]:
    """Images, of whatever batch, that this batch shows under another label."""
    rows = table[[("conflicting_label" in set(r)) for r in table["reasons"]]]
    return set(rows["duplicate_of"]) - {""}
