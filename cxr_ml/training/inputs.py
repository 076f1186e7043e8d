"""The images of a dataset as one array, and the batches of images that a network is trained on or predicts."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd

from cxr_ml.dataset import versions
from cxr_ml.ingest.process_file import load_grey
from cxr_ml.progress import OnProgress, counted, nobody
from cxr_ml.records import Dataset
from cxr_ml.store import ObjectStore
from cxr_ml.training import array_cache
from cxr_ml.training.augment import augment_images
from cxr_ml.training.batching import ShuffledRows
from cxr_ml.training.corruptions import corrupt_images

VERSION = 1  # of decoding and resizing; raise it if the same file gives other pixels


def resize(grey: np.ndarray, size: int) -> np.ndarray:
    """Returns an image stretched to a square as in the study: uint8 (height, width) to uint8 (size, size, 1)."""
    shrinks = min(grey.shape) > size
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)[..., None]


def load(
    store: ObjectStore, cache_dir: Path, dataset: Dataset, size: int, on_progress: OnProgress = nobody
) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns all images of a dataset. The first worker decodes each of them, and the store keeps the pixels.

    Args:
        store: the store, and the cache folder.
        cache_dir: folder of what may be deleted between runs.
        dataset: the version.
        size: of a side, px.
        on_progress: called with the images that are done.

    Returns:
        uint8 (images, size, size, 1), memory-mapped from the cache folder, and the manifest, row for row.
    """
    manifest = versions.load_manifest(store, dataset)
    kind = f"inputs-{VERSION}-{size}"
    path = cache_dir / f"{kind}-{dataset.manifest_sha256[:16]}.npy"

    def decode(rows: np.ndarray) -> np.ndarray:
        def decode_image(sha256: str, format: str) -> np.ndarray:
            return resize(load_grey(store, sha256, format), size)

        files = manifest.iloc[rows]
        with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(decode_image, files["sha256"], files["format"])))

    source = array_cache.Source(f"inputs/{VERSION}-{size}", decode)
    on_rows = counted(on_progress, "images", "inputs")
    images = array_cache.load_array(store, cache_dir, manifest, [source], (size, size, 1), np.uint8, path, on_rows)
    for other in cache_dir.glob(f"{kind}-*.npy"):
        if other != path and not other.name.endswith(".part.npy"):
            other.unlink(missing_ok=True)  # of another dataset version; a process that has it mapped keeps it
    return images, manifest


def targets(manifest: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Returns the index of each row's label in `classes`, int64 (rows,)."""
    return manifest["label"].map({label: i for i, label in enumerate(classes)}).to_numpy(dtype=np.int64)


def draw_views(images: np.ndarray, rng: np.random.Generator, corrupted_share: float) -> np.ndarray:
    """Returns one random view of each image, which training uses in its place.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.
        corrupted_share: share of the views that are corrupted as well, 0 to 1.

    Returns:
        uint8 of the same shape.
    """
    views = augment_images(images, rng)
    if corrupted_share:
        corrupted = rng.random(len(views)) < corrupted_share
        views[corrupted] = corrupt_images(views[corrupted], rng)
    return views


class Batches(keras.utils.PyDataset):
    """Batches of rows of an array in their order, as they are or changed: (images, targets), or images alone."""

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        batch_size: int,
        y: np.ndarray | None = None,
        change: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.images, self.rows, self.batch_size, self.y, self.change = images, rows, batch_size, y, change

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        images = self.images[self.rows[part]]
        if self.change:
            images = self.change(images)
        return images if self.y is None else (images, self.y[part])


class ImageCounter(keras.callbacks.Callback):
    """Calls `on_images` after each batch of `predict` with the number of images so far."""

    def __init__(self, batch_size: int, total: int, on_images: Callable[[int], None]) -> None:
        super().__init__()
        self.batch_size, self.total, self.on_images = batch_size, total, on_images

    def on_predict_batch_end(self, batch: int, logs: dict[str, object] | None = None) -> None:
        """Counts a batch; the last one may be smaller."""
        self.on_images(min((batch + 1) * self.batch_size, self.total))


class AugmentedBatches(ShuffledRows):
    """Shuffled, augmented batches (images, targets, weights). The same seed and epoch give the same batches."""

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        y: np.ndarray,
        weights: np.ndarray,
        batch_size: int,
        seed: int,
        corrupted_share: float = 0.0,
    ) -> None:
        super().__init__(images, y, weights, batch_size, seed, workers=2, max_queue_size=8)
        self.images, self.rows, self.corrupted_share = images, rows, corrupted_share

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self.select_rows(index)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        views = draw_views(self.images[self.rows[chosen]], rng, self.corrupted_share)
        return views, self.y[chosen], self.weights[chosen]
