"""Batches of stored features, and batches cut into pieces that fit into memory."""

import threading

import keras
import numpy as np


class ShuffledRows(keras.utils.PyDataset):
    """Batches (x, targets, weights) of arrays in memory. The same seed and epoch give the same order."""

    def __init__(
        self, x: np.ndarray, y: np.ndarray, weights: np.ndarray, batch_size: int, seed: int, **loading: int
    ) -> None:
        """`loading`: workers and max_queue_size, as keras.utils.PyDataset takes them."""
        super().__init__(**loading)
        self.x, self.y, self.weights, self.batch_size, self.seed = x, y, weights, batch_size, seed
        self.epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.y) // self.batch_size)

    def chosen(self, index: int) -> np.ndarray:
        """Which rows a batch has, int (batch,)."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self.chosen(index)
        return self.x[chosen], self.y[chosen], self.weights[chosen]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.y))


class Pieces(keras.utils.PyDataset):
    """Batches cut into equally many pieces, for an optimizer that takes one step per so many.

    Keras averages the mean losses of pieces, and those of devices that share a piece. The weights are scaled so that
    this is the mean over the whole batch, whatever its size. A piece that cannot be dealt out evenly is filled up with
    copies that weigh 0; they count in the training metrics, but in nothing that is learned.
    """

    def __init__(self, batches: keras.utils.PyDataset, pieces: int, devices: int = 1) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches, self.pieces, self.devices = batches, pieces, devices
        self.lock, self.last = threading.Lock(), (-1, ())

    def __len__(self) -> int:
        return len(self.batches) * self.pieces

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        whole, piece = divmod(index, self.pieces)
        with self.lock:  # two workers that ask for pieces of one batch must not make it twice
            if self.last[0] != whole:
                self.last = (whole, self.batches[whole])
            x, y, weights = self.last[1]
        chosen = np.array_split(np.arange(len(y)), self.pieces)[piece]
        size = max(1, -(-len(chosen) // self.devices)) * self.devices
        filled = np.concatenate([chosen, np.zeros(size - len(chosen), int)])
        scaled = np.where(np.arange(size) < len(chosen), weights[filled], 0) * (self.pieces * size / len(y))
        return x[filled], y[filled], scaled

    def on_epoch_end(self) -> None:
        self.last = (-1, ())
        self.batches.on_epoch_end()


class Evenly(keras.utils.PyDataset):
    """Batches (x, targets) that can be dealt out to so many devices: the last one is filled up with copies of a row.

    Copies weigh 0, and all others so much more that the mean loss is that of the rows given. In accuracy and F1, which
    know no weights, the copies, fewer than `devices`, do count.
    """

    def __init__(self, batches: keras.utils.PyDataset, devices: int) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches, self.devices = batches, devices

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = self.batches[index]
        given, missing = len(self.batches.y), -len(y) % self.devices
        rows = np.concatenate([np.arange(len(y)), np.zeros(missing, int)])
        weight = (given + -given % self.devices) / given
        return x[rows], y[rows], np.where(np.arange(len(rows)) < len(y), weight, 0.0)
