"""Augmented images per second: ours, Keras's `ImageDataGenerator` (which the study used), Keras's preprocessing layers.

    CXR_XRAYS=… .venv/bin/python benchmarks/augment.py [--images 512] [--rounds 3]

The same grey X-rays of 256 px for all, in batches of 128, drawn from the study's ranges; from the array in memory to
the array that a training step takes. The generator runs in one thread and in one per core, the layers are called on
whole batches and run as a compiled map of `tf.data` over batches; of each the faster way counts. The layers add
brightness where the study multiplies. Contestants take turns; the median of the rounds counts.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from cxr_ml.imaging import decode, formats
from cxr_ml.training.augment import augment_images
from cxr_ml.training.inputs import resize

SIZE, BATCH = 256, 128


def xrays(folder: Path, wanted: int) -> np.ndarray:
    """Grey X-rays of a folder, evenly spread over it, uint8 (n, 256, 256, 1)."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        sys.exit(f"CXR_XRAYS must name a folder of X-rays. Received: {folder}")
    files = files[:: max(1, len(files) // wanted)]
    found = []
    for file in files:
        try:
            found.append(resize(decode.decode_grey(file.read_bytes()), SIZE))
        except formats.BadImage:
            continue
    return np.stack(found[:wanted])


def batches(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + BATCH] for i in range(0, len(x), BATCH)]


def ours(x: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for batch in batches(x):
        augment_images(batch, rng)


def generator(x: np.ndarray, threads: int) -> None:
    reference = ImageDataGenerator(
        rotation_range=5, shear_range=5, width_shift_range=0.15, height_shift_range=0.15, zoom_range=0.1,
        brightness_range=(0.8, 1.2), horizontal_flip=True, fill_mode="constant", cval=0,
    )  # fmt: skip
    flow = reference.flow(x, batch_size=BATCH, shuffle=False)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(flow.__getitem__, range(len(flow))))


def stack() -> keras.Sequential:
    """The study's ranges in Keras's layers. `RandomShear` takes a share of the side: the tangent of 5°."""
    fill = {"fill_mode": "constant", "fill_value": 0.0}
    return keras.Sequential(
        [
            keras.layers.RandomRotation(5 / 360, **fill),
            keras.layers.RandomShear(x_factor=float(np.tan(np.deg2rad(5))), **fill),
            keras.layers.RandomTranslation(0.15, 0.15, **fill),
            keras.layers.RandomZoom(0.1, 0.1, **fill),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomBrightness(0.2, value_range=(0, 255)),
        ]
    )


def in_batches() -> Callable[[np.ndarray], None]:
    layers = stack()
    compiled = tf.function(lambda x: layers(x, training=True))

    def run(x: np.ndarray) -> None:
        for batch in batches(x):
            compiled(tf.cast(batch, "float32")).numpy()

    return run


def in_tf_data() -> Callable[[np.ndarray], None]:
    layers = stack()

    def run(x: np.ndarray) -> None:
        data = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
        data = data.map(lambda b: layers(tf.cast(b, "float32"), training=True), num_parallel_calls=tf.data.AUTOTUNE)
        for _ in data.prefetch(2):
            pass

    return run


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    x = xrays(Path(os.environ.get("CXR_XRAYS", "")) / "drops", given.images)
    contestants = {
        "cxr-ml": ours,
        "ImageDataGenerator, one thread": lambda x: generator(x, 1),
        "ImageDataGenerator, all cores": lambda x: generator(x, os.cpu_count() or 1),
        "Keras layers, called on batches": in_batches(),
        "Keras layers, in tf.data": in_tf_data(),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant(x[:BATCH])  # compiles
    for _ in range(given.rounds):
        for name, contestant in contestants.items():
            begun = time.perf_counter()
            contestant(x)
            taken[name].append(time.perf_counter() - begun)
    speed = {name: len(x) / statistics.median(seconds) for name, seconds in taken.items()}
    print(f"{len(x)} images of {SIZE} px, {os.cpu_count()} cores, median of {given.rounds} rounds")
    for name, rate in speed.items():
        print(f"{name:32} {rate:8.0f} images/s    cxr-ml is {speed['cxr-ml'] / rate:5.1f} times as fast")


if __name__ == "__main__":
    main()
