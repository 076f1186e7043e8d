"""Reads labels.csv in the forms in which people and their spreadsheets write it."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from functools import lru_cache

from cxr_ml.errors import Refused

# Column -> what people call it, the best first, as `spelling` gives it.
COLUMNS = {
    "filename": ("filename", "file", "image", "imagename", "imageindex", "filepath", "imagepath", "path"),
    "label": ("label", "class", "diagnosis", "finding", "findings", "findinglabels", "category"),
    "patient_id": ("patientid", "patient", "subjectid", "subject", "mrn", "patientname"),
    "view": ("view", "viewposition", "projection"),
    "source": ("source", "site", "hospital", "dataset"),
    "split": ("split", "subset", "partition"),
}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing", "eval", "holdout"),
}
_CHUNK = 1 << 20


@lru_cache(maxsize=4096)
def spelling(text: str) -> str:
    """`text` as labels and names of columns are compared: without case, spaces, '-' and '_'."""
    return re.sub(r"[\s_-]+", "", text).casefold()


def split_of(text: str) -> str | None:
    """train, validation or test, whichever the text means; "" where it says nothing, None where nobody knows."""
    said = spelling(text)
    return next((name for name, ways in _SPLITS.items() if said.removesuffix("set") in ways), None) if said else ""


def read_rows(data: bytes, drop: str) -> Iterator[dict[str, str]]:
    """The rows of a labels.csv, each with the keys of COLUMNS; "" for what it lacks.

    UTF-8 or UTF-16 with or without a mark, or Windows' Latin; parted by commas, semicolons or tabs, as its first line
    tells. Columns may have any of the names in COLUMNS, in any case.

    Raises:
        Refused: it is no table, or lacks a column for the file or the label.
    """
    lines = _lines(data)
    try:
        header = [spelling(name) for name in next(lines, [])]
        places = {c: next((header.index(s) for s in names if s in header), len(header)) for c, names in COLUMNS.items()}
        if len(header) in (places["filename"], places["label"]):
            raise Refused(
                f"labels.csv of the drop {drop!r} needs the columns filename and label. Received: {header[:20]}"
            )
        for line in filter(None, lines):
            yield {column: line[at].strip() if at < len(line) else "" for column, at in places.items()}
    except csv.Error as error:
        raise Refused(f"labels.csv of the drop {drop!r} is not a CSV table: line {lines.line_num}, {error}") from None


def _encoding(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in data[:2]:  # UTF-16 without a mark: one byte of each Latin letter is zero
        return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            for _ in codecs.iterdecode((data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)), encoding):
                pass
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _lines(data: bytes) -> "csv._reader":
    # Decoded piece by piece: as one text, it would take four times its size.
    text = io.TextIOWrapper(io.BytesIO(data), _encoding(data), errors="replace", newline="")
    whole = io.TextIOWrapper(io.BytesIO(data), text.encoding, errors="replace", newline="\n").readline()
    first = whole.strip()
    delimiter = max(",;\t", key=first.count)
    if re.fullmatch("sep=.", first):  # Excel's own way to say it
        delimiter = first[4]
        text.read(len(whole))
    return csv.reader(text, delimiter=delimiter, strict=True)
