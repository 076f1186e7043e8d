"""What the pages read from the store. What never changes there is kept in memory, so that no page reads it again."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import HTTPException

from cxr_ml import layout
from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.records import Batch, Dataset, Evaluation, HistoryEntry, Model, Record, Ruling, Run
from cxr_ml.registry import promotion, queries
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches
from cxr_ml.validation import rulings as rulings_module

R = TypeVar("R", bound=Record)
T = TypeVar("T")
_POOL = ThreadPoolExecutor(16, thread_name_prefix="cxr-console")  # requests to the store at once
_MAX_TABLE_BYTES = 256_000_000  # of tables in memory; of 20,000 refused files one takes 7 MB
_DROPS_READ_AHEAD = 8  # drops whose refused files are read before somebody asks
_log = logging.getLogger(__name__)
_history_lock, _rulings_lock, _tables_lock = Lock(), Lock(), Lock()
_facts: dict[str, dict[str, Any]] = {}
_history: list[HistoryEntry] = []
_rulings: list[Ruling] = []
_tables: OrderedDict[tuple[str, str], pa.Table] = OrderedDict()
_batches: set[str] = set()  # names below batches/, which never go away


@lru_cache(1)
def settings() -> Settings:
    """Returns the settings of this process.

    Raises:
        Refused: a setting cannot be used.
    """
    return settings_module.load()


@lru_cache(1)
def store() -> ObjectStore:
    """Returns the store, with the credentials of the Airflow connection where one is named.

    Raises:
        Refused: a setting cannot be used.
    """
    own = settings().store
    if not own.aws_conn_id:
        return ObjectStore(own)
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    return ObjectStore(own, S3Hook(aws_conn_id=own.aws_conn_id))


@lru_cache(4096)
def record(key: str, kind: type[R]) -> R:
    """A record that is written once. `key` must not come from a URL unchecked.

    Raises:
        Refused: it is not there.
    """
    return store().load(key, kind)


@lru_cache(32)  # one takes about a megabyte
def _evaluation(key: str) -> Evaluation:
    return store().load(key, Evaluation)


def _load(key: str, kind: type[R]) -> R:
    """`store.load` for the library, which never reads a record twice."""
    return _evaluation(key) if kind is Evaluation else record(key, kind)


def read_ahead() -> None:
    """Reads what the first pages show, in a thread of its own: nobody has to wait for it when the server is new."""
    try:
        entries = history()
        models(entries)
        datasets()
        rulings()
        for found, _ in batches()[:_DROPS_READ_AHEAD]:
            refused(found.batch)
        champion = promotion.champion(store())
        if champion:
            evaluation(champion.model, entries)
    except (Refused, BotoCoreError, ClientError) as error:
        _log.warning("Nothing was read ahead: %s", error)  # a page says what is to be done about it


def _together(read: Callable[[Any], T], names: Iterable[Any]) -> list[T]:
    return list(_POOL.map(read, names))


def history() -> list[HistoryEntry]:
    """All entries of the registry's history, oldest first."""
    with _history_lock:
        if not _history:
            keys = store().keys(layout.HISTORY)
            _history.extend(_together(lambda key: store().load(key, HistoryEntry), keys))
        # Their numbers have no hole, so that asking for the next one tells whether there are more.
        while found := store().load_or_none(layout.history_entry(len(_history) + 1), HistoryEntry):
            _history.append(found[0])
        return list(_history)


def found_nothing_new(runs: Iterable[str]) -> set[str]:
    """Names of those of the runs whose stored record says that they had nothing to do."""
    names = list(runs)
    # A record that says so is replaced only when its run is cleared and comes to a decision, which the history tells.
    records = _together(lambda name: _if_there(record, layout.run_record(name), Run), names)
    return {name for name, run in zip(names, records, strict=True) if run and run.outcome == "nothing_new"}


def model_names() -> set[str]:
    """Folders below models/, also of models that are being trained."""
    return set(store().folders(layout.MODELS))


def models(entries: list[HistoryEntry]) -> list[dict[str, Any]]:
    """All stored models, newest first, as `queries.models` gives them."""
    now = promotion.champion(store())
    rows = [facts for facts in _together(_model_facts, model_names()) if facts]
    rows.sort(key=lambda row: (row["at"], row["model"]), reverse=True)
    return [row | queries.fate(entries, now, row["model"]) for row in rows]


def _model_facts(name: str) -> dict[str, Any] | None:
    if name not in _facts:
        found = _if_there(queries.facts, store(), name)
        if found is None or found["macro_f1"] is None:  # it is being trained, or may be evaluated yet
            return found
        _facts[name] = found
    return _facts[name]


def model(name: str) -> Model:
    """The record of a model that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    return _named(name, model_names(), lambda: record(layout.model_record(name), Model), "model")


def evaluation(name: str, entries: list[HistoryEntry]) -> Evaluation | None:
    """The evaluation of a stored model that it was decided on, else its first."""
    return queries.evaluation(store(), name, entries, _load)


def compare(first: str, second: str) -> dict[str, Any]:
    """Two stored models side by side, as `queries.compare` gives them."""
    return queries.compare(store(), first, second, _load)


def card(name: str, run: str | None) -> bytes | None:
    """The card of a stored model that this run left, else its first; None before one is written."""
    later = _if_there(_once, layout.model_card_of_run(name, run)) if run else None
    return later or _if_there(_once, layout.model_card(name))


@lru_cache(64)
def _once(key: str) -> bytes:
    return store().get(key)


def datasets() -> list[Dataset]:
    """All dataset versions, oldest first."""
    numbers = sorted(int(n) for n in store().folders(layout.DATASETS) if n.isdecimal())
    found = _together(lambda n: _if_there(record, layout.dataset_record(n), Dataset), numbers)
    return [dataset for dataset in found if dataset]


def batches() -> list[tuple[Batch, str]]:
    """All committed batches with when they were, newest first."""
    names = store().folders(layout.BATCHES)
    found = _together(lambda name: _if_there(_dated, layout.batch_record(name)), names)
    return sorted((b for b in found if b), key=lambda pair: (pair[1], pair[0].batch), reverse=True)


@lru_cache(4096)
def _dated(key: str) -> tuple[Batch, str]:
    return store().load_dated(key, Batch)


def _if_there(read: Callable[..., T], *key: Any) -> T | None:  # noqa: ANN401 - whatever `read` takes
    """What `read` gives; None of what is not written yet."""
    try:
        return read(*key)
    except Refused:
        return None


def batch(name: str) -> Batch:
    """The record of a batch that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    if name not in _batches:
        _batches.update(store().folders(layout.BATCHES))
    return _named(name, _batches, lambda: _dated(layout.batch_record(name))[0], "drop")


def _named(name: str, known: set[str], read: Callable[[], R], what: str) -> R:
    """What `read` gives, if a listing of the store has the name: nothing of a URL becomes part of a key before that."""
    try:
        if name in known:
            return read()
    except Refused:
        pass
    raise HTTPException(404, f"There is no {what} of this name. Received: {name[:200]!r}")


def refused(batch: str) -> pa.Table:
    """The refused files of a committed batch, in their order."""
    return _kept("refused", batch, committed_batches.read_refused)


def refused_of(batches: Iterable[str]) -> list[pa.Table]:
    """`refused` of several batches, read at once."""
    return _together(refused, batches)


def named(_: ObjectStore, batch: str) -> pa.Table:
    """`committed_batches.read_outcomes` for the library, which a ruling needs of every batch."""
    return _kept("named", batch, committed_batches.read_outcomes)


def _kept(kind: str, batch: str, read: Callable[[ObjectStore, str], pa.Table]) -> pa.Table:
    """The table, from memory where it is there; those that were not asked for lately make way."""
    with _tables_lock:
        if (kind, batch) in _tables:
            _tables.move_to_end((kind, batch))
            return _tables[kind, batch]
    found = read(store(), batch).combine_chunks()
    with _tables_lock:
        _tables[kind, batch] = found
        while len(_tables) > 1 and sum(table.nbytes for table in _tables.values()) > _MAX_TABLE_BYTES:
            _tables.popitem(last=False)
    return found


def rulings() -> list[Ruling]:
    """All rulings, in their order."""
    with _rulings_lock:
        _rulings.extend(rulings_module.read(store(), len(_rulings)))
        return list(_rulings)


def add_rulings(made: list[Ruling]) -> None:
    """Takes up rulings that were just made here, so that the next page need not look for them."""
    with _rulings_lock:
        for ruling in sorted(made, key=lambda r: r.number):
            if ruling.number == len(_rulings) + 1:
                _rulings.append(ruling)


def in_force() -> dict[str, Ruling]:
    """sha256 -> the ruling on it that is in force."""
    return rulings_module.in_force(rulings())


def object_bytes(key: str) -> bytes:
    """An object of the store.

    Raises:
        HTTPException: 404, there is none.
    """
    found = store().get_or_none(key)
    if found is None:
        raise HTTPException(404, "The store has no such object.")
    return found[0]
