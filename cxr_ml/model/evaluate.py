"""Evaluates candidates, and the champion beside them on the same images."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from cxr_ml import store
from cxr_ml.data import dataset as datasets
from cxr_ml.errors import Refused
from cxr_ml.model import inputs
from cxr_ml.records import ClassMetrics, Dataset, Evaluation, Metrics, Model
from cxr_ml.settings import Settings


def load_model(settings: Settings, name: str) -> tuple[Model, keras.Model]:
    """A stored model, with its SHA-256 checked before Keras opens it.

    Raises:
        Refused: no such model, or its bytes are not those that were recorded.
    """
    record = store.load(settings, f"models/{name}/model.json", Model)
    artefact = store.get(settings, f"models/{name}/model.keras")
    digest = hashlib.sha256(artefact).hexdigest()
    if digest != record.artefact_sha256:
        raise Refused(
            f"models/{name}/model.keras is not the file that model.json records: expected SHA-256 "
            f"{record.artefact_sha256}. Received: {digest}. Do not use it; promote or roll back to another model."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(artefact)
        return record, keras.saving.load_model(path, compile=False, safe_mode=True)


def measure(y: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of predictions, by scikit-learn. A ratio without denominator is NaN, never 0 or 1.

    Args:
        y: true class indices, int (n,).
        predicted: predicted class indices, int (n,).
        classes: labels in the order of the indices.
    """
    indices = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=indices, zero_division=np.nan)
    return Metrics(
        classes={
            label: ClassMetrics(recall=recall[i], precision=precision[i], f1=f1[i], support=int(support[i]))
            for i, label in enumerate(classes)
        },
        macro_f1=float(np.mean(f1)),
        accuracy=float(np.mean(y == predicted)) if len(y) else float("nan"),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_matrix(y, predicted, labels=indices)),
    )


def evaluate(settings: Settings, number: int, names: Sequence[str], champion: str | None) -> list[Evaluation]:
    """Evaluates each candidate on validation and test of a dataset; the champion too, on the same images.

    Returns:
        One evaluation per candidate, stored as `models/<model>/evaluation.json`, with the champion's inside.

    Raises:
        Refused: a model cannot be loaded, or its classes are not those of the settings.
    """
    dataset = datasets.load(settings, number)
    beside = None
    if champion is not None:
        beside = _evaluate_one(settings, dataset, champion)
    found = []
    for name in names:
        own = beside if beside is not None and name == champion else _evaluate_one(settings, dataset, name)
        record = own.model_copy(update={"champion": beside})
        first, later = _keys(record)
        if not store.put_if_absent(settings, first, record.to_bytes(), "application/json"):
            # The model was judged before, perhaps against another champion; that record stays as it was.
            store.put_if_absent(settings, later, record.to_bytes(), "application/json")
        found.append(record)
    return found


def _keys(record: Evaluation) -> tuple[str, str]:
    beside = record.champion.model if record.champion else "none"
    folder = f"models/{record.model}"
    return f"{folder}/evaluation.json", f"{folder}/evaluation-d{record.dataset}-beside-{beside}.json"


def load(settings: Settings, number: int, name: str, champion: str | None) -> Evaluation:
    """The stored evaluation of a candidate on a dataset beside that champion.

    Raises:
        Refused: there is none.
    """
    first = store.load(settings, f"models/{name}/evaluation.json", Evaluation)
    if first.dataset == number and (first.champion.model if first.champion else None) == champion:
        return first
    key = f"models/{name}/evaluation-d{number}-beside-{champion or 'none'}.json"
    return store.load(settings, key, Evaluation)


def _evaluate_one(settings: Settings, dataset: Dataset, name: str) -> Evaluation:
    record, network = load_model(settings, name)
    if record.classes != settings.classes:
        raise Refused(f"{name} must know the classes {settings.classes}. Received: {record.classes}")
    images, manifest = inputs.load(settings, dataset, record.image_size)
    y = inputs.targets(manifest, settings.classes)
    metrics = {}
    for split in ("validation", "test"):
        rows = np.flatnonzero(manifest["split"] == split)
        predicted = probabilities(network, images[rows]).argmax(axis=1)
        metrics[split] = measure(y[rows], predicted, settings.classes)
    return Evaluation(
        model=name,
        architecture=record.architecture,
        artefact_sha256=record.artefact_sha256,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        validation=metrics["validation"],
        test=metrics["test"],
    )


def probabilities(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """uint8 (n, size, size, 1) -> float32 (n, classes).

    Raises:
        Refused: no images, or an output that is not a number.
    """
    if not len(images):
        raise Refused("A model is evaluated on at least one image. Received: none.")
    output = network.predict(images, batch_size=32, verbose=0)
    if not np.isfinite(output).all():
        raise Refused("Probabilities must be numbers. Received: NaN or infinity; the model cannot be used.")
    return output
