"""What humans ruled on single images. Rulings are only ever added; the last one on an image is in force."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Ruling
from cxr_ml.settings import Settings

FOLD = 100  # rulings that are also kept in one object, so that reading thousands takes a request per hundred
_LIST = TypeAdapter(list[Ruling])


def read(settings: Settings, after: int = 0) -> list[Ruling]:
    """The rulings with a number above `after`, in their order.

    Raises:
        Refused: what the store holds are no rulings.
    """
    if after and not store.exists(settings, _key(after + 1)):
        return []
    tags = _tags(settings)
    parts = [p for p in _parts(tags) if p[-1] > after]
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        folded = list(pool.map(lambda part: _folded(settings, part, tags), parts))
        alone = [n for part, found in zip(parts, folded, strict=True) if found is None for n in part if n > after]
        singles = list(pool.map(lambda n: store.load(settings, _key(n), Ruling), alone))
    together = [r for found in folded if found for r in found if r.number > after]
    return sorted(together + singles, key=lambda r: r.number)


def fold(settings: Settings) -> None:
    """Writes the objects that hold FOLD rulings each, where they are missing. The single ones stay what counts."""
    tags = _tags(settings)
    for part in _parts(tags):
        if len(part) == FOLD and not store.exists(settings, _fold_key(part, tags)):
            with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
                singles = list(pool.map(lambda n: store.get(settings, _key(n)), part))
            store.put_if_absent(settings, _fold_key(part, tags), b"[" + b",".join(singles) + b"]", "application/json")


def _key(number: int) -> str:
    return f"rulings/{number:05d}.json"


def _tags(settings: Settings) -> list[str]:
    """The ETag of each ruling, in their order."""
    tags = dict(store.etags(settings, "rulings/"))
    return [tags[_key(number)] for number in range(1, len(tags) + 1)]


def _parts(tags: list[str]) -> list[range]:
    """The numbers of each hundred; of the last one, which is not folded, as many as there are."""
    return [range(first, min(first + FOLD, len(tags) + 1)) for first in range(1, len(tags) + 1, FOLD)]


def _fold_key(part: range, tags: list[str]) -> str:
    # It follows from the single rulings, so that a fold of others than those listed is never taken for theirs.
    digest = hashlib.sha256("\n".join(tags[n - 1] for n in part).encode()).hexdigest()
    return f"rulings-folded/{part[0]:05d}-{digest[:32]}.json"


def _folded(settings: Settings, part: range, tags: list[str]) -> list[Ruling] | None:
    found = store.find(settings, _fold_key(part, tags)) if len(part) == FOLD else None
    if found is None:
        return None
    try:
        entries = _LIST.validate_json(found[0])
    except ValueError:
        entries = []
    if [r.number for r in entries] != list(part):
        raise Refused(
            f"{_fold_key(part, tags)} must hold the rulings {part[0]} to {part[-1]}. Received: something else. Delete "
            "it: the single rulings are what counts."
        )
    return entries


def count(settings: Settings) -> int:
    """How many rulings there are, which is the number of the last one."""
    return sum(1 for _ in store.keys(settings, "rulings/"))


def in_force(entries: Sequence[Ruling]) -> dict[str, Ruling]:
    """sha256 -> the last ruling on that image."""
    return {entry.sha256: entry for entry in entries}


def append(
    settings: Settings, wanted: Sequence[tuple[pd.Series, str, str]], by: str, why: str, known: Sequence[Ruling] = ()
) -> list[Ruling]:
    """Records rulings under the next free numbers. The very ruling that is in force already is not written again.

    Args:
        settings: the store.
        wanted: of each image the row that is ruled on (sha256, batch, file, reasons), the action (release, relabel or
            withdraw) and the image's label from now on.
        by: who rules.
        why: the reason.
        known: the rulings from the first on that the caller has read already.

    Returns:
        The rulings, in the order of `wanted`.

    Raises:
        Refused: no reason, or nobody who gives it.
    """
    by, why = by.strip(), why.strip()
    if not why or not by:
        raise Refused(f"A ruling needs a reason (--why) and who gives it (--by). Received: why {why!r}, by {by!r}")
    last, newest = {}, 0
    found = []

    def take_up(entries: list[Ruling]) -> int:
        last.update(in_force(entries))
        return newest + len(entries)

    newest = take_up(list(known))
    newest = take_up(read(settings, newest))
    for row, action, label in wanted:
        while True:
            old = last.get(row["sha256"])
            if old and (old.action, old.label, old.by, old.why) == (action, label, by, why):
                found.append(old)
                break
            entry = Ruling(
                number=newest + 1,
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
            written = store.put_if_absent(settings, _key(entry.number), entry.to_bytes(), "application/json")
            # Else somebody else has ruled meanwhile, perhaps on the same image.
            newest = take_up([entry] if written else read(settings, newest))
    if newest // FOLD and newest % FOLD < len(found):
        fold(settings)
    return found


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
