"""Rulings of humans on refused images: what they may let in, what is refused, and that later data cannot undo them."""

import hashlib
import io

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

from cxr_ml import layout
from cxr_ml.dataset import build, diff, versions
from cxr_ml.errors import Refused
from cxr_ml.imaging import decode
from cxr_ml.ingest import process_file, tables
from cxr_ml.records import Ruling
from cxr_ml.store import ObjectStore
from cxr_ml.validation import add_ruling, quarantine, rulings, thumbnails
from cxr_ml.validation.rulings import RulingRefused

pytestmark = pytest.mark.usefixtures("handful")


def rule(settings, name, action="release", label="", why="seen by two readers", rejected_too=False):
    request = add_ruling.Request(action, "dr.a", why, label, rejected_too)
    return add_ruling.rule_on_image(
        ObjectStore(settings.store),
        settings.inbox,
        settings.classes,
        versions.load_withheld(ObjectStore(settings.store)),
        name,
        request,
    )


def releasable(settings, reason, **more):
    return add_ruling.find_releasable(
        ObjectStore(settings.store),
        settings.inbox,
        settings.classes,
        versions.load_withheld(ObjectStore(settings.store)),
        reason,
        **more,
    )


def labels(table):
    return dict(zip(table["sha256"], table["label"], strict=True))


def sha_of(settings, file):
    frame = quarantine.list_files(ObjectStore(settings.store))
    return quarantine.find_file(frame, file, settings.inbox)["sha256"]


# Asking


def test_every_refused_file_is_listed_with_its_reasons_and_can_be_filtered(store, small):
    files = week(100) | {
        "train/NORMAL/boxed.png": boxed(1),
        "train/NORMAL/page.png": b"<html>",
        "train/COVID19/again.png": png(100),
        "train/NORMAL/copy.jpg": resized(101),
    }
    take(small, "week-1", files)
    take(small, "week-2", {"PNEUMONIA/unclear.png": png(102), "odd/x.png": png(7)})
    rows = quarantine.list_refused(store, small.inbox, small.classes)
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
    assert set(quarantine.list_refused(store, small.inbox, small.classes, reason="white_box")["file"]) == {
        "train/NORMAL/boxed.png"
    }
    assert len(quarantine.list_refused(store, small.inbox, small.classes, label="covid-19")) == 2
    assert len(quarantine.list_refused(store, small.inbox, small.classes, drop="week-2", reason="unknown_label")) == 1
    assert quarantine.list_refused(store, small.inbox, small.classes, drop="week-3").empty


def test_a_refused_file_is_described_with_words_limits_thumbnail_and_date(store, small):
    batch = take(small, "week-1", {"train/NORMAL/boxed.png": boxed(1), "train/NORMAL/a.png": png(2)}).batch
    told = quarantine.describe_file(store, small, "boxed.png")
    assert (told["file"], told["batch"], told["drop"], told["label"]) == (
        "train/NORMAL/boxed.png", batch, "week-1", "NORMAL",
    )  # fmt: skip
    assert "white_box is 0." in told["reasons"]["white_box"] and "≤ 0.005" in told["reasons"]["white_box"]
    assert "white rectangle" in told["reasons"]["white_box"]
    unmet = [x["column"] for x in told["limits"] if not x["met"]]
    assert unmet == ["white_box"] and len(told["limits"]) > 8
    assert told["at"].startswith("20") and told["at"].endswith("+00:00")
    assert store.exists(told["image"]) and store.exists(told["thumbnail"])
    assert told["others"] == told["rulings"] == []


def test_a_file_without_an_image_can_be_asked_about_too(store, small):
    take(small, "week-1", {"train/NORMAL/page.png": b"<html>", "train/NORMAL/a.png": png(2)})
    told = quarantine.describe_file(store, small, "page.png")
    assert told["image"] == told["thumbnail"] == "" and told["limits"] == []
    assert "no image" in told["reasons"]["not_an_image"]


def test_copies_and_contradictions_name_each_other(store, small):
    take(small, "week-1", {"NORMAL/a.png": png(1), "NORMAL/b.jpg": resized(1), "NORMAL/c.png": png(2)})
    take(small, "week-2", {"COVID19/d.png": png(2)})
    others = lambda name: {o["file"] for o in quarantine.describe_file(store, small, name)["others"]}  # noqa: E731
    assert others("b.jpg") == {"NORMAL/a.png"} and others("a.png") == {"NORMAL/b.jpg"}
    assert others("c.png") == {"COVID19/d.png"} and others("d.png") == {"NORMAL/c.png"}
    for name, other in (("b.jpg", sha(1)), ("d.png", sha(2))):  # the other one was accepted
        (told,) = quarantine.describe_file(store, small, name)["others"]
        assert told["thumbnail"] == layout.thumbnail(other) and store.exists(told["thumbnail"])


def test_a_file_is_found_by_path_or_digits_and_an_ambiguous_name_is_refused(store, small):
    take(small, "week-1", {"NORMAL/a.png": png(1)})
    batch = take(small, "week-2", {"NORMAL/a.png": png(2)}).batch
    frame = quarantine.list_files(store)
    for name in ("week-2/NORMAL/a.png", f"{batch}/NORMAL/a.png", sha(2), sha(2)[:8], sha(2)[:20].upper()):
        assert quarantine.find_file(frame, name, small.inbox)["sha256"] == sha(2)
    with pytest.raises(Refused, match="fits 2 files"):
        quarantine.find_file(frame, "NORMAL/a.png", small.inbox)
    for name in ("lost.png", sha(2)[:7], "", "NORMAL"):
        with pytest.raises(Refused, match="quarantine list"):
            quarantine.find_file(frame, name, small.inbox)


def test_an_empty_store_has_nothing_refused(store, settings):
    assert quarantine.list_refused(store, settings.inbox, settings.classes).empty
    with pytest.raises(Refused, match="was expected"):
        rule(settings, "a.png")
    assert snapshot(settings) == {}


# Ruling


def test_a_released_image_enters_the_next_dataset_and_the_ruling_is_on_record(store, small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    first = built(small)
    assert build.count_pending_rulings(store) == 0
    ruling, previous_label, leaving = rule(small, "boxed.png")
    assert (previous_label, leaving) == ("", []) and build.count_pending_rulings(store) == 1
    assert store.load("rulings/00001.json", Ruling) == ruling
    assert (ruling.number, ruling.action, ruling.label, ruling.by) == (1, "release", "NORMAL", "dr.a")
    assert (ruling.reasons, ruling.why) == (("white_box",), "seen by two readers")
    second = built(small)
    record = versions.load_latest(store)
    assert set(second["sha256"]) - set(first["sha256"]) == {ruling.sha256}
    assert (record.parent, record.rulings, build.count_pending_rulings(store)) == (1, 1, 0)
    assert split_of(second).items() >= split_of(first).items()
    before = snapshot(small)
    assert build.build_dataset(store, small) == (record, False) and snapshot(small) == before
    assert versions.load_dataset(store, 1).rulings == 0


def test_a_relabelled_image_changes_its_label_and_keeps_its_split(store, small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1)})
    built(small)
    rule(small, "test/NORMAL/x.png", "relabel", "covid")
    second = built(small)
    assert (labels(second)[sha(1)], split_of(second)[sha(1)]) == ("COVID19", "test")
    changes = diff.compare_datasets(store, 1, 2)
    assert changes[["change", "label_before", "label"]].values.tolist() == [["relabelled", "NORMAL", "COVID19"]]


def test_an_image_of_unknown_label_enters_once_it_is_relabelled(small):
    take(small, "week-1", week(100) | {"train/LUNG/x.png": png(1)})
    with pytest.raises(Refused, match="Relabel it"):
        rule(small, "x.png")
    rule(small, "x.png", "relabel", "pneumonia")
    assert labels(built(small))[sha(1)] == "PNEUMONIA"


def test_the_last_ruling_on_an_image_is_in_force_and_none_is_lost(store, small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    picture = sha_of(small, "boxed.png")
    rule(small, "boxed.png")
    rule(small, "boxed.png", "relabel", "COVID19")
    assert labels(built(small))[picture] == "COVID19"
    rule(small, "boxed.png", "withdraw")
    assert picture not in labels(built(small))
    rule(small, "boxed.png", why="after all")
    assert labels(built(small))[picture] == "NORMAL"
    entries = rulings.read(store)
    assert [(e.number, e.action) for e in entries] == [(1, "release"), (2, "relabel"), (3, "withdraw"), (4, "release")]
    assert [e["number"] for e in quarantine.describe_file(store, small, "boxed.png")["rulings"]] == [1, 2, 3, 4]


def test_the_same_ruling_twice_is_one_and_two_at_once_both_count(store, small, monkeypatch):
    take(small, "week-1", {"train/NORMAL/boxed.png": boxed(1), "train/NORMAL/other.png": boxed(2)})
    assert rule(small, "boxed.png") == rule(small, "boxed.png")
    assert rulings.count(store) == 1
    read, raced = rulings.read, []

    def late(store, after=0):
        found = read(store, after)
        if not raced:  # another human rules between the look and the write
            raced.append(1)
            rule(small, "other.png")
        return found

    row = quarantine.find_file(quarantine.list_files(store), "boxed.png", small.inbox)
    monkeypatch.setattr(rulings, "read", late)
    mine = rulings.append(store, [(row, "relabel", "COVID19")], "dr.b", "I differ")[0]
    monkeypatch.setattr(rulings, "read", read)
    assert mine.number == 3 and [r.number for r in rulings.read(store)] == [1, 2, 3]


def ruling(number):
    return Ruling(
        number=number, sha256=f"{number:064x}", batch="b", file=f"{number}.png", action="release", label="NORMAL",
        by="a", why="b", at="c",
    )  # fmt: skip


def test_rulings_are_read_by_the_hundred_and_the_single_ones_are_the_truth(store, settings, seaweed, monkeypatch):
    monkeypatch.setattr(rulings, "FOLD", 10)
    for number in range(1, 36):
        store.put_if_absent(f"rulings/{number:05d}.json", ruling(number).to_bytes())
    wanted = [ruling(number) for number in range(1, 36)]
    assert rulings.read(store) == wanted
    rulings.fold(store)
    before = snapshot(settings)
    rulings.fold(store)
    assert snapshot(settings) == before and len(before) == 35 + 3
    with counted(seaweed["CXR_STORE__ENDPOINT_URL"]) as (address, asked):
        assert rulings.read(ObjectStore(settings.replace(store={"endpoint_url": address}).store)) == wanted
    assert len(asked) == 1 + 3 + 5  # the listing, the folded, the single ones
    assert rulings.read(store, 17) == wanted[17:] and rulings.read(store, 35) == []
    changed = ruling(5).model_copy(update={"why": "changed by hand"})
    overwrite(settings, "rulings/00005.json", changed.to_bytes())
    assert rulings.read(store)[4] == changed
    folded = next(k for k in before if k.startswith("rulings-folded/00011-"))
    overwrite(settings, folded, b"[]")
    with pytest.raises(Refused, match="Delete it"):
        rulings.read(store)


def test_rulings_are_folded_as_they_are_added_and_a_crash_loses_none(store, settings, monkeypatch):
    monkeypatch.setattr(rulings, "FOLD", 3)
    rows = [(pd.Series({"sha256": f"{n:064x}", "batch": "b", "file": "f", "reasons": []}), "release", "NORMAL")
            for n in range(8)]  # fmt: skip
    with monkeypatch.context() as patch:
        die_at_write(patch, 8)  # the last ruling
        with pytest.raises(Died):
            rulings.append(store, rows, "dr.a", "why")
    assert [r.number for r in rulings.read(store)] == list(range(1, 8))
    found = rulings.append(store, rows, "dr.a", "why")
    assert [r.number for r in found] == list(range(1, 9)) and rulings.read(store) == found
    assert len([k for k in snapshot(settings) if k.startswith("rulings-folded/")]) == 2


def test_all_images_of_one_reason_are_released_by_a_ruling_each(store, small):
    files = week(100) | {f"train/NORMAL/boxed{n}.png": boxed(n) for n in (1, 2)} | {"train/COVID19/b.png": boxed(3)}
    files |= {"train/LUNG/c.png": boxed(4), "train/TB/d.png": boxed(5), "train/NORMAL/again.png": boxed(2)}
    take(small, "week-1", files)
    rule(small, "boxed1.png")
    rows, skipped = releasable(small, "white_box")
    assert sorted(rows["label"]) == ["COVID19", "NORMAL"]
    assert skipped == {"already_in": 2, "untrained_label": 1}
    assert releasable(small, "unknown_label").skipped == {"no_single_label": 1}
    assert releasable(small, "white_box", label="covid")[0]["file"].tolist() == ["train/COVID19/b.png"]
    assert releasable(small, "white_box", drop="week-2")[0].empty
    ruled = add_ruling.release_images(store, rows, "dr.a", "collimators")
    assert [(r.number, r.action) for r in ruled] == [(2, "release"), (3, "release")]
    frame = quarantine.list_files(store)
    assert set(frame.loc[frame["sha256"].isin(rows["sha256"]), "now"]) == {"NORMAL", "COVID19"}
    assert releasable(small, "white_box")[0].empty


IMPOSSIBLE = [
    ("page.png", "release", "", "no_image", "needs an image in the store"),
    ("page.png", "relabel", "NORMAL", "no_image", "needs an image in the store"),
    ("x.png", "release", "", "no_single_label", "no single label"),
    ("x.png", "relabel", "lung", "unknown_class", "one of the model's classes"),
    ("x.png", "relabel", "TB", "unknown_class", "one of the model's classes"),
    ("x.png", "relabel", "", "unknown_class", "one of the model's classes"),
    ("x.png", "withdraw", "", "already_out", "out already"),
    ("tb.png", "release", "", "untrained_label", "an image labelled TUBERCULOSIS"),
    ("a.png", "release", "", "already_in", "accepted as NORMAL already"),
    ("a.png", "relabel", "normal", "already_in", "accepted as NORMAL already"),
    ("again.png", "release", "", "already_in", "accepted as NORMAL already"),
    ("twice.png", "release", "", "no_single_label", "no single label"),
    ("conflict.png", "release", "", "no_single_label", "no single label"),
]


def test_an_impossible_ruling_is_refused_with_its_code_and_not_recorded(store, small):
    files = {"a.png": png(2), "again.png": png(2), "x.png": png(1), "tb.png": boxed(4), "page.png": b"<html>"}
    files |= {"twice.png": png(5), "conflict.png": png(6), "other.png": png(6)}
    rows = [("a.png", "normal"), ("again.png", "normal"), ("x.png", "lung"), ("tb.png", "TB"), ("page.png", "normal")]
    rows += [("twice.png", "normal"), ("twice.png", "covid"), ("conflict.png", "normal"), ("other.png", "covid")]
    take(small, "week-1", files | {"labels.csv": csv(*(f"{f},{label}" for f, label in rows))})
    before = snapshot(small)
    for name, action, label, code, words in IMPOSSIBLE:
        with pytest.raises(RulingRefused, match=words) as caught:
            rule(small, name, action, label)
        assert (caught.value.code, caught.value.facts["file"]) == (code, name)
    for by, why in (("dr.a", " "), (" ", "a reason"), ("", "")):
        with pytest.raises(RulingRefused, match="needs a reason") as caught:
            add_ruling.rule_on_image(
                store, small.inbox, small.classes, (), "tb.png", add_ruling.Request("relabel", by, why, "NORMAL")
            )
        assert caught.value.code == "no_reason"
    assert snapshot(small) == before


def test_an_image_of_a_rejected_class_enters_only_when_that_is_said(small):
    bad = {f"train/COVID19/boxed{n}.png": boxed(n) for n in range(20, 24)}
    take(small, "week-1", week(100))
    rejected = take(small, "week-2", bad | {f"train/COVID19/{n}.png": png(n) for n in range(4)})
    assert list(rejected.rejected_classes) == ["COVID19"]
    for action, label in (("release", ""), ("relabel", "NORMAL")):
        with pytest.raises(RulingRefused, match=r"rejected as a whole\. Of 8 readable") as caught:
            rule(small, "train/COVID19/1.png", action, label)
        assert caught.value.code == "rejected_class"
    ruling, *_ = rule(small, "train/COVID19/1.png", rejected_too=True)
    assert ruling.reasons == ("rejected_class:artefacts",)
    rows, skipped = releasable(small, "artefacts")
    assert rows.empty and skipped["rejected_class"] == 3
    assert len(releasable(small, "artefacts", rejected_too=True).rows) == 3
    assert labels(built(small))[sha(1)] == "COVID19"


def test_a_ruling_whose_batch_is_gone_stops_the_dataset(store, small):
    take(small, "week-1", week(100))
    lost = Ruling(
        number=1, sha256="a" * 64, batch="lost", file="x.png", action="release", label="NORMAL", by="a", why="b", at="c"
    )
    overwrite(small, "rulings/00001.json", lost.to_bytes())
    with pytest.raises(Refused, match=r"Ruling 1 is on .x\.png. of batch .lost."):
        build.build_dataset(store, small)


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


def test_a_released_image_is_compared_with_all_others(store, small):
    take(small, "week-1", week(100) | {"test/NORMAL/boxed.png": boxed(1)})
    take(small, "week-2", {"train/NORMAL/smaller.png": boxed_smaller(1)})
    assert set(quarantine.list_refused(store, small.inbox, small.classes)["state"]) == {"quarantined"}
    rule(small, "boxed.png")
    assert split_of(built(small))[sha_of(small, "boxed.png")] == "test"
    rule(small, "smaller.png")
    table = built(small)
    assert split_of(table)[sha_of(small, "smaller.png")] == "test"


def test_a_later_copy_of_a_released_image_is_a_duplicate_or_a_conflict(small):
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


def test_of_one_picture_under_two_labels_the_last_ruling_decides(small):
    take(small, "week-1", week(100) | {"train/NORMAL/a.png": png(1)})
    take(small, "week-2", {"train/PNEUMONIA/b.jpg": resized(1)})
    copy = sha_of(small, "b.jpg")
    rule(small, "b.jpg")
    table = labels(built(small))
    assert table[copy] == "PNEUMONIA" and sha(1) not in table
    ((file, _, label),) = rule(small, "a.png").leaving
    assert (file, label) == ("train/PNEUMONIA/b.jpg", "PNEUMONIA")
    table = labels(built(small))
    assert table[sha(1)] == "NORMAL" and copy not in table


def test_a_relabel_of_the_very_image_that_is_in_says_under_which_label_it_was(small):
    take(small, "week-1", week(100) | {"train/NORMAL/a.png": png(1), "train/LUNG/b.png": png(1)})
    outcome = rule(small, "b.png", "relabel", "COVID19")
    assert (outcome.ruling.file, outcome.previous_label, outcome.leaving) == ("train/LUNG/b.png", "NORMAL", [])
    table = built(small)
    assert labels(table)[sha(1)] == "COVID19" and (table["sha256"] == sha(1)).sum() == 1


def test_datasets_built_with_the_same_rulings_elsewhere_are_the_same_bytes(store, small):
    take(small, "week-1", week(100) | {"train/NORMAL/boxed.png": boxed(1)})
    rule(small, "boxed.png")
    built(small)
    first = snapshot(small)
    for key in [k for k in first if k.startswith("datasets/")]:
        store.client.delete_object(Bucket=small.store.bucket, Key=key)
    built(small)
    assert snapshot(small) == first


# Thumbnails


@pytest.mark.processes
def test_only_refused_images_have_a_thumbnail_and_it_has_no_metadata(store, settings):
    big = np.asarray(Image.fromarray(film(1)).resize((600, 900)))
    big = np.stack([big, big // 2, big // 2], axis=2)
    take(settings, "drop", {"NORMAL/red.png": encoded(big), "NORMAL/ok.png": png(2), "NORMAL/bad.png": b"?"})
    (key,) = [k for k in snapshot(settings) if k.startswith("thumbnails/")]
    picture = sha_of(settings, "red.png")
    assert key == layout.thumbnail(picture) == f"thumbnails/{picture[:2]}/{picture}.jpg"
    data = store.get(key)
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (171, 256))
        assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    image = store.get(process_file.image_key(picture, "png"))
    assert thumbnails.make(image, settings.images) == data


@pytest.mark.parametrize("size", [(300, 200), (600, 400), (2100, 1400)])
def test_a_large_jpeg_is_decoded_in_part_and_its_thumbnail_looks_the_same(settings, size, monkeypatch):
    data = encoded(np.asarray(Image.fromarray(film(1)).resize(size)), "JPEG", quality=95)
    shapes, opened = [], decode.decode_image

    def noted(*args):
        found = opened(*args)
        shapes.append(max(found.pixels.shape))
        return found

    monkeypatch.setattr(decode, "decode_image", noted)
    thumbnail = Image.open(io.BytesIO(thumbnails.make(data, settings.images)))
    assert thumbnail.size == (256, round(256 * size[1] / size[0])) and 256 <= shapes[0] < 640
    whole = Image.open(io.BytesIO(data)).resize(thumbnail.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(thumbnail, int) - np.asarray(whole, int)).mean() < 4


def test_a_picture_below_the_size_of_a_thumbnail_is_not_enlarged(settings):
    small = thumbnails.make(encoded(film(1)[:60, :40]), settings.images)
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


def test_a_group_found_in_two_splits_keeps_only_the_images_of_the_stricter(store, small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1), "train/NORMAL/y.png": png(2)})
    first = split_of(built(small))
    assert (first[sha(1)], first[sha(2)]) == ("test", "train")
    rows = csv("a.jpg,normal,P,train", "b.jpg,normal,P,train", header=HEADER)
    take(small, "week-2", {"a.jpg": resized(1), "b.jpg": resized(2), "labels.csv": rows})
    second = split_of(built(small))
    assert second[sha(1)] == "test" and sha(2) not in second
    assert versions.load_latest(store).withheld == (sha(2),)
    take(small, "week-3", {"train/NORMAL/z.png": png(3)})
    third = split_of(built(small))
    assert sha(2) not in third and versions.load_latest(store).withheld == (sha(2),)
    assert (diff.compare_datasets(store, 1, 3)["change"] != "moved").all()
    with pytest.raises(Refused, match="stays out for good"):
        rule(small, sha(2), "relabel", "COVID19")


# Versions


def test_a_diff_names_what_was_added_removed_and_relabelled(store, small):
    take(small, "week-1", week(100) | {"train/NORMAL/x.png": png(1), "train/NORMAL/y.png": png(2)})
    built(small)
    second = take(small, "week-2", {"train/COVID19/new.png": png(3)}).batch
    rule(small, "train/NORMAL/x.png", "withdraw")
    rule(small, "train/NORMAL/y.png", "relabel", "PNEUMONIA")
    built(small)
    found = diff.compare_datasets(store, 1, 2).set_index("change")
    assert found["sha256"].to_dict() == {"added": sha(3), "removed": sha(1), "relabelled": sha(2)}
    assert found.loc["added", ["label", "label_before", "split_before", "batch"]].tolist() == [
        "COVID19",
        "",
        "",
        second,
    ]
    assert found.loc["removed", ["label", "split"]].tolist() == ["NORMAL", "train"]
    back = diff.compare_datasets(store, 2, 1)
    assert set(back["change"]) == {"added", "removed", "relabelled"} and diff.compare_datasets(store, 2, 2).empty
    assert versions.list_numbers(store) == [1, 2]


def test_a_diff_shows_a_moved_image_though_no_build_ever_moves_one(store, small):
    take(small, "week-1", week(100))
    record, _ = build.build_dataset(store, small)
    table = versions.load_manifest(store, record)
    one = table["sha256"][table["split"] == "train"].iloc[0]
    forged = tables.to_parquet(table.assign(split=table["split"].where(table["sha256"] != one, "test")))
    overwrite(small, "datasets/2/manifest.parquet", forged)
    changed = {"dataset": 2, "manifest_sha256": hashlib.sha256(forged).hexdigest()}
    overwrite(small, "datasets/2/dataset.json", record.model_copy(update=changed).to_bytes())
    assert diff.compare_datasets(store, 1, 2)[["change", "sha256", "split"]].values.tolist() == [["moved", one, "test"]]
