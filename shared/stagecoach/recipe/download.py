"""What the three download tasks are asked to do: a source, resolved by ``plan`` to files whose content is known.

Only the files' content enters a key: where they come from (branch, commit, folder, bucket) is recorded. So the same
weights from a renamed repository, or from another commit that left them alone, are not fetched again.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from stagecoach.recipe.base import Section, placement, result
from stagecoach.recipe.seed import SeedModel
from stagecoach.recipe.source import Source


class ResolvedFile(Section):
    """One file of a source, with what is known about its content before it is read."""

    path: str = result()
    """Name below the source's root, with '/'; also the name of the object that the task makes."""
    size_bytes: NonNegativeInt = result()
    """Exact length."""
    sha256: str | None = result(None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the content (a directory's files, files that the Hub keeps in LFS)."""
    git_blob_sha1: str | None = result(None, pattern=r"^[0-9a-f]{40}$")
    """Git's object id of the content (small files of a Hub repository)."""
    etag: str | None = result(None, min_length=1)
    """The object's ETag in an S3 store."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        odd_character = "\\" in path or re.search(r"[\x00-\x1f\x7f]", path)
        if odd_character or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"expected a relative path without '..' or control characters, got {path[:120]!r}")
        return path

    @model_validator(mode="after")
    def _identified(self) -> Self:
        if self.sha256 is None and self.git_blob_sha1 is None and self.etag is None:
            raise ValueError(
                f"{self.path}: expected a sha256, a git blob id or an ETag, got none; `stagecoach plan` finds them"
            )
        return self


class _DownloadConfig(Section):
    source: Source = placement()
    """Where the files are, as the recipe says it."""
    commit: str | None = placement(None)
    """The Hub commit that the revision stood for when the run was planned; the files are read from exactly that one."""
    files: tuple[ResolvedFile, ...] = result(())
    """The files to take; content that differs from what is recorded here is refused."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        paths = [file.path for file in self.files]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ValueError(f"files: expected each path once, got {', '.join(twice[:3])} more than once")
        return self


class SeedIdentity(Section):
    """A model that is made instead of fetched, and the text that its tokenizer learns from."""

    model: SeedModel = result()
    """Dimensions and seed."""
    text_sha256: str = result(pattern=r"^[0-9a-f]{64}$")
    """Digest of the embedded chat set that the tokenizer is trained on."""


class DownloadModelConfig(_DownloadConfig):
    """What ``download-model`` brings: configuration and weights."""

    documents: tuple[ResolvedFile, ...] = placement(())
    """Licence and model card: brought along, but outside the key, so that a new model card trains nothing again."""
    seed: SeedIdentity | None = result(None)
    """Set for a source of kind `seed`, whose files are made here."""


class DownloadTokenizerConfig(_DownloadConfig):
    """What ``download-tokenizer`` brings: the source's tokenizer, made final."""

    seed: SeedIdentity | None = result(None)
    """Set for a source of kind `seed`, whose tokenizer is trained here."""
    chat_format: Literal["chatml", "tokenizer"] = result("chatml")
    """chatml adds the two ChatML tokens where they are missing; tokenizer keeps tokens and template as they are."""


class DownloadDataConfig(_DownloadConfig):
    """What ``download-data`` brings: the files of one data source, byte for byte."""

    files: tuple[ResolvedFile, ...] = Field(min_length=1, json_schema_extra={"x-effect": "result"})
    """The files to take, at least one; content that differs from what is recorded here is refused."""
