"""A human rules on refused images: lets them in, gives them another label, or takes them out."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Batch, Ruling
from cxr_ml.settings import InboxSettings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, quarantine, rulings
from cxr_ml.validation.rulings import NewRuling, RulingRefused, RulingsRefused


class Request(NamedTuple):
    """What a human asks for."""

    action: str  # release (it enters with its label), relabel (it enters with `label`) or withdraw (it leaves)
    by: str  # who rules
    why: str  # the reason
    label: str = ""  # for relabel
    # Lets in an image although its whole class was rejected. The evidence was against the class, so whoever lets in
    # single images of it has to say that they are meant.
    rejected_too: bool = False


class Outcome(NamedTuple):
    """A ruling, and what it changes beside the image itself."""

    ruling: Ruling
    previous_label: str  # under which the image was in until now; "" where it was out, or keeps its label
    leaving: list[quarantine.OtherFile]  # files of the same picture that leave, since they have another label


class Releasable(NamedTuple):
    """Which refused files can be released at once."""

    rows: pd.DataFrame  # one per image, with the label that it would enter with
    skipped: dict[str, int]  # code of RulingRefused -> other files, for which it stands


class _Labels(NamedTuple):
    """Labels of an image; "": it is out."""

    now: str
    wanted: str  # from now on


def rule_on_image(
    store: ObjectStore,
    settings: InboxSettings,
    classes: tuple[str, ...],
    withheld: Collection[str],
    name: str,
    request: Request,
) -> Outcome:
    """Records a ruling on one image; the next dataset honours it.

    Args:
        store: the object store.
        settings: the classes, the spellings of labels.
        classes: the model's classes, in the order of its outputs.
        withheld: SHA-256 of the images that stay out for good, by the newest dataset.
        name: as for `quarantine.find_file`.
        request: the action, who asks for it and why.

    Raises:
        Refused: there is no such file.
        RulingRefused: the action is not possible for this file.
    """
    frame = quarantine.list_files(store)
    row = quarantine.find_file(frame, name, settings)
    labels = _check(store, settings, classes, frame, withheld, row, request)
    new = NewRuling(row, request.action, labels.wanted)
    (ruling,) = rulings.append(store, [new], request.by, request.why)
    if request.action == "withdraw":
        return Outcome(ruling, "", [])
    others = quarantine.select_same_picture(frame, row)
    others = others[(others["now"] != "") & (others["now"] != labels.wanted) & (others["sha256"] != row["sha256"])]
    previous = labels.now if labels.now != labels.wanted else ""
    return Outcome(
        ruling, previous, [quarantine.OtherFile(r["file"], r["batch"], r["now"]) for _, r in others.iterrows()]
    )


def rule_on_images(
    store: ObjectStore,
    settings: InboxSettings,
    classes: tuple[str, ...],
    withheld: Collection[str],
    names: Sequence[str],
    request: Request,
    read: Callable[[ObjectStore, str], pa.Table] = committed_batches.read_outcomes,
    known: Sequence[Ruling] | None = None,
) -> list[Ruling]:
    """Records a ruling on each of several images, with one reason; on all, or, where one is not possible, on none.

    Args:
        store: the object store.
        settings: as for `rule_on_image`.
        classes: the model's classes, in the order of its outputs.
        withheld: likewise.
        names: a batch, "/" and a file of it, each.
        request: as for `rule_on_image`.
        read: as for `quarantine.list_files`.
        known: all rulings, where the caller has read them already.

    Raises:
        RulingsRefused: the action is not possible for some; it names each with its reason. Nothing is recorded then.
    """
    known = rulings.read(store) if known is None else known
    frame = quarantine.list_files(store, names, read, known)
    new: dict[str, NewRuling] = {}
    refusals = []
    places = dict(zip(frame["batch"] + "/" + frame["file"], frame.index, strict=True))
    for name in names:
        try:
            row = frame.loc[places[name]] if name in places else quarantine.find_file(frame, name, settings)
            labels = _check(store, settings, classes, frame, withheld, row, request)
            new.setdefault(row["sha256"], NewRuling(row, request.action, labels.wanted))
        except Refused as error:
            refusals.append(error)
    if refusals:
        raise RulingsRefused(len(names), refusals)
    return rulings.append(store, list(new.values()), request.by, request.why, known)


def find_releasable(
    store: ObjectStore,
    settings: InboxSettings,
    classes: tuple[str, ...],
    withheld: Collection[str],
    reason: str,
    label: str | None = None,
    drop: str | None = None,
    rejected_too: bool = False,
) -> Releasable:
    """Returns which of the files that `quarantine.list_refused` returns can be released at once.

    Args:
        store: the object store.
        settings: the classes.
        classes: the model's classes, in the order of its outputs.
        withheld: as for `rule_on_image`.
        reason: as for `quarantine.list_refused`, as are `label` and `drop`.
        label: only of this label.
        drop: only of this drop or batch.
        rejected_too: as in Request.
    """
    frame = quarantine.list_files(store)
    rows = quarantine.select_refused(settings, classes, frame, reason, label, drop)
    labels_of = frame[frame["label"] != ""].groupby("sha256")["label"].agg(set).to_dict()
    entering = set(frame.loc[frame["now"] != "", "sha256"])
    chosen = []
    skipped: Counter[str] = Counter()
    for place, row in rows.iterrows():
        code = "already_in" if row["sha256"] in entering else ""
        labels = labels_of.get(row["sha256"], set())
        code = code or _why_not_releasable(classes, labels, withheld, row, rejected_too)
        if code:
            skipped[code] += 1
        else:
            chosen.append(place)
            entering.add(row["sha256"])
    return Releasable(rows.loc[chosen], dict(skipped))


def release_images(store: ObjectStore, rows: pd.DataFrame, by: str, why: str) -> list[Ruling]:
    """Releases the rows that `find_releasable` returned, each image by a ruling of its own.

    Raises:
        RulingRefused: no reason, or nobody who gives it.
    """
    return rulings.append(store, [NewRuling(row, "release", row["label"]) for _, row in rows.iterrows()], by, why)


def _check(
    store: ObjectStore,
    settings: InboxSettings,
    classes: tuple[str, ...],
    frame: pd.DataFrame,
    withheld: Collection[str],
    row: pd.Series,
    request: Request,
) -> _Labels:
    """The labels of the row's image, if the request is possible. Raises RulingRefused otherwise."""
    facts = {"file": row["file"], "batch": row["batch"], "action": request.action}
    if not row["sha256"]:
        raise RulingRefused("no_image", reasons=", ".join(row["reasons"]), **facts)
    now = next((label for label in frame.loc[frame["sha256"] == row["sha256"], "now"] if label), "")
    if request.action == "withdraw":
        if not now:
            raise RulingRefused("already_out", **facts)
        return _Labels(now, now)
    listed = ", ".join(classes)
    wanted = row["label"]
    labels = set(frame.loc[frame["sha256"] == row["sha256"], "label"]) - {""}
    if request.action == "relabel":
        wanted = quarantine.parse_label(settings, classes, request.label)
        if wanted not in classes:
            raise RulingRefused("unknown_class", classes=listed, label=request.label, **facts)
    elif code := _why_no_label(classes, labels, row):
        known = ", ".join(sorted(labels)) or "none"
        raise RulingRefused(code, classes=listed, label=wanted, label_raw=row["label_raw"], known=known, **facts)
    if now == wanted and not row["ruling"]:
        raise RulingRefused("already_in", label=wanted, **facts)
    if row["sha256"] in withheld:
        raise RulingRefused("withheld", **facts)
    if _is_of_rejected_class(row) and not request.rejected_too:
        record = store.load(layout.batch_record(row["batch"]), Batch)
        why = record.rejected_classes.get(row["label"], "")
        raise RulingRefused("rejected_class", label=row["label"], why=why, **facts)
    return _Labels(now, wanted)


def _why_not_releasable(
    classes: tuple[str, ...], labels: set[str], withheld: Collection[str], row: pd.Series, rejected_too: bool
) -> str:
    """Code of the reason why a refused image cannot be released with its own label; "" where it can."""
    if not row["sha256"]:
        return "no_image"
    if code := _why_no_label(classes, labels, row):
        return code
    if row["sha256"] in withheld:
        return "withheld"
    return "rejected_class" if _is_of_rejected_class(row) and not rejected_too else ""


def _why_no_label(classes: tuple[str, ...], labels: set[str], row: pd.Series) -> str:
    """Code of the reason why an image with these labels cannot enter with that of the row; "" where it can."""
    if not row["label"] or "conflicting_rows" in row["reasons"] or len(labels) > 1:
        return "no_single_label"
    return "" if row["label"] in classes else "untrained_label"


def _is_of_rejected_class(row: pd.Series) -> bool:
    return any(code.startswith("rejected_class") for code in row["reasons"])
