"""Dataset versions: which images enter, that a group never changes its split, and that unfit data is refused."""

import hashlib

import pandas as pd
import pytest
from drop_samples import (
    Died,
    built,
    die_at_write,
    elsewhere,
    listed,
    overwrite,
    png,
    put_drop,
    resized,
    sha,
    snapshot,
    split_of,
    take,
    week,
)

from cxr_ml.dataset import build, splits, versions
from cxr_ml.errors import Refused
from cxr_ml.ingest import ingest_drop, process_file, tables
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import judge_batch

pytestmark = pytest.mark.usefixtures("handful")


def test_the_first_dataset_holds_what_was_accepted_in_the_splits_of_the_drop(store, small):
    batch = take(small, "week-1", week(100) | {"train/TURBERCULOSIS/a.png": png(200), "train/NORMAL/b.png": b"?"})
    record, new = build.build_dataset(store, small)
    table = versions.load_manifest(store, record)
    assert new and (record.dataset, record.parent, record.batches) == (1, None, (batch.batch,))
    each = {"COVID19": 1, "NORMAL": 1, "PNEUMONIA": 1}
    assert record.counts == {"train": {label: 2 for label in each}, "validation": each, "test": each}
    assert list(table.columns) == ["sha256", "format", "label", "split", "group", "source", "batch"]
    # A class that the model does not know stays in its batch; it is no part of what is trained on.
    assert sha(200) not in set(table["sha256"]) and len(table) == 12
    assert list(table["sha256"]) == sorted(table["sha256"])
    assert set(table["group"]) == {f"image:{s}" for s in table["sha256"]}
    for name, extension in zip(table["sha256"], table["format"], strict=True):
        assert store.exists(process_file.image_key(name, extension))
    assert record.manifest_sha256 == hashlib.sha256(store.get("datasets/1/manifest.parquet")).hexdigest()
    assert versions.load_latest(store) == versions.load_dataset(store, 1) == record
    assert b"<title>Data Docs: dataset</title>" in store.get("datasets/1/dataset.html")


def test_without_a_new_image_there_is_no_new_version(store, small):
    take(small, "week-1", week(100))
    first, _ = build.build_dataset(store, small)
    take(small, "week-2", {"train/NORMAL/again.png": png(100)})
    before = snapshot(small)
    assert build.build_dataset(store, small) == (first, False)
    assert snapshot(small) == before


def test_new_batches_add_to_the_parent_and_move_nothing(store, small):
    first_batch = take(small, "week-2", week(100)).batch
    first = built(small)
    second_batch = take(small, "week-1", week(120)).batch  # a name that sorts before the parent's
    second = built(small)
    record = versions.load_latest(store)
    assert (record.dataset, record.parent, record.batches) == (2, 1, (first_batch, second_batch))
    kept = second[second["batch"] == first_batch].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)
    assert len(second) == 24
    assert versions.load_manifest(store, versions.load_dataset(store, 1)).equals(first)


def test_a_patient_keeps_the_split_whatever_later_drops_ask_for(small):
    rows = [(1, "normal", "A", "train"), (2, "normal", "B", "test"), (3, "covid", "C", "validation")]
    take(small, "week-1", week(100))
    take(small, "week-2", listed(*rows))
    first = split_of(built(small))
    assert [first[sha(n)] for n in (1, 2, 3)] == ["train", "test", "validation"]
    for number, name in enumerate(("week-3", "week-4")):
        base = 10 * (number + 1)
        later = [
            (base + 1, "normal", "A", "test"),
            (base + 2, "normal", "B", "train"),
            (base + 3, "covid", "C", ""),
            (base + 4, "covid", "D", "test"),
        ]
        take(small, name, listed(*later))
        table = built(small)
        now = split_of(table)
        assert [now[sha(base + n)] for n in (1, 2, 3, 4)] == ["train", "test", "validation", "test"]
        assert now.items() >= first.items()
        assert (table.groupby("group")["split"].nunique() == 1).all()
        first = now


def test_all_images_of_a_patient_in_one_drop_are_in_one_split(small):
    rows = [(1, "normal", "A", "test"), (2, "normal", "A", "train"), (3, "covid", "A", "validation")]
    take(small, "week-1", week(100))
    take(small, "week-2", listed(*rows))
    table = built(small)
    mine = table[table["sha256"].isin([sha(1), sha(2), sha(3)])]
    assert len(mine) == 3 and mine["group"].nunique() == 1 and mine["split"].nunique() == 1
    assert "A" not in mine["group"].iloc[0].removeprefix("patient:").upper().split()


def test_a_resized_test_image_never_gets_into_training(small):
    take(small, "week-1", week(100) | {"test/NORMAL/x.png": png(1)})
    built(small)
    take(small, "week-2", {"train/NORMAL/again.jpg": resized(1), "train/NORMAL/new.png": png(2)})
    table = built(small)
    assert split_of(table)[sha(1)] == "test"
    assert len(table) == 14 and (table["split"] == "train").sum() == 7


def test_an_image_contradicted_by_a_later_batch_leaves_the_next_version(store, small):
    take(small, "week-1", week(100) | {"train/NORMAL/x.png": png(1)})
    first = built(small)
    take(small, "week-2", {"train/PNEUMONIA/x.jpg": resized(1)})
    second = built(small)
    assert set(first["sha256"]) - set(second["sha256"]) == {sha(1)} and len(second) == 12
    assert sha(1) in set(versions.load_manifest(store, versions.load_dataset(store, 1))["sha256"])


def test_a_group_that_left_and_came_back_has_its_old_split(small):
    take(small, "week-1", week(100))
    take(small, "week-2", listed((1, "normal", "A", "test")))
    assert split_of(built(small))[sha(1)] == "test"
    take(small, "week-3", {"PNEUMONIA/x.jpg": resized(1)})
    assert sha(1) not in split_of(built(small))
    take(small, "week-4", listed((2, "normal", "A", "train")))
    assert split_of(built(small))[sha(2)] == "test"


# Splits of groups without a hint


def test_groups_without_a_hint_are_split_in_the_shares_of_the_settings():
    settings = Settings(dataset={"test_fraction": 0.2, "validation_fraction": 0.15})
    found = pd.Series([splits.choose_split(f"image:{i}", "", settings.dataset) for i in range(4000)]).value_counts(
        normalize=True
    )
    assert found["test"] == pytest.approx(0.2, abs=0.02)
    assert found["validation"] == pytest.approx(0.8 * 0.15, abs=0.02)
    hinted = pd.Series(
        [splits.choose_split(f"image:{i}", "train", settings.dataset) for i in range(4000)]
    ).value_counts()
    assert "test" not in hinted and hinted["validation"] / 4000 == pytest.approx(0.15, abs=0.02)


def test_the_split_of_a_new_group_depends_on_its_name_alone():
    names = ["image:a", "image:b", "patient:c", "patient:d", "image:e", "image:f"]
    settings = Settings(dataset={"test_fraction": 0.5, "validation_fraction": 0.5})
    digests = [int(hashlib.sha256(f"test\n{n}".encode()).hexdigest()[:8], 16) / 2**32 for n in names]
    assert [splits.hash_to_unit(n, "test") for n in names] == digests
    assert [splits.choose_split(n, "", settings.dataset) == "test" for n in names] == [d < 0.5 for d in digests]
    assert [splits.hash_to_unit(n, "validation") for n in names] != digests


# What is refused


def test_no_batch_yet_is_refused_with_what_to_do(store, settings):
    with pytest.raises(Refused, match="Put a drop into the inbox"):
        build.build_dataset(store, settings)
    assert snapshot(settings) == {} and versions.load_latest(store) is None


def test_data_unfit_to_train_on_is_refused_and_nothing_is_written(store, settings):
    take(settings, "week-1", week(100, {"train": 3, "test": 2}, ("NORMAL", "COVID19")))
    before = snapshot(settings)
    with pytest.raises(Refused) as caught:
        build.build_dataset(store, settings)
    message = str(caught.value)
    assert "not fit to train on" in message
    for line in ("smallest_class: expected ≥ 50. Received: 0", "test_support_min: expected ≥ 30. Received: 0"):
        assert line in message
    assert "imbalance_ratio: expected ≤ 10. Received: inf" in message
    assert snapshot(settings) == before


def test_a_manifest_that_was_changed_is_refused_for_reading_and_as_a_parent(store, small):
    take(small, "week-1", week(100))
    record, _ = build.build_dataset(store, small)
    table = versions.load_manifest(store, record)
    forged = tables.to_parquet(table.assign(split=table["split"].replace("test", "train")))
    overwrite(small, "datasets/1/manifest.parquet", forged)
    with pytest.raises(Refused, match=r"datasets/1/manifest\.parquet was changed"):
        versions.load_manifest(store, record)
    take(small, "week-2", week(120))
    before = snapshot(small)
    with pytest.raises(Refused, match="was changed"):
        build.build_dataset(store, small)
    assert snapshot(small) == before


@pytest.mark.parametrize("data", [b"{}", b"not json", b'{"dataset": "one"}'])
def test_an_invalid_record_is_refused_by_its_key(store, settings, data):
    overwrite(settings, "datasets/1/dataset.json", data)
    with pytest.raises(Refused, match=r"datasets/1/dataset\.json does not hold a Dataset record"):
        versions.load_latest(store)


# Interrupted runs


def test_building_twice_or_in_another_store_gives_the_same_bytes(store, small):
    take(small, "week-1", week(100))
    build.build_dataset(store, small)
    first = snapshot(small)
    build.build_dataset(store, small)
    assert snapshot(small) == first
    take(elsewhere(small), "week-1")
    build.build_dataset(ObjectStore(elsewhere(small).store), elsewhere(small))
    assert snapshot(elsewhere(small)) == first


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_build_that_dies_leaves_no_dataset_and_is_resumed_to_the_same_store(store, small, monkeypatch, number):
    take(small, "week-1", week(100))
    before = snapshot(small)
    build.build_dataset(store, small)
    whole = snapshot(small)
    client = store.client
    for key in set(whole) - set(before):
        client.delete_object(Bucket=small.store.bucket, Key=key)
    with monkeypatch.context() as patch:
        die_at_write(patch, number)
        with pytest.raises(Died):
            build.build_dataset(store, small)
    assert versions.load_latest(store) is None
    assert build.build_dataset(store, small)[1]
    assert snapshot(small) == whole


@pytest.mark.slow
def test_a_manifest_left_by_a_build_that_died_is_skipped(store, small, monkeypatch):
    take(small, "week-1", week(100))
    with monkeypatch.context() as patch:
        die_at_write(patch, 2)
        with pytest.raises(Died):
            build.build_dataset(store, small)
    left = store.get("datasets/1/manifest.parquet")
    take(small, "week-2", week(120))
    record, new = build.build_dataset(store, small)
    assert new and (record.dataset, record.parent) == (2, None)
    assert len(versions.load_manifest(store, record)) == 24
    assert store.get("datasets/1/manifest.parquet") == left
    assert versions.load_latest(store) == record and build.build_dataset(store, small) == (record, False)


def test_a_batch_without_its_commit_mark_is_no_part_of_a_dataset(store, small, monkeypatch):
    take(small, "week-1", week(100))
    put_drop(small, "week-2", week(120))
    batch = ingest_drop.ingest(store, small, "week-2")
    with monkeypatch.context() as patch:
        die_at_write(patch, 4)
        with pytest.raises(Died):
            judge_batch.validate_batch(store, small, batch)
    assert store.exists(f"batches/{batch}/measurements.parquet")
    assert len(built(small)) == 12
