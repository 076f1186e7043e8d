"""Drift: how far new images differ from the images a model was trained on, and how the class shares changed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_ml.records import Drift, Shift

MEASURES = (
    *("mean", "std", "p01", "p99", "saturation", "sharpness"),
    *("black_border", "white_border", "white_box", "width", "height"),
)
MIN_PER_CLASS = 20  # new images and training images of a class; with fewer, a Kolmogorov-Smirnov statistic is noise
MAX_FALSE_ALARM = 0.01  # probability of any false alarm among all tests of a dataset (Bonferroni)


class _Samples(NamedTuple):
    label: str
    new: pd.DataFrame
    trained: pd.DataFrame


def measure_drift(
    rows: pd.DataFrame, parent: pd.DataFrame, reference: pd.DataFrame, against: int | None, classes: Sequence[str]
) -> Drift:
    """Compares the images that are new since `reference` with its training images, and the class shares with `parent`.

    Measures are compared class by class: a week with more images of one class is not a week of different images. A
    shift is recorded where the p-value is small for all tests together; how large its Kolmogorov-Smirnov statistic
    (the effect size, 0 alike to 1 apart) may be is a limit of the suite (Massey, J. Am. Stat. Assoc. 46, 1951). With
    thousands of images the p-value alone would call every week a drift; with a few dozen the statistic alone would.

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
    samples = [_Samples(label, new[new["label"] == label], trained[trained["label"] == label]) for label in classes]
    samples = [s for s in samples if min(len(s.new), len(s.trained)) >= MIN_PER_CLASS]
    why = ""
    if not samples:
        counts = ", ".join(f"{label} {int((new['label'] == label).sum())}" for label in classes)
        why = f"The measures of a class are compared from {MIN_PER_CLASS} new images on. Received: {counts}."
    shifts = sorted(_find_shifts(samples), key=lambda s: -s.statistic)
    return Drift(
        against=against,
        images=len(new),
        class_shares=_share_distance(parent["label"], rows["label"], classes),
        measures=None if not samples else shifts[0].statistic if shifts else 0.0,
        shifts=tuple(shifts),
        why=why,
    )


def _share_distance(before: pd.Series, after: pd.Series, classes: Sequence[str]) -> float:
    """Total variation distance of the class shares: the share of images that would have to change class, 0 to 1."""
    shares = [s.value_counts(normalize=True).reindex(list(classes), fill_value=0.0) for s in (before, after)]
    return round(float(np.abs(np.subtract(*(s.to_numpy(float) for s in shares))).sum()) / 2, 4)


def _find_shifts(samples: list[_Samples]) -> list[Shift]:
    from scipy.stats import ks_2samp

    shifts = []
    for label, new, trained in samples:
        for measure in MEASURES:
            # The exact p-value of two small samples takes long and agrees.
            test = ks_2samp(new[measure].to_numpy(float), trained[measure].to_numpy(float), method="asymp")
            if test.pvalue < MAX_FALSE_ALARM / (len(samples) * len(MEASURES)):
                statistic = round(float(test.statistic), 4)
                shifts.append(Shift(label=label, measure=measure, statistic=statistic, p=float(test.pvalue)))
    return shifts
