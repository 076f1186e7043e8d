"""The same training in processes of their own: in each, TensorFlow can be given devices only once."""

import os

import keras
import tensorflow as tf
from forkserver_context import CONTEXT

from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, train


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
    architectures.build_light = _unnormalised
    train.train_model(ObjectStore(settings.store), settings, 1, "light")


def train_on(settings: Settings, processors: int) -> None:
    """Trains the light network on dataset 1 with so many virtual processors, in a process of its own."""
    environment = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}
    process = CONTEXT.Process(target=_child, args=(environment, settings, processors))
    process.start()
    process.join(1200)
    assert process.exitcode == 0
