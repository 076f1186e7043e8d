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
from cxr_ml.ingest.drop_files import read_file
from cxr_ml.ingest.drop_index import CHUNK, DropIndex, decode_name, encode_name
from cxr_ml.ingest.labels_csv import normalize, parse_split, read_rows
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

_TEXTS = ("label_raw", "split_hint", "patient", "source", "view")
_SCHEMA = pa.schema(
    [("file", pa.large_binary()), *((name, pa.large_string()) for name in _TEXTS), ("entry", pa.int32())]
)
_REASONS = pa.array(["", "path_outside_drop", "file_missing", "conflicting_rows", "unknown_split", "not_listed"])
_USABLE, _OUTSIDE, _MISSING, _CONFLICTING, _UNKNOWN_SPLIT, _NOT_LISTED = range(6)


def match_rows(
    store: ObjectStore, settings: Settings, drop: str, files: DropIndex, table: int, wrapper: str
) -> pa.Table:
    """Reads labels.csv and matches its rows to the files of the drop.

    Args:
        store: the object store.
        settings: limits.
        drop: its name, for messages.
        files: all files of the drop.
        table: position of labels.csv among them.
        wrapper: folder, with "/", that names in the table may be relative to; "" for none.

    Returns:
        In order of the paths, one row per file of the drop but labels.csv, and per row of labels.csv without a file:
        file (encoded, as in the drop), label_raw, split_hint, patient, source, view, entry (position of the file, -1
        where there is none), reason ("" for a usable row) and at (position of the last file whose path is not after
        this one's, at least 0).

    Raises:
        Refused: labels.csv is a link, is too large, cannot be read, lacks the columns filename and label, or has more
            than `max_drop_files` rows.
    """
    try:
        data = read_file(store, settings.images, files[table])
    except BadImage as error:
        raise Refused(f"labels.csv of the drop {drop!r} must be a file that can be read. {error}") from None
    matcher = _Matcher(files, table, wrapper)
    for row in read_rows(data, drop):
        if matcher.add(row) and len(matcher.reasons) > settings.inbox.max_drop_files:
            raise Refused(
                f"labels.csv of the drop {drop!r} must have at most {settings.inbox.max_drop_files:,} rows. "
                "Received: more. Split the drop, or raise max_drop_files."
            )
    del data
    return _sort_rows(matcher.finish(), files, table)


class _Matcher:
    """Collects the rows of a labels.csv as compact columns: of a million rows no million objects are in memory."""

    def __init__(self, files: DropIndex, table: int, wrapper: str) -> None:
        self.files, self.table, self.wrapper = files, table, wrapper
        self.positions = {entry.file: i for i, entry in enumerate(files) if i != table}
        # A name typed on one system and packed on another may differ in how its accents are composed.
        normal = ((unicodedata.normalize("NFC", file), file, i) for file, i in self.positions.items())
        self.composed = {name: i for name, file, i in normal if name != file}
        self.row_of = np.full(len(files), -1, np.int32)  # the row of each file
        self.row_of_missing: dict[str, int] = {}  # the row of each name without a file
        self.reasons, self.contents = array("b"), array("q")
        self.chunks: list[pa.Table] = []
        self.columns: list[list] = [[] for _ in _SCHEMA]

    def add(self, row: dict[str, str]) -> bool:
        """Adds a row unless an earlier one names the same file; two that contradict each other are marked."""
        name = row["filename"].replace("\\", "/")
        name = str(PurePosixPath(name)) if name else ""
        split = parse_split(row["split"])
        # 64 bits with the secret of this process, so that nobody can construct two different rows with one hash.
        content = hash((normalize(row["label"]), row["patient_id"], split))
        is_outside = archives.is_outside(name)
        position = -1 if is_outside else self._find(name)
        earlier = int(self.row_of[position]) if position >= 0 else self.row_of_missing.get(name, -1)
        if earlier >= 0:
            if self.contents[earlier] != content:
                self.reasons[earlier] = _CONFLICTING
            return False
        if position >= 0:
            self.row_of[position] = len(self.reasons)
            reason = _UNKNOWN_SPLIT if split is None else _USABLE
            name = self.files[position].file if name not in self.positions else name
        else:
            self.row_of_missing[name] = len(self.reasons)
            reason = _OUTSIDE if is_outside else _MISSING
        self.reasons.append(reason)
        self.contents.append(content)
        texts = row["label"], split or "", row["patient_id"], row["source"], row["view"]
        for column, value in zip(self.columns, (encode_name(name), *texts, position), strict=True):
            column.append(value)
        if len(self.columns[0]) == CHUNK:
            self._close_chunk()
        return True

    def _find(self, name: str) -> int:
        """Position of the file that a name means, as it is written or below the wrapping folder; -1 for none."""
        for path in (name, self.wrapper + name):
            for form in (path, unicodedata.normalize("NFC", path)):
                if form in self.positions:
                    return self.positions[form]
        for path in (name, self.wrapper + name):
            for form in (path, unicodedata.normalize("NFC", path)):
                if form in self.composed:
                    return self.composed[form]
        return -1

    def _close_chunk(self) -> None:
        self.chunks.append(pa.table(self.columns, schema=_SCHEMA))
        self.columns = [[] for _ in _SCHEMA]

    def finish(self) -> pa.Table:
        """All rows with their reason, and a row for each file that labels.csv does not list."""
        self._close_chunk()
        self.positions, self.composed, self.row_of_missing = {}, {}, {}  # to free memory
        is_listed = self.row_of >= 0
        is_listed[self.table] = True
        unlisted = np.flatnonzero(~is_listed).astype(np.int32)
        empty = pa.array(np.full(len(unlisted), ""), pa.large_string())
        names = self.files.table["file"].take(pa.array(unlisted))
        self.chunks.append(pa.table([names, *[empty] * len(_TEXTS), pa.array(unlisted)], schema=_SCHEMA))
        codes = np.concatenate([np.frombuffer(self.reasons, np.int8), np.full(len(unlisted), _NOT_LISTED, np.int8)])
        return pa.concat_tables(self.chunks).append_column("reason", _REASONS.take(pa.array(codes)))


def _sort_rows(rows: pa.Table, files: DropIndex, table: int) -> pa.Table:
    rows = rows.combine_chunks().take(pc.sort_indices(rows, [("file", "ascending"), ("entry", "ascending")]))
    at = np.maximum.accumulate(rows["entry"].to_numpy()) if len(rows) else np.zeros(0, np.int32)
    # labels.csv is a file without a row of its own.
    after = pc.greater_equal(rows["file"], encode_name(files[table].file)).to_numpy(zero_copy_only=False)
    at = np.where(after & (at == table - 1), table, at)
    return rows.append_column("at", pa.array(np.maximum(at, 0)))


def to_rows(matched: pa.Table) -> list[dict]:
    """Returns the rows of a part of what `match_rows` returned, as dictionaries."""
    rows = matched.drop_columns("at").to_pylist()
    for row in rows:
        row["file"], reason = decode_name(row["file"]), row.pop("reason")
        row["reasons"] = [reason] if reason else []
    return rows
