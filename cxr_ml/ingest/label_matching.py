"""Matches the rows of a labels.csv to the files of its drop."""

import unicodedata
from array import array
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import BadImage
from cxr_ml.ingest import archives
from cxr_ml.ingest.drop_index import CHUNK, Listing, decoded, encoded
from cxr_ml.ingest.inbox import read
from cxr_ml.ingest.labels_csv import read_rows, spelling, split_of
from cxr_ml.settings import Settings

_SAID = {"label": "label_raw", "split": "split_hint", "patient_id": "patient", "source": "source", "view": "view"}
_SCHEMA = pa.schema(
    [("file", pa.large_binary()), *((name, pa.large_string()) for name in _SAID.values()), ("entry", pa.int32())]
)
_REASONS = pa.array(["", "path_outside_drop", "file_missing", "conflicting_rows", "unknown_split", "not_listed"])
_FINE, _OUTSIDE, _MISSING, _CONFLICTING, _UNSPLIT, _UNLISTED = range(6)


def match(settings: Settings, drop: str, entries: Listing, table: int, wrapper: str) -> pa.Table:
    """What labels.csv says, in order of the paths.

    Args:
        settings: limits.
        drop: its name, for messages.
        entries: all files of the drop.
        table: which of them is labels.csv.
        wrapper: folder, with "/", below which names may be meant; "": none.

    Returns:
        One row per file of the drop but labels.csv, and per row of labels.csv without a file: file (`encoded`, as in
        the drop), label_raw, split_hint, patient, source, view, entry (place of the file in `entries`, -1 where there
        is none), reason ("" where all is well) and at (the last entry whose path is not after this one's, at least 0).

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows.
    """
    try:
        data = read(settings, entries[table])
    except BadImage as error:
        raise Refused(f"labels.csv of the drop {drop!r} must be a file that can be read. {error}") from None
    places = {e.file: i for i, e in enumerate(entries) if i != table}
    # A name typed on one system and packed on another may differ in how its accents are composed.
    normal = ((unicodedata.normalize("NFC", file), file, i) for file, i in places.items())
    composed = {name: i for name, file, i in normal if name != file}
    parts: list[pa.Table] = []
    kept: list[list] = [[] for _ in _SCHEMA]
    row_of, lost = np.full(len(entries), -1, np.int32), {}  # the row of each entry, and of each name without one
    reasons, facts = array("b"), array("q")
    for said in read_rows(data, drop):
        file = said["filename"].replace("\\", "/")
        file = str(PurePosixPath(file)) if file else ""
        split = split_of(said["split"])
        # 64 bits each, with the secret of this process, so that nobody can make two that are one.
        fact = hash((spelling(said["label"]), said["patient_id"], split))
        reason, at = _MISSING, -1
        if archives.outside(file):
            reason = _OUTSIDE
        else:
            tries = [f for way in (file, wrapper + file) for f in (way, unicodedata.normalize("NFC", way))]
            at = next((where[f] for where in (places, composed) for f in tries if f in where), -1)
        earlier = int(row_of[at]) if at >= 0 else lost.get(file, -1)
        if earlier >= 0:
            if facts[earlier] != fact:
                reasons[earlier] = _CONFLICTING
            continue
        if len(reasons) == settings.max_drop_files:
            raise Refused(
                f"labels.csv of the drop {drop!r} must have at most {settings.max_drop_files:,} rows. "
                "Received: more. Split the drop, or raise max_drop_files."
            )
        if at >= 0:
            row_of[at], reason = len(reasons), _UNSPLIT if split is None else _FINE
            file = entries[at].file if file not in places else file
        else:
            lost[file] = len(reasons)
        reasons.append(reason)
        facts.append(fact)
        values = (encoded(file), said["label"], split or "", said["patient_id"], said["source"], said["view"], at)
        for column, value in zip(kept, values, strict=True):
            column.append(value)
        if len(kept[0]) == CHUNK:
            parts.append(pa.table(kept, schema=_SCHEMA))
            kept = [[] for _ in _SCHEMA]
    parts.append(pa.table(kept, schema=_SCHEMA))
    del data, places, composed, lost
    unlisted = np.flatnonzero((row_of < 0) & (np.arange(len(entries)) != table)).astype(np.int32)
    nothing = pa.array(np.full(len(unlisted), ""), pa.large_string())
    files = entries.table["file"].take(pa.array(unlisted))
    parts.append(pa.table([files, *[nothing] * len(_SAID), pa.array(unlisted)], schema=_SCHEMA))
    codes = np.concatenate([np.frombuffer(reasons, np.int8), np.full(len(unlisted), _UNLISTED, np.int8)])
    return _ordered(pa.concat_tables(parts).append_column("reason", _REASONS.take(pa.array(codes))), entries, table)


def _ordered(rows: pa.Table, entries: Listing, table: int) -> pa.Table:
    rows = rows.combine_chunks().take(pc.sort_indices(rows, [("file", "ascending"), ("entry", "ascending")]))
    at = np.maximum.accumulate(rows["entry"].to_numpy()) if len(rows) else np.zeros(0, np.int32)
    # The table is an entry without a row of its own.
    after = pc.greater_equal(rows["file"], encoded(entries[table].file)).to_numpy(zero_copy_only=False)
    at = np.where(after & (at == table - 1), table, at)
    return rows.append_column("at", pa.array(np.maximum(at, 0)))


def rows(said: pa.Table) -> list[dict]:
    """The rows of a part of what `match` gave, as objects."""
    found = said.drop_columns("at").to_pylist()
    for row in found:
        row["file"], reason = decoded(row["file"]), row.pop("reason")
        row["reasons"] = [reason] if reason else []
    return found
