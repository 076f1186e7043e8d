"""Reads model.keras and checks that files of a model are what was recorded. Only `opened` loads Keras."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import HistoryEntry, Model
from cxr_ml.settings import Settings

# What Keras raises for a file that is damaged, of another version, or would run code.
UNOPENED = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError)


def key(model: str) -> str:
    """Key of the weights of a model."""
    return f"models/{model}/model.keras"


def read(settings: Settings, record: Model) -> bytes:
    """The bytes of model.keras, whose SHA-256 is the recorded one.

    Raises:
        Refused: the file was swept, is missing, or is not the one that model.json records.
    """
    found = store.find(settings, key(record.model))
    if found is None:
        raise _gone(settings, record.model)
    return checked(key(record.model), found[0], record.artefact_sha256)


def check(settings: Settings, record: Model) -> None:
    """Makes sure, as `read` does, that model.keras is the recorded file, without holding it in memory.

    Raises:
        Refused: as `read`.
    """
    digest = store.sha256(settings, key(record.model))
    if digest is None:
        raise _gone(settings, record.model)
    _compare(key(record.model), digest, record.artefact_sha256)


def _gone(settings: Settings, model: str) -> Refused:
    if gone := swept(settings, model):
        return Refused(
            f"{key(model)} was expected. Received: nothing, its weights were swept at {gone.at} by {gone.by} "
            f"({gone.why}). Use another model; to have this one again, train with another seed."
        )
    return Refused(f"{key(model)} was expected. Received: nothing, and nobody swept it. Use another model.")


def checked(key: str, data: bytes, recorded: str) -> bytes:
    """The bytes of a file beside model.json, if their SHA-256 is the one that it records.

    Raises:
        Refused: it is another.
    """
    _compare(key, hashlib.sha256(data).hexdigest(), recorded)
    return data


def _compare(key: str, digest: str, recorded: str) -> None:
    if digest != recorded:
        raise Refused(
            f"{key} is not the file that model.json records: expected SHA-256 {recorded}. Received: {digest}. Do not "
            "use it; promote or roll back to another model."
        )


def opened(data: bytes) -> Any:  # noqa: ANN401 - a keras.Model
    """The network in the bytes of model.keras, not compiled.

    Raises:
        UNOPENED: one of them, where Keras does not open it.
    """
    import keras  # takes seconds, and most who check files need none of it

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def swept(settings: Settings, model: str) -> HistoryEntry | None:
    """The entry of the history that gave up the weights of a model; None where they were not given up."""
    found = store.find_record(settings, f"models/{model}/swept.json", HistoryEntry)
    return found[0] if found else None
