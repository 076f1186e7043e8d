"""On what a training runs: one device, all GPUs of a machine, or those of several hosts."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from cxr_ml.errors import Refused

_log = logging.getLogger(__name__)
_DRIVER = Path("/proc/driver/nvidia/gpus")


@cache  # once in a process
def warn_of_idle_gpu() -> None:
    """Warns where this machine has an NVIDIA GPU and TensorFlow has none, unless CUDA_VISIBLE_DEVICES hides it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not hidden and not tf.config.list_physical_devices("GPU") and _has_nvidia_gpu():
        _log.warning(
            "This machine has an NVIDIA GPU that TensorFlow %s cannot use; all is computed on the processor. Its CUDA "
            "libraries may be missing (docker/requirements-gpu.txt names them) or not fit the driver. "
            "TF_CPP_MIN_LOG_LEVEL=0 shows why; CUDA_VISIBLE_DEVICES=-1 says that it is meant to be so.",
            tf.__version__,
        )


def _has_nvidia_gpu() -> bool:
    if _DRIVER.is_dir():
        return any(_DRIVER.iterdir())
    # Windows lends its driver to Linux without that folder.
    if command := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            return "GPU" in subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20).stdout
    return False


def _cluster() -> tf.distribute.cluster_resolver.TFConfigClusterResolver:
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def hosts() -> int:
    """How many processes train together: those that TF_CONFIG, TensorFlow's own variable, names; 1 without it.

    Raises:
        Refused: TF_CONFIG does not say which processes there are and which of them this is.
    """
    given = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(given)
        jobs = {job: addresses for job, addresses in config.get("cluster", {}).items() if job in ("chief", "worker")}
        count = sum(map(len, jobs.values()))
        fits = all(isinstance(addresses, list) for addresses in jobs.values())
        fits &= count < 2 or int(config["task"]["index"]) in range(len(jobs[config["task"]["type"]]))
    except (ValueError, TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise Refused(
            'TF_CONFIG must be JSON like {"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": '
            '"worker", "index": 0}}, where the task is one of the cluster: on each host its own. Received: '
            f"{given[:1000]}. Set it so, or unset it to train on this machine alone."
        )
    return count or 1


def chief() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that train together."""
    if hosts() == 1:
        return True
    cluster = _cluster()
    jobs = cluster.cluster_spec().as_dict()
    return cluster.task_type == "chief" or ("chief" not in jobs and cluster.task_id == 0)


def precision() -> str:
    """In which numbers the GPUs train best that this process sees: the name of a dtype policy of Keras.

    Tensor cores multiply float16 since compute capability 7.0, and bfloat16, which needs no scaled loss, since 8.0. The
    least able GPU decides; hosts that train together need GPUs of one kind.
    """
    gpus = tf.config.get_visible_devices("GPU")
    able = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    least = min(able, default=(0, 0))
    return "mixed_bfloat16" if least >= (8, 0) else "mixed_float16" if least >= (7, 0) else "float32"


@contextmanager
def mixed() -> Iterator[None]:
    """A block in which new layers compute in the numbers of `precision`; their weights are float32 all the same."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision())
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def exact(network: keras.Model) -> keras.Model:
    """The same network with the same weights, computing in float32: itself, if it does."""
    policy = network.dtype_policy.name
    if policy == "float32":
        return network
    described = keras.Model(network.input, network.output).to_json()
    same = keras.models.model_from_json(described.replace(f'"{policy}"', '"float32"'))
    same.set_weights(network.get_weights())
    return same


def strategy() -> tf.distribute.Strategy:
    """How a training is spread over the devices that this process sees, and those of other hosts.

    Several devices each get a share of every batch: the GPUs of all hosts that TF_CONFIG names, else all GPUs of this
    machine; without a GPU the same holds for several virtual processors. With several hosts, this has to be called
    before anything is computed.
    """
    if hosts() > 1:
        return _together()
    warn_of_idle_gpu()
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
