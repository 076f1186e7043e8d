"""Rulings of humans on single images. Rulings are only ever added; the last one on an image is in force."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Ruling
from cxr_ml.store import ObjectStore

FOLD = 100  # rulings that are also kept in one object, so that reading thousands takes a request per hundred
_RULINGS = TypeAdapter(list[Ruling])
_REFUSALS = {  # code -> text, with the facts of the error filled in
    "no_reason": "A ruling needs a reason and who gives it. Received: reason {why!r}, by {by!r}.",
    "no_image": "A ruling needs an image in the store. Received: {file!r} of batch {batch}, which has none "
    "({reasons}). Correct the file and deliver it in a new drop.",
    "already_out": "Only an image that a dataset would take can be withdrawn. Received: {file!r} of batch {batch}, "
    "which is out already.",
    "already_in": "{file!r} of batch {batch} is accepted as {label} already: there is nothing to {action}. To take it "
    "out: withdraw it.",
    "withheld": "{file!r} of batch {batch} stays out for good: images of its patient or copies of it are in "
    "validation or test, and it was trained on before that was known. Nothing ever moves between the splits.",
    "rejected_class": "The class {label} of batch {batch} was rejected as a whole. {why} A class that is let in image "
    "by image brings what it was rejected for.",
    "unknown_class": "The new label must be one of the model's classes: {classes}. Received: {label!r}",
    "no_single_label": "{file!r} has no single label that it could be released with. Received: {label_raw!r}; known "
    "labels of this image: {known}. Relabel it as what is right: {classes}.",
    "untrained_label": "The model knows the classes {classes}. Received: an image labelled {label}. Relabel it if it "
    "belongs to one of them.",
}


class RulingRefused(Refused):
    """A ruling that cannot be recorded: a code with its facts. A front end may add how its users go on.

    Attributes:
        code: no_reason, no_image, already_out, already_in, withheld, rejected_class, unknown_class, no_single_label or
            untrained_label.
        facts: the values in the message, by name; file and batch but for no_reason.
    """

    def __init__(self, code: str, **facts: str) -> None:
        super().__init__(_REFUSALS[code].format(**facts))
        self.code, self.facts = code, facts


class RulingsRefused(Refused):
    """Rulings on several images, none of which is recorded since some are not possible.

    Attributes:
        refusals: an error for each of those; not all are RulingRefused, since there may be no such file.
    """

    def __init__(self, images: int, refusals: Sequence[Refused]) -> None:
        super().__init__(f"None of the {images} images was ruled on, because of:\n" + "\n".join(map(str, refusals)))
        self.refusals = tuple(refusals)


class NewRuling(NamedTuple):
    """A ruling that is to be recorded."""

    row: pd.Series  # that is ruled on: sha256, batch, file, reasons
    action: str  # release, relabel or withdraw
    label: str  # of the image from now on


def read(store: ObjectStore, after: int = 0) -> list[Ruling]:
    """Returns the rulings with a number above `after`, in their order.

    Raises:
        Refused: the store holds something else under their keys.
    """
    if after and not store.exists(layout.ruling(after + 1)):
        return []
    tags = _tags(store)
    parts = [p for p in _parts(tags) if p[-1] > after]
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        folded = list(pool.map(lambda part: _read_fold(store, part, tags), parts))
        alone = [n for part, fold in zip(parts, folded, strict=True) if fold is None for n in part if n > after]
        singles = list(pool.map(lambda n: store.load(layout.ruling(n), Ruling), alone))
    together = [r for fold in folded if fold for r in fold if r.number > after]
    return sorted(together + singles, key=lambda r: r.number)


def fold(store: ObjectStore) -> None:
    """Writes the objects that hold FOLD rulings each, where they are missing. The single objects remain the truth."""
    tags = _tags(store)
    for part in _parts(tags):
        if len(part) == FOLD and not store.exists(_fold_key(part, tags)):
            with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
                singles = list(pool.map(lambda n: store.get(layout.ruling(n)), part))
            store.put_if_absent(_fold_key(part, tags), b"[" + b",".join(singles) + b"]", "application/json")


def _tags(store: ObjectStore) -> list[str]:
    """The ETag of each ruling, in their order."""
    tags = dict(store.etags(layout.RULINGS))
    return [tags[layout.ruling(number)] for number in range(1, len(tags) + 1)]


def _parts(tags: list[str]) -> list[range]:
    """The numbers of each hundred; of the last one, which is not folded, as many as there are."""
    return [range(first, min(first + FOLD, len(tags) + 1)) for first in range(1, len(tags) + 1, FOLD)]


def _fold_key(part: range, tags: list[str]) -> str:
    # It follows from the single rulings, so that a fold of others than those listed is never taken for theirs.
    digest = hashlib.sha256("\n".join(tags[n - 1] for n in part).encode()).hexdigest()
    return f"rulings-folded/{part[0]:05d}-{digest[:32]}.json"


def _read_fold(store: ObjectStore, part: range, tags: list[str]) -> list[Ruling] | None:
    stored = store.get_or_none(_fold_key(part, tags)) if len(part) == FOLD else None
    if stored is None:
        return None
    try:
        entries = _RULINGS.validate_json(stored[0])
    except ValueError:
        entries = []
    if [r.number for r in entries] != list(part):
        raise Refused(
            f"{_fold_key(part, tags)} must hold the rulings {part[0]} to {part[-1]}. Received: something else. Delete "
            "it: the single rulings are the source of truth."
        )
    return entries


def count(store: ObjectStore) -> int:
    """Returns how many rulings there are, which is the number of the last one."""
    return sum(1 for _ in store.keys(layout.RULINGS))


def in_force(entries: Sequence[Ruling]) -> dict[str, Ruling]:
    """Returns the last ruling on each image, by SHA-256."""
    return {entry.sha256: entry for entry in entries}


def append(
    store: ObjectStore, new: Sequence[NewRuling], by: str, why: str, known: Sequence[Ruling] = ()
) -> list[Ruling]:
    """Records rulings under the next free numbers. A ruling that is in force already is not written again.

    Args:
        store: the object store.
        new: one for each image.
        by: who rules.
        why: the reason.
        known: the rulings from the first on that the caller has read already.

    Returns:
        The rulings, in the order of `new`.

    Raises:
        RulingRefused: no reason, or nobody who gives it.
    """
    by, why = by.strip(), why.strip()
    if not why or not by:
        raise RulingRefused("no_reason", why=why, by=by)
    last = in_force(known)
    later = read(store, len(known))
    last.update(in_force(later))
    newest = len(known) + len(later)
    entries = []
    for row, action, label in new:
        while True:
            old = last.get(row["sha256"])
            if old and (old.action, old.label, old.by, old.why) == (action, label, by, why):
                entries.append(old)
                break
            at = datetime.now(UTC).isoformat(timespec="seconds")
            named = {column: row[column] for column in ("sha256", "batch", "file")}
            reasons = tuple(row["reasons"])
            entry = Ruling(
                number=newest + 1, action=action, label=label, by=by, why=why, at=at, reasons=reasons, **named
            )
            written = store.put_if_absent(layout.ruling(entry.number), entry.to_bytes(), "application/json")
            # Where it was not written, somebody else has ruled meanwhile, perhaps on the same image.
            later = [entry] if written else read(store, newest)
            last.update(in_force(later))
            newest += len(later)
    if newest // FOLD and newest % FOLD < len(entries):
        fold(store)
    return entries


def select_known(table: pd.DataFrame, ruled: Mapping[str, Ruling]) -> pd.DataFrame:
    """Returns the rows of a batch whose pictures later copies must be compared with: accepted, or let in by a ruling.

    Withdrawn images are among them, so that a copy does not bring back what a human took out. Labels are those in
    force.
    """
    labels = {sha: r.label for sha, r in ruled.items() if r.action != "withdraw"}
    rows = table[(table["verdict"] == "accepted") | table["sha256"].isin(set(labels))]
    return rows.assign(label=rows["sha256"].map(labels).astype("string").fillna(rows["label"]))


def select_admitted(frame: pd.DataFrame, ruled: Mapping[str, Ruling]) -> pd.DataFrame:
    """Returns the images that may be trained on: each once, with its label in force and its ruling's number (0: none).

    Args:
        frame: the measurements of all batches, with `batch`; the first accepted row of an image counts, else the one
            that it was ruled on.
        ruled: `in_force`.

    Raises:
        Refused: a ruling on a row that the frame lacks.
    """
    is_ruled_on = frame["sha256"].isin(set(ruled))
    accepted = frame[~is_ruled_on & (frame["verdict"] == "accepted")].drop_duplicates("sha256").assign(ruling=0)
    entering = {sha: ruling for sha, ruling in ruled.items() if ruling.action != "withdraw"}
    rows = frame[is_ruled_on & frame["sha256"].isin(set(entering))]
    names = zip(rows["sha256"], rows["batch"], rows["file"], strict=True)
    is_named = np.array([(batch, file) == (entering[s].batch, entering[s].file) for s, batch, file in names], bool)
    rows = rows[is_named | (rows["verdict"] == "accepted")]
    rows = rows.sort_values("verdict", key=lambda v: v != "accepted", kind="stable").drop_duplicates("sha256")
    if lost := set(entering) - set(rows["sha256"]):
        ruling = entering[min(lost)]
        raise Refused(
            f"Ruling {ruling.number} is on {ruling.file!r} of batch {ruling.batch!r}, with SHA-256 {ruling.sha256}. "
            "Received: a store without that row. Bring the batch back before the next dataset is built."
        )
    rows = rows.assign(
        label=pd.array([entering[s].label for s in rows["sha256"]], dtype="string"),
        ruling=[entering[s].number for s in rows["sha256"]],
    )
    return pd.concat([accepted, rows]).sort_index()
