"""Predicting the files of a folder, with every check, beside the bare `model.predict` on arrays that are in memory.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… .venv/bin/python benchmarks/predict.py [--architecture inception_v3] [--size 256]
        [--rounds 3] [--files 600]

The files are those of the first drop that are not refused, evenly spread. A model with pretrained backbone and a random
head, which costs what a trained one costs, is stored in a SeaweedFS of its own with what it remembers of some training
images. Ours reads each file, measures it, judges it by images.json, decodes it, and tells how like the training images
it is; the peer is given the decoded images as one array, in batches of the same size. Both are warmed up by a batch and
take turns; the median of the rounds counts. The largest memory of the process before and after ours is printed, too.
"""

import argparse
import hashlib
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import ingest as bench_ingest
import keras
import numpy as np

from cxr_ml import layout
from cxr_ml.imaging import decode
from cxr_ml.ingest import memory_budget
from cxr_ml.records import Model
from cxr_ml.serving import predict
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, inputs, ood

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def put_model(settings: Settings, architecture: str, x: np.ndarray) -> keras.Model:
    """Stores a classifier with a random head under the name "bench"; `x` stands for training and validation images."""
    keras.utils.set_random_seed(0)
    network = architectures.build_classifier(
        architectures.build_backbone(settings.training, settings.weights_dir, architecture), len(CLASSES), 0.5
    )
    rows = np.arange(len(x))
    known = ood.to_bytes(ood.fit(network, x, rows[::2], rows[1::2], np.zeros(len(x), int), 0))
    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder) / "model.keras")
        artefact = (Path(folder) / "model.keras").read_bytes()
    record = Model(
        model="bench", architecture=architecture, dataset=1, dataset_sha256="", classes=CLASSES,
        artefact_sha256=hashlib.sha256(artefact).hexdigest(), likeness_sha256=hashlib.sha256(known).hexdigest(),
        image_size=settings.training.image_size, weights="", weights_sha256="", settings={}, epochs={}, seconds={},
        images_per_second={}, code="", packages={}, hardware={}, operating_point=None, validation_sha256="",
        history_sha256="",
    )  # fmt: skip
    ObjectStore(settings.store).put_if_absent("models/bench/model.keras", artefact)
    ObjectStore(settings.store).put_if_absent(layout.ood_detector("bench"), known)
    ObjectStore(settings.store).put_if_absent("models/bench/model.json", record.to_bytes())
    return network


def peak() -> float:
    """The largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="inception_v3")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=600)
    given = parser.parse_args()
    if not {"CXR_XRAYS", "CXR_WEIGHTS_DIR"} <= set(os.environ):
        sys.exit("CXR_XRAYS must name the folder of X-rays, and CXR_WEIGHTS_DIR that of the weights.")
    drop = Path(os.environ["CXR_XRAYS"]) / "drops/2026-01-05"
    every = sorted(f for label in CLASSES for split in ("train", "test") for f in (drop / split / label).iterdir())
    with tempfile.TemporaryDirectory() as folder, bench_ingest.store(Path(folder)) as own:
        settings = own.replace(weights_dir=Path(os.environ["CXR_WEIGHTS_DIR"]), training={"image_size": given.size})
        some = np.stack(
            [inputs.resize(decode.decode_grey(f.read_bytes()), given.size) for f in every[:: len(every) // 64]]
        )
        network = put_model(settings, given.architecture, some)
        ours = predict.load_predictor(ObjectStore(settings.store), settings, "bench")
        before = peak()
        rows = list(ours(every[:: max(1, len(every) // given.files)]))
        fit = [Path(row.file) for row in rows if row.unlikeness is not None]  # else it was not shown to the network
        after = peak()
        arrays = np.stack([inputs.resize(decode.decode_grey(f.read_bytes()), given.size) for f in fit])
        network.predict(arrays[:32], batch_size=32, verbose=0)
        taken: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(given.rounds):
            begun = time.perf_counter()
            network.predict(arrays, batch_size=32, verbose=0)
            taken["bare"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for _ in ours(fit):
                pass
            taken["ours"].append(time.perf_counter() - begun)
    bare, own_time = (statistics.median(taken[name]) for name in ("bare", "ours"))
    print(
        f"{given.architecture}, {given.size} px, {len(fit)} files, {sum(f.stat().st_size for f in fit) / 1e6:.0f} MB, "
        f"{memory_budget.count_cores()} cores: bare predict {len(fit) / bare:.1f} images/s, "
        f"files {len(fit) / own_time:.1f} images/s, "
        f"{own_time / bare:.2f} times the time; each round: "
        + ", ".join(f"{o / b:.2f}" for b, o in zip(taken["bare"], taken["ours"], strict=True))
    )
    print(f"largest memory: {before:.0f} MB with the model loaded, {after:.0f} MB after the files")


if __name__ == "__main__":
    main()
