"""Figures of the test images slice by slice: whether a model that is good on the whole fails one hospital."""

import numpy as np
import pandas as pd

from cxr_ml.evaluation import metrics
from cxr_ml.records import Slice
from cxr_ml.settings import GateSettings
from cxr_ml.training.calibration import Predictions

MAX_PER_KIND = 12  # slices; the smallest beyond are one, "others"
_SIZES = ("below 512 px", "512 to 1,023 px", "1,024 px and more")


def measure(
    described: pd.DataFrame, y: np.ndarray, predicted: Predictions, settings: GateSettings, classes: tuple[str, ...]
) -> tuple[Slice, ...]:
    """Returns the figures of each slice; one of fewer images than `min_test_support` is counted and not judged.

    Args:
        described: the test images: source, view, format, batch, width and height (px).
        y: their true class indices, int (n,).
        predicted: for these images.
        settings: the classes, and how many images a judgement needs.
        classes: the model's classes, in the order of its outputs.
    """
    longest = described[["width", "height"]].max(axis=1)
    kinds = {by: described[by].fillna("").replace("", "unknown").astype(str) for by in ("source", "view", "format")}
    kinds["size"] = pd.Series(np.array(_SIZES)[np.digitize(longest, (512, 1024))])
    kinds["batch"] = described["batch"].astype(str)
    slices = []
    for by, values in kinds.items():
        counts = values.value_counts()
        names = sorted(counts.index, key=lambda value: (-counts[value], value))
        if len(names) > MAX_PER_KIND:
            names = names[: MAX_PER_KIND - 1]
            values = values.where(values.isin(names), "others")
            names.append("others")
        for name in names:
            rows = np.flatnonzero(values == name)
            slices.append(_measure_slice(by, name, rows, y, predicted, settings, classes))
    return tuple(slices)


def _measure_slice(
    by: str,
    value: str,
    rows: np.ndarray,
    y: np.ndarray,
    predicted: Predictions,
    settings: GateSettings,
    classes: tuple[str, ...],
) -> Slice:
    minimum = settings.min_test_support
    if len(rows) < minimum:
        why = f"{len(rows)} images are too few to judge by: at least {minimum} are needed."
        return Slice(by=by, value=value, images=len(rows), metrics=None, why=why)
    figures = metrics.measure(y[rows], predicted.labels[rows], predicted.probabilities[rows], classes)
    return Slice(by=by, value=value, images=len(rows), metrics=figures)
