"""TensorFlow says nothing that says nothing to a user; a GPU that it cannot use is told in a line."""

import logging
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from cxr_ml.training import distribution

_PREDICTS = """
import cxr_ml.training.distribution as devices
import keras, numpy
network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
network.predict(numpy.zeros((8, 4)), verbose=0)
devices.warn_of_idle_gpu()
"""


def python(script, **variables):
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | variables
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_prediction_without_a_gpu_says_nothing_of_its_own_and_standard_error_is_what_it_was():
    said = "cudart_stub.cc:31] Could not find cuda drivers\n"  # while TensorFlow loads, this is held back
    done = python(_PREDICTS + f"import os\nos.write(2, {said.encode()!r})", CUDA_VISIBLE_DEVICES="-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)


@pytest.mark.slow
def test_who_wants_to_hear_more_of_tensorflow_hears_it():
    assert python("import cxr_ml, os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])").stdout == "2\n"
    done = python(_PREDICTS, TF_CPP_MIN_LOG_LEVEL="0", CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0 and done.stderr


def test_what_a_process_says_that_breaks_down_while_it_loads_is_told():
    said = "F0000 00:00:1 2 cpu_feature_guard.cc:1] AVX instructions are not available on your machine."
    lines = ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", said)
    script = "import os\nfrom cxr_ml.quiet import without_chatter\nwith without_chatter():\n"
    done = python(script + f"    os.write(2, {chr(10).join([*lines, '']).encode()!r})\n    os.abort()")
    assert done.returncode == -6 and done.stderr == said + "\n"


@pytest.fixture
def warnings(monkeypatch, tmp_path, caplog):
    """What is said where the driver's folder has these entries, or nvidia-smi says this, and TensorFlow has GPUs."""

    def found(entries=(), smi=None, gpus=(), **variables):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        if smi is not None:
            (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{smi}'\n")
            (folder / "nvidia-smi").chmod(0o755)
        for entry in entries:
            (folder / "gpus" / entry).mkdir(parents=True)
        monkeypatch.setattr(distribution, "_NVIDIA_DRIVER", folder / "gpus")
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in ({"PATH": f"{folder}:/usr/bin:/bin"} | variables).items():
            monkeypatch.setenv(name, value)
        caplog.clear()
        distribution.warn_of_idle_gpu.cache_clear()
        for _ in range(2):
            distribution.warn_of_idle_gpu()
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    yield found
    distribution.warn_of_idle_gpu.cache_clear()


def test_a_gpu_that_tensorflow_cannot_use_is_told_once(warnings):
    for given in ({"entries": ["0000:01:00.0"]}, {"smi": "GPU 0: NVIDIA H200 (UUID: GPU-1)"}):
        (said,) = warnings(**given)
        assert "has an NVIDIA GPU that TensorFlow" in said and "all is computed on the processor" in said


def test_nothing_is_told_of_a_gpu_that_is_used_or_hidden_or_not_there(warnings):
    there = {"entries": ["0000:01:00.0"]}
    assert warnings(**there, gpus=["GPU:0"]) == []
    assert warnings(**there, CUDA_VISIBLE_DEVICES="-1") == warnings(**there, CUDA_VISIBLE_DEVICES="") == []
    assert warnings() == warnings(smi="No devices were found") == []
