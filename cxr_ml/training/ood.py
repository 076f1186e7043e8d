"""Out-of-distribution detection: whether an image is unlike those that a model was trained on.

It compares the features that the network computes, and the large shapes in a thumbnail, with their principal
components on the training images.
"""

import io
from typing import NamedTuple

import cv2
import keras
import numpy as np

from cxr_ml import layout
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.records import Model
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check, inputs, out_of_memory

MAX_TRAINING_IMAGES = 3000  # that are looked at
FEATURE_VARIANCE = 0.9  # share of the training features' variance that the principal space holds
THUMBNAIL_VARIANCE = 0.8  # the same of thumbnails; with more, it holds inverted X-rays too
THUMBNAIL_SIDE = 24  # px
QUANTILE = 0.99  # of the validation images' distances is the limit
MIN_DISTANCE = 1e-5  # smaller distances of float32 features are rounding errors


class Subspace(NamedTuple):
    """The principal space of the training images' vectors. It holds none of the images."""

    mean: np.ndarray  # of the vectors, which have length 1, float32 (length,)
    principal: np.ndarray  # orthonormal directions of the largest variance, float32 (directions, length)
    limit: float  # distance from the space beyond which an image is out of distribution


class Detector(NamedTuple):
    """What is stored beside a model to detect images unlike its training images."""

    features: Subspace  # of the network's layer "features"
    shapes: Subspace  # of thumbnails


def fit(
    classifier: keras.Model,
    images: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    y: np.ndarray,
    seed: int,
    on_progress: OnProgress = nobody,
) -> Detector:
    """Returns a detector for a trained classifier.

    The score of an image is the distance of its features from the principal space of the training images' features:
    the residual of Wang, Li, Feng and Zhang (2022), ViM: Out-of-distribution with virtual-logit matching, CVPR. The
    features are first scaled to length 1, and the limit is a quantile over held-out images, both as in Sun, Ming, Zhu
    and Li (2022), Out-of-distribution detection with deep nearest neighbors, ICML. A network that was fine-tuned on
    X-rays knows what distinguishes them, not what makes an X-ray, so the same is done with thumbnails without their
    mean. The larger of both distances counts, each divided by its limit.

    Args:
        classifier: with its final weights.
        images: uint8 (images, size, size, 1).
        train: rows of the training images, int.
        validation: rows of the validation images, int.
        y: class of every image, int (images,); equally many of each class are used, as far as there are.
        seed: of the random choice of training images.
        on_progress: called with the images that the network has seen.
    """
    rng = np.random.default_rng(seed)
    labels = np.unique(y[train])
    per_class = MAX_TRAINING_IMAGES // len(labels)
    rows = np.sort(np.concatenate([rng.permutation(train[y[train] == label])[:per_class] for label in labels]))
    extractor = keras.Model(classifier.input, classifier.get_layer("features").output)

    report = counted(on_progress, "images", "what training images are like")
    total = len(rows) + len(validation)

    def features(rows: np.ndarray, before: int) -> np.ndarray:
        def predict(batch_size: int) -> np.ndarray:
            counter = inputs.ImageCounter(batch_size, len(rows), lambda done: report(before + done, total))
            return extractor.predict(inputs.Batches(images, rows, batch_size), verbose=0, callbacks=[counter])

        return _normalise(out_of_memory.predict_in_fitting_batches(predict, 32))

    spaces = (
        _fit_subspace(features(rows, 0), FEATURE_VARIANCE),
        _fit_subspace(_thumbnails(images, rows), THUMBNAIL_VARIANCE),
    )
    held_out = features(validation, len(rows)), _thumbnails(images, validation)
    distances = np.array([_distance(space, vectors) for space, vectors in zip(spaces, held_out, strict=True)])
    limits = np.maximum(np.quantile(distances, QUANTILE, axis=1), MIN_DISTANCE)
    # The larger of the two distances exceeds its limit more often than either, so both limits are raised.
    limits *= max(1.0, np.quantile((distances / limits[:, None]).max(axis=0), QUANTILE))
    return Detector(*(space._replace(limit=limit) for space, limit in zip(spaces, limits, strict=True)))


def _fit_subspace(vectors: np.ndarray, share: float) -> Subspace:
    """Returns the space that holds a share of the variance of vectors, float (n, length); without its limit yet."""
    vectors = vectors.astype(np.float64)
    mean = vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False))
    shares = np.cumsum(variances[::-1]) / max(variances.sum(), MIN_DISTANCE**2)
    # Vectors that are all alike have no principal direction, only those that rounding makes.
    count = 1 + int((shares < share).sum()) if variances.sum() > MIN_DISTANCE**2 else 0
    principal = directions[:, ::-1][:, :count].T
    return Subspace(mean.astype(np.float32), np.ascontiguousarray(principal, np.float32), 1.0)


def to_bytes(detector: Detector) -> bytes:
    """Returns a detector as a NumPy .npz without pickles; equal detectors give equal bytes."""
    arrays = {
        f"{name}_{field}": np.asarray(value)
        for name, space in detector._asdict().items()
        for field, value in space._asdict().items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Detector:
    """Returns the detector that `to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        spaces = [
            Subspace(arrays[f"{name}_mean"], arrays[f"{name}_principal"], float(arrays[f"{name}_limit"]))
            for name in Detector._fields
        ]
    return Detector(*spaces)


def load(store: ObjectStore, record: Model) -> Detector:
    """Returns the detector of a stored model.

    Raises:
        Refused: what is stored is not what `model.json` records.
    """
    name = layout.ood_detector(record.model)
    return from_bytes(artifact_check.check_bytes(name, store.get(name), record.likeness_sha256))


def ood_score(detector: Detector, features: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns how unlike the training images some images are.

    Args:
        detector: of the model.
        features: output of its layer "features" for the images, float (n, channels).
        images: uint8 (n, size, size, 1).

    Returns:
        Distance divided by the limit, float64 (n,): above 1, an image is out of distribution.
    """
    vectors = _normalise(np.asarray(features, np.float32)), _thumbnails(images, np.arange(len(images)))
    return np.max([_distance(space, v) / space.limit for space, v in zip(detector, vectors, strict=True)], axis=0)


def _distance(space: Subspace, vectors: np.ndarray) -> np.ndarray:
    from_mean = vectors - space.mean
    residual = from_mean - (from_mean @ space.principal.T) @ space.principal
    return np.linalg.norm(residual.astype(np.float64), axis=1)


def _thumbnails(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns pictures of THUMBNAIL_SIDE² px without their mean, of length 1: float32 (rows, THUMBNAIL_SIDE²)."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = [cv2.resize(images[row, :, :, 0], size, interpolation=cv2.INTER_AREA).ravel() for row in rows]
    pixels = np.array(small, np.float32)
    return _normalise(pixels - pixels.mean(axis=1, keepdims=True))


def _normalise(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
