"""The error tree of Stagecoach: one class a cause, and the exit code that Argo's retry expression reads.

    StagecoachError                 70   a bug, or something nobody expected
    +-- ConfigError        (Value)  78   the recipe, a flag or the environment is wrong; permanent
    |   +-- StoreDenied             78   the store refuses these credentials
    +-- DataError          (Value)  79   the data or the model does not fit; permanent
    |   +-- CorruptObjectError      79   bytes differ from what their manifest recorded
    +-- MissingInputError           66   an input that should exist does not
    |   +-- ObjectMissing           66   the store has no object under that key
    +-- UnavailableError            69   a dependency does not answer; retry
    |   +-- StoreUnavailable        69   the store does not answer
    +-- AcceleratorError            71   a GPU or the communication between ranks failed; retry on another node
    +-- InterruptedWithProgress     75   stopped from outside, progress is saved; retry
    +-- NoProgressError             70   three attempts ended without getting any further

Exit code 0 means done or already done. 64 and 65 belong to Argo's own executor and are never used here. The text of an
error is one sentence for the person who reads it: what was expected, what was found, what to do.
"""

from __future__ import annotations

import reprlib
from typing import ClassVar

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class StagecoachError(Exception):
    """Base of every error that Stagecoach raises on purpose; catching it catches them all."""

    exit_code: ClassVar[int] = 70


class ConfigError(StagecoachError, ValueError):
    """A recipe field, flag or environment variable is wrong; running again cannot help."""

    exit_code: ClassVar[int] = 78


class DataError(StagecoachError, ValueError):
    """A data file or a model does not fit what the stage was asked to do; running again cannot help."""

    exit_code: ClassVar[int] = 79


class CorruptObjectError(DataError):
    """The bytes of an object differ from the size or digest that was recorded for it."""


class MissingInputError(StagecoachError):
    """An input of this stage does not exist (yet)."""

    exit_code: ClassVar[int] = 66


class UnavailableError(StagecoachError):
    """A service that this stage depends on does not answer; a retry may succeed."""

    exit_code: ClassVar[int] = 69


class AcceleratorError(StagecoachError):
    """A GPU, or the communication between ranks, failed; a retry on another node may succeed."""

    exit_code: ClassVar[int] = 71


class InterruptedWithProgress(StagecoachError):
    """The stage was asked to stop and saved what it had; a retry goes on from there."""

    exit_code: ClassVar[int] = 75


class NoProgressError(StagecoachError):
    """Several attempts in a row ended without any progress; a retry would do the same."""


class StoreError(StagecoachError):
    """Something about one object of a store; never raised itself, only its branches below.

    Attributes:
        url: The store, without credentials.
        key: The object's key in that store, or the prefix that was listed.
    """

    def __init__(self, url: str, key: str, sentence: str) -> None:
        """Keep the parts and say the sentence, with the object's address in front."""
        self.url = url
        self.key = key
        super().__init__(f"{url.rstrip('/')}/{key}: {sentence}" if key else f"{url}: {sentence}")


class ObjectMissing(StoreError, MissingInputError):
    """The store has no object under that key."""


class StoreDenied(StoreError, ConfigError):
    """The store refuses access with the credentials it was given."""


class StoreUnavailable(StoreError, UnavailableError):
    """The store does not answer, or answers that it cannot now; retries are used up."""


#: Exit codes that mean "run the same command again"; the workflow's retry expression is generated from this table.
RETRYABLE_EXIT_CODES: tuple[int, ...] = (69, 71, 75)


def shown(value: object) -> str:
    """Return a value from outside as a sentence about it may hold it: its ``repr``, of bounded length and depth."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a value of type {type(value).__name__} that is too long to show"
