"""Temperature scaling and per-class thresholds: the operating point of a model.

Both are fitted on the validation images once, when a model is trained, and are part of it from then on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from cxr_ml.errors import Refused
from cxr_ml.records import OperatingPoint

TEMPERATURES = (0.05, 20.0)  # searched between; beyond, probabilities are all alike or all 0 and 1
MAX_OFFSET = 6.0  # nats: a factor of 400 between the odds of two classes
OFFSET_STEPS = np.arange(-MAX_OFFSET, MAX_OFFSET + 0.025, 0.05)  # nats
MIN_PROBABILITY = 1e-12  # 0 has no logarithm


class Predictions(NamedTuple):
    """Predictions for n images, at the operating point of a model."""

    probabilities: np.ndarray  # calibrated, float64 (n, classes)
    labels: np.ndarray  # class indices, int (n,); not always those of the largest probability


class _Cost(NamedTuple):
    """What the offsets are chosen by: the lowest recall shortfall, among these the lowest of the next, and so on."""

    recall_shortfall: float  # sum over the classes of what their recall lacks to its floor
    false_positive_rate: float  # mean over the classes
    size: float  # sum of the offsets, nats


def fit(y: np.ndarray, p: np.ndarray, classes: Sequence[str], floors: Mapping[str, float]) -> OperatingPoint:
    """Returns the temperature, and the offsets that meet the recall floors at the lowest cost in specificity.

    The temperature divides the logits and minimises the log loss: Guo et al. (2017), On calibration of modern neural
    networks. An offset is added to the log probability of a class before the largest is chosen, which is a threshold
    of that class. Where the floors are met without offsets, all are 0. Otherwise one or two at a time are moved in
    steps of 0.05 nats until nothing improves: first the sum of what recalls lack, then the mean specificity. Among
    offsets whose mean specificity is within one standard error of the best, the smallest are chosen, so that one or
    two images among a hundred do not move a threshold by a nat (the one standard error rule: Breiman et al. 1984,
    Classification and Regression Trees, section 3.4.3).

    Args:
        y: true class indices of the validation images, int (n,), at least one.
        p: probabilities by the network, float (n, classes).
        classes: labels in the order of the indices.
        floors: label -> lowest recall wanted, 0 to 1; ignored for labels without validation images.

    Raises:
        Refused: no images, or probabilities that are not finite.

    Example:
        A network that is too sure of two mistakes; the second is a missed pneumonia:

        >>> y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> p = np.array([[0.99, 0.01]] * 3 + [[0.05, 0.95]] + [[0.01, 0.99]] * 3 + [[0.8, 0.2]])
        >>> point = fit(y, p, ("NORMAL", "PNEUMONIA"), {"PNEUMONIA": 1.0})
        >>> point.temperature > 1, point.offsets["PNEUMONIA"] > 0
        (True, True)
        >>> apply(p, point, ("NORMAL", "PNEUMONIA")).labels
        array([0, 0, 0, 1, 1, 1, 1, 1])
    """
    if not len(y) or not np.isfinite(p).all():
        raise Refused(f"An operating point is fitted on finite probabilities of images. Received: {len(y)} images.")
    logs = np.log(np.clip(p.astype(np.float64), MIN_PROBABILITY, 1))
    temperature = _fit_temperature(y, logs)
    wanted = {i: floors[c] for i, c in enumerate(classes) if c in floors and (y == i).any()}
    offsets = _fit_offsets(y, np.log(_softmax(logs / temperature).clip(MIN_PROBABILITY)), wanted)
    return OperatingPoint(
        temperature=round(temperature, 6),
        offsets={c: round(float(o), 6) for c, o in zip(classes, offsets, strict=True)},
        floors={c: floors[c] for c in classes if c in floors},
        images=len(y),
    )


def apply(p: np.ndarray, point: OperatingPoint | None, classes: Sequence[str]) -> Predictions:
    """Returns predictions at an operating point.

    Args:
        p: probabilities by the network, float (n, classes).
        point: of the model; None: the probabilities as they are, and the most likely class.
        classes: labels in the order of the columns.
    """
    p = p.astype(np.float64)
    if point is None:
        return Predictions(p, p.argmax(axis=1))
    logs = np.log(np.clip(p, MIN_PROBABILITY, 1)) / point.temperature
    shifted = logs - _row_max(logs) + [point.offsets[c] for c in classes]
    return Predictions(_softmax(logs), shifted.argmax(axis=1))


def _row_max(logs: np.ndarray) -> np.ndarray:
    return logs.max(axis=1, keepdims=True)


def _softmax(logs: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logs - _row_max(logs))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _fit_temperature(y: np.ndarray, logs: np.ndarray) -> float:
    def log_loss(log_temperature: float) -> float:
        p = _softmax(logs / np.exp(log_temperature))
        return float(-np.log(np.clip(p[np.arange(len(y)), y], MIN_PROBABILITY, 1)).mean())

    temperature = float(np.exp(minimize_scalar(log_loss, bounds=np.log(TEMPERATURES), method="bounded").x))
    # With hardly a mistake among few images the loss falls forever as probabilities go to 0 and 1: no evidence.
    return temperature if TEMPERATURES[0] * 1.1 < temperature < TEMPERATURES[1] / 1.1 else 1.0


def _fit_offsets(y: np.ndarray, logs: np.ndarray, floors: Mapping[int, float]) -> np.ndarray:
    """Returns the offset of each class, 0 to MAX_OFFSET, float (classes,)."""
    classes = logs.shape[1]
    others = np.maximum(1, len(y) - np.bincount(y, minlength=classes))

    def judge(offsets: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the sum of what recalls lack, and the false positive rate of each class."""
        predicted = (logs + offsets).argmax(axis=1)
        confusion = np.bincount(y * classes + predicted, minlength=classes * classes).reshape(classes, classes)
        shortfall = sum(max(0.0, floor - confusion[i, i] / confusion[i].sum()) for i, floor in floors.items())
        return round(shortfall, 9), (confusion.sum(axis=0) - np.diag(confusion)) / others

    def cost(offsets: np.ndarray) -> _Cost:
        shortfall, rates = judge(offsets)
        return _Cost(shortfall, round(float(rates.mean()), 9), round(float(offsets.sum()), 4))

    zero = np.zeros(classes)
    if not judge(zero)[0]:
        return zero
    best = _search(zero, cost, floors)
    rates = judge(best)[1]
    limit = float(rates.mean() + np.sqrt((rates * (1 - rates) / others).sum()) / classes)  # one standard error above

    def cost_above_limit(offsets: np.ndarray) -> _Cost:
        shortfall, rate, size = cost(offsets)
        return _Cost(shortfall, max(0.0, rate - limit), size)

    return _search(best, cost_above_limit, floors)


def _search(offsets: np.ndarray, cost: Callable[[np.ndarray], _Cost], movable: Iterable[int]) -> np.ndarray:
    """Returns the offsets after every move, of one of the movable classes or of two together, that lowers the cost."""
    # Two together, because what one disease gains alone is lost by another.
    moves = [np.isin(np.arange(len(offsets)), pair) for n in (1, 2) for pair in combinations(movable, n)]
    best, before = cost(offsets), None
    while best != before:
        before = best
        for move in moves:
            candidates = [np.round(np.clip(offsets + step * move, 0, MAX_OFFSET), 4) for step in OFFSET_STEPS]
            costs = [cost(candidate) for candidate in candidates]
            if min(costs) < best:
                best, offsets = min(costs), candidates[costs.index(min(costs))]
    return offsets
