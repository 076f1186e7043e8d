"""Whether an image is like those a model was trained on: its distance to them in the features that the model sees."""

import hashlib
import io
from typing import NamedTuple

import keras
import numpy as np

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.model import inputs
from cxr_ml.records import Model
from cxr_ml.settings import Settings

MOST = 3000  # training images that are remembered; at 2,048 features of two bytes, 12 MB
NEAREST = 5  # the distance to the so-manieth nearest of them counts
QUANTILE = 0.99  # of the validation images' distances is the limit
_ROUNDING = 1e-3  # below it, distances of features of two bytes mean nothing


class Likeness(NamedTuple):
    """What is remembered of a model's training images."""

    known: np.ndarray  # float32 (images, channels), each of length 1
    limit: float  # distance beyond which an image is unlike them


def key(model: str) -> str:
    """Where in the store it is."""
    return f"models/{model}/likeness.npz"


def learn(
    classifier: keras.Model, images: np.ndarray, train: np.ndarray, validation: np.ndarray, y: np.ndarray, seed: int
) -> bytes:
    """What is to be stored beside a model: the features of its training images, and the limit.

    Distance to the k-th nearest neighbour of features of length 1, of a random part of the training images, with a
    quantile of held-out images as limit: Sun, Ming, Zhu and Li, Out-of-distribution detection with deep nearest
    neighbors, ICML 2022. The limit comes from validation images, because features of training images lie closer.

    Args:
        classifier: with its final weights.
        images: uint8 (images, size, size, 1).
        train: rows of the training images, int.
        validation: rows of the validation images, int.
        y: class of every image, int (images,); of each class equally many are remembered, as far as there are.
        seed: of the random choice.

    Returns:
        A NumPy .npz without pickles; the same features give the same bytes.
    """
    rng = np.random.default_rng(seed)
    each = MOST // len(np.unique(y[train]))
    chosen = [rng.permutation(train[y[train] == label])[:each] for label in np.unique(y[train])]
    seen = keras.Model(classifier.input, classifier.get_layer("features").output)

    def features(rows: np.ndarray) -> np.ndarray:
        return seen.predict(inputs.Batches(images, rows, 32), verbose=0)

    known = _unit(features(np.sort(np.concatenate(chosen)))).astype(np.float16)
    held_out = _distances(_unit(known.astype(np.float32)), features(validation))
    limit = max(np.quantile(held_out, QUANTILE), _ROUNDING)
    buffer = io.BytesIO()
    np.savez(buffer, known=known, limit=np.float64(limit))
    return buffer.getvalue()


def load(settings: Settings, record: Model) -> Likeness | None:
    """What is remembered of the training images of a stored model; None for a model of a version that did not.

    Raises:
        Refused: what is stored is not what `model.json` records.
    """
    if not record.likeness_sha256:
        return None
    data = store.get(settings, key(record.model))
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.likeness_sha256:
        raise Refused(
            f"{key(record.model)} is not the file that model.json records: expected SHA-256 {record.likeness_sha256}. "
            f"Received: {digest}. Do not use the model; promote or roll back to another one."
        )
    return read(data)


def read(data: bytes) -> Likeness:
    """What `learn` gave."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return Likeness(_unit(found["known"].astype(np.float32)), float(found["limit"]))


def unlikeness(likeness: Likeness, features: np.ndarray) -> np.ndarray:
    """How unlike the training images some images are.

    Args:
        likeness: of the model.
        features: what its layer "features" says of the images, float (n, channels).

    Returns:
        Distance by the limit, float64 (n,): above 1, an image is unlike those that the model was trained on.
    """
    return _distances(likeness.known, features) / likeness.limit


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _distances(known: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Euclidean distance to the k-th nearest of the known features, float64 (n,), 0 to 2."""
    nearest = min(NEAREST, len(known)) - 1
    alike = np.partition(-(_unit(features) @ known.T), nearest, axis=1)[:, nearest]
    return np.sqrt(np.maximum(2 + 2 * alike.astype(np.float64), 0))
