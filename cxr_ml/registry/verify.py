"""Checks that a stored model is what the records say: every hash from the champion's pointer to the pixels."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pandas as pd

from cxr_ml import store
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.ingest.process_file import image_key
from cxr_ml.records import Champion, Dataset, Decision, Evaluation, HistoryEntry, Model
from cxr_ml.registry import promotion, queries
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check

_READERS = 16  # images read at the same time: most of the time is the store's
_POINTER = "registry/champion.json"


class Step(NamedTuple):
    """One link of the chain."""

    name: str  # the object that was checked
    said: str  # what was found, in a sentence
    differs: tuple[str, ...] = ()  # what is not as recorded, each named; (): all is
    checked: bool = True  # False: a version of this program that recorded nothing to check by wrote it


def verify_model(
    settings: Settings, name: str, on_image: Callable[[int, int], None] = lambda done, total: None
) -> list[Step]:
    """Checks pointer, history, decisions, evaluations, the files of the model, dataset.json, manifest and each image.

    Args:
        settings: the store.
        name: a model, or a champion version such as v3.
        on_image: called with (done, total) after each image.

    Returns:
        The steps in order. Of what stands on something that cannot be read, there is none.

    Raises:
        Refused: no such model or version.
    """
    model = queries.resolve(settings, name)
    return list(_steps(settings, model, on_image))


def _steps(settings: Settings, name: str, on_image: Callable[[int, int], None]) -> Iterator[Step]:
    try:
        entries = promotion.history(settings)
        yield _history(entries)
        record = store.load(settings, f"models/{name}/model.json", Model)
        yield _pointer(settings, entries, record)
        yield from _decisions(settings, entries, record)
        yield _weights(settings, record)
        recorded = {"validation.npy": record.validation_sha256, "likeness.npz": record.likeness_sha256}
        for file, sha256 in (recorded | {"history.csv": record.history_sha256}).items():
            if sha256:  # models of earlier versions have none
                yield _beside(settings, f"models/{name}/{file}", sha256, "model.json")
        dataset = versions.load_dataset(settings, record.dataset)
        yield _dataset(record, dataset)
        manifest = versions.load_manifest(settings, dataset)
        yield Step(f"datasets/{dataset.dataset}/manifest.parquet", "its SHA-256 is the one of dataset.json")
        yield _images(settings, manifest, on_image)
    except Refused as error:
        yield Step("what comes next", "cannot be checked", (str(error),))


def _history(entries: list[HistoryEntry]) -> Step:
    differs, champion, version = [], None, 0
    for place, entry in enumerate(entries, 1):
        key = f"registry/history/{entry.number:05d}.json"
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
    return Step(
        "registry/history/", f"{len(entries)} entries without a hole, {version} champion versions", tuple(differs)
    )


def _pointer(settings: Settings, entries: list[HistoryEntry], record: Model) -> Step:
    made = [e for e in entries if e.version is not None]
    found = store.find_record(settings, _POINTER, Champion)
    if found is None:
        differs = (f"version {made[-1].version}, {made[-1].model}, was expected; there is no pointer",) if made else ()
        return Step(_POINTER, "there is no champion yet", differs)
    now, last = found[0], made[-1] if made else None
    expected = (last.version, last.model, last.number) if last else None
    differs = []
    if (now.version, now.model, now.history) != expected:
        differs.append(
            f"it names version {now.version}, {now.model}, of history entry {now.history}; the last that the history "
            f"made is {'version {}, {}, of entry {}'.format(*expected) if expected else 'none'}"
        )
    if now.model == record.model and now.artefact_sha256 != record.artefact_sha256:
        differs.append(f"artefact_sha256 is {now.artefact_sha256}; model.json records {record.artefact_sha256}")
    role = "this model" if now.model == record.model else f"{now.model}, not this model,"
    return Step(_POINTER, f"{role} is champion, version {now.version}", tuple(differs))


def _decisions(settings: Settings, entries: list[HistoryEntry], record: Model) -> Iterator[Step]:
    about = [e for e in entries if e.decision and record.model in e.decision.candidates]
    if not about:
        yield Step("decision", "no run brought this model before the gate")
    for entry in about:
        yield from _decision(settings, entry, record)


def _decision(settings: Settings, entry: HistoryEntry, record: Model) -> Iterator[Step]:
    decision, key = entry.decision, f"reports/{entry.run}/decision.json"
    stored = store.load(settings, key, Decision)
    differs = [
        f"{field} of {key} is not that of registry/history/{entry.number:05d}.json"
        for field in Decision.model_fields
        if stored.model_dump_json(include={field}) != decision.model_dump_json(include={field})  # NaN equals NaN
    ]
    failed = [c.name for c in decision.checks if not c.passed]
    if entry.action == "promoted" and (failed or not decision.promote or not decision.checks):
        differs.append(f"it was promoted, although not every check passed: {', '.join(failed) or 'there is none'}")
    yield Step(key, f"{entry.action}, with {len(decision.checks)} checks, as entry {entry.number} says", tuple(differs))
    key, bound = f"models/{record.model}/evaluation", record.model in decision.evaluation_sha256
    try:
        evaluation = stored_evaluations.decided(settings, decision, record.model)
    except Refused as error:
        yield Step(key, "not what was decided on", (str(error),))
        return
    differs = _unlike(evaluation, "artefact_sha256", record.artefact_sha256)
    differs += _unlike(evaluation, "dataset_sha256", versions.load_dataset(settings, decision.dataset).manifest_sha256)
    said = f"of these weights and this dataset, and its SHA-256 is the one of the decision of {entry.run}"
    if not bound:
        said = (
            f"of these weights and this dataset; but the decision of {entry.run} is of a version of this program that "
            "did not record its SHA-256, so that nothing tells whether figures were changed since"
        )
    yield Step(key, said, tuple(differs), bound)
    for file, sha256 in evaluation.files.items():
        yield _beside(settings, f"models/{record.model}/{file}", sha256, "the evaluation")
    yield from _sheets(settings, evaluation)


def _sheets(settings: Settings, evaluation: Evaluation) -> Iterator[Step]:
    name = f"models/{evaluation.model}/explanation-d{evaluation.dataset}"
    try:
        found = stored_explanations.load(settings, evaluation.model, evaluation.dataset)
        if found is None:  # judged by an earlier version
            return
        stored_explanations.sheets(settings, found)
    except Refused as error:
        yield Step(name, "not as recorded", (str(error),))
        return
    differs = _unlike(found, "artefact_sha256", evaluation.artefact_sha256)
    differs += _unlike(found, "dataset_sha256", evaluation.dataset_sha256)
    yield Step(name, f"its {len(found.sheets)} contact sheets have the SHA-256 that it records", tuple(differs))


def _unlike(record: object, field: str, expected: str) -> list[str]:
    found = getattr(record, field)
    return [] if found == expected else [f"{field} is {found}; {expected} was expected"]


def _weights(settings: Settings, record: Model) -> Step:
    key = artifact_check.key(record.model)
    gone = artifact_check.swept(settings, record.model)
    if gone and not store.exists(settings, key):
        return Step(key, f"swept at {gone.at} by {gone.by}: {gone.why}")
    try:
        artifact_check.check(settings, record)
    except Refused as error:
        return Step(key, "not what model.json records", (str(error),))
    return Step(key, "its SHA-256 is the one of model.json")


def _beside(settings: Settings, key: str, sha256: str, where: str) -> Step:
    digest = store.sha256(settings, key)
    differs = (
        ()
        if digest == sha256
        else (f"{f'its SHA-256 is {digest}' if digest else 'it is missing'}; {where} records {sha256}",)
    )
    return Step(key, f"its SHA-256 is the one of {where}", differs)


def _dataset(record: Model, dataset: Dataset) -> Step:
    differs = _unlike(dataset, "manifest_sha256", record.dataset_sha256)
    return Step(f"datasets/{dataset.dataset}/dataset.json", "the one that model.json records", tuple(differs))


def _images(settings: Settings, manifest: pd.DataFrame, on_image: Callable[[int, int], None]) -> Step:
    total, differs = len(manifest), []
    with ThreadPoolExecutor(_READERS) as pool:
        rows = zip(manifest["sha256"], manifest["format"], strict=True)
        for done, said in enumerate(pool.map(lambda row: _image(settings, *row), rows), 1):
            differs += [said] if said else []
            on_image(done, total)
    return Step("images/", f"{total} images, each with the SHA-256 that the manifest names", tuple(differs))


def _image(settings: Settings, sha256: str, format: str) -> str:
    key = image_key(sha256, format)
    digest = store.sha256(settings, key)
    if digest is None:
        return f"{key} is missing"
    return "" if digest == sha256 else f"{key} holds other bytes: their SHA-256 is {digest}"
