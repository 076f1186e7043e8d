"""The frozen stage: the head on stored features, beside `fit` through the frozen backbone with augmentation on.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… .venv/bin/python benchmarks/head.py [--architecture inception_v3] [--size 256]
        [--epochs 30] [--peer-epochs 3] [--views 1 2 4 8] [--seeds 3]

The same real X-rays (train/ of the first drop, every sixth image to validate with), the same settings of the study
(Adam 1e-3, batch 128, dropout 0.5, class weights), the same augmentation. The peer shows every image to the backbone
once per epoch, with its own view each time; its cost is that of `--epochs` epochs at the mean of those it runs, and its
macro F1, where it runs them all, is that of its best epoch by validation loss, likewise ours. Ours shows each
image K times, and trains the head for as many epochs on what it saw; the time is that of features and head together.
Heads are trained with several seeds, since validation is small.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_ml.imaging import decode, formats
from cxr_ml.settings import Settings
from cxr_ml.training import architectures, inputs
from cxr_ml.training.train import compute_class_weights

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def xrays(drop: Path, size: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """The images in a split's folder of a drop and their classes: uint8 (n, size, size, 1), int (n,)."""
    x, y = [], []
    for index, label in enumerate(CLASSES):
        for file in sorted((drop / split / label).iterdir()):
            try:
                x.append(inputs.resize(decode.decode_grey(file.read_bytes()), size))
            except formats.BadImage:
                continue
            y.append(index)
    return np.stack(x), np.array(y)


class Best(keras.callbacks.Callback):
    """Macro F1 on validation of the epoch with the least validation loss, and how long the epochs took."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.x, self.y, self.loss, self.f1, self.epoch, self.seconds = x, y, np.inf, np.nan, 0, []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # Training and its validation; the prediction below is only for this table.
        self.seconds.append(time.perf_counter() - self.begun)
        if logs["val_loss"] < self.loss:
            self.loss, self.epoch = logs["val_loss"], epoch + 1
            predicted = self.model.predict(self.x, batch_size=32, verbose=0).argmax(axis=1)
            self.f1 = f1_score(self.y, predicted, average="macro")


def compiled(model: keras.Model, settings: Settings) -> keras.Model:
    model.compile(keras.optimizers.Adam(settings.training.head_learning_rate), "sparse_categorical_crossentropy")
    return model


def head_of(classifier: keras.Model, settings: Settings) -> keras.Model:
    """A head of the same layers with new weights, on features."""
    features = keras.Input(classifier.get_layer("features").output.shape[1:])
    dropped = keras.layers.Dropout(settings.training.dropout)(features)
    return compiled(keras.Model(features, keras.layers.Dense(len(CLASSES), activation="softmax")(dropped)), settings)


def peer(settings: Settings, architecture: str, data: tuple, epochs: int) -> Best:
    """`fit` through the frozen backbone."""
    x, y, train, validation, weights = data
    keras.utils.set_random_seed(0)
    backbone = architectures.build_backbone(settings.training, settings.weights_dir, architecture)
    classifier = architectures.build_classifier(backbone, len(CLASSES), settings.training.dropout)
    backbone.network.trainable = False
    compiled(classifier, settings)
    batches = inputs.AugmentedBatches(x, train, y[train], weights[train], settings.training.batch_size, 0)
    best = Best(x[validation], y[validation])
    classifier.fit(
        batches, validation_data=(x[validation], y[validation]), validation_batch_size=32, epochs=epochs, shuffle=False,
        callbacks=[best], verbose=0,
    )  # fmt: skip
    return best


def ours(settings: Settings, architecture: str, data: tuple, given: argparse.Namespace) -> None:
    """Prints, for each number of views, what a head on them gave and took."""
    x, y, train, validation, weights = data
    backbone = architectures.build_backbone(settings.training, settings.weights_dir, architecture)
    classifier = architectures.build_classifier(backbone, len(CLASSES), settings.training.dropout)
    network = keras.Model(classifier.input, classifier.get_layer("features").output)
    network.predict(x[:32], batch_size=32, verbose=0)
    begun, rng = time.perf_counter(), np.random.default_rng(0)
    held = network.predict(x[validation], batch_size=32, verbose=0)
    spent, seen = time.perf_counter() - begun, []
    for view in range(max(given.views)):
        begun = time.perf_counter()
        shown = inputs.draw_views(x[train], rng, 0.0) if view else x[train]
        seen.append(network.predict(shown, batch_size=32, verbose=0))
        spent += time.perf_counter() - begun
        if view + 1 not in given.views:
            continue
        features, target = np.concatenate(seen), np.tile(y[train], view + 1)
        f1, seconds, chosen = [], [], []
        for seed in range(given.seeds):
            keras.utils.set_random_seed(seed)
            best = Best(held, y[validation])
            begun = time.perf_counter()
            head_of(classifier, settings).fit(
                features, target, sample_weight=weights[np.tile(train, view + 1)],
                batch_size=settings.training.batch_size,
                validation_data=(held, y[validation]), epochs=given.epochs, callbacks=[best], verbose=0,
            )  # fmt: skip
            seconds.append(time.perf_counter() - begun)
            f1.append(best.f1)
            chosen.append(best.epoch)
        whole = spent + float(np.mean(seconds))
        print(
            f"ours, K = {view + 1}: validation macro F1 {np.mean(f1):.3f} (seeds: {', '.join(f'{v:.3f}' for v in f1)}; "
            f"best epochs {chosen}), features {spent:.0f} s + head {np.mean(seconds):.1f} s = {whole:.0f} s", flush=True
        )  # fmt: skip


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="inception_v3")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--peer-epochs", type=int, default=3)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if not {"CXR_XRAYS", "CXR_WEIGHTS_DIR"} <= set(os.environ):
        sys.exit("CXR_XRAYS must name the folder of X-rays, and CXR_WEIGHTS_DIR that of the weights.")
    settings = Settings(weights_dir=os.environ["CXR_WEIGHTS_DIR"], training={"image_size": given.size})
    x, y = xrays(Path(os.environ["CXR_XRAYS"]) / "drops/2026-01-05", given.size)
    rows = np.arange(len(y))
    train, validation = rows[rows % 6 != 0], rows[rows % 6 == 0]
    data = (x, y, train, validation, compute_class_weights(y[train], len(CLASSES))[y])
    print(f"{given.architecture}, {given.size} px, {len(train)} images to train and {len(validation)} to validate with")
    ours(settings, given.architecture, data, given)
    best = peer(settings, given.architecture, data, given.peer_epochs)
    each = float(np.mean(best.seconds))
    f1 = f"{best.f1:.3f} (best epoch {best.epoch})" if given.peer_epochs == given.epochs else "not run to its end"
    print(
        f"fit through the frozen backbone: validation macro F1 {f1}, {each:.1f} s per epoch over {given.peer_epochs} "
        f"epochs, so {each * given.epochs:.0f} s for {given.epochs}"
    )


if __name__ == "__main__":
    main()
