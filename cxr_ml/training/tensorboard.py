"""A training's history as TensorBoard event files."""

import tempfile
from pathlib import Path

import pandas as pd
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import DATA_CLASS_SCALAR, SummaryMetadata

# As keras.callbacks.TensorBoard names them, which needs the package tensorboard; reading them does, writing does not.
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


def events(history: pd.DataFrame) -> dict[str, bytes]:
    """Name below the folder of the model -> an event file, one for training and one for validation.

    Args:
        history: a row per epoch, with the column `epoch` counted through both stages from 1, and those in SERIES.
    """
    scalar = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=DATA_CLASS_SCALAR
    )
    found = {}
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
            # TensorBoard looks for "tfevents" in the name; with the usual time and host in it, a retry would add files.
            found[f"tensorboard/{run}/events.out.tfevents.{run}"] = path.read_bytes()
    return found
