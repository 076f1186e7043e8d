"""Does a model read the lungs? What it says of test images with lungs hidden, a white box, mirrored, re-encoded."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cxr_ml.evaluation import metrics
from cxr_ml.imaging.measure import RING
from cxr_ml.records import PerturbationResult
from cxr_ml.training import corruptions

LUNGS_HIDDEN = "lungs hidden"
MOST = 100  # images of each class that are looked at, the first of the manifest; it is sorted by hash, so at random
_BOX = 0.2  # of the side: four hundredths of the area, as the white boxes of public data sets
_WHITE = 255


def _middle(side: int) -> slice:
    """The lungs, and all that is not the ring whose probe is stored with the dataset."""
    edge = side * RING // 32
    return slice(edge, side - edge)


def lungs_hidden(images: np.ndarray) -> np.ndarray:
    """The middle three quarters each way are black: what is left is the border, that tells the source at most."""
    changed = images.copy()
    middle = _middle(images.shape[1])
    changed[:, middle, middle] = 0
    return changed


def border_hidden(images: np.ndarray) -> np.ndarray:
    """All but the middle three quarters each way is black: no letter, no frame, most of the lungs."""
    changed = np.zeros_like(images)
    middle = _middle(images.shape[1])
    changed[:, middle, middle] = images[:, middle, middle]
    return changed


def mirrored(images: np.ndarray) -> np.ndarray:
    """Left is right."""
    return images[:, :, ::-1]


def _boxed(bottom: bool, right: bool) -> Callable[[np.ndarray], np.ndarray]:
    def change(images: np.ndarray) -> np.ndarray:
        side = round(images.shape[1] * _BOX)
        changed = images.copy()
        rows, columns = (slice(-side, None) if far else slice(side) for far in (bottom, right))
        changed[:, rows, columns] = _WHITE
        return changed

    return change


CHANGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    LUNGS_HIDDEN: lungs_hidden,
    "border hidden": border_hidden,
    "white box top left": _boxed(False, False),
    "white box top right": _boxed(False, True),
    "white box bottom left": _boxed(True, False),
    "white box bottom right": _boxed(True, True),
    "mirrored": mirrored,
    "re-encoded": corruptions.FIXED["shrunk"],  # of 256 px, at 224
}


def chosen(y: np.ndarray, kinds: int) -> np.ndarray:
    """Of the test images, those that are looked at: at most MOST of each class, int (n,), in order."""
    return np.sort(np.concatenate([np.flatnonzero(y == kind)[:MOST] for kind in range(kinds)]))


def compare(
    change: str,
    y: np.ndarray,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
) -> PerturbationResult:
    """How far a change of the images moves a model.

    Args:
        change: what was done.
        y: true class indices, int (n,), at least one.
        before: calibrated probabilities (n, classes) and the classes decided for (n,), of the images as they are.
        after: the same of the changed images.
        classes: labels in the order of the indices.
    """
    found = metrics.measure(y, after[1], after[0], classes)
    recalls = {label: one.recall for label, one in found.classes.items()}
    unchanged = metrics.measure(y, before[1], before[0], classes)
    return PerturbationResult(
        change=change,
        images=len(y),
        recalls=recalls,
        balanced_accuracy=float(np.mean(list(recalls.values()))),
        before=float(np.mean([one.recall for one in unchanged.classes.values()])),
        decided_otherwise=float(np.mean(before[1] != after[1])),
        shift=float(np.abs(before[0] - after[0]).sum(axis=1).mean() / 2),
    )
