"""Labels of a drop: label, split, patient, source and view of each file, from labels.csv or from class folders."""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml.errors import Refused
from cxr_ml.ingest import archives, cache, deidentify, drop_index, label_matching
from cxr_ml.ingest.drop_index import DropIndex, to_printable
from cxr_ml.ingest.inbox import open_drop
from cxr_ml.ingest.labels_csv import normalize, parse_split
from cxr_ml.settings import InboxSettings, Settings
from cxr_ml.store import ObjectStore

_LABELS = "labels.csv"
_CHUNK = 1000  # files whose labels are read together, until one is known
_COLUMNS = ["file", "label", "label_raw", "split_hint", "patient", "source", "view", "reasons", "entry"]
_SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in _COLUMNS[:7]),
        ("reasons", pa.list_(pa.string())),
        ("entry", pa.int32()),
        ("at", pa.int32()),
    ]
)


def known_labels(settings: InboxSettings) -> dict[str, str]:
    """Returns normalized spelling -> label, for every known spelling."""
    return {normalize(k): v for k, v in settings.label_spellings.items()}


def read_labels(
    store: ObjectStore, settings: Settings, drop: str, files: DropIndex, positions: range | None = None
) -> pd.DataFrame:
    """Reads the labels of a drop from the `labels.csv` at its top, or else from its class folders.

    Either may lie below one folder that wraps everything. Ids of patients in the texts are replaced by their hash. A
    labels.csv is read once for all its parts, if the drop was opened by `inbox.open_drop`.

    Args:
        store: the object store.
        settings: known spellings of labels, limits and salt.
        drop: its name, for messages.
        files: all files of the drop.
        positions: of the files whose labels are returned; None for all.

    Returns:
        One row per file, and per row of labels.csv without a file, with the columns file (printable), label ("" if
        unknown), label_raw, split_hint, patient (salted hash), source, view, reasons (codes; empty for a usable file)
        and entry (position of the file in `files`, -1 where there is none), in order of the paths in the drop. A row
        without a file comes with the file that its name would follow.

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows; or it names patients and `patient_salt` is not set.
    """
    positions = range(len(files)) if positions is None else positions
    wrapper = _find_wrapper(files, known_labels(settings.inbox))
    table = _find_labels_csv(drop, files, wrapper)
    if table is None:
        entries = enumerate(files.entries(positions.start, positions.stop), start=positions.start)
        rows = [_read_folders(e.file, wrapper) | {"entry": i} for i, e in entries]
        return pd.DataFrame(_finish_rows(settings.inbox, rows, wrapper, files.faulty_positions(), {}), columns=_COLUMNS)
    labels = _load_labels_csv(store, settings, drop, files, table, wrapper)
    first, last = np.searchsorted(labels["at"], (positions.start, positions.stop))
    return pd.DataFrame(labels.slice(first, last - first).select(_COLUMNS).to_pylist(), columns=_COLUMNS)


def check_labels(store: ObjectStore, settings: Settings, drop: str) -> None:
    """Checks that at least one file of a drop in the inbox has a known label, before any of them is read.

    Raises:
        Refused: none has one; as `inbox.open_drop` and `read_labels`.
    """
    with open_drop(store, settings, drop) as (_, files):
        unknown: set[str] = set()
        for start in range(0, len(files), _CHUNK):
            rows = read_labels(store, settings, drop, files, range(start, min(start + _CHUNK, len(files))))
            if (rows["label"] != "").any():
                return
            unknown.update(rows["label_raw"])
    unknown.discard("")
    named = f"the labels {', '.join(map(repr, sorted(unknown)[:5]))}{' …' if len(unknown) > 5 else ''}"
    raise Refused(
        f"A drop must hold images in folders named by their class, or a {_LABELS} with the columns filename and label. "
        f"Received: {drop!r} with {len(files)} files and {named if unknown else 'no label at all'}. Known labels: "
        f"{', '.join(dict.fromkeys(settings.inbox.label_spellings.values()))}; other spellings of them can be added "
        "under [inbox.label_spellings] in cxr.toml."
    )


def _load_labels_csv(
    store: ObjectStore, settings: Settings, drop: str, files: DropIndex, table: int, wrapper: str
) -> pa.Table:
    """All rows of labels.csv, finished; those of an opened drop are written to its cache by the first reader."""
    if files.cache is None:
        return pa.concat_tables(_read_labels_csv(store, settings, drop, files, table, wrapper))
    # The same drop may be ingested with other settings at the same time.
    limits = settings.inbox.max_drop_files, settings.images.max_file_bytes, settings.inbox.file_names
    version = repr((files[table], limits, sorted(known_labels(settings.inbox).items()), settings.inbox.patient_salt))
    path = files.cache / f"labels-{hashlib.sha256(version.encode(errors='surrogatepass')).hexdigest()[:32]}"
    with cache.exclusive(files.cache):
        if not path.exists():
            drop_index.write_index(_read_labels_csv(store, settings, drop, files, table, wrapper), path, {})
    return drop_index.read_index(path)[0]


def _read_labels_csv(
    store: ObjectStore, settings: Settings, drop: str, files: DropIndex, table: int, wrapper: str
) -> Iterator[pa.Table]:
    matched = label_matching.match_rows(store, settings, drop, files, table, wrapper)
    # Sorted, so that of two ids with the same squeezed form always the same one gives the mark.
    patients = sorted(pc.unique(matched["patient"]).to_pylist())
    ids = deidentify.index_patients({patient: deidentify.hash_patient(settings.inbox, patient) for patient in patients})
    del patients
    faulty = files.faulty_positions()
    for start in range(0, max(1, len(matched)), drop_index.CHUNK):
        part = matched.slice(start, drop_index.CHUNK)
        rows = _finish_rows(settings.inbox, label_matching.to_rows(part), wrapper, faulty, ids)
        finished = [[row[name] for row in rows] for name in _COLUMNS]
        yield pa.table([*finished, part["at"].combine_chunks()], schema=_SCHEMA)


def _finish_rows(
    settings: InboxSettings, rows: list[dict], wrapper: str, faulty: set[int], ids: dict[str, str]
) -> list[dict]:
    """The rows with their label, and without patients or unprintable text."""
    known = known_labels(settings)
    finished = []
    for row in rows:
        file = row["file"]
        row |= {name: to_printable(row[name]) for name in ("file", "label_raw", "source", "view")}
        row["label"] = known.get(normalize(row["label_raw"]), "")
        if not row["label"] and not row["reasons"] and row["entry"] not in faulty:
            row["reasons"] = ["unknown_label" if row["label_raw"] else "no_label"]
        patient, row["patient"] = row["patient"], deidentify.hash_patient(settings, row["patient"])
        if row["patient"]:
            row = deidentify.redact(row, [patient], row["patient"])
        row = deidentify.redact_patients(row, ids) if ids else row
        if settings.file_names == "hash":
            folders = PurePosixPath(file.removeprefix(wrapper)).parts[:-1]
            row = deidentify.hash_file_name(settings, row, file, folders, lambda f: _has_meaning(f, known))
        finished.append(row)
    return finished


def _has_meaning(folder: str, known: dict[str, str]) -> bool:
    """Whether a folder is named by a split or a class."""
    return bool(parse_split(folder)) or normalize(folder) in known


def _find_wrapper(files: DropIndex, known: dict[str, str]) -> str:
    """The folder, with "/", that holds the whole drop, as in most archives; "" where there is none."""
    tops: set[str] = set()
    inside: set[str] = set()
    for parts in (_parts(e.file) for e in files if not archives.is_outside(e.file)):
        tops.update(parts[:1] if len(parts) > 1 else ())
        inside.update(parts[1:2] if len(parts) > 2 else ())
        if len(tops) > 1:  # nearly always, and early; a drop may have a million files
            return ""
    if not tops:
        return ""
    (top,) = tops
    if _has_meaning(top, known):
        return ""
    wraps = any(_has_meaning(name, known) for name in inside)
    return f"{top}/" if wraps or any(e.file.lower() == f"{top}/{_LABELS}".lower() for e in files) else ""


def _parts(file: str) -> list[str]:
    return [part for part in file.split("/") if part not in ("", ".")]


def _find_labels_csv(drop: str, files: DropIndex, wrapper: str) -> int | None:
    """Position of the labels.csv of the drop."""
    ends = pc.ends_with(files.table["file"], _LABELS.encode(), ignore_case=True)
    positions = np.flatnonzero(ends.to_numpy()).tolist()
    for folder in ("", wrapper):
        tables = [i for i in positions if files[i].file.lower() == f"{folder}{_LABELS}".lower()]
        if len(tables) > 1:
            raise Refused(f"The drop {drop!r} must have one labels.csv. Received: {[files[i].file for i in tables]}")
        if tables:
            return tables[0]
    return None


def _read_folders(file: str, wrapper: str) -> dict:
    row = dict.fromkeys(("label_raw", "split_hint", "patient", "source", "view"), "") | {"file": file, "reasons": []}
    if archives.is_outside(file):
        return row
    folders = list(PurePosixPath(file.removeprefix(wrapper)).parts[:-1])
    split = parse_split(folders[0]) if folders else ""
    label = folders[1:] if split else folders
    return row | {"label_raw": label[0].strip() if label else "", "split_hint": split or ""}
