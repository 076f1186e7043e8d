"""Goes on with smaller batches when the memory of the device is full."""

import logging
from collections.abc import Callable

import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.settings import TrainingSettings

_log = logging.getLogger(__name__)
# By name: each backend raises a class of its own, TensorFlow, JAX or PyTorch.
_ERROR_NAMES = ("MemoryError", "ResourceExhaustedError", "OutOfMemoryError")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error says that the memory of the device, or of this process, is full."""
    return type(error).__name__ in _ERROR_NAMES or "RESOURCE_EXHAUSTED" in str(error)


def predict_in_fitting_batches(predict: Callable[[int], np.ndarray], batch_size: int) -> np.ndarray:
    """Returns what `predict` returns, with half the batch size for as long as the memory is full.

    Args:
        predict: from a batch size to one row per image, which must not depend on it.
        batch_size: the first one that is tried.

    Example:
        >>> def predict(batch_size):
        ...     if batch_size > 8:
        ...         raise MemoryError
        ...     return np.full(2, batch_size)
        >>> predict_in_fitting_batches(predict, 32)
        array([8, 8])
    """
    while True:
        try:
            return predict(batch_size)
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        batch_size //= 2


def double_micro_batches(
    error: Exception, settings: TrainingSettings, stage: str, micro_batches: int, images: int
) -> int:
    """Returns twice the number of micro-batches after a training step that ran out of memory.

    The batch size is part of the method and stays: the gradients of the micro-batches add up to the same step.

    Args:
        error: what the step raised; raised again where it is another error.
        settings: batch size and image size.
        stage: name of the stage that is trained.
        micro_batches: into how many parts each batch was divided.
        images: of the training.

    Raises:
        Refused: the memory does not hold one image.
    """
    if not is_out_of_memory(error):
        raise error
    micro_batches *= 2
    if micro_batches >= 2 * min(settings.batch_size, images):
        raise Refused(
            f"One image of {settings.image_size} pixels must fit into the memory of the device that trains. "
            f"Received: out of memory in {stage} with one image at a time. Set a smaller image_size "
            f"(CXR_TRAINING__IMAGE_SIZE; now {settings.image_size}), a smaller architecture, or use a larger device."
        ) from error
    _log.warning("%s: out of memory; a batch now goes through it in %d pieces", stage, micro_batches)
    return micro_batches
