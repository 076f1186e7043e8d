"""Builds the classifiers: a backbone from the table in `backbones`, and the study's head on it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.settings import TrainingSettings
from cxr_ml.training.backbones import ARCHITECTURES, find_weights


class Backbone(NamedTuple):
    """A backbone with its first weights: from scaled pixels (n, size, size, 3) to feature maps."""

    network: keras.Model
    weights: str  # "imagenet", the name of the file, or "from scratch"
    weights_sha256: str
    scale: float | list[float] = 1 / 127.5  # as in Architecture
    offset: float | list[float] = -1.0


def build_light(
    input_shape: tuple[int, int, int], weights: str | None = None, include_top: bool = False
) -> keras.Model:
    """Returns a small convolutional network for demonstrations, to be trained from scratch.

    It has batch normalisation because X-rays are much alike: without it, the loss falls only after ten epochs.

    Args:
        input_shape: height and width (px), and channels.
        weights: ignored, as include_top: the arguments are those of keras.applications.
        include_top: ignored.
    """
    layers = keras.layers
    x = inputs = keras.Input(input_shape)
    for filters, kernel, stride, pool in (
        (16, 5, 2, True),
        (32, 3, 1, False),
        (32, 3, 1, True),
        (64, 3, 1, True),
        (96, 3, 1, False),
    ):
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.MaxPooling2D()(x) if pool else x
    return keras.Model(inputs, x, name="light")


def build_backbone(settings: TrainingSettings, weights_dir: Path | None, architecture: str) -> Backbone:
    """Returns the named backbone with the weights that the settings ask for; never silently random ones.

    Raises:
        Refused: unknown architecture, an image size it cannot take, a weights file that is missing or does not fit.
        ConnectionError: Keras could not download its ImageNet weights.
    """
    file = find_weights(settings, weights_dir, architecture)
    entry = ARCHITECTURES[architecture]
    build = getattr(keras.applications, entry.application) if entry.application else build_light
    shape = (settings.image_size, settings.image_size, 3)
    try:
        network = build(input_shape=shape, include_top=False, weights=None)
    except ValueError as error:
        raise Refused(f"{architecture} cannot take images of {settings.image_size} pixels: {error}") from None
    if not entry.pretrained or settings.weights == "none":
        weights, sha256 = "from scratch", ""
    elif file:
        _load_weights(network, file.path, architecture)
        weights, sha256 = file.path.name, file.sha256
    else:
        network = _download(build, shape, architecture)
        weights, sha256 = "imagenet", _hash_weights(network)
    return Backbone(network, weights, sha256, entry.scale, entry.offset)


def _load_weights(network: keras.Model, path: Path, architecture: str) -> None:
    try:
        network.load_weights(path)
    except (ValueError, OSError) as error:
        raise Refused(f"{path} does not hold weights of {architecture} without its top: {error}") from None
    if not all(np.isfinite(weight).all() for weight in network.get_weights()):
        raise Refused(f"All weights in {path} must be numbers. Received: NaN or infinity. Use another file.")


def _download(build: Callable[..., keras.Model], shape: tuple[int, int, int], architecture: str) -> keras.Model:
    try:
        return build(input_shape=shape, include_top=False, weights="imagenet")
    except Exception as error:  # of the network, the disk, or what a server sent instead of weights
        raise ConnectionError(
            f"Keras could not download the ImageNet weights of {architecture} ({error}). Either let this machine "
            f"reach storage.googleapis.com, or set CXR_WEIGHTS_DIR to a folder that holds {architecture}_notop"
            '.weights.h5 (CXR_TRAINING__WEIGHTS="none" trains from scratch, which needs far more images).'
        ) from error


def _hash_weights(network: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


@contextmanager
def frozen(backbone: Backbone) -> Iterator[None]:
    """A context in which a backbone does not learn. A model must be compiled inside it to be affected."""
    trainable = [layer for layer in backbone.network.layers if layer.trainable]
    for layer in trainable:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in trainable:
            layer.trainable = True


def build_classifier(
    backbone: Backbone, classes: int, dropout: float, freeze_normalisation: bool = True
) -> keras.Model:
    """Returns the study's classifier on a backbone: mean over the feature map, dropout, softmax.

    Preprocessing is part of the model: uint8 images, grey (n, size, size, 1) or RGB (n, size, size, 3), become one grey
    channel (luma of ITU-R BT.601, as `imaging.measure` converts colour), which is repeated three times and scaled as
    the backbone's weights expect.

    Args:
        backbone: with its first weights.
        classes: number of probabilities.
        dropout: share of the features that is dropped in training, 0 to 1.
        freeze_normalisation: whether a pretrained backbone's batch normalisation keeps its statistics and weights while
            everything else is fine-tuned. To call the backbone with training=False would not do: Keras 3 passes the
            outer model's `training` on to nested models regardless.

    Returns:
        A model from uint8 images to probabilities (n, classes), with the layers "features" and "head" by name.
    """
    network = backbone.network
    if backbone.weights_sha256 and freeze_normalisation:
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    size = network.input_shape[1]
    images = keras.Input((size, size, None), dtype="uint8", name="image")
    mean = keras.ops.mean(images, axis=-1)
    # 0.299 R + 0.587 G + 0.114 B, written with the mean in place of G: of one channel it is that channel, exactly.
    grey = mean + 0.288 * (mean - images[..., 0]) + 0.473 * (mean - images[..., -1])
    wide = keras.ops.stack([grey, grey, grey], axis=-1)
    scaled = keras.layers.Rescaling(backbone.scale, backbone.offset, name="scale")(wide)
    features = keras.layers.GlobalAveragePooling2D(name="features")(network(scaled))
    dropped = keras.layers.Dropout(dropout, name="dropout")(features)
    head = keras.layers.Dense(classes, activation="softmax", name="head", dtype="float32")  # in mixed precision, too
    return keras.Model(images, head(dropped))
