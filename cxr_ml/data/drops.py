"""Finds drops in the inbox, lists their files and reads the label of each. A drop is hostile until judged."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

if TYPE_CHECKING:
    import pandas as pd  # the processes that only read files need not load it

SPLITS = {"train": "train", "training": "train", "test": "test", "val": "validation", "validation": "validation"}
_LABELS = "labels.csv"
_IGNORED = {"thumbs.db", "desktop.ini"}
_COLUMNS = ("filename", "label", "patient_id", "view", "source", "split")


class Entry(NamedTuple):
    """One file of a drop. `stamp` changes when the file does (modification time, or the ETag in S3)."""

    file: str  # path below the drop, "/" between parts
    size: int  # bytes; -1 for a link
    stamp: str
    path: str  # what `read` opens: an absolute path, or s3://bucket/key


def _s3_parts(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/") + "/" if prefix else ""


def _objects(settings: Settings, uri: str, delimiter: str = "") -> Iterator[dict]:
    bucket, prefix = _s3_parts(uri)
    pages = store.client(settings.s3_endpoint_url).get_paginator("list_objects_v2")
    yield from pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)


def names(settings: Settings) -> list[str]:
    """Names of all drops in the inbox, in order.

    Raises:
        Refused: the inbox does not exist.
    """
    if settings.inbox.startswith("s3://"):
        _, prefix = _s3_parts(settings.inbox)
        pages = _objects(settings, settings.inbox, "/")
        found = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ())]
        found = [name.removeprefix(prefix).rstrip("/") for name in found]
        return sorted(name for name in found if name and not name.startswith("."))
    folder = Path(settings.inbox)
    if not folder.is_dir():
        raise Refused(f"The inbox must be an existing folder or s3://bucket/prefix; set CXR_INBOX. Received: {folder}")
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))


def listing(settings: Settings, drop: str) -> list[Entry]:
    """The files of a drop, in order of their paths. Links are listed with size -1 and never followed.

    Raises:
        Refused: the inbox has no drop of that name.
    """
    if drop not in names(settings):
        raise Refused(
            f"The inbox {settings.inbox} has no drop of that name. Received: {drop!r}. There: {names(settings)}"
        )
    if settings.inbox.startswith("s3://"):
        root = f"{settings.inbox.rstrip('/')}/{drop}"
        bucket, prefix = _s3_parts(root)
        found = [
            Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
            for page in _objects(settings, root)
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        ]
    else:
        root = Path(settings.inbox) / drop
        found = []
        for folder, _, files in os.walk(root):
            for name in files:
                path = Path(folder) / name
                status = path.lstat()
                size = -1 if path.is_symlink() or not path.is_file() else status.st_size
                file = path.relative_to(root).as_posix()
                found.append(Entry(file, size, str(status.st_mtime_ns), str(path.absolute())))
    return sorted(e for e in found if not _ignored(e.file))


def _ignored(file: str) -> bool:
    name = PurePosixPath(file).name
    return name.startswith(".") or name.lower() in _IGNORED


@contextmanager
def opened(settings: Settings, drop: str) -> Iterator[tuple[str, list[Entry]]]:
    """The name of the batch that the drop makes, and its files, which can be read as long as this lasts.

    Raises:
        Refused: no such drop, or it has no files.
    """
    entries = listing(settings, drop)
    if not entries:
        raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
    yield batch_id(drop, entries), entries


def read(settings: Settings, entry: Entry) -> bytes:
    """Bytes of one file of a drop.

    Raises:
        Refused: the file is not the one that was listed any more, or must not be read.
    """
    if entry.path.startswith("s3://"):
        bucket, _, key = entry.path.removeprefix("s3://").partition("/")
        found = store.fetch(settings, bucket, key)
        data, stamp = found or (b"", "")
    else:
        try:
            with open(entry.path, "rb") as file:
                data = file.read(entry.size + 1)
                stamp = str(os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            data, stamp = b"", ""
        except PermissionError:
            raise Refused(
                f"Every file of a drop must be readable for the user who ingests it. Received: {entry.file!r}, which "
                "is not. Change its permissions, then run this step again."
            ) from None
    if (len(data), stamp) != (entry.size, entry.stamp):
        raise Refused(changed(f"its file {entry.file!r} is not as it was listed"))
    return data


def changed(what: str) -> str:
    """The refusal of a drop that did not keep still."""
    return (
        f"A drop must not change while it is ingested. Received: a drop that did, for {what}. Write drops elsewhere "
        "and move them into the inbox when they are whole; then start a new run, which takes it as it is then."
    )


def labels_file(entries: list[Entry]) -> Entry | None:
    """The drop's `labels.csv`, if it has one."""
    return next((e for e in entries if e.file == _LABELS), None)


def batch_id(drop: str, entries: list[Entry]) -> str:
    """`<drop>-<8 hex digits>`: the digits change with the path, size or time of any file of the drop."""
    facts = "\n".join(f"{e.file!r} {e.size} {e.stamp}" for e in entries)
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", drop).strip("-.")[:80] or "drop"
    digest = hashlib.sha256((repr(drop) + "\n" + facts).encode(errors="surrogatepass")).hexdigest()
    return f"{slug}-{digest[:8]}"


def new(settings: Settings) -> list[str]:
    """Names of the drops in the inbox that have files and are not yet in the store in their present form."""
    found = []
    for name in names(settings):
        entries = listing(settings, name)
        if entries and not store.exists(settings, f"batches/{batch_id(name, entries)}/batch.json"):
            found.append(name)
    return found


def printable(name: str) -> str:
    """`name` as it can be stored: what is no UTF-8, as names of files may hold, becomes an escape."""
    return name.encode(errors="backslashreplace").decode()


def spelling(text: str) -> str:
    """`text` as labels are compared: without case, spaces, '-' and '_'."""
    return re.sub(r"[\s_-]+", "", text).casefold()


def labels(settings: Settings, drop: str, entries: list[Entry]) -> "pd.DataFrame":
    """What the drop says of each of its files: by class folders, or by `labels.csv` at its top.

    Returns:
        One row per file, and per row of labels.csv without a file, with the columns file (`printable`), label ("" if
        unknown), label_raw, split_hint, patient (salted hash), source, view, reasons (codes; empty where all is well).

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read or lacks the columns filename and label.
    """
    import pandas as pd

    table = labels_file(entries)
    if table is not None:
        if not 0 <= table.size <= settings.max_file_bytes:
            raise Refused(
                f"labels.csv of the drop {drop!r} must be a file of at most {settings.max_file_bytes:,} bytes. "
                f"Received: {'a link' if table.size < 0 else f'{table.size:,} bytes'}"
            )
        rows = _from_csv(read(settings, table), drop, [e for e in entries if e.file != _LABELS])
    else:
        rows = [_from_folders(e.file) for e in entries]
    known = {spelling(k): v for k, v in settings.label_spellings.items()}
    for row in rows:
        row |= {name: printable(row[name]) for name in ("file", "label_raw")}
        row["label"] = known.get(spelling(row["label_raw"]), "")
        if not row["label"] and not row["reasons"]:
            row["reasons"] = ["unknown_label" if row["label_raw"] else "no_label"]
        if row["patient"]:
            digest = hashlib.sha256(f"{settings.patient_salt}\n{row['patient']}".encode(errors="surrogatepass"))
            row["patient"] = digest.hexdigest()[:16]
    columns = ["file", "label", "label_raw", "split_hint", "patient", "source", "view", "reasons"]
    return pd.DataFrame(rows, columns=columns).sort_values("file", ignore_index=True)


def _row(file: str, label: str, split: str = "", patient: str = "", source: str = "", view: str = "") -> dict:
    split = SPLITS.get(split.strip().lower(), "")
    return dict(
        file=file, label_raw=label.strip(), split_hint=split, patient=patient, source=source, view=view, reasons=[]
    )


def _from_folders(file: str) -> dict:
    folders = list(PurePosixPath(file).parts[:-1])
    split = folders.pop(0) if folders and folders[0].lower() in SPLITS else ""
    return _row(file, folders[0] if folders else "", split)


def _from_csv(data: bytes, drop: str, entries: list[Entry]) -> list[dict]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [str(name).strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        lines = list(reader)
    except csv.Error as error:
        raise Refused(f"labels.csv of the drop {drop!r} is not a CSV table: {error}") from None
    if not {"filename", "label"} <= set(header):
        raise Refused(f"labels.csv of the drop {drop!r} needs the columns filename and label. Received: {header[:20]}")
    present = {e.file for e in entries}
    rows: dict[str, dict] = {}
    for line in lines:
        values = {name: (line.get(name) or "").strip() for name in _COLUMNS}
        file = values["filename"].replace("\\", "/")
        row = _row(file, values["label"], values["split"], values["patient_id"], values["source"], values["view"])
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not file or "\0" in file:
            row["reasons"] = ["path_outside_drop"]
        elif file not in present:
            row["reasons"] = ["file_missing"]
        if file in rows:
            if spelling(rows[file]["label_raw"]) != spelling(row["label_raw"]):
                rows[file]["reasons"] = ["conflicting_rows"]
            continue
        rows[file] = row
    unlisted = [{**_row(e.file, ""), "reasons": ["not_listed"]} for e in entries if e.file not in rows]
    return [*rows.values(), *unlisted]
