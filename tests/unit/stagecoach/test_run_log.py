"""What a stage writes is in the bucket while it runs, and keeping it holds nothing up."""

from __future__ import annotations

import logging
import sys
import threading
import time

import pytest

from stagecoach import run_log
from stagecoach.redaction import log_to_stderr
from stagecoach.run_log import RunLog, copied_stderr
from stagecoach.storage.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore

RUN = "20261125T013000Z-a"


def kept(store: MemoryStore) -> dict[str, str]:
    return {info.key: store.get(info.key).decode() for info in store.list(f"runs/{RUN}/logs/")}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("log")


def test_everything_written_is_kept_and_still_shown(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    with copied_stderr() as log:
        log_to_stderr(logging.INFO, "%(message)s")
        logging.getLogger("stagecoach").info("before it was clear where to")
        log.keep_in(store, RUN, "pack", 3)
        sys.stderr.write("half a ")
        sys.stderr.write("line\nan end without a newline")
    assert capsys.readouterr().err == "before it was clear where to\nhalf a line\nan end without a newline"
    assert kept(store) == {
        f"runs/{RUN}/logs/pack/0003-000001.txt": "before it was clear where to\nhalf a line\nan end without a newline\n"
    }
    assert type(sys.stderr).__name__ != "_Tee"


def test_chunks_are_there_while_the_stage_runs(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "FIRST_PAUSE_SECONDS", 0.01)
    log = RunLog()
    log.keep_in(store, RUN, "train", 1)
    for number, text in enumerate(("one\n", "two\n"), 1):
        log.add(text)
        limit = time.monotonic() + 20
        while len(kept(store)) < number and time.monotonic() < limit:
            time.sleep(0.005)
    assert list(kept(store).values()) == ["one\n", "two\n"]
    log.end()


def test_no_secret_gets_into_the_bucket(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    log = RunLog()
    log.keep_in(store, RUN, "pack", 1)
    log.add("401 for https://u:pw@host/x with correct-horse-")
    log.add("battery\n")
    log.end()
    assert list(kept(store).values()) == ["401 for https://***@host/x with ***\n"]


def test_lines_that_a_store_did_not_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "FIRST_PAUSE_SECONDS", 0.01)
    inner = MemoryStore("log")
    store = FaultyStore(inner, [Fault(when=lambda call: call.operation == "put")])
    log = RunLog()
    log.add("one\ntwo\n")
    log.keep_in(store, RUN, "pack", 1)
    limit = time.monotonic() + 20
    while not store.calls and time.monotonic() < limit:
        time.sleep(0.005)
    log.add("three\n")
    log.end()
    assert list(kept(inner).values()) == ["(2 lines before this one are not in the bucket)\nthree\n"]


def test_a_store_that_hangs_holds_no_stage_up(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_LAST_PUT_SECONDS", 0.1)
    released = threading.Event()
    monkeypatch.setattr(store, "put", lambda *_: released.wait(60))
    log = RunLog()
    log.keep_in(store, RUN, "pack", 1)
    log.add("line\n")
    began = time.monotonic()
    log.end()
    assert time.monotonic() - began < 5
    released.set()


def test_a_flood_is_bounded_and_says_what_it_lost(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_MAX_WAITING_CHARACTERS", 100)
    log = RunLog()
    log.add("".join(f"{number:09d}\n" for number in range(1000)))
    log.keep_in(store, RUN, "pack", 1)
    log.end()
    lines = next(iter(kept(store).values())).splitlines()
    assert lines[0] == "(989 lines before this one are not in the bucket)"
    assert lines[1:] == [f"{number:09d}" for number in range(989, 1000)]
