"""A small Hub: repositories, branches, commits and large files over HTTP, as far as the real client asks for
them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writer"
LARGE_BYTES = 2000


@dataclass(slots=True)
class Hub:
    """State of the server."""

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``owner/name`` -> private, branches {branch: {path: content}}, commits [message]."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: list[int] = field(default_factory=list)
    """Sizes of the large files that were sent, in order."""
    fail_uploads_after: int | None = None
    """Answer 503 to every upload once so many have arrived."""
    status: int | None = None
    """Answer every request with this status."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        body = self._body()
        path = self.path.split("?")[0]
        if path.startswith("/blobs/"):
            self._upload(path.removeprefix("/blobs/"), body)
        elif self.hub.status is not None:
            self._answer(self.hub.status, {"error": "as told"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            self._repository(path.split("/"), body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"] if "/" in wanted["name"] else f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.hub.repos
        if not known:
            self.hub.repos[name] = {
                "private": wanted.get("visibility") == "private",
                "branches": {"main": {}},
                "commits": [],
            }
        self._answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _repository(self, parts: list[str], body: bytes) -> None:
        # /api/models/{owner}/{name}/{what}/{branch}
        repo = self.hub.repos.get("/".join(parts[3:5]))
        if repo is None or len(parts) < 7:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        what, branch = parts[5], parts[6]
        if what == "branch":
            known = branch in repo["branches"]
            repo["branches"].setdefault(branch, dict(repo["branches"]["main"]))
            self._answer(409 if known else 200, {})
        elif what == "tree":
            files = repo["branches"][branch]
            self._answer(200, [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])
        elif what == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif what == "commit":
            self._commit("/".join(parts[3:5]), branch, body)
        else:
            self._answer(404, {"error": what})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        files = self.hub.repos[name]["branches"][branch]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.hub.repos[name]["commits"].append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = _oid(body)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}}
            known = item["oid"] in self.hub.blobs
            objects.append({**item, **({} if known else {"actions": action})})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        if self.hub.fail_uploads_after is not None and len(self.hub.uploads) >= self.hub.fail_uploads_after:
            self._answer(501, {})
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.hub.uploads.append(len(body))
        self._answer(200, {})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve on a free loopback port until the block ends."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
