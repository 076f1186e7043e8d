"""Predictions for files: by the champion or a named model, each file on its own."""

import hashlib

import keras
import numpy as np
import pytest
import report_samples as samples
from PIL import Image

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.model import architectures
from cxr_ml.records import Check, Decision
from cxr_ml.release import registry
from cxr_ml.release.predict import predict

SIZE = 32


def put_model(settings, name: str, biases: tuple[float, float, float], folder) -> str:
    """A stored classifier whose probabilities are softmax(biases), whatever the picture."""
    pixels = keras.Input((SIZE, SIZE, 3))
    same = architectures.Backbone(keras.Model(pixels, keras.layers.Identity()(pixels)), "from scratch", "")
    classifier = architectures.classifier(same, 3, 0.5)
    classifier.get_layer("head").set_weights([np.zeros((3, 3)), np.array(biases)])
    classifier.save(folder / "model.keras")
    artefact = (folder / "model.keras").read_bytes()
    facts = {"model": name, "artefact_sha256": hashlib.sha256(artefact).hexdigest(), "image_size": SIZE}
    store.put_if_absent(settings, f"models/{name}/model.keras", artefact)
    store.put_if_absent(settings, f"models/{name}/model.json", samples.model().model_copy(update=facts).to_bytes())
    return name


def crown(settings, name: str) -> None:
    check = Check(name="macro F1", observed=0.9, limit="≥ 0.85", passed=True, reason="Good.")
    decision = Decision(
        run="run-1", model=name, dataset=3, champion=None, candidates=(name,), promote=True, checks=(check,),
        reason="Good.",
    )  # fmt: skip
    registry.conclude(settings, decision, "ann")


def film(path, size=(120, 100)):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)).save(path)
    return path


def test_without_a_champion_and_a_name_nothing_is_predicted(settings, tmp_path):
    with pytest.raises(Refused, match="There is no champion yet"):
        predict(settings, [film(tmp_path / "a.png")])


def test_the_champion_predicts_unless_another_model_is_named(settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    put_model(settings, "other", (0, 0, 2), tmp_path)
    file = film(tmp_path / "a.png")
    (row,) = predict(settings, [file])
    assert row["file"] == str(file) and row["predicted"] == "COVID19" and row["refused"] is None
    total = 2 + np.exp(2)
    assert row["probabilities"] == {
        "NORMAL": pytest.approx(1 / total, abs=1e-5),
        "COVID19": pytest.approx(np.exp(2) / total, abs=1e-5),
        "PNEUMONIA": pytest.approx(1 / total, abs=1e-5),
    }
    assert predict(settings, [file], "other")[0]["predicted"] == "PNEUMONIA"


def test_a_file_that_cannot_be_read_does_not_stop_the_others(settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    cut.write_bytes(film(tmp_path / "whole.png").read_bytes()[:500])
    files = [tmp_path / "absent.png", film(tmp_path / "a.jpg"), text, tmp_path, cut, film(tmp_path / "b.png")]
    rows = predict(settings, files, "champion")
    assert [row["file"] for row in rows] == [str(f) for f in files]
    assert [row["predicted"] for row in rows] == [None, "NORMAL", None, None, None, "NORMAL"]
    refused = [row["refused"] for row in rows]
    assert refused[0] == "unreadable: No such file or directory" and refused[3] == "unreadable: Is a directory"
    assert refused[2] == "not_an_image" and refused[4] == "truncated"
    assert refused[1] is refused[5] is None
    assert all((row["probabilities"] is None) == (row["refused"] is not None) for row in rows)


def test_no_readable_file_gives_rows_without_a_prediction(settings, tmp_path):
    put_model(settings, "champion", (2, 0, 0), tmp_path)
    assert predict(settings, [], "champion") == []
    assert predict(settings, [tmp_path / "absent.png"], "champion")[0]["predicted"] is None


def test_a_champion_whose_file_was_changed_predicts_nothing(settings, tmp_path):
    crown(settings, put_model(settings, "champion", (0, 2, 0), tmp_path))
    store.client(settings.s3_endpoint_url).put_object(
        Bucket=settings.bucket, Key="models/champion/model.keras", Body=b"PK"
    )
    with pytest.raises(Refused, match=r"models/champion/model\.keras is not the file"):
        predict(settings, [film(tmp_path / "a.png")])
