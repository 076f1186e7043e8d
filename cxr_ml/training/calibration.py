"""The operating point of a model: how probabilities are made honest, and where the line between classes is drawn.

Both are fitted on validation images once, when a model is trained, and are part of it from then on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.optimize import minimize_scalar

from cxr_ml.errors import Refused
from cxr_ml.records import OperatingPoint

TEMPERATURES = (0.05, 20.0)  # searched between; beyond, probabilities are all alike or all 0 and 1
_MOST = 6.0  # nats: a factor of 400 between the odds of two classes
_STEPS = np.arange(-_MOST, _MOST + 0.025, 0.05)  # nats
_TINY = 1e-12  # a probability of 0 has no logarithm

_Cost = tuple[float, float, float]  # what recalls lack, what is lost by that in specificity, the sum of the offsets


def fit(y: np.ndarray, p: np.ndarray, classes: Sequence[str], floors: Mapping[str, float]) -> OperatingPoint:
    """Fits the temperature, then the offsets that meet the floors with the least loss of specificity.

    The temperature divides the logits and minimises the log loss: Guo et al. 2017, "On calibration of modern neural
    networks". An offset is added to the logarithm of a class's probability before the largest is taken. All are 0
    where the floors are met so; else one or two at a time are moved in steps until no move helps: first towards the
    smallest sum of what recalls lack, then towards the largest mean specificity. Of offsets whose mean specificity is
    within one standard error of the largest, the smallest are taken: a film more or less among a hundred is no reason
    to move the line by a nat (the rule of one standard error, Breiman et al. 1984, "Classification and Regression
    Trees", section 3.4.3).

    Args:
        y: true class indices of the validation images, int (n,), at least one.
        p: probabilities by the network, float (n, classes).
        classes: labels in the order of the indices.
        floors: label -> lowest recall wanted, 0 to 1; labels without validation images are left as they are.

    Raises:
        Refused: no images, or probabilities that are no numbers.
    """
    if not len(y) or not np.isfinite(p).all():
        raise Refused(f"An operating point is fitted on finite probabilities of images. Received: {len(y)} images.")
    logs = np.log(np.clip(p.astype(np.float64), _TINY, 1))

    def loss(temperature: float) -> float:
        return float(-np.log(np.clip(_softmax(logs / temperature)[np.arange(len(y)), y], _TINY, 1)).mean())

    found = minimize_scalar(lambda t: loss(np.exp(t)), bounds=np.log(TEMPERATURES), method="bounded")
    # With hardly a mistake among few images the loss falls for ever as probabilities go to 0 and 1: no evidence.
    temperature = float(np.exp(found.x)) if TEMPERATURES[0] * 1.1 < np.exp(found.x) < TEMPERATURES[1] / 1.1 else 1.0
    wanted = {i: floors[c] for i, c in enumerate(classes) if c in floors and (y == i).any()}
    offsets = _offsets(y, np.log(_softmax(logs / temperature).clip(_TINY)), wanted)
    return OperatingPoint(
        temperature=round(temperature, 6),
        offsets={c: round(float(o), 6) for c, o in zip(classes, offsets, strict=True)},
        floors={c: floors[c] for c in classes if c in floors},
        images=len(y),
    )


def apply(p: np.ndarray, point: OperatingPoint | None, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, float64 (n, classes), and the class decided for, int (n,).

    Args:
        p: probabilities by the network, float (n, classes).
        point: of the model; None: the probabilities as they are, and the most likely class.
        classes: labels in the order of the columns.
    """
    p = p.astype(np.float64)
    if point is None:
        return p, p.argmax(axis=1)
    logs = np.log(np.clip(p, _TINY, 1)) / point.temperature
    return _softmax(logs), (logs - _peak(logs) + [point.offsets[c] for c in classes]).argmax(axis=1)


def _peak(logs: np.ndarray) -> np.ndarray:
    return logs.max(axis=1, keepdims=True)


def _softmax(logs: np.ndarray) -> np.ndarray:
    raised = np.exp(logs - _peak(logs))
    return raised / raised.sum(axis=1, keepdims=True)


def _offsets(y: np.ndarray, logs: np.ndarray, wanted: Mapping[int, float]) -> np.ndarray:
    """Offset of each class, 0 to _MOST, float (classes,)."""
    kinds = logs.shape[1]
    others = np.maximum(1, len(y) - np.bincount(y, minlength=kinds))

    def judged(offsets: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of what recalls lack; share of the others' images that are taken for each class."""
        predicted = (logs + offsets).argmax(axis=1)
        counts = np.bincount(y * kinds + predicted, minlength=kinds * kinds).reshape(kinds, kinds)
        lacking = sum(max(0.0, floor - counts[i, i] / counts[i].sum()) for i, floor in wanted.items())
        return round(lacking, 9), (counts.sum(axis=0) - np.diag(counts)) / others

    def most_specific(offsets: np.ndarray) -> _Cost:
        lacking, alarms = judged(offsets)
        return lacking, round(float(alarms.mean()), 9), round(float(offsets.sum()), 4)

    zero = np.zeros(kinds)
    if not judged(zero)[0]:
        return zero
    best = _searched(zero, most_specific, wanted)
    alarms = judged(best)[1]
    bound = float(alarms.mean() + np.sqrt((alarms * (1 - alarms) / others).sum()) / kinds)

    def smallest(offsets: np.ndarray) -> _Cost:
        lacking, mean, size = most_specific(offsets)
        return lacking, max(0.0, mean - bound), size

    return _searched(best, smallest, wanted)


def _searched(offsets: np.ndarray, cost: Callable[[np.ndarray], _Cost], wanted: Iterable[int]) -> np.ndarray:
    """The offsets after every move, of one of the wanted classes or two together, that lowers the cost."""
    # Together: what one class gains alone, a second of the ill would lose to it.
    ways = [np.isin(np.arange(len(offsets)), pair) for n in (1, 2) for pair in combinations(wanted, n)]
    best, before = cost(offsets), None
    while best != before:
        before = best
        for way in ways:
            tried = [np.round(np.clip(offsets + step * way, 0, _MOST), 4) for step in _STEPS]
            costs = [cost(t) for t in tried]
            if min(costs) < best:
                best, offsets = min(costs), tried[costs.index(min(costs))]
    return offsets
