"""What the codes mean for which a file was refused."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cxr_ml.settings import ValidationSettings
from cxr_ml.validation.limits import compare_with_limits

_WORDS = {
    "no_label": "The drop gives no label for it.",
    "unknown_label": "The drop's label is none of the known spellings; see label_spellings in the settings.",
    "unknown_split": "labels.csv has it in an unknown split, and it may be your own test image: write train, "
    "validation or test there, and deliver it again.",
    "not_listed": "labels.csv does not list this file.",
    "file_missing": "labels.csv lists it, and the drop has no such file.",
    "path_outside_drop": "labels.csv names a path that leads out of the drop.",
    "conflicting_rows": "labels.csv has two rows for it, with different labels.",
    "special_file": "It is not a file, but a pipe, a socket or a device.",
    "name_too_long": "Its path in the drop is longer than a path may be.",
    "duplicate_name": "The drop's archive holds two files of this name.",
    "encrypted": "It is encrypted in the drop's archive.",
    "unsupported_compression": "The drop's archive holds it compressed by a method that is not supported.",
    "crashes_decoder": "This file crashed the decoder.",
    "symlink": "It is a link, and links are never followed.",
    "too_large": "The file is larger than max_file_bytes in the settings; it was not read.",
    "too_many_pixels": "The image has more pixels than max_pixels in the settings; it was not decoded.",
    "not_an_image": "The bytes are no image of a supported kind, whatever the name of the file.",
    "truncated": "The file ends before the image does.",
    "unreadable": "The file cannot be decoded.",
    "empty_file": "The file is empty.",
    "animated": "The file contains several pictures; ambiguous.",
    "multi_frame": "The DICOM file contains several frames; ambiguous.",
    "burned_in_annotation": "Its header says that text is burned in, which may name the patient; not stored.",
    "for_processing": "The DICOM file holds raw detector values, which are not meant to be viewed.",
    "rotated": "The file asks to be shown rotated, so its picture is not stored upright.",
    "nested_archive": "It is an archive within the drop's archive, which is not opened.",
    "damaged_member": "The drop's archive holds this file damaged.",
    "unsupported_depth": "Its bit depth is not supported.",
    "unsupported_format": "It is an image of a kind that is not supported.",
    "unsupported_photometric": "Its DICOM photometric interpretation is not supported.",
    "unsupported_syntax": "Its DICOM transfer syntax is not supported.",
    "conflicting_label": "The same picture was delivered under another label too, and nobody knows which is right.",
    "contradicted": "It was accepted; then a later drop showed the same picture under another label.",
    "exact_duplicate": "The same image is in the store already.",
    "near_duplicate": "It shows the same picture as an earlier image: resized, re-encoded, turned, padded or the like.",
}


def explain(code: str, row: Mapping[str, Any] | pd.Series, rejected: str, settings: ValidationSettings) -> str:
    """Returns a reason code in plain words.

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
    limits = [x for x in compare_with_limits(row, settings) if x.reason == code]
    if not limits:
        return f"{code.replace('_', ' ')}."
    unmet = [
        f"{x.column} is {x.value or 'not measured'}, "
        + (f"which does not meet {x.limit}" if x.limit.startswith("expect_") else f"expected {x.limit}")
        for x in limits
        if x.limit and not x.met
    ]
    notes = next((x.notes for x in limits if x.notes), "")
    # The suite may have been changed since, so that nothing of it is unmet now.
    text = f"{'; '.join(unmet)}. {notes}".strip(". ")
    return f"{text or f'does not meet {limits[0].limit or code}'}."
