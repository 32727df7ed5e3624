"""Sends signed S3 requests for object bytes over kept connections, for a tenth of what boto3 spends on each.

boto3 takes about 1.3 ms of processor time for a small request, most of it in layers that S3's GET and PUT do not need;
this takes about 0.15 ms (``benchmarks/bench_store.py``). It knows HTTP/1.1 (kept connections, chunked answers, CONNECT
through a proxy), TLS and the signature of ``s3_signature``, and nothing else: what is asked, and what an answer means,
is said in ``s3_requests``. Large bodies pass through a small buffer that stays in the processor's cache.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, cast
from urllib.parse import quote, urlsplit

from stagecoach.errors import StagecoachError
from stagecoach.storage.s3_errors import Trouble
from stagecoach.storage.s3_signature import UNSIGNED, Signer

_BUFFER_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
_MAX_LINE_BYTES = 64 * 1024
_MAX_HEADERS = 200
_MAX_ERROR_BYTES = 64 * 1024
_IDLE_SECONDS = 20.0
_SLOWEST_BYTES_PER_SECOND = 16 * 1024
OnHead = Callable[[int, Mapping[str, str]], None]
OnBody = Callable[[memoryview], None]

_XML_FIELD = r"<{0}>\s*([^<]*?)\s*</{0}>"


class WireFailure(Exception):
    """No answer, or half of one."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        """Keep what kind of trouble it is, for ``s3_errors``."""
        self.trouble = trouble
        super().__init__(message)


class WireAnswer(Exception):
    """An answer other than success, in the form of botocore's ``ClientError.response``."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """Keep what the server said."""
        self.response: dict[str, Any] = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
        super().__init__(f"{code}, HTTP {status}: {message}")

    @classmethod
    def parse(cls, status: int, body: bytes) -> WireAnswer:
        """Take code and message out of the XML of the body, if there is any."""
        text = body.decode("utf-8", "replace")
        code, message = (re.search(_XML_FIELD.format(name), text) for name in ("Code", "Message"))
        return cls(status, code[1] if code else str(status), html.unescape(message[1]) if message else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Empty where ``on_body`` took it."""
    is_complete: bool = True
    """False if the rest of an overlong error text was left unread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where requests go."""

    base_url: str
    """``https://bucket.s3.eu-west-1.amazonaws.com`` or ``http://127.0.0.1:8333/bucket``, without a final slash."""
    ca_bundle: str | None = None
    """PEM file of certificate authorities; None takes the system's."""
    proxy_url: str | None = None
    """HTTP proxy, if requests must go through one."""
    connect_timeout_seconds: float = 5.0
    """Until a connection stands."""
    read_timeout_seconds: float = 60.0
    """For each wait for more bytes."""


@dataclass(slots=True)
class _Connection:
    stream: socket.socket
    reader: BufferedReader
    idle_since: float = 0.0
    was_used: bool = False

    def close(self) -> None:
        self.reader.close()
        self.stream.close()


@dataclass(slots=True, weakref_slot=True)
class S3Wire:
    """A pool of connections to one bucket; safe to use from several threads."""

    target: Target
    signer: Signer
    _idle: list[_Connection] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        """Read the certificate authorities, and see to it that idle connections end with this object.

        Raises:
            OSError: The file of authorities is missing or holds none.
        """
        weakref.finalize(self, _close_all, self._idle)
        if self.target.base_url.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=self.target.ca_bundle)

    def request(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        on_head: OnHead | None = None,
        on_body: OnBody | None = None,
    ) -> Answer:
        """Send one request and return its answer.

        Args:
            method: GET or PUT.
            key: Full key in the bucket.
            query: Parameters after ``?``.
            headers: Beside those that HTTP and the signature need.
            body: What to send.
            on_head: Sees status and headers of a successful answer before its body is read, and may raise.
            on_body: Takes the body of a successful answer, bit by bit in order, instead of the result; it must not keep
                the views.

        Raises:
            WireAnswer: The server says no.
            WireFailure: It says nothing, or breaks off.
        """
        parts = urlsplit(self.target.base_url)
        host = parts.netloc.rpartition("@")[2]
        path = f"{quote(parts.path, safe='/-._~')}/{quote(key, safe='/-._~')}"
        text = "&".join(f"{quote(k, safe='-._~')}={quote(v, safe='-._~')}" for k, v in sorted((query or {}).items()))
        payload = UNSIGNED if parts.scheme == "https" else hashlib.sha256(body).hexdigest()
        signed = self.signer.sign(method, host, path, text, headers or {}, payload)
        location = f"{path}?{text}" if text else path
        if parts.scheme == "http" and self.target.proxy_url:
            location = f"http://{host}{location}"
            signed.update(
                _proxy_login(urlsplit(self.target.proxy_url).username, urlsplit(self.target.proxy_url).password)
            )
        if method != "GET":
            signed["content-length"] = str(len(body))
        head = f"{method} {location} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in signed.items()) + "\r\n"
        return self._exchange(head.encode("latin-1"), body, on_head, on_body)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            _close_all(self._idle)

    def _exchange(
        self,
        head: bytes,
        body: bytes | memoryview,
        on_head: OnHead | None,
        on_body: OnBody | None,
    ) -> Answer:
        while True:
            connection = self._take()
            try:
                status, headers, is_reusable = _send(connection, head, body)
                if status < 300 and on_head is not None:
                    on_head(status, headers)
                answer = _receive(connection.reader, status, headers, on_body, self.target.read_timeout_seconds)
            except _Stale:
                # the server had closed a kept connection; that says nothing about the request
                connection.close()
                continue
            except StagecoachError:
                connection.close()
                raise
            except (OSError, ValueError, MemoryError, OverflowError) as error:
                connection.close()
                raise WireFailure(Trouble.TRANSIENT, _reason(error)) from error
            except BaseException:
                connection.close()
                raise
            self._give_back(connection, is_reusable and answer.is_complete)
            if answer.status >= 300:
                raise WireAnswer.parse(answer.status, answer.body)
            return answer

    def _take(self) -> _Connection:
        now = time.monotonic()
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if now - connection.idle_since < _IDLE_SECONDS:
                    return connection
                connection.close()
        return self._connect()

    def _give_back(self, connection: _Connection, is_reusable: bool) -> None:
        if not is_reusable:
            connection.close()
            return
        connection.was_used = True
        connection.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(connection)

    def _connect(self) -> _Connection:
        parts = urlsplit(self.target.base_url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        first = urlsplit(self.target.proxy_url) if self.target.proxy_url else None
        try:
            stream = socket.create_connection(
                (first.hostname or "", first.port or 80) if first else (host, port),
                timeout=self.target.connect_timeout_seconds,
            )
        except OSError as error:
            raise WireFailure(Trouble.UNREACHABLE, _reason(error)) from error
        try:
            # head and body go out as two writes, which must not wait for each other's acknowledgement
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                if first:
                    _tunnel(stream, f"{host}:{port}", first.username, first.password)
                stream = self._tls.wrap_socket(stream, server_hostname=host)
            stream.settimeout(self.target.read_timeout_seconds)
            return _Connection(stream, cast(BufferedReader, stream.makefile("rb", buffering=_BUFFER_BYTES)))
        except ssl.SSLCertVerificationError as error:
            stream.close()
            raise WireFailure(Trouble.CONFIGURATION, f"certificate: {error.verify_message}") from error
        except (OSError, ValueError) as error:
            stream.close()
            raise WireFailure(Trouble.TRANSIENT, _reason(error)) from error


class _Stale(Exception):
    """A kept connection was closed by the server before it answered anything."""


def _close_all(connections: list[_Connection]) -> None:
    while connections:
        connections.pop().close()


def crc32_header(data: bytes | memoryview) -> str:
    """Return the CRC-32 of some bytes as S3 writes it in ``x-amz-checksum-crc32``."""
    return base64.b64encode(binascii.crc32(data).to_bytes(4, "big")).decode()


def _send(connection: _Connection, head: bytes, body: bytes | memoryview) -> tuple[int, dict[str, str], bool]:
    """Send a request; return status and headers of the answer, and whether the connection can be used again."""
    sending_failed: OSError | None = None
    try:
        if len(body) <= _BUFFER_BYTES:
            connection.stream.sendall(head + bytes(body))
        else:
            connection.stream.sendall(head)
            connection.stream.sendall(body)
    except TimeoutError:
        raise
    except OSError as error:
        sending_failed = error  # the server may have said why before it closed
    try:
        status, headers = _read_head(connection.reader)
    except TimeoutError:
        raise
    except (OSError, ValueError) as error:
        if connection.was_used:
            raise _Stale from error
        raise sending_failed or error from error
    keeps = headers.get("connection", "keep-alive").lower() != "close" and sending_failed is None
    return status, headers, keeps


def _receive(
    reader: BufferedReader, status: int, headers: dict[str, str], on_body: OnBody | None, patience_seconds: float
) -> Answer:
    """Read the body of an answer; that of an error never goes to ``on_body``."""
    if status < 300:
        return Answer(status, headers, _read_body(reader, headers, on_body, patience_seconds))
    if int(headers.get("content-length", "0")) > _MAX_ERROR_BYTES:
        return Answer(status, headers, b"", is_complete=False)
    return Answer(status, headers, _read_body(reader, headers, None, patience_seconds))


def _read_head(reader: BufferedReader) -> tuple[int, dict[str, str]]:
    """Read status line and headers, past interim answers such as ``100 Continue``."""
    while True:
        line = reader.readline(_MAX_LINE_BYTES)
        if not line:
            raise ConnectionResetError("the server closed the connection without an answer")
        fields = line.split(None, 2)
        if len(fields) < 2 or not fields[0].startswith(b"HTTP/1.") or not fields[1].isdigit():
            raise ValueError(f"expected an HTTP answer, got {line[:60]!r}")
        headers: dict[str, str] = {}
        for _ in range(_MAX_HEADERS):
            line = reader.readline(_MAX_LINE_BYTES)
            if line in (b"\r\n", b"\n"):
                break
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError(f"expected a header, got {line[:60]!r}")
            headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
        else:
            raise ValueError(f"expected at most {_MAX_HEADERS} headers")
        status = int(fields[1])
        if status >= 200:
            return status, headers


def _read_body(
    reader: BufferedReader, headers: dict[str, str], on_body: OnBody | None, patience_seconds: float
) -> bytes:
    """Read a body to its end; returns it, or hands it on and returns nothing."""
    if headers.get("transfer-encoding", "identity").lower() == "chunked":
        data = _read_chunked(reader)
        if on_body is None:
            return data
        on_body(memoryview(data))
        return b""
    size_bytes = int(headers.get("content-length", "0"))
    deadline = time.monotonic() + patience_seconds + size_bytes / _SLOWEST_BYTES_PER_SECOND
    whole = memoryview(bytearray(size_bytes if on_body is None else min(size_bytes, _PIECE_BYTES)))
    done = 0
    while done < size_bytes:
        view = whole[done : done + _PIECE_BYTES] if on_body is None else whole[: size_bytes - done]
        count = reader.readinto(view)
        done += count
        if count < len(view):
            raise ConnectionResetError(f"the body broke off after {done} of {size_bytes} bytes")
        if on_body is not None:
            on_body(view)
        if done < size_bytes and time.monotonic() > deadline:
            raise TimeoutError(f"only {done} of {size_bytes} bytes came in time")
    return bytes(whole) if on_body is None else b""


def _read_chunked(reader: BufferedReader) -> bytes:
    chunks = []
    while size_bytes := int(reader.readline(_MAX_LINE_BYTES).split(b";")[0], 16):
        chunk = reader.read(size_bytes)
        if len(chunk) != size_bytes or reader.readline(_MAX_LINE_BYTES) not in (b"\r\n", b"\n"):
            raise ConnectionResetError("the body broke off within a chunk")
        chunks.append(chunk)
    while reader.readline(_MAX_LINE_BYTES) not in (b"\r\n", b"\n", b""):
        pass
    return b"".join(chunks)


def _tunnel(stream: socket.socket, address: str, user: str | None, password: str | None) -> None:
    """Ask a proxy for a connection to the store."""
    line = "".join(f"{name}: {value}\r\n" for name, value in _proxy_login(user, password).items())
    stream.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{line}\r\n".encode("latin-1"))
    with stream.makefile("rb", buffering=0) as reader:
        status = reader.readline(_MAX_LINE_BYTES).split(None, 2)
        while reader.readline(_MAX_LINE_BYTES) not in (b"\r\n", b"\n", b""):
            pass
    if len(status) < 2 or status[1] != b"200":
        raise ValueError(f"the proxy refuses a connection to {address}: {b' '.join(status).decode('latin-1').strip()}")


def _proxy_login(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    login = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
    return {"proxy-authorization": f"Basic {login}"}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
