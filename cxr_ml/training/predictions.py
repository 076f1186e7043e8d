"""Loads a stored model, and predicts with it."""

from collections.abc import Callable

import keras
import numpy as np

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Model
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check, distribution, inputs, out_of_memory

Change = Callable[[np.ndarray], np.ndarray]
OnImages = Callable[[int], None]


def _nobody(images: int) -> None: ...


def load_model(store: ObjectStore, name: str) -> tuple[Model, keras.Model]:
    """Returns the record of a stored model, and the network, whose SHA-256 is checked before Keras opens it.

    Raises:
        Refused: no such model, its weights were deleted, its bytes are not those that were recorded, or Keras does not
            open them: they are of another version of it, or would run code.
    """
    distribution.warn_of_idle_gpu()
    record = store.load(layout.model_record(name), Model)
    data = artifact_check.read(store, record)
    try:
        return record, artifact_check.open_network(data)
    except artifact_check.OPEN_ERRORS as error:
        raise Refused(
            f"{layout.model_weights(name)} is the file that was recorded, but Keras {keras.__version__} does not open "
            f"it, which it was written with {record.packages.get('keras', 'an unknown version')}. Received: {error}"
        ) from error


def predict_probabilities(
    network: keras.Model,
    images: np.ndarray,
    rows: np.ndarray | None = None,
    change: Change | None = None,
    on_images: OnImages = _nobody,
) -> np.ndarray:
    """Returns the probabilities of the classes by a network, not calibrated.

    Args:
        network: from uint8 images to probabilities (n, classes).
        images: uint8 (n, size, size, 1), of which no more than a batch is read at a time.
        rows: of the images that are predicted, int (rows,); None: all.
        change: applied to each batch of images before it is predicted.
        on_images: called with the number of images done after each batch.

    Returns:
        float32 (rows, classes).

    Raises:
        Refused: no images, or an output that is not a number.
    """
    rows = np.arange(len(images)) if rows is None else rows
    if not len(rows):
        raise Refused("A model is evaluated on at least one image. Received: none.")

    def predict(batch_size: int) -> np.ndarray:
        counter = inputs.ImageCounter(batch_size, len(rows), on_images)
        batches = inputs.Batches(images, rows, batch_size, change=change)
        return network.predict(batches, verbose=0, callbacks=[counter])

    output = out_of_memory.predict_in_fitting_batches(predict, 32)
    if not np.isfinite(output).all():
        raise Refused("Probabilities must be numbers. Received: NaN or infinity; the model cannot be used.")
    return output
