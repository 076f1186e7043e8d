"""Writes the history of a training as TensorBoard event files."""

import tempfile
from pathlib import Path

import pandas as pd
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import DATA_CLASS_SCALAR, SummaryMetadata

# Tag -> column of the history. The tags are those of keras.callbacks.TensorBoard, which needs the package tensorboard;
# to write event files, TensorFlow is enough.
SERIES = {
    "train": {
        "epoch_loss": "loss", "epoch_accuracy": "accuracy", "epoch_f1": "f1", "epoch_calibrated": "calibrated",
        "learning_rate": "learning_rate", "images_per_second": "images_per_second",
    },
    "validation": {
        "epoch_loss": "val_loss", "epoch_accuracy": "val_accuracy", "epoch_f1": "val_f1",
        "epoch_calibrated": "val_calibrated",
    },
}  # fmt: skip


def make_event_files(history: pd.DataFrame) -> dict[str, bytes]:
    """Returns the event files of a training: one for training and one for validation.

    Args:
        history: a row per epoch, with the column `epoch` counted through both stages from 1, and those in SERIES.

    Returns:
        Name below the folder of the model -> the bytes of the file.
    """
    scalar = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=DATA_CLASS_SCALAR
    )
    files = {}
    for run, columns in SERIES.items():
        with tempfile.TemporaryDirectory() as folder:
            writer = tf.summary.create_file_writer(folder)
            with writer.as_default():
                for row in history.to_dict("records"):
                    for tag, column in columns.items():
                        value = tf.constant(row[column], tf.float32)
                        tf.summary.write(tag, value, step=row["epoch"], metadata=scalar)
            writer.close()
            (path,) = Path(folder).iterdir()
            # TensorBoard looks for "tfevents" in the name; without time and host in it, a retry writes the same file.
            files[f"tensorboard/{run}/events.out.tfevents.{run}"] = path.read_bytes()
    return files
