"""Makes requests to S3 as often as they are worth, and turns what finally went wrong into one of our errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from stagecoach.storage.s3_errors import Trouble, may_pass, translate, trouble_of
from stagecoach.storage.s3_options import S3Options
from stagecoach.storage.s3_requests import S3Requests

_T = TypeVar("_T")
_FIRST_CONTACT_TRIES = 3


class S3Calls:
    """One bucket's requests with retries; connects at the first one."""

    def __init__(self, url: str, options: S3Options, connect: Callable[[], S3Requests]) -> None:
        """Take note of how to connect; ``url`` is named in errors."""
        self._url = url
        self._options = options
        self._connect = connect
        self._lock = threading.Lock()
        self._requests: S3Requests | None = None
        self._was_answered = False

    def connected(self) -> S3Requests:
        """Return what makes single requests."""
        with self._lock:
            if self._requests is None:
                self._requests = self._connect()
            return self._requests

    def retry(self, request: Callable[[S3Requests], _T]) -> _T:
        """Make one request; tried again while its error may pass.

        A store that never answered at all is given up after three tries: its address is wrong, and a person waits.

        Raises:
            Exception: boto3's or the wire's last error, as it is; ``errors`` translates it.
        """

        def is_worth_it(error: Exception, failures: int) -> bool:
            is_stranger = trouble_of(error) is Trouble.UNREACHABLE and not self._was_answered
            return may_pass(error) and not (is_stranger and failures >= _FIRST_CONTACT_TRIES)

        requests = self.connected()
        result = self._options.retry.run(lambda: request(requests), is_worth_it)
        self._was_answered = True
        return result

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Translate errors of boto3 and of the wire; ``key`` is named in them.

        Raises:
            StoreError: See ``s3_errors.translate``.
        """
        try:
            yield
        except Exception as error:
            if trouble_of(error) is None:
                raise
            raise translate(error, self._url, key, self._options.endpoint_url or "AWS") from error

    def close(self) -> None:
        """Close idle connections; the next request opens new ones."""
        with self._lock:
            requests, self._requests = self._requests, None
        if requests is not None:
            requests.wire.close()
            requests.client.close()
