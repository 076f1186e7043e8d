"""Training, for real and small: what is stored, when it is not done again, and what is never stored."""

import hashlib
import io
import os
import re

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from model_samples import CLASSES, overwrite, put_dataset, quick
from settings_samples import changed
from tensorflow.core.util.event_pb2 import Event

from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import evaluate
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.records import Model
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, artifacts, calibration, inputs, loop, ood, predictions, train

pytestmark = pytest.mark.usefixtures("shallow_light")


def history(settings, record: Model) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(ObjectStore(settings.store).get(f"models/{record.model}/history.csv")))


def validation_loss(settings, dataset, classifier: keras.Model) -> float:
    images, manifest = inputs.load(
        ObjectStore(settings.store), settings.cache_dir, dataset, settings.training.image_size
    )
    rows = np.flatnonzero(manifest["split"] == "validation")
    classifier.compile(loss="sparse_categorical_crossentropy")
    return classifier.evaluate(images[rows], inputs.targets(manifest, CLASSES)[rows], verbose=0)


def copy_store(trained, settings) -> None:
    """Copies all that the training of `trained` left into the store of a test that changes it."""
    for key in ObjectStore(trained.settings.store).keys(""):
        ObjectStore(settings.store).put_if_absent(key, ObjectStore(trained.settings.store).get(key))


def no_training(monkeypatch) -> None:
    monkeypatch.setattr(architectures, "build_backbone", lambda *_: pytest.fail("trained again"))


def test_class_weights_are_those_of_the_published_counts():
    y = np.repeat([0, 1, 2], [460, 3875, 1341])
    np.testing.assert_allclose(train.compute_class_weights(y, 3), [4.1130, 0.4883, 1.4109], atol=5e-5)
    assert train.compute_class_weights(y, 3)[y].sum() == pytest.approx(len(y))


def test_a_training_tells_of_every_part_of_it_from_decoding_to_the_last_image(trained):
    images = {"inputs": 63, "operating point": 12, "what training images are like": 48}
    parts = list(dict.fromkeys(told.stage for told in trained.progress))
    assert parts == ["inputs", "head", "fine_tune", "operating point", "what training images are like"]
    last = {told.stage: (told.done, told.total) for told in trained.progress}
    assert last == {part: (n, n) for part, n in (images | {"head": 12, "fine_tune": 2}).items()}


@pytest.mark.parametrize("y", [[0, 0, 2], [0, 1, 1], []])
def test_a_class_without_training_images_is_refused_with_the_counts(y):
    with pytest.raises(Refused, match=r"Each class needs images.*Received counts: \["):
        train.compute_class_weights(np.array(y, int), 3)


def test_a_training_stores_model_history_and_record(trained):
    s, dataset, record = trained[:3]
    assert ObjectStore(s.store).load(f"models/{record.model}/model.json", Model) == record
    assert record.model.startswith("light-d1-")
    assert (record.architecture, record.dataset, record.dataset_sha256) == ("light", 1, dataset.manifest_sha256)
    assert (record.classes, record.image_size) == (CLASSES, 32)
    assert (record.weights, record.weights_sha256) == ("from scratch", "")
    assert record.epochs == {"head": 12, "fine_tune": 2}
    assert set(record.seconds) == {"inputs", "head", "fine_tune", "likeness"}
    assert set(record.images_per_second) == {"head", "fine_tune"} and min(record.images_per_second.values()) > 0
    assert record.packages["keras"] == keras.__version__ and record.packages["tensorflow"] == tf.__version__
    assert record.packages["numpy"] == np.__version__ and record.settings["seed"] == 0
    assert record.hardware["cores"] == len(os.sched_getaffinity(0)) and record.hardware["cpu"]
    assert record.settings["batch_size"] == 8 and record.settings["fine_tune_learning_rate"] == 1e-4
    artefact = ObjectStore(s.store).get(f"models/{record.model}/model.keras")
    assert hashlib.sha256(artefact).hexdigest() == record.artefact_sha256
    curve = ObjectStore(s.store).get(f"models/{record.model}/history.csv")
    assert hashlib.sha256(curve).hexdigest() == record.history_sha256
    table = history(s, record)
    assert list(table["stage"]) == ["head"] * 12 + ["fine_tune"] * 2 and list(table["epoch"]) == list(range(1, 15))
    assert list(table.columns[2:6]) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert np.isfinite(table.drop(columns="stage")).all(axis=None)
    assert list(table["learning_rate"]) == pytest.approx([0.03] * 12 + [1e-4, 5e-5])
    assert (table["images_per_second"] > 0).all() and table["val_f1"].between(0, 1).all()
    assert not list(ObjectStore(s.store).keys(f"models/{record.model}/checkpoints/"))
    _, network = predictions.load_model(ObjectStore(s.store), record.model)
    assert network.output_shape == (None, 3)


def test_a_training_leaves_what_its_images_are_like_with_the_hash_in_the_record(store, settings, trained):
    record, key = trained.record, f"models/{trained.record.model}/likeness.npz"
    copy_store(trained, settings)
    data = store.get(key)
    assert record.likeness_sha256 == hashlib.sha256(data).hexdigest()
    known = ood.load(store, record)
    for space, length in ((known.features, 32), (known.shapes, ood.THUMBNAIL_SIDE**2)):
        assert space.mean.shape == (length,) and space.principal.shape[1] == length and space.limit > 0
        np.testing.assert_allclose(space.principal @ space.principal.T, np.eye(len(space.principal)), atol=1e-5)
    overwrite(settings, key, data[:-1] + b"!")
    with pytest.raises(Refused, match=r"likeness\.npz is not the file that model\.json records"):
        ood.load(store, record)


def scalars(data: bytes, tmp_path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value, of a TensorBoard event file."""
    (tmp_path / "events").write_bytes(data)
    found = {}
    for raw in tf.data.TFRecordDataset(str(tmp_path / "events")):
        event = Event.FromString(raw.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_tensorboard_finds_every_epoch_beside_the_model(trained, tmp_path):
    s, _, record = trained[:3]
    table = history(s, record)
    folder = f"models/{record.model}/tensorboard/"
    for run, prefix in (("train", ""), ("validation", "val_")):
        (key,) = ObjectStore(s.store).keys(folder + run)
        assert "tfevents" in key
        found = scalars(ObjectStore(s.store).get(key), tmp_path)
        for name in ("loss", "accuracy", "f1"):
            series = [found[f"epoch_{name}", step] for step in range(1, 15)]
            assert series == pytest.approx(list(table[prefix + name]), rel=1e-6)
    events = scalars(ObjectStore(s.store).get(folder + "train/events.out.tfevents.train"), tmp_path)
    rates = [value for (tag, _), value in events.items() if tag == "learning_rate"]
    assert rates == pytest.approx(list(table["learning_rate"]))


def test_each_epoch_is_a_line_of_the_log(trained):
    lines = [line.partition(", loss")[0] for line in trained.printed.splitlines() if ": epoch " in line]
    head = [f"head: epoch {n} of 12" for n in range(1, 13)]
    assert lines == [*head, "fine_tune: epoch 1 of 2", "fine_tune: epoch 2 of 2"]


@pytest.mark.usefixtures("eager")
def test_a_warm_start_begins_with_the_champion_of_the_same_architecture(settings, trained, capsys):
    champion = trained.record
    copy_store(trained, settings)
    tiny = {"head_epochs": 1, "head_learning_rate": 1e-9, "fine_tune_epochs": 0, "seed": 5}
    warm = quick(settings, **tiny, warm_start=True)
    record = train.train_model(ObjectStore(warm.store), warm, 1, "light", verbose=0, champion=champion.model)
    assert (record.weights, record.weights_sha256) == (f"champion {champion.model}", champion.artefact_sha256)
    assert record.settings["warm_start"] is True
    weights = [
        predictions.load_model(ObjectStore(warm.store), name)[1].get_weights()
        for name in (record.model, champion.model)
    ]
    for now, then in zip(*weights, strict=True):
        np.testing.assert_allclose(now, then, atol=1e-6)
    assert capsys.readouterr().out == "", "not asked to, it prints nothing"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "there is no champion"),
        ({"architecture": "resnet101_v2"}, "of the architecture resnet101_v2"),
        ({"classes": CLASSES[::-1]}, "knows the classes PNEUMONIA, COVID19, NORMAL"),
        ({}, ""),
    ],
    ids=["no champion", "another network", "other classes", "not asked for"],
)
def test_no_warm_start_begins_as_the_settings_say_and_says_why(
    store, settings, trained, monkeypatch, capsys, changes, why
):
    copy_store(trained, settings)
    champion = trained.record.model_copy(update=(changes or {}) | {"model": "other"})
    if changes is not None:
        store.put_if_absent("models/other/model.json", champion.to_bytes())
    begun = []

    def begin(store, settings, model, network, stage, sha256, *_):
        begun.append((model, sha256))
        raise InterruptedError

    monkeypatch.setattr(loop, "train_stage", begin)
    monkeypatch.setattr(predictions, "load_model", lambda *_: pytest.fail("began with the champion"))
    s = quick(settings, warm_start=bool(why))
    with pytest.raises(InterruptedError):
        train.train_model(ObjectStore(s.store), s, 1, "light", champion=None if changes is None else "other")
    assert begun == [(train.name_model(s, trained.dataset, "light"), "")]
    said = capsys.readouterr().out
    assert re.search(f"light: no warm start, .*{why}", said) if why else said == ""


def test_a_network_learns_what_can_be_learned_and_says_so_on_images_it_never_saw(trained):
    s, _, record = trained[:3]
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, [record.model], None)
    assert found.test.accuracy > 0.9, "classes of plain grey levels"
    assert found.reload_difference < 1e-6, "the stored file predicts what this process did"
    assert record.operating_point.images == 12 and set(record.operating_point.floors) == set(s.classes)
    table = history(s, record)
    assert table["loss"].iloc[-1] < 0.6 * table["loss"].iloc[0]


def test_the_same_inputs_are_not_trained_twice(trained, monkeypatch):
    s, _, record = trained[:3]
    before = {key: ObjectStore(s.store).get_or_none(key) for key in ObjectStore(s.store).keys("models/")}
    no_training(monkeypatch)
    assert train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0) == record
    assert {key: ObjectStore(s.store).get_or_none(key) for key in ObjectStore(s.store).keys("models/")} == before


@pytest.mark.slow
def test_the_same_inputs_give_the_same_network(settings, trained):
    again = trained.settings.replace(cache_dir=settings.cache_dir, store={"bucket": settings.store.bucket})
    put_dataset(again)
    record = train.train_model(ObjectStore(again.store), again, 1, "light", verbose=0)
    assert record.model == trained.record.model
    one, other = (
        predictions.load_model(ObjectStore(s.store), record.model)[1].get_weights() for s in (trained.settings, again)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 48}, {"batch_size": 4}, {"head_epochs": 3}, {"fine_tune_epochs": 2}, {"dropout": 0.3},
        {"head_learning_rate": 1e-2}, {"fine_tune_learning_rate": 1e-6}, {"patience": 2}, {"head_views": 2},
        {"freeze_normalisation": False},
        {"seed": 1}, {"weights": "imagenet"}, {"classes": CLASSES[::-1]},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whatever_changes_the_training_changes_the_name(settings, change):
    s = quick(settings)
    dataset = put_dataset(s, counts={"train": 1})
    name = train.name_model(s, dataset, "light")
    assert train.name_model(s, dataset, "light") == name
    assert train.name_model(changed(s, **change), dataset, "light") != name


def test_other_weights_in_the_same_file_change_the_name_and_the_same_ones_elsewhere_do_not(settings, tmp_path):
    s = quick(settings, weights="imagenet")
    dataset = put_dataset(s, counts={"train": 1})
    names = []
    for folder, content in (("one", b"1"), ("other", b"1"), ("one", b"22")):
        file = tmp_path / folder / "mobilenet_v2_notop.weights.h5"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        own = s.replace(weights_dir=file.parent)
        names.append(train.name_model(own, dataset, "mobilenet_v2"))
    assert names[0] == names[1] != names[2]


def test_another_dataset_changes_the_name_and_where_the_store_is_does_not(settings):
    s = quick(settings)
    dataset = put_dataset(s, counts={"train": 1})
    name = train.name_model(s, dataset, "light")
    other = dataset.model_copy(update={"manifest_sha256": "f" * 64})
    assert train.name_model(s, other, "light") != name
    elsewhere = {"bucket": "x", "prefix": "y/", "cache_dir": "z", "macro_f1_floor": 0.1, "recipients": ()}
    assert train.name_model(changed(s, **elsewhere), dataset, "light") == name


@pytest.mark.usefixtures("eager")
def test_what_a_run_that_died_left_behind_is_trained_over(settings):
    s = quick(settings, head_epochs=1, fine_tune_epochs=0)
    dataset = put_dataset(s)
    name = train.name_model(s, dataset, "light")
    ObjectStore(s.store).put_if_absent(f"models/{name}/model.keras", b"half a file")
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    assert record.model == name
    assert predictions.load_model(ObjectStore(s.store), name)[0] == record
    assert record.epochs == {"head": 1} and set(history(s, record)["stage"]) == {"head"}, "no fine-tuning was asked for"


@pytest.mark.parametrize("moment", [(inputs, "load"), (calibration, "fit"), (ood, "fit"), (artifacts, "_store_files")])
@pytest.mark.usefixtures("eager")
@pytest.mark.slow
def test_a_run_that_another_of_the_same_training_overtakes_leaves_the_others_model_and_returns_it(
    settings, monkeypatch, moment
):
    s = quick(settings, head_epochs=1, fine_tune_epochs=0)
    dataset = put_dataset(s)
    owner, step = moment
    real, other = getattr(owner, step), []

    def other_run_comes_first(*args):
        monkeypatch.setattr(owner, step, real)
        other.append(train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0))
        return real(*args)

    monkeypatch.setattr(owner, step, other_run_comes_first)
    assert train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0) == other[0]
    record, network = predictions.load_model(ObjectStore(s.store), other[0].model)
    assert record == other[0]
    assert ood.load(ObjectStore(s.store), record) is not None
    said = ObjectStore(s.store).get(f"models/{record.model}/validation.npy")
    assert hashlib.sha256(said).hexdigest() == record.validation_sha256
    images, manifest = inputs.load(ObjectStore(s.store), s.cache_dir, dataset, s.training.image_size)
    p = predictions.predict_probabilities(network, images, np.flatnonzero(manifest["split"] == "validation"))
    np.testing.assert_allclose(p, np.load(io.BytesIO(said)), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("eager")
def test_a_learning_rate_beyond_all_measure_is_refused(settings):
    s = quick(settings, head_epochs=3, head_learning_rate=1e30, fine_tune_epochs=0)
    put_dataset(s)
    with pytest.raises(Refused, match=r"(?s)exploded in epoch 1 of head.*a smaller head_learning_rate"):
        train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    assert list(ObjectStore(s.store).keys("models/")) == []


@pytest.mark.usefixtures("eager")
def test_a_loss_that_ends_as_no_number_in_the_second_stage_is_refused_too(settings, monkeypatch):
    s = quick(settings, head_epochs=1)
    put_dataset(s)
    run = loop.train_stage

    def explode(store, settings, model, network, stage, *args):
        if stage.name == "fine_tune":
            network.get_layer("head").kernel.assign(np.full(network.get_layer("head").kernel.shape, np.inf))
        return run(store, settings, model, network, stage, *args)

    monkeypatch.setattr(loop, "train_stage", explode)
    with pytest.raises(Refused, match=r"(?s)epoch 1 of fine_tune.*below 109\.9\. .*step 1 is nan.*No model is written"):
        train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    assert {key.split("/")[2] for key in ObjectStore(s.store).keys("models/")} == {"checkpoints"}, (
        "what went well is kept"
    )


@pytest.mark.slow
def test_a_stage_ends_when_validation_no_longer_improves_and_keeps_the_best_epoch(settings):
    s = quick(settings, head_epochs=40, fine_tune_epochs=0, head_learning_rate=0.01, patience=2)
    dataset = put_dataset(s)
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    table = history(s, record)
    best = table["val_calibrated"].idxmin()
    assert 3 <= len(table) < 40 and list(table["epoch"][table["kept"]]) == [best + 1]
    assert best == len(table) - 3, "two epochs without a better one end it"
    classifier = predictions.load_model(ObjectStore(s.store), record.model)[1]
    assert validation_loss(s, dataset, classifier) == pytest.approx(table["val_loss"][best], abs=1e-4)


@pytest.mark.slow
def test_a_fine_tuning_that_makes_it_worse_is_undone(settings):
    s = quick(settings, head_epochs=12, head_learning_rate=3e-3, fine_tune_epochs=2, fine_tune_learning_rate=0.3)
    dataset = put_dataset(s)
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    table = history(s, record)
    kept = table[table["kept"]].set_index("stage")
    assert kept["epoch"]["fine_tune"] == len(table), "its rate falls to the end"
    assert kept["val_calibrated"]["fine_tune"] > kept["val_calibrated"]["head"], "or this test shows nothing"
    classifier = predictions.load_model(ObjectStore(s.store), record.model)[1]
    assert validation_loss(s, dataset, classifier) == pytest.approx(kept["val_loss"]["head"], abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "labels", "said"),
    [
        ({"train": 3, "test": 1}, CLASSES, "no NORMAL in validation, no COVID19 in validation, no PNEUMONIA in val"),
        ({"train": 3, "validation": 1}, CLASSES[:2], "no PNEUMONIA in train, no PNEUMONIA in validation; there are"),
        ({"train": 1}, CLASSES[:1], "no COVID19 in train, no PNEUMONIA in train, no NORMAL in validation"),
        ({}, CLASSES, "no NORMAL in train"),
    ],
    ids=["no validation", "no such class", "one image", "no image"],
)
def test_images_that_cannot_teach_or_judge_every_class_are_refused_before_anything_is_decoded(
    settings, monkeypatch, counts, labels, said
):
    s = quick(settings)
    put_dataset(s, counts=counts, labels=labels)
    monkeypatch.setattr(inputs, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Refused, match=f"Received: .*{said}.*Put more labelled images into the inbox"):
        train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    assert list(ObjectStore(s.store).keys("models/")) == []


def test_a_label_that_is_no_class_is_refused(settings):
    s = quick(settings, classes=CLASSES[:2])
    put_dataset(s, counts={"train": 1, "validation": 1})
    with pytest.raises(
        Refused, match=r"must be one of the classes NORMAL, COVID19\. Received: PNEUMONIA\. Set CXR_CLA"
    ):
        train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)


def refuses_before_anything_is_decoded(settings, architecture, monkeypatch, said):
    put_dataset(settings, counts={"train": 1, "validation": 1})
    monkeypatch.setattr(inputs, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Refused, match=said):
        train.train_model(ObjectStore(settings.store), settings, 1, architecture, verbose=0)
    assert list(ObjectStore(settings.store).keys("models/")) == []


def test_an_image_size_that_the_network_cannot_take_is_refused_before_anything_is_decoded(settings, monkeypatch):
    s = quick(settings, image_size=64)
    said = "inception_v3 cannot take images of 64 pixels"
    refuses_before_anything_is_decoded(s, "inception_v3", monkeypatch, said)


@pytest.mark.slow
def test_weights_that_do_not_fit_the_network_are_refused_before_anything_is_decoded(settings, tmp_path, monkeypatch):
    keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None).save_weights(
        tmp_path / "mobilenet_v2_notop.weights.h5"
    )
    s = quick(settings, weights_dir=tmp_path, image_size=96, weights="imagenet")
    refuses_before_anything_is_decoded(s, "mobilenet_v2", monkeypatch, "does not hold weights of mobilenet_v2")


def test_an_unknown_architecture_is_refused_and_nothing_is_stored(settings):
    s = quick(settings)
    put_dataset(s, counts={"train": 2, "validation": 1})
    with pytest.raises(Refused, match="Received: 'vgg99'"):
        train.train_model(ObjectStore(s.store), s, 1, "vgg99", verbose=0)
    assert list(ObjectStore(s.store).keys("models/")) == []


def test_a_stored_model_whose_file_was_changed_is_refused_when_it_is_loaded(store, settings, trained):
    record, key = trained.record, f"models/{trained.record.model}/model.keras"
    copy_store(trained, settings)
    artefact = bytearray(store.get(key))
    artefact[len(artefact) // 2] ^= 1
    overwrite(settings, key, bytes(artefact))
    with pytest.raises(Refused, match=record.artefact_sha256):
        predictions.load_model(store, record.model)


def test_the_rare_class_weighs_more_in_every_batch(settings, monkeypatch):
    s = quick(settings, head_epochs=1, fine_tune_epochs=0, batch_size=100)
    put_dataset(s, 1, {"train": 2, "validation": 1})
    plenty = put_dataset(s, 2, {"train": 6}, labels=CLASSES[:1], seed=1)
    merged = merge(s, plenty)
    first = []

    def look(store, settings, model, network, stage, sha256, data, *_):
        first.extend(data()[0][0])
        raise InterruptedError

    monkeypatch.setattr(loop, "train_stage", look)
    with pytest.raises(InterruptedError):
        train.train_model(ObjectStore(s.store), s, merged, "light", verbose=0)
    _, y, weights = first
    assert sorted(y) == [0] * 8 + [1, 1, 2, 2]
    np.testing.assert_allclose(weights, np.array([12 / (3 * 8), 12 / (3 * 2), 12 / (3 * 2)])[y])


def merge(settings, other) -> int:
    """Writes dataset 3: the rows of datasets 1 and 2."""
    tables = [
        versions.load_manifest(ObjectStore(settings.store), versions.load_dataset(ObjectStore(settings.store), 1)),
        versions.load_manifest(ObjectStore(settings.store), other),
    ]
    data = to_parquet(pd.concat(tables).sort_values("sha256", ignore_index=True))
    record = other.model_copy(update={"dataset": 3, "manifest_sha256": hashlib.sha256(data).hexdigest()})
    ObjectStore(settings.store).put_if_absent("datasets/3/manifest.parquet", data)
    ObjectStore(settings.store).put_if_absent("datasets/3/dataset.json", record.to_bytes())
    return 3


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, shallow_light):
    """A folder with a weights file of the light network for 32 pixels, and the weights in it."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(4)
    network = architectures.build_light((32, 32, 3))
    network.layers[2].momentum = 0.0  # one look at some noise gives statistics that signals pass
    network(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), training=True)
    network.save_weights(folder / "light_notop.weights.h5")
    with pytest.MonkeyPatch.context() as patch:
        entry = architectures.ARCHITECTURES["light"]._replace(pretrained=True)
        patch.setitem(architectures.ARCHITECTURES, "light", entry)
        yield folder, network.get_weights()


def transfer(settings, folder, **changes):
    return quick(settings, **{"weights": "imagenet", "weights_dir": folder, "head_views": 2} | changes)


def inner(classifier: keras.Model) -> keras.Model:
    (network,) = [layer for layer in classifier.layers if isinstance(layer, keras.Model)]
    return network


@pytest.mark.slow
def test_a_pretrained_network_is_fine_tuned_but_for_its_batch_normalisation(settings, pretrained):
    folder, first = pretrained
    # A head that has hardly learned leaves the second stage something to better.
    s = transfer(settings, folder, head_epochs=1, head_learning_rate=1e-6, fine_tune_epochs=3)
    put_dataset(s, counts={"train": 5, "validation": 2, "test": 2})
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    file = folder / "light_notop.weights.h5"
    assert record.weights == file.name
    assert record.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record.epochs == {"head": 1, "fine_tune": 3}
    network = inner(predictions.load_model(ObjectStore(s.store), record.model)[1])
    for variable, now, then in zip(network.weights, network.get_weights(), first, strict=True):
        if "batch_normalization" in variable.path:
            np.testing.assert_array_equal(now, then)
        else:
            assert (now != then).any(), variable.path


@pytest.mark.slow
def test_a_head_alone_leaves_the_pretrained_network_as_it_was(settings, pretrained):
    folder, first = pretrained
    s = transfer(settings, folder, head_epochs=12, fine_tune_epochs=0, dropout=0.0, head_learning_rate=0.03)
    dataset = put_dataset(s, counts={"train": 5, "validation": 2, "test": 2})
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=0)
    classifier = predictions.load_model(ObjectStore(s.store), record.model)[1]
    for now, then in zip(inner(classifier).get_weights(), first, strict=True):
        np.testing.assert_array_equal(now, then)
    table = history(s, record)
    assert table["loss"].iloc[-1] < 0.8 * table["loss"].iloc[0], "the head learns"
    # What the history says of the head is what the whole classifier does.
    kept = table["val_loss"][table["val_calibrated"].idxmin()]
    assert validation_loss(s, dataset, classifier) == pytest.approx(kept, abs=1e-3)


def test_without_stored_views_each_epoch_shows_the_frozen_backbone_new_ones(settings, pretrained, monkeypatch):
    folder, first = pretrained
    s = transfer(settings, folder, head_epochs=2, fine_tune_epochs=0, head_views=0, freeze_normalisation=False)
    put_dataset(s, counts={"train": 3, "validation": 1, "test": 1})
    shown, real = [], inputs.draw_views

    def spy(*given):
        shown.append(real(*given))
        return shown[-1]

    monkeypatch.setattr(inputs, "draw_views", spy)
    record = train.train_model(ObjectStore(s.store), s, 1, "light", verbose=False)
    views = [view.tobytes() for batch in shown for view in batch]
    assert len(views) >= 2 * 9, "Keras draws a batch or two ahead"
    assert len(set(views)) == len(views)
    assert not list(ObjectStore(s.store).keys("features/"))
    for now, then in zip(
        inner(predictions.load_model(ObjectStore(s.store), record.model)[1]).get_weights(), first, strict=True
    ):
        np.testing.assert_array_equal(now, then)


def test_pretrained_weights_that_are_missing_stop_the_training(settings, tmp_path):
    s = quick(settings, weights="imagenet", weights_dir=tmp_path, image_size=96)
    put_dataset(s, counts={"train": 1, "validation": 1})
    with pytest.raises(Refused, match=r"mobilenet_v2_notop\.weights\.h5"):
        train.train_model(ObjectStore(s.store), s, 1, "mobilenet_v2", verbose=0)
    assert list(ObjectStore(s.store).keys("models/")) == []
