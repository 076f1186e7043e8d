"""Probes that see no lungs find what gives the class away, and nothing where nothing does."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from cxr_ml.dataset import shortcuts
from cxr_ml.imaging import hashes
from cxr_ml.settings import Settings

SETTINGS = Settings()
CLASSES = SETTINGS.classes


def table(per_class=40, seed=0, images_per_group=1):
    """Images whose ring, size and format are noise, uint8 rings of 448 px."""
    random = np.random.default_rng(seed)
    rows = []
    for label in CLASSES:
        for i in range(per_class):
            ring = random.integers(0, 256, 448, dtype=np.uint8).tobytes().hex()
            width, height, size = random.integers(200, 2000, 3)
            facts = {"width": width, "height": height, "bytes": size * 100, "format": random.choice(["png", "jpeg"])}
            sha = hashlib.sha256(f"{seed} {label} {i}".encode()).hexdigest()
            group = f"{label} {i // images_per_group}"
            rows.append({"sha256": sha, "label": label, "group": group, "ring": ring, "mode": "L", "bits": 8} | facts)
    return pd.DataFrame(rows)


def accuracies(rows, settings=SETTINGS):
    return {p.sees: p.balanced_accuracy for p in shortcuts.fit_probes(rows, settings.dataset, settings.classes)}


def test_without_a_shortcut_both_probes_are_near_chance():
    border, encoding = shortcuts.fit_probes(table(120), SETTINGS.dataset, SETTINGS.classes)
    assert (border.sees, encoding.sees) == ("border", "encoding")
    for probe in (border, encoding):
        assert probe.chance == 0.3333 and probe.limit == 0.5 and probe.images == 360 and probe.why == ""
        assert probe.balanced_accuracy == pytest.approx(1 / 3, abs=0.12)


def test_only_the_border_probe_finds_a_border_that_gives_away_the_class():
    rows = table()
    dark = {label: 40 * i for i, label in enumerate(CLASSES)}
    rows["ring"] = [
        (np.frombuffer(bytes.fromhex(r), np.uint8) // 4 + dark[label]).astype(np.uint8).tobytes().hex()
        for r, label in zip(rows["ring"], rows["label"], strict=True)
    ]
    found = accuracies(rows)
    assert found["border"] > 0.95 and found["encoding"] < 0.5


@pytest.mark.parametrize(
    "values_by_column",
    [
        {"format": ["png", "jpeg", "webp"]},
        {"mode": ["L", "RGB", "P"]},
        {"bits": [8, 12, 16]},
        {"width": [224, 1000, 4000]},
        {"bytes": [10_000, 100_000, 1_000_000]},
    ],
)
def test_each_fact_of_the_encoding_that_gives_away_the_class_is_found(values_by_column):
    ((column, values),) = values_by_column.items()
    rows = table()
    found = accuracies(rows.assign(**{column: rows["label"].map(dict(zip(CLASSES, values, strict=True)))}))
    assert found["encoding"] > 0.9 and found["border"] < 0.5


def test_a_border_shared_by_one_patient_is_no_shortcut_to_the_class():
    # Each patient has a border of his own, which says nothing of the class of others.
    rows = table(60, images_per_group=6)
    rows["ring"] = rows.groupby("group")["ring"].transform("first")
    assert accuracies(rows)["border"] < 0.6


def test_the_same_images_in_any_order_give_the_same_record():
    rows = table()
    first = [p.to_bytes() for p in shortcuts.fit_probes(rows, SETTINGS.dataset, SETTINGS.classes)]
    shuffled = rows.sample(frac=1, random_state=1)
    assert [p.to_bytes() for p in shortcuts.fit_probes(shuffled, SETTINGS.dataset, SETTINGS.classes)] == first


def test_with_too_few_groups_nothing_is_measured_and_the_record_says_why():
    few = table(shortcuts.FOLDS - 1)
    one_patient = table().assign(group="patient:x")
    two_classes = table()[lambda r: r["label"] != "NORMAL"]
    for rows in (few, one_patient, two_classes, few.iloc[:0]):
        for probe in shortcuts.fit_probes(rows, SETTINGS.dataset, SETTINGS.classes):
            assert probe.balanced_accuracy is None and "needs 5 groups" in probe.why


def test_large_data_is_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(shortcuts, "MAX_PER_CLASS", 30)
    rows = table(40)
    border, encoding = shortcuts.fit_probes(rows, SETTINGS.dataset, SETTINGS.classes)
    assert border.images == encoding.images == 90
    # The sample goes by the hash of the image, so that new images that fall outside it change nothing.
    least = rows.sort_values("sha256").groupby("label").head(30)
    assert shortcuts.fit_probes(least, SETTINGS.dataset, SETTINGS.classes) == (border, encoding)


def test_the_limit_lies_between_chance_and_certainty():
    two = SETTINGS.replace(classes=("NORMAL", "COVID19"), dataset={"shortcut_limit": 0.5})
    rows = table()
    border, _ = shortcuts.fit_probes(rows[rows["label"].isin(two.classes)], two.dataset, two.classes)
    assert (border.chance, border.limit) == (0.5, 0.75)


def test_the_probe_takes_the_ring_as_it_is_measured():
    grey = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    levels = shortcuts._border(pd.DataFrame({"ring": [hashes.border_ring(grey), hashes.border_ring(255 - grey)]}))
    assert levels.shape == (2, 448) and 0 <= levels.min() < levels.max() <= 1
