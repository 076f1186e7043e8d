"""Features of the frozen backbone: what is computed, what is taken from the store, and what makes them other ones."""

import hashlib

import keras
import numpy as np
import pandas as pd
import pytest
from model_samples import overwrite, put_dataset, quick
from settings_samples import changed

from cxr_ml.dataset import versions
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, augment, features, inputs

FEW = {"train": 3, "validation": 1}


@pytest.fixture
def ready(settings):
    """Settings, a classifier, and how dataset `number` is seen: load(views, split=…) gives features."""
    s = quick(settings)
    keras.utils.set_random_seed(5)
    classifier = architectures.build_classifier(
        architectures.build_backbone(s.training, s.weights_dir, "light"), 3, 0.5
    )
    put_dataset(s, 1, FEW)

    def load(views, number=1, split="train", classifier=classifier, **changes):
        own = changed(s, **changes)
        images, manifest = inputs.load(
            ObjectStore(own.store), own.cache_dir, versions.load_dataset(ObjectStore(own.store), number), 32
        )
        rows = np.flatnonzero(manifest["split"] == split)
        return (
            np.array(
                features.load(
                    ObjectStore(own.store), own.training, own.cache_dir, classifier, manifest, images, rows, views
                )
            ),
            images[rows],
            manifest,
        )

    return s, classifier, load


@pytest.fixture
def predicted(monkeypatch) -> list[int]:
    """How many images pass through the backbone, call by call."""
    found, real = [], keras.Model.predict

    def spy(self, x, **options):
        found.append(len(x))
        return real(self, x, **options)

    monkeypatch.setattr(keras.Model, "predict", spy)
    return found


def test_views_are_counted_batch_by_batch_also_those_of_the_store(ready):
    s, classifier, _ = ready
    images, manifest = inputs.load(
        ObjectStore(s.store), s.cache_dir, versions.load_dataset(ObjectStore(s.store), 1), 32
    )
    rows = np.flatnonzero(manifest["split"] == "train")

    def told(views):
        seen = []
        features.load(
            ObjectStore(s.store),
            s.training,
            s.cache_dir,
            classifier,
            manifest,
            images,
            rows,
            views,
            on_progress=seen.append,
        )
        assert {(one.unit, one.total, one.stage) for one in seen} == {("images", 9 * views, "features")}
        return [one.done for one in seen]

    assert told(1) == [0, 8, 9, 9], "batches of 8, then the block"
    assert told(2) == [0, 9, 17, 18, 18]


def see(classifier, images) -> np.ndarray:
    return keras.Model(classifier.input, classifier.get_layer("features").output).predict(images, verbose=0)


def test_the_first_view_is_the_image_itself_and_the_others_are_random_views_of_it(ready):
    _, classifier, load = ready
    found, images, _ = load(3)
    assert found.shape == (27, 96) and found.dtype == np.float32
    whole = see(classifier, images)
    np.testing.assert_allclose(found[:9], whole, atol=1e-5)
    for view in (found[9:18], found[18:]):
        assert (abs(view - whole).max(axis=1) > 1e-3).all()
        # A view of an image resembles it more than it does the images of another class.
        nearest = np.linalg.norm(view[:, None] - whole[None], axis=2)
        assert np.diag(nearest).mean() < nearest.mean()
    assert (found[9:18] != found[18:]).any(axis=1).all()


def test_a_second_run_computes_nothing_and_more_views_compute_only_what_is_missing(ready, predicted):
    _, _, load = ready
    two = load(2)[0]
    assert predicted == [9, 9]
    np.testing.assert_array_equal(load(2)[0], two)
    assert predicted == [9, 9]
    np.testing.assert_array_equal(load(3)[0][:18], two)
    assert predicted == [9, 9, 9]


def test_a_run_that_was_killed_goes_on_from_the_views_that_it_had(ready, predicted, monkeypatch):
    s, _, load = ready
    shown = inputs.draw_views
    monkeypatch.setattr(inputs, "draw_views", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load(2)
    assert predicted == [9]
    monkeypatch.setattr(inputs, "draw_views", shown)
    load(2)
    assert predicted == [9, 9]
    assert not list(s.cache_dir.glob("features*")), "no file is left beside what is mapped"


def test_two_processes_of_the_same_number_that_share_a_cache_do_not_disturb_each_other(ready, monkeypatch):
    s, _, load = ready
    shown, other = inputs.draw_views, []

    def other_process_comes_first(*args):
        monkeypatch.setattr(inputs, "draw_views", shown)
        other.append(load(2)[0])
        return shown(*args)

    monkeypatch.setattr(inputs, "draw_views", other_process_comes_first)
    np.testing.assert_allclose(load(2)[0], other[0], atol=1e-6)
    assert not list(s.cache_dir.glob("*.part.npy"))


@pytest.mark.slow
def test_other_weights_another_seed_another_augmentation_or_split_are_other_features(ready, monkeypatch):
    s, classifier, load = ready
    found = load(2)[0]
    other = load(2, seed=7)[0]
    np.testing.assert_array_equal(other[:9], found[:9])
    assert (other[9:] != found[9:]).any()
    assert load(1, split="validation")[0].shape == (3, 96)
    keys = set(ObjectStore(s.store).keys("features/"))
    monkeypatch.setattr(augment, "VERSION", augment.VERSION + 1)
    load(2)
    assert len(set(ObjectStore(s.store).keys("features/")) - keys) == 1, "only the random view is another one"
    first = classifier.get_layer("light")
    first.set_weights([w * 1.5 for w in first.get_weights()])
    assert (load(1)[0] != found[:9]).any()
    np.testing.assert_allclose(load(1)[0], see(classifier, load(1)[1]), atol=1e-5)


def test_a_broken_block_is_computed_again(ready, caplog):
    s, _, load = ready
    found = load(1)[0]
    (key,) = ObjectStore(s.store).keys("features/")
    overwrite(s, key, ObjectStore(s.store).get(key)[:-1])
    np.testing.assert_allclose(load(1)[0], found, atol=1e-6)
    assert key in caplog.text


def test_next_weeks_dataset_computes_the_features_of_its_new_images_only(ready, predicted):
    s, _, load = ready
    before, _, old = load(2)
    other = put_dataset(s, 8, {"train": 1}, seed=1)
    new = versions.load_manifest(ObjectStore(s.store), other).assign(batch="week-2")
    data = to_parquet(pd.concat([old, new]).sort_values("sha256", ignore_index=True))
    record = other.model_copy(update={"dataset": 2, "manifest_sha256": hashlib.sha256(data).hexdigest()})
    ObjectStore(s.store).put_if_absent("datasets/2/manifest.parquet", data)
    ObjectStore(s.store).put_if_absent("datasets/2/dataset.json", record.to_bytes())
    predicted.clear()
    after, _, manifest = load(2, number=2)
    assert predicted == [3, 3] and after.shape == (24, 96)
    known = manifest.loc[manifest["split"] == "train", "sha256"].isin(set(old["sha256"])).to_numpy()
    np.testing.assert_array_equal(after[:12][known], before[:9])
    np.testing.assert_array_equal(after[12:][known], before[9:])
