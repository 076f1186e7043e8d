"""What changed between two dataset versions."""

import pandas as pd

from cxr_ml.dataset import versions
from cxr_ml.store import ObjectStore

CHANGES = ("added", "removed", "relabelled", "moved")
_COLUMNS = ["change", "sha256", "label", "split", "label_before", "split_before", "batch"]


def compare_datasets(store: ObjectStore, before: int, after: int) -> pd.DataFrame:
    """Returns each image in which two dataset versions differ.

    Returns:
        change (added, removed, relabelled, or moved to another split, which must never occur), sha256, label and split
        (in the later version; of a removed image, in the earlier one), label_before and split_before ("" for an added
        image), batch. In order of change and sha256.

    Raises:
        Refused: there is no such version, or a manifest was changed.
    """
    old, new = (
        versions.load_manifest(store, versions.load_dataset(store, n))[["sha256", "label", "split", "batch"]]
        for n in (before, after)
    )
    merged = old.astype(object).merge(
        new.astype(object), on="sha256", how="outer", suffixes=("_before", ""), indicator=True
    )
    in_both = merged["_merge"] == "both"
    masks = {
        "added": merged["_merge"] == "right_only",
        "removed": merged["_merge"] == "left_only",
        "relabelled": in_both & (merged["label_before"] != merged["label"]),
        "moved": in_both & (merged["split_before"] != merged["split"]),
    }
    changes = pd.concat([merged[mask].assign(change=name) for name, mask in masks.items()], ignore_index=True)
    for column in ("label", "split", "batch"):
        changes[column] = changes[column].fillna(changes[f"{column}_before"])
    return changes[_COLUMNS].fillna("").astype("string")
