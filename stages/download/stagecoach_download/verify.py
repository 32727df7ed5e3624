"""Compares bytes that come by with what the plan recorded about a file: size, SHA-256, git's object id."""

from __future__ import annotations

import hashlib

from stagecoach.errors import CorruptObjectError
from stagecoach.recipe.download import ResolvedFile


class ContentCheck:
    """Hashes a file's bytes in order; ``finish`` says whether they are the ones that were planned."""

    def __init__(self, file: ResolvedFile, origin: str) -> None:
        """Start with no bytes seen.

        Args:
            file: What is expected.
            origin: Where the bytes come from, for errors.
        """
        self.size_bytes = 0
        self._file = file
        self._origin = origin
        self._sha256 = hashlib.sha256()
        # git hashes a header with the length in front of the content
        self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            CorruptObjectError: There are more bytes than planned.
        """
        self.size_bytes += len(data)
        if self.size_bytes > self._file.size_bytes:
            raise CorruptObjectError(f"{self._where}: expected {self._file.size_bytes} bytes, got more; {self._remedy}")
        self._sha256.update(data)
        self._git.update(data)

    def finish(self) -> None:
        """Accept the file.

        Raises:
            CorruptObjectError: Size or digest differ from the plan.
        """
        if self.size_bytes != self._file.size_bytes:
            raise CorruptObjectError(
                f"{self._where}: expected {self._file.size_bytes} bytes, got {self.size_bytes}; {self._remedy}"
            )
        for what, expected, found in (
            ("sha256", self._file.sha256, self._sha256.hexdigest()),
            ("git blob id", self._file.git_blob_sha1, self._git.hexdigest()),
        ):
            if expected is not None and expected != found:
                raise CorruptObjectError(
                    f"{self._where}: expected {what} {expected[:12]}.., got {found[:12]}..; {self._remedy}"
                )

    @property
    def _where(self) -> str:
        return f"{self._origin}: {self._file.path}"

    @property
    def _remedy(self) -> str:
        return "it changed after the run was planned, or the transfer is broken; start a new run"
