"""Groups: what may not be divided between training and test. A patient's images, and the copies of a picture."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxr_ml.settings import Settings

_STRICTEST_FIRST = ("test", "validation", "train")


def share(group: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the group and the purpose alone."""
    return int(hashlib.sha256(f"{purpose}\n{group}".encode()).hexdigest()[:8], 16) / 2**32


def split_of(group: str, hint: str, settings: Settings) -> str:
    """Split of a group that is new: the drop's word if it has one, else by the hash of the group."""
    if hint in ("test", "validation"):
        return hint
    if not hint and share(group, "test") < settings.test_fraction:
        return "test"
    return "validation" if share(group, "validation") < settings.validation_fraction else "train"


def connected(pairs: Sequence[tuple[pd.Series, pd.Series]]) -> pd.Series:
    """Number of the connected component of each name: int, indexed by name.

    Args:
        pairs: columns of names; the two of a row belong together. A name beside itself stands alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = (pd.concat([p[side] for p in pairs], ignore_index=True).astype(object) for side in (0, 1))
    codes, names = pd.factorize(pd.concat([left, right], ignore_index=True))
    n = len(left)
    edges = coo_array((np.ones(n, np.int8), (codes[:n], codes[n:])), shape=(len(names), len(names)))
    return pd.Series(connected_components(edges, directed=False)[1], index=names)


def pictures(frame: pd.DataFrame, copies: pd.DataFrame) -> list[tuple[pd.Series, pd.Series]]:
    """Pairs for `connected`: each image, and the images that show the same picture.

    Args:
        frame: sha256 and duplicate_of ("" where it repeats nothing) of all files of all batches.
        copies: further pairs, in the same columns.
    """
    found = []
    for table in (frame, copies):
        image = "image:" + table["sha256"]
        found.append((image, ("image:" + table["duplicate_of"]).where(table["duplicate_of"] != "", image)))
    return found


def assign(
    frame: pd.DataFrame, rows: pd.DataFrame, copies: pd.DataFrame, known: pd.DataFrame, settings: Settings
) -> tuple[pd.DataFrame, set[str]]:
    """Group and split of each of `rows`.

    A group is all that patients and copies tie together, whatever became of the files that tell: a refused copy of an
    image says who its patient is. A known group keeps its split. Where it turns out that groups of different splits are
    one, nothing moves: the strictest of the splits (test, validation, train) keeps its images, and the others are
    named, to be left out from now on.

    Args:
        frame: sha256, patient, duplicate_of of all readable files of all batches.
        rows: sha256, patient, split_hint of what may enter; the first row of a new group decides.
        copies: sha256, duplicate_of of copies that `frame` does not tell.
        known: sha256, group, split of the parent.
        settings: shares of groups without a hint.

    Returns:
        `rows` with group and split; the images of `known` to leave out.
    """
    patients = frame[frame["patient"] != ""]
    component = connected(
        [
            *pictures(frame, copies),
            ("image:" + patients["sha256"], "patient:" + patients["patient"]),
            ("image:" + known["sha256"], known["group"]),
        ]
    )
    before = known.assign(
        component=component.reindex("image:" + known["sha256"]).to_numpy(),
        rank=known["split"].map({s: i for i, s in enumerate(_STRICTEST_FIRST)}).astype("int64"),
    )
    before["strictest"] = before.groupby("component")["rank"].transform("min")
    stays = before["rank"] == before["strictest"]
    kept = before[stays].groupby("component").agg(group=("group", "min"), split=("split", "first"))
    homes = {c: (g, s) for c, g, s in kept.itertuples()}
    image = "image:" + rows["sha256"]
    own = ("patient:" + rows["patient"]).where(rows["patient"] != "", image)
    numbers = component.reindex(image).to_numpy()
    for number, name, hint in zip(numbers, own, rows["split_hint"], strict=True):
        if number not in homes:
            homes[number] = (name, split_of(name, hint, settings))
    placed = rows.assign(group=[homes[n][0] for n in numbers], split=[homes[n][1] for n in numbers])
    return placed, set(before.loc[~stays, "sha256"])
