"""Secrets are hidden wherever they stand in a text, and ordinary text stays as it is."""

from __future__ import annotations

import logging

import pytest

from stagecoach.redaction import SafeFormatter, without_secrets
from stagecoach.settings import secret_values

HUB_TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot reach http://user:pass@host:9000/b", "cannot reach http://***@host:9000/b"),
        ("s3://AKIA:sec+ret=@bucket/x", "s3://***@bucket/x"),
        ("GET /b?X-Amz-Signature=0af3&X-Amz-Date=20261125T0130Z", "GET /b?X-Amz-Signature=***&X-Amz-Date=***"),
        ("<a>?x=1&amp;sig=abc</a>", "<a>?x=1&amp;sig=***</a>"),
        ("https://h/x?token=abc&page=2", "https://h/x?token=***&page=2"),
        ("https://h/x?api_key=abc' failed", "https://h/x?api_key=***' failed"),
        ("https://h/x?Password=abc", "https://h/x?Password=***"),
        ("{'Authorization': 'Bearer abc.def-ghi'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("AWS4-HMAC-SHA256 Signature=" + "0a" * 32, "AWS4-HMAC-SHA256 Signature=***"),
        ("https://hooks.slack.com/services/T0/B0/xyz: timed out", "https://hooks.slack.com/***: timed out"),
        (f"401 for {HUB_TOKEN}.", "401 for ***."),
        ("ghp_" + "a" * 36, "***"),
    ],
)
def test_what_is_secret_by_its_shape_is_hidden(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix/runs/20261125T013000Z-x/plan.json: no such object",
        "https://huggingface.co/owner/name@0123456789ab: file.json",
        "http://127.0.0.1:8333/bucket?list-type=2&prefix=a%2Fb&encoding-type=url",
        "basic blocks and bearer tokens are words",
        "mailto:somebody@example.com",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_the_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "MY_SECRET"):
        monkeypatch.setenv(name, f"value/of+{name.lower()}")
        assert without_secrets(f"({name.title()}: value/of+{name.lower()})") == f"({name.title()}: ***)"


def test_names_of_files_and_short_values_are_no_secrets() -> None:
    environ = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
        "HF_TOKEN_PATH": "/home/me/token",
        "TOKENIZERS_PARALLELISM": "false-ish",
        "A_TOKEN": "x",
        "B_TOKEN": "abcdef",
        "C_TOKEN": "abcdefgh",
    }
    assert secret_values(environ) == ["abcdefgh", "abcdef"]


def test_a_log_line_with_its_traceback_has_none() -> None:
    try:
        raise OSError("no route to https://me:pw@host/?sig=abc")
    except OSError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", ("http://me:pw@host",), (OSError, error, None))
    assert SafeFormatter("%(message)s").format(record).splitlines() == [
        "http://***@host",
        "OSError: no route to https://***@host/?sig=***",
    ]
