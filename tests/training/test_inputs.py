"""Images as arrays: the same rows as the manifest, decoded once; batches that a seed and an epoch determine."""

import hashlib
import io
import os
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from model_samples import CLASSES, overwrite, put_dataset

from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.imaging import decode, formats
from cxr_ml.ingest.process_file import image_key
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.store import ObjectStore
from cxr_ml.training import array_cache, inputs

FEW = {"train": 2, "validation": 1, "test": 1}


@pytest.mark.parametrize(("shape", "size"), [((80, 60), 32), ((20, 20), 32), ((32, 32), 32), ((300, 40), 64)])
def test_an_image_of_any_shape_becomes_a_grey_square(shape, size):
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    square = inputs.resize(grey, size)
    assert square.shape == (size, size, 1) and square.dtype == np.uint8
    assert abs(float(square.mean()) - float(grey.mean())) < 6


def test_shrinking_averages_so_that_fine_texture_does_not_become_stripes():
    stripes = np.tile(np.array([0, 255], np.uint8), (100, 50))
    assert abs(inputs.resize(stripes, 32).astype(int) - 127).max() < 40


def test_each_row_of_the_array_is_the_image_of_that_row_of_the_manifest(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    array, manifest = inputs.load(store, settings.cache_dir, dataset, 32)
    assert array.shape == (12, 32, 32, 1) and array.dtype == np.uint8
    assert list(manifest["sha256"]) == list(versions.load_manifest(store, dataset)["sha256"])
    for pixels, row in zip(array, manifest.itertuples(), strict=True):
        stored = decode.decode_grey(store.get(image_key(row.sha256, row.format)))
        np.testing.assert_array_equal(pixels, cv2.resize(stored, (32, 32), interpolation=cv2.INTER_AREA)[..., None])


def test_images_are_decoded_once_and_then_read_from_the_cache(store, settings, monkeypatch):
    dataset = put_dataset(settings, counts=FEW)
    first, _ = inputs.load(store, settings.cache_dir, dataset, 32)

    def decoded_again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(inputs, "load_grey", decoded_again)
    again, _ = inputs.load(store, settings.cache_dir, dataset, 32)
    np.testing.assert_array_equal(again, first)
    assert [p.suffix for p in settings.cache_dir.iterdir()] == [".npy"]


def put_grown(settings, taken_out: int = 0):
    """Dataset 1, and dataset 2 with a batch of three images more and some of the first batch's taken out."""
    first, other = put_dataset(settings, 1, FEW), put_dataset(settings, 9, {"train": 1}, seed=1)
    old, new = (
        versions.load_manifest(ObjectStore(settings.store), first),
        versions.load_manifest(ObjectStore(settings.store), other).assign(batch="week-2"),
    )
    data = to_parquet(pd.concat([old.iloc[taken_out:], new]).sort_values("sha256", ignore_index=True))
    digest = hashlib.sha256(data).hexdigest()
    second = first.model_copy(update={"dataset": 2, "manifest_sha256": digest})
    ObjectStore(settings.store).put_if_absent("datasets/2/manifest.parquet", data)
    return first, second


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The images that are decoded, by SHA-256."""
    found, real = [], inputs.load_grey

    def spy(store, sha256, format):
        found.append(sha256)
        return real(store, sha256, format)

    monkeypatch.setattr(inputs, "load_grey", spy)
    return found


def elsewhere(settings, tmp_path):
    """Another machine with the same store."""
    return settings.replace(cache_dir=tmp_path / "elsewhere")


def test_another_worker_finds_in_the_store_what_the_first_one_decoded(store, settings, decoded, tmp_path):
    dataset = put_dataset(settings, counts=FEW)
    first, _ = inputs.load(store, settings.cache_dir, dataset, 32)
    assert len(decoded) == 12
    again, _ = inputs.load(
        ObjectStore(elsewhere(settings, tmp_path).store), elsewhere(settings, tmp_path).cache_dir, dataset, 32
    )
    np.testing.assert_array_equal(again, first)
    assert len(decoded) == 12
    (key,) = store.keys("inputs/")
    assert np.load(io.BytesIO(store.get(key))).shape == (12, 32, 32, 1), "readable without this project"


def test_the_next_week_decodes_only_what_it_adds_and_leaves_one_file_on_the_machine(store, settings, decoded):
    first, second = put_grown(settings)
    inputs.load(store, settings.cache_dir, first, 32)
    decoded.clear()
    array, manifest = inputs.load(store, settings.cache_dir, second, 32)
    assert sorted(decoded) == sorted(manifest.loc[manifest["batch"] == "week-2", "sha256"])
    for pixels, row in zip(array, manifest.itertuples(), strict=True):
        stored = decode.decode_grey(store.get(image_key(row.sha256, row.format)))
        np.testing.assert_array_equal(pixels, inputs.resize(stored, 32))
    assert len(list(settings.cache_dir.iterdir())) == 1


def test_a_ruling_decodes_the_images_of_its_own_block_again_and_no_others(store, settings, decoded, monkeypatch):
    monkeypatch.setattr(
        array_cache, "MAX_BLOCK_ROWS", 4
    )  # a batch of twelve becomes a block per first digit of the SHA-256
    first, second = put_grown(settings, taken_out=1)
    inputs.load(store, settings.cache_dir, first, 32)
    taken = versions.load_manifest(store, first)["sha256"].iloc[0]
    decoded.clear()
    _, manifest = inputs.load(store, settings.cache_dir, second, 32)
    own = manifest["sha256"].str.startswith(taken[0]) | (manifest["batch"] == "week-2")
    assert sorted(decoded) == sorted(manifest.loc[own, "sha256"]) and not own.all()


def test_blocks_hold_each_image_once_and_no_block_is_much_larger_than_its_limit():
    sha256 = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(3000)]
    manifest = pd.DataFrame({"sha256": sha256, "batch": ["a"] * 2900 + ["b"] * 100})
    found = array_cache.split_into_blocks(manifest, 256)
    assert sorted(np.concatenate([p.rows for p in found])) == list(range(3000))
    assert len(found) == 16 + 1 and max(len(p.rows) for p in found) < 256
    assert len({p.digest for p in found}) == 17


@pytest.mark.parametrize("harm", [lambda d: d[:-1000], lambda d: d[:-40] + b"\x07" + d[-39:], lambda d: b""])
def test_a_broken_block_is_said_and_made_again(store, settings, tmp_path, caplog, harm):
    dataset = put_dataset(settings, counts=FEW)
    whole, _ = inputs.load(store, settings.cache_dir, dataset, 32)
    (key,) = store.keys("inputs/")
    good = store.get(key)
    overwrite(settings, key, harm(good))
    again, _ = inputs.load(
        ObjectStore(elsewhere(settings, tmp_path).store), elsewhere(settings, tmp_path).cache_dir, dataset, 32
    )
    np.testing.assert_array_equal(again, whole)
    assert store.get(key) == good
    assert f"{key} is not what was written" in caplog.text


def test_a_disk_without_room_is_refused_before_anything_is_decoded(store, settings, decoded, monkeypatch):
    dataset = put_dataset(settings, counts=FEW)
    monkeypatch.setattr(array_cache.os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=1000))
    with pytest.raises(Refused, match=r"needs 0\.0 GB.*CXR_CACHE_DIR"):
        inputs.load(store, settings.cache_dir, dataset, 32)
    assert decoded == []


def test_a_file_that_a_killed_process_left_is_removed_a_day_later_and_a_living_ones_is_not(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    settings.cache_dir.mkdir()
    old, new = settings.cache_dir / "x.1.part.npy", settings.cache_dir / "x.2.part.npy"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    inputs.load(store, settings.cache_dir, dataset, 32)
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("harm", [lambda d: d[:-1000], lambda d: b"", lambda d: b"no array", lambda d: d + d])
def test_a_broken_file_in_the_cache_is_laid_together_again(store, settings, caplog, harm):
    dataset = put_dataset(settings, counts=FEW)
    whole = np.array(inputs.load(store, settings.cache_dir, dataset, 32)[0])
    (path,) = settings.cache_dir.iterdir()
    good = path.read_bytes()
    broken = harm(good)
    if broken == good + good:  # an array, but of another number of images
        broken = good.replace(b"(12, ", b"(11, ")
        assert broken != good
    path.write_bytes(broken)
    np.testing.assert_array_equal(inputs.load(store, settings.cache_dir, dataset, 32)[0], whole)
    assert path.read_bytes() == good and f"{path} is broken" in caplog.text


def test_two_processes_of_the_same_number_that_share_a_cache_do_not_disturb_each_other(store, settings, monkeypatch):
    dataset = put_dataset(settings, counts=FEW)
    real = inputs.resize

    def other_process_comes_first(*args):
        monkeypatch.setattr(inputs, "resize", real)
        inputs.load(store, settings.cache_dir, dataset, 32)
        return real(*args)

    monkeypatch.setattr(inputs.os, "cpu_count", lambda: 0.25)  # one thread
    monkeypatch.setattr(inputs, "resize", other_process_comes_first)
    found, _ = inputs.load(store, settings.cache_dir, dataset, 32)
    np.testing.assert_array_equal(found, inputs.load(store, settings.cache_dir, dataset, 32)[0])
    assert len(list(settings.cache_dir.iterdir())) == 1


def test_another_size_or_another_dataset_is_decoded_anew(store, settings):
    one, other = put_dataset(settings, 1, FEW), put_dataset(settings, 2, FEW, seed=1)
    assert inputs.load(store, settings.cache_dir, one, 32)[0].shape[1:] == (32, 32, 1)
    assert inputs.load(store, settings.cache_dir, one, 48)[0].shape[1:] == (48, 48, 1)
    assert (
        inputs.load(store, settings.cache_dir, other, 32)[0] != inputs.load(store, settings.cache_dir, one, 32)[0]
    ).any()


def test_a_decoding_that_fails_leaves_no_half_array_behind(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    row = versions.load_manifest(store, dataset).iloc[7]
    key = image_key(row["sha256"], row["format"])
    whole = store.get(key)
    overwrite(settings, key, whole[: len(whole) // 2])
    with pytest.raises(formats.BadImage):
        inputs.load(store, settings.cache_dir, dataset, 32)
    assert list(settings.cache_dir.iterdir()) == []
    overwrite(settings, key, whole)
    assert inputs.load(store, settings.cache_dir, dataset, 32)[0].any(axis=(1, 2, 3)).all()


def test_a_manifest_that_was_changed_is_refused(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    overwrite(settings, "datasets/1/manifest.parquet", store.get("datasets/1/manifest.parquet") + b" ")
    with pytest.raises(Refused, match="was changed after dataset 1 was written"):
        inputs.load(store, settings.cache_dir, dataset, 32)


def test_a_missing_image_is_refused_by_its_key(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    row = versions.load_manifest(store, dataset).iloc[0]
    key = image_key(row["sha256"], row["format"])
    store.client.delete_object(Bucket=settings.store.bucket, Key=key)
    with pytest.raises(Refused, match=key):
        inputs.load(store, settings.cache_dir, dataset, 32)


def test_targets_are_indices_in_the_order_of_the_classes(store, settings):
    dataset = put_dataset(settings, counts=FEW)
    _, manifest = inputs.load(store, settings.cache_dir, dataset, 32)
    y = inputs.targets(manifest, CLASSES)
    assert y.dtype == np.int64
    assert [CLASSES[i] for i in y] == list(manifest["label"])
    turned = inputs.targets(manifest, CLASSES[::-1])
    np.testing.assert_array_equal(turned, 2 - y)


@pytest.fixture
def numbered():
    """Twenty images; each batch element can be traced to its row by its target."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 32, 32, 1), dtype=np.uint8)
    rows = np.arange(5, 18)

    def make(seed=0, batch_size=5):
        return inputs.AugmentedBatches(pixels, rows, rows * 10, rows / 10, batch_size, seed)

    return make


def epoch(batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.concatenate(parts) for parts in zip(*(batches[i] for i in range(len(batches))), strict=True))


def test_an_epoch_shows_each_training_image_once_with_its_target_and_weight(numbered):
    batches = numbered()
    assert [len(batches[i][1]) for i in range(len(batches))] == [5, 5, 3]
    views, y, weights = epoch(batches)
    assert views.shape == (13, 32, 32, 1) and views.dtype == np.uint8
    assert sorted(y) == [row * 10 for row in range(5, 18)]
    np.testing.assert_allclose(weights, y / 100)


def test_views_are_augmented_views_of_the_very_image(monkeypatch, numbered):
    monkeypatch.setattr(inputs, "draw_views", lambda images, rng, disguised: images)
    batches = numbered()
    views, y, _ = epoch(batches)
    np.testing.assert_array_equal(views, batches.images[y // 10])


def test_the_asked_share_of_the_views_is_in_a_disguise_and_the_others_are_not_touched():
    films = np.tile(
        np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(4, 0).repeat(4, 1)[None, ..., None], (400, 1, 1, 1)
    )
    plain = inputs.draw_views(films, np.random.default_rng(7), 0.0)
    some = inputs.draw_views(films, np.random.default_rng(7), 0.3)
    changed = (plain != some).any(axis=(1, 2, 3)).mean()
    assert 0.2 < changed < 0.35  # a disguise may leave a film as it was


def test_the_same_seed_and_epoch_give_the_same_batches(numbered):
    one, other = numbered(), numbered()
    for _ in range(2):
        for a, b in zip(epoch(one), epoch(other), strict=True):
            np.testing.assert_array_equal(a, b)
        one.on_epoch_end()
        other.on_epoch_end()


def test_another_seed_gives_another_order_and_other_views(numbered):
    assert (epoch(numbered(seed=0))[1] != epoch(numbered(seed=1))[1]).any()


def test_each_epoch_has_its_own_order_and_its_own_views(numbered):
    batches = numbered()
    views, y, _ = epoch(batches)
    batches.on_epoch_end()
    later_views, later_y, _ = epoch(batches)
    assert (y != later_y).any()
    assert (views[y.argsort()] != later_views[later_y.argsort()]).any(axis=(1, 2, 3)).all()


def test_plain_batches_are_the_rows_in_their_order_and_no_more_of_the_array_is_read():
    class Counted(np.ndarray):
        taken = 0

        def __getitem__(self, which):
            Counted.taken = max(Counted.taken, len(which))
            return np.asarray(self)[which]

    pixels = np.random.default_rng(3).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    rows = np.array([3, 1, 19, 7, 8])
    mean = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.GlobalAveragePooling2D()])
    found = mean.predict(inputs.Batches(pixels.view(Counted), rows, 2), verbose=0)
    np.testing.assert_allclose(found[:, 0], pixels[rows].mean(axis=(1, 2, 3)), rtol=1e-5)
    assert Counted.taken == 2
    labelled = inputs.Batches(pixels, rows, 2, y=rows * 10)
    assert [list(labelled[i][1]) for i in range(3)] == [[30, 10], [190, 70], [80]]
