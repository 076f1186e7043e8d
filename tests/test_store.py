"""The object store, against a real S3 server: who wins a race, what is never replaced, what is refused."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Dataset


def race(action, contestants=6) -> list[bool]:
    """What each of so many threads got that called `action(i)` at the same moment."""
    start = threading.Barrier(contestants)

    def one(i: int) -> bool:
        start.wait()
        return action(i)

    with ThreadPoolExecutor(contestants) as pool:
        return list(pool.map(one, range(contestants)))


def content_type(settings, key: str) -> str:
    client = store.client(settings.s3_endpoint_url)
    return client.head_object(Bucket=settings.bucket, Key=settings.prefix + key)["ContentType"]


@pytest.mark.parametrize("attempt", range(2))
def test_of_many_who_write_the_same_key_one_wins_and_its_bytes_stay(settings, attempt):
    won = race(lambda i: store.put_if_absent(settings, "race", bytes([i])))
    assert won.count(True) == 1
    assert store.get(settings, "race") == bytes([won.index(True)])


def test_a_key_that_exists_is_never_overwritten(settings):
    assert store.put_if_absent(settings, "a", b"first") is True
    assert store.put_if_absent(settings, "a", b"second") is False
    assert store.get(settings, "a") == b"first"


def sent(client) -> list[dict[str, str]]:
    """The headers of each request that `client` sends from now on."""
    found = []
    client.meta.events.register("before-send.s3", lambda request, **_: found.append(dict(request.headers)))
    return found


def other_client(settings):
    store.use(boto3.client("s3", endpoint_url=settings.s3_endpoint_url), None)


@pytest.mark.parametrize("given", [lambda settings: None, other_client], ids=["own", "given"])
def test_small_bodies_are_sent_at_once_and_for_large_ones_the_server_is_asked_first(settings, given, tmp_path):
    given(settings)
    headers = sent(store.client(settings.s3_endpoint_url))
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"few")
    large.write_bytes(bytes(1_000_000))
    store.put_if_absent(settings, "a", b"few")
    store.swap(settings, "a", b"others", store.find(settings, "a")[1])
    assert [h.get("Expect") for h in headers] == [None, None, None]
    store.put_if_absent(settings, "b", large.read_bytes())
    with small.open("rb") as one, large.open("rb") as other:
        store.put_if_absent(settings, "c", one)
        store.put_if_absent(settings, "d", other)
    assert [h.get("Expect") for h in headers[3:]] == [b"100-continue"] * 3
    assert [len(store.get(settings, key)) for key in "abcd"] == [6, 1_000_000, 3, 1_000_000]


def test_a_body_sent_at_once_that_the_server_does_not_want_costs_no_second_try(settings):
    headers, whole = sent(store.client(settings.s3_endpoint_url)), bytes(store._AT_ONCE)
    assert [store.put_if_absent(settings, "a", whole) for _ in range(30)] == [True] + [False] * 29
    assert len(headers) == 30 and not [h for h in headers if "Expect" in h]


def test_all_threads_use_one_client(settings):
    clients = []
    race(lambda _: clients.append(store.client(settings.s3_endpoint_url)) or True)
    assert len(clients) == 6 and len(set(map(id, clients))) == 1


@pytest.mark.parametrize("attempt", range(2))
def test_of_many_who_swap_the_same_version_one_wins(settings, attempt):
    store.put_if_absent(settings, "pointer", b"old")
    etag = store.find(settings, "pointer")[1]
    won = race(lambda i: store.swap(settings, "pointer", b"new %d" % i, etag))
    assert won.count(True) == 1
    assert store.get(settings, "pointer") == b"new %d" % won.index(True)


def test_of_many_who_swap_what_is_not_there_one_wins(settings):
    won = race(lambda i: store.swap(settings, "pointer", bytes([i]), None))
    assert won.count(True) == 1
    assert store.get(settings, "pointer") == bytes([won.index(True)])


def test_a_swap_of_an_older_version_changes_nothing(settings):
    store.put_if_absent(settings, "pointer", b"one")
    first = store.find(settings, "pointer")[1]
    assert store.swap(settings, "pointer", b"two", first) is True
    assert store.swap(settings, "pointer", b"three", first) is False
    assert store.find(settings, "pointer")[0] == b"two"


def test_a_swap_of_what_was_deleted_writes_nothing(settings):
    assert store.swap(settings, "pointer", b"new", '"0123456789abcdef0123456789abcdef"') is False
    assert store.find(settings, "pointer") is None


def test_many_counters_by_swap_lose_no_step(settings):
    store.put_if_absent(settings, "counter", b"0")

    def step(_: int) -> bool:
        while True:
            data, etag = store.find(settings, "counter")
            if store.swap(settings, "counter", b"%d" % (int(data) + 1), etag):
                return True

    assert race(step, 4) == [True] * 4
    assert store.get(settings, "counter") == b"4"


def test_what_a_dead_run_left_uncommitted_is_overwritten_and_keeps_its_content_type(settings):
    store.put_uncommitted(settings, "page.html", b"half", "text/html")
    store.put_uncommitted(settings, "page.html", b"whole", "text/html")
    store.put_uncommitted(settings, "page.html", b"whole", "text/html")
    assert store.get(settings, "page.html") == b"whole"
    assert content_type(settings, "page.html") == "text/html"


def test_two_runs_that_write_the_same_uncommitted_object_are_told(settings, monkeypatch):
    store.put_if_absent(settings, "page.html", b"half")
    compare = store._compare

    def other_run_in_between(settings, key, data):
        found = compare(settings, key, data)
        assert store.swap(settings, key, b"theirs", found[0])
        return found

    monkeypatch.setattr(store, "_compare", other_run_in_between)
    with pytest.raises(RuntimeError, match=r"page\.html is being written by another run"):
        store.put_uncommitted(settings, "page.html", b"ours")
    assert store.find(settings, "page.html")[0] == b"theirs"


def test_what_is_not_there_is_found_nowhere(settings):
    assert store.find(settings, "a") is None
    assert store.exists(settings, "a") is False
    assert list(store.keys(settings, "")) == []


def test_what_was_written_is_found_whole(settings):
    data = bytes(range(256)) * 20_000
    store.put_if_absent(settings, "a/b", data, "image/png")
    assert store.exists(settings, "a/b") is True and store.exists(settings, "a") is False
    assert store.find(settings, "a/b")[0] == data
    assert content_type(settings, "a/b") == "image/png"


def test_a_key_that_is_missing_is_refused_by_its_whole_name(settings):
    inside = settings.model_copy(update={"prefix": "team/"})
    with pytest.raises(Refused, match=f"no object s3://{settings.bucket}/team/models/x/model.json"):
        store.get(inside, "models/x/model.json")


def test_a_name_that_climbs_out_names_nothing_whatever_the_server_makes_of_it(settings):
    store.put_if_absent(settings, "secrets/model.json", b"{}")
    assert not store.exists(settings, "models/../secrets/model.json")
    with pytest.raises(Refused, match="has no object"):
        store.get(settings, "models/../secrets/model.json")


def test_a_prefix_keeps_two_projects_apart_in_one_bucket(settings):
    one, other = (settings.model_copy(update={"prefix": f"{name}/"}) for name in ("one", "other"))
    for project in (one, other):
        assert store.put_if_absent(project, "a", project.prefix.encode()) is True
    assert store.get(one, "a") == b"one/" and store.find(other, "a")[0] == b"other/"
    assert list(store.keys(one, "")) == ["a"]
    assert list(store.keys(settings, "")) == ["one/a", "other/a"]
    assert store.swap(one, "a", b"new", store.find(one, "a")[1]) is True
    assert store.exists(one, "a") and store.get(other, "a") == b"other/"


@pytest.mark.slow
def test_keys_are_listed_in_order_beyond_the_thousand_of_one_answer(settings):
    names = [f"many/{i:05d}" for i in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda name: store.put_if_absent(settings, name, b"x"), reversed(names)))
    store.put_if_absent(settings, "few/1", b"x")
    assert list(store.keys(settings, "many/")) == names


def test_a_record_is_read_as_it_was_written(settings):
    record = Champion(version=3, model="light-d1-0a1b2c3d", artefact_sha256="a" * 64, history=7)
    store.put_if_absent(settings, "champion.json", record.to_bytes())
    assert store.load(settings, "champion.json", Champion) == record


def test_the_hash_of_an_object_is_that_of_its_bytes_and_none_where_there_is_none(settings):
    data = b"0123456789" * 300_000
    store.put_if_absent(settings, "large", data)
    store.put_if_absent(settings, "empty", b"")
    assert store.sha256(settings, "large") == hashlib.sha256(data).hexdigest()
    assert store.sha256(settings, "empty") == hashlib.sha256(b"").hexdigest()
    assert store.sha256(settings, "absent") is None


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
def test_an_object_that_is_not_such_a_record_is_refused_by_key_and_kind(settings, data):
    store.put_if_absent(settings, "registry/champion.json", data)
    with pytest.raises(Refused, match=r"registry/champion\.json does not hold a Champion record"):
        store.load(settings, "registry/champion.json", Champion)


def test_a_record_of_another_kind_is_refused(settings):
    record = Dataset(dataset=1, parent=None, batches=(), counts={}, manifest_sha256="a")
    store.put_if_absent(settings, "dataset.json", record.to_bytes())
    with pytest.raises(Refused, match="does not hold a Champion record"):
        store.load(settings, "dataset.json", Champion)


def test_a_bucket_that_is_there_passes_the_check(settings):
    store.check(settings)


def test_a_bucket_that_is_missing_is_refused_by_name(settings):
    with pytest.raises(Refused, match=r"bucket 'absent' at http://127.* cannot be used \(404\).*set CXR_BUCKET"):
        store.check(settings.model_copy(update={"bucket": "absent"}))


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_without_showing_them(settings, monkeypatch, forget_credentials, name):
    monkeypatch.setenv(name, "wrong-and-secret")
    forget_credentials()
    with pytest.raises(Refused, match=r"cannot be used \(403\).*AWS credentials") as refused:
        store.check(settings)
    assert "wrong-and-secret" not in str(refused.value)


def test_a_client_with_credentials_from_elsewhere_is_used(settings, seaweed, monkeypatch, forget_credentials):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    forget_credentials()
    keys = {k.lower(): seaweed[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    store.use(boto3.client("s3", endpoint_url=settings.s3_endpoint_url, **keys), None)
    store.check(settings)
    assert store.put_if_absent(settings, "a", b"x") is True


def test_a_server_that_cannot_be_reached_is_not_refused_so_that_a_retry_may_help(settings):
    store.use(
        boto3.client(
            "s3",
            endpoint_url="http://127.0.0.1:9",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
        ),
        None,
    )
    with pytest.raises(BotoCoreError, match="Could not connect"):
        store.check(settings)
