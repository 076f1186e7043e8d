"""Copies a drop into the store and measures each image, shard by shard. Only what cannot be read is judged here."""

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml import store
from cxr_ml.data import drops, files, identity, inbox, room, workers
from cxr_ml.data.files import image_key
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

__all__ = [
    "COLUMNS",
    "MAX_SHARDS",
    "SCHEMA",
    "Shard",
    "image_key",
    "ingest",
    "ingest_shard",
    "plan",
    "read",
    "read_parquet",
    "table",
    "to_parquet",
]

# The fixed columns, in order, with the Arrow type of each.
COLUMNS = {
    "file": "string", "sha256": "string", "format": "string", "bytes": "int64", "width": "int32", "height": "int32",
    "mode": "string", "bits": "int16", "label": "string", "label_raw": "string", "split_hint": "string",
    "patient": "string", "source": "string", "view": "string", "mean": "float64", "std": "float64", "p01": "float64",
    "p99": "float64", "saturation": "float64", "sharpness": "float64", "black_border": "float64",
    "white_border": "float64", "white_box": "float64", "phash": "string", "fine_hash": "string", "ring": "string",
    "verdict": "string", "reasons": "list",
}  # fmt: skip
_KINDS = {"string": pa.large_string(), "list": pa.list_(pa.string())}
# Not left to be guessed: a shard whose images all are fit, or that is empty, has the types of the others.
SCHEMA = pa.schema([(name, _KINDS.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
MAX_SHARDS = 200  # per drop; each lists the whole drop, so more shards than that cost more than they share out
_SHARDS = b"shards"  # in the table of each shard: how many its batch has

OnFile = Callable[[int, int], None]


class Shard(NamedTuple):
    """A part of a drop that is ingested by itself."""

    drop: str
    batch: str
    number: int  # from 0
    of: int


def _nothing(done: int, total: int) -> None: ...


def to_parquet(frame: pd.DataFrame) -> bytes:
    """The frame as Parquet; the same frame gives the same bytes."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def read_parquet(settings: Settings, key: str) -> pd.DataFrame:
    """A table of the store."""
    return pd.read_parquet(io.BytesIO(store.get(settings, key)))


def plan(settings: Settings, drop: str) -> list[Shard]:
    """The shards of a drop. They follow from its listing alone, so that all workers cut alike.

    Raises:
        Refused: no such drop, or it has no files.
    """
    with _opened(settings, drop) as (batch, entries):
        return _plan(settings, drop, batch, entries)


def ingest(settings: Settings, drop: str, on_file: OnFile = _nothing, processes: int = 0) -> str:
    """Copies the readable images of `drop` into the store, free of metadata, and writes what was measured.

    What an earlier call did is not done again; of a batch that is judged already, nothing is looked at.

    Args:
        settings: where the inbox and the store are.
        drop: name of a drop in the inbox.
        on_file: called with (files done, files in all) after each file.
        processes: how many work at the same time; 0: as many as `room.processes` says.

    Returns:
        Name of the batch. Its tables `batches/<batch>/ingested/<shard>.parquet` have one row per file, with the verdict
        "accepted" or, for what could not be read or has no known label, "quarantined" with the reasons.

    Raises:
        Refused: no such drop, it has no files, it changed meanwhile, or its labels.csv cannot be used.
    """
    batch = drops.batch_id(drop, drops.listing(settings, drop))  # no archive is opened for it
    if store.exists(settings, f"batches/{batch}/batch.json"):
        return batch
    with _opened(settings, drop) as (batch, entries):
        there = set(store.keys(settings, _folder(batch)))
        todo = [s for s in _plan(settings, drop, batch, entries) if _key(batch, s.number) not in there]
        before = len(entries) - sum(last - first for first, last in (_cut(s, len(entries)) for s in todo))
        _ingest(settings, todo, entries, lambda done: on_file(before + done, len(entries)), processes)
    return batch


def ingest_shard(settings: Settings, shard: Shard, on_file: OnFile = _nothing, processes: int = 0) -> str:
    """Does for one shard what `ingest` does for all.

    Args:
        settings: where the inbox and the store are.
        shard: one of `plan`.
        on_file: called with (files done, files of the shard) after each file.
        processes: as for `ingest`.

    Returns:
        Name of the batch.

    Raises:
        Refused: as for `ingest`.
    """
    if store.exists(settings, _key(shard.batch, shard.number)):
        return shard.batch
    with _opened(settings, shard.drop) as (batch, entries):
        if batch != shard.batch:
            raise Refused(inbox.changed(f"{shard.drop!r} had other files when the run began"))
        first, last = _cut(shard, len(entries))
        _ingest(settings, [shard], entries, lambda done: on_file(done, last - first), processes)
    return batch


def read(settings: Settings, batch: str) -> pd.DataFrame:
    """The table of an ingested batch, all shards together; one row per file, in order of the files.

    Raises:
        Refused: a shard is missing.
    """
    found = sorted(store.keys(settings, _folder(batch)))
    tables = [pq.read_table(io.BytesIO(store.get(settings, key))) for key in found]
    of = _shards(tables[0].schema) if tables else 1
    wanted = [_key(batch, number) for number in range(of)]
    if missing := [key for key in wanted if key not in found]:
        raise Refused(
            f"All {of} shards of the batch {batch!r} must be ingested before it is judged. Received: {len(found)}; "
            f"there is no {', '.join(missing[:3])}{' …' if missing[3:] else ''}. Run ingest on its drop again."
        )
    frame = pa.concat_tables(tables).to_pandas()
    frame["reasons"] = [list(codes) for codes in frame["reasons"]]
    if not frame["file"].is_unique:
        frame["file"] = identity.told_apart(list(frame["file"]))
    return frame


@contextmanager
def _opened(settings: Settings, drop: str) -> Iterator[tuple[str, list[drops.Entry]]]:
    with drops.opened(settings, drop) as (batch, entries):
        if not entries:
            raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
        yield batch, entries


def _plan(settings: Settings, drop: str, batch: str, entries: list[drops.Entry]) -> list[Shard]:
    of = min(MAX_SHARDS, -(-len(entries) // settings.shard_files))
    if begun := next(store.keys(settings, _folder(batch)), None):
        # By another `shard_files`, perhaps, and shards of two cuts do not fit together.
        of = _shards(pq.read_schema(io.BytesIO(store.get(settings, begun))))
    return [Shard(drop, batch, number, of) for number in range(of)]


def _cut(shard: Shard, total: int) -> tuple[int, int]:
    """The first file of the shard and the one after its last, counted in the listing."""
    return shard.number * total // shard.of, (shard.number + 1) * total // shard.of


def _folder(batch: str) -> str:
    return f"batches/{batch}/ingested/"


def _key(batch: str, number: int) -> str:
    return f"{_folder(batch)}{number:05d}.parquet"


def _ingest(
    settings: Settings, shards: list[Shard], entries: list[drops.Entry], on_file: Callable[[int], None], processes: int
) -> None:
    """Copies the files of some shards of a drop; one after the other, as far as it does not keep a process waiting."""
    if not shards:
        return
    drop = shards[0].drop
    rows: dict[Shard, dict[int, dict[str, Any]]] = {}
    left: Counter[Shard] = Counter()  # files without an answer
    asked: dict[int, tuple[Shard, int]] = {}  # the row of each of these

    def write(shard: Shard) -> None:
        frame = table(list(rows.pop(shard).values()))
        store.put_if_absent(settings, _key(shard.batch, shard.number), _marked(frame, shard.of))

    def jobs() -> Iterator[tuple[drops.Entry, dict[str, Any]]]:
        number = count()
        # Rows of a labels.csv are known only together; of class folders, a shard's are enough to have in memory.
        whole = drops.labels(settings, drop, entries) if drops.has_table(settings, drop, entries) else None
        for shard in shards:
            part = range(*_cut(shard, len(entries)))
            said = drops.labels(settings, drop, entries, part) if whole is None else whole
            rows[shard] = dict(enumerate(_part(said, shard, entries)))
            files_of = {place: row.pop("entry") for place, row in rows[shard].items()}
            left[shard] = sum(entry >= 0 for entry in files_of.values())
            if not left[shard]:
                write(shard)
            for place, entry in files_of.items():
                if entry >= 0:
                    asked[next(number)] = (shard, place)
                    yield entries[entry], rows[shard][place]

    total = sum(last - first for first, last in (_cut(s, len(entries)) for s in shards))
    # A file takes milliseconds, a process most of a second to start.
    many = min(processes or room.processes(), max(1, total // 16))
    done = 0
    for done, (number, found) in enumerate(workers.run(files.copy, settings, jobs(), many), start=1):
        shard, place = asked.pop(number)
        rows[shard][place] = rows[shard][place] | files.CRASHED if found is None else found
        left[shard] -= 1
        if not left[shard]:
            write(shard)
        on_file(done)
    if done < total:  # labels.csv is no image
        on_file(total)


def _part(said: pd.DataFrame, shard: Shard, entries: list[drops.Entry]) -> list[dict[str, Any]]:
    """What `drops.labels` said of the files of the shard; what has no file is where its name would stand."""
    first, last = _cut(shard, len(entries))
    starts = [drops.printable(entries[_cut(shard._replace(number=n), len(entries))[0]].file) for n in range(shard.of)]
    entry = said["entry"].to_numpy()
    here = (first <= entry) & (entry < last)
    for place in np.flatnonzero(entry < 0):
        here[place] = max(0, bisect_right(starts, said["file"].iat[place]) - 1) == shard.number
    return said[here].to_dict("records")


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows with the columns and types of COLUMNS, and the verdict that follows from the reasons.

    Args:
        rows: measurements as `files.copy` and `files.measure` return them; `unread` is appended to `reasons`.
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


def _shards(schema: pa.Schema) -> int:
    return int(schema.metadata[_SHARDS])


def _marked(frame: pd.DataFrame, shards: int) -> bytes:
    """The frame as Parquet that says how many shards there are. The same frame gives the same bytes."""
    marked = pa.Table.from_pandas(frame, SCHEMA, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(marked.replace_schema_metadata({_SHARDS: str(shards)}), buffer, compression="zstd")
    return buffer.getvalue()
