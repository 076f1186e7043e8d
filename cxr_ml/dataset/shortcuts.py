"""How well a probe that sees no lungs tells the classes apart: a network may learn the same, and not the disease."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from cxr_ml.records import Probe
from cxr_ml.settings import Settings

FOLDS = 5
MOST = 1000  # images per class, so that a probe takes seconds whatever the size of the dataset
_ENCODING = ["width", "height", "bytes", "format", "mode", "bits"]


def probes(rows: pd.DataFrame, settings: Settings) -> tuple[Probe, ...]:
    """Two linear probes that predict the label: one sees the outer border, one how the file is encoded.

    Each is a linear discriminant analysis with shrinkage and equal priors, which is solved in closed form. Its balanced
    accuracy is that of predictions for images of groups that it was not fitted on (StratifiedGroupKFold). The same rows
    give the same figures.

    Ledoit and Wolf, Honey, I shrunk the sample covariance matrix, 2004.

    Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016; that border and file tell
    the source, and the source the class: DeGrave, Janizek and Lee, AI for radiographic COVID-19 detection selects
    shortcuts over signal, Nature Machine Intelligence 3, 2021.

    Args:
        rows: sha256, label, group, ring ("" where not measured), width, height, bytes, format, mode, bits.
        settings: classes, shortcut_limit.

    Returns:
        The probes of "border" and "encoding".
    """
    rows = rows.sort_values("sha256", ignore_index=True)
    ringed = rows[rows["ring"].fillna("").str.len() > 0]
    return (
        _probe("border", ringed, _border, settings, len(rows) - len(ringed)),
        _probe("encoding", rows, _encoding, settings, 0),
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


def _probe(
    sees: str, rows: pd.DataFrame, features: Callable[[pd.DataFrame], np.ndarray], settings: Settings, unmeasured: int
) -> Probe:
    classes = settings.classes
    chance = 1 / len(classes)
    # Rows are sorted by SHA-256, so these are a random sample, and the same one each time.
    rows = rows.groupby("label").head(MOST)
    groups = rows.groupby("label")["group"].nunique().reindex(list(classes), fill_value=0)
    if len(classes) < 2 or groups.min() < FOLDS:
        why = (
            f"The probe needs {FOLDS} groups (patients or pictures) of each class among the training and validation "
            f"images. Received: {', '.join(f'{c} {n}' for c, n in groups.items())}"
            + (f"; {unmeasured} images were measured before their border was" if unmeasured else "")
            + "."
        )
        accuracy = None
    else:
        accuracy, why = _accuracy(features(rows), rows["label"], rows["group"]), ""
    return Probe(
        sees=sees,
        balanced_accuracy=accuracy,
        chance=round(chance, 4),
        images=len(rows),
        limit=round(chance + settings.shortcut_limit * (1 - chance), 4),
        why=why,
    )


def _accuracy(x: np.ndarray, label: pd.Series, group: pd.Series) -> float:
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
