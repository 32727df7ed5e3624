"""The places that files come from, each as a reader with one verb: the bytes of one file from an offset on.

A reader that is cut raises ``UnavailableError``; ``fetch`` then asks again from the byte that it has reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stagecoach.demo.chat import demo_chat_bytes
from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.outputs import open_input
from stagecoach.recipe.download import DownloadDataConfig, DownloadModelConfig, DownloadTokenizerConfig, ResolvedFile
from stagecoach.recipe.source import DirectorySource, EmbeddedSource, ExportSource, HubSource, S3Source
from stagecoach.settings import Settings
from stagecoach.source_identity import directory_root
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_download.reader import SourceReader

READ_BYTES = 4 * 1024 * 1024
_RANGE_BYTES = 64 * 1024 * 1024

DownloadConfig = DownloadModelConfig | DownloadTokenizerConfig | DownloadDataConfig


class DirectoryReader:
    """Files of this machine."""

    def __init__(self, root: Path) -> None:
        """Read below ``root``."""
        self.origin = str(root)
        self._root = root

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes."""
        try:
            with open(self._root / file.path, "rb") as stream:
                stream.seek(start_bytes)
                while data := stream.read(READ_BYTES):
                    yield data
        except FileNotFoundError as error:
            raise MissingInputError(
                f"{self._root / file.path}: expected a file, it is gone; start a new run"
            ) from error
        except PermissionError as error:
            raise ConfigError(f"{self._root / file.path}: this user may not read the file") from error


class StoreReader:
    """Objects under a prefix of an S3 store, exactly those whose ETag the plan recorded."""

    def __init__(self, store: ObjectStore) -> None:
        """Read keys relative to ``store``."""
        self.origin = store.url.rstrip("/")
        self._store = store

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the object's bytes in ranges; its ETag is compared before the first and after the last one."""
        self._check_unchanged(file)
        for start in range(start_bytes, file.size_bytes, _RANGE_BYTES):
            yield self._store.get_range(file.path, start, min(_RANGE_BYTES, file.size_bytes - start))
        self._check_unchanged(file)

    def _check_unchanged(self, file: ResolvedFile) -> None:
        info = self._store.head(file.path)
        if info is None:
            raise MissingInputError(f"{self.origin}/{file.path}: expected an object, it is gone; start a new run")
        if (info.etag, info.size_bytes) != (file.etag, file.size_bytes):
            raise CorruptObjectError(
                f"{self.origin}/{file.path}: expected ETag {file.etag} and {file.size_bytes} bytes, got {info.etag} and"
                f" {info.size_bytes}; it changed after the run was planned; start a new run"
            )


class EmbeddedReader:
    """The chat set that Stagecoach ships."""

    origin = "embedded:demo-chat"

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes."""
        yield demo_chat_bytes()[start_bytes:]


class ExportReader:
    """The files of a finished export of the run's own store."""

    def __init__(self, store: ObjectStore, export: str) -> None:
        """Read what the manifest of the folder ``export`` lists."""
        self.origin = f"{store.url.rstrip('/')}/{export.rstrip('/')}"
        self._store = store
        self._objects = open_input(store, export, Path()).manifest.objects

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes in ranges."""
        entry = self._objects.get(file.path)
        if entry is None:
            raise MissingInputError(f"{self.origin}/{file.path}: the export has no such file; start a new run")
        for start in range(start_bytes, entry.size_bytes, _RANGE_BYTES):
            yield self._store.get_range(entry.path, start, min(_RANGE_BYTES, entry.size_bytes - start))


def open_reader(config: DownloadConfig, settings: Settings, store: ObjectStore | None = None) -> SourceReader:
    """Return the reader for the config's source; ``store`` is the run's own, which an export needs.

    Raises:
        ConfigError: The source holds no files that could be read.
    """
    source = config.source
    if isinstance(source, HubSource):
        from stagecoach_download.hub import HubReader  # huggingface_hub is slow to import

        if config.commit is None:
            raise ConfigError(f"{source.repo}: expected the commit that `stagecoach plan` resolved, got none")
        of_data = isinstance(config, DownloadDataConfig)
        return HubReader(source.repo, "dataset" if of_data else "model", config.commit, settings)
    if isinstance(source, DirectorySource):
        return DirectoryReader(directory_root(source))
    if isinstance(source, S3Source):
        return StoreReader(open_store(source.url, settings))
    if isinstance(source, EmbeddedSource):
        return EmbeddedReader()
    if isinstance(source, ExportSource) and store is not None:
        return ExportReader(store, source.export)
    raise ConfigError(f"a source of kind {source.kind!r} has no files to fetch")
