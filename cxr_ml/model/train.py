"""Trains one architecture on a dataset: the head on the frozen backbone, then everything."""

import hashlib
import json
import math
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import cxr_ml
from cxr_ml import store
from cxr_ml.data import dataset as datasets
from cxr_ml.errors import Refused
from cxr_ml.model import architectures, features, inputs
from cxr_ml.records import Dataset, Model
from cxr_ml.settings import Settings

_HYPERPARAMETERS = (
    "image_size", "batch_size", "head_epochs", "fine_tune_epochs", "head_learning_rate", "fine_tune_learning_rate",
    "patience", "dropout", "head_views", "disguised", "seed", "weights",
)  # fmt: skip


def class_weights(y: np.ndarray, classes: int) -> np.ndarray:
    """Weight of each class, n / (k · n_c), float64 (classes,) (King and Zeng 2001; scikit-learn's "balanced").

    Raises:
        Refused: a class has no image.
    """
    counts = np.bincount(y, minlength=classes)
    if (counts == 0).any():
        raise Refused(f"Each class needs images to train on. Received counts: {counts.tolist()}")
    return len(y) / (classes * counts)


def model_name(settings: Settings, dataset: Dataset, architecture: str) -> str:
    """Name of the model that these inputs make; the same inputs give the same name."""
    facts = {k: str(getattr(settings, k)) for k in _HYPERPARAMETERS}
    facts |= {"weights_dir": str(settings.weights_dir), "version": cxr_ml.__version__}
    facts |= {"dataset": dataset.manifest_sha256, "classes": ",".join(settings.classes)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{architecture}-d{dataset.dataset}-{digest}"


def train(settings: Settings, number: int, architecture: str, verbose: int = 2) -> Model:
    """Trains and stores a candidate. A model that these very inputs made before is returned as it is.

    Args:
        settings: hyper-parameters and the store.
        number: dataset version.
        architecture: name in `architectures.ARCHITECTURES`.
        verbose: as in keras.Model.fit: 2 prints a line per epoch, 1 a progress bar.

    Raises:
        Refused: data, architecture or weights that cannot be trained, or a loss that is no longer a number.
    """
    dataset = datasets.load(settings, number)
    name = model_name(settings, dataset, architecture)
    if store.exists(settings, f"models/{name}/model.json"):
        return store.load(settings, f"models/{name}/model.json", Model)
    keras.utils.set_random_seed(settings.seed)
    started = time.monotonic()
    images, manifest = inputs.load(settings, dataset, settings.image_size)
    y = inputs.targets(manifest, settings.classes)
    rows = {s: np.flatnonzero(manifest["split"] == s) for s in ("train", "validation")}
    if not len(rows["validation"]):
        raise Refused("Training needs a validation split. Received: none; add images to the inbox.")
    seconds = {"inputs": time.monotonic() - started}
    weights = class_weights(y[rows["train"]], len(settings.classes))
    backbone = architectures.backbone(settings, architecture)
    classifier = architectures.classifier(backbone, len(settings.classes), settings.dropout)
    from_scratch = not backbone.weights_sha256

    histories, best = [], math.inf
    stages = [("head", settings.head_epochs, settings.head_learning_rate)]
    stages.append(("fine_tune", settings.fine_tune_epochs, settings.fine_tune_learning_rate))
    for stage, epochs, rate in stages:
        if not epochs:
            continue
        started, before = time.monotonic(), classifier.get_weights()
        if stage == "head" and not from_scratch:
            history = _train_head(settings, classifier, images, manifest, rows, y, weights, verbose)
        else:
            history = _train_all(settings, classifier, images, rows, y, weights, (stage, epochs, rate), verbose)
        seconds[stage] = time.monotonic() - started
        if history["val_loss"].min() > best:
            classifier.set_weights(before)  # the best epoch of both stages is kept, be it one of the frozen stage
        best = min(best, history["val_loss"].min())
        done = len(pd.concat(histories)) if histories else 0
        history.insert(0, "epoch", range(done + 1, done + len(history) + 1))
        history.insert(0, "stage", stage)
        histories.append(history)
    history = pd.concat(histories, ignore_index=True)
    return _write(settings, dataset, name, architecture, backbone, classifier, history, seconds)


def _callbacks(settings: Settings) -> list[keras.callbacks.Callback]:
    stop = keras.callbacks.EarlyStopping("val_loss", patience=settings.patience, restore_best_weights=True)
    return [stop, keras.callbacks.TerminateOnNaN()]


def _table(fitted: keras.callbacks.History) -> pd.DataFrame:
    table = pd.DataFrame(fitted.history)
    if not np.isfinite(table[["loss", "val_loss"]].to_numpy()).all():
        raise Refused(
            "The loss is no longer a number: training is stopped and nothing is stored. Use smaller learning rates. "
            f"Received: {table['loss'].tolist()}"
        )
    return table[["loss", "accuracy", "val_loss", "val_accuracy"]]


def _compile(model: keras.Model, rate: float) -> None:
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])


def _train_head(
    settings: Settings,
    classifier: keras.Model,
    images: np.ndarray,
    manifest: pd.DataFrame,
    rows: dict[str, np.ndarray],
    y: np.ndarray,
    weights: np.ndarray,
    verbose: int,
) -> pd.DataFrame:
    """Trains the head on stored features: the frozen backbone sees each augmented view once, not once per epoch."""
    x = features.load(settings, classifier, manifest, images, rows["train"], settings.head_views, bool(verbose))
    target = np.tile(y[rows["train"]], settings.head_views)
    validation = features.load(settings, classifier, manifest, images, rows["validation"], 1, bool(verbose))
    inputs_ = keras.Input(x.shape[1:])
    layers = [classifier.get_layer("dropout"), classifier.get_layer("head")]
    head = keras.Model(inputs_, layers[1](layers[0](inputs_)))
    _compile(head, settings.head_learning_rate)
    fitted = head.fit(
        x,
        target,
        sample_weight=weights[target],
        validation_data=(validation, y[rows["validation"]]),
        epochs=settings.head_epochs,
        batch_size=settings.batch_size,
        callbacks=_callbacks(settings),
        verbose=verbose,
    )
    return _table(fitted)


def _train_all(
    settings: Settings,
    classifier: keras.Model,
    images: np.ndarray,
    rows: dict[str, np.ndarray],
    y: np.ndarray,
    weights: np.ndarray,
    stage: tuple[str, int, float],
    verbose: int,
) -> pd.DataFrame:
    _, epochs, rate = stage
    target = y[rows["train"]]
    batches = inputs.AugmentedBatches(
        images, rows["train"], target, weights[target], settings.batch_size, settings.seed, settings.disguised
    )
    _compile(classifier, rate)
    fitted = classifier.fit(
        batches,
        validation_data=(images[rows["validation"]], y[rows["validation"]]),
        validation_batch_size=min(settings.batch_size, 32),
        epochs=epochs,
        shuffle=False,
        callbacks=_callbacks(settings),
        verbose=verbose,
    )
    return _table(fitted)


def _write(
    settings: Settings,
    dataset: Dataset,
    name: str,
    architecture: str,
    backbone: architectures.Backbone,
    classifier: keras.Model,
    history: pd.DataFrame,
    seconds: dict[str, float],
) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        classifier.save(path)
        artefact = path.read_bytes()
    digest = hashlib.sha256(artefact).hexdigest()
    record = Model(
        model=name,
        architecture=architecture,
        dataset=dataset.dataset,
        dataset_sha256=dataset.manifest_sha256,
        artefact_sha256=digest,
        classes=settings.classes,
        image_size=settings.image_size,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        settings={k: getattr(settings, k) for k in _HYPERPARAMETERS},
        epochs={str(stage): int(n) for stage, n in history.groupby("stage", sort=False).size().items()},
        seconds={stage: round(s, 1) for stage, s in seconds.items()},
    )
    store.put_uncommitted(settings, f"models/{name}/model.keras", artefact)
    store.put_uncommitted(settings, f"models/{name}/history.csv", history.to_csv(index=False).encode())
    if not store.put_if_absent(settings, f"models/{name}/model.json", record.to_bytes(), "application/json"):
        raise RuntimeError(f"{name} was written by two runs at once. Run this step again.")
    return record
