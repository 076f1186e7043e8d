"""Keeps patients out of what is stored: their ids become salted hashes, also inside the names of their files."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import is_dicom
from cxr_ml.settings import Settings

_TEXTS = ("file", "label_raw", "source", "view")
# What software writes where nobody is named. Taken for an id, it would make one patient of all of them.
_NOBODY = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none", "null", "nan", "na", "noname"}
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # may be kept
_SHORT = 4  # characters: shorter ids and names are replaced only where they stand alone


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def hashed(settings: Settings, patient: str) -> str:
    """16 hex digits that stand for the patient in all drops; "" where the text names nobody.

    Case, blanks, signs and the form of its letters tell no two patients apart: each hospital writes them otherwise.

    Raises:
        Refused: there is a patient, and `patient_salt` is not set.
    """
    folded = unicodedata.normalize("NFKC", patient).casefold()
    # Letters, digits, and the marks that belong to letters: without them, many names of India would be one.
    patient = "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
    if patient in _NOBODY:
        return ""
    return _digest(settings, patient, "A drop that names patients needs a secret with which their ids are hashed")


def _digest(settings: Settings, text: str, why: str) -> str:
    if not settings.patient_salt:
        raise Refused(
            f"{why}. Received: no CXR_PATIENT_SALT. Set it once and never change it, for instance to what "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints."
        )
    return hashlib.sha256(f"{settings.patient_salt}\n{text}".encode(errors="surrogatepass")).hexdigest()[:16]


def hashed_name(settings: Settings, file: str) -> str:
    """What stands for the name of a file in all drops: 16 hex digits and, where it is a usual one, its extension.

    Args:
        settings: patient_salt.
        file: its whole path in the drop, so that files of two folders are told apart.

    Raises:
        Refused: `patient_salt` is not set.
    """
    extension = PurePosixPath(file).suffix.lower()
    digest = _digest(settings, f"file\n{file}", "To hash the names of files (file_names) needs a secret")
    return digest + (extension if extension in _EXTENSIONS else "")


def nameless(settings: Settings, row: dict, file: str, folders: Sequence[str], usual: Callable[[str], bool]) -> dict:
    """`row` with the hash of its file's name, below those of the folders that name a split or a class only.

    Args:
        settings: patient_salt.
        row: what the drop says of the file.
        file: its whole path in the drop.
        folders: the folders of the path, but those that wrap the whole drop.
        usual: whether a folder names a split or a class. A label that is the name of another one is hashed, too.

    Raises:
        Refused: `patient_salt` is not set.
    """
    kept = [folder for folder in folders if usual(folder)]
    row = row | {"file": "/".join([*kept, hashed_name(settings, file)])}
    if row["label_raw"] in {folder.strip() for folder in folders if not usual(folder)}:
        row["label_raw"] = _digest(settings, f"file\n{row['label_raw']}", "To hash the names of files needs a secret")
    return row


def told_apart(names: Sequence[str]) -> list[str]:
    """`names` with ~2, ~3, … before the extension of the second, third, … of the same: two spellings of one patient."""
    taken, given, found = set(names), set(), []
    for name in names:
        unique, number, path = name, 1, PurePosixPath(name)
        while unique in given or (number > 1 and unique in taken):
            number += 1
            unique = str(path.with_name(f"{path.stem}~{number}{path.suffix}"))
        given.add(unique)
        found.append(unique)
    return found


def hide(row: dict, names: list[str], mark: str) -> dict:
    """`row` with `mark` wherever its texts hold one of the names, in any case and with any signs between its words."""
    squeezed = " ".join(_squeezed(row[column]) for column in _TEXTS)
    patterns = [p for name in names for p in _patterns(name) if any(key in squeezed for key in p[0])]
    if not patterns:
        return row
    # The longest first: of "Doe Jane", "Doe" alone would leave the rest to a guess.
    patterns.sort(key=lambda p: -len(p[1]))
    found = re.compile("|".join(p[1] for p in patterns), re.IGNORECASE)
    return row | {column: found.sub(mark, row[column]) for column in filter(row.get, _TEXTS)}


def _patterns(name: str) -> list[tuple[list[str], str]]:
    """(words of which a squeezed text must hold one, regular expression) for all forms of a name."""
    words = re.findall(r"[^\W\d_]+|\d+", name)
    patterns = [_alone(words)] if words else []
    if len(words) > 1 and not re.search(r"\d", name):  # a person's: any of its words, and several in any order
        words = [word for word in words if len(word) > 1]
        either = "(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + ")"
        run = rf"{either}(?:[\W_]*{either})+"
        patterns += [([word.lower() for word in words], run), *(_alone([word]) for word in words)]
    return patterns


def _alone(words: list[str]) -> tuple[list[str], str]:
    text, expression = "".join(words).lower(), r"[\W_]*".join(map(re.escape, words))
    return [text], expression if len(text) >= _SHORT else rf"(?<![^\W_])0*{expression}(?![^\W_])"


def hide_known(row: dict, known: dict[str, str]) -> dict:
    """`row` with marks for the ids of any patient of the drop; `known`: squeezed id -> mark, from `known_ids`."""
    changed = {}
    for column in filter(row.get, _TEXTS):
        text, words = row[column], list(re.finditer(r"[^\W_]+", row[column]))
        at = len(words) - 1
        while at >= 0:
            for count in (1, 2, 3):
                span = words[max(0, at - count + 1) : at + 1]
                mark = known.get("".join(word[0] for word in span).lower())
                if mark:
                    text = text[: span[0].start()] + mark + text[words[at].end() :]
                    at -= len(span) - 1
                    break
            at -= 1
        changed[column] = text
    return row | changed


def known_ids(marks: dict[str, str]) -> dict[str, str]:
    """From patient id -> mark, what `hide_known` needs. Ids too short to be told from a number are left out."""
    found = {_squeezed(patient): mark for patient, mark in marks.items() if mark}
    return {patient: mark for patient, mark in found.items() if len(patient) >= _SHORT}


def from_header(settings: Settings, row: dict, data: bytes) -> dict:
    """`row` with what a DICOM header says: the patient's hash and the view where the drop gave none, and nothing in
    its texts by which the header's patient could be found. Other files change nothing.

    Raises:
        Refused: there is a patient, and `patient_salt` is not set.
    """
    if not is_dicom(data):
        return row
    stored = {"file": row["file"]} if settings.file_names == "hash" else {}  # no name, whatever its digits look like
    from cxr_ml.imaging.dicom import read_identity

    said = read_identity(data)
    names = [name for name in said.names if _squeezed(name) not in _NOBODY]
    patient = next((name for name in said.patients if _squeezed(name) not in _NOBODY), "")
    row = row | {"patient": row["patient"] or hashed(settings, patient), "view": row["view"] or said.view}
    if names:
        row = hide(row, names, row["patient"] or hashed(settings, names[0]))
    # A hash of its own, so that names made of it alone stay apart.
    examination = hashed(settings, said.accession)
    return (hide(row, [said.accession], examination) if examination else row) | stored
