"""The champion pointer, moved by compare-and-set only, and the history that is only ever added to."""

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.records import Champion, Decision, HistoryEntry, Model
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check


def slug(run: str) -> str:
    """Returns the name of a run as it is used in keys."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", run).strip("-.")[:120] or "run"


def champion(store: ObjectStore) -> Champion | None:
    """Returns the champion, or None before the first promotion."""
    stored = store.load_or_none(layout.CHAMPION, Champion)
    return stored[0] if stored else None


def trained_on(store: ObjectStore) -> int | None:
    """Returns the dataset version that the champion was trained on; None before the first promotion."""
    current = champion(store)
    return load_model_record(store, current.model).dataset if current else None


def load_decision(store: ObjectStore, run: str) -> Decision:
    """Returns the stored decision of a run."""
    return store.load(layout.decision(run), Decision)


def load_model_record(store: ObjectStore, name: str) -> Model:
    """Returns the record of a stored model."""
    return store.load(layout.model_record(name), Model)


def history(store: ObjectStore) -> list[HistoryEntry]:
    """Returns all entries, oldest first."""
    return [store.load(key, HistoryEntry) for key in store.keys(layout.HISTORY)]


def was_decided(store: ObjectStore, dataset: int) -> bool:
    """Returns whether a decision about candidates of this dataset version was applied."""
    return any(e.decision is not None and e.decision.dataset == dataset for e in history(store))


def champion_versions(entries: Sequence[HistoryEntry], model: str) -> list[int]:
    """Returns the champion versions that a model was or is, oldest first."""
    return [e.version for e in entries if e.version is not None and e.model == model]


def resolve_version(entries: Sequence[HistoryEntry], name: str) -> str:
    """Returns the model that was a champion version, `v3` or `3`; any other name as it is."""
    match = re.fullmatch(r"v?(\d+)", name)
    return next((e.model for e in entries if match and e.version == int(match[1])), name)


def apply_decision(store: ObjectStore, decision: Decision, by: str) -> HistoryEntry:
    """Promotes the candidate, or records that the gate refused it. Safe to repeat.

    Args:
        store: the object store.
        decision: of the gate.
        by: who is responsible, for the history.

    Returns:
        The entry of the history, which says what was done.

    Raises:
        Refused: the champion is no longer the one that the decision was made against, or the model's weights are gone,
            or are not those that the gate judged.
    """
    passed = decision.promote and decision.checks and all(c.passed for c in decision.checks)
    if not passed:
        return _append(store, "refused", decision.model, by, decision.reason, decision.run, decision)
    _check_files(store, decision.model, decision)
    return _append(store, "promoted", decision.model, by, decision.reason, decision.run, decision, decision.champion)


def record_rejection(store: ObjectStore, decision: Decision, by: str, why: str) -> HistoryEntry:
    """Records that a human did not approve a candidate that had passed. Safe to repeat."""
    for entry in reversed(history(store)):
        if entry.run == decision.run and entry.action == "refused":
            return entry
    return _append(store, "refused", decision.model, by, why, decision.run, decision)


def rollback(store: ObjectStore, to: str | None, by: str, why: str, run: str = "") -> HistoryEntry:
    """Makes an earlier champion champion again.

    Args:
        store: the object store.
        to: a model that was champion once, or its version, such as v3; None: the one that the present one was promoted
            over. After a rollback that is not the one rolled back from, so that asking twice never brings a bad model
            back.
        by: who asks.
        why: the reason, for the history.
        run: name of this rollback, with which it is safe to repeat; "": a new one.

    Returns:
        The entry of the history.

    Raises:
        Refused: no reason, no such earlier champion, its weights are gone or not those that it was promoted with, or
            the champion changed at this very moment.
    """
    if not why.strip():
        raise Refused("A rollback needs a reason. Received: none.")
    entries = history(store)
    done = next((e for e in entries if run and e.run == run), None)
    if done:
        _repair_pointer(store, entries)
        return done
    past = [e for e in entries if e.version is not None]
    current = past[-1].model if past else None
    model = _rollback_target(past, current, to)
    decision = next((e.decision for e in reversed(past) if e.model == model and e.decision), None)
    _check_files(store, model, decision)
    return _append(store, "rolled_back", model, by, why, run or _new_run("rollback"), None, current)


def _rollback_target(past: Sequence[HistoryEntry], current: str | None, to: str | None) -> str:
    earlier = sorted({e.model for e in past} - {current})
    previous = next((e.previous for e in reversed(past) if e.model == current and e.action == "promoted"), None)
    model = resolve_version(past, to) if to else previous
    if model is None or model not in earlier:
        choices = f"one of {', '.join(earlier)}" if earlier else "and there is none yet"
        asked = repr(to) if to else f"none, and {current} was promoted over no other. Name one" if earlier else "none"
        raise Refused(f"A rollback goes to an earlier champion, {choices}. Received: {asked}.")
    return model


def record_deletion(store: ObjectStore, model: str, by: str, why: str) -> HistoryEntry:
    """Records that the weights of a refused candidate are deleted. From then on it cannot become champion.

    Raises:
        Refused: it is or was champion.
    """
    return _append(store, "swept", model, by, why, _new_run("sweep"), None)


def deletion(entries: Sequence[HistoryEntry], model: str) -> HistoryEntry | None:
    """Returns the entry that records the deletion of a model's weights; None where they were not deleted."""
    return next((e for e in entries if e.action == "swept" and e.model == model), None)


def _new_run(purpose: str) -> str:
    # The random part tells two of the same second apart.
    return f"{purpose}-{slug(_now())}-{secrets.token_hex(4)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(
    store: ObjectStore,
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
        entries = history(store)
        _repair_pointer(store, entries)
        done = next((e for e in reversed(entries) if e.run == run and _bytes(e.decision) == _bytes(decision)), None)
        if done:
            return done
        # Read from the history, not from the pointer, which lags behind where a run died. The number below is free only
        # while this is the last entry, so that nobody can become champion, and no weights can be deleted, between this
        # look and the write.
        last = next((e for e in reversed(entries) if e.version is not None), None)
        previous, version = (last.model, (last.version or 0) + 1) if last else (None, 1)
        moves = action in ("promoted", "rolled_back")
        if moves and previous != champion:
            raise Refused(
                f"The decision of {run} was made against the champion {champion}. "
                f"Received: {previous} is champion now. {'Evaluate again' if decision else 'Decide again'}."
            )
        if moves and (gone := deletion(entries, model)):
            raise Refused(f"The weights of {model} were swept at {gone.at} by {gone.by}; the champion stays as it is.")
        if action == "swept" and champion_versions(entries, model):
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
        key = layout.history_entry(entry.number)
        if store.put_if_absent(key, entry.to_bytes(), "application/json"):
            _repair_pointer(store, [entry])
            return entry


def _bytes(decision: Decision | None) -> bytes:
    # Compared as stored: a NaN is not equal to itself.
    return decision.to_bytes() if decision else b""


def _check_files(store: ObjectStore, model: str, decision: Decision | None) -> None:
    """Refuses unless the weights are those of model.json, and both are the files that the decision was made on."""
    record, digest = store.load_hashed(layout.model_record(model), Model)
    try:
        artifact_check.check(store, record)
        if decision is None:
            raise Refused(f"No promotion of {model} with a decision is in the history.")
        evaluation = stored_evaluations.load_decided(store, decision, model)
    except Refused as error:
        raise Refused(f"{error} The champion stays as it is.") from None
    present = {"model.keras": record.artefact_sha256, "model.json": digest}
    expected = {"model.keras": evaluation.artefact_sha256, "model.json": evaluation.files.get("model.json")}
    for file, sha256 in present.items():
        if sha256 != expected[file]:
            raise Refused(
                f"{layout.model_file(model, file)} is not what {decision.run} was decided on: expected SHA-256 "
                f"{expected[file]}. Received: {sha256}. The champion stays as it is."
            )


def _artefact(store: ObjectStore, model: str) -> str:
    """SHA-256 that the model's record names; Refused where record or file are gone."""
    record = load_model_record(store, model)
    if not store.exists(layout.model_weights(model)):
        raise Refused(f"{layout.model_weights(model)} is not in the store; the champion stays as it is.")
    return record.artefact_sha256


def _repair_pointer(store: ObjectStore, entries: Sequence[HistoryEntry]) -> None:
    """Moves the pointer to what the last of these entries says, also where the run that wrote it died before it did."""
    last = next((e for e in reversed(entries) if e.version is not None), None)
    if last:
        _move_pointer(store, last)


def _move_pointer(store: ObjectStore, entry: HistoryEntry) -> None:
    """Moves the pointer to what the entry says, unless it is there or a later entry has moved it on."""
    while True:
        stored = store.load_or_none(layout.CHAMPION, Champion)
        if stored and stored[0].history >= entry.number:
            return
        record = Champion(
            version=entry.version,
            model=entry.model,
            artefact_sha256=_artefact(store, entry.model),
            history=entry.number,
        )
        if store.swap(layout.CHAMPION, record.to_bytes(), stored[1] if stored else None):
            return
