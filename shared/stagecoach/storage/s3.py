"""An S3 bucket, or a prefix of one, as an object store; the only module that imports boto3.

    put_if_absent   PUT with If-None-Match: * and a nonce; 412 or 409 -> read back: own nonce means that an earlier
                    try of this very call got through and only its answer was lost
    put_file        above 16 MiB in parts, side by side; aborted on any error, so that no part stays behind
    get_file        ranged GETs side by side, each If-Match the ETag of the first look, written at their place

boto3 finds credentials, region and endpoint, and does all that is not about bytes; bytes go through ``s3_wire``. Retries
are this module's own: they also cover a body that breaks off, and no bad minute uses up a budget.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.utils import get_environ_proxies

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing, StoreUnavailable
from stagecoach.settings import Settings
from stagecoach.storage.base import (
    DEFAULT_CONTENT_TYPE,
    ObjectInfo,
    UnfinishedUpload,
    utf8_order,
    validate_folder,
    validate_key,
    validate_prefix,
)
from stagecoach.storage.s3_errors import Trouble, code_of, may_pass, translate, trouble_of
from stagecoach.storage.s3_order import by_bytes, start_for_both_orders
from stagecoach.storage.s3_wire import S3Wire, Secrets, Target, WireFailure, crc32_header
from stagecoach.storage.transfer import (
    Part,
    RetryPolicy,
    in_order,
    new_local_file,
    split_into_parts,
    write_all,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_T = TypeVar("_T")

MAX_PARTS = 10_000
_NONCE = "stagecoach-nonce"
_DELETE_BATCH = 1000
_FIRST_CONTACT_TRIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Options:
    """How to reach an S3 store and how hard to work it; credentials come from boto3's own chain."""

    endpoint_url: str | None = None
    """Base address of a store that is not AWS."""
    region: str | None = None
    """Region of the bucket; None leaves it to boto3's own configuration."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """How an address names the bucket."""
    checksums: Literal["when_required", "when_supported"] = "when_required"
    """``when_supported`` sends and checks CRC-32; some stores that are not AWS refuse that."""
    ca_bundle: Path | None = None
    """PEM file of certificate authorities; None takes the system's."""
    sse_kms_key_id: str | None = None
    """KMS key that the store encrypts new objects with."""
    part_bytes: int = 16 * 1024 * 1024
    """Size of the parts that a large object is moved in; S3 allows 5 MiB and more."""
    num_threads: int = 4
    """How many parts move side by side."""
    connect_timeout_seconds: float = 5.0
    """Until a connection stands."""
    read_timeout_seconds: float = 60.0
    """For each wait for more bytes."""
    retry: RetryPolicy = RetryPolicy()
    """How often and how patiently a request is tried."""

    @classmethod
    def from_settings(cls, settings: Settings) -> S3Options:
        """Return what the environment says."""
        return cls(
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            addressing=settings.s3_addressing,
            checksums=settings.s3_checksums,
            ca_bundle=settings.s3_ca_bundle,
            sse_kms_key_id=settings.s3_sse_kms_key_id,
        )


@dataclass(frozen=True, slots=True)
class _Connected:
    """What is made at the first request: boto3's client and the wire for bytes."""

    client: S3Client
    wire: S3Wire


def connect(bucket: str, options: S3Options) -> _Connected:
    """Find credentials, region and address as boto3 does, and make what sends requests.

    Raises:
        ConfigError: The file of certificate authorities is missing or holds none.
        Exception: What boto3 raises where it finds no credentials or cannot use its configuration.
    """
    ca_bundle = str(options.ca_bundle) if options.ca_bundle else None
    session = boto3.session.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    client = session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        # a store that is not AWS rarely has regions, but a signature needs one
        region_name=options.region or session.region_name or ("us-east-1" if options.endpoint_url else None),
        verify=ca_bundle,
        config=Config(
            signature_version="s3v4",
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=options.connect_timeout_seconds,
            read_timeout=options.read_timeout_seconds,
            tcp_keepalive=True,
            request_checksum_calculation=options.checksums,
            response_checksum_validation=options.checksums,
            s3={"addressing_style": options.addressing},
        ),
    )
    # boto3's own answer to "where is this bucket and how is a request to it signed", whatever it was configured by
    example = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"}))
    base_url = f"{example.scheme}://{example.netloc}{example.path.removesuffix('/x')}"
    target = Target(
        base_url=base_url,
        region=parse_qs(example.query)["X-Amz-Credential"][0].split("/")[2],
        ca_bundle=ca_bundle,
        proxy_url=get_environ_proxies(base_url).get(example.scheme),
        connect_timeout_seconds=options.connect_timeout_seconds,
        read_timeout_seconds=options.read_timeout_seconds,
    )

    def current() -> Secrets:
        frozen = credentials.get_frozen_credentials()
        return Secrets(frozen.access_key or "", frozen.secret_key or "", frozen.token)

    try:
        return _Connected(client, S3Wire(target, current))
    except OSError as error:
        raise ConfigError(f"certificate authorities {ca_bundle}: {error}; correct STAGECOACH_S3_CA_BUNDLE") from error


class S3Store:
    """Objects of one bucket whose keys begin with a prefix."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        """Take note of the address; nothing is asked before the first request."""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._options = options
        self._lock = threading.Lock()
        self._connected: _Connected | None = None
        self._was_answered = False

    def head(self, key: str) -> ObjectInfo | None:
        """See ``ObjectStore.head``."""
        answer = self._head(key)
        return None if answer is None else self._info(key, answer["ContentLength"], answer)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list``."""
        validate_prefix(prefix)
        lists_by_bytes = self._options.endpoint_url is None
        start = start_after if lists_by_bytes else start_for_both_orders(start_after)
        infos = (
            self._info(item["Key"][len(self._base) :], item["Size"], item)
            for page in self._pages(prefix, **({"StartAfter": self._base + start} if start else {}))
            for item in page.get("Contents", [])
        )
        after = utf8_order(start_after)
        for info in infos if lists_by_bytes else by_bytes(infos, prefix):
            if utf8_order(info.key) > after:
                yield info

    def list_folders(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list_folders``."""
        start = len(self._base) + len(validate_folder(prefix))
        folders = [
            item["Prefix"][start:]
            for page in self._pages(prefix, Delimiter="/")
            for item in page.get("CommonPrefixes", [])
        ]
        for folder in sorted(folders, key=utf8_order):
            yield folder.rstrip("/")

    def get(self, key: str) -> bytes:
        """See ``ObjectStore.get``."""
        with self._errors(key):
            return self._retry(lambda: self._get_whole(key))

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        buffer = bytearray(size_bytes)
        if size_bytes:
            with self._errors(key):
                self._retry(lambda: self._get_part(key, Part(0, start, size_bytes), memoryview(buffer), None))
        return bytes(buffer)

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        """See ``ObjectStore.get_file``."""
        with self._errors(key):
            found = self._head(key)
            if found is None:
                raise ObjectMissing(self.url, key, "no such object")
            etag = found["ETag"]
            parts = split_into_parts(found["ContentLength"], self._options.part_bytes, 1 << 30)
            free = [bytearray(parts[0].size_bytes) for _ in range(min(len(parts), self._options.num_threads + 1))]

            with new_local_file(path) as descriptor, ThreadPoolExecutor(self._options.num_threads) as executor:

                def fetch(part: Part) -> bytearray:
                    buffer = free.pop()
                    view = memoryview(buffer)[: part.size_bytes]
                    self._retry(lambda: self._get_part(key, part, view, etag))
                    write_all(descriptor, view, part.start, path)
                    return buffer

                for part, buffer in in_order(executor, fetch, parts, len(free)):
                    if on_bytes is not None:
                        on_bytes(memoryview(buffer)[: part.size_bytes])
                    free.append(buffer)

    def local_path(self, key: str) -> Path | None:
        """See ``ObjectStore.local_path``; always None."""
        validate_key(key)
        return None

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """See ``ObjectStore.put``."""
        with self._errors(key):
            self._retry(lambda: self._put_bytes(key, data, {"content-type": content_type}))

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        """See ``ObjectStore.put_if_absent``."""
        nonce = secrets.token_hex(16)
        headers = {"content-type": content_type, "if-none-match": "*", f"x-amz-meta-{_NONCE}": nonce}
        policy = self._options.retry
        with self._errors(key):
            for conflicts in range(1, policy.max_tries + 1):
                try:
                    self._retry(lambda: self._put_bytes(key, data, headers))
                    return True
                except Exception as error:
                    if trouble_of(error) not in (Trouble.TAKEN, Trouble.CONFLICT):
                        raise
                found = self._head(key)
                if found is not None:
                    return bool(found["Metadata"].get(_NONCE) == nonce)
                # taken a moment ago, gone now: deleted meanwhile, or another put that met ours has failed
                policy.sleep(policy.pause_seconds(conflicts))
        raise StoreUnavailable(self.url, key, "conditional puts of this key meet again and again; run again later")

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore.put_file``.

        Raises:
            CorruptObjectError: The file became shorter meanwhile.
        """
        validate_key(key)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(descriptor).st_size
            with self._errors(key):
                if size_bytes <= self._options.part_bytes:
                    data = _read_part(descriptor, Part(0, 0, size_bytes), bytearray(size_bytes), path)
                    self._retry(lambda: self._put_bytes(key, data, {"content-type": DEFAULT_CONTENT_TYPE}))
                else:
                    self._put_parts(key, path, descriptor, size_bytes)
        finally:
            os.close(descriptor)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore.delete``."""
        rest = iter(keys)
        while batch := [validate_key(key) for key in islice(rest, _DELETE_BATCH)]:
            with self._errors(batch[0]):
                try:
                    self._retry(lambda: self._delete_batch(batch))  # noqa: B023 - called before the next round
                except Exception as error:
                    if trouble_of(error) is not Trouble.CONFIGURATION or code_of(error) == "NoSuchBucket":
                        raise
                    # some stores have no DeleteObjects, or want a checksum for it that boto3 no longer sends
                    for key in batch:
                        self._retry(lambda: self._client.delete_object(**self._address(key)))  # noqa: B023

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        """See ``ObjectStore.unfinished``."""
        marks: dict[str, Any] = {}
        while True:
            with self._errors(""):
                page = self._retry(
                    lambda: self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._base, **marks)  # noqa: B023
                )
            for item in page.get("Uploads", []):
                yield UnfinishedUpload(item["Key"][len(self._base) :], item["UploadId"], item["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``ObjectStore.discard``."""
        with self._errors(upload.key), suppress(ObjectMissing):
            self._abort(upload.key, upload.upload_id)

    def close(self) -> None:
        """Close idle connections; the next request opens new ones."""
        if self._connected is not None:
            self._connected.wire.close()
            self._connected.client.close()
            self._connected = None

    # -- requests ------------------------------------------------------------------------------------------------------

    def _head(self, key: str) -> Any:
        """Return boto3's answer to HEAD, None if there is no object."""
        address = self._address(key)
        with self._errors(key):
            try:
                return self._retry(lambda: self._client.head_object(**address))
            except Exception as error:
                if trouble_of(error) is Trouble.MISSING:
                    return None
                raise

    def _pages(self, prefix: str, **parameters: str) -> Iterator[Any]:
        while True:
            with self._errors(prefix):
                page = self._retry(
                    lambda: self._client.list_objects_v2(
                        Bucket=self._bucket,
                        Prefix=self._base + prefix,
                        **cast(Any, parameters),  # noqa: B023
                    )
                )
            yield page
            if not page.get("IsTruncated"):
                return
            parameters = {**parameters, "ContinuationToken": page["NextContinuationToken"]}
            parameters.pop("StartAfter", None)

    def _get_whole(self, key: str) -> bytes:
        checks = self._options.checksums == "when_supported"
        answer = self._wire.request(
            "GET", self._full(key), headers={"x-amz-checksum-mode": "ENABLED"} if checks else {}
        )
        expected = answer.headers.get("x-amz-checksum-crc32", "")
        if expected and "-" not in expected and expected != crc32_header(answer.body):
            raise WireFailure(Trouble.TRANSIENT, "the bytes that came do not have the CRC-32 that the store sent")
        return answer.body

    def _get_part(self, key: str, part: Part, into: memoryview, etag: str | None) -> None:
        end = part.start + part.size_bytes

        def check(status: int, headers: Mapping[str, str]) -> None:
            """Make sure that these are the bytes asked for: a server may ignore the range, or know a shorter object."""
            answered = headers.get("content-range", "" if status == 206 else f"bytes 0-{end - 1}/{end}")
            span, _, total = answered.removeprefix("bytes ").partition("/")
            if span != f"{part.start}-{end - 1}" or headers.get("content-length", str(len(into))) != str(len(into)):
                if total.isdecimal() and int(total) < end:
                    raise WireFailure(Trouble.CHANGED, f"it ends after {total} bytes, expected {end}")
                raise WireFailure(Trouble.TRANSIENT, f"asked for bytes {part.start}-{end - 1}, got {answered!r}")

        headers = {"range": f"bytes={part.start}-{end - 1}", **({"if-match": etag} if etag else {})}
        self._wire.request("GET", self._full(key), headers=headers, into=into, on_head=check)

    def _put_bytes(
        self, key: str, data: bytes | memoryview, headers: Mapping[str, str], query: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """Send one PUT of an object or a part; return the headers of the answer."""
        extra = {}
        if self._options.checksums == "when_supported":
            extra = {"x-amz-checksum-crc32": crc32_header(data), "x-amz-sdk-checksum-algorithm": "CRC32"}
        if self._options.sse_kms_key_id and not query:
            extra["x-amz-server-side-encryption"] = "aws:kms"
            extra["x-amz-server-side-encryption-aws-kms-key-id"] = self._options.sse_kms_key_id
        return self._wire.request("PUT", self._full(key), query=query, headers={**headers, **extra}, body=data).headers

    def _put_parts(self, key: str, path: Path, descriptor: int, size_bytes: int) -> None:
        parts = split_into_parts(size_bytes, self._options.part_bytes, MAX_PARTS)
        free = [bytearray(parts[0].size_bytes) for _ in range(self._options.num_threads + 1)]
        nonce = secrets.token_hex(16)
        upload_id = self._retry(lambda: self._create_upload(key, nonce))

        def send(part: Part) -> dict[str, Any]:
            buffer = free.pop()
            data = _read_part(descriptor, part, buffer, path)
            query = {"partNumber": str(part.index + 1), "uploadId": upload_id}
            headers = self._retry(lambda: self._put_bytes(key, data, {}, query))
            checks = {"ChecksumCRC32": crc32_header(data)} if self._options.checksums == "when_supported" else {}
            free.append(buffer)
            return {"PartNumber": part.index + 1, "ETag": headers.get("etag", ""), **checks}

        try:
            with ThreadPoolExecutor(self._options.num_threads) as executor:
                sent = [answer for _, answer in in_order(executor, send, parts, len(free))]
            self._complete(key, upload_id, sent, nonce)
        except BaseException:
            with suppress(Exception):
                self._abort(key, upload_id)
            raise

    def _create_upload(self, key: str, nonce: str) -> str:
        extra: dict[str, Any] = {}
        if self._options.checksums == "when_supported":
            extra["ChecksumAlgorithm"] = "CRC32"
        if self._options.sse_kms_key_id:
            extra.update(ServerSideEncryption="aws:kms", SSEKMSKeyId=self._options.sse_kms_key_id)
        answer = self._client.create_multipart_upload(
            **self._address(key), ContentType=DEFAULT_CONTENT_TYPE, Metadata={_NONCE: nonce}, **extra
        )
        return answer["UploadId"]

    def _complete(self, key: str, upload_id: str, parts: Sequence[dict[str, Any]], nonce: str) -> None:
        address: Any = {**self._address(key), "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        try:
            self._retry(lambda: self._client.complete_multipart_upload(**address))
        except Exception as error:
            # an earlier try may have completed it, with its answer lost; then the upload is gone and the object is ours
            if code_of(error) != "NoSuchUpload":
                raise
            found = self._head(key)
            if found is None or found["Metadata"].get(_NONCE) != nonce:
                raise

    def _abort(self, key: str, upload_id: str) -> None:
        address: Any = {**self._address(key), "UploadId": upload_id}
        self._retry(lambda: self._client.abort_multipart_upload(**address))

    def _delete_batch(self, keys: Sequence[str]) -> None:
        objects: Any = [{"Key": self._full(key)} for key in keys]
        answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        for refused in answer.get("Errors", []):
            if refused.get("Code") not in ("NoSuchKey", "NotFound"):
                raise ClientError(
                    cast(Any, {"Error": refused, "ResponseMetadata": {"HTTPStatusCode": 200}}), "DeleteObjects"
                )

    # -- wiring --------------------------------------------------------------------------------------------------------

    def _full(self, key: str) -> str:
        return self._base + validate_key(key)

    def _address(self, key: str) -> Any:
        return {"Bucket": self._bucket, "Key": self._full(key)}

    @property
    def _client(self) -> S3Client:
        return self._connect().client

    @property
    def _wire(self) -> S3Wire:
        return self._connect().wire

    def _connect(self) -> _Connected:
        with self._lock:
            if self._connected is None:
                self._connected = connect(self._bucket, self._options)
            return self._connected

    def _retry(self, action: Callable[[], _T]) -> _T:
        """Run one request as often as it is worth; what never answered at all is given up sooner: the address is wrong."""

        def is_worth_it(error: Exception, failures: int) -> bool:
            unknown = trouble_of(error) is Trouble.UNREACHABLE and not self._was_answered
            return may_pass(error) and not (unknown and failures >= _FIRST_CONTACT_TRIES)

        result = self._options.retry.run(action, is_worth_it)
        self._was_answered = True
        return result

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if trouble_of(error) is None:
                raise
            endpoint = self._options.endpoint_url or "AWS"
            raise translate(error, self.url, key, endpoint) from error

    def _info(self, key: str, size_bytes: int, answer: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(key, size_bytes, answer["ETag"].strip('"'), answer["LastModified"].timestamp())


def _read_part(descriptor: int, part: Part, buffer: bytearray, path: Path) -> memoryview:
    """Read a part of a file into a buffer of at least its size."""
    view = memoryview(buffer)[: part.size_bytes]
    filled = 0
    while filled < part.size_bytes:
        count = os.preadv(descriptor, [view[filled:]], part.start + filled)
        if count == 0:
            raise CorruptObjectError(f"{path}: became shorter while it was being stored; see who writes it")
        filled += count
    return view
