"""Stored evaluations. Apart from `evaluate`, so that who only reads them need not load a deep-learning framework."""

from collections.abc import Iterator

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Decision, Evaluation
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
    return load_hashed(settings, number, name, champion)[0]


def load_hashed(settings: Settings, number: int, name: str, champion: str | None) -> tuple[Evaluation, str]:
    """What `load` gives, and the SHA-256 of its bytes as they are stored."""
    wanted = _later_key(name, (number, champion, False))
    return next(_stored(settings, number, name, champion), None) or store.load_hashed(settings, wanted, Evaluation)


def _stored(settings: Settings, number: int, name: str, champion: str | None) -> Iterator[tuple[Evaluation, str]]:
    """At most two, with their SHA-256: the one with the champion evaluated, and that where it could not be."""
    first = store.load_hashed(settings, f"models/{name}/evaluation.json", Evaluation)
    for failed in (False, True):
        wanted = (number, champion, failed)
        if _judged(first[0]) == wanted:
            yield first
        elif store.exists(settings, _later_key(name, wanted)):
            yield store.load_hashed(settings, _later_key(name, wanted), Evaluation)


def decided(settings: Settings, decision: Decision, name: str) -> Evaluation:
    """The evaluation of a candidate that a decision was made on.

    Raises:
        Refused: there is none, or none with the SHA-256 that the decision holds. A decision of a version that held none
            is believed.
    """
    expected = decision.evaluation_sha256.get(name)
    if expected is None:
        return load(settings, decision.dataset, name, decision.champion)
    found = {digest: e for e, digest in _stored(settings, decision.dataset, name, decision.champion)}
    if expected not in found:
        raise Refused(
            f"The evaluation of {name} is not the one that {decision.run} was decided on: expected SHA-256 {expected}. "
            f"Received: {', '.join(found) or 'none'}. Somebody changed it; the model's other files may be changed, too."
        )
    return found[expected]
