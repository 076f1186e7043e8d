"""Whether a model reads the lungs: its predictions with lungs hidden, with a white box, mirrored, re-encoded."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cxr_ml.evaluation import metrics
from cxr_ml.imaging.hashes import RING_WIDTH
from cxr_ml.records import PerturbationResult
from cxr_ml.training import corruptions
from cxr_ml.training.calibration import Predictions

LUNGS_HIDDEN = "lungs hidden"
MAX_PER_CLASS = 100  # images: the first of the manifest, which is sorted by hash, so they are a random sample
_BOX_SIDE = 0.2  # of the image's side: four hundredths of the area, as the white boxes of public data sets
_WHITE = 255


def _middle(side: int) -> slice:
    """Rows, or columns, of the lungs: all but the outer ring, whose probe is stored with the dataset."""
    edge = side * RING_WIDTH // 32
    return slice(edge, side - edge)


def lungs_hidden(images: np.ndarray) -> np.ndarray:
    """Returns the images with the middle three quarters each way black: the border tells at most the source."""
    changed = images.copy()
    middle = _middle(images.shape[1])
    changed[:, middle, middle] = 0
    return changed


def border_hidden(images: np.ndarray) -> np.ndarray:
    """Returns the images with all but the middle three quarters each way black: no letter, no frame."""
    changed = np.zeros_like(images)
    middle = _middle(images.shape[1])
    changed[:, middle, middle] = images[:, middle, middle]
    return changed


def mirrored(images: np.ndarray) -> np.ndarray:
    """Returns the images with left and right exchanged."""
    return images[:, :, ::-1]


def _add_box(bottom: bool, right: bool) -> Callable[[np.ndarray], np.ndarray]:
    def change(images: np.ndarray) -> np.ndarray:
        side = round(images.shape[1] * _BOX_SIDE)
        changed = images.copy()
        rows, columns = (slice(-side, None) if far else slice(side) for far in (bottom, right))
        changed[:, rows, columns] = _WHITE
        return changed

    return change


CHANGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    LUNGS_HIDDEN: lungs_hidden,
    "border hidden": border_hidden,
    "white box top left": _add_box(False, False),
    "white box top right": _add_box(False, True),
    "white box bottom left": _add_box(True, False),
    "white box bottom right": _add_box(True, True),
    "mirrored": mirrored,
    "re-encoded": corruptions.FIXED["shrunk"],  # of 256 px, at 224
}


def choose(y: np.ndarray, classes: int) -> np.ndarray:
    """Returns the test images that are perturbed: at most MAX_PER_CLASS of each class, int (n,), in order.

    Args:
        y: true class indices, int (images,).
        classes: how many there are.
    """
    return np.sort(np.concatenate([np.flatnonzero(y == index)[:MAX_PER_CLASS] for index in range(classes)]))


def compare(
    change: str, y: np.ndarray, before: Predictions, after: Predictions, classes: Sequence[str]
) -> PerturbationResult:
    """Returns how far a change of the images moves a model.

    Args:
        change: what was done.
        y: true class indices, int (n,), at least one.
        before: predictions for the images as they are.
        after: predictions for the changed images.
        classes: labels in the order of the indices.
    """
    unchanged, changed = (metrics.measure(y, p.labels, p.probabilities, classes) for p in (before, after))
    recalls = {label: of_class.recall for label, of_class in changed.classes.items()}
    return PerturbationResult(
        change=change,
        images=len(y),
        recalls=recalls,
        balanced_accuracy=float(np.mean(list(recalls.values()))),
        before=float(np.mean([of_class.recall for of_class in unchanged.classes.values()])),
        decided_otherwise=float(np.mean(before.labels != after.labels)),
        shift=float(np.abs(before.probabilities - after.probabilities).sum(axis=1).mean() / 2),
    )
