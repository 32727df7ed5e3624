"""Where the files of a model, a tokenizer or a data set come from: one small section for each kind of place.

{kind: hub, repo: mistralai/Mistral-7B-v0.1, revision: main}     the Hugging Face Hub
{kind: directory, path: /data/chat}                             a folder or file of this machine
{kind: s3, url: s3://bucket/prefix}                             an S3 prefix
{kind: embedded, name: demo-chat}                               data that Stagecoach itself ships
{kind: seed, hidden_size: 128, ...}                             a tiny model made on the spot from a seed
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from stagecoach.paths import validate_name
from stagecoach.recipe.base import Section, placement, result
from stagecoach.recipe.seed import SeedModel
from stagecoach.redaction import without_secrets

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9_][\w.-]{0,95})?")
_EXPORT = re.compile(r"exports/[a-z0-9._-]+/")
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^\x00-\x1f?]*)?")


class HubSource(Section):
    """A repository of the Hugging Face Hub, read at one commit."""

    kind: Literal["hub"] = result("hub")
    """Kind of place."""
    repo: str = result()
    """``owner/name`` of the repository."""
    revision: str = result("main")
    """Branch, tag or commit; the plan turns it into a commit before anything is read."""
    files: tuple[str, ...] = result(())
    """Glob patterns of the files to take; empty takes what the task needs."""
    config: str | None = result(None)
    """Data sets only: the configuration (subset); None takes the default one."""
    split: str | None = result(None)
    """Data sets only: the split; None takes every split."""

    @field_validator("repo")
    @classmethod
    def _valid_repo(cls, repo: str) -> str:
        if not _REPO.fullmatch(repo) or ".." in repo:
            raise ValueError(f"expected a Hub repository such as owner/name, got {repo[:120]!r}")
        return repo


class DirectorySource(Section):
    """A folder, or a single file, of the machine that runs ``download``; refused on a cluster."""

    kind: Literal["directory"] = result("directory")
    """Kind of place."""
    path: str = result(min_length=1)
    """Path of the folder or file."""
    files: tuple[str, ...] = result(())
    """Glob patterns of the files to take, relative to ``path``; empty takes what the task needs."""


class S3Source(Section):
    """All objects under an S3 prefix."""

    kind: Literal["s3"] = result("s3")
    """Kind of place."""
    url: str = result()
    """``s3://bucket/prefix``."""
    files: tuple[str, ...] = result(())
    """Glob patterns of the objects to take, relative to ``url``; empty takes what the task needs."""

    @field_validator("url")
    @classmethod
    def _valid_url(cls, url: str) -> str:
        if not _S3_URL.fullmatch(url):
            raise ValueError(f"expected an address such as s3://bucket/prefix, got {without_secrets(url[:200])!r}")
        return url


class EmbeddedSource(Section):
    """Data that Stagecoach itself ships, so that a first run needs no network."""

    kind: Literal["embedded"] = result("embedded")
    """Kind of place."""
    name: Literal["demo-chat"] = result("demo-chat")
    """``demo-chat``: about 240 short conversations written for this project."""


class SeedSource(SeedModel):
    """A tiny model with random weights, and a SentencePiece tokenizer trained on the embedded chat, made on the spot."""

    kind: Literal["seed"] = result("seed")
    """Kind of place."""


class ReleaseSource(Section):
    """The export that serves under a release's name when the run is planned."""

    kind: Literal["release"] = result("release")
    """Kind of place."""
    name: str = result()
    """Name of the release, in the store of the run."""

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return validate_name(name, "release name")


class ExportSource(Section):
    """A finished export, in the store of the run."""

    kind: Literal["export"] = result("export")
    """Kind of place."""
    export: str = result()
    """Its folder: ``exports/my-model-0123456789abcdef0123/``."""
    release: str | None = placement(None)
    """The release that pointed to it when the run was planned; recorded."""

    @field_validator("export")
    @classmethod
    def _valid_export(cls, export: str) -> str:
        folder = export.rstrip("/") + "/"
        if not _EXPORT.fullmatch(folder) or ".." in folder:
            raise ValueError(
                f"expected the folder of an export such as exports/name-0123456789abcdef0123/, got {export[:200]!r}"
            )
        return folder


Source = Annotated[
    HubSource | DirectorySource | S3Source | EmbeddedSource | SeedSource | ReleaseSource | ExportSource,
    Field(discriminator="kind"),
]
"""Any place; ``kind`` decides."""
