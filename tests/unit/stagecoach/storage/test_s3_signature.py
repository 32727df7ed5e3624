"""Signatures are those of botocore, and of the example that AWS publishes."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from stagecoach.storage.s3_signature import UNSIGNED, Secrets, Signer

EXAMPLE = Secrets("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None)
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_published_example_of_a_get() -> None:
    """AWS, "Signature Calculations: Transferring Payload in a Single Chunk", example GET Object."""
    signer = Signer("us-east-1", lambda: EXAMPLE, clock=lambda: 1369353600.0)
    signed = signer.sign("GET", "examplebucket.s3.amazonaws.com", "/test.txt", "", {"Range": "bytes=0-9"}, EMPTY_SHA256)
    assert signed["x-amz-date"] == "20130524T000000Z"
    assert signed["authorization"].endswith("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


@pytest.mark.parametrize("token", [None, "session/token=="])
@pytest.mark.parametrize("path", ["/bucket/a%20b/%C3%A4~-._", "/x"])
@pytest.mark.parametrize("query", ["", "partNumber=2&uploadId=ab%2Fc"])
def test_it_is_what_botocore_signs(token: str | None, path: str, query: str) -> None:
    secrets = Secrets("AK", "SK", token)
    headers = {"content-type": "text/plain", "if-none-match": "*", "x-amz-meta-n": "  two   words "}
    request = AWSRequest("PUT", f"http://host:8333{path}" + (f"?{query}" if query else ""), headers, data=b"body")
    S3SigV4Auth(Credentials("AK", "SK", token), "s3", "eu-west-1").add_auth(request)
    now = dt.datetime.strptime(request.context["timestamp"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    signer = Signer("eu-west-1", lambda: secrets, clock=now.timestamp)
    signed = signer.sign("PUT", "host:8333", path, query, headers, hashlib.sha256(b"body").hexdigest())
    assert signed["authorization"] == request.headers["Authorization"]


def test_renewed_credentials_and_a_new_day_get_new_keys() -> None:
    day, secret = [0.0], ["one"]
    signer = Signer("r", lambda: Secrets("AK", secret[0], None), clock=lambda: day[0])

    def signature() -> str:
        return signer.sign("GET", "h", "/", "", {}, UNSIGNED)["authorization"].rsplit("=", 1)[1]

    first = signature()
    assert signature() == first
    secret[0] = "two"
    second = signature()
    day[0] = 86_400.0
    third = signature()
    secret[0], day[0] = "one", 0.0
    assert signature() == first
    assert len({first, second, third}) == 3
