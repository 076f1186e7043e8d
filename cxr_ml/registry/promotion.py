"""The champion pointer, moved by compare-and-set only, and the history that is only ever added to."""

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.records import Champion, Decision, HistoryEntry, Model
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check

_POINTER = "registry/champion.json"


def slug(run: str) -> str:
    """The name of a run as it is used in keys."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", run).strip("-.")[:120] or "run"


def champion(settings: Settings) -> Champion | None:
    """The champion, or None before the first promotion."""
    found = store.find_record(settings, _POINTER, Champion)
    return found[0] if found else None


def trained_on(settings: Settings) -> int | None:
    """The dataset version that the champion was trained on; None before the first promotion."""
    now = champion(settings)
    return store.load(settings, f"models/{now.model}/model.json", Model).dataset if now else None


def load_decision(settings: Settings, run: str) -> Decision:
    """The stored decision of a run."""
    return store.load(settings, f"reports/{run}/decision.json", Decision)


def load_model_record(settings: Settings, name: str) -> Model:
    """The record of a stored model."""
    return store.load(settings, f"models/{name}/model.json", Model)


def history(settings: Settings) -> list[HistoryEntry]:
    """All entries, oldest first."""
    return [store.load(settings, key, HistoryEntry) for key in store.keys(settings, "registry/history/")]


def decided(settings: Settings, dataset: int) -> bool:
    """Whether a run brought candidates of this dataset version before the gate and concluded."""
    return any(e.decision is not None and e.decision.dataset == dataset for e in history(settings))


def versions(entries: Sequence[HistoryEntry], model: str) -> list[int]:
    """The champion versions that a model was or is, oldest first."""
    return [e.version for e in entries if e.version is not None and e.model == model]


def named(entries: Sequence[HistoryEntry], name: str) -> str:
    """The model that a champion version, `v3` or `3`, means; any other name as it is."""
    match = re.fullmatch(r"v?(\d+)", name)
    return next((e.model for e in entries if match and e.version == int(match[1])), name)


def conclude(settings: Settings, decision: Decision, by: str) -> HistoryEntry:
    """Carries out a decision: promotes the candidate, or records the refusal. Safe to repeat.

    Raises:
        Refused: the champion is no longer the one that the decision was made against, or the model's weights are gone,
            or are not those that the gate judged.
    """
    passed = decision.promote and decision.checks and all(c.passed for c in decision.checks)
    if passed:
        _check_weights(settings, decision.model, decision)
    action = "promoted" if passed else "refused"
    return _append(settings, action, decision.model, by, decision.reason, decision.run, decision, decision.champion)


def decline(settings: Settings, decision: Decision, by: str, why: str) -> HistoryEntry:
    """Records that a human did not approve a candidate that had passed."""
    for entry in reversed(history(settings)):
        if entry.run == decision.run and entry.action == "refused":
            return entry
    return _append(settings, "refused", decision.model, by, why, decision.run, decision)


def rollback(settings: Settings, to: str | None, by: str, why: str, run: str = "") -> HistoryEntry:
    """Makes an earlier champion champion again.

    Args:
        settings: the store.
        to: a model that was champion once, or its version, such as v3; None: the one that the present one was promoted
            over. After a rollback that is not the one rolled back from, so that asking twice never brings a bad model
            back.
        by: who asks.
        why: the reason, for the history.
        run: name of this rollback, with which it is safe to repeat; "": a new one.

    Raises:
        Refused: no reason, no such earlier champion, its weights are gone or not those that it was promoted with, or
            the champion changed at this very moment.
    """
    if not why.strip():
        raise Refused("A rollback needs a reason. Received: none.")
    entries = history(settings)
    done = next((e for e in entries if run and e.run == run), None)
    if done:
        _heal(settings, entries)
        return done
    past = [e for e in entries if e.version is not None]
    now = past[-1].model if past else None
    earlier = sorted({e.model for e in past} - {now})
    before = next((e.previous for e in reversed(past) if e.model == now and e.action == "promoted"), None)
    model = named(past, to) if to else before
    if model not in earlier:
        there = f"one of {', '.join(earlier)}" if earlier else "and there is none yet"
        asked = repr(to) if to else f"none, and {now} was promoted over no other. Name one" if earlier else "none"
        raise Refused(f"A rollback goes to an earlier champion, {there}. Received: {asked}.")
    _check_weights(settings, model, next((e.decision for e in reversed(past) if e.model == model and e.decision), None))
    return _append(settings, "rolled_back", model, by, why, run or _named("rollback"), None, now)


def sweep(settings: Settings, model: str, by: str, why: str) -> HistoryEntry:
    """Records that the weights of a refused candidate are given up. From then on it cannot become champion.

    Raises:
        Refused: it is or was champion.
    """
    return _append(settings, "swept", model, by, why, _named("sweep"), None)


def _named(what: str) -> str:
    # Two of the same second are told apart.
    return f"{what}-{slug(_now())}-{secrets.token_hex(4)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(
    settings: Settings,
    action: str,
    model: str,
    by: str,
    why: str,
    run: str,
    decision: Decision | None,
    champion: str | None = None,
) -> HistoryEntry:
    """Adds an entry and moves the pointer. `champion`: who must be champion for a promotion or a rollback."""
    while True:
        entries = history(settings)
        _heal(settings, entries)
        done = next((e for e in reversed(entries) if e.run == run and _bytes(e.decision) == _bytes(decision)), None)
        if done:
            return done
        # Read from the history, not from the pointer, which lags behind where a run died: the number below is free only
        # while this is the last entry, so that nobody can become champion, and no weights can be given up, between this
        # look and the write.
        last = next((e for e in reversed(entries) if e.version is not None), None)
        previous, version = (last.model, (last.version or 0) + 1) if last else (None, 1)
        moves = action in ("promoted", "rolled_back")
        if moves and previous != champion:
            raise Refused(
                f"The decision of {run} was made against the champion {champion}. "
                f"Received: {previous} is champion now. {'Evaluate again' if decision else 'Decide again'}."
            )
        if moves and (gone := next((e for e in entries if e.action == "swept" and e.model == model), None)):
            raise Refused(f"The weights of {model} were swept at {gone.at} by {gone.by}; the champion stays as it is.")
        if action == "swept" and versions(entries, model):
            raise Refused(f"The weights of a champion, present or past, are never swept. Received: {model}.")
        entry = HistoryEntry(
            number=len(entries) + 1,
            action=action,
            model=model,
            previous=previous,
            version=version if moves else None,
            by=by,
            why=why,
            at=_now(),
            run=run,
            decision=decision,
        )
        key = f"registry/history/{entry.number:05d}.json"
        if store.put_if_absent(settings, key, entry.to_bytes(), "application/json"):
            _heal(settings, [entry])
            return entry


def _bytes(decision: Decision | None) -> bytes:
    # Compared as stored: a NaN is not equal to itself.
    return decision.to_bytes() if decision else b""


def _check_weights(settings: Settings, model: str, decision: Decision | None) -> None:
    """Refused unless the weights are those of model.json, and that is what the decision was made on."""
    record, digest = store.load_hashed(settings, f"models/{model}/model.json", Model)
    try:
        artifact_check.check(settings, record)
        bound = decision is not None and model in decision.evaluation_sha256  # earlier versions held no SHA-256
        judged = stored_evaluations.decided(settings, decision, model) if bound else None
    except Refused as error:
        raise Refused(f"{error} The champion stays as it is.") from None
    found = {"model.keras": record.artefact_sha256, "model.json": digest}
    expected = found | (judged.files | {"model.keras": judged.artefact_sha256} if judged else {})
    for file, sha256 in found.items():
        if sha256 != expected[file]:
            raise Refused(
                f"models/{model}/{file} is not what {decision.run} was decided on: expected SHA-256 {expected[file]}. "
                f"Received: {sha256}. The champion stays as it is."
            )


def _artefact(settings: Settings, model: str) -> str:
    """SHA-256 that the model's record names; Refused where record or file are gone."""
    record = store.load(settings, f"models/{model}/model.json", Model)
    if not store.exists(settings, f"models/{model}/model.keras"):
        raise Refused(f"models/{model}/model.keras is not in the store; the champion stays as it is.")
    return record.artefact_sha256


def _heal(settings: Settings, entries: Sequence[HistoryEntry]) -> None:
    """Moves the pointer to what the last of these entries says, also where the run that wrote it died before it did."""
    last = next((e for e in reversed(entries) if e.version is not None), None)
    if last:
        _point(settings, last)


def _point(settings: Settings, entry: HistoryEntry) -> None:
    """Moves the pointer to what the entry says, unless it is there or a later entry has moved it on."""
    while True:
        found = store.find_record(settings, _POINTER, Champion)
        if found and found[0].history >= entry.number:
            return
        record = Champion(
            version=entry.version,
            model=entry.model,
            artefact_sha256=_artefact(settings, entry.model),
            history=entry.number,
        )
        if store.swap(settings, _POINTER, record.to_bytes(), found[1] if found else None):
            return
