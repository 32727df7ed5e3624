"""A small HTTP server that answers like the Hub's ``resolve`` addresses, and can cut, refuse, redirect and be busy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(slots=True)
class HubServer:
    """Files by address, what to do at the next requests, and what was asked."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    behaviours: list[str] = field(default_factory=list)
    """For each next request: ``cut:N`` (break after N bytes), ``status:N``, ``redirect:URL``; else the file."""
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of every request."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serve on a free loopback port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            name, _, value = (state.behaviours.pop(0) if state.behaviours else "").partition(":")
            content = state.files.get(self.path)
            if name == "status":
                self.answer(int(value), b"", {"Retry-After": "0"})
            elif name == "redirect":
                self.answer(302, b"", {"Location": value + self.path})
            elif content is None:
                self.answer(404, b"")
            else:
                self.send_file(content, cut_bytes=int(value) if name == "cut" else None)

        def send_file(self, content: bytes, cut_bytes: int | None) -> None:
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
            self.answer(206 if asked else 200, content[start:], headers, cut_bytes)

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[:cut])
            if cut is not None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = HubServer(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
