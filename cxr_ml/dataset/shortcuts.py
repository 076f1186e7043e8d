"""Shortcut risk: how well a probe that sees no lungs tells the classes apart. A network may learn the same shortcut."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from cxr_ml.records import Probe
from cxr_ml.settings import DatasetSettings

FOLDS = 5  # of the cross-validation
MAX_PER_CLASS = 1000  # images, so that a probe takes seconds whatever the size of the dataset
_ENCODING = ["width", "height", "bytes", "format", "mode", "bits"]


def fit_probes(rows: pd.DataFrame, settings: DatasetSettings, classes: tuple[str, ...]) -> tuple[Probe, ...]:
    """Fits two linear probes that predict the label: one sees the outer border, one how the file is encoded.

    Each is a linear discriminant analysis with shrinkage and equal priors, which has a closed form (Ledoit and Wolf,
    Honey, I shrunk the sample covariance matrix, 2004). Its balanced accuracy is cross-validated over groups
    (StratifiedGroupKFold). The same rows give the same figures.

    Linear probes: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016. That border
    and file give away the source of an image, and the source its class: DeGrave, Janizek and Lee, AI for radiographic
    COVID-19 detection selects shortcuts over signal, Nature Machine Intelligence 3, 2021.

    Args:
        rows: sha256, label, group, ring, width, height, bytes, format, mode, bits.
        settings: classes, shortcut_limit.
        classes: the model's classes, in the order of its outputs.

    Returns:
        The probes of "border" and "encoding".
    """
    rows = rows.sort_values("sha256", ignore_index=True)
    return _fit_probe("border", rows, _border, settings, classes), _fit_probe(
        "encoding", rows, _encoding, settings, classes
    )


def _border(rows: pd.DataFrame) -> np.ndarray:
    """The border ring, float64 (rows, grey levels), 0 to 1."""
    levels = np.frombuffer(bytes.fromhex("".join(rows["ring"])), np.uint8)
    return levels.reshape(len(rows), -1) / 255.0


def _encoding(rows: pd.DataFrame) -> np.ndarray:
    """Logarithms of width, height and bytes, and which of each format, mode and bit depth: float64 (rows, facts)."""
    sizes = np.log(rows[_ENCODING[:3]].to_numpy(np.float64))
    kinds = pd.get_dummies(rows[_ENCODING[3:]].astype(str)).to_numpy(np.float64)
    return np.hstack([sizes, kinds])


def _fit_probe(
    sees: str,
    rows: pd.DataFrame,
    features: Callable[[pd.DataFrame], np.ndarray],
    settings: DatasetSettings,
    classes: tuple[str, ...],
) -> Probe:
    classes = classes
    chance = 1 / len(classes)
    # Rows are sorted by SHA-256, so these are a random sample, and the same one each time.
    rows = rows.groupby("label").head(MAX_PER_CLASS)
    groups = rows.groupby("label")["group"].nunique().reindex(list(classes), fill_value=0)
    if len(classes) < 2 or groups.min() < FOLDS:
        counts = ", ".join(f"{label} {n}" for label, n in groups.items())
        accuracy = None
        why = (
            f"The probe needs {FOLDS} groups (patients or pictures) of each class among the training and validation "
            f"images. Received: {counts}."
        )
    else:
        accuracy, why = _cross_validate(features(rows), rows["label"], rows["group"]), ""
    return Probe(
        sees=sees,
        balanced_accuracy=accuracy,
        chance=round(chance, 4),
        images=len(rows),
        limit=round(chance + settings.shortcut_limit * (1 - chance), 4),
        why=why,
    )


def _cross_validate(x: np.ndarray, label: pd.Series, group: pd.Series) -> float:
    """Balanced accuracy of predictions for images of groups that the probe was not fitted on."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = label.astype(str).to_numpy()
    classes = len(np.unique(y))
    linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    model = make_pipeline(StandardScaler(), linear)
    predicted = cross_val_predict(model, x, y, groups=group.to_numpy(), cv=StratifiedGroupKFold(FOLDS))
    return round(float(balanced_accuracy_score(y, predicted)), 4)
