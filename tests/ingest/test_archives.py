"""Drops that are archives: what they hold, what is refused, and that nothing of them lands anywhere."""

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from drop_samples import csv, ingested, png, put_drop, snapshot, verdicts

from cxr_ml.errors import Refused
from cxr_ml.imaging import formats
from cxr_ml.ingest import archives, cache, drop_files, inbox, ingest_drop, labels
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

KINDS = ["drop.zip", "drop.tar", "drop.tar.gz", "drop.TGZ"]


@pytest.fixture
def local(tmp_path):
    """Settings with an empty inbox; no store is needed to read a drop."""
    (tmp_path / "inbox").mkdir()
    return Settings(cache_dir=tmp_path / "cache", inbox={"path": str(tmp_path / "inbox"), "patient_salt": "salt"})


def packed(files: dict[str, bytes], name: str) -> bytes:
    """The files as an archive of the kind that the name says."""
    buffer = io.BytesIO()
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, data in files.items():
                archive.writestr(file, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue()) if name.lower().endswith("gz") else buffer.getvalue()


def put(settings, data, name="drop.zip"):
    path = Path(settings.inbox.path) / name
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def held(settings, name="drop.zip"):
    """File -> bytes or, where they cannot be read, the reason."""
    found = {}
    with inbox.open_drop(ObjectStore(settings.store), settings, name) as (_, entries):
        for entry in entries:
            try:
                found[entry.file] = drop_files.read_file(ObjectStore(settings.store), settings.images, entry)
            except formats.BadImage as error:
                found[entry.file] = error.code
    return found


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """A ZIP of (ZipInfo or name, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for info, data in members:
            archive.writestr(info, data)
    return buffer.getvalue()


def tarred(*members):
    """A tar of TarInfo, whose data are zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


# What they hold


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_a_drop_and_gives_the_bytes_of_its_files(local, name):
    files = {"NORMAL/a.png": b"one" * 1000, "NORMAL/b.png": b"", "COVID19/c.png": os.urandom(5000)}
    put(local, packed(files, name), name)
    assert inbox.list_drops(ObjectStore(local.store), local.inbox) == [name]
    assert held(local, name) == dict(sorted(files.items()))
    cache.evict(ObjectStore(local.store), local.inbox, local.cache_dir, name)
    assert list(local.cache_dir.rglob("*")) == [local.cache_dir / "drops"]


def test_what_is_no_archive_is_no_drop(local, tmp_path):
    for name in ("a.rar", "b.png", ".hidden.zip", "c.gz"):
        put(local, b"x", name)
    (tmp_path / "inbox/link.zip").symlink_to(put(local, packed({"a.png": b"x"}, "x.zip"), "real.zip"))
    assert inbox.list_drops(ObjectStore(local.store), local.inbox) == ["real.zip"]


def _bytes(settings, entry):
    return drop_files.read_file(ObjectStore(settings.store), settings.images, entry)


@pytest.mark.parametrize("name", ["drop.zip", "drop.tgz"])
def test_files_of_an_archive_are_read_in_other_processes(local, name):
    files = {f"NORMAL/{i}.png": os.urandom(100 + i) for i in range(20)}
    put(local, packed(files, name), name)
    with (
        inbox.open_drop(ObjectStore(local.store), local, name) as (_, entries),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        read = dict(zip([e.file for e in entries], pool.map(_bytes, [local] * 20, entries), strict=True))
    assert read == files


@pytest.mark.parametrize("name", KINDS)
def test_the_batch_of_an_archive_is_known_without_opening_it(local, name, monkeypatch):
    path = put(local, packed({"NORMAL/a.png": b"one"}, name), name)
    with inbox.open_drop(ObjectStore(local.store), local, name) as (batch, _):
        pass
    monkeypatch.setattr(archives, "list_members", lambda *_: pytest.fail("opened"))
    assert inbox.make_batch_id(name, inbox.list_files(ObjectStore(local.store), local.inbox, name)) == batch
    os.utime(path, (1, 1))
    assert inbox.make_batch_id(name, inbox.list_files(ObjectStore(local.store), local.inbox, name)) != batch


@pytest.mark.parametrize(
    ("file", "label", "split"),
    [
        ("wrapped/NORMAL/a.png", "NORMAL", ""),
        ("wrapped/train/NORMAL/a.png", "NORMAL", "train"),
        ("wrapped/test/covid-19/site/a.png", "COVID19", "test"),
        ("NORMAL/a.png", "NORMAL", ""),
        ("train/NORMAL/a.png", "NORMAL", "train"),
    ],
)
def test_a_folder_around_everything_is_looked_through(local, file, label, split):
    put(local, packed({file: b"x", "readme.txt": b"about"}, "drop.zip"))
    with inbox.open_drop(ObjectStore(local.store), local, "drop.zip") as (_, entries):
        row = labels.read_labels(ObjectStore(local.store), local, "drop.zip", entries).set_index("file").loc[file]
    assert (row["label"], row["split_hint"], row["reasons"]) == (label, split, [])


def test_a_folder_of_an_unknown_class_is_not_taken_for_a_wrapper(local):
    put(local, packed({"MEASLES/a.png": b"x"}, "drop.zip"))
    with inbox.open_drop(ObjectStore(local.store), local, "drop.zip") as (_, entries):
        (row,) = labels.read_labels(ObjectStore(local.store), local, "drop.zip", entries).to_dict("records")
    assert row["reasons"] == ["unknown_label"]


def test_a_labels_csv_in_the_wrapping_folder_names_files_below_it(local):
    files = {"week/labels.csv": csv("images/a.png,covid", "week/b.png,normal"), "week/images/a.png": b"x"}
    put(local, packed(files | {"week/b.png": b"y"}, "drop.zip"))
    with inbox.open_drop(ObjectStore(local.store), local, "drop.zip") as (_, entries):
        table = labels.read_labels(ObjectStore(local.store), local, "drop.zip", entries).set_index("file")
    assert table["label"].to_dict() == {"week/images/a.png": "COVID19", "week/b.png": "NORMAL"}
    assert all(r == [] for r in table["reasons"])


def test_names_of_windows_and_clutter_of_a_mac_are_understood(local):
    windows = zipfile.ZipInfo("NORMAL/a.png")
    windows.filename = "NORMAL\\a.png"
    clutter = [("__MACOSX/NORMAL/._a.png", b"x"), ("NORMAL/.DS_Store", b"x"), ("__MACOSX/more.png", b"x")]
    put(local, zipped((windows, b"one"), *clutter))
    assert held(local) == {"NORMAL/a.png": b"one"}


def test_a_folder_packed_from_inside_is_read_like_one_packed_from_outside(local):
    put(local, packed({"./NORMAL/a.png": b"one", "././/labels.csv": csv("NORMAL/a.png,covid")}, "drop.tgz"), "drop.tgz")
    with inbox.open_drop(ObjectStore(local.store), local, "drop.tgz") as (_, entries):
        table = labels.read_labels(ObjectStore(local.store), local, "drop.tgz", entries)
    assert table[["file", "label"]].to_numpy().tolist() == [["NORMAL/a.png", "COVID19"]]


# What is refused


STRANGE = ["NORMAL/two\nlines.png", "NORMAL/=cmd().png", "NORMAL/\N{LUNGS}.png", "NORMAL/" + "n" * 300 + ".png"]


@pytest.mark.parametrize("name", ["drop.zip", "drop.tar", "drop.tar.gz"])
def test_hostile_names_have_a_reason_or_are_only_text(local, tmp_path, name):
    before = sorted(p for p in tmp_path.parent.rglob("*"))
    climbing = ["../up.png", "NORMAL/../../up.png", "/tmp/absolute.png", "C:/windows.png"]
    files = dict.fromkeys([*STRANGE, *climbing, "NORMAL/" + "n" * 2000 + ".png"], b"x")
    path = put(local, packed(files, name), name)
    found = held(local, name)
    assert {f: found[f] for f in STRANGE} == dict.fromkeys(STRANGE, b"x")
    assert {f: found[f] for f in climbing} == dict.fromkeys(climbing, "path_outside_drop")
    (long,) = set(found) - {*STRANGE, *climbing}
    assert found[long] == "name_too_long" and len(long) < 300
    with inbox.open_drop(ObjectStore(local.store), local, name) as (_, entries):
        table = labels.read_labels(ObjectStore(local.store), local, name, entries).set_index("file")
    assert all(table.loc[f, "label"] == "" and table.loc[f, "reasons"] == [] for f in climbing)
    created = {p for p in tmp_path.parent.rglob("*") if local.cache_dir not in p.parents} - {*before, path}
    assert created == {local.cache_dir}
    assert {p.name for p in local.cache_dir.rglob("*") if p.is_file()} <= {"listing", "lock", "archive"}


def test_links_devices_and_folders_of_a_zip(local):
    def special(name, kind):
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (kind | 0o644) << 16
        return info

    put(
        local,
        zipped(
            (special("NORMAL/link.png", stat.S_IFLNK), b"/etc/passwd"),
            (special("NORMAL/pipe.png", stat.S_IFIFO), b""),
            (special("NORMAL/file.png", stat.S_IFREG), b"x"),
            ("NORMAL/folder/", b""),
        ),
    )
    assert held(local) == {"NORMAL/link.png": "symlink", "NORMAL/pipe.png": "special_file", "NORMAL/file.png": b"x"}
    with inbox.open_drop(ObjectStore(local.store), local, "drop.zip") as (_, entries):
        assert {e.file: e.size for e in entries}["NORMAL/link.png"] == -1


def test_links_devices_and_folders_of_a_tar(local):
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "folder": tarfile.DIRTYPE}
    infos = []
    for name, kind in kinds.items():
        info = tarfile.TarInfo(f"NORMAL/{name}")
        info.type, info.linkname = kind, "../../secret"
        infos.append(info)
    put(local, tarred(*infos), "drop.tar")
    assert held(local, "drop.tar") == {
        "NORMAL/link": "symlink",
        "NORMAL/hard": "symlink",
        "NORMAL/device": "special_file",
    }


def test_two_files_of_one_name_are_listed_once_and_not_read(local):
    with pytest.warns(UserWarning, match="Duplicate name"):
        put(local, zipped(("NORMAL/a.png", b"one"), ("NORMAL/a.png", b"two"), ("NORMAL/b.png", b"x")))
    assert held(local) == {"NORMAL/a.png": "duplicate_name", "NORMAL/b.png": b"x"}


def flagged(data, flag):
    """The ZIP with a flag set for every file, in both of its headers."""
    data = bytearray(data)
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(magic)
        while start >= 0:
            data[start + at] |= flag
            start = data.find(magic, start + 4)
    return bytes(data)


def test_encrypted_files_and_methods_that_are_not_read_have_a_reason(local):
    put(local, flagged(packed({"NORMAL/a.png": b"secret"}, "drop.zip"), 1))
    assert held(local) == {"NORMAL/a.png": "encrypted"}
    put(local, zipped(("NORMAL/a.png", b"x" * 1000), method=zipfile.ZIP_LZMA))
    assert held(local) == {"NORMAL/a.png": "unsupported_compression"}


def test_a_damaged_file_of_a_zip_does_not_take_the_others_with_it(local):
    data = bytearray(zipped(("NORMAL/a.png", b"A" * 500), ("NORMAL/b.png", b"B" * 500), method=zipfile.ZIP_STORED))
    data[data.find(b"AAAA") + 7] ^= 1
    put(local, bytes(data))
    assert held(local) == {"NORMAL/a.png": "damaged_member", "NORMAL/b.png": b"B" * 500}


def lying(data, size):
    """The ZIP whose first file says in both headers that it is `size` bytes long."""
    data = bytearray(data)
    struct.pack_into("<I", data, data.find(b"PK\3\4") + 22, size)
    struct.pack_into("<I", data, data.find(b"PK\1\2") + 24, size)
    return bytes(data)


def test_a_file_larger_than_it_is_listed_with_is_not_unpacked_any_further(local):
    put(local, lying(packed({"NORMAL/a.png": bytes(50_000_000)}, "drop.zip"), 1_000))
    assert held(local) == {"NORMAL/a.png": "damaged_member"}


def test_a_file_larger_than_any_may_be_is_not_read(local):
    put(local, packed({"NORMAL/a.png": bytes(2000), "NORMAL/b.png": b"x"}, "drop.zip"))
    assert held(local.replace(images={"max_file_bytes": 1000})) == {
        "NORMAL/a.png": "too_large",
        "NORMAL/b.png": b"x",
    }


@pytest.mark.parametrize("name", ["drop.zip", "drop.tar.gz"])
def test_an_archive_that_unpacks_to_too_much_is_refused_by_its_name_and_the_setting(local, name):
    path = put(local, packed({f"NORMAL/{i}.png": bytes(1_000_000) for i in range(30)}, name), name)
    assert path.stat().st_size < 100_000
    small = local.replace(inbox={"max_archive_bytes": 10_000_000})
    with (
        pytest.raises(Refused, match=rf"{name}.*max_archive_bytes"),
        inbox.open_drop(ObjectStore(small.store), small, name),
    ):
        pass
    assert [p.name for p in local.cache_dir.rglob("*") if p.is_file()] == ["lock"]


def test_an_archive_of_too_many_files_is_refused(local):
    put(local, packed({f"NORMAL/{i}.png": b"" for i in range(11)}, "drop.zip"))
    with (
        pytest.raises(Refused, match="max_drop_files"),
        inbox.open_drop(
            ObjectStore(local.replace(inbox={"max_drop_files": 10}).store),
            local.replace(inbox={"max_drop_files": 10}),
            "drop.zip",
        ),
    ):
        pass


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_cut_short_is_refused_and_never_taken_in_part(local, name, share):
    whole = packed({f"NORMAL/{i}.png": os.urandom(30_000) for i in range(5)}, name)
    whole = whole.rstrip(b"\0") if name == "drop.tar" else whole
    put(local, whole[: int(len(whole) * share)], name)
    with (
        pytest.raises(Refused, match=rf"{name}.*incomplete or damaged.*Copy it again"),
        inbox.open_drop(ObjectStore(local.store), local, name),
    ):
        pass


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", os.urandom(5000), b"\x1f\x8b" + b"\0" * 50, b"PK\3\4" + b"\0" * 90]
)
def test_what_is_no_archive_behind_the_name_of_one_is_refused(local, data):
    for name in ("drop.zip", "drop.tar.gz"):
        put(local, data, name)
        with pytest.raises(Refused, match=name), inbox.open_drop(ObjectStore(local.store), local, name):
            pass


def test_a_damaged_header_amid_a_tar_is_not_taken_for_its_end(local):
    data = bytearray(packed({f"NORMAL/{i}.png": b"x" * 600 for i in range(4)}, "drop.tar"))
    data[data.find(b"NORMAL/2.png")] ^= 0xFF
    put(local, bytes(data), "drop.tar")
    with pytest.raises(Refused, match="damaged"), inbox.open_drop(ObjectStore(local.store), local, "drop.tar"):
        pass


def test_a_tar_whose_headers_claim_gigabytes_is_refused_unread(local):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE):
        info = tarfile.TarInfo("NORMAL/a.png")
        info.type, info.size = kind, 1 << 33
        put(local, info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240), "drop.tar")
        with pytest.raises(Refused, match="damaged"), inbox.open_drop(ObjectStore(local.store), local, "drop.tar"):
            pass


def test_random_damage_gives_files_reasons_or_a_refusal_and_no_other_error(local):
    chance, outcomes = random.Random(0), set()
    for name in ("drop.zip", "drop.tar", "drop.tar.gz"):
        whole = packed({f"NORMAL/{i}.png": b"data" * 50 for i in range(3)}, name)
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(3):
                data[chance.randrange(len(data))] = chance.randrange(256)
            put(local, bytes(data), name)
            try:
                outcomes |= {type(v) for v in held(local, name).values()}
            except Refused:
                outcomes.add(Refused)
    assert outcomes == {bytes, str, Refused}


def test_an_archive_that_is_replaced_while_it_is_read_is_not_read_any_further(local):
    path = put(local, packed({"NORMAL/a.png": b"x"}, "drop.zip"))
    with inbox.open_drop(ObjectStore(local.store), local, "drop.zip") as (_, (entry,)):
        os.utime(path, (5, 5))
        with pytest.raises(Refused, match="must not change"):
            drop_files.read_file(ObjectStore(local.store), local.images, entry)


# On the way into the store


def test_an_archive_of_each_kind_gives_the_rows_and_images_of_its_folder(store, settings):
    files = {"week/train/NORMAL/a.png": png(1), "week/test/COVID19/b.png": png(2), "week/NORMAL/bad.png": b"x"}
    inner = packed({"NORMAL/c.png": png(3)}, "inner.zip")
    files |= {"week/NORMAL/inner.zip": inner, "week/NORMAL/inner.tgz": gzip.compress(inner)}
    put_drop(settings, "folder", files)
    for name in KINDS:
        put(settings, packed(files, name), name)
    assert inbox.list_new_drops(store, settings.inbox) == sorted(["folder", *KINDS])
    folder, *archived = (ingested(settings, ingest_drop.ingest(store, settings, n)) for n in ("folder", *KINDS))
    assert {name: a.to_json() for name, a in zip(KINDS, archived, strict=True)} == dict.fromkeys(
        KINDS, folder.to_json()
    )
    assert verdicts(folder) == {
        "week/NORMAL/bad.png": ("quarantined", "not_an_image"),
        "week/NORMAL/inner.tgz": ("quarantined", "nested_archive"),
        "week/NORMAL/inner.zip": ("quarantined", "nested_archive"),
        "week/test/COVID19/b.png": ("accepted",),
        "week/train/NORMAL/a.png": ("accepted",),
    }


def test_an_archive_that_is_in_the_store_is_not_opened_again(store, settings, monkeypatch):
    put(settings, packed({"NORMAL/a.png": png(1)}, "drop.tgz"), "drop.tgz")
    batch = ingest_drop.ingest(store, settings, "drop.tgz")
    store.put_if_absent(f"batches/{batch}/batch.json", b"{}")
    before = snapshot(settings)
    monkeypatch.setattr(archives, "list_members", lambda *_: pytest.fail("opened"))
    assert (
        inbox.list_new_drops(store, settings.inbox) == [] and ingest_drop.ingest(store, settings, "drop.tgz") == batch
    )
    assert snapshot(settings) == before


@pytest.mark.parametrize("name", ["drop.zip", "drop.tgz"])
def test_an_archive_in_an_inbox_in_s3_is_a_drop(settings, name):
    away = settings.replace(inbox={"path": f"s3://{settings.store.bucket}/inbox"})
    data = packed({"NORMAL/a.png": png(1), "../b.png": png(2)}, name)
    ObjectStore(away.store).client.put_object(Bucket=away.store.bucket, Key=f"inbox/{name}", Body=data)
    assert (
        inbox.list_drops(ObjectStore(away.store), away.inbox)
        == inbox.list_new_drops(ObjectStore(away.store), away.inbox)
        == [name]
    )
    rows = ingested(away, ingest_drop.ingest(ObjectStore(away.store), away, name))
    assert verdicts(rows) == {"NORMAL/a.png": ("accepted",), "../b.png": ("quarantined", "path_outside_drop")}
    assert not [p for p in away.cache_dir.rglob("*") if p.is_file()]
    with (
        pytest.raises(Refused, match="max_archive_bytes"),
        inbox.open_drop(
            ObjectStore(away.replace(inbox={"max_archive_bytes": 99}).store),
            away.replace(inbox={"max_archive_bytes": 99}),
            name,
        ),
    ):
        pass
