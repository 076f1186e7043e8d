"""The test images by what they have in common: does a model that is good on the whole fail one hospital?"""

import numpy as np
import pandas as pd

from cxr_ml.evaluation import metrics
from cxr_ml.records import Slice
from cxr_ml.settings import Settings

MOST = 12  # slices of a kind; the smallest beyond are one, "others"
_SIZES = ("below 512 px", "512 to 1,023 px", "1,024 px and more")


def measure(
    described: pd.DataFrame, y: np.ndarray, said: tuple[np.ndarray, np.ndarray], settings: Settings
) -> tuple[Slice, ...]:
    """Figures of each slice; one of fewer images than `min_test_support` is counted, and not judged.

    Args:
        described: the test images: source, view, format, batch, width and height (px).
        y: their true class indices, int (n,).
        said: calibrated probabilities (n, classes), and the classes decided for (n,).
        settings: the classes, and how many images a judgement needs.
    """
    longest = described[["width", "height"]].max(axis=1)
    kinds = {by: described[by].fillna("").replace("", "unknown").astype(str) for by in ("source", "view", "format")}
    kinds["size"] = pd.Series(np.array(_SIZES)[np.digitize(longest, (512, 1024))])
    kinds["batch"] = described["batch"].astype(str)
    found = []
    for by, values in kinds.items():
        counts = values.value_counts()
        names = sorted(counts.index, key=lambda value: (-counts[value], value))
        if len(names) > MOST:
            names = names[: MOST - 1]
            values = values.where(values.isin(names), "others")
            names.append("others")
        for value in names:
            rows = np.flatnonzero(values == value)
            found.append(_one(by, value, rows, y, said, settings))
    return tuple(found)


def _one(
    by: str, value: str, rows: np.ndarray, y: np.ndarray, said: tuple[np.ndarray, np.ndarray], settings: Settings
) -> Slice:
    least = settings.min_test_support
    if len(rows) < least:
        why = f"{len(rows)} images are too few to judge by: at least {least} are needed."
        return Slice(by=by, value=value, images=len(rows), metrics=None, why=why)
    measured = metrics.measure(y[rows], said[1][rows], said[0][rows], settings.classes)
    return Slice(by=by, value=value, images=len(rows), metrics=measured)
