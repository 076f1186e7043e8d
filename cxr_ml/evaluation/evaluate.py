"""Evaluates candidates, and the champion beside them on the same images."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from cxr_ml import store
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import contact_sheets, metrics, perturbations, slices, stored_evaluations
from cxr_ml.ingest import tables
from cxr_ml.progress import OnProgress, begun, counted, nobody
from cxr_ml.records import Dataset, Difference, Evaluation, Metrics, Model
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check, calibration, corruptions, inputs, predictions


class _Judged(NamedTuple):
    evaluation: Evaluation
    test: tuple[np.ndarray, np.ndarray]  # calibrated probabilities, and the classes decided for
    y: np.ndarray  # true classes of the test images
    groups: np.ndarray  # of the test images


def evaluate_models(
    settings: Settings, number: int, names: Sequence[str], champion: str | None, on_progress: OnProgress = nobody
) -> list[Evaluation]:
    """Evaluates each candidate on validation and test of a dataset; the champion too, on the same images.

    A champion that cannot be evaluated is said to be so in the evaluations, and the gate stays shut.

    Args:
        settings: the store.
        number: of the dataset.
        names: the candidates.
        champion: name of the model in use; None: there is none.
        on_progress: told of the images that each model has predicted.

    Returns:
        One evaluation per candidate, stored as `models/<model>/evaluation.json`, with the champion's inside. What a
        candidate says of each image is stored beside it, as `models/<model>/predictions-d<number>.parquet`.

    Raises:
        Refused: a candidate cannot be loaded, or its classes are not those of the settings.
    """
    dataset = versions.load_dataset(settings, number)
    beside, problem = None, ""
    if champion is not None:
        try:
            beside = _evaluate_one(settings, dataset, champion, on_progress)
        except Refused as error:
            problem = f"The champion {champion} could not be evaluated: {error}"
    found = []
    for name in names:
        own = _evaluate_one(settings, dataset, name, on_progress, candidate=True)
        update: dict[str, object] = {"champion_problem": problem, "beside": champion}
        if beside is not None:
            update |= {"champion": beside.evaluation, "difference": _difference(settings, own, beside)}
        record = own.evaluation.model_copy(update=update)
        stored_evaluations.save(settings, record)
        found.append(record)
    return found


def _evaluate_one(
    settings: Settings, dataset: Dataset, name: str, on_progress: OnProgress, candidate: bool = False
) -> _Judged:
    on_progress(begun(f"loading {name}"))
    record, network = predictions.load_model(settings, name)
    if record.classes != settings.classes:
        raise Refused(f"{name} must know the classes {settings.classes}. Received: {record.classes}")
    images, manifest = inputs.load(settings, dataset, record.image_size, on_progress)
    y = inputs.targets(manifest, settings.classes)
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in ("validation", "test")}
    test = rows["test"]
    few = perturbations.chosen(y[test], len(settings.classes))
    total = len(rows["validation"]) + len(test) * (1 + len(corruptions.FIXED))
    total += len(few) * len(perturbations.CHANGES) + len(test) if candidate else 0  # the last are explained
    tell, done = counted(on_progress, "images"), 0

    def count(what: str, more: int) -> predictions.OnImages:
        nonlocal done
        before, done = done, done + more
        stage = f"{name}: {what}"
        tell(before, total, stage)
        return lambda seen: tell(before + seen, total, stage)

    def predict(what: str, chosen: np.ndarray, change: predictions.Change | None = None) -> np.ndarray:
        return predictions.predict_probabilities(network, images, chosen, change, count(what, len(chosen)))

    def judge(what: str, chosen: np.ndarray, change: predictions.Change) -> tuple[np.ndarray, np.ndarray]:
        return calibration.apply(predict(what, chosen, change), record.operating_point, settings.classes)

    def measure(chosen: np.ndarray, said: tuple[np.ndarray, np.ndarray], groups: np.ndarray | None = None) -> Metrics:
        return metrics.measure(y[chosen], said[1], said[0], settings.classes, groups)

    raw = {split: predict(f"{split} images", chosen) for split, chosen in rows.items()}
    said = {split: calibration.apply(p, record.operating_point, settings.classes) for split, p in raw.items()}
    groups = manifest["group"].to_numpy()[test]
    described = versions.join_measurements(settings, dataset, manifest.iloc[test])
    evaluation = Evaluation(
        model=name,
        architecture=record.architecture,
        artefact_sha256=record.artefact_sha256,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        validation=measure(rows["validation"], said["validation"]),
        test=measure(test, said["test"], groups),
        plain=measure(test, calibration.apply(raw["test"], None, settings.classes), groups),
        robustness={
            what: measure(test, judge(f"test images, {what}", test, change))
            for what, change in corruptions.FIXED.items()
        },
        slices=slices.measure(described, y[test], said["test"], settings),
    )
    if candidate:
        before = (said["test"][0][few], said["test"][1][few])
        changed = [
            perturbations.compare(
                what, y[test[few]], before, judge(f"test images, {what}", test[few], change), settings.classes
            )
            for what, change in perturbations.CHANGES.items()
        ]
        reload = _reload_difference(settings, record, dataset, raw["validation"])
        evaluation = evaluation.model_copy(update={"moved": tuple(changed), "reload_difference": reload})
        _store_predictions(settings, evaluation, manifest, rows, said)
        on_images = count("where it looks on test images", len(test))
        contact_sheets.write(settings, record, dataset, network, images, manifest, test, *said["test"], on_images)
        stored = ("model.json", f"predictions-d{dataset.dataset}.parquet", f"explanation-d{dataset.dataset}.json")
        files = {file: store.sha256(settings, f"models/{name}/{file}") for file in stored}
        evaluation = evaluation.model_copy(update={"files": files})
    return _Judged(evaluation, said["test"], y[test], groups)


def _reload_difference(settings: Settings, record: Model, dataset: Dataset, p: np.ndarray) -> float | None:
    """Largest difference to what the training process predicted; None where it left nothing, or for other images."""
    if not record.validation_sha256 or record.dataset_sha256 != dataset.manifest_sha256:
        return None
    key = f"models/{record.model}/validation.npy"
    data = artifact_check.check_bytes(key, store.get(settings, key), record.validation_sha256)
    then = np.load(io.BytesIO(data), allow_pickle=False)
    return float(np.abs(then - p).max()) if then.shape == p.shape else None


def _store_predictions(
    settings: Settings,
    evaluation: Evaluation,
    manifest: pd.DataFrame,
    rows: dict[str, np.ndarray],
    said: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    parts = []
    for split, chosen in rows.items():
        p, decided = said[split]
        part = manifest.iloc[chosen][["sha256", "split", "label"]].reset_index(drop=True)
        part["decided"] = np.array(settings.classes)[decided]
        parts.append(part.assign(**{f"p_{label}": p[:, i] for i, label in enumerate(settings.classes)}))
    key = f"models/{evaluation.model}/predictions-d{evaluation.dataset}.parquet"
    store.put_if_absent(settings, key, tables.to_parquet(pd.concat(parts, ignore_index=True)))


def _difference(settings: Settings, own: _Judged, beside: _Judged) -> Difference:
    """Candidate less champion: the figures, their paired bootstrap over groups, and McNemar's exact test."""
    y = own.y
    draws = [metrics.resample(y, p[1], p[0], settings.classes, own.groups) for p in (own.test, beside.test)]
    values = [metrics.flat(e.evaluation.test) for e in (own, beside)]
    right = [p[1] == y for p in (own.test, beside.test)]
    only = (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    intervals = {name: metrics.interval(drawn - draws[1][name]) for name, drawn in draws[0].items()}
    return Difference(
        figures={name: value - values[1][name] for name, value in values[0].items()},
        intervals={name: span for name, span in intervals.items() if span},
        only_candidate=only[0],
        only_champion=only[1],
        # McNemar 1947, as the exact binomial test of the images on which they differ.
        mcnemar=float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0,
    )
