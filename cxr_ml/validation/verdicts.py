"""Judges the images of a batch, its classes, and what would be trained on, by the suites in expectations/."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import great_expectations as gx
import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.ingest import tables
from cxr_ml.ingest.tables import COLUMNS
from cxr_ml.records import Drift, Failure
from cxr_ml.validation.suite_check import SUITES
from cxr_ml.validation.suites import Unmet, evaluate, judged, load_suite, reason_of

__all__ = ["CLASS_MEASURES", "columns", "judge_classes", "judge_dataset", "judge_images", "load_suite", "try_suites"]

CLASS_MEASURES = ["white_box", "saturation", "black_border", "white_border"]  # of which a class has its rates
_SPLITS = ("train", "validation", "test")
_Z = 1.96  # normal quantile of a two-sided 95 % interval


def try_suites(folder: Path) -> None:
    """Reads the three suites and judges a tiny table by each.

    Raises:
        Refused: one cannot be used; with file and line.
    """
    images, classes, dataset = (load_suite(folder, name) for name in SUITES)
    texts = {"format": "png", "mode": "L", "label": "NORMAL", "verdict": "accepted", "split_hint": "train"}
    # Three rows that differ, as an expectation may need.
    rows = [
        {
            name: n + 1 if kind.startswith(("int", "float")) else f"{n}"
            for name, kind in COLUMNS.items()
            if kind != "list"
        }
        | texts
        for n in range(3)
    ]
    frame = tables.make_table(rows)
    judged(images, _image_table(frame, images), "row", row_wise=True)
    judged(classes, _class_table(frame, classes, set()), "label", row_wise=True)
    manifest = pd.DataFrame({"sha256": ["a", "b", "c"], "label": "NORMAL", "split": _SPLITS, "group": ["a", "b", "c"]})
    facts = _facts(manifest, ["NORMAL"], Drift(against=None, class_shares=0.0, measures=0.0))
    judged(dataset, facts, "dataset", row_wise=False)


def columns(folder: Path) -> list[str]:
    """The columns of the measurements that `judge_images` and `judge_classes` need, those of the suites among them."""
    suites = [load_suite(folder, name) for name in ("images", "classes")]
    own = {"label", "verdict", "reasons", "width", "height", *CLASS_MEASURES}
    return [c for c in COLUMNS if c in own or any(_names(suite, c) for suite in suites)]


def _names(suite: gx.ExpectationSuite, column: str) -> bool:
    """Whether an expectation of the suite may look at the column."""
    return any(re.search(rf"\b{column}\b", str(e.configuration.kwargs)) for e in suite.expectations)


def judge_images(frame: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, tuple[Failure, ...], str]:
    """Quarantines the accepted images that do not meet `images.json`.

    Args:
        frame: one row per file with the measurement columns, each index value once. The suite also sees `aspect_ratio`
            (long side / short side).
        folder: holds images.json. Only expectations of severity "critical" quarantine.

    Returns:
        A new frame in which such rows have the verdict "quarantined" and a code more in `reasons` (`meta.reason`, else
        "<expectation>:<column>") for each expectation they do not meet; the failures; the Data Docs page. Without any
        accepted row nothing is judged, and one failure says so.

    Raises:
        Refused: the suite cannot be used or evaluated, or the frame lacks columns.
    """
    _require(frame, ["verdict", "reasons", "width", "height"])
    suite = load_suite(folder, "images")
    table = _image_table(frame, suite)
    if table.empty:
        return frame.copy(), (_nothing(suite, "accepted images"),), _empty_page(suite, "accepted images")
    unmet, page = evaluate(suite, table, "row", row_wise=True)
    critical = [u for u in unmet if u.critical]
    reasons: dict[int, list[str]] = {}
    for u in critical:
        for row in u.rows:
            codes = reasons.setdefault(row, [])
            if u.reason not in codes:
                codes.append(u.reason)
    return _refuse(frame, "quarantined", reasons), tuple(_failure(suite, u) for u in unmet), page


def judge_classes(frame: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, tuple[Failure, ...], dict[str, str], str]:
    """Rejects the classes of a batch that do not meet `classes.json`.

    Args:
        frame: as `judge_images` returned it, perhaps with further verdicts.
        folder: holds classes.json and images.json.

    Returns:
        A new frame in which the accepted rows of a rejected class have the verdict "rejected_class" and
        "rejected_class:<reason>" in `reasons`; the failures, with the class as subject; class -> one sentence why; the
        Data Docs page. Without any readable image nothing is judged, and one failure says so.

    Raises:
        Refused: a suite cannot be used or evaluated, the frame lacks columns, or an accepted row has no label.
    """
    suite, images = load_suite(folder, "classes"), load_suite(folder, "images")
    table = _class_table(frame, suite, {reason_of(e) for e in images.expectations})
    if table.empty:
        return frame.copy(), (_nothing(suite, "readable images"),), {}, _empty_page(suite, "readable images")
    unmet, page = evaluate(suite, table, "label", row_wise=True)
    facts = table.set_index("label")
    failures, why, reasons = [], {}, {}
    for u in unmet:
        for label in u.rows:
            observed = _value(facts.loc[label], u.column)
            failures.append(_failure(suite, u, observed, label))
            if not u.critical:
                continue
            count = facts.at[label, "count"]
            clause = f"{u.reason} {_share(facts.loc[label], u.column) or f'{u.column} {observed}'}, limit {u.limit}"
            why[label] = f"{why[label]}; {clause}" if label in why else f"Of {count} readable images: {clause}"
            for row in frame.index[(frame["verdict"] == "accepted") & (frame["label"] == label)]:
                reasons.setdefault(row, []).append(f"rejected_class:{u.reason}")
    return _refuse(frame, "rejected_class", reasons), tuple(failures), why, page


def judge_dataset(
    manifest: pd.DataFrame, classes: Sequence[str], folder: Path, drift: Drift
) -> tuple[tuple[Failure, ...], str]:
    """Judges by `dataset.json` whether a manifest is fit to be trained on.

    Args:
        manifest: one row per image: sha256, label, split, group.
        classes: labels of the model; rows of other labels count only where one image or group is in two places.
        folder: holds dataset.json. It judges one row: smallest_class and largest_class (training images),
            imbalance_ratio (largest / smallest, infinite without a smallest), test_support_min and
            validation_support_min (images of the smallest class there), groups_across_splits, images_across_splits,
            images_repeated (rows beyond the first of an image), labels_conflicting (images), splits_unknown (rows),
            class_share_drift and measure_drift (empty where shares_compared and measures_compared are 0, for which a
            row_condition is needed).
        drift: how new images lie beside earlier ones.

    Returns:
        What is not met, of which training may go on without those of severity "critical"; the Data Docs page.

    Raises:
        Refused: the suite cannot be used or evaluated, or the manifest is empty or lacks values.
    """
    suite = load_suite(folder, "dataset")
    needed = ["sha256", "label", "split", "group"]
    _require(manifest, needed)
    if manifest.empty or not classes:
        raise Refused(f"A dataset needs images and classes. Received: {len(manifest)} images, classes {list(classes)}")
    if empty := [c for c in needed if (manifest[c].isna() | (manifest[c] == "")).any()]:
        raise Refused(f"Each row of a manifest needs a value in {needed}. Received: rows without {empty}")
    table = _facts(manifest, classes, drift)
    unmet, page = evaluate(suite, table, "dataset", row_wise=False)
    failures = [_failure(suite, u, _value(table.iloc[0], u.column) if u.rows else u.observed) for u in unmet]
    return tuple(failures), page


def _facts(manifest: pd.DataFrame, classes: Sequence[str], drift: Drift) -> pd.DataFrame:
    """The one row that dataset.json judges."""
    counts = pd.crosstab(manifest["split"], manifest["label"]).reindex(
        index=_SPLITS, columns=list(classes), fill_value=0
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
        "groups_across_splits": _ambiguous(manifest, "group", "split"),
        "images_across_splits": _ambiguous(manifest, "sha256", "split"),
        "images_repeated": int(manifest["sha256"].duplicated().sum()),
        "labels_conflicting": _ambiguous(manifest, "sha256", "label"),
        "splits_unknown": int((~manifest["split"].isin(_SPLITS)).sum()),
        "shares_compared": int(drift.class_shares is not None),
        "class_share_drift": math.nan if drift.class_shares is None else drift.class_shares,
        "measures_compared": int(drift.measures is not None),
        "measure_drift": math.nan if drift.measures is None else drift.measures,
    }
    return pd.DataFrame([facts])


def _image_table(frame: pd.DataFrame, suite: gx.ExpectationSuite) -> pd.DataFrame:
    """The accepted rows, with what the suite looks at."""
    needed = [c for c in frame if c in ("width", "height") or (c != "reasons" and _names(suite, c))]
    rows = frame.loc[frame["verdict"] == "accepted", needed]
    sides = rows[["width", "height"]].astype("float64")
    return rows.assign(aspect_ratio=sides.max(axis=1) / sides.min(axis=1), row=rows.index)


def _class_table(frame: pd.DataFrame, suite: gx.ExpectationSuite, image_reasons: set[str]) -> pd.DataFrame:
    """One row per label over the images that were readable: accepted, or quarantined by images.json alone."""
    limits = (suite.meta or {}).get("counted_above")
    names = {"white_box", "saturation", "border"}
    if not isinstance(limits, dict) or set(limits) != names or not all(_is_number(v) for v in limits.values()):
        raise Refused(
            f'classes.json: "meta": {{"counted_above": …}} with a number for each of {sorted(names)} was expected. '
            f"Received: {limits!r}"
        )
    measures = CLASS_MEASURES
    _require(frame, ["verdict", "reasons", "label", *measures])
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
        table[f"{name}_rate_low"] = [_wilson_low(int(h), int(n)) for h, n in zip(hits, table["count"], strict=True)]
    return table.reset_index()


def _wilson_low(hits: int, n: int) -> float:
    """Lower end of the 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    share, z2 = hits / n, _Z * _Z
    return max(0.0, (share + z2 / (2 * n) - _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n))


def _ambiguous(table: pd.DataFrame, key: str, value: str) -> int:
    """How many values of `key` stand beside more than one of `value`."""
    return int((table.groupby(key, observed=True)[value].nunique() > 1).sum())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(frame: pd.DataFrame, columns: list[str]) -> None:
    if missing := [c for c in columns if c not in frame]:
        raise Refused(f"A table with the columns {columns} was expected. Received: one without {missing}")
    if not frame.index.is_unique:
        raise Refused("A table whose index names each row once was expected. Received: repeated index values")


def _refuse(frame: pd.DataFrame, verdict: str, reasons: dict[int, list[str]]) -> pd.DataFrame:
    """A new frame with `verdict` for the rows in `reasons`, and their codes appended."""
    out = frame.copy()
    out.loc[list(reasons), "verdict"] = verdict
    codes = [
        [*before, *reasons[i]] if i in reasons else before if isinstance(before, list) else list(before)
        for i, before in zip(frame.index, frame["reasons"], strict=True)
    ]
    out["reasons"] = pd.Series(codes, index=frame.index, dtype=object)
    return out


def _value(row: pd.Series, column: str) -> str:
    values = [row[c] for c in column.split(", ")]
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _share(row: pd.Series, column: str) -> str:
    """A rate with its lower bound, as a reader understands it; "" for what is no lower bound of a rate."""
    rate = column.removesuffix("_low")
    return "" if rate == column else f"{row[rate]:.1%} (surely {row[column]:.1%} or more)"


def _failure(suite: gx.ExpectationSuite, unmet: Unmet, observed: str | None = None, subject: str = "") -> Failure:
    return Failure(
        suite=suite.name,
        expectation=unmet.expectation,
        column=unmet.column,
        limit=unmet.limit,
        observed=observed or unmet.observed,
        subject=subject,
        severity="critical" if unmet.critical else "warning",
    )


def _nothing(suite: gx.ExpectationSuite, what: str) -> Failure:
    return Failure(
        suite=suite.name,
        expectation="expect_table_row_count_to_be_between",
        column="",
        limit=f"≥ 1 {what}",
        observed="0",
    )


def _empty_page(suite: gx.ExpectationSuite, what: str) -> str:
    sentence = f"There were no {what}, so the suite {suite.name} judged nothing."
    head = f'<meta charset="UTF-8"><title>Data Docs: {suite.name}</title>'
    return f'<!DOCTYPE html><html lang="en">{head}<p>{sentence}</p></html>\n'
