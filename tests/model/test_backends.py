"""Keras's other backends: the stored artefact says the same there, and a training step can be taken."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from cxr_ml.model import architectures
from cxr_ml.settings import Settings

STEP = """
import sys
import keras
import numpy as np
from cxr_ml.model import inputs

assert keras.backend.backend() == sys.argv[1]
classifier = keras.saving.load_model("model.keras", compile=False, safe_mode=True)
given = np.load("given.npz")
for kind in ("grey", "colour"):
    found = classifier.predict(given[kind], verbose=0)
    np.testing.assert_allclose(found, given[f"said of {kind}"], atol=1e-4)
before = [np.array(w) for w in classifier.trainable_weights]
classifier.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
rows = np.arange(12)
batches = inputs.AugmentedBatches(given["grey"], rows, rows % 3, np.ones(12), 12, 0, 0.5)
loss = classifier.fit(batches, epochs=1, verbose=0).history["loss"][0]
assert np.isfinite(loss) and loss > 0
for old, new in zip(before, classifier.trainable_weights, strict=True):
    assert (old != np.array(new)).any(), new.path
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_reads_the_artefact_and_takes_a_training_step(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    classifier = architectures.classifier(architectures.backbone(Settings(image_size=32), "light"), 3, 0.5)
    classifier.save(tmp_path / "model.keras")
    given = {}
    for kind, channels in (("grey", 1), ("colour", 3)):
        given[kind] = np.random.default_rng(0).integers(0, 256, (12, 32, 32, channels), dtype=np.uint8)
        given[f"said of {kind}"] = classifier.predict(given[kind], verbose=0)
    np.savez(tmp_path / "given.npz", **given)
    path = os.pathsep.join([str(p) for p in sys.path if p])
    done = subprocess.run(
        [sys.executable, "-c", STEP, backend], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
