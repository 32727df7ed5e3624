"""Resolves a source of the recipe to a download config: which files are taken, and what is known about their content.

``plan`` calls this before anything runs, and keys are made from the result. The Hub's part, one call over the network,
is handed in by ``plan``; folders are hashed, S3 prefixes listed, and a seed is an identity by itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stagecoach import source_files
from stagecoach.demo.chat import FILE_NAME, demo_chat_bytes, demo_chat_sha256
from stagecoach.errors import ConfigError, MissingInputError
from stagecoach.hub_datasets import hub_data_files
from stagecoach.recipe.download import (
    DownloadDataConfig,
    DownloadModelConfig,
    DownloadTokenizerConfig,
    ResolvedFile,
    SeedIdentity,
)
from stagecoach.recipe.seed import SeedModel
from stagecoach.recipe.source import DirectorySource, EmbeddedSource, HubSource, S3Source, SeedSource, Source
from stagecoach.settings import Settings
from stagecoach.storage.base import validate_key
from stagecoach.storage.open import open_store

_READ_BYTES = 4 * 1024 * 1024
_SKIPPED_FOLDERS = ("__pycache__", "lost+found")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubListing:
    """What the Hub says about a repository at one commit."""

    commit: str
    """The commit that the revision stands for now, 40 hex digits."""
    paths: Sequence[str]
    """Every file."""
    identify: Callable[[str], ResolvedFile]
    """Returns one of them with its LFS sha256 or its git blob id."""
    card_configs: Sequence[Mapping[str, Any]] = ()
    """``configs`` of a data set's card."""


HubLister = Callable[[HubSource, Literal["model", "dataset"]], HubListing]


def model_config(source: Source, settings: Settings, list_hub: HubLister) -> DownloadModelConfig:
    """Return what ``download-model`` shall do for the source of a model.

    Raises:
        ConfigError: The source cannot be a model.
        MissingInputError: It does not exist, or config.json or weights are missing.
        UnavailableError: The Hub or the S3 store does not answer.
    """
    if isinstance(source, SeedSource):
        return DownloadModelConfig(source=source, seed=seed_identity(source))
    listing = _list(source, settings, list_hub, "model")
    paths = listing.matching(source)
    documents = source_files.document_files(listing.paths)
    return DownloadModelConfig(
        source=listing.source,
        commit=listing.commit,
        files=listing.resolve(source_files.model_files(paths, listing.origin)),
        documents=listing.resolve(documents),
    )


def tokenizer_config(
    source: Source, chat_format: Literal["chatml", "tokenizer"], settings: Settings, list_hub: HubLister
) -> DownloadTokenizerConfig:
    """Return what ``download-tokenizer`` shall do; raises as ``model_config`` does."""
    if isinstance(source, SeedSource):
        return DownloadTokenizerConfig(source=source, seed=seed_identity(source), chat_format=chat_format)
    listing = _list(source, settings, list_hub, "model")
    files = source_files.tokenizer_files(listing.paths, listing.origin)
    return DownloadTokenizerConfig(
        source=listing.source, commit=listing.commit, files=listing.resolve(files), chat_format=chat_format
    )


def data_config(source: Source, settings: Settings, list_hub: HubLister) -> DownloadDataConfig:
    """Return what ``download-data`` shall do for one data source; raises as ``model_config`` does."""
    if isinstance(source, SeedSource):
        raise ConfigError("a data source of kind 'seed': expected hub, directory, s3 or embedded")
    listing = _list(source, settings, list_hub, "dataset")
    if getattr(source, "files", ()):
        paths = listing.matching(source)
    elif isinstance(source, HubSource):
        paths = hub_data_files(
            listing.paths,
            listing.origin,
            config=source.config,
            split=source.split,
            card_configs=listing.card_configs,
        )
    else:
        paths = source_files.data_files(listing.paths, listing.origin)
    return DownloadDataConfig(source=listing.source, commit=listing.commit, files=listing.resolve(paths))


def seed_identity(source: SeedSource) -> SeedIdentity:
    """Return what a made model is determined by: its dimensions, its seed, and the text of its tokenizer."""
    model = SeedModel.model_validate(source.model_dump(exclude={"kind"}))
    return SeedIdentity(model=model, text_sha256=demo_chat_sha256())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """Every path of a source, and how to learn one file's identity."""

    source: Source
    origin: str
    paths: list[str]
    identify: Callable[[str], ResolvedFile]
    commit: str | None = None
    card_configs: Sequence[Mapping[str, Any]] = ()

    def matching(self, source: Source) -> list[str]:
        patterns: tuple[str, ...] = getattr(source, "files", ())
        return source_files.matching(self.paths, patterns, self.origin) if patterns else self.paths

    def resolve(self, paths: Sequence[str]) -> tuple[ResolvedFile, ...]:
        """Identify the files that are taken; the others may have names that no store can hold."""
        for path in paths:
            try:
                validate_key(path)
            except ConfigError as error:
                raise ConfigError(f"{self.origin}: a file has a name that no store can hold: {error}") from error
        return tuple(self.identify(path) for path in paths)


def _list(source: Source, settings: Settings, list_hub: HubLister, repo_type: Literal["model", "dataset"]) -> _Listing:
    if isinstance(source, HubSource):
        hub = list_hub(source, repo_type)
        origin = f"{source.repo}@{hub.commit[:12]}"
        return _Listing(
            source=source,
            origin=origin,
            paths=sorted(hub.paths),
            identify=hub.identify,
            commit=hub.commit,
            card_configs=hub.card_configs,
        )
    if isinstance(source, DirectorySource):
        return _list_directory(source)
    if isinstance(source, S3Source):
        return _list_s3(source, settings)
    if isinstance(source, EmbeddedSource) and repo_type == "dataset":
        size_bytes, sha256 = len(demo_chat_bytes()), demo_chat_sha256()
        file = ResolvedFile(path=FILE_NAME, size_bytes=size_bytes, sha256=sha256)
        return _Listing(source=source, origin=source.name, paths=[FILE_NAME], identify=lambda path: file)
    expected = "hub, directory, s3 or seed" if repo_type == "model" else "hub, directory, s3 or embedded"
    what = "model" if repo_type == "model" else "data"
    raise ConfigError(f"a {what} source of kind {source.kind!r}: expected {expected}; correct the source")


def directory_root(source: DirectorySource) -> Path:
    """Return the folder that the paths of a directory source are relative to; a single file's is the one around it."""
    path = Path(source.path).expanduser()
    return path.parent if path.is_file() else path


def _list_directory(source: DirectorySource) -> _Listing:
    path = Path(source.path).expanduser().absolute()
    if not path.exists():
        raise MissingInputError(f"{path}: expected a folder or file, found nothing; correct the source's path")
    root = directory_root(source).absolute()

    def identify(name: str) -> ResolvedFile:
        sha256 = hashlib.sha256()
        size_bytes = 0
        with open(root / name, "rb") as stream:
            while data := stream.read(_READ_BYTES):
                sha256.update(data)
                size_bytes += len(data)
        return ResolvedFile(path=name, size_bytes=size_bytes, sha256=sha256.hexdigest())

    # absolute, because a stage may run in another folder than the one in which the plan was made
    resolved = source.model_copy(update={"path": str(path)})
    paths = [path.name] if path.is_file() else sorted(_walk(root))
    return _Listing(source=resolved, origin=str(path), paths=paths, identify=identify)


def _walk(root: Path) -> list[str]:
    """Return every file below ``root``, hidden ones and hidden folders left out.

    A link to a file is followed where it stays inside ``root``, or inside the repository of the Hub's cache that
    ``root`` is a snapshot of (``models--owner--name/snapshots/<commit>`` links to ``../../blobs``).

    Raises:
        ConfigError: A link leads elsewhere: a folder that came from others could bring any file of this machine into the store.
    """
    inside = root.parents[1] if root.parent.name == "snapshots" and "--" in root.parents[1].name else root
    allowed = inside.resolve()
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_symlink() and not path.resolve().is_relative_to(allowed):
                raise ConfigError(
                    f"{path}: expected files, got a link that leads out of {inside}; put a copy of the file in its place,"
                    " or take it out"
                )
            if path.is_file():
                found.append(path.relative_to(root).as_posix())
    return found


def _list_s3(source: S3Source, settings: Settings) -> _Listing:
    url = source.url.rstrip("/")
    infos = {info.key: info for info in open_store(url, settings).list("") if not info.key.endswith("/")}
    if not infos:
        raise MissingInputError(f"{url}/: expected objects under this prefix, found none")

    def identify(name: str) -> ResolvedFile:
        info = infos[name]
        return ResolvedFile(path=name, size_bytes=info.size_bytes, etag=info.etag)

    return _Listing(source=source, origin=url, paths=sorted(infos), identify=identify)
