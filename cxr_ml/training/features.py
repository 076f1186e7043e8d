"""What the frozen backbone sees in each image, a few times per image instead of once per epoch; kept in the store."""

import hashlib
import json
from functools import partial

import keras
import numpy as np
import pandas as pd

from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.settings import Settings
from cxr_ml.training import array_cache, augment, corruptions, inputs, out_of_memory

_SEED = 1  # tells the random numbers of these views from those of the fine-tuning


def load(
    settings: Settings,
    classifier: keras.Model,
    manifest: pd.DataFrame,
    images: np.ndarray,
    rows: np.ndarray,
    views: int,
    verbose: bool = False,
    on_progress: OnProgress = nobody,
) -> np.ndarray:
    """Features of some images: as they are, and of views - 1 random views of each.

    Those that the store has for these weights, images, sizes and views are taken from there. Those of images that a
    later dataset shares are shared too.

    Args:
        settings: the store, the cache folder, batch size and seed.
        classifier: whose layer "features" is asked for, with its present weights.
        manifest: of the dataset.
        images: uint8 (images, size, size, 1), row for row.
        rows: row numbers of the images, int (n,).
        views: how often each image is seen.
        verbose: whether a line is printed per block that is computed.
        on_progress: told of the views that are there.

    Returns:
        float32 (views · n, channels), first all images as they are; memory-mapped, read only.
    """
    network = keras.Model(classifier.input, classifier.get_layer("features").output)
    chosen = manifest.iloc[rows].reset_index(drop=True)
    folder = f"features/{_digest(network)}-{inputs.VERSION}-{images.shape[1]}"

    tell, done = counted(on_progress, "images", "features"), 0

    def laid(now: int, total: int) -> None:
        nonlocal done
        done = now
        tell(now, total)

    def see(view: int, which: np.ndarray) -> np.ndarray:
        shown = images[rows[which]]
        if view:
            # Seeded by the images themselves, so that other images of the dataset change nothing.
            own = hashlib.sha256("\n".join(chosen["sha256"].iloc[which]).encode()).digest()
            seed = [settings.seed, _SEED, view, int.from_bytes(own[:8], "big")]
            shown = inputs.views(shown, np.random.default_rng(seed), settings.disguised)
        if verbose:
            print(f"features: view {view + 1} of {views}, {len(which)} of {len(rows)} images", flush=True)

        def predict(size: int) -> np.ndarray:
            counting = inputs.Counting(size, len(shown), lambda seen: tell(done + seen, views * len(rows)))
            return network.predict(shown, batch_size=size, verbose=0, callbacks=[counting])

        return out_of_memory.predicted(predict, min(settings.batch_size, 32))

    drawn = f"view-{augment.VERSION}-{corruptions.VERSION}-{settings.disguised:g}-{settings.seed}"
    names = ["as-is", *(f"{drawn}-{view}" for view in range(1, views))]
    sources = [array_cache.Source(f"{folder}/{name}", partial(see, view)) for view, name in enumerate(names)]
    return array_cache.assemble(settings, chosen, sources, network.output_shape[1:], np.float32, on_rows=laid)


def _digest(network: keras.Model) -> str:
    """What the features depend on beside the image: every weight, how pixels are scaled, how exactly it computes."""
    digest = hashlib.sha256()
    scale = network.get_layer("scale").get_config()
    digest.update(json.dumps([scale["scale"], scale["offset"], str(scale["dtype"])]).encode())
    for weight in network.get_weights():
        digest.update(str((weight.shape, weight.dtype)).encode() + weight.tobytes())
    return digest.hexdigest()[:16]
