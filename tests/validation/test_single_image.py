"""Single images are judged as batches are: the same suite, the same codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_ml.errors import Refused
from cxr_ml.validation import single_image, verdicts

SHIPPED = Path(__file__).parents[2] / "expectations"
FILM = {
    "sha256": "a" * 64, "format": "png", "bytes": 9000, "width": 256, "height": 256, "mode": "L", "bits": 8,
    "mean": 125.0, "std": 55.0, "p01": 0.0, "p99": 220.0, "saturation": 0.0, "sharpness": 120.0, "black_border": 0.01,
    "white_border": 0.0, "white_box": 0.0, "phash": "0" * 16, "fine_hash": "0" * 256,
    "inner_hash": "", "ring": "0" * 896,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    shutil.copy(SHIPPED / "images.json", tmp_path)
    return tmp_path


def add(folder, *entries):
    path = folder / "images.json"
    suite = json.loads(path.read_text())
    suite["expectations"] += entries
    path.write_text(json.dumps(suite))


def quarantined(folder, rows):
    """What ingested images with these measurements are quarantined for."""
    frame = pd.DataFrame(rows).assign(label="NORMAL", verdict="accepted", file=[f"{i}.png" for i in range(len(rows))])
    frame["reasons"] = [[] for _ in rows]
    return [tuple(codes) for codes in verdicts.judge_images(frame, folder)[0]["reasons"]]


def spoiled():
    """Films with each limit of the shipped suite met exactly, missed by a little and missed by far, and mixtures."""
    edges = {
        "width": (100, 99, 1), "height": (100, 99, 30), "bits": (16, 1, 12), "mean": (25.0, 24.999, 230.001),
        "std": (10.0, 9.99, 0.0), "sharpness": (5.0, 4.99, 0.0), "saturation": (0.25, 0.2501, 0.9),
        "black_border": (0.5, 0.51, 1.0), "white_border": (0.5, 0.51, 1.0), "white_box": (0.005, 0.0051, 0.4),
    }  # fmt: skip
    rows = [FILM | {name: value} for name, values in edges.items() for value in values]
    rng = np.random.default_rng(0)
    for _ in range(60):
        chosen = rng.choice(list(edges), rng.integers(2, 6), replace=False)
        rows.append(FILM | {name: edges[name][rng.integers(3)] for name in chosen})
    return [*rows, FILM, FILM | {"width": 301, "height": 100}, FILM | {"width": 100, "height": 300}]


def test_every_film_is_refused_for_what_it_would_be_quarantined_for():
    rows = spoiled()
    judge = single_image.load_screen(SHIPPED)
    expected = quarantined(SHIPPED, rows)
    assert [judge(row) for row in rows] == expected
    assert {codes for codes in expected if not codes} and len(set(expected)) > 15


def test_the_shipped_suite_is_judged_without_great_expectations():
    code = (
        "import sys; from pathlib import Path; from cxr_ml.validation import single_image; "
        f"judge = single_image.load_screen(Path({str(SHIPPED)!r})); print(judge({FILM | {'width': 9}!r})); "
        "assert 'great_expectations' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('too_small', 'odd_shape')"


def test_a_limit_that_a_user_adds_counts_and_a_warning_does_not(folder):
    limit = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "p99", "min_value": 230}}
    add(folder, limit | {"severity": "warning", "meta": {"reason": "only_said"}}, limit)
    assert single_image.load_screen(folder)(FILM) == ("expect_column_values_to_be_between:p99",)
    assert quarantined(folder, [FILM]) == [("expect_column_values_to_be_between:p99",)]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"column": "p99", "min_value": 220, "strict_min": True},
        {"column": "p99", "max_value": 100, "mostly": 0.5},
        {
            "column": "p99",
            "max_value": 100,
            "row_condition": 'col("bits")==8',
            "condition_parser": "great_expectations",
        },
    ],
)
def test_what_is_more_than_a_limit_is_judged_by_great_expectations(folder, kwargs):
    add(folder, {"type": "expect_column_values_to_be_between", "kwargs": kwargs, "meta": {"reason": "dim"}})
    judge = single_image.load_screen(folder)
    assert [judge(FILM), judge(FILM | {"white_box": 0.1})] == [("dim",), ("white_box", "dim")]
    assert quarantined(folder, [FILM, FILM | {"white_box": 0.1}]) == [("dim",), ("white_box", "dim")]


def test_what_only_a_drop_can_say_is_not_asked_of_a_single_image(folder):
    add(
        folder,
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "view", "value_set": ["PA"]}},
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "source", "regex": "^a"}},
    )
    assert single_image.load_screen(folder)(FILM) == ()
    add(folder, {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "mode", "regex": "^RGB"}})
    assert single_image.load_screen(folder)(FILM) == ("expect_column_values_to_match_regex:mode",)


def test_a_suite_that_cannot_be_used_is_refused(folder, tmp_path):
    add(folder, {"type": "expect_column_values_to_be_lovely", "kwargs": {"column": "mean"}})
    with pytest.raises(Refused, match="expect_column_values_to_be_lovely"):
        single_image.load_screen(folder)
    with pytest.raises(Refused, match="A Great Expectations suite was expected at"):
        single_image.load_screen(tmp_path / "absent")


def test_a_column_that_is_not_measured_is_an_error_and_never_a_pass(folder):
    add(folder, {"type": "expect_column_values_to_be_between", "kwargs": {"column": "brightness", "min_value": 1}})
    judge = single_image.load_screen(folder)
    with pytest.raises(Refused, match="could not be evaluated"):
        judge(FILM)
