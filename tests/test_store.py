"""The object store, against a real S3 server: who wins a race, what is never replaced, what is refused."""

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from cxr_ml import store as store_module
from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Dataset
from cxr_ml.store import ObjectStore


def race(action, contestants=6) -> list[bool]:
    """What each of so many threads got that called `action(i)` at the same moment."""
    start = threading.Barrier(contestants)

    def one(i: int) -> bool:
        start.wait()
        return action(i)

    with ThreadPoolExecutor(contestants) as pool:
        return list(pool.map(one, range(contestants)))


def content_type(settings, key: str) -> str:
    client = ObjectStore(settings.store).client
    return client.head_object(Bucket=settings.store.bucket, Key=settings.store.prefix + key)["ContentType"]


@pytest.mark.parametrize("attempt", range(2))
def test_of_many_who_write_the_same_key_one_wins_and_its_bytes_stay(store, attempt):
    won = race(lambda i: store.put_if_absent("race", bytes([i])))
    assert won.count(True) == 1
    assert store.get("race") == bytes([won.index(True)])


def test_a_key_that_exists_is_never_overwritten(store):
    assert store.put_if_absent("a", b"first") is True
    assert store.put_if_absent("a", b"second") is False
    assert store.get("a") == b"first"


def sent(client) -> list[dict[str, str]]:
    """The headers of each request that `client` sends from now on."""
    found = []
    client.meta.events.register("before-send.s3", lambda request, **_: found.append(dict(request.headers)))
    return found


class Hook:
    """A connection as Airflow's S3Hook is one, whose credentials are not handed on."""

    def __init__(self, client):
        self.client = client

    def get_conn(self):
        return self.client

    def get_credentials(self):
        return None


@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_small_bodies_are_sent_at_once_and_for_large_ones_the_server_is_asked_first(settings, is_given, tmp_path):
    client = boto3.client("s3", endpoint_url=settings.store.endpoint_url)
    store = ObjectStore(settings.store, Hook(client) if is_given else None)
    headers = sent(store.client)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"few")
    large.write_bytes(bytes(1_000_000))
    store.put_if_absent("a", b"few")
    store.swap("a", b"others", store.get_or_none("a")[1])
    assert [h.get("Expect") for h in headers] == [None, None, None]
    store.put_if_absent("b", large.read_bytes())
    with small.open("rb") as one, large.open("rb") as other:
        store.put_if_absent("c", one)
        store.put_if_absent("d", other)
    assert [h.get("Expect") for h in headers[3:]] == [b"100-continue"] * 3
    assert [len(store.get(key)) for key in "abcd"] == [6, 1_000_000, 3, 1_000_000]


def test_a_body_sent_at_once_that_the_server_does_not_want_costs_no_second_try(store):
    headers, whole = sent(store.client), bytes(store_module._MAX_UNASKED)
    assert [store.put_if_absent("a", whole) for _ in range(30)] == [True] + [False] * 29
    assert len(headers) == 30 and not [h for h in headers if "Expect" in h]


def test_all_threads_use_one_client(store):
    clients = []
    race(lambda _: clients.append(store.client) or True)
    assert len(clients) == 6 and len(set(map(id, clients))) == 1


@pytest.mark.parametrize("attempt", range(2))
def test_of_many_who_swap_the_same_version_one_wins(store, attempt):
    store.put_if_absent("pointer", b"old")
    etag = store.get_or_none("pointer")[1]
    won = race(lambda i: store.swap("pointer", b"new %d" % i, etag))
    assert won.count(True) == 1
    assert store.get("pointer") == b"new %d" % won.index(True)


def test_of_many_who_swap_what_is_not_there_one_wins(store):
    won = race(lambda i: store.swap("pointer", bytes([i]), None))
    assert won.count(True) == 1
    assert store.get("pointer") == bytes([won.index(True)])


def test_a_swap_of_an_older_version_changes_nothing(store):
    store.put_if_absent("pointer", b"one")
    first = store.get_or_none("pointer")[1]
    assert store.swap("pointer", b"two", first) is True
    assert store.swap("pointer", b"three", first) is False
    assert store.get_or_none("pointer")[0] == b"two"


def test_a_swap_of_what_was_deleted_writes_nothing(store):
    assert store.swap("pointer", b"new", '"0123456789abcdef0123456789abcdef"') is False
    assert store.get_or_none("pointer") is None


def test_many_counters_by_swap_lose_no_step(store):
    store.put_if_absent("counter", b"0")

    def step(_: int) -> bool:
        while True:
            data, etag = store.get_or_none("counter")
            if store.swap("counter", b"%d" % (int(data) + 1), etag):
                return True

    assert race(step, 4) == [True] * 4
    assert store.get("counter") == b"4"


def test_what_a_dead_run_left_uncommitted_is_overwritten_and_keeps_its_content_type(store, settings):
    store.put_uncommitted("page.html", b"half", "text/html")
    store.put_uncommitted("page.html", b"whole", "text/html")
    store.put_uncommitted("page.html", b"whole", "text/html")
    assert store.get("page.html") == b"whole"
    assert content_type(settings, "page.html") == "text/html"


def test_two_runs_that_write_the_same_uncommitted_object_are_told(store, monkeypatch):
    store.put_if_absent("page.html", b"half")
    compare = ObjectStore._compare

    def other_run_in_between(store, key, data):
        found = compare(store, key, data)
        assert store.swap(key, b"theirs", found[0])
        return found

    monkeypatch.setattr(ObjectStore, "_compare", other_run_in_between)
    with pytest.raises(RuntimeError, match=r"page\.html is being written by another run"):
        store.put_uncommitted("page.html", b"ours")
    assert store.get_or_none("page.html")[0] == b"theirs"


def test_what_is_not_there_is_found_nowhere(store):
    assert store.get_or_none("a") is None
    assert store.exists("a") is False
    assert list(store.keys("")) == []


def test_what_was_written_is_found_whole(store, settings):
    data = bytes(range(256)) * 20_000
    store.put_if_absent("a/b", data, "image/png")
    assert store.exists("a/b") is True and store.exists("a") is False
    assert store.get_or_none("a/b")[0] == data
    assert content_type(settings, "a/b") == "image/png"


def test_a_key_that_is_missing_is_refused_by_its_whole_name(settings):
    inside = settings.replace(store={"prefix": "team/"})
    with pytest.raises(Refused, match=f"no object s3://{settings.store.bucket}/team/models/x/model.json"):
        ObjectStore(inside.store).get("models/x/model.json")


def test_a_name_that_climbs_out_names_nothing_whatever_the_server_makes_of_it(store):
    store.put_if_absent("secrets/model.json", b"{}")
    assert not store.exists("models/../secrets/model.json")
    with pytest.raises(Refused, match="has no object"):
        store.get("models/../secrets/model.json")


def test_a_prefix_keeps_two_projects_apart_in_one_bucket(store, settings):
    one, other = (settings.replace(store={"prefix": f"{name}/"}) for name in ("one", "other"))
    for project in (one, other):
        assert ObjectStore(project.store).put_if_absent("a", project.store.prefix.encode()) is True
    assert ObjectStore(one.store).get("a") == b"one/" and ObjectStore(other.store).get_or_none("a")[0] == b"other/"
    assert list(ObjectStore(one.store).keys("")) == ["a"]
    assert list(store.keys("")) == ["one/a", "other/a"]
    assert ObjectStore(one.store).swap("a", b"new", ObjectStore(one.store).get_or_none("a")[1]) is True
    assert ObjectStore(one.store).exists("a") and ObjectStore(other.store).get("a") == b"other/"


@pytest.mark.slow
def test_keys_are_listed_in_order_beyond_the_thousand_of_one_answer(store):
    names = [f"many/{i:05d}" for i in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda name: store.put_if_absent(name, b"x"), reversed(names)))
    store.put_if_absent("few/1", b"x")
    assert list(store.keys("many/")) == names


def test_a_record_is_read_as_it_was_written(store):
    record = Champion(version=3, model="light-d1-0a1b2c3d", artefact_sha256="a" * 64, history=7)
    store.put_if_absent("champion.json", record.to_bytes())
    assert store.load("champion.json", Champion) == record


def test_the_hash_of_an_object_is_that_of_its_bytes_and_none_where_there_is_none(store):
    data = b"0123456789" * 300_000
    store.put_if_absent("large", data)
    store.put_if_absent("empty", b"")
    assert store.sha256("large") == hashlib.sha256(data).hexdigest()
    assert store.sha256("empty") == hashlib.sha256(b"").hexdigest()
    assert store.sha256("absent") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"version": 1, "model": "m", "artefact_sha256": "a", "history": 1, "extra": 1}',
        b'{"version": "one", "model": "m", "artefact_sha256": "a", "history": 1}',
    ],
)
def test_an_object_that_is_not_such_a_record_is_refused_by_key_and_kind(store, data):
    store.put_if_absent("registry/champion.json", data)
    with pytest.raises(Refused, match=r"registry/champion\.json does not hold a Champion record"):
        store.load("registry/champion.json", Champion)


def test_a_record_of_another_kind_is_refused(store):
    record = Dataset(dataset=1, parent=None, batches=(), counts={}, manifest_sha256="a")
    store.put_if_absent("dataset.json", record.to_bytes())
    with pytest.raises(Refused, match="does not hold a Champion record"):
        store.load("dataset.json", Champion)


def test_a_bucket_that_is_there_passes_the_check(store):
    store.check()


def test_a_bucket_that_is_missing_is_refused_by_name(settings):
    with pytest.raises(Refused, match=r"bucket 'absent' at http://127.* cannot be used \(404\).*set CXR_STORE__BUCKET"):
        ObjectStore(settings.replace(store={"bucket": "absent"}).store).check()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_without_showing_them(store, monkeypatch, forget_credentials, name):
    monkeypatch.setenv(name, "wrong-and-secret")
    forget_credentials()
    with pytest.raises(Refused, match=r"cannot be used \(403\).*AWS credentials") as refused:
        store.check()
    assert "wrong-and-secret" not in str(refused.value)


def test_a_client_with_credentials_from_elsewhere_is_used(store, settings, seaweed, monkeypatch, forget_credentials):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    forget_credentials()
    keys = {k.lower(): seaweed[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    store = ObjectStore(settings.store, Hook(boto3.client("s3", endpoint_url=settings.store.endpoint_url, **keys)))
    store.check()
    assert store.put_if_absent("a", b"x") is True


def test_a_pickled_store_is_the_same_store_with_the_same_credentials(
    settings, seaweed, monkeypatch, forget_credentials
):
    keys = {k.lower(): seaweed[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    session = boto3.Session(**keys, region_name="us-east-1")
    hook = Hook(session.client("s3", endpoint_url=settings.store.endpoint_url))
    hook.get_credentials = lambda: session.get_credentials().get_frozen_credentials()
    ObjectStore(settings.store, hook).put_if_absent("a", b"x")
    hook_copy, own_copy = (pickle.loads(pickle.dumps(ObjectStore(settings.store, h))) for h in (hook, None))
    assert own_copy.get("a") == b"x"
    for name in keys:
        monkeypatch.setenv(name.upper(), "wrong")
    forget_credentials()
    assert hook_copy.get("a") == b"x"


def test_a_server_that_cannot_be_reached_is_not_refused_so_that_a_retry_may_help(settings):
    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )
    with pytest.raises(BotoCoreError, match="Could not connect"):
        ObjectStore(settings.store, Hook(client)).check()
