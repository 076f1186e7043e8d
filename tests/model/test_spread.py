"""A training that is spread over devices or hosts gives what one device gives."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from model_samples import put_dataset, quick
from spread import train_on, train_together

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.model import devices, evaluate

pytestmark = pytest.mark.slow

SMALL = {"head_epochs": 2, "fine_tune_epochs": 1, "batch_size": 16, "dropout": 0.0}


@pytest.mark.parametrize(
    ("config", "hosts", "chief"),
    [
        (None, 1, True),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, 1, True),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}, 2, True),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}, 2, False),
        ({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}, 2, True),
        ({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}, 2, False),
    ],
)
def test_tf_config_says_how_many_hosts_there_are_and_one_of_them_is_the_chief(monkeypatch, config, hosts, chief):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert (devices.hosts(), devices.chief()) == (hosts, chief)


TWO = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    "config",
    [
        "{bad", "[]", '{"cluster": 3}', '{"cluster": {"worker": "a:1"}}', json.dumps({"cluster": TWO}),
        json.dumps({"cluster": TWO, "task": {"index": 0}}),
        json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": TWO, "task": {"type": "worker", "index": -1}}),
        json.dumps({"cluster": TWO, "task": {"type": "chief", "index": 0}}),
    ],
)  # fmt: skip
def test_a_tf_config_in_which_this_process_has_no_place_is_refused(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(Refused, match=rf"TF_CONFIG must be JSON like (?s:.*)Received: {re.escape(config)}\. Set it"):
        devices.strategy()


def result(s) -> tuple[pd.DataFrame, list[np.ndarray]]:
    (name,) = {key.split("/")[1] for key in store.keys(s, "models/")}
    history = pd.read_csv(io.BytesIO(store.get(s, f"models/{name}/history.csv")))
    return history, evaluate.load_model(s, name)[1].get_weights()


def ended_well(processes) -> None:
    for process in processes:
        process.join(1200)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def assert_same(found, expected, columns) -> None:
    (history, weights), (before, then) = found, expected
    for column in columns:
        np.testing.assert_allclose(history[column], before[column], atol=1e-4)
    for now, other in zip(weights, then, strict=True):
        np.testing.assert_allclose(now, other, atol=1e-4)


def test_two_virtual_devices_give_the_loss_of_one_also_where_batches_are_odd(settings):
    found = []
    for processors in (1, 2):
        s = quick(settings, **SMALL, prefix=f"on-{processors}/")
        put_dataset(s, counts={"train": 9, "validation": 3})  # 27 images: the second batch has 11
        ended_well([train_on(s, processors)])
        found.append(result(s))
    # Copies that fill up the odd batch count in the training loss.
    assert_same(found[1], found[0], ["val_loss", "val_calibrated"])


def test_two_hosts_give_the_losses_of_one_and_only_the_first_of_them_writes(settings):
    found = []
    for hosts, start in ((1, lambda s: [train_on(s, 1)]), (2, train_together)):
        s = quick(settings, **SMALL | {"head_epochs": 1}, prefix=f"on-{hosts}/")
        put_dataset(s, counts={"train": 8, "validation": 4})
        ended_well(start(s))
        found.append(result(s))
    assert_same(found[1], found[0], ["loss", "val_loss", "val_calibrated"])
