"""The tables of a batch, part by part: of a large drop no table is ever in memory with all its columns."""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.ingest import deidentify
from cxr_ml.settings import Settings

# The fixed columns, in order, with the Arrow type of each.
COLUMNS = {
    "file": "string", "sha256": "string", "format": "string", "bytes": "int64", "width": "int32", "height": "int32",
    "mode": "string", "bits": "int16", "label": "string", "label_raw": "string", "split_hint": "string",
    "patient": "string", "source": "string", "view": "string", "mean": "float64", "std": "float64", "p01": "float64",
    "p99": "float64", "saturation": "float64", "sharpness": "float64", "black_border": "float64",
    "white_border": "float64", "white_box": "float64", "phash": "string", "fine_hash": "string",
    "inner_hash": "string", "ring": "string", "verdict": "string", "reasons": "list",
}  # fmt: skip
_KINDS = {"string": pa.large_string(), "list": pa.list_(pa.string())}
# Not left to be guessed: a shard whose images all are fit, or that is empty, has the types of the others.
SCHEMA = pa.schema([(name, _KINDS.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
ROWS = 4096  # of a table in memory at once with all its columns, 7 MB; they are copied a few times
_TAIL = 65_536  # bytes at the end of a table that are asked for first; its footer is in them, or not much longer
_NEAR = 65_536  # bytes between two columns that are read with them rather than asked for apart
_SHARDS = b"shards"  # in the table of each shard: how many its batch has
# Arrow's own allocator keeps as much again for itself of what many small tables took.
pa.set_memory_pool(pa.system_memory_pool())


def to_parquet(frame: pd.DataFrame) -> bytes:
    """The frame as Parquet; the same frame gives the same bytes."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def read_parquet(settings: Settings, key: str) -> pd.DataFrame:
    """A table of the store."""
    return pd.read_parquet(io.BytesIO(store.get(settings, key)))


def some(settings: Settings, key: str, columns: Iterable[str]) -> pa.Table:
    """Some columns of a table of the store, those that it lacks left out. Of the others no bytes are asked for."""
    tail, size = store.span(settings, key, None, _TAIL)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if footer > len(tail):
        tail, _ = store.span(settings, key, None, footer)
    whole = np.zeros(size, np.uint8)  # what is never written to takes no memory
    whole[size - len(tail) :] = np.frombuffer(tail, np.uint8)
    said = pq.read_metadata(pa.BufferReader(whole))
    wanted = [c for c in columns if c in said.schema.to_arrow_schema().names]
    for first, last in _spans(said, set(wanted), size - len(tail)):
        whole[first:last] = np.frombuffer(store.span(settings, key, first, last - 1)[0], np.uint8)
    return pq.read_table(pa.BufferReader(whole), columns=wanted, use_threads=False)


def _spans(said: pq.FileMetaData, columns: set[str], end: int) -> list[tuple[int, int]]:
    """Where the columns lie before `end`, first byte and the one after the last; what is near is one span."""
    groups = [said.row_group(n) for n in range(said.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        if chunk.path_in_schema.split(".")[0] in columns:
            first = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                first = min(first, chunk.dictionary_page_offset)
            last = first + chunk.total_compressed_size
            if spans and first - spans[-1][1] < _NEAR:
                spans[-1] = spans[-1][0], last
            else:
                spans.append((first, last))
    return [(first, min(last, end)) for first, last in spans if first < end]


def scan(settings: Settings, key: str, columns: Iterable[str]) -> Iterator[pa.Table]:
    """Some columns of a table of the store, at most ROWS rows at a time; those that it lacks are left out."""
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.cache_dir) as file:
        store.copy_to(settings, key, file)
        table = pq.ParquetFile(file)
        there = [c for c in columns if c in table.schema_arrow.names]
        yield table.schema_arrow.empty_table().select(there)  # so that of no rows the columns are known
        for batch in table.iter_batches(ROWS, columns=there, use_threads=False):
            yield pa.Table.from_batches([batch])


def write(settings: Settings, key: str, frames: Iterable[pd.DataFrame]) -> None:
    """Puts frames of the same columns into the store as one Parquet file, a row group for each, before its commit mark.

    The same frames give the same bytes.
    """
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.cache_dir) as file:
        writer = None
        for frame in frames:
            schema = writer.schema if writer else _schema(frame)
            writer = writer or pq.ParquetWriter(file, schema, compression="zstd")
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
        writer.close()
        store.put_uncommitted(settings, key, file)


def _schema(frame: pd.DataFrame) -> pa.Schema:
    # A column of empty lists does not tell what they are lists of.
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    return schema.set(schema.get_field_index("reasons"), pa.field("reasons", _KINDS["list"]))


def give_back() -> None:
    """Returns memory to the system that was used, is free, and that the C library would keep for the next use."""
    pa.default_memory_pool().release_unused()


def folder(batch: str) -> str:
    """Prefix of the tables of the shards of a batch."""
    return f"batches/{batch}/ingested/"


def key(batch: str, number: int) -> str:
    """Key of the table of one shard."""
    return f"{folder(batch)}{number:05d}.parquet"


def _missing(settings: Settings, batch: str) -> tuple[list[str], list[str]]:
    """Keys of the tables of all shards of a batch, of which one is there or the first is asked for; those missing."""
    found = sorted(store.keys(settings, folder(batch)))
    wanted = [key(batch, number) for number in range(shards(settings, found[0]) if found else 1)]
    return wanted, [one for one in wanted if one not in set(found)]


def complete(settings: Settings, batch: str) -> bool:
    """Whether all shards of the batch are ingested."""
    return not _missing(settings, batch)[1]


def parts(settings: Settings, batch: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The table of an ingested batch, shard by shard; all columns, or some. What an earlier version lacked is "".

    Raises:
        Refused: a shard is missing.
    """
    wanted, missing = _missing(settings, batch)
    if missing:
        raise Refused(
            f"All {len(wanted)} shards of the batch {batch!r} must be ingested before it is judged. Received: "
            f"{len(wanted) - len(missing)}; there is no {', '.join(missing[:3])}{' …' if missing[3:] else ''}. "
            "Run ingest on its drop again."
        )
    for one in wanted:
        give_back()
        # With threads, Arrow's allocator keeps what each of them needed for itself.
        file = pq.ParquetFile(io.BytesIO(store.get(settings, one)))
        asked = SCHEMA.names if columns is None else columns
        table = file.read([c for c in asked if c in file.schema_arrow.names], use_threads=False)
        for name in set(asked) - set(table.column_names):
            table = table.append_column(SCHEMA.field(name), pa.array([""] * len(table), SCHEMA.field(name).type))
        yield table.select(asked)


def read(settings: Settings, batch: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table of an ingested batch, all shards together; one row per file, in order of the files.

    Raises:
        Refused: a shard is missing.
    """
    whole = pa.concat_tables(parts(settings, batch, columns))
    at = whole.schema.get_field_index("reasons")
    reasons = _reasons(whole["reasons"]) if at >= 0 else []
    whole = whole.drop_columns("reasons") if at >= 0 else whole
    frame = whole.to_pandas(split_blocks=True, self_destruct=True)
    del whole  # it is empty now
    give_back()
    if at >= 0:
        frame.insert(at, "reasons", pd.Series(reasons, dtype=object))
    if "file" in frame and not frame["file"].is_unique:
        frame["file"] = pd.array(deidentify.told_apart(list(frame["file"])), frame["file"].dtype)
    return frame


def _reasons(column: pa.ChunkedArray) -> list[list[str]]:
    """The reasons of each row. Equal ones are one list, which therefore must not be changed."""
    lists: dict[tuple[str, ...], list[str]] = {}
    return [lists.setdefault(tuple(codes), codes) for part in column.chunks for codes in part.to_pylist()]


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows with the columns and types of COLUMNS, and the verdict that follows from the reasons.

    Args:
        rows: measurements as `process_file.copy` and `process_file.measure_file` return them; `unread` is appended to
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


def shards(settings: Settings, of: str) -> int:
    """How many shards the batch has of which `of` is the key of one."""
    return int(pq.read_schema(io.BytesIO(store.get(settings, of))).metadata[_SHARDS])


def put_shard(settings: Settings, batch: str, number: int, of: int, frame: pd.DataFrame) -> None:
    """Stores the table of one shard of `of`, unless it is there. The same frame gives the same bytes."""
    marked = pa.Table.from_pandas(frame, SCHEMA, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(marked.replace_schema_metadata({_SHARDS: str(of)}), buffer, compression="zstd")
    store.put_if_absent(settings, key(batch, number), buffer.getvalue())
