"""Deletes the weights of old refused candidates. Records, curves, evaluations and every champion stay."""

from cxr_ml import layout
from cxr_ml.records import Decision, HistoryEntry
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore


def candidates(store: ObjectStore, keep: int) -> list[str]:
    """Returns the models whose weights may be deleted, the last judged first.

    Those are candidates that a concluded run did not promote, except the `keep` judged last, present and past
    champions, and candidates of another run whose decision is not applied yet. A model whose deletion died half-way is
    among them.

    Args:
        store: the object store.
        keep: how many refused candidates keep their weights.
    """
    entries = promotion.history(store)
    judged = {name: e.number for e in entries if e.decision for name in e.decision.candidates}
    champions = {e.model for e in entries if e.version is not None}
    begun = {e.model for e in entries if e.action == "swept"}
    present = [name for name in judged if store.exists(layout.model_weights(name))]
    present.sort(key=lambda name: judged[name], reverse=True)
    spared = champions | begun | _waiting(store, entries)
    refused = [name for name in present if name not in spared]
    return [name for name in present if name in begun or name in refused[keep:]]


def _waiting(store: ObjectStore, entries: list[HistoryEntry]) -> set[str]:
    """Candidates of runs that have their decision and have not concluded, e.g. because a human is asked."""
    concluded = {e.run for e in entries}
    keys = (key for key in store.keys(layout.REPORTS) if key.endswith("/decision.json"))
    decisions = [store.load(key, Decision) for key in keys if key.split("/")[1] not in concluded]
    return {name for decision in decisions for name in decision.candidates}


def delete_weights(store: ObjectStore, model: str, by: str, why: str) -> None:
    """Deletes the weights of a model, after an entry in the history and one in the model's folder. Safe to repeat.

    Raises:
        Refused: the model is or was champion.
    """
    entry = promotion.deletion(promotion.history(store), model)
    entry = entry or promotion.record_deletion(store, model, by, why)
    store.put_if_absent(layout.removed_weights(model), entry.to_bytes(), "application/json")
    store.remove(layout.model_weights(model))
