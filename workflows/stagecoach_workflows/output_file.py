"""Writes what a command was asked to write into a file or folder, so that a path that cannot be written is one sentence."""

from __future__ import annotations

from pathlib import Path

from stagecoach.errors import ConfigError


def check_output_file(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work that it is to hold; nothing is made.

    Raises:
        ConfigError: It is a folder, or lies in none.
    """
    if path.is_dir():
        raise ConfigError(f"{option}: expected a file, {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: cannot write {path}: there is no folder {path.parent}; make it first")


def write_output_file(path: Path, data: bytes, option: str) -> None:
    """Write ``data`` to the file that ``option`` named.

    Raises:
        ConfigError: The system does not let it be written.
    """
    check_output_file(path, option)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path}: {error.strerror}") from error
