"""Evaluations in the store. Apart from `evaluate`, so that a reader need not load a deep-learning framework."""

from collections.abc import Iterator
from typing import NamedTuple

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Decision, Evaluation
from cxr_ml.store import ObjectStore


class _Comparison(NamedTuple):
    """On what a model was evaluated, and beside which champion. A model has one stored evaluation for each."""

    dataset: int
    champion: str | None
    failed: bool  # the champion could not be evaluated


def _comparison(record: Evaluation) -> _Comparison:
    champion = record.champion.model if record.champion else record.beside
    return _Comparison(record.dataset, champion, bool(record.champion_problem))


def save(store: ObjectStore, record: Evaluation) -> None:
    """Writes an evaluation beside its model; the model's first one is `evaluation.json`, and stays as it is."""
    data, first = record.to_bytes(), layout.evaluation(record.model)
    if store.put_if_absent(first, data, "application/json"):
        return
    comparison = _comparison(record)
    if _comparison(store.load(first, Evaluation)) != comparison:
        store.put_if_absent(layout.later_evaluation(record.model, *comparison), data, "application/json")


def load(store: ObjectStore, number: int, name: str, champion: str | None) -> Evaluation:
    """Returns the stored evaluation of a model on a dataset beside a champion.

    Args:
        store: the object store.
        number: of the dataset.
        name: of the model.
        champion: name of the champion; None: there was none.

    Returns:
        The one in which the champion was evaluated; where there is none, that in which it could not be.

    Raises:
        Refused: there is neither.
    """
    return load_hashed(store, number, name, champion)[0]


def load_hashed(store: ObjectStore, number: int, name: str, champion: str | None) -> tuple[Evaluation, str]:
    """Returns what `load` does, and the SHA-256 of its bytes as they are stored."""
    key = layout.later_evaluation(name, number, champion, failed=False)
    return next(_stored(store, number, name, champion), None) or store.load_hashed(key, Evaluation)


def _stored(store: ObjectStore, number: int, name: str, champion: str | None) -> Iterator[tuple[Evaluation, str]]:
    """At most two, with their SHA-256: the one with the champion evaluated, and that where it could not be."""
    first = store.load_hashed(layout.evaluation(name), Evaluation)
    for failed in (False, True):
        comparison = _Comparison(number, champion, failed)
        if _comparison(first[0]) == comparison:
            yield first
        elif store.exists(layout.later_evaluation(name, *comparison)):
            yield store.load_hashed(layout.later_evaluation(name, *comparison), Evaluation)


def load_decided(store: ObjectStore, decision: Decision, name: str) -> Evaluation:
    """Returns the evaluation of a candidate that a decision was made on.

    Raises:
        Refused: the decision holds no SHA-256 for this candidate, or no stored evaluation has it.
    """
    expected = decision.evaluation_sha256.get(name)
    evaluations = {digest: e for e, digest in _stored(store, decision.dataset, name, decision.champion)}
    if expected not in evaluations:
        raise Refused(
            f"The evaluation of {name} is not the one that {decision.run} was decided on: expected SHA-256 "
            f"{expected or 'recorded in the decision'}. Received: {', '.join(evaluations) or 'none'}. Somebody changed "
            "it; the model's other files may be changed, too."
        )
    return evaluations[expected]
