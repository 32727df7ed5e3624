"""Signs S3 requests with AWS Signature Version 4, in one HMAC a request: the key of a day is derived once.

    canonical request = method, path, query, headers, names, sha256(body)          one a line
    text to sign      = algorithm, time, scope, sha256(canonical request)          one a line
    signature         = HMAC(HMAC(HMAC(HMAC("AWS4" + secret, day), region), "s3"), "aws4_request") over the text

A body sent over TLS is not hashed (UNSIGNED-PAYLOAD), as TLS guards it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

UNSIGNED = "UNSIGNED-PAYLOAD"


class Secrets(NamedTuple):
    """Credentials of one moment."""

    access_key: str
    secret_key: str
    token: str | None


@dataclass(slots=True)
class Signer:
    """Signs requests to one region; safe to use from several threads."""

    region: str
    secrets: Callable[[], Secrets]
    """Returns the credentials to use now; called for each request, so that they may be renewed."""
    clock: Callable[[], float] = time.time
    _cached: tuple[str, str, bytes] = ("", "", b"")

    def sign(
        self, method: str, host: str, path: str, query: str, headers: Mapping[str, str], payload_sha256: str
    ) -> dict[str, str]:
        """Return the headers, names in lower case, with those that the signature adds.

        Args:
            method: GET, PUT ..
            host: As in the Host header.
            path: Percent-encoded, with its first slash.
            query: Percent-encoded and sorted, without the question mark.
            headers: All are signed.
            payload_sha256: In hexadecimal, or ``UNSIGNED``.
        """
        secrets = self.secrets()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.clock()))
        signed = {name.lower(): value for name, value in headers.items()}
        signed.update({"host": host, "x-amz-content-sha256": payload_sha256, "x-amz-date": stamp})
        if secrets.token:
            signed["x-amz-security-token"] = secrets.token
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload_sha256}"
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_for(secrets.secret_key, stamp[:8]), text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={secrets.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def _key_for(self, secret_key: str, day: str) -> bytes:
        cached = self._cached  # one read: another thread may replace it between two
        if cached[:2] == (secret_key, day):
            return cached[2]
        key = f"AWS4{secret_key}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._cached = (secret_key, day, key)
        return key
