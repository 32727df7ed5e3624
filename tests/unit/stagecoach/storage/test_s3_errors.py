"""Each error of boto3 and each answer of a server has a meaning, an exit code and a sentence."""

from __future__ import annotations

import inspect

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing, StoreDenied, StoreUnavailable
from stagecoach.storage.s3_errors import Trouble, may_pass, translate, trouble_of
from stagecoach.storage.s3_wire import WireAnswer, WireFailure

CLASSES = [
    each
    for _, each in inspect.getmembers(botocore.exceptions, inspect.isclass)
    if issubclass(each, Exception)
    and not issubclass(each, Warning)
    and each.__module__ == "botocore.exceptions"
    and each is not botocore.exceptions.BotoCoreError
]


def answer(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "PutObject",
    )


def test_the_walk_finds_classes() -> None:
    assert len(CLASSES) > 80


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda each: each.__name__)
def test_every_class_of_botocore_has_a_meaning(error_class: type[Exception]) -> None:
    """A new boto3 may bring new errors; each needs a decision: retry, credentials, configuration or a bug."""
    error = error_class.__new__(error_class)
    if isinstance(error, ClientError):
        error.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}  # type: ignore[typeddict-item]
    assert trouble_of(error) is not None


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", ObjectMissing),
        (404, "404", ObjectMissing),
        (403, "AccessDenied", StoreDenied),
        (403, "403", StoreDenied),
        (403, "InvalidAccessKeyId", StoreDenied),
        (403, "SignatureDoesNotMatch", StoreDenied),
        (400, "ExpiredToken", StoreDenied),
        (401, "Unauthorized", StoreDenied),
        (404, "NoSuchBucket", ConfigError),
        (301, "PermanentRedirect", ConfigError),
        (400, "AuthorizationHeaderMalformed", ConfigError),
        (400, "KMS.NotFoundException", ConfigError),
        (501, "NotImplemented", ConfigError),
        (412, "PreconditionFailed", CorruptObjectError),
        (416, "InvalidRange", CorruptObjectError),
        (500, "InternalError", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (502, "502", StoreUnavailable),
        (429, "TooManyRequests", StoreUnavailable),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "BadDigest", StoreUnavailable),
        (403, "RequestTimeTooSkewed", StoreUnavailable),
        (409, "OperationAborted", StoreUnavailable),
        (507, "XMinioStorageFull", StoreUnavailable),
    ],
)
def test_answers_become_our_errors(status: int, code: str, expected: type[Exception]) -> None:
    for error in (answer(status, code), WireAnswer(status, code, "m")):
        translated = translate(error, "s3://bucket/p", "a/b", "http://host:1")
        assert type(translated) is expected
        assert str(translated).startswith("s3://bucket/p")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        *((status, str(status), True) for status in (408, 425, 429, 500, 502, 503, 504)),
        (503, "SlowDown", True),
        (400, "RequestTimeout", True),
        *((status, str(status), False) for status in (301, 400, 401, 403, 404, 405, 409, 412, 416, 501, 507)),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int, code: str, expected: bool) -> None:
    assert may_pass(answer(status, code)) is expected


def test_the_sentence_says_what_the_server_said() -> None:
    error = WireAnswer.parse(
        403, b"<Error><Code>AccessDenied</Code><Message>User: x is not\n authorized &amp; more</Message></Error>"
    )
    assert str(translate(error, "s3://b", "k", "AWS")) == (
        "s3://b/k: access denied (AccessDenied, HTTP 403: User: x is not authorized & more);"
        " check the permissions of these credentials"
    )


def test_an_unreachable_server_is_named() -> None:
    error = WireFailure(Trouble.UNREACHABLE, "Connection refused")
    assert str(translate(error, "s3://b", "", "http://127.0.0.1:9")) == (
        "s3://b: cannot reach http://127.0.0.1:9 (Connection refused); check endpoint and network"
    )


def test_errors_of_others_are_left_alone() -> None:
    assert trouble_of(ValueError("x")) is None
    assert trouble_of(ConnectionError("of the operating system")) is None
