"""The epochs of one stage: each is stored when it ends, and the stage goes on from the last one stored."""

import copy
import logging
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
from cxr_ml.training import checkpoints, out_of_memory
from cxr_ml.training.batching import Evenly, Pieces
from cxr_ml.training.checkpoints import Epoch, Progress

_log = logging.getLogger(__name__)
LOSS = "sparse_categorical_crossentropy"
EXPLODED = 100.0  # times the loss of the beginning, or of guessing; what is less may be a bad start that passes
TEMPERATURES = tuple(np.geomspace(0.25, 16, 25))  # each 19 % above the one before
_SEED = 2  # tells the random numbers of the layers from those of augmentation


class Stage(NamedTuple):
    """A stage of the training, with its share of the settings."""

    name: str  # head or fine_tune
    epochs: int  # at most
    rate: float  # learning rate
    decay: bool = False  # whether it falls along half a cosine, from epoch to epoch


def _one_hot(y: Any, classes: int) -> Any:  # noqa: ANN401 - tensors
    return keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y, (-1,)), "int32"), classes)


class MacroF1(keras.metrics.F1Score):
    """Mean of the classes' F1, from targets that are class indices."""

    def __init__(self, classes: int) -> None:
        super().__init__(average="macro", name="f1")
        self.classes = classes

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ANN401 - tensors
        """Counts a batch: int (n,) or (n, 1) against probabilities (n, classes)."""
        super().update_state(_one_hot(y_true, self.classes), y_pred, sample_weight)


class Calibrated(keras.metrics.Metric):
    """Mean cross-entropy at the temperature, one for all images, that makes it least; by it epochs are judged.

    A network goes on learning classes long after its confidence has run away, so its loss rises while its errors get
    fewer; the temperature that is fitted to a finished model takes that back: Guo et al. (2017), On calibration of
    modern neural networks, section 3.
    """

    def __init__(self) -> None:
        super().__init__(name="calibrated")
        self.sums = self.add_weight(shape=(len(TEMPERATURES),), initializer="zeros", name="sums")
        self.images = self.add_weight(shape=(), initializer="zeros", name="images")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ANN401 - tensors
        """Counts a batch: int (n,) or (n, 1) against probabilities (n, classes), each image by its weight."""
        ops = keras.ops
        logits = ops.log(ops.clip(ops.cast(y_pred, "float32"), 1e-12, 1.0))
        for_each = ops.log_softmax(logits[None] / np.array(TEMPERATURES, "float32")[:, None, None])
        true = _one_hot(y_true, logits.shape[-1])
        if sample_weight is not None:
            true *= ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        self.sums.assign_add(-ops.sum(for_each * true, axis=(1, 2)))
        self.images.assign_add(ops.sum(true))

    def result(self) -> Any:  # noqa: ANN401 - a tensor
        """The least of the means."""
        return keras.ops.min(self.sums) / keras.ops.maximum(self.images, keras.config.epsilon())


def rate(stage: Stage, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0: the stage's, or half a cosine from it towards 0.

    Loshchilov and Hutter (2017), SGDR, equation 5 without restarts: rate · (1 + cos(π · epoch / epochs)) / 2.
    """
    return stage.rate * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2 if stage.decay else stage.rate


def ended(progress: Progress, stage: Stage, patience: int) -> bool:
    """Whether a stage has run all its epochs, or where its rate stays, `patience` of them without a better one."""
    n = len(progress.epochs)
    return n >= stage.epochs or (n > 0 and n - checkpoints.kept(progress) >= patience)


def run(
    settings: Settings,
    model: str,
    network: keras.Model,
    stage: Stage,
    backbone_sha256: str,
    data: Callable[[], tuple[keras.utils.PyDataset, keras.utils.PyDataset]],
    verbose: bool,
    on_progress: OnProgress = nobody,
) -> Progress:
    """Trains `network` from where this stage was left, to its end; it is left with the weights that are kept.

    Args:
        settings: batch size, patience, seed, and the store.
        model: name of the model, whose checkpoints are read and written.
        network: from what `data` gives to probabilities (n, classes).
        stage: the stage.
        backbone_sha256: of the weights that the network began with, where they are not its own.
        data: gives the batches (x, targets, weights) to train on and those (x, targets) to judge by. Called only if
            the stage has not ended yet. Both tell all their targets by `y`; what the first draw depends on their
            `epoch`, and the second take any `batch_size`.
        verbose: whether a line per epoch is printed, and on a terminal a progress bar.
        on_progress: told when an epoch begins, after each of its steps, and when it has ended.

    Raises:
        Refused: the loss is no longer a number or has exploded, or one image is too large for the memory.
    """
    fresh = Progress(stage=stage.name, backbone_sha256=backbone_sha256, decay=stage.decay)
    shapes = [tuple(weight.shape) for weight in network.weights]
    saved = checkpoints.newest(settings, model, fresh, shapes)
    if saved and verbose:
        print(f"{stage.name}: {len(saved.progress.epochs)} epochs were stored before; going on from there", flush=True)
    if saved and ended(saved.progress, stage, settings.patience):
        network.set_weights(saved.kept)
        return saved.progress
    started = time.monotonic()
    batches, validation = data()
    saved = saved or checkpoints.Checkpoint(fresh, network.get_weights(), [], [])
    prepared = saved.progress.prepared + time.monotonic() - started
    pieces = saved.progress.pieces
    while True:
        _compile(network, stage.rate, pieces)
        _restore(network, saved, pieces)
        progress = saved.progress.model_copy(update={"pieces": pieces, "prepared": round(prepared, 3)})
        loop = _Loop(settings, model, stage, progress, saved.kept, len(batches.y), verbose, on_progress)
        try:
            _fit(network, batches, validation, loop, settings.batch_size, verbose)
        except Exception as error:
            if not out_of_memory.full(error):
                raise
            pieces *= 2
            if pieces >= 2 * min(settings.batch_size, len(batches.y)):
                raise Refused(
                    f"One image of {settings.image_size} pixels must fit into the memory of the device that trains. "
                    f"Received: out of memory in {stage.name} with one image at a time. Set a smaller image_size "
                    f"(CXR_IMAGE_SIZE; now {settings.image_size}), a smaller architecture, or use a larger device."
                ) from error
            _log.warning("%s: out of memory; a batch now goes through it in %d pieces", stage.name, pieces)
            stored = checkpoints.newest(settings, model, fresh, shapes)
            saved = stored or saved
            continue
        network.set_weights(loop.kept)
        return loop.progress


def _compile(network: keras.Model, rate: float, pieces: int) -> None:
    optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=pieces if pieces > 1 else None)
    metrics = ["accuracy", MacroF1(network.output_shape[-1])]
    network.compile(optimizer, LOSS, metrics=metrics, weighted_metrics=[Calibrated()])


def _fit(
    network: keras.Model,
    batches: keras.utils.PyDataset,
    validation: keras.utils.PyDataset,
    loop: "_Loop",
    batch_size: int,
    verbose: bool,
) -> None:
    done = len(loop.progress.epochs)
    batches = copy.copy(batches)  # what a failed attempt left running must not move this one's epoch on
    batches.epoch = done - 1
    batches.on_epoch_end()
    pieces, shares = loop.progress.pieces, network.distribute_strategy.num_replicas_in_sync
    validation = copy.copy(validation)
    validation.batch_size = max(1, min(batch_size // pieces, 32) // shares) * shares
    batches = batches if pieces * shares == 1 else Pieces(batches, pieces, shares)
    network.fit(
        batches,
        validation_data=validation if shares == 1 else Evenly(validation, shares),
        initial_epoch=done,
        epochs=loop.stage.epochs,
        shuffle=False,
        callbacks=[keras.callbacks.ProgbarLogger(), loop],  # the bar of an epoch ends before its line begins
        verbose=1 if verbose and sys.stdout.isatty() else 0,
    )


def _state(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """The variables that outlive an epoch: accumulated gradients are used up at its end."""
    return [v for v in optimizer.variables if "gradient_accumulator" not in v.path]


def _restore(network: keras.Model, saved: checkpoints.Checkpoint, pieces: int) -> None:
    network.set_weights(saved.weights)
    network.optimizer.build(network.trainable_variables)
    if saved.optimizer:
        for variable, value in zip(_state(network.optimizer), saved.optimizer, strict=True):
            variable.assign(value)
        # Keras counts pieces; the steps are what has to go on. With float16, the optimizer is inside one that scales.
        steps = getattr(network.optimizer, "inner_optimizer", network.optimizer)._iterations
        steps.assign(int(steps) // saved.progress.pieces * pieces)


class _Loop(keras.callbacks.Callback):
    """What happens around each epoch: random numbers, the guard on the loss, the checkpoint, the line."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        stage: Stage,
        progress: Progress,
        kept: list[np.ndarray],
        images: int,
        verbose: bool,
        on_progress: OnProgress,
    ) -> None:
        super().__init__()
        self.on_progress = on_progress
        self.settings, self.name, self.stage, self.images, self.verbose = settings, model, stage, images, verbose
        self.progress, self.kept, self.limit = progress, kept, math.inf
        if self.progress.epochs:
            self._limit(self.progress.epochs[0].loss)

    def _limit(self, first: float) -> None:
        self.limit = EXPLODED * max(
            math.log(len(self.settings.classes)), first
        )  # in this order a first that is NaN is no limit

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        weights = {id(w) for w in self.model.weights}
        for i, state in enumerate(v for v in self.model.variables if id(v) not in weights):
            rng = np.random.default_rng([self.settings.seed, _SEED, epoch, i])
            state.assign([int(rng.integers(2**31)), 0])  # of a SeedGenerator: its seed, and how much it has drawn
        self.model.optimizer.learning_rate = rate(self.stage, epoch)
        self.started = time.monotonic()
        self._tell(0)

    def _tell(self, step: int | None) -> None:
        """How far the stage is: within an epoch after so many steps, or between two epochs (None)."""
        done = self.progress.epochs
        passed = 0.0 if step is None else time.monotonic() - self.started
        told = StepProgress(
            at=now(),
            unit="epochs",
            done=len(done),
            total=self.stage.epochs,
            stage=self.stage.name,
            within=None if step is None else (step, self.params["steps"]),
            val_macro_f1=done[-1].val_f1 if done else None,
            seconds_left=max(0.0, left(self.stage, self.progress) - passed) if done else None,
        )
        self.on_progress(told)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {})["loss"])
        if not self.progress.epochs and batch < self.progress.pieces:
            self._limit(loss)
        if not loss <= self.limit:  # true of NaN as well
            self._stop(f"the mean loss of this epoch until step {batch + 1}", loss)
        self._tell(batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        found = {name: float(value) for name, value in (logs or {}).items()}
        if not (math.isfinite(found["val_loss"]) and found["val_loss"] <= self.limit):
            self._stop("the validation loss", found["val_loss"])
        seconds = time.monotonic() - self.started
        row = Epoch(
            **found,
            learning_rate=rate(self.stage, epoch),
            images_per_second=round(self.images / seconds, 2),
            seconds=round(seconds, 3),
        )
        self.progress = self.progress.model_copy(update={"epochs": (*self.progress.epochs, row)})
        weights = self.model.get_weights()
        if checkpoints.kept(self.progress) == epoch + 1:
            self.kept = weights
        optimizer = [keras.ops.convert_to_numpy(v) for v in _state(self.model.optimizer)]
        checkpoints.save(self.settings, self.name, self.progress, weights, optimizer)
        self.model.stop_training = ended(self.progress, self.stage, self.settings.patience)
        self._tell(None)
        if self.verbose:
            print(line(self.stage, self.progress), flush=True)

    def _stop(self, what: str, loss: float) -> None:
        done = self.progress.epochs
        kept = f"epoch {len(done)}, in models/{self.name}/checkpoints/" if done else "none of this stage"
        rate = f"{self.stage.name}_learning_rate"
        raise Refused(
            f"The training of {self.name} was stopped at once: its loss exploded in epoch {len(done) + 1} of "
            f"{self.stage.name}.\n"
            f"Expected: a loss that stays a number below {self.limit:.4g}. Received: {what} is {loss:.4g}.\n"
            f"Losses of the epochs before: {', '.join(f'{e.loss:.4f}' for e in done) or 'none'}. "
            f"Last good epoch, which is kept: {kept}. No model is written.\n"
            f"Start a new run with a smaller {rate} (CXR_{rate.upper()}, or the form; now {self.stage.rate:g})."
        )


def left(stage: Stage, progress: Progress) -> float:
    """Seconds that the stage takes on at most after its last epoch, if the others take as long as those before."""
    n = len(progress.epochs)
    return sum(e.seconds for e in progress.epochs) / n * (stage.epochs - n)


def line(stage: Stage, progress: Progress) -> str:
    """The last epoch of a stage in one line, for the log."""
    last, n = progress.epochs[-1], len(progress.epochs)
    seconds = round(left(stage, progress))
    better = " (best so far)" if not stage.decay and checkpoints.kept(progress) == n else ""
    return (
        f"{stage.name}: epoch {n} of {stage.epochs}, loss {last.loss:.4f}, val loss {last.val_loss:.4f}, calibrated "
        f"{last.val_calibrated:.4f}{better}, val macro F1 {last.val_f1:.3f}, learning rate {last.learning_rate:.3g}, "
        f"{last.images_per_second:.1f} images/s, at most "
        f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
    )
