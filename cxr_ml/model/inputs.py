"""The images of a dataset as one array, and the batches that training takes from it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd

from cxr_ml.data import dataset as datasets
from cxr_ml.data.files import stored_grey
from cxr_ml.model.augment import augment
from cxr_ml.records import Dataset
from cxr_ml.settings import Settings


def resize(grey: np.ndarray, size: int) -> np.ndarray:
    """uint8 (height, width) -> uint8 (size, size, 1), stretched to a square as in the study."""
    shrinks = min(grey.shape) > size
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)[..., None]


def load(settings: Settings, dataset: Dataset, size: int) -> tuple[np.ndarray, pd.DataFrame]:
    """All images of a dataset.

    Returns:
        uint8 (images, size, size, 1), memory-mapped from the cache folder, and the manifest, row for row.
    """
    manifest = datasets.manifest(settings, dataset)
    path = settings.cache_dir / f"{dataset.manifest_sha256[:16]}-{size}.npy"
    if not path.exists():
        _materialise(settings, manifest, size, path)
    return np.load(path, mmap_mode="r"), manifest


def _materialise(settings: Settings, manifest: pd.DataFrame, size: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npy")
    array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(manifest), size, size, 1))

    def one(i: int, sha256: str, format: str) -> None:
        array[i] = resize(stored_grey(settings, sha256, format), size)

    try:
        with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
            list(pool.map(one, range(len(manifest)), manifest["sha256"], manifest["format"]))
        array.flush()
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def targets(manifest: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Index of each row's label in `classes`, int64 (rows,)."""
    return manifest["label"].map({label: i for i, label in enumerate(classes)}).to_numpy(dtype=np.int64)


class AugmentedBatches(keras.utils.PyDataset):
    """Shuffled, augmented batches (images, targets, weights). The same seed and epoch give the same batches."""

    def __init__(
        self, images: np.ndarray, rows: np.ndarray, y: np.ndarray, weights: np.ndarray, batch_size: int, seed: int
    ) -> None:
        super().__init__(workers=2, max_queue_size=8)
        self.images, self.rows, self.y, self.weights = images, rows, y, weights
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        views = augment(self.images[self.rows[chosen]], np.random.default_rng([self.seed, self.epoch, index]))
        return views, self.y[chosen], self.weights[chosen]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.order = self._shuffled()
