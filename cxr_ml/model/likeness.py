"""Whether an image is like those a model was trained on: its distance to them in the features that the model sees."""

import io
from typing import NamedTuple

import keras
import numpy as np

from cxr_ml import store
from cxr_ml.model import artefact, inputs, memory
from cxr_ml.records import Model
from cxr_ml.settings import Settings

FILE = "likeness.npz"  # beside the model
MOST = 3000  # training images that are looked at
VARIANCE = 0.9  # share of the training features' variance that lies in the principal space
QUANTILE = 0.99  # of the validation images' distances is the limit
_ROUNDING = 1e-5  # below it, distances of features of four bytes mean nothing


class Likeness(NamedTuple):
    """What is remembered of a model's training images; no image among them."""

    mean: np.ndarray  # of their features of length 1, float32 (channels,)
    principal: np.ndarray  # orthonormal directions in which they vary most, float32 (directions, channels)
    limit: float  # distance from the principal space beyond which an image is unlike them


def key(model: str) -> str:
    """Where in the store it is."""
    return f"models/{model}/{FILE}"


def learn(
    classifier: keras.Model, images: np.ndarray, train: np.ndarray, validation: np.ndarray, y: np.ndarray, seed: int
) -> bytes:
    """What is to be stored beside a model: the space in which its training images lie, and the limit.

    An image is as unlike as its features lie far from the principal space of the training images' features: the
    residual of Wang, Li, Feng and Zhang, ViM: Out-of-distribution with virtual-logit matching, CVPR 2022. Before that
    the features are brought to length 1, and the limit is a quantile of held-out images, both as Sun, Ming, Zhu and Li
    have it, Out-of-distribution detection with deep nearest neighbors, ICML 2022.

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
        return memory.predicted(lambda size: seen.predict(inputs.Batches(images, rows, size), verbose=0), 32)

    seen_in_training = _unit(features(np.sort(np.concatenate(chosen))).astype(np.float64))
    mean = seen_in_training.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(seen_in_training - mean, rowvar=False))
    shares = np.cumsum(variances[::-1]) / max(variances.sum(), _ROUNDING**2)
    # Of features that are all alike no direction is the principal one, but any that rounding makes.
    count = 1 + int((shares < VARIANCE).sum()) if variances.sum() > _ROUNDING**2 else 0
    principal = directions[:, ::-1][:, :count].T
    found = Likeness(mean.astype(np.float32), np.ascontiguousarray(principal, np.float32), 1.0)
    limit = max(np.quantile(unlikeness(found, features(validation)), QUANTILE), _ROUNDING)
    buffer = io.BytesIO()
    np.savez(buffer, mean=found.mean, principal=found.principal, limit=np.float64(limit))
    return buffer.getvalue()


def load(settings: Settings, record: Model) -> Likeness | None:
    """What is remembered of the training images of a stored model; None for a model of a version that did not.

    Raises:
        Refused: what is stored is not what `model.json` records.
    """
    if not record.likeness_sha256:
        return None
    name = key(record.model)
    return read(artefact.checked(name, store.get(settings, name), record.likeness_sha256))


def read(data: bytes) -> Likeness:
    """What `learn` gave."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return Likeness(found["mean"], found["principal"], float(found["limit"]))


def unlikeness(likeness: Likeness, features: np.ndarray) -> np.ndarray:
    """How unlike the training images some images are.

    Args:
        likeness: of the model.
        features: what its layer "features" says of the images, float (n, channels).

    Returns:
        Distance by the limit, float64 (n,): above 1, an image is unlike those that the model was trained on.
    """
    from_mean = _unit(np.asarray(features, np.float32)) - likeness.mean
    residual = from_mean - (from_mean @ likeness.principal.T) @ likeness.principal
    return np.linalg.norm(residual.astype(np.float64), axis=1) / likeness.limit


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
