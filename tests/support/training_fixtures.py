"""Fixtures for tests of training: one model that many look at, and a network of one convolution.

What they need is imported when they are used: TensorFlow takes seconds.
"""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import NamedTuple

import pytest

from cxr_ml.records import Dataset, Model, StepProgress
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


class Trained(NamedTuple):
    """A model that was trained in both stages until it told the classes apart."""

    settings: Settings
    dataset: Dataset
    record: Model
    progress: list[StepProgress]
    printed: str


@pytest.fixture(scope="module")
def shallow_light() -> Iterator[None]:
    """`light` has one convolution in this file's tests."""
    from shallow_network import build_shallow

    from cxr_ml.training import architectures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "build_light", build_shallow)
        yield


@pytest.fixture(scope="module")
def trained(lasting: Settings, shallow_light: None) -> Trained:
    """One for all tests of a file that only look at it."""
    from model_samples import put_dataset, quick

    from cxr_ml.training import train

    s = quick(lasting, head_epochs=12, fine_tune_epochs=2, head_learning_rate=0.03, patience=12)
    dataset, progress, printed = put_dataset(s), [], io.StringIO()
    with redirect_stdout(printed):
        record = train.train_model(ObjectStore(s.store), s, 1, "light", on_progress=progress.append)
    return Trained(s, dataset, record, progress, printed.getvalue())


@pytest.fixture
def eager() -> Iterator[None]:
    """TensorFlow traces no function but computes at once what it says: of a few steps, to trace them is most."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
