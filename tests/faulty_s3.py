"""A proxy in front of a real S3 server that fails on purpose: errors, silence, cuts, lies about length, slowness.

Clients talk to it as to the server: it passes requests on byte by byte, so signatures stay valid, and a script decides
for each request what goes wrong.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

FaultKind = Literal[
    "500", "501", "503", "429", "403",  # answers itself; the server hears nothing
    "refuse",  # closes the connection before the server hears anything
    "lost",  # the server does what was asked, its answer is lost
    "hang",  # never answers
    "truncate",  # half of the body, then closes the connection
    "too-long",  # says a greater length than the body has
    "too-short",  # says a smaller length than the body has
    "garbage",  # not HTTP
    "slow",  # half a second before the answer
]  # fmt: skip

FAULT_KINDS: tuple[FaultKind, ...] = ("500", "503", "429", "refuse", "lost", "truncate", "too-long", "garbage", "slow")
"""The kinds after which a client that retries must succeed, and quickly."""

_CODES = {
    "500": "InternalError",
    "501": "NotImplemented",
    "503": "SlowDown",
    "429": "TooManyRequests",
    "403": "AccessDenied",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the script sees it."""

    method: str
    path: str
    """With the query."""
    number: int
    """From 1 on."""
    head: str
    """Request line and headers."""


Script = Callable[[Request], FaultKind | None]
Answer = Callable[[Request, bytes], tuple[bytes, bytes] | None]
"""Request and body -> head and body of the answer; None leaves it to the server."""


@dataclass(slots=True)
class FaultyS3:
    """A proxy that runs."""

    endpoint_url: str
    script: Script
    """May be replaced at any time."""
    answer: Answer | None = None
    """Answers some requests in the server's place."""
    requests: list[Request] = field(default_factory=list)
    """All that came in."""
    _closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def faulty_s3(upstream_url: str, script: Script, answer: Answer | None = None) -> Iterator[FaultyS3]:
    """Run a proxy to ``upstream_url`` for the time of the block."""
    upstream = urlsplit(upstream_url)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while _serve_one(self.connection, (upstream.hostname or "", upstream.port or 80), proxy):
                    pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = FaultyS3(f"http://127.0.0.1:{server.server_address[1]}", script, answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy._closing.set()
            server.shutdown()
            thread.join()


def fail_first(count: int, kind: FaultKind, method: str = "", path: str = "") -> Script:
    """Return a script: the first ``count`` requests of that method whose path matches the pattern fail."""
    left = [count]
    lock = threading.Lock()

    def script(request: Request) -> FaultKind | None:
        if method not in ("", request.method) or not re.search(path, request.path):
            return None
        with lock:
            left[0] -= 1
            return kind if left[0] >= 0 else None

    return script


def _serve_one(client: socket.socket, upstream: tuple[str, int], proxy: FaultyS3) -> bool:
    """Pass one request on, or fail it; return whether the connection stays."""
    head, body = _read_message(client, has_body=None)
    if not head:
        return False
    method, path, _ = head.split(b" ", 2)
    request = Request(method.decode(), path.decode(), len(proxy.requests) + 1, head.decode("latin-1"))
    proxy.requests.append(request)
    kind = proxy.script(request)
    if kind in _CODES:
        return _answer(client, int(kind), _CODES[kind], method == b"HEAD")
    if kind == "refuse":
        return False
    if kind == "hang":
        proxy._closing.wait(60)
        return False
    if kind == "garbage":
        client.sendall(b"SSH-2.0-nonsense\r\n\r\n")
        return False
    answer_head, answer_body = (proxy.answer and proxy.answer(request, body)) or _ask(upstream, head + body, method)
    if kind == "lost":
        return False
    if kind == "slow":
        time.sleep(0.5)
    if method == b"HEAD":  # what has no body can neither break off nor lie about it
        client.sendall(answer_head)
        return True
    if kind == "truncate":
        client.sendall(answer_head + answer_body[: len(answer_body) // 2])
        return False
    if kind in ("too-long", "too-short"):
        answer_head = _with_length(answer_head, len(answer_body) + (7 if kind == "too-long" else -1))
        client.sendall(answer_head + answer_body)
        return False
    client.sendall(answer_head + answer_body)
    return b"connection: close" not in answer_head.lower()


def _ask(upstream: tuple[str, int], message: bytes, method: bytes) -> tuple[bytes, bytes]:
    with socket.create_connection(upstream) as server:
        server.sendall(message)
        return _read_message(server, has_body=method != b"HEAD")


def _read_message(stream: socket.socket, has_body: bool | None) -> tuple[bytes, bytes]:
    """Read a request (``has_body`` None) or an answer; returns head and body as they came."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    head += b"\r\n\r\n"
    if has_body is False:
        return head, b""
    if b"100-continue" in head.lower():
        stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?i)expect: 100-continue\r\n", b"", head)
    if b"transfer-encoding: chunked" in head.lower():
        while not body.endswith(b"0\r\n\r\n"):
            body += stream.recv(65536)
        return head, body
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    size_bytes = int(match[1]) if match else 0
    parts = [body]
    missing = size_bytes - len(body)
    while missing > 0:
        more = stream.recv(1 << 20)
        if not more:
            break
        parts.append(more)
        missing -= len(more)
    return head, b"".join(parts)


def _answer(client: socket.socket, status: int, code: str, is_head: bool) -> bool:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Faulty\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client.sendall(head if is_head else head + body)
    return True


def _with_length(head: bytes, size_bytes: int) -> bytes:
    return re.sub(rb"(?i)\r\ncontent-length: *\d+", b"\r\nContent-Length: %d" % max(size_bytes, 0), head)
