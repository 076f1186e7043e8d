"""What tests of training share: one model that many look at."""

import io
from contextlib import redirect_stdout
from typing import NamedTuple

import pytest
from model_samples import put_dataset, quick

from cxr_ml.model import train
from cxr_ml.records import Dataset, Model, StepProgress
from cxr_ml.settings import Settings


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
