"""Writes a trained model into the store: what it is, how it was made, and what it said of the validation images."""

import hashlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

from cxr_ml import store
from cxr_ml.records import Dataset, Model, OperatingPoint
from cxr_ml.settings import Settings
from cxr_ml.training import architectures, checkpoints, distribution, ood, provenance, tensorboard
from cxr_ml.training.artifact_check import UNOPENED, opened
from cxr_ml.training.checkpoints import Progress

# Settings that make a model what it is: its name depends on them, and its record holds them.
HYPERPARAMETERS = (
    "image_size", "batch_size", "head_epochs", "fine_tune_epochs", "head_learning_rate", "fine_tune_learning_rate",
    "fine_tune_decay", "patience", "dropout", "head_views", "freeze_normalisation", "disguised", "seed", "weights",
)  # fmt: skip


class Trained(NamedTuple):
    """What a training ends with."""

    name: str
    architecture: str
    backbone: architectures.Backbone
    artefact_sha256: str  # of model.keras, in the store
    done: dict[str, Progress]  # stage -> its epochs
    seconds: dict[str, float]  # step -> wall time, of all that is no epoch
    validation: np.ndarray  # probabilities of the validation images, float32 (images, classes)
    point: OperatingPoint
    likeness: bytes


def artefact(settings: Settings, name: str, classifier: keras.Model) -> str:
    """Stores `model.keras`. Where another run of the same training was faster, its weights become the classifier's.

    Once it can be opened it is never replaced: the other run may write the record of it at any moment.

    Args:
        settings: the store.
        name: name of the model.
        classifier: with the weights that are kept.

    Returns:
        SHA-256 of the file that is in the store, whose weights the classifier now has.
    """
    key = f"models/{name}/model.keras"
    data = _saved(classifier)
    if store.put_if_absent(settings, key, data):
        return hashlib.sha256(data).hexdigest()
    if _opened(store.get(settings, key)) is None:
        store.put_uncommitted(settings, key, data)
    data = store.get(settings, key)
    classifier.set_weights(_opened(data))
    return hashlib.sha256(data).hexdigest()


def _saved(classifier: keras.Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        # Another model of the same layers: with the optimizer's memory, the file would be three times as large.
        keras.Model(classifier.input, classifier.output).save(path)
        return path.read_bytes()


def _opened(data: bytes) -> list[np.ndarray] | None:
    """The weights in the bytes of model.keras; None where Keras does not open them."""
    try:
        return opened(data).get_weights()
    except UNOPENED:
        return None


def write(settings: Settings, dataset: Dataset, trained: Trained) -> Model:
    """Stores what lies beside `model.keras`, the record last.

    Returns:
        The record that is in the store: of another run of the same training, if that one was faster.
    """
    key = f"models/{trained.name}/model.json"
    if not store.exists(settings, key):
        record = _beside(settings, dataset, trained)
        store.put_if_absent(settings, key, record.to_bytes(), "application/json")
    checkpoints.sweep(settings, trained.name)
    return store.load(settings, key, Model)


def _beside(settings: Settings, dataset: Dataset, trained: Trained) -> Model:
    """Stores the other files of the model; the record of all of them."""
    model, done = f"models/{trained.name}", trained.done
    predicted = io.BytesIO()
    np.save(predicted, trained.validation)
    history = _history(done)
    for name, data in tensorboard.events(history).items():
        store.put_uncommitted(settings, f"{model}/{name}", data)
    images = {stage: sum(e.images_per_second * e.seconds for e in p.epochs) for stage, p in done.items()}
    spent = {stage: sum(e.seconds for e in p.epochs) for stage, p in done.items()}
    return Model(
        model=trained.name,
        architecture=trained.architecture,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        artefact_sha256=trained.artefact_sha256,
        classes=settings.classes,
        image_size=settings.image_size,
        weights=trained.backbone.weights,
        weights_sha256=trained.backbone.weights_sha256,
        settings={k: getattr(settings, k) for k in (*HYPERPARAMETERS, "warm_start")}
        | {"precision": distribution.precision()},
        epochs={stage: len(p.epochs) for stage, p in done.items()},
        seconds={k: round(s, 1) for k, s in trained.seconds.items()}
        | {stage: round(spent[stage] + p.prepared, 1) for stage, p in done.items()},
        images_per_second={stage: round(images[stage] / spent[stage], 1) for stage in done},
        code=provenance.code(),
        packages=provenance.packages(),
        hardware=provenance.hardware(),
        operating_point=trained.point,
        validation_sha256=_kept(settings, f"{model}/validation.npy", predicted.getvalue()),
        likeness_sha256=_kept(settings, f"{model}/{ood.FILE}", trained.likeness),
        history_sha256=_kept(settings, f"{model}/history.csv", history.to_csv(index=False).encode()),
    )


def _kept(settings: Settings, key: str, data: bytes) -> str:
    """SHA-256 of what is under a key, which is never replaced: another run may write its record at any moment."""
    there = data if store.put_if_absent(settings, key, data) else store.get(settings, key)
    return hashlib.sha256(there).hexdigest()


def _history(done: dict[str, Progress]) -> pd.DataFrame:
    """A row per epoch, counted through both stages from 1, and which of each stage is kept."""
    rows = [
        {"stage": stage} | epoch.model_dump() | {"kept": number == checkpoints.kept(p)}
        for stage, p in done.items()
        for number, epoch in enumerate(p.epochs, 1)
    ]
    table = pd.DataFrame(rows)
    table.insert(1, "epoch", range(1, len(table) + 1))
    return table
