"""What is remembered of the training images, and how far others are from them."""

import os
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from cxr_ml.imaging import decode
from cxr_ml.settings import Settings
from cxr_ml.training import architectures, inputs, ood

FOLDERS = {name: os.environ.get(name) for name in ("CXR_XRAYS", "CXR_WEIGHTS_DIR")}


def network(size=8):
    """A classifier whose features are the sums over the left, the middle and the right of the picture."""
    pixels = keras.Input((size, size, 3))
    mask = np.zeros((size, size, 3), np.float32)
    mask[:, :3, 0] = mask[:, 3:5, 1] = mask[:, 5:, 2] = 1
    parts = architectures.Backbone(keras.Model(pixels, pixels * mask), "from scratch", "", 1.0, 0.0)
    return architectures.build_classifier(parts, 2, 0.5)


def films(n, seed, left=200, right=20):
    images = np.zeros((n, 8, 8, 1), np.uint8)
    images[:, :, :3], images[:, :, 5:] = left, right
    noise = np.random.default_rng(seed).integers(0, 20, images.shape, dtype=np.uint8)
    return images + noise


def fit(classifier, images, train_rows, validation_rows, y, seed=0):
    data = ood.to_bytes(ood.fit(classifier, images, train_rows, validation_rows, y, seed))
    return ood.from_bytes(data), data


def scores(detector, classifier, images):
    features = keras.Model(classifier.input, classifier.get_layer("features").output)
    return ood.ood_score(detector, features.predict(images, verbose=0), images)


def strangers(side=160):
    """Pictures that are no chest X-rays, uint8 (n, side, side, 1): noise, text, shapes, two photographs."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (side, side), dtype=np.uint8)
    text = np.full((side, side), 255, np.uint8)
    for row in range(20, side, 20):
        cv2.putText(text, "Discharge letter", (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0)
    shapes = np.zeros((side, side), np.uint8)
    cv2.circle(shapes, (60, 60), 40, 200, -1)
    cv2.rectangle(shapes, (90, 90), (150, 140), 120, -1)
    photographs = [cv2.cvtColor(load_sample_image(f"{name}.jpg"), cv2.COLOR_RGB2GRAY) for name in ("flower", "china")]
    return np.stack(
        [noise[..., None], text[..., None], shapes[..., None], *(inputs.resize(p, side) for p in photographs)]
    )


@pytest.mark.slow
@pytest.mark.xrays
@pytest.mark.skipif(not all(FOLDERS.values()), reason="CXR_XRAYS or CXR_WEIGHTS_DIR names no folder")
def test_real_films_are_answered_and_strangers_and_films_on_their_side_or_inverted_are_not():
    folders = [Path(FOLDERS["CXR_XRAYS"], "drops/2026-01-05/train", c) for c in ("NORMAL", "COVID19", "PNEUMONIA")]
    paths = [p for f in folders for p in sorted(p for p in f.iterdir() if not p.read_bytes().startswith(b"RIFF"))[:120]]
    films = np.stack([inputs.resize(decode.decode_grey(path.read_bytes()), 160) for path in paths])
    y, rows = np.arange(360) // 120, np.arange(360)
    settings = Settings(weights_dir=FOLDERS["CXR_WEIGHTS_DIR"], training={"image_size": 160})
    classifier = architectures.build_classifier(
        architectures.build_backbone(settings.training, settings.weights_dir, "mobilenet_v2"), 3, 0.5
    )
    held = rows % 6 == 0
    detector, _ = fit(classifier, films, rows[rows % 3 > 0], rows[(rows % 3 == 0) & ~held], y)
    assert (scores(detector, classifier, films[held]) <= 1).mean() >= 0.95
    assert (scores(detector, classifier, strangers()) > 1).all()
    for turns in (1, 3):
        assert (scores(detector, classifier, np.rot90(films[held], turns, (1, 2))) > 1).mean() >= 0.9
    assert (scores(detector, classifier, 255 - films[held]) > 1).mean() >= 0.6


def test_images_like_the_training_images_are_near_and_others_are_far():
    classifier, images = network(), films(260, 0)
    detector, _ = fit(classifier, images, np.arange(100), np.arange(100, 200), np.arange(260) % 2)
    own = scores(detector, classifier, images[200:])
    assert (own <= 1).mean() >= 0.9
    mirrored = scores(detector, classifier, images[200:, :, ::-1])
    assert (mirrored > 5).all()


def test_the_limit_is_passed_by_one_validation_image_in_a_hundred():
    classifier, images = network(), films(300, 1)
    detector, _ = fit(classifier, images, np.arange(100), np.arange(100, 300), np.zeros(300, int))
    assert (scores(detector, classifier, images[100:]) > 1).sum() == 2


def test_brightness_alone_makes_no_film_unlike():
    classifier, images = network(), films(200, 2)
    detector, _ = fit(classifier, images, np.arange(100), np.arange(100, 200), np.zeros(200, int))
    found = scores(detector, classifier, images[100:] // 2)
    assert (found < 1.5).all()


def test_of_each_class_equally_many_images_count(monkeypatch):
    monkeypatch.setattr(ood, "MAX_TRAINING_IMAGES", 20)
    classifier, y = network(), np.array([0] * 90 + [1] * 12 + [0, 1] * 10)
    images = np.concatenate([films(90, 3), films(12, 4, 20, 200), films(20, 5)])
    detector, _ = fit(classifier, images, np.arange(102), np.arange(102, 122), y)
    # The two kinds are each other's mirror image, so that of equally many the mean is its own.
    assert detector.features.mean[0] == pytest.approx(detector.features.mean[2], abs=0.02)


def test_few_training_images_are_enough_and_equal_ones_do_not_divide_by_zero():
    classifier, images = network(), np.repeat(films(1, 6), 4, axis=0)
    detector, _ = fit(classifier, images, np.arange(2), np.arange(2, 4), np.zeros(4, int))
    assert (scores(detector, classifier, images) <= 1).all()
    assert np.isfinite(ood.ood_score(detector, np.zeros((1, 3)), np.zeros((1, 8, 8, 1), np.uint8))).all()


def test_large_shapes_count_where_the_network_is_blind_to_them():
    classifier, images = network(), films(160, 8)
    images[:, 4:, :3] = images[:, 4:, :3] // 4
    detector, _ = fit(classifier, images, np.arange(60), np.arange(60, 120), np.zeros(160, int))
    own, upside_down = images[120:], images[120:, ::-1]
    blind = detector._replace(shapes=detector.shapes._replace(limit=np.inf))
    np.testing.assert_allclose(scores(blind, classifier, upside_down), scores(blind, classifier, own), atol=1e-3)
    assert (scores(detector, classifier, own) <= 1).mean() >= 0.9
    assert (scores(detector, classifier, upside_down) > 2).all()


def test_the_same_images_and_seed_give_the_same_bytes():
    classifier, images, y = network(), films(60, 7), np.zeros(60, int)
    (_, first), (_, second) = (fit(classifier, images, np.arange(40), np.arange(40, 60), y) for _ in range(2))
    assert first == second
