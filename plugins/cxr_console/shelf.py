"""What the pages read from the store. What never changes there is kept in memory, so that no page reads it again."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import pandas as pd
from fastapi import HTTPException

from cxr_ml import settings as settings_module
from cxr_ml import store
from cxr_ml.data import batches as batches_module
from cxr_ml.data import rulings as rulings_module
from cxr_ml.errors import Refused
from cxr_ml.records import Batch, Dataset, Evaluation, HistoryEntry, Model, Record, Ruling
from cxr_ml.release import catalogue, registry
from cxr_ml.settings import Settings

R = TypeVar("R", bound=Record)
T = TypeVar("T")
_POOL = ThreadPoolExecutor(16, thread_name_prefix="cxr-console")  # requests to the store at once
_TABLES = 32  # tables of refused files in memory; one of 20,000 rows takes 15 MB
_lock = Lock()
_facts: dict[str, dict[str, Any]] = {}
_rulings: list[Ruling] = []


@lru_cache(1)
def settings() -> Settings:
    """The settings of this process, with the credentials of the Airflow connection where one is named.

    Raises:
        Refused: a setting cannot be used.
    """
    s = settings_module.load()
    if s.aws_conn_id:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        hook = S3Hook(aws_conn_id=s.aws_conn_id)
        store.use(hook.get_conn(), hook.get_credentials())
    return s


@lru_cache(4096)
def record(key: str, kind: type[R]) -> R:
    """A record that is written once. `key` must not come from a URL unchecked.

    Raises:
        Refused: it is not there.
    """
    return store.load(settings(), key, kind)


def _together(read: Callable[[Any], T], names: Iterable[Any]) -> list[T]:
    return list(_POOL.map(read, names))


def history() -> list[HistoryEntry]:
    """All entries of the registry's history, oldest first."""
    return _together(lambda key: record(key, HistoryEntry), store.keys(settings(), "registry/history/"))


def model_names() -> set[str]:
    """Folders below models/, also of models that are being trained."""
    return set(store.folders(settings(), "models/"))


def models(entries: list[HistoryEntry]) -> list[dict[str, Any]]:
    """All stored models, newest first, as `catalogue.models` gives them."""
    now = registry.champion(settings())
    rows = [facts for facts in _together(_model_facts, model_names()) if facts]
    rows.sort(key=lambda row: (row["at"], row["model"]), reverse=True)
    return [row | catalogue.fate(entries, now, row["model"]) for row in rows]


def _model_facts(name: str) -> dict[str, Any] | None:
    if name not in _facts:
        try:
            found = catalogue.facts(settings(), name)
        except Refused:  # it is being trained
            return None
        if found["macro_f1"] is None:  # and may be evaluated yet
            return found
        _facts[name] = found
    return _facts[name]


def model(name: str) -> Model:
    """The record of a model that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    return _named(name, model_names(), lambda: record(f"models/{name}/model.json", Model), "model")


def evaluation(name: str, entries: list[HistoryEntry]) -> Evaluation | None:
    """The evaluation of a stored model that it was decided on, else its first."""
    return catalogue.evaluation(settings(), name, entries)


def datasets() -> list[Dataset]:
    """All dataset versions, oldest first."""
    numbers = sorted(int(n) for n in store.folders(settings(), "datasets/") if n.isdecimal())
    return [found for found in _together(lambda n: _committed(f"datasets/{n}/dataset.json", Dataset), numbers) if found]


def batches() -> list[tuple[Batch, str]]:
    """All committed batches with when they were, newest first."""
    found = _together(_batch, store.folders(settings(), "batches/"))
    return sorted((b for b in found if b), key=lambda pair: (pair[1], pair[0].batch), reverse=True)


def _batch(name: str) -> tuple[Batch, str] | None:
    found = _committed(f"batches/{name}/batch.json", Batch)
    return (found, _written(f"batches/{name}/batch.json")) if found else None


def _committed(key: str, kind: type[R]) -> R | None:
    try:
        return record(key, kind)
    except Refused:  # not committed yet
        return None


@lru_cache(4096)
def _written(key: str) -> str:
    return store.written(settings(), key)


def batch(name: str) -> Batch:
    """The record of a batch that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    known = store.folders(settings(), "batches/")
    return _named(name, known, lambda: record(f"batches/{name}/batch.json", Batch), "drop")


def _named(name: str, known: Iterable[str], read: Callable[[], R], what: str) -> R:
    """What `read` gives, if a listing of the store has the name: nothing of a URL becomes part of a key before that."""
    try:
        if name in set(known):
            return read()
    except Refused:
        pass
    raise HTTPException(404, f"There is no {what} of this name. Received: {name[:200]!r}")


@lru_cache(_TABLES)
def refused(batch: str) -> pd.DataFrame:
    """The refused files of a committed batch, in their order; not to be changed."""
    return batches_module.refused(settings(), batch)


def rulings() -> dict[str, Ruling]:
    """sha256 -> the ruling on it that is in force."""
    with _lock:
        _rulings.extend(rulings_module.read(settings(), len(_rulings)))
        return rulings_module.in_force(_rulings)


def object_bytes(key: str) -> bytes:
    """An object of the store.

    Raises:
        HTTPException: 404, there is none.
    """
    found = store.find(settings(), key)
    if found is None:
        raise HTTPException(404, "The store has no such object.")
    return found[0]
