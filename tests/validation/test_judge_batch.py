"""Judging a batch: what is refused and why, that results are reproducible, and that a batch is committed as a whole."""

import json

import numpy as np
import pytest
from drop_samples import (
    Died,
    boxed,
    die_at_write,
    elsewhere,
    encoded,
    film,
    judged,
    loosened,
    png,
    put_drop,
    resized,
    snapshot,
    take,
    verdicts,
)

from cxr_ml.errors import Refused
from cxr_ml.ingest import inbox, ingest_drop
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, judge_batch

pytestmark = pytest.mark.usefixtures("handful")


def films(label, *numbers):
    return {f"train/{label}/{n}.png": png(n) for n in numbers}


def test_a_sound_drop_is_accepted_whole_and_committed(store, settings):
    record = take(settings, "week-1", films("NORMAL", 1, 2) | films("COVID19", 3))
    assert (record.drop, record.reasons, record.rejected_classes, record.failures) == ("week-1", {}, {}, ())
    assert record.counts == {"accepted": {"NORMAL": 2, "COVID19": 1}}
    assert committed_batches.list_names(store) == [record.batch]
    assert inbox.list_new_drops(store, settings.inbox) == []
    folder = f"batches/{record.batch}"
    assert {f"{folder}/{n}" for n in ("batch.json", "measurements.parquet", "images.html", "classes.html")} <= set(
        snapshot(settings)
    )
    assert list(judged(settings, record.batch)["verdict"]) == ["accepted"] * 3


@pytest.mark.processes
def test_unfit_and_unreadable_images_are_quarantined_and_counted(settings):
    files = films("NORMAL", 1, 2, 3) | {
        "train/NORMAL/thumbnail.png": encoded(film(4)[80:170, 80:170]),
        "train/NORMAL/blank.png": encoded(np.full((300, 300), 100, np.uint8)),
        "train/NORMAL/boxed.png": boxed(5),
        "train/NORMAL/page.png": b"<html>",
        "train/UNHEARD/a.png": png(6),
    }
    record = take(settings, "drop", files)
    found = verdicts(judged(settings, record.batch))
    refused = {f.split("/", 1)[1]: v for f, v in found.items() if v != ("accepted",)}
    assert refused == {
        "NORMAL/thumbnail.png": ("quarantined", "too_small"),
        "NORMAL/blank.png": ("quarantined", "blank", "blurred"),
        "NORMAL/boxed.png": ("quarantined", "white_box"),
        "NORMAL/page.png": ("quarantined", "not_an_image"),
        "UNHEARD/a.png": ("quarantined", "unknown_label"),
    }
    assert record.counts == {"accepted": {"NORMAL": 3}, "quarantined": {"?": 1, "NORMAL": 4}}
    assert record.reasons == {
        "blank": 1, "blurred": 1, "not_an_image": 1, "too_small": 1, "unknown_label": 1, "white_box": 1,
    }  # fmt: skip
    assert {f.column for f in record.failures} == {"width", "height", "std", "sharpness", "white_box"}


def test_a_class_with_white_boxes_is_rejected_and_the_others_are_not(settings):
    files = films("NORMAL", *range(8)) | films("TURBERCULOSIS", *range(10, 14))
    files |= {f"train/TURBERCULOSIS/boxed{n}.png": boxed(n) for n in range(20, 24)}
    record = take(settings, "drop", files)
    assert list(record.rejected_classes) == ["TUBERCULOSIS"]
    assert "Of 8 readable images" in record.rejected_classes["TUBERCULOSIS"]
    assert "50.0%" in record.rejected_classes["TUBERCULOSIS"]
    assert record.counts == {
        "accepted": {"NORMAL": 8},
        "quarantined": {"TUBERCULOSIS": 4},
        "rejected_class": {"TUBERCULOSIS": 4},
    }
    assert record.reasons == {"rejected_class:artefacts": 4, "white_box": 4}
    assert [(f.suite, f.subject) for f in record.failures if f.suite == "classes"] == [("classes", "TUBERCULOSIS")]


def test_a_rejected_class_is_judged_anew_in_the_next_batch(settings):
    first = films("COVID19", *range(4)) | {f"train/COVID19/boxed{n}.png": boxed(n) for n in range(20, 24)}
    assert take(settings, "week-1", first).rejected_classes
    second = take(settings, "week-2", films("COVID19", 0, *range(30, 34)))
    # An image that was never accepted is not known: it may come again in better company.
    assert (second.counts, second.rejected_classes) == ({"accepted": {"COVID19": 5}}, {})


def test_images_that_come_again_are_duplicates_whole_or_resized(store, settings):
    take(settings, "week-1", films("NORMAL", 1, 2, 3))
    files = {
        "train/NORMAL/again.png": png(1),
        "test/NORMAL/tagged.png": png(2) + b"another trailer",
        "NORMAL/resized.jpg": resized(3),
        "NORMAL/mirrored.png": encoded(np.ascontiguousarray(film(2)[:, ::-1])),
        "NORMAL/new.png": png(4),
    }
    second = take(settings, "week-2", files)
    table = judged(settings, second.batch)
    assert verdicts(table) == {
        "train/NORMAL/again.png": ("duplicate", "exact_duplicate"),
        "test/NORMAL/tagged.png": ("duplicate", "exact_duplicate"),
        "NORMAL/resized.jpg": ("duplicate", "near_duplicate"),
        "NORMAL/mirrored.png": ("duplicate", "near_duplicate"),
        "NORMAL/new.png": ("accepted",),
    }
    (first,) = [b for b in committed_batches.list_names(store) if b != second.batch]
    originals = judged(settings, first)["sha256"]
    assert table.loc["NORMAL/resized.jpg", "duplicate_of"] == originals["train/NORMAL/3.png"]
    assert table.loc["NORMAL/new.png", "duplicate_of"] == ""


def test_within_a_drop_the_first_of_equal_files_stays(settings):
    files = {"NORMAL/a.png": png(1), "NORMAL/b.png": png(1), "NORMAL/c.jpg": resized(1), "NORMAL/d.png": png(2)}
    assert verdicts(judged(settings, take(settings, "drop", files).batch)) == {
        "NORMAL/a.png": ("accepted",),
        "NORMAL/b.png": ("duplicate", "exact_duplicate"),
        "NORMAL/c.jpg": ("duplicate", "near_duplicate"),
        "NORMAL/d.png": ("accepted",),
    }


def test_the_same_picture_under_two_labels_in_one_drop_is_quarantined_twice(settings):
    files = {"NORMAL/a.png": png(1), "NORMAL/b.png": png(1), "PNEUMONIA/c.jpg": resized(1), "NORMAL/d.png": png(2)}
    record = take(settings, "drop", files)
    assert verdicts(judged(settings, record.batch)) == {
        "NORMAL/a.png": ("quarantined", "conflicting_label"),
        "NORMAL/b.png": ("quarantined", "conflicting_label"),
        "PNEUMONIA/c.jpg": ("quarantined", "conflicting_label"),
        "NORMAL/d.png": ("accepted",),
    }


@pytest.mark.parametrize("again", [png, resized])
def test_a_known_picture_under_another_label_is_quarantined_and_names_the_other(settings, again):
    first = take(settings, "week-1", films("NORMAL", 1, 2))
    second = take(settings, "week-2", {"PNEUMONIA/a.png": again(1), "PNEUMONIA/b.png": png(3)})
    table = judged(settings, second.batch)
    assert verdicts(table) == {
        "PNEUMONIA/a.png": ("quarantined", "conflicting_label"),
        "PNEUMONIA/b.png": ("accepted",),
    }
    contradicted = judged(settings, first.batch).loc["train/NORMAL/1.png", "sha256"]
    assert committed_batches.find_contradicted(table.reset_index()) == {contradicted}
    # What is committed stays as it was; the dataset leaves the contradicted image out.
    assert set(judged(settings, first.batch)["verdict"]) == {"accepted"}


def test_bearers_of_a_conflict_name_each_other_by_batch_and_file(settings):
    record = take(settings, "drop", {"NORMAL/a.png": png(1), "PNEUMONIA/b.png": png(1), "NORMAL/d.png": png(2)})
    names = judged(settings, record.batch)["duplicate_file"]
    assert names["NORMAL/a.png"] == f"{record.batch}/PNEUMONIA/b.png"
    assert names["PNEUMONIA/b.png"] == f"{record.batch}/NORMAL/a.png"
    assert names["NORMAL/d.png"] == ""
    later = take(settings, "later", {"COVID19/again.jpg": resized(2)})
    assert judged(settings, later.batch).at["COVID19/again.jpg", "duplicate_file"] == f"{record.batch}/NORMAL/d.png"


@pytest.mark.parametrize("label", ["NORMAL", "PNEUMONIA", "COVID19"])
def test_a_picture_quarantined_for_its_labels_stays_out_under_any_label(settings, label):
    take(settings, "week-1", {"NORMAL/a.png": png(1), "PNEUMONIA/b.png": png(1)})
    second = take(settings, "week-2", {f"{label}/c.jpg": resized(1), f"{label}/c2.jpg": resized(1, 180)})
    assert second.counts == {"quarantined": {label: 2}} and second.reasons == {"conflicting_label": 2}


def test_an_unfit_bearer_of_a_conflict_keeps_its_reason_and_names_the_other(settings):
    files = films("COVID19", 1, 2) | {"train/NORMAL/small.png": resized(2, 90)}
    record = take(settings, "drop", files)
    table = judged(settings, record.batch)
    assert verdicts(table)["train/COVID19/2.png"] == ("quarantined", "conflicting_label")
    assert verdicts(table)["train/NORMAL/small.png"] == ("quarantined", "too_small")
    names = table["duplicate_file"].to_dict()
    assert names["train/COVID19/2.png"] == f"{record.batch}/train/NORMAL/small.png"
    assert names["train/NORMAL/small.png"] == f"{record.batch}/train/COVID19/2.png"


def test_a_picture_of_a_rejected_class_under_another_label_is_a_conflict(settings):
    first = films("TB", *range(4)) | {f"train/TB/boxed{n}.png": boxed(n) for n in range(20, 24)}
    assert take(settings, "week-1", first).rejected_classes
    second = take(settings, "week-2", {"PNEUMONIA/a.jpg": resized(1), "PNEUMONIA/b.png": png(30)})
    assert verdicts(judged(settings, second.batch)) == {
        "PNEUMONIA/a.jpg": ("quarantined", "conflicting_label"),
        "PNEUMONIA/b.png": ("accepted",),
    }


def test_a_clean_class_that_the_model_does_not_know_is_recorded_as_untrained(settings):
    record = take(settings, "drop", films("TB", 1, 2) | films("NORMAL", 3))
    assert record.untrained == {"TUBERCULOSIS": 2} and record.rejected_classes == {}


def test_a_fit_image_is_no_duplicate_of_an_unfit_one(settings):
    take(settings, "week-1", {"NORMAL/small.png": encoded(film(1)[:90, :90]), "NORMAL/boxed.png": boxed(2)})
    second = take(settings, "week-2", films("NORMAL", 1, 2))
    assert second.counts == {"accepted": {"NORMAL": 2}}


def test_a_batch_that_was_not_ingested_is_refused(store, settings):
    with pytest.raises(Refused, match=r"batches/nobody/ingested/00000\.parquet"):
        judge_batch.validate_batch(store, settings, "nobody")
    assert snapshot(settings) == {}


def test_a_suite_that_cannot_be_used_commits_nothing(store, settings, tmp_path):
    put_drop(settings, "drop", films("NORMAL", 1))
    batch = ingest_drop.ingest(store, settings, "drop")
    before = snapshot(settings)
    spoiled = loosened(settings, tmp_path / "spoiled")
    (tmp_path / "spoiled/classes.json").write_text("{}")
    with pytest.raises(Refused, match=r"classes\.json"):
        judge_batch.validate_batch(ObjectStore(spoiled.store), spoiled, batch)
    assert snapshot(settings) == before
    assert judge_batch.validate_batch(store, settings, batch).counts == {"accepted": {"NORMAL": 1}}


def test_limits_are_those_of_the_settings(settings, tmp_path):
    strict = loosened(settings, tmp_path / "strict", "images", width={"min_value": 300})
    record = take(strict, "drop", films("NORMAL", 1))
    assert record.reasons == {"too_small": 1}
    assert [(f.column, f.limit) for f in record.failures if f.column] == [("width", "≥ 300")]


WEEK = films("NORMAL", 1, 2) | {"NORMAL/again.jpg": resized(1), "COVID19/c.png": boxed(3), "COVID19/d.png": b"?"}


def test_judging_twice_or_in_another_store_gives_the_same_bytes(store, settings):
    record = take(settings, "drop", WEEK)
    first = snapshot(settings)
    assert judge_batch.validate_batch(store, settings, record.batch) == record
    assert snapshot(settings) == first
    take(elsewhere(settings), "drop")
    assert snapshot(elsewhere(settings)) == first


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_a_judge_that_dies_commits_nothing_and_is_resumed_to_the_same_store(store, settings, monkeypatch, number):
    put_drop(settings, "drop", WEEK)
    take(elsewhere(settings), "drop")
    batch = ingest_drop.ingest(store, settings, "drop")
    with monkeypatch.context() as patch:
        die_at_write(patch, number)
        with pytest.raises(Died):
            judge_batch.validate_batch(store, settings, batch)
    assert committed_batches.list_names(store) == [] and inbox.list_new_drops(store, settings.inbox) == ["drop"]
    judge_batch.validate_batch(store, settings, batch)
    mine = {k: v for k, v in snapshot(settings).items() if not k.startswith("elsewhere/")}
    assert mine == snapshot(elsewhere(settings))
    assert inbox.list_new_drops(store, settings.inbox) == []


@pytest.mark.slow
def test_a_judge_resumed_after_another_batch_writes_matching_record_and_table(store, settings, monkeypatch):
    put_drop(settings, "slow", films("NORMAL", 1, 2))
    slow = ingest_drop.ingest(store, settings, "slow")
    with monkeypatch.context() as patch:
        die_at_write(patch, 4)  # the commit mark
        with pytest.raises(Died):
            judge_batch.validate_batch(store, settings, slow)
    take(settings, "quick", {"NORMAL/x.jpg": resized(1)})
    record = judge_batch.validate_batch(store, settings, slow)
    table = committed_batches.read_measurements(store, slow)
    assert record.counts == {"accepted": {"NORMAL": 1}, "duplicate": {"NORMAL": 1}}
    assert table["verdict"].value_counts().to_dict() == {"accepted": 1, "duplicate": 1}


def test_batch_json_has_its_documented_fields_and_counts_every_file(store, settings):
    record = take(settings, "drop", WEEK)
    content = json.loads(store.get(f"batches/{record.batch}/batch.json"))
    names = ["schema_version", "batch", "drop", "counts", "reasons", "rejected_classes", "failures", "untrained"]
    assert list(content) == names
    assert sum(n for labels in content["counts"].values() for n in labels.values()) == len(WEEK)


def test_the_refused_files_are_the_rows_that_were_not_accepted(store, settings):
    batch = take(settings, "drop", WEEK).batch
    table = committed_batches.read_measurements(store, batch)
    expected = table[table["verdict"] != "accepted"]
    refused = committed_batches.read_refused(store, batch).to_pandas()
    assert list(refused["file"]) == list(expected["file"]) and len(refused) == 3
    assert not {"ring", "phash", "fine_hash", "inner_hash"} & set(refused.columns)
