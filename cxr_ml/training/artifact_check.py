"""Reads model.keras, and checks the files of a model against its record. Only `open_network` loads Keras."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import HistoryEntry, Model
from cxr_ml.store import ObjectStore

# What Keras raises for a file that is damaged, of another version, or would run code.
OPEN_ERRORS = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError)


def read(store: ObjectStore, record: Model) -> bytes:
    """Returns the bytes of model.keras, after a check of their SHA-256.

    Raises:
        Refused: the weights were deleted, the file is missing, or it is not the one that model.json records.
    """
    stored = store.get_or_none(layout.model_weights(record.model))
    if stored is None:
        raise _missing(store, record.model)
    return check_bytes(layout.model_weights(record.model), stored[0], record.artefact_sha256)


def check(store: ObjectStore, record: Model) -> None:
    """Checks that model.keras is the recorded file, as `read` does, without holding it in memory.

    Raises:
        Refused: as `read`.
    """
    digest = store.sha256(layout.model_weights(record.model))
    if digest is None:
        raise _missing(store, record.model)
    _compare(layout.model_weights(record.model), digest, record.artefact_sha256)


def _missing(store: ObjectStore, model: str) -> Refused:
    if entry := swept(store, model):
        return Refused(
            f"{layout.model_weights(model)} was expected. Received: nothing, its weights were swept at {entry.at} by "
            f"{entry.by} ({entry.why}). Use another model; to have this one again, train with another seed."
        )
    return Refused(
        f"{layout.model_weights(model)} was expected. Received: nothing, and nobody swept it. Use another model."
    )


def check_bytes(key: str, data: bytes, recorded: str) -> bytes:
    """Returns the bytes of a file beside model.json, if their SHA-256 is the recorded one.

    Raises:
        Refused: it is another one.
    """
    _compare(key, hashlib.sha256(data).hexdigest(), recorded)
    return data


def _compare(key: str, digest: str, recorded: str) -> None:
    if digest != recorded:
        raise Refused(
            f"{key} is not the file that model.json records: expected SHA-256 {recorded}. Received: {digest}. Do not "
            "use it; promote or roll back to another model."
        )


def open_network(data: bytes) -> Any:  # noqa: ANN401 - a keras.Model
    """Returns the network in the bytes of model.keras, not compiled.

    Raises:
        OPEN_ERRORS: one of them, if Keras does not open it.
    """
    import keras  # takes seconds, and checks need none of it

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def swept(store: ObjectStore, model: str) -> HistoryEntry | None:
    """Returns the history entry by which the weights of a model were deleted; None where they were not."""
    stored = store.load_or_none(layout.removed_weights(model), HistoryEntry)
    return stored[0] if stored else None
