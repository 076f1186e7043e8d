"""Stored evaluations. Apart from `evaluate`, so that who only reads them need not load a deep-learning framework."""

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Decision, Evaluation
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
    return load_hashed(settings, number, name, champion)[0]


def load_hashed(settings: Settings, number: int, name: str, champion: str | None) -> tuple[Evaluation, str]:
    """What `load` gives, and the SHA-256 of its bytes as they are stored."""
    first = store.load_hashed(settings, f"models/{name}/evaluation.json", Evaluation)
    if _judged(first[0]) == (number, champion):
        return first
    return store.load_hashed(settings, _later_key(name, number, champion), Evaluation)


def decided(settings: Settings, decision: Decision, name: str) -> Evaluation:
    """The evaluation of a candidate that a decision was made on.

    Raises:
        Refused: there is none, or it is not the one whose SHA-256 the decision holds. A decision of a version that held
            none is believed.
    """
    found, digest = load_hashed(settings, decision.dataset, name, decision.champion)
    expected = decision.evaluation_sha256.get(name, digest)
    if digest != expected:
        raise Refused(
            f"The evaluation of {name} is not the one that {decision.run} was decided on: expected SHA-256 {expected}. "
            f"Received: {digest}. Somebody changed it; the model's other files may be changed, too."
        )
    return found
