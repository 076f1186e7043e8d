"""The same training on one device, on two virtual ones, and on two workers, each in processes of their own."""

import json
import multiprocessing
import os

import tensorflow as tf

from cxr_ml.model import train
from cxr_ml.settings import Settings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cxr_ml.model.train"])


def _child(environment: dict[str, str], settings: Settings, processors: int) -> None:
    os.environ.update(environment)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * processors)
    train.train(settings, 1, "light")


def train_on(settings: Settings, processors: int, **environment: str) -> multiprocessing.Process:
    """A process that trains the light network on dataset 1 with so many virtual processors."""
    given = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}
    process = _context.Process(target=_child, args=(given | environment, settings, processors))
    process.start()
    return process


def as_worker(index: int, ports: tuple[int, int]) -> str:
    """TF_CONFIG of one of two workers on this machine."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
