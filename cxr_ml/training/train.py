"""Trains one architecture on a dataset: the head on the frozen backbone, then everything."""

import hashlib
import json
import math
import time
from contextlib import nullcontext
from functools import partial

import keras
import numpy as np
import pandas as pd

import cxr_ml
from cxr_ml import store
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.records import Dataset, Model
from cxr_ml.settings import Settings
from cxr_ml.training import (
    architectures,
    artifacts,
    backbones,
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
from cxr_ml.training.loop import Stage


def class_weights(y: np.ndarray, classes: int) -> np.ndarray:
    """Weight of each class, n / (k · n_c), float64 (classes,) (King and Zeng 2001; scikit-learn's "balanced").

    Raises:
        Refused: a class has no image.
    """
    counts = np.bincount(y, minlength=classes)
    if (counts == 0).any():
        raise Refused(f"Each class needs images to train on. Received counts: {counts.tolist()}")
    return len(y) / (classes * counts)


def model_name(settings: Settings, dataset: Dataset, architecture: str, champion: Model | None = None) -> str:
    """Name of the model that these inputs make; the same inputs give the same name.

    Args:
        settings: hyper-parameters.
        dataset: what is trained on.
        architecture: name of the network.
        champion: whose weights the training begins with; None: those that the settings name.

    Raises:
        Refused: unknown architecture, or the file of its weights is missing.
    """
    facts = {k: str(getattr(settings, k)) for k in artifacts.HYPERPARAMETERS}
    file = None if champion else backbones.weights_file(settings, architecture)
    facts |= {
        "weights_sha256": file[1] if file else "",
        "precision": distribution.precision(),
        "version": cxr_ml.__version__,
    }
    facts |= {"dataset": dataset.manifest_sha256, "classes": ",".join(settings.classes)}
    facts |= {"recall_floors": json.dumps(settings.recall_floors, sort_keys=True)}  # the operating point's
    facts |= {"champion": champion.artefact_sha256} if champion else {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{architecture}-d{dataset.dataset}-{digest}"


def train_model(
    settings: Settings,
    number: int,
    architecture: str,
    verbose: bool = True,
    champion: str | None = None,
    on_progress: OnProgress = nobody,
) -> Model:
    """Trains and stores a candidate. A model that these very inputs made before is returned as it is.

    A training that died goes on from its last finished epoch, and ends with the weights of one that did not.

    Args:
        settings: hyper-parameters and the store.
        number: dataset version.
        architecture: name in `backbones.ARCHITECTURES`.
        verbose: whether a line per epoch is printed, and on a terminal a progress bar.
        champion: name of the model in use, with whose weights the training begins if the settings ask for a warm
            start and it is of this architecture. A model that the gate refused must not be handed in.
        on_progress: told of images and epochs.

    Raises:
        Refused: data, architecture or weights that cannot be trained, or a loss that is no longer a number.
    """
    dataset = versions.load_dataset(settings, number)
    first = _warm(settings, architecture, champion, verbose)
    name = model_name(settings, dataset, architecture, first)
    if store.exists(settings, f"models/{name}/model.json"):
        checkpoints.sweep(settings, name)  # that a run left which died between the last two lines of `write`
        return store.load(settings, f"models/{name}/model.json", Model)
    spread = distribution.strategy()
    keras.utils.set_random_seed(settings.seed)
    _check(settings, versions.load_manifest(settings, dataset))
    with spread.scope(), distribution.mixed():
        if first:
            classifier, backbone = _from_champion(settings, first)
        else:
            backbone = architectures.backbone(settings, architecture)
            classifier = _classifier(settings, backbone)
        return _train(settings, dataset, name, architecture, backbone, classifier, verbose, on_progress)


def _train(
    settings: Settings,
    dataset: Dataset,
    name: str,
    architecture: str,
    backbone: architectures.Backbone,
    classifier: keras.Model,
    verbose: bool,
    on_progress: OnProgress,
) -> Model:
    from_scratch = not backbone.weights_sha256
    started = time.monotonic()
    images, manifest = inputs.load(settings, dataset, settings.image_size, on_progress)
    seconds = {"inputs": time.monotonic() - started}
    y = inputs.targets(manifest, settings.classes)
    rows = {s: np.flatnonzero(manifest["split"] == s) for s in ("train", "validation")}
    weights = class_weights(y[rows["train"]], len(settings.classes))
    given = (settings, classifier, images, rows, y, weights)

    done: dict[str, Progress] = {}
    stages = [Stage("head", settings.head_epochs, settings.head_learning_rate)]
    fine_tune = (settings.fine_tune_epochs, settings.fine_tune_learning_rate, settings.fine_tune_decay)
    stages.append(Stage("fine_tune", *fine_tune))
    for stage in stages:
        if not stage.epochs:
            continue
        before = classifier.get_weights()
        only_head = stage.name == "head" and not from_scratch
        if only_head and settings.head_views:
            part, data = _head(classifier), partial(_head_data, *given, manifest, verbose, on_progress)
        else:
            part, data = classifier, partial(_all_data, *given)
        with architectures.frozen(backbone) if only_head else nullcontext():
            progress = loop.run(settings, name, part, stage, backbone.weights_sha256, data, verbose, on_progress)
        if _kept_loss(progress) > min(map(_kept_loss, done.values()), default=math.inf):
            classifier.set_weights(before)  # a fine-tuning that made the head's model worse is not kept
        done[stage.name] = progress
    # What is stored computes as exactly as any machine can; it comes before all that is measured of it.
    classifier = distribution.exact(classifier)
    sha256 = artifacts.artefact(settings, name, classifier)
    tell, held = counted(on_progress, "images", "operating point"), rows["validation"]
    p = predictions.probabilities(classifier, images, held, on_images=lambda done: tell(done, len(held)))
    point = calibration.fit(y[rows["validation"]], p, settings.classes, settings.recall_floors)
    started = time.monotonic()
    known = ood.learn(classifier, images, rows["train"], rows["validation"], y, settings.seed, on_progress)
    seconds["likeness"] = time.monotonic() - started
    trained = artifacts.Trained(name, architecture, backbone, sha256, done, seconds, p, point, known)
    return artifacts.write(settings, dataset, trained)


def _classifier(settings: Settings, backbone: architectures.Backbone) -> keras.Model:
    classes, dropout = len(settings.classes), settings.dropout
    return architectures.classifier(backbone, classes, dropout, settings.freeze_normalisation)


def _warm(settings: Settings, architecture: str, champion: str | None, verbose: bool) -> Model | None:
    """The champion, if the training begins with its weights."""
    if not settings.warm_start:
        return None
    record = store.load(settings, f"models/{champion}/model.json", Model) if champion else None
    if record is None:
        why = "there is no champion"
    elif record.architecture != architecture:
        why = f"{champion}, the champion, is of the architecture {record.architecture}"
    elif record.classes != settings.classes:
        why = f"{champion}, the champion, knows the classes {', '.join(record.classes)}"
    else:
        return record
    if verbose:
        print(f"{architecture}: no warm start, {why}; it begins with weights={settings.weights!r}", flush=True)
    return None


def _from_champion(settings: Settings, champion: Model) -> tuple[keras.Model, architectures.Backbone]:
    """A classifier with the champion's weights, at this training's image size and dropout, and its backbone."""
    scratch = settings.model_copy(update={"weights": "none"})
    backbone = architectures.backbone(scratch, champion.architecture)
    backbone = backbone._replace(weights=f"champion {champion.model}", weights_sha256=champion.artefact_sha256)
    classifier = _classifier(settings, backbone)
    classifier.set_weights(predictions.load_model(settings, champion.model)[1].get_weights())
    return classifier, backbone


def _check(settings: Settings, manifest: pd.DataFrame) -> None:
    """Refuses, before anything is decoded or trained, images that cannot teach or judge every class."""
    counts = {
        split: {c: int(((manifest["split"] == split) & (manifest["label"] == c)).sum()) for c in settings.classes}
        for split in ("train", "validation")
    }
    if strange := sorted(set(manifest["label"]) - set(settings.classes)):
        raise Refused(
            f"Every label must be one of the classes {', '.join(settings.classes)}. Received: {', '.join(strange)}. "
            "Set CXR_CLASSES as it was when the dataset was built, or build a new dataset."
        )
    if absent := [f"no {c} in {split}" for split, found in counts.items() for c, n in found.items() if not n]:
        raise Refused(
            "Each class needs images to train on and images to validate with, at least one of either. "
            f"Received: {', '.join(absent)}; there are {counts}. Put more labelled images into the inbox, or take "
            "the class out of CXR_CLASSES."
        )


def _kept_loss(progress: Progress) -> float:
    return progress.epochs[checkpoints.kept(progress) - 1].val_calibrated


def _head(classifier: keras.Model) -> keras.Model:
    """The layers above the backbone, as a model of their own on its features (n, channels)."""
    features = keras.Input(classifier.get_layer("features").output.shape[1:])
    return keras.Model(features, classifier.get_layer("head")(classifier.get_layer("dropout")(features)))


def _head_data(
    settings: Settings,
    classifier: keras.Model,
    images: np.ndarray,
    rows: dict[str, np.ndarray],
    y: np.ndarray,
    weights: np.ndarray,
    manifest: pd.DataFrame,
    verbose: bool,
    on_progress: OnProgress,
) -> tuple[keras.utils.PyDataset, keras.utils.PyDataset]:
    """Stored features for the head: the frozen backbone sees each augmented view once, not once per epoch."""
    see = partial(features.load, settings, classifier, manifest, images, verbose=verbose, on_progress=on_progress)
    x, target = see(rows["train"], settings.head_views), np.tile(y[rows["train"]], settings.head_views)
    validation = see(rows["validation"], 1)
    batches = ShuffledRows(x, target, weights[target], settings.batch_size, settings.seed)
    return batches, inputs.Batches(validation, np.arange(len(validation)), 32, y[rows["validation"]])


def _all_data(
    settings: Settings,
    classifier: keras.Model,
    images: np.ndarray,
    rows: dict[str, np.ndarray],
    y: np.ndarray,
    weights: np.ndarray,
) -> tuple[keras.utils.PyDataset, keras.utils.PyDataset]:
    target = y[rows["train"]]
    batches = inputs.AugmentedBatches(
        images, rows["train"], target, weights[target], settings.batch_size, settings.seed, settings.disguised
    )
    return batches, inputs.Batches(images, rows["validation"], 32, y[rows["validation"]])
