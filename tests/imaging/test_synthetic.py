"""The demonstration drop: the same each time, of the shape and with the defects of a published one."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_ml.errors import Refused
from cxr_ml.imaging import decode, formats, measure, phantoms, synthetic
from cxr_ml.settings import Settings

PER_CLASS = 10


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "drop"
    counts = synthetic.write_drop(folder, 3, PER_CLASS)
    return folder, counts


@pytest.fixture(scope="module")
def files(drop):
    return contents(drop[0])


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shuffled") / "drop"
    synthetic.write_drop(folder, 3, PER_CLASS, shuffle_labels=True)
    return contents(folder)


def place(file: str) -> str:
    return file.rpartition("/")[0]


def defects(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that were written last."""
    return dict(sorted(files.items(), key=lambda item: Path(item[0]).stem)[-7:])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_images(files, tmp_path):
    synthetic.write_drop(tmp_path / "again", 3, PER_CLASS)
    assert contents(tmp_path / "again") == files
    synthetic.write_drop(tmp_path / "other", 4, PER_CLASS)
    # The web page named .png is the same text in every drop.
    assert len(set(contents(tmp_path / "other").values()) & set(files.values())) == 1


def test_a_larger_drop_of_the_same_seed_holds_the_same_people(files, tmp_path):
    synthetic.write_drop(tmp_path / "small", 3, 4)
    small = contents(tmp_path / "small")
    usual = {name: data for name, data in small.items() if name not in defects(small)}
    assert len(usual) == 16 and set(usual.values()) <= set(files.values())


def test_a_drop_has_train_and_test_with_a_folder_for_each_class(drop, files):
    usual = [place(f) for f in files if f not in defects(files)]
    tests = 3
    expected = {f"test/{label}": tests for label in phantoms.LABELS}
    expected |= {f"train/{label}": PER_CLASS - tests for label in phantoms.LABELS}
    assert Counter(usual) == expected
    assert drop[1] == {label: PER_CLASS for label in phantoms.LABELS} | {"defects": 7}
    assert len(files) == sum(drop[1].values())
    assert {Path(f).suffix for f in usual_files(files)} == {".jpeg", ".png"}


def usual_files(files):
    return [f for f in files if f not in defects(files)]


def test_every_usual_image_is_a_grey_film_of_its_own(files):
    seen = set()
    for file in usual_files(files):
        measured, _ = measure.measure_image(files[file], Settings().images)
        assert (measured["width"], measured["height"], measured["saturation"]) == (256, 256, 0), file
        seen.add(measured["sha256"])
    assert len(seen) == 4 * PER_CLASS


def test_the_defects_are_those_that_are_promised(files):
    names = list(defects(files))
    assert {place(f) for f in names} <= {f"train/{label}" for label in phantoms.TRAINED}
    cut, page, thumbnail, copy, resized, first, second = (files[f] for f in names)
    for data, code in ((cut, "truncated"), (page, "not_an_image")):
        with pytest.raises(formats.BadImage) as caught:
            measure.measure_image(data, Settings().images)
        assert caught.value.code == code
    assert decode.decode_grey(thumbnail).shape == (64, 64)
    others = {f: files[f] for f in usual_files(files)}
    assert copy in others.values()
    assert [place(f) for f in names[5:]] == ["train/NORMAL", "train/PNEUMONIA"] and first == second
    assert decode.decode_grey(resized).shape == (320, 320)
    back = cv2.resize(decode.decode_grey(resized), (256, 256), interpolation=cv2.INTER_AREA)
    nearest = max(others, key=lambda f: np.corrcoef(decode.decode_grey(others[f]).ravel(), back.ravel())[0, 1])
    assert np.corrcoef(decode.decode_grey(others[nearest]).ravel(), back.ravel())[0, 1] > 0.98
    assert place(nearest) == "train/NORMAL" and files[nearest] != resized


def test_white_boxes_are_found_in_half_of_tuberculosis_and_in_no_other_class(tmp_path):
    synthetic.write_drop(tmp_path / "drop", 5, 24)
    boxed = Counter()
    for file, data in contents(tmp_path / "drop").items():
        try:
            measured, _ = measure.measure_image(data, Settings().images)
        except formats.BadImage:
            continue
        boxed[file.split("/")[1]] += measured["white_box"] > 0.005
    assert boxed == {phantoms.TUBERCULOSIS: 12, **dict.fromkeys(phantoms.TRAINED, 0)}


def test_shuffled_labels_keep_the_images_of_each_split_and_deal_them_anew(files, shuffled):
    def of(drop, split):
        return Counter(drop[f] for f in usual_files(drop) if f.startswith(split))

    for split in ("train/", "test/"):
        assert of(shuffled, split) == of(files, split)
        assert of(shuffled, f"{split}{phantoms.TUBERCULOSIS}") == of(files, f"{split}{phantoms.TUBERCULOSIS}")
    assert Counter(map(place, usual_files(shuffled))) == Counter(map(place, usual_files(files)))
    label_of = {files[f]: place(f) for f in usual_files(files)}
    trained = [f for f in usual_files(shuffled) if phantoms.TUBERCULOSIS not in f]
    kept = sum(label_of[shuffled[f]] == place(f) for f in trained)
    assert 0 < kept < 0.6 * len(trained)  # a third by chance


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(Refused, match="new or empty"):
        synthetic.write_drop(folder, 0, 4)
    assert contents(tmp_path) == {"drop/mine.txt": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "drop").write_text("mine")
    with pytest.raises(Refused, match="new or empty"):
        synthetic.write_drop(tmp_path / "drop", 0, 4)
    assert contents(tmp_path) == {"drop": b"mine"}


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_leaves_nothing_half_written(tmp_path, monkeypatch, existing):
    folder = tmp_path / "drop"
    if existing:
        folder.mkdir()
    drawn, draw = [], synthetic._image_file

    def dying(*args):
        drawn.append(args)
        if len(drawn) > 12:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(synthetic, "_image_file", dying)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_drop(folder, 0, 8)
    assert os.listdir(tmp_path) == (["drop"] if existing else [])
    assert contents(tmp_path) == {}
    monkeypatch.undo()
    synthetic.write_drop(folder, 0, 4)
    assert len(contents(folder)) == 4 * 4 + 7


@pytest.mark.parametrize(("seed", "per_class", "words"), [(-1, 4, "seed"), (0, 3, "images_per_class")])
def test_numbers_out_of_range_are_refused_by_name(tmp_path, seed, per_class, words):
    with pytest.raises(Refused, match=words):
        synthetic.write_drop(tmp_path / "drop", seed, per_class)
    assert not (tmp_path / "drop").exists()


def test_the_smallest_drop_still_has_all_its_defects(tmp_path):
    counts = synthetic.write_drop(tmp_path / "drop", 0, synthetic.MIN_PER_CLASS)
    files = contents(tmp_path / "drop")
    assert counts["defects"] == len(defects(files)) == 7
    digests = Counter(hashlib.sha256(data).hexdigest() for data in files.values())
    assert sorted(digests.values())[-2:] == [2, 2]  # the exact copy, and the film under two labels
