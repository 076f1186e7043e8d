"""The champion pointer, moved by compare-and-set only, and the history that is only ever added to."""

import re
from datetime import UTC, datetime

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Decision, HistoryEntry, Model
from cxr_ml.settings import Settings

_POINTER = "registry/champion.json"


def slug(run: str) -> str:
    """The name of a run as it is used in keys."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", run).strip("-.")[:120] or "run"


def champion(settings: Settings) -> Champion | None:
    """The champion, or None before the first promotion."""
    found = store.find(settings, _POINTER)
    return Champion.model_validate_json(found[0]) if found else None


def trained_on(settings: Settings) -> int | None:
    """The dataset version that the champion was trained on; None before the first promotion."""
    now = champion(settings)
    return store.load(settings, f"models/{now.model}/model.json", Model).dataset if now else None


def history(settings: Settings) -> list[HistoryEntry]:
    """All entries, oldest first."""
    return [store.load(settings, key, HistoryEntry) for key in store.keys(settings, "registry/history/")]


def decided(settings: Settings, dataset: int) -> bool:
    """Whether a run brought candidates of this dataset version before the gate and concluded."""
    return any(e.decision is not None and e.decision.dataset == dataset for e in history(settings))


def conclude(settings: Settings, decision: Decision, by: str) -> HistoryEntry:
    """Carries out a decision: promotes the candidate, or records the refusal. Safe to repeat.

    Raises:
        Refused: the champion is no longer the one that the decision was made against, or the model is gone.
    """
    passed = decision.promote and decision.checks and all(c.passed for c in decision.checks)
    if passed:
        _artefact(settings, decision.model)
    action = "promoted" if passed else "refused"
    entry = _append(settings, action, decision.model, by, decision.reason, decision.run, decision)
    _point(settings, entry)
    return entry


def decline(settings: Settings, decision: Decision, by: str, why: str) -> HistoryEntry:
    """Records that a human did not approve a candidate that had passed."""
    for entry in reversed(history(settings)):
        if entry.run == decision.run and entry.action == "refused":
            return entry
    return _append(settings, "refused", decision.model, by, why, decision.run, decision)


def rollback(settings: Settings, to: str | None, by: str, why: str) -> HistoryEntry:
    """Makes an earlier champion champion again.

    Args:
        settings: the store.
        to: a model that was champion once; None: the one before the present one.
        by: who asks.
        why: the reason, for the history.

    Raises:
        Refused: no reason, or no such earlier champion.
    """
    if not why.strip():
        raise Refused("A rollback needs a reason. Received: none.")
    now = champion(settings)
    past = [e.model for e in history(settings) if e.action in ("promoted", "rolled_back")]
    earlier = [m for m in past if now is None or m != now.model]
    if not earlier or (to is not None and to not in earlier):
        raise Refused(f"A rollback goes to an earlier champion, one of {sorted(set(earlier))}. Received: {to!r}")
    _artefact(settings, to or earlier[-1])
    entry = _append(settings, "rolled_back", to or earlier[-1], by, why, f"rollback-{slug(_now())}", None)
    _point(settings, entry)
    return entry


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(
    settings: Settings, action: str, model: str, by: str, why: str, run: str, decision: Decision | None
) -> HistoryEntry:
    while True:
        entries = history(settings)
        done = next((e for e in reversed(entries) if decision and e.run == run and e.decision == decision), None)
        if done:
            return done
        # Read from the history, not from the pointer, which lags behind where a run died: the number below is free only
        # while this is the last entry, so that nobody can become champion between this look and the write.
        last = next((e for e in reversed(entries) if e.version is not None), None)
        previous, version = (last.model, (last.version or 0) + 1) if last else (None, 1)
        if action == "promoted" and decision and previous != decision.champion:
            if last:
                _point(settings, last)
            raise Refused(
                f"The decision of {run} was made against the champion {decision.champion}. "
                f"Received: {previous} is champion now. Evaluate again."
            )
        entry = HistoryEntry(
            number=len(entries) + 1,
            action=action,
            model=model,
            previous=previous,
            version=None if action == "refused" else version,
            by=by,
            why=why,
            at=_now(),
            run=run,
            decision=decision,
        )
        key = f"registry/history/{entry.number:05d}.json"
        if store.put_if_absent(settings, key, entry.to_bytes(), "application/json"):
            return entry


def _artefact(settings: Settings, model: str) -> str:
    """SHA-256 that the model's record names; Refused where record or file are gone."""
    record = store.load(settings, f"models/{model}/model.json", Model)
    if not store.exists(settings, f"models/{model}/model.keras"):
        raise Refused(f"models/{model}/model.keras is not in the store; the champion stays as it is.")
    return record.artefact_sha256


def _point(settings: Settings, entry: HistoryEntry) -> None:
    """Moves the pointer to what the entry says, unless it is there or a later entry has moved it on."""
    if entry.version is None:
        return
    artefact = _artefact(settings, entry.model)
    record = Champion(version=entry.version, model=entry.model, artefact_sha256=artefact, history=entry.number)
    while True:
        found = store.find(settings, _POINTER)
        if found and Champion.model_validate_json(found[0]).history >= entry.number:
            return
        if store.swap(settings, _POINTER, record.to_bytes(), found[1] if found else None):
            return
