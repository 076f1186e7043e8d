"""How far new images lie from those that a model was trained on, and how the shares of the classes moved."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxr_ml.records import Drift, Shift

MEASURES = (
    "mean", "std", "p01", "p99", "saturation", "sharpness", "black_border", "white_border", "white_box",
    "width", "height",
)  # fmt: skip
FEWEST = 20  # images of a class on each side; a Kolmogorov-Smirnov statistic of fewer is noise
ALPHA = 0.01  # chance of any false alarm among all tests of a dataset (Bonferroni)


def compare(
    rows: pd.DataFrame, parent: pd.DataFrame, reference: pd.DataFrame, against: int | None, classes: Sequence[str]
) -> Drift:
    """Compares the images that are new since `reference` with its training images, and the class shares with `parent`.

    Measures are compared class by class, since a week with more of one class is not a week of other images. A shift
    needs both: a Kolmogorov-Smirnov statistic (the effect size, 0 alike to 1 apart) as large as the suite allows, and a
    p-value that is small for all tests together (Massey, J. Am. Stat. Assoc. 46, 1951). With thousands of images the
    second alone would call every week a drift; with a few dozen the first alone would.

    Args:
        rows: sha256, label and MEASURES of the images of the new dataset.
        parent: label of the images of the dataset before; empty where there is none.
        reference: sha256, split of the dataset that the new images are compared with.
        against: number of that dataset; None where there is none.
        classes: labels that are compared.
    """
    if against is None:
        return Drift(against=None, why="This is the first dataset, so there is nothing to compare it with.")
    trained = rows[rows["sha256"].isin(set(reference.loc[reference["split"] == "train", "sha256"]))]
    new = rows[~rows["sha256"].isin(set(reference["sha256"]))]
    pairs = [(label, new[new["label"] == label], trained[trained["label"] == label]) for label in classes]
    pairs = [(label, n, t) for label, n, t in pairs if min(len(n), len(t)) >= FEWEST]
    why = ""
    if not pairs:
        counts = ", ".join(f"{label} {int((new['label'] == label).sum())}" for label in classes)
        why = f"The measures of a class are compared from {FEWEST} new images on. Received: {counts}."
    shifts = sorted(_shifts(pairs), key=lambda s: -s.statistic)
    return Drift(
        against=against,
        images=len(new),
        class_shares=_moved(parent["label"], rows["label"], classes),
        measures=None if not pairs else shifts[0].statistic if shifts else 0.0,
        shifts=tuple(shifts),
        why=why,
    )


def _moved(before: pd.Series, after: pd.Series, classes: Sequence[str]) -> float:
    """Total variation distance of the class shares: the share of images that would have to change class, 0 to 1."""
    one, other = (s.value_counts(normalize=True).reindex(list(classes), fill_value=0.0) for s in (before, after))
    return round(float(np.abs(one.to_numpy(float) - other.to_numpy(float)).sum()) / 2, 4)


def _shifts(pairs: list[tuple[str, pd.DataFrame, pd.DataFrame]]) -> list[Shift]:
    from scipy.stats import ks_2samp

    found = []
    for label, new, trained in pairs:
        for measure in MEASURES:
            # The exact p-value of two small samples takes long and says the same.
            test = ks_2samp(new[measure].to_numpy(float), trained[measure].to_numpy(float), method="asymp")
            if test.pvalue < ALPHA / (len(pairs) * len(MEASURES)):
                found.append(
                    Shift(label=label, measure=measure, statistic=round(float(test.statistic), 4), p=float(test.pvalue))
                )
    return found
