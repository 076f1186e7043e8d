"""What the inbox holds, and what a drop says of its files. A drop is hostile until judged."""

import os

import pandas as pd
import pytest
from drop_samples import csv, put_drop

from cxr_ml import store
from cxr_ml.data import drops
from cxr_ml.errors import Refused
from cxr_ml.settings import Settings


@pytest.fixture
def inbox(tmp_path):
    """Settings with an empty inbox; no store is needed to read a drop."""
    (tmp_path / "inbox").mkdir()
    return Settings(inbox=str(tmp_path / "inbox"), patient_salt="salt")


def said(settings, name) -> pd.DataFrame:
    return drops.labels(settings, name, drops.listing(settings, name)).set_index("file")


def labelled(settings, rows, *files, header="filename,label"):
    """What a drop with these files and such a labels.csv says."""
    data = rows if isinstance(rows, bytes) else csv(*rows, header=header)
    put_drop(settings, "drop", {"labels.csv": data} | dict.fromkeys(files, b"x"))
    return said(settings, "drop")


# Class folders


@pytest.mark.parametrize(
    ("file", "label", "split"),
    [
        ("NORMAL/a.png", "NORMAL", ""),
        ("train/NORMAL/a.png", "NORMAL", "train"),
        ("Training/covid-19/a.png", "COVID19", "train"),
        ("test/COVID19/site-3/a.png", "COVID19", "test"),
        ("val/Pneumonia/a.png", "PNEUMONIA", "validation"),
        ("validation/No Finding/a.png", "NORMAL", "validation"),
        ("train/TURBERCULOSIS/a.png", "TUBERCULOSIS", "train"),
        ("TB/a.png", "TUBERCULOSIS", ""),
    ],
)
def test_class_folders_give_the_label_and_the_split(inbox, file, label, split):
    put_drop(inbox, "drop", {file: b"x"})
    row = said(inbox, "drop").loc[file]
    assert (row["label"], row["split_hint"], row["reasons"]) == (label, split, [])


@pytest.mark.parametrize(
    ("file", "raw", "reason"),
    [("a.png", "", "no_label"), ("train/a.png", "", "no_label"), ("train/MEASLES/a.png", "MEASLES", "unknown_label")],
)
def test_a_file_without_a_known_label_says_why(inbox, file, raw, reason):
    put_drop(inbox, "drop", {file: b"x"})
    row = said(inbox, "drop").loc[file]
    assert (row["label"], row["label_raw"], row["reasons"]) == ("", raw, [reason])


def test_a_spelling_can_be_added_in_the_settings(inbox):
    put_drop(inbox, "drop", {"Maladie_A/a.png": b"x"})
    known = inbox.model_copy(update={"label_spellings": {"maladie a": "PNEUMONIA"}})
    assert said(known, "drop").loc["Maladie_A/a.png", "label"] == "PNEUMONIA"


# labels.csv


def test_labels_csv_gives_label_patient_view_source_and_split(inbox):
    table = labelled(
        inbox,
        ["a.png,Covid-19,P7,AP,site-1,test", "sub/b.png,no findings,P8,PA,site-2,"],
        "a.png",
        "sub/b.png",
        header="filename,label,patient_id,view,source,split",
    )
    assert list(table.index) == ["a.png", "sub/b.png"]
    assert list(table["label"]) == ["COVID19", "NORMAL"]
    assert list(table["split_hint"]) == ["test", ""]
    assert list(table["view"]) == ["AP", "PA"] and list(table["source"]) == ["site-1", "site-2"]
    assert all(r == [] for r in table["reasons"])


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfFileName ,LABEL\r\na.png,Normal\r\n",
        b"filename;label\na.png;Normal\n",
        "filename,label,source\na.png,Normal,H\u00f4pital\n".encode("latin-1"),
        b'label,filename\n" normal ","a.png"\n',
    ],
    ids=["byte order mark", "semicolons", "latin-1", "quoted"],
)
def test_labels_csv_of_a_spreadsheet_is_understood(inbox, data):
    assert labelled(inbox, data, "a.png").loc["a.png", "label"] == "NORMAL"


def test_windows_paths_name_the_file_below_their_folder(inbox):
    table = labelled(inbox, [r"images\a.png,normal"], "images/a.png")
    assert table["reasons"].to_dict() == {"images/a.png": []}


def test_folders_say_nothing_where_there_is_a_labels_csv(inbox):
    table = labelled(inbox, ["NORMAL/a.png,pneumonia"], "NORMAL/a.png", "NORMAL/b.png")
    assert list(table["label"]) == ["PNEUMONIA", ""]
    assert list(table["reasons"]) == [[], ["not_listed"]]


def test_a_file_listed_but_missing_and_one_not_listed_are_told_apart(inbox):
    table = labelled(inbox, ["a.png,normal", "lost.png,normal"], "a.png", "extra.png")
    assert table["reasons"].to_dict() == {"a.png": [], "extra.png": ["not_listed"], "lost.png": ["file_missing"]}


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "/etc/passwd", r"..\secret.png", ""])
def test_a_path_out_of_the_drop_is_never_looked_up(inbox, path):
    put_drop(inbox, "other", {"secret.png": b"x"})
    table = labelled(inbox, [f"{path},normal"], "a.png")
    assert table.loc[path.replace("\\", "/"), "reasons"] == ["path_outside_drop"]
    assert list(table.loc["a.png", "reasons"]) == ["not_listed"]


def test_rows_of_one_file_that_contradict_each_other_are_refused_and_repeated_ones_are_not(inbox):
    table = labelled(inbox, ["a.png,normal", "b.png,normal", "a.png,covid", "b.png,NORMAL"], "a.png", "b.png")
    assert table["reasons"].to_dict() == {"a.png": ["conflicting_rows"], "b.png": []}


def test_a_patient_becomes_a_salted_hash(inbox):
    rows = ["a.png,normal,Jane Doe 1961", "b.png,normal,Jane Doe 1961", "c.png,normal,", "d.png,normal,X"]
    table = labelled(inbox, rows, "a.png", "b.png", "c.png", "d.png", header="filename,label,patient_id")
    a, b, c, d = table["patient"]
    assert a == b != d and c == "" and len(a) == 16
    assert "Jane" not in table.to_csv()
    other = inbox.model_copy(update={"patient_salt": "another"})
    assert said(other, "drop").loc["a.png", "patient"] != a


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "filename and label"),
        (b"name,class\na.png,normal\n", "filename and label.*Received"),
        (b'filename,label\n"a.png,normal\n', "not a CSV table"),
        (b"filename,label\na.png," + b"x" * 200_000 + b"\n", "not a CSV table"),
    ],
    ids=["empty", "other columns", "an open quote", "a giant field"],
)
def test_a_labels_csv_that_cannot_be_used_refuses_the_drop_by_name(inbox, data, words):
    with pytest.raises(Refused, match=f"'drop'.*{words}|{words}.*'drop'"):
        labelled(inbox, data, "a.png")


def test_a_labels_csv_that_is_a_link_is_not_followed(inbox, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the first line of a secret\n")
    root = put_drop(inbox, "drop", {"NORMAL/a.png": b"x"})
    (root / "labels.csv").symlink_to(secret)
    with pytest.raises(Refused, match=r"labels\.csv") as caught:
        said(inbox, "drop")
    assert "secret" not in str(caught.value)


def test_a_labels_csv_larger_than_any_file_may_be_is_not_read(inbox):
    put_drop(inbox, "drop", {"labels.csv": csv("a.png,normal"), "a.png": b"x"})
    with pytest.raises(Refused, match=r"labels\.csv"):
        said(inbox.model_copy(update={"max_file_bytes": 10}), "drop")


# The inbox


def test_the_drops_are_the_folders_of_the_inbox(inbox, tmp_path):
    for name in ("b", "a"):
        put_drop(inbox, name, {"x.png": b"x"})
    (tmp_path / "inbox/file.txt").write_text("x")
    (tmp_path / "inbox/.partial").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "inbox/link").symlink_to(tmp_path / "outside")
    assert drops.names(inbox) == ["a", "b"]


@pytest.mark.parametrize("name", ["..", "../outside", "missing", "", "link"])
def test_a_name_that_is_no_drop_of_the_inbox_is_refused(inbox, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (tmp_path / "inbox/link").symlink_to(tmp_path / "outside")
    with pytest.raises(Refused, match="no drop of that name"):
        drops.listing(inbox, name)


def test_an_inbox_that_does_not_exist_is_refused_by_the_name_of_its_setting(inbox):
    with pytest.raises(Refused, match="CXR_INBOX"):
        drops.names(inbox.model_copy(update={"inbox": "/nowhere/at/all"}))


def test_links_are_listed_but_not_followed_and_clutter_is_not_listed(inbox, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.png").write_bytes(b"secret")
    files = dict.fromkeys(["NORMAL/a.png", ".DS_Store", "NORMAL/Thumbs.db", "NORMAL/._a.png", "desktop.ini"], b"x")
    root = put_drop(inbox, "drop", files)
    (root / "NORMAL/link.png").symlink_to(tmp_path / "outside/secret.png")
    (root / "NORMAL/folder").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "NORMAL/pipe.png")
    found = {e.file: e.size for e in drops.listing(inbox, "drop")}
    assert found == {"NORMAL/a.png": 1, "NORMAL/link.png": -1, "NORMAL/pipe.png": -1}


def test_the_name_of_a_batch_changes_with_any_change_of_the_drop_and_with_nothing_else(inbox):
    root = put_drop(inbox, "week 2 é", {"NORMAL/a.png": b"one", "NORMAL/b.png": b"two"})

    def name():
        return drops.batch_id(root.name, drops.listing(inbox, root.name))

    first = name()
    assert first == name()
    stem, _, digits = first.rpartition("-")
    assert len(digits) == 8 and stem == "week-2"
    seen = {first}
    os.utime(root / "NORMAL/a.png", (1, 1))
    seen.add(name())
    (root / "NORMAL/a.png").write_bytes(b"other")
    os.utime(root / "NORMAL/a.png", (1, 1))
    seen.add(name())
    (root / "NORMAL/a.png").rename(root / "NORMAL/c.png")
    seen.add(name())
    assert len(seen) == 4


def test_files_of_two_drops_that_look_alike_do_not_share_a_batch():
    entries = [drops.Entry("NORMAL/a.png", 1, "1", "/inbox/a.png")]
    assert drops.batch_id("a b", entries) != drops.batch_id("a-b", entries)


# An inbox in S3


@pytest.fixture
def remote(settings):
    """Settings whose inbox is in a bucket, and a function that puts an object there."""
    away = settings.model_copy(update={"inbox": f"s3://{settings.bucket}/in/box"})

    def put(key, data=b"x"):
        store.client(away.s3_endpoint_url).put_object(Bucket=away.bucket, Key=f"in/box/{key}", Body=data)

    return away, put


def test_an_inbox_in_s3_is_listed_and_read_like_a_folder(remote):
    settings, put = remote
    put("week-1/train/NORMAL/a.png", b"one")
    put("week-1/train/NORMAL/", b"")  # how consoles make a folder
    put("week-1/.DS_Store")
    put("week-10/labels.csv", csv("images/b.png,covid"))
    put("week-10/images/b.png", b"two")
    put("not-in-a-drop.png")
    assert drops.names(settings) == ["week-1", "week-10"]
    (entry,) = drops.listing(settings, "week-1")
    assert (entry.file, entry.size) == ("train/NORMAL/a.png", 3)
    assert drops.read(settings, entry) == b"one"
    assert said(settings, "week-1").loc["train/NORMAL/a.png", ["label", "split_hint"]].to_list() == ["NORMAL", "train"]
    assert said(settings, "week-10")["label"].to_dict() == {"images/b.png": "COVID19"}
    same = settings.model_copy(update={"inbox": settings.inbox + "/"})
    assert drops.listing(same, "week-1") == [entry]


def test_a_hidden_folder_in_s3_is_no_drop(remote):
    settings, put = remote
    put(".partial/NORMAL/b.png")
    put("drop/NORMAL/c.png")
    assert drops.names(settings) == ["drop"]


def test_the_batch_of_a_drop_in_s3_changes_with_the_bytes_of_a_file(remote):
    settings, put = remote
    put("drop/NORMAL/a.png", b"one")
    first = drops.batch_id("drop", drops.listing(settings, "drop"))
    put("drop/NORMAL/a.png", b"two")
    assert drops.batch_id("drop", drops.listing(settings, "drop")) != first


def test_a_drop_is_new_until_its_batch_is_committed_and_again_when_it_changes(settings):
    root = put_drop(settings, "drop", {"NORMAL/a.png": b"x"})
    (root.parent / "empty").mkdir()
    assert drops.new(settings) == ["drop"]
    batch = drops.batch_id("drop", drops.listing(settings, "drop"))
    store.put_if_absent(settings, f"batches/{batch}/ingested.parquet", b"not the commit mark")
    assert drops.new(settings) == ["drop"]
    store.put_if_absent(settings, f"batches/{batch}/batch.json", b"{}")
    assert drops.new(settings) == []
    (root / "NORMAL/b.png").write_bytes(b"y")
    assert drops.new(settings) == ["drop"]
