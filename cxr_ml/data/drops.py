"""Finds drops in the inbox, lists their files and reads the label of each. A drop is hostile until judged."""

import errno
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.exceptions import ClientError

from cxr_ml import store
from cxr_ml.data import archives, identity
from cxr_ml.data.containers import BadImage
from cxr_ml.data.sheets import read_rows, spelling
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

if TYPE_CHECKING:
    import pandas as pd  # processes that only read files need not load it

SPLITS = {"train": "train", "training": "train", "test": "test", "val": "validation", "validation": "validation"}
_LABELS = "labels.csv"
_IGNORED = {"thumbs.db", "desktop.ini"}
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """One file of a drop. `stamp` changes when the file does (modification time, or the ETag in S3)."""

    file: str  # path below the drop, "/" between parts
    size: int  # bytes; -1 for a link
    stamp: str
    path: str  # what `read` opens: an absolute path, or s3://bucket/key
    # Why it cannot be read, else "": symlink, special_file (a device or pipe), path_outside_drop, name_too_long,
    # duplicate_name, too_large, encrypted, unsupported_compression or damaged_member.
    fault: str = ""
    member: archives.Member | None = None  # where it lies in the archive `path`


def _s3_parts(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/") + "/" if prefix else ""


def _objects(settings: Settings, uri: str, delimiter: str = "") -> Iterator[dict]:
    bucket, prefix = _s3_parts(uri)
    pages = store.client(settings.s3_endpoint_url).get_paginator("list_objects_v2")
    yield from pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)


def _inbox(settings: Settings) -> dict[str, Entry | None]:
    """Name of every drop, in order -> None for a folder, its file for an archive."""
    found: dict[str, Entry | None] = {}
    if settings.inbox.startswith("s3://"):
        bucket, prefix = _s3_parts(settings.inbox)
        for page in _objects(settings, settings.inbox, "/"):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(prefix)
                if archives.is_archive(name):
                    found[name] = Entry(name, item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
            found |= {f["Prefix"].removeprefix(prefix).rstrip("/"): None for f in page.get("CommonPrefixes", ())}
    else:
        folder = Path(settings.inbox)
        if not folder.is_dir():
            raise Refused(
                f"The inbox must be an existing folder or s3://bucket/prefix; set CXR_INBOX. Received: {folder}"
            )
        for path in folder.iterdir():
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                found[path.name] = None
            elif stat.S_ISREG(status.st_mode) and archives.is_archive(path.name):
                found[path.name] = Entry(path.name, status.st_size, str(status.st_mtime_ns), str(path.absolute()))
    return {name: found[name] for name in sorted(found) if name and not name.startswith(".")}


def names(settings: Settings) -> list[str]:
    """Names of all drops in the inbox, in order: its folders, and its .zip, .tar, .tar.gz and .tgz files.

    Raises:
        Refused: the inbox does not exist.
    """
    return list(_inbox(settings))


def listing(settings: Settings, drop: str) -> list[Entry]:
    """What the inbox holds of a drop, in order of the paths: its files, or the one file that an archive is.

    Links are listed with size -1 and never followed. No archive is opened here: `opened` gives what it holds.

    Raises:
        Refused: the inbox has no drop of that name, or a folder of it cannot be listed.
    """
    inbox = _inbox(settings)
    if drop not in inbox:
        raise Refused(f"The inbox {settings.inbox} has no drop of that name. Received: {drop!r}. There: {list(inbox)}")
    archive = inbox[drop]
    return [archive] if archive else _folder(settings, drop)


def _folder(settings: Settings, drop: str) -> list[Entry]:
    if not settings.inbox.startswith("s3://"):
        return _tidy(_files(Path(settings.inbox) / drop))
    root = f"{settings.inbox.rstrip('/')}/{drop}"
    bucket, prefix = _s3_parts(root)
    return _tidy(
        Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
        for page in _objects(settings, root)
        for item in page.get("Contents", ())
        if not item["Key"].endswith("/")
    )


def _files(root: Path) -> Iterator[Entry]:
    def complain(error: OSError) -> None:
        raise Refused(f"Every folder of a drop must be readable. Received: {error.filename!r}: {error.strerror}")

    for folder, _, files in os.walk(root, onerror=complain):
        for name in files:
            path = Path(folder) / name
            status = path.lstat()
            fault = "symlink" if stat.S_ISLNK(status.st_mode) else "special_file"
            file, stamp = path.relative_to(root).as_posix(), str(status.st_mtime_ns)
            if stat.S_ISREG(status.st_mode):
                yield Entry(file, status.st_size, stamp, str(path.absolute()))
            else:
                yield Entry(file, -1, stamp, str(path.absolute()), fault)


def _tidy(found: Iterator[Entry]) -> list[Entry]:
    """In order of their paths, without clutter; where several have one name, it is listed once, as faulty."""
    listed = sorted((e for e in found if not _ignored(e.file)), key=lambda e: e.file)
    often = Counter(printable(e.file) for e in listed)
    kept: dict[str, Entry] = {}
    for entry in listed:
        name = printable(entry.file)
        kept.setdefault(name, entry if often[name] == 1 else entry._replace(fault="duplicate_name"))
    return list(kept.values())


def _ignored(file: str) -> bool:
    path = PurePosixPath(file)
    if archives.outside(file):
        return False
    return path.name.startswith(".") or path.name.lower() in _IGNORED or path.parts[0] == "__MACOSX"


@contextmanager
def opened(settings: Settings, drop: str) -> Iterator[tuple[str, list[Entry]]]:
    """(batch id, files) of a drop of any kind; `read` reads them in any process of this machine, during the block.

    A folder is read where it lies, and so is an archive in a folder. A .tar.gz is unpacked, and an archive in S3
    copied, into one file below `cache_dir` that is gone after the block. No member becomes a file of its own.

    Raises:
        Refused: as `listing`; an archive that is damaged, or larger than `max_archive_bytes` or `max_drop_files` allow.
    """
    inbox = _inbox(settings)
    archive = inbox.get(drop)
    if archive is None:
        entries = listing(settings, drop)
        yield batch_id(drop, entries), entries
        return
    with ExitStack() as stack:
        path = Path(archive.path)
        if archive.path.startswith("s3://"):
            path = _fetch(settings, archive, stack)
        path = stack.enter_context(archives.plain(settings, path, printable(drop)))
        stamp = str(path.stat().st_mtime_ns)
        found = (
            Entry(name, size, stamp, str(path.absolute()), fault, member)
            for name, size, fault, member in archives.members(settings, path, printable(drop))
        )
        yield batch_id(drop, [archive]), _tidy(found)


def _fetch(settings: Settings, archive: Entry, stack: ExitStack) -> Path:
    if archive.size > settings.max_archive_bytes:
        raise Refused(
            f"The archive {archive.path!r} must have at most {settings.max_archive_bytes:,} bytes. "
            f"Received: {archive.size:,}. Split it, or raise max_archive_bytes."
        )
    target, body = stack.enter_context(archives.scratch(settings)), _body(settings, archive)
    while chunk := body.read(_CHUNK):
        target.write(chunk)
    target.flush()
    return Path(target.name)


def _body(settings: Settings, entry: Entry) -> Any:  # noqa: ANN401 - botocore's stream
    """The object as it was listed."""
    bucket, _, key = entry.path.removeprefix("s3://").partition("/")
    try:
        return store.client(settings.s3_endpoint_url).get_object(Bucket=bucket, Key=key, IfMatch=entry.stamp)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404", "412", "PreconditionFailed"):
            raise _changed(entry) from None
        raise


def _changed(entry: Entry) -> Refused:
    return Refused(changed(f"its file {printable(entry.file)!r} is not as it was listed"))


def changed(what: str) -> str:
    """The refusal of a drop that did not keep still."""
    return (
        f"A drop must not change while it is ingested. Received: a drop that did, for {what}. Write drops elsewhere "
        "and move them into the inbox when they are whole; then start a new run, which takes it as it is then."
    )


def read(settings: Settings, entry: Entry) -> bytes:
    """Bytes of one file of a drop, in whatever process.

    Raises:
        BadImage: `entry.fault`, too_large (nothing is read of such a file), damaged_member, or unreadable (no
            permission).
        Refused: the file is no longer the one that was listed.
    """
    fault = entry.fault or ("too_large" if entry.size > settings.max_file_bytes else "")
    if fault:
        raise BadImage(fault, f"A file that can be read was expected. Received: {fault}, {entry.size:,} bytes")
    if entry.path.startswith("s3://"):
        return _body(settings, entry).read()
    try:
        # The file may have become a link or a pipe since it was listed.
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError as error:
        raise BadImage("unreadable", f"A file that may be read was expected. Received: {error.strerror}") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise _changed(entry) from None
        raise
    with open(descriptor, "rb") as file:
        if str(os.fstat(descriptor).st_mtime_ns) != entry.stamp:
            raise _changed(entry)
        if entry.member:
            return archives.read(file, entry.size, entry.member)
        data = file.read(entry.size + 1)
    if len(data) != entry.size:
        raise _changed(entry)
    return data


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


def labels(settings: Settings, drop: str, entries: list[Entry]) -> "pd.DataFrame":
    """What the drop says of each of its files: by `labels.csv` at its top, or else by class folders.

    Either may lie below one folder that wraps everything. Ids of patients in the texts are replaced by their hash.

    Returns:
        One row per file, and per row of labels.csv without a file, with the columns file (`printable`), label ("" if
        unknown), label_raw, split_hint, patient (salted hash), source, view, reasons (codes; empty where all is well)
        and entry (place of the file in `entries`, -1 where there is none), in order of the paths in the drop.

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows; or it names patients and `patient_salt` is not set.
    """
    import pandas as pd

    known = {spelling(k): v for k, v in settings.label_spellings.items()}
    wrapper = _wrapper(entries, known)
    table = _table(drop, entries, wrapper)
    if table is None:
        rows = [_from_folders(e.file, wrapper) | {"entry": i} for i, e in enumerate(entries)]
    else:
        rows = _from_csv(settings, drop, entries, table, wrapper)
    rows.sort(key=lambda row: (row["file"], row["entry"]))
    marks = {patient: identity.hashed(settings, patient) for patient in {row["patient"] for row in rows}}
    ids = identity.known_ids(marks)
    finished = []
    for row in rows:
        row |= {name: printable(row[name]) for name in ("file", "label_raw", "source", "view")}
        row["label"] = known.get(spelling(row["label_raw"]), "")
        faulty = row["entry"] >= 0 and entries[row["entry"]].fault
        if not row["label"] and not row["reasons"] and not faulty:
            row["reasons"] = ["unknown_label" if row["label_raw"] else "no_label"]
        patient, row["patient"] = row["patient"], marks[row["patient"]]
        if row["patient"]:
            row = identity.hide(row, [patient], row["patient"])
        finished.append(identity.hide_known(row, ids) if ids else row)
    columns = ["file", "label", "label_raw", "split_hint", "patient", "source", "view", "reasons", "entry"]
    return pd.DataFrame(finished, columns=columns)


def _wrapper(entries: list[Entry], known: dict[str, str]) -> str:
    """The folder, with "/", below which the whole drop lies, as in most archives; "" where there is none."""
    paths = [PurePosixPath(e.file).parts for e in entries if not archives.outside(e.file)]
    tops = {parts[0] for parts in paths if len(parts) > 1}
    if len(tops) != 1:
        return ""
    (top,) = tops
    if top.lower() in SPLITS or spelling(top) in known:
        return ""
    inside = {parts[1] for parts in paths if len(parts) > 2}
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
