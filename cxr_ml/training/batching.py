"""Batches that are shuffled, divided to fit into memory, or filled up to be shared by several devices."""

import threading

import keras
import numpy as np

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, targets, weights


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

    def select_rows(self, index: int) -> np.ndarray:
        """Returns the rows of a batch, int (batch,)."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def __getitem__(self, index: int) -> Batch:
        rows = self.select_rows(index)
        return self.x[rows], self.y[rows], self.weights[rows]

    def on_epoch_end(self) -> None:
        """Shuffles for the next epoch; Keras calls it between two epochs."""
        self.epoch += 1
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.y))


class MicroBatches(keras.utils.PyDataset):
    """Batches divided into equally many micro-batches, for an optimizer that accumulates their gradients.

    Keras averages the mean losses of the micro-batches, and of the devices that share one. The weights are scaled so
    that this is the mean over the whole batch, whatever its size. A micro-batch that does not divide evenly among the
    devices is filled up with copies of weight 0: they count in the training metrics, but nothing is learned from them.
    """

    def __init__(self, batches: keras.utils.PyDataset, micro_batches: int, devices: int = 1) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches, self.micro_batches, self.devices = batches, micro_batches, devices
        self.lock, self.last_index = threading.Lock(), -1

    def __len__(self) -> int:
        return len(self.batches) * self.micro_batches

    def __getitem__(self, index: int) -> Batch:
        batch_index, part = divmod(index, self.micro_batches)
        with self.lock:  # two workers that ask for parts of one batch must not make it twice
            if self.last_index != batch_index:
                self.last_index, self.last_batch = batch_index, self.batches[batch_index]
            x, y, weights = self.last_batch
        rows = np.array_split(np.arange(len(y)), self.micro_batches)[part]
        size = max(1, -(-len(rows) // self.devices)) * self.devices
        filled = np.concatenate([rows, np.zeros(size - len(rows), int)])
        scaled = np.where(np.arange(size) < len(rows), weights[filled], 0) * (self.micro_batches * size / len(y))
        return x[filled], y[filled], scaled

    def on_epoch_end(self) -> None:
        """Forgets the last batch, which belongs to the epoch that ends."""
        self.last_index = -1
        self.batches.on_epoch_end()


class PaddedBatches(keras.utils.PyDataset):
    """Batches (x, targets) of a size that divides among the devices: the last one is filled up with copies of a row.

    Copies weigh 0, and the other rows so much more that the mean loss is that of the original rows. Accuracy and F1
    have no weights, so the copies, fewer than there are devices, count in them.
    """

    def __init__(self, batches: keras.utils.PyDataset, devices: int) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self.batches, self.devices = batches, devices

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.batches[index]
        total, missing = len(self.batches.y), -len(y) % self.devices
        rows = np.concatenate([np.arange(len(y)), np.zeros(missing, int)])
        weight = (total + -total % self.devices) / total
        return x[rows], y[rows], np.where(np.arange(len(rows)) < len(y), weight, 0.0)
