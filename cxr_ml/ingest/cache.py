"""Cache of what is known of a drop on this machine: a folder below `cache_dir`, shared by all processes."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cxr_ml.settings import InboxSettings
from cxr_ml.store import ObjectStore

_ABANDONED_AFTER = 3600  # seconds after which an unused folder is taken for that of a killed run
_UNFINISHED = "*.unfinished"


def _root(cache_dir: Path) -> Path:
    return cache_dir / "drops"


def _folder(store: ObjectStore, settings: InboxSettings, cache_dir: Path, drop: str) -> Path:
    inbox = settings.path if settings.path.startswith("s3://") else os.path.abspath(settings.path)
    name = repr((store.endpoint_url, inbox.rstrip("/"), drop)).encode(errors="surrogatepass")
    return _root(cache_dir) / hashlib.sha256(name).hexdigest()[:32]


@contextmanager
def in_use(store: ObjectStore, settings: InboxSettings, cache_dir: Path, drop: str) -> Iterator[Path]:
    """Yields the folder of a drop, which nobody removes during the block. Removes abandoned folders of other drops."""
    folder = _folder(store, settings, cache_dir, drop)
    for other in _root(cache_dir).glob("*") if _root(cache_dir).is_dir() else ():
        with suppress(FileNotFoundError):
            if other != folder and time.time() - other.stat().st_mtime > _ABANDONED_AFTER:
                _remove(other)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed at this moment
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_same(folder, descriptor):
            break
        os.close(descriptor)
    try:
        os.utime(folder)
        yield folder
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one process at a time into the block. Files that a killed process left unfinished are removed."""
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.glob(_UNFINISHED):
            path.unlink()
        try:
            yield
        finally:
            for path in folder.glob(_UNFINISHED):
                path.unlink()


def evict(store: ObjectStore, settings: InboxSettings, cache_dir: Path, drop: str) -> None:
    """Removes the folder of a drop unless it is in use."""
    _remove(_folder(store, settings, cache_dir, drop))


def _remove(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(folder, descriptor):
            shutil.rmtree(folder)
    except BlockingIOError:  # in use
        return
    finally:
        os.close(descriptor)


def _is_same(folder: Path, descriptor: int) -> bool:
    """Whether the folder is still the one that was opened."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    return False
