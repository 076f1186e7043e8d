"""Judges the images of a batch, its classes, and what would be trained on, by the suites in expectations/."""

from collections.abc import Sequence
from pathlib import Path

import great_expectations as gx
import pandas as pd

from cxr_ml.errors import Refused
from cxr_ml.ingest import tables
from cxr_ml.ingest.tables import COLUMNS
from cxr_ml.records import Drift, Failure
from cxr_ml.validation.suite_check import SUITES
from cxr_ml.validation.suite_tables import (
    CLASS_MEASURES,
    SPLITS,
    make_class_table,
    make_dataset_table,
    make_image_table,
    mentions_column,
    require_columns,
)
from cxr_ml.validation.suites import Unmet, evaluate, judged, load_suite, reason_of


def try_suites(folder: Path) -> None:
    """Reads the three suites and judges a tiny table by each.

    Raises:
        Refused: one cannot be used; with file and line.
    """
    images, classes, dataset = (load_suite(folder, name) for name in SUITES)
    texts = {"format": "png", "mode": "L", "label": "NORMAL", "verdict": "accepted", "split_hint": "train"}
    # Three rows that differ, as an expectation may need.
    rows: list[dict[str, int | str]] = []
    for n in range(3):
        values = {
            name: n + 1 if k.startswith(("int", "float")) else f"{n}" for name, k in COLUMNS.items() if k != "list"
        }
        rows.append({**values, **texts})
    frame = tables.make_table(rows)
    judged(images, make_image_table(frame, images), "row", row_wise=True)
    judged(classes, make_class_table(frame, classes, set()), "label", row_wise=True)
    manifest = pd.DataFrame({"sha256": ["a", "b", "c"], "label": "NORMAL", "split": SPLITS, "group": ["a", "b", "c"]})
    facts = make_dataset_table(manifest, ["NORMAL"], Drift(against=None, class_shares=0.0, measures=0.0))
    judged(dataset, facts, "dataset", row_wise=False)


def columns(folder: Path) -> list[str]:
    """Returns the columns of the measurements that `judge_images` and `judge_classes` need, for these suites."""
    suites = [load_suite(folder, name) for name in ("images", "classes")]
    own = {"label", "verdict", "reasons", "width", "height", *CLASS_MEASURES}
    return [c for c in COLUMNS if c in own or any(mentions_column(suite, c) for suite in suites)]


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
    require_columns(frame, ["verdict", "reasons", "width", "height"])
    suite = load_suite(folder, "images")
    table = make_image_table(frame, suite)
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
    table = make_class_table(frame, suite, {reason_of(e) for e in images.expectations})
    if table.empty:
        return frame.copy(), (_nothing(suite, "readable images"),), {}, _empty_page(suite, "readable images")
    unmet, page = evaluate(suite, table, "label", row_wise=True)
    facts = table.set_index("label")
    failures = []
    why: dict[str, str] = {}
    reasons: dict[int, list[str]] = {}
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
    require_columns(manifest, needed)
    if manifest.empty or not classes:
        raise Refused(f"A dataset needs images and classes. Received: {len(manifest)} images, classes {list(classes)}")
    if empty := [c for c in needed if (manifest[c].isna() | (manifest[c] == "")).any()]:
        raise Refused(f"Each row of a manifest needs a value in {needed}. Received: rows without {empty}")
    table = make_dataset_table(manifest, classes, drift)
    unmet, page = evaluate(suite, table, "dataset", row_wise=False)
    failures = [_failure(suite, u, _value(table.iloc[0], u.column) if u.rows else u.observed) for u in unmet]
    return tuple(failures), page


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
