"""Evaluates candidates, and the champion beside them on the same images."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from cxr_ml import store
from cxr_ml.data import dataset as datasets
from cxr_ml.errors import Refused
from cxr_ml.model import artefact, disguise, evaluations, inputs
from cxr_ml.records import ClassMetrics, Dataset, Evaluation, Metrics, Model
from cxr_ml.settings import Settings


def load_model(settings: Settings, name: str) -> tuple[Model, keras.Model]:
    """A stored model, with its SHA-256 checked before Keras opens it.

    Raises:
        Refused: no such model, its weights were swept, or its bytes are not those that were recorded.
    """
    record = store.load(settings, f"models/{name}/model.json", Model)
    data = artefact.read(settings, record)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        return record, keras.saving.load_model(path, compile=False, safe_mode=True)


def measure(y: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of predictions, by scikit-learn. What a class without images would need them for is NaN, never 0 or 1.

    Args:
        y: true class indices, int (n,), at least one.
        predicted: predicted class indices, int (n,).
        classes: labels in the order of the indices.
    """
    indices = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=indices, zero_division=np.nan)
    f1 = np.where(support > 0, f1, np.nan)  # scikit-learn says 0 where a class without images was predicted
    return Metrics(
        classes={
            label: ClassMetrics(recall=recall[i], precision=precision[i], f1=f1[i], support=int(support[i]))
            for i, label in enumerate(classes)
        },
        macro_f1=float(np.mean(f1)),
        accuracy=float(np.mean(y == predicted)),
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
        evaluations.save(settings, record)
        found.append(record)
    return found


def _evaluate_one(settings: Settings, dataset: Dataset, name: str) -> Evaluation:
    record, network = load_model(settings, name)
    if record.classes != settings.classes:
        raise Refused(f"{name} must know the classes {settings.classes}. Received: {record.classes}")
    images, manifest = inputs.load(settings, dataset, record.image_size)
    y = inputs.targets(manifest, settings.classes)
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in ("validation", "test")}

    def judge(split: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Metrics:
        predicted = probabilities(network, images, rows[split], change).argmax(axis=1)
        return measure(y[rows[split]], predicted, settings.classes)

    return Evaluation(
        model=name,
        architecture=record.architecture,
        artefact_sha256=record.artefact_sha256,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        validation=judge("validation"),
        test=judge("test"),
        robustness={name: judge("test", change) for name, change in disguise.FIXED.items()},
    )


def probabilities(
    network: keras.Model,
    images: np.ndarray,
    rows: np.ndarray | None = None,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """What a model says of uint8 images (n, size, size, 1), or of these rows of them: float32 (rows, classes).

    Args:
        network: the model.
        images: of which no more than a batch is read at a time.
        rows: int (rows,); None: all.
        change: what is done to a batch of images before it is shown.

    Raises:
        Refused: no images, or an output that is not a number.
    """
    rows = np.arange(len(images)) if rows is None else rows
    if not len(rows):
        raise Refused("A model is evaluated on at least one image. Received: none.")
    output = network.predict(inputs.Batches(images, rows, 32, change=change), verbose=0)
    if not np.isfinite(output).all():
        raise Refused("Probabilities must be numbers. Received: NaN or infinity; the model cannot be used.")
    return output
