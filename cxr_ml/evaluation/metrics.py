"""Figures of predictions, and their intervals over resamples of patients.

Every figure is a function of sums over images: of the cells of the confusion matrix, of log losses, and so on. A
resample counts the images of some patients several times and those of others not at all, so its figures are the same
functions of weighted sums. The sums of a group of images are made once; a resample is then one product of matrices.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cxr_ml.records import ClassMetrics, Metrics
from cxr_ml.validation.proportions import wilson_interval

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RESAMPLES = 2000
LEVEL = 0.95  # of all intervals
_BINS = 15  # of confidence, equally wide, for the calibration error: Guo et al. 2017
# Different probabilities that the AUC of a resample tells apart. Where there are more, neighbours count as equal, which
# moves the AUC by less than 1e-4 (see the tests) and keeps 100,000 images fast; the figure itself is exact.
_MAX_AUC_STEPS = 2048
_CHUNK = 32  # resamples at a time: 100,000 groups take 26 MB
# Fields of ClassMetrics and of Metrics. `name` says how people read them.
OF_CLASS = ("recall", "precision", "specificity", "f1", "auc")
OF_ALL = ("macro_f1", "accuracy", "log_loss", "brier", "calibration_error")
_LOWER_IS_BETTER = ("log_loss", "brier", "calibration_error")
_NAMES = {
    "f1": "F1",
    "auc": "AUC",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


class _Sums(NamedTuple):
    """Numbers whose sums over images give the figures."""

    rows: "csr_matrix"  # (images, columns)
    widths: list[int]  # columns of each part, in the order in which `_figures` takes them apart


def name(figure: str, label: str = "") -> str:
    """Returns how a figure is called wherever people read it.

    Example:
        >>> name("recall", "COVID19"), name("macro_f1")
        ('recall COVID19', 'macro F1')
    """
    return f"{_NAMES.get(figure, figure)} {label}".strip()


def names(classes: Sequence[str]) -> set[str]:
    """Returns the names of all figures of a model that knows these classes."""
    return {name(f, label) for label in classes for f in OF_CLASS} | {name(f) for f in OF_ALL}


def lower_is_better(figure: str) -> bool:
    """Returns whether less of a figure, by its name, is better."""
    return figure in {name(f) for f in _LOWER_IS_BETTER}


def flat(metrics: Metrics) -> dict[str, float]:
    """Returns all figures by their names."""
    of_classes = {name(f, label): getattr(m, f) for label, m in metrics.classes.items() for f in OF_CLASS}
    return of_classes | {name(f): getattr(metrics, f) for f in OF_ALL}


def measure(
    y: np.ndarray,
    predicted: np.ndarray,
    p: np.ndarray,
    classes: Sequence[str],
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Metrics:
    """Returns the figures of predictions. A figure for which a class has no images is NaN, never 0 or 1.

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

    Example:
        >>> y, p = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
        >>> figures = measure(y, p.argmax(axis=1), p, ("NORMAL", "COVID19"))
        >>> figures.classes["NORMAL"].recall, figures.confusion
        (0.5, ((1, 1), (0, 1)))
    """
    sums = _sums(y, predicted, p, len(classes))
    # One "resample" in which every image counts once.
    exact = _figures(np.asarray(sums.rows.sum(axis=0)).reshape(-1, 1), len(classes), sums.widths)
    value = {figure: np.squeeze(values, -1) for figure, values in exact.items()}
    support = np.bincount(y, minlength=len(classes))
    intervals = {}
    if groups is not None:
        draws = resample(y, predicted, p, classes, groups, seed)
        intervals = {figure: interval(values) for figure, values in draws.items()}
    for i, label in enumerate(classes):
        intervals[name("recall", label)] = wilson(float(value["recall"][i]), int(support[i]))
    return Metrics(
        classes={
            label: ClassMetrics(support=int(support[i]), **{f: float(value[f][i]) for f in OF_CLASS})
            for i, label in enumerate(classes)
        },
        **{f: float(value[f]) for f in OF_ALL},
        confusion=tuple(tuple(int(n) for n in row) for row in value["confusion"]),
        intervals={figure: ends for figure, ends in intervals.items() if ends},
    )


def resample(
    y: np.ndarray, predicted: np.ndarray, p: np.ndarray, classes: Sequence[str], groups: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns each figure on RESAMPLES draws of whole groups, with replacement: float (RESAMPLES,) by its name.

    The same groups and seed give the same draws, so that figures of two models on the same images are paired. Groups
    are drawn, and not images, since images of one patient are alike: Efron and Tibshirani 1993, "An introduction to
    the bootstrap".

    Args:
        y: true class indices, int (n,).
        predicted: the classes decided for, int (n,).
        p: probabilities, float (n, classes).
        classes: labels in the order of the indices.
        groups: of each image, any (n,).
        seed: of the draws.
    """
    from scipy.sparse import csr_matrix  # takes a second to import, which a reader of figures need not wait

    group_names, group = np.unique(groups, return_inverse=True)
    count = len(group_names)
    sums = _sums(y, predicted, p, len(classes), _MAX_AUC_STEPS)
    membership = csr_matrix((np.ones(len(y)), (group, np.arange(len(y)))), (count, len(y)))
    by_group = (membership @ sums.rows).T  # (columns, groups); left in columns, three times as fast here as in rows
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, RESAMPLES, _CHUNK):
        # How often resample r draws group g. In few bytes until it is transposed, for the processor's cache.
        times = np.empty((min(_CHUNK, RESAMPLES - start), count), np.uint16)
        for draw in times:
            draw[:] = np.bincount(rng.integers(count, size=count), minlength=count)
        weights = np.ascontiguousarray(times.T).astype(np.float64)
        parts.append(_figures(by_group @ weights, len(classes), sums.widths))
    values = {f: np.concatenate([part[f] for part in parts], axis=-1) for f in (*OF_CLASS, *OF_ALL)}
    of_classes = {name(f, label): values[f][i] for i, label in enumerate(classes) for f in OF_CLASS}
    return of_classes | {name(f): values[f] for f in OF_ALL}


def wilson(share: float, n: int) -> tuple[float, float] | None:
    """Returns the 95 % Wilson score interval of a share of `n` images; None where the share was not evaluated.

    Example:
        >>> low, high = wilson(0.9, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    if n <= 0 or not math.isfinite(share):
        return None
    low, high = wilson_interval(share, n)
    return low, high


def interval(draws: np.ndarray) -> tuple[float, float] | None:
    """Returns the middle 95 % of draws; None where a figure was not a number in more than one draw of a hundred."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < 0.99 * len(draws):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _sums(y: np.ndarray, predicted: np.ndarray, p: np.ndarray, classes: int, max_steps: int | None = None) -> _Sums:
    """The numbers of each image. It has one number in each part, and zeros in all other columns of the part.

    Parts: a one in the cell (true class, predicted class); the log loss; the Brier score; confidence less hit, in the
    bin of its confidence; for the AUC of each class a one in the cell (step of its probability, of the class or not).
    """
    from scipy.sparse import csr_matrix
    from scipy.stats import rankdata

    n, rows = len(y), np.arange(len(y))
    p = p.astype(np.float64)
    confidence, likeliest = p.max(axis=1), p.argmax(axis=1)
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    log_loss = -np.log(np.clip(p[rows, y], np.finfo(np.float64).eps, 1))
    brier = ((p - np.eye(classes)[y]) ** 2).sum(axis=1)
    ones, first = np.ones(n), np.zeros(n, int)
    # (column within the part, value, width of the part)
    parts = [
        (y * classes + predicted, ones, classes * classes),
        (first, log_loss, 1),
        (first, brier, 1),
        (bins, confidence - (likeliest == y), _BINS),
    ]
    for index in range(classes):
        step = rankdata(p[:, index], "dense") - 1
        if max_steps and step.max() >= max_steps:
            step = np.floor((rankdata(p[:, index]) - 0.5) * max_steps / n).astype(int)
        parts.append((2 * step + (y == index), ones, 2 * int(step.max() + 1)))
    widths = [width for _, _, width in parts]
    starts = np.cumsum([0, *widths])
    columns = np.stack([column + start for (column, _, _), start in zip(parts, starts, strict=False)], axis=1)
    values = np.stack([value for _, value, _ in parts], axis=1)
    row_ends = np.arange(0, values.size + 1, len(parts))
    return _Sums(csr_matrix((values.ravel(), columns.ravel(), row_ends), (n, starts[-1])), widths)


def _figures(sums: np.ndarray, classes: int, widths: list[int]) -> dict[str, np.ndarray]:
    """Figures of sums (columns of `_sums`, resamples): of each class (classes, resamples), of all (resamples,)."""
    cells, log_loss, brier, bins, *auc_cells = np.split(sums, np.cumsum(widths)[:-1])
    confusion = cells.reshape(classes, classes, -1)
    n = cells.sum(axis=0)
    hits = np.stack([confusion[i, i] for i in range(classes)])
    true, called = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(true > 0, 2 * hits / (true + called), np.nan)
        return {
            "confusion": confusion,
            "recall": hits / true,
            "precision": hits / called,
            "specificity": (n - true - called + hits) / (n - true),
            "f1": f1,
            "auc": np.stack([_auc(cells.reshape(-1, 2, cells.shape[1])) for cells in auc_cells]),
            "macro_f1": f1.mean(axis=0),
            "accuracy": hits.sum(axis=0) / n,
            "log_loss": log_loss[0] / n,
            "brier": brier[0] / n,
            "calibration_error": np.abs(bins).sum(axis=0) / n,
        }


def _auc(counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, by Mann and Whitney's statistic: U / (positives · negatives).

    U counts the pairs of a positive and a negative image in which the positive one has the higher probability; a pair
    of equal ones counts half.

    Args:
        counts: images at each step of probability, lowest first, without the class and with it: (steps, 2, resamples).
    """
    negatives, positives = counts[:, 0], counts[:, 1]
    negatives_below = np.cumsum(negatives, axis=0) - negatives / 2
    return (positives * negatives_below).sum(axis=0) / (positives.sum(axis=0) * negatives.sum(axis=0))
