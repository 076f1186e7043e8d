"""Features of the frozen backbone: computed for a few views of each image instead of in every epoch, and stored."""

import hashlib
import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from cxr_ml import layout
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.settings import TrainingSettings
from cxr_ml.store import ObjectStore
from cxr_ml.training import array_cache, augment, corruptions, inputs, out_of_memory

_SEED = 1  # separates the random numbers of these views from those of fine-tuning


def load(
    store: ObjectStore,
    settings: TrainingSettings,
    cache_dir: Path,
    classifier: keras.Model,
    manifest: pd.DataFrame,
    images: np.ndarray,
    rows: np.ndarray,
    views: int,
    verbose: bool = False,
    on_progress: OnProgress = nobody,
) -> np.ndarray:
    """Returns the features of some images: of each as it is, and of views - 1 random views of it.

    Features that the store has for these weights, images, sizes and views are read from there, also those of images
    that another dataset version contains too.

    Args:
        store: the object store.
        settings: the cache folder, batch size and seed.
        cache_dir: folder of what may be deleted between runs.
        classifier: the output of its layer "features" is computed, with its present weights.
        manifest: of the dataset.
        images: uint8 (images, size, size, 1), row for row.
        rows: row numbers of the images, int (n,).
        views: how many views of each image.
        verbose: print a line per block that is computed.
        on_progress: called with the views that are done.

    Returns:
        float32 (views · n, channels), first all images as they are; memory-mapped, read only.
    """
    network = keras.Model(classifier.input, classifier.get_layer("features").output)
    subset = manifest.iloc[rows].reset_index(drop=True)
    folder = layout.features(_hash_network(network), inputs.VERSION, images.shape[1])

    report, done = counted(on_progress, "images", "features"), 0

    def on_rows(rows_done: int, total: int) -> None:
        nonlocal done
        done = rows_done
        report(done, total)

    def compute(view: int, block: np.ndarray) -> np.ndarray:
        pixels = images[rows[block]]
        if view:
            # Seeded by the images themselves, so that other images of the dataset change nothing.
            content = hashlib.sha256("\n".join(subset["sha256"].iloc[block]).encode()).digest()
            seed = [settings.seed, _SEED, view, int.from_bytes(content[:8], "big")]
            pixels = inputs.draw_views(pixels, np.random.default_rng(seed), settings.corrupted_share)
        if verbose:
            print(f"features: view {view + 1} of {views}, {len(block)} of {len(rows)} images", flush=True)

        def predict(batch_size: int) -> np.ndarray:
            counter = inputs.ImageCounter(batch_size, len(pixels), lambda n: report(done + n, views * len(rows)))
            return network.predict(pixels, batch_size=batch_size, verbose=0, callbacks=[counter])

        return out_of_memory.predict_in_fitting_batches(predict, min(settings.batch_size, 32))

    drawn = f"view-{augment.VERSION}-{corruptions.VERSION}-{settings.corrupted_share:g}-{settings.seed}"
    names = ["as-is", *(f"{drawn}-{view}" for view in range(1, views))]
    sources = [array_cache.Source(f"{folder}/{name}", partial(compute, view)) for view, name in enumerate(names)]
    return array_cache.load_array(
        store, cache_dir, subset, sources, network.output_shape[1:], np.float32, on_rows=on_rows
    )


def _hash_network(network: keras.Model) -> str:
    """Returns a hash of all that features depend on beside the image: weights, scaling of pixels, precision."""
    digest = hashlib.sha256()
    scale = network.get_layer("scale").get_config()
    digest.update(json.dumps([scale["scale"], scale["offset"], str(scale["dtype"])]).encode())
    for weight in network.get_weights():
        digest.update(str((weight.shape, weight.dtype)).encode() + weight.tobytes())
    return digest.hexdigest()[:16]
