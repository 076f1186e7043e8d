"""Measures any image files, without a store: the table that `ingest` makes of a drop, for a look at a folder."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ml.errors import Refused
from cxr_ml.ingest import inbox, ingest_drop, memory_budget, process_file, worker_pool
from cxr_ml.settings import Settings

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # <https://owasp.org/www-community/attacks/CSV_Injection>


def listing(paths: Iterable[Path]) -> list[inbox.Entry]:
    """The files that are named, and those below the folders that are named, each in order of their paths.

    Links are followed where they are named, and else listed with size -1, as is all that is no file.

    Raises:
        Refused: a path does not exist.
    """
    found: list[inbox.Entry] = []
    for path in paths:
        if not path.exists():
            raise Refused(f"Files and folders that exist were expected. Received: {str(path)!r}")
        if path.is_dir():
            below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
            found += sorted(inbox.local_entry(str(file), str(file), file.lstat()) for file in below)
        else:
            found.append(inbox.local_entry(str(path), str(path.resolve()), path.stat()))
    return found


def tables(settings: Settings, listed: list[inbox.Entry], on_file: Callable[[int], None]) -> Iterator[pd.DataFrame]:
    """Measures files in as many processes as `ingest` uses; at most `shard_files` of them are one table.

    Args:
        settings: for the limits in size.
        listed: what `listing` found. What cannot be read has the reason in `reasons`, and nothing measured.
        on_file: called with the number of files done after each file.

    Yields:
        The columns `ingest_drop.COLUMNS`, in the order of the files; what only a drop can say (label, …) is "".
    """
    for first in range(0, len(listed), settings.shard_files):
        part = listed[first : first + settings.shard_files]
        rows = [{"file": inbox.printable(entry.file)} for entry in part]
        done = worker_pool.run(
            process_file.measure_file, settings, part, min(memory_budget.processes(), max(1, len(part) // 16))
        )
        for count, (number, found) in enumerate(done, start=first + 1):
            rows[number].update(process_file.CRASHED if found is None else found)
            on_file(count)
        yield ingest_drop.table(rows)


def write(found: Iterable[pd.DataFrame], out: Path) -> dict[str, int]:
    """Writes the tables into one file, which is there only when it is whole.

    Args:
        found: tables of `tables`.
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
            append = _parquet if out.suffix == ".parquet" else _csv
            for frame in append(file, found):
                for codes in frame["reasons"]:
                    for code in codes:
                        reasons[code] = reasons.get(code, 0) + 1
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return dict(sorted(reasons.items()))


def _parquet(file: BinaryIO, found: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    with pq.ParquetWriter(file, ingest_drop.SCHEMA, compression="zstd") as writer:
        for frame in found:
            writer.write_table(pa.Table.from_pandas(frame, ingest_drop.SCHEMA, preserve_index=False))
            yield frame


def _csv(file: BinaryIO, found: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    file.write((",".join(ingest_drop.COLUMNS) + "\n").encode())
    for frame in found:
        shown = frame.assign(reasons=[" ".join(codes) for codes in frame["reasons"]])
        for column, kind in ingest_drop.COLUMNS.items():
            if kind == "string":
                shown[column] = [f"'{text}" if text.startswith(_FORMULA) else text for text in shown[column]]
        shown.to_csv(file, index=False, header=False)
        yield frame
