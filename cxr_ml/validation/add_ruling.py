"""A human rules on refused images: lets them in, gives them another label, or takes them out."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import pandas as pd
import pyarrow as pa

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Batch, Ruling
from cxr_ml.settings import Settings
from cxr_ml.validation import quarantine, rulings

_WITHHELD = (
    "stays out for good: images of its patient or copies of it are in validation or test, and it was trained on before "
    "that was known. Nothing ever moves between the splits."
)


def rule(
    settings: Settings,
    withheld: Collection[str],
    name: str,
    action: str,
    by: str,
    why: str,
    label: str = "",
    rejected_too: bool = False,
) -> tuple[Ruling, list[str]]:
    """Records what a human rules on one image; the next dataset honours it.

    Args:
        settings: the store, the classes, the spellings of labels.
        withheld: SHA-256 of the images that stay out for good, by the newest dataset.
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
    frame = quarantine.list_files(settings)
    row = quarantine.find_file(frame, name, settings)
    inside, wanted = _asked(settings, frame, withheld, row, action, label, rejected_too)
    (ruling,) = rulings.append(settings, [(row, action, wanted)], by, why)
    if action == "withdraw":
        return ruling, []
    leaving = quarantine.same_picture(frame, row)
    leaving = leaving[(leaving["now"] != "") & (leaving["now"] != wanted) & (leaving["sha256"] != row["sha256"])]
    until = [f"The image was in as {inside} until now."] if inside and inside != wanted else []
    return ruling, until + [
        f"{r['file']!r} of batch {r['batch']} leaves: it shows the same picture under the label {r['now']}."
        for _, r in leaving.iterrows()
    ]


def rule_all(
    settings: Settings,
    withheld: Collection[str],
    names: Sequence[str],
    action: str,
    by: str,
    why: str,
    label: str = "",
    rejected_too: bool = False,
    read: Callable[[Settings, str], pa.Table] = committed_batches.read_outcomes,
    ruled: Sequence[Ruling] | None = None,
) -> list[Ruling]:
    """`rule` for several images, with one reason. All are ruled on, or, where one cannot be, none is.

    Args:
        settings: as for `rule`, as are `withheld`, `action`, `by`, `why`, `label` and `rejected_too`.
        names: a batch, "/" and a file of it, each.
        read: as for `quarantine.files`, as is `ruled`.

    Raises:
        Refused: the action is not possible for some; the message names each with its reason. Nothing is recorded then.
    """
    ruled = rulings.read(settings) if ruled is None else ruled
    frame = quarantine.list_files(settings, names, read, ruled)
    asked: dict[str, tuple[pd.Series, str, str]] = {}
    refusals = []
    places = dict(zip(frame["batch"] + "/" + frame["file"], frame.index, strict=True))
    for name in names:
        try:
            row = frame.loc[places[name]] if name in places else quarantine.find_file(frame, name, settings)
            _, wanted = _asked(settings, frame, withheld, row, action, label, rejected_too)
            asked.setdefault(row["sha256"], (row, action, wanted))
        except Refused as error:
            refusals.append(str(error))
    if refusals:
        raise Refused(f"None of the {len(names)} images was ruled on, because of:\n" + "\n".join(refusals))
    return rulings.append(settings, list(asked.values()), by, why, ruled)


def _asked(
    settings: Settings,
    frame: pd.DataFrame,
    withheld: Collection[str],
    row: pd.Series,
    action: str,
    label: str,
    rejected_too: bool,
) -> tuple[str, str]:
    """The label under which the image of the row is in ("": it is out), and the one from now on."""
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
        return inside, inside
    wanted = _wanted(settings, row, bearers, action, label)
    if inside == wanted and not row["ruling"]:
        raise Refused(
            f"{what} is accepted as {wanted} already: there is nothing to {action}. To take it out: withdraw it."
        )
    if row["sha256"] in withheld:
        raise Refused(f"{what} {_WITHHELD}")
    if _of_rejected_class(row) and not rejected_too:
        record = store.load(settings, f"batches/{row['batch']}/batch.json", Batch)
        raise Refused(
            f"The class {row['label']} of batch {row['batch']} was rejected as a whole. "
            f"{record.rejected_classes.get(row['label'], '')}. A class that is let in image by image brings what it "
            "was rejected for. If this image is meant all the same, say so with --from-rejected-class."
        )
    return inside, wanted


def releasable(
    settings: Settings,
    withheld: Collection[str],
    reason: str,
    label: str | None = None,
    drop: str | None = None,
    rejected_too: bool = False,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Which of the files that `refused` gives can be released at once.

    Args:
        settings: the store and the classes.
        withheld: as for `rule`.
        reason: as for `refused`, as are `label` and `drop`.
        rejected_too: as for `rule`.

    Returns:
        One row per image, with the label that it would enter with in `label`; why others cannot be -> how many.
    """
    frame = quarantine.list_files(settings)
    rows = quarantine.select(settings, frame, reason, label, drop)
    labels_of = frame[frame["label"] != ""].groupby("sha256")["label"].agg(set)
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
        wanted = quarantine.class_named(settings, label)
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
