"""What `make run` tells before Airflow starts."""

import shutil
import subprocess
import sys

import pytest

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings
from local.preflight import check_drop, check_settings
from local.state import REPOSITORY


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache", inbox={"patient_salt": "salt of the tests"})


def drop(folder, *files):
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    return folder


def test_a_drop_with_one_known_class_folder_is_accepted_and_nothing_is_kept_of_it(store, settings, tmp_path):
    check_drop(store, settings, drop(tmp_path / "a", *(f"notes/{i}.txt" for i in range(1500)), "train/covid-19/1.png"))
    assert not list(settings.cache_dir.glob("drops/*"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("1.png", "2.png"), "with 2 files and no label at all"),
        (("scans/x/1.png", "train/FLU/2.png"), "with 2 files and the labels 'FLU', 'scans'"),
    ],
)
def test_a_drop_without_a_known_label_is_refused_with_what_it_has_and_should_have(
    store, settings, tmp_path, files, words
):
    with pytest.raises(Refused) as caught:
        check_drop(store, settings, drop(tmp_path / "2026-01-05", *files))
    assert f"Received: '2026-01-05' {words}. Known labels: NORMAL, COVID19, PNEUMONIA" in str(caught.value)
    assert "labels.csv with the columns filename and label" in str(caught.value)


def test_labels_of_a_labels_csv_and_of_an_archive_are_checked_too(store, settings, tmp_path):
    folder = drop(tmp_path / "flat", "1.png")
    (folder / "labels.csv").write_text("filename,label\n1.png,flu\n")
    with pytest.raises(Refused, match="the labels 'flu'"):
        check_drop(store, settings, folder)
    packed = shutil.make_archive(str(tmp_path / "week"), "gztar", folder)
    with pytest.raises(Refused, match="the labels 'flu'"):
        check_drop(store, settings, tmp_path / packed)
    (folder / "labels.csv").write_text("filename,label\n1.png,pneumonia\n")
    check_drop(store, settings, folder)


def test_a_link_to_a_drop_is_followed(store, settings, tmp_path):
    drop(tmp_path / "a", "NORMAL/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    check_drop(store, settings, tmp_path / "link")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"training": {"architectures": ("inception_v3",), "image_size": 64}},
            "at least 75 pixels. Received: image_size = 64",
        ),
        (
            {"training": {"architectures": ("mobilenet_v2",)}, "weights_dir": "."},
            "must hold mobilenet_v2_notop.weights.h5",
        ),
        ({"mail": {"recipients": ("x@else.example",)}}, "allowed"),
    ],
)
def test_settings_that_no_run_can_use_are_refused(values, words):
    with pytest.raises(Refused, match=words):
        check_settings(Settings(**values))


def make_run(tmp_path, **variables):
    return subprocess.run(
        [sys.executable, "-m", "local.run"],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "CXR_LOCAL": str(tmp_path / "state"), "ONCE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_make_run_ends_with_status_2_before_airflow_starts_when_drop_or_suites_are_unfit(tmp_path):
    done = make_run(tmp_path, DROP=str(drop(tmp_path / "2026-01-05", "FLU/1.png")))
    assert done.returncode == 2 and "the labels 'FLU'" in done.stderr
    assert not list((tmp_path / "state" / "inbox").iterdir())
    expectations = tmp_path / "expectations"
    shutil.copytree(REPOSITORY / "expectations", expectations)
    (expectations / "classes.json").write_text("{")
    done = make_run(
        tmp_path, DROP=str(drop(tmp_path / "fit", "NORMAL/1.png")), CXR_VALIDATION__EXPECTATIONS=str(expectations)
    )
    assert done.returncode == 2 and "classes.json, line 1" in done.stderr
    assert not (tmp_path / "state" / "logs" / "scheduler.log").exists()
