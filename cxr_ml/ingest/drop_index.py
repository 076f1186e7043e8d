"""The index of a drop: its files as a compact table, so that a million files are not a million objects in memory."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml.ingest.archives import Member

CHUNK = 8192  # entries that become objects at the same time
_FIELDS = {
    "file": pa.large_binary(), "size": pa.int64(), "stamp": pa.large_string(), "fault": pa.large_string(),
    "offset": pa.int64(), "packed": pa.int64(), "method": pa.int16(), "crc": pa.int64(),
}  # fmt: skip
_FACTS = b"facts"  # key of the metadata


class Entry(NamedTuple):
    """One file of a drop. `stamp` changes when the file does (modification time, or the ETag in S3)."""

    file: str  # path below the drop, "/" between parts
    size: int  # bytes; -1 for a link
    stamp: str
    path: str  # of what is opened to read it: absolute, or s3://bucket/key
    # Why it cannot be read, or "": symlink, special_file (a device or pipe), path_outside_drop, name_too_long,
    # duplicate_name, too_large, encrypted, unsupported_compression or damaged_member.
    fault: str = ""
    member: Member | None = None  # where it lies in the archive `path`


def encode_name(name: str) -> bytes:
    """Returns the name as bytes that sort as the text does, also if it is not valid UTF-8."""
    return name.encode(errors="surrogatepass")


def decode_name(name: bytes) -> str:
    """Reverses `encode_name`."""
    return name.decode(errors="surrogatepass")


def to_printable(name: str) -> str:
    r"""Returns the name in a form that can be stored: bytes that are not UTF-8 become escapes.

    Example:
        >>> to_printable("film\udcff.png")
        'film\\udcff.png'
    """
    return name.encode(errors="backslashreplace").decode()


class DropIndex(Sequence[Entry]):
    """The files of a drop in order of their paths; 100 bytes of memory for each, none if the table lies on disk."""

    def __init__(self, table: pa.Table, root: str, cache: Path | None = None) -> None:
        """Takes the table.

        Args:
            table: with the columns of _FIELDS.
            root: folder or prefix of the files, with "/", or the archive that holds them.
            cache: folder for tables derived from the drop.
        """
        self.table, self.root, self.cache = table, root, cache

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.table)

    def __getitem__(self, position: int) -> Entry:  # type: ignore[override]  # no slices: `entries`
        """Returns one entry."""
        position = range(len(self))[position]
        return next(self.entries(position, position + 1))

    def __iter__(self) -> Iterator[Entry]:
        """Yields all entries."""
        return self.entries(0, len(self))

    def entries(self, first: int, last: int) -> Iterator[Entry]:
        """Yields the entries from `first` to before `last`."""
        for start in range(first, last, CHUNK):
            columns = self.table.slice(start, min(CHUNK, last - start)).to_pydict().values()
            for name, size, stamp, fault, offset, packed, method, crc in zip(*columns, strict=True):
                file = decode_name(name)
                if offset is None:
                    yield Entry(file, size, stamp, self.root + file, fault)
                else:
                    yield Entry(file, size, stamp, self.root, fault, Member(offset, packed, method, crc))

    def faulty_positions(self) -> set[int]:
        """Returns the positions of the entries that have a fault."""
        return set(np.flatnonzero(pc.not_equal(self.table["fault"], "").to_numpy()).tolist())


def build_index(entries: Iterable[Entry], root: str) -> DropIndex:
    """Sorts entries by path; a name that several have once it is printable is kept once, as faulty."""
    remaining, chunks = iter(entries), []
    while chunk := list(islice(remaining, CHUNK)):
        columns: list[list] = [[encode_name(e.file) for e in chunk], *([e[i] for e in chunk] for i in (1, 2, 4))]
        columns += [[e.member and e.member[i] for e in chunk] for i in range(4)]
        table = pa.table(columns, schema=pa.schema(_FIELDS))
        printable = pa.array([to_printable(e.file) for e in chunk], pa.large_string())
        chunks.append(table.append_column("name", printable))
    if not chunks:
        return DropIndex(pa.schema(_FIELDS).empty_table(), root)
    table = pa.concat_tables(chunks).combine_chunks()
    del chunks
    table = table.take(pc.sort_indices(table, [("file", "ascending")]))
    codes = table["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    table = table.drop_columns("name")
    counts = np.bincount(codes)
    if len(counts) < len(codes):
        repeated = pa.array(counts[codes] > 1)
        fault = pc.if_else(repeated, "duplicate_name", table["fault"]).cast(pa.large_string())
        table = table.set_column(table.schema.get_field_index("fault"), "fault", fault)
        first = np.zeros(len(codes), bool)
        first[np.unique(codes, return_index=True)[1]] = True
        table = table.filter(pa.array(first))
    return DropIndex(table, root)


def write_index(tables: Iterable[pa.Table], path: Path, facts: dict[str, Any]) -> None:
    """Writes parts of a table with facts about it; `path` appears as a whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = None
    with unfinished.open("wb") as file:
        for table in tables:
            writer = writer or pa.ipc.new_file(file, table.schema.with_metadata({_FACTS: json.dumps(facts)}))
            writer.write_table(table, max_chunksize=CHUNK)
        if writer:
            writer.close()
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_index(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Reads the table and the facts that `write_index` wrote; the table is mapped into memory as it is used."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table, json.loads(table.schema.metadata[_FACTS])
