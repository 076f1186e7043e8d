"""Writes a trained model to the store: the network, its record, history and predictions of the validation images."""

import hashlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

from cxr_ml import layout
from cxr_ml.records import Dataset, Model, OperatingPoint
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, checkpoints, distribution, provenance, tensorboard
from cxr_ml.training.artifact_check import OPEN_ERRORS, open_network
from cxr_ml.training.checkpoints import Progress


class Trained(NamedTuple):
    """The result of a training."""

    name: str
    architecture: str
    backbone: architectures.Backbone
    artifact_sha256: str  # of model.keras, in the store
    stages: dict[str, Progress]  # stage -> its epochs
    seconds: dict[str, float]  # step -> wall time, of all that is no epoch
    validation_probabilities: np.ndarray  # float32 (images, classes)
    operating_point: OperatingPoint
    ood_detector: bytes


def store_network(store: ObjectStore, name: str, classifier: keras.Model) -> str:
    """Stores `model.keras`. If another run of the same training has done so first, the classifier gets its weights.

    A file that can be opened is never replaced: the other run may write the record of it at any moment.

    Args:
        store: the object store.
        name: name of the model.
        classifier: with the best weights.

    Returns:
        SHA-256 of the file that is in the store, whose weights the classifier now has.
    """
    key = layout.model_weights(name)
    data = _to_bytes(classifier)
    if store.put_if_absent(key, data):
        return hashlib.sha256(data).hexdigest()
    if _read_weights(store.get(key)) is None:
        store.put_uncommitted(key, data)
    data = store.get(key)
    classifier.set_weights(_read_weights(data))
    return hashlib.sha256(data).hexdigest()


def _to_bytes(classifier: keras.Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        # A new model of the same layers: with the optimizer's state, the file would be three times as large.
        keras.Model(classifier.input, classifier.output).save(path)
        return path.read_bytes()


def _read_weights(data: bytes) -> list[np.ndarray] | None:
    """Returns the weights in the bytes of model.keras; None if Keras does not open them."""
    try:
        return open_network(data).get_weights()
    except OPEN_ERRORS:
        return None


def store_model(store: ObjectStore, settings: Settings, dataset: Dataset, trained: Trained) -> Model:
    """Stores the files beside `model.keras`, the record last.

    Args:
        store: the object store.
        settings: all settings.
        dataset: what the model was trained on.
        trained: the result of the training.

    Returns:
        The record that is in the store: that of another run of the same training, if it was faster.
    """
    key = layout.model_record(trained.name)
    if not store.exists(key):
        record = _store_files(store, settings, dataset, trained)
        store.put_if_absent(key, record.to_bytes(), "application/json")
    checkpoints.delete_all(store, trained.name)
    return store.load(key, Model)


def _store_files(store: ObjectStore, settings: Settings, dataset: Dataset, trained: Trained) -> Model:
    """Stores all files of the model but the record, which is returned."""
    stages = trained.stages
    probabilities = io.BytesIO()
    np.save(probabilities, trained.validation_probabilities)
    history = _make_history(stages)
    for name, data in tensorboard.make_event_files(history).items():
        store.put_uncommitted(layout.model_file(trained.name, name), data)
    images = {stage: sum(e.images_per_second * e.seconds for e in p.epochs) for stage, p in stages.items()}
    seconds = {stage: sum(e.seconds for e in p.epochs) for stage, p in stages.items()}
    return Model(
        model=trained.name,
        architecture=trained.architecture,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        artefact_sha256=trained.artifact_sha256,
        classes=settings.classes,
        image_size=settings.training.image_size,
        weights=trained.backbone.weights,
        weights_sha256=trained.backbone.weights_sha256,
        settings=settings.training.model_dump(exclude={"architectures"})
        | {"precision": distribution.choose_precision()},
        epochs={stage: len(p.epochs) for stage, p in stages.items()},
        seconds={k: round(s, 1) for k, s in trained.seconds.items()}
        | {stage: round(seconds[stage] + p.preparation_seconds, 1) for stage, p in stages.items()},
        images_per_second={stage: round(images[stage] / seconds[stage], 1) for stage in stages},
        code=provenance.describe_code(),
        packages=provenance.list_packages(),
        hardware=provenance.describe_hardware(),
        operating_point=trained.operating_point,
        validation_sha256=_store_once(store, layout.validation_predictions(trained.name), probabilities.getvalue()),
        likeness_sha256=_store_once(store, layout.ood_detector(trained.name), trained.ood_detector),
        history_sha256=_store_once(store, layout.training_curves(trained.name), history.to_csv(index=False).encode()),
    )


def _store_once(store: ObjectStore, key: str, data: bytes) -> str:
    """Returns the SHA-256 of the file under a key, which is never replaced: another run may already record it."""
    stored = data if store.put_if_absent(key, data) else store.get(key)
    return hashlib.sha256(stored).hexdigest()


def _make_history(stages: dict[str, Progress]) -> pd.DataFrame:
    """Returns a row per epoch, counted through both stages from 1, and which epoch of each stage is kept."""
    rows = [
        {"stage": stage} | epoch.model_dump() | {"kept": number == checkpoints.best_epoch(p)}
        for stage, p in stages.items()
        for number, epoch in enumerate(p.epochs, 1)
    ]
    table = pd.DataFrame(rows)
    table.insert(1, "epoch", range(1, len(table) + 1))
    return table
