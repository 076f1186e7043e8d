"""Every refused file can be asked about."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.ingest import deidentify, labels, labels_csv, process_file
from cxr_ml.records import Batch, Ruling
from cxr_ml.settings import Settings
from cxr_ml.validation import reasons, rulings, thumbnails

_AT_ONCE = 8  # tables that are read at once

_SHOWN = 10  # candidates named where a name fits several files


def files(
    settings: Settings,
    names: Collection[str] = (),
    read: Callable[[Settings, str], pa.Table] = committed_batches.read_outcomes,
    ruled: Sequence[Ruling] | None = None,
) -> pd.DataFrame:
    """All files of all committed batches, or those that rulings on some of them depend on.

    Args:
        settings: the store.
        names: a batch, "/" and a file of it, each; then only rows that bear the images of these, or say that they
            repeat or contradict them. All rows, where one of these files is not there.
        read: gives what `committed_batches.read_outcomes` does.
        ruled: all rulings, where they are known already.

    Returns:
        What `committed_batches.read_outcomes` gives, and batch; drop; state: accepted, or what became of it otherwise (quarantined,
        rejected_class, duplicate, contradicted by a later drop, withdrawn); ruling: number of the ruling in force, 0
        without one; now: the label under which the next dataset takes the image, "" where it does not.
    """
    committed = committed_batches.list_names(settings)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = dict(zip(committed, pool.map(lambda batch: read(settings, batch), committed), strict=True))
    if names:
        tables = _about(tables, set(names))
    if not tables:
        return pd.DataFrame(columns=[*committed_batches.OUTCOME_COLUMNS, "batch", "drop", "state", "ruling", "now"])
    # Types are given, since a table of which no row is left does not tell them.
    frames = [
        table.to_pandas(types_mapper={pa.large_string(): pd.StringDtype(), pa.string(): pd.StringDtype()}.get).assign(
            batch=batch, drop=batch.rpartition("-")[0]
        )
        for batch, table in tables.items()
    ]
    frame = pd.concat(frames, ignore_index=True)
    entries = rulings.in_force(rulings.read(settings) if ruled is None else ruled)
    against = frame[[("conflicting_label" in set(r)) for r in frame["reasons"]]]
    against = dict(zip(against["duplicate_of"], against["sha256"], strict=True))
    frame["state"] = frame["verdict"]
    contradicted = (frame["verdict"] == "accepted") & frame["sha256"].isin(set(against) - {""})
    frame.loc[contradicted, "state"] = "contradicted"
    frame.loc[contradicted, "duplicate_of"] = frame.loc[contradicted, "sha256"].map(against)
    frame["reasons"] = [
        [*r, "contradicted"] if c else list(r) for r, c in zip(frame["reasons"], contradicted, strict=True)
    ]
    ruled = [entries.get(sha) if sha else None for sha in frame["sha256"]]
    frame.loc[np.array([r is not None and r.action == "withdraw" for r in ruled]), "state"] = "withdrawn"
    frame["ruling"] = [r.number if r else 0 for r in ruled]
    taken = frame["label"].where(frame["state"] == "accepted", "")
    frame["now"] = pd.array(
        [r.label if r and r.action != "withdraw" else label for r, label in zip(ruled, taken, strict=True)], "string"
    )
    return frame


def _about(tables: dict[str, pa.Table], names: set[str]) -> dict[str, pa.Table]:
    """Rows that bear the images of the named files or refer to them; all, where a file is not there."""
    images, missing = set(), set(names)
    for batch, table in tables.items():
        asked = {name.removeprefix(f"{batch}/") for name in names if name.startswith(f"{batch}/")}
        if asked:
            hit = table.filter(pc.is_in(table["file"], pa.array(asked, table.schema.field("file").type)))
            images |= set(hit["sha256"].to_pylist())
            missing -= {f"{batch}/{file}" for file in hit["file"].to_pylist()}
    if missing:
        return tables
    found = {}
    for batch, table in tables.items():
        wanted = pa.array(images - {""}, table.schema.field("sha256").type)
        mine = pa.array([name.removeprefix(f"{batch}/") for name in names], table.schema.field("file").type)
        hit = [
            pc.is_in(table["sha256"], wanted),
            pc.is_in(table["duplicate_of"], wanted),
            pc.is_in(table["file"], mine),
        ]
        found[batch] = table.filter(pc.or_(pc.or_(*hit[:2]), hit[2]))
    return {batch: table for batch, table in found.items() if len(table)}


def refused(
    settings: Settings, reason: str | None = None, label: str | None = None, drop: str | None = None
) -> pd.DataFrame:
    """The rows of `files` that were refused, or fell out later; of one reason, label or drop (or batch) if given."""
    return select(settings, files(settings), reason, label, drop)


def select(
    settings: Settings, rows: pd.DataFrame, reason: str | None, label: str | None, drop: str | None
) -> pd.DataFrame:
    """Those of the rows of `files` that were refused, as `refused` gives them."""
    rows = rows[rows["state"] != "accepted"]
    if reason is not None:
        wanted = (reason, f"rejected_class:{reason}")
        hits = [any(c in wanted or c.startswith(f"{reason}:") for c in codes) for codes in rows["reasons"]]
        rows = rows[np.array(hits, bool)]
    if label is not None:
        rows = rows[(rows["label"] == class_named(settings, label)) | (rows["label_raw"] == label)]
    if drop is not None:
        rows = rows[(rows["drop"] == drop) | (rows["batch"] == drop)]
    return rows


def class_named(settings: Settings, text: str) -> str:
    """The label that a spelling means; the text itself where none is known."""
    known = labels.known_labels(settings) | {labels_csv.normalize(name): name for name in settings.classes}
    return known.get(labels_csv.normalize(text), text)


def find(frame: pd.DataFrame, name: str, settings: Settings) -> pd.Series:
    """The one row of `files` that `name` means: a SHA-256 (8 digits or more), a file, or a drop or batch, "/", a file.

    Where names of files are hashed, the name that the file had in the drop, with all its folders, does too.

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
        rows = _by_name_in_the_drop(frame, name, settings)
    if rows.empty:
        raise Refused(
            "A file of a committed batch was expected: its path in the drop, with the drop before it where two have "
            f"it, or 8 or more digits of its SHA-256. Received: {name!r}. `cxr-ml quarantine list` names those refused."
        )
    if len(rows) > 1 and (rows["sha256"].nunique() > 1 or (rows["sha256"] == "").any()):
        lines = [f"  {r['batch']}/{r['file']}  {r['sha256'][:16]}" for _, r in rows.head(_SHOWN).iterrows()]
        raise Refused(f"{name!r} fits {len(rows)} files. Name one of them:\n" + "\n".join(lines))
    return rows.sort_values("verdict", key=lambda v: v != "accepted", kind="stable").iloc[0]


def _by_name_in_the_drop(frame: pd.DataFrame, name: str, settings: Settings) -> pd.DataFrame:
    stored = frame["file"].str.replace(".*/", "", regex=True)
    top, _, below = name.partition("/")
    mine = (frame["drop"] == top) | (frame["batch"] == top)
    hit = stored == deidentify.hash_path(settings, name)
    return frame[hit | (mine & (stored == deidentify.hash_path(settings, below)))] if below else frame[hit]


def show(settings: Settings, name: str) -> dict:
    """All that is known of one file.

    Returns:
        file, sha256, batch, drop, at (when its batch was committed), label, label_raw, state, now, reasons (code ->
        plain words), limits (those of images.json beside what was measured), image and thumbnail (keys in the store, ""
        where there is none), others (files with the same picture, each with its thumbnail), rulings (all on this image,
        oldest first).

    Raises:
        Refused: `find`.
    """
    frame = files(settings)
    row = find(frame, name, settings)
    sha = row["sha256"]
    record = store.load(settings, f"batches/{row['batch']}/batch.json", Batch)
    rejected = record.rejected_classes.get(row["label"], "")
    others = same_picture(frame, row)
    measured = committed_batches.read_measurements(settings, row["batch"])
    measured = measured[measured["file"] == row["file"]].iloc[0]
    pictures = {s: _thumbnail(settings, s) for s in {sha, *others["sha256"]}}
    return {
        **{k: str(row[k]) for k in ("file", "sha256", "batch", "drop", "label", "label_raw", "state", "now")},
        "at": store.written(settings, f"batches/{row['batch']}/batch.json"),
        "reasons": {code: reasons.explain(code, measured, rejected, settings) for code in row["reasons"]},
        "limits": [x._asdict() for x in reasons.limits(measured, settings) if x.limit] if sha else [],
        "image": process_file.image_key(sha, row["format"]) if sha else "",
        "thumbnail": pictures[sha],
        "others": [
            {
                **{k: str(other[k]) for k in ("file", "batch", "label", "state", "sha256")},
                "thumbnail": pictures[other["sha256"]],
            }
            for other in others.to_dict("records")
        ],
        "rulings": [r.model_dump(mode="json") for r in rulings.read(settings) if sha and r.sha256 == sha],
    }


def dated(settings: Settings, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `files` with at (when their batch was committed) and thumbnail (its key, "" where there is none)."""
    there = set(store.keys(settings, "thumbnails/")) if len(rows) else ()
    at = {b: store.written(settings, f"batches/{b}/batch.json") for b in rows["batch"].unique()}
    pictures = [key if (key := thumbnails.key(sha)) in there else "" for sha in rows["sha256"]]
    return rows.assign(at=rows["batch"].map(at), thumbnail=pictures)


def _thumbnail(settings: Settings, sha256: str) -> str:
    key = thumbnails.key(sha256) if sha256 else ""
    return key if key and store.exists(settings, key) else ""


def same_picture(frame: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """The other rows that bear the row's image, are its copy, or are what it is a copy of."""
    shas = {row["sha256"], row["duplicate_of"]} - {""}
    same = frame["sha256"].isin(shas) | frame["duplicate_of"].isin(shas)
    return frame[same & (frame.index != row.name)]
