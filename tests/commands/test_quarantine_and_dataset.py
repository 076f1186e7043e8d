"""`cxr-ml quarantine` and `cxr-ml dataset` as a person or a script calls them."""

import pytest
from cli_calls import answer, call
from drop_samples import boxed, put_drop, snapshot, week

from cxr_ml.records import Dataset, Ruling
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("handful")


@pytest.fixture
def here(small, monkeypatch):
    """The settings for commands in this process."""
    monkeypatch.setenv("CXR_VALIDATION__EXPECTATIONS", str(small.validation.expectations))
    monkeypatch.setenv("CXR_DATASET__VALIDATION_FRACTION", str(small.dataset.validation_fraction))
    return small


@pytest.mark.slow
def test_a_refused_image_is_listed_shown_released_and_in_the_next_version(here):
    put_drop(here, "week-1", week(100) | {"train/NORMAL/boxed [red].png": boxed(1), "train/NORMAL/page.png": b"<html>"})
    (batch,) = answer("ingest")["batches"]
    answer("validate", batch)
    assert answer("dataset")["dataset"] == 1
    listed = answer("quarantine", "list")
    assert {(r["file"], *r["reasons"]) for r in listed} == {
        ("train/NORMAL/boxed [red].png", "white_box"),
        ("train/NORMAL/page.png", "not_an_image"),
    }
    assert [r["file"] for r in answer("quarantine", "list", "--reason", "white_box", "--label", "normal")] == [
        "train/NORMAL/boxed [red].png"
    ]
    assert answer("quarantine", "list", "--drop", "week-2") == []
    pictures = {r["file"]: r["thumbnail"] for r in listed}
    assert pictures["train/NORMAL/page.png"] == "" and ObjectStore(here.store).exists(
        pictures["train/NORMAL/boxed [red].png"]
    )
    assert {r["at"] for r in listed} == {ObjectStore(here.store).last_modified(f"batches/{batch}/batch.json")}
    status, out, err = call("quarantine", "list", "--reason", "whit_box", "--json")
    assert (status, out.strip()) == (0, "[]") and "Reasons there are: not_an_image, white_box" in err
    _, out, _ = call("quarantine", "list")
    assert "boxed [red].png" in out and "not_an_image" in out and "2 files" in out
    _, out, _ = call("quarantine", "show", "boxed [red].png")
    assert "white_box is 0." in out and "refused" in out and f"s3://{here.store.bucket}/thumbnails/" in out
    told = answer("quarantine", "show", "boxed [red].png")  # strict JSON, its measurements too
    assert [x["column"] for x in told["limits"] if not x["met"]] == ["white_box"]
    told = answer("quarantine", "show", "page.png")
    assert list(told["reasons"]) == ["not_an_image"]

    status, out, err = call("quarantine", "release", "page.png", "--why", "x", "--json")
    assert (status, out) == (2, "") and "needs an image in the store" in err
    assert call("quarantine", "release", "boxed [red].png")[0] == 2  # no reason
    ruling = answer("quarantine", "release", "boxed [red].png", "--why", "a collimator", "--by", "dr.b")
    assert Ruling(**ruling) == ObjectStore(here.store).load("rulings/00001.json", Ruling) and ruling["by"] == "dr.b"
    _, out, _ = call("quarantine", "relabel", "boxed [red].png", "covid", "--why", "seen [twice]")
    assert (
        "Ruling 2" in out and "relabelled as COVID19" in out and "seen [twice]" in out and "Set aside: white_box" in out
    )
    _, out, _ = call("quarantine", "list")
    assert "2: in as COVID19" in out
    second = answer("dataset")
    assert (second["dataset"], second["rulings"]) == (2, 2)

    changes = answer("dataset", "diff", 1, 2)
    assert [c["label"] for c in changes.pop("added")] == ["COVID19"]
    assert changes == {"removed": [], "relabelled": [], "moved": []}
    _, out, _ = call("dataset", "diff", 1, 2)
    assert "1 added, 0 removed, 0 relabelled, 0 moved" in out
    assert [r["dataset"] for r in answer("dataset", "list")] == [1, 2]
    _, out, _ = call("dataset", "list")
    assert second["manifest_sha256"][:16] in out
    assert Dataset(**answer("dataset", "show", 2)) == ObjectStore(here.store).load("datasets/2/dataset.json", Dataset)
    _, out, _ = call("dataset", "show", 2)
    # With a dozen images nothing is measured, and that is said.
    assert "rulings honoured" in out and "was not measured" in out and "needs 5 groups" in out
    answer("quarantine", "withdraw", "boxed [red].png", "--why", "no")
    assert answer("dataset")["counts"]["train"]["COVID19"] == 2


def test_what_is_not_there_is_refused_by_name_and_changes_nothing(here):
    for args, words in [
        (["dataset", "show", "7"], "datasets/7/dataset.json"),
        (["dataset", "diff", "7", "8"], "datasets/7/dataset.json"),
        (["dataset", "doubts"], "a dataset and a champion"),
        (["quarantine", "show", "a.png"], "quarantine list"),
        (["quarantine", "release", "a.png", "--why", "x"], "quarantine list"),
    ]:
        status, out, err = call(*args, "--json")
        assert (status, out) == (2, "") and err.startswith("Refused:") and words in err
    assert answer("dataset", "list") == answer("quarantine", "list") == []
    _, out, _ = call("dataset", "list")
    assert "No dataset yet." in out
    assert snapshot(here) == {}


def test_all_of_one_reason_are_released_only_after_a_yes(here):
    put_drop(here, "week-1", week(100) | {f"train/NORMAL/{n}.png": boxed(n) for n in (1, 2)})
    answer("validate", *answer("ingest")["batches"])
    before = snapshot(here)
    everything = ("quarantine", "release-all", "--reason", "white_box", "--why", "collimators")
    status, out, err = call(*everything, "--json")  # nobody answers
    assert (
        (status, out.strip()) == (1, "")
        and "Release 2 NORMAL, refused for white_box?" in err
        and snapshot(here) == before
    )
    assert call(*everything[:4], "--yes")[0] == 2  # no reason
    assert answer(*everything, "--yes") == {"released": {"NORMAL": 2}, "skipped": {}, "rulings": [1, 2]}
    status, out, err = call(*everything, "--yes")
    assert status == 0 and "Nothing to release" in out and "2 are in already" in err
