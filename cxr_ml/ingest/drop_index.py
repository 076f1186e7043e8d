"""What a drop holds, as a compact list: of a million files no million objects are in memory."""

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

CHUNK = 8192  # entries made into objects at a time
_FIELDS = {
    "file": pa.large_binary(), "size": pa.int64(), "stamp": pa.large_string(), "fault": pa.large_string(),
    "offset": pa.int64(), "packed": pa.int64(), "method": pa.int16(), "crc": pa.int64(),
}  # fmt: skip
_FACTS = b"facts"


class Entry(NamedTuple):
    """One file of a drop. `stamp` changes when the file does (modification time, or the ETag in S3)."""

    file: str  # path below the drop, "/" between parts
    size: int  # bytes; -1 for a link
    stamp: str
    path: str  # what `read` opens: an absolute path, or s3://bucket/key
    # Why it cannot be read, else "": symlink, special_file (a device or pipe), path_outside_drop, name_too_long,
    # duplicate_name, too_large, encrypted, unsupported_compression or damaged_member.
    fault: str = ""
    member: Member | None = None  # where it lies in the archive `path`


def encoded(name: str) -> bytes:
    """`name` as bytes that sort as the text does, also where it is no UTF-8, as names of files may be."""
    return name.encode(errors="surrogatepass")


def decoded(name: bytes) -> str:
    """What `encoded` was given."""
    return name.decode(errors="surrogatepass")


def printable(name: str) -> str:
    """`name` as it can be stored: what is no UTF-8 becomes an escape."""
    return name.encode(errors="backslashreplace").decode()


class Listing(Sequence[Entry]):
    """The files of a drop in order of their paths, 100 bytes for each, or none where the table lies on disk."""

    def __init__(self, table: pa.Table, root: str, cache: Path | None = None) -> None:
        """`root`: what the path of a file is its name below, or the archive; `cache`: a folder for what is derived."""
        self.table, self.root, self.cache = table, root, cache

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> Entry:  # type: ignore[override] - no slices: `part`
        place = range(len(self))[place]
        return next(self.part(place, place + 1))

    def __iter__(self) -> Iterator[Entry]:
        return self.part(0, len(self))

    def part(self, first: int, last: int) -> Iterator[Entry]:
        """The entries from `first` up to, and without, `last`."""
        for start in range(first, last, CHUNK):
            columns = self.table.slice(start, min(CHUNK, last - start)).to_pydict().values()
            for name, size, stamp, fault, offset, packed, method, crc in zip(*columns, strict=True):
                file = decoded(name)
                if offset is None:
                    yield Entry(file, size, stamp, self.root + file, fault)
                else:
                    yield Entry(file, size, stamp, self.root, fault, Member(offset, packed, method, crc))

    def faulty(self) -> set[int]:
        """Places of the entries that have a fault."""
        return set(np.flatnonzero(pc.not_equal(self.table["fault"], "").to_numpy()).tolist())


def tidy(found: Iterable[Entry], root: str) -> Listing:
    """In order of their paths; where several have one name as it is stored, it is listed once, as faulty."""
    found, parts = iter(found), []
    while part := list(islice(found, CHUNK)):
        columns = [[encoded(e.file) for e in part], *([e[i] for e in part] for i in (1, 2, 4))]
        columns += [[e.member and e.member[i] for e in part] for i in range(4)]
        named = pa.table(columns, schema=pa.schema(_FIELDS))
        parts.append(named.append_column("name", pa.array([printable(e.file) for e in part], pa.large_string())))
    if not parts:
        return Listing(pa.schema(_FIELDS).empty_table(), root)
    table = pa.concat_tables(parts).combine_chunks()
    del parts
    table = table.take(pc.sort_indices(table, [("file", "ascending")]))
    codes = table["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    table = table.drop_columns("name")
    often = np.bincount(codes)
    if len(often) < len(codes):
        repeated = pa.array(often[codes] > 1)
        fault = pc.if_else(repeated, "duplicate_name", table["fault"]).cast(pa.large_string())
        table = table.set_column(table.schema.get_field_index("fault"), "fault", fault)
        first = np.zeros(len(codes), bool)
        first[np.unique(codes, return_index=True)[1]] = True
        table = table.filter(pa.array(first))
    return Listing(table, root)


def write(tables: Iterable[pa.Table], path: Path, facts: dict[str, Any]) -> None:
    """Writes a table, in parts, with facts about it, so that it is under `path` as a whole or not at all."""
    unfinished, writer = path.with_name(path.name + ".unfinished"), None
    with unfinished.open("wb") as file:
        for table in tables:
            writer = writer or pa.ipc.new_file(file, table.schema.with_metadata({_FACTS: json.dumps(facts)}))
            writer.write_table(table, max_chunksize=CHUNK)
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """(table, facts) as `write` was given them; of the table is in memory what is looked at."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table, json.loads(table.schema.metadata[_FACTS])
