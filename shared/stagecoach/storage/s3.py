"""An S3 bucket, or a prefix of one, as an object store; the only module that imports boto3.

    put_if_absent   PUT with If-None-Match: * and a nonce; 412 or 409 -> read back: own nonce means that an earlier
                    try of this very call got through and only its answer was lost
    create          above 16 MiB in parts, sent side by side while the next one is written; aborted on any error, so
                    that no part stays behind
    put_file        the same, out of a file
    get_file        ranged GETs side by side, each If-Match the ETag of the first look, written at their place

boto3 finds credentials, region and endpoint and does what is not about bytes; bytes go through ``s3_wire``. Retries are
this module's own: they also cover a body that breaks off, and no bad minute uses up a budget.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.utils import get_environ_proxies

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing, StoreUnavailable
from stagecoach.storage.base import (
    DEFAULT_CONTENT_TYPE,
    ObjectInfo,
    UnfinishedUpload,
    Write,
    Writing,
    utf8_order,
    validate_folder,
    validate_key,
    validate_prefix,
)
from stagecoach.storage.s3_calls import S3Calls
from stagecoach.storage.s3_errors import Trouble, code_of, trouble_of
from stagecoach.storage.s3_options import S3Options as S3Options
from stagecoach.storage.s3_order import by_bytes
from stagecoach.storage.s3_requests import NONCE, S3Requests
from stagecoach.storage.s3_signature import Secrets, Signer
from stagecoach.storage.s3_upload import MAX_PARTS, PartsWriter, upload_in_parts
from stagecoach.storage.s3_wire import S3Wire, Target, WireFailure
from stagecoach.storage.transfer import (
    Part,
    in_order,
    new_local_file,
    read_back,
    split_into_parts,
    write_all,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DELETE_BATCH = 1000


def connect(bucket: str, options: S3Options) -> S3Requests:
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
    base_url, region = _address_of(client, bucket)
    target = Target(
        base_url=base_url,
        ca_bundle=ca_bundle,
        proxy_url=get_environ_proxies(base_url).get(base_url.split(":")[0]),
        connect_timeout_seconds=options.connect_timeout_seconds,
        read_timeout_seconds=options.read_timeout_seconds,
    )

    def current() -> Secrets:
        try:
            frozen = credentials.get_frozen_credentials()
        except RuntimeError as error:  # boto3's way to say that renewed credentials had expired already
            raise WireFailure(Trouble.TRANSIENT, str(error)) from error
        return Secrets(frozen.access_key or "", frozen.secret_key or "", frozen.token)

    try:
        wire = S3Wire(target, Signer(region, current))
    except OSError as error:
        raise ConfigError(f"certificate authorities {ca_bundle}: {error}; correct STAGECOACH_S3_CA_BUNDLE") from error
    return S3Requests(
        client=client,
        wire=wire,
        bucket=bucket,
        with_checksums=options.checksums == "when_supported",
        sse_kms_key_id=options.sse_kms_key_id,
    )


class _Stopped(Exception):
    """A request of boto3's that is complete and shall not be sent."""

    def __init__(self, url: str, authorization: str) -> None:
        self.url = url
        self.authorization = authorization
        super().__init__(url)


def _address_of(client: S3Client, bucket: str) -> tuple[str, str]:
    """Return the bucket's base URL and the region of signatures, as boto3 uses them, however that was configured."""

    def stop(request: AWSPreparedRequest, **_: object) -> None:
        authorization = request.headers["Authorization"]
        text = authorization.decode() if isinstance(authorization, bytes) else str(authorization)
        raise _Stopped(request.url.split("?")[0], text)

    client.meta.events.register("before-send.s3.HeadObject", stop)
    try:
        client.head_object(Bucket=bucket, Key="x")
    except _Stopped as stopped:
        # Credential=<access key>/<day>/<region>/s3/aws4_request, ..
        return stopped.url.removesuffix("/x"), stopped.authorization.split("/")[2]
    finally:
        client.meta.events.unregister("before-send.s3.HeadObject", stop)
    raise AssertionError("boto3 sent a request past its before-send event")


class S3Store:
    """Objects of one bucket whose keys begin with a prefix."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        """Take note of the address; nothing is asked before the first request."""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._base = f"{prefix}/" if prefix else ""
        self._options = options
        self._calls = S3Calls(self.url, options, lambda: connect(bucket, options))

    def head(self, key: str) -> ObjectInfo | None:
        """See ``ObjectStore.head``."""
        answer = self._head(key)
        return None if answer is None else self._info(key, answer["ContentLength"], answer)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list``."""
        validate_prefix(prefix)
        # other servers than AWS may list folder by folder, and then StartAfter leaves out keys that come later by bytes
        lists_by_bytes = self._options.endpoint_url is None
        start = self._base + start_after if start_after and lists_by_bytes else ""
        infos = (
            self._info(item["Key"][len(self._base) :], item["Size"], item)
            for page in self._pages(prefix, **({"StartAfter": start} if start else {}))
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
        with self._calls.errors(key):
            full = self._full(key)
            return self._calls.retry(lambda ask: ask.get(full))

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        if not size_bytes:
            return b""
        full, part = self._full(key), Part(0, start, size_bytes)

        def fetch(ask: S3Requests) -> bytes:
            stream = BytesIO()  # gives its bytes away without a copy

            def take(_: int, piece: memoryview) -> None:
                stream.write(piece)

            ask.get_part(full, part, None, take)
            return stream.getvalue()

        with self._calls.errors(key):
            return self._calls.retry(fetch)

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        """See ``ObjectStore.get_file``."""
        with self._calls.errors(key):
            found = self._head(key)
            if found is None:
                raise ObjectMissing(self.url, key, "no such object")
            full, etag = self._full(key), found["ETag"]
            parts = split_into_parts(found["ContentLength"], self._options.part_bytes, 1 << 30)
            num_threads = min(len(parts), self._options.num_threads) or 1
            with new_local_file(path) as descriptor, ThreadPoolExecutor(num_threads) as executor:

                def fetch(part: Part) -> None:
                    self._calls.retry(lambda ask: ask.get_part(full, part, etag, place))

                def place(start: int, piece: memoryview) -> None:
                    write_all(descriptor, piece, start, path)

                for part, _ in in_order(executor, fetch, parts, 4 * num_threads):
                    if on_bytes is not None:
                        for piece in read_back(descriptor, part, path):
                            on_bytes(piece)

    def local_path(self, key: str) -> Path | None:
        """See ``ObjectStore.local_path``; always None."""
        validate_key(key)
        return None

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """See ``ObjectStore.put``."""
        with self._calls.errors(key):
            full = self._full(key)
            self._calls.retry(lambda ask: ask.put(full, data, {"content-type": content_type}))

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        """See ``ObjectStore.put_if_absent``."""
        nonce = secrets.token_hex(16)
        headers = {"content-type": content_type, "if-none-match": "*", f"x-amz-meta-{NONCE}": nonce}
        full, policy = self._full(key), self._options.retry
        with self._calls.errors(key):
            for conflicts in range(1, policy.max_tries + 1):
                try:
                    self._calls.retry(lambda ask: ask.put(full, data, headers))
                    return True
                except Exception as error:
                    if trouble_of(error) not in (Trouble.TAKEN, Trouble.CONFLICT):
                        raise
                found = self._head(key)
                if found is not None:
                    return bool(found["Metadata"].get(NONCE) == nonce)
                # taken a moment ago, gone now: deleted meanwhile, or another put that met ours has failed
                policy.sleep(policy.pause_seconds(conflicts))
        raise StoreUnavailable(self.url, key, "conditional puts of this key meet again and again; run again later")

    @contextmanager
    def create(self, key: str) -> Iterator[Write]:
        """See ``ObjectStore.create``."""
        full = self._full(key)
        with upload_in_parts(self._calls, full, self._options) as upload:
            writer = PartsWriter(upload, self._options.part_bytes)

            def write(data: bytes | memoryview) -> None:
                with self._calls.errors(key):
                    writer.write(data)

            writing = Writing(write)
            yield writing
            writing.check()
            with self._calls.errors(key):
                whole = writer.finish()
                if whole is not None:
                    self._put_whole(full, whole)

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore.put_file``.

        Raises:
            CorruptObjectError: The file became shorter meanwhile.
        """
        full = self._full(key)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(descriptor).st_size
            with self._calls.errors(key), upload_in_parts(self._calls, full, self._options) as upload:
                parts = split_into_parts(size_bytes, self._options.part_bytes, MAX_PARTS)
                if len(parts) <= 1:
                    buffer = memoryview(bytearray(size_bytes))
                    _read_part(descriptor, Part(0, 0, size_bytes), buffer, path)
                    self._put_whole(full, buffer)
                    return
                for part in parts:
                    buffer = upload.buffer(parts[0].size_bytes)
                    _read_part(descriptor, part, buffer, path)
                    upload.send(buffer, part.size_bytes)
                upload.complete()
        finally:
            os.close(descriptor)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore.delete``."""
        rest = iter(keys)
        while batch := [self._full(key) for key in islice(rest, _DELETE_BATCH)]:
            with self._calls.errors(batch[0].removeprefix(self._base)):
                try:
                    self._calls.retry(lambda ask: ask.delete_many(batch))
                except Exception as error:
                    if trouble_of(error) is not Trouble.CONFIGURATION or code_of(error) == "NoSuchBucket":
                        raise
                    # some stores have no DeleteObjects, or want a checksum for it that boto3 no longer sends
                    for full in batch:
                        self._calls.retry(lambda ask: ask.delete(full))  # noqa: B023

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        """See ``ObjectStore.unfinished``."""
        marks: dict[str, Any] = {}
        while True:
            with self._calls.errors(""):
                page = self._calls.retry(lambda ask: ask.list_uploads(self._base, **marks))  # noqa: B023
            for item in page.get("Uploads", []):
                yield UnfinishedUpload(item["Key"][len(self._base) :], item["UploadId"], item["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``ObjectStore.discard``."""
        full = self._full(upload.key)
        with suppress(ObjectMissing), self._calls.errors(upload.key):
            self._calls.retry(lambda ask: ask.abort_upload(full, upload.upload_id))

    def close(self) -> None:
        """Close idle connections; the next request opens new ones."""
        self._calls.close()

    def _head(self, key: str) -> Any:
        """Return boto3's answer to HEAD, None if there is no object."""
        full = self._full(key)
        with self._calls.errors(key):
            try:
                return self._calls.retry(lambda ask: ask.head(full))
            except Exception as error:
                if trouble_of(error) is Trouble.MISSING:
                    return None
                raise

    def _pages(self, prefix: str, **parameters: str) -> Iterator[Any]:
        while True:
            with self._calls.errors(prefix):
                page = self._calls.retry(lambda ask: ask.list_page(self._base + prefix, **parameters))  # noqa: B023
            yield page
            if not page.get("IsTruncated"):
                return
            parameters = {**parameters, "ContinuationToken": page["NextContinuationToken"]}
            parameters.pop("StartAfter", None)

    def _put_whole(self, full: str, data: memoryview) -> None:
        self._calls.retry(lambda ask: ask.put(full, data, {"content-type": DEFAULT_CONTENT_TYPE}))

    def _full(self, key: str) -> str:
        return self._base + validate_key(key)

    def _info(self, key: str, size_bytes: int, answer: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(key, size_bytes, answer["ETag"].strip('"'), answer["LastModified"].timestamp())


def _read_part(descriptor: int, part: Part, buffer: memoryview, path: Path) -> None:
    """Read a part of a file into a buffer of at least its size."""
    filled = 0
    while filled < part.size_bytes:
        count = os.preadv(descriptor, [buffer[filled : part.size_bytes]], part.start + filled)
        if count == 0:
            raise CorruptObjectError(f"{path}: became shorter while it was being stored; see who writes it")
        filled += count
