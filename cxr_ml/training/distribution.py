"""The devices that a training runs on, one or all GPUs of a machine, and their precision."""

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
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


@cache  # once in a process
def warn_of_idle_gpu() -> None:
    """Warns if TensorFlow cannot use an NVIDIA GPU of this machine, unless CUDA_VISIBLE_DEVICES hides it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not hidden and not tf.config.list_physical_devices("GPU") and _has_nvidia_gpu():
        _log.warning(
            "This machine has an NVIDIA GPU that TensorFlow %s cannot use; all is computed on the processor. Its CUDA "
            "libraries may be missing (docker/requirements-gpu.txt names them) or not fit the driver. "
            "TF_CPP_MIN_LOG_LEVEL=0 shows why; CUDA_VISIBLE_DEVICES=-1 says that it is meant to be so.",
            tf.__version__,
        )


def _has_nvidia_gpu() -> bool:
    if _NVIDIA_DRIVER.is_dir():
        return any(_NVIDIA_DRIVER.iterdir())
    # Linux under Windows (WSL) has the driver of Windows, without that folder.
    if command := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            return "GPU" in subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20).stdout
    return False


def choose_precision() -> str:
    """Returns the Keras dtype policy in which the GPUs that this process sees train fastest.

    Tensor cores multiply float16 since compute capability 7.0, and bfloat16, which needs no scaled loss, since 8.0. The
    oldest GPU decides; without a GPU it is float32.
    """
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capability = min((d.get("compute_capability", (0, 0)) for d in details), default=(0, 0))
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"


@contextmanager
def mixed_precision() -> Iterator[None]:
    """A context in which new layers compute in the precision of `choose_precision`; their weights stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose_precision())
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def to_float32(network: keras.Model) -> keras.Model:
    """Returns the same network with the same weights, computing in float32: itself, if it does so already."""
    policy = network.dtype_policy.name
    if policy == "float32":
        return network
    config = keras.Model(network.input, network.output).to_json()
    converted = keras.models.model_from_json(config.replace(f'"{policy}"', '"float32"'))
    converted.set_weights(network.get_weights())
    return converted


def choose_strategy() -> tf.distribute.Strategy:
    """Returns how a training is distributed over the devices that this process sees.

    Each GPU of this machine gets an equal part of every batch; without a GPU, each of several virtual CPUs does.
    """
    warn_of_idle_gpu()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
