"""The inbox: its drops and the files of each. Everything in it is hostile until it is judged."""

import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import archives, cache, drop_files, drop_index
from cxr_ml.ingest.drop_index import DropIndex, Entry, build_index, to_printable
from cxr_ml.settings import InboxSettings, Settings
from cxr_ml.store import ObjectStore

_IGNORED = {"thumbs.db", "desktop.ini"}
_TICK = 2_000_000_000  # ns: the coarsest clock of a file system (FAT)
_MAX_REQUESTS = 16  # to the store at the same time, which may be far away


class OpenedDrop(NamedTuple):
    """The files of a drop, and the id of the batch that they become."""

    batch: str
    files: DropIndex


def _split_s3_uri(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/") + "/" if prefix else ""


def _list_objects(store: ObjectStore, uri: str, delimiter: str = "") -> Iterator[dict]:
    bucket, prefix = _split_s3_uri(uri)
    pages = store.client.get_paginator("list_objects_v2")
    yield from pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)


def _find_drops(store: ObjectStore, settings: InboxSettings) -> dict[str, Entry | None]:
    """Name of every drop, in order -> None for a folder, its file for an archive."""
    drops: dict[str, Entry | None] = {}
    if settings.path.startswith("s3://"):
        bucket, prefix = _split_s3_uri(settings.path)
        for page in _list_objects(store, settings.path, "/"):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(prefix)
                if archives.is_archive(name):
                    drops[name] = Entry(name, item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
            drops |= {f["Prefix"].removeprefix(prefix).rstrip("/"): None for f in page.get("CommonPrefixes", ())}
    else:
        folder = Path(settings.path)
        if not folder.is_dir():
            raise Refused(
                f"The inbox must be an existing folder or s3://bucket/prefix; set CXR_INBOX__PATH. Received: {folder}"
            )
        for path in folder.iterdir():
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                drops[path.name] = None
            elif stat.S_ISREG(status.st_mode) and archives.is_archive(path.name):
                drops[path.name] = Entry(path.name, status.st_size, str(status.st_mtime_ns), str(path.absolute()))
    return {name: drops[name] for name in sorted(drops) if name and not name.startswith(".")}


def list_drops(store: ObjectStore, settings: InboxSettings) -> list[str]:
    """Returns the names of all drops in the inbox, in order: its folders, and its .zip, .tar, .tar.gz and .tgz files.

    Raises:
        Refused: the inbox does not exist.
    """
    return list(_find_drops(store, settings))


def list_new_drops(store: ObjectStore, settings: InboxSettings) -> list[str]:
    """Returns the names of the drops in the inbox that the store does not yet hold in their present form.

    Drops without files are left out; drops that cannot be listed are included.
    """
    judged: dict[str, Future[bool] | None] = {}
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        for name in list_drops(store, settings):
            try:
                entries = list_files(store, settings, name)
            except Refused:  # it stops no other drop; its ingest tells why
                judged[name] = None
                continue
            if entries:
                mark = layout.batch_record(make_batch_id(name, entries))
                judged[name] = pool.submit(store.exists, mark)
    return [name for name, answer in judged.items() if not (answer and answer.result())]


def list_files(store: ObjectStore, settings: InboxSettings, drop: str) -> Sequence[Entry]:
    """Lists what the inbox holds of a drop, in order of the paths: its files, or the one file of an archive.

    Links are listed with size -1 and never followed. No archive is opened here: `open_drop` lists its files.

    Raises:
        Refused: the inbox has no drop of that name, or a folder of it cannot be listed.
    """
    archive = _find_archive(store, settings, drop)
    return [archive] if archive else _index_folder(store, settings, drop)[0]


def _find_archive(store: ObjectStore, settings: InboxSettings, drop: str) -> Entry | None:
    drops = _find_drops(store, settings)
    if drop not in drops:
        raise Refused(f"The inbox {settings.path} has no drop of that name. Received: {drop!r}. There: {list(drops)}")
    return drops[drop]


def _index_folder(store: ObjectStore, settings: InboxSettings, drop: str) -> tuple[DropIndex, dict[str, Any]]:
    """The files of a drop that is no archive, and the facts by which `_is_unchanged` recognises them later."""
    if settings.path.startswith("s3://"):
        root = f"{settings.path.rstrip('/')}/{drop}"
        bucket, prefix = _split_s3_uri(root)
        entries = (
            Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"], f"s3://{bucket}/{item['Key']}")
            for page in _list_objects(store, root)
            for item in page.get("Contents", ())
            if not item["Key"].endswith("/")
        )
        return _index(entries, f"s3://{bucket}/{prefix}"), {}
    top = str((Path(settings.path) / drop).absolute())
    started = time.time_ns()
    folders: dict[str, int] = {}
    return _index(_walk(top, folders), f"{top}/"), {"started": started, "folders": folders}


def _is_unchanged(facts: dict[str, Any], batch: str | None) -> bool:
    """Whether an index may be used again without listing the drop once more.

    A folder changes its time when a file is added, removed or renamed; a file that is written to is noticed when it is
    read. S3 has no folders with a time: an index of objects serves only the run that made it, known by its batch.
    """
    if "folders" not in facts:
        return facts["batch"] == batch
    try:
        # Changes during the listing, or within the same tick of the clock, do not show in the time.
        return all(
            os.stat(path).st_mtime_ns == changed < facts["started"] - _TICK
            for path, changed in facts["folders"].items()
        )
    except OSError:
        return False


def _walk(top: str, folders: dict[str, int]) -> Iterator[Entry]:
    """The files below a folder; the path and time of each folder are added to `folders`."""

    def refuse(error: OSError) -> None:
        raise Refused(f"Every folder of a drop must be readable. Received: {error.filename!r}: {error.strerror}")

    for folder, subfolders, files in os.walk(top, onerror=refuse):
        folders[folder] = os.stat(folder).st_mtime_ns
        for name in itertools.chain(files, (f for f in subfolders if os.path.islink(os.path.join(folder, f)))):
            path = os.path.join(folder, name)
            yield drop_files.make_entry(path[len(top) + 1 :], path, os.lstat(path))


def _index(entries: Iterator[Entry], root: str) -> DropIndex:
    return build_index((e for e in entries if not _is_ignored(e.file)), root)


def _is_ignored(file: str) -> bool:
    name = file.rpartition("/")[2]
    clutter = name.startswith(".") or name.lower() in _IGNORED or file.startswith("__MACOSX/")
    return clutter and not archives.is_outside(file)


@contextmanager
def open_drop(store: ObjectStore, settings: Settings, drop: str, batch: str | None = None) -> Iterator[OpenedDrop]:
    """Lists the files of a drop of any kind; any process of this machine can read them during the block.

    A drop is listed once per machine, until it changes or `cache.evict` removes it. A folder is read in place, as is an
    archive in a folder. A .tar.gz is decompressed, and an archive in S3 downloaded, once too, into one file below
    `cache_dir`. No member becomes a file of its own.

    Args:
        store: the object store.
        settings: the inbox, the limits of archives and `cache_dir`.
        drop: its name.
        batch: id of the batch of the run; None when a run begins. A prefix in S3 does not show whether it changed, so
            it is listed again unless the cached index is of this batch.

    Raises:
        Refused: as `list_files`; an archive is damaged, or exceeds `max_archive_bytes` or `max_drop_files`.
    """
    archive = _find_archive(store, settings.inbox, drop)
    with cache.in_use(store, settings.inbox, settings.cache_dir, drop) as folder:
        path = folder / "listing"
        with cache.exclusive(folder):
            if not _is_usable(path, drop, archive, batch):
                if archive:
                    index, facts = _index_archive(store, settings, drop, archive, folder)
                else:
                    index, facts = _index_folder(store, settings.inbox, drop)
                    facts["batch"] = make_batch_id(drop, index)
                drop_index.write_index([index.table], path, facts | {"root": index.root})
            table, facts = drop_index.read_index(path)
        yield OpenedDrop(facts["batch"], DropIndex(table, facts["root"], folder))


def _is_usable(path: Path, drop: str, archive: Entry | None, batch: str | None) -> bool:
    if not path.exists():
        return False
    facts = drop_index.read_index(path)[1]
    return facts["batch"] == make_batch_id(drop, [archive]) if archive else _is_unchanged(facts, batch)


def _index_archive(
    store: ObjectStore, settings: Settings, drop: str, archive: Entry, folder: Path
) -> tuple[DropIndex, dict[str, Any]]:
    """The files of an archive, from a copy in `folder` where it cannot be read in place."""
    path, copy = Path(archive.path), folder / "archive"
    if archive.path.startswith("s3://"):
        path = folder / "fetched.unfinished"
        drop_files.download_archive(store, settings.inbox, archive, path)
    if archives.is_gzipped(path):
        with (folder / "unpacked.unfinished").open("wb") as target:
            archives.decompress(settings.inbox, path, target, to_printable(drop))
            path = _move_durably(target, copy)
    elif archive.path.startswith("s3://"):
        with path.open("rb") as target:
            path = _move_durably(target, copy)
    stamp = str(path.stat().st_mtime_ns)
    entries = (
        Entry(f.name, f.size, stamp, str(path.absolute()), f.fault, f.member)
        for f in archives.list_members(settings, path, to_printable(drop))
    )
    return _index(entries, str(path.absolute())), {"batch": make_batch_id(drop, [archive])}


def _move_durably(file: BinaryIO, path: Path) -> Path:
    """Renames a complete file; even a machine that loses its power leaves no part of it under that name."""
    if file.writable():
        file.flush()
    os.fsync(file.fileno())
    return Path(file.name).replace(path)


def make_batch_id(drop: str, entries: Iterable[Entry]) -> str:
    """Returns `<drop>-<8 hex digits>`; the digits change with the path, size or time of any file of the drop.

    Example:
        >>> make_batch_id("week 1", [Entry("NORMAL/1.png", size=5, stamp="1700000000", path="")])
        'week-1-14acd4db'
    """
    digest = hashlib.sha256(repr(drop).encode(errors="surrogatepass"))
    for e in entries:
        digest.update(f"\n{e.file!r} {e.size} {e.stamp}".encode(errors="surrogatepass"))
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", drop).strip("-.")[:80] or "drop"
    return f"{slug}-{digest.hexdigest()[:8]}"
