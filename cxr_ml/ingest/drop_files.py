"""The files of a drop: reads their bytes, wherever they lie, and refuses those that changed since they were listed."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import BadImage
from cxr_ml.ingest import archives
from cxr_ml.ingest.drop_index import Entry, to_printable
from cxr_ml.settings import ImageSettings, InboxSettings
from cxr_ml.store import ObjectStore

_CHUNK = 1 << 20


def make_entry(file: str, path: str, status: os.stat_result) -> Entry:
    """Returns the entry of `path` under the name `file`, with a fault unless it is a plain file."""
    stamp = str(status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return Entry(file, status.st_size, stamp, path)
    return Entry(file, -1, stamp, path, "symlink" if stat.S_ISLNK(status.st_mode) else "special_file")


def read_file(store: ObjectStore, settings: ImageSettings, entry: Entry) -> bytes:
    """Reads the bytes of one file of a drop, in any process of this machine.

    Raises:
        BadImage: `entry.fault`, too_large (such a file is not read), damaged_member, or unreadable (no permission).
        Refused: the file is no longer the one that was listed.
    """
    fault = entry.fault or ("too_large" if entry.size > settings.max_file_bytes else "")
    if fault:
        raise BadImage(fault, f"A file that can be read was expected. Received: {fault}, {entry.size:,} bytes")
    if entry.path.startswith("s3://"):
        return _open_object(store, entry).read()
    try:
        # It may have become a link or a pipe since it was listed.
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
            return archives.read_member(file, entry.size, entry.member)
        data = file.read(entry.size + 1)
    if len(data) != entry.size:
        raise _changed(entry)
    return data


def download_archive(store: ObjectStore, settings: InboxSettings, archive: Entry, path: Path) -> None:
    """Downloads an archive from S3.

    Raises:
        Refused: it is larger than `max_archive_bytes`, or it changed since it was listed.
    """
    if archive.size > settings.max_archive_bytes:
        raise Refused(
            f"The archive {archive.path!r} must have at most {settings.max_archive_bytes:,} bytes. "
            f"Received: {archive.size:,}. Split it, or raise max_archive_bytes."
        )
    body = _open_object(store, archive)
    with path.open("wb") as target:
        while chunk := body.read(_CHUNK):
            target.write(chunk)


def _open_object(store: ObjectStore, entry: Entry) -> Any:  # noqa: ANN401 - botocore's stream
    """The object, if it is still the one that was listed."""
    bucket, _, key = entry.path.removeprefix("s3://").partition("/")
    try:
        return store.client.get_object(Bucket=bucket, Key=key, IfMatch=entry.stamp)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404", "412", "PreconditionFailed"):
            raise _changed(entry) from None
        raise


def _changed(entry: Entry) -> Refused:
    return refuse_changed(f"its file {to_printable(entry.file)!r} is not as it was listed")


def refuse_changed(reason: str) -> Refused:
    """Returns the refusal of a drop that changed while it was ingested."""
    return Refused(
        f"A drop must not change while it is ingested. Received: a drop that did, for {reason}. Write drops elsewhere "
        "and move them into the inbox when they are whole; then start a new run, which takes it as it is then."
    )
