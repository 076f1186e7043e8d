"""In which numbers a network is trained, and in which the stored one computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_samples import put_dataset, quick

from cxr_ml.evaluation import evaluate
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, distribution, inputs, loop, predictions, train


@pytest.mark.parametrize(
    ("able", "chosen"),
    [
        ([], "float32"),
        ([(6, 1)], "float32"),
        ([(7, 5)], "mixed_float16"),
        ([(8, 0)], "mixed_bfloat16"),
        ([(9, 0), (12, 0)], "mixed_bfloat16"),
        ([(9, 0), (7, 0)], "mixed_float16"),
        ([(9, 0), None], "float32"),
    ],
)
def test_the_least_able_gpu_decides_in_which_numbers_is_trained(monkeypatch, able, chosen):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: able if kind == "GPU" else ["CPU:0"])
    details = lambda gpu: {"compute_capability": gpu} if gpu else {}  # noqa: E731
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details)
    assert distribution.choose_precision() == chosen


def test_the_policy_ends_with_the_block_also_where_it_fails(monkeypatch):
    monkeypatch.setattr(distribution, "choose_precision", lambda: "mixed_bfloat16")
    before = keras.config.dtype_policy().name
    with pytest.raises(ValueError), distribution.mixed_precision():  # noqa: PT011, PT012
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
        raise ValueError
    assert keras.config.dtype_policy().name == before == "float32"


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_light")
def test_a_network_trained_in_mixed_precision_is_stored_as_one_of_float32(settings, tmp_path, monkeypatch):
    policy = "mixed_float16"
    entry = architectures.ARCHITECTURES["light"]
    monkeypatch.setitem(architectures.ARCHITECTURES, "light", entry._replace(pretrained=True))
    s = quick(settings, weights="none")
    dataset = put_dataset(s)
    exact = train.name_model(s, dataset, "light")
    architectures.build_backbone(s.training, s.weights_dir, "light").network.save_weights(
        tmp_path / "light_notop.weights.h5"
    )
    s = s.replace(weights_dir=tmp_path, training={"weights": "imagenet"})  # the head on stored features
    monkeypatch.setattr(distribution, "choose_precision", lambda: policy)
    trained, run = [], loop.train_stage

    def spy(store, settings, model, network, *args):
        trained.append({layer.compute_dtype for layer in network._flatten_layers()})
        return run(store, settings, model, network, *args)

    monkeypatch.setattr(loop, "train_stage", spy)
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    assert trained[1] >= {policy.removeprefix("mixed_"), "float32"}
    assert record.settings["precision"] == policy and record.model != exact
    assert keras.config.dtype_policy().name == "float32"
    _, network = predictions.load_model(ObjectStore(s.store), record.model)
    assert {layer.compute_dtype for layer in network._flatten_layers()} == {"float32"}
    p = network.predict(inputs.load(ObjectStore(s.store), s.cache_dir, dataset, 32)[0], verbose=0)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, [record.model], None)
    assert found.reload_difference < 1e-6
    monkeypatch.setattr(distribution, "choose_precision", lambda: "mixed_bfloat16")
    warm = s.replace(training={"warm_start": True, "head_epochs": 1})
    first = []

    def begin(store, settings, model, network, stage, backbone_sha256, *_):
        first.append(backbone_sha256)
        raise InterruptedError

    monkeypatch.setattr(loop, "train_stage", begin)
    with pytest.raises(InterruptedError):
        train.train_model(ObjectStore(warm.store), warm, 1, "light", False, record.model)
    assert first == [record.artefact_sha256], "it begins with the champion, in other numbers"
