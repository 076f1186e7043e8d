"""Stored evaluations. Apart from `evaluate`, so that who only reads them need not load a deep-learning framework."""

from cxr_ml import store
from cxr_ml.records import Evaluation
from cxr_ml.settings import Settings

_Judged = tuple[int, str | None, bool]  # dataset, champion, and whether that was to be evaluated and could not be


def _later_key(model: str, judged: _Judged) -> str:
    dataset, champion, failed = judged
    return f"models/{model}/evaluation-d{dataset}-beside-{champion or 'none'}{'-failed' if failed else ''}.json"


def _judged(record: Evaluation) -> _Judged:
    champion = record.champion.model if record.champion else record.beside
    return record.dataset, champion, bool(record.champion_problem)


def save(settings: Settings, record: Evaluation) -> None:
    """Writes an evaluation beside its model; the model's first one is `evaluation.json`."""
    data, first = record.to_bytes(), f"models/{record.model}/evaluation.json"
    if store.put_if_absent(settings, first, data, "application/json"):
        return
    if _judged(store.load(settings, first, Evaluation)) != _judged(record):
        # The model was judged before, on other images or against another champion; that record stays as it was.
        store.put_if_absent(settings, _later_key(record.model, _judged(record)), data, "application/json")


def load(settings: Settings, number: int, name: str, champion: str | None) -> Evaluation:
    """The stored evaluation of a candidate on a dataset beside that champion.

    One that says that the champion could not be evaluated is taken where there is no other.

    Raises:
        Refused: there is none.
    """
    first = store.load(settings, f"models/{name}/evaluation.json", Evaluation)
    for failed in (False, True):
        wanted = (number, champion, failed)
        if _judged(first) == wanted:
            return first
        if found := store.find_record(settings, _later_key(name, wanted), Evaluation):
            return found[0]
    return store.load(settings, _later_key(name, (number, champion, False)), Evaluation)
