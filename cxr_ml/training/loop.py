"""Trains one stage: epoch by epoch, each with a checkpoint, until early stopping or the last epoch.

Read on from `train_stage`: it resumes, `_fit` calls Keras, and `_EpochCallback` is what happens around each epoch.
"""

import copy
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress, nobody, now
from cxr_ml.records import StepProgress
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import checkpoints
from cxr_ml.training.batching import MicroBatches, PaddedBatches
from cxr_ml.training.checkpoints import Checkpoint, Epoch, Progress, best_epoch
from cxr_ml.training.keras_metrics import CalibratedLoss, MacroF1
from cxr_ml.training.out_of_memory import double_micro_batches

LOSS = "sparse_categorical_crossentropy"
MAX_LOSS_FACTOR = 100.0  # times the first loss, or that of guessing: above it the training has diverged
MAX_VALIDATION_BATCH = 32
_SEED = 2  # separates the random numbers of the layers from those of augmentation


class Stage(NamedTuple):
    """A stage of the training, with its share of the settings."""

    name: str  # head or fine_tune
    epochs: int  # at most
    learning_rate: float  # of the first epoch
    decay: bool = False  # whether it falls along half a cosine, from epoch to epoch


class StageBatches(NamedTuple):
    """What a stage is trained on and judged by. Both have all their targets as `y`."""

    training: keras.utils.PyDataset  # (x, targets, weights); shuffled and augmented by its `epoch`
    validation: keras.utils.PyDataset  # (x, targets); takes any `batch_size`


def compute_learning_rate(stage: Stage, epoch: int) -> float:
    """Returns the learning rate of an epoch: constant, or half a cosine from the stage's rate towards 0.

    Loshchilov and Hutter (2017), SGDR, equation 5 without restarts: rate · (1 + cos(π · epoch / epochs)) / 2.

    Args:
        stage: the stage.
        epoch: counted from 0.

    Example:
        >>> fine_tune = Stage("fine_tune", epochs=4, learning_rate=1e-4, decay=True)
        >>> [round(compute_learning_rate(fine_tune, epoch), 6) for epoch in range(4)]
        [0.0001, 8.5e-05, 5e-05, 1.5e-05]
    """
    if not stage.decay:
        return stage.learning_rate
    return stage.learning_rate * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2


def is_finished(progress: Progress, stage: Stage, patience: int) -> bool:
    """Returns whether a stage has run all its epochs, or `patience` of them since the best one (early stopping).

    Where the learning rate decays, the last epoch counts as the best one: no stage with a decay is stopped early.
    """
    n = len(progress.epochs)
    return n >= stage.epochs or (n > 0 and n - best_epoch(progress) >= patience)


def train_stage(
    store: ObjectStore,
    settings: Settings,
    model: str,
    network: keras.Model,
    stage: Stage,
    backbone_sha256: str,
    make_batches: Callable[[], StageBatches],
    verbose: bool,
    on_progress: OnProgress = nobody,
) -> Progress:
    """Trains `network` from the last stored epoch of a stage to its end, and leaves it with the best weights.

    An epoch that is stored is never repeated: a killed training resumes after it. Returns all epochs of the stage.

    Args:
        store: the object store.
        settings: batch size, patience, seed, and the store.
        model: name of the model, whose checkpoints are read and written.
        network: from the x of the batches to probabilities (n, classes).
        stage: the stage.
        backbone_sha256: of the weights that the network began with, where they are not its own.
        make_batches: called only if the stage has not ended yet.
        verbose: print a line per epoch, and on a terminal a progress bar.
        on_progress: called when an epoch begins, after each of its steps, and when it has ended.

    Raises:
        Refused: the loss is not finite or has exploded, or one image is too large for the memory.
    """
    start = Progress(stage=stage.name, backbone_sha256=backbone_sha256, decay=stage.decay)
    shapes = [tuple(weight.shape) for weight in network.weights]
    checkpoint = checkpoints.load_newest(store, model, start, shapes)
    if checkpoint and verbose:
        n = len(checkpoint.progress.epochs)
        print(f"{stage.name}: {n} epochs were stored before; going on from there", flush=True)
    if checkpoint and is_finished(checkpoint.progress, stage, settings.training.patience):
        network.set_weights(checkpoint.best_weights)
        return checkpoint.progress
    started = time.monotonic()
    batches = make_batches()
    checkpoint = checkpoint or Checkpoint(start, network.get_weights(), [], [])
    preparation = round(checkpoint.progress.preparation_seconds + time.monotonic() - started, 3)
    micro_batches, images = checkpoint.progress.micro_batches, len(batches.training.y)
    while True:
        _prepare(network, stage, checkpoint, micro_batches)
        update = {"micro_batches": micro_batches, "preparation_seconds": preparation}
        progress, best = checkpoint.progress.model_copy(update=update), checkpoint.best_weights
        callback = _EpochCallback(store, settings, model, stage, progress, best, images, verbose, on_progress)
        try:
            _fit(network, batches, callback, settings.training.batch_size, verbose)
        except Exception as error:
            micro_batches = double_micro_batches(error, settings.training, stage.name, micro_batches, images)
            checkpoint = checkpoints.load_newest(store, model, start, shapes) or checkpoint
        else:
            network.set_weights(callback.best_weights)
            return callback.progress


def _prepare(network: keras.Model, stage: Stage, checkpoint: Checkpoint, micro_batches: int) -> None:
    """Compiles a network with the state of a checkpoint."""
    accumulation = micro_batches if micro_batches > 1 else None
    optimizer = keras.optimizers.Adam(stage.learning_rate, gradient_accumulation_steps=accumulation)
    metrics = ["accuracy", MacroF1(network.output_shape[-1])]
    network.compile(optimizer, LOSS, metrics=metrics, weighted_metrics=[CalibratedLoss()])
    network.set_weights(checkpoint.weights)
    network.optimizer.build(network.trainable_variables)
    if checkpoint.optimizer:
        for variable, value in zip(_optimizer_state(network.optimizer), checkpoint.optimizer, strict=True):
            variable.assign(value)
        # Keras counts micro-batches, but what must go on is the count of steps. With float16, Keras wraps the
        # optimizer in one that scales the loss.
        steps = getattr(network.optimizer, "inner_optimizer", network.optimizer)._iterations
        steps.assign(int(steps) // checkpoint.progress.micro_batches * micro_batches)


def _optimizer_state(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Returns the variables that outlive an epoch: accumulated gradients are used up at its end."""
    return [v for v in optimizer.variables if "gradient_accumulator" not in v.path]


def _fit(
    network: keras.Model, batches: StageBatches, callback: "_EpochCallback", batch_size: int, verbose: bool
) -> None:
    done, micro_batches = len(callback.progress.epochs), callback.progress.micro_batches
    devices = network.distribute_strategy.num_replicas_in_sync
    # Copies: Keras's threads of an attempt that ran out of memory may still advance the epoch of the old ones.
    training, validation = copy.copy(batches.training), copy.copy(batches.validation)
    training.epoch = done - 1
    training.on_epoch_end()
    validation.batch_size = max(1, min(batch_size // micro_batches, MAX_VALIDATION_BATCH) // devices) * devices
    network.fit(
        training if micro_batches * devices == 1 else MicroBatches(training, micro_batches, devices),
        validation_data=validation if devices == 1 else PaddedBatches(validation, devices),
        initial_epoch=done,
        epochs=callback.stage.epochs,
        shuffle=False,
        callbacks=[keras.callbacks.ProgbarLogger(), callback],  # the bar of an epoch ends before its line begins
        verbose=1 if verbose and sys.stdout.isatty() else 0,
    )


class _EpochCallback(keras.callbacks.Callback):
    """What happens around each epoch: random numbers, learning rate, guard on the loss, checkpoint, log line."""

    def __init__(
        self,
        store: ObjectStore,
        settings: Settings,
        name: str,
        stage: Stage,
        progress: Progress,
        best_weights: list[np.ndarray],
        images: int,
        verbose: bool,
        on_progress: OnProgress,
    ) -> None:
        super().__init__()
        self.store, self.settings, self.name, self.stage, self.images = store, settings, name, stage, images
        self.verbose, self.on_progress = verbose, on_progress
        self.progress, self.best_weights, self.max_loss = progress, best_weights, math.inf
        if self.progress.epochs:
            self._set_max_loss(self.progress.epochs[0].loss)

    def _set_max_loss(self, first_loss: float) -> None:
        # max() ignores a NaN second argument.
        self.max_loss = MAX_LOSS_FACTOR * max(math.log(len(self.settings.classes)), first_loss)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Seeds dropout and the like by seed and epoch, so that a resumed training draws the same numbers."""
        weights = {id(w) for w in self.model.weights}
        for i, state in enumerate(v for v in self.model.variables if id(v) not in weights):
            rng = np.random.default_rng([self.settings.training.seed, _SEED, epoch, i])
            state.assign([int(rng.integers(2**31)), 0])  # of a SeedGenerator: its seed, and how much it has drawn
        self.model.optimizer.learning_rate = compute_learning_rate(self.stage, epoch)
        self.started = time.monotonic()
        self._report_progress(0)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops the training where the mean loss of the epoch so far has exploded or is not finite."""
        loss = float((logs or {})["loss"])
        if not self.progress.epochs and batch < self.progress.micro_batches:
            self._set_max_loss(loss)
        if not loss <= self.max_loss:  # true of NaN as well
            raise self._exploded(f"the mean loss of this epoch until step {batch + 1}", loss)
        self._report_progress(batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the epoch as a checkpoint, remembers its weights if it is the best, and ends the stage."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        if not (math.isfinite(values["val_loss"]) and values["val_loss"] <= self.max_loss):
            raise self._exploded("the validation loss", values["val_loss"])
        seconds = time.monotonic() - self.started
        row = Epoch(
            **values,
            learning_rate=compute_learning_rate(self.stage, epoch),
            images_per_second=round(self.images / seconds, 2),
            seconds=round(seconds, 3),
        )
        self.progress = self.progress.model_copy(update={"epochs": (*self.progress.epochs, row)})
        weights = self.model.get_weights()
        if best_epoch(self.progress) == epoch + 1:
            self.best_weights = weights
        optimizer = [keras.ops.convert_to_numpy(v) for v in _optimizer_state(self.model.optimizer)]
        checkpoints.save(self.store, self.name, self.progress, weights, optimizer)
        self.model.stop_training = is_finished(self.progress, self.stage, self.settings.training.patience)
        self._report_progress(None)
        if self.verbose:
            print(describe_last_epoch(self.stage, self.progress), flush=True)

    def _report_progress(self, step: int | None) -> None:
        """Reports how far the stage is: within an epoch after so many steps, or between two epochs (None)."""
        epochs = self.progress.epochs
        elapsed = 0.0 if step is None else time.monotonic() - self.started
        self.on_progress(
            StepProgress(
                at=now(),
                unit="epochs",
                done=len(epochs),
                total=self.stage.epochs,
                stage=self.stage.name,
                within=None if step is None else (step, self.params["steps"]),
                val_macro_f1=epochs[-1].val_f1 if epochs else None,
                seconds_left=max(0.0, seconds_left(self.stage, self.progress) - elapsed) if epochs else None,
            )
        )

    def _exploded(self, what: str, loss: float) -> Refused:
        epochs, setting = self.progress.epochs, f"{self.stage.name}_learning_rate"
        kept = f"epoch {len(epochs)}, in models/{self.name}/checkpoints/" if epochs else "none of this stage"
        return Refused(
            f"The training of {self.name} was stopped at once: its loss exploded in epoch {len(epochs) + 1} of "
            f"{self.stage.name}.\n"
            f"Expected: a loss that stays a number below {self.max_loss:.4g}. Received: {what} is {loss:.4g}.\n"
            f"Losses of the epochs before: {', '.join(f'{e.loss:.4f}' for e in epochs) or 'none'}. "
            f"Last good epoch, which is kept: {kept}. No model is written.\n"
            f"Start a new run with a smaller {setting} (CXR_TRAINING__{setting.upper()}, or the form; now "
            f"{self.stage.learning_rate:g})."
        )


def seconds_left(stage: Stage, progress: Progress) -> float:
    """Returns the seconds that a stage takes at most after its last epoch, at the mean pace of its epochs so far."""
    n = len(progress.epochs)
    return sum(e.seconds for e in progress.epochs) / n * (stage.epochs - n)


def describe_last_epoch(stage: Stage, progress: Progress) -> str:
    """Returns the last epoch of a stage in one line, for the log."""
    last, n = progress.epochs[-1], len(progress.epochs)
    seconds = round(seconds_left(stage, progress))
    better = " (best so far)" if not stage.decay and best_epoch(progress) == n else ""
    return (
        f"{stage.name}: epoch {n} of {stage.epochs}, loss {last.loss:.4f}, val loss {last.val_loss:.4f}, calibrated "
        f"{last.val_calibrated:.4f}{better}, val macro F1 {last.val_f1:.3f}, learning rate {last.learning_rate:.3g}, "
        f"{last.images_per_second:.1f} images/s, at most "
        f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
    )
