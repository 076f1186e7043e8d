"""On what a training runs: one device, or all GPUs of a machine."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import keras
import tensorflow as tf

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


def precision() -> str:
    """In which numbers the GPUs train best that this process sees: the name of a dtype policy of Keras.

    Tensor cores multiply float16 since compute capability 7.0, and bfloat16, which needs no scaled loss, since 8.0. The
    least able GPU decides.
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
    """How a training is spread over the devices that this process sees.

    All GPUs of this machine each get a share of every batch; without a GPU the same holds for several virtual
    processors.
    """
    warn_of_idle_gpu()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
