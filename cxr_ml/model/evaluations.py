"""Stored evaluations. Apart from `evaluate`, so that who only reads them need not load a deep-learning framework."""

from cxr_ml import store
from cxr_ml.records import Evaluation
from cxr_ml.settings import Settings


def _later_key(model: str, dataset: int, champion: str | None) -> str:
    return f"models/{model}/evaluation-d{dataset}-beside-{champion or 'none'}.json"


def _judged(record: Evaluation) -> tuple[int, str | None]:
    return record.dataset, record.champion.model if record.champion else None


def save(settings: Settings, record: Evaluation) -> None:
    """Writes an evaluation beside its model; the model's first one is `evaluation.json`."""
    data, first = record.to_bytes(), f"models/{record.model}/evaluation.json"
    if store.put_if_absent(settings, first, data, "application/json"):
        return
    if _judged(store.load(settings, first, Evaluation)) != _judged(record):
        # The model was judged before, on other images or against another champion; that record stays as it was.
        store.put_if_absent(settings, _later_key(record.model, *_judged(record)), data, "application/json")


def load(settings: Settings, number: int, name: str, champion: str | None) -> Evaluation:
    """The stored evaluation of a candidate on a dataset beside that champion.

    Raises:
        Refused: there is none.
    """
    first = store.load(settings, f"models/{name}/evaluation.json", Evaluation)
    if _judged(first) == (number, champion):
        return first
    return store.load(settings, _later_key(name, number, champion), Evaluation)
