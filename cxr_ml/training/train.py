"""Trains one architecture on a dataset: the study's method from the images to the stored model.

`train_model` builds the network, and `_train` is the method:

1. Read the images at the size of the network, and weigh the classes by their rarity.
2. Stage "head": the backbone with its ImageNet weights is frozen, only the new softmax layer learns.
3. Stage "fine_tune": the whole network learns at a small rate, but for its batch normalisation.
4. On the validation images: fit the temperature and the offsets of the classes, and the limit beyond which an image is
   unlike the training images.
5. Store the model, its record last.

Both stages run in `loop.py`. The test images are never looked at here.
"""

import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.records import Dataset, Model
from cxr_ml.settings import Settings, TrainingSettings
from cxr_ml.store import ObjectStore
from cxr_ml.training import (
    architectures,
    artifacts,
    calibration,
    checkpoints,
    distribution,
    features,
    inputs,
    loop,
    ood,
    predictions,
)
from cxr_ml.training.batching import ShuffledRows
from cxr_ml.training.checkpoints import Progress
from cxr_ml.training.loop import Stage, StageBatches
from cxr_ml.training.model_naming import name_model


class Network(NamedTuple):
    """A classifier, and the backbone inside it, whose layers it shares."""

    backbone: architectures.Backbone
    classifier: keras.Model


class TrainingData(NamedTuple):
    """The images of a dataset, and what the training needs to know of them."""

    images: np.ndarray  # uint8 (images, size, size, 1), memory-mapped
    manifest: pd.DataFrame  # row for row
    y: np.ndarray  # class indices, int64 (images,)
    train: np.ndarray  # row numbers, int (n,)
    validation: np.ndarray  # likewise
    class_weights: np.ndarray  # float64 (classes,)


def train_model(
    store: ObjectStore,
    settings: Settings,
    number: int,
    architecture: str,
    verbose: bool = True,
    champion: str | None = None,
    on_progress: OnProgress = nobody,
) -> Model:
    """Trains and stores a candidate. Returns the stored model if these very inputs have made one before.

    A training that died goes on from its last finished epoch, and ends with the weights of one that did not.

    Args:
        store: the object store.
        settings: hyper-parameters and the store.
        number: dataset version.
        architecture: name in `backbones.ARCHITECTURES`.
        verbose: print a line per epoch, and on a terminal a progress bar.
        champion: name of the model in use, with whose weights the training begins if the settings ask for a warm
            start and it is of this architecture. A model that the gate refused must not be handed in.
        on_progress: called with images and epochs that are done.

    Raises:
        Refused: data, architecture or weights that cannot be trained, or a loss that is no longer a number.
    """
    dataset = versions.load_dataset(store, number)
    warm_start = _choose_warm_start(store, settings.training, settings.classes, architecture, champion, verbose)
    name = name_model(settings, dataset, architecture, warm_start)
    if store.exists(layout.model_record(name)):
        checkpoints.delete_all(store, name)  # left by a run that died after it wrote the record
        return store.load(layout.model_record(name), Model)
    strategy = distribution.choose_strategy()
    keras.utils.set_random_seed(settings.training.seed)
    _check_classes(settings.classes, versions.load_manifest(store, dataset))
    with strategy.scope(), distribution.mixed_precision():
        network = _build_network(store, settings, architecture, warm_start)
        return _train(store, settings, dataset, name, architecture, network, verbose, on_progress)


def _train(
    store: ObjectStore,
    settings: Settings,
    dataset: Dataset,
    name: str,
    architecture: str,
    network: Network,
    verbose: bool,
    on_progress: OnProgress,
) -> Model:
    # 1. Images and class weights.
    started = time.monotonic()
    data = _load_data(store, settings, dataset, on_progress)
    seconds = {"inputs": time.monotonic() - started}

    # 2. and 3. The head on the frozen backbone, then the whole network.
    stages = _train_stages(store, settings, name, network, data, verbose, on_progress)

    # The stored network computes in float32 on any machine, so it comes before all that is measured of it.
    classifier = distribution.to_float32(network.classifier)
    sha256 = artifacts.store_network(store, name, classifier)

    # 4. Operating point and out-of-distribution detector, both with their limits from the validation images.
    report, total = counted(on_progress, "images", "operating point"), len(data.validation)
    p = predictions.predict_probabilities(
        classifier, data.images, data.validation, on_images=lambda done: report(done, total)
    )
    point = calibration.fit(data.y[data.validation], p, settings.classes, settings.gate.recall_floors)
    started = time.monotonic()
    detector = ood.fit(
        classifier, data.images, data.train, data.validation, data.y, settings.training.seed, on_progress
    )
    seconds["likeness"] = time.monotonic() - started

    # 5. Everything beside the network, the record last.
    trained = artifacts.Trained(
        name, architecture, network.backbone, sha256, stages, seconds, p, point, ood.to_bytes(detector)
    )
    return artifacts.store_model(store, settings, dataset, trained)


def _load_data(store: ObjectStore, settings: Settings, dataset: Dataset, on_progress: OnProgress) -> TrainingData:
    images, manifest = inputs.load(store, settings.cache_dir, dataset, settings.training.image_size, on_progress)
    y = inputs.targets(manifest, settings.classes)
    train, validation = (np.flatnonzero(manifest["split"] == split) for split in ("train", "validation"))
    weights = compute_class_weights(y[train], len(settings.classes))
    return TrainingData(images, manifest, y, train, validation, weights)


def compute_class_weights(y: np.ndarray, classes: int) -> np.ndarray:
    """Returns the weight of each class, n / (k · n_c), by which the loss of its images is multiplied.

    King and Zeng (2001), Logistic regression in rare events data; scikit-learn's "balanced".

    Args:
        y: class indices of the training images, int (n,).
        classes: their number k.

    Returns:
        float64 (classes,).

    Raises:
        Refused: a class has no image.

    Example:
        The training images of the study, in the order COVID-19, normal, pneumonia:

        >>> y = np.repeat([0, 1, 2], [460, 1341, 3875])
        >>> compute_class_weights(y, 3).round(2).tolist()
        [4.11, 1.41, 0.49]
    """
    counts = np.bincount(y, minlength=classes)
    if (counts == 0).any():
        raise Refused(f"Each class needs images to train on. Received counts: {counts.tolist()}")
    return len(y) / (classes * counts)


def _train_stages(
    store: ObjectStore,
    settings: Settings,
    name: str,
    network: Network,
    data: TrainingData,
    verbose: bool,
    on_progress: OnProgress,
) -> dict[str, Progress]:
    """Trains the classifier in both stages. Returns the epochs of each."""
    backbone, classifier = network
    pretrained = bool(backbone.weights_sha256)
    fine_tune_rate, decay = settings.training.fine_tune_learning_rate, settings.training.fine_tune_decay
    done: dict[str, Progress] = {}
    for stage in (
        Stage("head", settings.training.head_epochs, settings.training.head_learning_rate),
        Stage("fine_tune", settings.training.fine_tune_epochs, fine_tune_rate, decay),
    ):
        if not stage.epochs:
            continue
        before = classifier.get_weights()
        freeze = stage.name == "head" and pretrained
        if freeze and settings.training.head_views:
            # Of a frozen backbone the features of an image never change, so the head alone is trained on them.
            part = _extract_head(classifier)
            make_batches = partial(
                _make_feature_batches,
                store,
                settings.training,
                settings.cache_dir,
                classifier,
                data,
                verbose,
                on_progress,
            )
        else:
            part, make_batches = classifier, partial(_make_image_batches, settings.training, data)
        with architectures.frozen(backbone) if freeze else nullcontext():
            progress = loop.train_stage(
                store, settings, name, part, stage, backbone.weights_sha256, make_batches, verbose, on_progress
            )
        if _best_loss(progress) > min(map(_best_loss, done.values()), default=math.inf):
            classifier.set_weights(before)  # fine-tuning made the model of the head stage worse
        done[stage.name] = progress
    return done


def _best_loss(progress: Progress) -> float:
    return progress.epochs[checkpoints.best_epoch(progress) - 1].val_calibrated


def _extract_head(classifier: keras.Model) -> keras.Model:
    """Returns the layers above the backbone as a model of its features (n, channels). They are shared, not copied."""
    x = keras.Input(classifier.get_layer("features").output.shape[1:])
    return keras.Model(x, classifier.get_layer("head")(classifier.get_layer("dropout")(x)))


def _make_feature_batches(
    store: ObjectStore,
    settings: TrainingSettings,
    cache_dir: Path,
    classifier: keras.Model,
    data: TrainingData,
    verbose: bool,
    on_progress: OnProgress,
) -> StageBatches:
    """Returns batches of features: the frozen backbone computes a few views per image once, not one in every epoch."""
    load = partial(features.load, store, settings, cache_dir, classifier, data.manifest, data.images)
    x = load(data.train, settings.head_views, verbose=verbose, on_progress=on_progress)
    y = np.tile(data.y[data.train], settings.head_views)
    x_validation = load(data.validation, 1, verbose=verbose, on_progress=on_progress)
    return StageBatches(
        ShuffledRows(x, y, data.class_weights[y], settings.batch_size, settings.seed),
        inputs.Batches(x_validation, np.arange(len(x_validation)), 32, data.y[data.validation]),
    )


def _make_image_batches(settings: TrainingSettings, data: TrainingData) -> StageBatches:
    """Returns batches of images: for training a new random view of each in every epoch, for validation as they are."""
    y, batch_size, seed = data.y[data.train], settings.batch_size, settings.seed
    weights, disguised = data.class_weights[y], settings.corrupted_share
    return StageBatches(
        inputs.AugmentedBatches(data.images, data.train, y, weights, batch_size, seed, disguised),
        inputs.Batches(data.images, data.validation, 32, data.y[data.validation]),
    )


def _check_classes(classes: tuple[str, ...], manifest: pd.DataFrame) -> None:
    """Refuses, before anything is decoded or trained, images that cannot teach or judge every class."""
    counts = {
        split: {c: int(((manifest["split"] == split) & (manifest["label"] == c)).sum()) for c in classes}
        for split in ("train", "validation")
    }
    if unknown := sorted(set(manifest["label"]) - set(classes)):
        raise Refused(
            f"Every label must be one of the classes {', '.join(classes)}. Received: {', '.join(unknown)}. "
            "Set CXR_CLASSES as it was when the dataset was built, or build a new dataset."
        )
    if missing := [f"no {c} in {split}" for split, of_class in counts.items() for c, n in of_class.items() if not n]:
        raise Refused(
            "Each class needs images to train on and images to validate with, at least one of either. "
            f"Received: {', '.join(missing)}; there are {counts}. Put more labelled images into the inbox, or take "
            "the class out of CXR_CLASSES."
        )


def _choose_warm_start(
    store: ObjectStore,
    settings: TrainingSettings,
    classes: tuple[str, ...],
    architecture: str,
    champion: str | None,
    verbose: bool,
) -> Model | None:
    """Returns the champion, if the training begins with its weights."""
    if not settings.warm_start:
        return None
    record = store.load(layout.model_record(champion), Model) if champion else None
    if record is None:
        why = "there is no champion"
    elif record.architecture != architecture:
        why = f"{champion}, the champion, is of the architecture {record.architecture}"
    elif record.classes != classes:
        why = f"{champion}, the champion, knows the classes {', '.join(record.classes)}"
    else:
        return record
    if verbose:
        print(f"{architecture}: no warm start, {why}; it begins with weights={settings.weights!r}", flush=True)
    return None


def _build_network(store: ObjectStore, settings: Settings, architecture: str, champion: Model | None) -> Network:
    """Returns a new classifier on the backbone's first weights or, for a warm start, with the champion's."""
    if champion is None:
        backbone = architectures.build_backbone(settings.training, settings.weights_dir, architecture)
    else:
        scratch = settings.replace(training={"weights": "none"})
        backbone = architectures.build_backbone(scratch.training, scratch.weights_dir, champion.architecture)
        backbone = backbone._replace(weights=f"champion {champion.model}", weights_sha256=champion.artefact_sha256)
    classifier = architectures.build_classifier(
        backbone, len(settings.classes), settings.training.dropout, settings.training.freeze_normalisation
    )
    if champion is not None:
        classifier.set_weights(predictions.load_model(store, champion.model)[1].get_weights())
    return Network(backbone, classifier)
