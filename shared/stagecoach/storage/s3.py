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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import boto3
from botocore.config import Config
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
from stagecoach.storage.s3_wire import Answer, S3Wire, Secrets, Target, crc32_header
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
