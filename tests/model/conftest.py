"""What tests of training share: a network whose training is traced in two seconds, and one model that many look at."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import NamedTuple

import keras
import pytest
from model_samples import put_dataset, quick

from cxr_ml.model import architectures, train
from cxr_ml.records import Dataset, Model, StepProgress
from cxr_ml.settings import Settings


def shallow(input_shape: tuple[int, int, int], weights: None = None, include_top: bool = False) -> keras.Model:
    """In place of the network `light`: Keras takes most of a short training to trace it, layer by layer."""
    images = keras.Input(input_shape)
    maps = keras.layers.Conv2D(32, 5, 2, padding="same", use_bias=False, kernel_initializer="he_normal")(images)
    maps = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(maps))
    return keras.Model(images, maps, name="light")


@pytest.fixture(scope="module")
def shallow_light() -> Iterator[None]:
    """`light` has one convolution in this file's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "light", shallow)
        yield


class Trained(NamedTuple):
    """A model that was trained in both stages until it told the classes apart."""

    settings: Settings
    dataset: Dataset
    record: Model
    progress: list[StepProgress]
    printed: str


@pytest.fixture(scope="module")
def trained_once(lasting: Settings, shallow_light: None) -> Trained:
    """Looked at by several tests, none of which may change it."""
    s = quick(lasting, head_epochs=12, fine_tune_epochs=2, head_learning_rate=0.03, patience=12)
    dataset, progress, printed = put_dataset(s), [], io.StringIO()
    with redirect_stdout(printed):
        record = train.train(s, 1, "light", on_progress=progress.append)
    return Trained(s, dataset, record, progress, printed.getvalue())


@pytest.fixture
def trained(settings: Settings, trained_once: Trained) -> Trained:
    """`trained_once`, in a test that reaches the store."""
    return trained_once
