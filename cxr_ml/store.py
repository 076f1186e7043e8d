"""The object store: S3 through boto3. Objects are written once; only `swap` replaces one, by compare-and-set.

Only what a training no longer needs to go on from, and the weights of old refused candidates, are ever removed.
"""

import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

if TYPE_CHECKING:
    from cxr_ml.records import Record  # processes that measure images load none

R = TypeVar("R", bound="Record")
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_LOST = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_CHUNK = 1 << 20  # bytes of a large object in memory at once
# Bytes of a body that is sent without asking first. Servers written in Go, as SeaweedFS is, take in at most 256 KiB of
# what they do not want, and hang up on a client that still sends more.
_AT_ONCE = 200_000

_given: list[Any] = []
_one_at_a_time = Lock()  # boto3's way to a client is not safe for threads, and each would make one of its own


def use(given: Any, credentials: Any) -> None:  # noqa: ANN401 - boto3 has no public client type
    """Makes this process use `given`, an S3 client with credentials from elsewhere, e.g. an Airflow connection.

    Args:
        given: the client.
        credentials: what it signs with, as botocore's frozen credentials; handed to processes that this one starts.
    """
    _given[:] = [_prompt(given), credentials]


def passport() -> dict[str, Any] | None:
    """With what a process that this one starts reaches the store as this one does; None: with what it finds itself."""
    if not _given:
        return None
    given, credentials = _given
    return {
        "endpoint_url": given.meta.endpoint_url,
        "region_name": given.meta.region_name,
        "aws_access_key_id": credentials.access_key,
        "aws_secret_access_key": credentials.secret_key,
        "aws_session_token": credentials.token,
        "s3": given.meta.config.s3,  # e.g. whether the bucket is in the path or in the host's name
    }


def show(passport: dict[str, Any]) -> None:
    """Makes this process use what `passport` of the one that started it says."""
    config = _config().merge(Config(s3=passport["s3"]))
    use(boto3.client("s3", config=config, **{k: v for k, v in passport.items() if k != "s3"}), None)


def client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no public client type
    """The S3 client of this process: the one given to `use`, else one on boto3's own chain of credentials."""
    if _given:
        return _given[0]
    with _one_at_a_time:
        return _own_client(endpoint_url)


def _config() -> Config:
    return Config(retries={"max_attempts": 5, "mode": "standard"}, max_pool_connections=32, connect_timeout=5)


@lru_cache(maxsize=8)
def _own_client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 has no public client type
    return _prompt(boto3.client("s3", endpoint_url=endpoint_url, config=_config()))


def _prompt(client: Any) -> Any:  # noqa: ANN401
    """`client`, which from now on does not wait a round trip for the server's leave to send a small body."""
    client.meta.events.register_last("before-call.s3", _ask_no_leave, unique_id="cxr-small-bodies")
    return client


def _ask_no_leave(params: dict[str, Any], **_: object) -> None:
    body = params.get("body")
    if isinstance(body, io.BytesIO) and body.getbuffer().nbytes <= _AT_ONCE:
        params["headers"].pop("Expect", None)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def put_if_absent(
    settings: Settings, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream"
) -> bool:
    """Writes `data`, bytes or an open file from its beginning on, under `key` unless something is there already.

    Returns:
        True when this call wrote it, False when the key existed (its bytes are left alone).
    """
    try:
        client(settings.s3_endpoint_url).put_object(
            Bucket=settings.bucket, Key=settings.prefix + key, Body=_begin(data), IfNoneMatch="*",
            ContentType=content_type,
        )  # fmt: skip
    except ClientError as error:
        if _code(error) in _LOST:
            return False
        raise
    return True


def swap(
    settings: Settings, key: str, data: bytes | BinaryIO, etag: str | None, content_type: str = "application/json"
) -> bool:
    """Replaces `key` only if it still has `etag` (None: only if it does not exist). True when this call won."""
    if etag is None:
        return put_if_absent(settings, key, data, content_type)
    try:
        client(settings.s3_endpoint_url).put_object(
            Bucket=settings.bucket, Key=settings.prefix + key, Body=_begin(data), IfMatch=etag, ContentType=content_type
        )
    except ClientError as error:
        if _code(error) in _LOST | _ABSENT:
            return False
        raise
    return True


def put_uncommitted(
    settings: Settings, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream"
) -> None:
    """Writes an object whose commit mark is not there yet, also over what a run that died left behind.

    Raises:
        RuntimeError: another run writes it at this moment.
    """
    if put_if_absent(settings, key, data, content_type):
        return
    there, same = _compare(settings, key, data)
    if not same and not swap(settings, key, data, there, content_type):
        raise RuntimeError(f"{key} is being written by another run. Run this step again.")


def _begin(data: bytes | BinaryIO) -> bytes | BinaryIO:
    if not isinstance(data, bytes):
        data.seek(0)
    return data


def _compare(settings: Settings, key: str, data: bytes | BinaryIO) -> tuple[str | None, bool]:
    """ETag of `key`, None when it does not exist, and whether it holds these very bytes."""
    ours = io.BytesIO(data) if isinstance(data, bytes) else _begin(data)
    answer = _answer(settings, settings.bucket, settings.prefix + key)
    if answer is None:
        return None, False
    while chunk := answer["Body"].read(_CHUNK):
        if ours.read(len(chunk)) != chunk:
            answer["Body"].close()
            return answer["ETag"], False
    return answer["ETag"], not ours.read(1)


def find(settings: Settings, key: str) -> tuple[bytes, str] | None:
    """Bytes and ETag of `key`, or None when it does not exist."""
    return fetch(settings, settings.bucket, settings.prefix + key)


def fetch(settings: Settings, bucket: str, key: str) -> tuple[bytes, str] | None:
    """Bytes and ETag of an object of any bucket, e.g. the inbox's, or None when it does not exist."""
    answer = _answer(settings, bucket, key)
    return None if answer is None else (answer["Body"].read(), answer["ETag"])


def _answer(settings: Settings, bucket: str, key: str, head: bool = False, **more: str) -> dict[str, Any] | None:
    """What the server says of an object, its bytes still to be read, or only its head; None when it does not exist."""
    if ".." in key.split("/"):  # from a name that somebody gave; servers answer it in ways of their own
        return None
    s3 = client(settings.s3_endpoint_url)
    try:
        return (s3.head_object if head else s3.get_object)(Bucket=bucket, Key=key, **more)
    except ClientError as error:
        if _code(error) in _ABSENT:
            return None
        raise


def span(settings: Settings, key: str, first: int | None, last: int) -> tuple[bytes, int]:
    """Bytes `first` to `last`, inclusive, of `key` and how many it has; `first` None: its last `last` ones.

    Raises:
        Refused: no such key.
    """
    wanted = f"bytes={'' if first is None else first}-{last}"
    answer = _answer(settings, settings.bucket, settings.prefix + key, Range=wanted)
    if answer is None:
        raise _missing(settings, key)
    return answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2])


def get(settings: Settings, key: str) -> bytes:
    """Bytes of `key`.

    Raises:
        Refused: no such key.
    """
    found = find(settings, key)
    if found is None:
        raise _missing(settings, key)
    return found[0]


def sha256(settings: Settings, key: str) -> str | None:
    """SHA-256 of the bytes of `key`, which are never in memory as a whole; None when it does not exist."""
    answer = _answer(settings, settings.bucket, settings.prefix + key)
    return None if answer is None else hashlib.file_digest(answer["Body"], "sha256").hexdigest()


def _missing(settings: Settings, key: str) -> Refused:
    return Refused(
        f"The store has no object s3://{settings.bucket}/{settings.prefix}{key}. "
        "Run the stage that writes it, or check CXR_BUCKET and CXR_PREFIX."
    )


def copy_to(settings: Settings, key: str, file: BinaryIO) -> None:
    """Appends the bytes of `key` to an open file; they are never in memory as a whole.

    Raises:
        Refused: no such key.
    """
    answer = _answer(settings, settings.bucket, settings.prefix + key)
    if answer is None:
        raise _missing(settings, key)
    while chunk := answer["Body"].read(_CHUNK):
        file.write(chunk)
    file.flush()


def exists(settings: Settings, key: str) -> bool:
    """Whether `key` is there."""
    return _answer(settings, settings.bucket, settings.prefix + key, head=True) is not None


def remove(settings: Settings, key: str) -> None:
    """Removes `key`, if it is there."""
    client(settings.s3_endpoint_url).delete_object(Bucket=settings.bucket, Key=settings.prefix + key)


def written(settings: Settings, key: str) -> str:
    """When `key` was written, by the server's clock: ISO 8601, UTC.

    Raises:
        Refused: no such key.
    """
    answer = _answer(settings, settings.bucket, settings.prefix + key, head=True)
    if answer is None:
        raise Refused(f"The store has no object s3://{settings.bucket}/{settings.prefix}{key}.")
    return _when(answer)


def _when(answer: dict[str, Any]) -> str:
    return answer["LastModified"].isoformat(timespec="seconds")


def keys(settings: Settings, prefix: str) -> Iterator[str]:
    """All keys below `prefix`, in order."""
    return (key for key, _ in etags(settings, prefix))


def folders(settings: Settings, prefix: str) -> list[str]:
    """Names directly below `prefix` that have keys below them, in order; one request per 1,000, whatever they hold."""
    pages = client(settings.s3_endpoint_url).get_paginator("list_objects_v2")
    whole = settings.prefix + prefix
    return [
        item["Prefix"].removeprefix(whole).rstrip("/")
        for page in pages.paginate(Bucket=settings.bucket, Prefix=whole, Delimiter="/")
        for item in page.get("CommonPrefixes", ())
    ]


def etags(settings: Settings, prefix: str) -> Iterator[tuple[str, str]]:
    """All keys below `prefix` with the ETag of each, in order; one request per 1,000."""
    pages = client(settings.s3_endpoint_url).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=settings.bucket, Prefix=settings.prefix + prefix):
        for item in page.get("Contents", ()):
            yield item["Key"].removeprefix(settings.prefix), item["ETag"]


def load(settings: Settings, key: str, kind: type[R]) -> R:
    """The record stored under `key`.

    Raises:
        Refused: no such key, or it does not hold such a record.
    """
    return load_hashed(settings, key, kind)[0]


def load_hashed(settings: Settings, key: str, kind: type[R]) -> tuple[R, str]:
    """The record stored under `key` and the SHA-256 of its bytes as they are stored.

    Raises:
        Refused: no such key, or it does not hold such a record.
    """
    data = get(settings, key)
    return _record(key, data, kind), hashlib.sha256(data).hexdigest()


def load_dated(settings: Settings, key: str, kind: type[R]) -> tuple[R, str]:
    """The record stored under `key` and when it was written, as `written` says it, in one request.

    Raises:
        Refused: no such key, or it does not hold such a record.
    """
    answer = _answer(settings, settings.bucket, settings.prefix + key)
    if answer is None:
        raise _missing(settings, key)
    return _record(key, answer["Body"].read(), kind), _when(answer)


def find_record(settings: Settings, key: str, kind: type[R]) -> tuple[R, str] | None:
    """The record stored under `key` and the ETag of its bytes, or None when it does not exist.

    Raises:
        Refused: it does not hold such a record.
    """
    found = find(settings, key)
    return None if found is None else (_record(key, found[0], kind), found[1])


def _record(key: str, data: bytes, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        raise Refused(f"{key} does not hold a {kind.__name__} record: {error}") from None


def check(settings: Settings) -> None:
    """Makes sure that the bucket can be reached.

    Raises:
        Refused: the bucket does not exist or the credentials are not accepted.
        botocore.exceptions.BotoCoreError: the server cannot be reached (a retry may help).
    """
    try:
        client(settings.s3_endpoint_url).head_bucket(Bucket=settings.bucket)
    except ClientError as error:
        where = settings.s3_endpoint_url or "AWS"
        raise Refused(
            f"The bucket {settings.bucket!r} at {where} cannot be used ({_code(error)}). "
            "Create it, or set CXR_BUCKET, CXR_S3_ENDPOINT_URL and the AWS credentials."
        ) from None
