"""What a drop says of each of its files: label, split, patient, source and view. A drop is hostile until judged."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.ingest import archives, cache, deidentify, drop_index, label_matching
from cxr_ml.ingest.drop_index import Listing, printable
from cxr_ml.ingest.inbox import Entry, batch_id, listing, names, opened, read
from cxr_ml.ingest.labels_csv import spelling, split_of
from cxr_ml.settings import Settings

__all__ = [
    "Entry",
    "batch_id",
    "check_labels",
    "known_labels",
    "listing",
    "names",
    "new",
    "opened",
    "printable",
    "read",
    "read_labels",
    "spelling",
]

_LABELS = "labels.csv"
_CHECKED = 1000  # files whose labels are looked at together, until one is known
_ASKED = 16  # drops that the store, which may be far away, is asked for at the same time
_COLUMNS = ["file", "label", "label_raw", "split_hint", "patient", "source", "view", "reasons", "entry"]
_SAID = pa.schema(
    [
        *((name, pa.large_string()) for name in _COLUMNS[:7]),
        ("reasons", pa.list_(pa.string())),
        ("entry", pa.int32()),
        ("at", pa.int32()),
    ]
)


def new(settings: Settings) -> list[str]:
    """Names of the drops in the inbox that are not yet in the store in their present form.

    Of these, those that have files, and those that cannot be listed.
    """
    asked: list[tuple[str, Future[bool] | None]] = []
    with ThreadPoolExecutor(_ASKED) as pool:
        for name in names(settings):
            try:
                entries = listing(settings, name)
            except Refused:  # it stops no other; its ingest says why
                asked.append((name, None))
                continue
            if entries:
                mark = f"batches/{batch_id(name, entries)}/batch.json"
                asked.append((name, pool.submit(store.exists, settings, mark)))
    return [name for name, judged in asked if not (judged and judged.result())]


def known_labels(settings: Settings) -> dict[str, str]:
    """`spelling` of every known label -> the label."""
    return {spelling(k): v for k, v in settings.label_spellings.items()}


def read_labels(settings: Settings, drop: str, entries: Listing, part: range | None = None) -> pd.DataFrame:
    """What the drop says of each of its files: by `labels.csv` at its top, or else by class folders.

    Either may lie below one folder that wraps everything. Ids of patients in the texts are replaced by their hash. A
    labels.csv is read once for all that ask for a part of it, if the entries are of an `opened` drop.

    Args:
        settings: known spellings of labels, limits and salt.
        drop: its name, for messages.
        entries: all files of the drop.
        part: the entries that are asked for; None: all.

    Returns:
        One row per file, and per row of labels.csv without a file, with the columns file (`printable`), label ("" if
        unknown), label_raw, split_hint, patient (salted hash), source, view, reasons (codes; empty where all is well)
        and entry (place of the file in `entries`, -1 where there is none), in order of the paths in the drop. What has
        no file is asked for with the entry that its name would stand behind.

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows; or it names patients and `patient_salt` is not set.
    """
    part = range(len(entries)) if part is None else part
    wrapper = _wrapper(entries, known_labels(settings))
    table = _table(drop, entries, wrapper)
    if table is None:
        found = enumerate(entries.part(part.start, part.stop), start=part.start)
        rows = [_from_folders(e.file, wrapper) | {"entry": i} for i, e in found]
        return pd.DataFrame(_finished(settings, rows, wrapper, entries.faulty(), {}), columns=_COLUMNS)
    said = _said(settings, drop, entries, table, wrapper)
    first, last = np.searchsorted(said["at"], (part.start, part.stop))
    return pd.DataFrame(said.slice(first, last - first).select(_COLUMNS).to_pylist(), columns=_COLUMNS)


def check_labels(settings: Settings, drop: str) -> None:
    """Makes sure that at least one file of a drop of the inbox has a known label, before any of them is read.

    Raises:
        Refused: none has; as `opened` and `read_labels`.
    """
    with opened(settings, drop) as (_, entries):
        unknown: set[str] = set()
        for start in range(0, len(entries), _CHECKED):
            rows = read_labels(settings, drop, entries, range(start, min(start + _CHECKED, len(entries))))
            if (rows["label"] != "").any():
                return
            unknown.update(rows["label_raw"])
    unknown.discard("")
    named = f"the labels {', '.join(map(repr, sorted(unknown)[:5]))}{' …' if len(unknown) > 5 else ''}"
    raise Refused(
        f"A drop must hold images in folders named by their class, or a {_LABELS} with the columns filename and label. "
        f"Received: {drop!r} with {len(entries)} files and {named if unknown else 'no label at all'}. Known labels: "
        f"{', '.join(dict.fromkeys(settings.label_spellings.values()))}; other spellings of them can be added under "
        "[label_spellings] in cxr.toml."
    )


def _said(settings: Settings, drop: str, entries: Listing, table: int, wrapper: str) -> pa.Table:
    """All that labels.csv says, finished; of an opened drop from the disk, where the first that asks puts it."""
    if entries.cache is None:
        return pa.concat_tables(_read_table(settings, drop, entries, table, wrapper))
    # The same drop may be ingested with other settings at the same time.
    limits = settings.max_drop_files, settings.max_file_bytes, settings.file_names
    facts = repr((entries[table], limits, sorted(known_labels(settings).items()), settings.patient_salt))
    path = entries.cache / f"said-{hashlib.sha256(facts.encode(errors='surrogatepass')).hexdigest()[:32]}"
    with cache.alone(entries.cache):
        if not path.exists():
            drop_index.write(_read_table(settings, drop, entries, table, wrapper), path, {})
    return drop_index.read(path)[0]


def _read_table(settings: Settings, drop: str, entries: Listing, table: int, wrapper: str) -> Iterator[pa.Table]:
    said = label_matching.match(settings, drop, entries, table, wrapper)
    # In order, so that of two ids that are found as one in texts always the same one gives the mark.
    patients = sorted(pc.unique(said["patient"]).to_pylist())
    ids = deidentify.known_ids({patient: deidentify.hashed(settings, patient) for patient in patients})
    del patients
    faulty = entries.faulty()
    for start in range(0, max(1, len(said)), drop_index.CHUNK):
        part = said.slice(start, drop_index.CHUNK)
        rows = _finished(settings, label_matching.rows(part), wrapper, faulty, ids)
        finished = [[row[name] for row in rows] for name in _COLUMNS]
        yield pa.table([*finished, part["at"].combine_chunks()], schema=_SAID)


def _finished(settings: Settings, rows: list[dict], wrapper: str, faulty: set[int], ids: dict[str, str]) -> list[dict]:
    """The rows with their label, and with no text that is not fit to be stored."""
    known = known_labels(settings)
    finished = []
    for row in rows:
        file = row["file"]
        row |= {name: printable(row[name]) for name in ("file", "label_raw", "source", "view")}
        row["label"] = known.get(spelling(row["label_raw"]), "")
        if not row["label"] and not row["reasons"] and row["entry"] not in faulty:
            row["reasons"] = ["unknown_label" if row["label_raw"] else "no_label"]
        patient, row["patient"] = row["patient"], deidentify.hashed(settings, row["patient"])
        if row["patient"]:
            row = deidentify.hide(row, [patient], row["patient"])
        row = deidentify.hide_known(row, ids) if ids else row
        if settings.file_names == "hash":
            folders = PurePosixPath(file.removeprefix(wrapper)).parts[:-1]
            row = deidentify.nameless(settings, row, file, folders, lambda f: split_of(f) or spelling(f) in known)
        finished.append(row)
    return finished


def _wrapper(entries: Listing, known: dict[str, str]) -> str:
    """The folder, with "/", below which the whole drop lies, as in most archives; "" where there is none."""
    tops: set[str] = set()
    inside: set[str] = set()
    for parts in (_parts(e.file) for e in entries if not archives.outside(e.file)):
        tops.update(parts[:1] if len(parts) > 1 else ())
        inside.update(parts[1:2] if len(parts) > 2 else ())
        if len(tops) > 1:  # nearly always, and soon; a drop may have a million files
            return ""
    if not tops:
        return ""
    (top,) = tops
    if split_of(top) or spelling(top) in known:
        return ""
    wraps = any(split_of(name) or spelling(name) in known for name in inside)
    return f"{top}/" if wraps or any(e.file.lower() == f"{top}/{_LABELS}".lower() for e in entries) else ""


def _parts(file: str) -> list[str]:
    return [part for part in file.split("/") if part not in ("", ".")]


def _table(drop: str, entries: Listing, wrapper: str) -> int | None:
    """Which entry is the labels.csv of the drop."""
    ends = pc.ends_with(entries.table["file"], _LABELS.encode(), ignore_case=True)
    places = np.flatnonzero(ends.to_numpy()).tolist()
    for folder in ("", wrapper):
        found = [i for i in places if entries[i].file.lower() == f"{folder}{_LABELS}".lower()]
        if len(found) > 1:
            raise Refused(f"The drop {drop!r} must have one labels.csv. Received: {[entries[i].file for i in found]}")
        if found:
            return found[0]
    return None


def _from_folders(file: str, wrapper: str) -> dict:
    row = dict.fromkeys(("label_raw", "split_hint", "patient", "source", "view"), "") | {"file": file, "reasons": []}
    if archives.outside(file):
        return row
    folders = list(PurePosixPath(file.removeprefix(wrapper)).parts[:-1])
    split = split_of(folders[0]) if folders else ""
    label = folders[1:] if split else folders
    return row | {"label_raw": label[0].strip() if label else "", "split_hint": split or ""}
