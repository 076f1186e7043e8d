"""What the inbox holds, and what a drop says of its files. A drop is hostile until judged."""

import os

import pandas as pd
import pytest
from drop_samples import csv, put_drop

from cxr_ml.errors import Refused
from cxr_ml.imaging.formats import BadImage
from cxr_ml.ingest import deidentify, drop_files, drop_index, inbox, labels
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


@pytest.fixture
def local(tmp_path):
    """Settings with an empty inbox; no store is needed to read a drop."""
    (tmp_path / "inbox").mkdir()
    return Settings(inbox={"path": str(tmp_path / "inbox"), "patient_salt": "salt"})


def said(settings, name) -> pd.DataFrame:
    return labels.read_labels(
        ObjectStore(settings.store), settings, name, inbox.list_files(ObjectStore(settings.store), settings.inbox, name)
    ).set_index("file")


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
        ("testing/NORMAL/a.png", "NORMAL", "test"),
        ("Hold-Out/NORMAL/a.png", "NORMAL", "test"),
        ("test set/NORMAL/a.png", "NORMAL", "test"),
        ("dev/NORMAL/a.png", "NORMAL", "validation"),
        ("train/TURBERCULOSIS/a.png", "TUBERCULOSIS", "train"),
        ("TB/a.png", "TUBERCULOSIS", ""),
    ],
)
def test_class_folders_give_the_label_and_the_split(local, file, label, split):
    put_drop(local, "drop", {file: b"x"})
    row = said(local, "drop").loc[file]
    assert (row["label"], row["split_hint"], row["reasons"]) == (label, split, [])


@pytest.mark.parametrize(
    ("file", "raw", "reason"),
    [("a.png", "", "no_label"), ("train/a.png", "", "no_label"), ("train/MEASLES/a.png", "MEASLES", "unknown_label")],
)
def test_a_file_without_a_known_label_says_why(local, file, raw, reason):
    put_drop(local, "drop", {file: b"x"})
    row = said(local, "drop").loc[file]
    assert (row["label"], row["label_raw"], row["reasons"]) == ("", raw, [reason])


def test_a_spelling_can_be_added_in_the_settings(local):
    put_drop(local, "drop", {"Maladie_A/a.png": b"x"})
    known = local.replace(inbox={"label_spellings": {"maladie a": "PNEUMONIA"}})
    assert said(known, "drop").loc["Maladie_A/a.png", "label"] == "PNEUMONIA"


# labels.csv


def test_labels_csv_gives_label_patient_view_source_and_split(local):
    table = labelled(
        local,
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
        b"filename\tlabel\na.png\tNormal\n",
        b"sep=;\r\nfilename;label\r\na.png;Normal\r\n",
        "filename\tlabel\na.png\tNormal\n".encode("utf-16"),
        "filename,label\na.png,Normal\n".encode("utf-16-le"),
        "filename,label\na.png,Normal\n".encode("utf-16-be"),
        b"filename,label\n\na.png,Normal\n\n",
    ],
    ids=[
        "byte order mark",
        "semicolons",
        "latin-1",
        "quoted",
        "tabs",
        "Excel's sep",
        "UTF-16",
        "UTF-16 without a mark",
        "big-endian",
        "empty lines",
    ],
)
def test_labels_csv_of_a_spreadsheet_is_understood(local, data):
    assert labelled(local, data, "a.png").loc["a.png", "label"] == "NORMAL"


@pytest.mark.parametrize(
    "header",
    ["File,Class,Patient", "image name,DIAGNOSIS,Patient ID", "Image Index,Finding Labels,patientId", "path,label,MRN"],
)
def test_columns_may_be_called_what_people_call_them(local, header):
    table = labelled(local, ["a.png,normal,P0007"], "a.png", header=header)
    assert table.loc["a.png", "label"] == "NORMAL" and len(table.loc["a.png", "patient"]) == 16


def test_the_usual_name_of_a_column_comes_before_what_else_it_may_be_called(local):
    header = "path,filename,class,label"
    assert labelled(local, ["/old/x.png,a.png,7,normal"], "a.png", header=header)["label"].to_dict() == {
        "a.png": "NORMAL"
    }


@pytest.mark.parametrize("name", ["Labels.csv", "LABELS.CSV"])
def test_labels_csv_may_be_written_in_capitals(local, name):
    put_drop(local, "drop", {name: csv("a.png,normal"), "a.png": b"x"})
    assert said(local, "drop")["label"].to_dict() == {"a.png": "NORMAL"}


def test_two_tables_of_one_drop_are_refused(local):
    put_drop(local, "drop", {"Labels.csv": csv("a.png,normal"), "labels.csv": csv("a.png,covid"), "a.png": b"x"})
    with pytest.raises(Refused, match=r"one labels\.csv"):
        said(local, "drop")


def test_quoted_newlines_and_odd_names_are_text(local):
    rows = ['"two\nlines.png",normal', '"=cmd()|x.png",normal', "\N{LUNGS}.png,normal", '"say ""ah"".png",normal']
    files = ["two\nlines.png", "=cmd()|x.png", "\N{LUNGS}.png", 'say "ah".png']
    assert labelled(local, rows, *files)["reasons"].to_dict() == {f: [] for f in files}


def test_a_name_is_found_however_its_accents_are_composed(local):
    table = labelled(local, ["caf\u00e9.png,normal"], "cafe\u0301.png")
    assert table["label"].to_dict() == {"cafe\u0301.png": "NORMAL"}


def test_one_file_written_in_two_ways_is_one_file(local):
    table = labelled(local, ["./i/a.png,normal", r"i\a.png,normal", "i//a.png,covid"], "i/a.png")
    assert table["reasons"].to_dict() == {"i/a.png": ["conflicting_rows"]}


def test_rows_that_give_one_file_two_patients_or_splits_contradict_each_other(local):
    rows = ["a.png,normal,P0001,test", "a.png,normal,P0002,test", "b.png,normal,P3,test", "b.png,normal,P3,train"]
    table = labelled(local, rows, "a.png", "b.png", header="filename,label,patient_id,split")
    assert list(table["reasons"]) == [["conflicting_rows"]] * 2


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Training", "train"),
        ("valid", "validation"),
        ("validate", "validation"),
        ("dev", "validation"),
        ("Test set", "test"),
        ("testing", "test"),
        ("eval", "test"),
        ("hold_out", "test"),
        (" ", ""),
    ],
)
def test_a_split_may_be_called_what_people_call_it(local, text, split):
    table = labelled(local, [f"a.png,normal,{text}"], "a.png", header="filename,label,split")
    assert table.loc["a.png", ["split_hint", "reasons"]].to_list() == [split, []]


@pytest.mark.parametrize("text", ["tst", "1", "set", "train/test"])
def test_an_image_in_a_split_that_nobody_knows_is_never_guessed_into_train(local, text):
    rows = [f"a.png,normal,{text}", "b.png,normal,", f"c.png,measles,{text}", f"d.png,normal,{text}"]
    table = labelled(local, rows, "a.png", "b.png", "c.png", header="filename,label,split")
    reasons = table["reasons"].to_dict()
    assert reasons == {
        "a.png": ["unknown_split"],
        "b.png": [],
        "c.png": ["unknown_split"],
        "d.png": ["file_missing"],
    }


def test_a_table_of_too_many_rows_is_refused(local):
    with pytest.raises(Refused, match="max_drop_files"):
        labelled(local.replace(inbox={"max_drop_files": 3}), [f"{i}.png,normal" for i in range(4)], "0.png")


def test_a_row_that_names_a_link_ends_as_one(local, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    root = put_drop(local, "drop", {"labels.csv": csv("link.png,normal")})
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    entries = inbox.list_files(ObjectStore(local.store), local.inbox, "drop")
    (row,) = labels.read_labels(ObjectStore(local.store), local, "drop", entries).to_dict("records")
    with pytest.raises(BadImage) as caught:
        drop_files.read_file(ObjectStore(local.store), local.images, entries[row["entry"]])
    assert (row["reasons"], caught.value.code) == ([], "symlink")


def test_files_named_by_the_patient_get_the_hash_and_are_still_found(local):
    rows = ["P0007/chest_p0007.png,normal,P0007", "x.png,normal,P0008"]
    files = {"labels.csv": csv(*rows, header="filename,label,patient_id"), "P0007/chest_p0007.png": b"one"}
    put_drop(local, "drop", files | {"x.png": b"two", "p0008_unlisted.png": b"three"})
    entries = inbox.list_files(ObjectStore(local.store), local.inbox, "drop")
    table = labels.read_labels(ObjectStore(local.store), local, "drop", entries)
    seven, eight = (deidentify.hash_patient(local.inbox, p) for p in ("P0007", "P0008"))
    assert {
        row.file: drop_files.read_file(ObjectStore(local.store), local.images, entries[row.entry])
        for row in table.itertuples()
    } == {
        f"{seven}/chest_{seven}.png": b"one",
        "x.png": b"two",
        f"{eight}_unlisted.png": b"three",
    }
    assert not {"p0007", "p0008"} & set(table.to_csv().lower().replace("_", ",").replace("/", ",").split(","))


def test_a_table_that_names_patients_needs_a_salt(local):
    with pytest.raises(Refused, match="CXR_INBOX__PATIENT_SALT"):
        labelled(local.replace(inbox={"patient_salt": ""}), ["a.png,normal,P7"], "a.png", header="filename,label,mrn")


def test_windows_paths_name_the_file_below_their_folder(local):
    table = labelled(local, [r"images\a.png,normal"], "images/a.png")
    assert table["reasons"].to_dict() == {"images/a.png": []}


def test_folders_say_nothing_where_there_is_a_labels_csv(local):
    table = labelled(local, ["NORMAL/a.png,pneumonia"], "NORMAL/a.png", "NORMAL/b.png")
    assert list(table["label"]) == ["PNEUMONIA", ""]
    assert list(table["reasons"]) == [[], ["not_listed"]]


def test_a_file_listed_but_missing_and_one_not_listed_are_told_apart(local):
    table = labelled(local, ["a.png,normal", "lost.png,normal"], "a.png", "extra.png")
    assert table["reasons"].to_dict() == {"a.png": [], "extra.png": ["not_listed"], "lost.png": ["file_missing"]}


@pytest.mark.parametrize(
    "path", ["../secret.png", "images/../../secret.png", "/etc/passwd", r"..\secret.png", r"C:\x.png", ""]
)
def test_a_path_out_of_the_drop_is_never_looked_up(local, path):
    put_drop(local, "other", {"secret.png": b"x"})
    table = labelled(local, [f"{path},normal"], "a.png")
    assert table.loc[path.replace("\\", "/"), "reasons"] == ["path_outside_drop"]
    assert list(table.loc["a.png", "reasons"]) == ["not_listed"]


def test_contradicting_rows_of_one_file_are_refused_and_repeated_ones_are_not(local):
    table = labelled(local, ["a.png,normal", "b.png,normal", "a.png,covid", "b.png,NORMAL"], "a.png", "b.png")
    assert table["reasons"].to_dict() == {"a.png": ["conflicting_rows"], "b.png": []}


def test_a_patient_becomes_a_salted_hash(local):
    rows = ["a.png,normal,Jane Doe 1961", "b.png,normal,Jane Doe 1961", "c.png,normal,", "d.png,normal,X"]
    table = labelled(local, rows, "a.png", "b.png", "c.png", "d.png", header="filename,label,patient_id")
    a, b, c, d = table["patient"]
    assert a == b != d and c == "" and len(a) == 16
    assert "Jane" not in table.to_csv()
    other = local.replace(inbox={"patient_salt": "another"})
    assert said(other, "drop").loc["a.png", "patient"] != a


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "filename and label"),
        (b"name,class\na.png,normal\n", "filename and label.*Received"),
        (b'filename,label\nb.png,normal\n"a.png"x,normal\n', "not a CSV table: line 3"),
        (b"filename,label\na.png," + b"x" * 200_000 + b"\n", "not a CSV table"),
    ],
    ids=["empty", "other columns", "an odd quote", "a giant field"],
)
def test_a_labels_csv_that_cannot_be_used_refuses_the_drop_by_name(local, data, words):
    with pytest.raises(Refused, match=f"'drop'.*{words}|{words}.*'drop'"):
        labelled(local, data, "a.png")


def test_a_labels_csv_that_is_a_link_is_not_followed(local, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the first line of a secret\n")
    root = put_drop(local, "drop", {"NORMAL/a.png": b"x"})
    (root / "labels.csv").symlink_to(secret)
    with pytest.raises(Refused, match=r"labels\.csv") as caught:
        said(local, "drop")
    assert "secret" not in str(caught.value)


def test_a_labels_csv_larger_than_any_file_may_be_is_not_read(local):
    put_drop(local, "drop", {"labels.csv": csv("a.png,normal"), "a.png": b"x"})
    with pytest.raises(Refused, match=r"labels\.csv"):
        said(local.replace(images={"max_file_bytes": 10}), "drop")


# The inbox


def test_the_drops_are_the_folders_of_the_inbox(local, tmp_path):
    for name in ("b", "a"):
        put_drop(local, name, {"x.png": b"x"})
    (tmp_path / "inbox/file.txt").write_text("x")
    (tmp_path / "inbox/.partial").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "inbox/link").symlink_to(tmp_path / "outside")
    assert inbox.list_drops(ObjectStore(local.store), local.inbox) == ["a", "b"]


@pytest.mark.parametrize("name", ["..", "../outside", "missing", "", "link"])
def test_a_name_that_is_no_drop_of_the_inbox_is_refused(local, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (tmp_path / "inbox/link").symlink_to(tmp_path / "outside")
    with pytest.raises(Refused, match="no drop of that name"):
        inbox.list_files(ObjectStore(local.store), local.inbox, name)


def test_an_inbox_that_does_not_exist_is_refused_by_the_name_of_its_setting(local):
    with pytest.raises(Refused, match="CXR_INBOX__PATH"):
        inbox.list_drops(
            ObjectStore(local.replace(inbox={"path": "/nowhere/at/all"}).store),
            local.replace(inbox={"path": "/nowhere/at/all"}).inbox,
        )


def test_links_are_listed_but_not_followed_and_clutter_is_not_listed(local, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.png").write_bytes(b"secret")
    files = dict.fromkeys(["NORMAL/a.png", ".DS_Store", "NORMAL/Thumbs.db", "NORMAL/._a.png", "desktop.ini"], b"x")
    root = put_drop(local, "drop", files)
    (root / "NORMAL/link.png").symlink_to(tmp_path / "outside/secret.png")
    (root / "NORMAL/folder").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "NORMAL/pipe.png")
    found = {e.file: (e.size, e.fault) for e in inbox.list_files(ObjectStore(local.store), local.inbox, "drop")}
    assert found == {
        "NORMAL/a.png": (1, ""),
        "NORMAL/folder": (-1, "symlink"),
        "NORMAL/link.png": (-1, "symlink"),
        "NORMAL/pipe.png": (-1, "special_file"),
    }


@pytest.mark.parametrize("change", ["touched", "longer", "a link", "a pipe", "gone"])
def test_a_file_that_is_no_longer_what_was_listed_is_not_read(local, tmp_path, change):
    path = put_drop(local, "drop", {"NORMAL/a.png": b"one"}) / "NORMAL/a.png"
    (entry,) = inbox.list_files(ObjectStore(local.store), local.inbox, "drop")
    if change == "touched":
        os.utime(path, (1, 1))
    elif change == "longer":
        path.write_bytes(b"one more")
        os.utime(path, ns=(int(entry.stamp), int(entry.stamp)))
    else:
        path.unlink()
        (tmp_path / "secret").write_bytes(b"two")
        if change == "a link":
            path.symlink_to(tmp_path / "secret")
        elif change == "a pipe":
            os.mkfifo(path)
    with pytest.raises(Refused, match=r"must not change.*start a new run"):
        drop_files.read_file(ObjectStore(local.store), local.images, entry)


def test_the_name_of_a_batch_changes_only_with_the_drop(local):
    root = put_drop(local, "week 2 é", {"NORMAL/a.png": b"one", "NORMAL/b.png": b"two"})

    def name():
        return inbox.make_batch_id(root.name, inbox.list_files(ObjectStore(local.store), local.inbox, root.name))

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
    entries = [drop_index.Entry("NORMAL/a.png", 1, "1", "/inbox/a.png")]
    assert inbox.make_batch_id("a b", entries) != inbox.make_batch_id("a-b", entries)


# An inbox in S3


@pytest.fixture
def remote(settings):
    """Settings whose inbox is in a bucket, and a function that puts an object there."""
    away = settings.replace(inbox={"path": f"s3://{settings.store.bucket}/in/box"})

    def put(key, data=b"x"):
        ObjectStore(away.store).client.put_object(Bucket=away.store.bucket, Key=f"in/box/{key}", Body=data)

    return away, put


def test_an_inbox_in_s3_is_listed_and_read_like_a_folder(remote):
    settings, put = remote
    put("week-1/train/NORMAL/a.png", b"one")
    put("week-1/train/NORMAL/", b"")  # how consoles make a folder
    put("week-1/.DS_Store")
    put("week-10/labels.csv", csv("images/b.png,covid"))
    put("week-10/images/b.png", b"two")
    put("not-in-a-drop.png")
    assert inbox.list_drops(ObjectStore(settings.store), settings.inbox) == ["week-1", "week-10"]
    (entry,) = inbox.list_files(ObjectStore(settings.store), settings.inbox, "week-1")
    assert (entry.file, entry.size) == ("train/NORMAL/a.png", 3)
    assert drop_files.read_file(ObjectStore(settings.store), settings.images, entry) == b"one"
    assert said(settings, "week-1").loc["train/NORMAL/a.png", ["label", "split_hint"]].to_list() == ["NORMAL", "train"]
    assert said(settings, "week-10")["label"].to_dict() == {"images/b.png": "COVID19"}
    same = settings.replace(inbox={"path": settings.inbox.path + "/"})
    assert list(inbox.list_files(ObjectStore(same.store), same.inbox, "week-1")) == [entry]
    put("week-1/train/NORMAL/a.png", b"two")
    with pytest.raises(Refused, match="must not change"):
        drop_files.read_file(ObjectStore(settings.store), settings.images, entry)


def test_a_hidden_folder_in_s3_is_no_drop(remote):
    settings, put = remote
    put(".partial/NORMAL/b.png")
    put("drop/NORMAL/c.png")
    assert inbox.list_drops(ObjectStore(settings.store), settings.inbox) == ["drop"]


def test_the_batch_of_a_drop_in_s3_changes_with_the_bytes_of_a_file(remote):
    settings, put = remote
    put("drop/NORMAL/a.png", b"one")
    first = inbox.make_batch_id("drop", inbox.list_files(ObjectStore(settings.store), settings.inbox, "drop"))
    put("drop/NORMAL/a.png", b"two")
    assert inbox.make_batch_id("drop", inbox.list_files(ObjectStore(settings.store), settings.inbox, "drop")) != first


def test_a_drop_is_new_until_its_batch_is_committed_and_again_when_it_changes(store, settings):
    root = put_drop(settings, "drop", {"NORMAL/a.png": b"x"})
    (root.parent / "empty").mkdir()
    assert inbox.list_new_drops(store, settings.inbox) == ["drop"]
    batch = inbox.make_batch_id("drop", inbox.list_files(store, settings.inbox, "drop"))
    store.put_if_absent(f"batches/{batch}/ingested.parquet", b"not the commit mark")
    assert inbox.list_new_drops(store, settings.inbox) == ["drop"]
    store.put_if_absent(f"batches/{batch}/batch.json", b"{}")
    assert inbox.list_new_drops(store, settings.inbox) == []
    (root / "NORMAL/b.png").write_bytes(b"y")
    assert inbox.list_new_drops(store, settings.inbox) == ["drop"]
