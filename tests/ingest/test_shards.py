"""A drop in shards: cut alike by everybody, done in any order, killed at any moment, and never done twice."""

import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from drop_samples import csv, elsewhere, ingested, png, put_drop, resized, snapshot, verdicts
from request_counter import counted

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.ingest import drop_files, inbox, ingest_drop, tables, worker_pool
from cxr_ml.store import ObjectStore
from cxr_ml.validation import judge_batch

pytestmark = pytest.mark.usefixtures("handful")

FILES = {f"NORMAL/{n}.png": png(n) for n in range(5)} | {"COVID19/a.jpg": resized(6), "COVID19/b.png": b"damaged"}


@pytest.fixture
def small(settings):
    """Settings that cut FILES into four shards."""
    return settings.replace(inbox={"shard_files": 2})


def own(settings):
    return {k: v for k, v in snapshot(settings).items() if not k.startswith("elsewhere/")}


def shards(settings, batch):
    return [k.rpartition("/")[2] for k in ObjectStore(settings.store).keys(f"batches/{batch}/ingested/")]


def test_shards_are_cut_from_the_listing_alone_and_hold_together_what_one_would(store, small, settings):
    put_drop(small, "drop", FILES)
    plan = ingest_drop.plan_shards(store, small, "drop")
    assert [(s.drop, s.number, s.of) for s in plan] == [("drop", n, 4) for n in range(4)]
    batch = ingest_drop.ingest(store, small, "drop")
    assert {s.batch for s in plan} == {batch}
    assert shards(small, batch) == ["00000.parquet", "00001.parquet", "00002.parquet", "00003.parquet"]
    whole = elsewhere(settings)
    assert ingest_drop.ingest(ObjectStore(whole.store), whole, "drop") == batch and shards(whole, batch) == [
        "00000.parquet"
    ]
    assert ingested(small, batch).to_json() == ingested(whole, batch).to_json()


def test_shards_done_one_by_one_in_any_order_give_the_same_store(store, small):
    put_drop(small, "drop", FILES)
    ingest_drop.ingest(ObjectStore(elsewhere(small).store), elsewhere(small), "drop")
    told = []
    for shard in reversed(ingest_drop.plan_shards(store, small, "drop")):
        batch = ingest_drop.ingest_shard(store, small, shard, lambda *done: told.append(done))
        assert ingest_drop.ingest_shard(store, small, shard) == batch
    assert sorted(told) == [(1, 1), *[(1, 2)] * 3, *[(2, 2)] * 3]
    assert own(small) == snapshot(elsewhere(small))


def test_a_very_large_drop_gets_larger_shards_instead_of_more(store, small, monkeypatch):
    monkeypatch.setattr(ingest_drop, "MAX_SHARDS", 3)
    put_drop(small, "drop", FILES)
    assert len(ingest_drop.plan_shards(store, small, "drop")) == 3
    assert len(ingested(small, ingest_drop.ingest(store, small, "drop"))) == len(FILES)


def test_rows_of_a_labels_csv_are_in_one_shard_each_also_those_without_a_file(store, small):
    lines = [f"{n}.png,normal" for n in range(5)] + ["0a.png,covid", "9.png,normal", "!.png,covid", "../x.png,normal"]
    put_drop(small, "drop", {f"{n}.png": png(n) for n in range(6)} | {"labels.csv": csv(*lines)})
    (Path(small.inbox.path) / "drop" / os.fsdecode(b"\xe9.png")).write_bytes(png(7))
    table = ingested(small, ingest_drop.ingest(store, small, "drop"))
    whole = elsewhere(small).replace(inbox={"shard_files": 100})
    assert len(shards(small, ingest_drop.ingest(ObjectStore(whole.store), whole, "drop"))) == 4
    assert verdicts(table) == verdicts(ingested(whole, ingest_drop.ingest(ObjectStore(whole.store), whole, "drop")))
    assert table.index.is_unique and len(table) == 11
    assert verdicts(table)["0a.png"] == ("quarantined", "file_missing")


def test_a_shard_that_is_missing_is_named_and_nothing_is_judged(store, small):
    put_drop(small, "drop", FILES)
    plan = ingest_drop.plan_shards(store, small, "drop")
    for number in (0, 3):
        ingest_drop.ingest_shard(store, small, plan[number])
    before = snapshot(small)
    with pytest.raises(Refused, match=rf"Received: 2; there is no batches/{plan[0].batch}/ingested/00001\.parquet, "):
        judge_batch.validate_batch(store, small, plan[0].batch)
    assert snapshot(small) == before
    ingest_drop.ingest(store, small, "drop")
    assert judge_batch.validate_batch(store, small, plan[0].batch).counts["accepted"]["NORMAL"] == 5


def test_a_batch_that_was_begun_with_other_shards_is_finished_with_those(store, small, settings):
    put_drop(small, "drop", FILES)
    ingest_drop.ingest(ObjectStore(elsewhere(small).store), elsewhere(small), "drop")
    ingest_drop.ingest_shard(store, small, ingest_drop.plan_shards(store, small, "drop")[1])
    ingest_drop.ingest(
        ObjectStore(settings.replace(inbox={"shard_files": 100}).store),
        settings.replace(inbox={"shard_files": 100}),
        "drop",
    )
    assert own(small) == snapshot(elsewhere(small))


def test_an_archive_is_ingested_in_shards_as_a_folder_is(store, small):
    root = put_drop(small, "drop", FILES)
    folder = ingested(small, ingest_drop.ingest(store, small, "drop"))
    with tarfile.open(f"{root}-packed.tar.gz", "w:gz") as archive:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.add(path, path.relative_to(root).as_posix())
    away = elsewhere(small)
    plan = ingest_drop.plan_shards(ObjectStore(away.store), away, "drop-packed.tar.gz")
    assert len(plan) == 4
    for shard in plan:
        ingest_drop.ingest_shard(ObjectStore(away.store), away, shard)
    assert ingested(away, plan[0].batch).to_json() == folder.to_json()
    assert {k for k in own(small) if "images/" in k} == {k for k in snapshot(away) if "images/" in k}


# A drop that does not keep still


def test_a_drop_with_other_files_than_when_the_run_began_is_refused(store, small):
    root = put_drop(small, "drop", FILES)
    plan = ingest_drop.plan_shards(store, small, "drop")
    (root / "NORMAL/late.png").write_bytes(png(9))
    with pytest.raises(Refused, match=r"must not change while it is ingested.*'drop' had other files"):
        ingest_drop.ingest_shard(store, small, plan[0])
    assert snapshot(small) == {}


@pytest.mark.parametrize("change", ["longer", "newer", "gone"])
def test_a_file_that_changes_before_it_is_read_is_refused_and_its_shard_not_written(store, small, change):
    # More than are read ahead.
    root = put_drop(
        small, "drop", FILES | {f"PNEUMONIA/{n}.png": png(n) for n in range(10, 20 + worker_pool.MAX_QUEUED)}
    )
    last = sorted(root.glob("PNEUMONIA/*.png"))[-1]
    shard, was = ingest_drop.plan_shards(store, small, "drop")[-1], last.read_bytes()

    def meddle(done, total):
        if done != 1:
            return
        if change == "gone":
            last.unlink()
        elif change == "newer":
            os.utime(last, (1_800_000_000, 1_800_000_000))
        else:
            last.write_bytes(was + b"more")
            os.utime(last, (1_700_000_000, 1_700_000_000))

    with pytest.raises(Refused, match=rf"'PNEUMONIA/{last.name}' is not as it was listed.*start a new run"):
        ingest_drop.ingest(store, small, "drop", meddle, workers=1)
    assert layout.shard(shard.batch, shard.number) not in snapshot(small)


def test_an_object_that_changes_before_it_is_read_is_refused(store, settings):
    away = settings.replace(inbox={"path": f"s3://{settings.store.bucket}/inbox"}, store={"prefix": "away/"})
    client = store.client
    client.put_object(Bucket=settings.store.bucket, Key="inbox/drop/NORMAL/a.png", Body=png(1))
    with inbox.open_drop(ObjectStore(away.store), away, "drop") as (_, (entry,)):
        assert drop_files.read_file(ObjectStore(away.store), away.images, entry) == png(1)
        client.put_object(Bucket=settings.store.bucket, Key="inbox/drop/NORMAL/a.png", Body=png(2))
        with pytest.raises(Refused, match="not as it was listed"):
            drop_files.read_file(ObjectStore(away.store), away.images, entry)


# Requests, counted over all processes


def test_the_same_drop_again_writes_nothing_and_a_judged_one_is_not_even_looked_at(small):
    put_drop(small, "drop", FILES)
    with counted(small.store.endpoint_url) as (address, asked):
        through = small.replace(store={"endpoint_url": address})
        batch = ingest_drop.ingest(ObjectStore(through.store), through, "drop")
        assert sum(a.startswith("PUT images/") for a in asked) == 6
        assert sum(a.startswith(f"PUT batches/{batch}/ingested/") for a in asked) == 4
        asked.clear()
        assert ingest_drop.ingest(ObjectStore(through.store), through, "drop") == batch
        assert asked and not [a for a in asked if not a.startswith(("GET", "HEAD"))]
        assert not [a for a in asked if "images/" in a]
        judge_batch.validate_batch(ObjectStore(through.store), through, batch)
        asked.clear()
        assert ingest_drop.ingest(ObjectStore(through.store), through, "drop") == batch
        assert asked == [f"HEAD batches/{batch}/batch.json"]


@pytest.mark.slow
@pytest.mark.processes
def test_images_of_a_shard_that_was_not_finished_are_not_sent_again(store, settings):
    put_drop(settings, "drop", {f"NORMAL/{n}.png": png(n) for n in range(40)})
    batch = ingest_drop.ingest(store, settings, "drop")
    whole = snapshot(settings)
    table = f"batches/{batch}/ingested/00000.parquet"
    missing = sorted(k for k in whole if k.startswith("images/"))[:3]
    for key in (table, *missing):
        store.client.delete_object(Bucket=settings.store.bucket, Key=key)
    with counted(settings.store.endpoint_url) as (address, asked):
        ingest_drop.ingest(
            ObjectStore(settings.replace(store={"endpoint_url": address}).store),
            settings.replace(store={"endpoint_url": address}),
            "drop",
        )
    assert sorted(a for a in asked if a.startswith("PUT")) == [f"PUT {table}", *(f"PUT {k}" for k in missing)]
    assert snapshot(settings) == whole


def test_new_images_are_not_asked_for_one_by_one(settings):
    put_drop(settings, "drop", {f"NORMAL/{n}.png": png(n) for n in range(40)})
    with counted(settings.store.endpoint_url) as (address, asked):
        ingest_drop.ingest(
            ObjectStore(settings.replace(store={"endpoint_url": address}).store),
            settings.replace(store={"endpoint_url": address}),
            "drop",
            workers=1,
        )
    assert sum(a.startswith("PUT images/") for a in asked) == 40
    assert sum(a.startswith("HEAD images/") for a in asked) <= 16


def test_beside_images_a_new_drop_costs_three_questions_and_its_tables(settings):
    put_drop(settings, "drop", FILES)
    with counted(settings.store.endpoint_url) as (address, asked):
        batch = ingest_drop.ingest(
            ObjectStore(settings.replace(store={"endpoint_url": address}).store),
            settings.replace(store={"endpoint_url": address}),
            "drop",
        )
    lists = ["GET "] * 2
    assert [a for a in asked if "images/" not in a] == [
        f"HEAD batches/{batch}/batch.json", *lists, f"PUT batches/{batch}/ingested/00000.parquet"
    ]  # fmt: skip


@pytest.mark.processes
def test_the_processes_reach_the_store_with_the_credentials_that_this_one_was_given(settings, seaweed, monkeypatch):
    put_drop(settings, "drop", FILES)
    keys = [seaweed[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    session = boto3.Session(*keys, region_name="us-east-1")
    hook = SimpleNamespace(
        get_conn=lambda: session.client("s3", endpoint_url=settings.store.endpoint_url),
        get_credentials=lambda: session.get_credentials().get_frozen_credentials(),
    )
    given = ObjectStore(settings.store.model_copy(update={"endpoint_url": None}), hook)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    rows = tables.read_batch(given, ingest_drop.ingest(given, settings, "drop"))
    assert (rows["verdict"] == "accepted").sum() == 6


# Killed, as by a machine that loses its power

TAKE = """
from cxr_ml import settings
from cxr_ml.ingest import ingest_drop
from cxr_ml.store import ObjectStore
from cxr_ml.validation import judge_batch
s = settings.load()
store = ObjectStore(s.store)
print(judge_batch.validate_batch(store, s, ingest_drop.ingest(store, s, "drop")).batch)
"""


def start(settings, monkeypatch):
    monkeypatch.setenv("CXR_INBOX__SHARD_FILES", str(settings.inbox.shard_files))
    return subprocess.Popen([sys.executable, "-c", TAKE], start_new_session=True, stdout=subprocess.PIPE)


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.processes
def test_an_ingest_killed_at_any_moment_and_repeated_gives_the_same_store(settings, monkeypatch):
    many = settings.replace(inbox={"shard_files": 20})
    put_drop(many, "drop", FILES | {f"PNEUMONIA/{n}.png": png(n) for n in range(20, 60)})
    begun = time.monotonic()
    batch = ingest_drop.ingest(ObjectStore(elsewhere(many).store), elsewhere(many), "drop")
    judge_batch.validate_batch(ObjectStore(elsewhere(many).store), elsewhere(many), batch)
    lasted = time.monotonic() - begun
    reached = set()
    for moment in ("images/", f"batches/{batch}/ingested/00000", f"batches/{batch}/images.html", "later"):
        process = start(many, monkeypatch)
        while moment != "later" and not [k for k in ObjectStore(many.store).keys("") if k.startswith(moment)]:
            assert process.poll() is None
        # Once the moment has come, or without waiting for one: a little later, and never twice as late.
        time.sleep(random.uniform(0, 0.05 if moment != "later" else lasted))
        kill(process)
        reached |= {k.split("/")[0] for k in own(many)}
    assert reached == {"images", "batches"}
    assert (
        judge_batch.validate_batch(
            ObjectStore(many.store), many, ingest_drop.ingest(ObjectStore(many.store), many, "drop")
        ).batch
        == batch
    )
    assert own(many) == snapshot(elsewhere(many))
