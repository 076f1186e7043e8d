"""On what a training runs: one device, or all GPUs of a machine."""

import tensorflow as tf


def strategy() -> tf.distribute.Strategy:
    """How a training is spread over the devices that this process sees.

    With several GPUs, each gets a share of every batch; without a GPU the same holds for several virtual processors.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
