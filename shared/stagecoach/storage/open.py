"""Opens the store that a URL names, so that nobody else needs to know which kinds there are.

    /some/dir, ./dir, file:///some/dir      a directory
    s3://bucket, s3://bucket/some/prefix    an S3 bucket (boto3 is imported then, not before)
    memory://name                           this process's memory

Relative directories count from the current one.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stagecoach.errors import ConfigError
from stagecoach.redaction import without_secrets
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore, validate_key
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import shared_memory_store

_FORMS = "a directory, file:///directory, s3://bucket/prefix or memory://name"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_store(url: str, settings: Settings) -> ObjectStore:
    """Return the store at ``url``; nothing is asked of it yet.

    Args:
        url: See the module.
        settings: Endpoint, region and so on of S3; credentials come from boto3's own chain.

    Raises:
        ConfigError: The URL has none of these forms.
    """
    if "://" not in url:
        if not url.strip():
            raise ConfigError(f"store: expected {_FORMS}, got an empty text; give --store")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):
            raise ConfigError(
                f"store: expected {_FORMS}, got {without_secrets(url)!r}; write two slashes behind the colon"
            )
        return _directory(Path(url))
    scheme = url.split("://", 1)[0].lower()
    if scheme == "memory":
        return shared_memory_store(url.split("://", 1)[1])
    if scheme == "file":
        return _directory(_file_path(url))
    if scheme == "s3":
        bucket, prefix = split_s3_url(url)
        # boto3 takes a quarter of a second to import, which a directory store must not cost
        from stagecoach.storage.s3 import S3Options, S3Store

        return S3Store(bucket, prefix, S3Options.from_settings(settings))
    raise ConfigError(f"store: expected {_FORMS}, got {without_secrets(url)!r}")


def open_existing_store(url: str, settings: Settings) -> ObjectStore:
    """Return the store at ``url`` for a command that only looks at what is there; S3 itself names a missing bucket.

    Raises:
        ConfigError: The URL has none of the forms, or the directory does not exist, which would look like an empty one.
    """
    store = open_store(url, settings)
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise ConfigError(f"store: there is no directory {store.root}; correct --store, or make it with a first run")
    return store


def _directory(path: Path) -> LocalStore:
    if path.expanduser().exists() and not path.expanduser().is_dir():
        raise ConfigError(f"store: expected a directory, {path} is a file; choose another --store")
    return LocalStore(path)


def split_s3_url(url: str) -> tuple[str, str]:
    """Return bucket and prefix, without slashes at its ends, of an ``s3://`` URL.

    Raises:
        ConfigError: There is no bucket, or the prefix can be no key.
    """
    bucket, _, prefix = url.split("://", 1)[1].partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"store: expected s3://bucket/prefix, got {without_secrets(url)!r}; the bucket's name has 2 to 255"
            " letters, digits, '.', '_', '-' (credentials belong into the environment)"
        )
    if "?" in prefix:
        raise ConfigError(
            f"store: expected s3://bucket/prefix, got {without_secrets(url)!r}; leave out what begins with '?'"
        )
    if prefix:
        validate_key(prefix)
    return bucket, prefix


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigError(f"store: expected file:///absolute/directory, got {url!r}; write three slashes")
    return Path(unquote(parts.path))
