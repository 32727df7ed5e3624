"""Objects on their way to S3 in parts, on a real server: whole or absent, whatever fails, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from stagecoach.errors import CorruptObjectError, StoreError, StoreUnavailable
from stagecoach.outputs import Output, open_input
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach.storage.s3_calls import S3Calls
from stagecoach.storage.s3_options import S3Options
from stagecoach.storage.s3_requests import S3Requests
from stagecoach.storage.s3_upload import MAX_PARTS, S3Upload, next_part_bytes
from stagecoach.storage.s3_wire import WireAnswer
from tests.faulty_s3 import FaultKind, fail_first
from tests.seaweed import PART_BYTES, big_file, failing

if TYPE_CHECKING:
    from tests.seaweed import SeaweedServer


class TestFiles:
    """Parts side by side must come out as the one file that went in."""

    @pytest.mark.parametrize("num_parts", [1, 2, 3.3])
    @pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
    def test_a_large_file_goes_there_and_back(
        self, s3_environment: SeaweedServer, tmp_path: Path, num_parts: float, checksums: str
    ) -> None:
        store = s3_environment.store(part_bytes=PART_BYTES, checksums=checksums)
        path, digest = big_file(tmp_path, num_parts)
        store.put_file("big", path)
        seen = hashlib.sha256()
        store.get_file("big", tmp_path / "back", on_bytes=seen.update)
        assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest == seen.hexdigest()
        assert list(store.unfinished()) == []

    def test_an_upload_that_fails_leaves_no_parts(self, s3_environment: SeaweedServer, tmp_path: Path) -> None:
        with failing(s3_environment) as (store, proxy):
            path, _ = big_file(tmp_path, 3)
            proxy.script = fail_first(100, "503", "PUT", "partNumber=2")
            with pytest.raises(
                StoreUnavailable, match=r"big: the store at http.* fails again and again .SlowDown, HTTP 503"
            ):
                store.put_file("big", path)
            assert list(store.unfinished()) == []
            assert store.head("big") is None

    def test_an_upload_whose_process_died_is_found_and_discarded(
        self, s3_environment: SeaweedServer, tmp_path: Path
    ) -> None:
        store = s3_environment.store()
        upload_id = store._calls.connected().create_upload(store._full("try-1/big"), "nonce")
        (left,) = store.unfinished()
        assert (left.key, left.upload_id) == ("try-1/big", upload_id)
        assert abs(left.started_unix_seconds - time.time()) < 60
        store.discard(left)
        store.discard(left)
        assert list(store.unfinished()) == []

    def test_a_completion_whose_answer_was_lost_is_a_success(
        self, s3_environment: SeaweedServer, tmp_path: Path
    ) -> None:
        with failing(s3_environment) as (store, proxy):
            path, digest = big_file(tmp_path, 2)
            proxy.script = fail_first(1, "lost", "POST", "uploadId")
            store.put_file("big", path)
            assert hashlib.sha256(store.get("big")).hexdigest() == digest

    def test_a_file_that_shrinks_meanwhile_is_refused(
        self, s3_environment: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = s3_environment.store(part_bytes=PART_BYTES)
        path, _ = big_file(tmp_path, 2)
        monkeypatch.setattr(os, "preadv", lambda *arguments: 0)
        with pytest.raises(CorruptObjectError, match="became shorter while it was being stored"):
            store.put_file("big", path)
        assert list(store.unfinished()) == []


class TestStreams:
    """What is written piece by piece has a key when it is whole, and never before."""

    @pytest.mark.parametrize("kind", ["refuse", "lost", "truncate", "503"])
    @pytest.mark.parametrize("request_", [("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")])
    def test_each_request_of_an_upload_is_tried_again(
        self, s3_environment: SeaweedServer, request_: tuple[str, str], kind: FaultKind
    ) -> None:
        data = os.urandom(3 * PART_BYTES + 7)
        with failing(s3_environment) as (store, proxy):
            proxy.script = fail_first(2, kind, *request_)
            with store.create("big") as write:
                write(data)
            assert store.get("big") == data
            # of an upload whose answer was lost or cut nobody knows: gc finds it
            is_forgotten = request_ == ("POST", "uploads") and kind in ("lost", "truncate")
            assert len(list(store.unfinished())) == (2 if is_forgotten else 0)

    @pytest.mark.parametrize("request_", [("PUT", "partNumber=1"), ("PUT", "partNumber=4"), ("POST", "uploadId")])
    def test_what_keeps_failing_leaves_no_object_and_no_parts(
        self, s3_environment: SeaweedServer, request_: tuple[str, str]
    ) -> None:
        with failing(s3_environment) as (store, proxy):
            proxy.script = fail_first(100, "503", *request_)
            with pytest.raises(StoreUnavailable, match=r"big: the store at http.* fails again and again"):
                with store.create("big") as write:
                    for _ in range(8):
                        write(bytes(PART_BYTES // 2))
            assert store.head("big") is None
            assert list(store.unfinished()) == []

    def test_an_output_of_several_parts_is_what_its_manifest_says(
        self, s3_environment: SeaweedServer, tmp_path: Path
    ) -> None:
        store = s3_environment.store(part_bytes=PART_BYTES)
        pieces = [os.urandom(size_bytes) for size_bytes in (7, PART_BYTES, 300_000, 2 * PART_BYTES + 1)]
        output = Output(store, "native/m-1/", tmp_path / "out")
        with output.create("a") as stream:
            for piece in pieces:
                stream.write(piece)
        assert output.objects["a"].sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
        assert list((tmp_path / "out").iterdir()) == []  # nothing passes through the disk
        assert output.commit(task="t", key="1", name="m", output_version=1)
        assert open_input(store, "native/m-1/", tmp_path / "in").read_bytes("a") == b"".join(pieces)

    def test_a_failed_part_cannot_be_overlooked(self, s3_environment: SeaweedServer) -> None:
        """A block that goes on after an error must not complete an object with a hole."""
        with failing(s3_environment, num_threads=1) as (store, proxy):
            proxy.script = fail_first(4, "503", "PUT", "partNumber=1")
            failures = 0
            with pytest.raises(StoreUnavailable), store.create("big") as write:
                for _ in range(6):
                    try:
                        write(bytes(PART_BYTES))
                    except StoreUnavailable:
                        failures += 1
            assert failures > 1
            assert store.head("big") is None
            assert list(store.unfinished()) == []

    def test_an_upload_that_could_not_begin_cannot_be_overlooked(self, s3_environment: SeaweedServer) -> None:
        with failing(s3_environment, num_threads=1) as (store, proxy):
            proxy.script = fail_first(4, "503", "POST", "uploads")
            with pytest.raises(StoreUnavailable), store.create("big") as write:
                for _ in range(4):
                    with contextlib.suppress(StoreUnavailable):
                        write(bytes(PART_BYTES))
            assert store.head("big") is None
            assert list(store.unfinished()) == []

    def test_a_block_that_is_interrupted_while_its_upload_begins_aborts_it(self) -> None:
        """Ctrl-C ends the block in the main thread while another one still asks for the upload."""
        asked, answered, aborted = threading.Event(), threading.Event(), list[str]()

        class Ask:
            def create_upload(self, key: str, nonce: str) -> str:
                asked.set()
                assert answered.wait(10)
                return "upload-1"

            def put_part(self, key: str, upload_id: str, part: object, data: object) -> dict[str, Any]:
                return {}

            def abort_upload(self, key: str, upload_id: str) -> None:
                aborted.append(upload_id)

        class Calls:
            def retry(self, call: Callable[[Ask], Any]) -> Any:
                return call(Ask())

            def connected(self) -> Ask:
                return Ask()

        upload = S3Upload(cast(S3Calls, Calls()), "big", S3Options())
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(upload.send, upload.buffer(5), 5)
            assert asked.wait(10)
            closing = pool.submit(upload.close, abort=True)
            answered.set()
            closing.result(10)
            sending.result(10)
        assert aborted == ["upload-1"]
        with pytest.raises(ValueError, match="was given up"):
            upload.send(upload.buffer(5), 5)

    def test_an_abort_that_fails_is_not_tried_again(self) -> None:
        """With the store down, the abort took as long again as the retries that had just failed."""
        tries = list[str]()

        class Down:
            def create_upload(self, key: str, nonce: str) -> str:
                return "upload-1"

            def put_part(self, *arguments: object) -> dict[str, Any]:
                return {}

            def abort_upload(self, key: str, upload_id: str) -> None:
                tries.append(upload_id)
                raise WireAnswer(503, "SlowDown", "reduce your request rate")

        upload = S3Upload(S3Calls("s3://b", S3Options(), lambda: cast(S3Requests, Down())), "key", S3Options())
        upload.send(memoryview(bytearray(8)), 8)
        upload.close(abort=True)
        assert tries == ["upload-1"]
        with pytest.raises(ValueError, match="was given up"):
            upload.send(upload.buffer(5), 5)

    @pytest.mark.parametrize("holds", ["ours", "another's", "nothing"])
    def test_an_upload_that_is_gone_was_completed_if_the_object_is_ours(
        self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch, holds: str
    ) -> None:
        """AWS answers NoSuchUpload to the second try of a completion whose first answer was lost; SeaweedFS does not."""
        complete = S3Requests.complete_upload

        def complete_and_say_gone(ask: S3Requests, key: str, upload_id: str, parts: Any) -> None:
            complete(ask, key, upload_id, parts)
            if holds == "another's":
                ask.put(key, b"x", {})
            if holds == "nothing":
                ask.delete(key)
            raise WireAnswer(404, "NoSuchUpload", "The upload ID may be invalid")

        monkeypatch.setattr(S3Requests, "complete_upload", complete_and_say_gone)
        store = s3_environment.store(part_bytes=PART_BYTES)
        with contextlib.nullcontext() if holds == "ours" else pytest.raises(StoreError):
            with store.create("big") as write:
                write(bytes(PART_BYTES + 1))
        assert (store.head("big") is None) == (holds == "nothing")

    def test_memory_is_bounded_by_a_slow_store(
        self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[int] = []

        class Counted(mmap.mmap):
            def __new__(cls, descriptor: int, length: int, **options: Any) -> Counted:
                made.append(length)
                return super().__new__(cls, descriptor, length, **options)

        monkeypatch.setattr(mmap, "mmap", Counted)
        with failing(s3_environment, num_threads=2) as (store, proxy):
            proxy.script = fail_first(100, "slow", "PUT")
            with store.create("big") as write:
                for _ in range(12):
                    write(bytes(PART_BYTES))
        assert made == [PART_BYTES] * 2  # one on its way, one being filled


KILLED_WRITER = """
import os, signal, sys
from stagecoach.outputs import Output, open_input
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
with open_store(sys.argv[1], Settings.from_environ()).create("try-1/a") as write:
    for _ in range(9):
        write(bytes(2**23))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_killed_writer_leaves_no_object_but_what_gc_finds(
    kind: str, s3_environment: SeaweedServer, tmp_path: Path
) -> None:
    url = str(tmp_path / "store") if kind == "directory" else f"{s3_environment.url}/t-{os.urandom(6).hex()}"
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, url], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = open_store(url, Settings.from_environ())
    assert list(store.list("")) == []
    (left,) = store.unfinished()
    assert abs(left.started_unix_seconds - time.time()) < 60
    store.discard(left)
    assert list(store.unfinished()) == []


def test_parts_grow_so_that_any_object_fits() -> None:
    size_bytes = num_parts = 0
    while size_bytes < 5 * 2**40:
        part_bytes = next_part_bytes(size_bytes, 16 * 2**20)
        assert part_bytes <= 2**30
        size_bytes += part_bytes
        num_parts += 1
    assert num_parts < MAX_PARTS
    assert next_part_bytes(16 * 10**9, 16 * 2**20) == 16 * 2**20
