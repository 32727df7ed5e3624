"""Uploads in parts of a few KiB, which the real server refuses: the proxy keeps the parts and puts the whole object."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import md5
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
from botocore.config import Config

from tests.faulty_s3 import Request


@dataclass
class SmallParts:
    """Answers the requests of uploads in parts; credentials come from the environment, as for the stage."""

    upstream_url: str
    _uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: Any = field(default_factory=Lock)

    def __call__(self, request: Request, body: bytes) -> tuple[bytes, bytes] | None:
        """Return head and body of the answer, None for a request that the server itself shall answer."""
        url = urlsplit(request.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if request.method == "POST" and "uploads" in query:
            upload_id = secrets.token_hex(8)
            with self._lock:
                self._uploads[upload_id] = {}
                self._metadata[upload_id] = dict(re.findall(r"(?im)^x-amz-meta-([\w-]+): *(\S+)", request.head))
            return _answer(200, f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId>", "Initiate")
        upload_id = query.get("uploadId", [""])[0]
        if not upload_id or request.method not in ("PUT", "POST", "DELETE"):
            return None
        with self._lock:
            parts = self._uploads.get(upload_id)
            if parts is None:
                return _answer(404, "<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>")
            if request.method == "PUT":
                parts[int(query["partNumber"][0])] = body
                return _answer(200, etag=md5(body, usedforsecurity=False).hexdigest())
            del self._uploads[upload_id]
        if request.method == "DELETE":
            return _answer(204)
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", body)]
        bucket, key = unquote(url.path).lstrip("/").split("/", 1)
        whole = b"".join(parts[number] for number in numbers)
        self._client.put_object(Bucket=bucket, Key=key, Body=whole, Metadata=self._metadata[upload_id])
        return _answer(200, "<CompleteMultipartUploadResult><ETag>x</ETag>", "Complete")

    @cached_property
    def _client(self) -> Any:
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client("s3", endpoint_url=self.upstream_url, config=config)


def _answer(status: int, body: str = "", of: str = "", etag: str = "") -> tuple[bytes, bytes]:
    data = (body + (f"</{of}MultipartUploadResult>" if of else "")).encode()
    tag = f'ETag: "{etag}"\r\n' if etag else ""
    return f"HTTP/1.1 {status} Small\r\n{tag}Content-Length: {len(data)}\r\n\r\n".encode(), data
