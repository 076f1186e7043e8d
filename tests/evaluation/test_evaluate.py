"""Metrics that a hand can check, and the stored model and images that they are taken from."""

import hashlib
import io
import json
import math
from typing import NamedTuple

import keras
import numpy as np
import pytest
import report_samples as samples
from model_samples import CLASSES, overwrite, picture, put_dataset, quick

from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import contact_sheets, evaluate, metrics, stored_evaluations
from cxr_ml.ingest import tables
from cxr_ml.records import Dataset, Evaluation, Model, OperatingPoint, StepProgress
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, corruptions, predictions


def test_metrics_that_are_not_a_number_survive_storage(store):
    y = np.array([0] * 5 + [2] * 5)
    found = metrics.measure(y, y, np.eye(3)[y], CLASSES)
    store.put_if_absent("metrics.json", found.to_bytes())
    read = store.load("metrics.json", type(found))
    assert math.isnan(read.macro_f1) and math.isnan(read.classes["COVID19"].recall)


def by_level(shift: float = 0.0) -> keras.Model:
    """A classifier that tells the sample classes by the mean grey level, moved by `shift` of 255."""
    pixels = keras.Input((32, 32, 3))
    classifier = architectures.build_classifier(
        architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", ""), 3, 0.5
    )
    # The largest of w·x + b over the classes is that whose level is nearest to x, all in [-1, 1].
    levels = np.array([40, 120, 200]) / 127.5 - 1 + 2 * shift
    kernel = np.repeat(levels[None] / 3, 3, axis=0) * 20
    classifier.get_layer("head").set_weights([kernel, -(levels**2) * 10])
    return classifier


def put_model(settings: Settings, dataset: Dataset, name: str, network: keras.Model, tmp_path, classes=CLASSES) -> None:
    path = tmp_path / "made.keras"
    network.save(path)
    artefact = path.read_bytes()
    facts = {
        "model": name, "dataset": dataset.dataset, "dataset_sha256": dataset.manifest_sha256, "classes": classes,
        "artefact_sha256": hashlib.sha256(artefact).hexdigest(), "image_size": 32, "operating_point": None,
        "validation_sha256": "",
    }  # fmt: skip
    record = samples.model().model_copy(update=facts)
    ObjectStore(settings.store).put_if_absent(f"models/{name}/model.keras", artefact)
    ObjectStore(settings.store).put_if_absent(f"models/{name}/model.json", record.to_bytes())


def put_models(settings: Settings, tmp_path) -> tuple[Settings, Dataset]:
    """Settings, dataset 1, and the models `good` (finds every class) and `bad` (takes COVID19 for NORMAL)."""
    s = quick(settings)
    dataset = put_dataset(s)
    put_model(s, dataset, "good", by_level(), tmp_path)
    put_model(s, dataset, "bad", by_level(0.25), tmp_path)
    return s, dataset


@pytest.fixture(scope="module", autouse=True)
def blank_sheets():
    """To draw what `contact_sheets` shows takes half of a small evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contact_sheets, "draw", lambda label, examples, pictures: label.encode())
        yield


@pytest.fixture
def judged(settings, tmp_path):
    return put_models(settings, tmp_path)


class Seen(NamedTuple):
    """The evaluation of `good` beside `bad`."""

    settings: Settings
    dataset: Dataset
    found: Evaluation
    progress: list[StepProgress]


@pytest.fixture(scope="module")
def seen(lasting, blank_sheets, tmp_path_factory):
    """One for all tests that only look at it."""
    s, dataset = put_models(lasting, tmp_path_factory.mktemp("models"))
    progress = []
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "bad", progress.append)
    return Seen(s, dataset, found, progress)


def test_a_candidate_is_measured_on_validation_and_on_test(seen):
    s, dataset, found = seen[:3]
    assert (found.model, found.dataset, found.dataset_sha256) == ("good", 1, dataset.manifest_sha256)
    assert found.validation.confusion == ((4, 0, 0), (0, 4, 0), (0, 0, 4))
    assert found.test.confusion == ((5, 0, 0), (0, 5, 0), (0, 0, 5))
    record = ObjectStore(s.store).load("models/good/model.json", Model)
    assert found.artefact_sha256 == record.artefact_sha256


def test_each_pass_over_the_images_is_told_by_name_and_in_the_end_all_are_done(seen):
    counted = [told for told in seen.progress if told.unit == "images" and told.stage != "inputs"]
    for name, images in (("bad", 12 + 3 * 15), ("good", 12 + 3 * 15 + 8 * 15 + 15)):
        own = [told for told in counted if told.stage.startswith(f"{name}: ")]
        assert {told.total for told in own} == {images} and own[-1].done == images
        assert [told.done for told in own] == sorted(told.done for told in own)
        parts = {told.stage.partition(": ")[2] for told in own}
        assert {"validation images", "test images", "test images, sharpened"} <= parts
        assert ("test images, lungs hidden" in parts, "where it looks on test images" in parts) == (name == "good",) * 2
    assert [told.stage for told in seen.progress if not told.unit] == ["loading bad", "loading good"]


def test_the_champion_is_measured_on_the_same_images_beside_the_candidate(seen):
    found = seen.found
    beside = found.champion
    assert beside.model == "bad" and beside.champion is None
    assert beside.test.confusion == ((5, 0, 0), (5, 0, 0), (0, 5, 0))
    assert beside.dataset_sha256 == found.dataset_sha256 == seen.dataset.manifest_sha256
    for split in ("validation", "test"):
        one, other = getattr(found, split), getattr(beside, split)
        assert [c.support for c in one.classes.values()] == [c.support for c in other.classes.values()]


def test_candidate_and_champion_are_measured_on_the_test_images_in_every_disguise(seen):
    for one in (seen.found, seen.found.champion):
        assert list(one.robustness) == ["shrunk", "sharpened"]
        assert all(np.sum(m.confusion) == np.sum(one.test.confusion) for m in one.robustness.values())


def test_a_model_that_a_disguise_deceives_is_found_out_and_its_figures_as_is_stay(judged, monkeypatch):
    s, _ = judged
    monkeypatch.setattr(corruptions, "FIXED", {"bleached": lambda images: np.full_like(images, 200)})
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)
    assert found.robustness["bleached"].confusion == ((0, 0, 5), (0, 0, 5), (0, 0, 5))
    assert found.test.macro_f1 == 1.0


@pytest.mark.slow
def test_the_champion_is_measured_anew_on_a_new_dataset_not_remembered(judged):
    s, _ = judged
    newer = put_dataset(s, 2, {"train": 2, "validation": 2, "test": 7}, seed=3)
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 2, ["good"], "bad")
    assert found.champion.dataset_sha256 == newer.manifest_sha256
    assert found.champion.test.classes["NORMAL"].support == 7


@pytest.mark.slow
def test_each_candidate_gets_the_champion_beside_it(judged, tmp_path):
    s, dataset = judged
    put_model(s, dataset, "third", by_level(0.01), tmp_path)
    found = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good", "third"], "bad")
    assert [e.model for e in found] == ["good", "third"]
    assert [e.champion.model for e in found] == ["bad", "bad"]


def test_the_evaluation_is_stored_and_read_back_by_dataset_and_champion(judged, seen):
    s, _ = judged
    (alone,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)
    assert alone.champion is None
    # Compared as bytes: the champion's precision of a class that it never predicts is NaN, which equals nothing.
    assert ObjectStore(s.store).load("models/good/evaluation.json", Evaluation).to_bytes() == alone.to_bytes()
    assert stored_evaluations.load(ObjectStore(s.store), 1, "good", None).to_bytes() == alone.to_bytes()
    assert (
        stored_evaluations.load(ObjectStore(seen.settings.store), 1, "good", "bad").to_bytes() == seen.found.to_bytes()
    )
    put_dataset(s, 2, seed=5)
    with pytest.raises(Refused, match="models/good/evaluation-d2-beside-bad"):
        stored_evaluations.load(ObjectStore(s.store), 2, "good", "bad")
    stored = json.loads(ObjectStore(s.store).get("models/good/evaluation.json"))
    assert list(stored["test"]["classes"]) == list(CLASSES)


def test_the_evaluation_holds_the_hashes_of_what_lies_beside_it(seen):
    s, _, found = seen[:3]
    stored = {name: ObjectStore(s.store).get(f"models/good/{name}") for name in found.files}
    assert {"model.json", "predictions-d1.parquet", "explanation-d1.json"} == set(stored)
    assert found.files == {name: hashlib.sha256(data).hexdigest() for name, data in stored.items()}


def test_evaluating_again_gives_the_same_figures_and_stores_nothing(seen):
    s, _, found = seen[:3]
    before = {key: ObjectStore(s.store).get_or_none(key) for key in ObjectStore(s.store).keys("models/")}
    assert sum("evaluation" in key for key in before) == 1
    keras.utils.set_random_seed(5)
    (again,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "bad")
    assert again.to_bytes() == found.to_bytes()
    assert {key: ObjectStore(s.store).get_or_none(key) for key in ObjectStore(s.store).keys("models/")} == before


def test_a_model_file_that_was_changed_is_refused_before_keras_opens_it(judged, monkeypatch):
    s, _ = judged
    overwrite(s, "models/good/model.keras", ObjectStore(s.store).get("models/bad/model.keras"))
    monkeypatch.setattr(keras.saving, "load_model", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(Refused, match=r"models/good/model\.keras is not the file .*Received: [0-9a-f]{64}"):
        evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)


@pytest.mark.parametrize("champion", ["bad", "gone"])
def test_a_champion_that_cannot_be_evaluated_is_reported_and_the_candidate_evaluated(judged, champion):
    s, _ = judged
    overwrite(s, "models/bad/model.keras", b"PK")
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], champion)
    assert found.champion is None and found.difference is None
    assert found.champion_problem.startswith(f"The champion {champion} could not be evaluated: ")
    assert found.test.macro_f1 == 1.0
    assert stored_evaluations.load(ObjectStore(s.store), 1, "good", champion).to_bytes() == found.to_bytes()


@pytest.mark.slow
def test_a_champion_that_is_mended_is_evaluated_after_all(judged):
    s, _ = judged
    whole = ObjectStore(s.store).get("models/bad/model.keras")
    evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)
    overwrite(s, "models/bad/model.keras", b"PK")
    (failed,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "bad")
    assert stored_evaluations.load(ObjectStore(s.store), 1, "good", "bad").to_bytes() == failed.to_bytes()
    overwrite(s, "models/bad/model.keras", whole)
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "bad")
    assert (
        found.champion.model == "bad"
        and stored_evaluations.load(ObjectStore(s.store), 1, "good", "bad").to_bytes() == found.to_bytes()
    )


def test_the_difference_to_the_champion_is_paired(seen):
    difference = seen.found.difference
    assert difference.figures["recall COVID19"] == 1.0 and difference.figures["recall NORMAL"] == 0.0
    assert difference.intervals["recall COVID19"] == (1.0, 1.0)
    assert (difference.only_candidate, difference.only_champion) == (10, 0)
    assert difference.mcnemar == pytest.approx(2 / 2**10)


@pytest.mark.slow
def test_a_model_beside_itself_differs_in_nothing(judged, tmp_path):
    s, dataset = judged
    put_model(s, dataset, "twin", by_level(), tmp_path)
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "twin")
    assert set(found.difference.figures.values()) == {0.0} and found.difference.mcnemar == 1.0
    assert set(found.difference.intervals.values()) == {(0.0, 0.0)}


def test_a_model_that_reads_the_middle_loses_everything_with_the_lungs_hidden(seen):
    found = seen.found
    moved = {m.change: m for m in found.moved}
    # Three quarters each way are black, so the mean level of any class is nearest to the darkest.
    assert moved["lungs hidden"].recalls == {"NORMAL": 1.0, "COVID19": 0.0, "PNEUMONIA": 0.0}
    assert moved["mirrored"].decided_otherwise == 0.0 and moved["mirrored"].balanced_accuracy == 1.0
    assert found.champion.moved == ()


def test_the_operating_point_of_a_model_decides_and_its_figures_without_are_kept(judged, tmp_path):
    s, dataset = judged
    put_model(s, dataset, "careful", by_level(), tmp_path)
    record = ObjectStore(s.store).load("models/careful/model.json", Model)
    point = OperatingPoint(temperature=2.0, offsets={"NORMAL": 0, "COVID19": 50, "PNEUMONIA": 0}, floors={}, images=9)
    changed = record.model_copy(update={"operating_point": point})
    overwrite(s, "models/careful/model.json", changed.to_bytes())
    (found,) = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["careful"], None)
    assert found.test.confusion == ((0, 5, 0), (0, 5, 0), (0, 5, 0))
    assert found.plain.confusion == ((5, 0, 0), (0, 5, 0), (0, 0, 5))
    assert found.test.log_loss > found.plain.log_loss  # twice as doubtful about what it has right


def test_what_a_candidate_says_of_each_image_is_stored(seen):
    s = seen.settings
    table = tables.read_parquet(ObjectStore(s.store), "models/good/predictions-d1.parquet")
    assert table["split"].value_counts().to_dict() == {"test": 15, "validation": 12}
    assert (table["decided"] == table["label"]).all()
    np.testing.assert_allclose(table[[f"p_{c}" for c in CLASSES]].sum(axis=1), 1, rtol=1e-6)
    assert not ObjectStore(s.store).exists("models/bad/predictions-d1.parquet")


def left_by_training(s, name, p):
    """`validation.npy` as the training process leaves it."""
    data = io.BytesIO()
    np.save(data, p)
    record = ObjectStore(s.store).load(f"models/{name}/model.json", Model)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    overwrite(s, f"models/{name}/model.json", record.model_copy(update={"validation_sha256": digest}).to_bytes())
    overwrite(s, f"models/{name}/validation.npy", data.getvalue())


@pytest.mark.slow
def test_the_loaded_model_is_held_against_what_the_training_process_predicted(judged):
    s, _ = judged
    evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)
    table = tables.read_parquet(ObjectStore(s.store), "models/good/predictions-d1.parquet")
    p = table.loc[table["split"] == "validation", [f"p_{c}" for c in CLASSES]].to_numpy(np.float32)
    left_by_training(s, "good", p)
    left_by_training(s, "bad", p)
    good, bad = evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good", "bad"], "gone")
    assert good.reload_difference < 1e-6 and bad.reload_difference > 0.5
    left_by_training(s, "good", p[:-1])
    assert evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], "absent")[0].reload_difference is None
    overwrite(s, "models/good/validation.npy", b"other")
    with pytest.raises(Refused, match=r"models/good/validation\.npy is not the file"):
        evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["good"], None)


def test_a_model_that_would_run_code_when_opened_is_not_run(judged, tmp_path):
    s, dataset = judged
    pixels = keras.Input((32, 32, 1), dtype="uint8")
    mean = keras.layers.Lambda(lambda x: x[:, 0, 0, :])(keras.layers.Rescaling(1.0)(pixels))
    put_model(s, dataset, "hostile", keras.Model(pixels, keras.layers.Dense(3)(mean)), tmp_path)
    with pytest.raises(Refused, match=r"(?s)Keras [\d.]+ does not open it.*ambda"):
        evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["hostile"], None)


def test_a_model_that_is_not_there_is_refused_by_name(seen):
    with pytest.raises(Refused, match=r"models/absent/model\.json"):
        evaluate.evaluate_models(ObjectStore(seen.settings.store), seen.settings, 1, ["absent"], None)


@pytest.mark.parametrize("classes", [("COVID19", "NORMAL", "PNEUMONIA"), (*CLASSES, "TUBERCULOSIS"), CLASSES[:2]])
def test_a_model_of_other_classes_or_another_order_is_refused(seen, classes):
    s = seen.settings
    with pytest.raises(Refused, match="good must know the classes"):
        evaluate.evaluate_models(
            ObjectStore(s.replace(classes=classes).store),
            s.replace(classes=classes),
            1,
            ["good"],
            None,
        )


def test_a_dataset_without_test_images_is_not_evaluated(judged):
    s, _ = judged
    put_dataset(s, 2, {"train": 2, "validation": 2}, seed=1)
    with pytest.raises(Refused, match="at least one image"):
        evaluate.evaluate_models(ObjectStore(s.store), s, 2, ["good"], None)


def test_probabilities_that_are_not_numbers_are_refused(judged, tmp_path):
    s, dataset = judged
    broken = by_level()
    broken.get_layer("head").set_weights([np.full((3, 3), np.nan), np.zeros(3)])
    put_model(s, dataset, "broken", broken, tmp_path)
    with pytest.raises(Refused, match="NaN or infinity"):
        evaluate.evaluate_models(ObjectStore(s.store), s, 1, ["broken"], None)
    assert not ObjectStore(s.store).exists("models/broken/evaluation.json")


def test_an_image_of_the_training_split_has_no_say(seen):
    s, dataset, found = seen[:3]
    manifest = versions.load_manifest(ObjectStore(s.store), dataset)
    assert (manifest["split"] == "train").sum() == 36
    assert np.sum(found.test.confusion) == 15 and np.sum(found.validation.confusion) == 12


def test_predictions_follow_the_picture(seen):
    _, network = predictions.load_model(ObjectStore(seen.settings.store), "good")
    pictures = np.stack([picture(label, 5, side=32)[..., None] for label in CLASSES])
    np.testing.assert_array_equal(predictions.predict_probabilities(network, pictures).argmax(axis=1), [0, 1, 2])
