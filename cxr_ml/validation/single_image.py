"""Judges single images by images.json as a batch is judged, without Great Expectations wherever it can do without.

Its import takes seconds and each call a tenth of one, too long for one image. So a suite of plain limits is evaluated
by `limits`; a suite that holds anything else is given to Great Expectations as a whole.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_ml.errors import Refused
from cxr_ml.ingest.tables import COLUMNS
from cxr_ml.validation import limits
from cxr_ml.validation.limits import Expectation

if TYPE_CHECKING:  # it takes seconds to import
    from cxr_ml.validation.suites import Suite

# Known of images in a drop only: expectations on these are not asked of an image that comes alone.
_OF_DROPS = {"file", "label", "label_raw", "split_hint", "patient", "source", "view"}
_KNOWN = (set(COLUMNS) - _OF_DROPS - {"verdict", "reasons"}) | {"aspect_ratio"}
_NUMBERS = {name for name, kind in COLUMNS.items() if kind.startswith(("int", "float"))} | {"aspect_ratio"}

Screen = Callable[[dict[str, Any]], tuple[str, ...]]


def load_screen(folder: Path) -> Screen:
    """Returns a function that judges one image by the suite `images.json` of a folder.

    The function takes the measurements of `measure.measure_image`, and returns the codes for which
    `verdicts.judge_images` would quarantine the image, in the order of the suite, () for a fit one. Expectations on
    label, patient, source, view and file name, which are known of images in a drop only, are left out.

    Raises:
        Refused: the suite cannot be used (also when the function is called: what could not be evaluated).
    """
    try:
        expectations = [e for e in limits.read_expectations(folder) if not _is_about_drops(e.columns)]
    except Refused:
        expectations = []  # load_suite names the line
    if expectations and all(map(_is_plain_limit, expectations)):
        return partial(_judge_by_limits, expectations)
    from cxr_ml.validation.suites import load_suite  # takes seconds to import

    suite = load_suite(folder, "images")
    columns = [limits.columns_of(e.configuration.kwargs) for e in suite.expectations]
    suite.expectations = [e for e, names in zip(suite.expectations, columns, strict=True) if not _is_about_drops(names)]
    return partial(_judge_by_expectations, suite)


def _is_about_drops(columns: list[str]) -> bool:
    return bool(_OF_DROPS & set(columns))


def _is_plain_limit(expectation: Expectation) -> bool:
    """Whether it certainly is a valid expectation, of one column, that `limits.is_met` decides."""
    kwargs = expectation.kwargs
    if kwargs.get("column") not in _KNOWN:
        return False
    match expectation.kind:
        case limits.NOT_NULL:
            return set(kwargs) == {"column"}
        case limits.IN_SET:
            return set(kwargs) == {"column", "value_set"} and isinstance(kwargs["value_set"], list)
        case limits.BETWEEN:
            sides = {k: v for k, v in kwargs.items() if k != "column"}
            numbers = all(type(v) in (int, float) and math.isfinite(v) for v in sides.values())
            low, high = sides.get("min_value", -math.inf), sides.get("max_value", math.inf)
            fits = bool(sides) and set(sides) <= {"min_value", "max_value"} and numbers and low <= high
            return fits and kwargs["column"] in _NUMBERS
    return False


def _judge_by_limits(expectations: list[Expectation], measured: dict[str, Any]) -> tuple[str, ...]:
    values = limits.add_aspect_ratio(measured)
    return tuple(dict.fromkeys(e.reason for e in expectations if e.critical and not limits.is_met(e, values)))


def _judge_by_expectations(suite: "Suite", measured: dict[str, Any]) -> tuple[str, ...]:
    import pandas as pd

    from cxr_ml.validation.suites import evaluate

    row = limits.add_aspect_ratio(measured) | {"row": 0}
    unmet, _ = evaluate(suite, pd.DataFrame([row]), "row", row_wise=True)
    return tuple(dict.fromkeys(u.reason for u in unmet if u.critical))
