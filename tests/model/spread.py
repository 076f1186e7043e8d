"""The same training in processes of their own, for TensorFlow is set up once: spread over devices, or over hosts."""

import json
import multiprocessing
import os
import socket

import keras
import tensorflow as tf

from cxr_ml import store
from cxr_ml.model import architectures, train
from cxr_ml.settings import Settings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cxr_ml.model.train"])


def _unnormalised(input_shape: tuple[int, int, int], **_: object) -> keras.Model:
    """A network without batch normalisation, which each device would compute from its own share of a batch."""
    x = inputs = keras.Input(input_shape)
    for filters in (8, 16):
        x = keras.layers.MaxPooling2D()(keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    return keras.Model(inputs, x)


def _child(environment: dict[str, str], settings: Settings, processors: int) -> None:
    os.environ.update(environment)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * processors)
    architectures.light = _unnormalised
    train.train(settings, 1, "light")


def _writing_nothing(environment: dict[str, str], settings: Settings) -> None:
    for name in ("put_if_absent", "put_uncommitted", "swap", "remove"):
        setattr(store, name, lambda *_, **__: os._exit(3))
    _child(environment, settings, 1)


def _start(target: object, *given: object) -> multiprocessing.Process:
    process = _context.Process(target=target, args=given)
    process.start()
    return process


def _environment() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}


def train_on(settings: Settings, processors: int) -> multiprocessing.Process:
    """A process that trains the light network on dataset 1 with so many virtual processors."""
    return _start(_child, _environment(), settings, processors)


def train_together(settings: Settings) -> list[multiprocessing.Process]:
    """Two processes that train the light network on dataset 1 as two hosts would; the second dies if it writes."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two)]
    processes = []
    for index, target in enumerate((_child, _writing_nothing)):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        own = settings.model_copy(update={"cache_dir": settings.cache_dir / f"host-{index}"})
        given = _environment() | {"TF_CONFIG": json.dumps(config)}
        processes.append(_start(target, given, own, *([1] if index == 0 else [])))
    return processes
