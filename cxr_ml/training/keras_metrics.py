"""What is measured in every epoch beside the loss and the accuracy: macro F1, and the loss after calibration."""

from typing import Any

import keras
import numpy as np

TEMPERATURES = tuple(np.geomspace(0.25, 16, 25))  # tried by CalibratedLoss; each 19 % above the one before


def _one_hot(y: Any, classes: int) -> Any:  # noqa: ANN401 - tensors
    return keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y, (-1,)), "int32"), classes)


class MacroF1(keras.metrics.F1Score):
    """Mean of the F1 scores of the classes, from targets that are class indices."""

    def __init__(self, classes: int) -> None:
        super().__init__(average="macro", name="f1")
        self.classes = classes

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ANN401 - tensors
        """Counts a batch: int (n,) or (n, 1) against probabilities (n, classes)."""
        super().update_state(_one_hot(y_true, self.classes), y_pred, sample_weight)


class CalibratedLoss(keras.metrics.Metric):
    """Mean cross-entropy after temperature scaling: the lowest over TEMPERATURES. Epochs are compared by it.

    The confidence of a network keeps growing after its predictions stop improving, so its loss rises while it makes
    fewer mistakes. The temperature that is fitted to the finished model corrects that: Guo et al. (2017), On
    calibration of modern neural networks, section 3.
    """

    def __init__(self) -> None:
        super().__init__(name="calibrated")
        self.sums = self.add_weight(shape=(len(TEMPERATURES),), initializer="zeros", name="sums")
        self.images = self.add_weight(shape=(), initializer="zeros", name="images")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ANN401 - tensors
        """Counts a batch: int (n,) or (n, 1) against probabilities (n, classes), each image by its weight."""
        ops = keras.ops
        logits = ops.log(ops.clip(ops.cast(y_pred, "float32"), 1e-12, 1.0))
        scaled = ops.log_softmax(logits[None] / np.array(TEMPERATURES, "float32")[:, None, None])
        true = _one_hot(y_true, logits.shape[-1])
        if sample_weight is not None:
            true *= ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        self.sums.assign_add(-ops.sum(scaled * true, axis=(1, 2)))
        self.images.assign_add(ops.sum(true))

    def result(self) -> Any:  # noqa: ANN401 - a tensor
        """Returns the lowest of the means."""
        return keras.ops.min(self.sums) / keras.ops.maximum(self.images, keras.config.epsilon())
