"""The state of a training after each epoch, in the store, so that a run that died goes on from there."""

import hashlib
import io
import logging
import re
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from cxr_ml import store
from cxr_ml.records import Record
from cxr_ml.settings import Settings

_KEY = re.compile(r".*/(?P<stage>[a-z_]+)-(?P<epoch>\d{5})-(?P<sha256>[0-9a-f]{64})\.npz")


class Epoch(Record):
    """What one epoch gave. Losses are cross-entropies, the training loss weighted by class; F1 is macro F1.

    `calibrated` is the loss at its best temperature: see `loop.Calibrated`.
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
    """How far one stage of a training came."""

    stage: str
    backbone_sha256: str  # of the first weights that the stage stands on; they are not part of a checkpoint
    decay: bool  # whether its learning rate falls to its last epoch
    epochs: tuple[Epoch, ...] = ()
    pieces: int = 1  # in which a batch goes through memory
    prepared: float = 0.0  # seconds that went into what it trains on, before the first epoch and each new start


class Checkpoint(NamedTuple):
    """What a stage goes on from."""

    progress: Progress
    weights: list[np.ndarray]  # after the last epoch, in the order of the network's weights
    optimizer: list[np.ndarray]  # likewise, of the optimizer's variables
    kept: list[np.ndarray]  # the weights after the epoch that is kept


def kept(progress: Progress) -> int:
    """Number of the epoch whose weights a stage ends with, from 1.

    Where the learning rate falls it is the last: there the weights have come to rest, and a choice among epochs by a
    hundred or two of validation images would be left to chance. Else it is the one with the lowest calibrated
    validation loss, the first of equal ones.
    """
    if progress.decay:
        return len(progress.epochs)
    losses = [epoch.val_calibrated for epoch in progress.epochs]
    return 1 + losses.index(min(losses))


def _folder(model: str) -> str:
    return f"models/{model}/checkpoints/"


def _keys(settings: Settings, model: str, stage: str) -> list[tuple[int, str]]:
    """(epoch, key) of the checkpoints of a stage, oldest first."""
    found = [(_KEY.fullmatch(key), key) for key in store.keys(settings, _folder(model))]
    return sorted((int(match["epoch"]), key) for match, key in found if match and match["stage"] == stage)


def save(
    settings: Settings, model: str, progress: Progress, weights: list[np.ndarray], optimizer: list[np.ndarray]
) -> str:
    """Stores the state after the last epoch of `progress`, named by the hash of its bytes; drops what is outlived.

    What remains of a stage are the newest two, and the one that is to be kept.

    Returns:
        The key.
    """
    buffer = io.BytesIO()
    arrays = {f"weight{i}": a for i, a in enumerate(weights)} | {f"optimizer{i}": a for i, a in enumerate(optimizer)}
    np.savez(buffer, progress=np.frombuffer(progress.to_bytes(), np.uint8), **arrays)
    data = buffer.getvalue()
    number = len(progress.epochs)
    key = f"{_folder(model)}{progress.stage}-{number:05d}-{hashlib.sha256(data).hexdigest()}.npz"
    store.put_if_absent(settings, key, data)
    for epoch, other in _keys(settings, model, progress.stage):
        if epoch < number - 1 and epoch != kept(progress):
            store.remove(settings, other)
    return key


def newest(settings: Settings, model: str, fresh: Progress, shapes: list[tuple[int, ...]]) -> Checkpoint | None:
    """The newest checkpoint of a stage that can be trusted, or None. One that cannot is left out, with a warning.

    Args:
        settings: the store.
        model: name of the model.
        fresh: how the stage would begin: its name, and what it stands on.
        shapes: shapes of the network's weights.
    """
    keys = _keys(settings, model, fresh.stage)
    for number, key in reversed(keys):
        found = _read(settings, key, fresh, shapes)
        if found is None:
            continue
        chosen = kept(found.progress)
        if chosen == number:
            return found
        for epoch, other in keys:
            if epoch == chosen and (then := _read(settings, other, fresh, shapes)):
                return found._replace(kept=then.weights)
        _warn(key, f"that of the epoch to be kept, {chosen}, is missing or broken")
    return None


def _read(settings: Settings, key: str, fresh: Progress, shapes: list[tuple[int, ...]]) -> Checkpoint | None:
    data = store.get(settings, key)
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
    if progress.backbone_sha256 != fresh.backbone_sha256:
        _warn(key, "it was trained from other first weights")
        return None
    if [a.shape for a in weights] != shapes:
        _warn(key, "its weights do not fit the network")
        return None
    return Checkpoint(progress, weights, optimizer, weights)


def _warn(key: str, why: str) -> None:
    logging.getLogger(__name__).warning("The checkpoint %s is not used: %s. Looking for the one before.", key, why)


def sweep(settings: Settings, model: str) -> None:
    """Removes all checkpoints of a model; for when its model.json is written."""
    for key in list(store.keys(settings, _folder(model))):
        store.remove(settings, key)
