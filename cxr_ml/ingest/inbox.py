"""The inbox: which drops it holds, the files of each, and their bytes. What it holds is hostile until judged."""

import errno
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import BadImage
from cxr_ml.ingest import archives, cache, drop_index
from cxr_ml.ingest.drop_index import Entry, Listing, printable, tidy
from cxr_ml.settings import Settings

_IGNORED = {"thumbs.db", "desktop.ini"}
_CHUNK = 1 << 20
_TICK = 2_000_000_000  # ns: the coarsest clock of a file system (FAT)


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


def listing(settings: Settings, drop: str) -> Sequence[Entry]:
    """What the inbox holds of a drop, in order of the paths: its files, or the one file that an archive is.

    Links are listed with size -1 and never followed. No archive is opened here: `opened` gives what it holds.

    Raises:
        Refused: the inbox has no drop of that name, or a folder of it cannot be listed.
    """
    archive = _find(settings, drop)
    return [archive] if archive else _list(settings, drop)[0]


def _find(settings: Settings, drop: str) -> Entry | None:
    inbox = _inbox(settings)
    if drop not in inbox:
        raise Refused(f"The inbox {settings.inbox} has no drop of that name. Received: {drop!r}. There: {list(inbox)}")
    return inbox[drop]


def _list(settings: Settings, drop: str) -> tuple[Listing, dict[str, Any]]:
    """The files of a drop that is no archive, and by what `_still` can tell later whether they are the same."""
    if settings.inbox.startswith("s3://"):
        root = f"{settings.inbox.rstrip('/')}/{drop}"
        bucket, prefix = _s3_parts(root)
        found = (
            Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
            for page in _objects(settings, root)
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        )
        return _tidy(found, f"s3://{bucket}/{prefix}"), {}
    top = str((Path(settings.inbox) / drop).absolute())
    begun, folders = time.time_ns(), {}
    return _tidy(_files(top, folders), f"{top}/"), {"begun": begun, "folders": folders}


def _still(facts: dict[str, Any], batch: str | None) -> bool:
    """Whether a listing may be used again without listing the drop once more.

    A folder changes its time when a file comes, goes or is renamed; a file that is written to is noticed by `read`.
    Objects of S3 have no folder that could tell: their listing serves the run that made it, and says so by its batch.
    """
    if "folders" not in facts:
        return facts["batch"] == batch
    try:
        # What changes during the listing, or within the same tick of the clock, cannot be told by the time.
        return all(
            os.stat(path).st_mtime_ns == changed < facts["begun"] - _TICK for path, changed in facts["folders"].items()
        )
    except OSError:
        return False


def _files(top: str, folders: dict[str, int]) -> Iterator[Entry]:
    """The files below a folder; `folders` gets the path and time of each folder."""

    def complain(error: OSError) -> None:
        raise Refused(f"Every folder of a drop must be readable. Received: {error.filename!r}: {error.strerror}")

    for folder, below, files in os.walk(top, onerror=complain):
        folders[folder] = os.stat(folder).st_mtime_ns
        for name in itertools.chain(files, (f for f in below if os.path.islink(os.path.join(folder, f)))):
            path = os.path.join(folder, name)
            yield local_entry(path[len(top) + 1 :], path, os.lstat(path))


def local_entry(file: str, path: str, status: os.stat_result) -> Entry:
    """`path`, called `file`, with the fault of what is no plain file."""
    stamp = str(status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return Entry(file, status.st_size, stamp, path)
    return Entry(file, -1, stamp, path, "symlink" if stat.S_ISLNK(status.st_mode) else "special_file")


def _tidy(found: Iterator[Entry], root: str) -> Listing:
    return tidy((e for e in found if not _ignored(e.file)), root)


def _ignored(file: str) -> bool:
    name = file.rpartition("/")[2]
    clutter = name.startswith(".") or name.lower() in _IGNORED or file.startswith("__MACOSX/")
    return clutter and not archives.outside(file)


@contextmanager
def opened(settings: Settings, drop: str, batch: str | None = None) -> Iterator[tuple[str, Listing]]:
    """(batch id, files) of a drop of any kind; `read` reads them in any process of this machine, during the block.

    A drop is listed once for all that open it on this machine, until it changes or `cache.forget` is told of it. A
    folder is read where it lies, and so is an archive in a folder. A .tar.gz is unpacked, and an archive in S3 copied,
    once too, into one file below `cache_dir`. No member becomes a file of its own.

    Args:
        settings: the inbox, the limits of archives and `cache_dir`.
        drop: its name.
        batch: what the run goes by that opens it; None: a run begins. A prefix in S3 cannot tell whether it changed, so
            it is listed anew unless it is this batch that was listed.

    Raises:
        Refused: as `listing`; an archive that is damaged, or larger than `max_archive_bytes` or `max_drop_files` allow.
    """
    archive = _find(settings, drop)
    with cache.held(settings, drop) as folder:
        path = folder / "listing"
        with cache.alone(folder):
            if not _usable(path, drop, archive, batch):
                if archive:
                    listing, facts = _opened(settings, drop, archive, folder)
                else:
                    listing, facts = _list(settings, drop)
                    facts["batch"] = batch_id(drop, listing)
                drop_index.write([listing.table], path, facts | {"root": listing.root})
            table, facts = drop_index.read(path)
        yield facts["batch"], Listing(table, facts["root"], folder)


def _usable(path: Path, drop: str, archive: Entry | None, batch: str | None) -> bool:
    if not path.exists():
        return False
    facts = drop_index.read(path)[1]
    return facts["batch"] == batch_id(drop, [archive]) if archive else _still(facts, batch)


def _opened(settings: Settings, drop: str, archive: Entry, folder: Path) -> tuple[Listing, dict[str, Any]]:
    """The files of an archive, from a copy in `folder` where it cannot be read in its place."""
    path, copy = Path(archive.path), folder / "archive"
    if archive.path.startswith("s3://"):
        path = folder / "fetched.unfinished"
        _fetch(settings, archive, path)
    if archives.is_packed(path):
        with (folder / "unpacked.unfinished").open("wb") as target:
            archives.unpack(settings, path, target, printable(drop))
            path = _kept(target, copy)
    elif archive.path.startswith("s3://"):
        with path.open("rb") as target:
            path = _kept(target, copy)
    stamp = str(path.stat().st_mtime_ns)
    found = (
        Entry(name, size, stamp, str(path.absolute()), fault, member)
        for name, size, fault, member in archives.members(settings, path, printable(drop))
    )
    return _tidy(found, str(path.absolute())), {"batch": batch_id(drop, [archive])}


def _kept(file: BinaryIO, path: Path) -> Path:
    """Renames a file that is whole; not even a machine that loses its power leaves a part of it under that name."""
    if file.writable():
        file.flush()
    os.fsync(file.fileno())
    return Path(file.name).replace(path)


def _fetch(settings: Settings, archive: Entry, path: Path) -> None:
    if archive.size > settings.max_archive_bytes:
        raise Refused(
            f"The archive {archive.path!r} must have at most {settings.max_archive_bytes:,} bytes. "
            f"Received: {archive.size:,}. Split it, or raise max_archive_bytes."
        )
    body = _body(settings, archive)
    with path.open("wb") as target:
        while chunk := body.read(_CHUNK):
            target.write(chunk)


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


def batch_id(drop: str, entries: Iterable[Entry]) -> str:
    """`<drop>-<8 hex digits>`: the digits change with the path, size or time of any file of the drop."""
    digest = hashlib.sha256(repr(drop).encode(errors="surrogatepass"))
    for e in entries:
        digest.update(f"\n{e.file!r} {e.size} {e.stamp}".encode(errors="surrogatepass"))
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", drop).strip("-.")[:80] or "drop"
    return f"{slug}-{digest.hexdigest()[:8]}"
