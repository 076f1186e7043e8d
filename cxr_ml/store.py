"""The object store: S3 through boto3. Objects are written once; only `swap` replaces one, by compare-and-set.

Only what a training no longer needs to go on from, and the weights of old refused candidates, are ever removed.
"""

import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from cxr_ml.errors import Refused
from cxr_ml.settings import StoreSettings

if TYPE_CHECKING:
    from cxr_ml.records import Record  # processes that measure images load none


class Hook(Protocol):
    """A connection to S3, such as Airflow's S3Hook."""

    def get_conn(self) -> Any:  # noqa: ANN401 - boto3 has no public client type
        """Returns an S3 client."""

    def get_credentials(self) -> Any:  # noqa: ANN401
        """Returns botocore's frozen credentials."""


R = TypeVar("R", bound="Record")
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_LOST = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_CHUNK = 1 << 20  # bytes of a large object in memory at once
# Bytes of a body that is sent without asking first. Servers written in Go, as SeaweedFS is, take in at most 256 KiB of
# what they do not want, and hang up on a client that still sends more.
_MAX_UNASKED = 200_000
_client_lock = Lock()  # boto3's way to a client is not safe for threads, and each would make one of its own


class ObjectStore:
    """A bucket, or the part of it below a key prefix. Can be pickled, so that other processes reach the same store.

    Args:
        settings: bucket, prefix and address.
        hook: a connection with credentials from elsewhere, such as Airflow's S3Hook: `get_conn` gives an S3 client and
            `get_credentials` what it signs with, which processes that this one starts are handed. None: boto3's own
            chain of credentials.
    """

    def __init__(self, settings: StoreSettings, hook: Hook | None = None) -> None:
        self.bucket = settings.bucket
        self.prefix = settings.prefix
        self.endpoint_url = settings.endpoint_url
        self._credentials = hook.get_credentials() if hook else None
        self._client = _without_expect(hook.get_conn()) if hook else None

    @property
    def client(self) -> Any:  # noqa: ANN401 - boto3 has no public client type
        """The S3 client."""
        if self._client is None:
            with _client_lock:
                self._client = _own_client(self.endpoint_url)
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_client": None, "_credentials": None, "connection": None}
        if self._credentials is not None:
            state["connection"] = {
                "endpoint_url": self.client.meta.endpoint_url,
                "region_name": self.client.meta.region_name,
                "aws_access_key_id": self._credentials.access_key,
                "aws_secret_access_key": self._credentials.secret_key,
                "aws_session_token": self._credentials.token,
                # e.g. whether the bucket is in the path or in the host's name
                "config": _config().merge(Config(s3=self.client.meta.config.s3)),
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        connection = state.pop("connection")
        self.__dict__ |= state
        self._client = _without_expect(boto3.client("s3", **connection)) if connection else None

    def put_if_absent(self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream") -> bool:
        """Writes `data`, bytes or an open file from its beginning on, under `key` unless something is there already.

        Returns:
            True when this call wrote it, False when the key existed (its bytes are left alone).
        """
        return self._put(key, data, content_type, _LOST, IfNoneMatch="*")

    def swap(self, key: str, data: bytes | BinaryIO, etag: str | None, content_type: str = "application/json") -> bool:
        """Replaces `key` only if it still has `etag` (None: only if it does not exist). True when this call won."""
        if etag is None:
            return self.put_if_absent(key, data, content_type)
        return self._put(key, data, content_type, _LOST | _ABSENT, IfMatch=etag)

    def put_uncommitted(self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream") -> None:
        """Writes an object whose commit mark does not exist yet, also over what a run that died left behind.

        Raises:
            RuntimeError: another run writes it at this moment.
        """
        if self.put_if_absent(key, data, content_type):
            return
        etag, same = self._compare(key, data)
        if not same and not self.swap(key, data, etag, content_type):
            raise RuntimeError(f"{key} is being written by another run. Run this step again.")

    def _put(self, key: str, data: bytes | BinaryIO, content_type: str, lost: set[str], **condition: str) -> bool:
        try:
            self.client.put_object(
                Bucket=self.bucket, Key=self.prefix + key, Body=_rewind(data), ContentType=content_type, **condition
            )
        except ClientError as error:
            if _code(error) in lost:
                return False
            raise
        return True

    def _compare(self, key: str, data: bytes | BinaryIO) -> tuple[str | None, bool]:
        """ETag of `key`, None when it does not exist, and whether it holds these very bytes."""
        expected = io.BytesIO(data) if isinstance(data, bytes) else data
        expected.seek(0)
        response = self._request(self.bucket, self.prefix + key)
        if response is None:
            return None, False
        while chunk := response["Body"].read(_CHUNK):
            if expected.read(len(chunk)) != chunk:
                response["Body"].close()
                return response["ETag"], False
        return response["ETag"], not expected.read(1)

    def get_or_none(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and ETag of `key`, or None when it does not exist."""
        return self.get_from(self.bucket, self.prefix + key)

    def get_from(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Bytes and ETag of an object of any bucket, e.g. the inbox's, or None when it does not exist."""
        response = self._request(bucket, key)
        return None if response is None else (response["Body"].read(), response["ETag"])

    def _request(self, bucket: str, key: str, head: bool = False, **more: str) -> dict[str, Any] | None:
        """The server's response for an object, its bytes still to be read, or its head; None when it does not exist."""
        if ".." in key.split("/"):  # from a name that somebody gave; servers answer it in ways of their own
            return None
        try:
            return (self.client.head_object if head else self.client.get_object)(Bucket=bucket, Key=key, **more)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise

    def _require(self, key: str, head: bool = False, **more: str) -> dict[str, Any]:
        response = self._request(self.bucket, self.prefix + key, head, **more)
        if response is None:
            raise Refused(
                f"The store has no object s3://{self.bucket}/{self.prefix}{key}. "
                "Run the stage that writes it, or check CXR_STORE__BUCKET and CXR_STORE__PREFIX."
            )
        return response

    def get_range(self, key: str, first: int | None, last: int) -> tuple[bytes, int]:
        """Bytes `first` to `last`, inclusive, of `key` and how many it has; `first` None: its last `last` ones.

        Raises:
            Refused: no such key.
        """
        response = self._require(key, Range=f"bytes={'' if first is None else first}-{last}")
        return response["Body"].read(), int(response["ContentRange"].rpartition("/")[2])

    def get(self, key: str) -> bytes:
        """Bytes of `key`.

        Raises:
            Refused: no such key.
        """
        return self._require(key)["Body"].read()

    def sha256(self, key: str) -> str | None:
        """SHA-256 of the bytes of `key`, which are never in memory as a whole; None when it does not exist."""
        response = self._request(self.bucket, self.prefix + key)
        return None if response is None else hashlib.file_digest(response["Body"], "sha256").hexdigest()

    def copy_to(self, key: str, file: BinaryIO) -> None:
        """Appends the bytes of `key` to an open file; they are never in memory as a whole.

        Raises:
            Refused: no such key.
        """
        body = self._require(key)["Body"]
        while chunk := body.read(_CHUNK):
            file.write(chunk)
        file.flush()

    def exists(self, key: str) -> bool:
        """Whether `key` exists."""
        return self._request(self.bucket, self.prefix + key, head=True) is not None

    def remove(self, key: str) -> None:
        """Removes `key`, if it exists."""
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def last_modified(self, key: str) -> str:
        """When `key` was written, by the server's clock: ISO 8601, UTC.

        Raises:
            Refused: no such key.
        """
        return _last_modified(self._require(key, head=True))

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix`, in order."""
        return (key for key, _ in self.etags(prefix))

    def folders(self, prefix: str) -> list[str]:
        """Names directly below `prefix` that have keys below them, in order; one request per 1,000 names."""
        whole = self.prefix + prefix
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=whole, Delimiter="/")
        return [
            item["Prefix"].removeprefix(whole).rstrip("/") for page in pages for item in page.get("CommonPrefixes", ())
        ]

    def etags(self, prefix: str) -> Iterator[tuple[str, str]]:
        """All keys below `prefix` with the ETag of each, in order; one request per 1,000."""
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(self.prefix), item["ETag"]

    def load(self, key: str, kind: type[R]) -> R:
        """The record stored under `key`.

        Raises:
            Refused: no such key, or it does not hold such a record.
        """
        return self.load_hashed(key, kind)[0]

    def load_hashed(self, key: str, kind: type[R]) -> tuple[R, str]:
        """The record stored under `key` and the SHA-256 of its bytes as they are stored.

        Raises:
            Refused: no such key, or it does not hold such a record.
        """
        data = self.get(key)
        return _record(key, data, kind), hashlib.sha256(data).hexdigest()

    def load_dated(self, key: str, kind: type[R]) -> tuple[R, str]:
        """The record stored under `key` and when it was written, as `last_modified` says it, in one request.

        Raises:
            Refused: no such key, or it does not hold such a record.
        """
        response = self._require(key)
        return _record(key, response["Body"].read(), kind), _last_modified(response)

    def load_or_none(self, key: str, kind: type[R]) -> tuple[R, str] | None:
        """The record stored under `key` and the ETag of its bytes, or None when it does not exist.

        Raises:
            Refused: it does not hold such a record.
        """
        stored = self.get_or_none(key)
        return None if stored is None else (_record(key, stored[0], kind), stored[1])

    def check(self) -> None:
        """Makes sure that the bucket can be reached.

        Raises:
            Refused: the bucket does not exist or the credentials are not accepted.
            botocore.exceptions.BotoCoreError: the server cannot be reached (a retry may help).
        """
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            raise Refused(
                f"The bucket {self.bucket!r} at {self.endpoint_url or 'AWS'} cannot be used ({_code(error)}). "
                "Create it, or set CXR_STORE__BUCKET, CXR_STORE__ENDPOINT_URL and the AWS credentials."
            ) from None


def _config() -> Config:
    return Config(retries={"max_attempts": 5, "mode": "standard"}, max_pool_connections=32, connect_timeout=5)


@lru_cache(maxsize=8)
def _own_client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no public client type
    return _without_expect(boto3.client("s3", endpoint_url=endpoint_url, config=_config()))


def _without_expect(client: Any) -> Any:  # noqa: ANN401
    """`client`, which from now on does not wait a round trip for the server's leave to send a small body."""
    client.meta.events.register_last("before-call.s3", _drop_expect, unique_id="cxr-small-bodies")
    return client


def _drop_expect(params: dict[str, Any], **_: object) -> None:
    body = params.get("body")
    if isinstance(body, io.BytesIO) and body.getbuffer().nbytes <= _MAX_UNASKED:
        params["headers"].pop("Expect", None)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _rewind(data: bytes | BinaryIO) -> bytes | BinaryIO:
    if not isinstance(data, bytes):
        data.seek(0)
    return data


def _last_modified(response: dict[str, Any]) -> str:
    return response["LastModified"].isoformat(timespec="seconds")


def _record(key: str, data: bytes, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        raise Refused(f"{key} does not hold a {kind.__name__} record: {error}") from None
