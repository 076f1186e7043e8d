"""Evaluates candidates, and the champion beside them on the same images."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import contact_sheets, metrics, perturbations, slices, stored_evaluations
from cxr_ml.ingest import tables
from cxr_ml.progress import OnProgress, begun, counted, nobody
from cxr_ml.records import Dataset, Difference, Evaluation, Metrics, PerturbationResult
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check, calibration, corruptions, inputs, predictions
from cxr_ml.training.calibration import Predictions


class _Evaluated(NamedTuple):
    """The evaluation of one model, and what a comparison with another one needs beside it."""

    evaluation: Evaluation
    test: Predictions
    y: np.ndarray  # true classes of the test images
    groups: np.ndarray  # of the test images


def evaluate_models(
    store: ObjectStore,
    settings: Settings,
    number: int,
    names: Sequence[str],
    champion: str | None,
    on_progress: OnProgress = nobody,
) -> list[Evaluation]:
    """Evaluates each candidate on validation and test images of a dataset, and the champion on the same images.

    Where the champion cannot be evaluated, the evaluations say so and the gate stays shut.

    Args:
        store: the object store.
        settings: the classes, how many images a slice needs.
        number: of the dataset.
        names: the candidates.
        champion: name of the model in use; None: there is none.
        on_progress: called with the number of images that each model has predicted.

    Returns:
        One evaluation per candidate, stored as `models/<model>/evaluation.json`, with the champion's inside. What a
        candidate predicts for each image is stored beside it, as `models/<model>/predictions-d<number>.parquet`.

    Raises:
        Refused: a candidate cannot be loaded, or its classes are not those of the settings.
    """
    dataset = versions.load_dataset(store, number)
    other, problem = None, ""
    if champion is not None:
        try:
            other = _evaluate_model(_Subject(store, settings, dataset, champion, on_progress))
        except Refused as error:
            problem = f"The champion {champion} could not be evaluated: {error}"
    evaluations = []
    for name in names:
        candidate = _evaluate_candidate(_Subject(store, settings, dataset, name, on_progress, candidate=True))
        update: dict[str, object] = {"champion_problem": problem, "beside": champion}
        if other is not None:
            update |= {"champion": other.evaluation, "difference": _compare(candidate, other, settings.classes)}
        evaluation = candidate.evaluation.model_copy(update=update)
        stored_evaluations.save(store, evaluation)
        evaluations.append(evaluation)
    return evaluations


class _Subject:
    """A model and the images of a dataset, which it predicts at its operating point."""

    def __init__(
        self,
        store: ObjectStore,
        settings: Settings,
        dataset: Dataset,
        name: str,
        on_progress: OnProgress,
        candidate: bool = False,
    ) -> None:
        on_progress(begun(f"loading {name}"))
        self.store, self.settings, self.dataset = store, settings, dataset
        self.record, self.network = predictions.load_model(store, name)
        if self.record.classes != settings.classes:
            raise Refused(f"{name} must know the classes {settings.classes}. Received: {self.record.classes}")
        self.images, self.manifest = inputs.load(
            store, settings.cache_dir, dataset, self.record.image_size, on_progress
        )
        self.y = inputs.targets(self.manifest, settings.classes)
        self.rows = {s: np.flatnonzero(self.manifest["split"] == s) for s in ("validation", "test")}
        test = self.rows["test"]
        self.perturbed = test[perturbations.choose(self.y[test], len(settings.classes))]
        self._total = len(self.rows["validation"]) + len(test) * (1 + len(corruptions.FIXED))
        if candidate:  # which is perturbed, and whose test images are explained
            self._total += len(self.perturbed) * len(perturbations.CHANGES) + len(test)
        self._done, self._count = 0, counted(on_progress, "images")

    def count(self, part: str, images: int) -> predictions.OnImages:
        """A callback for the number of images done in a part of the evaluation, which looks at so many."""
        before, stage = self._done, f"{self.record.model}: {part}"
        self._done += images
        self._count(before, self._total, stage)
        return lambda done: self._count(before + done, self._total, stage)

    def probabilities(self, part: str, rows: np.ndarray, change: predictions.Change | None = None) -> np.ndarray:
        """The model's own probabilities for these rows, float32 (rows, classes)."""
        return predictions.predict_probabilities(self.network, self.images, rows, change, self.count(part, len(rows)))

    def decide(self, probabilities: np.ndarray) -> Predictions:
        """What the model decides for at its operating point."""
        return calibration.apply(probabilities, self.record.operating_point, self.settings.classes)

    def predict_changed(self, change: str, rows: np.ndarray, apply: predictions.Change) -> Predictions:
        """What the model decides for when these test images are changed."""
        return self.decide(self.probabilities(f"test images, {change}", rows, apply))

    def measure(self, rows: np.ndarray, predicted: Predictions, groups: np.ndarray | None = None) -> Metrics:
        """Figures of predictions for these rows."""
        classes = self.settings.classes
        return metrics.measure(self.y[rows], predicted.labels, predicted.probabilities, classes, groups)


def _evaluate_candidate(subject: _Subject) -> _Evaluated:
    """The evaluation of a model, of which more is asked before it may become champion."""
    record, dataset, settings = subject.record, subject.dataset, subject.settings
    raw = _predict_splits(subject)
    model = _evaluate_model(subject, raw)
    perturbed = _perturb(subject, model.test)
    decided = {split: subject.decide(p) for split, p in raw.items()}
    _store_predictions(subject, decided)
    contact_sheets.write(
        subject.store,
        settings.training,
        record,
        dataset,
        subject.network,
        subject.images,
        subject.manifest,
        subject.rows["test"],
        model.test.probabilities,
        model.test.labels,
        subject.count("where it looks on test images", len(subject.rows["test"])),
    )
    files = ("model.json", f"predictions-d{dataset.dataset}.parquet", f"explanation-d{dataset.dataset}.json")
    update = {
        "moved": perturbed,
        "reload_difference": _reload_difference(subject, raw["validation"]),
        "files": {file: subject.store.sha256(layout.model_file(record.model, file)) for file in files},
    }
    return model._replace(evaluation=model.evaluation.model_copy(update=update))


def _predict_splits(subject: _Subject) -> dict[str, np.ndarray]:
    return {split: subject.probabilities(f"{split} images", rows) for split, rows in subject.rows.items()}


def _evaluate_model(subject: _Subject, raw: dict[str, np.ndarray] | None = None) -> _Evaluated:
    """Measures a model on validation and test images, as they are, in each disguise and slice by slice."""
    raw = raw or _predict_splits(subject)
    record, dataset, settings = subject.record, subject.dataset, subject.settings
    rows = subject.rows["test"]
    y, groups = subject.y[rows], subject.manifest["group"].to_numpy()[rows]
    test = subject.decide(raw["test"])
    plain = calibration.apply(raw["test"], None, settings.classes)
    evaluation = Evaluation(
        model=record.model,
        architecture=record.architecture,
        artefact_sha256=record.artefact_sha256,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        validation=subject.measure(subject.rows["validation"], subject.decide(raw["validation"])),
        test=subject.measure(rows, test, groups),
        plain=subject.measure(rows, plain, groups),
        robustness={
            disguise: subject.measure(rows, subject.predict_changed(disguise, rows, change))
            for disguise, change in corruptions.FIXED.items()
        },
        slices=slices.measure(
            versions.join_measurements(subject.store, settings.cache_dir, dataset, subject.manifest.iloc[rows]),
            y,
            test,
            settings.gate,
            settings.classes,
        ),
    )
    return _Evaluated(evaluation, test, y, groups)


def _perturb(subject: _Subject, test: Predictions) -> tuple[PerturbationResult, ...]:
    """How far each change of the images moves the model."""
    rows = subject.perturbed
    among_test = np.searchsorted(subject.rows["test"], rows)
    unchanged = Predictions(test.probabilities[among_test], test.labels[among_test])
    return tuple(
        perturbations.compare(
            name, subject.y[rows], unchanged, subject.predict_changed(name, rows, change), subject.settings.classes
        )
        for name, change in perturbations.CHANGES.items()
    )


def _reload_difference(subject: _Subject, p: np.ndarray) -> float | None:
    """Largest difference to what the training process predicted for the validation images; None where those differ."""
    record = subject.record
    if not record.validation_sha256 or record.dataset_sha256 != subject.dataset.manifest_sha256:
        return None
    key = layout.validation_predictions(record.model)
    data = artifact_check.check_bytes(key, subject.store.get(key), record.validation_sha256)
    trained = np.load(io.BytesIO(data), allow_pickle=False)
    return float(np.abs(trained - p).max()) if trained.shape == p.shape else None


def _store_predictions(subject: _Subject, predicted: dict[str, Predictions]) -> None:
    classes, parts = subject.settings.classes, []
    for split, rows in subject.rows.items():
        part = subject.manifest.iloc[rows][["sha256", "split", "label"]].reset_index(drop=True)
        part["decided"] = np.array(classes)[predicted[split].labels]
        columns = {f"p_{label}": predicted[split].probabilities[:, i] for i, label in enumerate(classes)}
        parts.append(part.assign(**columns))
    key = layout.predictions(subject.record.model, subject.dataset.dataset)
    subject.store.put_if_absent(key, tables.to_parquet(pd.concat(parts, ignore_index=True)))


def _compare(candidate: _Evaluated, champion: _Evaluated, classes: Sequence[str]) -> Difference:
    """Candidate less champion: the figures, their paired bootstrap over groups, and McNemar's exact test."""
    y = candidate.y
    own, other = (
        metrics.resample(y, e.test.labels, e.test.probabilities, classes, candidate.groups)
        for e in (candidate, champion)
    )
    own_values, other_values = (metrics.flat(e.evaluation.test) for e in (candidate, champion))
    own_right, other_right = (e.test.labels == y for e in (candidate, champion))
    only_candidate, only_champion = int((own_right & ~other_right).sum()), int((other_right & ~own_right).sum())
    intervals = {name: metrics.interval(draws - other[name]) for name, draws in own.items()}
    differing = only_candidate + only_champion
    return Difference(
        figures={name: value - other_values[name] for name, value in own_values.items()},
        intervals={name: interval for name, interval in intervals.items() if interval},
        only_candidate=only_candidate,
        only_champion=only_champion,
        # McNemar 1947, as the exact binomial test of the images on which they differ.
        mcnemar=float(binomtest(only_candidate, differing).pvalue) if differing else 1.0,
    )
