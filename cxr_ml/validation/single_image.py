"""Judges single images by images.json as a batch is judged, without Great Expectations wherever it can do without.

To import it takes seconds and to ask it a tenth of one, too long for one image. So limits of one column are looked at
here; a suite that holds anything else is given to Great Expectations as a whole.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cxr_ml.ingest.tables import COLUMNS

# What only a drop can say of an image: expectations on these are not asked of an image that comes alone.
_OF_DROPS = {"file", "label", "label_raw", "split_hint", "patient", "source", "view"}
_KNOWN = (set(COLUMNS) - _OF_DROPS - {"verdict", "reasons"}) | {"aspect_ratio"}
_NUMBERS = {name for name, kind in COLUMNS.items() if kind.startswith(("int", "float"))} | {"aspect_ratio"}
_ENTRY = {"type", "kwargs", "meta", "severity", "notes", "description", "id"}

Screen = Callable[[dict[str, Any]], tuple[str, ...]]


def load(folder: Path) -> Screen:
    """A function that judges one image by the suite `images.json` of a folder.

    It takes what `measure.measure_image` says, and returns the codes for which `verdicts.judge_images` would
    quarantine the image, in the order of the suite, () for a fit one. What the suite asks of label, patient, source,
    view and file name, which only a drop can say, is not asked.

    Raises:
        Refused: the suite cannot be used (also when the function is called: what could not be evaluated).
    """
    entries = _limits(Path(folder) / "images.json")
    if entries is not None:
        return partial(_by_limits, entries)
    from cxr_ml.validation.suites import load_suite  # takes seconds to import

    suite = load_suite(folder, "images")
    suite.expectations = [e for e in suite.expectations if not _about_drops(e.configuration.kwargs)]
    return partial(_by_expectations, suite)


def _about_drops(kwargs: dict[str, Any]) -> bool:
    columns = [kwargs.get(k) for k in ("column", "column_A", "column_B")] + list(kwargs.get("column_list") or ())
    return any(column in _OF_DROPS for column in columns)


def _limits(path: Path) -> list[dict[str, Any]] | None:
    """The entries of a suite that is nothing but limits of single columns; None: Great Expectations has to say."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["expectations"]
        asked = [entry for entry in entries if not _about_drops(entry["kwargs"])]
        return asked if asked and all(map(_is_limit, asked)) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_limit(entry: dict[str, Any]) -> bool:
    kwargs, meta = entry["kwargs"], entry.get("meta") or {}
    if set(entry) - _ENTRY or kwargs.get("column") not in _KNOWN or not isinstance(meta.get("reason", ""), str):
        return False
    match entry["type"]:
        case "expect_column_values_to_not_be_null":
            return set(kwargs) == {"column"}
        case "expect_column_values_to_be_in_set":
            return set(kwargs) == {"column", "value_set"} and isinstance(kwargs["value_set"], list)
        case "expect_column_values_to_be_between":
            sides = {k: v for k, v in kwargs.items() if k != "column"}
            numbers = all(type(v) in (int, float) and math.isfinite(v) for v in sides.values())
            low, high = sides.get("min_value", -math.inf), sides.get("max_value", math.inf)
            fits = bool(sides) and set(sides) <= {"min_value", "max_value"} and numbers and low <= high
            return fits and kwargs["column"] in _NUMBERS
    return False


def _by_limits(entries: list[dict[str, Any]], measured: dict[str, Any]) -> tuple[str, ...]:
    values = _values(measured)
    unmet = (entry for entry in entries if _critical(entry) and not _met(entry, values[entry["kwargs"]["column"]]))
    return tuple(dict.fromkeys(_reason(entry) for entry in unmet))


def _met(entry: dict[str, Any], value: Any) -> bool:  # noqa: ANN401 - any measurement
    kwargs = entry["kwargs"]
    match entry["type"]:
        case "expect_column_values_to_not_be_null":
            return value is not None and value == value
        case "expect_column_values_to_be_in_set":
            return value in kwargs["value_set"]
    return kwargs.get("min_value", -math.inf) <= value <= kwargs.get("max_value", math.inf)


def _critical(entry: dict[str, Any]) -> bool:
    return entry.get("severity", "critical") == "critical"


def _reason(entry: dict[str, Any]) -> str:
    return (entry.get("meta") or {}).get("reason") or f"{entry['type']}:{entry['kwargs']['column']}"


def _by_expectations(suite: Any, measured: dict[str, Any]) -> tuple[str, ...]:  # noqa: ANN401 - not imported here
    import pandas as pd

    from cxr_ml.validation.suites import evaluate

    unmet, _ = evaluate(suite, pd.DataFrame([_values(measured) | {"row": 0}]), "row", row_wise=True)
    return tuple(dict.fromkeys(u.reason for u in unmet if u.critical))


def _values(measured: dict[str, Any]) -> dict[str, Any]:
    short, long = sorted((measured["width"], measured["height"]))
    return measured | {"aspect_ratio": long / short}
