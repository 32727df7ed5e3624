"""Reads files of a Hugging Face Hub repository at one commit; the only module of this stage that talks to the Hub.

Plain ranged reads of the ``resolve`` address: they go on after a cut from any byte, need no cache folder of their own,
and work with every server that speaks the Hub's API. The token goes to the Hub only, never to the host it redirects to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import httpx2
from huggingface_hub import get_session, hf_hub_url

from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.recipe.download import ResolvedFile
from stagecoach.redaction import without_secrets
from stagecoach.settings import Settings
from stagecoach_download.reader import SourceCut

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 60.0


class HubReader:
    """One repository at one commit."""

    def __init__(self, repo: str, repo_type: Literal["model", "dataset"], commit: str, settings: Settings) -> None:
        """Read ``repo`` at ``commit``.

        Raises:
            ConfigError: The environment forbids to ask the Hub.
        """
        if settings.hub_offline:
            raise ConfigError(f"{repo}: HF_HUB_OFFLINE forbids to ask the Hub; unset it, or use a directory source")
        self.origin = without_secrets(f"{settings.hub_address}/{repo}") + f"@{commit[:12]}"
        self._repo = repo
        self._repo_type = repo_type
        self._commit = commit
        self._endpoint = settings.hub_endpoint
        # identity: a server that compressed the file would make byte offsets meaningless
        self._headers = {"User-Agent": "stagecoach", "Accept-Encoding": "identity"}
        if settings.hub_token:
            self._headers["Authorization"] = f"Bearer {settings.hub_token}"

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes from ``start_bytes`` on."""
        url = hf_hub_url(
            self._repo, file.path, repo_type=self._repo_type, revision=self._commit, endpoint=self._endpoint
        )
        headers = {**self._headers, "Range": f"bytes={start_bytes}-"} if start_bytes else self._headers
        timeout = httpx2.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                self._check(file, response, start_bytes)
                # as they arrive: bytes that wait for a full block would be lost in a cut
                yield from response.iter_raw()
        except httpx2.TransportError as error:
            raise SourceCut(f"{self.origin}: {file.path}: {type(error).__name__}: {error}") from error

    def _check(self, file: ResolvedFile, response: httpx2.Response, start_bytes: int) -> None:
        """Raise what a status other than success means."""
        status = response.status_code
        where = f"{self.origin}: {file.path}"
        if status in _BUSY:
            raise SourceCut(f"{where}: the Hub answers {status}", _retry_after_seconds(response))
        if status in (401, 403):
            raise ConfigError(
                f"{where}: the Hub answers {status}: accept the repository's terms and set HF_TOKEN to a token that"
                " may read it"
            )
        if status in (404, 410):
            raise MissingInputError(
                f"{where}: the Hub answers {status}: repository, commit or file is gone; start a new run"
            )
        if status == 416:
            raise CorruptObjectError(
                f"{where}: expected more than {start_bytes} bytes, the Hub says that there are none"
            )
        if status != (206 if start_bytes else 200):
            raise SourceCut(f"{where}: expected status {206 if start_bytes else 200}, the Hub answers {status}")
        if start_bytes and not response.headers.get("Content-Range", "").startswith(f"bytes {start_bytes}-"):
            raise SourceCut(f"{where}: asked from byte {start_bytes}, got {response.headers.get('Content-Range')!r}")


def _retry_after_seconds(response: httpx2.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None
