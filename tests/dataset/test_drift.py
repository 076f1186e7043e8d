"""Drift between new images and training images: chance alone is none, a real difference is found with its size."""

import numpy as np
import pandas as pd
import pytest

from cxr_ml.dataset import drift

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def images(n, seed, first=0, **shifted):
    """`n` images of each class with measures drawn at random; `shifted` moves a measure by standard deviations."""
    random = np.random.default_rng(seed)
    rows = pd.DataFrame({"label": np.repeat(CLASSES, n)})
    rows["sha256"] = [f"{first + i:064x}" for i in range(len(rows))]
    for measure in drift.MEASURES:
        rows[measure] = random.normal(100, 10, len(rows)) + 10 * shifted.get(measure, 0)
    return rows


def compared(old, new, split="train"):
    rows = pd.concat([old, new], ignore_index=True)
    return drift.measure_drift(rows, old, old.assign(split=split), 3, CLASSES)


def test_the_first_dataset_is_compared_with_nothing():
    none = pd.DataFrame(columns=["sha256", "label", "split"])
    found = drift.measure_drift(images(50, 0), none, none, None, CLASSES)
    assert (found.class_shares, found.measures, found.shifts) == (None, None, ())
    assert "first dataset" in found.why


@pytest.mark.slow
def test_images_of_the_same_kind_raise_almost_no_false_alarm():
    false = [compared(images(200, 1), images(60, seed, first=10_000)).measures for seed in range(2, 42)]
    assert sum(m > 0 for m in false) <= 2


def test_a_shifted_measure_is_named_with_its_class_and_effect_size():
    new = images(60, 2, first=10_000)
    of_covid = new["label"] == "COVID19"
    new.loc[of_covid, "sharpness"] += 30
    found = compared(images(200, 1), new)
    assert [(s.label, s.measure) for s in found.shifts] == [("COVID19", "sharpness")]
    assert found.measures == found.shifts[0].statistic > 0.8
    assert (found.against, found.images) == (3, 180)


def test_a_difference_that_only_many_images_reveal_has_a_small_statistic():
    found = compared(images(4000, 1), images(4000, 2, first=100_000, mean=0.15))
    assert {s.measure for s in found.shifts} == {"mean"}
    assert found.measures < 0.15 and max(s.p for s in found.shifts) < 1e-4


def test_more_of_one_class_is_a_drift_of_shares_and_not_of_measures():
    # Classes that differ from one another: together their measures would seem to move.
    old, new = images(200, 1), images(200, 2, first=10_000)
    for rows in (old, new):
        rows["mean"] += rows["label"].map({"NORMAL": 0, "COVID19": 50, "PNEUMONIA": 100})
    found = compared(old, new[new["label"] == "COVID19"])
    assert found.measures == 0
    assert found.class_shares == pytest.approx(0.5 - 1 / 3, abs=1e-4)


def test_only_training_images_are_compared_with():
    assert compared(images(200, 1), images(60, 2, first=10_000, mean=5), split="test").measures is None


def test_a_handful_of_new_images_is_not_compared():
    found = compared(images(200, 1), images(drift.MIN_PER_CLASS - 1, 2, first=10_000, mean=5))
    assert found.measures is None and found.class_shares == 0
    assert "Received: NORMAL 19, COVID19 19, PNEUMONIA 19" in found.why


def test_the_same_images_give_the_same_record():
    one, other = (compared(images(200, 1), images(60, 2, first=10_000, std=2)) for _ in range(2))
    assert one.to_bytes() == other.to_bytes()
