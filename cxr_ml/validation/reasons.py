"""What the codes mean for which a file was refused, and its measurements beside the limits."""

import json
from typing import Any, NamedTuple

import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

_WORDS = {
    "no_label": "The drop says no label for it.",
    "unknown_label": "The drop's label is none of the known spellings; see label_spellings in the settings.",
    "unknown_split": "labels.csv has it in a split that nobody knows, and it may be your own test image: write train, "
    "validation or test there, and deliver it again.",
    "not_listed": "labels.csv does not list this file.",
    "file_missing": "labels.csv lists it, and the drop has no such file.",
    "path_outside_drop": "labels.csv names a path that leads out of the drop.",
    "conflicting_rows": "labels.csv has two rows for it, with different labels.",
    "special_file": "It is no file, but a pipe, a socket or a device.",
    "name_too_long": "Its path in the drop is longer than a path may be.",
    "duplicate_name": "The drop's archive holds two files of this name.",
    "encrypted": "It is encrypted in the drop's archive.",
    "unsupported_compression": "The drop's archive holds it compressed by a method that is not read here.",
    "crashes_decoder": "The process that decoded it died of it.",
    "symlink": "It is a link, and links are never followed.",
    "too_large": "The file is larger than max_file_bytes in the settings; it was not read.",
    "too_many_pixels": "The image has more pixels than max_pixels in the settings; it was not decoded.",
    "not_an_image": "The bytes are no image of a kind that is read here, whatever the file is called.",
    "truncated": "The file ends before the image does.",
    "unreadable": "The file cannot be decoded.",
    "empty_file": "The file is empty.",
    "animated": "The file holds several pictures; which one is meant, nobody knows.",
    "multi_frame": "The DICOM file holds several frames; which one is meant, nobody knows.",
    "burned_in_annotation": "Its header says that the picture bears writing, which may name the patient; not stored.",
    "for_processing": "The DICOM file holds raw detector values, which are not meant for looking at.",
    "rotated": "The file asks to be shown rotated, so that its picture does not lie as a film does.",
    "nested_archive": "It is an archive within the drop's archive, which is not opened.",
    "damaged_member": "The drop's archive holds this file damaged.",
    "unsupported_depth": "Its bit depth is none that is read here.",
    "unsupported_format": "It is an image of a kind that is not read here.",
    "unsupported_photometric": "Its DICOM photometric interpretation is none that is read here.",
    "unsupported_syntax": "Its DICOM transfer syntax is none that is read here.",
    "conflicting_label": "The same picture was delivered under another label too, and nobody knows which is right.",
    "contradicted": "It was accepted; then a later drop showed the same picture under another label.",
    "exact_duplicate": "The same image is in the store already.",
    "near_duplicate": "It shows the same picture as an earlier image: resized, re-encoded, turned, padded or the like.",
}


ABOUT_NULLS = {"expect_column_values_to_not_be_null", "expect_column_values_to_be_null"}


class Limit(NamedTuple):
    """One expectation of images.json beside what was measured."""

    column: str
    value: str  # "" where it was not measured
    limit: str  # e.g. "≥ 100"; "" for an expectation that is no limit of the value itself
    met: bool
    reason: str  # code of a row that does not meet it
    notes: str  # what the suite says about it


def limits(row: pd.Series | dict[str, Any], settings: Settings) -> list[Limit]:
    """The limits of images.json for one column each, beside the row's measurements.

    Raises:
        Refused: images.json cannot be read.
    """
    path = settings.expectations / "images.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["expectations"]
        said = [
            (e["type"], dict(e.get("kwargs") or {}), (e.get("meta") or {}).get("reason"), e.get("notes") or "")
            for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"A Great Expectations suite was expected at {path}. Received: {error}") from None
    short, long = sorted((row["width"], row["height"]))
    values = dict(row) | {"aspect_ratio": long / short if short else None}
    found = []
    for kind, kwargs, code, notes in said:
        names = columns_of(kwargs)
        reason = code or f"{kind}:{', '.join(names)}"
        own = [values.get(name) for name in names]
        measured = [value is not None and not pd.isna(value) for value in own]
        shown = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in own) if all(measured) else ""
        met = all(measured) and _met(kind, kwargs, own)
        if met is None:  # only Great Expectations could tell, and it did when the row was judged
            met = reason not in values.get("reasons", ())
        limit = "" if kind in ABOUT_NULLS else limit_of(kind, kwargs)
        found.append(Limit(", ".join(names), shown, limit, met, reason, notes))
    return found


def _met(kind: str, kwargs: dict[str, Any], own: list[Any]) -> bool | None:
    """Whether the values meet the expectation; None where that is not known here."""
    if kwargs.get("row_condition") or kwargs.get("mostly") not in (None, 1):
        return None
    try:
        if kind == "expect_column_values_to_be_between":
            low, high = kwargs.get("min_value"), kwargs.get("max_value")
            above = low is None or own[0] > low or (own[0] == low and not kwargs.get("strict_min"))
            return bool(above and (high is None or own[0] < high or (own[0] == high and not kwargs.get("strict_max"))))
        if kind in ("expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"):
            return (own[0] in kwargs["value_set"]) == (kind == "expect_column_values_to_be_in_set")
    except (KeyError, IndexError, TypeError):  # no suite that judges: a number beside a text, say
        pass
    return None


def columns_of(kwargs: dict[str, Any]) -> list[str]:
    """The columns that an expectation with these arguments looks at."""
    single = [kwargs[k] for k in ("column", "column_A", "column_B") if k in kwargs]
    return [*single, *kwargs.get("column_list", ()), *kwargs.get("column_set", ())]


def limit_of(kind: str, kwargs: dict[str, Any]) -> str:
    """What an expectation of that type asks for, e.g. "≤ 0.005"."""
    parts = []
    for name, sign, strict in (("min_value", "≥", ">"), ("max_value", "≤", "<")):
        if kwargs.get(name) is not None:
            value = kwargs[name]
            text = f"{value:.10g}" if isinstance(value, int | float) else str(value)
            parts.append(f"{strict if kwargs.get('strict_' + name[:3]) else sign} {text}")
    if "value_set" in kwargs:
        isnt = "not " if "_not_" in kind else ""
        parts.append(f"{isnt}in {{{', '.join(map(str, kwargs['value_set'] or ()))}}}")
    if kind == "expect_column_values_to_not_be_null":
        parts.append("not empty")
    if not parts:
        rest = {k: v for k, v in kwargs.items() if k not in ("batch_id", "column", "mostly", "result_format")}
        parts.append(f"{kind} {json.dumps(rest, default=str) if rest else ''}".strip())
    mostly = kwargs.get("mostly")
    return " and ".join(parts) + (f" in at least {mostly:.4g} of the rows" if mostly not in (None, 1) else "")


def explain(code: str, row: pd.Series | dict[str, Any], rejected: str, settings: Settings) -> str:
    """A reason code in plain words.

    Args:
        code: e.g. too_small.
        row: the measurements of the file.
        rejected: why the file's class was rejected in its batch, "" where it was not.
        settings: where images.json is.
    """
    if code.startswith("rejected_class:"):
        return f"Its class was rejected in this drop. {rejected}"
    if code in _WORDS:
        return _WORDS[code]
    found = [x for x in limits(row, settings) if x.reason == code]
    if not found:
        return f"{code.replace('_', ' ')}."
    unmet = [
        f"{x.column} is {x.value or 'not measured'}, "
        + (f"which does not meet {x.limit}" if x.limit.startswith("expect_") else f"expected {x.limit}")
        for x in found
        if x.limit and not x.met
    ]
    notes = next((x.notes for x in found if x.notes), "")
    # The suite may have been changed since, so that nothing of it is unmet now.
    text = f"{'; '.join(unmet)}. {notes}".strip(". ")
    return f"{text or f'does not meet {found[0].limit or code}'}."
