"""Ingests a drop, shard by shard: stores and measures each image. Only unreadable files are judged here."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import cache, drop_files, inbox, labels, memory_budget, process_file, tables, worker_pool
from cxr_ml.ingest.drop_index import DropIndex
from cxr_ml.settings import InboxSettings, Settings
from cxr_ml.store import ObjectStore

MAX_SHARDS = 200  # per drop; each machine lists the drop, so more shards would cost more than they gain

OnFile = Callable[[int, int], None]


class Shard(NamedTuple):
    """A part of a drop that is ingested on its own."""

    drop: str
    batch: str
    number: int  # from 0
    of: int  # shards of the drop


def _ignore_progress(done: int, total: int) -> None: ...


def plan_shards(store: ObjectStore, settings: Settings, drop: str) -> list[Shard]:
    """Returns the shards of a drop. They depend only on its list of files, so all machines plan the same.

    Raises:
        Refused: no such drop, or it has no files.
    """
    with _open_nonempty(store, settings, drop) as (batch, files):
        return _plan(store, settings.inbox, drop, batch, files, list(store.keys(layout.shards(batch))))


def is_ingested(store: ObjectStore, batch: str) -> bool:
    """Returns whether nothing is left to ingest of the batch."""
    return store.exists(layout.batch_record(batch)) or tables.is_complete(store, batch)


def ingest(
    store: ObjectStore,
    settings: Settings,
    drop: str,
    on_file: OnFile = _ignore_progress,
    workers: int = 0,
    on_start: Callable[[], None] | None = None,
) -> str:
    """Copies the readable images of a drop into the store, without metadata, and writes their measurements.

    Work of an earlier call is not repeated; a batch that is judged already is not read at all.

    Args:
        store: the object store.
        settings: where the inbox and the store are.
        drop: name of a drop in the inbox.
        on_file: called with (files done, files in all) after each file.
        workers: number of processes; 0 for `memory_budget.count_workers`.
        on_start: called first, if there is something to do.

    Returns:
        Name of the batch. Its tables `batches/<batch>/ingested/<shard>.parquet` have one row per file, with the verdict
        "accepted" or, for a file that cannot be read or has no known label, "quarantined" with the reasons.

    Raises:
        Refused: no such drop, it has no files, it changed meanwhile, or its labels.csv cannot be used.
    """
    batch = inbox.make_batch_id(drop, inbox.list_files(store, settings.inbox, drop))  # opens no archive
    if is_ingested(store, batch):
        return batch
    if on_start:
        on_start()
    with _open_nonempty(store, settings, drop, batch) as (batch, files):
        stored = list(store.keys(layout.shards(batch)))
        shards = _plan(store, settings.inbox, drop, batch, files, stored)
        todo = [s for s in shards if layout.shard(batch, s.number) not in set(stored)]
        before = len(files) - sum(len(_positions(s, len(files))) for s in todo)
        _ingest_shards(store, settings, todo, files, lambda done: on_file(before + done, len(files)), workers)
    cache.evict(store, settings.inbox, settings.cache_dir, drop)
    return batch


def ingest_shard(
    store: ObjectStore, settings: Settings, shard: Shard, on_file: OnFile = _ignore_progress, workers: int = 0
) -> str:
    """Ingests one shard as `ingest` does all.

    Args:
        store: the object store.
        settings: where the inbox and the store are.
        shard: one of `plan_shards`.
        on_file: called with (files done, files of the shard) after each file.
        workers: as for `ingest`.

    Returns:
        Name of the batch.

    Raises:
        Refused: as for `ingest`.
    """
    if store.exists(layout.shard(shard.batch, shard.number)):
        return shard.batch
    with _open_nonempty(store, settings, shard.drop, shard.batch) as (batch, files):
        if batch != shard.batch:
            raise drop_files.refuse_changed(f"{shard.drop!r} had other files when the run began")
        total = len(_positions(shard, len(files)))
        _ingest_shards(store, settings, [shard], files, lambda done: on_file(done, total), workers)
    if tables.is_complete(store, batch):
        cache.evict(store, settings.inbox, settings.cache_dir, shard.drop)
    return batch


@contextmanager
def _open_nonempty(
    store: ObjectStore, settings: Settings, drop: str, batch: str | None = None
) -> Iterator[inbox.OpenedDrop]:
    with inbox.open_drop(store, settings, drop, batch) as opened:
        if not opened.files:
            raise Refused(f"A drop must hold images, in class folders or with a labels.csv. Received: {drop!r}, empty.")
        yield opened


def _plan(
    store: ObjectStore, settings: InboxSettings, drop: str, batch: str, files: DropIndex, stored: list[str]
) -> list[Shard]:
    """All shards; `stored` are the keys of the tables of finished ones."""
    of = min(MAX_SHARDS, -(-len(files) // settings.shard_files))
    if stored:
        # They may come from another `shard_files`, and shards of two plans do not fit together.
        of = tables.count_shards(store, stored[0])
    return [Shard(drop, batch, number, of) for number in range(of)]


def _positions(shard: Shard, total: int) -> range:
    """Positions of the files of the shard among all `total` of the drop."""
    return range(shard.number * total // shard.of, (shard.number + 1) * total // shard.of)


class _ShardWriter:
    """Collects the rows of shards while their files are ingested, and stores a shard when its last file is done."""

    def __init__(self, store: ObjectStore, settings: Settings, drop: str, files: DropIndex) -> None:
        self.store, self.settings, self.drop, self.files = store, settings, drop, files
        self.rows: dict[Shard, dict[int, dict[str, Any]]] = {}
        self.unfinished: Counter[Shard] = Counter()  # files of a shard without a result
        self.row_of_job: dict[int, tuple[Shard, int]] = {}

    def jobs(self, shards: list[Shard]) -> Iterator[process_file.Job]:
        """Yields the files of the shards with their labels; a shard without files is stored at once."""
        number = count()
        for shard in shards:
            frame = labels.read_labels(
                self.store, self.settings, self.drop, self.files, _positions(shard, len(self.files))
            )
            rows = self.rows[shard] = dict(enumerate(frame.to_dict("records")))
            entries = {index: row.pop("entry") for index, row in rows.items()}
            self.unfinished[shard] = sum(entry >= 0 for entry in entries.values())
            if not self.unfinished[shard]:
                self._store(shard)
            for index, entry in entries.items():
                if entry >= 0:
                    self.row_of_job[next(number)] = (shard, index)
                    yield self.files[entry], rows[index]

    def add(self, job: int, row: dict[str, Any] | None) -> None:
        """Takes the result of a job; None for a file that crashed its process."""
        shard, index = self.row_of_job.pop(job)
        self.rows[shard][index] = self.rows[shard][index] | process_file.CRASHED if row is None else row
        self.unfinished[shard] -= 1
        if not self.unfinished[shard]:
            self._store(shard)

    def _store(self, shard: Shard) -> None:
        frame = tables.make_table(list(self.rows.pop(shard).values()))
        tables.put_shard(self.store, shard.batch, shard.number, shard.of, frame)


def _ingest_shards(
    store: ObjectStore,
    settings: Settings,
    shards: list[Shard],
    files: DropIndex,
    on_file: Callable[[int], None],
    workers: int,
) -> None:
    """Ingests some shards of a drop, one after the other as far as that keeps no process waiting."""
    if not shards:
        return
    total = sum(len(_positions(shard, len(files))) for shard in shards)
    # A file takes milliseconds, a process most of a second to start.
    workers = min(workers or memory_budget.count_workers(), max(1, total // 16))
    writer = _ShardWriter(store, settings, shards[0].drop, files)
    results = worker_pool.map_jobs(process_file.ingest_file, (store, settings), writer.jobs(shards), workers)
    done = 0
    for done, (job, row) in enumerate(results, start=1):
        writer.add(job, row)
        on_file(done)
    if done < total:  # labels.csv is not an image
        on_file(total)
