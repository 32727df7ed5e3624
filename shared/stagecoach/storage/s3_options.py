"""How to reach an S3 store and how hard to work it: what a deployment decides, without importing boto3."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stagecoach.settings import Settings
from stagecoach.storage.transfer import RetryPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Options:
    """Everything but the bucket and the credentials, which come from boto3's own chain."""

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
    num_threads: int = 6
    """How many parts move side by side."""
    connect_timeout_seconds: float = 5.0
    """Until a connection stands."""
    read_timeout_seconds: float = 60.0
    """For each wait for more bytes."""
    max_buffer_bytes: int = 96 * 1024 * 1024
    """Bounds the memory for parts on their way; very large objects have larger parts, fewer at a time."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """How often and how patiently a request is tried."""

    def threads_for(self, part_bytes: int) -> int:
        """Return how many parts of that size may move side by side."""
        return max(1, min(self.num_threads, self.max_buffer_bytes // part_bytes))

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
