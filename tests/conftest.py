"""Fixtures that start real servers: no part of the store is imitated."""

import gc
import os
import random
import secrets
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import boto3
import httpx
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from cxr_ml import store as store_module
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from local.services import STORE_PORTS, choose_ports

# One for all tests, emptied after each: SeaweedFS gives every bucket volumes of its own, and runs out after some 200.
BUCKET = "cxr-tests"
LASTING = "cxr-tests-lasting"  # emptied after each file
pytest_plugins = ("judging_fixtures", "training_fixtures", "reporting_fixtures")  # of tests/support
_http = httpx.Client(trust_env=False)  # one for all tests: to make one takes 40 ms
gc.set_threshold(100_000)  # else a quarter of the time that imports take goes into looking through what they make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that in the end no process is left alone with one."""
    long = ("test_cli.py", "test_resume.py", "test_loop.py", "test_train.py")
    items.sort(key=lambda item: not item.get_closest_marker("airflow") and item.path.name not in long)


def pytest_collection_finish() -> None:
    """What all tests have imported is not looked at again by the hundreds of collections that judging asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No setting and no key of whoever runs the tests reaches them; where real X-rays and weights lie does."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("CXR_", "AWS_")) and n != "CXR_XRAYS"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS on free ports with keys of its own: the variables with which boto3 and cxr_ml reach it."""
    folder = tmp_path_factory.mktemp("seaweed")
    # Not the usual ports: another store may be starting there at this moment.
    ports = choose_ports(usual_ports={name: random.randrange(12_000, 20_000) for name in STORE_PORTS})
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    weed = shutil.which("weed", path=sysconfig.get_path("scripts"))
    command = [
        weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
        "-master.telemetry=false", f"-s3.port={ports['s3']}", f"-master.port={ports['master']}",
        f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}", f"-admin.port={ports['admin']}",
    ]  # fmt: skip
    log = (folder / "weed.log").open("wb")
    server = subprocess.Popen(command, env=os.environ | keys, stdout=log, stderr=log, start_new_session=True)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **_credentials(keys))
    try:
        end = time.monotonic() + 300
        while True:
            try:
                client.list_buckets()
                break
            except (BotoCoreError, ClientError):
                if server.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.2)
        client.create_bucket(Bucket=BUCKET)
        client.create_bucket(Bucket=LASTING)
        filer = f"http://127.0.0.1:{ports['filer']}"
        place = {"AWS_DEFAULT_REGION": "us-east-1", "CXR_STORE__ENDPOINT_URL": endpoint, "CXR_STORE__BUCKET": BUCKET}
        yield keys | place | {"FILER": filer}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # it takes its time to end, and nobody reads its folder again
        server.wait(120)
        log.close()


def _credentials(keys: dict[str, str]) -> dict[str, str]:
    return {"aws_access_key_id": keys["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": keys["AWS_SECRET_ACCESS_KEY"]}


def _empty(filer: str, bucket: str) -> None:
    """Empties a bucket through SeaweedFS's own interface: S3 would leave empty folders, which later tests see."""
    folder = f"{filer}/buckets/{bucket}/"
    while entries := _http.get(folder, headers={"Accept": "application/json"}).raise_for_status().json()["Entries"]:
        for entry in entries:
            name = quote(entry["FullPath"].rpartition("/")[2])
            _http.delete(folder + name, params={"recursive": "true"}).raise_for_status()


def _settings(seaweed: dict[str, str], bucket: str, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with an inbox and a cache in a folder; the same in CXR_* variables for `cxr-ml`."""
    (folder / "inbox").mkdir()
    variables = {
        "CXR_STORE__BUCKET": bucket,
        "CXR_INBOX__PATH": str(folder / "inbox"),
        "CXR_CACHE_DIR": str(folder / "cache"),
        "CXR_INBOX__PATIENT_SALT": "salt of the tests",
    }
    for name, value in (seaweed | variables).items():
        patch.setenv(name, value)
    yield Settings(
        cache_dir=folder / "cache",
        store={"bucket": bucket, "endpoint_url": seaweed["CXR_STORE__ENDPOINT_URL"]},
        inbox={"path": variables["CXR_INBOX__PATH"], "patient_salt": variables["CXR_INBOX__PATIENT_SALT"]},
    )
    _empty(seaweed["FILER"], bucket)


@pytest.fixture
def settings(seaweed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with an empty bucket and an empty inbox of the test's own."""
    yield from _settings(seaweed, BUCKET, tmp_path, monkeypatch)


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    """The store of `settings`."""
    return ObjectStore(settings.store)


@pytest.fixture(scope="module")
def lasting(seaweed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with a bucket that lasts for the tests of a file, for what is made once and looked at by several."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _settings(seaweed, LASTING, tmp_path_factory.mktemp("lasting"), patch)


@pytest.fixture
def forget_credentials(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which boto3 and the store, until the end of the test, use the credentials there are then."""

    def forget() -> None:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setattr(store_module, "_own_client", lru_cache(store_module._own_client.__wrapped__))

    return forget
