"""De-identification: ids of patients become salted hashes, also inside the names of their files."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import is_dicom
from cxr_ml.settings import InboxSettings

_TEXTS = ("file", "label_raw", "source", "view")
# Written by software where nobody is named. Taken for an id, it would make one patient of many.
_PLACEHOLDERS = {
    "",
    "0",
    "anon",
    "anonymous",
    "anonymized",
    "anonymised",
    "unknown",
    "none",
    "null",
    "nan",
    "na",
    "noname",
}
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # that are kept
_MIN_INSIDE = 4  # characters; shorter ids and names are replaced only where they stand alone


def _squeeze(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def hash_patient(settings: InboxSettings, patient: str) -> str:
    """Returns 16 hex digits that stand for the patient in all drops; "" where the text names nobody.

    Case, spaces, punctuation and the form of letters are ignored: each hospital writes them differently.

    Raises:
        Refused: there is a patient, and `patient_salt` is not set.

    Example:
        >>> settings = InboxSettings(patient_salt="secret")
        >>> hash_patient(settings, "Pat-007") == hash_patient(settings, "PAT 007")
        True
        >>> hash_patient(settings, "Anonymous")
        ''
    """
    folded = unicodedata.normalize("NFKC", patient).casefold()
    # Letters, digits, and the marks that belong to letters: without them, many Indian names would be the same.
    patient = "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
    if patient in _PLACEHOLDERS:
        return ""
    return _digest(settings, patient, "A drop that names patients needs a secret with which their ids are hashed")


def _digest(settings: InboxSettings, text: str, need: str) -> str:
    if not settings.patient_salt:
        raise Refused(
            f"{need}. Received: no CXR_INBOX__PATIENT_SALT. Set it once and never change it, for instance to what "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints."
        )
    return hashlib.sha256(f"{settings.patient_salt}\n{text}".encode(errors="surrogatepass")).hexdigest()[:16]


def hash_path(settings: InboxSettings, file: str) -> str:
    """Returns what stands for a file in all drops: 16 hex digits and, if it is a common one, its extension.

    Args:
        settings: patient_salt.
        file: its whole path in the drop, so that files of two folders differ.

    Raises:
        Refused: `patient_salt` is not set.
    """
    extension = PurePosixPath(file).suffix.lower()
    digest = _digest(settings, f"file\n{file}", "To hash the names of files (file_names) needs a secret")
    return digest + (extension if extension in _EXTENSIONS else "")


def hash_file_name(
    settings: InboxSettings, row: dict, file: str, folders: Sequence[str], has_meaning: Callable[[str], bool]
) -> dict:
    """Returns the row with its file named by a hash, below only those folders that name a split or a class.

    Args:
        settings: patient_salt.
        row: labels of the file.
        file: its whole path in the drop.
        folders: the folders of the path, without one that wraps the whole drop.
        has_meaning: whether a folder names a split or a class. A label that is the name of another one is hashed too.

    Raises:
        Refused: `patient_salt` is not set.
    """
    kept = [folder for folder in folders if has_meaning(folder)]
    row = row | {"file": "/".join([*kept, hash_path(settings, file)])}
    if row["label_raw"] in {folder.strip() for folder in folders if not has_meaning(folder)}:
        row["label_raw"] = _digest(settings, f"file\n{row['label_raw']}", "To hash the names of files needs a secret")
    return row


def redact(row: dict, names: list[str], mark: str) -> dict:
    """Returns the row with `mark` in place of the names, in any case and with any punctuation between their words."""
    squeezed = " ".join(_squeeze(row[column]) for column in _TEXTS)
    patterns = [p for name in names for p in _patterns(name) if any(key in squeezed for key in p.keys)]
    if not patterns:
        return row
    # The longest first: replacing only "Doe" of "Doe Jane" would leave the rest.
    patterns.sort(key=lambda p: -len(p.expression))
    pattern = re.compile("|".join(p.expression for p in patterns), re.IGNORECASE)
    return row | {column: pattern.sub(mark, row[column]) for column in filter(row.get, _TEXTS)}


class _Pattern(NamedTuple):
    keys: list[str]  # a squeezed text that matches contains one of them
    expression: str  # regular expression


def _patterns(name: str) -> list[_Pattern]:
    """Patterns for all forms of a name."""
    words = re.findall(r"[^\W\d_]+|\d+", name)
    patterns = [_exact_pattern(words)] if words else []
    if len(words) > 1 and not re.search(r"\d", name):  # a person's: any of its words, and several in any order
        words = [word for word in words if len(word) > 1]
        either = "(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + ")"
        run = rf"{either}(?:[\W_]*{either})+"
        patterns += [_Pattern([word.lower() for word in words], run), *(_exact_pattern([word]) for word in words)]
    return patterns


def _exact_pattern(words: list[str]) -> _Pattern:
    text, expression = "".join(words).lower(), r"[\W_]*".join(map(re.escape, words))
    return _Pattern([text], expression if len(text) >= _MIN_INSIDE else rf"(?<![^\W_])0*{expression}(?![^\W_])")


def redact_patients(row: dict, marks: dict[str, str]) -> dict:
    """Returns the row with marks in place of the ids of all patients of the drop; `marks` from `index_patients`."""
    changed = {}
    for column in filter(row.get, _TEXTS):
        text, words = row[column], list(re.finditer(r"[^\W_]+", row[column]))
        last = len(words) - 1
        while last >= 0:
            for count in (1, 2, 3):
                span = words[max(0, last - count + 1) : last + 1]
                mark = marks.get("".join(word[0] for word in span).lower())
                if mark:
                    text = text[: span[0].start()] + mark + text[words[last].end() :]
                    last -= len(span) - 1
                    break
            last -= 1
        changed[column] = text
    return row | changed


def index_patients(marks: dict[str, str]) -> dict[str, str]:
    """Returns squeezed id -> mark from patient id -> mark, without ids as short as an ordinary number."""
    squeezed = {_squeeze(patient): mark for patient, mark in marks.items() if mark}
    return {patient: mark for patient, mark in squeezed.items() if len(patient) >= _MIN_INSIDE}


def apply_header(settings: InboxSettings, row: dict, data: bytes) -> dict:
    """Returns the row completed from a DICOM header and without any text by which its patient could be found.

    The patient's hash and the view are added where the drop gave none. Other files leave the row as it is.

    Raises:
        Refused: there is a patient, and `patient_salt` is not set.
    """
    if not is_dicom(data):
        return row
    stored = (
        {"file": row["file"]} if settings.file_names == "hash" else {}
    )  # a hash is no name, whatever its digits look like
    from cxr_ml.imaging.dicom import read_identity

    identity = read_identity(data)
    names = [name for name in identity.names if _squeeze(name) not in _PLACEHOLDERS]
    patient = next((name for name in identity.patients if _squeeze(name) not in _PLACEHOLDERS), "")
    row = row | {"patient": row["patient"] or hash_patient(settings, patient), "view": row["view"] or identity.view}
    if names:
        row = redact(row, names, row["patient"] or hash_patient(settings, names[0]))
    # A hash of its own, so that names made of it alone stay distinct.
    examination = hash_patient(settings, identity.accession)
    return (redact(row, [identity.accession], examination) if examination else row) | stored
