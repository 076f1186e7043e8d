"""Puts a drop into the inbox, whole or not at all."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cxr_ml.errors import Refused
from cxr_ml.ingest.archives import SUFFIXES, is_archive


def _walk_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yields relative path and lstat of everything below `folder` that is not a folder; links are never followed."""

    def refuse(error: OSError) -> None:
        raise Refused(f"DROP must be readable. Received: {error.filename!r}: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(parent, f)))]:
            path = os.path.join(parent, name)
            yield os.path.relpath(path, folder), os.lstat(path)


def list_files(folder: Path) -> dict[str, int]:
    """Returns relative path -> bytes of every regular file below `folder`; links and special files are left out."""
    return {name: status.st_size for name, status in _walk_files(folder) if stat.S_ISREG(status.st_mode)}


def _list_contents(drop: Path) -> dict[str, int]:
    """Returns `list_files` of a folder; of an archive its own name and bytes."""
    return list_files(drop) if drop.is_dir() else {drop.name: drop.stat().st_size}


def copy_drop(source: Path, inbox: Path, copying: Path, check: Callable[[Path], None]) -> tuple[str, bool]:
    """Copies the folder or archive `source` to `inbox/<its name>`.

    Args:
        source: absolute, or relative to the working folder.
        inbox: where the drop goes.
        copying: a scratch folder beside the inbox.
        check: refuses a drop that no run can use; called before anything is copied.

    Returns:
        The drop's name, and False when the same drop was there already.

    Raises:
        Refused: `source` is no folder or archive, or empty, cannot name a drop, or another drop has its name; and what
            `check` refuses.
    """
    source = Path(os.path.abspath(source))
    if not (source.is_dir() or (source.is_file() and is_archive(source.name))):
        raise Refused(
            f"DROP must be a folder of labelled X-rays or an archive of one ({', '.join(SUFFIXES)}). "
            f"Received: {str(source)!r}"
        )
    name = source.name
    if not name or name.startswith(".") or not name.isprintable():
        raise Refused(f"DROP must have a visible name; it names the drop. Received: {str(source)!r}")
    contents = _list_contents(source)
    if not any(contents.values()):
        raise Refused(f"DROP must contain files. Received: {str(source)!r}, which has none.")
    target = inbox / name
    if os.path.lexists(target):
        if not target.is_symlink() and target.is_dir() == source.is_dir() and _list_contents(target) == contents:
            return name, False
        raise Refused(
            f"The inbox has another drop named {name!r} ({target}), and a drop never changes once it is there. "
            f"Received: {str(source)!r} with other files. Rename it, for instance by date, and run again."
        )
    check(source)
    draft = copying / name
    shutil.rmtree(draft, ignore_errors=True)
    if source.is_dir():
        for relative in contents:
            (draft / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / relative, draft / relative, follow_symlinks=False)
    else:
        shutil.copy2(source, draft)
    if _list_contents(draft) != contents:
        raise Refused(f"DROP must not change while it is copied. Received: {str(source)!r}, which did. Run again.")
    draft.rename(target)
    return name, True
