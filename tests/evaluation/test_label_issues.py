"""Doubts: the labels that a model contradicts, on images that it was not trained on, and that nothing is changed."""

import hashlib

import pandas as pd
import pytest
from model_samples import picture, png, put_dataset, quick
from test_evaluate import by_level, put_model

from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import label_issues
from cxr_ml.ingest.process_file import image_key
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.records import Dataset
from cxr_ml.store import ObjectStore


def grown(settings, added, base=1):
    """Dataset 2: dataset 1 and further images, each (true label, label, split, group); and their SHA-256s."""
    first = versions.load_dataset(ObjectStore(settings.store), base)
    table = versions.load_manifest(ObjectStore(settings.store), first)
    rows, files, shas = [], [], []
    for number, (true, label, split, group) in enumerate(added):
        data = png(picture(true, 500 + number))
        sha = hashlib.sha256(data).hexdigest()
        ObjectStore(settings.store).put_if_absent(image_key(sha, "png"), data, "image/png")
        rows.append((sha, "png", label, split, group or f"image:{sha}", "", "week-2"))
        files.append({"sha256": sha, "file": f"images/{number}.png"})
        shas.append(sha)
    new = pd.DataFrame(rows, columns=table.columns)
    manifest = pd.concat([table, new]).sort_values("sha256", ignore_index=True).astype("string")
    data = to_parquet(manifest)
    record = Dataset(
        dataset=2, parent=1, batches=("week-0a1b2c3d", "week-2"), counts={},
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    ObjectStore(settings.store).put_if_absent("datasets/2/manifest.parquet", data)
    ObjectStore(settings.store).put_if_absent("datasets/2/dataset.json", record.to_bytes())
    empty = pd.DataFrame({"sha256": pd.Series([], dtype="string"), "file": pd.Series([], dtype="string")})
    ObjectStore(settings.store).put_if_absent("batches/week-0a1b2c3d/measurements.parquet", to_parquet(empty))
    ObjectStore(settings.store).put_if_absent("batches/week-2/measurements.parquet", to_parquet(pd.DataFrame(files)))
    return record, shas


def kept(settings):
    """All that the store holds but decoded pixels."""
    return (
        (key, ObjectStore(settings.store).get(key))
        for key in ObjectStore(settings.store).keys("")
        if not key.startswith("inputs/")
    )


@pytest.fixture
def ready(settings, tmp_path):
    """A store with dataset 1 and a model of it that tells the classes by their grey level."""
    s = quick(settings)
    put_model(s, put_dataset(s), "m", by_level(), tmp_path)
    return s


def test_wrong_labels_of_held_out_images_are_named_and_nothing_is_written(store, ready):
    added = [
        ("NORMAL", "COVID19", "test", ""),
        ("NORMAL", "PNEUMONIA", "train", ""),
        ("COVID19", "COVID19", "train", ""),
    ]
    record, shas = grown(ready, added)
    before = dict(kept(ready))
    found = label_issues.find(store, ready.cache_dir, record, "m", 50)
    named = {d.sha256: d for d in found.doubts}
    assert set(named) == set(shas[:2])
    # Further off by the grey level is less believed.
    assert [d.sha256 for d in found.doubts] == [shas[1], shas[0]]
    first = found.doubts[0]
    assert (first.label, first.suggested, first.file, first.batch) == ("PNEUMONIA", "NORMAL", "images/1.png", "week-2")
    assert first.probability < 0.5 < first.suggested_probability and first.issue
    assert first.image == image_key(shas[1], "png") and store.exists(first.image)
    assert dict(kept(ready)) == before


def test_images_that_the_model_was_trained_on_and_their_groups_are_never_named(store, ready):
    table = versions.load_manifest(store, versions.load_dataset(store, 1))
    trained = table[table["split"] == "train"]
    group = trained["group"].iloc[0]
    record, shas = grown(ready, [("NORMAL", "COVID19", "train", group), ("NORMAL", "COVID19", "train", "")])
    found = label_issues.find(store, ready.cache_dir, record, "m", 50)
    assert [d.sha256 for d in found.doubts] == [shas[1]]
    held_out = len(table) + 2 - len(trained) - 1
    assert found.looked_at == held_out
    assert (
        f"{held_out} of the {len(table) + 2} images" in found.said and f"{len(trained) + 1} were left out" in found.said
    )


def test_no_more_are_named_than_asked_for(store, ready):
    record, _ = grown(ready, [("NORMAL", "COVID19", "train", ""), ("COVID19", "NORMAL", "test", "")])
    assert len(label_issues.find(store, ready.cache_dir, record, "m", 1).doubts) == 1


def test_right_labels_raise_no_doubt(store, ready):
    record, _ = grown(ready, [("NORMAL", "NORMAL", "train", "")])
    assert label_issues.find(store, ready.cache_dir, record, "m", 50).doubts == ()


def test_a_label_that_the_model_does_not_know_is_refused(store, ready):
    record, _ = grown(ready, [("NORMAL", "TUBERCULOSIS", "train", "")])
    with pytest.raises(Refused, match=r"must know the labels of dataset 2\. Received: TUBERCULOSIS"):
        label_issues.find(store, ready.cache_dir, record, "m", 50)


def test_where_everything_was_trained_on_there_is_nothing_to_doubt(settings, tmp_path):
    s = quick(settings)
    record = put_dataset(s, counts={"train": 2})
    put_model(s, record, "m", by_level(), tmp_path)
    with pytest.raises(Refused, match="nothing to hold out"):
        label_issues.find(ObjectStore(s.store), s.cache_dir, record, "m", 5)
