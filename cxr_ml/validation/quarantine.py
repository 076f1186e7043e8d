"""Questions about refused files: which there are, and what is known of one of them."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import deidentify, labels, labels_csv, process_file
from cxr_ml.records import Batch, Ruling
from cxr_ml.settings import InboxSettings, Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, limits, reasons, rulings

_MAX_READ_AT_ONCE = 8  # tables
_MAX_NAMED = 10  # candidates in an error, where a name fits several files


class OtherFile(NamedTuple):
    """A file that shows the same picture as another one."""

    file: str
    batch: str
    label: str


class FileDetails(TypedDict):
    """All that is known of one file; keys of objects are "" where there is none."""

    file: str
    sha256: str
    batch: str
    drop: str
    at: str  # when its batch was committed, ISO 8601
    label: str
    label_raw: str
    state: str  # as in `list_files`
    now: str  # likewise
    reasons: dict[str, str]  # code -> plain words
    limits: list[dict[str, object]]  # those of images.json beside the measurements: limits.Limit
    image: str  # key in the store
    thumbnail: str  # key in the store
    others: list[dict[str, str]]  # files with the same picture: file, batch, label, state, sha256, thumbnail
    rulings: list[dict[str, object]]  # all on this image, oldest first: records.Ruling


def list_files(
    store: ObjectStore,
    names: Collection[str] = (),
    read: Callable[[ObjectStore, str], pa.Table] = committed_batches.read_outcomes,
    known_rulings: Sequence[Ruling] | None = None,
) -> pd.DataFrame:
    """Returns all files of all committed batches, or those that rulings on some of them depend on.

    Args:
        store: the object store.
        names: a batch, "/" and a file of it, each; then only rows that bear the images of these, or that repeat or
            contradict them. All rows, where one of these files does not exist.
        read: reads the outcomes of a batch.
        known_rulings: all rulings, where the caller has read them already.

    Returns:
        The columns of `committed_batches.read_outcomes`, and batch; drop; state: accepted, quarantined, rejected_class,
        duplicate, contradicted (by a later drop) or withdrawn; ruling: number of the ruling in force, 0 without one;
        now: the label under which the next dataset takes the image, "" where it does not.
    """
    batches = committed_batches.list_names(store)
    with ThreadPoolExecutor(_MAX_READ_AT_ONCE) as pool:
        tables = dict(zip(batches, pool.map(lambda batch: read(store, batch), batches), strict=True))
    if names:
        tables = _select_related(tables, set(names))
    if not tables:
        return pd.DataFrame(columns=[*committed_batches.OUTCOME_COLUMNS, "batch", "drop", "state", "ruling", "now"])
    # Types are named, since a table of which no row is left does not show them.
    frames = [
        table.to_pandas(types_mapper={pa.large_string(): pd.StringDtype(), pa.string(): pd.StringDtype()}.get).assign(
            batch=batch, drop=batch.rpartition("-")[0]
        )
        for batch, table in tables.items()
    ]
    frame = _mark_contradicted(pd.concat(frames, ignore_index=True))
    in_force = rulings.in_force(rulings.read(store) if known_rulings is None else known_rulings)
    return _add_rulings(frame, in_force)


def _mark_contradicted(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `state`, and notes which accepted images a later drop shows under another label."""
    disputed = frame[committed_batches.is_disputed(frame["reasons"])]
    contradicted_by = dict(zip(disputed["duplicate_of"], disputed["sha256"], strict=True))
    is_contradicted = (frame["verdict"] == "accepted") & frame["sha256"].isin(set(contradicted_by) - {""})
    frame["state"] = frame["verdict"]
    frame.loc[is_contradicted, "state"] = "contradicted"
    frame.loc[is_contradicted, "duplicate_of"] = frame.loc[is_contradicted, "sha256"].map(contradicted_by)
    frame["reasons"] = [
        [*codes, "contradicted"] if c else list(codes)
        for codes, c in zip(frame["reasons"], is_contradicted, strict=True)
    ]
    return frame


def _add_rulings(frame: pd.DataFrame, in_force: dict[str, Ruling]) -> pd.DataFrame:
    """Adds `ruling` and `now`, and the state of withdrawn images."""
    of_rows = [in_force.get(sha) if sha else None for sha in frame["sha256"]]
    is_withdrawn = np.array([r is not None and r.action == "withdraw" for r in of_rows], bool)
    frame.loc[is_withdrawn, "state"] = "withdrawn"
    frame["ruling"] = [r.number if r else 0 for r in of_rows]
    accepted = frame["label"].where(frame["state"] == "accepted", "")
    frame["now"] = pd.array(
        [r.label if r and r.action != "withdraw" else label for r, label in zip(of_rows, accepted, strict=True)],
        "string",
    )
    return frame


def _select_related(tables: dict[str, pa.Table], names: set[str]) -> dict[str, pa.Table]:
    """Rows that bear the images of the named files or refer to them; all rows, where a file does not exist."""
    images, missing = set(), set(names)
    for batch, table in tables.items():
        files = {name.removeprefix(f"{batch}/") for name in names if name.startswith(f"{batch}/")}
        if files:
            rows = table.filter(pc.is_in(table["file"], pa.array(files, table.schema.field("file").type)))
            images |= set(rows["sha256"].to_pylist())
            missing -= {f"{batch}/{file}" for file in rows["file"].to_pylist()}
    if missing:
        return tables
    related = {}
    for batch, table in tables.items():
        shas = pa.array(images - {""}, table.schema.field("sha256").type)
        files = pa.array([name.removeprefix(f"{batch}/") for name in names], table.schema.field("file").type)
        about_images = pc.or_(pc.is_in(table["sha256"], shas), pc.is_in(table["duplicate_of"], shas))
        related[batch] = table.filter(pc.or_(about_images, pc.is_in(table["file"], files)))
    return {batch: table for batch, table in related.items() if len(table)}


def list_refused(
    store: ObjectStore,
    settings: InboxSettings,
    classes: tuple[str, ...],
    reason: str | None = None,
    label: str | None = None,
    drop: str | None = None,
) -> pd.DataFrame:
    """Returns the rows of `list_files` that were refused, or fell out later.

    Args:
        store: the object store.
        settings: the spellings of labels.
        classes: the model's classes, in the order of its outputs.
        reason: only of this code.
        label: only of this label, in any known spelling.
        drop: only of this drop or batch.
    """
    return select_refused(settings, classes, list_files(store), reason, label, drop)


def select_refused(
    settings: InboxSettings,
    classes: tuple[str, ...],
    rows: pd.DataFrame,
    reason: str | None,
    label: str | None,
    drop: str | None,
) -> pd.DataFrame:
    """Returns those of the rows of `list_files` that `list_refused` would return."""
    rows = rows[rows["state"] != "accepted"]
    if reason is not None:
        wanted = (reason, f"rejected_class:{reason}")
        matches = [any(c in wanted or c.startswith(f"{reason}:") for c in codes) for codes in rows["reasons"]]
        rows = rows[np.array(matches, bool)]
    if label is not None:
        rows = rows[(rows["label"] == parse_label(settings, classes, label)) | (rows["label_raw"] == label)]
    if drop is not None:
        rows = rows[(rows["drop"] == drop) | (rows["batch"] == drop)]
    return rows


def parse_label(settings: InboxSettings, classes: tuple[str, ...], text: str) -> str:
    """Returns the label that a spelling means; the text itself where none is known."""
    known = labels.known_labels(settings) | {labels_csv.normalize(name): name for name in classes}
    return known.get(labels_csv.normalize(text), text)


def find_file(frame: pd.DataFrame, name: str, settings: InboxSettings) -> pd.Series:
    """Returns the row of `list_files` that a name means.

    Args:
        frame: as `list_files` returned it.
        name: a SHA-256 (8 digits or more), a file, or a drop or batch, "/", and a file. Where names of files are
            hashed, also the name that the file had in the drop, with all its folders.
        settings: the salt of hashed names.

    Raises:
        Refused: no file is called so, or several different ones are.
    """
    digits = name.lower()
    by_sha = frame["sha256"].str.startswith(digits) if len(digits) >= 8 else frame["sha256"].isna()
    exact = (frame["file"] == name) | (frame["drop"] + "/" + frame["file"] == name)
    exact |= frame["batch"] + "/" + frame["file"] == name
    rows = frame[by_sha | exact]
    if rows.empty and name:
        rows = frame[frame["file"].str.endswith(f"/{name}")]
    if rows.empty and name and settings.patient_salt:
        rows = _select_by_original_name(frame, name, settings)
    if rows.empty:
        raise Refused(
            "A file of a committed batch was expected: its path in the drop, with the drop before it where two have "
            f"it, or 8 or more digits of its SHA-256. Received: {name!r}. `cxr-ml quarantine list` names those refused."
        )
    if len(rows) > 1 and (rows["sha256"].nunique() > 1 or (rows["sha256"] == "").any()):
        lines = [f"  {r['batch']}/{r['file']}  {r['sha256'][:16]}" for _, r in rows.head(_MAX_NAMED).iterrows()]
        raise Refused(f"{name!r} fits {len(rows)} files. Name one of them:\n" + "\n".join(lines))
    return rows.sort_values("verdict", key=lambda v: v != "accepted", kind="stable").iloc[0]


def _select_by_original_name(frame: pd.DataFrame, name: str, settings: InboxSettings) -> pd.DataFrame:
    stored = frame["file"].str.replace(".*/", "", regex=True)
    top, _, below = name.partition("/")
    in_drop = (frame["drop"] == top) | (frame["batch"] == top)
    matches = stored == deidentify.hash_path(settings, name)
    if below:
        matches |= in_drop & (stored == deidentify.hash_path(settings, below))
    return frame[matches]


def describe_file(store: ObjectStore, settings: Settings, name: str) -> FileDetails:
    """Returns all that is known of one file.

    Raises:
        Refused: as `find_file`.
    """
    frame = list_files(store)
    row = find_file(frame, name, settings.inbox)
    sha = row["sha256"]
    record = store.load(layout.batch_record(row["batch"]), Batch)
    rejected = record.rejected_classes.get(row["label"], "")
    others = select_same_picture(frame, row)
    table = committed_batches.read_measurements(store, row["batch"])
    measured = table[table["file"] == row["file"]].iloc[0]
    pictures = {s: _find_thumbnail(store, s) for s in {sha, *others["sha256"]}}
    return FileDetails(
        file=str(row["file"]),
        sha256=sha,
        batch=str(row["batch"]),
        drop=str(row["drop"]),
        at=store.last_modified(layout.batch_record(row["batch"])),
        label=str(row["label"]),
        label_raw=str(row["label_raw"]),
        state=str(row["state"]),
        now=str(row["now"]),
        reasons={code: reasons.explain(code, measured, rejected, settings.validation) for code in row["reasons"]},
        limits=[x._asdict() for x in limits.compare_with_limits(measured, settings.validation) if x.limit]
        if sha
        else [],
        image=process_file.image_key(sha, row["format"]) if sha else "",
        thumbnail=pictures[sha],
        others=[
            {k: str(other[k]) for k in ("file", "batch", "label", "state", "sha256")}
            | {"thumbnail": pictures[other["sha256"]]}
            for other in others.to_dict("records")
        ],
        rulings=[r.model_dump(mode="json") for r in rulings.read(store) if sha and r.sha256 == sha],
    )


def add_dates(store: ObjectStore, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows of `list_files` with at (when their batch was committed) and thumbnail (its key, "" without one)."""
    stored = set(store.keys(layout.THUMBNAILS)) if len(rows) else ()
    at = {b: store.last_modified(layout.batch_record(b)) for b in rows["batch"].unique()}
    pictures = [key if (key := layout.thumbnail(sha)) in stored else "" for sha in rows["sha256"]]
    return rows.assign(at=rows["batch"].map(at), thumbnail=pictures)


def _find_thumbnail(store: ObjectStore, sha256: str) -> str:
    key = layout.thumbnail(sha256) if sha256 else ""
    return key if key and store.exists(key) else ""


def select_same_picture(frame: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Returns the other rows that bear the row's image, are its copy, or are the original of which it is a copy."""
    shas = {row["sha256"], row["duplicate_of"]} - {""}
    same = frame["sha256"].isin(shas) | frame["duplicate_of"].isin(shas)
    return frame[same & (frame.index != row.name)]
