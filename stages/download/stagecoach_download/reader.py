"""What every place that files come from offers: the bytes of one file from an offset on, and how it says that they stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from stagecoach.errors import UnavailableError
from stagecoach.recipe.download import ResolvedFile


class SourceCut(UnavailableError):
    """The bytes stopped coming; asking again from where they stopped may help."""

    def __init__(self, sentence: str, retry_after_seconds: float | None = None) -> None:
        """Keep how long the server asked to be left alone, if it said so."""
        self.retry_after_seconds = retry_after_seconds
        super().__init__(sentence)


class SourceReader(Protocol):
    """One place that files come from."""

    origin: str
    """The place, for errors and logs; without credentials."""

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes in order from offset ``start_bytes`` on.

        Raises:
            SourceCut: The connection broke or the server is busy; try again.
            MissingInputError: The file is gone.
            ConfigError: Access is denied.
        """
        ...
