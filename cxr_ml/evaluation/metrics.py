"""Figures of predictions, and what they would be on other patients: every figure is a function of sums over groups.

So one line of code gives the figure on the images as they are, and on any resample of their groups: what changes is
how often a group is counted.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cxr_ml.records import ClassMetrics, Metrics

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RESAMPLES = 2000
LEVEL = 0.95  # of all intervals
_BINS = 15  # of confidence, equally wide, for the calibration error: Guo et al. 2017
# Steps of the probability for the AUC of a resample. A resample of more different probabilities takes those that share
# a step for equal, which moves the AUC by less than 1e-4 (see the tests); the figure itself is exact.
_STEPS = 2048
_CHUNK = 32  # resamples at a time: 100,000 groups take 26 MB
OF_CLASS = ("recall", "precision", "specificity", "f1", "auc")
OF_ALL = ("macro_f1", "accuracy", "log_loss", "brier", "calibration_error")
_SHOWN = {
    "f1": "F1", "auc": "AUC", "macro_f1": "macro F1", "log_loss": "log loss", "brier": "Brier score",
    "calibration_error": "calibration error",
}  # fmt: skip


def name(figure: str, label: str = "") -> str:
    """How a figure is called wherever people read it: `recall COVID19`, `macro F1`."""
    return f"{_SHOWN.get(figure, figure)} {label}".strip()


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure, by the name that people read, is better."""
    return figure in {name(f) for f in ("log_loss", "brier", "calibration_error")}


def flat(metrics: Metrics) -> dict[str, float]:
    """All figures by the name that people read."""
    found = {name(f, label): getattr(m, f) for label, m in metrics.classes.items() for f in OF_CLASS}
    return found | {name(f): getattr(metrics, f) for f in OF_ALL}


def names(classes: Sequence[str]) -> set[str]:
    """The names of all figures of a model that knows these classes."""
    return {name(f, label) for label in classes for f in OF_CLASS} | {name(f) for f in OF_ALL}


def measure(
    y: np.ndarray,
    predicted: np.ndarray,
    p: np.ndarray,
    classes: Sequence[str],
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Metrics:
    """Figures of predictions. What a class without images would need them for is NaN, never 0 or 1.

    The calibration error is the expected one of Guo et al. 2017, "On calibration of modern neural networks"; the Brier
    score that of Brier 1950, the sum over all classes, 0 to 2.

    Args:
        y: true class indices, int (n,), at least one.
        predicted: the classes decided for, int (n,).
        p: probabilities, float (n, classes).
        classes: labels in the order of the indices.
        groups: of each image, any (n,); images of a group are one patient's. None: no intervals but those of the
            recalls, which are Wilson's, as they are with groups.
        seed: of the resamples.
    """
    kinds = len(classes)
    rows, widths = _sums(y, predicted, p, kinds)
    exact = _figures(np.asarray(rows.sum(axis=0)).reshape(-1, 1), kinds, widths)
    value = {figure: np.squeeze(found, -1) for figure, found in exact.items()}
    support = np.bincount(y, minlength=kinds)
    intervals = {}
    if groups is not None:
        intervals = {n: interval(found) for n, found in resample(y, predicted, p, classes, groups, seed).items()}
    for i, label in enumerate(classes):
        if span := wilson(float(value["recall"][i]), int(support[i])):
            intervals[name("recall", label)] = span
    return Metrics(
        classes={
            label: ClassMetrics(support=int(support[i]), **{f: float(value[f][i]) for f in OF_CLASS})
            for i, label in enumerate(classes)
        },
        **{f: float(value[f]) for f in OF_ALL},
        confusion=tuple(tuple(int(n) for n in row) for row in value["confusion"]),
        intervals={n: span for n, span in intervals.items() if span},
    )


def resample(
    y: np.ndarray, predicted: np.ndarray, p: np.ndarray, classes: Sequence[str], groups: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Each figure on RESAMPLES draws of whole groups, with replacement: float (RESAMPLES,) by its name.

    The same groups and seed give the same draws, so that figures of two models on the same images are paired.
    Efron and Tibshirani 1993, "An introduction to the bootstrap"; of groups, since images of one patient are alike.
    """
    from scipy.sparse import csr_matrix  # takes a second to import, which who only reads figures need not wait

    kinds = len(classes)
    names, group = np.unique(groups, return_inverse=True)
    rows, widths = _sums(y, predicted, p, kinds, _STEPS)
    together = csr_matrix((np.ones(len(y)), (group, np.arange(len(y)))), (len(names), len(y)))
    sums = (together @ rows).T  # left in columns: three times as fast here as in rows
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, RESAMPLES, _CHUNK):
        # How often each group is drawn. In few bytes while it is turned round, for the processor's cache.
        times = np.empty((min(_CHUNK, RESAMPLES - start), len(names)), np.uint16)
        for draw in times:
            draw[:] = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        parts.append(_figures(sums @ np.ascontiguousarray(times.T).astype(np.float64), kinds, widths))
    whole = {f: np.concatenate([part[f] for part in parts], axis=-1) for f in (*OF_CLASS, *OF_ALL)}
    found = {name(f, label): whole[f][i] for i, label in enumerate(classes) for f in OF_CLASS}
    return found | {name(f): whole[f] for f in OF_ALL}


def wilson(share: float, n: int) -> tuple[float, float] | None:
    """95 % Wilson score interval of a share of `n` images; None where it was not evaluated.

    Wilson, E. B. (1927), Probable inference, the law of succession, and statistical inference, JASA 22, 209–212:
    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), with z the 97.5 % point of the normal distribution.
    """
    if n <= 0 or not math.isfinite(share):
        return None
    z2 = 1.959963984540054**2
    middle = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))
    # By rounding, an end at 0 or 1 would come to lie on the wrong side of the share.
    low, high = min(share, (middle - half) / (1 + z2 / n)), max(share, (middle + half) / (1 + z2 / n))
    return max(0.0, low), min(1.0, high)


def interval(drawn: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of what was drawn; None where a figure was no number in more than one draw of a hundred."""
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.99 * len(drawn):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _sums(
    y: np.ndarray, predicted: np.ndarray, p: np.ndarray, kinds: int, steps: int | None = None
) -> "tuple[csr_matrix, list[int]]":
    """What the figures are made from, one row per image; the sums over any images give theirs.

    Columns: true class × predicted class; the log loss; the Brier score; confidence less hit, in _BINS; and for the AUC
    of each class, steps of its probability × (without the class, with it). Returned with the widths of these parts.
    """
    from scipy.sparse import csr_matrix
    from scipy.stats import rankdata

    n, rows = len(y), np.arange(len(y))
    p = p.astype(np.float64)
    confidence, top = p.max(axis=1), p.argmax(axis=1)
    own = np.clip(p[rows, y], np.finfo(np.float64).eps, 1)
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    one, none = np.ones(n), np.zeros(n, int)
    parts = [
        (y * kinds + predicted, one, kinds * kinds),
        (none, -np.log(own), 1),
        (none, ((p - np.eye(kinds)[y]) ** 2).sum(axis=1), 1),
        (bins, confidence - (top == y), _BINS),
    ]
    for kind in range(kinds):
        step = rankdata(p[:, kind], "dense") - 1
        if steps and step.max() >= steps:
            step = np.floor((rankdata(p[:, kind]) - 0.5) * steps / n).astype(int)
        parts.append((2 * step + (y == kind), one, 2 * int(step.max() + 1)))
    widths = [width for _, _, width in parts]
    starts = np.cumsum([0, *widths])
    columns = np.stack([column + start for (column, _, _), start in zip(parts, starts, strict=False)], axis=1)
    values = np.stack([value for _, value, _ in parts], axis=1)
    every = np.arange(0, values.size + 1, len(parts))
    return csr_matrix((values.ravel(), columns.ravel(), every), (n, starts[-1])), widths


def _figures(sums: np.ndarray, kinds: int, widths: list[int]) -> dict[str, np.ndarray]:
    """Figures of sums (columns of `_sums`, resamples): of each class (kinds, resamples), of all (resamples,)."""
    cells, log_loss, brier, bins, *steps = np.split(sums, np.cumsum(widths)[:-1])
    confusion = cells.reshape(kinds, kinds, -1)
    n = cells.sum(axis=0)
    hits = np.stack([confusion[k, k] for k in range(kinds)])
    true, called = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(true > 0, 2 * hits / (true + called), np.nan)
        return {
            "confusion": confusion,
            "recall": hits / true,
            "precision": hits / called,
            "specificity": (n - true - called + hits) / (n - true),
            "f1": f1,
            "auc": np.stack([_area(*part.reshape(-1, 2, part.shape[1]).transpose(1, 0, 2)) for part in steps]),
            "macro_f1": f1.mean(axis=0),
            "accuracy": hits.sum(axis=0) / n,
            "log_loss": log_loss[0] / n,
            "brier": brier[0] / n,
            "calibration_error": np.abs(bins).sum(axis=0) / n,
        }


def _area(without: np.ndarray, with_it: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from images per step of probability (steps, resamples): Mann-Whitney's, ties half."""
    below = np.cumsum(without, axis=0) - without / 2
    return (with_it * below).sum(axis=0) / (with_it.sum(axis=0) * without.sum(axis=0))
