"""A small Hub over HTTP for every test that needs one: repositories, commits, files by range, and pushes by LFS.

It speaks as much of the Hub's API as the real client asks for, and can cut, refuse, redirect, be busy or list in pages.
No maintained Hub that one can host oneself was found among the packages at hand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.loopback import QuietHandler, served

TOKEN = "hf_writer"
LARGE_BYTES = 2000
"""Files above this size are LFS files: their digest is listed, and they are pushed one by one."""


@dataclass(slots=True)
class Repo:
    """One repository of models or data."""

    private: bool = False
    gated: bool = False
    """Everybody sees that it is there; only the token sees its files."""
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    """Branch -> path -> content."""
    messages: list[str] = field(default_factory=list)
    """Of the commits that were pushed."""
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit -> path -> content, for each state of a branch that was ever asked for."""

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a branch or of a commit, None if there is none."""
        if revision in self.branches:
            files = self.branches[revision]
            text = json.dumps({path: blob_id(data) for path, data in sorted(files.items())})
            commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            self.snapshots.setdefault(commit, dict(files))
            return commit
        return revision if revision in self.snapshots else None


@dataclass(slots=True)
class Hub:
    """State of the server."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    """``owner/name`` of a model, ``datasets/owner/name`` of a data set."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files that were pushed, by digest."""
    page_files: int = 1000
    """Entries of one page of a tree."""
    empty_tree_status: int = 200
    """Answer to the tree of a repository without files: an empty list, or 404."""
    behaviours: list[str] = field(default_factory=list)
    """For each next read of a file: ``cut:N`` (break after N bytes), ``status:N``, ``redirect:URL``; else the file."""
    behaviours_of: str = ""
    """They are for reads of files whose path ends so."""
    reads: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each read of a file."""
    requests: list[str] = field(default_factory=list)
    """Path of every request."""
    uploads: list[int] = field(default_factory=list)
    """Sizes of the large files that were sent, in order."""
    fail_uploads_after: int | None = None
    """Answer 501 to every upload once so many have arrived; the client tries a 503 again by itself."""
    status: int | None = None
    """Answer every request to the API with this status."""

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        """Make a repository with these files on its main branch."""
        self.repos[name] = Repo(branches={"main": dict(files)}, **options)
        return self.repos[name]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve on a free loopback port until the block ends."""
    hub = Hub()
    with served(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub


def blob_id(data: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        parts = path.strip("/").split("/")
        if path.startswith("/blobs/"):
            self._upload(parts[1], body)
        elif "resolve" in parts[2:4]:
            self._resolve(path, parts)
        elif self.hub.status is not None:
            self._json(self.hub.status, {"error": "as told"})
        elif parts[0] == "api" and "revision" in parts:
            self._info(parts)
        elif parts[0] == "api" and parts[4:5] == ["tree"]:
            self._tree(parts)
        elif not self._is_writer():
            self._json(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            self._repository(parts, body)

    def _is_writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _visible(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        return None if repo is None or (repo.private and not self._is_writer()) else repo

    # reading

    def _asked(self, parts: list[str]) -> tuple[Repo, str] | None:
        """Return repository and commit of /api/{models|datasets}/{owner}/{name}/{what}/{revision}, or say what is missing."""
        kind, owner, name = parts[1:4]
        repo = self._visible(f"{'datasets/' if kind == 'datasets' else ''}{owner}/{name}")
        if repo is None:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repo.commit_of("/".join(parts[5:]))
        if commit is None:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repo, commit

    def _info(self, parts: list[str]) -> None:
        if (asked := self._asked(parts)) is None:
            return
        repo, commit = asked
        # without files: plan lists a repository by its tree alone
        self._json(200, {"id": "/".join(parts[2:4]), "sha": commit, "siblings": [], "tags": [], "gated": repo.gated})

    def _tree(self, parts: list[str]) -> None:
        """Answer with a page of all files; folders are named only where everything below them is asked for."""
        if (asked := self._asked(parts)) is None:
            return
        repo, commit = asked
        query = parse_qs(urlsplit(self.path).query)
        files = repo.snapshots[commit]
        if not files and self.hub.empty_tree_status != 200:
            self._json(self.hub.empty_tree_status, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        folders = {str(folder) for path in files for folder in PurePosixPath(path).parents if str(folder) != "."}
        recursive = query.get("recursive", ["False"])[0].lower() == "true"
        entries = [_folder(path) for path in folders if recursive] + [_entry(path, files[path]) for path in files]
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page_files
        entries.sort(key=lambda entry: str(entry["path"]))
        more = urlencode({"recursive": str(recursive), "cursor": end})
        link = f'<{self.hub.url}{urlsplit(self.path).path}?{more}>; rel="next"'
        self._json(200, entries[start:end], {"Link": link} if end < len(entries) else {})

    def _resolve(self, path: str, parts: list[str]) -> None:
        # [datasets/]{owner}/{name}/resolve/{revision}/{file ..}
        self.hub.reads.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        at = parts.index("resolve")
        repo = self._visible("/".join(parts[:at]))
        commit = repo.commit_of(parts[at + 1]) if repo is not None else None
        content = repo.snapshots[commit].get("/".join(parts[at + 2 :])) if repo is not None and commit else None
        told = self.hub.behaviours and path.endswith(self.hub.behaviours_of)
        name, _, value = (self.hub.behaviours.pop(0) if told else "").partition(":")
        if name == "status":
            self._send(int(value), b"", {"Retry-After": "0"})
        elif name == "redirect":
            self._send(302, b"", {"Location": value + path})
        elif repo is not None and repo.gated and not self._is_writer():
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        elif content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send_file(content, commit or "", int(value) if name == "cut" else None)

    def _send_file(self, content: bytes, commit: str, cut_bytes: int | None) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'}
        if asked and start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if asked else 200, content[start:], headers, cut_bytes)

    # writing

    def _create(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"] if "/" in wanted["name"] else f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.hub.repos
        if not known:
            self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
        self._json(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _repository(self, parts: list[str], body: bytes) -> None:
        # api/models/{owner}/{name}/{what}/{branch}
        repo = self.hub.repos.get("/".join(parts[2:4]))
        if repo is None or len(parts) < 6:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        what, branch = parts[4], parts[5]
        if what == "branch":
            known = branch in repo.branches
            repo.branches.setdefault(branch, dict(repo.branches["main"]))
            self._json(409 if known else 200, {})
        elif what == "preupload":
            self._json(200, {"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        elif what == "commit":
            self._commit("/".join(parts[2:4]), branch, body)
        else:
            self._json(404, {"error": what})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        files = repo.branches[branch]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    repo.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repo.commit_of(branch)
        self._json(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}}
            objects.append({**item, **({} if item["oid"] in self.hub.blobs else {"actions": action})})
        self._json(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        if self.hub.fail_uploads_after is not None and len(self.hub.uploads) >= self.hub.fail_uploads_after:
            self._json(501, {})
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.hub.uploads.append(len(body))
        self._json(200, {})

    # plumbing

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {**(headers or {}), "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut_bytes: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut_bytes])
        if cut_bytes is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
    if len(data) > LARGE_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())}


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["size"] > LARGE_BYTES else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
