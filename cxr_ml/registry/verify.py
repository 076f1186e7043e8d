"""Checks that a stored model is what the records say: every hash from the champion's pointer to the pixels."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pandas as pd

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.ingest.process_file import image_key
from cxr_ml.records import Dataset, Decision, Evaluation, HistoryEntry, Model
from cxr_ml.registry import promotion, queries
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check

_READERS = 16  # images that are read at the same time, since most of the time is spent waiting for the store


class Step(NamedTuple):
    """One link of the chain."""

    name: str  # the object that was checked
    said: str  # the result, in a sentence
    differs: tuple[str, ...] = ()  # what is not as recorded, a sentence each; (): all is


def verify_model(
    store: ObjectStore, name: str, on_image: Callable[[int, int], None] = lambda done, total: None
) -> list[Step]:
    """Checks pointer, history, decisions, evaluations, the files of the model, dataset.json, manifest and each image.

    Args:
        store: the object store.
        name: a model, or a champion version such as v3.
        on_image: called with (done, total) after each image.

    Returns:
        The steps in order. What depends on something that cannot be read has none.

    Raises:
        Refused: no such model or version.
    """
    model = queries.resolve(store, name)
    return list(_steps(store, model, on_image))


def _steps(store: ObjectStore, name: str, on_image: Callable[[int, int], None]) -> Iterator[Step]:
    try:
        entries = promotion.history(store)
        yield _check_history(entries)
        record = promotion.load_model_record(store, name)
        yield _check_pointer(store, entries, record)
        yield from _check_decisions(store, entries, record)
        yield _check_weights(store, record)
        recorded = {"validation.npy": record.validation_sha256, "likeness.npz": record.likeness_sha256}
        for file, sha256 in (recorded | {"history.csv": record.history_sha256}).items():
            yield _check_file(store, layout.model_file(name, file), sha256, "model.json")
        dataset = versions.load_dataset(store, record.dataset)
        yield _check_dataset(record, dataset)
        manifest = versions.load_manifest(store, dataset)
        yield Step(layout.manifest(dataset.dataset), "its SHA-256 is the one of dataset.json")
        yield _check_images(store, manifest, on_image)
    except Refused as error:
        yield Step("what comes next", "cannot be checked", (str(error),))


def _check_history(entries: list[HistoryEntry]) -> Step:
    differs: list[str] = []
    champion, version = None, 0
    for place, entry in enumerate(entries, 1):
        key = layout.history_entry(entry.number)
        if entry.number != place:
            differs.append(f"entry {place} was expected, and {key} is the next there")
            break
        if entry.previous != champion:
            differs.append(f"{key} says that {entry.previous} was champion before; it was {champion}")
        if entry.version is not None:
            version += 1
            champion = entry.model
            if entry.version != version:
                differs.append(f"{key} makes version {entry.version}; it was expected to make {version}")
    return Step(layout.HISTORY, f"{len(entries)} entries without a hole, {version} champion versions", tuple(differs))


def _check_pointer(store: ObjectStore, entries: list[HistoryEntry], record: Model) -> Step:
    last = next((e for e in reversed(entries) if e.version is not None), None)
    champion = promotion.champion(store)
    if champion is None:
        expected = f"version {last.version}, {last.model}, was expected; there is no pointer" if last else ""
        return Step(layout.CHAMPION, "there is no champion yet", (expected,) if expected else ())
    differs: list[str] = []
    if not last or (champion.version, champion.model, champion.history) != (last.version, last.model, last.number):
        expected = f"version {last.version}, {last.model}, of entry {last.number}" if last else "none"
        differs.append(
            f"it names version {champion.version}, {champion.model}, of history entry {champion.history}; the last "
            f"that the history made is {expected}"
        )
    if champion.model == record.model and champion.artefact_sha256 != record.artefact_sha256:
        differs.append(f"artefact_sha256 is {champion.artefact_sha256}; model.json records {record.artefact_sha256}")
    role = "this model" if champion.model == record.model else f"{champion.model}, not this model,"
    return Step(layout.CHAMPION, f"{role} is champion, version {champion.version}", tuple(differs))


def _check_decisions(store: ObjectStore, entries: list[HistoryEntry], record: Model) -> Iterator[Step]:
    decisions = [(e, e.decision) for e in entries if e.decision and record.model in e.decision.candidates]
    if not decisions:
        yield Step("decision", "no run brought this model before the gate")
    for entry, decision in decisions:
        yield _check_decision(store, entry, decision)
        yield from _check_evaluation(store, decision, record)


def _check_decision(store: ObjectStore, entry: HistoryEntry, decision: Decision) -> Step:
    key = layout.decision(entry.run)
    stored = store.load(key, Decision)
    differs = [
        f"{field} of {key} is not that of registry/history/{entry.number:05d}.json"
        for field in Decision.model_fields
        if stored.model_dump_json(include={field}) != decision.model_dump_json(include={field})  # NaN equals NaN
    ]
    failed = [c.name for c in decision.checks if not c.passed]
    if entry.action == "promoted" and (failed or not decision.promote or not decision.checks):
        differs.append(f"it was promoted, although not every check passed: {', '.join(failed) or 'there is none'}")
    return Step(
        key, f"{entry.action}, with {len(decision.checks)} checks, as entry {entry.number} says", tuple(differs)
    )


def _check_evaluation(store: ObjectStore, decision: Decision, record: Model) -> Iterator[Step]:
    key = layout.evaluations(record.model)
    try:
        evaluation = stored_evaluations.load_decided(store, decision, record.model)
    except Refused as error:
        yield Step(key, "not what was decided on", (str(error),))
        return
    differs = _unlike(evaluation, "artefact_sha256", record.artefact_sha256)
    differs += _unlike(evaluation, "dataset_sha256", versions.load_dataset(store, decision.dataset).manifest_sha256)
    said = f"of these weights and this dataset, and its SHA-256 is the one of the decision of {decision.run}"
    yield Step(key, said, tuple(differs))
    for file, sha256 in evaluation.files.items():
        yield _check_file(store, layout.model_file(record.model, file), sha256, "the evaluation")
    yield from _check_sheets(store, evaluation)


def _check_sheets(store: ObjectStore, evaluation: Evaluation) -> Iterator[Step]:
    name = layout.explanation(evaluation.model, evaluation.dataset).removesuffix(".json")
    try:
        explanation = stored_explanations.load(store, evaluation.model, evaluation.dataset)
        if explanation is None:  # of a model that was not evaluated as a candidate
            return
        stored_explanations.sheets(store, explanation)
    except Refused as error:
        yield Step(name, "not as recorded", (str(error),))
        return
    differs = _unlike(explanation, "artefact_sha256", evaluation.artefact_sha256)
    differs += _unlike(explanation, "dataset_sha256", evaluation.dataset_sha256)
    yield Step(name, f"its {len(explanation.sheets)} contact sheets have the SHA-256 that it records", tuple(differs))


def _unlike(record: object, field: str, expected: str) -> list[str]:
    value = getattr(record, field)
    return [] if value == expected else [f"{field} is {value}; {expected} was expected"]


def _check_weights(store: ObjectStore, record: Model) -> Step:
    key = layout.model_weights(record.model)
    gone = artifact_check.swept(store, record.model)
    if gone and not store.exists(key):
        return Step(key, f"swept at {gone.at} by {gone.by}: {gone.why}")
    try:
        artifact_check.check(store, record)
    except Refused as error:
        return Step(key, "not what model.json records", (str(error),))
    return Step(key, "its SHA-256 is the one of model.json")


def _check_file(store: ObjectStore, key: str, sha256: str, where: str) -> Step:
    digest = store.sha256(key)
    received = f"its SHA-256 is {digest}" if digest else "it is missing"
    differs = () if digest == sha256 else (f"{received}; {where} records {sha256}",)
    return Step(key, f"its SHA-256 is the one of {where}", differs)


def _check_dataset(record: Model, dataset: Dataset) -> Step:
    differs = _unlike(dataset, "manifest_sha256", record.dataset_sha256)
    return Step(layout.dataset_record(dataset.dataset), "the one that model.json records", tuple(differs))


def _check_images(store: ObjectStore, manifest: pd.DataFrame, on_image: Callable[[int, int], None]) -> Step:
    total = len(manifest)
    differs: list[str] = []
    with ThreadPoolExecutor(_READERS) as pool:
        rows = zip(manifest["sha256"], manifest["format"], strict=True)
        for done, problem in enumerate(pool.map(lambda row: _check_image(store, *row), rows), 1):
            differs += [problem] if problem else []
            on_image(done, total)
    return Step(layout.IMAGES, f"{total} images, each with the SHA-256 that the manifest names", tuple(differs))


def _check_image(store: ObjectStore, sha256: str, format: str) -> str:
    """What is wrong with an image, in a sentence; "" where nothing is."""
    key = image_key(sha256, format)
    digest = store.sha256(key)
    if digest is None:
        return f"{key} is missing"
    return "" if digest == sha256 else f"{key} holds other bytes: their SHA-256 is {digest}"
