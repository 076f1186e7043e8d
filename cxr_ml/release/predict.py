"""Probabilities of X-ray files by the champion or another stored model. Not a diagnosis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_ml.data import images
from cxr_ml.errors import Refused
from cxr_ml.model import evaluate, inputs
from cxr_ml.release import registry
from cxr_ml.settings import Settings


def predict(settings: Settings, files: Sequence[Path], model: str | None = None) -> list[dict[str, Any]]:
    """Predicts each file.

    Args:
        settings: the store, and the limits on files.
        files: PNG or JPEG files.
        model: name of a stored model; None: the champion.

    Returns:
        Per file: file, predicted (label or None), probabilities (label -> 0..1, or None), refused (code or None).

    Raises:
        Refused: there is no champion, or the stored model cannot be trusted.
    """
    if model is None:
        champion = registry.champion(settings)
        if champion is None:
            raise Refused("There is no champion yet. Run a retraining, or name a model.")
        model = champion.model
    record, network = evaluate.load_model(settings, model)
    rows: list[dict[str, Any]] = []
    arrays = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "predicted": None, "probabilities": None, "refused": None}
        rows.append(row)
        try:
            _, clean = images.measure(file.read_bytes(), settings)
        except OSError as error:
            row["refused"] = f"unreadable: {error.strerror}"
            continue
        except images.BadImage as error:
            row["refused"] = error.code
            continue
        arrays.append((row, inputs.resize(images.decode_grey(clean), record.image_size)))
    if arrays:
        output = evaluate.probabilities(network, np.stack([a for _, a in arrays]))
        for (row, _), p in zip(arrays, output, strict=True):
            row["predicted"] = record.classes[int(p.argmax())]
            row["probabilities"] = {c: round(float(x), 6) for c, x in zip(record.classes, p, strict=True)}
    return rows
