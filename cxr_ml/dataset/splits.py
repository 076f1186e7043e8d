"""Groups: images that must not be divided between training and test. A patient's images, and copies of a picture."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxr_ml.settings import DatasetSettings

_STRICTEST_FIRST = ("test", "validation", "train")


class Pairs(NamedTuple):
    """Names that belong together, row by row. A name beside itself stands alone."""

    left: pd.Series
    right: pd.Series


def hash_to_unit(group: str, purpose: str) -> float:
    """Returns a number in [0, 1) that depends on the group and the purpose alone."""
    return int(hashlib.sha256(f"{purpose}\n{group}".encode()).hexdigest()[:8], 16) / 2**32


def choose_split(group: str, hint: str, settings: DatasetSettings) -> str:
    """Returns the split of a new group: the one that the drop asks for, else one by the hash of the group's name.

    Args:
        group: its name, e.g. "patient:…".
        hint: split that the drop asks for; "" where it asks for none. Of "train" a share still goes to validation.
        settings: test_fraction, validation_fraction.

    Examples:
        >>> settings = DatasetSettings(test_fraction=0.2, validation_fraction=0.15)
        >>> choose_split("patient:7", "test", settings)
        'test'
        >>> [choose_split(f"patient:{n}", "", settings) for n in (0, 1, 4)]
        ['validation', 'train', 'test']
    """
    if hint in ("test", "validation"):
        return hint
    if not hint and hash_to_unit(group, "test") < settings.test_fraction:
        return "test"
    return "validation" if hash_to_unit(group, "validation") < settings.validation_fraction else "train"


def number_components(pairs: Sequence[Pairs]) -> pd.Series:
    """Returns the number of the connected component of each name: int, indexed by name."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = (pd.concat([p[side] for p in pairs], ignore_index=True).astype(object) for side in (0, 1))
    codes, names = pd.factorize(pd.concat([left, right], ignore_index=True))
    n = len(left)
    edges = coo_array((np.ones(n, np.int8), (codes[:n], codes[n:])), shape=(len(names), len(names)))
    return pd.Series(connected_components(edges, directed=False)[1], index=names)


def pair_copies(frame: pd.DataFrame, copies: pd.DataFrame) -> list[Pairs]:
    """Returns each image beside the image whose picture it repeats, or beside itself, for `number_components`.

    Args:
        frame: sha256 and duplicate_of ("" where it repeats nothing) of all files of all batches.
        copies: further pairs, in the same columns.
    """
    pairs = []
    for table in (frame, copies):
        image = "image:" + table["sha256"]
        pairs.append(Pairs(image, ("image:" + table["duplicate_of"]).where(table["duplicate_of"] != "", image)))
    return pairs


def assign_splits(
    frame: pd.DataFrame, rows: pd.DataFrame, copies: pd.DataFrame, known: pd.DataFrame, settings: DatasetSettings
) -> tuple[pd.DataFrame, set[str]]:
    """Returns `rows` with the group and split of each image, and the images of `known` to leave out from now on.

    A group is all images that patients and copies tie together. Refused files count too: a refused copy of an image
    can say who its patient is. A known group keeps its split. Where groups of different splits turn out to be one,
    nothing moves: the strictest of the splits (test, validation, train) keeps its images, and the images in the others
    are left out.

    Args:
        frame: sha256, patient, duplicate_of of all readable files of all batches.
        rows: sha256, patient, split_hint of the images that may enter; the first row of a new group decides.
        copies: sha256, duplicate_of of copies that `frame` does not name.
        known: sha256, group, split of the parent dataset.
        settings: shares of groups without a hint.
    """
    patients = frame[frame["patient"] != ""]
    component = number_components(
        [
            *pair_copies(frame, copies),
            Pairs("image:" + patients["sha256"], "patient:" + patients["patient"]),
            Pairs("image:" + known["sha256"], known["group"]),
        ]
    )
    before = known.assign(
        component=component.reindex("image:" + known["sha256"]).to_numpy(),
        rank=known["split"].map({s: i for i, s in enumerate(_STRICTEST_FIRST)}).astype("int64"),
    )
    before["strictest"] = before.groupby("component")["rank"].transform("min")
    stays = before["rank"] == before["strictest"]
    kept = before[stays].groupby("component").agg(group=("group", "min"), split=("split", "first"))
    groups = {number: (group, split) for number, group, split in kept.itertuples()}
    image = "image:" + rows["sha256"]
    names = ("patient:" + rows["patient"]).where(rows["patient"] != "", image)
    numbers = component.reindex(image).to_numpy()
    for number, name, hint in zip(numbers, names, rows["split_hint"], strict=True):
        if number not in groups:
            groups[number] = (name, choose_split(name, hint, settings))
    placed = rows.assign(group=[groups[n][0] for n in numbers], split=[groups[n][1] for n in numbers])
    return placed, set(before.loc[~stays, "sha256"])
