"""What each departure from the study is worth: trainings with the defaults, and with one of them taken back.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… .venv/bin/python benchmarks/departures.py [--architecture mobilenet_v2] [--size 160]
        [--seeds 0 1 2] [--epochs 8] [--variants NAME …] [--each-epoch]

The first drop is ingested and judged into a SeaweedFS of its own, and becomes a dataset as in a run: its train/ is
split into training and validation by patient, test/ is the test set. Every variant is a whole training of the pipeline
with profiles/cpu.toml, both stages; features of the frozen backbone are shared by all that see the same views. Two
ideas that are no settings are tried in the same way: label smoothing of 0.1 (Szegedy et al. 2016) in both stages, and a
fine-tuning of the upper third of the backbone's layers only. With --each-epoch, every epoch of the fine-tuning is
tested, be it kept or not, so that one sees what a choice among them is worth.

Decided is by the largest probability, without an operating point. The validation loss is the unweighted cross-entropy
of the weights that are kept, beside it that after the best temperature, which is fitted on the same images: smoothed
labels make a network doubt, and that alone should not count against them. A line for each training; after each seed,
mean and range over the seeds.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import ingest as bench_ingest
import keras
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, log_loss, recall_score

from cxr_ml import layout
from cxr_ml import settings as all_settings
from cxr_ml.dataset import build, versions
from cxr_ml.ingest import ingest_drop
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, calibration, inputs, loop, ood, predictions, train
from cxr_ml.training.checkpoints import Progress
from cxr_ml.training.corruptions import FIXED
from cxr_ml.validation import judge_batch

DROP = "2026-01-05"
SMOOTHING = 0.1  # share of a target that is spread over all classes


class Variant(NamedTuple):
    """What differs from the defaults."""

    settings: dict[str, object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext  # the block in which it is trained


def smoothed(y: keras.KerasTensor, p: keras.KerasTensor) -> keras.KerasTensor:
    """Cross-entropy with smoothed labels: int (n,) or (n, 1) against probabilities (n, classes) -> (n,)."""
    one_hot = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y, (-1,)), "int32"), p.shape[-1])
    return keras.losses.categorical_crossentropy(one_hot, p, label_smoothing=SMOOTHING)


@contextmanager
def upper_third() -> Iterator[None]:
    """A block in which the lower two thirds of a backbone's layers never learn."""
    whole = architectures.build_backbone

    def build(settings: Settings, architecture: str) -> architectures.Backbone:
        found = whole(settings, architecture)
        for layer in found.network.layers[: len(found.network.layers) * 2 // 3]:
            layer.trainable = False
        return found

    with mock.patch.object(architectures, "build_backbone", build):
        yield


VARIANTS = {
    "defaults": Variant({}),
    "freeze_normalisation=false": Variant({"freeze_normalisation": False}),
    "fine_tune_decay=false": Variant({"fine_tune_decay": False}),
    "label smoothing": Variant({}, lambda: mock.patch.object(loop, "LOSS", smoothed)),
    "upper third": Variant({}, upper_third),
    "corrupted_share=0": Variant({"corrupted_share": 0.0}),
}


def tested(settings: Settings, network: keras.Model) -> dict[str, float]:
    """Macro F1 on the test images, as they are and in each fixed disguise, and recalls."""
    images, manifest = inputs.load(
        ObjectStore(settings.store),
        settings.cache_dir,
        versions.load_dataset(ObjectStore(settings.store), 1),
        settings.training.image_size,
    )
    y, test = inputs.targets(manifest, settings.classes), np.flatnonzero(manifest["split"] == "test")
    figures = {}
    for kind, change in {"as is": None, **FIXED}.items():
        decided = predictions.predict_probabilities(network, images, test, change).argmax(axis=1)
        figures[f"macro F1 {kind}"] = f1_score(y[test], decided, average="macro")
        if change is None:
            recalls = recall_score(y[test], decided, average=None)
            figures |= {f"recall {c}": r for c, r in zip(settings.classes, recalls, strict=True)}
    return figures


@contextmanager
def each_epoch() -> Iterator[None]:
    """A block in which what a fine-tuning begins with, and every epoch of it, are tested and printed."""
    callback, train_stage = loop._EpochCallback, loop.train_stage
    on_epoch_end = callback.on_epoch_end

    def test_epoch(self: loop._EpochCallback, epoch: int, logs: dict[str, float] | None = None) -> None:
        on_epoch_end(self, epoch, logs)
        if self.stage.name == "fine_tune":
            figures = told(tested(self.settings, self.model))
            print(loop.describe_last_epoch(self.stage, self.progress), figures, sep="; ", flush=True)

    def test_head(
        store: ObjectStore, settings: Settings, model: str, network: keras.Model, stage: loop.Stage, *arguments: object
    ) -> Progress:
        if stage.name == "fine_tune":
            print("the head's model:", told(tested(settings, network)), flush=True)
        return train_stage(store, settings, model, network, stage, *arguments)

    with mock.patch.object(callback, "on_epoch_end", test_epoch), mock.patch.object(loop, "train_stage", test_head):
        yield


def told(figures: dict[str, float]) -> str:
    """All figures in a line."""
    return ", ".join(f"{k} {v:.3f}" for k, v in figures.items())


def measured(settings: Settings, variant: str, architecture: str) -> dict[str, float]:
    """Trains a variant and measures it on validation and test."""
    keras.utils.clear_session()
    own = settings.replace(training=VARIANTS[variant].settings)
    name = f"{variant.replace(' ', '-')}-{own.training.seed}"
    began, spent = time.monotonic(), time.process_time()
    # Nothing here asks whether an image is unlike the training's, which would take a tenth of the time.
    without_ood = mock.patch.multiple(ood, fit=lambda *_: None, to_bytes=lambda _: b"")
    named = mock.patch.object(train, "name_model", return_value=name)
    with VARIANTS[variant].around(), named, without_ood:
        record = train.train_model(ObjectStore(own.store), own, 1, architecture, verbose=False)
    figures = {"minutes": (time.monotonic() - began) / 60, "processor minutes": (time.process_time() - spent) / 60}
    _, network = predictions.load_model(ObjectStore(own.store), name)
    images, manifest = inputs.load(
        ObjectStore(own.store), own.cache_dir, versions.load_dataset(ObjectStore(own.store), 1), own.training.image_size
    )
    y, held = inputs.targets(manifest, own.classes), np.flatnonzero(manifest["split"] == "validation")
    p = predictions.predict_probabilities(network, images, held)
    figures["validation loss"] = log_loss(y[held], p)
    figures["at its best temperature"] = log_loss(
        y[held], calibration.apply(p, record.operating_point, own.classes).probabilities
    )
    figures["validation macro F1"] = f1_score(y[held], p.argmax(axis=1), average="macro")
    figures |= tested(own, network)
    history = pd.read_csv(io.BytesIO(ObjectStore(own.store).get(layout.training_curves(name))))
    losses = history.loc[history["stage"] == "fine_tune", "val_loss"]
    print(
        f"{variant}, seed {own.training.seed}: {told(figures)}; epochs {record.epochs}, seconds {record.seconds}, "
        f"validation loss of the fine-tuning's epochs {' '.join(f'{v:.3f}' for v in losses)}", flush=True
    )  # fmt: skip
    return figures


def table(rows: pd.DataFrame) -> str:
    """Mean and range over the seeds, a variant a row, a figure a column."""
    grouped = rows.drop(columns="seed").groupby("variant", sort=False)
    mean, low, high = grouped.mean(), grouped.min(), grouped.max()
    cells = {
        c: [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(mean[c], low[c], high[c], strict=True)] for c in mean
    }
    return pd.DataFrame(cells, index=mean.index).T.to_string()


def main() -> None:
    """Prints a line for each training, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of the fine-tuning; default: the profile's")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--each-epoch", action="store_true", help="test every epoch of the fine-tuning")
    given = parser.parse_args()
    if not {"CXR_XRAYS", "CXR_WEIGHTS_DIR"} <= set(os.environ):
        sys.exit("CXR_XRAYS must name the folder of X-rays, and CXR_WEIGHTS_DIR that of the weights.")
    inbox = str(Path(os.environ.pop("CXR_XRAYS")) / "drops")
    os.environ["CXR_PROFILE"] = "cpu"
    rows = []
    with tempfile.TemporaryDirectory() as folder, bench_ingest.store(Path(folder)):
        settings = all_settings.load(
            cache_dir=Path(folder) / "cache",
            inbox={"path": inbox},
            training={"image_size": given.size, "fine_tune_epochs": given.epochs},
        )
        judge_batch.validate_batch(
            ObjectStore(settings.store), settings, ingest_drop.ingest(ObjectStore(settings.store), settings, DROP)
        )
        built, _ = build.build_dataset(ObjectStore(settings.store), settings)
        counts = versions.load_manifest(ObjectStore(settings.store), built).groupby(["split", "label"]).size()
        print(f"{given.architecture}, {given.size} px, images: {counts.to_dict()}", flush=True)
        for seed in given.seeds:
            for variant in given.variants:
                own = settings.replace(training={"seed": seed})
                with each_epoch() if given.each_epoch else nullcontext():
                    rows.append({"variant": variant, "seed": seed} | measured(own, variant, given.architecture))
            print(table(pd.DataFrame(rows)), flush=True)


if __name__ == "__main__":
    main()
