"""Reads labels.csv in the forms that people and their spreadsheets write."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from cxr_ml.errors import Refused

if TYPE_CHECKING:
    import _csv

# Column -> names that people give it, the best first, normalized.
COLUMNS = {
    "filename": ("filename", "file", "image", "imagename", "imageindex", "filepath", "imagepath", "path"),
    "label": ("label", "class", "diagnosis", "finding", "findings", "findinglabels", "category"),
    "patient_id": ("patientid", "patient", "subjectid", "subject", "mrn", "patientname"),
    "view": ("view", "viewposition", "projection"),
    "source": ("source", "site", "hospital", "dataset"),
    "split": ("split", "subset", "partition"),
}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing", "eval", "holdout"),
}
_CHUNK = 1 << 20


@lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    """Returns a label or column name as it is compared: without case, spaces, '-' and '_'.

    Example:
        >>> normalize("Covid-19"), normalize("Patient_ID")
        ('covid19', 'patientid')
    """
    return re.sub(r"[\s_-]+", "", text).casefold()


def parse_split(text: str) -> str | None:
    """Returns the split that a text means: train, validation or test; "" for no text, None for an unknown one.

    Example:
        >>> parse_split("Training set"), parse_split("val"), parse_split(""), parse_split("NORMAL")
        ('train', 'validation', '', None)
    """
    name = normalize(text)
    if not name:
        return ""
    return next((split for split, names in _SPLIT_NAMES.items() if name.removesuffix("set") in names), None)


def read_rows(data: bytes, drop: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a labels.csv, each with the keys of COLUMNS; a missing value is "".

    The encoding is UTF-8 or UTF-16 with or without a byte order mark, or Windows-1252; the separator a comma, semicolon
    or tab. Columns may have any of the names in COLUMNS, in any case.

    Raises:
        Refused: it is not a table, or lacks a column for the file or the label.
    """
    lines = _lines(data)
    try:
        header = [normalize(name) for name in next(lines, [])]
        positions = {
            c: next((header.index(n) for n in names if n in header), len(header)) for c, names in COLUMNS.items()
        }
        if len(header) in (positions["filename"], positions["label"]):
            raise Refused(
                f"labels.csv of the drop {drop!r} needs the columns filename and label. Received: {header[:20]}"
            )
        for line in filter(None, lines):
            yield {column: line[i].strip() if i < len(line) else "" for column, i in positions.items()}
    except csv.Error as error:
        raise Refused(f"labels.csv of the drop {drop!r} is not a CSV table: line {lines.line_num}, {error}") from None


def _encoding(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in data[:2]:  # UTF-16 without a byte order mark: one byte of each Latin letter is zero
        return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            for _ in codecs.iterdecode((data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)), encoding):
                pass
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _lines(data: bytes) -> "_csv.Reader":
    # Decoded bit by bit: as one text, it would take four times its size.
    text = io.TextIOWrapper(io.BytesIO(data), _encoding(data), errors="replace", newline="")
    first_line = io.TextIOWrapper(io.BytesIO(data), text.encoding, errors="replace", newline="\n").readline()
    first = first_line.strip()
    delimiter = max(",;\t", key=first.count)
    if re.fullmatch("sep=.", first):  # Excel's way to name the separator
        delimiter = first[4]
        text.read(len(first_line))
    return csv.reader(text, delimiter=delimiter, strict=True)
