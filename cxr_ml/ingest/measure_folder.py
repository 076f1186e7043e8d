"""Measures the image files of any folder, without a store, into the same table that `ingest` makes of a drop."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml.errors import Refused
from cxr_ml.ingest import memory_budget, process_file, worker_pool
from cxr_ml.ingest.drop_files import make_entry
from cxr_ml.ingest.drop_index import Entry, to_printable
from cxr_ml.ingest.tables import COLUMNS, SCHEMA, make_table
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # <https://owasp.org/www-community/attacks/CSV_Injection>


def list_images(paths: Iterable[Path]) -> list[Entry]:
    """Lists the files among `paths`, and those below the folders among them in order of their paths.

    A link among `paths` is followed; one inside a folder is listed with size -1, as is anything else but a file.

    Raises:
        Refused: a path does not exist.
    """
    entries: list[Entry] = []
    for path in paths:
        if not path.exists():
            raise Refused(f"Files and folders that exist were expected. Received: {str(path)!r}")
        if path.is_dir():
            below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
            entries += sorted(make_entry(str(file), str(file), file.lstat()) for file in below)
        else:
            entries.append(make_entry(str(path), str(path.resolve()), path.stat()))
    return entries


def measure_files(
    store: ObjectStore, settings: Settings, entries: list[Entry], on_file: Callable[[int], None]
) -> Iterator[pd.DataFrame]:
    """Measures files in as many processes as `ingest` uses; a table holds at most `shard_files` of them.

    Args:
        store: the object store.
        settings: for the limits in size.
        entries: of `list_images`. A file that cannot be read has the reason in `reasons` and no measurements.
        on_file: called with the number of files done after each file.

    Yields:
        The columns `tables.COLUMNS`, in the order of the files; those that only a drop has (label, …) are "".
    """
    for first in range(0, len(entries), settings.inbox.shard_files):
        part = entries[first : first + settings.inbox.shard_files]
        rows: list[dict[str, Any]] = [{"file": to_printable(entry.file)} for entry in part]
        workers = min(memory_budget.count_workers(), max(1, len(part) // 16))
        results = worker_pool.map_jobs(process_file.measure_file, (store, settings.images), part, workers)
        for done, (job, measurements) in enumerate(results, start=first + 1):
            rows[job].update(process_file.CRASHED if measurements is None else measurements)
            on_file(done)
        yield make_table(rows)


def write_table(frames: Iterable[pd.DataFrame], out: Path) -> dict[str, int]:
    """Writes the tables into one file, which appears only when it is complete.

    Args:
        frames: of `measure_files`.
        out: .parquet or .csv. In CSV, the codes in `reasons` are separated by spaces, and a text that a spreadsheet
            would take for a formula begins with an apostrophe.

    Returns:
        How many files have which reason.

    Raises:
        Refused: another ending, a folder, or in one that does not exist; nothing is measured then.
    """
    if out.suffix not in (".parquet", ".csv") or not out.parent.is_dir() or out.is_dir():
        raise Refused(f"A .parquet or .csv file in a folder that exists was expected. Received: {str(out)!r}")
    reasons: dict[str, int] = {}
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write = _write_parquet if out.suffix == ".parquet" else _write_csv
            for frame in write(file, frames):
                for codes in frame["reasons"]:
                    for code in codes:
                        reasons[code] = reasons.get(code, 0) + 1
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return dict(sorted(reasons.items()))


def _write_parquet(file: BinaryIO, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for frame in frames:
            writer.write_table(pa.Table.from_pandas(frame, SCHEMA, preserve_index=False))
            yield frame


def _write_csv(file: BinaryIO, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    file.write((",".join(COLUMNS) + "\n").encode())
    for frame in frames:
        shown = frame.assign(reasons=[" ".join(codes) for codes in frame["reasons"]])
        for column, kind in COLUMNS.items():
            if kind == "string":
                shown[column] = [f"'{text}" if text.startswith(_FORMULA_STARTS) else text for text in shown[column]]
        shown.to_csv(file, index=False, header=False)
        yield frame
