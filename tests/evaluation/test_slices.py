"""Slices: every test image is in one of each kind, and those too small to judge by say so."""

import numpy as np
import pandas as pd

from cxr_ml.evaluation import slices
from cxr_ml.settings import Settings
from cxr_ml.training import calibration

SETTINGS = Settings(gate={"min_test_support": 10})


def measured(n: int = 60, **columns) -> dict[tuple[str, str], slices.Slice]:
    facts = {"source": "kaggle", "view": "PA", "format": "png", "batch": "week-1", "width": 300, "height": 200}
    described = pd.DataFrame({k: np.broadcast_to(columns.get(k, v), n) for k, v in facts.items()})
    y = np.arange(n) % 3
    decided = np.where(np.arange(n) < n // 2, y, 0)
    found = slices.measure(
        described, y, calibration.Predictions(np.eye(3)[decided], decided), SETTINGS.gate, SETTINGS.classes
    )
    assert {by: sum(s.images for s in found if s.by == by) for by in ("source", "view", "format", "size", "batch")} == (
        dict.fromkeys(("source", "view", "format", "size", "batch"), n)
    )
    return {(s.by, s.value): s for s in found}


def test_a_slice_has_the_figures_of_its_images_alone():
    found = measured(source=["a"] * 30 + ["b"] * 30)
    assert found["source", "a"].metrics.accuracy == 1.0
    assert found["source", "b"].metrics.classes["COVID19"].recall == 0.0
    assert found["source", "b"].metrics.classes["COVID19"].support == 10
    assert "recall COVID19" in found["source", "b"].metrics.intervals


def test_a_slice_too_small_for_a_judgement_says_so():
    found = measured(source=["a"] * 51 + ["b"] * 9)["source", "b"]
    assert found.metrics is None and found.images == 9
    assert found.why == "9 images are too few to judge by: at least 10 are needed."


def test_sizes_are_told_apart_by_the_longer_side():
    found = measured(width=[100] * 20 + [511] * 20 + [512] * 20, height=[1024] * 20 + [200] * 40)
    sizes = {v: s.images for (by, v), s in found.items() if by == "size"}
    assert sizes == {"1,024 px and more": 20, "below 512 px": 20, "512 to 1,023 px": 20}


def test_what_a_drop_does_not_say_is_unknown():
    assert measured(view=[None] * 30 + [""] * 30)["view", "unknown"].images == 60


def test_the_smallest_of_very_many_slices_are_one():
    found = [s for (by, _), s in measured(source=[f"s{i % 20:02}" for i in range(60)]).items() if by == "source"]
    assert len(found) == slices.MAX_PER_KIND and found[-1].value == "others" and found[-1].images == 60 - 11 * 3
