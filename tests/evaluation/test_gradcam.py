"""Where a model looked: that Grad-CAM is Grad-CAM, what lies outside the chest, and what a person sees of it."""

import keras
import numpy as np
import pytest

from cxr_ml.errors import Refused
from cxr_ml.evaluation import gradcam
from cxr_ml.settings import Settings
from cxr_ml.training import architectures


def classifier(architecture, size=96, seed=3):
    keras.utils.set_random_seed(seed)
    settings = Settings(training={"weights": "none", "image_size": size})
    return architectures.build_classifier(
        architectures.build_backbone(settings.training, settings.weights_dir, architecture), 3, 0.5
    )


def films(n=5, size=96):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 1), dtype=np.uint8)


def by_gradients(network, images, classes):
    """Grad-CAM as the paper has it: TensorFlow's gradients of the scores before the softmax by the feature maps."""
    import tensorflow as tf

    features, head = network.get_layer("features"), network.get_layer("head")
    maps = tf.convert_to_tensor(keras.Model(network.input, features.input)(images, training=False))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        scores = tf.matmul(features(maps), head.kernel) + head.bias
        wanted = tf.reduce_sum(tf.gather(scores, classes, batch_dims=1))
    importance = tf.reduce_mean(tape.gradient(wanted, maps), axis=(1, 2), keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(importance * maps, axis=-1)).numpy()
    top = cam.max(axis=(1, 2), keepdims=True)
    return cam / np.where(top > 0, top, 1)


@pytest.mark.parametrize(
    ("architecture", "side"), [("light", 6), pytest.param("mobilenet_v2", 3, marks=pytest.mark.slow)]
)
def test_the_heat_is_that_of_gradients(architecture, side):
    network, images, classes = classifier(architecture), np.repeat(films(), 3, axis=0), np.tile([0, 1, 2], 5)
    heat = gradcam.heat(network, images, classes)
    expected = by_gradients(network, images, classes)
    assert heat.shape == (15, side, side) and heat.dtype == np.float32
    assert (expected.max(axis=(1, 2)) > 0).sum() >= 5, "else nothing is compared"
    np.testing.assert_allclose(heat, expected, atol=1e-4)


def test_a_stored_model_is_explained_as_the_one_that_was_stored(tmp_path):
    network, images, classes = classifier("light"), films(), np.array([0, 1, 2, 1, 0])
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(gradcam.heat(loaded, images, classes), gradcam.heat(network, images, classes))


def bright_is(classes, size=8):
    """A classifier that takes brightness for a sign of some classes (1) or against them (-1), place by place."""
    pixels = keras.Input((size, size, 3))
    same = architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", "", 1.0, 0.0)
    network = architectures.build_classifier(same, len(classes), 0.5)
    network.get_layer("head").set_weights([np.tile(np.array(classes, float), (3, 1)), np.zeros(len(classes))])
    return network


def test_the_heat_lies_where_what_speaks_for_the_class_lies_and_its_maximum_is_one():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[0, 2, 5], images[0, 6, 1], images[1, 7, 7] = 200, 100, 3
    heat = gradcam.heat(bright_is((1, -1)), images, np.array([0, 0]))
    expected = np.zeros((2, 8, 8))
    expected[0, 2, 5], expected[0, 6, 1], expected[1, 7, 7] = 1, 0.5, 1
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_where_nothing_speaks_for_the_class_there_is_no_heat_and_no_share_outside():
    heat = gradcam.heat(bright_is((1, -1)), films(2, 8), np.array([1, 1]))
    assert (heat == 0).all() and np.isnan(gradcam.outside(heat)).all()


def test_only_the_rows_asked_for_are_explained_and_none_may_be_asked_for():
    images, network = films(4, 8), bright_is((1, -1))
    whole = gradcam.heat(network, images, np.zeros(4, int))
    np.testing.assert_array_equal(gradcam.heat(network, images, np.zeros(2, int), np.array([3, 1])), whole[[3, 1]])
    assert gradcam.heat(network, images, np.zeros(0, int), np.zeros(0, int)).shape == (0, 8, 8)


def test_a_model_of_another_shape_is_refused_by_name():
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Dense(3, name="head")(keras.layers.Flatten(name="features")(inputs))
    with pytest.raises(Refused, match=r"Received: outsider, which ends in .*features \(Flatten\), head \(Dense\)"):
        gradcam.heat(keras.Model(inputs, flat, name="outsider"), films(1, 8), np.array([0]))


def test_a_layer_between_features_and_head_is_another_shape():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Dropout(0.1, name="dropout")(keras.layers.GlobalAveragePooling2D(name="features")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.ReLU()(x)))
    with pytest.raises(Refused, match="was expected"):
        gradcam.class_maps(network)


@pytest.mark.parametrize("cells", [1, 3, 5, 6, 8, 16])
def test_attention_spread_evenly_is_outside_by_the_area_outside(cells):
    assert gradcam.outside(np.ones((1, cells, cells)))[0] == pytest.approx(gradcam.EVENLY)


def test_attention_is_outside_as_far_as_it_lies_outside():
    heat = np.zeros((4, 10, 10))
    heat[0, 4, 4] = heat[1, 0, 5] = heat[2, 1, 1] = 1  # the region's edge runs between the cells 0 and 1
    heat[3, 0, 0], heat[3, 5, 5] = 1, 3
    np.testing.assert_allclose(gradcam.outside(heat), [0, 1, 0, 0.25], atol=1e-12)
    corner = np.zeros((1, 5, 5))
    corner[0, 0, 0] = 1  # of this cell a quarter lies inside
    assert gradcam.outside(corner)[0] == pytest.approx(0.75)


def test_without_heat_the_film_is_shown_as_it_is():
    film = films(1, 60)[0]
    shown = gradcam.overlay(film, np.zeros((6, 6)))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, np.repeat(film, 3, axis=2))


def test_the_heat_is_drawn_where_it_lies_on_a_film_of_any_shape():
    heat = np.zeros((4, 4))
    heat[0, 3] = 1
    shown = gradcam.overlay(np.full((80, 120), 90, np.uint8), heat).astype(int)
    assert shown.shape == (80, 120, 3)
    colour = shown.max(axis=2) - shown.min(axis=2)
    assert colour[5, 115] > 50 and (colour[40:, :60] == 0).all()


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_the_hot_place_is_seen_on_a_grey_print_of_any_film(level):
    heat = np.zeros((8, 8))
    heat[3:5, 3:5] = 1
    grey = gradcam.overlay(np.full((256, 256), level, np.uint8), heat).astype(int) @ [299, 587, 114] // 1000
    across = np.abs(np.diff(grey[128, :128]))
    assert across.max() > 100, "a line goes round it"
