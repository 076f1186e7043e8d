"""Judges an ingested batch and commits it: bad images, duplicates, bad classes. `batch.json` is the commit mark."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from threading import Lock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ml import store
from cxr_ml.imaging import decode
from cxr_ml.ingest import memory_budget, process_file, tables
from cxr_ml.progress import OnProgress, begun, counted, nobody
from cxr_ml.records import Batch
from cxr_ml.settings import Settings
from cxr_ml.validation import rulings, thumbnails
from cxr_ml.validation.duplicates import search
from cxr_ml.validation.suite_check import check_suites

_LATER = ("fine_hash", "inner_hash", "ring", "duplicate_file")  # columns that batches of earlier versions lack
_OF_THE_PICTURE = ("ring", *search.HASHES)  # columns that tell a reader nothing
_OF_REFUSED = [c for c in (*tables.COLUMNS, "duplicate_of", "duplicate_file") if c not in _OF_THE_PICTURE]
NAMED = ("file", "sha256", "format", "label", "label_raw", "verdict", "reasons", "duplicate_of", "duplicate_file")
_COMPARED = ["sha256", *search.HASHES, "label", "format", "file"]  # what is known of a picture to compare with


def committed(settings: Settings) -> list[str]:
    """Names of all committed batches, in order of name."""
    found = (k for k in store.keys(settings, "batches/") if k.endswith("/batch.json"))
    return sorted(k.split("/")[1] for k in found)


def measurements(settings: Settings, batch: str) -> pd.DataFrame:
    """The final table of a committed batch. What was not yet measured when it was judged is ""."""
    table = tables.read_parquet(settings, f"batches/{batch}/measurements.parquet")
    return table.assign(**{name: "" for name in _LATER if name not in table})


def named(settings: Settings, batch: str) -> pa.Table:
    """Of the table of a committed batch what says which file is which image, and what became of it."""
    return _some(settings, batch, NAMED)


def _some(settings: Settings, batch: str, columns: Sequence[str]) -> pa.Table:
    found = tables.read_columns(settings, f"batches/{batch}/measurements.parquet", columns)
    if "duplicate_file" in found.column_names:
        return found
    return found.append_column("duplicate_file", pa.array([""] * len(found), pa.large_string()))


def refused(settings: Settings, batch: str) -> pa.Table:
    """The rows of `measurements` that were not accepted, in their order, without ring and hashes of the picture."""
    found = store.find(settings, _refused_key(batch))
    if found:
        return pq.read_table(io.BytesIO(found[0]))
    # Of a batch that was judged by an earlier version.
    whole = _some(settings, batch, _OF_REFUSED)
    return whole.filter(pc.not_equal(whole["verdict"], "accepted"))


def _refused_key(batch: str) -> str:
    return f"batches/{batch}/refused.parquet"


def _refused(settings: Settings, batch: str) -> Iterator[pd.DataFrame]:
    for part in tables.scan_columns(settings, f"batches/{batch}/measurements.parquet", _OF_REFUSED):
        rows = part.to_pandas()
        yield rows[rows["verdict"] != "accepted"]


def _mine(settings: Settings, batch: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """sha256 and hashes of the accepted images of the batch; _COMPARED of its other ones, with `disputed`."""
    accepted, unfit, done = [], [], 0
    for table in tables.read_shards(settings, batch, list(search.HASHES)):
        judged = frame.iloc[done : done + len(table)]
        done += len(table)
        part = search.packed(table.to_pandas().set_axis(judged.index))
        part["sha256"] = judged["sha256"]
        fit = judged["verdict"] == "accepted"
        accepted.append(part[fit])
        said = judged[~fit & (judged["sha256"] != "")]
        names = {"label": said["label"], "format": said["format"], "file": batch + "/" + said["file"]}
        unfit.append(part.loc[said.index].assign(**names, disputed=_disputed(said["reasons"])))
    return pd.concat(accepted), pd.concat(unfit)


def _earlier(settings: Settings, but: str) -> Iterator[pd.DataFrame]:
    """The measured images of the other committed batches, but not those that repeat one already there.

    What humans let in counts as accepted, and labels are those in force. `disputed`: quarantined for its labels.
    """
    ruled = rulings.in_force(rulings.read(settings))
    for batch in committed(settings):
        if batch != but:
            key = f"batches/{batch}/measurements.parquet"
            found = tables.scan_columns(settings, key, [*_COMPARED, "verdict", "reasons"])
            table = pd.concat([search.packed(part.to_pandas()) for part in found], ignore_index=True)
            table["disputed"] = _disputed(table.pop("reasons"))
            entering = rulings.known(table, ruled).assign(verdict="accepted")
            rest = table.drop(index=entering.index)
            rest = rest[(rest["sha256"] != "") & (rest["verdict"] != "duplicate")]
            table = pd.concat([entering, rest]).sort_index()
            yield table.assign(file=batch + "/" + table["file"])


def _disputed(reasons: pd.Series) -> np.ndarray:
    return np.fromiter(("conflicting_label" in set(codes) for codes in reasons), bool, len(reasons))


def judge(settings: Settings, batch: str, on_progress: OnProgress = nobody) -> Batch:
    """Judges the batch with Great Expectations, refuses duplicates and commits it.

    A file ends as accepted; as quarantined (unreadable, unfit, or the same picture under two labels); as duplicate
    (of an image that the store has already, or of an earlier file of the batch); or as rejected_class.

    Args:
        settings: the store, the suites, and what is taken for a duplicate.
        batch: its name.
        on_progress: told which part of the work begins, and of pictures that are compared.

    Raises:
        Refused: a suite cannot be used, or an expectation could not be evaluated. Nothing is committed then.
    """
    from cxr_ml.validation import verdicts  # takes seconds to import, which who only reads a batch need not wait

    done = store.find(settings, f"batches/{batch}/batch.json")
    if done is not None:
        return Batch.model_validate_json(done[0])
    on_progress(begun(f"{batch}: judging images"))
    check_suites(settings)
    named = ["file", "sha256", "format", "label", "verdict", "reasons"]
    columns = dict.fromkeys([*named, *verdicts.columns(settings.expectations)])
    frame = tables.read_batch(settings, batch, list(columns))
    frame, image_failures, image_page = verdicts.judge_images(frame, settings.expectations)
    frame = frame[[*named, *verdicts.CLASS_MEASURES]]  # let the others go before more is read
    on_progress(begun(f"{batch}: looking for copies"))
    frame = _refuse_duplicates(settings, batch, frame, on_progress)
    on_progress(begun(f"{batch}: judging classes"))
    frame, class_failures, rejected, class_page = verdicts.judge_classes(frame, settings.expectations)
    counts = _counts(frame)
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
        store.put_uncommitted(settings, f"batches/{batch}/{name}.html", page.encode(), "text/html; charset=utf-8")
    on_progress(begun(f"{batch}: writing tables and thumbnails"))
    thumbnails.write(settings, frame[frame["verdict"] != "accepted"])
    tables.write_table(settings, f"batches/{batch}/measurements.parquet", _completed(settings, batch, frame))
    # So that whoever looks at what was refused need not read what was not.
    tables.write_table(settings, _refused_key(batch), _refused(settings, batch))
    store.put_if_absent(settings, f"batches/{batch}/batch.json", record.to_bytes(), "application/json")
    return record


def _completed(settings: Settings, batch: str, frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The table of the batch with what was judged, tables.ROWS rows at a time, however it was cut into shards."""
    judged, done, held = frame[["file", "verdict", "reasons", "duplicate_of", "duplicate_file"]], 0, []

    def completed(rows: int) -> pd.DataFrame:
        nonlocal done, held
        together = pa.concat_tables(held)
        held = [together.slice(rows)]
        measured = together.slice(0, rows).to_pandas()
        said = judged.iloc[done : done + len(measured)].set_axis(measured.index)
        done += len(measured)
        return measured.assign(**said)

    for part in tables.read_shards(settings, batch):
        held.append(part)
        while sum(map(len, held)) > tables.ROWS:
            yield completed(tables.ROWS)
    yield completed(tables.ROWS)


def _counts(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    labels = frame["label"].where(frame["label"] != "", "?")
    counts: dict[str, dict[str, int]] = {}
    for (verdict, label), n in frame.groupby(["verdict", labels]).size().items():
        counts.setdefault(str(verdict), {})[str(label)] = int(n)
    return counts


def _refuse_duplicates(settings: Settings, batch: str, frame: pd.DataFrame, on_progress: OnProgress) -> pd.DataFrame:
    """Verdicts of the accepted images that show the picture of an earlier one; `duplicate_of` and `duplicate_file`.

    The earlier image (of whatever batch, or of this one) decides:
    accepted, same label: duplicate. Another label: all bearers of the picture in this batch are quarantined as
    conflicting_label, each naming another; what is committed stays, and the dataset leaves it out.
    Refused itself (unfit, rejected_class), same label: no consequence: this file was judged on its own and passed.
    Refused itself, another label: conflicting_label. Refused as conflicting_label: conflicting_label, whatever this
    file says. Without a known label: no consequence, since it contradicts nobody.
    """
    frame = frame.reset_index(drop=True)
    # While values change one by one: a column of Arrow is copied for each.
    frame["verdict"] = frame["verdict"].astype("category").astype(object)
    for column in ("duplicate_of", "duplicate_file"):
        frame[column] = pd.Series("", index=frame.index, dtype=object)
    rows, unfit = _mine(settings, batch, frame)
    before = pd.concat([unfit.iloc[:0].assign(verdict=""), *_earlier(settings, batch)], ignore_index=True)
    known = before["verdict"] == "accepted"
    accepted = before.loc[known, _COMPARED]
    refused = pd.concat([before[~known].drop(columns="verdict"), unfit])
    del before
    refused = refused[refused["label"] != ""]
    load = _loader(settings, [accepted, frame.loc[rows.index, ["sha256", "format"]], refused])
    load = _counting(load, counted(on_progress, "pictures compared", f"{batch}: looking for copies"))

    def mine(places: Sequence[int]) -> pd.DataFrame:
        return frame.loc[places, ["sha256", "label"]].assign(file=batch + "/" + frame.loc[places, "file"])

    def name(i: int, other: pd.Series) -> None:
        frame.at[i, "duplicate_of"], frame.at[i, "duplicate_file"] = other["sha256"], other["file"]

    def conflict(i: int) -> None:
        frame.at[i, "verdict"], frame.at[i, "reasons"] = "quarantined", ["conflicting_label"]

    found = search.find_duplicates(rows, accepted, load, settings)
    again = found["duplicate_of"] != ""
    shown_twice = rows.index[again | rows["sha256"].isin(set(found.loc[again, "duplicate_of"]))]
    pictures = found.loc[shown_twice, "duplicate_of"].where(again, rows.loc[shown_twice, "sha256"])
    first = accepted.loc[accepted["sha256"].isin(set(pictures)), ["sha256", "label", "file"]]
    first = first.drop_duplicates("sha256").set_index("sha256", drop=False)
    for picture, bearers in mine(shown_twice).groupby(pictures, sort=False):
        known = first.loc[[picture]] if picture in first.index else bearers.iloc[:0]
        together = pd.concat([known, bearers])
        conflicting = together["label"].nunique() > 1  # nobody knows which is right, so every bearer goes
        for i, row in bearers.iterrows():
            if conflicting:
                name(i, together[together["label"] != row["label"]].iloc[0])
                conflict(i)
            elif found.at[i, "duplicate_kind"]:
                name(i, together.iloc[0])
                frame.at[i, "verdict"] = "duplicate"
                frame.at[i, "reasons"] = [*frame.at[i, "reasons"], f"{found.at[i, 'duplicate_kind']}_duplicate"]

    fit = frame.loc[frame["verdict"] == "accepted", "label"]
    for label in sorted(fit.unique()):
        against = refused[refused["disputed"] | (refused["label"] != label)].drop_duplicates("sha256")
        if against.empty:
            continue
        hit = search.find_duplicates(rows.loc[fit.index[fit == label]], against, load, settings)["duplicate_of"]
        bearers = against.loc[against["sha256"].isin(hit), ["sha256", "file"]].set_index("sha256", drop=False)
        for i in hit.index[hit.isin(bearers.index)]:
            other = bearers.loc[hit[i]]
            name(i, other)
            conflict(i)
            # Refused for reasons of its own, which stay; it names this one all the same.
            for bearer in unfit.index[(unfit["file"] == other["file"]) & (frame["duplicate_of"][unfit.index] == "")]:
                name(bearer, mine([i]).iloc[0])
            # Its copies in this batch are refused with it.
            same = frame.index[(frame["verdict"] == "duplicate") & (frame["duplicate_of"] == frame.at[i, "sha256"])]
            for copy in same:
                conflict(copy)
    return frame.astype(dict.fromkeys(("verdict", "duplicate_of", "duplicate_file"), "string"))


def _loader(settings: Settings, known: list[pd.DataFrame]) -> Callable[[str], np.ndarray]:
    """Gives the grey picture of any of the images (sha256, format). A dict of all would take 200 bytes for each."""
    starts = np.concatenate([np.fromiter((int(s[:15], 16) for s in t["sha256"]), np.int64, len(t)) for t in known])
    order = np.argsort(starts, kind="stable")
    formats = pd.concat([t["format"] for t in known]).astype("category")
    one_at_a_time = Lock()

    def load(sha256: str) -> np.ndarray:
        place = np.searchsorted(starts, int(sha256[:15], 16), sorter=order)
        data = store.get(settings, process_file.image_key(sha256, formats.iat[order[place]]))
        if process_file.count_pixels(data) <= memory_budget.LARGE_PIXELS:
            return decode.decode_grey(data)
        with one_at_a_time:
            tables.release_memory()  # what threads have let go of: the largest takes 250 MB
            return decode.decode_grey(data)

    return load


def _counting(load: Callable[[str], np.ndarray], tell: Callable[[int, int], None]) -> Callable[[str], np.ndarray]:
    """`load`, which tells how many pictures it has loaded; how many it will is not known."""
    number = count(1)

    def loading(sha256: str) -> np.ndarray:
        tell(next(number), 0)
        return load(sha256)

    return loading


def conflicts(table: pd.DataFrame) -> set[str]:
    """Images, of whatever batch, that this batch shows under another label."""
    rows = table[[("conflicting_label" in set(r)) for r in table["reasons"]]]
    return set(rows["duplicate_of"]) - {""}
