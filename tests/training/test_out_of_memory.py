"""A prediction that does not fit into memory is made in smaller batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_samples import put_dataset, quick

from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, features, inputs, ood, out_of_memory, predictions


def test_a_batch_is_halved_as_long_as_memory_is_full_and_another_error_is_not_hidden():
    tried = []

    def predict(size):
        tried.append(size)
        if size > 5:
            raise MemoryError
        return np.zeros(3)

    assert out_of_memory.predict_in_fitting_batches(predict, 32).shape == (3,)
    assert tried == [32, 16, 8, 4]
    with pytest.raises(MemoryError):
        out_of_memory.predict_in_fitting_batches(lambda _: (_ for _ in ()).throw(MemoryError), 8)
    with pytest.raises(ZeroDivisionError):
        out_of_memory.predict_in_fitting_batches(lambda size: size / 0, 8)


@pytest.mark.slow
def test_whoever_predicts_gets_along_with_memory_for_four_images(settings, monkeypatch):
    s = quick(settings)
    dataset = put_dataset(s)
    images, manifest = inputs.load(ObjectStore(s.store), s.cache_dir, dataset, 32)
    y = inputs.targets(manifest, s.classes)
    rows = [np.flatnonzero(manifest["split"] == split) for split in ("train", "validation")]
    keras.utils.set_random_seed(5)
    classifier = architectures.build_classifier(
        architectures.build_backbone(s.training, s.weights_dir, "light"), 3, 0.5
    )

    def all_of_them(own):
        p = predictions.predict_probabilities(classifier, images)
        known = ood.fit(classifier, images, *rows, y, 0)
        return (
            p,
            known.features.mean,
            known.features.limit,
            np.array(
                features.load(
                    ObjectStore(own.store), own.training, own.cache_dir, classifier, manifest, images, rows[0], 2
                )
            ),
        )

    expected = all_of_them(s)
    real, sizes = keras.Model.predict, []

    def little_memory(self, x, batch_size=None, **options):
        sizes.append(batch_size or x.batch_size)
        if sizes[-1] > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return real(self, x, batch_size=batch_size, **options)

    monkeypatch.setattr(keras.Model, "predict", little_memory)
    for store_key in ObjectStore(s.store).keys("features/"):
        ObjectStore(s.store).remove(store_key)
    for found, before in zip(all_of_them(s), expected, strict=True):
        np.testing.assert_allclose(found, before, atol=1e-5)
    assert sizes.count(4) == 5 and max(sizes) == 32
