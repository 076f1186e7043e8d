"""Loads a stored model, and predicts with it."""

from collections.abc import Callable

import keras
import numpy as np

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Model
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check, distribution, inputs, out_of_memory

Change = Callable[[np.ndarray], np.ndarray]
OnImages = Callable[[int], None]


def _nobody(images: int) -> None: ...


def load_model(settings: Settings, name: str) -> tuple[Model, keras.Model]:
    """A stored model, with its SHA-256 checked before Keras opens it.

    Raises:
        Refused: no such model, its weights were swept, its bytes are not those that were recorded, or Keras does not
            open them: they are of another version of it, or would run code.
    """
    distribution.warn_of_idle_gpu()
    record = store.load(settings, f"models/{name}/model.json", Model)
    data = artifact_check.read(settings, record)
    try:
        return record, artifact_check.opened(data)
    except artifact_check.UNOPENED as error:
        raise Refused(
            f"models/{name}/model.keras is the file that was recorded, but Keras {keras.__version__} does not open "
            f"it, which it was written with {record.packages.get('keras', 'an unknown version')}. Received: {error}"
        ) from error


def probabilities(
    network: keras.Model,
    images: np.ndarray,
    rows: np.ndarray | None = None,
    change: Change | None = None,
    on_images: OnImages = _nobody,
) -> np.ndarray:
    """What a model says of uint8 images (n, size, size, 1), or of these rows of them: float32 (rows, classes).

    Args:
        network: the model.
        images: of which no more than a batch is read at a time.
        rows: int (rows,); None: all.
        change: what is done to a batch of images before it is shown.
        on_images: called with the number of images done after each batch.

    Raises:
        Refused: no images, or an output that is not a number.
    """
    rows = np.arange(len(images)) if rows is None else rows
    if not len(rows):
        raise Refused("A model is evaluated on at least one image. Received: none.")

    def predict(size: int) -> np.ndarray:
        counting = inputs.Counting(size, len(rows), on_images)
        return network.predict(inputs.Batches(images, rows, size, change=change), verbose=0, callbacks=[counting])

    output = out_of_memory.predicted(predict, 32)
    if not np.isfinite(output).all():
        raise Refused("Probabilities must be numbers. Received: NaN or infinity; the model cannot be used.")
    return output
