"""Overlays are written into their folder and nowhere else, and never over what is there."""

import os

import numpy as np
import pytest
from PIL import Image

from cxr_ml.errors import Refused
from cxr_ml.serving import overlays

HEAT = np.eye(4, dtype=np.float32)


def film(level=100):
    return np.full((40, 50), level, np.uint8)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("../../etc/passwd", "passwd.png"),
        ("/abs/film.jpeg", "film.png"),
        ("..", "image.png"),
        (".hidden", "hidden.png"),
        ("", "image.png"),
        ("a b\n<é>.dcm", "a_b.png"),
        ("x" * 300 + ".png", "x" * 100 + ".png"),
        ("-rf.png", "rf.png"),
        ("film\0.png", "film.png"),
    ],
)
def test_a_name_keeps_harmless_characters_and_never_leaves_the_folder(tmp_path, file, name):
    folder = tmp_path / "deep" / "shown"
    written = overlays.write(folder, file, film(), HEAT)
    assert written == str(folder / name)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [folder / name]
    assert Image.open(written).size == (50, 40) and Image.open(written).mode == "RGB"


def test_another_picture_of_the_same_name_gets_a_number_and_the_same_picture_its_file(tmp_path):
    first = overlays.write(tmp_path, "a/film.png", film(), HEAT)
    second = overlays.write(tmp_path, "b/film.png", film(20), HEAT)
    assert (first, second) == (str(tmp_path / "film.png"), str(tmp_path / "film-2.png"))
    assert overlays.write(tmp_path, "b/film.jpg", film(20), HEAT) == second
    assert len(list(tmp_path.iterdir())) == 2


def test_what_lies_in_the_folder_is_left_alone_be_it_a_link_or_a_folder(tmp_path):
    victim, shown = tmp_path / "victim.png", tmp_path / "shown"
    victim.write_bytes(b"mine")
    (shown / "film-2.png").mkdir(parents=True)
    os.symlink(victim, shown / "film.png")
    os.symlink(tmp_path / "absent.png", shown / "film-3.png")
    assert overlays.write(shown, "film.png", film(), HEAT) == str(shown / "film-4.png")
    assert victim.read_bytes() == b"mine" and not (tmp_path / "absent.png").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="A folder that can be written to was expected"):
        overlays.write(tmp_path / "file", "film.png", film(), HEAT)
