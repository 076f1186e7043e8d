"""What the three suites let through, what they refuse, and that nothing passes that could not be evaluated."""

import json
import logging
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_ml.errors import Refused
from cxr_ml.imaging import formats, measure
from cxr_ml.records import Drift
from cxr_ml.settings import Settings, ValidationSettings
from cxr_ml.validation import suite_check, verdicts
from cxr_ml.validation.proportions import wilson_interval

SHIPPED = Path(__file__).parents[2] / "expectations"
CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
FILM = {
    "width": 256,
    "height": 256,
    "bits": 8,
    "mean": 125.0,
    "std": 55.0,
    "p01": 0.0,
    "p99": 220.0,
    "saturation": 0.0,
    "sharpness": 120.0,
    "black_border": 0.01,
    "white_border": 0.0,
    "white_box": 0.0,
    "verdict": "accepted",
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped suites that a test may edit."""
    for path in SHIPPED.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def edit(folder, name, change):
    path = folder / f"{name}.json"
    suite = json.loads(path.read_text(encoding="utf-8"))
    change(suite)
    path.write_text(json.dumps(suite), encoding="utf-8")


def limit(suite, column, /, **kwargs):
    entry = next(e for e in suite["expectations"] if e["kwargs"].get("column") == column and "max_value" in e["kwargs"])
    entry["kwargs"].update(kwargs)


def films(*changes, label="NORMAL"):
    """One good film for each dict of changes."""
    frame = pd.DataFrame([FILM | {"file": f"{i}.png", "label": label} | c for i, c in enumerate(changes)])
    frame["reasons"] = [[] for _ in changes]
    return frame


def batch(**boxed):
    """40 films of each class; of each named class so many have a white box."""
    parts = [films(*[{"white_box": 0.1}] * boxed.get(c, 0), *[{}] * (40 - boxed.get(c, 0)), label=c) for c in boxed]
    return pd.concat(parts, ignore_index=True)


def manifest(train, test=30, validation=12):
    """As many training images as told for each class, every image a group of its own."""
    rows = [
        {"label": label, "split": split}
        for label, n in zip(CLASSES, train, strict=True)
        for split, count in (("train", n), ("test", test), ("validation", validation))
        for _ in range(count)
    ]
    names = [f"{i:064x}" for i in range(len(rows))]
    return pd.DataFrame(rows).assign(sha256=names, group=names, source="s", batch="b").astype("string")


# images.json


UNFIT = (
    ({"width": 64, "height": 64}, "too_small"),
    ({"width": 2000, "height": 400}, "odd_shape"),
    ({"width": 400, "height": 2000}, "odd_shape"),
    ({"bits": 1}, "bit_depth"),
    ({"mean": 2.0}, "exposure"),
    ({"mean": 252.0}, "exposure"),
    ({"std": 1.0}, "blank"),
    ({"sharpness": 0.4}, "blurred"),
    ({"saturation": 0.6}, "colour_cast"),
    ({"black_border": 0.8}, "mostly_border"),
    ({"white_border": 0.8}, "mostly_border"),
    ({"white_box": 0.0051}, "white_box"),
    ({"label": ""}, "no_label"),
    ({"label": None}, "no_label"),
    ({"white_box": math.nan}, "not_measured"),
    ({"sharpness": math.nan}, "not_measured"),
)


def test_only_unfit_images_are_quarantined_each_with_one_readable_reason():
    changes, reasons = zip(*UNFIT, strict=True)
    judged, failures, _ = verdicts.judge_images(films({}, *changes, {}), SHIPPED)
    assert judged["verdict"].tolist() == ["accepted", *["quarantined"] * len(UNFIT), "accepted"]
    assert judged["reasons"].tolist() == [[], *([reason] for reason in reasons), []]
    assert {f.suite for f in failures} == {"images"}
    assert "1 of 18 rows" in {f.observed for f in failures}


def test_good_images_of_both_depths_pass_without_a_failure():
    judged, failures, _ = verdicts.judge_images(films({}, {"bits": 16}, {"white_box": 0.005}), SHIPPED)
    assert judged["verdict"].tolist() == ["accepted"] * 3
    assert failures == ()


def test_an_image_with_several_faults_gets_all_reasons_in_the_order_of_the_suite():
    judged, failures, _ = verdicts.judge_images(films({"width": 64, "height": 64, "white_box": 0.5}), SHIPPED)
    assert judged.at[0, "reasons"] == ["too_small", "white_box"]
    assert [(f.column, f.limit) for f in failures] == [
        ("width", "≥ 100"),
        ("height", "≥ 100"),
        ("white_box", "≤ 0.005"),
    ]


def test_rows_already_refused_are_not_judged_and_the_frame_given_is_left_alone():
    frame = films({"verdict": "quarantined", "std": math.nan}, {"std": 1.0}, {})
    frame.at[0, "reasons"] = ["truncated"]
    before = frame.copy(deep=True)
    judged, _, _ = verdicts.judge_images(frame, SHIPPED)
    assert judged["reasons"].tolist() == [["truncated"], ["blank"], []]
    pd.testing.assert_frame_equal(frame, before)
    assert frame["reasons"].tolist() == [["truncated"], [], []]


def test_an_index_with_gaps_names_the_right_rows():
    frame = films({}, {"std": 1.0}, {}, {"std": 1.0}).drop(index=[0, 1]).set_index(pd.Index([70, 7]))
    judged, _, _ = verdicts.judge_images(frame, SHIPPED)
    assert judged["verdict"].to_dict() == {70: "accepted", 7: "quarantined"}


@pytest.mark.parametrize("rows", [5, 250])
def test_small_and_large_tables_name_the_same_rows(rows):
    bad = {1, rows - 1}
    judged, failures, _ = verdicts.judge_images(
        films(*[{"std": 1.0} if i in bad else {} for i in range(rows)]), SHIPPED
    )
    assert set(judged.index[judged["verdict"] == "quarantined"]) == bad
    assert failures[0].observed == f"2 of {rows} rows"


def test_parquet_columns_of_arrow_strings_and_array_reasons_are_judged_alike(tmp_path):
    frame = films({}, {"white_box": 0.2})
    frame[["label", "verdict"]] = frame[["label", "verdict"]].astype("string")
    frame.to_parquet(tmp_path / "m.parquet")
    judged, _, _ = verdicts.judge_images(pd.read_parquet(tmp_path / "m.parquet"), SHIPPED)
    assert judged["reasons"].tolist() == [[], ["white_box"]]


def test_without_an_accepted_image_a_failure_says_that_nothing_was_judged():
    judged, failures, page = verdicts.judge_images(films({"verdict": "quarantined"}), SHIPPED)
    assert judged["verdict"].tolist() == ["quarantined"]
    assert [(f.limit, f.observed) for f in failures] == [("≥ 1 accepted images", "0")]
    assert "judged nothing" in page


def test_every_number_that_images_json_limits_must_also_have_a_value():
    entries = verdicts.load_suite(SHIPPED, "images").expectations
    needed = {e.column for e in entries if "not_be_null" in e.expectation_type}
    integers = {"width", "height", "bits"}  # always measured together with the others
    assert {e.column for e in entries} - needed == integers


def test_each_shipped_expectation_says_why_and_what_it_is_called():
    for name in ("images", "classes", "dataset"):
        for e in verdicts.load_suite(SHIPPED, name).expectations:
            assert e.meta["reason"] and e.notes and e.severity, e


# A user edits JSON


def test_a_limit_changed_in_json_changes_who_is_quarantined(folder):
    frame = films({"white_box": 0.02})
    assert verdicts.judge_images(frame, folder)[0].at[0, "verdict"] == "quarantined"
    edit(folder, "images", lambda s: limit(s, "white_box", max_value=0.05))
    assert verdicts.judge_images(frame, folder)[0].at[0, "verdict"] == "accepted"


def test_an_expectation_added_in_json_without_a_reason_is_named_by_type_and_column(folder):
    entry = {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "file", "regex": "^[0-9]+[.]png$"}}
    edit(folder, "images", lambda s: s["expectations"].append(entry))
    judged, failures, _ = verdicts.judge_images(films({}, {"file": "scan.bmp"}), folder)
    assert judged["reasons"].tolist() == [[], ["expect_column_values_to_match_regex:file"]]
    assert "^[0-9]+[.]png$" in failures[0].limit


def test_an_expectation_of_two_columns_quarantines_the_row(folder):
    entry = {
        "type": "expect_column_pair_values_a_to_be_greater_than_b",
        "kwargs": {"column_A": "p99", "column_B": "p01"},
        "meta": {"reason": "flat"},
    }
    edit(folder, "images", lambda s: s["expectations"].append(entry))
    judged, failures, _ = verdicts.judge_images(films({}, {"p01": 230.0}), folder)
    assert judged["reasons"].tolist() == [[], ["flat"]]
    assert failures[0].column == "p99, p01"


def test_a_warning_is_shown_in_data_docs_and_quarantines_nothing(folder):
    def soften(suite):
        next(e for e in suite["expectations"] if e["kwargs"]["column"] == "std" and "between" in e["type"]).update(
            severity="warning"
        )

    edit(folder, "images", soften)
    judged, failures, page = verdicts.judge_images(films({"std": 1.0}), folder)
    assert judged.at[0, "verdict"] == "accepted"
    assert [(f.column, f.severity) for f in failures] == [("std", "warning")]
    assert "1 unexpected values found" in page


def test_rows_are_tolerated_up_to_mostly(folder):
    frame = films({"std": 1.0}, *[{}] * 9)
    edit(folder, "images", lambda s: s["expectations"][-1]["kwargs"].update(column="std", min_value=10, mostly=0.8))
    edit(folder, "images", lambda s: s["expectations"][-1]["kwargs"].pop("max_value"))
    edit(folder, "images", lambda s: s.update(expectations=s["expectations"][-1:]))
    assert verdicts.judge_images(frame, folder)[1] == ()
    edit(folder, "images", lambda s: s["expectations"][0]["kwargs"].update(mostly=0.95))
    judged, failures, _ = verdicts.judge_images(frame, folder)
    assert (judged["verdict"] == "quarantined").sum() == 1
    assert failures[0].limit == "≥ 10 in at least 0.95 of the rows"


# Suites that cannot be used


def test_broken_json_is_refused_with_file_and_line(folder):
    path = folder / "images.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] += ",,"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(Refused, match=r"images\.json, line 5"):
        verdicts.load_suite(folder, "images")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "expect_lungs_to_be_clear", "kwargs": {}}, "expect_lungs_to_be_clear"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "std", "max_vlaue": 3}}, "max_vlaue"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"column": "std"}}, "cannot both be None"),
        ({"type": "expect_column_values_to_be_between", "kwargs": {"max_value": 3}}, "column"),
        ({"type": "expect_column_values_to_be_between", "kwargs": []}, "kwargs must be a dict"),
        ({"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "std"}, "severity": "huge"}, "huge"),
        ({"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "std"}, "sverity": "info"}, "sverity"),
        ({"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "std"}, "meta": {"reason": 3}}, "reason"),
        ({"kwargs": {"column": "std"}}, "type"),
        ("expect_column_values_to_not_be_null", "type"),
    ],
)
def test_an_expectation_that_cannot_be_built_is_refused_by_file_and_number(folder, entry, message):
    edit(folder, "images", lambda s: s.update(expectations=[s["expectations"][0], entry]))
    with pytest.raises(Refused, match=message) as refused:
        verdicts.judge_images(films({}), folder)
    assert "images.json" in str(refused.value)
    assert "expectation 2" in str(refused.value)


def test_an_unknown_expectation_is_refused_with_its_line(folder):
    path = folder / "dataset.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    number = [i for i, line in enumerate(lines) if '"type"' in line][2]
    lines[number] = lines[number].replace("expect_column_values_to_be_between", "expect_nothing")
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(Refused, match=rf"dataset\.json, line {number + 1}, expectation 3"):
        verdicts.load_suite(folder, "dataset")


def test_the_shipped_suites_can_be_used_and_are_those_known_as_shipped():
    folder = Path(__file__).parents[2] / "expectations"
    verdicts.try_suites(folder)
    assert suite_check._digest(folder) == suite_check.SHIPPED


def test_suites_that_passed_are_not_tried_again_until_they_change(folder, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(verdicts, "try_suites", tried.append)
    settings = Settings(cache_dir=tmp_path / "cache", validation={"expectations": folder})
    (folder / "images.json").write_text((folder / "images.json").read_text() + "\n")
    for _ in range(3):
        suite_check.check_suites(settings.validation, settings.cache_dir)
    assert tried == [folder]
    (folder / "images.json").write_text((folder / "images.json").read_text() + "\n")
    suite_check.check_suites(settings.validation, settings.cache_dir)
    assert tried == [folder] * 2


def test_a_refused_suite_is_refused_each_time(folder, tmp_path):
    (folder / "images.json").write_text("{")
    for _ in range(2):
        with pytest.raises(Refused, match=r"images\.json, line 1"):
            suite_check.check_suites(ValidationSettings(expectations=folder), tmp_path / "cache")


@pytest.mark.parametrize(
    ("suite", "entry", "words"),
    [
        ("images", ("between", {"column": "whit_box", "max_value": 1}), "whit_box"),
        ("images", ("between", {"column": "std", "min_value": 3, "max_value": 2}), "std"),
        ("images", ("between", {"column": "std", "max_value": "3"}), "std"),
        ("images", ("match_regex", {"column": "file", "regex": "("}), "file"),
        ("classes", ("between", {"column": "artefact_rat", "max_value": 1}), "artefact_rat"),
        ("dataset", ("between", {"column": "smallest_clas", "min_value": 1}), "smallest_clas"),
    ],
)
def test_an_expectation_that_cannot_be_evaluated_is_refused_with_its_line(folder, suite, entry, words):
    kind, kwargs = entry
    kind = f"expect_column_values_to_{'be_' if kind == 'between' else ''}{kind}"
    edit(folder, suite, lambda s: s["expectations"].insert(1, {"type": kind, "kwargs": kwargs}))
    with pytest.raises(Refused, match=rf"{suite}\.json, line 1, expectation 2: .*{words}"):
        verdicts.try_suites(folder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"name": "images",\n"notes": "\xff"}', "images.json, line 2: "),
        (b'{"name": "NaN",\n"expectations": [\n{"a": -Infinity}]}', "-Infinity in line 3"),
        (b'{"name": "}",\n"expectations": [{},\n{"a": {},\n"a": 1}\n]}', "'a' twice in the object that ends in line 4"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_for_a_suite_is_refused_with_its_line(folder, data, words):
    (folder / "images.json").write_bytes(data)
    with pytest.raises(Refused, match=re.escape(words)):
        verdicts.load_suite(folder, "images")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"name": "images", "expectations": []}',
        '{"name": "other", "expectations": [{}]}',
        '{"name": "images", "name": "images", "expectations": [{}]}',
        '{"name": "images", "expectations": [{"type": "x", "kwargs": {"max_value": NaN}}]}',
        '{"name": "images", "meta": 3, "expectations": [{}]}',
        "",
    ],
)
def test_a_file_that_is_no_suite_is_refused(folder, text):
    (folder / "images.json").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=r"images\.json"):
        verdicts.load_suite(folder, "images")


def test_a_missing_suite_and_one_that_is_not_text_are_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        verdicts.load_suite(tmp_path, "images")
    (tmp_path / "images.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(Refused, match=r"images\.json"):
        verdicts.load_suite(tmp_path, "images")


def test_a_limit_on_a_column_that_is_not_there_is_refused(folder):
    edit(folder, "images", lambda s: limit(s, "white_box", column="wite_box"))
    with pytest.raises(Refused, match="wite_box could not be evaluated"):
        verdicts.judge_images(films({}), folder)


def test_a_limit_that_cannot_be_compared_with_the_column_is_refused(folder):
    edit(folder, "images", lambda s: limit(s, "white_box", column="file"))
    with pytest.raises(Refused, match="on file could not be evaluated"):
        verdicts.judge_images(films({}), folder)


def test_a_row_without_a_value_is_refused_where_no_expectation_asks_for_one(folder):
    edit(folder, "images", lambda s: s.update(expectations=[e for e in s["expectations"] if "null" not in e["type"]]))
    with pytest.raises(Refused, match="1 rows without white_box"):
        verdicts.judge_images(films({}, {"white_box": math.nan}), folder)


def test_an_expectation_on_the_whole_table_is_refused_where_rows_are_judged(folder):
    entry = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "std", "max_value": 1}}
    edit(folder, "images", lambda s: s["expectations"].append(entry))
    with pytest.raises(Refused, match="row by row"):
        verdicts.judge_images(films({}), folder)


def test_a_result_format_in_the_suite_cannot_hide_which_rows_fail(folder):
    edit(folder, "images", lambda s: limit(s, "white_box", result_format="BOOLEAN_ONLY"))
    judged, _, _ = verdicts.judge_images(films({"white_box": 0.3}, {}), folder)
    assert judged["reasons"].tolist() == [["white_box"], []]


def test_a_frame_without_a_measurement_is_refused():
    with pytest.raises(Refused, match="height"):
        verdicts.judge_images(films({}).drop(columns="height"), SHIPPED)
    with pytest.raises(Refused, match="white_border"):
        verdicts.judge_classes(films({}).drop(columns="white_border"), SHIPPED)
    with pytest.raises(Refused, match="group"):
        verdicts.judge_dataset(manifest((60, 60, 60)).drop(columns="group"), CLASSES, SHIPPED, FIRST)


def test_a_refusal_leaves_no_traceback_in_the_log(folder, caplog):
    edit(folder, "images", lambda s: limit(s, "white_box", column="wite_box"))
    with caplog.at_level(logging.INFO), pytest.raises(Refused):
        verdicts.judge_images(films({}), folder)
    assert "Traceback" not in caplog.text


def test_an_expectation_added_in_json_alone_refuses_from_then_on(folder):
    entry = {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "p99", "min_value": 200},
        "meta": {"reason": "dim"},
        "severity": "critical",
    }
    frame = films({}, {"p99": 150.0})
    assert verdicts.judge_images(frame, folder)[0]["reasons"].tolist() == [[], []]
    edit(folder, "images", lambda s: s["expectations"].append(entry))
    assert verdicts.judge_images(frame, folder)[0]["reasons"].tolist() == [[], ["dim"]]


def test_a_warning_about_a_class_is_told_and_rejects_nothing(folder):
    edit(folder, "classes", lambda s: [e.update(severity="warning") for e in s["expectations"]])
    judged, failures, why, _ = judge_both(batch(TUBERCULOSIS=14), folder)
    assert [(f.subject, f.severity) for f in failures] == [("TUBERCULOSIS", "warning")]
    assert why == {} and "rejected_class" not in set(judged["verdict"])


# classes.json


def judge_both(frame, folder=SHIPPED):
    return verdicts.judge_classes(verdicts.judge_images(frame, folder)[0], folder)


def test_only_a_class_with_boxes_on_a_third_of_its_images_is_rejected():
    judged, failures, why, page = judge_both(batch(NORMAL=0, COVID19=1, PNEUMONIA=0, TUBERCULOSIS=14))
    by = judged.groupby("label")["verdict"].value_counts().unstack(fill_value=0)
    assert by.loc["TUBERCULOSIS"].to_dict() == {"accepted": 0, "quarantined": 14, "rejected_class": 26}
    assert by.loc["NORMAL", "accepted"] == by.loc["PNEUMONIA", "accepted"] == 40
    assert by.loc["COVID19", "accepted"] == 39
    rejected = judged[judged["verdict"] == "rejected_class"]
    assert {tuple(r) for r in rejected["reasons"]} == {("rejected_class:artefacts",)}
    assert [(f.suite, f.subject, f.column, f.limit) for f in failures] == [
        ("classes", "TUBERCULOSIS", "artefact_rate_low", "≤ 0.1")
    ]
    assert list(why) == ["TUBERCULOSIS"]
    assert why["TUBERCULOSIS"] == ("Of 40 readable images: artefacts 35.0% (surely 22.1% or more), limit ≤ 0.1")
    assert "TUBERCULOSIS" in page


def test_a_class_is_judged_by_evidence_and_not_by_name():
    judged, _, why, _ = judge_both(batch(NORMAL=14, TUBERCULOSIS=0))
    assert list(why) == ["NORMAL"]
    assert (judged.loc[judged["label"] == "TUBERCULOSIS", "verdict"] == "accepted").all()


def test_one_box_in_a_small_weekly_drop_condemns_no_class():
    frame = films({"white_box": 0.2}, {}, {}, {}, label="COVID19")
    assert judge_both(frame)[2] == {}


def test_a_tinted_class_is_rejected_though_each_image_alone_would_pass():
    judged, _, why, _ = judge_both(films(*[{"saturation": 0.2}] * 20, *[{}] * 20))
    assert (judged["verdict"] == "rejected_class").all()
    assert "colour_cast" in why["NORMAL"]


def test_a_cropped_class_is_rejected():
    judged, _, _, _ = judge_both(films(*[{"black_border": 0.2, "white_border": 0.2}] * 20, *[{}] * 20))
    assert {tuple(r) for r in judged["reasons"]} == {("rejected_class:borders",)}


def test_unreadable_files_and_conflicting_labels_do_not_count_in_a_class():
    frame = pd.concat([batch(NORMAL=0), films(*[{"verdict": "quarantined", "white_box": 0.9}] * 60)], ignore_index=True)
    frame.loc[40:, "reasons"] = pd.Series([["conflicting_label"]] * 60, index=range(40, 100))
    judged, failures, why, _ = judge_both(frame)
    assert failures == () and why == {}
    assert (judged.loc[:39, "verdict"] == "accepted").all()


def test_a_limit_for_classes_changed_in_json_lets_the_class_in(folder):
    edit(folder, "classes", lambda s: limit(s, "artefact_rate_low", max_value=0.6))
    assert judge_both(batch(TUBERCULOSIS=14), folder)[2] == {}


def test_what_counts_as_an_artefact_is_a_limit_in_json_too(folder):
    edit(folder, "classes", lambda s: s["meta"]["counted_above"].update(white_box=0.5))
    assert judge_both(batch(TUBERCULOSIS=14), folder)[2] == {}
    edit(folder, "classes", lambda s: s["meta"]["counted_above"].update(white_box="much"))
    with pytest.raises(Refused, match="counted_above"):
        judge_both(batch(TUBERCULOSIS=14), folder)


def test_an_accepted_image_without_a_label_or_measurement_is_refused():
    for change in ({"label": ""}, {"label": None}, {"white_box": math.nan}):
        with pytest.raises(Refused, match="Judge images first"):
            verdicts.judge_classes(films({}, change), SHIPPED)


def test_without_a_readable_image_a_failure_says_that_no_class_was_judged():
    frame = films({"verdict": "duplicate"})
    judged, failures, why, page = verdicts.judge_classes(frame, SHIPPED)
    assert judged["verdict"].tolist() == ["duplicate"]
    assert failures[0].observed == "0" and why == {} and "judged nothing" in page


def test_the_interval_is_the_published_wilson_interval():
    # Newcombe, Stat. Med. 17 (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 15 of 148 gives 0.0624 to 0.1605.
    assert wilson_interval(81 / 263, 263).low == pytest.approx(0.2553, abs=5e-5)
    assert wilson_interval(15 / 148, 148).low == pytest.approx(0.0624, abs=5e-5)
    assert wilson_interval(0.0, 20).low == 0


# dataset.json

FIRST = Drift(against=None, why="The first.")


@pytest.mark.parametrize("train", [(1341, 460, 3875), (221, 136, 442), (58, 58, 58)])
def test_the_published_sizes_and_a_demonstration_may_be_trained_on(train):
    failures, page = verdicts.judge_dataset(manifest(train), CLASSES, SHIPPED, FIRST)
    assert failures == ()
    assert "dataset" in page


@pytest.mark.parametrize(
    ("table", "column", "observed"),
    [
        (manifest((300, 40, 300)), "smallest_class", "40"),
        (manifest((1200, 100, 300)), "imbalance_ratio", "12"),
        (manifest((100, 100, 100), test=29), "test_support_min", "29"),
        (manifest((100, 100, 100), validation=3), "validation_support_min", "3"),
    ],
)
def test_a_dataset_that_is_too_small_or_lopsided_is_stopped_with_what_was_seen(table, column, observed):
    failures, _ = verdicts.judge_dataset(table, CLASSES, SHIPPED, FIRST)
    assert [(f.column, f.observed) for f in failures] == [(column, observed)]


def test_a_class_without_any_image_is_stopped():
    table = manifest((100, 100, 100))
    failures, _ = verdicts.judge_dataset(table[table["label"] != "COVID19"], CLASSES, SHIPPED, FIRST)
    assert {f.column: f.observed for f in failures} == {
        "smallest_class": "0",
        "imbalance_ratio": "inf",
        "test_support_min": "0",
        "validation_support_min": "0",
    }


def test_a_patient_in_two_splits_is_stopped():
    table = manifest((100, 100, 100))
    table.loc[table["split"] == "test", "group"] = table.loc[table["split"] == "train", "group"].to_numpy()[:90]
    failures, _ = verdicts.judge_dataset(table, CLASSES, SHIPPED, FIRST)
    assert [(f.column, f.observed, f.limit) for f in failures] == [("groups_across_splits", "90", "≤ 0")]


def test_an_image_in_two_splits_or_under_two_labels_is_stopped():
    table = manifest((100, 100, 100))
    first = table[(table["split"] == "train") & (table["label"] == "NORMAL")].iloc[[0]]
    twice = pd.concat([table, first.assign(split="test"), first.assign(label="COVID19")], ignore_index=True)
    failures, _ = verdicts.judge_dataset(twice, CLASSES, SHIPPED, FIRST)
    assert {f.column: f.observed for f in failures} == {
        "groups_across_splits": "1",
        "images_across_splits": "1",
        "images_repeated": "2",
        "labels_conflicting": "1",
    }


def test_a_split_of_another_name_is_stopped():
    failures, _ = verdicts.judge_dataset(manifest((100, 100, 100)).replace("train", "Train"), CLASSES, SHIPPED, FIRST)
    assert "splits_unknown" in {f.column for f in failures}


@pytest.mark.parametrize("value", ["", None])
def test_a_manifest_that_is_empty_or_has_holes_is_refused(value):
    table = manifest((60, 60, 60))
    table.loc[5, "group"] = value
    with pytest.raises(Refused, match="group"):
        verdicts.judge_dataset(table, CLASSES, SHIPPED, FIRST)
    with pytest.raises(Refused, match="0 images"):
        verdicts.judge_dataset(table.iloc[:0], CLASSES, SHIPPED, FIRST)


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        ({"class_shares": 0.1, "measures": 0.3}, []),
        ({"class_shares": 0.2, "measures": None}, [("class_share_drift", "warning", "≤ 0.15", "0.2")]),
        ({"class_shares": 0.1, "measures": 0.6}, [("measure_drift", "warning", "≤ 0.4", "0.6")]),
        (
            {"class_shares": 0.5, "measures": 0.0},
            [("class_share_drift", "critical", "≤ 0.4", "0.5"), ("class_share_drift", "warning", "≤ 0.15", "0.5")],
        ),
    ],
)
def test_drift_is_warned_of_and_a_collapse_of_the_class_shares_is_stopped(drift, told):
    moved = Drift(against=1, images=60, **drift)
    failures, page = verdicts.judge_dataset(manifest((100, 100, 100)), CLASSES, SHIPPED, moved)
    assert [(f.column, f.severity, f.limit, f.observed) for f in failures] == told
    assert "class_share_drift" in page and "measure_drift" in page


def test_drift_without_a_condition_for_what_was_not_compared_is_refused_not_passed(folder):
    def unconditional(suite):
        for entry in suite["expectations"]:
            entry["kwargs"].pop("row_condition", None)

    edit(folder, "dataset", unconditional)
    with pytest.raises(Refused, match="would let 1 rows without class_share_drift pass"):
        verdicts.judge_dataset(manifest((100, 100, 100)), CLASSES, folder, FIRST)


def test_a_dataset_limit_changed_in_json_counts(folder):
    edit(folder, "dataset", lambda s: limit(s, "imbalance_ratio", max_value=1.5))
    failures, _ = verdicts.judge_dataset(manifest((100, 100, 160)), CLASSES, folder, FIRST)
    assert [(f.limit, f.observed) for f in failures] == [("≤ 1.5", "1.6")]


# Data Docs


def test_data_docs_name_the_suite_load_nothing_remote_and_are_reproducible():
    frame = batch(NORMAL=0, TUBERCULOSIS=14)
    first, second = ([verdicts.judge_images(frame, SHIPPED)[2], judge_both(frame)[3]] for _ in range(2))
    assert first == second
    for name, page in zip(("images", "classes"), first, strict=True):
        assert f"<title>Data Docs: {name}</title>" in page
        for sign in ("http:", "https:", "src=", "<script", "<link", "@import", "../"):
            assert sign not in page, sign


def test_a_label_that_is_a_script_is_text_in_data_docs():
    frame = films(*[{"white_box": 0.3}] * 20, label="<script>alert(1)</script>")
    page = judge_both(frame)[3]
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_of_a_large_table_stays_small():
    frame = pd.concat([films({"std": 1.0})] * 3000, ignore_index=True)
    judged, _, page = verdicts.judge_images(frame, SHIPPED)
    assert (judged["verdict"] == "quarantined").all()
    assert len(page) < 100_000


# Real X-rays


@pytest.mark.xrays
def test_the_real_first_drop_loses_tuberculosis_by_evidence_and_keeps_the_rest():
    if "CXR_XRAYS" not in os.environ:
        pytest.skip("CXR_XRAYS is not set")
    drop, settings, rows = Path(os.environ["CXR_XRAYS"]) / "drops" / "2026-01-05", Settings(), []
    for path in sorted(p for p in drop.rglob("*") if p.is_file()):
        try:
            rows.append(measure.measure_image(path.read_bytes(), settings.images)[0] | {"label": path.parent.name})
        except formats.BadImage:
            continue
    frame = pd.DataFrame(rows).assign(verdict="accepted", reasons=[[] for _ in rows])
    judged, _, why, _ = judge_both(frame)
    assert list(why) == ["TURBERCULOSIS"]
    shares = pd.crosstab(judged["label"], judged["verdict"], normalize="index")
    assert shares.loc["TURBERCULOSIS"].get("accepted", 0) == 0
    kept = judged[judged["label"] != "TURBERCULOSIS"]
    others = kept["reasons"].map(lambda codes: bool(set(codes) - {"white_box"}))
    assert len(kept) > 1200
    assert np.mean(others) == 0
    assert (shares.loc[list(CLASSES), "accepted"] >= 0.95).all()
