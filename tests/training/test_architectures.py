"""The networks: their known sizes, where their first weights come from, what the classifier does with an image."""

import hashlib
import urllib.error
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings
from cxr_ml.training import architectures

SCRATCH = Settings(training={"weights": "none"})
SMALL = 32  # pixels; MobileNetV2 takes no fewer


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    """A folder with a weights file of MobileNetV2, and the weights in it."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(4)
    network = keras.applications.MobileNetV2(input_shape=(SMALL, SMALL, 3), include_top=False, weights=None)
    for layer in normalisations(network):
        layer.momentum = 0.0  # one look at some noise gives statistics that are no longer 0 and 1
    network(np.random.default_rng(0).normal(size=(32, SMALL, SMALL, 3)), training=True)
    network.save_weights(folder / "mobilenet_v2_notop.weights.h5")
    return folder, network.get_weights()


def local(folder: Path, **changes) -> Settings:
    return Settings(weights_dir=folder, training={"weights": "imagenet", "image_size": SMALL} | changes)


def images(n: int, size: int = SMALL, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1), dtype=np.uint8)


def train_a_step(classifier: keras.Model) -> None:
    # Step by step: to trace a step of 150 layers takes longer.
    classifier.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", run_eagerly=True)
    classifier.fit(images(8), np.arange(8) % 3, batch_size=8, verbose=0)


def normalisations(network: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def values(layers: list[keras.layers.Layer]) -> list[np.ndarray]:
    return [w.copy() for layer in layers for w in layer.get_weights()]


def mirror() -> architectures.Backbone:
    """A backbone that hands its pixels on as they come."""
    pixels = keras.Input((SMALL, SMALL, 3))
    return architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", "")


@pytest.mark.parametrize(("name", "parameters"), [("inception_v3", 21_802_784), ("resnet101_v2", 42_626_560)])
def test_the_networks_of_the_study_have_their_known_numbers_of_parameters(name, parameters):
    backbone = architectures.build_backbone(SCRATCH.training, SCRATCH.weights_dir, name)
    assert backbone.network.count_params() == parameters
    assert backbone.network.output_shape[-1] == 2048
    classifier = architectures.build_classifier(backbone, 3, dropout=0.5)
    assert classifier.count_params() == parameters + 6_147
    assert classifier.input_shape == (None, 256, 256, None) and classifier.output_shape == (None, 3)
    assert classifier.get_layer("dropout").rate == 0.5
    backbone.network.trainable = False
    assert sum(np.prod(w.shape) for w in classifier.trainable_weights) == 6_147, "what the first stage trains"


def test_an_unknown_architecture_is_refused_with_those_that_are_known():
    with pytest.raises(Refused, match=r"one of .*'inception_v3', 'light', .*Received: 'vgg99'"):
        architectures.build_backbone(SCRATCH.training, SCRATCH.weights_dir, "vgg99")


def test_images_too_small_for_a_network_are_refused_with_their_size():
    with pytest.raises(Refused, match="inception_v3 cannot take images of 64 pixels"):
        architectures.build_backbone(
            Settings(training={"weights": "none", "image_size": 64}).training,
            Settings(training={"weights": "none", "image_size": 64}).weights_dir,
            "inception_v3",
        )


@pytest.mark.slow
def test_weights_are_read_from_the_folder_and_named_with_their_hash(mobilenet):
    folder, weights = mobilenet
    backbone = architectures.build_backbone(local(folder).training, local(folder).weights_dir, "mobilenet_v2")
    for got, wanted in zip(backbone.network.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert backbone.weights == "mobilenet_v2_notop.weights.h5"
    assert backbone.weights_sha256 == hashlib.sha256((folder / backbone.weights).read_bytes()).hexdigest()


def test_a_folder_without_the_weights_is_refused_by_the_name_of_the_file(tmp_path):
    (tmp_path / "resnet101_v2_notop.weights.h5").write_bytes(b"")
    with pytest.raises(Refused, match=r"must hold mobilenet_v2_notop\.weights\.h5.*there: \['resnet101_v2_notop"):
        architectures.build_backbone(local(tmp_path).training, local(tmp_path).weights_dir, "mobilenet_v2")


def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path):
    (tmp_path / "mobilenet_v2_notop.weights.h5").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(Refused, match=r"mobilenet_v2_notop\.weights\.h5 does not hold weights of mobilenet_v2"):
        architectures.build_backbone(local(tmp_path).training, local(tmp_path).weights_dir, "mobilenet_v2")


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_refused(mobilenet, tmp_path):
    network = architectures.build_backbone(
        local(mobilenet[0]).training, local(mobilenet[0]).weights_dir, "mobilenet_v2"
    ).network
    first = network.get_layer("Conv1").kernel
    first.assign(np.where(np.arange(first.shape[-1]) == 3, np.nan, first))
    network.save_weights(tmp_path / "mobilenet_v2_notop.weights.h5")
    with pytest.raises(Refused, match=r"mobilenet_v2_notop\.weights\.h5 must be numbers\. Received: NaN"):
        architectures.build_backbone(local(tmp_path).training, local(tmp_path).weights_dir, "mobilenet_v2")


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_network_are_refused(tmp_path):
    other = architectures.build_light((SMALL, SMALL, 3))
    other.save_weights(tmp_path / "mobilenet_v2_notop.weights.h5")
    with pytest.raises(Refused, match="does not hold weights of mobilenet_v2"):
        architectures.build_backbone(local(tmp_path).training, local(tmp_path).weights_dir, "mobilenet_v2")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Keras with an empty cache, on a machine that reaches no server."""

    def unreachable(url, *_):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", unreachable)


@pytest.mark.filterwarnings("ignore:`input_shape` is undefined")
def test_a_failed_download_names_both_ways_out_and_trains_nothing_at_random(no_network):
    with pytest.raises(ConnectionError) as error:
        architectures.build_backbone(
            Settings(training={"image_size": SMALL}).training,
            Settings(training={"image_size": SMALL}).weights_dir,
            "mobilenet_v2",
        )
    assert "Network is unreachable" in str(error.value)
    assert "storage.googleapis.com" in str(error.value)
    assert "CXR_WEIGHTS_DIR to a folder that holds mobilenet_v2_notop.weights.h5" in str(error.value)
    assert 'CXR_TRAINING__WEIGHTS="none"' in str(error.value)


@pytest.mark.slow
def test_a_download_that_brings_something_else_is_a_failed_download(no_network, monkeypatch):
    def portal(url, target, *_):
        Path(target).write_text("<html>Please log in</html>")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", portal)
    with pytest.raises(ConnectionError, match="could not download the ImageNet weights of inception_v3"):
        architectures.build_backbone(
            Settings(training={"image_size": 96}).training,
            Settings(training={"image_size": 96}).weights_dir,
            "inception_v3",
        )


def test_images_too_small_are_refused_before_anything_is_downloaded(no_network):
    with pytest.raises(Refused, match="inception_v3 cannot take images of 64 pixels"):
        architectures.build_backbone(
            Settings(training={"image_size": 64}).training,
            Settings(training={"image_size": 64}).weights_dir,
            "inception_v3",
        )


def test_a_network_from_scratch_says_so_and_downloads_nothing(no_network):
    for settings, name in (
        (Settings(training={"weights": "none", "image_size": SMALL}), "mobilenet_v2"),
        (Settings(), "light"),
    ):
        backbone = architectures.build_backbone(settings.training, settings.weights_dir, name)
        assert (backbone.weights, backbone.weights_sha256) == ("from scratch", "")


def test_grey_bytes_go_in_and_probabilities_come_out():
    classifier = architectures.build_classifier(
        architectures.build_backbone(
            Settings(training={"image_size": SMALL}).training,
            Settings(training={"image_size": SMALL}).weights_dir,
            "light",
        ),
        3,
        0.5,
    )
    assert classifier.input.dtype == "uint8"
    output = classifier.predict(images(5), verbose=0)
    assert output.shape == (5, 3) and (output > 0).all()
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(output, axis=0).max() > 1e-4, "other images, other probabilities"


def test_the_classifier_scales_bytes_to_minus_one_to_one_in_three_equal_channels():
    classifier = architectures.build_classifier(mirror(), 3, 0.5)
    features = keras.Model(classifier.input, classifier.get_layer("features").output)
    levels = np.array([0, 51, 255], np.uint8)
    seen = features.predict(np.broadcast_to(levels[:, None, None, None], (3, SMALL, SMALL, 1)), verbose=0)
    np.testing.assert_allclose(seen, np.repeat([[-1.0], [-0.6], [1.0]], 3, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", [n for n, entry in architectures.ARCHITECTURES.items() if entry.pretrained])
def test_each_pretrained_network_gets_pixels_as_its_own_preprocessing_makes_them(name):
    module = {
        "inception_v3": keras.applications.inception_v3, "resnet101_v2": keras.applications.resnet_v2,
        "mobilenet_v2": keras.applications.mobilenet_v2, "densenet121": keras.applications.densenet,
    }[name]  # fmt: skip
    entry = architectures.ARCHITECTURES[name]
    backbone = mirror()._replace(scale=entry.scale, offset=entry.offset)
    classifier = architectures.build_classifier(backbone, 3, 0.5)
    x = images(3)
    seen = keras.Model(classifier.input, classifier.get_layer("scale").output).predict(x, verbose=0)
    np.testing.assert_allclose(seen, module.preprocess_input(np.repeat(x, 3, axis=-1).astype("float32")), atol=1e-5)


def test_a_saved_classifier_takes_colour_too_and_sees_its_luma(tmp_path):
    classifier = architectures.build_classifier(mirror(), 3, 0.5)
    colour = np.random.default_rng(2).integers(0, 256, (4, SMALL, SMALL, 3), dtype=np.uint8)
    luma = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in colour])[..., None]
    path = tmp_path / "model.keras"
    classifier.save(path)
    loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    seen = keras.Model(loaded.input, loaded.get_layer("scale").output)
    # Half a grey level: that Pillow rounds.
    np.testing.assert_allclose(seen.predict(colour, verbose=0), seen.predict(luma, verbose=0), atol=0.51 / 127.5)
    grey = np.repeat(luma, 3, axis=-1)
    np.testing.assert_allclose(loaded.predict(grey, verbose=0), loaded.predict(luma, verbose=0), atol=1e-5)


def test_nothing_is_dropped_when_predicting_and_something_when_training():
    classifier = architectures.build_classifier(mirror(), 3, 0.5)
    x = images(40)
    np.testing.assert_array_equal(classifier(x, training=False), classifier(x, training=False))
    assert (np.array(classifier(x, training=True)) != np.array(classifier(x, training=True))).any()


def test_fine_tuning_leaves_the_batch_normalisation_of_a_pretrained_network_as_it_was(mobilenet):
    backbone = architectures.build_backbone(
        local(mobilenet[0]).training, local(mobilenet[0]).weights_dir, "mobilenet_v2"
    )
    classifier = architectures.build_classifier(backbone, 3, 0.5)
    layers = normalisations(backbone.network)
    before, first = values(layers), backbone.network.get_layer("Conv1").get_weights()[0].copy()
    train_a_step(classifier)
    for old, new in zip(before, values(layers), strict=True):
        np.testing.assert_array_equal(new, old)
    assert len(layers) == 52
    assert (backbone.network.get_layer("Conv1").get_weights()[0] != first).any(), "the convolutions do learn"


@pytest.mark.slow
def test_normalisation_that_is_not_frozen_learns_but_in_the_frozen_stage(mobilenet):
    backbone = architectures.build_backbone(
        local(mobilenet[0]).training, local(mobilenet[0]).weights_dir, "mobilenet_v2"
    )
    classifier = architectures.build_classifier(backbone, 3, 0.5, freeze_normalisation=False)
    before = backbone.network.get_weights()
    with architectures.frozen(backbone):
        train_a_step(classifier)
    for old, new in zip(before, backbone.network.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    layers = normalisations(backbone.network)
    means = [layer.moving_mean.numpy().copy() for layer in layers]
    train_a_step(classifier)
    assert all((layer.moving_mean.numpy() != old).any() for layer, old in zip(layers, means, strict=True))


def test_a_pretrained_network_normalises_by_its_own_statistics_even_while_training(mobilenet):
    backbone = architectures.build_backbone(
        local(mobilenet[0]).training, local(mobilenet[0]).weights_dir, "mobilenet_v2"
    )
    classifier = architectures.build_classifier(backbone, 3, dropout=0.0)
    x = images(2)
    np.testing.assert_allclose(classifier(x, training=True), classifier(x, training=False), atol=1e-6)


def test_the_batch_normalisation_of_a_network_from_scratch_learns():
    backbone = architectures.build_backbone(
        Settings(training={"weights": "none", "image_size": SMALL}).training,
        Settings(training={"weights": "none", "image_size": SMALL}).weights_dir,
        "mobilenet_v2",
    )
    classifier = architectures.build_classifier(backbone, 3, 0.5)
    layers = normalisations(backbone.network)
    means = [layer.moving_mean.numpy().copy() for layer in layers]
    gammas = [layer.gamma.numpy().copy() for layer in layers]
    train_a_step(classifier)
    assert all((layer.moving_mean.numpy() != old).any() for layer, old in zip(layers, means, strict=True))
    assert any((layer.gamma.numpy() != old).any() for layer, old in zip(layers, gammas, strict=True))


@pytest.mark.parametrize("name", ["light", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_a_saved_classifier_gives_the_same_probabilities_when_it_is_loaded(tmp_path, mobilenet, name):
    classifier = architectures.build_classifier(
        architectures.build_backbone(local(mobilenet[0]).training, local(mobilenet[0]).weights_dir, name), 3, 0.5
    )
    path = tmp_path / "model.keras"
    classifier.save(path)
    loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(images(4), verbose=0), classifier.predict(images(4), verbose=0))
