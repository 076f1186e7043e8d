"""Every refused file can be asked about, and a human can rule on it."""

from collections import Counter

import numpy as np
import pandas as pd

from cxr_ml import store
from cxr_ml.data import batches, drops, identity, ingest, reasons, rulings, thumbnails
from cxr_ml.data import dataset as datasets
from cxr_ml.errors import Refused
from cxr_ml.records import Batch, Ruling
from cxr_ml.settings import Settings

_WITHHELD = (
    "stays out for good: images of its patient or copies of it are in validation or test, and it was trained on before "
    "that was known. Nothing ever moves between the splits."
)
_SHOWN = 10  # candidates named where a name fits several files


def files(settings: Settings) -> pd.DataFrame:
    """All files of all committed batches: the measurements but the ring, and

    batch; drop; state: accepted, or what became of it otherwise (quarantined, rejected_class, duplicate, contradicted
    by a later drop, withdrawn); ruling: number of the ruling in force, 0 without one; now: the label under which the
    next dataset takes the image, "" where it does not.
    """
    tables = []
    for batch in batches.committed(settings):
        table = batches.measurements(settings, batch).drop(columns="ring", errors="ignore")
        tables.append(table.assign(batch=batch, drop=batch.rpartition("-")[0]))
    if not tables:
        return pd.DataFrame(columns=[*ingest.COLUMNS, "duplicate_of", "batch", "drop", "state", "ruling", "now"])
    frame = pd.concat(tables, ignore_index=True)
    entries = rulings.in_force(rulings.read(settings))
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


def refused(
    settings: Settings, reason: str | None = None, label: str | None = None, drop: str | None = None
) -> pd.DataFrame:
    """The rows of `files` that were refused, or fell out later; of one reason, label or drop (or batch) if given."""
    return _refused(settings, files(settings), reason, label, drop)


def _refused(
    settings: Settings, rows: pd.DataFrame, reason: str | None, label: str | None, drop: str | None
) -> pd.DataFrame:
    rows = rows[rows["state"] != "accepted"]
    if reason is not None:
        wanted = (reason, f"rejected_class:{reason}")
        hits = [any(c in wanted or c.startswith(f"{reason}:") for c in codes) for codes in rows["reasons"]]
        rows = rows[np.array(hits, bool)]
    if label is not None:
        rows = rows[(rows["label"] == _label(settings, label)) | (rows["label_raw"] == label)]
    if drop is not None:
        rows = rows[(rows["drop"] == drop) | (rows["batch"] == drop)]
    return rows


def _label(settings: Settings, text: str) -> str:
    known = drops.known_labels(settings) | {drops.spelling(name): name for name in settings.classes}
    return known.get(drops.spelling(text), text)


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
    hit = stored == identity.hashed_name(settings, name)
    return frame[hit | (mine & (stored == identity.hashed_name(settings, below)))] if below else frame[hit]


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
    others = _same_picture(frame, row)
    pictures = {s: _thumbnail(settings, s) for s in {sha, *others["sha256"]}}
    return {
        **{k: str(row[k]) for k in ("file", "sha256", "batch", "drop", "label", "label_raw", "state", "now")},
        "at": store.written(settings, f"batches/{row['batch']}/batch.json"),
        "reasons": {code: reasons.explain(code, row, rejected, settings) for code in row["reasons"]},
        "limits": [x._asdict() for x in reasons.limits(row, settings) if x.limit] if sha else [],
        "image": ingest.image_key(sha, row["format"]) if sha else "",
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


def _thumbnail(settings: Settings, sha256: str) -> str:
    key = thumbnails.key(sha256) if sha256 else ""
    return key if key and store.exists(settings, key) else ""


def _same_picture(frame: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """The other rows that bear the row's image, are its copy, or are what it is a copy of."""
    shas = {row["sha256"], row["duplicate_of"]} - {""}
    same = frame["sha256"].isin(shas) | frame["duplicate_of"].isin(shas)
    return frame[same & (frame.index != row.name)]


def rule(
    settings: Settings, name: str, action: str, by: str, why: str, label: str = "", rejected_too: bool = False
) -> tuple[Ruling, list[str]]:
    """Records what a human rules on one image; the next dataset honours it.

    Args:
        settings: the store, the classes, the spellings of labels.
        name: as in `find`.
        action: release (it enters with its label), relabel (it enters with `label`) or withdraw (it leaves).
        by: who rules.
        why: the reason.
        label: for relabel.
        rejected_too: lets in an image although its whole class was rejected. The evidence was against the class, so
            who lets in single images of it has to say that this is meant.

    Returns:
        The ruling, and sentences about what else it changes.

    Raises:
        Refused: the action is not possible for this file; the message says why and what is.
    """
    frame = files(settings)
    row = find(frame, name, settings)
    what = f"{row['file']!r} of batch {row['batch']}"
    if not row["sha256"]:
        raise Refused(
            f"A ruling needs an image in the store. Received: {what}, which has none "
            f"({', '.join(row['reasons'])}). Correct the file and deliver it in a new drop."
        )
    bearers = frame[frame["sha256"] == row["sha256"]]
    inside = next((label for label in bearers["now"] if label), "")
    if action == "withdraw":
        if not inside:
            raise Refused(f"Only what a dataset would take can be withdrawn. Received: {what}, which is out already.")
        return rulings.append(settings, [(row, action, inside)], by, why)[0], []
    wanted = _wanted(settings, row, bearers, action, label)
    if inside == wanted and not row["ruling"]:
        raise Refused(
            f"{what} is accepted as {wanted} already: there is nothing to {action}. To take it out: withdraw it."
        )
    newest = datasets.latest(settings)
    if newest and row["sha256"] in newest.withheld:
        raise Refused(f"{what} {_WITHHELD}")
    if _of_rejected_class(row) and not rejected_too:
        record = store.load(settings, f"batches/{row['batch']}/batch.json", Batch)
        raise Refused(
            f"The class {row['label']} of batch {row['batch']} was rejected as a whole. "
            f"{record.rejected_classes.get(row['label'], '')}. A class that is let in image by image brings what it "
            "was rejected for. If this image is meant all the same, say so with --from-rejected-class."
        )
    (ruling,) = rulings.append(settings, [(row, action, wanted)], by, why)
    leaving = _same_picture(frame, row)
    leaving = leaving[(leaving["now"] != "") & (leaving["now"] != wanted) & (leaving["sha256"] != row["sha256"])]
    until = [f"The image was in as {inside} until now."] if inside and inside != wanted else []
    return ruling, until + [
        f"{r['file']!r} of batch {r['batch']} leaves: it shows the same picture under the label {r['now']}."
        for _, r in leaving.iterrows()
    ]


def releasable(
    settings: Settings, reason: str, label: str | None = None, drop: str | None = None, rejected_too: bool = False
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Which of the files that `refused` gives can be released at once.

    Args:
        settings: the store and the classes.
        reason: as for `refused`, as are `label` and `drop`.
        rejected_too: as for `rule`.

    Returns:
        One row per image, with the label that it would enter with in `label`; why others cannot be -> how many.
    """
    frame = files(settings)
    rows = _refused(settings, frame, reason, label, drop)
    labels_of = frame[frame["label"] != ""].groupby("sha256")["label"].agg(set)
    newest = datasets.latest(settings)
    withheld = set(newest.withheld) if newest else set()
    fit: dict[int, None] = {}
    skipped: Counter[str] = Counter()
    seen = set(frame.loc[frame["now"] != "", "sha256"])
    for i, row in rows.iterrows():
        sha = row["sha256"]
        if not sha:
            skipped["have no image in the store"] += 1
        elif sha in seen:
            skipped["are in already"] += 1
        elif not row["label"] or "conflicting_rows" in row["reasons"] or len(labels_of[sha]) > 1:
            skipped["have no single label"] += 1
        elif row["label"] not in settings.classes:
            skipped["are labelled with what is none of the model's classes"] += 1
        elif sha in withheld:
            skipped["stay out for good"] += 1
        elif _of_rejected_class(row) and not rejected_too:
            skipped["are of a class that was rejected as a whole (--from-rejected-class lets them in)"] += 1
        else:
            fit[i] = None
            seen.add(sha)
    return rows.loc[list(fit)], dict(skipped)


def release_all(settings: Settings, rows: pd.DataFrame, by: str, why: str) -> list[Ruling]:
    """Releases what `releasable` found, each image by a ruling of its own.

    Raises:
        Refused: no reason, or nobody who gives it.
    """
    return rulings.append(settings, [(row, "release", row["label"]) for _, row in rows.iterrows()], by, why)


def _of_rejected_class(row: pd.Series) -> bool:
    return any(code.startswith("rejected_class") for code in row["reasons"])


def _wanted(settings: Settings, row: pd.Series, bearers: pd.DataFrame, action: str, label: str) -> str:
    """The label with which the image is to enter."""
    classes = ", ".join(settings.classes)
    if action == "relabel":
        wanted = _label(settings, label)
        if wanted not in settings.classes:
            raise Refused(f"The new label must be one of the model's classes: {classes}. Received: {label!r}")
        return wanted
    labels = sorted(set(bearers["label"]) - {""})
    if not row["label"] or "conflicting_rows" in row["reasons"] or len(labels) > 1:
        raise Refused(
            f"{row['file']!r} has no single label that it could be released with. Received: {row['label_raw']!r}; "
            f"known labels of this image: {', '.join(labels) or 'none'}. Relabel it as what is right: {classes}."
        )
    if row["label"] not in settings.classes:
        raise Refused(
            f"The model knows the classes {classes}. Received: an image labelled {row['label']}. Relabel it if it "
            "belongs to one of them."
        )
    return row["label"]
