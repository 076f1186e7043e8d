"""Predictions for images: by the champion or a named model, each on its own, with every check that ingest makes."""

import hashlib
import io
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pydicom.data
import pytest
import report_samples as samples
from decision_samples import decision
from PIL import Image

import cxr_ml
from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import ingest_drop, tables
from cxr_ml.records import OperatingPoint
from cxr_ml.registry import promotion
from cxr_ml.serving import predict as stage
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, ood
from cxr_ml.validation import judge_batch

SIZE = 32
LENGTHS = (3, ood.THUMBNAIL_SIDE**2)  # of the vectors that a detector looks at: features, thumbnail


def put_model(settings, name: str, biases: tuple[float, float, float], folder, point=None) -> str:
    """A stored classifier whose probabilities are softmax(biases), whatever the picture."""
    pixels = keras.Input((SIZE, SIZE, 3))
    same = architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", "")
    classifier = architectures.build_classifier(same, 3, 0.5)
    classifier.get_layer("head").set_weights([np.zeros((3, 3)), np.array(biases)])
    return put(settings, name, classifier, folder, point=point)


def all_alike() -> bytes:
    """What `ood` stores of a model to which no picture is unlike its training images."""
    subspaces = [ood.Subspace(np.zeros(n, np.float32), np.zeros((1, n), np.float32), math.inf) for n in LENGTHS]
    return ood.to_bytes(ood.Detector(*subspaces))


def put(settings, name, classifier, folder, known: bytes | None = None, point: OperatingPoint | None = None) -> str:
    classifier.save(folder / "model.keras")
    artefact = (folder / "model.keras").read_bytes()
    known = all_alike() if known is None else known
    facts = {"model": name, "artefact_sha256": hashlib.sha256(artefact).hexdigest(), "image_size": SIZE}
    facts |= {"operating_point": point, "likeness_sha256": hashlib.sha256(known).hexdigest()}
    store = ObjectStore(settings.store)
    store.put_if_absent(layout.ood_detector(name), known)
    store.put_if_absent(f"models/{name}/model.keras", artefact)
    store.put_if_absent(f"models/{name}/model.json", samples.model().model_copy(update=facts).to_bytes())
    return name


def crown(settings, name: str) -> None:
    promotion.apply_decision(ObjectStore(settings.store), decision(settings, "run-1", name), "ann")


def film(path, size=(120, 100), seed=1):
    Image.fromarray(np.random.default_rng(seed).integers(60, 200, size, dtype=np.uint8)).save(path)
    return path


def predict(settings, sources, model=None, explain=None):
    return list(stage.load_predictor(ObjectStore(settings.store), settings, model)(sources, explain))


def test_without_a_champion_and_a_name_nothing_is_predicted(store, settings, tmp_path):
    with pytest.raises(Refused, match="There is no champion yet"):
        stage.load_predictor(store, settings)


def test_the_champion_predicts_unless_another_model_is_named(settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    put_model(settings, "other", (0, 0, 2), tmp_path)
    file = film(tmp_path / "a.png")
    (row,) = predict(settings, [file])
    assert (row.file, row.model, row.predicted, row.refused) == (str(file), "champion", "COVID19", ())
    total = 2 + np.exp(2)
    assert row.probabilities == {
        "NORMAL": pytest.approx(1 / total, abs=1e-5),
        "COVID19": pytest.approx(np.exp(2) / total, abs=1e-5),
        "PNEUMONIA": pytest.approx(1 / total, abs=1e-5),
    }
    assert row.unlikeness == 0 and row.overlay is None
    assert predict(settings, [file], "other")[0].predicted == "PNEUMONIA"
    assert predict(settings, [file], "v1")[0].predicted == "COVID19"


def test_a_name_that_is_no_model_is_refused_also_where_it_is_no_key(store, settings):
    for name in ("../x", "..", "", "nobody", "v1"):
        with pytest.raises(Refused, match="A model or a champion version such as v1 was expected"):
            stage.load_predictor(store, settings, name)


def test_the_label_is_that_of_the_operating_point_and_probabilities_are_calibrated(settings, tmp_path):
    offsets = {"NORMAL": 0.0, "COVID19": 0.8, "PNEUMONIA": 0.0}
    point = OperatingPoint(temperature=2.0, offsets=offsets, floors={}, images=9)
    put_model(settings, "careful", (1, 0, 0), tmp_path, point)
    (row,) = predict(settings, [film(tmp_path / "a.png")], "careful")
    assert row.predicted == "COVID19"
    total = 2 + np.exp(0.5)
    expected = {"NORMAL": np.exp(0.5) / total, "COVID19": 1 / total, "PNEUMONIA": 1 / total}
    assert row.probabilities == pytest.approx(expected, abs=1e-5)


def test_a_file_that_cannot_be_read_does_not_stop_the_others(settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    cut.write_bytes(film(tmp_path / "whole.png").read_bytes()[:500])
    files = [tmp_path / "absent.png", film(tmp_path / "a.jpg"), text, tmp_path, cut, film(tmp_path / "b.png")]
    rows = predict(settings, files, "champion")
    assert [row.file for row in rows] == [str(f) for f in files]
    assert [row.predicted for row in rows] == [None, "NORMAL", None, None, None, "NORMAL"]
    expected = [("file_missing",), (), ("not_an_image",), ("special_file",), ("truncated",), ()]
    assert [row.refused for row in rows] == expected
    assert all((row.probabilities is None) == bool(row.refused) for row in rows)


def test_no_readable_file_gives_rows_without_a_prediction(settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    assert predict(settings, [], "champion") == []
    assert predict(settings, [tmp_path / "absent.png"], "champion")[0].predicted is None


def test_what_ingest_and_the_suites_refuse_is_refused_with_the_same_reasons(store, settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    drop = Path(settings.inbox.path) / "week" / "NORMAL"
    drop.mkdir(parents=True)
    film(drop / "fit.png")
    film(drop / "tiny.png", (40, 40), 2)
    film(drop / "strip.png", (500, 120), 3)
    boxed = np.random.default_rng(4).integers(60, 200, (300, 300), dtype=np.uint8)
    boxed[20:90, 30:160] = 255
    Image.fromarray(boxed).save(drop / "boxed.png")
    Image.fromarray(np.full((200, 200), 120, np.uint8)).save(drop / "blank.png")
    tint = np.random.default_rng(5).integers(60, 200, (200, 200, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([tint, tint // 3, tint // 4], axis=2)).save(drop / "tinted.png")
    (drop / "empty.png").write_bytes(b"")
    (drop / "web.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    (drop / "cut.jpg").write_bytes(film(tmp_path / "whole.jpg").read_bytes()[:900])
    shutil.copy(Path(pydicom.data.__file__).parent / "test_files/MR_small.dcm", drop / "mr.dcm")
    shutil.copy(Path(pydicom.data.__file__).parent / "test_files/rtdose.dcm", drop / "frames.dcm")
    batch = ingest_drop.ingest(store, settings, "week")
    judge_batch.validate_batch(store, settings, batch)
    table = tables.read_parquet(store, f"batches/{batch}/measurements.parquet")
    # That most of the class is unfit is no fault of the fit film.
    own = [tuple(c for c in codes if not c.startswith("rejected_class:")) for codes in table["reasons"]]
    expected = dict(zip((Path(file).name for file in table["file"]), own, strict=True))
    rows = predict(settings, sorted(drop.iterdir()), "champion")
    assert {Path(row.file).name: row.refused for row in rows} == expected
    assert expected["fit.png"] == () and len(set(expected.values())) >= 9


def test_bytes_are_predicted_as_the_file_that_holds_them(settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    file = film(tmp_path / "a.png")
    by_path, by_bytes, bad = predict(settings, [str(file), file.read_bytes(), b"no picture"], "champion")
    assert by_bytes == by_path.model_copy(update={"file": ""})
    assert (bad.file, bad.refused) == ("", ("not_an_image",))


def bright_or_dark(settings, tmp_path, known=None):
    """A stored model that says COVID19 of bright pictures and NORMAL of dark ones."""
    pixels = keras.Input((SIZE, SIZE, 3))
    same = architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", "")
    classifier = architectures.build_classifier(same, 3, 0.5)
    classifier.get_layer("head").set_weights([np.array([[-9.0, 9, 0]] * 3), np.array([0, 0, -99.0])])
    return put(settings, "champion", classifier, tmp_path, known), classifier


def test_many_images_come_back_in_their_order_whatever_lies_between_them(settings, tmp_path):
    bright_or_dark(settings, tmp_path)
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 2, 150).astype(bool)
    sources = []
    for i, is_bright in enumerate(bright):
        pixels = rng.integers(130 if is_bright else 40, 220 if is_bright else 120, (110, 110), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        sources.append(b"broken" if i % 7 == 3 else buffer.getvalue())
    rows = predict(settings, iter(sources), "champion")
    assert [row.predicted for row in rows] == [
        None if i % 7 == 3 else "COVID19" if b else "NORMAL" for i, b in enumerate(bright)
    ]


def test_only_a_few_images_are_taken_before_the_first_is_answered(store, settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    data, taken = film(tmp_path / "a.png").read_bytes(), []

    def sources():
        for i in range(1000):
            taken.append(i)
            yield data

    rows = stage.load_predictor(store, settings, "champion")(sources())
    assert next(rows).predicted == "NORMAL"
    assert 32 <= len(taken) <= 100
    rows.close()
    assert len(taken) <= 100


def test_a_picture_unlike_the_training_images_is_flagged_and_not_answered(settings, tmp_path):
    # Grey levels become features from -1 to 1, so that dark pictures lie opposite to bright ones.
    images = np.random.default_rng(6).integers(150, 220, (60, SIZE, SIZE, 1), dtype=np.uint8)
    _, classifier = bright_or_dark(settings, tmp_path)
    known = ood.to_bytes(ood.fit(classifier, images, np.arange(40), np.arange(40, 60), np.zeros(60, int), 0))
    name = put(settings, "knowing", classifier, tmp_path, known)
    bright, dark = tmp_path / "bright.png", tmp_path / "dark.png"
    Image.fromarray(np.random.default_rng(7).integers(150, 220, (120, 120), dtype=np.uint8)).save(bright)
    Image.fromarray(np.random.default_rng(8).integers(30, 100, (120, 120), dtype=np.uint8)).save(dark)
    like, unlike = predict(settings, [bright, dark], name, tmp_path / "shown")
    assert like.predicted == "COVID19" and like.unlikeness <= 1 and like.refused == ()
    assert unlike.predicted is None and unlike.probabilities is None and unlike.overlay is None
    assert unlike.refused == ("unlike_training",) and unlike.unlikeness > 1


def test_an_overlay_is_written_for_each_answered_image(settings, tmp_path):
    bright_or_dark(settings, tmp_path)
    film(tmp_path / "a.png", (200, 100), 3)
    other = tmp_path / "other"
    other.mkdir()
    film(other / "a.png", (120, 120))
    (tmp_path / "bad.png").write_text("x")
    shown = tmp_path / "shown"
    rows = predict(settings, [tmp_path / "a.png", tmp_path / "bad.png", other / "a.png"], "champion", shown)
    assert [row.overlay for row in rows] == [str(shown / "a.png"), None, str(shown / "a-2.png")]
    assert sorted(p.name for p in shown.iterdir()) == ["a-2.png", "a.png"]
    assert Image.open(shown / "a.png").size == (100, 200)
    again = predict(settings, [tmp_path / "a.png"], "champion", shown)
    assert again[0].overlay == str(shown / "a.png") and len(list(shown.iterdir())) == 2


def test_services_load_the_champion_by_the_settings_of_the_environment(settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    answer = cxr_ml.load_champion()
    data = film(tmp_path / "a.png").read_bytes()
    for _ in range(2):
        (row,) = answer([data])
        assert (row.model, row.predicted) == ("champion", "COVID19")


def test_a_champion_whose_file_was_changed_predicts_nothing(store, settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    store.client.put_object(Bucket=settings.store.bucket, Key="models/champion/model.keras", Body=b"PK")
    with pytest.raises(Refused, match=r"models/champion/model\.keras is not the file"):
        stage.load_predictor(store, settings)


def test_a_pointer_that_names_another_file_than_the_models_record_predicts_nothing(store, settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    found = store.get_or_none("registry/champion.json")
    other = promotion.champion(store).model_copy(update={"artefact_sha256": "0" * 64})
    assert store.swap("registry/champion.json", other.to_bytes(), found[1])
    with pytest.raises(Refused, match=r"must name the same file\. Received: SHA-256 0{64} and"):
        stage.load_predictor(store, settings)
