"""What is known of a drop on one machine: found out once, noticed when it is no longer true, gone when it is done."""

import gzip
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from drop_samples import csv, ingested, png, put_drop
from test_archives import packed, put

from cxr_ml.ingest import archives, cache, drop_files, inbox, ingest_drop, label_matching, labels
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("handful")

OLD = (1_700_000_000, 1_700_000_000)
FILES = {f"NORMAL/{n}.png": png(n) for n in range(4)}


@pytest.fixture
def small(settings):
    return settings.replace(inbox={"shard_files": 2})


@pytest.fixture
def calls(monkeypatch):
    """How often drops were listed, unpacked and had their labels.csv read."""
    counted = []

    def counting(name, whole):
        return lambda *args: (counted.append(name), whole(*args))[1]

    for module, name in ((inbox, "_index_folder"), (archives, "decompress"), (label_matching, "match_rows")):
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return counted


def aged(root: Path) -> Path:
    """The drop, its folders as old as those of a drop that was copied before the run."""
    for folder in [*(p for p in root.rglob("*") if p.is_dir()), root]:
        os.utime(folder, OLD)
    return root


def files(settings, drop="drop"):
    with inbox.open_drop(ObjectStore(settings.store), settings, drop) as (_, entries):
        return [e.file for e in entries]


def left(settings):
    return [p.name for p in settings.cache_dir.rglob("*") if p.is_file()]


def test_all_shards_of_a_drop_share_one_listing_and_one_reading_of_its_table(store, small, calls):
    rows = [f"NORMAL/{n}.png,normal,P000{n}" for n in range(4)]
    aged(put_drop(small, "drop", FILES | {"labels.csv": csv(*rows, header="filename,label,patient")}))
    plan = ingest_drop.plan_shards(store, small, "drop")
    assert len(plan) == 3
    for shard in plan:
        assert left(small)
        ingest_drop.ingest_shard(store, small, shard)
    assert calls == ["_index_folder", "match_rows"]
    assert left(small) == []
    assert set(ingested(small, plan[0].batch)["verdict"]) == {"accepted"}


def test_an_archive_is_unpacked_once_for_all_its_shards(store, small, calls):
    put(small, packed(FILES, "drop.tgz"), "drop.tgz")
    plan = ingest_drop.plan_shards(store, small, "drop.tgz")
    for shard in plan:
        ingest_drop.ingest_shard(store, small, shard)
    assert len(plan) == 2 and calls == ["decompress"] and left(small) == []


@pytest.mark.parametrize("change", ["comes", "goes", "is renamed"])
def test_a_file_that_comes_or_goes_is_noticed_without_a_listing_of_what_stayed(small, calls, change):
    root = aged(put_drop(small, "drop", FILES))
    assert files(small) == files(small) == list(FILES)
    assert calls == ["_index_folder"]
    if change == "comes":
        (root / "NORMAL/9.png").write_bytes(png(9))
    elif change == "goes":
        (root / "NORMAL/3.png").unlink()
    else:
        (root / "NORMAL/3.png").rename(root / "NORMAL/4.png")
    assert files(small) != list(FILES) and calls == ["_index_folder", "_index_folder"]


def test_a_folder_that_changed_just_before_it_was_listed_is_not_believed(small, calls):
    put_drop(small, "drop", FILES)
    files(small), files(small)
    assert calls == ["_index_folder", "_index_folder"]


def test_another_archive_of_the_same_name_is_opened_anew(small, calls):
    path = put(small, packed(FILES, "drop.tgz"), "drop.tgz")
    assert files(small, "drop.tgz") == list(FILES)
    path.write_bytes(gzip.compress(packed({"NORMAL/other.png": b"x"}, "drop.tar")))
    assert files(small, "drop.tgz") == ["NORMAL/other.png"] and calls == ["decompress", "decompress"]


def test_a_prefix_in_s3_is_listed_once_per_run(store, small, calls):
    away = small.replace(inbox={"path": f"s3://{small.store.bucket}/inbox"})
    client = store.client
    for n in range(3):
        client.put_object(Bucket=small.store.bucket, Key=f"inbox/drop/NORMAL/{n}.png", Body=png(n))
    plan = ingest_drop.plan_shards(ObjectStore(away.store), away, "drop")
    client.put_object(Bucket=small.store.bucket, Key="inbox/drop/NORMAL/late.png", Body=png(9))
    for shard in plan:
        ingest_drop.ingest_shard(ObjectStore(away.store), away, shard)
    assert len(plan) == 2 and calls == ["_index_folder"]
    assert list(ingested(away, plan[0].batch).index) == ["NORMAL/0.png", "NORMAL/1.png", "NORMAL/2.png"]
    again = ingest_drop.plan_shards(ObjectStore(away.store), away, "drop")
    assert again[0].batch != plan[0].batch and calls == ["_index_folder", "_index_folder"]
    client.delete_object(Bucket=small.store.bucket, Key="inbox/drop/NORMAL/0.png")
    whole = ingest_drop.ingest(ObjectStore(away.store), away, "drop")
    assert list(ingested(away, whole).index) == ["NORMAL/1.png", "NORMAL/2.png", "NORMAL/late.png"]


def test_a_table_is_read_anew_for_other_settings(small, calls):
    aged(put_drop(small, "drop", {"a.png": b"x", "labels.csv": csv("a.png,normal,P0007", header="file,label,mrn")}))
    said = []
    for salt in ("one", "one", "other"):
        own = small.replace(inbox={"patient_salt": salt})
        with inbox.open_drop(ObjectStore(own.store), own, "drop") as (_, entries):
            said.append(labels.read_labels(ObjectStore(own.store), own, "drop", entries)["patient"].iat[0])
    assert said[0] == said[1] != said[2] and calls == ["_index_folder", "match_rows", "match_rows"]


def test_of_many_that_begin_at_the_same_time_one_unpacks(small, calls):
    put(small, packed(FILES, "drop.tgz"), "drop.tgz")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: files(small, "drop.tgz"), range(8)))
    assert found == [list(FILES)] * 8 and calls == ["decompress"]


KILLED = """
import os, signal
from cxr_ml import settings
from cxr_ml.ingest import archives, inbox
from cxr_ml.store import ObjectStore
def half(settings, path, target, drop):
    target.write(b"half of it")
    target.flush()
    os.kill(os.getpid(), signal.SIGKILL)
archives.decompress = half
s = settings.load()
with inbox.open_drop(ObjectStore(s.store), s, "drop.tgz"): pass
"""


def test_what_a_killed_run_left_half_done_is_not_believed_and_removed(small, calls):
    put(small, packed(FILES, "drop.tgz"), "drop.tgz")
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -signal.SIGKILL
    assert "unpacked.unfinished" in left(small)
    assert files(small, "drop.tgz") == list(FILES)
    assert sorted(left(small)) == ["archive", "listing", "lock"]


def test_the_next_run_removes_abandoned_folders_but_none_in_use(store, small):
    put(small, packed(FILES, "a.tgz"), "a.tgz")
    put_drop(small, "b", FILES)
    with inbox.open_drop(store, small, "a.tgz") as (_, entries):
        folder, old = entries.cache, time.time() - 10_000
        os.utime(folder, (old, old))
        cache.evict(store, small.inbox, small.cache_dir, "a.tgz")
        files(small, "b")
        assert drop_files.read_file(store, small.images, entries[0]) == png(0)
    os.utime(folder, (old, old))
    files(small, "b")
    assert not folder.exists()
