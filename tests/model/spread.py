"""The same training on one device and on two virtual ones, in processes of their own: TensorFlow is set up once."""

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


def train_on(settings: Settings, processors: int) -> multiprocessing.Process:
    """A process that trains the light network on dataset 1 with so many virtual processors."""
    given = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}
    process = _context.Process(target=_child, args=(given, settings, processors))
    process.start()
    return process
