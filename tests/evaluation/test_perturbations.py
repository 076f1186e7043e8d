"""The test images with the lungs hidden, with a white box, mirrored: what is changed, and what it says of a model."""

import numpy as np
import pytest

from cxr_ml.evaluation import perturbations
from cxr_ml.imaging.hashes import border_ring
from cxr_ml.training.calibration import Predictions

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def noise(side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 235, (2, side, side, 1), dtype=np.uint8)


@pytest.mark.parametrize("side", [32, 64, 160, 256])
def test_hiding_the_lungs_leaves_the_ring_that_the_shortcut_probe_sees(side):
    images = noise(side)
    hidden = perturbations.lungs_hidden(images)
    assert border_ring(hidden[0, ..., 0]) == border_ring(images[0, ..., 0])
    assert (hidden == 0).mean() == pytest.approx(0.75**2, abs=0.001)


def test_hidden_lungs_and_hidden_border_are_the_whole_image_together():
    images = noise()
    assert np.array_equal(perturbations.lungs_hidden(images) + perturbations.border_hidden(images), images)


def test_a_white_box_covers_a_corner_and_nothing_else():
    images = noise()
    corners = {}
    for name, change in perturbations.CHANGES.items():
        if name.startswith("white box"):
            changed = change(images)
            rows, columns = np.nonzero(changed[0, ..., 0] != images[0, ..., 0])
            assert (changed[0, rows, columns] == 255).all() and len(rows) == 13 * 13
            corners[name] = (rows.min() > 32, columns.min() > 32)
    assert corners == {
        "white box top left": (False, False), "white box top right": (False, True),
        "white box bottom left": (True, False), "white box bottom right": (True, True),
    }  # fmt: skip


def test_no_change_writes_into_the_images_that_it_is_given():
    images = noise()
    for change in perturbations.CHANGES.values():
        change(images)
    assert np.array_equal(images, noise())


def test_mirroring_twice_is_nothing():
    assert np.array_equal(perturbations.mirrored(perturbations.mirrored(noise())), noise())


def test_re_encoded_is_the_film_in_less_detail():
    smooth = np.tile(np.linspace(0, 250, 64, dtype=np.uint8), (64, 1))[None, ..., None]
    changed = perturbations.CHANGES["re-encoded"](smooth).astype(int)
    assert 0 < np.abs(changed - smooth).mean() < 3
    assert np.abs(perturbations.CHANGES["re-encoded"](noise()).astype(int) - noise()).mean() > 10


def test_at_most_100_images_of_each_class_are_perturbed():
    y = np.array([0] * 150 + [1] * 3 + [2] * 100)
    rows = perturbations.choose(y, 3)
    assert np.bincount(y[rows]).tolist() == [100, 3, 100] and (np.diff(rows) > 0).all()


def test_the_comparison_says_how_far_decisions_and_probabilities_moved():
    y = np.array([0, 0, 1, 2])
    before = Predictions(np.eye(3)[y], y)
    all_normal = np.zeros(4, int)
    found = perturbations.compare("lungs hidden", y, before, Predictions(np.eye(3)[all_normal], all_normal), CLASSES)
    assert found.recalls == {"NORMAL": 1.0, "COVID19": 0.0, "PNEUMONIA": 0.0}
    assert found.balanced_accuracy == pytest.approx(1 / 3) and found.before == 1.0
    assert found.decided_otherwise == 0.5 and found.shift == 0.5 and found.images == 4


def test_a_class_without_images_leaves_the_comparison_without_a_number():
    y = np.array([0, 1])
    same = Predictions(np.eye(3)[y], y)
    assert np.isnan(perturbations.compare("mirrored", y, same, same, CLASSES).balanced_accuracy)
