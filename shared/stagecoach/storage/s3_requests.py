"""The requests that the S3 store makes, one method a request; retries and promises are ``s3.py``'s business.

Object bytes go over the wire, all else through boto3's client, which is handed in. Keys are full keys in the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagecoach.storage.base import DEFAULT_CONTENT_TYPE
from stagecoach.storage.s3_errors import Trouble
from stagecoach.storage.s3_wire import S3Wire, WireAnswer, WireFailure, crc32_header
from stagecoach.storage.transfer import Part

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NONCE = "stagecoach-nonce"


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Requests:
    """One bucket's requests."""

    client: S3Client
    wire: S3Wire
    bucket: str
    with_checksums: bool
    """Send CRC-32 with bytes and check it where the store sends one."""
    sse_kms_key_id: str | None

    def head(self, key: str) -> Any:
        """Return boto3's answer to HEAD."""
        return self.client.head_object(Bucket=self.bucket, Key=key)

    def list_page(self, prefix: str, **parameters: Any) -> Any:
        """Return one page of a listing."""
        return self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **parameters)

    def get(self, key: str) -> bytes:
        """Return a whole object."""
        headers = {"x-amz-checksum-mode": "ENABLED"} if self.with_checksums else {}
        answer = self.wire.request("GET", key, headers=headers)
        expected = answer.headers.get("x-amz-checksum-crc32", "")
        # the checksum of an object that came in parts ends with their number and is not one of its bytes
        if expected and "-" not in expected and expected != crc32_header(answer.body):
            raise WireFailure(Trouble.TRANSIENT, "the bytes that came do not have the CRC-32 that the store sent")
        return answer.body

    def get_part(self, key: str, part: Part, etag: str | None, take: Callable[[int, memoryview], None]) -> None:
        """Hand a part of an object on, bit by bit with their places in the object; with an ETag, of that very object."""
        span = f"{part.start}-{part.start + part.size_bytes - 1}"
        size_text = str(part.size_bytes)

        def check(status: int, headers: Mapping[str, str]) -> None:
            """Make sure that these are the bytes asked for: a server may ignore the range or have a shorter object."""
            whole = f"bytes 0-{int(headers.get('content-length', size_text)) - 1}/{headers.get('content-length')}"
            answered = whole if status == 200 else headers.get("content-range", "")
            answered_span, _, total = answered.removeprefix("bytes ").partition("/")
            if answered_span == span and headers.get("content-length", size_text) == size_text:
                return
            if total.isdecimal() and int(total) < part.start + part.size_bytes:
                raise WireFailure(Trouble.CHANGED, f"asked for bytes {span}, it has only {total}")
            raise WireFailure(Trouble.TRANSIENT, f"asked for bytes {span}, got {answered or 'no range'}")

        headers = {"range": f"bytes={span}", **({"if-match": etag} if etag else {})}
        done = 0

        def on_body(piece: memoryview) -> None:
            nonlocal done
            take(part.start + done, piece)
            done += len(piece)

        self.wire.request("GET", key, headers=headers, on_head=check, on_body=on_body)
        if done != part.size_bytes:
            raise WireFailure(Trouble.TRANSIENT, f"asked for bytes {span}, got {done} bytes")

    def put(self, key: str, data: bytes | memoryview, headers: Mapping[str, str]) -> None:
        """Store an object."""
        encryption = {}
        if self.sse_kms_key_id:
            encryption["x-amz-server-side-encryption"] = "aws:kms"
            encryption["x-amz-server-side-encryption-aws-kms-key-id"] = self.sse_kms_key_id
        self.wire.request("PUT", key, headers={**headers, **encryption, **self._checksum(data)}, body=data)

    def create_upload(self, key: str, nonce: str) -> str:
        """Begin an object in parts and return the handle of the upload."""
        extra: dict[str, Any] = {}
        if self.with_checksums:
            extra["ChecksumAlgorithm"] = "CRC32"
        if self.sse_kms_key_id:
            extra.update(ServerSideEncryption="aws:kms", SSEKMSKeyId=self.sse_kms_key_id)
        answer = self.client.create_multipart_upload(
            Bucket=self.bucket, Key=key, ContentType=DEFAULT_CONTENT_TYPE, Metadata={NONCE: nonce}, **extra
        )
        return answer["UploadId"]

    def put_part(self, key: str, upload_id: str, part: Part, data: memoryview) -> dict[str, Any]:
        """Store one part and return what ``complete_upload`` wants to know of it."""
        number, checksum = part.index + 1, self._checksum(data)
        query = {"partNumber": str(number), "uploadId": upload_id}
        answer = self.wire.request("PUT", key, query=query, headers=checksum, body=data)
        if "etag" not in answer.headers:
            raise WireFailure(Trouble.TRANSIENT, "the store took a part and gave it no ETag")
        checks = {"ChecksumCRC32": checksum["x-amz-checksum-crc32"]} if checksum else {}
        return {"PartNumber": number, "ETag": answer.headers["etag"], **checks}

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[dict[str, Any]]) -> None:
        """Make the parts an object."""
        upload: Any = {"Parts": parts}
        self.client.complete_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id, MultipartUpload=upload)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Delete the parts of an upload."""
        self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def list_uploads(self, prefix: str, **marks: Any) -> Any:
        """Return one page of the uploads that were begun and neither completed nor aborted."""
        return self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix, **marks)

    def delete(self, key: str) -> None:
        """Delete one object."""
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete at most 1,000 objects."""
        objects: Any = [{"Key": key} for key in keys]
        answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        for refused in answer.get("Errors", []):
            if refused.get("Code") not in ("NoSuchKey", "NotFound"):
                raise WireAnswer(200, refused.get("Code", ""), refused.get("Message", ""))

    def _checksum(self, data: bytes | memoryview) -> dict[str, str]:
        if not self.with_checksums:
            return {}
        return {"x-amz-checksum-crc32": crc32_header(data), "x-amz-sdk-checksum-algorithm": "CRC32"}
