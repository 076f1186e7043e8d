"""On what a training runs: one device, all GPUs of a machine, or those of several hosts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import tensorflow as tf


def _cluster() -> tf.distribute.cluster_resolver.TFConfigClusterResolver:
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def hosts() -> int:
    """How many processes train together: those that TF_CONFIG, TensorFlow's own variable, names; 1 without it."""
    jobs = _cluster().cluster_spec().as_dict()
    return sum(len(addresses) for job, addresses in jobs.items() if job in ("chief", "worker")) or 1


def chief() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that train together."""
    cluster = _cluster()
    jobs = cluster.cluster_spec().as_dict()
    return hosts() == 1 or cluster.task_type == "chief" or ("chief" not in jobs and cluster.task_id == 0)


def strategy() -> tf.distribute.Strategy:
    """How a training is spread over the devices that this process sees, and those of other hosts.

    Several devices each get a share of every batch: the GPUs of all hosts that TF_CONFIG names, else all GPUs of this
    machine; without a GPU the same holds for several virtual processors. With several hosts, this has to be called
    before anything is computed.
    """
    if hosts() > 1:
        return _together()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


@cache  # a process can join the others only once
def _together() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


def wait() -> None:
    """Waits until all that train together have come here."""
    if hosts() > 1:
        _together().reduce("SUM", tf.constant(0.0), axis=None)


@contextmanager
def chief_first() -> Iterator[None]:
    """A block that the others enter when the chief has left it, so that they find what it has stored."""
    if not chief():
        wait()
    yield
    if chief():
        wait()


def let_fit(network: keras.Model, batches: keras.utils.PyDataset) -> None:
    """Lets `fit` train a compiled network on several hosts, which Keras 3.15 by itself does not.

    Keras builds metrics from a batch that it averages over all hosts, and averages what a step returns along an axis
    that scalars lack; the former fails on hosts with a share each of the batch, the latter on scalars.

    Args:
        network: compiled in the scope of the strategy. With one host, nothing is done to it.
        batches: what it is trained on.
    """
    if hosts() == 1:
        return
    with network.distribute_strategy.scope():
        network._symbolic_build(data_batch=batches[0])
    network._maybe_symbolic_build = lambda **_: None
    network.train_step, network.test_step = _vectors(network.train_step), _vectors(network.test_step)


def _vectors(step: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    return lambda data: {name: tf.reshape(value, (1,)) for name, value in step(data).items()}
