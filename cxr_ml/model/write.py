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
from cxr_ml.model import architectures, checkpoints, curves, devices, likeness, provenance
from cxr_ml.model.checkpoints import Progress
from cxr_ml.records import Dataset, Model, OperatingPoint
from cxr_ml.settings import Settings

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
    classifier: keras.Model  # with the weights of the best epoch
    done: dict[str, Progress]  # stage -> its epochs
    seconds: dict[str, float]  # step -> wall time, of all that is no epoch
    validation: np.ndarray  # probabilities of the validation images, float32 (images, classes)
    point: OperatingPoint
    likeness: bytes


def write(settings: Settings, dataset: Dataset, trained: Trained) -> Model:
    """Stores `models/<name>/`, `model.json` last; of several hosts that train together, the first one does.

    Returns:
        The record that is in the store.
    """
    model, done = f"models/{trained.name}", trained.done
    predicted = io.BytesIO()
    np.save(predicted, trained.validation)
    history = _history(done)
    files = {"model.keras": _artefact(trained.classifier), "validation.npy": predicted.getvalue()}
    files |= {likeness.FILE: trained.likeness, "history.csv": history.to_csv(index=False).encode()}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    images = {stage: sum(e.images_per_second * e.seconds for e in p.epochs) for stage, p in done.items()}
    spent = {stage: sum(e.seconds for e in p.epochs) for stage, p in done.items()}
    record = Model(
        model=trained.name,
        architecture=trained.architecture,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        artefact_sha256=sha256["model.keras"],
        classes=settings.classes,
        image_size=settings.image_size,
        weights=trained.backbone.weights,
        weights_sha256=trained.backbone.weights_sha256,
        settings={k: getattr(settings, k) for k in (*HYPERPARAMETERS, "warm_start")},
        epochs={stage: len(p.epochs) for stage, p in done.items()},
        seconds={k: round(s, 1) for k, s in trained.seconds.items()}
        | {stage: round(spent[stage] + p.prepared, 1) for stage, p in done.items()},
        images_per_second={stage: round(images[stage] / spent[stage], 1) for stage in done},
        code=provenance.code(),
        packages=provenance.packages(),
        hardware=provenance.hardware(),
        operating_point=trained.point,
        validation_sha256=sha256["validation.npy"],
        likeness_sha256=sha256[likeness.FILE],
        history_sha256=sha256["history.csv"],
    )
    with devices.chief_first():
        if devices.chief():
            for name, data in (files | curves.events(history)).items():
                store.put_uncommitted(settings, f"{model}/{name}", data)
            if not store.put_if_absent(settings, f"{model}/model.json", record.to_bytes(), "application/json"):
                raise RuntimeError(f"{trained.name} was written by two runs at once. Run this step again.")
            checkpoints.sweep(settings, trained.name)
    return store.load(settings, f"{model}/model.json", Model)


def _artefact(classifier: keras.Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        # Another model of the same layers: with the optimizer's memory, the file would be three times as large.
        keras.Model(classifier.input, classifier.output).save(path)
        return path.read_bytes()


def _history(done: dict[str, Progress]) -> pd.DataFrame:
    """A row per epoch, counted through both stages from 1."""
    rows = [{"stage": stage} | epoch.model_dump() for stage, p in done.items() for epoch in p.epochs]
    table = pd.DataFrame(rows)
    table.insert(1, "epoch", range(1, len(table) + 1))
    return table
