"""The tables that the suites judge: a row for each image, each class, or the whole dataset."""

import math
import re
from collections.abc import Sequence

import great_expectations as gx
import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.records import Drift
from cxr_ml.validation.proportions import wilson_interval

CLASS_MEASURES = ["white_box", "saturation", "black_border", "white_border"]  # of which a class has its rates
SPLITS = ("train", "validation", "test")


def make_image_table(frame: pd.DataFrame, suite: gx.ExpectationSuite) -> pd.DataFrame:
    """Returns the accepted rows with the columns that the suite looks at, and aspect_ratio (long / short side)."""
    needed = [c for c in frame if c in ("width", "height") or (c != "reasons" and mentions_column(suite, c))]
    rows = frame.loc[frame["verdict"] == "accepted", needed]
    sides = rows[["width", "height"]].astype("float64")
    return rows.assign(aspect_ratio=sides.max(axis=1) / sides.min(axis=1), row=rows.index)


def make_class_table(frame: pd.DataFrame, suite: gx.ExpectationSuite, image_reasons: set[str]) -> pd.DataFrame:
    """Returns one row per label, over the images that were readable: accepted, or quarantined by images.json alone.

    Args:
        frame: as for `verdicts.judge_classes`.
        suite: classes.json; its meta says above which measure an image counts.
        image_reasons: codes that images.json gives.

    Raises:
        Refused: the suite lacks these limits, the frame lacks columns, or an accepted row has no label.
    """
    limits = (suite.meta or {}).get("counted_above")
    names = {"white_box", "saturation", "border"}
    if not isinstance(limits, dict) or set(limits) != names or not all(_is_number(v) for v in limits.values()):
        raise Refused(
            f'classes.json: "meta": {{"counted_above": …}} with a number for each of {sorted(names)} was expected. '
            f"Received: {limits!r}"
        )
    measures = CLASS_MEASURES
    require_columns(frame, ["verdict", "reasons", "label", *measures])
    accepted = frame["verdict"] == "accepted"
    nameless = frame["label"].isna() | (frame["label"] == "")
    unmeasured = frame[measures].isna().any(axis=1)
    if bad := int((accepted & (nameless | unmeasured)).sum()):
        raise Refused(f"Accepted images need a label and {measures}. Received: {bad} rows without. Judge images first.")
    quarantined = frame["verdict"] == "quarantined"
    by_images = quarantined & frame["reasons"].map(lambda codes: len(codes) > 0 and set(codes) <= image_reasons)
    rows = frame.loc[(accepted | by_images) & ~nameless & ~unmeasured, ["label", "verdict", *measures]]
    flags = pd.DataFrame(
        {
            "label": rows["label"],
            "artefact": rows["white_box"] > limits["white_box"],
            "cast": rows["saturation"] > limits["saturation"],
            "border": rows["black_border"] + rows["white_border"] > limits["border"],
            "quarantined": rows["verdict"] == "quarantined",
        }
    ).groupby("label", observed=True)
    table = pd.DataFrame({"count": flags.size()})
    table["share"] = table["count"] / len(rows)
    for name, hits in flags.sum().items():
        table[f"{name}_rate"] = hits / table["count"]
        table[f"{name}_rate_low"] = [
            wilson_interval(hit / n, n).low for hit, n in zip(hits.tolist(), table["count"].tolist(), strict=True)
        ]
    return table.reset_index()


def make_dataset_table(manifest: pd.DataFrame, classes: Sequence[str], drift: Drift) -> pd.DataFrame:
    """Returns the one row that dataset.json judges: see `verdicts.judge_dataset`."""
    counts = pd.crosstab(manifest["split"], manifest["label"]).reindex(
        index=SPLITS, columns=list(classes), fill_value=0
    )
    train = counts.loc["train"]
    smallest, largest = int(train.min()), int(train.max())
    facts = {
        "dataset": "dataset",
        "images": len(manifest),
        "smallest_class": smallest,
        "largest_class": largest,
        "imbalance_ratio": largest / smallest if smallest else math.inf,
        "test_support_min": int(counts.loc["test"].min()),
        "validation_support_min": int(counts.loc["validation"].min()),
        "groups_across_splits": _count_ambiguous(manifest, "group", "split"),
        "images_across_splits": _count_ambiguous(manifest, "sha256", "split"),
        "images_repeated": int(manifest["sha256"].duplicated().sum()),
        "labels_conflicting": _count_ambiguous(manifest, "sha256", "label"),
        "splits_unknown": int((~manifest["split"].isin(SPLITS)).sum()),
        "shares_compared": int(drift.class_shares is not None),
        "class_share_drift": math.nan if drift.class_shares is None else drift.class_shares,
        "measures_compared": int(drift.measures is not None),
        "measure_drift": math.nan if drift.measures is None else drift.measures,
    }
    return pd.DataFrame([facts])


def mentions_column(suite: gx.ExpectationSuite, column: str) -> bool:
    """Returns whether an expectation of the suite may look at the column."""
    return any(re.search(rf"\b{column}\b", str(e.configuration.kwargs)) for e in suite.expectations)


def _count_ambiguous(table: pd.DataFrame, key: str, value: str) -> int:
    """How many values of `key` stand beside more than one of `value`."""
    return int((table.groupby(key, observed=True)[value].nunique() > 1).sum())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_columns(frame: pd.DataFrame, columns: list[str]) -> None:
    """Refuses a table that lacks columns, or whose index does not name each row once."""
    if missing := [c for c in columns if c not in frame]:
        raise Refused(f"A table with the columns {columns} was expected. Received: one without {missing}")
    if not frame.index.is_unique:
        raise Refused("A table whose index names each row once was expected. Received: repeated index values")
