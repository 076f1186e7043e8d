"""A training that is spread over devices gives what one device gives."""

import io

import numpy as np
import pandas as pd
import pytest
from model_samples import put_dataset, quick
from multi_device_training import train_on

from cxr_ml.store import ObjectStore
from cxr_ml.training import predictions

pytestmark = pytest.mark.slow

SMALL = {"head_epochs": 2, "fine_tune_epochs": 1, "batch_size": 16, "dropout": 0.0}


def result(s) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The training history and the final weights of the only model in the store."""
    (name,) = {key.split("/")[1] for key in ObjectStore(s.store).keys("models/")}
    history = pd.read_csv(io.BytesIO(ObjectStore(s.store).get(f"models/{name}/history.csv")))
    return history, predictions.load_model(ObjectStore(s.store), name)[1].get_weights()


def test_two_virtual_devices_give_the_loss_of_one_also_where_batches_are_odd(settings):
    results = []
    for processors in (1, 2):
        s = quick(settings, **SMALL, prefix=f"on-{processors}/")
        put_dataset(s, counts={"train": 9, "validation": 3})  # 27 images: the second batch has 11
        train_on(s, processors)
        results.append(result(s))
    (before, expected), (history, weights) = results
    # Copies that fill up the odd batch count in the training loss.
    for column in ("val_loss", "val_calibrated"):
        np.testing.assert_allclose(history[column], before[column], atol=1e-4)
    for now, then in zip(weights, expected, strict=True):
        np.testing.assert_allclose(now, then, atol=1e-4)
