"""Archives as drops: lists and reads the files of a .zip, .tar or .tar.gz. No member is written to disk."""

import gzip
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import BadImage
from cxr_ml.settings import ImageSettings, InboxSettings, Settings

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_NAME = 1024  # bytes of UTF-8, as many as a key of S3 may have
_TAR = -1
_SUPPORTED = {_TAR, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # the others may need gigabytes to unpack
_CHUNK = 1 << 20


class Member(NamedTuple):
    """Where the bytes of one file of an archive lie: enough to read it in any process."""

    offset: int  # of a tar the file's first byte, of a ZIP its local header
    packed: int  # bytes it takes there
    method: int  # of compression, by ZIP's numbers
    crc: int  # CRC-32 of the file; 0 for a tar, which has none


class ArchiveFile(NamedTuple):
    """One file of an archive."""

    name: str
    size: int  # bytes; -1 for a link
    fault: str  # as of drop_index.Entry; "" where none is known yet
    member: Member


def is_archive(name: str) -> bool:
    """Returns whether a file of that name is a drop.

    Example:
        >>> is_archive("week-1.TAR.GZ"), is_archive("labels.csv")
        (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def is_outside(file: str) -> bool:
    """Returns whether a path leads outside the folder that it is relative to.

    Example:
        >>> is_outside("NORMAL/1.png"), is_outside("../1.png"), is_outside("/etc/passwd"), is_outside("C:x.png")
        (False, True, True, True)
    """
    return file[:1] in ("", "/") or ".." in file.split("/") or "\0" in file or bool(re.match(r"[A-Za-z]:", file))


def is_gzipped(path: Path) -> bool:
    """Returns whether the archive must be decompressed before its members can be read: a .tar.gz."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def decompress(settings: InboxSettings, path: Path, target: BinaryIO, drop: str) -> None:
    """Writes the tar of a .tar.gz to `target`.

    Raises:
        Refused: the gzip file is damaged, or unpacks to more than `max_archive_bytes`.
    """
    unpacked = 0
    try:
        with gzip.open(path) as source:
            while chunk := source.read(_CHUNK):
                unpacked += len(chunk)
                _check_total(settings, drop, unpacked)
                target.write(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(drop, error) from None


def list_members(settings: Settings, path: Path, drop: str) -> Iterator[ArchiveFile]:
    """Yields every file of the archive.

    Raises:
        Refused: the archive cannot be listed to its end, has more than `max_drop_files` files, or they are together
            larger than `max_archive_bytes`.
    """
    with path.open("rb") as archive:
        is_zip = archive.read(4) in (b"PK\3\4", b"PK\5\6")
    count, total = 0, 0
    try:
        for file in _list_zip(settings.inbox, path) if is_zip else _list_tar(path):
            total += max(0, file.size)
            _check_total(settings.inbox, drop, total)
            if count == settings.inbox.max_drop_files:
                raise Refused(
                    f"The archive {drop!r} must hold at most {settings.inbox.max_drop_files:,} files. Received: more. "
                    "Split it, or raise max_drop_files."
                )
            count += 1
            yield _check_file(settings.images, file)
    except Refused:
        raise
    except Exception as error:  # tarfile and zipfile raise anything on a hostile file
        raise _damaged(drop, error) from None


def read_member(file: BinaryIO, size: int, member: Member) -> bytes:
    """Reads one file of the archive that is open as `file`.

    Raises:
        BadImage: damaged_member, also if it unpacks to more than the `size` it is listed with.
    """
    file.seek(member.offset)
    if member.method != _TAR:
        local = file.read(30)
        if local[:4] != b"PK\3\4":
            raise BadImage("damaged_member", "A file of a ZIP was expected. Received: no header of one")
        file.seek(sum(struct.unpack("<HH", local[26:30])), os.SEEK_CUR)
    data = file.read(member.packed)
    try:
        if member.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImage("damaged_member", f"A sound file of a ZIP was expected. Received: {error}") from None
    if len(data) != size or (member.method != _TAR and zlib.crc32(data) != member.crc):
        raise BadImage("damaged_member", f"{size:,} sound bytes were expected. Received: {len(data):,}")
    return data


def _check_file(settings: ImageSettings, file: ArchiveFile) -> ArchiveFile:
    """The file with a normalized name and the fault that its name or size adds."""
    name, fault = file.name, file.fault
    normalized = "/".join(part for part in name.split("/") if part not in ("", "."))
    if is_outside(name) or not normalized:
        fault = "path_outside_drop"
    else:
        name = normalized  # tar packs its working folder as "./NORMAL/a.png"
        fault = fault or ("too_large" if file.size > settings.max_file_bytes else "")
    if len(name.encode(errors="surrogateescape")) > MAX_NAME:
        # The CRC keeps two such names apart.
        name = f"{name[:200]}…{zlib.crc32(name.encode(errors='surrogateescape')):08x}"
        fault = "name_too_long"
    return file._replace(name=name, fault=fault)


def _check_total(settings: InboxSettings, drop: str, total: int) -> None:
    if total > settings.max_archive_bytes:
        raise Refused(
            f"The archive {drop!r} must unpack to at most {settings.max_archive_bytes:,} bytes. Received: more. "
            "Split it, or raise max_archive_bytes."
        )


def _damaged(drop: str, error: object) -> Refused:
    return Refused(
        f"The drop {drop!r} must be a whole .zip, .tar or .tar.gz. Received: one that is incomplete or damaged "
        f"({error or type(error).__name__}). Copy it again."
    )


def _list_zip(settings: InboxSettings, path: Path) -> Iterator[ArchiveFile]:
    if _directory_bytes(path) > 200 * settings.max_drop_files:  # zipfile reads it whole
        raise ValueError("a table of contents without end")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()[::-1]
    del archive
    while infos:
        info = infos.pop()  # those of a large archive take 300 MB
        if info.is_dir():
            continue
        size, packed, fault = info.file_size, info.compress_size, ""
        mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: written under Unix
        if stat.S_ISLNK(mode):
            size, fault = -1, "symlink"
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            fault = "special_file"
        elif info.flag_bits & 1:
            fault = "encrypted"
        elif info.compress_type not in _SUPPORTED:
            fault = "unsupported_compression"
        elif info.header_offset < 0 or packed > size + size // 100 + 1024:  # no method lengthens a file by more
            fault = "damaged_member"
        # Windows archives may have "\" between folders.
        name = info.filename.replace("\\", "/")
        yield ArchiveFile(name, size, fault, Member(info.header_offset, packed, info.compress_type, info.CRC))


def _directory_bytes(path: Path) -> int:
    """Length of a ZIP's central directory as its end record declares it (APPNOTE.TXT 4.3.14, 4.3.16)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65_700))
        tail = file.read()
    end, end64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if end64 >= 0:
        return struct.unpack_from("<Q", tail, end64 + 40)[0]
    return struct.unpack_from("<I", tail, end + 12)[0] if end >= 0 else 0


class _Info(tarfile.TarInfo):
    """A tar header, refused where tarfile would allocate whatever size it claims."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or self.type == tarfile.GNUTYPE_SPARSE or (not self.isreg() and self.size > _CHUNK):
            raise tarfile.ReadError("a header that is not one of a plain file")
        return super()._proc_member(archive)  # type: ignore[misc]  # private to tarfile


def _list_tar(path: Path) -> Iterator[ArchiveFile]:
    with tarfile.open(path, "r:", tarinfo=_Info) as archive:
        end = -1
        while (info := archive.next()) is not None:
            # Those of a large archive would take a gigabyte.
            archive.members.clear()  # type: ignore[attr-defined]  # lacking in the stubs
            if info.offset_data <= end:
                raise ValueError("headers that point backwards")
            end = info.offset_data
            size, fault = info.size, ""
            if info.isdir():
                continue
            if info.issym() or info.islnk():
                size, fault = -1, "symlink"
            elif not info.isreg() or info.issparse():
                fault = "special_file"
            yield ArchiveFile(info.name, size, fault, Member(info.offset_data, size, _TAR, 0))
        # tarfile takes a damaged header for the end of the archive.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise ValueError("no end where one was expected")
