"""The limits of images.json beside the measurements of one image, without Great Expectations.

Great Expectations judges batches, and whatever is not decided here; its import takes seconds, which a page of the
console or a single prediction must not wait for. Both judge alike: tests/validation/test_single_image.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.settings import ValidationSettings

NOT_NULL = "expect_column_values_to_not_be_null"
ABOUT_NULLS = {NOT_NULL, "expect_column_values_to_be_null"}
BETWEEN, IN_SET = "expect_column_values_to_be_between", "expect_column_values_to_be_in_set"
NOT_IN_SET = "expect_column_values_to_not_be_in_set"
ENTRY_KEYS = {"type", "kwargs", "meta", "notes", "description", "severity", "id"}  # of an expectation in a suite


class Expectation(NamedTuple):
    """One entry of images.json."""

    kind: str  # e.g. expect_column_values_to_be_between
    columns: list[str]
    kwargs: dict[str, Any]  # as they are written there
    reason: str  # code of a row that does not meet it
    notes: str
    critical: bool


class Limit(NamedTuple):
    """One expectation of images.json beside what was measured."""

    column: str
    value: str  # "" where it was not measured
    limit: str  # e.g. "≥ 100"; "" for an expectation that is no limit of the value itself
    met: bool
    reason: str  # code of a row that does not meet it
    notes: str  # what the suite says about it


def read_expectations(folder: Path) -> list[Expectation]:
    """Returns the entries of `<folder>/images.json`.

    Raises:
        Refused: it cannot be read. That its expectations exist is not looked at here.
    """
    path = Path(folder) / "images.json"
    try:
        return [_parse_entry(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["expectations"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"A Great Expectations suite was expected at {path}. Received: {error}") from None


def _parse_entry(entry: dict[str, Any]) -> Expectation:
    kind, kwargs = entry["type"], dict(entry.get("kwargs") or {})
    columns = columns_of(kwargs)
    reason = (entry.get("meta") or {}).get("reason", "")
    if set(entry) - ENTRY_KEYS or not isinstance(reason, str):
        raise ValueError(f"{entry!r}")
    return Expectation(
        kind=kind,
        columns=columns,
        kwargs=kwargs,
        reason=reason or default_reason(kind, columns),
        notes=entry.get("notes") or "",
        critical=entry.get("severity", "critical") == "critical",
    )


def default_reason(kind: str, columns: list[str]) -> str:
    """Returns the reason code of an expectation that names none."""
    return f"{kind}:{', '.join(columns)}"


def add_aspect_ratio(row: Mapping[str, Any] | pd.Series) -> dict[str, Any]:
    """Returns the measurements of an image with its aspect ratio, long side / short side; None without a side."""
    short, long = sorted((row["width"], row["height"]))
    return {**row, "aspect_ratio": long / short if short else None}


def is_met(expectation: Expectation, values: Mapping[str, Any]) -> bool | None:
    """Returns whether an image meets an expectation; None where only Great Expectations can tell.

    Args:
        expectation: an entry of images.json.
        values: the image's measurements, by column. A missing one meets no limit.

    Examples:
        >>> width = Expectation(BETWEEN, ["width"], {"column": "width", "min_value": 100}, "too_small", "", True)
        >>> is_met(width, {"width": 99}), is_met(width, {"width": 100}), is_met(width, {"width": None})
        (False, True, False)
        >>> describe_limit(width.kind, width.kwargs)
        '≥ 100'
    """
    kind, kwargs = expectation.kind, expectation.kwargs
    if kwargs.get("row_condition") or kwargs.get("mostly") not in (None, 1):
        return None
    own = [values.get(column) for column in expectation.columns]
    measured = all(value is not None and not pd.isna(value) for value in own)
    if kind == NOT_NULL or not measured:
        return measured
    try:
        if kind == BETWEEN:
            return _is_between(own[0], kwargs)
        if kind in (IN_SET, NOT_IN_SET):
            return (own[0] in kwargs["value_set"]) == (kind == IN_SET)
    except (KeyError, IndexError, TypeError):  # no suite that judges: a number beside a text, say
        pass
    return None


def _is_between(value: Any, kwargs: dict[str, Any]) -> bool:  # noqa: ANN401 - any measurement
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    above = low is None or value > low or (value == low and not kwargs.get("strict_min"))
    return bool(above and (high is None or value < high or (value == high and not kwargs.get("strict_max"))))


def compare_with_limits(row: Mapping[str, Any] | pd.Series, settings: ValidationSettings) -> list[Limit]:
    """Returns the expectations of images.json beside the measurements of a file.

    Args:
        row: the measurements, and reasons if it was judged.
        settings: where images.json is.

    Raises:
        Refused: images.json cannot be read.
    """
    values = add_aspect_ratio(dict(row))
    limits = []
    for expectation in read_expectations(settings.expectations):
        own = [values.get(name) for name in expectation.columns]
        measured = all(value is not None and not pd.isna(value) for value in own)
        shown = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in own) if measured else ""
        met = is_met(expectation, values)
        if met is None:  # Great Expectations decided it when the row was judged
            met = expectation.reason not in values.get("reasons", ())
        kind, columns = expectation.kind, ", ".join(expectation.columns)
        limit = "" if kind in ABOUT_NULLS else describe_limit(kind, expectation.kwargs)
        limits.append(Limit(columns, shown, limit, met, expectation.reason, expectation.notes))
    return limits


def columns_of(kwargs: dict[str, Any]) -> list[str]:
    """Returns the columns that an expectation with these arguments looks at."""
    single = [kwargs[k] for k in ("column", "column_A", "column_B") if k in kwargs]
    return [*single, *kwargs.get("column_list", ()), *kwargs.get("column_set", ())]


def describe_limit(kind: str, kwargs: dict[str, Any]) -> str:
    """Returns what an expectation of that type asks for, e.g. "≤ 0.005"."""
    parts = []
    for name, sign, strict in (("min_value", "≥", ">"), ("max_value", "≤", "<")):
        if kwargs.get(name) is not None:
            value = kwargs[name]
            text = f"{value:.10g}" if isinstance(value, int | float) else str(value)
            parts.append(f"{strict if kwargs.get('strict_' + name[:3]) else sign} {text}")
    if "value_set" in kwargs:
        negation = "not " if "_not_" in kind else ""
        parts.append(f"{negation}in {{{', '.join(map(str, kwargs['value_set'] or ()))}}}")
    if kind == NOT_NULL:
        parts.append("not empty")
    if not parts:
        rest = {k: v for k, v in kwargs.items() if k not in ("batch_id", "column", "mostly", "result_format")}
        parts.append(f"{kind} {json.dumps(rest, default=str) if rest else ''}".strip())
    mostly = kwargs.get("mostly")
    return " and ".join(parts) + (f" in at least {mostly:.4g} of the rows" if mostly not in (None, 1) else "")
