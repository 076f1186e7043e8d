"""The inbox: which drops it holds, the files of each, and their bytes. What it holds is hostile until judged."""

import errno
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from cxr_ml import store
from cxr_ml.data import archives
from cxr_ml.data.containers import BadImage
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

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

    top = str(root.absolute())
    for folder, folders, files in os.walk(top, onerror=complain):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            path = os.path.join(folder, name)
            yield local_entry(path[len(top) + 1 :], path, os.lstat(path))


def local_entry(file: str, path: str, status: os.stat_result) -> Entry:
    """`path`, called `file`, with the fault of what is no plain file."""
    stamp = str(status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return Entry(file, status.st_size, stamp, path)
    return Entry(file, -1, stamp, path, "symlink" if stat.S_ISLNK(status.st_mode) else "special_file")


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
    name = file.rpartition("/")[2]
    clutter = name.startswith(".") or name.lower() in _IGNORED or file.startswith("__MACOSX/")
    return clutter and not archives.outside(file)


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


def printable(name: str) -> str:
    """`name` as it can be stored: what is no UTF-8, as names of files may hold, becomes an escape."""
    return name.encode(errors="backslashreplace").decode()
