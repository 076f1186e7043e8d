"""Refuses the images of a batch that show the picture of an earlier image, or of one under another label."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd

from cxr_ml import layout
from cxr_ml.imaging import decode
from cxr_ml.ingest import memory_budget, process_file, tables
from cxr_ml.progress import OnProgress, counted
from cxr_ml.settings import ValidationSettings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, rulings
from cxr_ml.validation.duplicates import search
from cxr_ml.validation.duplicates.hash_columns import HASHES, pack_hashes

_COMPARED = ["sha256", *HASHES, "label", "format", "file"]  # columns that a picture is compared by

_LoadGrey = Callable[[str], np.ndarray]


class _Marks:
    """The table of a batch while its verdicts change row by row."""

    def __init__(self, batch: str, frame: pd.DataFrame) -> None:
        self.batch = batch
        self.frame = frame.reset_index(drop=True)
        # Objects, since a column of Arrow is copied for each value that changes.
        self.frame["verdict"] = self.frame["verdict"].astype("category").astype(object)
        for column in ("duplicate_of", "duplicate_file"):
            self.frame[column] = pd.Series("", index=self.frame.index, dtype=object)

    def select(self, places: Sequence[int]) -> pd.DataFrame:
        """sha256, label and file (with its batch) of some rows."""
        rows = self.frame.loc[places, ["sha256", "label"]]
        return rows.assign(file=self.batch + "/" + self.frame.loc[places, "file"])

    def name_other(self, place: int, other: pd.Series) -> None:
        """Notes which other file shows the picture of this one."""
        self.frame.at[place, "duplicate_of"], self.frame.at[place, "duplicate_file"] = other["sha256"], other["file"]

    def refuse_duplicate(self, place: int, kind: str) -> None:
        self.frame.at[place, "verdict"] = "duplicate"
        self.frame.at[place, "reasons"] = [*self.frame.at[place, "reasons"], f"{kind}_duplicate"]

    def quarantine(self, place: int) -> None:
        self.frame.at[place, "verdict"], self.frame.at[place, "reasons"] = "quarantined", ["conflicting_label"]


def mark_duplicates(
    store: ObjectStore,
    settings: ValidationSettings,
    cache_dir: Path,
    batch: str,
    frame: pd.DataFrame,
    on_progress: OnProgress,
) -> pd.DataFrame:
    """Returns the table of a batch with new verdicts for images that show the picture of an earlier one.

    The earlier image (of any batch, or of this one) decides:
    accepted, same label: duplicate. Another label: all images of the picture in this batch are quarantined as
    conflicting_label, each naming another; committed verdicts stay, and the dataset leaves the image out.
    Refused itself (unfit, rejected_class), same label: no consequence, since this file itself was judged fit.
    Refused itself, another label: conflicting_label. Refused as conflicting_label: conflicting_label, whatever the
    label of this file. Without a known label: no consequence, since it contradicts nobody.

    Args:
        store: the object store.
        settings: what is taken for a duplicate.
        cache_dir: folder of what may be deleted between runs.
        batch: its name.
        frame: file, sha256, format, label, verdict, reasons of all files of the batch.
        on_progress: called as pictures are compared.

    Returns:
        `frame`, renumbered, with duplicate_of and duplicate_file ("" where an image repeats nothing).
    """
    marks = _Marks(batch, frame)
    rows, unfit = _read_own(store, batch, marks.frame)
    earlier = pd.concat([unfit.iloc[:0].assign(verdict=""), *_read_earlier(store, cache_dir, batch)], ignore_index=True)
    is_accepted = earlier["verdict"] == "accepted"
    accepted = earlier.loc[is_accepted, _COMPARED]
    refused = pd.concat([earlier[~is_accepted].drop(columns="verdict"), unfit])
    del earlier
    refused = refused[refused["label"] != ""]
    load = _make_loader(store, [accepted, marks.frame.loc[rows.index, ["sha256", "format"]], refused])
    load = _count_loads(load, counted(on_progress, "pictures compared", f"{batch}: looking for copies"))
    _mark_repeats(marks, rows, accepted, search.find_duplicates(rows, accepted, load, settings))
    _mark_conflicts_with_refused(settings, marks, rows, unfit, refused, load)
    return marks.frame.astype(dict.fromkeys(("verdict", "duplicate_of", "duplicate_file"), "string"))


def _mark_repeats(marks: _Marks, rows: pd.DataFrame, accepted: pd.DataFrame, duplicates: pd.DataFrame) -> None:
    """Marks images that repeat an accepted one, or one another: as duplicates, or as conflicts of their labels."""
    repeats = duplicates["duplicate_of"] != ""
    shown_twice = rows.index[repeats | rows["sha256"].isin(set(duplicates.loc[repeats, "duplicate_of"]))]
    pictures = duplicates.loc[shown_twice, "duplicate_of"].where(repeats, rows.loc[shown_twice, "sha256"])
    originals = accepted.loc[accepted["sha256"].isin(set(pictures)), ["sha256", "label", "file"]]
    originals = originals.drop_duplicates("sha256").set_index("sha256", drop=False)
    for picture, bearers in marks.select(shown_twice).groupby(pictures, sort=False):
        known = originals.loc[[picture]] if picture in originals.index else bearers.iloc[:0]
        together = pd.concat([known, bearers])
        conflicting = together["label"].nunique() > 1  # nobody knows which label is right, so none is accepted
        for place, row in bearers.iterrows():
            if conflicting:
                marks.name_other(place, together[together["label"] != row["label"]].iloc[0])
                marks.quarantine(place)
            elif kind := duplicates.at[place, "duplicate_kind"]:
                marks.name_other(place, together.iloc[0])
                marks.refuse_duplicate(place, kind)


def _mark_conflicts_with_refused(
    settings: ValidationSettings,
    marks: _Marks,
    rows: pd.DataFrame,
    unfit: pd.DataFrame,
    refused: pd.DataFrame,
    load: _LoadGrey,
) -> None:
    """Quarantines accepted images whose picture a refused one shows under another label, and their copies."""
    frame = marks.frame
    labels = frame.loc[frame["verdict"] == "accepted", "label"]
    for label in sorted(labels.unique()):
        against = refused[refused["disputed"] | (refused["label"] != label)].drop_duplicates("sha256")
        if against.empty:
            continue
        own = rows.loc[labels.index[labels == label]]
        duplicate_of = search.find_duplicates(own, against, load, settings)["duplicate_of"]
        bearers = against.loc[against["sha256"].isin(duplicate_of), ["sha256", "file"]]
        bearers = bearers.set_index("sha256", drop=False)
        for place in duplicate_of.index[duplicate_of.isin(bearers.index)]:
            other = bearers.loc[duplicate_of[place]]
            marks.name_other(place, other)
            marks.quarantine(place)
            # The refused file keeps its own reasons, and names this one.
            unnamed = frame["duplicate_of"][unfit.index] == ""
            for bearer in unfit.index[(unfit["file"] == other["file"]) & unnamed]:
                marks.name_other(bearer, marks.select([place]).iloc[0])
            copies = (frame["verdict"] == "duplicate") & (frame["duplicate_of"] == frame.at[place, "sha256"])
            for copy in frame.index[copies]:
                marks.quarantine(copy)


def _read_own(store: ObjectStore, batch: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """sha256 and hashes of the accepted images of the batch; _COMPARED of its other images, with `disputed`."""
    accepted, unfit, done = [], [], 0
    for table in tables.read_shards(store, batch, list(HASHES)):
        judged = frame.iloc[done : done + len(table)]
        done += len(table)
        part = pack_hashes(table.to_pandas().set_axis(judged.index))
        part["sha256"] = judged["sha256"]
        is_accepted = judged["verdict"] == "accepted"
        accepted.append(part[is_accepted])
        others = judged[~is_accepted & (judged["sha256"] != "")]
        columns = {"label": others["label"], "format": others["format"], "file": batch + "/" + others["file"]}
        disputed = committed_batches.is_disputed(others["reasons"])
        unfit.append(part.loc[others.index].assign(**columns, disputed=disputed))
    return pd.concat(accepted), pd.concat(unfit)


def _read_earlier(store: ObjectStore, cache_dir: Path, own_batch: str) -> Iterator[pd.DataFrame]:
    """The measured images of the other committed batches, but not those that repeat an earlier one.

    Images that humans let in count as accepted, and labels are those in force. `disputed`: quarantined for its labels.
    """
    in_force = rulings.in_force(rulings.read(store))
    for batch in committed_batches.list_names(store):
        if batch != own_batch:
            key = layout.measurements(batch)
            parts = tables.scan_columns(store, cache_dir, key, [*_COMPARED, "verdict", "reasons"])
            table = pd.concat([pack_hashes(part.to_pandas()) for part in parts], ignore_index=True)
            table["disputed"] = committed_batches.is_disputed(table.pop("reasons"))
            entering = rulings.select_known(table, in_force).assign(verdict="accepted")
            rest = table.drop(index=entering.index)
            rest = rest[(rest["sha256"] != "") & (rest["verdict"] != "duplicate")]
            table = pd.concat([entering, rest]).sort_index()
            yield table.assign(file=batch + "/" + table["file"])


def _make_loader(store: ObjectStore, images: list[pd.DataFrame]) -> _LoadGrey:
    """A function that returns the grey picture of any of the images (sha256, format).

    A dict of all formats would take 200 bytes for each image.
    """
    starts = np.concatenate([np.fromiter((int(s[:15], 16) for s in t["sha256"]), np.int64, len(t)) for t in images])
    order = np.argsort(starts, kind="stable")
    formats = pd.concat([t["format"] for t in images]).astype("category")
    large_images = Lock()  # one at a time

    def load(sha256: str) -> np.ndarray:
        place = np.searchsorted(starts, int(sha256[:15], 16), sorter=order)
        data = store.get(process_file.image_key(sha256, formats.iat[order[place]]))
        if process_file.count_pixels(data) <= memory_budget.LARGE_PIXELS:
            return decode.decode_grey(data)
        with large_images:
            tables.release_memory()  # memory that threads no longer use: the largest image takes 250 MB
            return decode.decode_grey(data)

    return load


def _count_loads(load: _LoadGrey, report: Callable[[int, int], None]) -> _LoadGrey:
    """`load`, which reports how many pictures it has loaded; how many it will load is not known."""
    number = count(1)

    def load_and_report(sha256: str) -> np.ndarray:
        report(next(number), 0)
        return load(sha256)

    return load_and_report
