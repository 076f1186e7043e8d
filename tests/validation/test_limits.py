"""The limits of images.json beside the measurements of a file, and reason codes in plain words."""

import json

import pandas as pd
import pytest

from cxr_ml.errors import Refused
from cxr_ml.ingest import process_file
from cxr_ml.settings import ValidationSettings
from cxr_ml.validation import limits, reasons


@pytest.mark.parametrize(
    ("kind", "kwargs", "limit", "met"),
    [
        ("be_between", {"column": "bits", "min_value": 8, "strict_min": True}, "> 8", False),
        ("be_between", {"column": "bits", "min_value": 8}, "≥ 8", True),
        ("be_between", {"column": "std", "max_value": "0.005"}, "≤ 0.005", False),
        ("be_between", {"column": "label", "min_value": 1, "max_value": 3}, "≥ 1 and ≤ 3", False),
        ("not_be_in_set", {"column": "format", "value_set": ["jpeg"]}, "not in {jpeg}", False),
        ("be_in_set", {"column": "format", "value_set": ["png", "jpeg"]}, "in {png, jpeg}", True),
        ("match_regex", {"column": "file", "regex": "^b"}, '_to_match_regex {"regex": "^b"}', False),
        ("be_of_type", {"column": "x", "type_": "int"}, '_to_be_of_type {"type_": "int"}', False),
    ],
)
def test_each_kind_of_expectation_is_shown_beside_the_measurement(settings, tmp_path, kind, kwargs, limit, met):
    entry = {"type": f"expect_column_values_to_{kind}", "kwargs": kwargs, "meta": {"reason": "r"}}
    (tmp_path / "images.json").write_text(json.dumps({"expectations": [entry]}))
    settings = settings.replace(validation={"expectations": tmp_path})
    row = {"width": 9, "height": 9, "bits": 8, "std": 5.0, "label": "NORMAL", "format": "jpeg", "file": "a.png"}
    row = pd.Series(row | {"reasons": [] if met else ["r"]})
    (found,) = limits.compare_with_limits(row, settings.validation)
    assert found.limit.endswith(limit) and found.met is met
    words = reasons.explain("r", row, "", settings.validation)
    assert len(words) > 5 and (met or found.limit in words)


@pytest.mark.parametrize("text", ["[]", '{"expectations": [3]}', '{"expectations": [{}]}', "[" * 200_000])
def test_a_suite_that_cannot_be_read_is_refused(settings, tmp_path, text):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(Refused, match=r"images\.json"):
        limits.compare_with_limits(
            {"width": 9, "height": 9}, settings.replace(validation={"expectations": tmp_path}).validation
        )


def test_every_code_of_a_drop_has_words():
    codes = ["name_too_long", "duplicate_name", "special_file", "encrypted", "unsupported_compression", "unknown_split"]
    for code in [*codes, *process_file.CRASHED["unread"]]:
        assert len(reasons.explain(code, {}, "", ValidationSettings())) > len(code) + 5


def test_an_unknown_code_is_shown_as_it_is(settings):
    row = pd.Series({"width": 0, "height": 0})
    assert reasons.explain("truncated", row, "", settings.validation) == "The file ends before the image does."
    assert reasons.explain("odd_code", row, "", settings.validation) == "odd code."
    assert reasons.explain("rejected_class:artefacts", row, "Of 8.", settings.validation).endswith("Of 8.")
    with pytest.raises(Refused, match=r"images\.json"):
        limits.compare_with_limits(row, settings.replace(validation={"expectations": settings.cache_dir}).validation)
