"""What a drop says of each of its files: label, split, patient, source and view. A drop is hostile until judged."""

import unicodedata
from pathlib import PurePosixPath

import pandas as pd

from cxr_ml import store
from cxr_ml.data import archives, identity
from cxr_ml.data.containers import BadImage
from cxr_ml.data.inbox import Entry, batch_id, listing, names, opened, printable, read
from cxr_ml.data.sheets import read_rows, spelling
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

__all__ = [
    "Entry",
    "batch_id",
    "has_table",
    "known_labels",
    "labels",
    "listing",
    "names",
    "new",
    "opened",
    "printable",
    "read",
    "spelling",
]

SPLITS = {"train": "train", "training": "train", "test": "test", "val": "validation", "validation": "validation"}
_LABELS = "labels.csv"


def new(settings: Settings) -> list[str]:
    """Names of the drops in the inbox that have files and are not yet in the store in their present form."""
    found = []
    for name in names(settings):
        entries = listing(settings, name)
        if entries and not store.exists(settings, f"batches/{batch_id(name, entries)}/batch.json"):
            found.append(name)
    return found


def known_labels(settings: Settings) -> dict[str, str]:
    """`spelling` of every known label -> the label."""
    return {spelling(k): v for k, v in settings.label_spellings.items()}


def has_table(settings: Settings, drop: str, entries: list[Entry]) -> bool:
    """Whether the labels come from a labels.csv, and not from class folders.

    Raises:
        Refused: there are two.
    """
    known = known_labels(settings)
    return _table(drop, entries, _wrapper(entries, known)) is not None


def labels(settings: Settings, drop: str, entries: list[Entry], part: range | None = None) -> pd.DataFrame:
    """What the drop says of each of its files: by `labels.csv` at its top, or else by class folders.

    Either may lie below one folder that wraps everything. Ids of patients in the texts are replaced by their hash.

    Args:
        settings: known spellings of labels, limits and salt.
        drop: its name, for messages.
        entries: all files of the drop.
        part: in class folders, the entries that are asked for; None: all. Of a labels.csv, all rows are returned.

    Returns:
        One row per file, and per row of labels.csv without a file, with the columns file (`printable`), label ("" if
        unknown), label_raw, split_hint, patient (salted hash), source, view, reasons (codes; empty where all is well)
        and entry (place of the file in `entries`, -1 where there is none), in order of the paths in the drop.

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows; or it names patients and `patient_salt` is not set.
    """
    known = known_labels(settings)
    wrapper = _wrapper(entries, known)
    table = _table(drop, entries, wrapper)
    if table is None:
        wanted = range(len(entries)) if part is None else part
        rows = [_from_folders(entries[i].file, wrapper) | {"entry": i} for i in wanted]
    else:
        rows = _from_csv(settings, drop, entries, table, wrapper)
    rows.sort(key=lambda row: (row["file"], row["entry"]))
    marks = {patient: identity.hashed(settings, patient) for patient in {row["patient"] for row in rows}}
    ids = identity.known_ids(marks)
    finished = []
    for row in rows:
        file = row["file"]
        row |= {name: printable(row[name]) for name in ("file", "label_raw", "source", "view")}
        row["label"] = known.get(spelling(row["label_raw"]), "")
        faulty = row["entry"] >= 0 and entries[row["entry"]].fault
        if not row["label"] and not row["reasons"] and not faulty:
            row["reasons"] = ["unknown_label" if row["label_raw"] else "no_label"]
        patient, row["patient"] = row["patient"], marks[row["patient"]]
        if row["patient"]:
            row = identity.hide(row, [patient], row["patient"])
        row = identity.hide_known(row, ids) if ids else row
        if settings.file_names == "hash":
            folders = PurePosixPath(file.removeprefix(wrapper)).parts[:-1]
            row = identity.nameless(settings, row, file, folders, lambda f: f.lower() in SPLITS or spelling(f) in known)
        finished.append(row)
    columns = ["file", "label", "label_raw", "split_hint", "patient", "source", "view", "reasons", "entry"]
    return pd.DataFrame(finished, columns=columns)


def _wrapper(entries: list[Entry], known: dict[str, str]) -> str:
    """The folder, with "/", below which the whole drop lies, as in most archives; "" where there is none."""
    tops: set[str] = set()
    inside: set[str] = set()
    for parts in (PurePosixPath(e.file).parts for e in entries if not archives.outside(e.file)):
        tops.update(parts[:1] if len(parts) > 1 else ())
        inside.update(parts[1:2] if len(parts) > 2 else ())
        if len(tops) > 1:  # nearly always, and soon; a drop may have a million files
            return ""
    if not tops:
        return ""
    (top,) = tops
    if top.lower() in SPLITS or spelling(top) in known:
        return ""
    wraps = any(name.lower() in SPLITS or spelling(name) in known for name in inside)
    return f"{top}/" if wraps or any(e.file.lower() == f"{top}/{_LABELS}".lower() for e in entries) else ""


def _table(drop: str, entries: list[Entry], wrapper: str) -> int | None:
    """Which entry is the labels.csv of the drop."""
    for folder in ("", wrapper):
        found = [i for i, e in enumerate(entries) if e.file.lower() == f"{folder}{_LABELS}".lower()]
        if len(found) > 1:
            raise Refused(f"The drop {drop!r} must have one labels.csv. Received: {[entries[i].file for i in found]}")
        if found:
            return found[0]
    return None


def _row(file: str, label: str, split: str = "", patient: str = "", source: str = "", view: str = "") -> dict:
    split = SPLITS.get(split.strip().lower(), "")
    return dict(
        file=file, label_raw=label.strip(), split_hint=split, patient=patient, source=source, view=view, reasons=[]
    )


def _from_folders(file: str, wrapper: str) -> dict:
    if archives.outside(file):
        return _row(file, "")
    folders = list(PurePosixPath(file.removeprefix(wrapper)).parts[:-1])
    split = folders.pop(0) if folders and folders[0].lower() in SPLITS else ""
    return _row(file, folders[0] if folders else "", split)


def _from_csv(settings: Settings, drop: str, entries: list[Entry], table: int, wrapper: str) -> list[dict]:
    try:
        data = read(settings, entries[table])
    except BadImage as error:
        raise Refused(f"labels.csv of the drop {drop!r} must be a file that can be read. {error}") from None
    files = {e.file: i for i, e in enumerate(entries) if i != table}
    # A name typed on one system and packed on another may differ in how its accents are composed.
    composed = {unicodedata.normalize("NFC", file): i for file, i in files.items()}
    rows: dict[int | str, dict] = {}
    for said in read_rows(data, drop):
        file = said["filename"].replace("\\", "/")
        file = str(PurePosixPath(file)) if file else ""
        row = _row(file, said["label"], said["split"], said["patient_id"], said["source"], said["view"])
        row["entry"] = -1
        at = None
        if archives.outside(file):
            row["reasons"] = ["path_outside_drop"]
        else:
            tries = [f for way in (file, wrapper + file) for f in (way, unicodedata.normalize("NFC", way))]
            at = next((where[f] for where in (files, composed) for f in tries if f in where), None)
            if at is None:
                row["reasons"] = ["file_missing"]
            else:
                row |= {"file": entries[at].file, "entry": at}
        earlier = rows.setdefault(file if at is None else at, row)
        if earlier is not row and _facts(earlier) != _facts(row):
            earlier["reasons"] = ["conflicting_rows"]
        if len(rows) > settings.max_drop_files:
            raise Refused(
                f"labels.csv of the drop {drop!r} must have at most {settings.max_drop_files:,} rows. "
                "Received: more. Split the drop, or raise max_drop_files."
            )
    unlisted = [_row(file, "") | {"entry": i, "reasons": ["not_listed"]} for file, i in files.items() if i not in rows]
    return [*rows.values(), *unlisted]


def _facts(row: dict) -> tuple[str, str, str]:
    return spelling(row["label_raw"]), row["patient"], row["split_hint"]
