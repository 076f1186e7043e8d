"""Contact sheets: which images are shown, that the record says where a model looked, and that all is stored once."""

import hashlib
import io

import keras
import numpy as np
import pytest
import report_samples as samples
from model_samples import CLASSES, put_dataset, quick
from PIL import Image

from cxr_ml.errors import Refused
from cxr_ml.evaluation import contact_sheets, gradcam, stored_explanations
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, inputs

NAMES = np.array([hashlib.sha256(bytes([i])).hexdigest() for i in range(40)])


def test_the_surest_misses_are_shown_first_and_never_more_than_four():
    said = np.zeros(40, bool)
    sure = np.linspace(0.4, 0.99, 40)
    assert contact_sheets.choose(np.ones(40, bool), said, sure, NAMES, 0).tolist() == [39, 38, 37, 36]


def test_hits_are_drawn_by_the_seed_and_by_the_images_whatever_their_order():
    of_class, said, sure = np.arange(40) < 30, np.arange(40) < 25, np.full(40, 0.9)
    chosen = contact_sheets.choose(of_class, said, sure, NAMES, 0)
    assert len(set(chosen)) == 8 and (chosen[:4] < 25).all()
    misses = [i for i in np.argsort(NAMES) if 25 <= i < 30][:4]
    assert chosen[4:].tolist() == misses, "of equally sure ones, by their hash"
    order = np.random.default_rng(1).permutation(40)
    again = contact_sheets.choose(of_class[order], said[order], sure[order], NAMES[order], 0)
    np.testing.assert_array_equal(NAMES[order][again], NAMES[chosen])
    other = [set(contact_sheets.choose(of_class, said, sure, NAMES, seed)[:4]) for seed in range(1, 6)]
    assert any(o != set(chosen[:4]) for o in other)


def test_images_of_other_classes_are_not_shown():
    of_class = np.arange(40) % 2 == 0
    chosen = contact_sheets.choose(of_class, np.ones(40, bool), np.ones(40), NAMES, 0)
    assert len(chosen) == 4 and (chosen % 2 == 0).all()
    assert contact_sheets.choose(np.zeros(40, bool), np.ones(40, bool), np.ones(40), NAMES, 0).tolist() == []


def case(settings):
    """A network from scratch, and what `evaluate` would hand over of its test images."""
    s = quick(settings)
    dataset = put_dataset(s)
    images, manifest = inputs.load(ObjectStore(s.store), s.cache_dir, dataset, 32)
    keras.utils.set_random_seed(2)
    network = architectures.build_classifier(architectures.build_backbone(s.training, s.weights_dir, "light"), 3, 0.2)
    rows = np.flatnonzero(manifest["split"] == "test")
    probabilities = network.predict(images[rows], verbose=0)
    facts = {"model": "light-d1-0a", "dataset": 1, "dataset_sha256": dataset.manifest_sha256, "classes": CLASSES}
    record = samples.model().model_copy(update=facts)
    return (
        ObjectStore(s.store),
        s.training,
        record,
        dataset,
        network,
        images,
        manifest,
        rows,
        probabilities,
        probabilities.argmax(axis=1),
    )


def test_the_record_says_where_the_model_looked_and_what_is_shown(settings):
    given = case(settings)
    _, _, _, dataset, network, images, manifest, rows, probabilities, predicted = given
    found = contact_sheets.write(*given)
    assert (found.model, found.dataset, found.dataset_sha256) == ("light-d1-0a", 1, dataset.manifest_sha256)
    assert found.evenly == 0.36
    share = gradcam.outside(gradcam.heat(network, images, predicted, rows))
    labels = manifest["label"].to_numpy()[rows]
    for place, label in enumerate(CLASSES):
        assert found.outside[label] == pytest.approx(np.nanmean(share[labels == label]), nan_ok=True)
        shown = [e for e in found.shown if e.label == label]
        hits, misses = (labels == label) & (predicted == place), (labels == label) & (predicted != place)
        assert sum(e.predicted == label for e in shown) == min(4, hits.sum())
        assert sum(e.predicted != label for e in shown) == min(4, misses.sum())
    for example in found.shown:
        (row,) = np.flatnonzero(manifest["sha256"].to_numpy()[rows] == example.sha256)
        assert example.probability == pytest.approx(probabilities[row].max())
        assert example.predicted == CLASSES[predicted[row]] and example.label == labels[row]


@pytest.mark.slow
def test_what_is_stored_is_read_back_and_not_made_again(settings, monkeypatch):
    given = case(settings)
    store, found = given[0], contact_sheets.write(*given)
    before = {key: store.get(key) for key in store.keys("models/light-d1-0a/explanation")}
    assert len(before) == 4 and stored_explanations.load(store, "light-d1-0a", 1) == found
    for png in stored_explanations.sheets(store, found).values():
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG" and image.width > 900 and not image.info.get("Software")
    monkeypatch.setattr(gradcam, "heat", None)
    assert contact_sheets.write(*given) == found
    assert {key: store.get(key) for key in before} == before


def test_a_dataset_that_nobody_was_asked_about_has_no_explanation(store):
    assert stored_explanations.load(store, "light-d1-0a", 7) is None


@pytest.mark.slow
def test_a_changed_sheet_is_not_shown(settings):
    given = case(settings)
    found = contact_sheets.write(*given)
    (key, *_) = (k for k in given[0].keys("models/light-d1-0a/") if k.endswith(".png"))
    store = given[0]
    store.client.put_object(Bucket=store.bucket, Key=store.prefix + key, Body=store.get(key) + b"x")
    with pytest.raises(Refused, match="is not the sheet that was recorded"):
        stored_explanations.sheets(store, found)


def test_a_class_without_hits_or_misses_has_a_sheet_that_says_none():
    film = np.zeros((32, 32, 1), np.uint8)
    example = contact_sheets.SheetImage(sha256="b" * 64, label="A$_{", predicted="A$_{", probability=0.5, outside=0.3)
    whole = Image.open(io.BytesIO(contact_sheets.draw("A$_{", [example], [(film, np.zeros((32, 32, 3), np.uint8))])))
    empty = Image.open(io.BytesIO(contact_sheets.draw("A$_{", [], [])))
    assert whole.width == empty.width
    assert np.asarray(whole.convert("L")).mean() < np.asarray(empty.convert("L")).mean()


def test_long_labels_stay_apart_and_do_not_run_into_each_other(monkeypatch):
    seen, png = [], contact_sheets._png

    def spy(figure):
        figure.set_dpi(180)
        figure.canvas.draw()
        boxes = [a.title.get_window_extent() for block in figure.subfigs for a in block.axes if a.title.get_text()]
        seen.extend(a.title.get_text() for block in figure.subfigs for a in block.axes)
        assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
        return png(figure)

    monkeypatch.setattr(contact_sheets, "_png", spy)
    label, other = (f"A CLASS WITH A VERY LONG NAME {n}" for n in (10, 11))
    shown = [
        contact_sheets.SheetImage(sha256=f"{n:064x}", label=label, predicted=said, probability=0.5, outside=0.3)
        for n, said in enumerate([label] * 4 + [other] * 4)
    ]
    contact_sheets.draw(label, shown, [(np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8, 3), np.uint8))] * 8)
    assert "true A CLAS…NAME 10\nsaid A CLAS…NAME 11" in seen
