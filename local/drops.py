"""Puts a drop into the inbox, whole or not at all."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from cxr_ml.errors import Refused


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and lstat of everything below `folder` that is not a folder; links are never followed."""

    def complain(error: OSError) -> None:
        raise Refused(f"DROP must be readable. Received: {error.filename!r}: {error.strerror}")

    for where, folders, files in os.walk(folder, onerror=complain):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(where, f)))]:
            path = os.path.join(where, name)
            yield os.path.relpath(path, folder), os.lstat(path)


def listing(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every regular file below `folder`; links and special files are not drop material."""
    return {name: status.st_size for name, status in _files(folder) if stat.S_ISREG(status.st_mode)}


def copy_drop(source: Path, inbox: Path, copying: Path) -> tuple[str, bool]:
    """Copies the folder `source` to `inbox/<its name>`; `copying` is a scratch folder on the inbox's file system.

    Returns:
        The drop's name, and False when the same drop was there already.

    Raises:
        Refused: `source` is no folder or empty, cannot name a drop, or another drop has its name.
    """
    source = Path(os.path.abspath(source))
    if not source.is_dir():
        raise Refused(f"DROP must be a folder of labelled X-rays. Received: {str(source)!r}")
    name = source.name
    if not name or name.startswith(".") or not name.isprintable():
        raise Refused(f"DROP must be a folder with a visible name; it names the drop. Received: {str(source)!r}")
    wanted = listing(source)
    if not wanted:
        raise Refused(f"DROP must contain files. Received: {str(source)!r}, which has none.")
    target = inbox / name
    if os.path.lexists(target):
        if not target.is_symlink() and target.is_dir() and listing(target) == wanted:
            return name, False
        raise Refused(
            f"The inbox has another drop named {name!r} ({target}), and a drop never changes once it is there. "
            f"Received: {str(source)!r} with other files. Rename the folder, for instance by date, and run again."
        )
    draft = copying / name
    shutil.rmtree(draft, ignore_errors=True)
    for relative in wanted:
        (draft / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / relative, draft / relative, follow_symlinks=False)
    if listing(draft) != wanted:
        raise Refused(f"DROP must not change while it is copied. Received: {str(source)!r}, which did. Run again.")
    draft.rename(target)
    return name, True
