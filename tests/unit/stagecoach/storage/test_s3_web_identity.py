"""IRSA: a token file and a role in the environment become credentials through STS, and are renewed with the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest

from stagecoach.errors import StoreDenied
from stagecoach.storage.s3 import S3Options, S3Store
from tests.loopback import QuietHandler, served

if TYPE_CHECKING:
    from tests.seaweed import SeaweedServer

ROLE = "arn:aws:iam::123456789012:role/stagecoach"
NEAR = timedelta(minutes=5)  # so near that they are renewed before each use
ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>{until:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
REFUSAL = "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>expired</Message></Error></ErrorResponse>"


@contextmanager
def sts(key: str, secret: str, asked: list[dict[str, str]]) -> Iterator[str]:
    """A server that gives these credentials for every token but "stolen"."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked.append({name: values[0] for name, values in form.items()})
            refused = asked[-1]["WebIdentityToken"] == "stolen"
            text = REFUSAL if refused else ANSWER.format(key=key, secret=secret, until=datetime.now(UTC) + NEAR)
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    with served(Handler) as address:
        yield address


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_environment: SeaweedServer) -> Path:
    """What Kubernetes puts into a pod: a file that it replaces from time to time, and no keys."""
    file = tmp_path / "token"
    file.write_text("first")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return file


def open_s3(server: SeaweedServer) -> S3Store:
    return S3Store("stagecoach", "irsa", S3Options(endpoint_url=server.server.endpoint_url, addressing="path"))


def test_a_role_opens_the_store_and_a_new_token_is_read(
    s3_environment: SeaweedServer, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []
    with sts(s3_environment.server.access_key, s3_environment.server.secret_key, asked) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        store = open_s3(s3_environment)
        store.put("a", b"1")
        token.write_text("second")
        assert store.get("a") == b"1"
        store.close()
    assert {one["RoleArn"] for one in asked} == {ROLE}
    assert (asked[0]["WebIdentityToken"], asked[-1]["WebIdentityToken"]) == ("first", "second")


def test_a_refused_token_is_said(s3_environment: SeaweedServer, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.write_text("stolen")
    with sts("", "", []) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        with pytest.raises(StoreDenied, match="InvalidIdentityToken"):
            open_s3(s3_environment).get("a")
