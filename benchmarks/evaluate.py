"""Seconds to measure 100,000 predictions with 2,000 resamples, and how far the figures lie from scikit-learn's.

    .venv/bin/python benchmarks/evaluate.py [--images 100000] [--rounds 3]

Random predictions of three classes. Once each image is a patient of its own, once there are 30,000 patients; the median
of the rounds counts. Beside it, what scikit-learn takes for the figures alone, and what its functions in a loop over
resamples would take, from ten of them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from sklearn import metrics as sklearn

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_ml.evaluation import metrics

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def drawn(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, classes decided for, and probabilities that add up to 1 in eight bytes."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=n)
    scores = rng.normal(size=(n, 3)) + 2 * np.eye(3)[y]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return y, (scores + np.array([0, 0.4, 0])).argmax(axis=1), p


def by_sklearn(y: np.ndarray, predicted: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """The same figures, as far as scikit-learn has them, by the names of `metrics.flat`."""
    found = {}
    columns = sklearn.precision_recall_fscore_support(y, predicted)
    for i, label in enumerate(CLASSES):
        for name, column in zip(("precision", "recall", "F1"), columns[:3], strict=True):
            found[f"{name} {label}"] = column[i]
        found[f"specificity {label}"] = sklearn.recall_score(y != i, predicted != i)
        found[f"AUC {label}"] = sklearn.roc_auc_score(y == i, p[:, i])
    found["macro F1"] = sklearn.f1_score(y, predicted, average="macro")
    found["accuracy"] = sklearn.accuracy_score(y, predicted)
    found["log loss"] = sklearn.log_loss(y, p)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    y, predicted, p = drawn(options.images)
    several = np.random.default_rng(1).integers(max(1, options.images * 3 // 10), size=options.images)
    for title, groups in (("a patient each", np.arange(options.images)), ("patients with several", several)):
        taken = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            found = metrics.measure(y, predicted, p, CLASSES, groups)
            taken.append(time.perf_counter() - start)
        print(
            f"{options.images:,} images, {title}: {statistics.median(taken):.2f} s for {metrics.RESAMPLES:,} resamples"
        )
    start = time.perf_counter()
    theirs = by_sklearn(y, predicted, p)
    print(f"scikit-learn, the figures once: {time.perf_counter() - start:.2f} s")
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(10):
        rows = rng.integers(len(y), size=len(y))
        by_sklearn(y[rows], predicted[rows], p[rows])
    each = (time.perf_counter() - start) / 10
    print(f"scikit-learn, {metrics.RESAMPLES:,} resamples at {each:.2f} s: {each * metrics.RESAMPLES:.0f} s")
    ours = metrics.flat(found)
    print(f"largest difference of a figure to scikit-learn's: {max(abs(ours[n] - v) for n, v in theirs.items()):.1e}")


if __name__ == "__main__":
    main()
