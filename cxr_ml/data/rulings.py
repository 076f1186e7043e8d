"""What humans ruled on single images. Rulings are only ever added; the last one on an image is in force."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Ruling
from cxr_ml.settings import Settings


def read(settings: Settings, after: int = 0) -> list[Ruling]:
    """The rulings with a number above `after`, in their order."""
    keys = [f"rulings/{n:05d}.json" for n in range(after + 1, count(settings) + 1)]
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda key: store.load(settings, key, Ruling), keys))


def count(settings: Settings) -> int:
    """How many rulings there are, which is the number of the last one."""
    return sum(1 for _ in store.keys(settings, "rulings/"))


def in_force(entries: Sequence[Ruling]) -> dict[str, Ruling]:
    """sha256 -> the last ruling on that image."""
    return {entry.sha256: entry for entry in entries}


def append(settings: Settings, row: pd.Series, action: str, label: str, by: str, why: str) -> Ruling:
    """Records a ruling under the next free number. The very ruling that is in force already is not written again.

    Args:
        settings: the store.
        row: the image that is ruled on: sha256, batch, file, reasons.
        action: release, relabel or withdraw.
        label: the image's label from now on.
        by: who rules.
        why: the reason.

    Raises:
        Refused: no reason, or nobody who gives it.
    """
    by, why = by.strip(), why.strip()
    if not why or not by:
        raise Refused(f"A ruling needs a reason (--why) and who gives it (--by). Received: why {why!r}, by {by!r}")
    while True:
        entries = read(settings)
        last = in_force(entries).get(row["sha256"])
        if last and (last.action, last.label, last.by, last.why) == (action, label, by, why):
            return last
        entry = Ruling(
            number=len(entries) + 1,
            sha256=row["sha256"],
            batch=row["batch"],
            file=row["file"],
            action=action,
            label=label,
            by=by,
            why=why,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            reasons=tuple(row["reasons"]),
        )
        if store.put_if_absent(settings, f"rulings/{entry.number:05d}.json", entry.to_bytes(), "application/json"):
            return entry


def known(table: pd.DataFrame, ruled: Mapping[str, Ruling]) -> pd.DataFrame:
    """Rows of a batch whose pictures later copies must be compared with: accepted, or let in by a ruling.

    Withdrawn images are among them, so that a copy does not bring back what a human took out. Labels are those in
    force.
    """
    labels = {sha: r.label for sha, r in ruled.items() if r.action != "withdraw"}
    rows = table[(table["verdict"] == "accepted") | table["sha256"].isin(set(labels))]
    return rows.assign(label=rows["sha256"].map(labels).astype("string").fillna(rows["label"]))


def admitted(frame: pd.DataFrame, ruled: Mapping[str, Ruling]) -> pd.DataFrame:
    """What may be trained on: each image once, with its label in force and the number of its ruling (0: none).

    Args:
        frame: the measurements of all batches, with `batch`; the first accepted row of an image counts, else the one
            that it was ruled on.
        ruled: `in_force`.

    Raises:
        Refused: a ruling on a row that the frame lacks.
    """
    by_hand = frame["sha256"].isin(set(ruled))
    free = frame[~by_hand & (frame["verdict"] == "accepted")].drop_duplicates("sha256").assign(ruling=0)
    entering = {s: r for s, r in ruled.items() if r.action != "withdraw"}
    rows = frame[by_hand]
    names = zip(rows["sha256"], rows["batch"], rows["file"], strict=True)
    hit = [s in entering and (b, f) == (entering[s].batch, entering[s].file) for s, b, f in names]
    known = rows[np.array(hit, bool) | ((rows["verdict"] == "accepted") & rows["sha256"].isin(set(entering)))]
    rows = known.sort_values("verdict", key=lambda v: v != "accepted", kind="stable").drop_duplicates("sha256")
    if lost := set(entering) - set(rows["sha256"]):
        one = entering[min(lost)]
        raise Refused(
            f"Ruling {one.number} is on {one.file!r} of batch {one.batch!r}, with SHA-256 {one.sha256}. Received: a "
            "store without that row. Bring the batch back before the next dataset is built."
        )
    rows = rows.assign(
        label=pd.array([entering[s].label for s in rows["sha256"]], dtype="string"),
        ruling=[entering[s].number for s in rows["sha256"]],
    )
    return pd.concat([free, rows]).sort_index()
