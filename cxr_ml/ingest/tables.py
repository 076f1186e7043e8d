"""Tables of a batch, read in parts: no table of a large drop is ever in memory with all its columns."""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.store import ObjectStore

# The fixed columns, in order, with the Arrow type of each.
COLUMNS = {
    "file": "string", "sha256": "string", "format": "string", "bytes": "int64", "width": "int32", "height": "int32",
    "mode": "string", "bits": "int16", "label": "string", "label_raw": "string", "split_hint": "string",
    "patient": "string", "source": "string", "view": "string", "mean": "float64", "std": "float64", "p01": "float64",
    "p99": "float64", "saturation": "float64", "sharpness": "float64", "black_border": "float64",
    "white_border": "float64", "white_box": "float64", "phash": "string", "fine_hash": "string",
    "inner_hash": "string", "ring": "string", "verdict": "string", "reasons": "list",
}  # fmt: skip
_ARROW_TYPES = {"string": pa.large_string(), "list": pa.list_(pa.string())}
# Fixed, so that an empty shard, or one without reasons, has the types of the others.
SCHEMA = pa.schema([(name, _ARROW_TYPES.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
ROWS = 4096  # of a table in memory at once with all its columns, 7 MB; they are copied a few times
_TAIL = 65_536  # bytes at the end of a table that are read first; mostly they hold its footer
_MAX_GAP = 65_536  # bytes between two columns that are read with them rather than with another request
_SHARDS = b"shards"  # metadata of the table of each shard: how many shards its batch has
# Arrow's own allocator keeps as much memory again after many small tables.
pa.set_memory_pool(pa.system_memory_pool())


def to_parquet(frame: pd.DataFrame) -> bytes:
    """Encodes a frame as Parquet; the same frame gives the same bytes."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def read_parquet(store: ObjectStore, key: str) -> pd.DataFrame:
    """Reads a table from the store."""
    return pd.read_parquet(io.BytesIO(store.get(key)))


def read_columns(store: ObjectStore, key: str, columns: Sequence[str]) -> pa.Table:
    """Reads some columns of a table from the store, without downloading the others."""
    tail, size = store.get_range(key, None, _TAIL)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if footer > len(tail):
        tail, _ = store.get_range(key, None, footer)
    whole = np.zeros(size, np.uint8)  # parts that are never written take no memory
    whole[size - len(tail) :] = np.frombuffer(tail, np.uint8)
    metadata = pq.read_metadata(pa.BufferReader(whole))
    for first, last in _byte_ranges(metadata, set(columns), size - len(tail)):
        whole[first:last] = np.frombuffer(store.get_range(key, first, last - 1)[0], np.uint8)
    return pq.read_table(pa.BufferReader(whole), columns=list(columns), use_threads=False)


def _byte_ranges(metadata: pq.FileMetaData, columns: set[str], end: int) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of the columns before `end`; ranges with a small gap are joined."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    ranges: list[tuple[int, int]] = []
    for chunk in chunks:
        if chunk.path_in_schema.split(".")[0] in columns:
            first = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                first = min(first, chunk.dictionary_page_offset)
            last = first + chunk.total_compressed_size
            if ranges and first - ranges[-1][1] < _MAX_GAP:
                ranges[-1] = ranges[-1][0], last
            else:
                ranges.append((first, last))
    return [(first, min(last, end)) for first, last in ranges if first < end]


def scan_columns(store: ObjectStore, cache_dir: Path, key: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields some columns of a table of the store, at most ROWS rows at a time; first an empty table."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_dir) as file:
        store.copy_to(key, file)
        table = pq.ParquetFile(file)
        yield table.schema_arrow.empty_table().select(columns)  # so that the columns are known without any row
        for batch in table.iter_batches(ROWS, columns=list(columns), use_threads=False):
            yield pa.Table.from_batches([batch])


def write_table(store: ObjectStore, cache_dir: Path, key: str, frames: Iterable[pd.DataFrame]) -> None:
    """Stores frames of the same columns as one Parquet file, a row group for each, before its commit mark.

    The same frames give the same bytes.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_dir) as file:
        writer = None
        for frame in frames:
            schema = writer.schema if writer else _schema(frame)
            writer = writer or pq.ParquetWriter(file, schema, compression="zstd")
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
        if writer:
            writer.close()
        store.put_uncommitted(key, file)


def _schema(frame: pd.DataFrame) -> pa.Schema:
    # A column of empty lists does not show the type of their items.
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    return schema.set(schema.get_field_index("reasons"), pa.field("reasons", _ARROW_TYPES["list"]))


def release_memory() -> None:
    """Returns freed memory to the operating system."""
    pa.default_memory_pool().release_unused()


def _shard_keys(store: ObjectStore, batch: str) -> tuple[list[str], list[str]]:
    """Keys of the tables of all shards of a batch, and of those that are missing."""
    stored = sorted(store.keys(layout.shards(batch)))
    keys = [layout.shard(batch, number) for number in range(count_shards(store, stored[0]) if stored else 1)]
    return keys, [key for key in keys if key not in set(stored)]


def is_complete(store: ObjectStore, batch: str) -> bool:
    """Returns whether all shards of the batch are ingested."""
    return not _shard_keys(store, batch)[1]


def read_shards(store: ObjectStore, batch: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yields the table of an ingested batch, shard by shard; all columns, or some.

    Raises:
        Refused: a shard is missing.
    """
    keys, missing = _shard_keys(store, batch)
    if missing:
        raise Refused(
            f"All {len(keys)} shards of the batch {batch!r} must be ingested before it is judged. Received: "
            f"{len(keys) - len(missing)}; there is no {', '.join(missing[:3])}{' …' if missing[3:] else ''}. "
            "Run ingest on its drop again."
        )
    names = SCHEMA.names if columns is None else list(columns)
    for key in keys:
        release_memory()
        # With threads, Arrow's allocator would keep the memory of each of them.
        file = pq.ParquetFile(io.BytesIO(store.get(key)))
        yield file.read(names, use_threads=False).select(names)


def read_batch(store: ObjectStore, batch: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Reads the table of an ingested batch, all shards together; one row per file, in order of the files.

    Raises:
        Refused: a shard is missing.
    """
    whole = pa.concat_tables(read_shards(store, batch, columns))
    position = whole.schema.get_field_index("reasons")
    reasons = _reasons(whole["reasons"]) if position >= 0 else []
    whole = whole.drop_columns("reasons") if position >= 0 else whole
    frame = whole.to_pandas(split_blocks=True, self_destruct=True)
    del whole  # it is empty now
    release_memory()
    if position >= 0:
        frame.insert(position, "reasons", pd.Series(reasons, dtype=object))
    if "file" in frame and not frame["file"].is_unique:
        frame["file"] = pd.array(make_unique(list(frame["file"])), frame["file"].dtype)
    return frame


def make_unique(names: Sequence[str]) -> list[str]:
    """Returns the names with ~2, ~3, … before the extension of the second, third, … that is the same.

    Names become the same where two spellings of one patient are replaced by one hash.

    Example:
        >>> make_unique(["a.png", "a.png", "b.png"])
        ['a.png', 'a~2.png', 'b.png']
    """
    originals, used, unique_names = set(names), set(), []
    for name in names:
        unique, number, path = name, 1, PurePosixPath(name)
        while unique in used or (number > 1 and unique in originals):
            number += 1
            unique = str(path.with_name(f"{path.stem}~{number}{path.suffix}"))
        used.add(unique)
        unique_names.append(unique)
    return unique_names


def _reasons(column: pa.ChunkedArray) -> list[list[str]]:
    """The reasons of each row. Equal rows share one list, so it must not be changed."""
    lists: dict[tuple[str, ...], list[str]] = {}
    return [lists.setdefault(tuple(codes), codes) for part in column.chunks for codes in part.to_pylist()]


def make_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Returns the rows with the columns and types of COLUMNS, and the verdict that follows from the reasons.

    Args:
        rows: as `process_file.ingest_file` and `process_file.measure_file` return them; `unread` is appended to
            `reasons`.
    """
    for row in rows:
        row["reasons"] = [*row.get("reasons", ()), *row.pop("unread", ())]
        row["verdict"] = "quarantined" if row["reasons"] else "accepted"
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    for column, kind in COLUMNS.items():
        if kind == "string":
            frame[column] = frame[column].astype("string").fillna("")
        elif kind.startswith("int"):
            frame[column] = frame[column].fillna(0).astype(kind)
        elif kind != "list":
            frame[column] = frame[column].astype(kind)
    return frame


def count_shards(store: ObjectStore, key: str) -> int:
    """Returns how many shards the batch has to which the table `key` belongs."""
    return int(pq.read_schema(io.BytesIO(store.get(key))).metadata[_SHARDS])


def put_shard(store: ObjectStore, batch: str, number: int, of: int, frame: pd.DataFrame) -> None:
    """Stores the table of one shard of `of`, unless it exists. The same frame gives the same bytes."""
    table = pa.Table.from_pandas(frame, SCHEMA, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_SHARDS: str(of)}), buffer, compression="zstd")
    store.put_if_absent(layout.shard(batch, number), buffer.getvalue())
