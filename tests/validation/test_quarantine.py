"""Rulings of humans on refused images: what they may let in, what is refused, and that later data cannot undo them."""

import hashlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from drop_samples import (
    HEADER,
    Died,
    boxed,
    built,
    csv,
    die_at_write,
    encoded,
    film,
    listed,
    overwrite,
    png,
    resized,
    sha,
    snapshot,
    split_of,
    take,
    week,
)
from PIL import Image
from request_counter import counted

from cxr_ml import store
from cxr_ml.dataset import diff, versions
from cxr_ml.errors import Refused
from cxr_ml.imaging import decode, measure
from cxr_ml.ingest import process_file, tables
from cxr_ml.records import Dataset, Ruling
from cxr_ml.validation import add_ruling, quarantine, reasons, rulings, thumbnails

pytestmark = pytest.mark.usefixtures("handful")


def rule(settings, name, action="release", label="", why="seen by two readers", **more):
    return add_ruling.rule_on_image(
        settings, versions.load_withheld(settings), name, action, "dr.a", why, label, **more
    )


def releasable(settings, reason, **more):
    return add_ruling.releasable(settings, versions.load_withheld(settings), reason, **more)


def labels(table):
    return dict(zip(table["sha256"], table["label"], strict=True))


def sha_of(settings, file):
    frame = quarantine.list_files(settings)
    return quarantine.find_file(frame, file, settings)["sha256"]


# Asking


def test_every_refused_file_is_listed_with_its_reasons_and_can_be_filtered(small):
    files = week(100) | {
        "train/NORMAL/boxed.png": boxed(1),
        "train/NORMAL/page.png": b"<html>",
        "train/COVID19/again.png": png(100),
        "train/NORMAL/copy.jpg": resized(101),
    }
    take(small, "week-1", files)
    take(small, "week-2", {"PNEUMONIA/unclear.png": png(102), "odd/x.png": png(7)})
    rows = quarantine.list_refused(small)
    found = {(r.file, r.state): tuple(r.reasons) for r in rows.itertuples()}
    assert found == {
        ("train/NORMAL/boxed.png", "quarantined"): ("white_box",),
        ("train/NORMAL/page.png", "quarantined"): ("not_an_image",),
        ("train/COVID19/again.png", "quarantined"): ("conflicting_label",),
        ("train/NORMAL/100.png", "quarantined"): ("conflicting_label",),
        ("train/NORMAL/copy.jpg", "duplicate"): ("near_duplicate",),
        ("train/COVID19/102.png", "contradicted"): ("contradicted",),
        ("PNEUMONIA/unclear.png", "quarantined"): ("conflicting_label",),
        ("odd/x.png", "quarantined"): ("unknown_label",),
    }
    assert set(quarantine.list_refused(small, reason="white_box")["file"]) == {"train/NORMAL/boxed.png"}
    assert len(quarantine.list_refused(small, label="covid-19")) == 2
    assert len(quarantine.list_refused(small, drop="week-2", reason="unknown_label")) == 1
    assert quarantine.list_refused(small, drop="week-3").empty


def test_a_refused_file_tells_why_in_words_with_measures_limits_thumbnail_and_date(small):
    batch = take(small, "week-1", {"train/NORMAL/boxed.png": boxed(1), "train/NORMAL/a.png": png(2)}).batch
    told = quarantine.describe_file(small, "boxed.png")
    assert (told["file"], told["batch"], told["drop"], told["label"]) == (
        "train/NORMAL/boxed.png", batch, "week-1", "NORMAL",
    )  # fmt: skip
    assert "white_box is 0." in told["reasons"]["white_box"] and "≤ 0.005" in told["reasons"]["white_box"]
    assert "white rectangle" in told["reasons"]["white_box"]
    unmet = [x["column"] for x in told["limits"] if not x["met"]]
    assert unmet == ["white_box"] and len(told["limits"]) > 8
    assert told["at"].startswith("20") and told["at"].endswith("+00:00")
    assert store.exists(small, told["image"]) and store.exists(small, told["thumbnail"])
    assert told["others"] == told["rulings"] == []


def test_a_file_without_an_image_can_be_asked_about_too(small):
    take(small, "week-1", {"train/NORMAL/page.png": b"<html>", "train/NORMAL/a.png": png(2)})
    told = quarantine.describe_file(small, "page.png")
    assert told["image"] == told["thumbnail"] == "" and told["limits"] == []
    assert "no image" in told["reasons"]["not_an_image"]


def test_copies_and_contradictions_name_each_other(small):
    take(small, "week-1", {"NORMAL/a.png": png(1), "NORMAL/b.jpg": resized(1), "NORMAL/c.png": png(2)})
    take(small, "week-2", {"COVID19/d.png": png(2)})
    others = lambda name: {o["file"] for o in quarantine.describe_file(small, name)["others"]}  # noqa: E731
    assert others("b.jpg") == {"NORMAL/a.png"} and others("a.png") == {"NORMAL/b.jpg"}
    assert others("c.png") == {"COVID19/d.png"} and others("d.png") == {"NORMAL/c.png"}
    for name, other in (("b.jpg", sha(1)), ("d.png", sha(2))):  # the other one was accepted
        (told,) = quarantine.describe_file(small, name)["others"]
        assert told["thumbnail"] == thumbnails.key(other) and store.exists(small, told["thumbnail"])


def test_a_file_is_found_by_path_drop_and_path_or_digits_and_what_is_not_unique_is_refused(small):
    take(small, "week-1", {"NORMAL/a.png": png(1)})
    batch = take(small, "week-2", {"NORMAL/a.png": png(2)}).batch
    frame = quarantine.list_files(small)
    for name in ("week-2/NORMAL/a.png", f"{batch}/NORMAL/a.png", sha(2), sha(2)[:8], sha(2)[:20].upper()):
        assert quarantine.find_file(frame, name, small)["sha256"] == sha(2)
    with pytest.raises(Refused, match="fits 2 files"):
        quarantine.find_file(frame, "NORMAL/a.png", small)
    for name in ("lost.png", sha(2)[:7], "", "NORMAL"):
        with pytest.raises(Refused, match="quarantine list"):
            quarantine.find_file(frame, name, small)


def test_an_empty_store_has_nothing_refused(settings):
    assert quarantine.list_refused(settings).empty
    with pytest.raises(Refused, match="was expected"):
        rule(settings, "a.png")
    assert snapshot(settings) == {}


# Ruling


def test_a_released_image_enters_the_next_dataset_and_the_ruling_is_on_record(small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    first = built(small)
    assert build.count_pending_rulings(small) == 0
    ruling, notes = rule(small, "boxed.png")
    assert notes == [] and build.count_pending_rulings(small) == 1
    assert store.load(small, "rulings/00001.json", Ruling) == ruling
    assert (ruling.number, ruling.action, ruling.label, ruling.by) == (1, "release", "NORMAL", "dr.a")
    assert (ruling.reasons, ruling.why) == (("white_box",), "seen by two readers")
    second = built(small)
    record = versions.load_latest(small)
    assert set(second["sha256"]) - set(first["sha256"]) == {ruling.sha256}
    assert (record.parent, record.rulings, build.count_pending_rulings(small)) == (1, 1, 0)
    assert split_of(second).items() >= split_of(first).items()
    before = snapshot(small)
    assert build.build_dataset(small) == (record, False) and snapshot(small) == before
    assert versions.load_dataset(small, 1).rulings == 0


def test_a_relabelled_image_changes_its_label_and_keeps_its_split(small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1)})
    built(small)
    rule(small, "test/NORMAL/x.png", "relabel", "covid")
    second = built(small)
    assert (labels(second)[sha(1)], split_of(second)[sha(1)]) == ("COVID19", "test")
    changes = diff.compare_datasets(small, 1, 2)
    assert changes[["change", "label_before", "label"]].values.tolist() == [["relabelled", "NORMAL", "COVID19"]]


def test_an_image_of_unknown_label_enters_once_it_is_relabelled(small):
    take(small, "week-1", week(100) | {"train/LUNG/x.png": png(1)})
    with pytest.raises(Refused, match="Relabel it"):
        rule(small, "x.png")
    rule(small, "x.png", "relabel", "pneumonia")
    assert labels(built(small))[sha(1)] == "PNEUMONIA"


def test_the_last_ruling_on_an_image_is_in_force_and_none_is_lost(small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    picture = sha_of(small, "boxed.png")
    rule(small, "boxed.png")
    rule(small, "boxed.png", "relabel", "COVID19")
    assert labels(built(small))[picture] == "COVID19"
    rule(small, "boxed.png", "withdraw")
    assert picture not in labels(built(small))
    rule(small, "boxed.png", why="after all")
    assert labels(built(small))[picture] == "NORMAL"
    entries = rulings.read(small)
    assert [(e.number, e.action) for e in entries] == [(1, "release"), (2, "relabel"), (3, "withdraw"), (4, "release")]
    assert [e["number"] for e in quarantine.describe_file(small, "boxed.png")["rulings"]] == [1, 2, 3, 4]


def test_the_same_ruling_twice_is_one_and_two_at_once_both_count(small, monkeypatch):
    take(small, "week-1", {"train/NORMAL/boxed.png": boxed(1), "train/NORMAL/other.png": boxed(2)})
    assert rule(small, "boxed.png") == rule(small, "boxed.png")
    assert rulings.count(small) == 1
    read, raced = rulings.read, []

    def late(settings, after=0):
        found = read(settings, after)
        if not raced:  # another human rules between the look and the write
            raced.append(1)
            rule(settings, "other.png")
        return found

    row = quarantine.find_file(quarantine.list_files(small), "boxed.png", small)
    monkeypatch.setattr(rulings, "read", late)
    mine = rulings.append(small, [(row, "relabel", "COVID19")], "dr.b", "I differ")[0]
    monkeypatch.setattr(rulings, "read", read)
    assert mine.number == 3 and [r.number for r in rulings.read(small)] == [1, 2, 3]


def ruling(number):
    return Ruling(
        number=number, sha256=f"{number:064x}", batch="b", file=f"{number}.png", action="release", label="NORMAL",
        by="a", why="b", at="c",
    )  # fmt: skip


def test_many_rulings_are_read_by_the_hundred_and_the_single_ones_are_what_counts(settings, seaweed, monkeypatch):
    monkeypatch.setattr(rulings, "FOLD", 10)
    for number in range(1, 36):
        store.put_if_absent(settings, f"rulings/{number:05d}.json", ruling(number).to_bytes())
    wanted = [ruling(number) for number in range(1, 36)]
    assert rulings.read(settings) == wanted
    rulings.fold(settings)
    before = snapshot(settings)
    rulings.fold(settings)
    assert snapshot(settings) == before and len(before) == 35 + 3
    with counted(seaweed["CXR_S3_ENDPOINT_URL"]) as (address, asked):
        assert rulings.read(settings.model_copy(update={"s3_endpoint_url": address})) == wanted
    assert len(asked) == 1 + 3 + 5  # the listing, the folded, the single ones
    assert rulings.read(settings, 17) == wanted[17:] and rulings.read(settings, 35) == []
    changed = ruling(5).model_copy(update={"why": "changed by hand"})
    overwrite(settings, "rulings/00005.json", changed.to_bytes())
    assert rulings.read(settings)[4] == changed
    folded = next(k for k in before if k.startswith("rulings-folded/00011-"))
    overwrite(settings, folded, b"[]")
    with pytest.raises(Refused, match="Delete it"):
        rulings.read(settings)


def test_rulings_are_folded_as_they_are_added_and_a_death_in_between_loses_none(settings, monkeypatch):
    monkeypatch.setattr(rulings, "FOLD", 3)
    rows = [(pd.Series({"sha256": f"{n:064x}", "batch": "b", "file": "f", "reasons": []}), "release", "NORMAL")
            for n in range(8)]  # fmt: skip
    with monkeypatch.context() as patch:
        die_at_write(patch, 8)  # the last ruling
        with pytest.raises(Died):
            rulings.append(settings, rows, "dr.a", "why")
    assert [r.number for r in rulings.read(settings)] == list(range(1, 8))
    found = rulings.append(settings, rows, "dr.a", "why")
    assert [r.number for r in found] == list(range(1, 9)) and rulings.read(settings) == found
    assert len([k for k in snapshot(settings) if k.startswith("rulings-folded/")]) == 2


def test_all_that_was_refused_for_one_reason_is_released_each_by_a_ruling_of_its_own(small):
    files = week(100) | {f"train/NORMAL/boxed{n}.png": boxed(n) for n in (1, 2)} | {"train/COVID19/b.png": boxed(3)}
    files |= {"train/LUNG/c.png": boxed(4), "train/TB/d.png": boxed(5), "train/NORMAL/again.png": boxed(2)}
    take(small, "week-1", files)
    rule(small, "boxed1.png")
    rows, skipped = releasable(small, "white_box")
    assert sorted(rows["label"]) == ["COVID19", "NORMAL"]
    assert skipped == {"are in already": 2, "are labelled with what is none of the model's classes": 1}
    assert releasable(small, "unknown_label")[1] == {"have no single label": 1}
    assert releasable(small, "white_box", label="covid")[0]["file"].tolist() == ["train/COVID19/b.png"]
    assert releasable(small, "white_box", drop="week-2")[0].empty
    ruled = add_ruling.release_all(small, rows, "dr.a", "collimators")
    assert [(r.number, r.action) for r in ruled] == [(2, "release"), (3, "release")]
    frame = quarantine.list_files(small)
    assert set(frame.loc[frame["sha256"].isin(rows["sha256"]), "now"]) == {"NORMAL", "COVID19"}
    assert releasable(small, "white_box")[0].empty


IMPOSSIBLE = [
    ("page.png", "release", "", "needs an image in the store"),
    ("page.png", "relabel", "NORMAL", "needs an image in the store"),
    ("x.png", "release", "", "no single label"),
    ("x.png", "relabel", "lung", "one of the model's classes"),
    ("x.png", "relabel", "TB", "one of the model's classes"),
    ("x.png", "relabel", "", "one of the model's classes"),
    ("x.png", "withdraw", "", "out already"),
    ("tb.png", "release", "", "an image labelled TUBERCULOSIS"),
    ("a.png", "release", "", "accepted as NORMAL already"),
    ("a.png", "relabel", "normal", "accepted as NORMAL already"),
    ("again.png", "release", "", "accepted as NORMAL already"),
    ("twice.png", "release", "", "no single label"),
    ("conflict.png", "release", "", "no single label"),
]


def test_what_cannot_be_ruled_is_refused_with_a_sentence_and_nothing_is_written(small):
    files = {"a.png": png(2), "again.png": png(2), "x.png": png(1), "tb.png": boxed(4), "page.png": b"<html>"}
    files |= {"twice.png": png(5), "conflict.png": png(6), "other.png": png(6)}
    rows = [("a.png", "normal"), ("again.png", "normal"), ("x.png", "lung"), ("tb.png", "TB"), ("page.png", "normal")]
    rows += [("twice.png", "normal"), ("twice.png", "covid"), ("conflict.png", "normal"), ("other.png", "covid")]
    take(small, "week-1", files | {"labels.csv": csv(*(f"{f},{label}" for f, label in rows))})
    before = snapshot(small)
    for name, action, label, words in IMPOSSIBLE:
        with pytest.raises(Refused, match=words):
            rule(small, name, action, label)
    for by, why in (("dr.a", " "), (" ", "a reason"), ("", "")):
        with pytest.raises(Refused, match="needs a reason"):
            add_ruling.rule_on_image(small, (), "tb.png", "relabel", by, why, "NORMAL")
    assert snapshot(small) == before


def test_an_image_of_a_rejected_class_enters_only_when_that_is_said(small):
    bad = {f"train/COVID19/boxed{n}.png": boxed(n) for n in range(20, 24)}
    take(small, "week-1", week(100))
    rejected = take(small, "week-2", bad | {f"train/COVID19/{n}.png": png(n) for n in range(4)})
    assert list(rejected.rejected_classes) == ["COVID19"]
    for action, label in (("release", ""), ("relabel", "NORMAL")):
        with pytest.raises(Refused, match=r"rejected as a whole.*--from-rejected-class"):
            rule(small, "train/COVID19/1.png", action, label)
    ruling, _ = rule(small, "train/COVID19/1.png", rejected_too=True)
    assert ruling.reasons == ("rejected_class:artefacts",)
    rows, skipped = releasable(small, "artefacts")
    assert rows.empty and [n for words, n in skipped.items() if "rejected as a whole" in words] == [3]
    assert len(releasable(small, "artefacts", rejected_too=True)[0]) == 3
    assert labels(built(small))[sha(1)] == "COVID19"


def test_a_ruling_whose_batch_is_gone_stops_the_dataset(small):
    take(small, "week-1", week(100))
    lost = Ruling(
        number=1, sha256="a" * 64, batch="lost", file="x.png", action="release", label="NORMAL", by="a", why="b", at="c"
    )
    overwrite(small, "rulings/00001.json", lost.to_bytes())
    with pytest.raises(Refused, match=r"Ruling 1 is on .x\.png. of batch .lost."):
        build.build_dataset(small)


# One picture, one label, one split


def test_a_released_copy_of_a_test_image_joins_its_group_and_never_enters_train(small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1)})
    built(small)
    take(small, "week-2", {"train/NORMAL/copy.jpg": resized(1)})
    rule(small, "copy.jpg")
    table = built(small)
    copy = sha_of(small, "copy.jpg")
    assert (split_of(table)[copy], split_of(table)[sha(1)]) == ("test", "test")
    assert table.set_index("sha256").loc[[copy, sha(1)], "group"].nunique() == 1


def boxed_smaller(number):
    """The boxed film at another size: a copy that judging never compared, because both were refused before."""
    picture = np.asarray(Image.open(io.BytesIO(boxed(number))).resize((200, 200)))
    return encoded(picture)


def test_a_released_image_is_compared_with_all_others_though_judging_had_left_it_out(small):
    take(small, "week-1", week(100) | {"test/NORMAL/boxed.png": boxed(1)})
    take(small, "week-2", {"train/NORMAL/smaller.png": boxed_smaller(1)})
    assert set(quarantine.list_refused(small)["state"]) == {"quarantined"}
    rule(small, "boxed.png")
    assert split_of(built(small))[sha_of(small, "boxed.png")] == "test"
    rule(small, "smaller.png")
    table = built(small)
    assert split_of(table)[sha_of(small, "smaller.png")] == "test"


def test_a_later_copy_of_a_released_image_is_a_duplicate_and_one_under_another_label_a_conflict(small):
    take(small, "week-1", week(100) | {"train/LUNG/x.png": png(1)})
    rule(small, "x.png", "relabel", "COVID19")
    built(small)
    second = take(small, "week-2", {"COVID19/copy.jpg": resized(1), "NORMAL/y.png": png(2)})
    assert second.counts["duplicate"] == {"COVID19": 1}
    third = take(small, "week-3", {"NORMAL/copy.jpg": resized(1)})
    assert third.reasons == {"conflicting_label": 1}
    # What the human said of the picture stands.
    assert labels(built(small))[sha(1)] == "COVID19"


def test_a_copy_of_a_withdrawn_image_does_not_bring_it_back(small):
    take(small, "week-1", week(100) | {"train/NORMAL/x.png": png(1)})
    rule(small, "x.png", "withdraw")
    assert sha(1) not in labels(built(small))
    assert take(small, "week-2", {"NORMAL/copy.jpg": resized(1)}).counts == {"duplicate": {"NORMAL": 1}}


def test_of_one_picture_under_two_labels_the_last_ruling_decides_and_says_who_leaves(small):
    take(small, "week-1", week(100) | {"train/NORMAL/a.png": png(1)})
    take(small, "week-2", {"train/PNEUMONIA/b.jpg": resized(1)})
    copy = sha_of(small, "b.jpg")
    rule(small, "b.jpg")
    table = labels(built(small))
    assert table[copy] == "PNEUMONIA" and sha(1) not in table
    _, notes = rule(small, "a.png")
    assert len(notes) == 1 and "b.jpg" in notes[0] and "PNEUMONIA" in notes[0]
    table = labels(built(small))
    assert table[sha(1)] == "NORMAL" and copy not in table


def test_a_relabel_of_the_very_image_that_is_in_says_under_which_label_it_was(small):
    take(small, "week-1", week(100) | {"train/NORMAL/a.png": png(1), "train/LUNG/b.png": png(1)})
    ruling, notes = rule(small, "b.png", "relabel", "COVID19")
    assert ruling.file == "train/LUNG/b.png" and notes == ["The image was in as NORMAL until now."]
    table = built(small)
    assert labels(table)[sha(1)] == "COVID19" and (table["sha256"] == sha(1)).sum() == 1


def test_datasets_built_with_the_same_rulings_elsewhere_are_the_same_bytes(small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    rule(small, "boxed.png")
    built(small)
    first = snapshot(small)
    for key in [k for k in first if k.startswith("datasets/")]:
        store.client(small.s3_endpoint_url).delete_object(Bucket=small.bucket, Key=key)
    built(small)
    assert snapshot(small) == first


def test_records_from_before_there_were_rulings_still_load(settings):
    old = b'{"dataset": 1, "parent": null, "batches": [], "counts": {}, "manifest_sha256": "a"}'
    overwrite(settings, "datasets/1/dataset.json", old)
    record = versions.load_dataset(settings, 1)
    assert isinstance(record, Dataset) and (record.rulings, record.withheld, record.shortcuts) == (0, (), ())


# Thumbnails


@pytest.mark.processes
def test_each_refused_image_has_a_small_picture_without_metadata_and_no_accepted_one_has(settings):
    big = np.asarray(Image.fromarray(film(1)).resize((600, 900)))
    big = np.stack([big, big // 2, big // 2], axis=2)
    take(settings, "drop", {"NORMAL/red.png": encoded(big), "NORMAL/ok.png": png(2), "NORMAL/bad.png": b"?"})
    (key,) = [k for k in snapshot(settings) if k.startswith("thumbnails/")]
    picture = sha_of(settings, "red.png")
    assert key == thumbnails.key(picture) == f"thumbnails/{picture[:2]}/{picture}.jpg"
    data = store.get(settings, key)
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (171, 256))
        assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    image = store.get(settings, process_file.image_key(picture, "png"))
    assert thumbnails.make(image, settings) == data


@pytest.mark.parametrize("size", [(300, 200), (600, 400), (2100, 1400)])
def test_a_large_jpeg_is_decoded_in_part_and_its_thumbnail_looks_the_same(settings, size, monkeypatch):
    data = encoded(np.asarray(Image.fromarray(film(1)).resize(size)), "JPEG", quality=95)
    shapes, opened = [], decode.decode_image

    def noted(*args):
        found = opened(*args)
        shapes.append(max(found.pixels.shape))
        return found

    monkeypatch.setattr(measure, "open_image", noted)
    thumbnail = Image.open(io.BytesIO(thumbnails.make(data, settings)))
    assert thumbnail.size == (256, round(256 * size[1] / size[0])) and 256 <= shapes[0] < 640
    whole = Image.open(io.BytesIO(data)).resize(thumbnail.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(thumbnail, int) - np.asarray(whole, int)).mean() < 4


def test_a_picture_below_the_size_of_a_thumbnail_is_not_enlarged(settings):
    small = thumbnails.make(encoded(film(1)[:60, :40]), settings)
    assert Image.open(io.BytesIO(small)).size == (40, 60)


# Groups


def test_a_copy_that_names_the_patient_ties_the_patient_to_the_test_image(small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1)})
    built(small)
    # The copy is refused, and yet it tells whose picture the test image is.
    rows = csv("copy.jpg,normal,P,train", "new.png,normal,P,train", header=HEADER)
    take(small, "week-2", {"copy.jpg": resized(1), "new.png": png(2), "labels.csv": rows})
    table = built(small)
    assert (split_of(table)[sha(1)], split_of(table)[sha(2)]) == ("test", "test")
    assert table.set_index("sha256").loc[[sha(1), sha(2)], "group"].nunique() == 1


def test_a_copy_without_a_patient_of_a_test_image_with_one_never_enters_train(small):
    take(small, "week-1", week(100))
    take(small, "week-2", listed((1, "normal", "P", "test")))
    built(small)
    take(small, "week-3", {"train/NORMAL/copy.jpg": resized(1), "train/NORMAL/new.png": png(2)})
    table = built(small)
    assert split_of(table)[sha(1)] == "test" and sha_of(small, "copy.jpg") not in split_of(table)
    assert (table.groupby("group")["split"].nunique() == 1).all()


def test_what_turns_out_to_be_one_group_in_two_splits_stays_in_the_stricter_and_leaves_the_other_for_good(small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1), "train/NORMAL/y.png": png(2)})
    first = split_of(built(small))
    assert (first[sha(1)], first[sha(2)]) == ("test", "train")
    rows = csv("a.jpg,normal,P,train", "b.jpg,normal,P,train", header=HEADER)
    take(small, "week-2", {"a.jpg": resized(1), "b.jpg": resized(2), "labels.csv": rows})
    second = split_of(built(small))
    assert second[sha(1)] == "test" and sha(2) not in second
    assert versions.load_latest(small).withheld == (sha(2),)
    take(small, "week-3", {"train/NORMAL/z.png": png(3)})
    third = split_of(built(small))
    assert sha(2) not in third and versions.load_latest(small).withheld == (sha(2),)
    assert (diff.compare_datasets(small, 1, 3)["change"] != "moved").all()
    with pytest.raises(Refused, match="stays out for good"):
        rule(small, sha(2), "relabel", "COVID19")


# Versions


def test_a_diff_names_what_was_added_removed_and_relabelled(small):
    take(small, "week-1", week(100) | {"train/NORMAL/x.png": png(1), "train/NORMAL/y.png": png(2)})
    built(small)
    second = take(small, "week-2", {"train/COVID19/new.png": png(3)}).batch
    rule(small, "train/NORMAL/x.png", "withdraw")
    rule(small, "train/NORMAL/y.png", "relabel", "PNEUMONIA")
    built(small)
    found = diff.compare_datasets(small, 1, 2).set_index("change")
    assert found["sha256"].to_dict() == {"added": sha(3), "removed": sha(1), "relabelled": sha(2)}
    assert found.loc["added", ["label", "label_before", "split_before", "batch"]].tolist() == [
        "COVID19",
        "",
        "",
        second,
    ]
    assert found.loc["removed", ["label", "split"]].tolist() == ["NORMAL", "train"]
    back = diff.compare_datasets(small, 2, 1)
    assert set(back["change"]) == {"added", "removed", "relabelled"} and diff.compare_datasets(small, 2, 2).empty
    assert versions.list_numbers(small) == [1, 2]


def test_a_diff_shows_a_moved_image_though_no_build_ever_moves_one(small):
    take(small, "week-1", week(100))
    record, _ = build.build_dataset(small)
    table = versions.load_manifest(small, record)
    one = table["sha256"][table["split"] == "train"].iloc[0]
    forged = tables.to_parquet(table.assign(split=table["split"].where(table["sha256"] != one, "test")))
    overwrite(small, "datasets/2/manifest.parquet", forged)
    changed = {"dataset": 2, "manifest_sha256": hashlib.sha256(forged).hexdigest()}
    overwrite(small, "datasets/2/dataset.json", record.model_copy(update=changed).to_bytes())
    assert diff.compare_datasets(small, 1, 2)[["change", "sha256", "split"]].values.tolist() == [["moved", one, "test"]]


@pytest.mark.parametrize(
    ("kind", "kwargs", "limit", "met"),
    [
        ("be_between", {"column": "bits", "min_value": 8, "strict_min": True}, "> 8", False),
        ("be_between", {"column": "bits", "min_value": 8}, "≥ 8", True),
        ("be_between", {"column": "std", "max_value": "0.005"}, "≤ 0.005", False),
        ("be_between", {"column": "label", "min_value": 1, "max_value": 3}, "≥ 1 and ≤ 3", False),
        ("not_be_in_set", {"column": "format", "value_set": ["jpeg"]}, "not in {jpeg}", False),
        ("be_in_set", {"column": "format", "value_set": ["png", "jpeg"]}, "in {png, jpeg}", True),
        ("match_regex", {"column": "file", "regex": "^b"}, '_to_match_regex {"regex": "^b"}', False),
        ("be_of_type", {"column": "x", "type_": "int"}, '_to_be_of_type {"type_": "int"}', False),
    ],
)
def test_whatever_a_suite_asks_for_is_told_beside_what_was_measured(settings, tmp_path, kind, kwargs, limit, met):
    entry = {"type": f"expect_column_values_to_{kind}", "kwargs": kwargs, "meta": {"reason": "r"}}
    (tmp_path / "images.json").write_text(json.dumps({"expectations": [entry]}))
    settings = settings.model_copy(update={"expectations": tmp_path})
    row = {"width": 9, "height": 9, "bits": 8, "std": 5.0, "label": "NORMAL", "format": "jpeg", "file": "a.png"}
    row = pd.Series(row | {"reasons": [] if met else ["r"]})
    (found,) = reasons.limits(row, settings)
    assert found.limit.endswith(limit) and found.met is met
    words = reasons.explain("r", row, "", settings)
    assert len(words) > 5 and (met or found.limit in words)


@pytest.mark.parametrize("text", ["[]", '{"expectations": [3]}', '{"expectations": [{}]}', "[" * 200_000])
def test_a_suite_that_is_none_is_refused_where_a_file_is_asked_about(settings, tmp_path, text):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(Refused, match=r"images\.json"):
        reasons.limits({"width": 9, "height": 9}, settings.model_copy(update={"expectations": tmp_path}))


def test_every_code_that_a_drop_can_give_a_file_has_words():
    codes = ["name_too_long", "duplicate_name", "special_file", "encrypted", "unsupported_compression", "unknown_split"]
    for code in [*codes, *process_file.CRASHED["unread"]]:
        assert len(reasons.explain(code, {}, "", None)) > len(code) + 5


def test_codes_of_unreadable_files_have_words_and_an_unknown_one_is_shown_as_it_is(settings):
    row = pd.Series({"width": 0, "height": 0})
    assert reasons.explain("truncated", row, "", settings) == "The file ends before the image does."
    assert reasons.explain("odd_code", row, "", settings) == "odd code."
    assert reasons.explain("rejected_class:artefacts", row, "Of 8.", settings).endswith("Of 8.")
    with pytest.raises(Refused, match=r"images\.json"):
        reasons.limits(row, settings.model_copy(update={"expectations": settings.cache_dir}))
