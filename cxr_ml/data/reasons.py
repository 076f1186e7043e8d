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
    "near_duplicate": "It shows the same picture as an earlier image: resized, re-encoded, mirrored or the like.",
}


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"A Great Expectations suite was expected at {path}. Received: {error}") from None
    short, long = sorted((row["width"], row["height"]))
    values = dict(row) | {"aspect_ratio": long / short if short else None}
    found = []
    for entry in entries:
        kwargs = entry["kwargs"]
        reason = (entry.get("meta") or {}).get("reason") or f"{entry['type']}:{kwargs.get('column', '')}"
        value = values.get(kwargs.get("column"))
        measured = value is not None and not pd.isna(value)
        shown = "" if not measured else f"{value:.4g}" if isinstance(value, float) else str(value)
        limit, met = "", measured
        if entry["type"] == "expect_column_values_to_be_between":
            low, high = kwargs.get("min_value"), kwargs.get("max_value")
            sides = (("≥", low), ("≤", high))
            limit = " and ".join(f"{sign} {side:g}" for sign, side in sides if side is not None)
            met = measured and (low is None or value >= low) and (high is None or value <= high)
        elif entry["type"] == "expect_column_values_to_be_in_set":
            limit = f"one of {', '.join(map(str, kwargs['value_set']))}"
            met = measured and value in kwargs["value_set"]
        found.append(Limit(kwargs.get("column", ""), shown, limit, bool(met), reason, entry.get("notes") or ""))
    return found


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
    unmet = [x for x in found if x.limit and not x.met]
    measured = "; ".join(f"{x.column} is {x.value or 'not measured'}, expected {x.limit}" for x in unmet)
    notes = next((x.notes for x in found if x.notes), "")
    return f"{measured}. {notes}".strip(". ") + "." if found else f"{code.replace('_', ' ')}."
