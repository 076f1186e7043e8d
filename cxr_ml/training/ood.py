"""Whether an image is like those a model was trained on: by the features that it sees, and by its large shapes."""

import io
from typing import NamedTuple

import cv2
import keras
import numpy as np

from cxr_ml import store
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.records import Model
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check, inputs, out_of_memory

FILE = "likeness.npz"  # beside the model
MOST = 3000  # training images that are looked at
VARIANCE = 0.9  # share of the training features' variance that lies in the principal space
SHAPES = 0.8  # the same of thumbnails; with more, inverted films lie in it too
SIDE = 24  # px, of the thumbnails
QUANTILE = 0.99  # of the validation images' distances is the limit
_ROUNDING = 1e-5  # below it, distances of features of four bytes mean nothing


class Space(NamedTuple):
    """Where the training images lie, of which none is remembered."""

    mean: np.ndarray  # of the images' vectors of length 1, float32 (length,)
    principal: np.ndarray  # orthonormal directions in which they vary most, float32 (directions, length)
    limit: float  # distance from the principal space beyond which an image is unlike them


class Likeness(NamedTuple):
    """What is remembered of a model's training images."""

    features: Space  # of what the network's layer "features" says of them
    shapes: Space | None  # of their thumbnails; None of a model of a version that looked at features only


def key(model: str) -> str:
    """Where in the store it is."""
    return f"models/{model}/{FILE}"


def learn(
    classifier: keras.Model,
    images: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    y: np.ndarray,
    seed: int,
    on_progress: OnProgress = nobody,
) -> bytes:
    """What is to be stored beside a model: the spaces in which its training images lie, and the limits.

    An image is as unlike as its features lie far from the principal space of the training images' features: the
    residual of Wang, Li, Feng and Zhang, ViM: Out-of-distribution with virtual-logit matching, CVPR 2022. Before that
    the features are brought to length 1, and the limit is a quantile of held-out images, both as Sun, Ming, Zhu and Li
    have it, Out-of-distribution detection with deep nearest neighbors, ICML 2022. A network that was fine-tuned on
    films looks for what tells these apart, not for what makes a film, so the same is done with thumbnails of SIDE px,
    mean taken out; the larger of both counts, each by its limit.

    Args:
        classifier: with its final weights.
        images: uint8 (images, size, size, 1).
        train: rows of the training images, int.
        validation: rows of the validation images, int.
        y: class of every image, int (images,); of each class equally many are remembered, as far as there are.
        seed: of the random choice.
        on_progress: told of the images that the network has seen.

    Returns:
        A NumPy .npz without pickles; the same features give the same bytes.
    """
    rng = np.random.default_rng(seed)
    each = MOST // len(np.unique(y[train]))
    chosen = [rng.permutation(train[y[train] == label])[:each] for label in np.unique(y[train])]
    rows = np.sort(np.concatenate(chosen))
    seen = keras.Model(classifier.input, classifier.get_layer("features").output)

    tell, total = counted(on_progress, "images", "what training images are like"), len(rows) + len(validation)

    def features(rows: np.ndarray, before: int) -> np.ndarray:
        def predict(size: int) -> np.ndarray:
            counting = inputs.Counting(size, len(rows), lambda done: tell(before + done, total))
            return seen.predict(inputs.Batches(images, rows, size), verbose=0, callbacks=[counting])

        return out_of_memory.predicted(predict, 32)

    spaces = _space(_unit(features(rows, 0)), VARIANCE), _space(_thumbnails(images, rows), SHAPES)
    held = _unit(features(validation, len(rows))), _thumbnails(images, validation)
    apart = [_distance(space, vectors) for space, vectors in zip(spaces, held, strict=True)]
    limits = np.array([max(np.quantile(distances, QUANTILE), _ROUNDING) for distances in apart])
    # So that of both together, too, no more than a hundredth is above 1.
    limits *= max(1.0, np.quantile((np.array(apart) / limits[:, None]).max(axis=0), QUANTILE))
    found = {}
    for name, space, limit in zip(Likeness._fields, spaces, limits, strict=True):
        found |= {f"{name}_{field}": value for field, value in space._replace(limit=limit)._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    return buffer.getvalue()


def _space(vectors: np.ndarray, share: float) -> Space:
    """The principal space that holds a share of the variance of vectors, float (n, length); without its limit yet."""
    vectors = vectors.astype(np.float64)
    mean = vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False))
    shares = np.cumsum(variances[::-1]) / max(variances.sum(), _ROUNDING**2)
    # Of vectors that are all alike no direction is the principal one, but any that rounding makes.
    count = 1 + int((shares < share).sum()) if variances.sum() > _ROUNDING**2 else 0
    principal = directions[:, ::-1][:, :count].T
    return Space(mean.astype(np.float32), np.ascontiguousarray(principal, np.float32), 1.0)


def load(settings: Settings, record: Model) -> Likeness | None:
    """What is remembered of the training images of a stored model; None for a model of a version that did not.

    Raises:
        Refused: what is stored is not what `model.json` records.
    """
    if not record.likeness_sha256:
        return None
    name = key(record.model)
    return read(artifact_check.checked(name, store.get(settings, name), record.likeness_sha256))


def read(data: bytes) -> Likeness:
    """What `learn` gave."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        if "features_mean" not in found:  # of a version that looked at features only
            return Likeness(Space(found["mean"], found["principal"], float(found["limit"])), None)
        spaces = [
            Space(found[f"{name}_mean"], found[f"{name}_principal"], float(found[f"{name}_limit"]))
            for name in Likeness._fields
        ]
    return Likeness(*spaces)


def unlikeness(likeness: Likeness, features: np.ndarray, images: np.ndarray) -> np.ndarray:
    """How unlike the training images some images are.

    Args:
        likeness: of the model.
        features: what its layer "features" says of the images, float (n, channels).
        images: uint8 (n, size, size, 1).

    Returns:
        Distance by the limit, float64 (n,): above 1, an image is unlike those that the model was trained on.
    """
    apart = _distance(likeness.features, _unit(np.asarray(features, np.float32))) / likeness.features.limit
    if likeness.shapes is None:
        return apart
    thumbnails = _thumbnails(images, np.arange(len(images)))
    return np.maximum(apart, _distance(likeness.shapes, thumbnails) / likeness.shapes.limit)


def _distance(space: Space, vectors: np.ndarray) -> np.ndarray:
    from_mean = vectors - space.mean
    residual = from_mean - (from_mean @ space.principal.T) @ space.principal
    return np.linalg.norm(residual.astype(np.float64), axis=1)


def _thumbnails(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pictures of SIDE × SIDE px without their mean, of length 1: float32 (rows, SIDE²)."""
    small = [cv2.resize(images[row, :, :, 0], (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel() for row in rows]
    small = np.array(small, np.float32)
    return _unit(small - small.mean(axis=1, keepdims=True))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
