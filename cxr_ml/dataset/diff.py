"""What changed between two dataset versions."""

import pandas as pd

from cxr_ml.dataset import versions
from cxr_ml.settings import Settings

CHANGES = ("added", "removed", "relabelled", "moved")


def compare_datasets(settings: Settings, before: int, after: int) -> pd.DataFrame:
    """Each image that two versions do not hold alike.

    Returns:
        change (added, removed, relabelled or moved, the last of which must never occur), sha256, label and split (now,
        or of what was removed: then), label_before and split_before ("" for what was added), batch. In order of change
        and sha256.

    Raises:
        Refused: no such version, or a manifest that was changed.
    """
    old, new = (
        versions.load_manifest(settings, versions.load_dataset(settings, n))[
            ["sha256", "label", "split", "batch"]
        ].astype(object)
        for n in (before, after)
    )
    both = old.merge(new, on="sha256", how="outer", suffixes=("_before", ""), indicator=True)
    here = both["_merge"] == "both"
    parts = {
        "added": both["_merge"] == "right_only",
        "removed": both["_merge"] == "left_only",
        "relabelled": here & (both["label_before"] != both["label"]),
        "moved": here & (both["split_before"] != both["split"]),
    }
    found = pd.concat([both[mask].assign(change=name) for name, mask in parts.items()], ignore_index=True)
    for column in ("label", "split", "batch"):
        found[column] = found[column].fillna(found[f"{column}_before"])
    columns = ["change", "sha256", "label", "split", "label_before", "split_before", "batch"]
    return found[columns].fillna("").astype("string")
