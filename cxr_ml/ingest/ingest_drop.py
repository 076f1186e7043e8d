"""Copies a drop into the store and measures each image, shard by shard. Only what cannot be read is judged here."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.ingest import cache, inbox, labels, memory_budget, process_file, tables, worker_pool
from cxr_ml.ingest.drop_index import Listing
from cxr_ml.ingest.process_file import image_key
from cxr_ml.ingest.tables import COLUMNS, SCHEMA, read, read_parquet, table, to_parquet
from cxr_ml.settings import Settings

__all__ = [
    "COLUMNS",
    "MAX_SHARDS",
    "SCHEMA",
    "Shard",
    "image_key",
    "ingest",
    "ingest_shard",
    "ingested",
    "plan",
    "read",
    "read_parquet",
    "table",
    "to_parquet",
]

MAX_SHARDS = 200  # per drop; each machine lists the drop, so more shards than that cost more than they share out

OnFile = Callable[[int, int], None]


class Shard(NamedTuple):
    """A part of a drop that is ingested by itself."""

    drop: str
    batch: str
    number: int  # from 0
    of: int


def _nothing(done: int, total: int) -> None: ...


def plan(settings: Settings, drop: str) -> list[Shard]:
    """The shards of a drop. They follow from its listing alone, so that all workers cut alike.

    Raises:
        Refused: no such drop, or it has no files.
    """
    with _opened(settings, drop) as (batch, entries):
        return _plan(settings, drop, batch, entries, list(store.keys(settings, tables.folder(batch))))


def ingested(settings: Settings, batch: str) -> bool:
    """Whether nothing is left to ingest of the batch."""
    return store.exists(settings, f"batches/{batch}/batch.json") or tables.complete(settings, batch)


def ingest(
    settings: Settings,
    drop: str,
    on_file: OnFile = _nothing,
    processes: int = 0,
    begin: Callable[[], None] | None = None,
) -> str:
    """Copies the readable images of `drop` into the store, free of metadata, and writes what was measured.

    What an earlier call did is not done again; of a batch that is judged already, nothing is looked at.

    Args:
        settings: where the inbox and the store are.
        drop: name of a drop in the inbox.
        on_file: called with (files done, files in all) after each file.
        processes: how many work at the same time; 0: as many as `memory_budget.processes` says.
        begin: called first, if there is something to do.

    Returns:
        Name of the batch. Its tables `batches/<batch>/ingested/<shard>.parquet` have one row per file, with the verdict
        "accepted" or, for what could not be read or has no known label, "quarantined" with the reasons.

    Raises:
        Refused: no such drop, it has no files, it changed meanwhile, or its labels.csv cannot be used.
    """
    batch = labels.batch_id(drop, labels.listing(settings, drop))  # no archive is opened for it
    if ingested(settings, batch):
        return batch
    if begin:
        begin()
    with _opened(settings, drop, batch) as (batch, entries):
        there = list(store.keys(settings, tables.folder(batch)))
        cut = _plan(settings, drop, batch, entries, there)
        todo = [s for s in cut if tables.key(batch, s.number) not in set(there)]
        before = len(entries) - sum(last - first for first, last in (_cut(s, len(entries)) for s in todo))
        _ingest(settings, todo, entries, lambda done: on_file(before + done, len(entries)), processes)
    cache.forget(settings, drop)
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
    if store.exists(settings, tables.key(shard.batch, shard.number)):
        return shard.batch
    with _opened(settings, shard.drop, shard.batch) as (batch, entries):
        if batch != shard.batch:
            raise Refused(inbox.changed(f"{shard.drop!r} had other files when the run began"))
        first, last = _cut(shard, len(entries))
        _ingest(settings, [shard], entries, lambda done: on_file(done, last - first), processes)
    if tables.complete(settings, batch):
        cache.forget(settings, shard.drop)
    return batch


@contextmanager
def _opened(settings: Settings, drop: str, batch: str | None = None) -> Iterator[tuple[str, Listing]]:
    with labels.opened(settings, drop, batch) as (batch, entries):
        if not entries:
            raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
        yield batch, entries


def _plan(settings: Settings, drop: str, batch: str, entries: Listing, there: list[str]) -> list[Shard]:
    """All shards; `there`: keys of the tables of those that are done."""
    of = min(MAX_SHARDS, -(-len(entries) // settings.shard_files))
    if there:
        # By another `shard_files`, perhaps, and shards of two cuts do not fit together.
        of = tables.shards(settings, there[0])
    return [Shard(drop, batch, number, of) for number in range(of)]


def _cut(shard: Shard, total: int) -> tuple[int, int]:
    """The first file of the shard and the one after its last, counted in the listing."""
    return shard.number * total // shard.of, (shard.number + 1) * total // shard.of


def _ingest(
    settings: Settings, shards: list[Shard], entries: Listing, on_file: Callable[[int], None], processes: int
) -> None:
    """Copies the files of some shards of a drop; one after the other, as far as it does not keep a process waiting."""
    if not shards:
        return
    drop = shards[0].drop
    rows: dict[Shard, dict[int, dict[str, Any]]] = {}
    left: Counter[Shard] = Counter()  # files without an answer
    asked: dict[int, tuple[Shard, int]] = {}  # the row of each of these

    def write(shard: Shard) -> None:
        tables.put_shard(settings, shard.batch, shard.number, shard.of, table(list(rows.pop(shard).values())))

    def jobs() -> Iterator[tuple[labels.Entry, dict[str, Any]]]:
        number = count()
        for shard in shards:
            said = labels.read_labels(settings, drop, entries, range(*_cut(shard, len(entries))))
            rows[shard] = dict(enumerate(said.to_dict("records")))
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
    many = min(processes or memory_budget.processes(), max(1, total // 16))
    done = 0
    for done, (number, found) in enumerate(worker_pool.run(process_file.copy, settings, jobs(), many), start=1):
        shard, place = asked.pop(number)
        rows[shard][place] = rows[shard][place] | process_file.CRASHED if found is None else found
        left[shard] -= 1
        if not left[shard]:
            write(shard)
        on_file(done)
    if done < total:  # labels.csv is no image
        on_file(total)
