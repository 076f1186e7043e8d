"""Sweeps the weights of old refused candidates. Records, curves, evaluations and every champion stay."""

from cxr_ml import store
from cxr_ml.records import Decision, HistoryEntry
from cxr_ml.registry import promotion
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check


def candidates(settings: Settings, keep: int) -> list[str]:
    """Models whose weights `sweep` may give up, the last judged first.

    Those are candidates that a concluded run did not promote, but not the `keep` judged last, no present or past
    champion, none that another run decided on and has not concluded, and those that a sweep which died left behind.

    Args:
        settings: the store.
        keep: how many refused candidates keep their weights.
    """
    entries = promotion.history(settings)
    judged = {name: e.number for e in entries if e.decision for name in e.decision.candidates}
    champions = {e.model for e in entries if e.version is not None}
    begun = {e.model for e in entries if e.action == "swept"}
    there = [name for name in judged if store.exists(settings, artifact_check.key(name))]
    there.sort(key=lambda name: judged[name], reverse=True)
    spared = champions | begun | _waiting(settings, entries)
    refused = [name for name in there if name not in spared]
    return [name for name in there if name in begun or name in refused[keep:]]


def _waiting(settings: Settings, entries: list[HistoryEntry]) -> set[str]:
    """Candidates of runs that have their decision and have not concluded, e.g. because a human is asked."""
    concluded = {e.run for e in entries}
    keys = (key for key in store.keys(settings, "reports/") if key.endswith("/decision.json"))
    decisions = [store.load(settings, key, Decision) for key in keys if key.split("/")[1] not in concluded]
    return {name for decision in decisions for name in decision.candidates}


def sweep(settings: Settings, model: str, by: str, why: str) -> None:
    """Gives up the weights of a model: tells the history, then the model's folder, then deletes. Safe to repeat.

    Raises:
        Refused: the model is or was champion.
    """
    entry = next((e for e in promotion.history(settings) if e.action == "swept" and e.model == model), None)
    entry = entry or promotion.record_deletion(settings, model, by, why)
    store.put_if_absent(settings, f"models/{model}/swept.json", entry.to_bytes(), "application/json")
    store.remove(settings, artifact_check.key(model))
