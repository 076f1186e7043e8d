"""Judges an ingested batch and commits it: bad images, duplicates, bad classes. `batch.json` is the commit mark."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa

from cxr_ml import layout
from cxr_ml.ingest import tables
from cxr_ml.progress import OnProgress, begun, nobody
from cxr_ml.records import Batch
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, thumbnails
from cxr_ml.validation.mark_duplicates import mark_duplicates
from cxr_ml.validation.suite_check import check_suites

_OWN_COLUMNS = ["file", "sha256", "format", "label", "verdict", "reasons"]


def validate_batch(store: ObjectStore, settings: Settings, batch: str, on_progress: OnProgress = nobody) -> Batch:
    """Judges the batch with Great Expectations, refuses duplicates and commits it; once, however often it is called.

    A file ends as accepted; as quarantined (unreadable, unfit, or the same picture under two labels); as duplicate
    (of an image that the store has already, or of an earlier file of the batch); or as rejected_class.

    Args:
        store: the object store.
        settings: the suites, and what is taken for a duplicate.
        batch: its name.
        on_progress: called when a part of the work begins, and as pictures are compared.

    Returns:
        The record of the batch, as it is stored.

    Raises:
        Refused: a suite cannot be used, or an expectation could not be evaluated. Nothing is committed then.
    """
    from cxr_ml.validation import verdicts  # takes seconds to import; code that only reads batches should not wait

    committed = store.load_or_none(layout.batch_record(batch), Batch)
    if committed is not None:
        return committed[0]
    on_progress(begun(f"{batch}: judging images"))
    check_suites(settings.validation, settings.cache_dir)
    columns = dict.fromkeys([*_OWN_COLUMNS, *verdicts.columns(settings.validation.expectations)])
    frame = tables.read_batch(store, batch, list(columns))
    frame, image_failures, image_page = verdicts.judge_images(frame, settings.validation.expectations)
    frame = frame[[*_OWN_COLUMNS, *verdicts.CLASS_MEASURES]]  # frees the other columns before more is read
    on_progress(begun(f"{batch}: looking for copies"))
    frame = mark_duplicates(store, settings.validation, settings.cache_dir, batch, frame, on_progress)
    on_progress(begun(f"{batch}: judging classes"))
    frame, class_failures, rejected, class_page = verdicts.judge_classes(frame, settings.validation.expectations)
    counts = count_files(frame)
    record = Batch(
        batch=batch,
        drop=batch.rpartition("-")[0],
        counts=counts,
        reasons=dict(sorted(Counter(r for reasons in frame["reasons"] for r in reasons).items())),
        rejected_classes=rejected,
        failures=image_failures + class_failures,
        untrained={k: n for k, n in counts.get("accepted", {}).items() if k not in settings.classes},
    )
    for name, page in (("images", image_page), ("classes", class_page)):
        store.put_uncommitted(layout.batch_data_docs(batch, name), page.encode(), "text/html; charset=utf-8")
    on_progress(begun(f"{batch}: writing tables and thumbnails"))
    thumbnails.write(store, settings.images, frame[frame["verdict"] != "accepted"])
    tables.write_table(store, settings.cache_dir, layout.measurements(batch), _add_verdicts(store, batch, frame))
    committed_batches.write_refused(store, settings.cache_dir, batch)
    store.put_if_absent(layout.batch_record(batch), record.to_bytes(), "application/json")
    return record


def count_files(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Returns how many files of each label got each verdict: verdict -> label, "?" where unknown -> files."""
    labels = frame["label"].where(frame["label"] != "", "?")
    counts: dict[str, dict[str, int]] = {}
    for (verdict, label), n in frame.groupby(["verdict", labels]).size().items():
        counts.setdefault(str(verdict), {})[str(label)] = int(n)
    return counts


def _add_verdicts(store: ObjectStore, batch: str, frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The measurements of the batch with its verdicts, tables.ROWS rows at a time, however it was cut into shards."""
    judged = frame[["file", "verdict", "reasons", "duplicate_of", "duplicate_file"]]
    waiting: list[pa.Table] = []
    done = 0

    def take(rows: int) -> pd.DataFrame:
        nonlocal done, waiting
        together = pa.concat_tables(waiting)
        waiting = [together.slice(rows)]
        measured = together.slice(0, rows).to_pandas()
        verdicts = judged.iloc[done : done + len(measured)].set_axis(measured.index)
        done += len(measured)
        return measured.assign(**verdicts)

    for part in tables.read_shards(store, batch):
        waiting.append(part)
        while sum(map(len, waiting)) > tables.ROWS:
            yield take(tables.ROWS)
    yield take(tables.ROWS)
