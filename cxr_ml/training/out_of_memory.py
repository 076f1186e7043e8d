"""What is done when memory is full."""

from collections.abc import Callable

import numpy as np


def full(error: Exception) -> bool:
    """Whether an error says that the memory of the device, or of this process, does not suffice."""
    # By name: what the backends raise is TensorFlow's, JAX's or PyTorch's own.
    names = ("MemoryError", "ResourceExhaustedError", "OutOfMemoryError")
    return type(error).__name__ in names or "RESOURCE_EXHAUSTED" in str(error)


def predicted(predict: Callable[[int], np.ndarray], batch_size: int) -> np.ndarray:
    """What `predict` gives with a batch of this size or, as long as the memory is full, of half of it.

    Args:
        predict: from a batch size to a row per image, which does not depend on it.
        batch_size: the first one that is tried.
    """
    while True:
        try:
            return predict(batch_size)
        except Exception as error:
            if batch_size == 1 or not full(error):
                raise
        batch_size //= 2
