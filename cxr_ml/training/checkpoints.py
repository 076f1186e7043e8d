"""Stores the state of a training after each epoch, so that a run that died goes on from there."""

import hashlib
import io
import logging
import re
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from cxr_ml import layout
from cxr_ml.records import Record
from cxr_ml.store import ObjectStore

_KEY = re.compile(r".*/(?P<stage>[a-z_]+)-(?P<epoch>\d{5})-(?P<sha256>[0-9a-f]{64})\.npz")


class Epoch(Record):
    """The metrics of one epoch. Losses are cross-entropies, the training loss weighted by class; F1 is macro F1.

    `calibrated` is the loss at its best temperature: see `keras_metrics.CalibratedLoss`.
    """

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    f1: float
    val_f1: float
    calibrated: float
    val_calibrated: float
    learning_rate: float
    images_per_second: float  # training images, by the time of the whole epoch with its validation
    seconds: float


class Progress(Record):
    """How far one stage of a training has come."""

    stage: str
    backbone_sha256: str  # of the first weights of the backbone, which are not part of a checkpoint
    decay: bool  # whether its learning rate falls to its last epoch
    epochs: tuple[Epoch, ...] = ()
    micro_batches: int = 1  # into which a batch is divided to fit into memory
    preparation_seconds: float = 0.0  # for inputs or features, before the first epoch and at each resumption


class Checkpoint(NamedTuple):
    """What a stage is resumed from."""

    progress: Progress
    weights: list[np.ndarray]  # after the last epoch, in the order of the network's weights
    optimizer: list[np.ndarray]  # likewise, of the optimizer's variables
    best_weights: list[np.ndarray]  # after the best epoch, which the stage ends with


def best_epoch(progress: Progress) -> int:
    """Returns the number, from 1, of the epoch whose weights a stage ends with.

    Without a decay of the learning rate it is the one with the lowest calibrated validation loss, the first of equal
    ones. With a decay it is the last: there the weights have settled, and the differences between epochs on a hundred
    or two of validation images are chance.
    """
    if progress.decay:
        return len(progress.epochs)
    losses = [epoch.val_calibrated for epoch in progress.epochs]
    return 1 + losses.index(min(losses))


def _keys(store: ObjectStore, model: str, stage: str) -> list[tuple[int, str]]:
    """Returns (epoch, key) of the checkpoints of a stage, oldest first."""
    matches = [(_KEY.fullmatch(key), key) for key in store.keys(layout.checkpoints(model))]
    return sorted((int(match["epoch"]), key) for match, key in matches if match and match["stage"] == stage)


def save(
    store: ObjectStore, model: str, progress: Progress, weights: list[np.ndarray], optimizer: list[np.ndarray]
) -> str:
    """Stores the state after the last epoch of `progress`, and removes checkpoints that are no longer needed.

    The newest two of a stage remain, and the one of the best epoch. The name holds the SHA-256 of the bytes.

    Args:
        store: the object store.
        model: name of the model.
        progress: the epochs of the stage so far.
        weights: of the network, in its order.
        optimizer: the optimizer's variables.

    Returns:
        The key.
    """
    buffer = io.BytesIO()
    arrays = {"progress": np.frombuffer(progress.to_bytes(), np.uint8)}
    arrays |= {f"weight{i}": array for i, array in enumerate(weights)}
    arrays |= {f"optimizer{i}": array for i, array in enumerate(optimizer)}
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    number = len(progress.epochs)
    key = f"{layout.checkpoints(model)}{progress.stage}-{number:05d}-{hashlib.sha256(data).hexdigest()}.npz"
    store.put_if_absent(key, data)
    for epoch, other in _keys(store, model, progress.stage):
        if epoch < number - 1 and epoch != best_epoch(progress):
            store.remove(other)
    return key


def load_newest(store: ObjectStore, model: str, start: Progress, shapes: list[tuple[int, ...]]) -> Checkpoint | None:
    """Returns the newest checkpoint of a stage that fits and is intact, or None. Others are skipped with a warning.

    Args:
        store: the object store.
        model: name of the model.
        start: the stage before its first epoch: its name, and the weights of its backbone.
        shapes: shapes of the network's weights.
    """
    keys = _keys(store, model, start.stage)
    for number, key in reversed(keys):
        checkpoint = _read(store, key, start, shapes)
        if checkpoint is None:
            continue
        best = best_epoch(checkpoint.progress)
        if best == number:
            return checkpoint
        for epoch, other in keys:
            if epoch == best and (of_best := _read(store, other, start, shapes)):
                return checkpoint._replace(best_weights=of_best.weights)
        _warn(key, f"that of the epoch to be kept, {best}, is missing or broken")
    return None


def _read(store: ObjectStore, key: str, start: Progress, shapes: list[tuple[int, ...]]) -> Checkpoint | None:
    data = store.get(key)
    digest = hashlib.sha256(data).hexdigest()
    if digest not in key:
        _warn(key, f"its bytes are not those that were written: their SHA-256 is {digest}")
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        try:
            progress = Progress.model_validate_json(arrays["progress"].tobytes())
        except ValidationError:
            _warn(key, "it is of another version of cxr-ml")
            return None
        weights, optimizer = (
            [arrays[f"{kind}{i}"] for i in range(sum(name.startswith(kind) for name in arrays.files))]
            for kind in ("weight", "optimizer")
        )
    if progress.backbone_sha256 != start.backbone_sha256:
        _warn(key, "it was trained from other first weights")
        return None
    if [a.shape for a in weights] != shapes:
        _warn(key, "its weights do not fit the network")
        return None
    return Checkpoint(progress, weights, optimizer, weights)


def _warn(key: str, why: str) -> None:
    logging.getLogger(__name__).warning("The checkpoint %s is not used: %s. Looking for the one before.", key, why)


def delete_all(store: ObjectStore, model: str) -> None:
    """Removes all checkpoints of a model, once its model.json is written."""
    for key in list(store.keys(layout.checkpoints(model))):
        store.remove(key)
